"""What a call does in the caller's own transaction: each step written once, for both drivers to carry out.

There is nothing to renew, to wait for or to try again: other transactions see the record when the caller commits, and
a failing body takes its claim along when its savepoint is rolled back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

from idempo import _open_calls, answers
from idempo._owners import new_owner
from idempo.decisions import Do, after_claim, failure
from idempo.errors import IdempotencyError, LeaseLostError
from idempo.flights import Flight, Phase
from idempo.operation import Operation, current, inside
from idempo.policy import RERUN, Resolved
from idempo.records import Claim, EventKind
from idempo.terms import Terms

T = TypeVar("T")

_OVER: Final = (
    "the function itself committed or rolled back the transaction that was joined: its effect may stand without an"
    " outcome, and the next call is told that it is in progress, then in doubt"
)


class Request(NamedTuple):
    """What a driver is to call.

    Attributes:
        call: Takes nothing; what it gives is awaited by the driver of coroutines.
        of_store: Whether the store is asked: then it is awaited to its end, whoever is cancelled.
    """

    call: Callable[[], Any]
    of_store: bool = True


Steps: TypeAlias = Generator[Request, Any, T]


class JoinedSteps:
    """The steps of one guard's or one function's calls.

    Args:
        terms: What the guard has settled.
        enter: The name of the savepoint's method that begins it.
        leave: The name of the one that ends it.
    """

    def __init__(self, terms: Terms, enter: str, leave: str) -> None:
        self._terms = terms
        self._store = cast("Any", terms.store)
        self._enter, self._leave = enter, leave

    def enter(self, flight: Flight) -> Steps[answers.Replayed | None]:
        """Claim the key inside a savepoint: None when it is ours to run, else what a duplicate is given."""
        terms = self._terms
        flight.aboard = ()
        flight.savepoint = self._store.savepoint(partial(_board, flight, current.get()))
        try:
            yield Request(getattr(flight.savepoint, self._enter))
        except IdempotencyError as raised:
            raise self._failed(flight, raised) from raised.__cause__
        take_over: bool | str = terms.take_over
        while True:
            flight.asked_at = time.monotonic()
            claim = yield from self._claim(flight, take_over)
            record = claim.record
            do = after_claim(claim, flight.fingerprint, terms.policy, own_call=inside(record.owner))
            if do is Do.RUN:
                flight.hold(record)
                flight.stands_until, flight.phase = math.inf, Phase.RUNNING
                if claim.took_over:
                    terms.teller.tell(EventKind.TAKEN_OVER, flight.key, record.attempt)
                return None
            if do is Do.REPLAY:
                yield from self._release(flight)
                return answers.concluded(flight, do, record)
            if do is Do.WAIT:  # to wait would be to hold the caller's locks
                raise answers.in_progress(terms, flight.key, record.attempt, 0.0)
            flight.owner = new_owner()
            if do is Do.CLAIM_ANEW:
                take_over = terms.take_over
                continue
            answer = (yield from self._probe(flight)) if do is Do.PROBE else None
            if answer is RERUN:
                take_over = record.owner
            elif isinstance(answer, Resolved):
                yield from self._keep(flight, record.owner, answer.value)
            else:
                raise answers.refusal(terms, flight.key, Do.REFUSE_DOUBT if do is Do.PROBE else do, record)

    def complete(self, flight: Flight) -> Steps[Any]:
        """Write what the function returned, and return it; the caller's commit makes both stand."""
        if flight.forked:
            flight.phase = Phase.ENDED
            raise answers.lease_lost(flight)
        outcome, kind = answers.encode_value(flight)
        try:
            stored = yield from self._write(flight, outcome)
        except ValueError as over:  # there is no transaction any more
            raise self._lost(flight) from over
        if stored:  # else the body itself has forgotten the key
            try:
                yield from self._release(flight)
            except LeaseLostError as over:
                raise self._lost(flight) from over
        return answers.completed(flight, kind, stored=stored)

    def _lost(self, flight: Flight) -> LeaseLostError:
        flight.phase = Phase.ENDED  # nothing is left to undo
        return answers.lease_lost(flight, _OVER)

    def settle(self, flight: Flight, error: BaseException) -> Steps[None]:
        """Undo claim and effect of a body that raised; the caller's transaction goes on."""
        # An interrupt may come before there is a savepoint.
        if not flight.forked and getattr(flight, "savepoint", None) is not None:
            try:
                yield self._undo(flight, error)
            except Exception as failed:  # noqa: BLE001 (whatever it is, the original is what is raised)
                self._terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=failed)
            else:
                if flight.attempt:
                    self._terms.teller.tell(EventKind.RELEASED, flight.key, flight.attempt, error=error)
        flight.phase = Phase.ENDED  # last: an undo that is interrupted is tried again

    def _release(self, flight: Flight) -> Steps[None]:
        """Leave the savepoint without an error."""
        # Whoever is interrupted from here on has record and effect, both: there is nothing to undo.
        savepoint, flight.savepoint = flight.savepoint, None
        try:
            yield Request(partial(getattr(savepoint, self._leave), None, None, None))
        except Exception:
            flight.savepoint = savepoint  # still to be undone
            raise
        flight.phase = Phase.ENDED

    def _undo(self, flight: Flight, error: BaseException) -> Request:
        leave = getattr(flight.savepoint, self._leave)
        return Request(partial(leave, type(error), error, error.__traceback__))

    def _claim(self, flight: Flight, take_over: bool | str) -> Steps[Claim]:
        policy = self._terms.policy
        claim = partial(
            self._store.claim,
            flight.key,
            owner=flight.owner,
            fingerprint=flight.fingerprint,
            lease=policy.lease,
            ttl=policy.ttl,
            take_over=take_over,
        )
        try:
            return answers.claimed((yield Request(claim)))
        except ValueError:  # there is no transaction to join: a mistake of the caller's
            raise
        except Exception as raised:  # noqa: BLE001 (it is told as one of our errors)
            error = self._failed(flight, raised)
            raise error from error.__cause__

    def _write(self, flight: Flight, outcome: bytes) -> Steps[bool]:
        ttl = self._terms.policy.ttl
        complete = partial(self._store.complete, flight.key, owner=flight.owner, outcome=outcome, ttl=ttl)
        try:
            return bool((yield Request(complete)))
        except ValueError:  # there is no transaction any more
            raise
        except Exception as raised:  # noqa: BLE001 (it is told as one of our errors)
            error = self._failed(flight, raised)
            raise error from error.__cause__

    def _failed(self, flight: Flight, raised: Exception) -> IdempotencyError:
        error = failure(raised)
        error.key = flight.key
        self._terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=error)
        return error

    def _probe(self, flight: Flight) -> Steps[Any]:
        terms, key = self._terms, flight.key
        try:
            answer = yield Request(partial(cast("Any", terms.policy.probe), key), of_store=False)
        except Exception as error:
            raise answers.probe_failed(terms, key) from error
        return answers.understood(terms, key, answer)

    def _keep(self, flight: Flight, owner: str, value: object) -> Steps[None]:
        """Keep what the probe found; the next claim replays it."""
        claim = yield from self._claim(flight, owner)
        if claim.acquired:
            flight.hold(claim.record)
            flight.value = value
            yield from self._write(flight, answers.encode_value(flight)[0])
            flight.let_go()
            flight.owner = new_owner()


def _board(flight: Flight, outer: Operation | None, connection: object) -> None:
    """Take note that the call opens a savepoint. They nest, and so must the calls of one transaction."""
    if not _open_calls.board(flight, outer, connection):
        flight.phase = Phase.ENDED
        raise RuntimeError(
            "another guarded call is open in this transaction: a connection or session is for one task or thread at a "
            "time, so let the calls follow one another"
        )
