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
from serve_app.ingress.adminverbs import AdminVerbs
from serve_app.ingress.books import Books
from serve_app.ingress.operators import Operators
from serve_app.metering.records import OpenWork

Fleet = Callable[[], Awaitable[Mapping[str, ReplicaStatus]]]
"""Replicas of each model by its id; raises `Unavailable` when nobody can tell."""
IDLE = OpenWork(0, 0, 0)


@dataclass
class AdminApi(Operators):
    """The status of the fleet; the verbs and the books are of the modules beside this one."""

    fleet: Fleet

    def routes(self) -> list[Route]:
        return [
            Route("/admin/v1/status", self.status, methods=["GET"]),
            *AdminVerbs(self.service, self.ledger_admin).routes(),
            *Books(self.service, self.ledger_admin).routes(),
        ]

    async def status(self, request: Request) -> Response:
        """Replicas and open work of every model.

        The work is read first: an answer must not name replicas and then show what they have since
        finished as waiting.
        """
        await self.principal(request)
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
