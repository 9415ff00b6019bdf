"""Leases, outcomes and worker threads of guarded coroutines, on stores that wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from idempo import (
    Idempotency,
    InProgressError,
    Key,
    LeaseLostError,
    ResultNotStoredError,
    State,
    StoreError,
    current_operation,
    renewal,
)
from idempo.hub import hub_of
from idempo.testing import AsyncFlakyStore, FlakyStore
from tests.async_support import (
    KEY,
    NOTING,
    BlockingStore,
    Effect,
    SlowStore,
    WatchedBlockingStore,
    complete_elsewhere,
    hold_elsewhere,
    until,
)

SOON = 0.1  # seconds


@pytest.fixture(params=NOTING)
def noting(request: pytest.FixtureRequest) -> Any:
    """A store that notes how it was called."""
    return request.param()


@pytest.mark.realtime
def test_a_long_coroutine_keeps_its_key_past_its_first_lease(noting: Any) -> None:
    """Behaviour 20: renewed as long as it runs, and no longer."""
    guard = Idempotency(noting, lease=0.15, wait=0)

    async def effect() -> int:
        await until(lambda: noting.calls.count("renew") >= 6)  # at a third of the lease each: twice the lease
        with pytest.raises(InProgressError):
            await asyncio.create_task(guard.run_async("k", effect))
        current_operation().ensure_held()
        return current_operation().attempt

    inner_renew = noting.inner.renew
    renewed: list[Key] = []

    def renew(key: Key, **options: Any) -> bool:
        renewed.append(key)
        return bool(inner_renew(key, **options))

    async def another() -> None:
        await until(lambda: len(renewed) >= 3)

    async def main() -> None:
        assert await asyncio.wait_for(guard.run_async("k", effect), 10) == 1
        noting.inner.renew = renew
        await asyncio.wait_for(guard.run_async("another", another), 10)
        assert KEY not in renewed

    asyncio.run(main())


@pytest.mark.realtime
def test_a_short_lease_is_renewed_in_time_beside_long_ones() -> None:
    """Behaviour 20: whoever is due first is renewed first."""
    store = SlowStore()
    short = Idempotency(store, lease=0.15)

    async def effect() -> int:
        await until(lambda: store.calls.count("renew") >= 2)
        return 1

    async def long() -> int:
        return await short.run_async("short", effect)

    assert asyncio.run(asyncio.wait_for(Idempotency(store, lease=60).run_async("long", long), 5)) == 1


@pytest.mark.realtime
def test_a_coroutine_is_renewed_until_max_run(noting: Any) -> None:
    """Behaviours 20, 24: then it may be taken over, and is told so."""
    guard = Idempotency(noting, lease=0.15, max_run=0.25, wait=20)
    taken = asyncio.Event()

    async def effect() -> int:
        if current_operation().attempt == 1:
            await taken.wait()
            with pytest.raises(LeaseLostError):
                current_operation().ensure_held()
            return 1
        taken.set()
        return 2

    async def main() -> None:
        holder = asyncio.create_task(guard.run_async("k", effect))
        assert await asyncio.wait_for(asyncio.create_task(guard.run_async("k", effect)), 10) == 2
        with pytest.raises(LeaseLostError) as caught:
            await holder
        assert caught.value.result == 1

    asyncio.run(main())
    assert 1 <= noting.calls.count("renew") < 10


@pytest.mark.realtime
def test_a_renewal_that_is_refused_is_told_to_the_coroutine_and_to_those_who_joined(noting: Any) -> None:
    """Behaviours 22, 24: it was taken over; its value comes with the error, those who joined claim anew."""
    events: list[str] = []
    guard = Idempotency(noting, lease=0.15, wait=20, observers=[lambda event: events.append(event.kind.value)])

    async def effect() -> str:
        noting.inner.delete(KEY)
        hold_elsewhere(noting)
        await until(lambda: "lease_lost" in events)
        with pytest.raises(LeaseLostError):
            current_operation().ensure_held()
        complete_elsewhere(noting, "theirs")
        return "late"

    async def main() -> Any:
        calls = [guard.run_async("k", effect) for _ in range(3)]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)

    first, *others = asyncio.run(main())
    assert isinstance(first, LeaseLostError)
    assert first.result == "late"
    assert others == ["theirs", "theirs"]


@pytest.mark.realtime
def test_a_renewal_that_fails_is_tried_again_while_the_lease_stands() -> None:
    """Behaviour 24: only when it cannot be known to stand any more is the function told."""
    store = AsyncFlakyStore(SlowStore(), [("renew", 1, "before"), ("renew", 2, "after")])
    events: list[str] = []
    guard = Idempotency(store, lease=0.3, observers=[lambda event: events.append(event.kind.value)])

    async def effect() -> int:
        await until(lambda: store.count("renew") >= 5)
        current_operation().ensure_held()
        return 1

    assert asyncio.run(asyncio.wait_for(guard.run_async("k", effect), 10)) == 1
    assert events == ["store_failed", "store_failed", "executed"]


@pytest.mark.realtime
def test_a_bug_of_the_store_ends_no_other_renewals() -> None:
    """Behaviour 20: whatever one renewal raises, the next is made."""
    store = AsyncFlakyStore(SlowStore(), [("renew", 1, "before")], error=lambda call: ZeroDivisionError())
    guard = Idempotency(store, lease=0.3)

    async def effect() -> int:
        await until(lambda: store.count("renew") >= 3)
        return 1

    assert asyncio.run(asyncio.wait_for(guard.run_async("k", effect), 10)) == 1


@pytest.mark.realtime
def test_doubt_waits_for_a_renewal_in_flight(noting: Any) -> None:
    """Behaviour 26: a renewal that came after it would let the lease live on; it waits for that and no longer."""
    lease = 3.0  # a third of it until it is renewed, and most of it before a slow machine is taken for a long wait
    guard = Idempotency(noting, lease=lease, wait=0, in_doubt="raise")
    inner_renew, sent, raising, go_on = noting.inner.renew, threading.Event(), asyncio.Event(), threading.Event()
    arrived: list[float] = []
    blocking = isinstance(noting, BlockingStore)
    noting.turns = 100

    def renew(key: Key, **options: Any) -> bool:
        if blocking and options["lease"]:
            sent.set()
            assert go_on.wait(20)  # on its way
        arrived.append(options["lease"])
        return bool(inner_renew(key, **options))

    noting.inner.renew = renew

    async def effect() -> None:
        if blocking:
            await until(sent.is_set)
        else:
            await until(lambda: "renew" in noting.calls, pause=0)
            noting.turns = 1  # from here on; the renewal that is under way takes its time
        raising.set()
        raise ValueError("maybe")

    async def main() -> None:
        call = asyncio.create_task(guard.run_async("k", effect))
        await raising.wait()
        for _ in range(50 if blocking else 0):  # by then a doubt that does not wait has arrived
            await asyncio.sleep(0.001)
        go_on.set()
        let_go = time.monotonic()
        with pytest.raises(ValueError, match="maybe"):
            await call
        assert time.monotonic() - let_go < lease * 0.9
        await until(lambda: len(arrived) == 2)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert arrived == [lease, 0.0]
    record = noting.inner.get(KEY)
    assert record is not None
    assert record.state is State.RUNNING
    assert record.lease_left <= 0


@pytest.mark.realtime
def test_a_call_that_ended_while_others_are_renewed_is_renewed_no_more() -> None:
    """Behaviour 26: its doubt stands, though it was due in the same round."""

    async def main() -> Any:
        renewing, go_on = asyncio.Event(), asyncio.Event()

        class Held(SlowStore):
            async def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
                if key.value == "first" and not renewing.is_set():
                    renewing.set()
                    await go_on.wait()
                return await super().renew(key, owner=owner, lease=lease, ttl=ttl)

        store = Held()
        guard = Idempotency(store, lease=0.3, in_doubt="raise")

        async def first() -> None:
            await until(lambda: store.calls.count("renew") >= 3)  # the doubt of the second, and two of its own

        async def second() -> None:
            await renewing.wait()
            raise ValueError("maybe")

        one = asyncio.create_task(guard.run_async("first", first))
        other = asyncio.create_task(guard.run_async("second", second))
        with pytest.raises(ValueError, match="maybe"):
            await other
        go_on.set()
        await one
        return await guard.lookup_async("second")

    record = asyncio.run(asyncio.wait_for(main(), 10))
    assert record.state is State.RUNNING
    assert record.lease_left <= 0


@pytest.mark.parametrize("make", [SlowStore, BlockingStore])
def test_an_outcome_that_was_not_stored_is_offered_until_it_is(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour 33: its caller has it with the error, local duplicates have it meanwhile, nothing runs twice."""
    monkeypatch.setattr(renewal, "_FIRST_RETRY", 0.02)
    store: Any = AsyncFlakyStore(make()) if make is SlowStore else FlakyStore(make())
    events: list[str] = []
    guard = Idempotency(store, lease=0.1, observers=[lambda event: events.append(event.kind.value)])
    effect = Effect(turns=0)

    async def main() -> None:
        begun = asyncio.Event()

        async def body() -> int:
            begun.set()
            await joined.wait()
            return await effect()

        joined = asyncio.Event()
        holder = asyncio.create_task(guard.run_async("k", body))
        await begun.wait()
        waiter = asyncio.create_task(guard.run_async("k", body))
        await asyncio.sleep(0)
        with store.outage():
            joined.set()
            with pytest.raises(ResultNotStoredError) as caught:
                await holder
            assert caught.value.result == 1
            assert await waiter == 1
            assert await guard.run_async("k", body) == 1
            assert store.count("claim") == 1
        await until(lambda: "executed" in events)
        assert len(hub_of(store).flights) == 0
        assert await guard.run_async("k", body) == 1
        assert store.count("claim") == 2

    asyncio.run(asyncio.wait_for(main(), 20))
    assert store.count("release") == 0
    assert effect.runs == 1
    assert events.count("executed") == 1


