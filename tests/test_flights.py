"""The table of calls in flight: who leads, whose turn it is next, and that no turn is ever lost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from idempo import (
    RERUN,
    FingerprintMismatchError,
    Idempotency,
    InDoubtError,
    Key,
    LeaseLostError,
    MemoryStore,
    RecordError,
    ResultLostError,
    current_operation,
)
from idempo.flights import LOOK_AGAIN, Flight, Flights, Phase, ThreadGroup
from idempo.hub import hub_of
from idempo.renewal import Renewer
from idempo.testing import FlakyStore
from tests.interrupting import in_thread, until

KEY = Key("default", "k")
ID = ("default", "k")


def flight(fingerprint: bytes | None = None) -> Flight:
    return Flight(ID, fingerprint, Idempotency()._terms)


def joined(flights: Flights, leader: Flight) -> tuple[Any, Any, threading.Event]:
    woken = threading.Event()
    place = flights.join(leader, None, ThreadGroup, woken)
    assert place is not None
    return (*place, woken)


def test_a_newcomer_takes_a_vacant_place() -> None:
    """Behaviour 12: before anybody who was nudged has woken; and those who waited wait for it."""
    flights, holder, newcomer = Flights(), flight(), flight()
    assert flights.seat(holder, 0.0) is holder
    room, group, woken = joined(flights, holder)
    flights.vacate(holder)
    assert woken.is_set()
    assert flights.join(holder, None, ThreadGroup, threading.Event()) is None
    assert flights.seat(newcomer, 0.0) is newcomer
    assert room.leader is newcomer
    flights.vacate(holder)  # once more, after an interrupt: the place is another's now
    assert room.leader is newcomer
    assert not flights.leave(room, group, woken, flight())
    flights.finish(newcomer, LOOK_AGAIN)
    assert len(flights) == 0


def test_a_turn_is_passed_on_by_whoever_leaves_without_taking_it() -> None:
    """Behaviours 12, 15: one is nudged after the other, and the last one clears the place."""
    flights, holder = Flights(), flight()
    flights.seat(holder, 0.0)
    places = [joined(flights, holder) for _ in range(3)]
    flights.vacate(holder)
    for number, (room, group, woken) in enumerate(places):
        assert [place[2].is_set() for place in places] == [True] * (number + 1) + [False] * (2 - number)
        assert not flights.leave(room, group, woken)
    assert len(flights) == 0


def test_the_last_to_leave_clears_no_place_that_is_not_its_own() -> None:
    """Behaviour 43: what a forked child has forgotten is not there to be cleared."""
    flights, holder, other = Flights(), flight(), flight()
    flights.seat(holder, 0.0)
    room, group, woken = joined(flights, holder)
    flights.vacate(holder)
    flights.clear()
    flights.seat(other, 0.0)
    assert not flights.leave(room, group, woken)
    flights.dismiss(holder)
    assert flights._table.get(ID) is other


def test_a_waiter_that_was_interrupted_is_taken_out_wherever_it_had_come() -> None:
    """Behaviour 30: its turn is passed on; and where it never came in, nothing changes."""
    flights, holder = Flights(), flight()
    flights.seat(holder, 0.0)
    flights.abandon(holder, None, threading.Event())  # there is no room yet
    first, second = joined(flights, holder), joined(flights, holder)
    flights.abandon(holder, "another loop", first[2])
    flights.vacate(holder)
    flights.abandon(holder, None, first[2])
    assert second[2].is_set()
    assert flights.leave(second[0], second[1], second[2], holder)


def test_an_ended_flight_cannot_be_joined() -> None:
    """Behaviour 12: whoever comes between its end and its leaving looks again."""
    flights, holder = Flights(), flight()
    flights.seat(holder, 0.0)
    flights.finish(holder, LOOK_AGAIN)
    assert holder.phase is Phase.ENDED
    assert flights.join(holder, None, ThreadGroup, threading.Event()) is None
    flights.finish(holder, LOOK_AGAIN)  # once more
    assert len(flights) == 0


def test_the_lost_lease_of_a_call_that_claimed_for_itself_disturbs_no_other() -> None:
    """Behaviour 24: another leads the key, and can still be joined; it itself cannot."""
    flights, holder, alone = Flights(), flight(b"\x01one"), flight(b"\x01another")
    assert flights.seat(holder, 0.0) is holder
    assert flights.seat(alone, 0.0) is alone
    flights.lose(alone)
    assert alone.end is LOOK_AGAIN
    assert flights._table.get(ID) is holder
    joined(flights, holder)


@pytest.mark.parametrize("coroutine", [False, True])
def test_a_call_that_ends_between_the_look_and_the_joining_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch, coroutine: bool
) -> None:
    """Behaviour 12: the duplicate finds the outcome in the store."""
    store = MemoryStore()
    guard, go = Idempotency(store), threading.Event()
    holder = in_thread(lambda: guard.run("k", lambda: (go.wait(20), "held")[1]), [])
    until(lambda: hub_of(store).flights._table.get(ID))
    join = Flights.join

    def late(*args: Any) -> Any:
        go.set()
        holder.join(20)
        return join(*args)

    async def never() -> None:
        pytest.fail("ran")

    monkeypatch.setattr(Flights, "join", late)
    assert (asyncio.run(guard.run_async("k", never)) if coroutine else guard.run("k", list)) == "held"


def test_a_flight_that_ended_before_its_turn_is_not_renewed() -> None:
    """Behaviour 20: it was due, and was taken out before the store could be asked."""
    store = FlakyStore(MemoryStore())
    Renewer(lambda _: None, lambda _: None)._renew(Flight(ID, None, Idempotency(store)._terms))
    assert store.count() == 0


def test_a_refusal_for_doubt_is_not_shared_with_those_who_would_run_again() -> None:
    """Behaviour 26: each call that joined goes by its own policy."""
    store = MemoryStore()
    store.claim(KEY, owner="elsewhere", fingerprint=None, lease=60, ttl=60)
    careful, bold = Idempotency(store, in_doubt="raise", wait=60), Idempotency(store, wait=60)
    answers: list[Any] = []
    threads = [in_thread(lambda: careful.run("k", list), answers)]
    until(lambda: hub_of(store).flights._table.get(ID))
    leader = hub_of(store).flights._table.get(ID)
    assert leader is not None
    ran = threading.Event()

    def effect() -> int:
        ran.set()
        until(lambda: hub_of(store).flights._table.get(ID).room)  # type: ignore[union-attr]
        return current_operation().attempt

    threads += [in_thread(lambda: bold.run("k", effect), answers) for _ in range(3)]
    until(lambda: leader.room and len(leader.room.groups[None].members) == 3)
    store.renew(KEY, owner="elsewhere", lease=0.0, ttl=60)
    for thread in threads:
        thread.join(20)
    assert sorted(map(type, answers), key=str) == [InDoubtError, int, int, int]
    assert [answer for answer in answers if answer == 2] == [2, 2, 2]
    assert bold.stats().waited == 3
    assert len(hub_of(store).flights) == 0


def test_a_probe_that_fails_is_the_cause_of_doubt() -> None:
    """Behaviour 26: nothing is claimed, and nothing stays in flight."""
    store = MemoryStore()
    with pytest.raises(ValueError, match="no"):
        Idempotency(store, in_doubt="raise").run("k", lambda: int("no"))
    before = store.get(KEY)

    def probe(key: Key) -> Any:
        raise ConnectionError("gone")

    with pytest.raises(InDoubtError) as caught:
        Idempotency(store, in_doubt=probe).run("k", list)
    assert type(caught.value.__cause__) is ConnectionError
    after = store.get(KEY)
    assert before is not None
    assert after is not None
    assert (after.owner, after.attempt) == (before.owner, before.attempt)
    assert len(hub_of(store).flights) == 0
    assert Idempotency(store, in_doubt=lambda key: RERUN).run("k", list) == []


def test_a_record_that_cannot_be_read_is_told_once_and_never_run_over() -> None:
    """Behaviour 35: it is not asked for again, and carries its key."""
    store = FlakyStore(MemoryStore(), [("claim", None, "before")], error=lambda call: RecordError("damaged"))
    guard = Idempotency(store, store_errors="run")
    with pytest.raises(RecordError) as caught:
        guard.run("k", list)
    assert caught.value.key == KEY
    assert store.count() == 1
    assert len(hub_of(store).flights) == 0


def test_a_fingerprint_of_an_unknown_version_matches_nothing_and_says_so() -> None:
    """Behaviour 6: it is no other payload's fault."""
    store = MemoryStore()
    claimed = store.claim(KEY, owner="newer", fingerprint=b"\xff" + b"x" * 32, lease=60, ttl=60)
    assert claimed.acquired
    with pytest.raises(FingerprintMismatchError, match="version"):
        Idempotency(store).run("k", abs, 1)


