"""Joining within the process: one call leads a key, its duplicates wait in a room for how it ends.

A *flight* is one call, from before its claim to its end. The table of a store's flights holds at most one per key, and
only while it flies; the store alone decides who runs, the table only spares it calls. A flight that leaves without an
outcome vacates its place, and whoever comes first leads next: one waiter per event loop and one thread are nudged, so
that no stopped loop can swallow the turn, and a burst of n failures costs n wake-ups, not n squared.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, ClassVar, Final, TypeAlias, TypeVar, cast

from idempo import _fork
from idempo._owners import owners
from idempo.decisions import agree
from idempo.records import EventKind, Key, Record, State
from idempo.terms import Terms

Id: TypeAlias = tuple[str, str]

_forks: Final = _fork.forks


class Phase(enum.Enum):
    """How far a flight has come."""

    CLAIMING = "claiming"
    """It asks the store; nobody knows the answer yet."""
    WAITING = "waiting"
    """It waits for a call in another process, for itself and for those who joined it."""
    RUNNING = "running"
    """It holds the key."""
    VACANT = "vacant"
    """It left without an outcome; the next to come leads."""
    ENDED = "ended"


_CLAIMING: Final = Phase.CLAIMING  # reading a member off its class is a call into Python until 3.12
_ENDED: Final = Phase.ENDED
_EXECUTED: Final = EventKind.EXECUTED


class Failure:
    """The end of a flight whose function, or store, raised: shared with those who joined it."""

    __slots__ = ("_error", "_traceback")

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self._traceback: TracebackType | None = error.__traceback__

    def raised(self) -> BaseException:
        """Return the error, its traceback as it was at first: else it would grow with each waiter who raises it."""
        return self._error.with_traceback(self._traceback)


class _LookAgain(enum.Enum):
    LOOK_AGAIN = "look again"


LOOK_AGAIN: Final = _LookAgain.LOOK_AGAIN
"""The end of a flight that tells its waiters nothing but to ask the store themselves."""

Ending: TypeAlias = Record | Failure | _LookAgain


class Group:
    """Waiters that are woken by the same means: the threads, or the tasks of one event loop."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.members: dict[Any, None] = {}

    @property
    def waits(self) -> bool:
        """Whether somebody waits here who can still be woken."""
        return bool(self.members)

    def wake_all(self) -> None:
        """Wake every member; from any thread."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def wake_one(self) -> None:
        """Wake some member, if there is one; from any thread."""
        raise NotImplementedError  # pragma: no cover (abstract)


GroupT = TypeVar("GroupT", bound=Group)


class Room:
    """Where those who joined a flight, and its successors in the lead, wait."""

    __slots__ = ("end", "groups", "leader", "vacated")

    def __init__(self, leader: Flight) -> None:
        self.leader: Flight | None = leader
        self.vacated: Flight | None = None
        self.end: Ending | None = None
        self.groups: dict[Hashable, Group] = {}

    def close(self, end: Ending) -> list[Group]:
        """Let nobody in any more, and return those who are to be woken."""
        self.end, self.leader = end, None
        return list(self.groups.values())

    def __bool__(self) -> bool:
        return any(group.waits for group in self.groups.values())


class Flight:
    """One call of a key. Made for the call alone; read by those who join it."""

    __slots__ = (
        "__weakref__",
        "aboard",
        "asked_at",
        "attempt",
        "bound",
        "end",
        "fingerprint",
        "generation",
        "id",
        "key",
        "kind",
        "offer",
        "owner",
        "phase",
        "probed",
        "renew_at",
        "renew_until",
        "returned",
        "room",
        "savepoint",
        "stands_until",
        "task",
        "terms",
        "thread",
        "token",
        "value",
    )

    def __init__(self, id_: Id, fingerprint: bytes | None, terms: Terms) -> None:
        self.id = id_
        self.key = Key(*id_)
        self.fingerprint = fingerprint
        self.terms = terms
        self.owner = owners.new()
        self.thread = threading.get_ident()
        self.task: object = None
        self.generation = _forks.generation
        self.phase = _CLAIMING
        self.attempt = 0
        """Which attempt its claim is; 0 while it holds no key."""
        self.token = 0
        self.bound = fingerprint
        """The fingerprint of the record, to which a seal binds the outcome."""
        self.asked_at = 0.0
        self.stands_until = 0.0
        self.probed = False
        self.returned = False
        self.value: object = None
        self.room: Room | None = None
        self.end: Ending | None = None
        self.offer: bytes | None = None
        self.kind = _EXECUTED
        """The event to tell when its outcome stands."""

    of_block: ClassVar[bool] = False
    """Whether a plain block holds it, which need not be on the stack of its thread, and may be left in another."""

    aboard: tuple[object, ...]
    """Of a call in the caller's transaction: what is kept of his connection while it is open."""
    renew_at: float
    renew_until: float
    savepoint: AbstractContextManager[None] | AbstractAsyncContextManager[None] | None

    def hold(self, record: Record) -> None:
        """Take note of the record that this flight's claim has made."""
        self.attempt, self.token, self.bound = record.attempt, record.token, record.fingerprint

    def let_go(self) -> None:
        """Take note that its claim was for a probe's answer, and is over."""
        self.attempt, self.token, self.bound, self.value, self.probed = 0, 0, self.fingerprint, None, False

    @property
    def over(self) -> bool:
        """Whether nothing is left to do for this flight: it has ended, or left its place to the next."""
        return self.phase is Phase.ENDED or self.phase is Phase.VACANT

    @property
    def forked(self) -> bool:
        """Whether this is a copy, in a forked child, of a flight of its parent."""
        return self.generation != _forks.generation

    @property
    def room_that_is_its_own(self) -> Room | None:
        """The room of those who joined it; None where there is none, or another leads in it now."""
        room = self.room
        return room if room is not None and (room.leader is self or room.leader is None) else None

    @property
    def abandoned(self) -> bool:
        """Whether this is a coroutine's flight whose event loop is closed: its function will never end."""
        task: Any = self.task
        return task is not None and not self.of_block and bool(task.get_loop().is_closed())

    @property
    def stopped(self) -> bool:
        """Whether this is a task's flight whose event loop does not run: nobody knows whether it ever will again."""
        task: Any = self.task
        return task is not None and not task.get_loop().is_running()

    def completed(self, outcome: bytes) -> Record:
        """The record that this flight's outcome makes."""
        ttl = self.terms.policy.ttl
        return Record(State.COMPLETED, self.bound, self.attempt, self.token, self.owner, outcome, None, ttl)


