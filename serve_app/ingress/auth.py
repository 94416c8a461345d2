"""Bearer keys: from the `Authorization` header to a `Principal`, before any body is read."""

from starlette.requests import Request

from serve_app.errors import InvalidKey, MissingKey
from serve_app.metering.types import Ledger, Principal

KEY_MAX_CHARS = 256
"""Keys are about 50 characters; a longer one is not worth hashing."""


async def authenticate(request: Request, ledger: Ledger) -> Principal:
    """Who sent this request; raises `MissingKey`, `InvalidKey` or `LedgerUnavailable`."""
    header = request.headers.get("authorization", "")
    scheme, _, secret = header.partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise MissingKey(
            "You didn't provide an API key. Send it in the header 'Authorization: Bearer KEY'."
        )
    if len(secret) > KEY_MAX_CHARS:
        raise InvalidKey("Incorrect API key provided.")
    return await ledger.authenticate(secret)
