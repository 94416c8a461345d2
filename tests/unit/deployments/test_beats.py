"""Beats between a replica and its gateway: pauses are filled, and silence is missed."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from waiting import skip, turns, within

from serve_app.deployments import beats
from serve_app.deployments.beats import Beat, ReplicaSilent, with_beats, without_beats


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "FIRST_BEAT_S", 0.01)
    monkeypatch.setattr(beats, "BEAT_S", 0.01)


async def test_events_come_in_order_and_soon_need_no_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "FIRST_BEAT_S", 60)
    monkeypatch.setattr(beats, "BEAT_S", 60)

    async def events() -> AsyncGenerator[int, None]:
        yield 1
        yield 2

    assert [one async for one in with_beats(events())] == [1, 2]


async def test_the_first_beat_does_not_wait_as_long_as_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beats, "BEAT_S", 60)
    go_on = asyncio.Event()

    async def events() -> AsyncGenerator[int, None]:
        await go_on.wait()
        yield 1

    messages = with_beats(events())
    assert await anext(messages) == Beat()
    go_on.set()
    assert [one async for one in messages] == [1]


async def test_a_long_pause_is_filled_with_beats() -> None:
    go_on = asyncio.Event()

    async def events() -> AsyncGenerator[int, None]:
        await go_on.wait()
        yield 1

    messages = with_beats(events())
    assert [await anext(messages) for _ in range(4)] == [Beat()] * 4
    go_on.set()
    assert [one async for one in messages if not isinstance(one, Beat)] == [1]


async def test_a_failure_comes_through_after_what_was_before_it() -> None:
    async def events() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("broken")

    messages = with_beats(events())
    assert await anext(messages) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(messages)


@pytest.mark.parametrize("way", ["close", "cancel"])
async def test_leaving_ends_the_events_at_once(way: str) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def events() -> AsyncGenerator[int, None]:
        begun.set()
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            ended.set()

    messages = with_beats(events())
    assert await anext(messages) == Beat()
    async with within("the events to begin"):
        await begun.wait()
    if way == "close":
        await messages.aclose()
    else:

        async def read() -> None:
            async for _ in messages:
                pass

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert ended.is_set()


async def test_beats_alone_keep_a_replica_alive() -> None:
    async def messages() -> AsyncGenerator[int | Beat, None]:
        for _ in range(8):
            yield Beat()
            await turns()  # it is heard, and the next silence begins
            skip(beats.SILENCE_S / 4)  # all of them: twice the silence that is missed
        yield 1

    assert [one async for one in without_beats(messages())] == [1]


async def test_the_first_message_may_take_as_long_as_a_replica_takes_to_start() -> None:
    async def messages() -> AsyncGenerator[int | Beat, None]:
        await turns()
        skip(2 * beats.SILENCE_S)
        await turns()
        yield Beat()
        yield 1

    assert [one async for one in without_beats(messages())] == [1]


async def test_a_replica_that_falls_silent_is_missed() -> None:
    async def messages() -> AsyncGenerator[int | Beat, None]:
        yield Beat()
        yield 1
        await turns()
        skip(beats.SILENCE_S)
        await asyncio.Event().wait()

    events = without_beats(messages())
    assert await anext(events) == 1
    with pytest.raises(ReplicaSilent):
        await anext(events)


async def test_messages_are_read_as_they_come_and_not_as_they_are_taken() -> None:
    """A client that reads slowly must not keep its job's place in the replica."""
    read = asyncio.Event()

    async def messages() -> AsyncGenerator[int | Beat, None]:
        yield Beat()
        for number in range(5):
            yield number
        read.set()

    events = without_beats(messages())
    assert await anext(events) == 0
    async with within("the messages to be read"):
        await read.wait()
    assert [one async for one in events] == [1, 2, 3, 4]
