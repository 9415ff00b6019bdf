"""Interrupts at every point of a call on a sync store: never stuck, never run twice at once, and always raised."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from idempo import (
    RERUN,
    Claim,
    Idempotency,
    InDoubtError,
    InProgressError,
    Key,
    MemoryStore,
    Resolved,
    State,
    current_operation,
)
from idempo.hub import hub_of
from idempo.stores.sqlite import SqliteStore
from tests.interrupting import Interrupted, in_thread, interrupted, until

WAIT = 0.02  # far shorter than the lease: whoever would have to wait for a lease to run out is refused


class Memory(MemoryStore):
    """Lets another's claim end between the first look of a call and its second."""

    ends: Callable[[Any, Key], object] | None = None

    def claim(self, key: Key, **options: Any) -> Claim:
        claim = super().claim(key, **options)
        return between(self, key, claim)


class Sqlite(SqliteStore):
    ends: Callable[[Any, Key], object] | None = None

    def claim(self, key: Key, **options: Any) -> Claim:
        claim = super().claim(key, **options)
        return between(self, key, claim)


def between(store: Any, key: Key, claim: Claim) -> Claim:
    ends = store.ends
    if ends is not None and not claim.acquired:
        store.ends = None
        other = threading.Thread(target=ends, args=(store, key))  # no interrupt comes there
        other.start()
        other.join(5)
        assert not other.is_alive()
    return claim


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield Memory()
        return
    with Sqlite(tmp_path / "records.db", synchronous="NORMAL") as made:
        yield made


class Body:
    """The guarded function: counts how often it began, returned, and ran while it was running already."""

    def __init__(self, error: Exception | None = None) -> None:
        self.began = self.returned = self.overlaps = 0
        self.error = error
        self._running = threading.Lock()

    def __call__(self) -> str:
        if not self._running.acquire(blocking=False):
            self.overlaps += 1
            return "overlapping"
        try:
            self.began += 1
            if self.error is not None:
                raise self.error
            self.returned += 1
            return "done"
        finally:
            self._running.release()


def points(store: Any, call: Callable[[str, int], Interrupted]) -> int:
    """Make a call under a key of its own for every point at which it can be interrupted, and return how many.

    On a file, which takes its time, for every fourth: other ones in each run.
    """
    call("whole", sys.maxsize)  # imports what is imported when first needed
    steps = range(sys.maxsize) if isinstance(store, MemoryStore) else range(random.randrange(4), sys.maxsize, 4)
    for point in steps:
        if call(f"k{point}", point).place is None:
            return point
    raise AssertionError("unreachable")


def again(guard: Idempotency, key: str, body: Body, told: Interrupted, *, doubt: bool = False) -> Any:
    """Call once more after the interrupt: whatever happened, it ends at once."""
    assert len(hub_of(guard.store).flights) == 0, told.place
    with pytest.raises(LookupError):
        current_operation()
    returned, body.error = body.returned, None
    try:
        value = guard.run(key, body)
    except InProgressError:
        pytest.fail(f"the key is stuck after {told.place}")
    except InDoubtError:
        assert doubt, told.place
        assert returned == 0, f"its value was lost at {told.place}"
        return InDoubtError
    assert value == "done", told.place
    assert body.overlaps == 0
    assert body.returned == 1, f"it had returned when it was interrupted at {told.place}"
    return value


@pytest.mark.parametrize("in_doubt", ["rerun", "raise"])
@pytest.mark.parametrize("shortcut", [False, True])
def test_a_fresh_call(store: Any, in_doubt: Any, shortcut: bool) -> None:
    """Behaviour 30: released, in doubt or completed, and after the function has returned always completed."""
    if shortcut:
        store = MemoryStore()  # no subclass with a claim of its own
    guard = Idempotency(store, wait=WAIT, lease=60, in_doubt=in_doubt)

    def call(key: str, point: int) -> Interrupted:
        body = Body()
        told = interrupted(point, lambda: guard.run(key, body))
        again(guard, key, body, told, doubt=in_doubt == "raise")
        return told

    assert points(store, call) > 60


@pytest.mark.parametrize("how", ["completes", "leaves", "raises"])
def test_a_block(store: Any, how: str) -> None:
    """Behaviour 30: what was given to complete() is stored, wherever the interrupt comes; else the key is free."""
    guard = Idempotency(store, wait=WAIT, lease=60)

    def call(key: str, point: int) -> Interrupted:
        body = Body()
        completed = False

        def block() -> None:
            nonlocal completed
            with guard.operation(key) as op:
                body.began += 1
                if how == "completes":
                    op.complete(body())
                    completed = True
                elif how == "raises":
                    raise LookupError("no")

        def quietly() -> None:
            with suppress(LookupError):
                block()

        told = interrupted(point, quietly)
        assert len(hub_of(store).flights) == 0, told.place
        with pytest.raises(LookupError):
            current_operation()
        with guard.operation(key) as op:
            if completed:
                assert op.result == "done", told.place
            elif op.replayed:
                assert body.began, told.place
                assert op.result == ("done" if how == "completes" else None)
        return told

    assert points(store, call) > 60


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("in_doubt", ["rerun", "raise"])
def test_a_call_whose_function_raises(store: Any, in_doubt: Any, declared: bool) -> None:
    """Behaviour 30: interrupted while its claim is being ended, it is ended all the same."""
    guard = Idempotency(store, wait=WAIT, lease=60, in_doubt=in_doubt, replay_errors=LookupError if declared else ())

    def call(key: str, point: int) -> Interrupted:
        body = Body(LookupError("no"))
        told = interrupted(point, lambda: guard.run(key, body))
        try:
            again(guard, key, body, told, doubt=in_doubt == "raise")
        except LookupError:
            assert declared
            assert body.began == 1
        record = guard.lookup(key)
        assert record is not None
        if body.began and declared and " SyncDriver.run+" not in str(told.place):  # else nobody knew of the error yet
            assert record.state is State.COMPLETED, told.place
        return told

    assert points(store, call) > 60


