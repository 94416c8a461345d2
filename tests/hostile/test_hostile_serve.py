"""The shipped configuration on real Serve: what its own proxy, workers and logs make of attacks."""

import contextlib
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import Served
from tests.machine import MACHINE

pytestmark = pytest.mark.serve
ANSWER_S = 30.0
PROMPT = "a private picture that no log may show"


@contextlib.contextmanager
def connection(served: Served) -> Iterator[socket.socket]:
    address = urlsplit(served.url)
    assert address.hostname is not None
    with socket.create_connection(
        (address.hostname, address.port), timeout=MACHINE.allow(ANSWER_S)
    ) as made:
        yield made


def test_no_log_of_any_process_shows_a_key_a_signature_or_a_prompt(served: Served) -> None:
    # Not the development key: Serve logs the configuration, which has that one in clear.
    key = served.new_key("private", 10_000_000)
    bearer = {"authorization": f"Bearer {key}"}
    body = {"prompt": PROMPT, "size": "128x128", "num_inference_steps": 1}
    with httpx.Client(base_url=served.url, timeout=MACHINE.allow(120)) as http:
        reply = http.post("/v1/images/generations", json=body, headers=bearer)
        url = reply.json()["data"][0]["url"]
        assert http.get(url).status_code == 200
        assert http.get(url[:-1]).status_code == 403
        assert http.get(f"/v1/account?api_key={key}").status_code == 401
    signature = url.rpartition("sig=")[2]
    logs = [path for path in served.folder.rglob("*") if path.suffix in {".log", ".out", ".err"}]
    text = "".join(path.read_text("utf-8", "replace") for path in logs if path.is_file())
    assert "POST /v1/images/generations 200" in text  # these are the logs
    for secret in (key, signature, "sig=", PROMPT):
        assert secret not in text


def test_clients_that_never_end_their_headers_keep_nobody_out(served: Served) -> None:
    with contextlib.ExitStack() as open_ones:
        for _ in range(100):
            half = open_ones.enter_context(connection(served))
            half.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ")
        assert httpx.get(f"{served.url}/health", timeout=MACHINE.allow(ANSWER_S)).status_code == 200


def test_serves_proxy_answers_a_large_body_without_a_key_before_it_is_sent(served: Served) -> None:
    with connection(served) as made:
        made.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n"
            b"content-type: application/json\r\n\r\n" + b" " * 100_000
        )
        assert made.recv(65536).startswith(b"HTTP/1.1 401")


def test_serves_proxy_refuses_a_websocket(served: Served) -> None:
    with connection(served) as made:
        made.sendall(
            b"GET /v1/account HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: eHh4eHh4eHh4eHh4eHh4eA==\r\n\r\n"
        )
        head, _, body = made.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404")
    assert head.lower().count(b"x-request-id:") == 1
    assert json.loads(body)["error"]["code"] == "unknown_url"
