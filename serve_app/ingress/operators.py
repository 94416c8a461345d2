"""What the operator's handlers share: who asks, pages, files.

Data flow: Starlette request -> `Operators.admin` -> `LedgerAdmin` in the name of the key that asks.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serve_app import csvfile
from serve_app.ingress.auth import authenticate
from serve_app.ingress.body import read_json_object
from serve_app.ingress.headers import replay_headers
from serve_app.metering.admin import LedgerAdmin
from serve_app.metering.keys import SCOPE_ADMIN, SCOPE_IMAGES
from serve_app.metering.listings import Listed, walk
from serve_app.metering.records import Author
from serve_app.metering.types import LIST_MAX, Principal
from serve_app.schema import parse_request
from serve_app.service import ImageService

Body = TypeVar("Body", bound=BaseModel)
Item = TypeVar("Item", bound=Listed)
Fetch = Callable[[int, str | None], Awaitable[Sequence[Item]]]


@dataclass
class Operators:
    service: ImageService
    ledger_admin: LedgerAdmin

    async def principal(self, request: Request, scope: str = SCOPE_ADMIN) -> Principal:
        development = self.service.config.development is not None
        return await authenticate(
            request, self.service.ledger, development=development, scope=scope
        )

    async def customer(self, request: Request) -> Principal:
        return await self.principal(request, SCOPE_IMAGES)

    async def read(self, request: Request) -> LedgerAdmin:
        """For what changes nothing."""
        await self.principal(request)
        return self.ledger_admin

    async def act(self, request: Request, model: type[Body]) -> tuple[LedgerAdmin, Body]:
        """For what changes something: the body, and the ledger in the name of the asking key."""
        principal = await self.principal(request)
        data = await read_json_object(request, self.service.config.limits)
        body = parse_request(model, data)
        author = Author(
            f"api:{principal.account_id}/{principal.key_id}", getattr(body, "reason", None) or ""
        )
        return self.ledger_admin.by(author), body


def answer(model: BaseModel, status: int = 200, *, replayed: bool = False) -> Response:
    """Every field is there, null included: who reads a budget must not have to guess."""
    return Response(
        model.model_dump_json(),
        status,
        media_type="application/json",
        headers={"cache-control": "no-store", **replay_headers(replayed=replayed)},
    )


async def page_of(
    fetch: Fetch[Item], limit: int, after: str | None
) -> tuple[Sequence[Item], str | None]:
    """One page, and where the next one begins, if there is one."""
    found = await fetch(min(limit, LIST_MAX) + 1, after)
    page = found[:limit]
    return page, page[-1].cursor if len(found) > limit else None


async def csv_file(
    name: str, fields: Sequence[str], fetch: Fetch[Item], after: str | None
) -> Response:
    """All rows as a file, read page by page while it is sent.

    The first page is read before the reply begins: what is wrong with the request is a status.
    """
    pages = walk(fetch, after)
    first = await anext(pages)

    def rows(page: Sequence[Item]) -> str:
        return csvfile.lines([getattr(one, field) for field in fields] for one in page)

    async def body() -> AsyncIterator[str]:
        yield csvfile.lines([fields]) + rows(first)
        async for page in pages:
            yield rows(page)

    headers: dict[str, Any] = {
        "content-disposition": f'attachment; filename="{name}.csv"',
        "cache-control": "no-store",
    }
    return StreamingResponse(body(), media_type="text/csv; charset=utf-8", headers=headers)
