"""What calls on a sync store do when it fails: before a step, after it, for a while, or for good."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idempo import (
    Event,
    FingerprintMismatchError,
    Idempotency,
    InDoubtError,
    Key,
    MemoryStore,
    Resolved,
    ResultNotStoredError,
    State,
    StoreError,
    current_operation,
    renewal,
)
from idempo.hub import hub_of
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FlakyStore
from tests.interrupting import in_thread, until

KEY = Key("default", "k")
LEASE = 0.15


class Switched:
    """A store that fails, or loses its answers, for the methods that are named."""

    def __init__(self, inner: Any) -> None:
        self.failing: dict[str, Any] = {}
        self.store = FlakyStore(inner, lambda call: self.failing.get(call.method))
        self.events: list[Event] = []
        self.runs = 0

    def guard(self, **policy: Any) -> Idempotency:
        return Idempotency(self.store, observers=[self.events.append], **policy)

    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]

    def effect(self, *args: Any) -> str:
        self.runs += 1
        return f"run {self.runs}"

    @property
    def flights(self) -> int:
        return len(hub_of(self.store).flights)


@pytest.fixture(params=["memory", "sqlite"])
def switched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Switched]:
    if request.param == "memory":
        yield Switched(MemoryStore())
        return
    with SqliteStore(tmp_path / "records.db", synchronous="NORMAL") as store:
        yield Switched(store)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes are offered again after a hundredth of a second instead of half a one."""
    monkeypatch.setattr(renewal, "_FIRST_RETRY", 0.01)


# At the claim


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_store_that_fails_at_claim(switched: Switched, when: str) -> None:
    """Behaviours 32, 34: nothing runs, whoever joined gets the same failure, and afterwards the key is free."""
    go, asked = threading.Event(), threading.Event()

    guard = switched.guard(wait=5)
    inner = switched.store._store.claim

    def claim(key: Key, **options: Any) -> Any:
        asked.set()
        assert go.wait(20)
        raise StoreError("no") if when == "before" else (inner(key, **options), StoreError("no"))[1]

    switched.store._store.claim = claim  # type: ignore[method-assign]
    answers: list[Any] = []
    threads = [in_thread(lambda: guard.run("k", switched.effect), answers)]
    assert asked.wait(20)
    threads += [in_thread(lambda: guard.run("k", switched.effect), answers) for _ in range(4)]
    leader = hub_of(switched.store).flights._table.get(("default", "k"))
    assert leader is not None
    until(lambda: leader.room and len(leader.room.groups[None].members) == 4)
    go.set()
    for thread in threads:
        thread.join(20)
    assert [type(answer) for answer in answers] == [StoreError] * 5
    assert len({id(answer) for answer in answers}) == 1
    assert answers[0].key == KEY
    assert switched.store.count("claim") == 2
    assert (switched.runs, switched.kinds(), switched.flights) == (0, ["store_failed"] + ["waited"] * 4, 0)
    switched.store._store.claim = inner  # type: ignore[method-assign]
    assert switched.guard(wait=0).run("k", switched.effect) == "run 1"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_store_that_fails_at_claim_is_done_without(switched: Switched, when: str) -> None:
    """Behaviours 32, 34: with an event; a claim that arrived all the same is completed by its owner."""
    switched.failing["claim"] = when
    guard = switched.guard(store_errors="run")
    assert guard.run("k", lambda: (current_operation().attempt, switched.effect())) == (0, "run 1")
    assert switched.kinds()[0] == "store_failed"
    assert switched.flights == 0
    record = switched.store.get(KEY)
    assert (record is None) if when == "before" else (record is not None and record.state is State.COMPLETED)
    switched.failing.clear()
    again = guard.run("k", switched.effect)
    assert again == ("run 2" if when == "before" else (0, "run 1"))


def test_a_failure_of_stores_that_the_function_raises_is_its_own(switched: Switched) -> None:
    """Behaviour 32: store_errors concerns idempo's own calls: nothing runs a second time, and it is no store event."""

    def fails() -> None:
        switched.runs += 1
        raise StoreError("of the function's")

    with pytest.raises(StoreError, match="of the function's"):
        switched.guard(store_errors="run").run("k", fails)
    assert (switched.runs, switched.kinds()) == (1, ["released"])


# At the outcome


