"""Waiting in threads: without polling within the process, no longer than asked, and never for oneself."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from idempo import (
    Claim,
    Event,
    EventKind,
    FingerprintMismatchError,
    Idempotency,
    InProgressError,
    Key,
    MemoryStore,
    ReentrantCallError,
)
from idempo.hub import hub_of
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FlakyStore
from tests.interrupting import in_thread, until

KEY = Key("default", "k")


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FlakyStore]:
    """A store that counts its calls."""
    if request.param == "memory":
        yield FlakyStore(MemoryStore())
        return
    with SqliteStore(tmp_path / "records.db", synchronous="NORMAL") as made:
        yield FlakyStore(made)


def waiting(store: Any) -> int:
    """How many wait for the call of the key in this process."""
    flight = hub_of(store).flights._table.get(("default", "k"))
    room = None if flight is None else flight.room
    return 0 if room is None else sum(len(group.members) for group in room.groups.values())


class Holder:
    """A call that runs in a thread until it is let go."""

    def __init__(self, store: Any, body: Callable[[], object] = lambda: None, **policy: Any) -> None:
        self.go, self.answers = threading.Event(), []  # type: ignore[var-annotated]
        begun = threading.Event()

        def hold() -> str:
            begun.set()
            assert self.go.wait(20)
            body()
            return "held"

        self.thread = in_thread(lambda: Idempotency(store, **policy).run("k", hold), self.answers)
        assert begun.wait(20)

    def end(self) -> Any:
        self.go.set()
        self.thread.join(20)
        return self.answers[0]


def never() -> None:
    raise AssertionError("a duplicate ran")


@pytest.mark.parametrize("number", [3, 150])
def test_waiters_ask_no_store_while_the_holder_is_in_their_own_process(store: FlakyStore, number: int) -> None:
    """Behaviours 11, 18: two calls, however many wait and however long: claim, complete, and no poll."""
    holder = Holder(store)
    guard, answers = Idempotency(store, wait=60), []  # type: ignore[var-annotated]
    threads = [in_thread(lambda: guard.run("k", never), answers) for _ in range(number)]
    until(lambda: waiting(store) == number)
    assert holder.end() == "held"
    for thread in threads:
        thread.join(20)
    assert answers == ["held"] * number
    assert [call.method for call in store.calls] == ["claim", "complete"]
    assert guard.stats().waited == guard.stats().replayed == number


@pytest.mark.parametrize("number", [2, 150])
def test_waiters_for_another_process_ask_the_store_as_one(number: int) -> None:
    """Behaviour 18: the first of them asks for all."""
    store = FlakyStore(MemoryStore())
    Idempotency(store, namespace="other").run("k", lambda: "theirs")
    outcome = store.get(Key("other", "k")).outcome or b""  # type: ignore[union-attr]
    store.claim(KEY, owner="elsewhere", fingerprint=None, lease=60, ttl=60)
    before = store.count()
    guard, answers = Idempotency(store, wait=60), []  # type: ignore[var-annotated]
    threads = [in_thread(lambda: guard.run("k", never), answers) for _ in range(number)]
    until(lambda: waiting(store) == number - 1 and store.count("get") == 2)
    store.complete(KEY, owner="elsewhere", outcome=outcome, ttl=60)
    for thread in threads:
        thread.join(20)
    assert answers == ["theirs"] * number
    # The claim, the look behind the watch, the claim that finds the outcome; a poll or two on a slow machine.
    assert store.count() - before - 1 <= 9


@pytest.mark.realtime
def test_at_the_deadline_the_holder_is_left_undisturbed(store: FlakyStore) -> None:
    """Behaviour 14: nothing ran; the error says when to come again; an event says how long it took."""
    events: list[Event] = []
    holder = Holder(store)
    guard = Idempotency(store, wait=0.1, observers=[events.append])
    started = time.monotonic()
    with pytest.raises(InProgressError) as caught:
        guard.run("k", never)
    assert 0.1 <= time.monotonic() - started < 10
    assert caught.value.key == KEY
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 2
    assert [(event.kind, event.attempt) for event in events] == [(EventKind.REFUSED, 1)]
    assert events[0].duration is not None
    assert events[0].duration >= 0.1
    assert waiting(store) == 0
    assert holder.end() == "held"
    assert guard.run("k", never) == "held"


class SlowToClaim(MemoryStore):
    """Answers the first claim late."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = threading.Event(), threading.Event()

    def claim(self, key: Key, **options: Any) -> Claim:
        if not self.asked.is_set():
            self.asked.set()
            assert self.go.wait(20)
        return super().claim(key, **options)


