"""The operator's verbs over HTTP: accounts, grants, keys. The same as on the command line.

Data flow: `Operators.act` -> a verb of `LedgerAdmin`, which also enters the act -> wire model.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.adminrequests import (
    AccountPageQuery,
    Budgets,
    Grant,
    KeyLimits,
    NewAccount,
    NewKeyRequest,
    PageQuery,
    Reason,
)
from serve_app.adminschema import (
    AccountObject,
    AccountPage,
    KeyObject,
    KeyPage,
    NewKeyObject,
)
from serve_app.idempotency import HEADER, key_from
from serve_app.ingress.operators import Operators, answer, page_of
from serve_app.ingress.query import parse_query
from serve_app.metering.keys import DEFAULT_SCOPES


class AdminVerbs(Operators):
    def routes(self) -> list[Route]:
        account, key = "/admin/v1/accounts/{account}", "/admin/v1/keys/{key_id}"
        return [
            Route("/admin/v1/accounts", self.accounts, methods=["GET", "POST"]),
            Route(account, self.show_account, methods=["GET"]),
            Route(f"{account}/disable", self.disable, methods=["POST"]),
            Route(f"{account}/enable", self.enable, methods=["POST"]),
            Route(f"{account}/budgets", self.set_budgets, methods=["PUT"]),
            Route("/admin/v1/grants", self.grant, methods=["POST"]),
            Route("/admin/v1/keys", self.keys, methods=["GET", "POST"]),
            Route(f"{key}/limits", self.limit_key, methods=["PUT"]),
            Route(f"{key}/revoke", self.revoke_key, methods=["POST"]),
        ]

    # One route each, so that the `Allow` of a 405 names both methods.
    async def accounts(self, request: Request) -> Response:
        post = request.method == "POST"
        return await (self.create_account(request) if post else self.list_accounts(request))

    async def keys(self, request: Request) -> Response:
        post = request.method == "POST"
        return await (self.create_key(request) if post else self.list_keys(request))

    async def list_accounts(self, request: Request) -> Response:
        admin = await self.read(request)
        query = parse_query(PageQuery, request)
        page, following = await page_of(admin.list_accounts, query.limit, query.after)
        return answer(AccountPage(data=[AccountObject.of(one) for one in page], next=following))

    async def create_account(self, request: Request) -> Response:
        admin, body = await self.act(request, NewAccount)
        return answer(AccountObject.of(await admin.create_account(body.name)), 201)

    async def show_account(self, request: Request) -> Response:
        admin = await self.read(request)
        return answer(AccountObject.of(await admin.show_account(request.path_params["account"])))

    async def disable(self, request: Request) -> Response:
        return await self._set_disabled(request, disabled=True)

    async def enable(self, request: Request) -> Response:
        return await self._set_disabled(request, disabled=False)

    async def _set_disabled(self, request: Request, *, disabled: bool) -> Response:
        admin, _ = await self.act(request, Reason)
        account = request.path_params["account"]
        return answer(AccountObject.of(await admin.set_disabled(account, disabled=disabled)))

    async def set_budgets(self, request: Request) -> Response:
        admin, body = await self.act(request, Budgets)
        account = request.path_params["account"]
        changed = await admin.set_budgets(account, body.day_budget, body.month_budget)
        return answer(AccountObject.of(changed))

    async def grant(self, request: Request) -> Response:
        admin, body = await self.act(request, Grant)
        key = key_from(request.headers.getlist(HEADER))
        granted = await admin.grant(body.account, body.units, key)
        return answer(AccountObject.of(granted.account), 201, replayed=granted.replayed)

    async def list_keys(self, request: Request) -> Response:
        admin = await self.read(request)
        query = parse_query(AccountPageQuery, request)
        page, following = await page_of(
            lambda limit, after: admin.list_keys(query.account, limit, after),
            query.limit,
            query.after,
        )
        return answer(KeyPage(data=[KeyObject.model_validate(one) for one in page], next=following))

    async def create_key(self, request: Request) -> Response:
        admin, body = await self.act(request, NewKeyRequest)
        made = await admin.create_key(
            body.account,
            scopes=body.scopes or DEFAULT_SCOPES,
            expires_at=body.expires_at,
            rpm=body.rpm,
            images_max=body.images_max,
            models=body.models,
        )
        key = KeyObject.model_validate(made.key)
        return answer(NewKeyObject(**key.model_dump(), secret=made.secret), 201)

    async def limit_key(self, request: Request) -> Response:
        admin, body = await self.act(request, KeyLimits)
        key = await admin.limit_key(
            request.path_params["key_id"],
            rpm=body.rpm,
            images_max=body.images_max,
            models=body.models,
        )
        return answer(KeyObject.model_validate(key))

    async def revoke_key(self, request: Request) -> Response:
        admin, _ = await self.act(request, Reason)
        key = await admin.revoke_key(request.path_params["key_id"])
        return answer(KeyObject.model_validate(key))
