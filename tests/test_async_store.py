"""Guards of coroutines on stores that wait: an AsyncStore, and a blocking store behind worker threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest

from idempo import (
    FingerprintMismatchError,
    Idempotency,
    InProgressError,
    ReentrantCallError,
    current_operation,
    decisions,
)
from idempo.hub import hub_of
from idempo.stores.cas import AsyncCasStore
from idempo.testing.backend import AsyncDictBackend, DictBackend
from tests.async_support import (
    NOTING,
    BlockingStore,
    Effect,
    SlowStore,
    WatchedBlockingStore,
    complete_elsewhere,
    hold_elsewhere,
    pass_time,
    until,
)


def cas_store() -> AsyncCasStore:
    """An AsyncStore over a dict."""
    return AsyncCasStore(AsyncDictBackend(DictBackend()))


STORES = [*NOTING, cas_store]
LONG = 60.0  # seconds
SOON = 0.1


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Any:
    """A store that waits."""
    return request.param()


@pytest.fixture(params=NOTING)
def noting(request: pytest.FixtureRequest) -> Any:
    """A store that notes how it was called."""
    return request.param()


def test_of_many_tasks_one_runs_and_all_get_its_value(store: Any) -> None:
    """Behaviours 1, 2, 3: and a later call replays it; each has a copy of its own."""
    runs: list[int] = []
    guard = Idempotency(store)

    async def effect() -> list[Any]:
        runs.append(1)
        await asyncio.sleep(0)
        return ["paid", (1, 2)]

    async def main() -> list[Any]:
        values = await asyncio.gather(*(guard.run_async("k", effect) for _ in range(50)))
        values.append(await guard.run_async("k", effect))
        return values

    values = asyncio.run(main())
    assert values == [["paid", (1, 2)]] * 51
    assert len({id(value) for value in values}) == 51
    assert len(runs) == 1
    stats = guard.stats()
    assert (stats.executed, stats.replayed, stats.waited) == (1, 50, 49)


def test_ten_thousand_tasks_cost_the_store_two_calls(noting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviours 11, 18: nobody polls while the holder is in this process, and the loop turns all the while."""
    guard = Idempotency(noting)
    begun, end = asyncio.Event(), asyncio.Event()

    async def effect() -> int:
        begun.set()
        await end.wait()
        return 1

    async def main() -> int:
        tasks = [asyncio.create_task(guard.run_async("k", effect)) for _ in range(10_000)]
        await begun.wait()  # by then all of them have joined: it takes more than the one turn in which they begin
        await pass_time(monkeypatch, 2)  # whoever polls does so by now
        end.set()
        return sum(await asyncio.gather(*tasks))

    assert asyncio.run(main()) == 10_000
    assert noting.calls == ["claim", "complete"]


def test_a_thousand_threads_cost_the_store_two_calls() -> None:
    """Behaviour 18, for threads."""
    store, number = BlockingStore(), 1000
    guard, begun, end = Idempotency(store), threading.Event(), threading.Event()
    values: list[int] = []

    def effect() -> int:
        begun.set()
        assert end.wait(20)
        return 1

    threads = [threading.Thread(target=lambda: values.append(guard.run("k", effect))) for _ in range(number)]
    threads[0].start()
    assert begun.wait(20)
    for thread in threads[1:]:
        thread.start()
    end.set()
    for thread in threads:
        thread.join(20)
    assert values == [1] * number
    assert store.calls == ["claim", "complete"]


def test_those_who_joined_get_the_exception_of_the_one_that_ran(noting: Any) -> None:
    """Behaviour 12: a failing service is called once; the traceback does not grow from one to the next."""
    guard = Idempotency(noting)
    runs: list[int] = []

    async def failing() -> None:
        runs.append(1)
        await asyncio.sleep(0)  # one turn, in which all others have joined
        raise LookupError("gone")

    def depth(error: BaseException) -> int:
        depth, traceback = 0, error.__traceback__
        while traceback is not None:
            depth, traceback = depth + 1, traceback.tb_next
        return depth

    async def one(depths: list[int]) -> None:
        with pytest.raises(LookupError, match="gone") as caught:
            await guard.run_async("k", failing)
        depths.append(depth(caught.value))

    async def main() -> list[int]:
        depths: list[int] = []
        await asyncio.gather(*(one(depths) for _ in range(20)))
        return depths

    depths = asyncio.run(main())
    assert len(depths) == 20
    assert max(depths) < 15
    assert len(runs) == 1
    assert noting.calls == ["claim", "release"]


