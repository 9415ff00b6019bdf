"""What a duplicate is given, and what is told of it: shared by both drivers, without I/O."""

from __future__ import annotations

import enum
import inspect
import time
from contextlib import suppress
from types import CoroutineType
from typing import Any, Final, TypeAlias, cast

from idempo.decisions import COMPLETE_RETRY, REPLAY, Do, End, after_claim, agree
from idempo.envelope import Kind
from idempo.errors import (
    CodecError,
    FingerprintMismatchError,
    IdempotencyError,
    InDoubtError,
    InProgressError,
    LeaseLostError,
    RecordError,
    ReentrantCallError,
    ResultLostError,
    ResultNotStoredError,
    StoreError,
)
from idempo.fingerprint import fingerprint_version_supported
from idempo.flights import Failure, Flight, Id, Phase, Room
from idempo.policy import RERUN, UNKNOWN, ProbeAnswer, Resolved
from idempo.records import Claim, EventKind, Key, Record
from idempo.terms import Terms, kept_near

_LONGEST_RETRY_AFTER: Final = 2.0

_VALUE: Final = Kind.VALUE  # reading a member off its class is a call into Python until 3.12
_EXECUTED: Final = EventKind.EXECUTED


class Replayed:
    """What entering an operation gives a duplicate."""

    __slots__ = ("attempt", "token", "value")

    def __init__(self, value: Any, attempt: int, token: int) -> None:
        self.value = value
        self.attempt = attempt
        self.token = token


def replay(terms: Terms, id_: Id, fingerprint: bytes | None, outcome: bytes, attempt: int, _token: int = 0) -> Any:
    """Return the stored value, or raise the stored error.

    Raises:
        ResultLostError: The operation ran, but its outcome was not kept.
        RecordError: The outcome cannot be read.
    """
    try:
        kind, content = terms.outcomes.read(outcome, id_[0], id_[1], fingerprint)
    except RecordError as error:
        error.key = Key(*id_)
        raise
    terms.teller.replayed(id_[0], id_[1], attempt)
    if kind is _VALUE:
        return content
    if kind is Kind.ERROR:
        raise content
    raise ResultLostError(f"the operation ran, but its outcome was not kept: {content}", key=Key(*id_))


def at_hand(terms: Terms, near: Any, id_: Id, fingerprint: bytes | None) -> Replayed | None:
    """Return what a duplicate is given where a short cut finds a completed record of this payload, else None.

    Raises:
        BaseException: As `replay`.
    """
    kept = kept_near(near, id_)
    if kept is None or not agree(fingerprint, kept[0]):
        return None
    return Replayed(replay(terms, id_, *kept), kept[2], kept[3])


def coroutine_returned(fn: object, coroutine: CoroutineType[Any, Any, Any]) -> TypeError:
    """Close what a plain function returned, so that nothing of it runs, and return the error to raise."""
    coroutine.close()
    name = getattr(fn, "__qualname__", type(fn).__name__)
    return TypeError(
        f"{name}() returned a coroutine, which is nothing to keep: make it an `async def` function, or use run_async()"
    )


def replay_record(terms: Terms, id_: Id, record: Record) -> Any:
    """`replay` for a completed record."""
    return replay(terms, id_, record.fingerprint, record.outcome or b"", record.attempt)


def given(flight: Flight, end: Record | Failure) -> Replayed | None:
    """Give a call the end of another one that it had joined; None: claim anew.

    Raises:
        BaseException: Whatever the other's function, or its store, raised.
        IdempotencyError: What a duplicate is refused with.
    """
    if isinstance(end, Failure):
        flight.phase = Phase.ENDED
        raise end.raised()
    do = after_claim(Claim(False, end, False), flight.fingerprint, flight.terms.policy)
    if do not in (Do.REPLAY, Do.REFUSE_MISMATCH, Do.REFUSE_DOUBT):
        return None
    flight.phase = Phase.ENDED
    return concluded(flight, do, end)


def concluded(flight: Flight, do: Do, record: Record) -> Replayed:
    """Replay the record, or raise what is refused."""
    if do is not REPLAY:
        raise refusal(flight.terms, flight.key, do, record)
    return Replayed(replay_record(flight.terms, flight.id, record), record.attempt, record.token)


