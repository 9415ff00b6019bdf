"""Cancellation and interrupts of guarded coroutines, at every await and at every turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest

from idempo import (
    Idempotency,
    InDoubtError,
    Key,
    MemoryStore,
    Resolved,
    State,
)
from idempo.hub import hub_of
from tests.async_support import KEY, BlockingStore, Effect, SlowStore, WatchedStore

STORES = [MemoryStore, SlowStore, WatchedStore, BlockingStore]
HARD = 60.0  # a lease, in seconds: a key that is stuck until its end fails every test here
SOON = 0.05  # what a later call waits, in seconds


class Steps:
    """Awaits a coroutine, and cancels the task that does so as it comes to the n-th await, or at each from there on."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, *, again: bool = False) -> None:
        self.coroutine = coroutine
        self.at = at
        self.again = again
        self.steps = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: self.coroutine.send(None)  # noqa: E731
        while True:
            try:
                waits_for = step()
            except StopIteration as end:
                return end.value
            self.steps += 1
            if self.steps == self.at or (self.again and self.steps > self.at):
                task = asyncio.current_task()
                assert task is not None
                task.cancel(f"at {self.steps}")
            try:
                yield waits_for
            except BaseException as error:
                step = lambda error=error: self.coroutine.throw(error)  # noqa: E731
            else:
                step = lambda: self.coroutine.send(None)  # noqa: E731


async def check(guard: Idempotency, effect: Effect) -> None:
    """The key is stuck nowhere: the next call runs or replays at once, and no record is left in progress."""
    runs = effect.runs
    value = await guard.run_async("k", effect)
    assert value in (runs, runs + 1)
    record = await guard.lookup_async("k")
    assert record is not None
    assert record.state is State.COMPLETED
    assert len(hub_of(guard.store).flights) == 0


async def cancel_at(at: int, guard: Idempotency, call: Coroutine[Any, Any, Any], *, again: bool) -> bool:
    """Cancel a call at its n-th await; False when it has no such await."""
    steps = Steps(call, at, again=again)

    async def stepping() -> Any:
        return await steps

    task = asyncio.create_task(stepping())
    await asyncio.wait([task])
    if not task.cancelled():
        assert task.exception() is None
        assert steps.steps < at
        return False
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert again or caught.value.args == (f"at {at}",)
    return True


def first_too_late(one: Callable[[int], Coroutine[Any, Any, bool]], first: int = 1) -> int:
    """Cancel at one await, or turn, after the other, until that comes too late to cancel anything; return which did."""
    at = first
    while asyncio.run(one(at)):
        at += 1
    return at


@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize("make", STORES)
def test_a_call_that_is_cancelled_at_any_await_sticks_no_key(make: Callable[[], Any], again: bool) -> None:
    """Behaviour 30: the cancellation is raised; once, or at each await from there on, as some libraries do."""

    async def one(at: int) -> bool:
        guard, effect = Idempotency(make(), lease=HARD, wait=SOON), Effect()
        cancelled = await cancel_at(at, guard, guard.run_async("k", effect), again=again)
        await check(guard, effect)
        assert effect.runs <= 2
        return cancelled

    assert first_too_late(one) > 2  # the effect alone awaits twice


@pytest.mark.parametrize("make", [MemoryStore, SlowStore, WatchedStore])
def test_a_call_that_is_cancelled_in_any_turn_of_the_loop_sticks_no_key(make: Callable[[], Any]) -> None:
    """Behaviour 30: whatever the store is doing meanwhile."""

    async def one(turns: int) -> bool:
        guard, effect = Idempotency(make(), lease=HARD, wait=SOON), Effect()
        task = asyncio.create_task(guard.run_async("k", effect))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel("mine")
        await asyncio.wait([task])
        if not task.cancelled():
            assert task.result() == 1
            await check(guard, effect)
            assert effect.runs == 1
            return False
        await check(guard, effect)
        return True

    assert first_too_late(one, 0) > 2


@pytest.mark.parametrize("make", [MemoryStore, SlowStore, WatchedStore])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_one_of_several_calls_is_cancelled_in_any_turn(make: Callable[[], Any], victim: int) -> None:
    """Behaviours 12, 15, 30: holder or waiter, the others all get the value of one run, and nobody waits for long."""

    async def one(turns: int) -> bool:
        guard, effect = Idempotency(make(), lease=HARD, wait=20), Effect(turns=6)
        tasks = [asyncio.create_task(guard.run_async("k", effect)) for _ in range(4)]
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks[victim].cancel()
        done, pending = await asyncio.wait(tasks, timeout=5)
        assert not pending, "a duplicate was left waiting"
        values = {task.result() for task in done if not task.cancelled()}
        assert len(values) == 1
        assert effect.runs <= 2
        await check(guard, effect)
        return tasks[victim].cancelled()

    assert first_too_late(one, 0) > 2