def test_a_declared_error_that_cannot_be_kept_is_lost() -> None:
    """Behaviours 29, 31: its caller gets it, a duplicate ResultLostError, and nothing runs again."""
    guard = Idempotency(replay_errors=LookupError)

    def fails() -> None:
        raise LookupError(lambda: None)

    with pytest.raises(LookupError):
        guard.run("k", fails)
    with pytest.raises(ResultLostError):
        guard.run("k", fails)
    assert guard.stats().result_lost == 1


class Interrupting(MemoryStore):
    """Is interrupted once, in a method; and once lets another take the key over just then."""

    def __init__(self, method: str, *, overtaken: bool = False) -> None:
        super().__init__()
        step, done = getattr(self, method), []  # type: ignore[var-annotated]

        def interrupted(key: Key, **options: Any) -> Any:
            if not done:
                done.append(key)
                if overtaken:
                    self.delete(key)
                raise KeyboardInterrupt
            return step(key, **options)

        setattr(self, method, interrupted)


@pytest.mark.parametrize("method", ["claim", "release", "complete"])
def test_an_interrupt_while_a_call_is_ended_ends_it_all_the_same(method: str) -> None:
    """Behaviour 30: at the claim, in the release of one that failed, and in the completion of one that ran."""
    store = Interrupting(method)
    guard = Idempotency(store, wait=0, lease=60)
    with pytest.raises(KeyboardInterrupt):
        guard.run("k", (lambda: int("no")) if method == "release" else (lambda: "first"))
    assert guard.run("k", lambda: "second") == ("first" if method == "complete" else "second")
    assert len(hub_of(store).flights) == 0


