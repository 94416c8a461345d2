"""What can go wrong for somebody who uses a server, and the exit status of each.

Data flow: `Server` and `draw` raise these -> `commands.remote` prints one sentence and exits.
Imports nothing of this package but the standard library: a server is known by its API only.
"""

import re
from typing import Any

EXIT_LOCAL = 1
"""Something on this machine: a file, a key file, an address."""
EXIT_UNREACHABLE = 3
EXIT_KEY = 4
EXIT_UNITS = 5
EXIT_REFUSED = 6
EXIT_SERVER = 7
"""The server failed, is busy or not ready: later the same may work."""
EXIT_INTERRUPTED = 130
"""What shells give a command that Ctrl-C ended."""

RETRY_AFTER_MAX_S = 120.0
"""The API's own ceiling of `Retry-After`."""
MESSAGE_MAX_CHARS = 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def printable(text: str) -> str:
    """A server's words for a terminal: without control characters, which could command it."""
    return _CONTROL.sub(" ", text).strip()[:MESSAGE_MAX_CHARS]


class ClientFailure(Exception):
    """A failure as one sentence for a person."""

    exit_status = EXIT_LOCAL

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))

    @property
    def message(self) -> str:
        return str(self.args[0])

    def as_json(self) -> dict[str, Any]:
        return {"message": self.message, "exit_status": self.exit_status}


class LocalFailure(ClientFailure):
    """A file or an option, before or after the server had its part."""


class NoKey(ClientFailure):
    exit_status = EXIT_KEY


class Unreachable(ClientFailure):
    """Nobody answers there, or not in HTTP, or what answers is no flux-serve."""

    exit_status = EXIT_UNREACHABLE


class NoReply(Unreachable):
    """The request went out and no reply began. A stream is not charged before it begins."""


class BrokenOff(Unreachable):
    """A stream ended before its last image."""


class ServerSaid(ClientFailure):
    """An error of the API: its message, code and request id, as the server sent them."""

    def __init__(
        self,
        status: int | None,
        error: dict[str, Any],
        request_id: str | None,
        *,
        retryable: bool = False,
        retry_after_s: float | None = None,
        key_origin: str | None = None,
    ) -> None:
        said = error.get("message")
        super().__init__(said if isinstance(said, str) and said else "the server had an error")
        self.status = status
        self.error = error
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.key_origin = key_origin

    @property
    def code(self) -> str | None:
        code = self.error.get("code")
        return code if isinstance(code, str) else None

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        kind = self.error.get("type")
        if kind == "insufficient_quota":
            return EXIT_UNITS
        if self.status in (401, 403):
            return EXIT_KEY
        if kind == "invalid_request_error" and not self.retryable:
            return EXIT_REFUSED
        return EXIT_SERVER

    @property
    def message(self) -> str:
        """The server's sentence, and in brackets what helps whoever is asked about it."""
        facts = [
            *([str(self.status)] if self.status else []),
            *([printable(self.code)] if self.code else []),
            *([f"request {printable(self.request_id)}"] if self.request_id else []),
        ]
        text = super().message
        if self.status == 401 and self.key_origin:
            text += f" The key is from {self.key_origin}."
        return f"{text} [{', '.join(facts)}]" if facts else text

    def as_json(self) -> dict[str, Any]:
        known = {key: self.error.get(key) for key in ("message", "type", "param", "code")}
        return {
            **known,
            "status": self.status,
            "request_id": self.request_id,
            "exit_status": self.exit_status,
        }
