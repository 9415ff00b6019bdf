"""Leases: kept while functions run, given up in time, taken over once, and what a late owner is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from idempo import (
    EventKind,
    Idempotency,
    InDoubtError,
    InProgressError,
    Key,
    LeaseLostError,
    MemoryStore,
    State,
    StoreError,
    current_operation,
    renewal,
)
from idempo.hub import hub_of
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock, FlakyStore
from tests.interrupting import in_thread, until

KEY = Key("default", "k")
LEASE = 0.15


class Blocking(MemoryStore):
    """A memory store that says that it blocks, and so has a renewer of its own."""

    blocking = True  # type: ignore[misc]


@pytest.fixture(params=["memory", "blocking", "sqlite"])
def inner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "sqlite":
        with SqliteStore(tmp_path / "records.db", synchronous="NORMAL") as store:
            yield store
    else:
        yield MemoryStore() if request.param == "memory" else Blocking()


def renewers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "idempo-renewer"}


def renewals(store: FlakyStore, key: str = "k") -> int:
    return sum(call.method == "renew" and call.key.value == key for call in store.calls)


def held(guard: Idempotency, key: str, end: threading.Event, answers: list[Any]) -> threading.Thread:
    """Run a function that lasts until the event is set, in a thread."""
    return in_thread(lambda: guard.run(key, lambda: (end.wait(20), current_operation().attempt)[1]), answers)


@pytest.mark.realtime
def test_long_functions_keep_their_keys_with_one_thread_for_all(inner: Any) -> None:
    """Behaviour 20: far past the first lease, and however many calls there are."""
    before = renewers()
    store = FlakyStore(inner)
    guard = Idempotency(store, lease=LEASE)
    end, answers = threading.Event(), []  # type: ignore[var-annotated]
    keys = [f"k{number}" for number in range(8)]
    threads = [held(guard, key, end, answers) for key in keys]
    until(lambda: all(renewals(store, key) >= 7 for key in keys))  # each a third of a lease after the last
    assert len(renewers() - before) <= 1
    for key in keys:
        record = guard.lookup(key)
        assert record is not None
        assert (record.state, record.attempt) == (State.RUNNING, 1)
        with pytest.raises(InProgressError):
            Idempotency(store, wait=0).run(key, list)
    flights = [hub_of(store).flights._table.get(("default", key)) for key in keys]
    assert all(flight in hub_of(store).renewer for flight in flights)
    end.set()
    for thread in threads:
        thread.join(20)
    assert answers == [1] * 8
    assert guard.stats().lease_lost == 0
    assert not any(flight in hub_of(store).renewer for flight in flights)


@pytest.mark.realtime
@pytest.mark.parametrize("max_run", [0, LEASE * 2])
def test_a_function_that_hangs_does_not_hold_its_key_for_ever(inner: Any, max_run: float) -> None:
    """Behaviour 20: after max_run it is renewed no more; who waits for it in this process goes on then."""
    store = FlakyStore(inner)
    guard = Idempotency(store, lease=LEASE, max_run=max_run, wait=20)
    end, answers = threading.Event(), []  # type: ignore[var-annotated]
    hanging = held(guard, "k", end, answers)
    until(lambda: store.get(KEY) is not None)
    assert guard.run("k", lambda: (current_operation().attempt, "taken over")) == (2, "taken over")
    assert renewals(store) == 0 if max_run == 0 else 1 <= renewals(store) <= 8
    end.set()
    hanging.join(20)
    assert [(type(answer), answer.result) for answer in answers] == [(LeaseLostError, 1)]
    assert guard.run("k", list) == (2, "taken over")


class Hanging(Blocking):
    """Hangs when it is asked to renew."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go, self.doubted = threading.Event(), threading.Event(), threading.Event()

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        if lease > 0:
            self.asked.set()
            assert self.go.wait(20)
        else:
            self.doubted.set()
        return super().renew(key, owner=owner, lease=lease, ttl=ttl)


@pytest.mark.realtime
def test_a_store_that_hangs_delays_no_other_stores_renewals() -> None:
    """Behaviour 20."""
    hanging, others = Hanging(), [FlakyStore(Blocking()), FlakyStore(MemoryStore())]
    end, answers = threading.Event(), []  # type: ignore[var-annotated]
    threads = [held(Idempotency(store, lease=LEASE), "k", end, answers) for store in (hanging, *others)]
    assert hanging.asked.wait(20)
    seen = [renewals(store) for store in others]
    until(lambda: all(renewals(store) >= count + 7 for store, count in zip(others, seen, strict=True)))
    hanging.go.set()
    end.set()
    for thread in threads:
        thread.join(20)
    assert answers == [1] * 3


