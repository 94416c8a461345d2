"""Signatures of image URLs that this server itself serves, and the key that makes them.

Data flow: image id + expiry -> HMAC-SHA256 -> `exp` and `sig` of the query; checked the same way.
Standard library only.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from serve_app.errors import BadSignature, ConfigError, ImageExpired

SIGNING_KEY_VARIABLE = "FLUX_SERVE_SIGNING_KEY"
KEY_MIN_BYTES = 32
"""As long as the digest, the least that RFC 2104 advises."""
EXPIRY_MAX_DIGITS = 12
"""Unix seconds up to the year 33658: nothing longer is worth parsing."""


def load_signing_key(path: Path) -> bytes:
    """The key from the environment, else from `path`, which is made once if missing.

    Several gateways may start at the same time on one folder, so the file appears whole or not at
    all and the first one wins.
    """
    from_environment = os.environ.get(SIGNING_KEY_VARIABLE)
    if from_environment:
        return _checked(from_environment.encode(), SIGNING_KEY_VARIABLE)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(KEY_MIN_BYTES).encode())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another gateway was first; its key is as good
        finally:
            draft.unlink()
    return _checked(path.read_bytes().strip(), str(path))


def _checked(key: bytes, source: str) -> bytes:
    if len(key) < KEY_MIN_BYTES:
        raise ConfigError(f"{source}: a signing key needs at least {KEY_MIN_BYTES} bytes")
    return key


class UrlSigner:
    """Signs `(image id, expiry)`; verification tells expired from forged."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, image_id: str, expires_at_s: int) -> str:
        """Hex HMAC-SHA256 of id and expiry (Unix seconds)."""
        message = f"{image_id}\n{expires_at_s}".encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()

    def verify(self, image_id: str, exp: str, sig: str, now_s: float) -> None:
        """Raise `BadSignature`, or `ImageExpired` for a genuine signature past its time."""
        plausible = exp.isascii() and exp.isdigit() and len(exp) <= EXPIRY_MAX_DIGITS
        plausible = plausible and str(int(exp)) == exp  # one spelling, so one URL for an image
        expected = self.sign(image_id, int(exp)) if plausible else ""
        if not plausible or not hmac.compare_digest(expected.encode(), sig.encode()):
            raise BadSignature("The signature of this image URL is not valid.")
        if now_s >= int(exp):
            raise ImageExpired("This image URL has expired.")
