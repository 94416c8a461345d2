"""Hundreds of requests to everything but generations: every reply as documented, all for free."""

from pathlib import Path

import pytest
from fuzz import PARTS, fuzz
from hostile import GENERATIONS, QUOTE, Logs

from serve_app.ingress.openapi import openapi_document

OTHERS = [
    ("/v1/images/{image_id}/content", 0.2),
    ("/v1/models/{model_id}", 0.1),
    ("/v1/account", 0.01),
    ("/v1/models", 0.01),
    ("/admin/v1/status", 0.01),
    ("/v1/usage", 0.01),
    ("/health", 0.01),
    ("/ready", 0.01),
]

ADMIN = [
    ("/admin/v1/accounts", "GET"),
    ("/admin/v1/accounts", "POST"),
    ("/admin/v1/accounts/{account}", "GET"),
    ("/admin/v1/accounts/{account}/disable", "POST"),
    ("/admin/v1/accounts/{account}/enable", "POST"),
    ("/admin/v1/accounts/{account}/budgets", "PUT"),
    ("/admin/v1/grants", "POST"),
    ("/admin/v1/keys", "GET"),
    ("/admin/v1/keys", "POST"),
    ("/admin/v1/keys/{key_id}/limits", "PUT"),
    ("/admin/v1/keys/{key_id}/revoke", "POST"),
    ("/admin/v1/entries", "GET"),
    ("/admin/v1/acts", "GET"),
    ("/admin/v1/audit", "GET"),
    ("/admin/v1/usage", "GET"),
]
ADMIN_SHARE = 0.015


def test_the_fuzz_tests_know_every_operation() -> None:
    paths = openapi_document("http://test")["paths"]
    admin = {path for path, _ in ADMIN}
    assert {GENERATIONS, QUOTE, *(path for path, _ in OTHERS), *admin} == set(paths)


@pytest.mark.parametrize(("path", "method"), ADMIN)
def test_an_operators_slips_are_refused_and_never_break_the_books(
    tmp_path: Path, migrated_ledger: Path, logs: Logs, path: str, method: str
) -> None:
    played = fuzz(tmp_path, migrated_ledger, logs, path, method, ADMIN_SHARE, operator=True)
    assert sum(played.statuses.values()) > 0
    assert set(played.statuses) <= {200, 201, 400, 404, 405}


@pytest.mark.parametrize("part", range(PARTS))
def test_quotes_survive_whatever_the_schema_allows_and_what_it_forbids(
    tmp_path: Path, migrated_ledger: Path, logs: Logs, part: int
) -> None:
    played = fuzz(tmp_path, migrated_ledger, logs, QUOTE, "POST", 0.3 / PARTS, part)
    assert played.statuses[200] > 0
    assert played.statuses[400] > 0


@pytest.mark.parametrize(("path", "share"), OTHERS)
def test_reads_survive_whatever_the_schema_allows_and_what_it_forbids(
    tmp_path: Path, migrated_ledger: Path, logs: Logs, path: str, share: float
) -> None:
    played = fuzz(tmp_path, migrated_ledger, logs, path, "GET", share)
    assert sum(played.statuses.values()) > 0
    assert set(played.statuses) <= {200, 400, 403, 404}
