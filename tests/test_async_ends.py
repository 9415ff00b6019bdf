"""Rare ends of guarded coroutines on an AsyncStore: probes, records that change underfoot, claims that were lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from idempo import Idempotency, InDoubtError, Key, LeaseLostError, MemoryStore, RecordError, Resolved, State, StoreError
from idempo.flights import Phase
from idempo.hub import hub_of
from idempo.records import Claim, Record
from idempo.testing import AsyncFlakyStore
from tests.async_support import KEY, BlockingStore, Effect, SlowStore, complete_elsewhere, hold_elsewhere, until

ID = ("default", "k")


def leave_in_doubt(store: SlowStore) -> Record:
    """Let a call elsewhere have died."""
    hold_elsewhere(store)
    store.inner.renew(KEY, owner="elsewhere", lease=0.0, ttl=60)
    record = store.inner.get(KEY)
    assert record is not None
    return record


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])
def test_a_probe_that_raises_leaves_doubt(is_async: bool) -> None:
    """Behaviour 26: its error is the cause; those who joined are told the same, and nothing was changed."""
    store = SlowStore()
    before = leave_in_doubt(store)
    asked: list[Key] = []

    def plain(key: Key) -> Any:
        asked.append(key)
        raise LookupError("no answer")

    async def coroutine(key: Key) -> Any:
        await asyncio.sleep(0)
        return plain(key)

    guard, effect = Idempotency(store, in_doubt=coroutine if is_async else plain), Effect()

    async def main() -> list[Any]:
        return await asyncio.gather(*(guard.run_async("k", effect) for _ in range(3)), return_exceptions=True)

    for answer in asyncio.run(main()):
        assert isinstance(answer, InDoubtError)
        assert isinstance(answer.__cause__, LookupError)
    after = store.inner.get(KEY)
    assert after is not None
    assert (after.owner, after.attempt, after.token) == (before.owner, before.attempt, before.token)
    assert asked == [KEY]
    assert effect.runs == 0


def test_what_is_refused_to_one_policy_may_run_under_another() -> None:
    """Behaviours 26, 37: who joined a refused call decides for himself; each has waited once."""
    store = SlowStore()
    leave_in_doubt(store)
    events: list[str] = []
    cautious = Idempotency(store, in_doubt="raise")
    bold = Idempotency(store, observers=[lambda event: events.append(event.kind.value)])
    effect = Effect()

    async def main() -> list[Any]:
        calls = [guard.run_async("k", effect) for guard in (cautious, bold, bold, bold)]
        return await asyncio.gather(*calls, return_exceptions=True)

    refused, *others = asyncio.run(main())
    assert isinstance(refused, InDoubtError)
    assert others == [1, 1, 1]
    assert effect.runs == 1
    assert sorted(events) == ["executed", "replayed", "replayed", "taken_over", "waited", "waited", "waited"]


def test_a_record_that_was_released_as_it_was_looked_at_is_claimed_anew() -> None:
    """Behaviour 21: by another owner, since a released one may not come back."""
    owners: list[str] = []

    class Changing(SlowStore):
        async def claim(self, key: Key, **options: Any) -> Claim:
            owners.append(options["owner"])
            claim = await super().claim(key, **options)
            if len(owners) == 1:
                await self.release(key, owner=options["owner"], ttl=60)
                claim = Claim(False, attrs.evolve(claim.record, state=State.RELEASED, lease_left=None), False)
            return claim

    store = Changing()
    assert asyncio.run(Idempotency(store).run_async("k", Effect())) == 1
    assert len(set(owners)) == 2


def test_a_record_that_cannot_be_read_lets_nothing_run() -> None:
    """Behaviour 35: those who joined are told so too, and the store is asked once."""

    class Broken(SlowStore):
        async def claim(self, key: Key, **options: Any) -> Claim:
            await super().claim(Key("elsewhere", "k"), **options)
            raise RecordError("truncated")

    store, effect = Broken(), Effect()
    guard = Idempotency(store)

    async def main() -> list[Any]:
        return await asyncio.gather(*(guard.run_async("k", effect) for _ in range(3)), return_exceptions=True)

    answers = asyncio.run(main())
    assert [(type(answer), answer.key) for answer in answers] == [(RecordError, KEY)] * 3
    assert effect.runs == 0
    assert store.calls[0] == "claim"
    assert store.calls.count("claim") == 1


def overtake(store: SlowStore) -> None:
    """Let another process take the key over."""
    store.inner.delete(KEY)
    hold_elsewhere(store)


def test_a_declared_error_of_a_late_owner_is_raised_and_changes_nothing() -> None:
    """Behaviours 22, 29: the original is what is raised; it is not told as the outcome."""
    store = SlowStore()
    events: list[str] = []
    guard = Idempotency(
        store, replay_errors=LookupError, wait=20, observers=[lambda event: events.append(event.kind.value)]
    )

    async def late() -> None:
        overtake(store)
        raise LookupError("gone")

    async def main() -> Any:
        with pytest.raises(LookupError, match="gone"):
            await guard.run_async("k", late)
        complete_elsewhere(store, "theirs")
        return await guard.run_async("k", late)

    assert asyncio.run(main()) == "theirs"
    assert "failed" not in events


def test_a_late_owner_that_is_cancelled_as_it_completes() -> None:
    """Behaviours 22, 30: the cancellation is what is raised; the other's claim stands."""
    store = SlowStore()
    guard = Idempotency(store)
    task: list[asyncio.Task[None]] = []

    async def late() -> None:
        overtake(store)
        task[0].cancel("mine")

    async def main() -> None:
        task.append(asyncio.create_task(guard.run_async("k", late)))
        with pytest.raises(asyncio.CancelledError) as caught:
            await task[0]
        assert caught.value.args == ("mine",)

    asyncio.run(main())
    record = store.inner.get(KEY)
    assert record is not None
    assert (record.owner, record.state) == ("elsewhere", State.RUNNING)
    assert guard.stats().lease_lost == 1


