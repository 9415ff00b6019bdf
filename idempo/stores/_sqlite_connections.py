"""One SQLite connection per thread, none of which crosses a fork."""

from __future__ import annotations

import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from idempo._fork import Forkable, forks, inherited
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


class Connections(Forkable):
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
        self._held: list[Any] = []  # locks
        self._stuck: list[Lane] = []
        forks.register(self)

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
    # connection opened anew in the child is then fooled too (sqlite.org/howtocorrupt.html, 2.6). So all of them are
    # closed before a fork, and opened again, in parent and child, when next needed.
    def before_fork(self) -> None:
        """Close all connections, each once its thread's statement has ended, and let none be opened."""
        deadline = time.monotonic() + self.patience
        self.lock.acquire()
        self._held.append(self.lock)
        for lane in self.lanes():
            if lane.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                self._held.append(lane.lock)
                lane.close()
            else:
                self._stuck.append(lane)

    def after_fork_in_parent(self) -> None:
        """Let connections be opened."""
        self._stuck.clear()
        while self._held:
            self._held.pop().release()

    def after_fork_in_child(self) -> None:  # pragma: no cover  # runs in another process, which no coverage follows
        """Let connections be opened, and keep for ever those of threads that do not exist here: to close is to use."""
        for lane in self._stuck:
            if lane.connection is not None:
                inherited.append(lane.connection)
                lane.connection = None
            lane.lock = threading.RLock()
        self.after_fork_in_parent()
