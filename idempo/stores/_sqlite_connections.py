"""One SQLite connection per thread, none of which crosses a fork."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from idempo.errors import StoreError


class Lane:
    """One thread's connection, opened when it is first needed.

    Attributes:
        lock: Held around every use. Only its thread, `Connections.close` and a fork ask for it, so it is free as a
            rule; re-entrant, since a signal handler or the garbage collector may come in between.
        connection: The open connection, if any.
    """

    __slots__ = ("__weakref__", "connection", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.connection: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        # The thread has ended, or the store was dropped unclosed: neither is worth a ResourceWarning.
        self.close()


class Connections:
    """The connections of one store.

    Args:
        connect: Opens a connection, with ``check_same_thread=False`` so that `close` may close it.
        patience: How long a fork waits for another thread's statement to end, in seconds.

    Attributes:
        local: Has the calling thread's `Lane` as ``lane``, once there is one.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], *, patience: float) -> None:
        self._connect = connect
        self.patience = patience
        self.lock = threading.RLock()
        self.local = threading.local()
        self._lanes: weakref.WeakSet[Lane] = weakref.WeakSet()
        self._closed = False
        with _fork_lock:
            _everyone.add(self)

    def new_lane(self) -> Lane:
        """Return a lane for the calling thread, which finds it again as ``local.lane``."""
        lane = Lane()
        # Listed before it can be used: an interrupt in between must not leave a connection that a fork overlooks.
        with self.lock:
            self._lanes.add(lane)
        self.local.lane = lane
        return lane

    def open(self, lane: Lane) -> sqlite3.Connection:
        """Open the lane's connection. The caller holds its lock."""
        if self._closed:
            raise StoreError("the store was closed")
        connection = lane.connection = self._connect()
        return connection

    def close(self) -> None:
        """Close all connections, each once its thread's statement has ended. Later use is a StoreError."""
        self._closed = True
        for lane in self.lanes():
            with lane.lock:
                lane.close()

    def lanes(self) -> list[Lane]:
        """Return the lanes of all threads that live."""
        with self.lock:
            return list(self._lanes)


# A child that inherits an open connection inherits what SQLite believes about its locks, and not the locks: a
# connection opened anew in the child is then fooled too (sqlite.org/howtocorrupt.html, 2.6). So all of them are closed
# before a fork, and opened again, in parent and child, when next needed.
_fork_lock: Final = threading.RLock()
_everyone: Final[weakref.WeakSet[Connections]] = weakref.WeakSet()
_held: Final[list[Any]] = []  # locks; typeshed has had no type for a re-entrant one in all versions
_stuck: Final[list[Lane]] = []
_inherited: Final[list[sqlite3.Connection]] = []


def _before_fork() -> None:
    _fork_lock.acquire()
    for connections in list(_everyone):
        connections.lock.acquire()
        _held.append(connections.lock)
        for lane in connections.lanes():
            if lane.lock.acquire(timeout=connections.patience):
                _held.append(lane.lock)
                lane.close()
            else:
                _stuck.append(lane)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().release()
    _stuck.clear()
    _fork_lock.release()


def _after_fork_in_child() -> None:  # pragma: no cover  # runs in another process, which no coverage follows
    for lane in _stuck:
        # Its thread does not exist here. The connection is kept for ever: to close it would be use.
        if lane.connection is not None:
            _inherited.append(lane.connection)
            lane.connection = None
        lane.lock = threading.RLock()
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
