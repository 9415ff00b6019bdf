"""Leases of a blocking store are renewed several at once, so that a slow request holds up no other."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from idempo import Event, Idempotency, Key, LeaseLostError, MemoryStore, StoreError, renewal
from idempo.hub import hub_of
from tests.interrupting import in_thread, until


class Slow(MemoryStore):
    """Waits for I/O, as far as a driver can tell; keys that are held back are not renewed before they are let go."""

    blocking = True  # type: ignore[misc]

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__()
        self.delay = delay
        self.renewals: dict[str, int] = {}
        self.threads: set[threading.Thread] = set()
        self.at_once = self.most_at_once = 0
        self.counting = threading.Lock()
        self.held_back: dict[str, threading.Event] = {}
        self.fails: set[str] = set()

    def renew(self, key: Key, **options: Any) -> bool:
        with self.counting:
            self.renewals[key.value] = self.renewals.get(key.value, 0) + 1
            self.threads.add(threading.current_thread())
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        if key.value in self.held_back:
            assert self.held_back[key.value].wait(20)
        elif self.delay:
            time.sleep(self.delay)
        with self.counting:
            self.at_once -= 1
        if key.value in self.fails:
            raise StoreError("it fails", key=key)
        return super().renew(key, **options)

    def hold_back(self, *keys: str) -> threading.Event:
        let_go = threading.Event()
        self.held_back.update(dict.fromkeys(keys, let_go))
        return let_go


@contextmanager
def running(guard: Idempotency, keys: list[str], lost: list[str] | None = None) -> Iterator[dict[str, threading.Event]]:
    """Run a call for each key, until it is told to end or the block is left."""
    ends = {key: threading.Event() for key in keys}
    answers: list[Any] = []

    def call(key: str) -> str:
        try:
            return guard.run(key, lambda: (begun.release(), ends[key].wait(20), key)[-1])
        except LeaseLostError:
            assert lost is not None
            lost.append(key)
            return key

    begun = threading.Semaphore(0)
    threads = [in_thread(lambda key=key: call(key), answers) for key in keys]  # type: ignore[misc]
    for _ in keys:
        assert begun.acquire(timeout=20)
    try:
        yield ends
    finally:
        for end in ends.values():
            end.set()
        for thread in threads:
            thread.join(20)
    assert sorted(answers) == sorted(keys)


def renew_now(store: Any) -> None:
    """Let every lease be due that is not being renewed."""
    renewer = hub_of(store).renewer
    for flight in list(renewer._flights.values()):
        flight.renew_at = 0.0
    renewer._wake(0.0)


def crew_of(store: Slow) -> set[threading.Thread]:
    """Return the threads of its crew that have asked it something, and live."""
    return {thread for thread in store.threads if thread.name == "idempo-renewing" and thread.is_alive()}


def names(store: Slow) -> set[str]:
    return {thread.name for thread in store.threads}


@pytest.mark.realtime
def test_a_renewal_that_hangs_holds_up_no_other() -> None:
    """Behaviour 20: leases of the same store stand for as long as their functions run, well past the first lease."""
    store = Slow()
    let_go = store.hold_back("slow")
    with running(Idempotency(store, lease=0.3), ["slow", "a", "b"], lost := []):
        started = time.monotonic()
        until(lambda: min(store.renewals.get(key, 0) for key in ("a", "b")) >= 6)
        assert time.monotonic() - started > 0.3
        assert store.renewals["slow"] == 1  # asked once, and not again before it was answered
        for key in ("a", "b"):
            record = store.get(Key("default", key))
            assert record is not None
            assert record.lease_left is not None
            assert record.lease_left > 0
            assert record.attempt == 1
        let_go.set()
        until(lambda: store.renewals["slow"] >= 2)  # it is looked after again
    assert lost == []


@pytest.mark.realtime
def test_many_leases_are_renewed_in_time_though_each_takes_a_while() -> None:
    """Behaviour 20: one after another they would take 1.2 seconds, and a lease is half of one."""
    store = Slow(0.02)
    keys = [f"k{number}" for number in range(60)]
    with running(Idempotency(store, lease=0.5), keys, lost := []):
        until(lambda: all(store.renewals.get(key, 0) >= 4 for key in keys))
    assert lost == []
    assert store.most_at_once <= 8


def test_eight_are_under_way_at_most_and_none_is_forgotten() -> None:
    """Behaviour 20: what waits for a thread gets one; what ends meanwhile is not asked for any more."""
    store = Slow()
    keys = [f"k{number}" for number in range(11)]
    let_go = store.hold_back(*keys)
    with running(Idempotency(store), keys) as ends:
        renew_now(store)
        until(lambda: store.at_once == 8)
        first, second, third = sorted(set(keys) - set(store.renewals))
        ends[second].set()
        until(lambda: len(hub_of(store).renewer._flights) == 10)
        renew_now(store)  # nothing is handed out twice
        let_go.set()
        until(lambda: {first, third} <= set(store.renewals) and not store.at_once)
        assert second not in store.renewals
        assert store.most_at_once == 8
        assert names(store) == {"idempo-renewing"}


def test_a_lease_that_was_renewed_late_is_due_when_it_is_due() -> None:
    """Behaviour 20: the watching thread sleeps meanwhile, and hears of it."""
    store = Slow()
    let_go = store.hold_back("k")
    with running(Idempotency(store), ["k"]):
        renewer = hub_of(store).renewer
        renew_now(store)
        until(lambda: store.at_once == 1)
        until(lambda: renewer._alarm < math.inf)
        assert renewer.next_at() == math.inf  # of what is under way nobody needs to be woken
        let_go.set()
        until(lambda: store.at_once == 0)
        until(lambda: abs(renewer._alarm - renewer.next_at()) < 0.001)
        assert 4.0 < renewer.next_at() - time.monotonic() < 5.1


@pytest.mark.realtime
def test_a_lease_that_was_renewed_late_is_renewed_again_in_time() -> None:
    """Behaviour 20: also where it is the only one, so that nothing else wakes the watching thread."""
    store = Slow()
    let_go = store.hold_back("k")
    with running(Idempotency(store, lease=1.0), ["k"], lost := []):
        until(lambda: store.at_once == 1)
        until(lambda: time.monotonic() + 5 < hub_of(store).renewer._alarm < math.inf)  # it sleeps until it may end
        let_go.set()
        answered = time.monotonic()
        until(lambda: store.renewals["k"] >= 3)
        assert time.monotonic() - answered < 5
    assert lost == []


def test_whoever_ends_in_doubt_waits_for_its_own_renewal_alone() -> None:
    """Behaviour 20: one that is under way would renew the lease that was just given up."""
    store = Slow()
    other, own = store.hold_back("other"), store.hold_back("k")
    guard = Idempotency(store, in_doubt="raise")
    raised: list[BaseException] = []
    end, begun = threading.Event(), threading.Event()

    def effect() -> None:
        begun.set()
        assert end.wait(20)
        raise OSError("no answer")

    def call() -> None:
        try:
            guard.run("k", effect)
        except OSError as error:
            raised.append(error)

    with running(guard, ["other"]):
        thread = in_thread(call, [])
        assert begun.wait(20)
        renew_now(store)
        until(lambda: store.at_once == 2)
        end.set()
        until(lambda: len(hub_of(store).renewer._flights) == 1)
        assert store.renewals["k"] == 1
        assert thread.is_alive()
        own.set()
        thread.join(20)
        assert len(raised) == 1
        record = store.get(Key("default", "k"))
        assert record is not None
        assert record.lease_left is not None
        assert record.lease_left <= 0
        assert store.renewals == {"other": 1, "k": 2}
        other.set()


def test_renewals_that_fail_are_told_and_tried_again() -> None:
    """Behaviour 24: and a failing one ends no thread."""
    store = Slow()
    store.fails.add("k")
    events: list[Event] = []
    with running(Idempotency(store, observers=[events.append]), ["k"]):
        for number in range(1, 4):
            renew_now(store)
            until(lambda number=number: len(events) == number)
        assert {event.kind.value for event in events} == {"store_failed"}
        assert hub_of(store).renewer._crew._threads == 1  # type: ignore[union-attr]


def test_an_observer_that_exits_ends_no_thread_of_the_crew(caplog: pytest.LogCaptureFixture) -> None:
    """Behaviours 20, 37: as for the watching thread."""
    store = Slow()
    store.fails.add("k")
    told = threading.Semaphore(0)

    def leave(event: Event) -> None:
        if event.kind.value == "store_failed":
            told.release()
            raise SystemExit("an observer leaves")

    with running(Idempotency(store, observers=[leave]), ["k"]):
        for _ in range(2):
            renew_now(store)
            assert told.acquire(timeout=20)
            until(lambda: not hub_of(store).renewer._crew._under_way)  # type: ignore[union-attr]
    assert "SystemExit" in caplog.text


def test_its_threads_end_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 20: and come again when they are needed."""
    monkeypatch.setattr(renewal, "_IDLE", 0.02)
    store = Slow()
    for _ in range(2):
        with running(Idempotency(store), ["a", "b"]):
            renew_now(store)
            until(lambda: len(store.renewals) == 2)
        until(lambda: not crew_of(store))
        store.renewals.clear()
        store.purge("default")


