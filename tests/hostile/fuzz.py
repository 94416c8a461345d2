"""Cases that schemathesis derives from /openapi.json, played against the whole application.

Data flow: the served document -> schemathesis -> a case -> httpx -> the ASGI application over the
real service, ledger and image store -> every check. One event loop, so one ledger, for all cases.
`HOSTILE_CASES=5400` in the environment plays three times the usual number, which takes a minute.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import hypothesis.strategies as st
import requests
import schemathesis
from hostile import Logs, assert_charged_for_200s, assert_harmless
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from scripted import World
from waiting import within

from tests.unit.conftest import build_world, close

CASES = int(os.environ.get("HOSTILE_CASES", "1800"))
"""All fuzz tests together; operations without parameters have few cases, and play those."""
PARTS = 4
"""Tests that each large operation is split into, with a seed of its own."""
GRANTED = 10**15
SEED = 20261122
load_all_checks()
CHECK_NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
CHECKS_RUN = [CHECKS.get_one(name) for name in CHECK_NAMES]
SIZES = st.sampled_from([None, "auto", "128x128", "256x512", "1024x1024"])
MODELS = st.sampled_from([None, "flux-mini", "black-forest-labs/FLUX.1-schnell"])


class Fuzz:
    """One world, one loop, and what was answered so far."""

    def __init__(self, runner: asyncio.Runner, world: World, logs: Logs) -> None:
        self.runner = runner
        self.world = world
        self.logs = logs
        self.statuses: Counter[int] = Counter()
        self.drawn: list[httpx.Response] = []
        self.http = world.client(None)
        self.key = world.key

    def document(self) -> dict[str, Any]:
        reply = self.runner.run(self.http.get("/openapi.json"))
        found: dict[str, Any] = reply.json()
        return found

    async def _reply(self, request: httpx.Request) -> httpx.Response:
        async with within(f"a reply to {request.method} {request.url}"):
            return await self.http.send(request)

    def play(self, case: Any) -> None:
        prepared = requests.Request(**case.as_transport_kwargs(base_url="http://test")).prepare()
        assert prepared.url is not None
        body = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body
        request = httpx.Request(
            str(prepared.method), prepared.url, headers=dict(prepared.headers), content=body
        )
        reply = self.runner.run(self._reply(request))
        self.statuses[reply.status_code] += 1
        if request.url.path == "/v1/images/generations":
            self.drawn.append(reply)
        if isinstance(case.body, dict) and isinstance(case.body.get("prompt"), str):
            self.logs.keep_secret(case.body["prompt"])
        assert_harmless(reply, self.world)
        streamed = reply.headers.get("content-type", "").startswith("text/event-stream")
        checks = CHECKS_RUN if not streamed else CHECKS_RUN[:3]
        case.validate_response(reply, checks=checks)


def fuzz(
    folder: Path,
    ledger: Path,
    logs: Logs,
    path: str,
    method: str,
    share: float,
    part: int = 0,
    *,
    operator: bool = False,
) -> Fuzz:
    """Play `share` of all cases against one operation, half of them against its schema.

    With `operator` the key is another account's, with the scope `admin`, too.
    """
    (folder / "ledger.db").write_bytes(ledger.read_bytes())
    with asyncio.Runner() as runner:
        world = runner.run(build_world(folder, GRANTED, {}))
        try:
            played = Fuzz(runner, world, logs)
            if operator:
                played.key = runner.run(make_operator(world))
            logs.keep_secret(played.key)
            operation = schemathesis.openapi.from_dict(played.document())[path][method]
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if (
                    mode is GenerationMode.POSITIVE
                    or "content" in path
                    or method in ("POST", "PUT")
                ):
                    cases = max(1, int(CASES * share / 2))
                    _test(played, operation, mode, cases, SEED + part)()
            runner.run(assert_charged_for_200s(world, played.drawn))
        finally:
            runner.run(close(world))
    return played


async def make_operator(world: World) -> str:
    await world.ledger.admin.create_account("operators")
    made = await world.ledger.admin.create_key("operators", scopes=["images", "admin"])
    return made.secret


def _test(
    played: Fuzz, operation: Any, mode: GenerationMode, cases: int, first: int
) -> Callable[[], None]:
    headers = {"authorization": f"Bearer {played.key}"}
    positive = mode is GenerationMode.POSITIVE

    @seed(first)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode, headers=headers), size=SIZES, model=MODELS)
    def test(case: Any, size: str | None, model: str | None) -> None:
        if positive and isinstance(case.body, dict):  # what the schema alone cannot say
            case.body.update({"size": size} if "size" in case.body else {})
            case.body.update({"model": model} if "model" in case.body else {})
        played.play(case)

    return test