@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize("make", STORES)
def test_a_call_that_waits_for_another_process_is_cancelled_at_any_await(make: Callable[[], Any], again: bool) -> None:
    """Behaviours 15, 30: the one elsewhere is released half way, so that the waiting call claims anew, and runs."""

    async def one(at: int) -> bool:
        store = make()
        inner = getattr(store, "inner", store)
        guard, effect = Idempotency(store, lease=HARD, wait=SOON), Effect()
        inner.claim(KEY, owner="elsewhere", fingerprint=None, lease=HARD, ttl=60)
        waiting = Idempotency(store, lease=HARD, wait=20).run_async("k", effect)
        asyncio.get_running_loop().call_later(0.01, lambda: inner.release(KEY, owner="elsewhere", ttl=60))
        cancelled = await cancel_at(at, guard, waiting, again=again)
        inner.release(KEY, owner="elsewhere", ttl=60)
        await check(guard, effect)
        return cancelled

    assert first_too_late(one) > 3


@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize("make", STORES)
def test_what_a_probe_found_to_have_happened_never_runs_when_it_is_cancelled(
    make: Callable[[], Any], again: bool
) -> None:
    """Behaviours 26, 30: at any await the record stays in doubt, or is completed; it is never freed."""

    async def probe(key: object) -> Resolved:
        await asyncio.sleep(0)
        return Resolved(0)

    async def one(at: int) -> bool:
        store = make()
        inner = getattr(store, "inner", store)
        inner.claim(KEY, owner="dead", fingerprint=None, lease=HARD, ttl=60)
        inner.renew(KEY, owner="dead", lease=0.0, ttl=60)
        guard, effect = Idempotency(store, lease=HARD, wait=SOON, in_doubt=probe), Effect()
        cancelled = await cancel_at(at, guard, guard.run_async("k", effect), again=again)
        await check(guard, effect)
        assert effect.runs == 0
        return cancelled

    assert first_too_late(one) > 1


@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize("make", STORES)
def test_under_at_most_once_a_cancelled_call_leaves_doubt_or_nothing(make: Callable[[], Any], again: bool) -> None:
    """Behaviours 26, 30: what was cancelled in its body never runs again, and what never began does."""

    async def one(at: int) -> bool:
        guard, effect = Idempotency(make(), lease=HARD, wait=SOON, in_doubt="raise"), Effect()
        cancelled = await cancel_at(at, guard, guard.run_async("k", effect), again=again)
        runs = effect.runs
        try:
            value = await guard.run_async("k", effect)
        except InDoubtError:
            value = 1
        assert value == 1
        assert effect.runs == 1
        assert len(hub_of(guard.store).flights) == 0
        return cancelled or runs == 0

    assert first_too_late(one) > 2


@pytest.mark.parametrize("make", [MemoryStore, SlowStore])
def test_waiters_that_are_cancelled_ask_nothing_of_the_store(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviours 15, 18: they never claimed, so there is nothing to give back."""
    released: list[str] = []
    release = MemoryStore.release

    def noting(store: MemoryStore, key: Key, **options: Any) -> bool:
        released.append(options["owner"])
        return release(store, key, **options)

    monkeypatch.setattr(MemoryStore, "release", noting)

    async def main() -> list[str]:
        store = make()
        guard, effect = Idempotency(store), Effect(turns=20)
        tasks = [asyncio.create_task(guard.run_async("k", effect)) for _ in range(50)]
        await effect.started.wait()
        for task in tasks[1:]:
            task.cancel()
        assert await tasks[0] == 1
        await asyncio.wait(tasks)
        return getattr(store, "calls", ["claim", "complete"])

    assert asyncio.run(main()) == ["claim", "complete"]
    assert released == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("make", STORES)
def test_an_interrupt_in_the_body_frees_the_key(make: Callable[[], Any], interrupt: type[BaseException]) -> None:
    """Behaviour 30: the loop is left by it, as always; before that the claim is given back."""
    guard, effect = Idempotency(make(), lease=HARD, wait=SOON), Effect()
    original = interrupt("mine")

    async def body() -> None:
        await asyncio.sleep(0)
        raise original

    with pytest.raises(interrupt) as caught:
        asyncio.run(guard.run_async("k", body))
    assert caught.value is original
    record = asyncio.run(guard.lookup_async("k"))
    assert record is not None
    assert record.state is State.RELEASED
    asyncio.run(check(guard, effect))
