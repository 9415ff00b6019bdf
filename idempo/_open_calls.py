"""Which calls are open on a connection or session of the caller's, by whichever stores they have joined it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from idempo import _fork

if TYPE_CHECKING:
    from idempo.flights import Flight
    from idempo.operation import Operation


class OpenCalls:
    """The calls that are open on one connection or session, the innermost last.

    They keep it alive, and it does not keep them: a call that nobody will ever end is not open.
    """

    __slots__ = ("__weakref__", "_calls", "of")

    def __init__(self, of: object) -> None:
        self.of = of
        self._calls: list[weakref.ref[Flight]] = []

    def take(self, flight: Flight, outer: Operation | None) -> bool:
        """Take the flight in, unless another is open that is none around it."""
        calls = self._calls
        while calls:
            last = calls[-1]()
            if last is not None and not last.over:
                if not _is_around(last, outer):
                    return False
                break
            calls.pop()
        calls.append(weakref.ref(flight))
        return True


def _is_around(flight: Flight, operation: Operation | None) -> bool:
    while operation is not None:
        if operation._flight is flight:
            return True
        operation = operation._outer
    return False


class _ByConnection:
    """The open calls of all connections, each as long as a call is open that keeps it.

    By identity, and not by weak references to the connections: a `sqlite3.Connection` can have none.
    """

    def __init__(self) -> None:
        self._lock = _fork.new_lock()
        self._open: weakref.WeakValueDictionary[int, OpenCalls] = weakref.WeakValueDictionary()
        _fork.call_in_child(self._open.clear)

    def board(self, flight: Flight, outer: Operation | None, connection: Any) -> bool:
        """Take note that the flight, begun inside the outer operation, opens a savepoint on a connection or session.

        Returns:
            False where a call is open on it that is none around this one: another task's, or thread's.
        """
        with self._lock:
            calls = self._open.get(id(connection))
            if calls is None:
                calls = self._open[id(connection)] = OpenCalls(connection)
            taken = calls.take(flight, outer)
        if taken:
            flight.aboard = (*flight.aboard, calls)
        return taken


board: Final = _ByConnection().board