def test_an_interrupted_call_whose_lease_was_lost_raises_the_interrupt() -> None:
    """Behaviours 22, 30: the loss is told to the observers."""
    store = Interrupting("complete", overtaken=True)
    guard = Idempotency(store)
    with pytest.raises(KeyboardInterrupt) as caught:
        guard.run("k", lambda: "first")
    assert not isinstance(caught.value, LeaseLostError)
    assert guard.stats().lease_lost == 1
    assert store.get(KEY) is None


def test_an_interrupt_behind_the_end_changes_it_no_more() -> None:
    """Behaviour 30: the declared error was stored when an observer was interrupted."""

    def interrupted(event: object) -> None:
        raise KeyboardInterrupt

    store = MemoryStore()
    guard = Idempotency(store, replay_errors=ValueError)
    with pytest.raises(KeyboardInterrupt):
        Idempotency(store, replay_errors=ValueError, observers=[interrupted]).run("k", lambda: int("no"))
    with pytest.raises(ValueError, match="no"):
        guard.run("k", lambda: "second")
    assert len(hub_of(store).flights) == 0


@pytest.mark.parametrize("method", ["join", "leave"])
def test_a_waiter_that_is_interrupted_disturbs_nobody(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviours 15, 30: on its way into the room, and out of it."""
    store = MemoryStore()
    guard, go, answers = Idempotency(store, wait=60), threading.Event(), []  # type: ignore[var-annotated]
    holder = in_thread(lambda: guard.run("k", lambda: (go.wait(20), "held")[1]), answers)
    until(lambda: hub_of(store).flights._table.get(ID))
    leader = hub_of(store).flights._table.get(ID)
    assert leader is not None
    step = getattr(Flights, method)

    def interrupted(*args: Any) -> Any:
        monkeypatch.undo()
        if method == "join":
            step(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Flights, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        Idempotency(store, wait=60 if method == "join" else 0.01).run("k", list)
    assert not leader.room
    other = in_thread(lambda: guard.run("k", list), answers)
    until(lambda: leader.room)
    go.set()
    for thread in (holder, other):
        thread.join(20)
    assert answers == ["held", "held"]


def test_an_interrupt_while_it_waits_for_another_process_gives_its_place_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 30: its claim was refused, so there is nothing to give back."""
    store = FlakyStore(MemoryStore())
    store.claim(KEY, owner="elsewhere", fingerprint=None, lease=60, ttl=60)

    def interrupted(event: object, timeout: float | None = None) -> bool:
        monkeypatch.undo()
        raise KeyboardInterrupt

    guard = Idempotency(store, wait=60)
    monkeypatch.setattr(threading.Event, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        guard.run("k", list)
    assert store.count("release") == 0
    assert len(hub_of(store).flights) == 0
