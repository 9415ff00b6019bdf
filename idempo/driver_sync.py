"""The driver of plain functions on sync stores: it asks what to do, and does it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import CoroutineType
from typing import Any, cast

from idempo import answers, decisions
from idempo._owners import new_owner
from idempo.decisions import CLAIM_ANEW, PROBE, REPLAY, RUN, WAIT, Do, End, after_claim, after_error, agree, failure
from idempo.errors import IdempotencyError, InDoubtError, ResultNotStoredError, StoreError, StoreFullError
from idempo.flights import LOOK_AGAIN, Failure, Flight, Id, Phase, ThreadGroup
from idempo.hub import hub_of
from idempo.operation import current, inside, may_go_on, operation_of, running_loop
from idempo.policy import RERUN, Resolved
from idempo.protocols import Store, WatchableStore
from idempo.records import Claim, EventKind, Record
from idempo.terms import Terms, shortcut


class SyncDriver:
    """Runs one guard's or one function's calls."""

    def __init__(self, terms: Terms) -> None:
        if not terms.take_over:
            answers.check_probe(terms)
        self._terms = terms
        self._store = cast("Store", terms.store)
        self._hub = hub_of(terms.store)
        self._near = shortcut(terms.store, "near")
        self._claim_new = shortcut(terms.store, "claim_new")

    def run(
        self,
        id_: Id,
        fingerprint: bytes | None,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run the function once for this key, or give the first outcome."""
        if self._near is not None:
            try:  # as `kept_near` does, without the call: this is the shortest way there is
                kept = self._near(*id_)
            except Exception:  # noqa: BLE001 (a short cut, and no more; the claim says what there is)
                kept = None
            if kept is not None and agree(fingerprint, kept[0]):
                return answers.replay(self._terms, id_, *kept)
        flight = Flight(id_, fingerprint, self._terms)
        try:
            if self._claim_new is None or not self._hub.starts(flight, self._claim_new):
                replayed = self.enter(flight)
                if replayed is not None:
                    return replayed.value
            outer = current.get()
            try:
                # No `reset` by a token: an interrupt could come between the setting and the keeping of the token.
                current.set(operation_of(flight, outer))
                flight.value, flight.returned = fn(*args, **kwargs), True
            finally:
                current.set(outer)
            if type(flight.value) is CoroutineType:
                flight.returned = False
                raise answers.coroutine_returned(fn, flight.value)
            return self.complete(flight)
        except BaseException as error:
            try:
                self.end(flight, error)
            except BaseException:  # an interrupt in the midst of it: each of its steps may be made again
                self.end(flight, error)
                raise
            raise

    def at_hand(self, id_: Id, fingerprint: bytes | None) -> answers.Replayed | None:
        """Return what the short cut to completed records gives a block."""
        return None if self._near is None else answers.at_hand(self._terms, self._near, id_, fingerprint)

    # -- entering ------------------------------------------------------------------------------------------------

    def enter(self, flight: Flight) -> answers.Replayed | None:
        """Claim the key: None when it is ours to run, else what a duplicate is given."""
        terms, started, waited, told = self._terms, time.monotonic(), False, False
        deadline = started + terms.policy.wait
        while True:
            found = self._hub.flights.seat(flight, time.monotonic())
            if found is not flight and not self._claims_for_itself(flight, found):
                waited = True
                end = self._join(flight, found, started, deadline)
                if end is None:
                    continue
                if not told:
                    terms.teller.tell(EventKind.WAITED, flight.key, duration=time.monotonic() - started)
                    told = True
                answer = answers.given(flight, end)
                if answer is not None:
                    return answer
                continue
            return self._lead(flight, started, deadline, waited=waited and not told)

    def _claims_for_itself(self, flight: Flight, found: Flight) -> bool:
        if found.end is not None:
            return False
        # Who waits here stops this thread, and an event loop that runs on it.
        here = found.thread == threading.get_ident() and (running_loop() is not None or not may_go_on(found))
        if here and found.phase in (Phase.CLAIMING, Phase.RUNNING):
            flight.phase = Phase.ENDED
            raise answers.reentrant(flight.key)
        return here or (self._terms.policy.wait == 0 and found.phase is not Phase.RUNNING)

    def _join(self, flight: Flight, found: Flight, started: float, deadline: float) -> Any:
        """Wait for another call of this process; None: look again."""
        if found.end is not None:
            return found.end if isinstance(found.end, Record | Failure) else None
        flights, woken = self._hub.flights, threading.Event()
        try:
            joined = flights.join(found, None, ThreadGroup, woken)
            if joined is None:
                return None
            room, group = joined
            while room.end is None and (leader := room.leader) is not None and (now := time.monotonic()) < deadline:
                # A claim that is still to be answered stands at least for its lease; nobody tells when it was.
                until = leader.stands_until if leader.phase is Phase.RUNNING else now + leader.terms.policy.lease
                if now >= until or not woken.wait(min(until, deadline) - now):
                    break  # and look: a leader may have stopped, with its event loop, and told nobody
                woken.clear()
            leads = flights.leave(room, group, woken, flight if time.monotonic() < deadline else None)
        except BaseException:  # an interrupt, at whatever point: the turn of another must not be lost with this waiter
            flights.abandon(found, None, woken)
            raise
        return answers.left(flight, room, leads=leads, waited=time.monotonic() - started, deadline=deadline)

    def _lead(self, flight: Flight, started: float, deadline: float, *, waited: bool) -> answers.Replayed | None:
        """Claim, and wait for calls elsewhere, until the key is ours or its outcome is known."""
        terms, flights = self._terms, self._hub.flights
        take_over: bool | str = terms.take_over
        polls = 0
        while True:
            claim = self._claim(flight, take_over)
            if claim is answers.UNGUARDED:
                return None
            record = claim.record
            own = not claim.acquired and inside(record.owner)
            do = after_claim(claim, flight.fingerprint, terms.policy, own_call=own)
            if do is RUN:
                flight.hold(record)
                self._hub.begin(flight, self._hub.renewer, took_over=claim.took_over)
                return None
            if do is WAIT:
                flight.phase = Phase.WAITING
                if time.monotonic() >= deadline:
                    flights.vacate(flight)
                    raise answers.in_progress(terms, flight.key, record.attempt, time.monotonic() - started)
                waited, polls = True, polls + 1
                self._wait(flight, record, deadline, polls)
                flight.phase = Phase.CLAIMING  # from here on it may hold the key
            elif do is PROBE:
                answer = self._probe(flight)
                if isinstance(answer, Resolved) or answer is RERUN:
                    take_over = record.owner
                    flight.owner = new_owner()
                    if isinstance(answer, Resolved):
                        if not self._resolve(flight, take_over, answer.value):
                            return answers.Replayed(answer.value, record.attempt, record.token)
                        take_over = terms.take_over
                else:
                    flights.finish(flight, record)
                    raise answers.refusal(terms, flight.key, Do.REFUSE_DOUBT, record)
            elif do is CLAIM_ANEW:
                flight.owner = new_owner()
                take_over = terms.take_over
            else:
                flights.finish(flight, record)
                if waited and do is REPLAY:
                    terms.teller.tell(EventKind.WAITED, flight.key, record.attempt, time.monotonic() - started)
                return answers.concluded(flight, do, record)

    def _probe(self, flight: Flight) -> Any:
        try:
            return answers.probed(self._terms, flight.key)
        except InDoubtError as error:
            self._hub.flights.finish(flight, Failure(error))
            raise

    def _resolve(self, flight: Flight, owner: str, value: object) -> bool:
        """Keep what the probe found, if the record is still the one that it looked at; False: no store took it."""
        flight.probed = True
        claim = self._claim(flight, owner)
        if claim is answers.UNGUARDED or (claim.acquired and not self._keep_found(flight, claim, value)):
            self._hub.flights.finish(flight, LOOK_AGAIN)
            return False
        flight.let_go()
        return True

    def _keep_found(self, flight: Flight, claim: Claim, value: object) -> bool:
        """Complete what was claimed for a probe; False: the store fails, and the policy is to do without it."""
        flight.hold(claim.record)
        flight.value = value
        outcome, _ = answers.encode_value(flight)
        try:
            self._store.complete(flight.key, owner=flight.owner, outcome=outcome, ttl=self._terms.policy.ttl)
        except Exception as error:
            error = failure(error)
            error.key = flight.key
            self._terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=error)
            if self._terms.policy.store_errors == "raise":
                raise error  # noqa: TRY201 (it may be another than was caught)
            self._release_unanswered(flight)
            return False
        return True

    def _claim(self, flight: Flight, take_over: bool | str) -> answers.Claimed:
        """Ask the store, once more where it failed."""
        policy = self._terms.policy
        for last in (False, True):
            flight.asked_at = time.monotonic()
            try:
                claim = self._store.claim(
                    flight.key,
                    owner=flight.owner,
                    fingerprint=flight.fingerprint,
                    lease=policy.lease,
                    ttl=policy.ttl,
                    take_over=take_over,
                )
                return answers.claimed(claim, flight)
            except Exception as error:
                error = failure(error)
                if isinstance(error, StoreError):
                    if not last and not isinstance(error, StoreFullError):
                        continue
                    if answers.runs_unguarded(flight, error):
                        return answers.UNGUARDED
                    self._release_unanswered(flight)
                error.key = flight.key
                self._hub.flights.finish(flight, Failure(error))
                raise error  # noqa: TRY201 (it may be another than was caught)
        raise AssertionError("unreachable")  # pragma: no cover (the last round returns or raises)

    def _release_unanswered(self, flight: Flight) -> None:
        """Nothing ran: a claim that arrived all the same must not keep the key."""
        policy = self._terms.policy
        with suppress(Exception):  # the claim's own error is raised; if it arrived, its lease runs out
            if flight.probed:  # the effect has happened: who comes next is to ask the probe, not to run
                self._store.renew(flight.key, owner=flight.owner, lease=0.0, ttl=policy.ttl)
            else:
                self._store.release(flight.key, owner=flight.owner, ttl=policy.lease)

    def _wait(self, flight: Flight, record: Record, deadline: float, polls: int) -> None:
        """Wait for a change of the record, for the end of its lease, or for the deadline."""
        woken, entered, ended_by = threading.Event(), False, None

        def rest(*, watched: bool) -> None:
            woken.wait(decisions.pause(polls, record.lease_left, deadline - time.monotonic(), watched=watched))

        if hasattr(self._store, "watch"):
            watchable = cast("WatchableStore", self._store)
            # What fails is the watch alone: a notification that was lost.
            with suppress(Exception), watchable.watch(flight.key, woken.set):
                entered = True
                try:
                    changed = self._look(flight, record)
                    if not changed:
                        rest(watched=changed is False)
                except BaseException as error:
                    ended_by = error
                    raise
            if ended_by is not None:  # the watch failed on top of it
                raise ended_by
        if not entered:
            rest(watched=False)

    def _look(self, flight: Flight, record: Record) -> bool | None:
        """Say whether the record has changed before it was watched; None: who knows."""
        try:
            return decisions.changed_since(record, self._store.get(flight.key))
        except Exception:  # noqa: BLE001 (the claim that follows meets it too, and tells it)
            return None

    # -- leaving -------------------------------------------------------------------------------------------------

    def complete(self, flight: Flight) -> Any:
        """Store what the function returned, and return it."""
        try:
            outcome, kind = answers.encode_value(flight)
        except ResultNotStoredError as error:  # the claim is not released: its effect has happened
            self._hub.renewer.remove(flight)
            self._hub.flights.finish(flight, Failure(error))
            raise
        stored = self._store_outcome(flight, outcome)
        return answers.completed(flight, kind, stored=stored)

    def _store_outcome(self, flight: Flight, outcome: bytes) -> bool | Exception:
        """Say whether the outcome stands; the store's last error where it did not take it while the lease lived."""
        if flight.forked:
            flight.phase = Phase.ENDED
            return False
        self._hub.renewer.remove(flight)
        while True:
            try:
                stored = self._store.complete(
                    flight.key, owner=flight.owner, outcome=outcome, ttl=self._terms.policy.ttl
                )
            except Exception as error:  # noqa: BLE001 (whatever it is, the caller gets the value)
                error = failure(error)
                if answers.is_stored_later(flight, error):
                    time.sleep(decisions.COMPLETE_RETRY)
                    continue
                self._terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=error)
                offering = self._hub.renewer.offer(flight, outcome)
                self._hub.flights.finish(flight, None, outcome=outcome, offering=offering)
                return error
            if stored or not flight.attempt:  # unguarded, it holds nothing that could be lost
                self._hub.flights.finish(flight, None, outcome=outcome)
            else:
                self._hub.lost(flight)
            return bool(stored)

    def end(self, flight: Flight, error: BaseException) -> None:
        """`settle`, if that is still to be done."""
        if not flight.over:
            self.settle(flight, error)

    def settle(self, flight: Flight, error: BaseException) -> None:
        """End a claim whose function raised, or that was interrupted at any point."""
        if flight.forked:
            flight.phase = Phase.ENDED
            return
        self._hub.renewer.remove(flight)
        try:
            if flight.returned:
                self.complete(flight)
            elif flight.phase is Phase.RUNNING:
                self._end(flight, error)
            elif flight.phase is Phase.CLAIMING and flight.asked_at:
                self._release_unanswered(flight)
        except IdempotencyError:
            pass  # told; the original is what is raised
        except Exception as failed:  # noqa: BLE001 (a store's bug, and still the original is raised)
            self._terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=failed)
        if not flight.over:  # not in a `finally`: where this was interrupted, it is done again
            if isinstance(error, Exception):
                self._hub.flights.finish(flight, Failure(error))
            else:
                self._hub.flights.vacate(flight)

    def _end(self, flight: Flight, error: BaseException) -> None:
        terms, key = self._terms, flight.key
        end = after_error(error, terms.policy)
        if end is End.COMPLETE:
            outcome, kind = answers.encode_error(flight, error)
            if self._store_outcome(flight, outcome) is True:
                terms.teller.tell(kind, key, flight.attempt, error=error)
            return
        for last in (False, True):
            try:
                if end is End.RELEASE:
                    held = self._store.release(key, owner=flight.owner, ttl=terms.policy.lease)
                else:
                    self._hub.renewer.land(flight)
                    held = self._store.renew(key, owner=flight.owner, lease=0.0, ttl=terms.policy.ttl)
            except Exception as raised:  # noqa: BLE001 (the original is what is raised)
                if last:
                    terms.teller.tell(EventKind.STORE_FAILED, key, flight.attempt, error=failure(raised))
            else:
                answers.left_behind(flight, end, error, held=held)
                return