def test_a_late_owner_has_its_value_with_the_error() -> None:
    """Behaviour 22."""
    store = SlowStore()

    async def late() -> str:
        overtake(store)
        return "late"

    with pytest.raises(LeaseLostError) as caught:
        asyncio.run(Idempotency(store).run_async("k", late))
    assert caught.value.result == "late"


def test_what_a_probe_found_is_given_though_the_store_does_not_keep_it() -> None:
    """Behaviours 26, 32: store_errors="run" does without the store; the record stays in doubt for the next."""
    store = SlowStore()
    leave_in_doubt(store)
    flaky = AsyncFlakyStore(store, [("complete", 1, "before")])
    guard, effect = Idempotency(flaky, in_doubt=lambda key: Resolved("seen"), store_errors="run", wait=0), Effect()
    assert asyncio.run(guard.run_async("k", effect)) == "seen"
    record = store.inner.get(KEY)
    assert record is not None
    assert record.state is State.RUNNING
    assert asyncio.run(guard.run_async("k", effect)) == "seen"
    assert effect.runs == 0


@pytest.mark.parametrize("make", [SlowStore, BlockingStore])
@pytest.mark.parametrize("ends", ["returns", "raises", "is cancelled", "is cancelled while it ends"])
def test_a_call_that_ends_with_its_loop_leaves_its_key_settled(make: Callable[[], Any], ends: str) -> None:
    """Behaviour 30: at its end `asyncio.run` cancels every task there is, those that settle a call as well."""
    before_the_end: list[bool] = []

    async def effect() -> str:
        if ends == "is cancelled":
            await asyncio.Event().wait()
        if ends == "raises":
            raise LookupError
        return "done"

    async def main(store: Any, turns: int) -> None:
        task = asyncio.create_task(Idempotency(store, lease=60).run_async("k", effect))
        await until(lambda: "claim" in store.calls, 0)
        if ends == "is cancelled":
            await until(lambda: (flight := hub_of(store).flights._table.get(ID)) and flight.phase is Phase.RUNNING, 0)
            task.cancel()
        for turn in range(turns):
            await asyncio.sleep(0)
            if turn == 1 and ends == "is cancelled while it ends":
                task.cancel()
        before_the_end.append(not task.done())
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # seen, whatever it is

    for turns in range(30):
        store = make()
        asyncio.run(main(store, turns))
        record = store.inner.get(KEY)
        assert record is None or record.state is not State.RUNNING, turns
        assert len(hub_of(store).flights) == 0
    assert any(before_the_end)


@pytest.mark.parametrize("method", ["claim", "release", "complete"])
def test_an_interrupt_while_a_call_is_settled_settles_it_all_the_same(method: str) -> None:
    """Behaviour 30: for coroutines too; the interrupt is what is raised."""
    store, done = MemoryStore(), list[str]()
    step = getattr(store, method)

    def interrupted(*args: Any, **options: Any) -> Any:
        if not done:
            done.append(method)
            raise KeyboardInterrupt
        return step(*args, **options)

    setattr(store, method, interrupted)
    if method == "claim":
        store.claim_new = lambda *_: None  # type: ignore[method-assign]

    async def effect() -> str:
        return "first" if method == "complete" else "second"

    async def fails() -> None:
        raise LookupError

    guard = Idempotency(store, wait=0, lease=60)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(guard.run_async("k", fails if method == "release" else effect))
    assert done
    assert asyncio.run(guard.run_async("k", effect)) == ("first" if method == "complete" else "second")
    assert len(hub_of(store).flights) == 0


def test_a_value_whose_storing_is_tried_again_outlives_its_closed_coroutine() -> None:
    """Behaviours 30, 33: the function has run; its loop goes on storing what it returned."""
    store = SlowStore()
    complete, failed = store.complete, list[str]()

    async def fails_once(key: Key, **options: Any) -> bool:
        if not failed:
            failed.append("complete")
            raise StoreError("try again")
        return await complete(key, **options)

    store.complete = fails_once  # type: ignore[method-assign]
    effect = Effect()

    async def main() -> int:
        guard = Idempotency(store, lease=60)
        coroutine = guard.run_async("k", effect)
        waits_for = coroutine.send(None)
        while not failed:
            await (asyncio.sleep(0) if waits_for is None else asyncio.wait([waits_for]))
            waits_for = coroutine.send(None)
        coroutine.close()  # in the pause before it is stored again
        return await guard.run_async("k", effect)

    assert asyncio.run(main()) == 1
    assert effect.runs == 1
