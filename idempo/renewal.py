"""Renewal: leases stand while functions run, and outcomes that a store would not take are offered again.

One thread per store serves every call of it; stores that never block share one. A store that hangs delays no other's.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final, cast

from idempo.decisions import failure
from idempo.flights import Flight
from idempo.protocols import Store
from idempo.records import EventKind

_IDLE: Final = 10.0  # seconds until a renewer with nothing to do ends
_FIRST_RETRY: Final = 0.5  # seconds until an outcome is offered again; doubled each time
_LAST_RETRY: Final = 30.0
_SLACK: Final = 0.1  # of the interval: calls due this soon are renewed in the same round
MAX_OFFERS: Final = 1000


class Schedule:
    """Which flights are due for renewal, and what follows from the store's answers. Does no I/O itself."""

    def __init__(self, lost: Callable[[Flight], None], settled: Callable[[Flight], None]) -> None:
        self._flights: dict[str, Flight] = {}
        self._alarm = -math.inf
        """What is due before this point in time needs a call to `_wake`; a bare schedule is looked at by its user."""
        self._lost = lost
        self._settled = settled

    def __bool__(self) -> bool:
        return bool(self._flights)

    def __contains__(self, flight: Flight) -> bool:
        return flight.owner in self._flights

    def add(self, flight: Flight) -> None:
        """Renew this flight's lease until it is removed, or has run for ``max_run``."""
        policy = flight.terms.policy
        flight.renew_until = flight.asked_at + policy.max_run
        flight.renew_at = flight.asked_at + policy.lease / 3
        self._flights[flight.owner] = flight
        if flight.renew_at < self._alarm:
            self._wake(flight.renew_at)

    def remove(self, flight: Flight) -> None:
        """Renew this flight no more; an answer that is still on its way changes nothing."""
        self._flights.pop(flight.owner, None)

    def offer(self, flight: Flight, outcome: bytes) -> bool:
        """Offer the outcome to the store until it takes it, refuses it, or the ttl is over; False when too many are."""
        if sum(other.offer is not None for other in list(self._flights.values())) >= MAX_OFFERS:
            return False
        now = time.monotonic()
        flight.offer = outcome
        flight.renew_until = now + flight.terms.policy.ttl
        flight.renew_at = now + _FIRST_RETRY
        self._flights[flight.owner] = flight
        if flight.renew_at < self._alarm:
            self._wake(flight.renew_at)
        return True

    def adopt(self, other: Schedule) -> None:
        """Go on with the outcomes that were offered by another schedule, which nobody serves any more."""
        self._flights.update({owner: flight for owner, flight in other._flights.items() if flight.offer is not None})

    def due(self, now: float) -> list[Flight]:
        """Return the flights to renew now, and let go of those that are over."""
        due = []
        for flight in list(self._flights.values()):
            slack = 0.0 if flight.offer is not None else flight.terms.policy.lease / 3 * _SLACK
            if flight.renew_at > now + slack:
                continue
            if now >= flight.renew_until or (flight.offer is None and flight.abandoned):
                self.remove(flight)
                if flight.offer is not None:
                    self._settled(flight)
            else:
                due.append(flight)
        return due

    def next_at(self) -> float:
        """When the next flight is due."""
        return min((flight.renew_at for flight in list(self._flights.values())), default=math.inf)

    def answered(self, flight: Flight, offer: bytes | None, sent: float, answer: bool | BaseException) -> None:
        """Act on the answer to a renewal, or to this offer; one that comes too late says nothing."""
        if flight not in self or flight.offer is not offer:
            return
        now = time.monotonic()
        if isinstance(answer, BaseException):
            flight.terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=answer)
            if flight.offer is None:
                flight.renew_at = now + flight.terms.policy.lease / 10
            else:
                waited = now - (flight.renew_until - flight.terms.policy.ttl)
                flight.renew_at = now + min(_LAST_RETRY, max(_FIRST_RETRY, waited))
        elif flight.offer is not None:
            self.remove(flight)
            self._settled(flight)
            kind = flight.kind if answer else EventKind.LEASE_LOST
            flight.terms.teller.tell(kind, flight.key, flight.attempt)
        elif answer:
            flight.stands_until = sent + flight.terms.policy.lease
            flight.renew_at = sent + flight.terms.policy.lease / 3
        else:
            self.remove(flight)
            flight.stands_until = 0.0
            self._lost(flight)
            flight.terms.teller.tell(EventKind.LEASE_LOST, flight.key, flight.attempt)

    def _wake(self, due: float) -> None:
        """See to it that somebody looks at what is due by then."""
        raise NotImplementedError  # pragma: no cover (abstract)


class Renewer(Schedule):
    """Renews the leases of a sync store's flights from a thread that starts when needed and ends when idle."""

    def __init__(self, lost: Callable[[Flight], None], settled: Callable[[Flight], None]) -> None:
        super().__init__(lost, settled)
        self._alarm = math.inf
        self._changed = threading.Condition()
        self._asked_for = math.inf
        """When the earliest of the flights that have asked for a look is due."""
        self._thread: threading.Thread | None = None
        self._busy_with: Flight | None = None

    def land(self, flight: Flight) -> None:
        """Wait until no renewal of this removed flight is under way, at most for its lease."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy_with is not flight, flight.terms.policy.lease)

    def _wake(self, due: float) -> None:
        with self._changed:
            self._asked_for = min(self._asked_for, due)
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="idempo-renewer", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads, or the interpreter ends: the lease then runs out
                    return
                self._thread = thread
            self._changed.notify_all()

    def _work(self) -> None:
        with self._changed:
            if self._thread is not threading.current_thread():
                return  # whoever started it was interrupted, and could not say so
        idle_at = time.monotonic() + _IDLE
        while True:
            # Set to never before the scan: every flight that is added behind it then sounds the alarm.
            self._alarm = math.inf
            now = time.monotonic()
            for flight in self.due(now):
                try:
                    self._renew(flight)
                except BaseException as error:  # noqa: BLE001 (an observer that exits must not end others' renewal)
                    flight.terms.teller.trouble("the renewer", error)
            with self._changed:
                now = time.monotonic()
                if self:
                    idle_at = now + _IDLE
                elif now >= idle_at:
                    self._thread = None  # and the alarm is set to never: whoever comes next wakes another
                    return
                if self._asked_for <= now:
                    self._asked_for = math.inf
                # Also where that flight has ended already: else each of many short calls would wake the thread anew.
                self._alarm = min(self.next_at(), idle_at, self._asked_for)
                self._changed.wait(max(0.0, self._alarm - now))

    def _renew(self, flight: Flight) -> None:
        store, policy = cast("Store", flight.terms.store), flight.terms.policy
        with self._changed:
            self._busy_with = flight
        sent, offer = time.monotonic(), flight.offer
        answer: bool | BaseException
        try:
            if flight not in self:
                return
            if offer is not None:
                answer = store.complete(flight.key, owner=flight.owner, outcome=offer, ttl=policy.ttl)
            else:
                answer = store.renew(flight.key, owner=flight.owner, lease=policy.lease, ttl=policy.ttl)
        except Exception as error:  # noqa: BLE001 (a store's bug must not end the renewal of its other calls)
            answer = failure(error)
        finally:
            with self._changed:
                self._busy_with = None
                self._changed.notify_all()
        self.answered(flight, offer, sent, answer)
