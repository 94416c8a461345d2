"""GroupCommit: operations that wait are done together, in order, each with its own outcome."""

import asyncio

import pytest

from serve_app.metering.commit import BATCH_MAX, GroupCommit


class Gate:
    """Runs batches only when told, and remembers them."""

    def __init__(self, lanes=1):
        self.batches = []
        self.open = asyncio.Event()
        self.queue = GroupCommit(self.run, lanes)

    async def run(self, operations):
        self.batches.append(list(operations))
        await self.open.wait()
        return [ValueError(one) if one == "bad" else one for one in operations]


async def turn():
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_first_goes_at_once_and_what_comes_meanwhile_goes_together_in_order():
    gate = Gate()
    futures = [gate.queue.submit(0)]
    await turn()
    futures += [gate.queue.submit(index) for index in range(1, 6)]
    gate.open.set()
    assert await asyncio.gather(*futures) == [0, 1, 2, 3, 4, 5]
    assert gate.batches == [[0], [1, 2, 3, 4, 5]]


async def test_a_long_queue_is_cut_into_bounded_batches_without_overtaking():
    gate = Gate()
    gate.open.set()
    total = 2 * BATCH_MAX + 3
    await asyncio.gather(*(gate.queue.submit(index) for index in range(total)))
    assert [len(batch) for batch in gate.batches] == [BATCH_MAX, BATCH_MAX, 3]
    assert [one for batch in gate.batches for one in batch] == list(range(total))


async def test_one_failure_reaches_its_own_waiter_only():
    gate = Gate()
    gate.open.set()
    futures = [gate.queue.submit(one) for one in ("a", "bad", "b")]
    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert (answers[0], answers[2]) == ("a", "b")
    assert isinstance(answers[1], ValueError)


async def test_a_batch_that_fails_whole_fails_every_waiter_and_not_the_next_batch():
    failures = iter([RuntimeError("lost")])

    async def run(operations):
        for failure in failures:
            raise failure
        return list(operations)

    queue = GroupCommit(run)
    answers = await asyncio.gather(*(queue.submit(i) for i in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [RuntimeError] * 3
    assert await queue.submit("next") == "next"


async def test_an_operation_is_withdrawn_only_before_it_began():
    gate = Gate()
    begun = gate.queue.submit("begun")
    await turn()
    waiting = gate.queue.submit("waiting")
    assert not gate.queue.withdraw(begun)
    assert gate.queue.withdraw(waiting)
    gate.open.set()
    assert await begun == "begun"
    await gate.queue.drain()
    assert gate.batches == [["begun"]]


async def test_a_waiter_that_is_cancelled_disturbs_no_other():
    gate = Gate()
    first = gate.queue.submit("first")
    await turn()
    waiter = asyncio.ensure_future(gate.queue.submit("cancelled"))
    last = gate.queue.submit("last")
    waiter.cancel()
    gate.open.set()
    assert [await first, await last] == ["first", "last"]
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def test_two_lanes_run_two_batches_at_once():
    gate = Gate(lanes=2)
    futures = [gate.queue.submit(0)]
    await turn()
    futures.append(gate.queue.submit(1))
    await turn()
    futures += [gate.queue.submit(2), gate.queue.submit(3)]
    await turn()
    assert gate.batches == [[0], [1]]
    gate.open.set()
    await asyncio.gather(*futures)
    assert gate.batches == [[0], [1], [2, 3]]


async def test_drain_waits_for_all_that_was_submitted():
    gate = Gate()
    gate.open.set()
    futures = [gate.queue.submit(index) for index in range(BATCH_MAX + 1)]
    await gate.queue.drain()
    assert all(future.done() for future in futures)
