"""Renewal: leases stand while functions run."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from idempo import Idempotency, Key, LeaseLostError, MemoryStore, current_operation, renewal
from idempo.hub import hub_of
from idempo.renewal import Renewer, Schedule
from tests.async_support import BlockingStore
from tests.interrupting import until

if TYPE_CHECKING:
    from idempo.flights import Flight


class Asked(MemoryStore):
    """A memory store that says when it was asked to renew a key."""

    def __init__(self) -> None:
        super().__init__()
        self.renewed = threading.Event()

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        answer = super().renew(key, owner=owner, lease=lease, ttl=ttl)
        self.renewed.set()
        return answer


def test_a_running_function_keeps_its_key_beyond_its_first_lease() -> None:
    """Behaviour 20."""
    store = Asked()
    guard = Idempotency(store, lease=0.15)

    def long() -> Any:
        started = time.monotonic()
        while time.monotonic() - started < 0.5:
            store.renewed.clear()
            assert store.renewed.wait(5)
        return store.get(Key("default", "k"))

    record = guard.run("k", long)
    assert record.attempt == 1
    assert record.lease_left > 0


def test_a_call_that_is_added_while_the_renewer_scans_is_renewed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 20: at whatever point of its round the renewer is, it hears of a new call."""
    renewer = Renewer(lambda flight: None, lambda flight: None)
    alarms: list[float] = []
    due = type(renewer).due

    def scan(schedule: Any, now: float) -> list[Flight]:
        alarms.append(renewer._alarm)
        return due(schedule, now)

    monkeypatch.setattr(type(renewer), "due", scan)
    renewer._wake(0.0)
    while not alarms:
        time.sleep(0)
    # Whatever is due sooner than the alarm wakes the renewer: during a scan that must be everything.
    assert alarms[0] == math.inf


def test_a_renewal_that_was_refused_tells_the_function_those_who_joined_and_the_observers() -> None:
    """Behaviour 24."""
    store = MemoryStore()
    events: list[str] = []
    lost: list[Flight] = []
    guard = Idempotency(store, observers=[lambda event: events.append(event.kind.value)])
    schedule = Schedule(lost.append, lambda flight: None)

    def effect() -> None:
        flight = hub_of(store).flights._table.get(("default", "k"))
        assert flight is not None
        current_operation().ensure_held()
        schedule.add(flight)
        schedule.answered(flight, None, time.monotonic(), False)
        assert lost == [flight]
        with pytest.raises(LeaseLostError):
            current_operation().ensure_held()

    guard.run("k", effect)
    assert events == ["lease_lost", "executed"]


def test_an_answer_that_comes_after_the_function_ended_changes_nothing() -> None:
    """Behaviour 20: a renewal that the outcome overtook is refused by the store, and that is no loss."""
    store = MemoryStore()
    lost: list[Flight] = []
    schedule = Schedule(lost.append, lambda flight: None)

    def effect() -> None:
        flight = hub_of(store).flights._table.get(("default", "k"))
        assert flight is not None
        schedule.add(flight)
        schedule.remove(flight)
        schedule.answered(flight, None, time.monotonic(), False)

    Idempotency(store).run("k", effect)
    assert lost == []


def test_a_call_does_without_renewal_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 20: it ends as ever within its lease, and the next call's renewal has a thread again."""

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = BlockingStore()  # which shares its renewer with no other
    guard = Idempotency(store, lease=0.15)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        assert guard.run("k", lambda: "short") == "short"
    assert store.calls == ["claim", "complete"]
    assert guard.run("k", list) == "short"

    def long() -> str:
        until(lambda: "renew" in store.calls)
        return "long"

    assert guard.run("another", long) == "long"


@pytest.mark.realtime
def test_who_joined_while_the_other_claimed_goes_by_its_lease_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 20: a function that hangs is renewed until max_run, and its duplicates do not wait any longer."""
    store = MemoryStore()
    guard = Idempotency(store, lease=0.15, max_run=0, wait=20)
    claiming, joined, hang = threading.Event(), threading.Event(), threading.Event()
    claim = store.claim

    def slow_claim(key: Key, **options: Any) -> Any:
        if not claiming.is_set():
            claiming.set()
            assert joined.wait(20)
        return claim(key, **options)

    def effect() -> int:
        attempt = current_operation().attempt
        if attempt == 1:
            hang.wait(20)
        return attempt

    def hold() -> None:
        with pytest.raises(LeaseLostError):
            guard.run("k", effect)

    monkeypatch.setattr(store, "claim", slow_claim)
    holder = threading.Thread(target=hold)
    holder.start()
    assert claiming.wait(20)
    given: list[int] = []
    waiter = threading.Thread(target=lambda: given.append(guard.run("k", effect)))
    waiter.start()
    flight = hub_of(store).flights._table.get(("default", "k"))
    assert flight is not None
    while not flight.room:
        time.sleep(0)
    joined.set()
    waiter.join(5)
    hang.set()
    holder.join(20)
    assert given == [2]


def test_short_calls_do_not_wake_the_renewer_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 20: the look that one has asked for serves those that come before it, though that one has ended."""
    monkeypatch.setattr(renewal, "_IDLE", 2000.0)
    store, woken = Asked(), list[float]()
    store.blocking = True  # type: ignore[misc]
    guard = Idempotency(store, lease=3000)
    renewer = hub_of(store).renewer
    wake = renewer._wake
    monkeypatch.setattr(renewer, "_wake", lambda due: (woken.append(due), wake(due)))
    for number in range(200):
        guard.run(number, lambda: None)
        until(lambda: renewer._alarm < math.inf)  # the thread has looked, and found nothing
    assert len(woken) == 1
    with renewer._changed:
        assert renewer._alarm == woken[0]
