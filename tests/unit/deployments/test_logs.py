"""Our lines in a file that Serve's own handlers write, as in a gateway or a replica."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from ray.serve._private.common import ServeComponentType
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.schema import LoggingConfig
from scripted import Connection, World, pictures

from serve_app.deployments.jobline import JobLine
from serve_app.deployments.logs import flush_logs, join_serves_logs
from serve_app.engine.job import GenerationJob
from serve_app.errors import GenerationFailed
from serve_app.observability import RequestFacts, bound, request_facts
from tests.machine import until

ours = logging.getLogger("serve_app.some.module")
JOB = GenerationJob(
    "hold_1", "a secret prompt", 64, 32, 4, 0.0, (1, 2), account="acct_1", request_id="req_1"
)


def _files() -> list[logging.Handler]:
    handlers = logging.getLogger("ray.serve").handlers
    return [one.target for one in handlers if isinstance(one, MemoryHandler) and one.target]


class Log:
    """What one component of Serve has written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def configure(self, encoding: str, level: str = "INFO") -> None:
        """As Serve does when a replica starts, and when `logging_config` changes in place."""
        self.close()
        configure_component_logger(
            component_name="main_Gateway",
            component_id="abc",
            component_type=ServeComponentType.REPLICA,
            logging_config=LoggingConfig(
                encoding=encoding, log_level=level, logs_dir=str(self._folder)
            ),
            max_bytes=10_000_000,
            backup_count=1,
        )

    @staticmethod
    def close() -> None:
        """Serve leaves its files open."""
        for file in _files():
            file.close()

    @property
    def file(self) -> logging.Handler:
        """What writes it."""
        (file,) = _files()
        return file

    @property
    def text(self) -> str:
        (file,) = self._folder.iterdir()
        return file.read_text(encoding="utf-8")

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Each line must be one object of its own."""
        return [json.loads(line) for line in self.text.splitlines()]

    def entry(self, start: str) -> dict[str, Any]:
        """The one whose message starts so."""
        (found,) = [entry for entry in self.entries if entry["message"].startswith(start)]
        return found


@pytest.fixture
def log(tmp_path: Path, own_loggers: None) -> Iterator[Log]:
    folder = tmp_path / "logs"
    found = Log(folder)
    found.configure("JSON")
    join_serves_logs()
    yield found
    found.close()


def test_every_line_of_a_request_carries_its_ids(log: Log) -> None:
    with bound(RequestFacts("req_1")):
        ours.info("first")
        request_facts().account_id = "acct_1"
        ours.warning("second")
        request_facts().hold_id, request_facts().model = "hold_1", "flux-mini"
        try:
            raise ValueError("line one\nline two")
        except ValueError:
            ours.exception("third")
    ours.info("fourth")
    first, second, third, fourth = log.entries
    assert first["request_id"] == "req_1"
    assert "account_id" not in first
    assert (second["levelname"], second["account_id"]) == ("WARNING", "acct_1")
    ids = {"request_id": "req_1", "account_id": "acct_1", "hold_id": "hold_1"}
    assert {**third, **ids, "model": "flux-mini"} == third
    assert "line one\nline two" in third["exc_text"]
    assert "request_id" not in fourth
    assert {entry["component_name"] for entry in log.entries} == {"replica"}


async def test_tasks_of_two_requests_do_not_mix_their_ids(log: Log) -> None:
    async def request(name: str, other: asyncio.Event, mine: asyncio.Event) -> None:
        with bound(RequestFacts(name)):

            async def work() -> None:
                request_facts().hold_id = f"hold of {name}"

            await asyncio.create_task(work())  # as the service does
            mine.set()
            await other.wait()
            ours.info("told by %s", name)

    a, b = asyncio.Event(), asyncio.Event()
    await asyncio.gather(request("a", b, a), request("b", a, b))
    for name in ("a", "b"):
        entry = log.entry(f"told by {name}")
        assert (entry["request_id"], entry["hold_id"]) == (name, f"hold of {name}")


def test_what_a_line_says_itself_stays(log: Log) -> None:
    join_serves_logs(model="flux-mini")
    ours.error("of a device thread", extra=JOB.ids)
    entry = log.entry("of a device thread")
    assert (entry["hold_id"], entry["request_id"]) == ("hold_1", "req_1")
    assert entry["model"] == "flux-mini"


def test_format_and_level_change_in_place(log: Log) -> None:
    ours.debug("not told")
    log.configure("TEXT", "DEBUG")
    with bound(RequestFacts("req_1")):
        ours.debug("told")
    assert "not told" not in log.text
    assert "main_Gateway abc req_1 -- told" in log.text


async def test_a_generation_is_one_line(log: Log, world: World) -> None:
    reply = await world.draw(prompt="a private picture", user="u-7", size="512x512", n=2)
    (entry,) = log.entries
    assert (entry["method"], entry["path"]) == ("POST", "/v1/images/generations")
    assert (entry["status"], entry["images"], entry["units"]) == (200, 2, 2 * 512 * 512)
    assert entry["user"] == "u-7"
    assert entry["request_id"] == reply.headers["x-request-id"]
    assert entry["account_id"] == world.principal.account_id
    assert entry["hold_id"] == world.generator.jobs[0].job_id
    assert entry["model"] == "flux-mini"
    assert entry["duration_ms"] >= 0
    assert "replayed" not in entry
    assert "private" not in log.text
    assert world.key not in log.text


async def test_the_job_takes_the_ids_to_the_replica(world: World) -> None:
    reply = await world.draw()
    (job,) = world.generator.jobs
    assert job.ids == {
        "request_id": reply.headers["x-request-id"],
        "account_id": world.principal.account_id,
        "hold_id": job.job_id,
    }


async def test_a_stream_tells_what_it_sent(log: Log, world: World) -> None:
    await world.draw(stream=True, n=2, size="512x512")
    entry = log.entry("POST /v1/images/generations 200")
    assert (entry["images"], entry["units"]) == (2, 2 * 512 * 512)


async def test_a_refusal_tells_its_code_and_no_units(log: Log, world: World) -> None:
    await world.draw(n=11)
    entry = log.entry("POST /v1/images/generations 400")
    assert entry["code"] == "invalid_value"
    assert "units" not in entry
    assert "hold_id" not in entry


async def test_a_replay_is_told_as_one(log: Log, world: World) -> None:
    for _ in range(2):
        await world.http.post(
            "/v1/images/generations", json={"prompt": "x"}, headers={"idempotency-key": "k"}
        )
    first, second = log.entries
    assert "replayed" not in first
    assert (second["replayed"], second["hold_id"]) == (True, first["hold_id"])
    assert "units" not in second


async def test_a_client_that_left_is_told_as_499(log: Log, world: World) -> None:
    world.generator.act = world.generator.hang
    connection = Connection(world)
    request = connection.open()
    await world.generator.hanging.wait()
    connection.hang_up()
    with pytest.raises(asyncio.CancelledError):
        await request
    entry = log.entry("POST /v1/images/generations cancelled")
    assert entry["status"] == 499
    assert entry["hold_id"] == world.generator.jobs[0].job_id


async def test_probes_are_not_told(log: Log, world: World) -> None:
    await world.http.get("/health")
    await world.http.get("/ready")
    assert log.text == ""


FORGERIES = [
    'x\n{"levelname": "ERROR", "message": "forged", "account_id": "acct_other"}',
    '", "account_id": "acct_other", "x": "',
    "x\r\nERROR 2026-01-01 forged",
    "x\u2028forged\u2029forged\x85forged",
    "\x1b[31mred",
    "\\",
    "%s %(asctime)s {x}",
]


@pytest.mark.parametrize("encoding", ["JSON", "TEXT"])
@pytest.mark.parametrize("forgery", FORGERIES)
async def test_no_value_of_a_client_forges_a_line_or_a_field(
    log: Log, world: World, forgery: str, encoding: str
) -> None:
    log.configure(encoding)
    header = forgery.encode("utf-8")
    await world.http.post(
        "/v1/images/generations",
        json={"prompt": forgery, "user": forgery},
        headers=[(b"x-request-id", header), (b"traceparent", header), (b"tracestate", header)],
    )
    await world.http.get("/v1/models/" + quote(forgery, safe=""))
    lines = log.text.splitlines()
    assert len(lines) == 2
    assert "\x1b" not in log.text
    if encoding == "JSON":
        drawn, asked = log.entries
        assert (drawn["levelname"], drawn["user"]) == ("INFO", forgery)
        for entry in (drawn, asked):
            assert entry.get("account_id") in {world.principal.account_id, None}
            assert entry["request_id"].startswith("req_")
            assert "x" not in entry


@pytest.mark.parametrize("log_prompts", [False, True])
async def test_a_prompt_is_only_logged_on_request(
    make_world: Callable[..., Any], log: Log, log_prompts: bool
) -> None:
    world: World = await make_world(log_prompts=log_prompts)
    await world.draw(prompt="a private picture\nERROR forged")
    assert ("a private picture" in log.text) == log_prompts
    assert len(log.entries) == 1 + log_prompts


async def test_a_replica_tells_each_job_with_the_same_ids(log: Log) -> None:
    with JobLine(JOB) as line:
        for image in pictures(JOB, 2).images:
            line.drawn(image)
    entry = log.entry("job hold_1: drawn, 2 of 2 images of 64x32")
    assert {**entry, **JOB.ids, "outcome": "drawn", "images": 2} == entry
    assert "secret" not in log.text


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (GenerationFailed("The model failed."), "generation_failed"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (RuntimeError("hunter2"), "RuntimeError"),
    ],
)
async def test_a_replica_tells_how_a_job_failed(
    log: Log, failure: BaseException, outcome: str
) -> None:
    line = JobLine(JOB)
    line.drawn(pictures(JOB, 1).images[0])
    with pytest.raises(type(failure)), line:
        raise failure
    assert log.entry(f"job hold_1: {outcome}, 1 of 2 images")["outcome"] == outcome
    assert "hunter2" not in log.text


@pytest.fixture
def gathered(log: Log) -> Log:
    """As in a gateway."""
    join_serves_logs(gather=True)
    return log


async def test_a_gateways_lines_are_written_together_soon(
    gathered: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[str] = []
    file = gathered.file
    emit = file.emit
    monkeypatch.setattr(file, "emit", lambda record: (writes.append(record.msg), emit(record)))
    for number in range(100):
        with bound(RequestFacts(f"req_{number}")):
            ours.info("line %d", number)
    assert gathered.text == ""
    await until(lambda: bool(gathered.text), "the lines to be written")
    assert [entry["message"] for entry in gathered.entries] == [f"line {n}" for n in range(100)]
    assert [entry["request_id"] for entry in gathered.entries] == [f"req_{n}" for n in range(100)]
    assert len(writes) == 1


async def test_a_warning_does_not_wait_and_comes_after_what_did(gathered: Log) -> None:
    ours.info("first")
    ours.warning("second")
    assert [entry["message"] for entry in gathered.entries] == ["first", "second"]


async def test_lines_of_other_threads_do_not_wait(gathered: Log) -> None:
    await asyncio.to_thread(ours.info, "of a thread")
    assert gathered.entry("of a thread")["levelname"] == "INFO"


async def test_a_line_that_cannot_be_formatted_harms_nobody(
    gathered: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    ours.info("a line", extra={"units": {1: object()}})  # no JSON
    ours.warning("the next")
    assert [entry["message"] for entry in gathered.entries] == ["the next"]
    assert "Logging error" in capsys.readouterr().err


async def test_a_librarys_lines_keep_their_place_among_ours(log: Log) -> None:
    join_serves_logs(also=("opentelemetry",), gather=True)
    ours.info("first")
    logging.getLogger("opentelemetry.sdk").info("second")
    ours.warning("third")
    assert [entry["message"] for entry in log.entries] == ["first", "second", "third"]


async def test_the_end_of_a_gateway_writes_what_waits(gathered: Log) -> None:
    ours.info("last")
    flush_logs()
    assert gathered.entry("last")


async def test_a_gathered_line_has_the_format_of_the_moment_it_was_logged(gathered: Log) -> None:
    ours.info("as JSON")
    before = gathered.file
    gathered.configure("TEXT")
    ours.warning("as text")
    before.close()
    first, second = gathered.text.splitlines()
    assert json.loads(first)["message"] == "as JSON"
    assert second.endswith("-- as text")
