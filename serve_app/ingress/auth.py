"""Bearer keys: from the `Authorization` header to a `Principal`, before any body is read."""

from starlette.requests import Request

from serve_app.errors import InsufficientScope, InvalidKey, MissingKey
from serve_app.metering.keys import SCOPE_DEVELOPMENT, SCOPE_IMAGES
from serve_app.metering.types import Ledger, Principal

KEY_MAX_CHARS = 256
"""Keys are about 50 characters; a longer one is not worth hashing."""


async def authenticate(
    request: Request, ledger: Ledger, *, development: bool, scope: str = SCOPE_IMAGES
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
    if scope not in principal.scopes:
        raise InsufficientScope(f"This API key lacks the scope '{scope}'.")
    return principal