def test_a_replay(store: Any) -> None:
    """Behaviour 30: what is kept stays kept."""
    guard = Idempotency(store, wait=WAIT, lease=60)

    def call(key: str, point: int) -> Interrupted:
        body = Body()
        guard.run(key, body)
        told = interrupted(point, lambda: guard.run(key, body))
        again(guard, key, body, told)
        assert body.began == 1
        return told

    assert points(store, call) > 8


@pytest.mark.parametrize("end", ["released", "completed", "in doubt"])
def test_a_call_that_waits_for_another_process(store: Any, end: str) -> None:
    """Behaviour 30: at any point of the wait, and of the claim that follows it."""
    guard = Idempotency(store, wait=5, lease=60)
    Idempotency(store).run("kept", lambda: "done")
    kept = store.get(Key("default", "kept")).outcome

    def ends(store: Any, key: Key) -> None:
        if end == "released":
            store.release(key, owner="elsewhere", ttl=60)
        elif end == "completed":
            store.complete(key, owner="elsewhere", outcome=kept, ttl=60)
        else:
            store.renew(key, owner="elsewhere", lease=0.0, ttl=60)

    def call(key: str, point: int) -> Interrupted:
        body = Body()
        store.claim(Key("default", key), owner="elsewhere", fingerprint=None, lease=60, ttl=60)
        store.ends = ends
        told = interrupted(point, lambda: guard.run(key, body))
        if store.ends is not None:  # it did not come so far
            store.ends = None
            ends(store, Key("default", key))
        hasty = Idempotency(store, wait=WAIT, lease=60)
        if end == "completed":
            assert hasty.run(key, body) == "done"
            assert body.began == 0
        else:
            again(hasty, key, body, told)
        return told

    assert points(store, call) > 80


@pytest.mark.parametrize("answer", [RERUN, Resolved("done")], ids=["rerun", "resolved"])
def test_a_call_that_asks_a_probe(store: Any, answer: Any) -> None:
    """Behaviours 26 and 30: what the probe has seen is never run again, and what it has not seen is not stuck."""
    guard = Idempotency(store, wait=WAIT, lease=60, in_doubt=lambda key: answer)

    def call(key: str, point: int) -> Interrupted:
        body = Body()
        store.claim(Key("default", key), owner="dead", fingerprint=None, lease=60, ttl=60)
        store.renew(Key("default", key), owner="dead", lease=0.0, ttl=60)
        told = interrupted(point, lambda: guard.run(key, body))
        assert len(hub_of(store).flights) == 0, told.place
        assert guard.run(key, body) == "done", told.place
        assert body.began == (1 if answer is RERUN else 0), told.place
        return told

    assert points(store, call) > 80


@pytest.mark.parametrize("end", ["returns", "is interrupted"])
def test_a_call_that_waits_for_another_thread(end: str) -> None:
    """Behaviours 12 and 30: the holder goes on, and so does whoever waits beside the one that was interrupted."""
    store = Memory()
    guard = Idempotency(store, wait=20, lease=60)

    def call(key: str, point: int) -> Interrupted:
        body, go, answers = Body(), threading.Event(), []  # type: ignore[var-annotated]

        def hold() -> str:
            assert go.wait(20)
            if end == "returns":
                return body()
            raise KeyboardInterrupt

        id_ = ("default", key)
        holder = in_thread(lambda: guard.run(key, hold), [])
        until(lambda: hub_of(store).flights._table.get(id_))
        flight = hub_of(store).flights._table.get(id_)
        assert flight is not None

        def waiting() -> int:
            room = flight.room
            return 0 if room is None else sum(len(group.members) for group in room.groups.values())

        # The one to be interrupted is the first in the room: it is the one that is nudged.
        ended = threading.Event()
        beside: list[threading.Thread] = []

        def direct() -> None:
            until(lambda: waiting() == 1 or ended.is_set())
            first = not ended.is_set()
            beside.append(in_thread(lambda: guard.run(key, body), answers))
            until(lambda: waiting() >= 1 + (first and not ended.is_set()))
            go.set()

        director = in_thread(direct, answers)
        told = interrupted(point, lambda: guard.run(key, body))
        ended.set()
        director.join(20)
        for thread in (director, holder, *beside):
            thread.join(5)
            assert not thread.is_alive(), f"somebody waits in vain after {told.place}"
        assert answers == ["done", None] or answers == [None, "done"], told.place
        assert body.began == 1, told.place
        again(guard, key, body, told)
        return told

    assert points(store, call) > 30