@pytest.mark.realtime
def test_a_deadline_comes_also_while_the_other_still_claims() -> None:
    """Behaviour 14: and whoever joined later takes the place of one that gave up, not of the one that claims."""
    store = SlowToClaim()
    answers: list[Any] = []
    first = in_thread(lambda: Idempotency(store).run("k", lambda: "first"), answers)
    assert store.asked.wait(20)
    with pytest.raises(InProgressError):
        Idempotency(store, wait=0.05).run("k", never)
    patient = in_thread(lambda: Idempotency(store, wait=60).run("k", never), answers)
    until(lambda: waiting(store) == 1)
    store.go.set()
    for thread in (first, patient):
        thread.join(20)
    assert answers == ["first", "first"]


def test_without_wait_it_is_refused_at_once(store: FlakyStore) -> None:
    """Behaviour 16: while it runs here, without asking the store; while it runs elsewhere, with one question."""
    holder = Holder(store)
    guard = Idempotency(store, wait=0)
    with pytest.raises(InProgressError):
        guard.run("k", never)
    assert store.count() == 1
    holder.end()
    store.claim(Key("default", "j"), owner="elsewhere", fingerprint=None, lease=60, ttl=60)
    before = store.count()
    with pytest.raises(InProgressError):
        guard.run("j", never)
    assert store.count() == before + 1
    assert len(hub_of(store).flights) == 0


def test_without_wait_no_claim_of_another_is_waited_for() -> None:
    """Behaviour 16: where the other's claim is still unanswered, it claims for itself."""
    store = SlowToClaim()
    answers: list[Any] = []
    slow = in_thread(lambda: Idempotency(store).run("k", never), answers)
    assert store.asked.wait(20)
    assert Idempotency(store, wait=0).run("k", lambda: "quick") == "quick"
    store.go.set()
    slow.join(20)
    assert answers == ["quick"]


def nested_run(guard: Idempotency, *args: Any) -> None:
    guard.run("k", lambda *_: never(), *args)


def nested_block(guard: Idempotency, *args: Any) -> None:
    with guard.operation("k"):
        never()


def nested_deeper(guard: Idempotency, *args: Any) -> None:
    guard.run("other", lambda: nested_run(guard))


def nested_async(guard: Idempotency, *args: Any) -> None:
    async def inner() -> None:
        never()

    asyncio.run(guard.run_async("k", inner))


@pytest.mark.parametrize("args", [(), (1,)], ids=["same payload", "another payload"])
@pytest.mark.parametrize("nested", [nested_run, nested_block, nested_deeper, nested_async])
def test_a_call_inside_its_own_is_refused_at_once(store: FlakyStore, nested: Any, args: Any) -> None:
    """Behaviour 17: however it is spelled, by whatever guard of the store; the outer call goes on."""
    others = Idempotency(store, wait=60)

    def body(*_: Any) -> str:
        with pytest.raises(ReentrantCallError) as caught:
            nested(others, *args)
        assert caught.value.key == KEY
        return "outer"

    started = time.monotonic()
    assert Idempotency(store).run("k", body, 2) == "outer"
    assert time.monotonic() - started < 20
    assert Idempotency(store).run("k", body, 2) == "outer"
    assert len(hub_of(store).flights) == 0


