"""The table of decisions, held against one that was written from the contract, cell by cell."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import Any

import pytest

from idempo import RERUN, Claim, Policy, Record, State
from idempo.decisions import Do, End, after_claim, after_error, agree, changed_since, pause

A, B = b"a" * 33, b"b" * 33

# What is asked with, what the record holds, and whether they are of one payload.
FINGERPRINTS = [
    (A, A, True),
    (None, A, True),  # None on either side checks nothing
    (A, None, True),
    (None, None, True),
    (A, B, False),
    (A, A[:-1], False),
    (b"", A, False),
]
IN_DOUBT: dict[str, Any] = {"rerun": "rerun", "raise": "raise", "probe": lambda key: RERUN}

RECORDS = {
    "absent or taken": (True, State.RUNNING, 15.0),
    "released": (False, State.RELEASED, None),
    "completed": (False, State.COMPLETED, None),
    "alive": (False, State.RUNNING, 0.001),
    "just out": (False, State.RUNNING, 0.0),
    "long out": (False, State.RUNNING, -3600.0),
}

# Of one payload: by record and in_doubt. The claim itself has taken what may be taken: a record that comes back in
# doubt under "rerun", or released, has changed between two looks at it, or refused a delayed copy.
ONE_PAYLOAD = """
                   rerun         raise         probe
absent or taken  | RUN         | RUN         | RUN
released         | CLAIM_ANEW  | CLAIM_ANEW  | CLAIM_ANEW
completed        | REPLAY      | REPLAY      | REPLAY
alive            | WAIT        | WAIT        | WAIT
just out         | CLAIM_ANEW  | REFUSE_DOUBT| PROBE
long out         | CLAIM_ANEW  | REFUSE_DOUBT| PROBE
"""
# Of two payloads: refused before anything else, in every state but RELEASED.
TWO_PAYLOADS = """
                   rerun            raise            probe
