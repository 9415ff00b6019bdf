"""The check of recorded histories: worth what it rejects."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from idempo.errors import StoreError
from idempo.records import Claim, Key, Record, State
from idempo.testing import (
    UNKNOWN,
    Asked,
    FakeClock,
    FlakyStore,
    LoopThread,
    NotLinearizableError,
    RecordingStore,
    check_history,
    check_store,
    late_writes,
)
from tests.broken_stores import FURTHER, SEVEN
from tests.reference_store import ReferenceStore
from tests.testing.async_stores import SixMethods

KEY = Key("history", "order-42")


@pytest.mark.parametrize("seed", range(3))
def test_a_right_store_is_accepted_and_late_owners_were_there(seed: int) -> None:
    """Behaviours 21-23: more than 2,000 operations, checked in a moment."""
    clock = FakeClock()
    history = check_store(ReferenceStore(clock), clock=clock, seed=seed)
    assert len(history) > 2000
    assert late_writes(history) >= 40
    began = time.perf_counter()
    check_history(history)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("broken", [*SEVEN, *FURTHER])
@pytest.mark.parametrize("seed", range(2))
def test_a_broken_store_is_rejected(broken: type[ReferenceStore], seed: int) -> None:
    """Behaviours 21-23, 27: by the check itself, not by the count of late owners."""
    clock = FakeClock()
    with pytest.raises(NotLinearizableError, match="no order of single steps"):
        check_store(broken(clock), clock=clock, seed=seed)


def test_lost_answers_are_left_open() -> None:
    """Behaviour 34: what was made or not, before or after, explains either; a right store stays right."""
    clock = FakeClock()
    numbers = iter(range(10**6))
    lost = {3: "before", 17: "after", 23: "after"}
    store = FlakyStore(ReferenceStore(clock), fail=lambda _: lost.get(next(numbers) % 29))  # type: ignore[arg-type, return-value]
    history = check_store(store, clock=clock, rounds=20)
    assert sum(asked.answer is UNKNOWN for asked in history) > 100


@pytest.mark.parametrize("given", [True, False])
def test_a_store_of_coroutines_is_checked_too(given: bool) -> None:
    """On a loop of one's own, which stays open, or one that is made for it."""
    clock = FakeClock()
    if not given:
        check_store(SixMethods(clock), clock=clock, rounds=4)
        return
    with LoopThread() as loop:
        check_store(SixMethods(clock), clock=clock, loop=loop, rounds=4)
        assert loop.run(SixMethods(clock).get(KEY)) is None


@pytest.mark.realtime
def test_a_store_with_a_clock_of_its_own_is_checked_in_real_time() -> None:
    """Leases end between their earliest and their latest end."""
    check_store(ReferenceStore(), rounds=9, unit=0.02)


def test_a_store_may_promise_less_about_tokens() -> None:
    """Behaviour 27: but only where it says so."""
    rows = [
        _claimed("owner-a", 1, 2, token=7),
        _asked("delete", {"owner": None}, True, 3, 4),
        _claimed("owner-b", 5, 6, token=7),
    ]
    check_history(rows, tokens_survive_delete=False)
    with pytest.raises(NotLinearizableError):
        check_history(rows)


