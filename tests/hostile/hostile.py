"""What every reply to hostile input must be, and what no log may hold."""

import json
import logging
import re
from typing import Any

import httpx
from scripted import World, error_of

JSON = {"content-type": "application/json"}
GENERATIONS = "/v1/images/generations"
QUOTE = "/v1/images/quote"
POSTS = (GENERATIONS, QUOTE)
_LEAK = re.compile(
    r"Traceback|File \"|\.py\b|sqlalchemy|sqlite3|pydantic|site-packages|0x[0-9a-f]{8,}"
)
_FOREIGN = ("httpx", "httpcore", "hypothesis", "asyncio", "schemathesis")
"""Clients and test tools write what they send; only the server's own logs are looked at."""
PROMPT_CHARS_MIN = 12
"""Shorter texts occur in logs by chance."""


class Logs(logging.Handler):
    """Every record the server writes, formatted as it would be, tracebacks included."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        self.lines: list[str] = []
        self.secrets: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(_FOREIGN):
            self.lines.append(self.format(record))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def keep_secret(self, *texts: str) -> None:
        """These may occur in no record of the test."""
        self.secrets.update(text for text in texts if len(text) >= PROMPT_CHARS_MIN)

    def assert_clean(self) -> None:
        text = self.text
        assert [secret for secret in self.secrets if secret in text] == []
        assert "sig=" not in text
        assert "Bearer " not in text
        forged = [
            line for line in self.lines if re.search(r"[\x00-\x1f\x7f\x85\u2028-\u202e]", line)
        ]
        assert not forged, f"an input wrote its own line, or turned the text of one: {forged[0]}"


def assert_harmless(reply: httpx.Response, world: World) -> None:
    """No 5xx, one request id, our error shape, and nothing of our insides."""
    assert reply.status_code < 500, reply.text
    assert len(reply.headers.get_list("x-request-id")) == 1
    if reply.status_code >= 400:
        error_of(reply)
        folder = str(world.config.store.signing_key_file.parent) if world.config.store else "?"
        assert folder not in reply.text
        assert not _LEAK.search(reply.text), reply.text


async def assert_charged_for_200s(world: World, replies: list[httpx.Response]) -> None:
    """Captured is what the replies said, nothing is held, and the audit balances."""
    said = sum(
        int(reply.headers["x-compute-units"])
        for reply in replies
        if reply.status_code == 200 and "idempotent-replayed" not in reply.headers
    )
    await world.service.drain()
    balance = await world.balance()
    assert (balance.captured, balance.held) == (said, 0)
    report = await world.ledger.admin.audit()
    assert report.balanced, report.findings


def body_of(**fields: Any) -> bytes:
    """A good request with these fields, small so that many of them are paid for."""
    return json.dumps({"prompt": "a red circle", "size": "128x128", **fields}).encode()