absent or taken  | RUN            | RUN            | RUN
released         | CLAIM_ANEW     | CLAIM_ANEW     | CLAIM_ANEW
completed        | REFUSE_MISMATCH| REFUSE_MISMATCH| REFUSE_MISMATCH
alive            | REFUSE_MISMATCH| REFUSE_MISMATCH| REFUSE_MISMATCH
just out         | REFUSE_MISMATCH| REFUSE_MISMATCH| REFUSE_MISMATCH
long out         | REFUSE_MISMATCH| REFUSE_MISMATCH| REFUSE_MISMATCH
"""


def cells(table: str) -> dict[tuple[str, str], Do]:
    policies, *rows = table.strip().splitlines()
    read = {}
    for row in rows:
        name, *dos = (cell.strip() for cell in row.split("|"))
        read |= {(name, policy): Do[do] for policy, do in zip(policies.split(), dos, strict=True)}
    return read


@pytest.mark.parametrize("own_call", [False, True], ids=["from outside", "from inside its own call"])
@pytest.mark.parametrize(("name", "in_doubt"), list(product(RECORDS, IN_DOUBT)))
def test_what_follows_a_claim(name: str, in_doubt: str, own_call: bool) -> None:
    """Behaviours 6, 14, 17, 21, 26: every state, relation of fingerprints and policy."""
    acquired, state, lease_left = RECORDS[name]
    policy = Policy(in_doubt=IN_DOUBT[in_doubt])
    outcome = b"outcome" if state is State.COMPLETED else None
    for asked, stored, same in FINGERPRINTS:
        claim = Claim(acquired, Record(state, stored, 2, 7, "owner", outcome, lease_left, 60.0), False)
        expected = cells(ONE_PAYLOAD if same else TWO_PAYLOADS)[name, in_doubt]
        if own_call and state is State.RUNNING and not acquired:
            expected = Do.REFUSE_REENTRANT  # whatever the payload: to wait would be to wait for itself
        assert after_claim(claim, asked, policy, own_call=own_call) is expected, (asked, stored)
        assert agree(asked, stored) is agree(stored, asked) is same


def test_a_probe_is_no_part_of_the_decision() -> None:
    """Behaviour 26: the table says that it is to be asked, and asks nothing itself."""

    def probe(key: object) -> Any:
        raise AssertionError("asked")

    claim = Claim(False, Record(State.RUNNING, None, 1, 1, "owner", None, -1.0, 60.0), False)
    assert after_claim(claim, None, Policy(in_doubt=probe)) is Do.PROBE


class DeclaredError(Exception):
    pass


class DeclaredFurtherError(DeclaredError):
    pass


class ProofError(Exception):
    pass


class ProofOfBothError(DeclaredError, ProofError):
    pass


UNDECLARED = [ValueError(), KeyboardInterrupt(), SystemExit(1), GeneratorExit(), asyncio.CancelledError()]


@pytest.mark.parametrize("in_doubt", IN_DOUBT)
@pytest.mark.parametrize("release_errors", [None, (), ProofError, (ProofError, KeyError), BaseException])
def test_what_follows_an_exception(in_doubt: str, release_errors: Any) -> None:
    """Behaviours 26, 29, 30: a declared error is the outcome; another frees the key only if it proves something."""
    policy = Policy(in_doubt=IN_DOUBT[in_doubt], release_errors=release_errors, replay_errors=DeclaredError)
    for error in (DeclaredError(), DeclaredFurtherError(), ProofOfBothError()):
        assert after_error(error, policy) is End.COMPLETE
    if release_errors is None:
        releasing = {"rerun": True, "raise": False, "probe": False}
        others = proof = End.RELEASE if releasing[in_doubt] else End.DOUBT
    else:
        others = End.RELEASE if release_errors is BaseException else End.DOUBT
        proof = End.DOUBT if release_errors == () else End.RELEASE
    assert [after_error(error, policy) for error in UNDECLARED] == [others] * len(UNDECLARED)
    assert after_error(ProofError(), policy) is proof


def test_nothing_is_declared_by_default() -> None:
    """Behaviour 29: an exception becomes an outcome only on request."""
    assert after_error(DeclaredError(), Policy()) is End.RELEASE
    assert after_error(DeclaredError(), Policy(in_doubt="raise")) is End.DOUBT


def test_polls_come_less_and_less_often_for_as_long_as_anybody_waits() -> None:
    """Behaviour 13: from a hundredth of a second to half a one, each a little early or late; no number is too large."""
    longest = [max(pause(polls, 1000.0, 1000.0, watched=False) for _ in range(200)) for polls in (1, 2, 4, 8, 1_000)]
    assert longest == sorted(longest)
    assert longest[0] <= 0.015
    assert 0.4 < longest[-1] <= 0.5
    for polls in (1, 1_750, 10**9):
        assert 0.005 <= pause(polls, 1000.0, 1000.0, watched=False) <= 0.5
        assert 1.0 <= pause(polls, 1000.0, 1000.0, watched=True) <= 2.0
    assert len({pause(5, 1000.0, 1000.0, watched=False) for _ in range(20)}) > 1


@pytest.mark.parametrize("watched", [False, True])
def test_nobody_pauses_beyond_the_lease_or_his_own_deadline(watched: bool) -> None:
    """Behaviours 13, 14: nor does anybody spin on a lease that is just out."""
    assert pause(1000, 0.05, 1000.0, watched=watched) == 0.05
    assert pause(1000, 1000.0, 0.03, watched=watched) == 0.03
    assert pause(1000, 1000.0, -1.0, watched=watched) == 0.0
    for left in (None, 0.0, -60.0):
        assert pause(1000, left, 1000.0, watched=watched) == 0.001


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        (None, True),
        (Record(State.RUNNING, A, 1, 1, "one", None, 9.0, 99.0), False),
        (Record(State.RUNNING, A, 1, 1, "one", None, 0.001, 99.0), False),
        (Record(State.RUNNING, A, 1, 1, "one", None, 0.0, 99.0), True),
        (Record(State.RUNNING, A, 1, 1, "one", None, -1.0, 99.0), True),
        (Record(State.RUNNING, A, 2, 2, "another", None, 9.0, 99.0), True),
        (Record(State.COMPLETED, A, 1, 1, "one", b"x", None, 99.0), True),
        (Record(State.RELEASED, A, 1, 1, "one", None, None, 99.0), True),
    ],
)
def test_what_is_worth_another_claim(now: Record | None, changed: bool) -> None:
    """Behaviours 13, 19: whatever is no longer the live claim that was seen."""
    assert changed_since(Record(State.RUNNING, A, 1, 1, "one", None, 10.0, 100.0), now) is changed