class BlockFlight(Flight):
    """The flight of a plain ``with`` block. ``async with`` needs none: its task says who holds it."""

    __slots__ = ()

    of_block = True


class Flights:
    """The flights of one store in this process, by key."""

    __slots__ = ("_lock", "_table")

    def __init__(self) -> None:
        self._table: dict[Id, Flight] = {}
        self._lock = _fork.new_lock()

    def __len__(self) -> int:
        return len(self._table)

    def seat(self, flight: Flight, now: float) -> Flight:
        """Return the flight to join, or ``flight`` itself, which then claims, in the lead of its key or for itself."""
        found = self._table.setdefault(flight.id, flight)  # one atomic step
        if found is flight:
            return flight
        with self._lock:
            found = self._table.setdefault(flight.id, flight)
            if found is flight or found.end is not None:
                return found
            same = agree(flight.fingerprint, found.fingerprint)
            if found.phase is Phase.VACANT and same and found.room is not None:  # else nobody waits: as if it were gone
                self._succeed(found.room, flight)
                return flight
            lapsed = now >= found.stands_until if found.phase is Phase.RUNNING else found.stopped
            if found.phase is not Phase.VACANT and not lapsed:
                return found if same else flight
            self._table[flight.id] = flight
            found.end = LOOK_AGAIN
            groups = [] if found.room is None else found.room.close(LOOK_AGAIN)
            found.room = None
        for group in groups:
            group.wake_all()
        return flight

    def join(
        self, found: Flight, group_key: Hashable, new_group: Callable[[Room], GroupT], member: Hashable
    ) -> tuple[Room, GroupT] | None:
        """Let a waiter into the flight's room; None when it has ended or left meanwhile."""
        with self._lock:
            if found.end is not None or found.phase is Phase.VACANT or self._table.get(found.id) is not found:
                return None
            room = found.room
            if room is None or room.end is not None:  # closed under who has succeeded in it
                room = found.room = Room(found)
            group = cast("GroupT | None", room.groups.get(group_key))
            if group is None:
                group = room.groups[group_key] = new_group(room)
            group.members[member] = None
            return room, group

    def leave(self, room: Room, group: Group, member: Hashable, successor: Flight | None = None) -> bool:
        """Take a waiter out of its room, and say whether ``successor`` leads now, since nobody else did.

        A waiter that was nudged and leaves without leading passes the nudge on.
        """
        with self._lock:
            group.members.pop(member, None)
            if room.end is not None or room.leader is not None:
                return False
            vacated = room.vacated
            if successor is not None:
                self._succeed(room, successor)
                return True
            if not room:
                if vacated is not None and self._table.get(vacated.id) is vacated:
                    del self._table[vacated.id]
                return False
            groups = list(room.groups.values())
        for one in groups:
            one.wake_one()
        return False

    def abandon(self, found: Flight, group_key: Hashable, member: Hashable) -> None:
        """Take a waiter out of the flight's room where it is not known whether it ever came in, or has left."""
        room = found.room
        group = None if room is None else room.groups.get(group_key)
        if room is not None and group is not None:
            self.leave(room, group, member)

    def finish(self, flight: Flight, end: Ending | None, *, outcome: bytes = b"", offering: bool = False) -> None:
        """End the flight, and wake whoever joined it.

        Args:
            flight: The flight.
            end: What those who joined it get; None for the record that ``outcome`` makes.
            outcome: The outcome that was stored, or is being offered.
            offering: The store has not taken the outcome yet: the flight stays, and duplicates get it from here.
        """
        with self._lock:
            if not offering and self._table.get(flight.id) is flight:
                del self._table[flight.id]
            room = None if flight.room is None else flight.room_that_is_its_own
            if room is not None or offering:
                flight.end = end = flight.completed(outcome) if end is None else end
                groups = [] if room is None else room.close(end)
            else:
                groups = []
        for group in groups:
            group.wake_all()
        flight.room = None
        flight.phase = _ENDED  # last: whoever is interrupted before ends it once more

    def lose(self, flight: Flight) -> None:
        """Its lease is gone while its function runs on: those who joined it look again, and nobody else joins it."""
        with self._lock:
            if self._table.get(flight.id) is flight:
                del self._table[flight.id]
            flight.end = LOOK_AGAIN
            room, flight.room = flight.room_that_is_its_own, None
            groups = [] if room is None else room.close(LOOK_AGAIN)
        for group in groups:
            group.wake_all()

    def vacate(self, flight: Flight) -> None:
        """Leave without an outcome: the next to come leads."""
        groups: list[Group] = []
        with self._lock:
            room = flight.room
            if not room:
                if self._table.get(flight.id) is flight:
                    del self._table[flight.id]
            elif room.leader is None or room.leader is flight:  # not a successor's, when this is done again
                room.leader, room.vacated = None, flight
                groups = list(room.groups.values())
        for group in groups:
            group.wake_one()
        flight.phase = Phase.VACANT  # last, as in `finish`

    def dismiss(self, flight: Flight) -> None:
        """Forget an offering flight: its outcome is stored, or never will be."""
        with self._lock:
            if self._table.get(flight.id) is flight:
                del self._table[flight.id]

    def offering(self, id_: Id) -> Flight | None:
        """Return the flight whose outcome for this key the store is still to take, if there is one."""
        flight = self._table.get(id_)
        return None if flight is None or flight.offer is None else flight

    def clear(self) -> None:
        """Forget all flights: in a forked child, where they are the parent's."""
        self._table.clear()

    def _succeed(self, room: Room, flight: Flight) -> None:
        flight.room = room
        room.leader = flight
        self._table[flight.id] = flight


class ThreadGroup(Group):
    """Waiting threads, each on an event of its own."""

    members: dict[threading.Event, None]

    def wake_all(self) -> None:
        """See `Group.wake_all`."""
        for event in list(self.members):
            event.set()

    def wake_one(self) -> None:
        """See `Group.wake_one`."""
        for event in list(self.members)[:1]:
            event.set()