@pytest.mark.realtime
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_outcome_is_tried_again_while_the_lease_stands(switched: Switched, when: str) -> None:
    """Behaviours 33, 34: a short outage is not noticed."""
    counted = iter([when, when, None])
    store = FlakyStore(switched.store, lambda call: next(counted) if call.method == "complete" else None)
    guard = Idempotency(store, observers=[switched.events.append])
    assert guard.run("k", switched.effect) == "run 1"
    assert guard.run("k", switched.effect) == "run 1"
    assert (store.count("complete"), switched.kinds()) == (3, ["executed", "replayed"])


@pytest.mark.realtime
@pytest.mark.parametrize("policy", ["raise", "run"])
@pytest.mark.usefixtures("soon")
def test_an_outcome_is_offered_until_the_store_is_back(switched: Switched, policy: Any) -> None:
    """Behaviour 33: local duplicates get it meanwhile, without a call of the store; no claim is released."""
    guard = switched.guard(lease=LEASE, store_errors=policy)
    switched.failing["complete"] = "before"
    if policy == "raise":
        with pytest.raises(ResultNotStoredError) as caught:
            guard.run("k", switched.effect, 5)
        assert (caught.value.result, caught.value.key) == ("run 1", KEY)
        assert isinstance(caught.value.__cause__, StoreError)  # one sees why
    else:
        assert guard.run("k", switched.effect, 5) == "run 1"
    claims = switched.store.count("claim")
    answers: list[Any] = []
    for thread in [in_thread(lambda: guard.run("k", switched.effect, 5), answers) for _ in range(4)]:
        thread.join(20)
    assert answers == ["run 1"] * 4
    with pytest.raises(FingerprintMismatchError):
        guard.run("k", switched.effect, 6)
    offered = switched.store.count("complete")
    until(lambda: switched.store.count("complete") >= offered + 3)
    assert (switched.store.count("claim"), switched.store.count("release"), switched.flights) == (claims, 0, 1)
    assert "executed" not in switched.kinds()
    switched.failing.clear()
    until(lambda: switched.flights == 0)
    record = switched.store.get(KEY)
    assert record is not None
    assert (record.state, record.attempt) == (State.COMPLETED, 1)
    until(lambda: "executed" in switched.kinds())
    assert guard.run("k", switched.effect, 5) == "run 1"
    assert switched.kinds().count("executed") == 1
    assert switched.runs == 1


@pytest.mark.realtime
@pytest.mark.usefixtures("soon")
def test_a_declared_error_is_offered_as_well(switched: Switched) -> None:
    """Behaviours 29, 33: the original is raised; local duplicates, and later all, get it."""
    guard = switched.guard(lease=LEASE, replay_errors=LookupError)

    def fails() -> None:
        switched.effect()
        raise LookupError("gone")

    switched.failing["complete"] = "before"
    for _ in range(2):
        with pytest.raises(LookupError, match="gone"):
            guard.run("k", fails)
    assert switched.flights == 1
    switched.failing.clear()
    until(lambda: switched.flights == 0)
    with pytest.raises(LookupError, match="gone"):
        guard.run("k", fails)
    assert switched.runs == 1


@pytest.mark.realtime
@pytest.mark.usefixtures("soon")
def test_an_offer_that_comes_too_late_is_told(switched: Switched) -> None:
    """Behaviours 22, 33: another has taken the key over meanwhile; what it does stays."""
    guard = switched.guard(lease=LEASE)
    switched.failing["complete"] = "before"
    with pytest.raises(ResultNotStoredError):
        guard.run("k", switched.effect)
    until(lambda: switched.store.claim(KEY, owner="other", fingerprint=None, lease=60, ttl=60).acquired)
    switched.failing.clear()
    until(lambda: "lease_lost" in switched.kinds())
    assert switched.flights == 0
    record = switched.store.get(KEY)
    assert record is not None
    assert (record.owner, record.state) == ("other", State.RUNNING)


@pytest.mark.realtime
@pytest.mark.usefixtures("soon")
def test_an_offer_ends_with_its_ttl(switched: Switched) -> None:
    """Behaviour 33: what would be forgotten is offered no more, and its key is new."""
    guard = switched.guard(lease=0.06, ttl=0.2)
    switched.failing["complete"] = "before"
    with pytest.raises(ResultNotStoredError):
        guard.run("k", switched.effect)
    until(lambda: switched.flights == 0)
    assert switched.store.count("complete") < 50  # offered ever more seldom
    switched.failing.clear()
    assert guard.run("k", switched.effect) == "run 2"