def test_what_a_body_leaves_behind_is_no_recursion(store: FlakyStore) -> None:
    """Behaviour 17: a thread that it started, in its context, waits for it like anybody else."""
    guard, answers, threads = Idempotency(store, wait=20), [], []  # type: ignore[var-annotated]

    def body() -> str:
        context = contextvars.copy_context()
        threads.append(in_thread(lambda: context.run(guard.run, "k", never), answers))
        until(lambda: waiting(store) == 1)
        return "outer"

    assert guard.run("k", body) == "outer"
    threads[0].join(20)
    assert answers == ["outer"]
    assert guard.run("k", never) == "outer"


class Deaf(MemoryStore):
    """Loses every notification."""

    @contextmanager
    def watch(self, key: Key, wake: Callable[[], None]) -> Iterator[None]:
        yield


@pytest.mark.realtime
def test_a_lost_notification_delays_a_waiter_by_no_more_than_a_poll() -> None:
    """Behaviour 19: long before its deadline, and before the other's lease would be out."""
    store = Deaf()
    store.claim(KEY, owner="elsewhere", fingerprint=None, lease=60, ttl=60)
    guard, answers = Idempotency(store, wait=60), []  # type: ignore[var-annotated]
    waiter = in_thread(lambda: guard.run("k", lambda: "ran"), answers)
    until(lambda: len(hub_of(store).flights) == 1)
    store.release(KEY, owner="elsewhere", ttl=60)
    waiter.join(10)
    assert answers == ["ran"]


class Hooked(MemoryStore):
    """Lets something happen before its first claim."""

    before: Callable[[Key, str], object] | None = None

    def claim(self, key: Key, *, owner: str, **options: Any) -> Claim:
        before, self.before = self.before, None
        if before is not None:
            before(key, owner)
        return super().claim(key, owner=owner, **options)


def test_a_claim_that_comes_behind_its_own_release_is_made_anew() -> None:
    """Behaviour 22: a delayed copy of it is refused by the store; the call claims as another owner, and runs."""
    store = Hooked()
    store.before = lambda key, owner: store.release(key, owner=owner, ttl=60)
    assert Idempotency(store, wait=0).run("k", lambda: "ran") == "ran"
    assert len(hub_of(store).flights) == 0


def test_a_thread_that_waits_in_its_own_process_sleeps_until_it_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviours 11, 18: it looks at nothing in between, however long the other runs."""
    waits: list[float | None] = []
    wait = threading.Event.wait
    store = FlakyStore(MemoryStore())
    holder = Holder(store)

    def noted(self: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is waiter:
            waits.append(timeout)
        return wait(self, timeout)

    monkeypatch.setattr(threading.Event, "wait", noted)
    answers: list[Any] = []
    waiter = threading.Thread(target=lambda: answers.append(Idempotency(store, wait=60).run("k", never)), daemon=True)
    waiter.start()
    until(lambda: waits)
    waiter.join(0.2)  # it had time to look up twenty times
    assert len(waits) == 1
    assert waits[0] is not None
    assert waits[0] > 5  # for as long as the lease of the other is known to stand
    assert holder.end() == "held"
    waiter.join(20)
    assert answers == ["held"]
    assert len(waits) <= 2  # what is left of its lease may be looked at once more


def test_what_a_thread_inherits_of_a_call_is_not_the_call(store: FlakyStore) -> None:
    """Behaviours 6, 17: in a copy of the body's context, another payload is a mismatch, and no recursion."""
    guard, answers = Idempotency(store, wait=0), []  # type: ignore[var-annotated]

    def body(_: int) -> str:
        context = contextvars.copy_context()
        in_thread(lambda: context.run(guard.run, "k", lambda _: never(), 2), answers).join(20)
        return "outer"

    assert guard.run("k", body, 1) == "outer"
    assert [type(answer) for answer in answers] == [FingerprintMismatchError]
