"""The driver of coroutine functions, on every kind of store."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, cast

from idempo import answers, decisions
from idempo._owners import new_owner
from idempo.decisions import CLAIM_ANEW, PROBE, REPLAY, RUN, WAIT, Do, End, after_claim, after_error, agree, failure
from idempo.errors import IdempotencyError, InDoubtError, ResultNotStoredError, StoreError, StoreFullError
from idempo.flights import LOOK_AGAIN, Failure, Flight, Id, Phase
from idempo.hub import hub_of
from idempo.loops import LoopGroup, PooledStore, answered, begin_on, landed, loop_renewer, shielded, watching
from idempo.operation import current, inside, may_go_on, operation_of
from idempo.policy import RERUN, Resolved
from idempo.records import Claim, EventKind, Record
from idempo.terms import Terms, kept_near, shortcut


class AsyncDriver:
    """Runs one guard's or one function's calls."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._hub = hub_of(terms.store)
        self._async = inspect.iscoroutinefunction(terms.store.claim)
        self._direct = direct = not self._async and not getattr(terms.store, "blocking", True)
        self._store: Any = terms.store if self._async or direct else PooledStore(terms.store, self._hub)
        self._near = shortcut(terms.store, "near")  # it neither waits nor does I/O, whatever else the store does
        self._claim_new: Any = shortcut(terms.store, "claim_new") if direct else None

    async def run(
        self,
        id_: Id,
        fingerprint: bytes | None,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run the function once for this key, or give the first outcome."""
        if self._near is not None and (kept := kept_near(self._near, id_)) and agree(fingerprint, kept[0]):
            return answers.replay(self._terms, id_, *kept)
        flight = Flight(id_, fingerprint, self._terms)
        flight.task = asyncio.current_task()
        try:
            if self._claim_new is None or not self._hub.starts(flight, self._claim_new):
                replayed = await self.enter(flight)
                if replayed is not None:
                    return replayed.value
            outer = current.get()
            reset = current.set(operation_of(flight, outer))
            try:
                flight.value = await fn(*args, **kwargs)
                flight.returned = True
            finally:
                try:  # noqa: SIM105 (a context manager costs every call)
                    current.reset(reset)
                except ValueError:  # closed in another context, by the garbage collector: nothing to put back there
                    pass
            return await self.complete(flight)
        except BaseException as error:
            if not flight.over:
                await self.settle(flight, error)
            raise

    def at_hand(self, id_: Id, fingerprint: bytes | None) -> answers.Replayed | None:
        """Return what the short cut to completed records gives a block."""
        return None if self._near is None else answers.at_hand(self._terms, self._near, id_, fingerprint)

    # -- entering ------------------------------------------------------------------------------------------------

    async def enter(self, flight: Flight) -> answers.Replayed | None:
        """Claim the key: None when it is ours to run, else what a duplicate is given."""
        terms, started, waited, told = self._terms, time.monotonic(), False, False
        deadline = started + terms.policy.wait
        while True:
            found = self._hub.flights.seat(flight, time.monotonic())
            if found is not flight and not self._claims_for_itself(flight, found):
                waited = True
                end = await self._join(flight, found, started, deadline)
                if end is None:
                    continue
                if not told:
                    terms.teller.tell(EventKind.WAITED, flight.key, duration=time.monotonic() - started)
                    told = True
                answer = answers.given(flight, end)
                if answer is not None:
                    return answer
                continue
            return await self._lead(flight, started, deadline, waited=waited and not told)

    def _claims_for_itself(self, flight: Flight, found: Flight) -> bool:
        if found.end is not None:
            return False
        # A holder of this very task, or a plain one of this thread, cannot go on before we have ended.
        here = found.thread == threading.get_ident() and (found.task is None or found.task is flight.task)
        if here and found.phase is not Phase.VACANT and not may_go_on(found):
            flight.phase = Phase.ENDED
            raise answers.reentrant(flight.key)
        return self._terms.policy.wait == 0 and found.phase is not Phase.RUNNING

    async def _join(self, flight: Flight, found: Flight, started: float, deadline: float) -> Any:
        """Wait for another call of this process; None: look again."""
        if found.end is not None:
            self._renewer()  # one that was offered on a loop that is closed now is offered by this one's
            return found.end if isinstance(found.end, Record | Failure) else None
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        joined = self._hub.flights.join(found, loop, LoopGroup, woken)
        if joined is None:
            return None
        room, group = joined
        successor = None
        try:
            # While it claims, its lease is not known yet; whatever it is then, a look after one lease is in time.
            until = found.stands_until if found.phase is Phase.RUNNING else time.monotonic() + flight.terms.policy.lease
            group.wake_at(woken, min(deadline, until))
            await woken
            if time.monotonic() < deadline:
                successor = flight
        finally:
            leads = self._hub.flights.leave(room, group, woken, successor)
            group.left()
        return answers.left(flight, room, leads=leads, waited=time.monotonic() - started, deadline=deadline)

    async def _lead(self, flight: Flight, started: float, deadline: float, *, waited: bool) -> answers.Replayed | None:
        """Claim, and wait for calls elsewhere, until the key is ours or its outcome is known."""
        terms, flights = self._terms, self._hub.flights
        take_over: bool | str = terms.take_over
        polls = 0
        while True:
            claim = await self._claim(flight, take_over)
            if claim is answers.UNGUARDED:
                return None
            record = claim.record
            own = not claim.acquired and inside(record.owner)
            do = after_claim(claim, flight.fingerprint, terms.policy, own_call=own)
            if do is RUN:
                flight.hold(record)
                self._hub.begin(flight, self._renewer(), took_over=claim.took_over)
                return None
            if do is WAIT:
                flight.phase = Phase.WAITING
                if time.monotonic() >= deadline:
                    flights.vacate(flight)
                    raise answers.in_progress(terms, flight.key, record.attempt, time.monotonic() - started)
                waited, polls = True, polls + 1
                await self._wait(flight, record, deadline, polls)
                flight.phase = Phase.CLAIMING  # from here on it may hold the key
            elif do is PROBE:
                answer = await self._probe(flight)
                if isinstance(answer, Resolved) or answer is RERUN:
                    take_over = record.owner
                    flight.owner = new_owner()
                    if isinstance(answer, Resolved):
                        if not await self._resolve(flight, take_over, answer.value):
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

    async def _probe(self, flight: Flight) -> Any:
        terms, key = self._terms, flight.key
        try:
            try:
                answer = cast("Any", terms.policy.probe)(key)
                answer = await answer if inspect.isawaitable(answer) else answer
            except Exception as error:
                raise answers.probe_failed(terms, key) from error
            return answers.understood(terms, key, answer)
        except InDoubtError as failed:
            self._hub.flights.finish(flight, Failure(failed))
            raise

    async def _resolve(self, flight: Flight, owner: str, value: object) -> bool:
        """Keep what the probe found, if the record is still the one that it looked at; False: no store took it."""
        flight.probed = True
        claim = await self._claim(flight, owner)
        if claim is answers.UNGUARDED or (claim.acquired and not await self._keep_found(flight, claim, value)):
            self._hub.flights.finish(flight, LOOK_AGAIN)
            return False
        flight.let_go()
        return True

    async def _keep_found(self, flight: Flight, claim: Claim, value: object) -> bool:
        """Complete what was claimed for a probe; False: the store fails, and the policy is to do without it."""
        flight.hold(claim.record)
        flight.value = value
        outcome, _ = answers.encode_value(flight)
        ttl = self._terms.policy.ttl
        try:
            await answered(self._store.complete(flight.key, owner=flight.owner, outcome=outcome, ttl=ttl))
        except Exception as error:
            error = failure(error)
            error.key = flight.key
            self._terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=error)
            if self._terms.policy.store_errors == "raise":
                raise error  # noqa: TRY201 (it may be another than was caught)
            await self._release_unanswered(flight)
            return False
        return True

    async def _claim(self, flight: Flight, take_over: bool | str) -> answers.Claimed:
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
                return answers.claimed(claim if isinstance(claim, Claim) else await answered(claim), flight)
            except Exception as error:
                error = failure(error)
                if isinstance(error, StoreError):
                    if not last and not isinstance(error, StoreFullError):
                        continue
                    if answers.runs_unguarded(flight, error):
                        return answers.UNGUARDED
                    await self._release_unanswered(flight)
                error.key = flight.key
                self._hub.flights.finish(flight, Failure(error))
                raise error  # noqa: TRY201 (it may be another than was caught)
        raise AssertionError("unreachable")  # pragma: no cover (the last round returns or raises)

    async def _release_unanswered(self, flight: Flight) -> None:
        """Nothing ran: a claim that arrived all the same must not keep the key."""
        policy = self._terms.policy
        with suppress(Exception):  # the claim's own error is raised; if it arrived, its lease runs out
            if flight.probed:  # the effect has happened: who comes next is to ask the probe, not to run
                await answered(self._store.renew(flight.key, owner=flight.owner, lease=0.0, ttl=policy.ttl))
            else:
                await answered(self._store.release(flight.key, owner=flight.owner, ttl=policy.lease))

    async def _wait(self, flight: Flight, record: Record, deadline: float, polls: int) -> None:
        """Wait for a change of the record, for the end of its lease, or for the deadline."""
        woken, loop = asyncio.Event(), asyncio.get_running_loop()
        entered, ended_by = False, None

        async def rest(*, watched: bool) -> None:
            seconds = decisions.pause(polls, record.lease_left, deadline - time.monotonic(), watched=watched)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await woken.wait()

        if hasattr(self._terms.store, "watch"):
            wake = partial(loop.call_soon_threadsafe, woken.set)
            with suppress(Exception):  # of the watch alone: then a notification was lost
                async with watching(self._terms.store, flight.key, wake, self._hub):
                    entered = True
                    try:
                        changed = await self._look(flight, record)
                        if not changed:
                            await rest(watched=changed is False)
                    except BaseException as error:
                        ended_by = error
                        raise
            if ended_by is not None:  # the watch failed on top of it
                raise ended_by
        if not entered:
            await rest(watched=False)

    async def _look(self, flight: Flight, record: Record) -> bool | None:
        """Say whether the record has changed before it was watched; None: who knows."""
        try:
            return decisions.changed_since(record, await answered(self._store.get(flight.key)))
        except Exception:  # noqa: BLE001 (the claim that follows meets it too, and tells it)
            return None

    def _renewer(self) -> Any:
        return loop_renewer(self._hub) if self._async else self._hub.renewer

    # -- leaving -------------------------------------------------------------------------------------------------

    async def complete(self, flight: Flight) -> Any:
        """Store what the function returned, and return it."""
        try:
            outcome, kind = answers.encode_value(flight)
        except ResultNotStoredError as error:  # the claim is not released: its effect has happened
            self._renewer().remove(flight)
            self._hub.flights.finish(flight, Failure(error))
            raise
        stored = await self._store_outcome(flight, outcome)
        return answers.completed(flight, kind, stored=stored)

    async def _store_outcome(self, flight: Flight, outcome: bytes) -> bool | Exception:
        """Say whether the outcome stands; the store's last error where it did not take it while the lease lived."""
        if flight.forked:
            flight.phase = Phase.ENDED
            return False
        self._renewer().remove(flight)
        while True:
            try:
                stored = await answered(
                    self._store.complete(flight.key, owner=flight.owner, outcome=outcome, ttl=self._terms.policy.ttl)
                )
            except Exception as error:  # noqa: BLE001 (whatever it is, the caller gets the value)
                error = failure(error)
                if answers.is_stored_later(flight, error):
                    await asyncio.sleep(decisions.COMPLETE_RETRY)
                    continue
                self._terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=error)
                offering = self._renewer().offer(flight, outcome)
                self._hub.flights.finish(flight, None, outcome=outcome, offering=offering)
                return error
            if stored or not flight.attempt:  # unguarded, it holds nothing that could be lost
                self._hub.flights.finish(flight, None, outcome=outcome)
            else:
                self._hub.lost(flight)
            return bool(stored)

    async def settle(self, flight: Flight, error: BaseException) -> None:
        """End a claim whose function raised, or that was interrupted at any point."""
        if flight.forked:
            flight.phase = Phase.ENDED
        elif isinstance(error, GeneratorExit) and not self._direct:
            self._settle_closed(flight, error)
        else:
            try:
                await self._settled(flight, error)
            except BaseException:  # an interrupt, or the end of `asyncio.run`, which cancels the task below as well
                if not flight.over:
                    await self._settled(flight, error)
                raise

    def _settled(self, flight: Flight, error: BaseException) -> Awaitable[None]:
        step = self._settle(flight, error)
        return step if self._direct else shielded(step)  # who is cancelled once may be cancelled at every await

    async def _settle(self, flight: Flight, error: BaseException) -> None:
        self._renewer().remove(flight)
        await self._tell_store(flight, error, flight.phase)
        if not flight.over:  # not in a `finally`: where this was interrupted, it is done again
            if isinstance(error, Exception):
                self._hub.flights.finish(flight, Failure(error))
            else:
                self._hub.flights.vacate(flight)

    async def _tell_store(self, flight: Flight, error: BaseException, phase: Phase) -> None:
        try:
            if flight.returned:
                await self.complete(flight)
            elif phase is Phase.RUNNING:
                await self._end(flight, error)
            elif phase is Phase.CLAIMING and flight.asked_at:
                await self._release_unanswered(flight)
        except IdempotencyError:
            pass  # told; the original is what is raised
        except Exception as failed:  # noqa: BLE001 (a store's bug, and still the original is raised)
            self._terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=failed)

    def _settle_closed(self, flight: Flight, error: BaseException) -> None:
        """End a claim whose coroutine is being closed, and so can wait for nothing: its loop tells the store."""
        self._hub.stop_renewing(flight)
        phase, loop = flight.phase, cast("Any", flight.task).get_loop()
        self._hub.flights.vacate(flight)
        begin_on(loop, lambda: self._tell_store(flight, error, phase))

    async def _end(self, flight: Flight, error: BaseException) -> None:
        terms, key = self._terms, flight.key
        end = after_error(error, terms.policy)
        if end is End.COMPLETE:
            outcome, kind = answers.encode_error(flight, error)
            if await self._store_outcome(flight, outcome) is True:
                terms.teller.tell(kind, key, flight.attempt, error=error)
            return
        for last in (False, True):
            try:
                if end is End.RELEASE:
                    held = await answered(self._store.release(key, owner=flight.owner, ttl=terms.policy.lease))
                else:
                    await landed(flight, self._renewer(), self._hub)
                    held = await answered(self._store.renew(key, owner=flight.owner, lease=0.0, ttl=terms.policy.ttl))
            except Exception as raised:  # noqa: BLE001 (the original is what is raised)
                if last:
                    terms.teller.tell(EventKind.STORE_FAILED, key, flight.attempt, error=failure(raised))
            else:
                answers.left_behind(flight, end, error, held=held)
                return
