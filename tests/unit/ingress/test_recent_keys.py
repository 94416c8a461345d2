"""A key that was good a moment ago is not asked for again, and never spends once it is revoked."""

import asyncio

import pytest
from scripted import World, error_of

from serve_app.errors import InvalidKey, LedgerUnavailable
from serve_app.ingress.auth import KEY_MAX_AGE_S, KEYS_MAX, RecentKeys
from serve_app.metering.types import Principal

REVOCATION_S = 5.0
"""What docs/api.md promises."""


class Asked:
    """Answers for every key but revoked ones; counts the questions."""

    def __init__(self) -> None:
        self.now = 100.0
        self.questions: list[str] = []
        self.failure: Exception | None = None
        self.keys = RecentKeys(self.ask, lambda: self.now)

    async def ask(self, secret: str) -> Principal:
        self.questions.append(secret)
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return Principal(f"account of {secret}", "name", "key", ("images",))


async def test_a_good_key_is_asked_for_once_in_a_while() -> None:
    asked = Asked()
    for _ in range(5):
        assert (await asked.keys.authenticate("a")).account_id == "account of a"
    assert asked.questions == ["a"]
    asked.now += KEY_MAX_AGE_S + 0.1
    await asked.keys.authenticate("a")
    assert asked.questions == ["a", "a"]


async def test_keys_are_not_mixed_up() -> None:
    asked = Asked()
    assert (await asked.keys.authenticate("a")).account_id == "account of a"
    assert (await asked.keys.authenticate("b")).account_id == "account of b"
    assert (await asked.keys.authenticate("a")).account_id == "account of a"


async def test_a_revoked_key_is_refused_within_the_promised_time_and_stays_so() -> None:
    asked = Asked()
    await asked.keys.authenticate("a")
    asked.failure = InvalidKey("revoked")
    asked.now += REVOCATION_S
    for _ in range(2):
        with pytest.raises(InvalidKey):
            await asked.keys.authenticate("a")


@pytest.mark.parametrize("failure", [InvalidKey("no"), LedgerUnavailable("away")])
async def test_no_failure_is_remembered(failure: Exception) -> None:
    asked = Asked()
    asked.failure = failure
    with pytest.raises(type(failure)):
        await asked.keys.authenticate("a")
    asked.failure = None
    assert (await asked.keys.authenticate("a")).account_id == "account of a"


async def test_many_at_once_are_one_question_that_no_leaving_client_stops() -> None:
    asked = Asked()
    first, *others = [asyncio.create_task(asked.keys.authenticate("a")) for _ in range(16)]
    await asyncio.sleep(0)
    first.cancel()
    found = await asyncio.gather(*others)
    assert {principal.account_id for principal in found} == {"account of a"}
    assert asked.questions == ["a"]


async def test_many_at_once_share_a_refusal() -> None:
    asked = Asked()
    asked.failure = InvalidKey("no")
    calls = [asked.keys.authenticate("a") for _ in range(16)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(answer) for answer in answers} == {InvalidKey}
    assert asked.questions == ["a"]


async def test_no_secret_is_kept_and_the_memory_is_bounded() -> None:
    asked = Asked()
    for index in range(KEYS_MAX + 5):
        await asked.keys.authenticate(f"sk-secret-{index}")
    assert len(asked.keys._recent) <= KEYS_MAX
    assert "sk-secret" not in repr(list(asked.keys._recent))


async def test_a_key_revoked_a_moment_ago_cannot_spend(world: World) -> None:
    assert (await world.draw()).status_code == 200
    await world.ledger.admin.revoke_key(world.principal.key_id)
    reply = await world.draw()
    assert reply.status_code == 401
    assert error_of(reply)["code"] == "invalid_api_key"