def left(flight: Flight, room: Room, *, leads: bool, waited: float, deadline: float) -> Record | Failure | None:
    """Say what a call takes along from the room where it waited; None: look again.

    Raises:
        InProgressError: Nothing, and its deadline has come.
    """
    if room.end is not None:
        return room.end if isinstance(room.end, Record | Failure) else None
    if not leads and time.monotonic() >= deadline:
        flight.phase = Phase.ENDED
        attempt = 0 if room.leader is None else room.leader.attempt
        raise in_progress(flight.terms, flight.key, attempt, waited)
    return None


def refusal(terms: Terms, key: Key, do: Do, record: Record) -> IdempotencyError:
    """Tell the refusal, and return the error to raise."""
    error: IdempotencyError
    if do is Do.REFUSE_REENTRANT:
        return reentrant(key)
    if do is Do.REFUSE_MISMATCH:
        stored = record.fingerprint
        hint = "use a new key for another payload"
        if stored is not None and not fingerprint_version_supported(stored):
            hint = "its fingerprint is of a version that this idempo cannot compare"
        error = FingerprintMismatchError(f"the key was used before with another payload; {hint}", key=key)
        terms.teller.tell(EventKind.MISMATCHED, key, record.attempt, error=error)
        return error
    error = InDoubtError(
        "an earlier attempt did not end and its effect may have happened; look, then resolve() or forget() the key",
        key=key,
    )
    terms.teller.tell(EventKind.IN_DOUBT, key, record.attempt, error=error)
    return error


class _Unguarded(enum.Enum):
    UNGUARDED = "unguarded"


UNGUARDED: Final = _Unguarded.UNGUARDED
"""In place of a claim: the store cannot be asked, and the policy is to run all the same."""

Claimed: TypeAlias = Claim | _Unguarded


def claimed(answer: object, flight: Flight | None = None) -> Claim:
    """Return what a store answered to a claim.

    Raises:
        StoreError: It is none; or the flight whose claim it is cannot know any more that its lease stands, so that
            another may have taken over before its function begins.
    """
    if isinstance(answer, Claim):
        if flight is not None and answer.acquired and time.monotonic() >= flight.asked_at + flight.terms.policy.lease:
            raise StoreError("the answer to a claim took longer than the lease")
        return answer
    what = "None" if answer is None else f"a {type(answer).__name__}"
    raise StoreError(f"claim answered {what}, not a Claim")


def runs_unguarded(flight: Flight, error: IdempotencyError) -> bool:
    """Tell that the store cannot be asked for the key, and say whether the call runs all the same."""
    terms = flight.terms
    error.key = flight.key
    terms.teller.tell(EventKind.STORE_FAILED, flight.key, error=error)
    if terms.policy.store_errors == "raise":
        return False
    flight.phase = Phase.RUNNING
    flight.stands_until = flight.asked_at + terms.policy.lease
    return True


def is_stored_later(flight: Flight, error: IdempotencyError) -> bool:
    """Say whether the outcome that the store did not take is tried again at once, while the lease stands."""
    stands = flight.attempt and time.monotonic() + COMPLETE_RETRY < flight.stands_until
    return bool(stands) and isinstance(error, StoreError)


def check_probe(terms: Terms) -> None:
    """Refuse a probe whose answers a plain call could not wait for, as far as that can be told before it is asked.

    Raises:
        TypeError: It is a coroutine function.
    """
    probe = terms.policy.probe
    if any(inspect.iscoroutinefunction(one) for one in (probe, type(probe).__call__)):
        raise TypeError("the probe is a coroutine function, and the guarded function, or block, a plain one")


def probed(terms: Terms, key: Key) -> ProbeAnswer:
    """Ask the policy's probe, for a plain call.

    Raises:
        InDoubtError: The probe raised, or gave no answer.
    """
    try:
        answer = cast("Any", terms.policy.probe)(key)
    except Exception as error:
        raise probe_failed(terms, key) from error
    return understood(terms, key, answer)


def understood(terms: Terms, key: Key, answer: Any) -> ProbeAnswer:
    """Return the probe's answer.

    Raises:
        InDoubtError: It is none.
    """
    if isinstance(answer, Resolved) or answer is RERUN or answer is UNKNOWN:
        return answer
    if answer is None or isinstance(answer, bool):
        what = repr(answer)
    elif inspect.isawaitable(answer):
        what = "an awaitable that nobody awaits here"
        with suppress(Exception):
            cast("Any", answer).close()  # a coroutine that is left would warn of itself
    else:
        what = f"the class {answer.__qualname__}" if isinstance(answer, type) else f"a {type(answer).__qualname__}"
    raise probe_failed(terms, key, f"the probe answered {what}, and not Resolved(value), RERUN or UNKNOWN")