@pytest.mark.realtime
def test_doubt_waits_for_a_renewal_in_flight() -> None:
    """Behaviours 20, 26: a renewal that lands late does not make a record live again that was left in doubt."""
    store = Hanging()
    guard = Idempotency(store, lease=LEASE, in_doubt="raise", wait=0)

    def effect() -> None:
        assert store.asked.wait(20)
        raise ValueError("maybe")

    answers: list[Any] = []
    thread = in_thread(lambda: guard.run("k", effect), answers)
    assert store.asked.wait(20)
    renewer = hub_of(store).renewer
    until(lambda: not renewer)
    assert not store.doubted.wait(0.05)
    store.go.set()
    thread.join(20)
    assert [type(answer) for answer in answers] == [ValueError]
    record = store.get(KEY)
    assert record is not None
    assert record.lease_left is not None
    assert record.lease_left <= 0
    with pytest.raises(InDoubtError):
        guard.run("k", list)


@pytest.mark.realtime
def test_a_renewer_that_is_idle_ends_and_another_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 20: no thread stays for a store that nobody uses."""
    monkeypatch.setattr(renewal, "_IDLE", 0.02)
    store = FlakyStore(Blocking())
    guard = Idempotency(store, lease=LEASE)
    renewer = hub_of(store).renewer
    for key in ("a", "b"):
        end = threading.Event()
        thread = held(guard, key, end, [])
        until(lambda key=key: renewals(store, key) >= 2)  # type: ignore[misc]
        end.set()
        thread.join(20)
        until(lambda: renewer._thread is None)


@pytest.mark.realtime
@pytest.mark.parametrize("started", [0, 1, 2])
def test_whoever_is_interrupted_while_starting_the_renewer_leaves_the_next_one_renewed(
    monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    """Behaviours 20, 30: whether or not its thread had come to life; there is one in the end."""
    store = FlakyStore(Blocking())
    guard = Idempotency(store, lease=LEASE)
    before, start = renewers(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if thread.name == "idempo-renewer":
            monkeypatch.undo()
            if started:
                start(thread)
            if started == 2:  # a signal's handler guards something, too
                hub_of(store).renewer._wake(0.0)
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        guard.run("k", list)
    end, answers = threading.Event(), []  # type: ignore[var-annotated]
    thread = held(guard, "k", end, answers)
    until(lambda: renewals(store) >= 4)
    until(lambda: len(renewers() - before) == 1)
    end.set()
    thread.join(20)
    assert answers == [2]


@pytest.mark.realtime
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_lease_is_known_to_stand_to_its_end_and_no_longer(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 24: counted from when it was asked for, in a plain function as in a coroutine."""
    clock = SimpleNamespace(monotonic=time.monotonic)
    monkeypatch.setattr("idempo.operation.time", clock)
    guard = Idempotency(lease=100, max_run=0)

    def body() -> str:
        entered, operation = time.monotonic(), current_operation()
        operation.ensure_held()
        clock.monotonic = lambda: before + 99.999
        operation.ensure_held()
        clock.monotonic = lambda: entered + 100
        with pytest.raises(LeaseLostError) as caught:
            operation.ensure_held()
        assert caught.value.key == KEY
        return "done"

    async def coroutine() -> str:
        return body()

    before = time.monotonic()
    assert (asyncio.run(guard.run_async("k", coroutine)) if is_async else guard.run("k", body)) == "done"


def test_a_renewal_that_is_refused_tells_the_function_and_the_observers() -> None:
    """Behaviours 22, 24: the function can stop before its next effect; if it goes on, its value is not lost."""
    store = Blocking()
    events: list[Any] = []
    guard = Idempotency(store, lease=LEASE, observers=[events.append])
    told = threading.Event()

    def effect() -> str:
        operation = current_operation()
        operation.ensure_held()
        store.delete(KEY)
        until(lambda: events)
        with pytest.raises(LeaseLostError) as caught:
            operation.ensure_held()
        assert caught.value.key == KEY
        told.set()
        return "done"

    with pytest.raises(LeaseLostError) as caught:
        guard.run("k", effect)
    assert caught.value.result == "done"
    assert told.is_set()
    assert (events[0].kind, events[0].key, events[0].attempt) == (EventKind.LEASE_LOST, KEY, 1)
    assert store.get(KEY) is None


