"""One server over HTTP: addresses, the key, replies and failures as sentences.

Data flow: `Server.get | post | stream` -> httpx -> JSON, an open reply, or a `ClientFailure`. A
key goes into a header and nowhere else: no message of this module repeats it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from serve_app import __version__
from serve_app.client.failures import (
    RETRY_AFTER_MAX_S,
    LocalFailure,
    NoReply,
    ServerSaid,
    Unreachable,
)
from serve_app.loopback import is_loopback

CONNECT_TIMEOUT_S = 10.0
SILENCE_MAX_S = 60.0
"""A stream sends at least a comment every 10 s; six lost ones are no accident."""


@dataclass(frozen=True)
class Key:
    """An API key; `origin` is a phrase for people: where it came from."""

    secret: str
    origin: str

    def __repr__(self) -> str:
        return f"Key(origin={self.origin!r})"


def base_url(text: str) -> str:
    """A server's root: as given, or as OpenAI's clients have it, with `/v1` at the end."""
    url = text.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:  # a port that is none, brackets that do not close
        known = None
    if not known or parts.query or parts.fragment or parts.username is not None:
        raise LocalFailure(f"--url: {text!r} is no URL such as http://127.0.0.1:8000")
    return url.removesuffix("/v1")


def on_this_machine(url: str) -> bool:
    """Whether the URL names a loopback address."""
    return is_loopback(urlsplit(url).hostname)


class Server:
    """Use as a context: leaving it closes the connections, which cancels what still runs."""

    def __init__(
        self, url: str, key: Key | None = None, *, timeout_s: float = SILENCE_MAX_S
    ) -> None:
        self.url = url
        self._key = key
        headers = {"user-agent": f"flux-serve/{__version__}"}
        if key is not None:
            headers["authorization"] = f"Bearer {key.secret}"
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            trust_env=not on_this_machine(url),  # a proxy's loopback is another machine
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str) -> dict[str, Any]:
        return self._answer("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._answer("POST", path, body)

    @contextmanager
    def stream(
        self, path: str, body: dict[str, Any], headers: dict[str, str]
    ) -> Iterator[httpx.Response]:
        """An event stream that has begun; closed, and so cancelled, when the context is left."""
        request = self._http.build_request("POST", path, json=body, headers=headers)
        with self._reached():
            reply = self._http.send(request, stream=True)
        try:
            kind = reply.headers.get("content-type", "")
            if reply.status_code != 200 or not kind.startswith("text/event-stream"):
                with self._reached():
                    reply.read()
                raise self._failure(reply)
            yield reply
        finally:
            reply.close()

    def until_settled(self, available: int, timeout_s: float) -> bool:
        """Wait until the account has so many units; False when it has not by then."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.get("/v1/account").get("available", 0) >= available:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)  # the server stops a job at its next step

    def _answer(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        with self._reached():
            reply = self._http.request(method, path, json=body)
        found = _json_object(reply)
        if reply.status_code != 200 or found is None:
            raise self._failure(reply)
        return found

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as exc:
            raise Unreachable(f"no server answers at {self.url} ({exc or 'no answer'})") from None
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            why = str(exc) or type(exc).__name__
            raise NoReply(f"{self.url} did not reply ({why})") from None

    def _failure(self, reply: httpx.Response) -> ServerSaid | Unreachable:
        found = _json_object(reply)
        error = found.get("error") if found else None
        if reply.status_code < 400 or not isinstance(error, dict):
            return Unreachable(
                f"{self.url} answers, but not as flux-serve does (status {reply.status_code})"
            )
        after = reply.headers.get("retry-after", "")
        return ServerSaid(
            reply.status_code,
            error,
            reply.headers.get("x-request-id"),
            retryable=reply.headers.get("x-should-retry") == "true",
            retry_after_s=min(float(after), RETRY_AFTER_MAX_S) if after.isdecimal() else None,
            key_origin=self._key.origin if self._key else None,
        )


def _json_object(reply: httpx.Response) -> dict[str, Any] | None:
    try:
        found = reply.json()
    except ValueError:  # no JSON, or no UTF-8
        return None
    return found if isinstance(found, dict) else None
