"""The operator's operations as `/openapi.json` lists them.

Data flow: wire models -> the table below -> `openapi`. Imports wire models only.
"""

from typing import NamedTuple

from pydantic import BaseModel

from serve_app.adminrequests import (
    AccountPageQuery,
    ActsQuery,
    Budgets,
    EntriesQuery,
    Grant,
    KeyLimits,
    NewAccount,
    NewKeyRequest,
    OwnUsageQuery,
    PageQuery,
    Reason,
    UsageQueryParameters,
)
from serve_app.adminschema import (
    AccountObject,
    AccountPage,
    ActPage,
    AuditResponse,
    EntryPage,
    KeyObject,
    KeyPage,
    NewKeyObject,
    OwnUsagePage,
    StatusResponse,
    UsagePage,
)


class Operation(NamedTuple):
    """One method of one path."""

    method: str
    path: str
    summary: str
    body: type[BaseModel] | None
    reply: type[BaseModel] | None
    errors: tuple[int, ...]
    keyed: bool
    query: type[BaseModel] | None = None
    csv: bool = False
    """Whether the reply may be a file instead."""
    status: int = 200


_ACCOUNT = "/admin/v1/accounts/{account}"
_KEY = "/admin/v1/keys/{key_id}"
_READ = (401, 403, 405, 500, 503)
_LISTED = (400, *_READ)
_OF_ONE = (404, *_READ)
_OF_ACCOUNT = (400, *_OF_ONE)
_DONE = (400, 408, 413, 415, *_READ)
_DONE_TO_ONE = (404, *_DONE)
_GRANTED = (409, *_DONE_TO_ONE)


def _list(
    path: str,
    summary: str,
    reply: type[BaseModel],
    query: type[BaseModel],
    errors: tuple[int, ...] = _OF_ACCOUNT,
    *,
    csv: bool = False,
) -> Operation:
    return Operation("get", path, summary, None, reply, errors, True, query, csv)


def _do(
    method: str,
    path: str,
    summary: str,
    body: type[BaseModel],
    reply: type[BaseModel],
    errors: tuple[int, ...] = _DONE_TO_ONE,
    status: int = 200,
) -> Operation:
    return Operation(method, path, summary, body, reply, errors, True, status=status)


ADMIN_OPERATIONS = (
    Operation(
        "get", "/admin/v1/status", "Replicas and open work", None, StatusResponse, _READ, True
    ),
    _list("/admin/v1/accounts", "List accounts", AccountPage, PageQuery, _LISTED),
    _do("post", "/admin/v1/accounts", "Make an account", NewAccount, AccountObject, _DONE, 201),
    Operation("get", _ACCOUNT, "One account", None, AccountObject, _OF_ONE, True),
    _do("post", f"{_ACCOUNT}/disable", "Refuse an account's keys", Reason, AccountObject),
    _do("post", f"{_ACCOUNT}/enable", "Take an account's keys again", Reason, AccountObject),
    _do("put", f"{_ACCOUNT}/budgets", "Set an account's budgets", Budgets, AccountObject),
    _do("post", "/admin/v1/grants", "Grant units", Grant, AccountObject, _GRANTED, 201),
    _list("/admin/v1/keys", "List keys", KeyPage, AccountPageQuery),
    _do("post", "/admin/v1/keys", "Make a key", NewKeyRequest, NewKeyObject, status=201),
    _do("put", f"{_KEY}/limits", "Set a key's limits", KeyLimits, KeyObject),
    _do("post", f"{_KEY}/revoke", "Revoke a key", Reason, KeyObject),
    _list("/admin/v1/entries", "List entries", EntryPage, EntriesQuery, csv=True),
    _list("/admin/v1/acts", "List acts", ActPage, ActsQuery, _LISTED),
    Operation("get", "/admin/v1/audit", "Audit the books", None, AuditResponse, _READ, True),
    _list("/admin/v1/usage", "Usage of all", UsagePage, UsageQueryParameters, csv=True),
    _list("/v1/usage", "Own usage and what is left", OwnUsagePage, OwnUsageQuery, _LISTED),
)