@pytest.mark.realtime
@pytest.mark.parametrize("bug", [False, True])
def test_a_store_that_cannot_renew_leaves_the_lease_unknown_and_is_asked_again(bug: bool) -> None:
    """Behaviours 23, 24: ensure_held() counts from the last good renewal; whatever the store raises."""
    outage = threading.Event()
    outage.set()
    error = RuntimeError if bug else StoreError
    store = FlakyStore(
        Blocking(),
        lambda call: "before" if call.method == "renew" and outage.is_set() else None,
        error=lambda call: error("no"),
    )
    events: list[Any] = []
    guard = Idempotency(store, lease=LEASE, observers=[events.append])

    def held_now() -> bool:
        try:
            current_operation().ensure_held()
        except LeaseLostError:
            return False
        return True

    def effect() -> str:
        assert held_now()
        until(lambda: not held_now())
        outage.clear()
        until(held_now)
        return "done"

    assert guard.run("k", effect) == "done"
    kinds = [event.kind for event in events]
    assert set(kinds[:-1]) == {EventKind.STORE_FAILED}
    assert kinds[-1] is EventKind.EXECUTED
    assert all(isinstance(event.error, StoreError) for event in events[:-1])


# Between processes: each store object on the file has calls, renewer and connections of its own.


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stores(tmp_path: Path, clock: FakeClock) -> Iterator[list[SqliteStore]]:
    made = [SqliteStore(tmp_path / "records.db", synchronous="NORMAL", clock=clock) for _ in range(6)]
    yield made
    for store in made:
        store.close()


def test_a_live_lease_is_never_taken_and_a_lapsed_one_by_exactly_one(
    stores: list[SqliteStore], clock: FakeClock
) -> None:
    """Behaviours 16, 21: up to the last moment nobody, then one of many, with the next attempt and a greater token."""
    first = stores[0].claim(KEY, owner="dead", fingerprint=None, lease=15, ttl=60).record
    runs: list[tuple[int, int]] = []
    barrier = threading.Barrier(len(stores))

    def effect() -> str:
        runs.append((current_operation().attempt, current_operation().token))
        return "taken over"

    def race(wait: float) -> list[Any]:
        answers: list[Any] = []

        def call(store: SqliteStore) -> Any:
            barrier.wait()
            return Idempotency(store, wait=wait).run("k", effect)

        threads = [in_thread(lambda store=store: call(store), answers) for store in stores]  # type: ignore[misc]
        for thread in threads:
            thread.join(20)
        return answers

    clock.advance(14.999)
    assert [type(answer) for answer in race(0)] == [InProgressError] * 6
    assert runs == []
    clock.advance(0.002)
    assert race(20) == ["taken over"] * 6
    assert [attempt for attempt, _ in runs] == [2]
    assert runs[0][1] > first.token


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("in_doubt", ["rerun", "raise"])
def test_a_late_owner_changes_nothing_after_a_take_over(
    stores: list[SqliteStore], clock: FakeClock, ended: bool, raises: bool, in_doubt: Any
) -> None:
    """Behaviour 22: its complete, release and renewal; whether the other still runs or has ended."""
    events: list[EventKind] = []
    slow = Idempotency(stores[0], in_doubt=in_doubt, observers=[lambda event: events.append(event.kind)])
    before: list[Any] = []

    def late() -> str:
        clock.advance(16)
        assert stores[1].claim(KEY, owner="other", fingerprint=None, lease=15, ttl=60).took_over
        if ended:
            assert stores[1].complete(KEY, owner="other", outcome=b"theirs", ttl=60)
        before.append(stores[1].get(KEY))
        if raises:
            raise ValueError("late")
        return "late"

    with pytest.raises(ValueError if raises else LeaseLostError, match="late" if raises else None) as caught:
        slow.run("k", late)
    if not raises:
        assert caught.value.result == "late"  # type: ignore[attr-defined]
    assert events == [EventKind.LEASE_LOST]
    assert [stores[1].get(KEY)] == before


def test_a_late_owner_that_nobody_took_over_completes(stores: list[SqliteStore], clock: FakeClock) -> None:
    """Behaviour 23: by any clock its lease is long out; the value is what all others get."""

    def late() -> str:
        clock.advance(3600)
        return "late"

    slow = Idempotency(stores[0])
    assert slow.run("k", late) == "late"
    assert slow.stats().lease_lost == 0
    assert Idempotency(stores[1]).run("k", list) == "late"