@pytest.mark.parametrize("method", ["claim", "complete"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failure_of_the_store_that_passes_is_not_noticed(method: str, when: Any) -> None:
    """Behaviours 33, 34: asked again by the same owner, it answers as the first time."""
    store = AsyncFlakyStore(SlowStore(), [(method, 1, when)])
    guard = Idempotency(store)

    async def effect() -> int:
        return current_operation().attempt

    async def main() -> list[int]:
        return [await guard.run_async("k", effect), await guard.run_async("k", effect)]

    assert asyncio.run(main()) == [1, 1]
    assert guard.stats().executed == 1


@pytest.mark.parametrize("end", ["rerun", "raise"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_end_that_was_not_answered_is_tried_once_more(end: Any, when: Any) -> None:
    """Behaviour 34: on an AsyncStore too."""
    store = AsyncFlakyStore(SlowStore(), [("release", 1, when), ("renew", 1, when)])
    guard = Idempotency(store, in_doubt=end)

    async def failing() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(guard.run_async("k", failing))
    stats = guard.stats()
    assert (stats.released, stats.in_doubt) == ((1, 0) if end == "rerun" else (0, 1))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_claim_that_is_never_answered_is_shared_and_wedges_nothing(when: Any) -> None:
    """Behaviours 32, 34: those who joined get the failure as well, and the store is asked no more than twice."""
    store = AsyncFlakyStore(SlowStore(), [("claim", 1, when), ("claim", 2, when)])
    guard, effect = Idempotency(store, wait=SOON), Effect()

    async def main() -> None:
        calls = [guard.run_async("k", effect) for _ in range(10)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StoreError}
        assert store.count("claim") == 2
        assert effect.runs == 0
        assert await guard.run_async("k", effect) == 1

    asyncio.run(main())


@pytest.mark.parametrize("method", ["claim", "complete", "release", "renew", "get"])
def test_a_blocking_store_never_blocks_the_loop(method: str) -> None:
    """Behaviour 11: its methods are called by threads of idempo's own, never by the loop's or its default ones."""
    store = WatchedBlockingStore()
    gate = store.gate(method)
    if method == "get":
        hold_elsewhere(store)

    async def effect() -> int:
        if method in ("release", "renew"):
            raise ValueError("no")
        return 1

    async def open_the_gate() -> None:
        await until(store.asked[method].is_set)
        for _ in range(5):
            await asyncio.sleep(0)
        if method == "get":
            complete_elsewhere(store, 1)
        gate.set()

    async def main() -> None:
        opening = asyncio.create_task(open_the_gate())
        guard = Idempotency(store, in_doubt="raise" if method == "renew" else "rerun")
        if method in ("release", "renew"):
            with pytest.raises(ValueError, match="no"):
                await guard.run_async("k", effect)
        else:
            assert await guard.run_async("k", effect) == 1
        await opening
        assert await guard.lookup_async("k") is not None

    asyncio.run(asyncio.wait_for(main(), 30))
    assert {thread.name.rpartition("_")[0] for thread in store.threads} == {"idempo"}


def test_a_default_executor_that_is_full_holds_up_nobody() -> None:
    """Behaviour 11: it may be full of calls that wait for the very one that would need it."""
    store = BlockingStore()
    guard = Idempotency(store, wait=20)
    joined, end = threading.Barrier(4), threading.Event()

    async def effect() -> str:
        return "value"

    def block() -> None:
        joined.wait(20)
        assert end.wait(20)

    async def main() -> str:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(3))
        blocked = [loop.run_in_executor(None, block) for _ in range(3)]
        joined.wait(20)
        value = await asyncio.wait_for(guard.run_async("k", effect), 10)
        end.set()
        await asyncio.gather(*blocked)
        return value

    assert asyncio.run(main()) == "value"
