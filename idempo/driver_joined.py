"""The driver of plain functions whose record is written in the caller's own transaction.

There is nothing to renew, to wait for or to try again: other transactions see the record when the caller commits, and
a failing body takes its claim along when its savepoint is rolled back.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final, cast

from idempo import answers
from idempo._owners import new_owner
from idempo.decisions import Do, after_claim, failure
from idempo.driver_sync import SyncDriver
from idempo.errors import IdempotencyError, LeaseLostError
from idempo.flights import Flight, Phase
from idempo.operation import inside
from idempo.policy import RERUN, Resolved
from idempo.protocols import TransactionalStore
from idempo.records import Claim, EventKind
from idempo.terms import Terms

_OVER: Final = (
    "the function itself committed or rolled back the transaction that was joined: its effect may stand without an"
    " outcome, and the next call is told that it is in progress, then in doubt"
)


class JoinedDriver(SyncDriver):
    """Runs calls in the transaction that a `TransactionalStore` has joined."""

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self._transaction = cast("TransactionalStore", terms.store)
        self._near = self._claim_new = None  # a short cut would go past the savepoint

    def enter(self, flight: Flight) -> answers.Replayed | None:
        """Claim the key inside a savepoint: None when it is ours to run, else what a duplicate is given."""
        terms = self._terms
        flight.savepoint = self._transaction.savepoint()
        flight.savepoint.__enter__()
        take_over: bool | str = terms.take_over
        while True:
            flight.asked_at = time.monotonic()
            claim = self._claim_once(flight, take_over)
            record = claim.record
            do = after_claim(claim, flight.fingerprint, terms.policy, own_call=inside(record.owner))
            if do is Do.RUN:
                flight.hold(record)
                flight.stands_until, flight.phase = math.inf, Phase.RUNNING
                if claim.took_over:
                    terms.teller.tell(EventKind.TAKEN_OVER, flight.key, record.attempt)
                return None
            if do is Do.REPLAY:
                self._release_savepoint(flight)
                return answers.concluded(flight, do, record)
            if do is Do.WAIT:  # to wait would be to hold the caller's locks
                raise answers.in_progress(terms, flight.key, record.attempt, 0.0)
            flight.owner = new_owner()
            if do is Do.CLAIM_ANEW:
                take_over = terms.take_over
                continue
            answer = answers.probed(terms, flight.key) if do is Do.PROBE else None
            if answer is RERUN:
                take_over = record.owner
            elif isinstance(answer, Resolved):
                self._keep(flight, record.owner, answer.value)
            else:
                raise answers.refusal(terms, flight.key, Do.REFUSE_DOUBT if do is Do.PROBE else do, record)

    def complete(self, flight: Flight) -> Any:
        """Write what the function returned, and return it; the caller's commit makes both stand."""
        if flight.forked:
            flight.phase = Phase.ENDED
            raise answers.lease_lost(flight)
        outcome, kind = answers.encode_value(flight)
        try:
            stored = self._write(flight, outcome)
            if stored:  # else the body itself has forgotten the key
                self._release_savepoint(flight)
        except (LeaseLostError, ValueError) as over:
            flight.phase = Phase.ENDED  # nothing is left to undo
            raise answers.lease_lost(flight, _OVER) from over
        return answers.completed(flight, kind, stored=stored)

    def settle(self, flight: Flight, error: BaseException) -> None:
        """Undo claim and effect of a body that raised; the caller's transaction goes on."""
        savepoint = getattr(flight, "savepoint", None)  # an interrupt may come before there is one
        if not flight.forked and savepoint is not None:
            try:
                savepoint.__exit__(type(error), error, error.__traceback__)
            except IdempotencyError as failed:
                self._terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=failed)
            else:
                if flight.attempt:
                    self._terms.teller.tell(EventKind.RELEASED, flight.key, flight.attempt, error=error)
        flight.phase = Phase.ENDED  # last: an undo that is interrupted is tried again

    def _claim_once(self, flight: Flight, take_over: bool | str) -> Claim:
        policy = self._terms.policy
        try:
            claim = self._store.claim(
                flight.key,
                owner=flight.owner,
                fingerprint=flight.fingerprint,
                lease=policy.lease,
                ttl=policy.ttl,
                take_over=take_over,
            )
            return answers.claimed(claim)
        except ValueError:  # there is no transaction to join: a mistake of the caller's
            raise
        except Exception as raised:  # noqa: BLE001 (it is told as one of our errors)
            error = self._failed(flight, raised)
            raise error from error.__cause__

    def _write(self, flight: Flight, outcome: bytes) -> bool:
        try:
            return bool(
                self._store.complete(flight.key, owner=flight.owner, outcome=outcome, ttl=self._terms.policy.ttl)
            )
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

    def _keep(self, flight: Flight, owner: str, value: object) -> None:
        """Keep what the probe found; the next claim replays it."""
        claim = self._claim_once(flight, owner)
        if claim.acquired:
            flight.hold(claim.record)
            flight.value = value
            self._write(flight, answers.encode_value(flight)[0])
            flight.let_go()
            flight.owner = new_owner()

    def _release_savepoint(self, flight: Flight) -> None:
        flight.savepoint.__exit__(None, None, None)
        flight.phase = Phase.ENDED
