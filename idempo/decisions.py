"""Every rule of conflict in one place: what to do next, given what is known. No I/O, no clock, no user code.

The drivers ask and obey; they decide nothing. The rules are those of the contract: a mismatch before anything else, a
live claim is waited for, a record in doubt is dealt with by policy, a completed one is replayed.
"""

from __future__ import annotations

import enum
import random
from typing import Final

from idempo.errors import IdempotencyError, StoreError
from idempo.policy import Policy
from idempo.records import Claim, Record, State

# Seconds between two looks at a call in another process, and between two tries to store an outcome.
_FIRST_POLL: Final = 0.01
_LAST_POLL: Final = 0.5
_WATCHED_POLL: Final = 2.0  # beside notifications, one of which can be lost
_GROWTH: Final = 1.5
_GROWN: Final = 10  # polls, until they come as seldom as they ever do
_SHORTEST: Final = 0.001  # for a lease that is just out by our clock, and not yet by the store's
COMPLETE_RETRY: Final = 0.05


class Do(enum.Enum):
    """What a call does after its claim was answered."""

    RUN = "run"
    """The key is ours: run the function."""
    REPLAY = "replay"
    """Give the stored outcome."""
    WAIT = "wait"
    """Wait for the call in progress, then claim anew."""
    CLAIM_ANEW = "claim anew"
    """The record changed between two looks at it: claim again, as a new owner."""
    REFUSE_MISMATCH = "refuse: mismatch"
    REFUSE_REENTRANT = "refuse: re-entrant"
    REFUSE_DOUBT = "refuse: in doubt"
    PROBE = "probe"
    """Ask the policy's probe whether the effect happened."""


class End(enum.Enum):
    """How a call whose function raised ends its claim."""

    COMPLETE = "complete"
    """The error is the outcome."""
    RELEASE = "release"
    """Nothing happened: free the key."""
    DOUBT = "doubt"
    """Nobody knows what happened: leave the record in doubt at once."""


# Reading a member off its class is a call into Python until 3.12.
RUN: Final = Do.RUN
WAIT: Final = Do.WAIT
PROBE: Final = Do.PROBE
CLAIM_ANEW: Final = Do.CLAIM_ANEW
REPLAY: Final = Do.REPLAY
_RELEASED: Final = State.RELEASED
_COMPLETED: Final = State.COMPLETED


def after_claim(claim: Claim, fingerprint: bytes | None, policy: Policy, *, own_call: bool = False) -> Do:
    """Say what follows from a store's answer, or from a record that was shared within the process.

    Args:
        claim: The answer; a shared record is a claim that was not acquired.
        fingerprint: The fingerprint of the call that asks; None where nothing is checked.
        policy: The policy of the call that asks.
        own_call: Whether the record is of a call that the asking one stands inside of.
    """
    if claim.acquired:
        return RUN
    record = claim.record
    if record.state is _RELEASED:
        return CLAIM_ANEW
    if own_call and record.state is State.RUNNING:
        return Do.REFUSE_REENTRANT
    if not agree(fingerprint, record.fingerprint):
        return Do.REFUSE_MISMATCH
    if record.state is _COMPLETED:
        return REPLAY
    if record.lease_left is not None and record.lease_left > 0:
        return WAIT
    if policy.in_doubt == "rerun":
        return CLAIM_ANEW
    return Do.REFUSE_DOUBT if policy.in_doubt == "raise" else Do.PROBE


def after_error(error: BaseException, policy: Policy) -> End:
    """Say how the claim ends when the function raised, was cancelled or interrupted."""
    if isinstance(error, policy.replay_errors):
        return End.COMPLETE
    return End.RELEASE if isinstance(error, policy.releasing) else End.DOUBT


def agree(one: bytes | None, other: bytes | None) -> bool:
    """Say whether two fingerprints are of one payload; None checks nothing."""
    return one == other or one is None or other is None


def changed_since(seen: Record, now: Record | None) -> bool:
    """Say whether the live claim that was seen is over, so that another claim is worth its while."""
    return now is None or now.owner != seen.owner or (now.lease_left or 0.0) <= 0


def pause(polls: int, lease_left: float | None, left: float, *, watched: bool) -> float:
    """Return how long to wait for a call in another process until it is looked at again, in seconds.

    Args:
        polls: Which look this is, from 1.
        lease_left: What was left of its lease when it was looked at.
        left: What is left until the caller's own deadline.
        watched: Whether a notification comes as well.
    """
    longest = _WATCHED_POLL if watched else min(_LAST_POLL, _FIRST_POLL * _GROWTH ** min(polls, _GROWN))
    spread = longest * random.uniform(0.5, 1.0)  # noqa: S311 (so that waiters do not all come at once)
    return max(0.0, min(spread, max(lease_left or 0.0, _SHORTEST), left))


def failure(raised: Exception) -> IdempotencyError:
    """Return what a store raised as one of our errors: whatever is none is a `StoreError`, without its text."""
    if isinstance(raised, IdempotencyError):
        return raised
    error = StoreError(f"the store raised {type(raised).__name__}")
    error.__cause__ = raised
    return error
