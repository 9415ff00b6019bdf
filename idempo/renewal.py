"""Renewal: leases stand while functions run, and outcomes that a store would not take are offered again.

One thread per store looks what is due, and asks the store itself where that never blocks (such stores share one), or
else lets a crew of a few threads ask it, so that a request that hangs holds up no other. All of them end when idle.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
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
_AT_ONCE: Final = 8  # renewals of one blocking store under way


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


class Crew:
    """Threads that renew leases of one store, several at once; started when they are needed, ended when idle.

    Args:
        renew: Asks the store, for one flight. Raises nothing.
        renewed: Is told when a flight is under way no more.
    """

    def __init__(self, renew: Callable[[Flight], None], renewed: Callable[[Flight], None]) -> None:
        self._renew = renew
        self._renewed = renewed
        self._handed = threading.Condition()
        self._waiting: deque[Flight] = deque()
        self._under_way: set[str] = set()
        self._threads = 0
        self._free = 0

    def __contains__(self, flight: Flight) -> bool:
        """Whether a renewal of this flight is under way, or waits for a thread."""
        return flight.owner in self._under_way

    def take(self, flights: Iterable[Flight]) -> list[Flight]:
        """Renew these flights, and return at once: those which nobody can renew, as no thread can be started."""
        with self._handed:
            for flight in flights:
                self._waiting.append(flight)
                self._under_way.add(flight.owner)
            while self._free < len(self._waiting) and self._threads < _AT_ONCE:
                try:
                    threading.Thread(target=self._serve, name="idempo-renewing", daemon=True).start()
                except RuntimeError:  # no more threads, or the interpreter ends
                    break
                self._threads += 1
                self._free += 1
            self._handed.notify(len(self._waiting))
            if self._threads:
                return []
            left = list(self._waiting)
            self._waiting.clear()
            self._under_way.clear()
            return left

    def _serve(self) -> None:
        while True:
            with self._handed:
                found = self._handed.wait_for(lambda: self._waiting, _IDLE)
                self._free -= 1
                if not found:
                    self._threads -= 1
                    return
                flight = self._waiting.popleft()
            self._renew(flight)
            with self._handed:
                self._under_way.discard(flight.owner)
                self._free += 1
            self._renewed(flight)


class Renewer(Schedule):
    """Renews the leases of a sync store's flights from a thread that starts when needed and ends when idle.

    Args:
        lost: Is told of a flight whose lease is gone.
        settled: Is told of a flight whose outcome is offered no more.
        blocking: Whether a renewal can take its time, so that several must be under way at once.
    """

    def __init__(
        self, lost: Callable[[Flight], None], settled: Callable[[Flight], None], *, blocking: bool = False
    ) -> None:
        super().__init__(lost, settled)
        self._alarm = math.inf
        self._crew = Crew(self._renew, self._look_again) if blocking else None
        lock = threading.RLock()
        self._changed, self._landed = threading.Condition(lock), threading.Condition(lock)
        self._asked_for = math.inf
        """When the earliest of the flights that have asked for a look is due."""
        self._thread: threading.Thread | None = None
        self._busy_with: set[str] = set()

    def land(self, flight: Flight) -> None:
        """Wait until no renewal of this removed flight is under way, at most for its lease."""
        with self._changed:
            self._landed.wait_for(lambda: flight.owner not in self._busy_with, flight.terms.policy.lease)

    def due(self, now: float) -> list[Flight]:
        """See `Schedule.due`: not those that the crew is busy with."""
        due, crew = super().due(now), self._crew
        return due if crew is None else [flight for flight in due if flight not in crew]

    def next_at(self) -> float:
        """See `Schedule.next_at`: those that the crew is busy with are looked at again when it is done."""
        crew = self._crew
        if crew is None:
            return super().next_at()
        free = (flight.renew_at for flight in list(self._flights.values()) if flight not in crew)
        return min(free, default=math.inf)

    def _look_again(self, flight: Flight) -> None:
        if flight in self and flight.renew_at < self._alarm:
            self._wake(flight.renew_at)

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
            due = self.due(now)
            for flight in due if self._crew is None else self._crew.take(due):
                self._renew(flight)
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
        try:
            self._ask(flight)
        except BaseException as error:  # noqa: BLE001 (an observer that exits must not end others' renewal)
            flight.terms.teller.trouble("the renewer", error)

    def _ask(self, flight: Flight) -> None:
        store, policy = cast("Store", flight.terms.store), flight.terms.policy
        with self._changed:
            self._busy_with.add(flight.owner)
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
                self._busy_with.discard(flight.owner)
                self._landed.notify_all()
        self.answered(flight, offer, sent, answer)
