"""The gateway of tests/unit, and everything it logs: hostile input must leave no secret there."""

import logging
from collections.abc import Iterator

import pytest
from hostile import Logs

# The same world as the unit tests': real service, SQLite ledger and image store.
from tests.unit.conftest import accounts, compiled_once, make_world, migrated_ledger, world

__all__ = ["accounts", "compiled_once", "logs", "make_world", "migrated_ledger", "world"]


@pytest.fixture(autouse=True)
def logs() -> Iterator[Logs]:
    """Every record, ours at DEBUG; afterwards none may hold a key or a signature."""
    found = Logs()
    root, ours = logging.getLogger(), logging.getLogger("serve_app")
    levels = root.level, ours.level
    root.setLevel(logging.INFO)  # libraries: below, they tell every statement
    ours.setLevel(logging.DEBUG)
    # Where an earlier test configured logging, our logger does not pass records on.
    loggers = [root] if ours.propagate else [root, ours]
    for logger in loggers:
        logger.addHandler(found)
    try:
        yield found
    finally:
        for logger in loggers:
            logger.removeHandler(found)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
    found.assert_clean()
