"""Waiting for a change of a key on PostgreSQL: LISTEN on a connection of its own, by a thread while it is needed.

Who watches a key holds a shared advisory lock on its number, on the listening connection. A statement that changes the
key asks for that lock: where it is to be had, nobody waits, and nothing is sent. So a notification, which costs a lock
that all commits of a database share, is sent only where somebody waits for it.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, Protocol, TypeVar

from idempo._fork import forks, inherited, new_lock
from idempo.errors import StoreError
from idempo.records import Key
from idempo.stores._sql_records import Name, named

IDLE: Final = 10.0
"""Seconds after which a listener that nobody needs ends."""
LOCK: Final = "SELECT pg_advisory_lock_shared(%(number)s::bigint)"
UNLOCK: Final = "SELECT pg_advisory_unlock_shared(%(number)s::bigint)"
_PAUSES: Final = (0.05, 1.0)  # before a lost connection is made anew: at first, and at most

_Ready = TypeVar("_Ready")


class Watching(Protocol):
    """What a listener needs to know of the statements."""

    channel: str | None

    def watch_of(self, name: Name) -> int:
        """Return the number that whoever waits for the key locks."""
        ...


class Watched(Generic[_Ready]):
    """A key that somebody waits for."""

    def __init__(self, number: int, ready: _Ready) -> None:
        self.number = number
        self.ready = ready
        """Set once it is known whether changes are told."""
        self.lost = False
        """Whether they are not, since the connection was lost, or was not to be had."""
        self.wakes: list[Callable[[], None]] = []


def wake_all(wakes: list[Callable[[], None]]) -> None:
    """Call each of them."""
    for wake in list(wakes):
        wake()


PATIENCE: Final = 2.0
"""Seconds that it may take until a key is watched: who waits does not poll meanwhile."""


def not_listening(key: Key) -> StoreError:
    """Return what is raised when a key cannot be watched."""
    return StoreError("the database does not tell of changes: its connection for that is not to be had", key=key)


def pauses() -> Iterator[float]:
    """Yield how long to wait before each new try."""
    pause, longest = _PAUSES
    while True:
        yield pause
        pause = min(2 * pause, longest)


class Listener:
    """Tells of changes.

    Args:
        open_: Opens a connection: a `_sql_psycopg.Lane`.
        statements: Those that send the notifications.
    """

    def __init__(self, open_: Callable[[], Any], statements: Watching) -> None:
        self._open = open_
        self._statements = statements
        self._lock = new_lock()
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._generation = forks.generation
        self._watched: dict[str, Watched[threading.Event]] = {}
        self._undone: deque[tuple[str, int]] = deque()  # statements to execute, each with the number of a key
        self._thread: threading.Thread | None = None
        self._lane: Any = None
        self._nudge: tuple[socket.socket, socket.socket] | None = None

    @contextmanager
    def watch(self, key: Key, wake: Callable[[], None]) -> Iterator[None]:
        """See `WatchableStore.watch`."""
        name = named(key)
        id_ = name.id.hex()
        with self._lock:
            if self._generation != forks.generation:
                inherited.append(self._lane)
                self._begin()
            watched = self._watched.get(id_)
            if watched is None:
                watched = self._watched[id_] = Watched(self._statements.watch_of(name), threading.Event())
                self._undone.append((LOCK, watched.number))
            watched.wakes.append(wake)
        try:
            try:
                with self._lock:
                    self._go_on()
            except (RuntimeError, OSError) as error:  # there can be no more threads, or sockets
                raise not_listening(key) from error
            if not watched.ready.wait(PATIENCE) or watched.lost:
                raise not_listening(key)
            yield
        finally:
            with self._lock:
                watched.wakes.remove(wake)
                if not watched.wakes and self._watched.get(id_) is watched:
                    del self._watched[id_]
                    if self._thread is not None:  # else the lock has gone with the connection
                        self._undone.append((UNLOCK, watched.number))
                        self._go_on()

    def close(self) -> None:
        """End the thread, and close its connection."""
        with self._lock:
            self._closed = True
            thread = self._thread
            self._go_on()
        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE)

    def _go_on(self) -> None:
        """Let the thread look at what is to be done; there is one then. Called under the lock."""
        if self._thread is None and not self._closed:
            self._nudge = socket.socketpair()
            self._nudge[1].setblocking(False)
            thread = threading.Thread(target=self._run, name="idempo-listener", daemon=True)
            try:
                thread.start()
            except BaseException:
                self._end()
                raise
            self._thread = thread
        elif self._nudge is not None:
            with suppress(BlockingIOError):  # then it has been nudged often enough
                self._nudge[1].send(b"x")

    def _run(self) -> None:
        again = False
        try:
            for pause in pauses():  # pragma: no branch  # without end
                with suppress(Exception):  # whatever it is: an engine's listeners may raise what they like
                    self._lane = self._open()
                    try:
                        self._serve(self._lane, again=again)
                    finally:
                        lane, self._lane = self._lane, None
                        lane.close()
                with self._lock:
                    self._lose()
                    if self._closed or not self._watched:
                        self._end()
                        return
                again = True
                time.sleep(pause)
        finally:
            with self._lock:
                if self._thread is threading.current_thread():  # it ends as it should not; the next call has another
                    self._lose()
                    self._end()

    def _lose(self) -> None:
        """Let whoever waits look for himself as long as nobody tells him."""
        for watched in self._watched.values():
            watched.lost = True
            watched.ready.set()
            wake_all(watched.wakes)

    def _end(self) -> None:
        self._thread = None
        self._undone.clear()
        ends, self._nudge = self._nudge, None
        for end in ends or ():
            end.close()

    def _serve(self, lane: Any, *, again: bool) -> None:
        """Do what is to be done, and tell of changes, until nobody has needed it for a while."""
        lane.listen(f'LISTEN "{self._statements.channel}"', self._told)
        with self._lock:
            self._undone.clear()
            self._undone.extend((LOCK, watched.number) for watched in self._watched.values())
        self._execute(lane)
        if again:  # changes of before may have been missed
            with self._lock:
                for watched in self._watched.values():
                    wake_all(watched.wakes)
        assert self._nudge is not None
        nudged = self._nudge[0]
        with selectors.DefaultSelector() as selector:
            selector.register(nudged, selectors.EVENT_READ)
            selector.register(lane.fileno(), selectors.EVENT_READ)
            while not self._closed:
                readable = [key.fileobj for key, _ in selector.select(IDLE)]
                if nudged in readable:
                    nudged.recv(4096)
                    self._execute(lane)
                if lane.fileno() in readable:
                    lane.notified()
                if not readable:  # nobody has wanted anything for a while
                    with self._lock:
                        if not self._watched and not self._undone:
                            return

    def _execute(self, lane: Any) -> None:
        while True:
            with self._lock:
                if not self._undone:
                    for watched in self._watched.values():
                        watched.lost = False
                        watched.ready.set()
                    return
                statement, number = self._undone.popleft()
            lane.execute(statement, {"number": number})

    def _told(self, id_: str) -> None:
        with self._lock:
            watched = self._watched.get(id_)
            if watched is not None:
                wake_all(watched.wakes)