def test_where_no_thread_can_be_started_the_watching_one_renews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 20: as well as it can, one after another; the crew is there again as soon as it can be."""
    store = Slow()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "idempo-renewing":
            raise RuntimeError("can't start new thread")
        start(thread)

    with running(Idempotency(store), ["a", "b"]):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            renew_now(store)
            until(lambda: len(store.renewals) == 2)
            until(lambda: not store.at_once)
        assert names(store) == {"idempo-renewer"}
        renew_now(store)
        until(lambda: min(store.renewals.values()) == 2)
        assert names(store) == {"idempo-renewer", "idempo-renewing"}


def test_a_store_that_does_not_block_needs_no_crew() -> None:
    """Behaviour 20: what takes no time is done by the one thread that all of them share."""
    store = Slow()
    store.blocking = False
    with running(Idempotency(store), ["a", "b"]):
        renew_now(store)
        until(lambda: len(store.renewals) == 2)
        assert names(store) == {"idempo-renewer"}


@pytest.mark.realtime
def test_an_outcome_is_offered_though_its_renewal_never_came_back() -> None:
    """Behaviour 33: once it does, that is; and the answer to the renewal is none to the offer."""

    class Failing(Slow):
        def complete(self, key: Key, **options: Any) -> bool:
            if fails:
                raise StoreError("it fails", key=key)
            return super().complete(key, **options)

    fails = [True]
    store = Failing()
    let_go = store.hold_back("k")
    guard = Idempotency(store, lease=0.2)
    end = threading.Event()

    def effect() -> str:
        until(lambda: store.at_once == 1)
        return "done"

    answers: list[Any] = []
    thread = in_thread(lambda: _error(lambda: guard.run("k", effect)), answers)
    thread.join(20)
    assert [type(error).__name__ for error in answers] == ["ResultNotStoredError"]
    fails.clear()
    let_go.set()
    until(lambda: store.near("default", "k") is not None)
    assert guard.run("k", end.set) == "done"
    assert not end.is_set()


def _error(call: Callable[[], Any]) -> BaseException | None:
    try:
        call()
    except Exception as error:
        return error
    return None
