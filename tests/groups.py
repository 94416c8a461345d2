"""Which test modules one worker of xdist runs, and what comes first.

Data flow: ids of tests -> `group_of` -> a scheduler of xdist (conftest.py). A group is a module, or
all modules that share a session's cluster: another worker would have to start one of its own. xdist
asks for the group of an id in a process that has collected nothing, so the modules are listed.
"""

from collections.abc import Iterable

import pytest

SHARED = {
    "served": (
        "tests/browser/",
        "tests/clients/",
        "tests/hostile/test_hostile_serve.py",
        "tests/integration/test_command_line.py",
        "tests/integration/test_loadtest.py",
        "tests/test_readme.py",
    ),
    "cluster": (
        "tests/integration/test_events.py",
        "tests/integration/test_exported_metrics.py",
        "tests/integration/test_rolling.py",
        "tests/integration/test_scaling.py",
        "tests/integration/test_tracing_serve.py",
        "tests/integration/test_serve.py",  # its last test takes the application away
    ),
}
"""Fixture of a session's cluster -> modules that use it, in the order in which they run."""
LONGEST = (
    "cluster",
    "served",
    "tests/faults/test_faults.py",
    "tests/integration/test_nodes.py",
    "tests/integration/test_stopping.py",
    "tests/integration/test_haproxy.py",
    "tests/kubernetes/test_placement.py",
)
"""Groups that start first: they take long, and wait more than they compute."""


def group_of(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    for name, places in SHARED.items():
        if path.startswith(places):
            return name
    return path


def place_of(nodeid: str) -> tuple[int, int]:
    """A sort key: the longest groups first, and modules of a group as they are listed."""
    group = group_of(nodeid)
    first = LONGEST.index(group) if group in LONGEST else len(LONGEST)
    within = [nodeid.startswith(place) for place in SHARED.get(group, ("",))].index(True)
    return first, within


def check_groups(items: Iterable[pytest.Item]) -> None:
    """Raise where a module uses a session's cluster and is not in its group."""
    for item in items:
        if item.get_closest_marker("serve") is not None:
            used = SHARED.keys() & set(getattr(item, "fixturenames", ()))
            if used - {group_of(item.nodeid)}:
                raise pytest.UsageError(f"{item.nodeid} uses {used}: see tests/groups.py")
