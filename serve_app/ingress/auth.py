"""Bearer keys: from the `Authorization` header to a `Principal`, before any body is read.

Data flow: `authenticate` -> `RecentKeys` -> `Ledger.authenticate`, unless the key was good a moment
ago. Being recent opens nothing that costs: every hold checks its key again in SQL.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Protocol

from starlette.requests import Request

from serve_app.errors import InsufficientScope, InvalidKey, MissingKey
from serve_app.metering import keys
from serve_app.metering.keys import SCOPE_DEVELOPMENT, SCOPE_IMAGES
from serve_app.metering.types import Principal
from serve_app.observability import request_facts

KEY_MAX_CHARS = 256
"""Keys are about 50 characters; a longer one is not worth hashing."""
KEY_MAX_AGE_S = 3.0
"""How long a revoked key still reads: its balance, the list of models. It holds nothing at once."""
KEYS_MAX = 10_000
"""Keys remembered; beyond it the memory starts anew."""


class Authenticator(Protocol):
    async def authenticate(self, secret: str) -> Principal:
        """The principal of a bearer key, or `InvalidKey`."""
        ...


class RecentKeys:
    """An `Authenticator` that asks another one once in `KEY_MAX_AGE_S` for each good key.

    A key that was refused is asked for again every time, so that a new one works at once.
    """

    def __init__(
        self,
        ask: Callable[[str], Coroutine[None, None, Principal]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._recent: dict[str, tuple[float, Principal]] = {}
        self._asking: dict[str, asyncio.Task[Principal]] = {}

    async def authenticate(self, secret: str) -> Principal:
        digest = keys.digest(secret)  # no secret is kept
        asked_s, principal = self._recent.get(digest, (0.0, None))
        if principal is not None and self._clock() - asked_s <= KEY_MAX_AGE_S:
            return principal
        asking = self._asking.get(digest)
        if asking is None:  # a busy key has many requests at the moment that it grows old
            asking = self._asking[digest] = asyncio.create_task(self._look_up(digest, secret))
            asking.add_done_callback(lambda done: self._looked_up(digest, done))
        return await asyncio.shield(asking)

    async def _look_up(self, digest: str, secret: str) -> Principal:
        now = self._clock()
        self._recent.pop(digest, None)
        principal = await self._ask(secret)
        if len(self._recent) >= KEYS_MAX:
            self._recent.clear()
        self._recent[digest] = (now, principal)  # as old as the question, not the answer
        return principal

    def _looked_up(self, digest: str, done: asyncio.Task[Principal]) -> None:
        del self._asking[digest]
        if not done.cancelled():
            done.exception()  # seen, should every client that waited have left


async def authenticate(
    request: Request, ledger: Authenticator, *, development: bool, scope: str = SCOPE_IMAGES
) -> Principal:
    """Who sent this request, with a key for `scope`.

    A development key opens only a server whose configuration has one, though another server may
    share its ledger. Raises `MissingKey`, `InvalidKey`, `InsufficientScope` or
    `LedgerUnavailable`.
    """
    sent = request.headers.getlist("authorization")
    if len(sent) > 1:  # a proxy on the way may have judged another one than we would
        raise MissingKey("Send one 'Authorization' header.")
    scheme, _, secret = "".join(sent).partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise MissingKey(
            "You didn't provide an API key. Send it in the header 'Authorization: Bearer KEY'."
        )
    if len(secret) > KEY_MAX_CHARS:
        raise InvalidKey("Incorrect API key provided.")
    principal = await ledger.authenticate(secret)
    if SCOPE_DEVELOPMENT in principal.scopes and not development:
        raise InvalidKey("Incorrect API key provided.")
    request_facts().account_id = principal.account_id
    if scope not in principal.scopes:
        raise InsufficientScope(f"This API key lacks the scope '{scope}'.")
    return principal
