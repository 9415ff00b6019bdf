"""News that come late, or to nobody: cancelled rounds, loops that closed or stopped, losses of calls that have left."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from idempo import Event, EventKind, Idempotency, InProgressError, MemoryStore, ResultNotStoredError, State, StoreError
from idempo.flights import Flight, Flights, Phase
from idempo.hub import hub_of
from idempo.operation import running_loop, running_task
from tests.async_support import KEY, SlowStore
from tests.async_support import until as until_async
from tests.interrupting import in_thread, until

ID = ("default", "k")


def never() -> None:
    pytest.fail("ran twice")


@pytest.mark.realtime
def test_a_round_of_renewals_that_is_cancelled_before_it_begins_is_not_the_last() -> None:
    """Behaviour 20: whoever cancels every task of a loop cancels that one too."""
    store = SlowStore()
    guard = Idempotency(store, lease=0.3)

    async def body() -> str:
        asked = store.calls.count("renew")
        await until_async(lambda: store.calls.count("renew") >= asked + 3)
        return "renewed"

    async def main() -> str:
        first = asyncio.create_task(guard.run_async("first", asyncio.Event().wait))
        await until_async(lambda: store.calls.count("claim") and hub_of(store).loops)
        renewer = hub_of(store).loops[asyncio.get_running_loop()]
        await until_async(lambda: renewer._timer is not None)
        renewer._timer.cancel()
        renewer._flights[next(iter(renewer._flights))].renew_at = 0.0
        renewer._ring()
        renewer._round.cancel()
        first.cancel()
        await asyncio.wait([first])
        return await guard.run_async("k", body)

    assert asyncio.run(asyncio.wait_for(main(), 20)) == "renewed"


def test_an_offer_of_a_closed_loop_is_taken_on_by_whoever_replays_it() -> None:
    """Behaviour 33: else nobody would store it, nor end it with its ttl."""
    store, failing = SlowStore(), [True]
    complete = store.complete
    stored = threading.Event()

    async def completing(*args: Any, **options: Any) -> bool:
        if failing:
            raise StoreError("down")
        return await complete(*args, **options)

    def told(event: Event) -> None:
        if event.kind is EventKind.EXECUTED:
            stored.set()

    store.complete = completing  # type: ignore[method-assign]
    guard = Idempotency(store, lease=0.05, observers=[told])

    async def effect() -> str:
        return "paid"

    with pytest.raises(ResultNotStoredError):
        asyncio.run(guard.run_async("k", effect))
    failing.clear()

    async def replays() -> Any:
        value = await guard.run_async("k", effect)
        await until_async(stored.is_set)
        return value

    assert asyncio.run(asyncio.wait_for(replays(), 20)) == "paid"
    record = store.inner.get(KEY)
    assert record is not None
    assert record.state is State.COMPLETED


def test_forget_ends_no_offer_but_the_one_that_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 33: a call that takes the key over meanwhile keeps its outcome."""
    store = MemoryStore()
    guard = Idempotency(store, lease=60, wait=0)
    store.claim(KEY, owner="dead", fingerprint=None, lease=60, ttl=600)
    store.renew(KEY, owner="dead", lease=0.0, ttl=600)
    complete, delete = store.complete, store.delete
    broken: list[bool] = []

    def completing(*args: Any, **options: Any) -> bool:
        if broken:
            raise ValueError("down")
        return complete(*args, **options)

    def deleting(*args: Any, **options: Any) -> bool:
        broken.append(True)
        with pytest.raises(ResultNotStoredError):
            Idempotency(store, lease=0.02).run("k", lambda: "first")
        broken.clear()
        return delete(*args, **options)

    monkeypatch.setattr(store, "complete", completing)
    monkeypatch.setattr(store, "delete", deleting)
    assert guard.forget("k") is False
    assert hub_of(store).flights.offering(ID) is not None
    assert guard.run("k", never) == "first"


@pytest.mark.parametrize("name", ["asyncio.events", "asyncio"])
def test_a_block_does_not_stumble_over_an_asyncio_that_is_being_imported(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread, for the first time; no loop runs before that is done."""
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert running_task() is None
    if name == "asyncio.events":
        assert running_loop() is None


@pytest.mark.realtime
def test_a_thread_that_joined_a_call_whose_loop_stopped_leads_itself() -> None:
    """Behaviour 13: also while that call itself waits for one elsewhere; it looks again after a lease."""
    store = MemoryStore()
    guard = Idempotency(store, lease=0.2, wait=20)
    store.claim(KEY, owner="elsewhere", fingerprint=None, lease=60, ttl=600)
    loop, answers = asyncio.new_event_loop(), list[Any]()

    async def start() -> asyncio.Task[Any]:
        task = asyncio.create_task(guard.run_async("k", asyncio.Event().wait))
        await until_async(lambda: (flight := hub_of(store).flights._table.get(ID)) and flight.phase is Phase.WAITING)
        thread.start()
        await until_async(lambda: (flight := hub_of(store).flights._table.get(ID)) and flight.room)
        return task

    thread = threading.Thread(target=lambda: answers.append(guard.run("k", lambda: "led")))
    task = loop.run_until_complete(start())
    store.release(KEY, owner="elsewhere", ttl=60)
    started = time.monotonic()
    thread.join(20)
    assert answers == ["led"]
    assert time.monotonic() - started < 10
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()


@pytest.mark.parametrize("news", ["lost", "finished"])
def test_late_news_of_a_call_that_has_left_close_no_room_of_its_successor(news: str) -> None:
    """Behaviour 15: whoever waits there would look again and again, without end."""
    store = MemoryStore()
    guard, answers = Idempotency(store, wait=20), list[Any]()
    go, running = threading.Event(), threading.Event()
    flights: Flights = hub_of(store).flights
    left: list[Flight] = []

    def leaves() -> None:
        left.append(flights._table[ID])
        until(lambda: left[0].room is not None)
        raise KeyboardInterrupt

    def leads() -> str:
        running.set()
        assert go.wait(20)
        return "led"

    def first() -> None:
        with pytest.raises(KeyboardInterrupt):
            guard.run("k", leaves)

    threads = [in_thread(first, [])]
    until(lambda: left)
    threads += [in_thread(lambda: guard.run("k", leads), answers) for _ in range(3)]
    assert running.wait(20)
    joins: list[object] = []
    join: Callable[..., Any] = flights.join
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flights, "join", lambda *args: (joins.append(args), join(*args[1:]))[1])
        if news == "lost":
            flights.lose(left[0])
        else:
            flights.finish(left[0], None, outcome=b"")
        with pytest.raises(InProgressError):
            Idempotency(store, wait=0.1).run("k", never)
        go.set()
        for thread in threads:
            thread.join(20)
    assert answers == ["led"] * 3
    assert len(joins) < 20
