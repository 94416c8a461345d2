"""What is on file, over HTTP: entries, acts, the audit, usage of all and of one's own account.

Data flow: `Operators.read` -> listings of `LedgerAdmin` -> a page of JSON, or all of it as CSV.
"""

from datetime import UTC, datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.adminrequests import (
    ActsQuery,
    EntriesQuery,
    OwnUsageQuery,
    UsageQueryParameters,
)
from serve_app.adminschema import (
    ActObject,
    ActPage,
    AuditResponse,
    EntryObject,
    EntryPage,
    OwnUsagePage,
    StandingObject,
    UsageObject,
    UsagePage,
)
from serve_app.errors import InvalidValue
from serve_app.ingress.operators import Operators, answer, csv_file, page_of
from serve_app.ingress.query import parse_query, wants_csv
from serve_app.metering.listings import USAGE_DAYS_DEFAULT, UsageQuery
from serve_app.metering.records import Entry, UsageRow


class Books(Operators):
    def routes(self) -> list[Route]:
        return [
            Route("/admin/v1/entries", self.entries, methods=["GET"]),
            Route("/admin/v1/acts", self.acts, methods=["GET"]),
            Route("/admin/v1/audit", self.audit, methods=["GET"]),
            Route("/admin/v1/usage", self.usage, methods=["GET"]),
            Route("/v1/usage", self.own_usage, methods=["GET"]),
        ]

    async def entries(self, request: Request) -> Response:
        admin = await self.read(request)
        query = parse_query(EntriesQuery, request)

        async def fetch(limit: int, after: str | None) -> list[Entry]:
            return await admin.list_entries(query.account, limit, after)

        if wants_csv(request, query.format):
            refuse_limit(request)
            return await csv_file("entries", list(EntryObject.model_fields), fetch, query.after)
        page, following = await page_of(fetch, query.limit, query.after)
        data = [EntryObject.model_validate(one) for one in page]
        return answer(EntryPage(data=data, next=following))

    async def acts(self, request: Request) -> Response:
        admin = await self.read(request)
        query = parse_query(ActsQuery, request)
        page, following = await page_of(
            lambda limit, after: admin.list_acts(query.subject, limit, after),
            query.limit,
            query.after,
        )
        return answer(ActPage(data=[ActObject.model_validate(one) for one in page], next=following))

    async def audit(self, request: Request) -> Response:
        admin = await self.read(request)
        return answer(AuditResponse.model_validate(await admin.audit()))

    async def usage(self, request: Request) -> Response:
        admin = await self.read(request)
        query = parse_query(UsageQueryParameters, request)
        wanted = _wanted(query, query.account)

        async def fetch(limit: int, after: str | None) -> list[UsageRow]:
            return await admin.usage(wanted, limit, after)

        if wants_csv(request, query.format):
            refuse_limit(request)
            return await csv_file("usage", list(UsageObject.model_fields), fetch, query.after)
        page, following = await page_of(fetch, query.limit, query.after)
        data = [UsageObject.model_validate(one) for one in page]
        return answer(UsagePage(data=data, next=following))

    async def own_usage(self, request: Request) -> Response:
        """Of the account of the key that asks, and what both may still do."""
        principal = await self.customer(request)
        query = parse_query(OwnUsageQuery, request)
        wanted = _wanted(query, principal.account_id)
        page, following = await page_of(
            lambda limit, after: self.ledger_admin.usage(wanted, limit, after),
            query.limit,
            query.after,
        )
        left = await self.ledger_admin.standing(principal.account_id, principal.key_id)
        return answer(
            OwnUsagePage(
                data=[UsageObject.model_validate(one) for one in page],
                next=following,
                left=StandingObject.model_validate(left),
            )
        )


def refuse_limit(request: Request) -> None:
    """A file has all rows: who asks for ten of them would get others than meant."""
    if "limit" in request.query_params:
        raise InvalidValue("A CSV file has all rows: leave `limit` out.").at("limit")


def _wanted(query: OwnUsageQuery, account: str | None) -> UsageQuery:
    until = query.until or datetime.now(UTC).date()
    try:
        since = query.since or until - timedelta(days=USAGE_DAYS_DEFAULT - 1)
    except OverflowError:
        raise InvalidValue("There was no usage then.").at("to") from None
    by = tuple(name.strip() for name in query.by.split(","))
    return UsageQuery(since, until, by, account, query.key, query.model)
