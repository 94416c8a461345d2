"""The operator's endpoints, under `/admin/v1`: every one needs a key with the scope `admin`.

Data flow: Starlette request -> `authenticate` -> `LedgerAdmin` and Serve's word on replicas -> wire
model. What a replica is, this module does not know: the deployments pass in who to ask.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.adminschema import ModelStatus, ReplicaStatus, StatusResponse
from serve_app.ingress.auth import authenticate
from serve_app.metering.admin import LedgerAdmin
from serve_app.metering.keys import SCOPE_ADMIN
from serve_app.metering.records import OpenWork
from serve_app.metering.types import Principal
from serve_app.service import ImageService

Fleet = Callable[[], Awaitable[Mapping[str, ReplicaStatus]]]
"""Replicas of each model by its id; raises `Unavailable` when nobody can tell."""
IDLE = OpenWork(0, 0, 0)


@dataclass
class AdminApi:
    """What the operator's handlers share."""

    service: ImageService
    ledger_admin: LedgerAdmin
    fleet: Fleet

    def routes(self) -> list[Route]:
        return [Route("/admin/v1/status", self.status, methods=["GET"])]

    async def _operator(self, request: Request) -> Principal:
        development = self.service.config.development is not None
        return await authenticate(
            request, self.service.ledger, development=development, scope=SCOPE_ADMIN
        )

    async def status(self, request: Request) -> Response:
        """Replicas and open work of every model.

        The work is read first: an answer must not name replicas and then show what they have since
        finished as waiting.
        """
        await self._operator(request)
        work = await self.ledger_admin.open_work()
        replicas = await self.fleet()
        answer = StatusResponse(
            models=[
                ModelStatus(
                    id=model.config.id,
                    replicas=replicas[model.config.id],
                    num_gpus=model.config.num_gpus,
                    open_holds=work.get(model.config.id, IDLE).holds,
                    held_images=work.get(model.config.id, IDLE).images,
                    held_units=work.get(model.config.id, IDLE).units,
                )
                for model in self.service.catalogue.models
            ]
        )
        return Response(answer.model_dump_json(), media_type="application/json")