@pytest.mark.realtime
def test_the_number_of_offers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 33: a long outage fills no memory; what is not offered goes by its lease."""
    monkeypatch.setattr(renewal, "MAX_OFFERS", 2)

    class Blocking(MemoryStore):
        blocking = True  # type: ignore[misc]

    switched = Switched(Blocking())
    guard = switched.guard(lease=0.06, wait=20)
    switched.failing["complete"] = "before"
    for key in ("a", "b", "c"):
        with pytest.raises(ResultNotStoredError):
            guard.run(key, switched.effect)
    assert switched.flights == 2
    switched.failing.clear()
    assert guard.run("c", switched.effect) == "run 4"
    assert [guard.run(key, switched.effect) for key in ("a", "b")] == ["run 1", "run 2"]


# Every method, through the driver


def ends(switched: Switched, in_doubt: Any) -> None:
    with pytest.raises(ValueError, match="no"):
        switched.guard(in_doubt=in_doubt).run("k", lambda: (_ for _ in ()).throw(ValueError("no")))


@pytest.mark.realtime
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["claim", "complete", "release", "renew", "renewal", "get"])
def test_one_lost_answer_of_any_method_is_as_if_it_had_arrived(switched: Switched, method: str, when: Any) -> None:
    """Behaviour 34: the same end, the same record, and no event of a failure, but of a renewal."""
    name = "renew" if method == "renewal" else method
    store = switched.store = FlakyStore(switched.store, [(name, 1, when)])
    if method in ("release", "renew"):
        ends(switched, "rerun" if method == "release" else "raise")
        record = store.get(KEY)
        assert record is not None
        assert record.state is (State.RELEASED if method == "release" else State.RUNNING)
        assert switched.kinds() == ["released" if method == "release" else "in_doubt"]
        if method == "release":
            assert switched.guard(wait=0).run("k", lambda: current_operation().attempt) == 2
        else:
            with pytest.raises(InDoubtError):
                switched.guard(wait=0, in_doubt="raise").run("k", switched.effect)
    elif method == "renewal":

        def long() -> str:
            until(lambda: store.count("renew") >= 4)
            current_operation().ensure_held()
            return "held"

        assert switched.guard(lease=0.6).run("k", long) == "held"
        assert switched.kinds() == ["store_failed", "executed"]
    elif method == "get":
        store.claim(KEY, owner="elsewhere", fingerprint=None, lease=60, ttl=60)
        answers: list[Any] = []
        waiting = in_thread(lambda: switched.guard(wait=20).run("k", switched.effect), answers)
        until(lambda: store.count("claim") >= 2)
        assert store.release(KEY, owner="elsewhere", ttl=60)
        waiting.join(20)
        assert answers == ["run 1"]
        assert switched.kinds() == ["executed"]
    else:
        assert switched.guard(wait=0).run("k", lambda: current_operation().attempt) == 1
        assert switched.guard(wait=0).run("k", switched.effect) == 1
        assert switched.kinds() == ["executed", "replayed"]


def test_a_failure_of_what_is_asked_directly_is_raised(switched: Switched) -> None:
    """Behaviour 34: lookup and forget are asked for an answer, and try nothing again on their own."""
    guard = switched.guard()
    guard.run("k", switched.effect)
    switched.failing |= {"get": "before", "delete": "after"}
    with pytest.raises(StoreError):
        guard.lookup("k")
    with pytest.raises(StoreError):
        guard.forget("k", force=True)
    switched.failing.clear()
    assert guard.lookup("k") is None  # it had been applied


@pytest.mark.parametrize("store_errors", ["raise", "run"])
def test_what_a_probe_found_is_given_or_stays_in_doubt(switched: Switched, store_errors: Any) -> None:
    """Behaviours 26, 32: where it cannot be kept; it is never run again, nor freed."""
    ends(switched, "raise")
    switched.events.clear()
    switched.failing["complete"] = "before"
    guard = switched.guard(in_doubt=lambda key: Resolved("seen"), store_errors=store_errors, wait=0)
    if store_errors == "run":
        assert guard.run("k", switched.effect) == "seen"
    else:
        with pytest.raises(StoreError) as caught:
            guard.run("k", switched.effect)
        assert caught.value.key == KEY
    assert switched.kinds() == ["store_failed"]
    record = switched.store.get(KEY)
    assert record is not None
    assert record.state is State.RUNNING
    assert (record.lease_left or 0) <= 0
    switched.failing.clear()
    assert guard.run("k", switched.effect) == "seen"
    assert (switched.runs, switched.flights) == (0, 0)
