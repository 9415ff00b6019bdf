"""The operation that is running: what its function may ask, and what is known of the calls around it."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, cast

from idempo.errors import LeaseLostError
from idempo.flights import Flight, Phase
from idempo.records import Key

if TYPE_CHECKING:
    import asyncio


class Operation:
    """One operation, as seen from inside its function, or from inside an ``operation`` block.

    Attributes:
        key: The idempotency key.
        attempt: 1, 2, 3 …: how often the key was claimed while its record lived; 0 where no store was asked.
        token: The fencing token, to hand to whatever should refuse late writers; 0 where no store was asked.
        fresh: Whether this call runs the operation, rather than replaying it.
    """

    __slots__ = ("__weakref__", "_flight", "_outer", "_result", "attempt", "fresh", "key", "token")

    def __init__(
        self,
        key: Key,
        attempt: int = 0,
        token: int = 0,
        flight: Flight | None = None,
        outer: Operation | None = None,
        *,
        fresh: bool = True,
        result: Any = None,
    ) -> None:
        self.key = key
        self.attempt = attempt
        self.token = token
        self.fresh = fresh
        self._result = result
        self._flight = flight
        self._outer = outer

    @property
    def replayed(self) -> bool:
        """Whether a stored outcome was found."""
        return not self.fresh

    @property
    def result(self) -> Any:
        """The value of the operation, whether it was replayed or ``complete`` was given it; None before."""
        return self._result

    def derive(self, name: str) -> str:
        """Return a key for a downstream call: the same on every attempt, different for every name, key and namespace.

        Args:
            name: Which downstream call, such as "capture". Any text.

        Returns:
            40 hexadecimal digits: 160 bits of SHA-256 over the three parts, each behind its length.

        Raises:
            TypeError: The name is not a str.
        """
        if not isinstance(name, str):
            raise TypeError(f"a derived key's name must be a str, not {type(name).__name__}")
        parts = (part.encode("utf-8", "surrogatepass") for part in (self.key.namespace, self.key.value, name))
        text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hashlib.sha256(b"idempo derive 1" + text).hexdigest()[:40]

    def ensure_held(self) -> None:
        """Return while the lease is known to stand: local knowledge, counted from when it was last asked for. No I/O.

        Raises:
            LeaseLostError: The lease cannot be known to stand, or this is a forked child.
        """
        flight = self._flight
        if flight is not None and (flight.forked or time.monotonic() >= flight.stands_until):
            raise LeaseLostError("the lease is not known to stand any more; stop before the next effect", key=self.key)


current: Final[ContextVar[Operation | None]] = ContextVar("idempo_operation", default=None)


class _Unguarded:
    """How many `idempo.testing.unguarded` blocks are open in this process."""

    depth = 0


unguarded: Final = _Unguarded()


def current_operation() -> Operation:
    """Return the operation whose function is running here.

    Raises:
        LookupError: No guarded function is running in this context.
    """
    operation = current.get()
    if operation is None:
        raise LookupError("current_operation() is for use inside a guarded function; none is running here")
    return operation


def inside(owner: str) -> bool:
    """Say whether the caller stands inside the call of this owner: in its context, its thread, and its task if any."""
    operation = current.get()
    while operation is not None:
        flight = operation._flight
        if flight is not None and flight.owner == owner:
            return flight.thread == threading.get_ident() and (flight.task is None or flight.task is running_task())
        operation = operation._outer
    return False


def may_go_on(found: Flight) -> bool:
    """Say whether what holds a key can end though the caller waits on its thread: an open block, from outside of it."""
    return found.of_block and found.phase is Phase.RUNNING and not inside(found.owner)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, if there is one."""
    found = sys.modules.get("asyncio.events")  # where nobody has imported it, none runs
    get = getattr(found, "_get_running_loop", None)  # or who imports it has not come so far
    return None if get is None else cast("asyncio.AbstractEventLoop | None", get())


def running_task() -> object:
    """Return the task that runs in this thread, if there is one."""
    loop = running_loop()
    return None if loop is None else sys.modules["asyncio"].current_task(loop)


def operation_of(flight: Flight, outer: Operation | None) -> Operation:
    """Return the operation that a flight's function may ask for."""
    return Operation(flight.key, flight.attempt, flight.token, flight, still_open(outer))


def still_open(outer: Operation | None) -> Operation | None:
    """Return the innermost operation around here that has not ended: work without end keeps no chain of them."""
    while outer is not None and outer._flight is not None and outer._flight.over:
        outer = outer._outer
    return outer
