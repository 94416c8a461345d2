"""API keys: made once, shown once, kept only as a digest.

Data flow: `new_secret` -> the caller shows it -> `digest` goes to the database. A bearer key comes
in -> `digest` finds its row -> `matches` confirms it. Imports nothing of ours and no database.

A secret has 256 bits of entropy, so a plain SHA-256 is enough: slow password hashes protect secrets
that people choose, and would cost every request tens of milliseconds.
"""

import hashlib
import hmac
import secrets

SECRET_PREFIX = "sk-"
"""What OpenAI's clients, and scanners for leaked keys, expect a key to look like."""
SECRET_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
"""Letters and digits without 0, O, I and l: safe in URLs, headers and shells, and to read aloud."""
SECRET_CHARS = 44
"""58^44 exceeds 2^256: no weaker than 32 random bytes."""
SECRET_CHARS_MAX = 512
"""Longer bearer keys are refused before hashing, so that a huge header costs nothing."""
DISPLAY_CHARS_MAX = 9
"""`sk-` and six more: enough to tell keys apart, 35 of 256 bits given away."""

SCOPE_IMAGES = "images"
SCOPE_ADMIN = "admin"
SCOPE_DEVELOPMENT = "development"
"""Marks a configured development key, so that a server without one refuses it."""
KNOWN_SCOPES = (SCOPE_IMAGES, SCOPE_ADMIN)
"""`images` generates and reads its own account; `admin` opens `/admin`."""
DEFAULT_SCOPES = (SCOPE_IMAGES,)


def new_secret() -> str:
    """A fresh key in clear. The only copy is the caller's."""
    return SECRET_PREFIX + "".join(secrets.choice(SECRET_ALPHABET) for _ in range(SECRET_CHARS))


def digest(secret: str) -> str:
    """Lower-case hex SHA-256: what the database keeps and finds a key by."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def matches(secret: str, sha256: str) -> bool:
    """Whether `secret` has this digest, in a time that does not depend on where they differ."""
    return hmac.compare_digest(digest(secret), sha256)


def display_prefix(secret: str) -> str:
    """The start of a key, to recognise it by: never more than a third of a short one."""
    return secret[: min(DISPLAY_CHARS_MAX, len(secret) // 3)]