def probe_failed(terms: Terms, key: Key, what: str = "the probe failed") -> InDoubtError:
    """Tell that a probe raised, or gave no answer, and return the error to raise."""
    error = InDoubtError(f"{what}; so nobody knows whether the effect happened", key=key)
    terms.teller.tell(EventKind.IN_DOUBT, key, error=error)
    return error


def reentrant(key: Key) -> ReentrantCallError:
    """Return the error for a call that would wait for itself."""
    return ReentrantCallError("the call would wait for itself: its key is held by a call around it", key=key)


def in_progress(terms: Terms, key: Key, attempt: int, waited: float) -> InProgressError:
    """Tell that a deadline came, and return the error to raise."""
    error = InProgressError(
        "the operation is in progress elsewhere; try again later", key=key, retry_after=_LONGEST_RETRY_AFTER / 2
    )
    terms.teller.tell(EventKind.REFUSED, key, attempt, waited, error)
    return error


def lease_lost(
    flight: Flight, why: str = "the function ran, but its lease was lost: another attempt may run too"
) -> LeaseLostError:
    """Tell that a finished function held its key no more, and return the error that carries its value."""
    error = LeaseLostError(why, key=flight.key, result=flight.value)
    if flight.stands_until:  # else the renewer has heard of it first, and told
        flight.terms.teller.tell(EventKind.LEASE_LOST, flight.key, flight.attempt, error=error)
    return error


def completed(flight: Flight, kind: EventKind, *, stored: bool | Exception) -> Any:
    """Return the value of a finished function, once it was tried to store it.

    Args:
        flight: The call.
        kind: The event to tell when the outcome stands.
        stored: Whether it stands; the store's last error where it did not take it while the lease lived.

    Raises:
        ResultNotStoredError: It does not stand yet.
        LeaseLostError: It does not stand.
    """
    if isinstance(stored, Exception):
        if flight.terms.policy.store_errors == "raise":
            raise ResultNotStoredError(
                "the function ran, but the store did not take its outcome; it is offered again while we live",
                key=flight.key,
                result=flight.value,
            ) from stored
    elif stored:
        flight.terms.teller.tell(kind, flight.key, flight.attempt, time.monotonic() - flight.asked_at)
    elif flight.attempt:  # else nothing was ever claimed
        raise lease_lost(flight)
    return flight.value


def left_behind(flight: Flight, end: End, error: BaseException, *, held: bool) -> None:
    """Tell how the claim of a function that raised was ended."""
    kind = EventKind.RELEASED if end is End.RELEASE else EventKind.IN_DOUBT
    if not held and flight.attempt:
        if not flight.stands_until:  # the renewer has heard of it first, and told
            return
        kind = EventKind.LEASE_LOST
    flight.terms.teller.tell(kind, flight.key, flight.attempt, error=error)


def encode_value(flight: Flight) -> tuple[bytes, EventKind]:
    """Return a returned value as an outcome, *lost* where it cannot be kept, and the event to tell.

    Raises:
        ResultNotStoredError: Not even that can be sealed.
    """
    namespace, value = flight.id
    try:
        return flight.terms.outcomes.encode_value(flight.value, namespace, value, flight.bound), _EXECUTED
    except CodecError as unkept:
        return _lost(flight, str(unkept)), EventKind.RESULT_LOST


def encode_error(flight: Flight, error: BaseException) -> tuple[bytes, EventKind]:
    """Return a declared error as an outcome, *lost* where it cannot be kept, and the event to tell.

    Raises:
        ResultNotStoredError: Not even that can be sealed.
    """
    namespace, value = flight.id
    try:
        encoded = flight.terms.outcomes.encode_error(error, namespace, value, flight.bound)
        flight.kind = EventKind.FAILED
        return encoded, EventKind.FAILED
    except CodecError as unkept:
        return _lost(flight, str(unkept)), EventKind.RESULT_LOST


def _lost(flight: Flight, reason: str) -> bytes:
    try:
        flight.kind = EventKind.RESULT_LOST
        return flight.terms.outcomes.encode_lost(reason, *flight.id, flight.bound)
    except CodecError as unsealed:
        flight.terms.teller.tell(EventKind.RESULT_LOST, flight.key, flight.attempt, error=unsealed)
        raise ResultNotStoredError(
            "the outcome cannot be sealed, and nothing is stored: mend the seal, then resolve() the key with .result",
            key=flight.key,
            result=flight.value,
        ) from unsealed
