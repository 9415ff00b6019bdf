"""Policies: every option is checked when the policy is made, and kept in one form."""

from __future__ import annotations

import copy
import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo import RERUN, UNKNOWN, Idempotency, Key, Policy, Resolved, idempotent

DURATIONS = ("ttl", "lease", "max_run", "wait")


def probe(key: Key) -> Any:
    """Look whether the effect happened."""
    return UNKNOWN


def test_the_defaults_are_the_documented_ones() -> None:
    """A day, a quarter of a minute, an hour, 20 seconds; at least once; fail-closed; 1 MiB."""
    policy = Policy()
    assert [policy.ttl, policy.lease, policy.max_run, policy.wait] == [86_400, 15, 3_600, 20]
    assert (policy.in_doubt, policy.store_errors, policy.max_result) == ("rerun", "raise", 1 << 20)
    assert (policy.replay_errors, policy.release_errors, policy.probe) == ((), None, None)


@pytest.mark.parametrize("name", DURATIONS)
@given(microseconds=st.integers(1000, 10**15))
def test_a_timedelta_and_its_seconds_are_one_duration(name: str, microseconds: int) -> None:
    """Durations are kept as seconds, whichever way they were given."""
    given_ = timedelta(microseconds=microseconds)
    policies = [Policy(**{name: value}) for value in (given_, given_.total_seconds())]
    assert policies[0] == policies[1]
    assert getattr(policies[0], name) == given_.total_seconds()


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", [True, "15", None, b"15", [15]], ids=repr)
def test_what_is_no_duration_is_a_type_error_that_names_the_option(name: str, value: Any) -> None:
    """Bad input is told before any effect."""
    with pytest.raises(TypeError, match=f"^{name} must be seconds or a timedelta, not {type(value).__name__}$"):
        Policy(**{name: value})


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, timedelta(seconds=-1)], ids=repr)
def test_a_duration_is_finite_and_not_negative(name: str, value: Any) -> None:
    """A wait that never ends is no policy."""
    with pytest.raises(ValueError, match=f"^{name} must be a finite number of seconds"):
        Policy(**{name: value})


def test_a_lease_and_a_ttl_last_at_least_a_millisecond_and_a_wait_may_be_none() -> None:
    """What is over before a store can answer is a mistake; refusing at once and never renewing are choices."""
    for name in ("ttl", "lease"):
        with pytest.raises(ValueError, match=f"^{name} .* at least 0.001"):
            Policy(**{name: 0})
        assert getattr(Policy(**{name: 0.001}), name) == 0.001
    assert Policy(wait=0, max_run=0).wait == 0


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"in_doubt": "again"}, ValueError, "in_doubt must be .* or a probe, not 'again'"),
        ({"in_doubt": None}, ValueError, "in_doubt must be"),
        ({"store_errors": "ignore"}, ValueError, "store_errors must be .*, not 'ignore'"),
        ({"max_result": 1.5}, TypeError, "max_result must be a number of bytes, not float"),
        ({"max_result": True}, TypeError, "max_result must be a number of bytes, not bool"),
        ({"max_result": -1}, ValueError, "max_result must be at least 0, not -1"),
        (
            {"replay_errors": "ValueError"},
            TypeError,
            "replay_errors must be an exception class or a tuple of them, not a str",
        ),
        (
            {"replay_errors": (ValueError, int)},
            TypeError,
            "replay_errors must be an exception class or a tuple of them, not <class 'int",
        ),
        (
            {"release_errors": [ValueError]},
            TypeError,
            "release_errors must be an exception class or a tuple of them, not a",
        ),
        (
            {"release_errors": ValueError()},
            TypeError,
            "release_errors must be an exception class or a tuple of them, not a",
        ),
        ({"retries": 3}, TypeError, "retries"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_option_that_cannot_be_meant_is_told_by_every_way_in(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """By the policy, by a guard, by both decorators and by ``options()``; nothing is guarded, nothing ran."""
    guard = Idempotency()
    decorated = idempotent(probe)
    ways: list[Any] = [Policy, Policy().evolve, Idempotency, idempotent, guard.idempotent, decorated.options]
    for way in ways:
        with pytest.raises(error, match=says):
            way(**options)


def test_one_exception_class_is_a_tuple_of_one() -> None:
    """As in an ``except`` clause."""
    assert Policy(replay_errors=KeyError, release_errors=OSError) == Policy(
        replay_errors=(KeyError,), release_errors=(OSError,)
    )


@pytest.mark.parametrize(
    ("options", "releasing"),
    [
        ({}, (BaseException,)),
        ({"in_doubt": "raise"}, ()),
        ({"in_doubt": probe}, ()),
        ({"release_errors": KeyError}, (KeyError,)),
        ({"in_doubt": "raise", "release_errors": KeyError}, (KeyError,)),
        ({"release_errors": ()}, ()),
    ],
)
def test_which_errors_free_the_key(options: dict[str, Any], releasing: tuple[type, ...]) -> None:
    """All of them at least once, none at most once, unless it is said otherwise; () says none."""
    assert Policy(**options).releasing == releasing


def test_a_changed_policy_is_another_and_is_checked_anew() -> None:
    """Frozen, compared by value."""
    policy = Policy(wait=0)
    assert policy.evolve() is policy
    changed = policy.evolve(lease=timedelta(minutes=1), replay_errors=KeyError, in_doubt=probe)
    assert changed == Policy(wait=0, lease=60, replay_errors=(KeyError,), in_doubt=probe)
    assert (policy.lease, changed.probe) == (15, probe)
    assert changed.evolve(in_doubt="raise").probe is None
    with pytest.raises(AttributeError):
        changed.wait = 1  # type: ignore[misc]


@pytest.mark.parametrize("answer", [RERUN, UNKNOWN])
def test_an_answer_of_a_probe_is_one_object_and_says_its_name(answer: Any) -> None:
    """Compared by identity, so it must stay itself through a copy and through a process pool."""
    assert repr(answer) in ("idempo.RERUN", "idempo.UNKNOWN")
    assert pickle.loads(pickle.dumps(answer)) is copy.deepcopy(answer) is copy.copy(answer) is answer


def test_what_a_probe_found_is_compared_by_value() -> None:
    """`Resolved` carries a value, None too."""
    assert Resolved(None) == Resolved(None) != Resolved(0)
    assert pickle.loads(pickle.dumps(Resolved([1]))) == Resolved([1])
