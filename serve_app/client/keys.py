"""Which API key to use. Never an argument: every user of a machine can read those.

Data flow: `--key-file`, else the environment, else the development key of a server on this machine
-> `Key`.
"""

from collections.abc import Mapping
from pathlib import Path

from serve_app.client.failures import LocalFailure, NoKey, ServerSaid
from serve_app.client.server import Key, Server, on_this_machine

KEY_VARIABLES = ("FLUX_SERVE_API_KEY", "OPENAI_API_KEY")
ADMIN_KEY_VARIABLE = "FLUX_SERVE_ADMIN_KEY"
DEVELOPMENT = "the server's page of this machine"
KEY_FILE_MAX_BYTES = 4096
"""A key is 50 characters; a larger file is another file."""


def configured_key(
    file: Path | None, environ: Mapping[str, str], variables: tuple[str, ...] = KEY_VARIABLES
) -> Key | None:
    """The key of the file, or of the first variable that is set."""
    if file is not None:
        return Key(_checked(_read(file), str(file)), str(file))
    for name in variables:
        if secret := environ.get(name, "").strip():
            return Key(_checked(secret, name), name)
    return None


def find_key(url: str, file: Path | None, environ: Mapping[str, str]) -> Key:
    """The key to use at this server.

    Raises:
        NoKey: there is none.
    """
    key = configured_key(file, environ) or development_key(url)
    if key is None:
        raise NoKey(f"which API key for {url}? Set {KEY_VARIABLES[0]} or give --key-file")
    return key


def development_key(url: str) -> Key | None:
    """The key that a development server tells whoever sits at its machine; see docs/playground.md.

    Nobody but loopback is asked.
    """
    if not on_this_machine(url):
        return None
    with Server(url) as server:
        try:
            secret = server.get("/web/start.json").get("development_key")
        except ServerSaid:
            return None  # a server without that page
    return Key(_checked(secret, url), DEVELOPMENT) if secret else None


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(KEY_FILE_MAX_BYTES + 1)
        if len(data) > KEY_FILE_MAX_BYTES:
            raise LocalFailure(f"{file} is too large for a key file")
        return data.decode("utf-8").strip()
    except OSError as exc:
        raise LocalFailure(f"{file}: {exc.strerror or exc}") from None
    except UnicodeDecodeError:
        raise LocalFailure(f"{file} holds no key: it is no text") from None


def _checked(secret: object, origin: str) -> str:
    """A key that a header can carry; anything else would be a traceback, or another header."""
    if not isinstance(secret, str) or not secret.isascii() or not secret.isprintable():
        raise LocalFailure(f"{origin} holds no key: a key is one word of ASCII characters")
    if not secret or " " in secret:
        raise LocalFailure(f"{origin} holds no key: a key is one word")
    return secret