def test_a_holder_that_is_cancelled_hands_over_to_exactly_one(store: Any) -> None:
    """Behaviours 12, 15: the others wait on; a nudged waiter that is cancelled passes the nudge on."""
    guard, effect = Idempotency(store, wait=20), Effect()

    async def main() -> list[int]:
        begun = asyncio.Event()

        async def hold() -> None:
            begun.set()
            await asyncio.Event().wait()

        holder = asyncio.create_task(guard.run_async("k", hold))
        await begun.wait()
        waiters = [asyncio.create_task(guard.run_async("k", effect)) for _ in range(20)]
        await asyncio.sleep(0)
        holder.cancel()
        await until(holder.done, pause=0)
        for waiter in waiters[:10]:  # one of them was nudged, and has not run yet
            waiter.cancel()
        return await asyncio.wait_for(asyncio.gather(*waiters[10:]), 5)

    assert asyncio.run(main()) == [1] * 10
    assert effect.runs == 1


def test_at_the_deadline_a_waiter_is_refused_and_the_holder_is_undisturbed(store: Any) -> None:
    """Behaviours 14, 16: with ``retry_after``; ``wait=0`` refuses at once."""

    async def main() -> None:
        begun, end = asyncio.Event(), asyncio.Event()

        async def effect() -> int:
            begun.set()
            await end.wait()
            return 1

        holder = asyncio.create_task(Idempotency(store).run_async("k", effect))
        await begun.wait()
        for wait in (SOON, 0):
            started = time.monotonic()
            with pytest.raises(InProgressError) as caught:
                await Idempotency(store, wait=wait).run_async("k", effect)
            assert wait <= time.monotonic() - started < wait + 5
            assert caught.value.retry_after
            assert 0 < caught.value.retry_after <= 2
        end.set()
        assert await holder == 1

    asyncio.run(main())


