"""One request of a load test over urllib3, under gevent: send, read the whole reply, judge it.

Data flow: `sender` -> `ImageClient.draw` -> (status, code, units, images, Retry-After). No retries
of any kind: a second copy of a request would be a second job. Imported by `sender` only, after
Locust has patched the standard library.
"""

import json
from dataclasses import dataclass
from typing import Any

import gevent
import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from serve_app.loadtest.outcome import DELIVERED, DISCONNECTED, TIMED_OUT

GENERATIONS = "/v1/images/generations"
CONNECT_TIMEOUT_S = 10.0
IDLE_CONNECTIONS_MAX = 1000
"""Connections kept for reuse; more are opened when needed and closed after use."""


@dataclass(frozen=True)
class Reply:
    """How a request ended; `status` 0 is no HTTP reply."""

    status: int
    code: str
    units: int = 0
    images: int = 0
    retry_after_s: float | None = None


class ImageClient:
    """Connections of one process to the server."""

    def __init__(self, target: str, key: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._url = f"{target}{GENERATIONS}"
        self._headers = {
            "authorization": f"Bearer {key}",
            "content-type": "application/json",
            "user-agent": "flux-serve-loadtest",
        }
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=IDLE_CONNECTIONS_MAX,
            block=False,
            retries=False,
            timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, timeout_s), read=timeout_s),
        )

    def draw(self, body: dict[str, Any], request_id: str) -> Reply:
        """Send one request; never raises for anything that the server or the network does."""
        data = json.dumps(body).encode()
        headers = {**self._headers, "x-request-id": request_id}
        limit = gevent.Timeout(self._timeout_s)
        limit.start()
        try:
            reply = self._pool.request(
                "POST", self._url, body=data, headers=headers, redirect=False
            )
            return judge(reply.status, reply.headers, reply.data, body["n"])
        except gevent.Timeout as raised:
            if raised is not limit:
                raise
            return Reply(0, TIMED_OUT)
        except (NewConnectionError, ConnectTimeoutError):
            return Reply(0, "connection_failed")
        except urllib3.exceptions.ReadTimeoutError:
            return Reply(0, TIMED_OUT)
        except HTTPError:
            return Reply(0, DISCONNECTED)
        finally:
            limit.close()


def judge(status: int, headers: Any, data: bytes, wanted: int) -> Reply:
    """What a whole reply means: `wanted` images and their price, or an error code."""
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    if status == 200:
        units = headers.get("x-compute-units", "")
        images = body.get("data") if isinstance(body, dict) else None
        whole = isinstance(images, list) and len(images) == wanted
        if not whole or not units.isdigit():
            return Reply(status, "bad_reply")
        return Reply(status, DELIVERED, int(units), wanted)
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    retry_after = headers.get("retry-after", "")
    return Reply(
        status,
        code if isinstance(code, str) and code else f"http_{status}",
        retry_after_s=float(retry_after) if retry_after.isdigit() else None,
    )
