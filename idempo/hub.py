"""What this process keeps of each store while calls run: the flights, the renewer, the worker threads.

Guards are made per request and may be gone before their calls end; so this belongs to the store, and is found by it.
It holds no configuration.
"""

from __future__ import annotations

import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from idempo import _fork
from idempo.flights import LOOK_AGAIN, Flight, Flights, Phase
from idempo.records import EventKind
from idempo.renewal import Renewer, Schedule

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_POOL_SIZE: Final = 8

_RUNNING: Final = Phase.RUNNING  # reading a member off its class is a call into Python until 3.12


class Hub:
    """One store's calls in this process."""

    def __init__(self, *, blocking: bool) -> None:
        self.flights = Flights()
        self.loops: dict[Any, Any] = {}
        """Renewers by event loop, for an async store; those of closed loops go when the next loop comes."""
        self.blocking = blocking
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self.renewer = self._new_renewer()

    @property
    def pool(self) -> ThreadPoolExecutor:
        """Worker threads of our own: an event loop's default ones can fill with calls that wait for each other."""
        from concurrent.futures import ThreadPoolExecutor  # a large import, for coroutines on a blocking store only

        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_POOL_SIZE, thread_name_prefix="idempo")
            return self._pool

    def starts(self, flight: Flight, claim_new: Any) -> bool:
        """Claim a new key in one step, if that is all there is to do; else the driver finds out what else there is."""
        now = time.monotonic()
        if self.flights.seat(flight, now) is not flight:
            return False
        flight.asked_at = now
        policy = flight.terms.policy
        try:
            token = claim_new(flight.id, flight.owner, flight.fingerprint, policy.lease, policy.ttl)
        except Exception:  # noqa: BLE001 (a short cut, and no more: the claim is made by the same owner)
            return False
        if token is None:
            return False
        flight.attempt, flight.token = 1, token
        self.begin(flight, self.renewer)
        return True

    def begin(self, flight: Flight, renewer: Schedule, *, took_over: bool = False) -> None:
        """The key is the flight's: keep it so while the function runs."""
        policy = flight.terms.policy
        if took_over:
            flight.terms.teller.tell(EventKind.TAKEN_OVER, flight.key, flight.attempt)
        flight.stands_until = flight.asked_at + policy.lease
        if policy.max_run > 0:
            renewer.add(flight)
        flight.phase = _RUNNING  # last: up to here nothing can have run

    def lost(self, flight: Flight) -> None:
        """The flight's lease is gone: those who joined it claim anew."""
        self.flights.finish(flight, LOOK_AGAIN)

    def stop_renewing(self, flight: Flight) -> None:
        """Renew, or offer, this flight no more, whichever loop's it is; from any thread."""
        for renewer in [self.renewer, *list(self.loops.values())]:
            renewer.remove(flight)

    def withdraw(self, flight: Flight | None) -> None:
        """Offer the store this outcome no more, nor give it to duplicates: its key is settled otherwise."""
        if flight is not None:
            self.stop_renewing(flight)
            self.flights.dismiss(flight)

    def after_fork(self) -> None:
        """Forget what belongs to the parent: its calls, and threads that do not exist here."""
        self.flights.clear()
        self.loops = {}
        self._lock = threading.Lock()
        self._pool = None
        self.renewer = self._new_renewer()

    def _new_renewer(self) -> Renewer:
        if self.blocking:
            return Renewer(self.flights.lose, self.flights.dismiss, blocking=True)
        return _shared_renewer()


class _Hubs:
    """The hubs of all stores in use, each as long as its store lives."""

    def __init__(self) -> None:
        self._lock = _fork.new_lock()
        self._by_id: dict[int, tuple[Any, Hub]] = {}
        self.shared_renewer: Renewer | None = None
        _fork.call_in_child(self._after_fork)

    def of(self, store: Any) -> Hub:
        with self._lock:
            found = self._by_id.get(id(store))
            if found is None:
                hub = Hub(blocking=getattr(store, "blocking", True))
                try:
                    held: Any = weakref.ref(store, partial(self._forget, id(store)))
                except TypeError:  # it has __slots__ without __weakref__, and so is kept
                    held = store
                found = self._by_id[id(store)] = held, hub
            return found[1]

    def _forget(self, id_: int, _: object) -> None:
        self._by_id.pop(id_, None)

    def _after_fork(self) -> None:
        self.shared_renewer = None
        for _, hub in list(self._by_id.values()):
            hub.after_fork()


_hubs: Final = _Hubs()
hub_of: Final = _hubs.of
"""Return the hub of a store, made when first asked for."""


def _shared_renewer() -> Renewer:
    if _hubs.shared_renewer is None:
        _hubs.shared_renewer = Renewer(_lost, _settled)
    return _hubs.shared_renewer


def _lost(flight: Flight) -> None:
    hub_of(flight.terms.store).flights.lose(flight)


def _settled(flight: Flight) -> None:
    hub_of(flight.terms.store).flights.dismiss(flight)