def test_with_no_wait_a_call_claims_for_itself_while_another_is_still_claiming(noting: Any) -> None:
    """Behaviour 16: it is refused by the store, not by what is guessed of the other."""

    async def main() -> list[Any]:
        guard, effect = Idempotency(noting, wait=0), Effect()
        calls = [guard.run_async("k", effect) for _ in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run(main())
    assert first == 1
    assert {type(other) for other in others} == {InProgressError}
    assert noting.calls.count("claim") == 3


def test_the_deadline_comes_while_the_one_joined_still_claims() -> None:
    """Behaviours 14, 34: those who wait for less long than its claim takes are refused; it goes on."""

    async def main() -> list[Any]:
        effect, answer = Effect(), asyncio.Event()

        class Held(SlowStore):
            async def claim(self, key: Any, **options: Any) -> Any:
                await answer.wait()
                return await super().claim(key, **options)

        store = Held()
        leader = asyncio.create_task(Idempotency(store, wait=LONG).run_async("k", effect))
        await asyncio.sleep(0)
        guard = Idempotency(store, wait=SOON)
        answers = await asyncio.gather(*(guard.run_async("k", effect) for _ in range(5)), return_exceptions=True)
        assert effect.runs == 0
        answer.set()
        assert await leader == 1
        assert store.calls == ["claim", "complete"]
        return answers

    assert {type(answer) for answer in asyncio.run(main())} == {InProgressError}


def test_another_payload_is_refused_while_the_first_runs_and_after(store: Any) -> None:
    """Behaviour 6: also while its claim is under way."""

    async def main() -> None:
        guard, end = Idempotency(store), asyncio.Event()

        async def effect(amount: int) -> int:
            await end.wait()
            return amount

        holder = asyncio.create_task(guard.run_async("k", effect, 1))
        await asyncio.sleep(0)
        with pytest.raises(FingerprintMismatchError):
            await guard.run_async("k", effect, 2)
        end.set()
        assert await holder == 1
        with pytest.raises(FingerprintMismatchError):
            await guard.run_async("k", effect, 2)

    asyncio.run(main())


def test_the_same_key_inside_its_own_call_is_refused_at_once_and_in_a_later_task_waits(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour 17: a later task of the body is no recursion; it gets the body's value."""
    guard = Idempotency(store, wait=20)
    later: list[asyncio.Task[int]] = []

    async def effect() -> int:
        started = time.monotonic()
        with pytest.raises(ReentrantCallError):
            await guard.run_async("k", effect)
        assert time.monotonic() - started < 5
        later.append(asyncio.create_task(guard.run_async("k", effect)))
        await pass_time(monkeypatch, 2)
        assert not later[0].done()
        return 7

    async def main() -> list[int]:
        return [await guard.run_async("k", effect), await later[0]]

    assert asyncio.run(main()) == [7, 7]
    assert (guard.stats().executed, guard.stats().waited) == (1, 1)


def test_another_payload_of_the_same_key_inside_its_own_call_is_recursion_first(store: Any) -> None:
    """Behaviour 17: the store is asked, and its record is found to be of the call around."""
    guard = Idempotency(store, wait=20)

    async def effect(amount: int) -> int:
        with pytest.raises(ReentrantCallError):
            await guard.run_async("k", effect, amount + 1)
        return amount

    assert asyncio.run(guard.run_async("k", effect, 1)) == 1


# -- calls elsewhere -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NOTING)
def test_a_call_elsewhere_is_waited_for_without_blocking_the_loop(make: Callable[[], Any]) -> None:
    """Behaviours 11, 13: by notification where the store has it, else by polls; its duplicates cost no more calls."""
    store = make()
    hold_elsewhere(store)
    guard, effect, watched = Idempotency(store, wait=20), Effect(), hasattr(store, "watch")

    async def main() -> list[int]:
        calls = asyncio.gather(*(guard.run_async("k", effect) for _ in range(100)))
        # Who blocked the loop would come to his deadline before it is seen that he waits.
        await until(lambda: (store.watching and "get" in store.calls) if watched else store.calls.count("claim") >= 3)
        assert not calls.done()
        complete_elsewhere(store, "theirs")
        return await calls

    assert asyncio.run(main()) == ["theirs"] * 100
    assert effect.runs == 0
    if watched:
        assert store.calls == ["claim", "get", "claim"]
        assert store.watching == 0
    assert len(store.calls) < 12


@pytest.mark.realtime
@pytest.mark.parametrize("make", NOTING)
def test_a_lease_elsewhere_runs_out(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviours 13, 21: then, not at their own deadline, one of those who wait takes over."""
    monkeypatch.setattr(decisions, "_WATCHED_POLL", 1000.0)
    store = make()
    hold_elsewhere(store, lease=0.15)

    async def main() -> list[int]:
        guard = Idempotency(store, wait=60)

        async def attempt() -> int:
            return current_operation().attempt

        return await asyncio.wait_for(asyncio.gather(*(guard.run_async("k", attempt) for _ in range(5))), 30)

    assert asyncio.run(main()) == [2] * 5


@pytest.mark.parametrize("make", NOTING)
def test_a_call_elsewhere_that_outlasts_the_wait(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 14: nobody waits beyond his own deadline, and nothing of them is left."""
    monkeypatch.setattr(decisions, "_WATCHED_POLL", 1000.0)
    store = make()
    hold_elsewhere(store)
    effect = Effect()

    async def main() -> list[Any]:
        guard = Idempotency(store, wait=SOON)
        return await asyncio.gather(*(guard.run_async("k", effect) for _ in range(20)), return_exceptions=True)

    started = time.monotonic()
    assert {type(answer) for answer in asyncio.run(main())} == {InProgressError}
    assert time.monotonic() - started < 30  # the call elsewhere has a lease of 60 s
    assert effect.runs == 0
    assert len(hub_of(store).flights) == 0
    assert getattr(store, "watching", 0) == 0


def test_a_watch_that_is_cancelled_on_its_way_is_left_again() -> None:
    """Behaviours 15, 30: the worker thread may enter after the waiter was told to go."""
    store = WatchedBlockingStore()
    hold_elsewhere(store)
    entering, enter = threading.Event(), threading.Event()
    inner_watch = store.inner.watch

    @contextmanager
    def watch(key: Any, wake: Any) -> Any:
        entering.set()
        assert enter.wait(20)
        with inner_watch(key, wake):
            yield

    store.inner.watch = watch  # type: ignore[method-assign]

    async def main() -> None:
        call = asyncio.create_task(Idempotency(store, wait=20).run_async("k", Effect()))
        await asyncio.to_thread(entering.wait, 20)
        call.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not call.done()  # it was told, and waits for the thread
        enter.set()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
    assert store.watching == 0
    assert store.inner._watchers.waiting == {}
