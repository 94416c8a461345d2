"""Hundreds of generations, good and bad: every reply as documented, every unit accounted for."""

from pathlib import Path

import pytest
from fuzz import PARTS, fuzz
from hostile import GENERATIONS, Logs


@pytest.mark.parametrize("part", range(PARTS))
def test_generations_survive_whatever_the_schema_allows_and_what_it_forbids(
    tmp_path: Path, migrated_ledger: Path, logs: Logs, part: int
) -> None:
    played = fuzz(tmp_path, migrated_ledger, logs, GENERATIONS, "POST", 0.4 / PARTS, part)
    assert played.statuses[200] > 0
    assert played.statuses[400] > 0
    assert set(played.statuses) <= {200, 400, 404, 409, 413, 415}