def test_a_workload_without_late_owners_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is told so."""
    monkeypatch.setattr("idempo.testing.workload.late_writes", lambda _: 0)
    clock = FakeClock()
    with pytest.raises(AssertionError, match="proves nothing"):
        check_store(ReferenceStore(clock), clock=clock, rounds=2)


def test_one_caller_is_no_race() -> None:
    """Bad input."""
    with pytest.raises(ValueError, match="at least 2"):
        check_store(ReferenceStore(), threads=1)


def test_a_thousand_at_once_are_checked_in_a_moment() -> None:
    """What is right and changes nothing is taken at once; else this would take for ever."""
    refused = _record("owner-500", token=1)
    rows = [
        _asked("claim", _options(f"owner-{n}"), Claim(n == 500, refused, False), n, 10_000 + n) for n in range(1000)
    ]
    rows += [_asked("get", {}, refused, 20_000 + 2 * n, 20_001 + 2 * n) for n in range(1000)]
    began = time.perf_counter()
    check_history(rows)
    assert time.perf_counter() - began < 2


def test_a_wrong_guess_is_taken_back() -> None:
    """Two renewals at once, of which the shorter must have come last for the take-over to be right."""
    renewals = [
        _asked("renew", {"owner": "owner-a", "lease": lease, "ttl": 100.0}, True, 3, 6, at=1.0) for lease in (1.0, 50.0)
    ]
    taken = _claimed("owner-b", 7, 8, token=2, attempt=2, took_over=True, at=5.0)
    for pair in (renewals, renewals[::-1]):
        check_history([_claimed("owner-a", 1, 2), *pair, taken])
    with pytest.raises(NotLinearizableError):
        check_history([_claimed("owner-a", 1, 2), renewals[1], taken])


@pytest.mark.parametrize(
    ("operation", "right"),
    [
        (lambda: _asked("get", {}, None, 3, 4), False),
        (lambda: _asked("get", {}, UNKNOWN, 3, math.inf), True),
        (lambda: _asked("complete", {"owner": "stranger", "outcome": b"", "ttl": 1.0}, True, 3, 4), False),
        (lambda: _asked("release", {"owner": "owner-a", "ttl": 1.0}, False, 3, 4), False),
        (lambda: _asked("renew", {"owner": "owner-a", "lease": 1.0, "ttl": 1.0}, False, 3, 4), False),
        (lambda: _asked("delete", {"owner": None}, False, 3, 4), False),
        (lambda: _asked("delete", {"owner": "stranger"}, False, 3, 4), True),
        (lambda: _claimed("owner-b", 3, 4, token=2, attempt=2, took_over=True, at=9.0), False),
        (lambda: _claimed("owner-b", 3, 4, token=2, attempt=2, took_over=True, at=10.0), True),
        (lambda: _claimed("owner-b", 3, 4, token=1, attempt=2, took_over=True, at=10.0), False),
        (lambda: _claimed("owner-b", 3, 4, token=2, attempt=2, took_over=False, at=10.0), False),
        (lambda: _claimed("owner-a", 3, 4, token=1), True),
        (lambda: _claimed("owner-a", 3, 4, token=2), False),
        (lambda: _claimed("owner-b", 3, 4, token=2, attempt=1, at=110.0), True),
        (lambda: _claimed("owner-b", 3, 4, token=2, attempt=1, at=109.0), False),
        (lambda: _asked("claim", _options("owner-a"), UNKNOWN, 3, math.inf), True),
        (lambda: _asked("claim", _options("owner-b"), UNKNOWN, 3, math.inf), True),
    ],
)
def test_what_may_follow_a_claim(operation: Callable[[], Asked], right: bool) -> None:
    """Owner-a claimed at 0 with a lease of 10 and a ttl of 100."""
    rows = [_claimed("owner-a", 1, 2), operation()]
    if right:
        check_history(rows)
        return
    with pytest.raises(NotLinearizableError):
        check_history(rows)


@pytest.mark.parametrize(
    ("operation", "right"),
    [
        (lambda: _asked("complete", {"owner": "owner-a", "outcome": b"", "ttl": 1.0}, True, 3, 4), False),
        (lambda: _asked("renew", {"owner": "owner-a", "lease": 1.0, "ttl": 1.0}, True, 3, 4), False),
        (lambda: _asked("get", {}, _record("owner-a", token=1), 3, 4), False),
        (lambda: _asked("release", {"owner": "owner-a", "ttl": 1.0}, True, 3, 4), False),
        (lambda: _asked("claim", _options("owner-a"), Claim(True, _record("owner-a"), False), 3, 4), False),
        (lambda: _claimed("owner-b", 3, 4, token=1), True),
        (lambda: _claimed("owner-b", 3, 4, token=1, attempt=2), False),
    ],
)
def test_what_may_follow_a_release_of_nothing(operation: Callable[[], Asked], right: bool) -> None:
    """Behaviour 22: owner-a released before its claim came."""
    rows = [_asked("release", {"owner": "owner-a", "ttl": 100.0}, False, 1, 2), operation()]
    if right:
        check_history(rows)
        return
    with pytest.raises(NotLinearizableError):
        check_history(rows)


def test_a_claim_whose_answer_was_lost_may_have_been_made() -> None:
    """Behaviour 34: its token is not known, but later ones are greater, and it is one all the time."""
    lost = _asked("claim", _options("owner-a"), UNKNOWN, 1, math.inf)
    check_history([lost, _asked("get", {}, _record("owner-a", token=5), 3, 4)])
    check_history([lost, _asked("get", {}, None, 3, 4)])
    deleted = _asked("delete", {"owner": "owner-a"}, True, 3, 4)
    check_history([lost, deleted, _claimed("owner-b", 5, 6, token=1)])


def test_a_recorder_leaves_a_failed_call_open_and_raises() -> None:
    """The caller hears of it; the history does not know."""
    store = RecordingStore(FlakyStore(ReferenceStore(), fail=[("get", 1, "before")]))
    with pytest.raises(StoreError):
        store.get(KEY)
    assert store.get(KEY) is None
    first, second = store.history
    assert (first.answer, first.last, first.ended) == (UNKNOWN, math.inf, math.inf)
    assert repr(first.answer) == "UNKNOWN"
    assert second.answer is None
    assert first.first < second.first < second.last


def test_late_writes_are_those_begun_after_a_take_over() -> None:
    """Not those of strangers, nor of who had the key last."""
    taken = _claimed("owner-b", 3, 4, token=2, attempt=2, took_over=True, at=20.0)
    options = {"ttl": 1.0}
    late = _asked("release", {"owner": "owner-a", **options}, False, 5, 6)
    early = _asked("release", {"owner": "owner-a", **options}, False, 3, 6)
    other = _asked("release", {"owner": "owner-b", **options}, True, 7, 8)
    lost = _asked("release", {"owner": "owner-a", **options}, UNKNOWN, 9, math.inf)
    assert late_writes([_claimed("owner-a", 1, 2), taken, late, early, other, lost]) == 2


def _options(owner: str) -> dict[str, Any]:
    return {"owner": owner, "fingerprint": b"\x01", "lease": 10.0, "ttl": 100.0, "take_over": True}


def _record(owner: str, *, token: int = 1, attempt: int = 1) -> Record:
    return Record(State.RUNNING, b"\x01", attempt, token, owner, None, 10.0, 110.0)


def _asked(method: str, options: dict[str, Any], answer: Any, first: float, last: float, *, at: float = 0.0) -> Asked:
    return Asked(method, KEY, options, answer, first, last, at, at if last < math.inf else last)


def _claimed(
    owner: str,
    first: float,
    last: float,
    *,
    token: int = 1,
    attempt: int = 1,
    took_over: bool = False,
    at: float = 0.0,
) -> Asked:
    record = _record(owner, token=token, attempt=attempt)
    return _asked("claim", _options(owner), Claim(True, record, took_over), first, last, at=at)
