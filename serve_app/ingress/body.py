"""Request bodies: bounded in size and time, and JSON without surprises.

Data flow: ASGI receive -> bytes (<= `body_max_bytes`, within `body_timeout_s`) -> one JSON object.
"""

import asyncio
import json
from collections import Counter
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from serve_app.config import LimitsConfig
from serve_app.errors import BodyTimeout, BodyTooLarge, MalformedBody, UnsupportedMediaType

KEY_SHOWN_CHARS = 64
"""Of a key in an error message: longer than every field of the API."""


async def read_json_object(request: Request, limits: LimitsConfig) -> dict[str, Any]:
    """The body as a JSON object, or the `RequestError` that says what is wrong with it."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("Send the body as 'content-type: application/json'.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("Send the body without a 'content-encoding'.")
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            data = await _read(request, limits.body_max_bytes)
    except TimeoutError:
        raise BodyTimeout("The request body took too long to arrive.") from None
    except ClientDisconnect:
        raise MalformedBody("The client went away before its body was complete.") from None
    return _decode(data)


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    # int() of a huge digit string is slow and then refused: its length alone tells.
    counted = declared.isascii() and declared.isdigit()
    too_long = len(declared) > 18 or (counted and int(declared) > max_bytes)
    chunks: list[bytes] = []
    size = 0
    if not too_long:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                break
            chunks.append(chunk)
    if too_long or size > max_bytes:
        raise BodyTooLarge(f"The request body is larger than {max_bytes} bytes.")
    return b"".join(chunks)


def _decode(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
        )
    except MalformedBody:
        raise
    except (ValueError, RecursionError):
        raise MalformedBody("The request body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise MalformedBody("The request body must be a JSON object.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBody(f"The request body is not valid JSON: {name} is no JSON number.")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two values for one key mean that somebody reads the other one: refuse."""
    found: dict[str, Any] = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        # Its client chose the name: escaped, as a lone surrogate is no UTF-8, and cut.
        raise MalformedBody(f"The request body names the key {twice[:KEY_SHOWN_CHARS]!a} twice.")
    return found
