"""Who waits for which record of a memory store to change."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from idempo._fork import call_in_child
from idempo.stores._memory_records import Id


class Watchers:
    """The waiters of one store.

    Args:
        lock: The store's own.
    """

    __slots__ = ("__weakref__", "_lock", "waiting")

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self.waiting: dict[Id, list[Callable[[], None]]] = {}
        _all.add(self)

    @contextmanager
    def watch(self, id_: Id, wake: Callable[[], None]) -> Iterator[None]:
        """Call ``wake`` after each change of the record, while the context is open."""
        with self._lock:
            self.waiting.setdefault(id_, []).append(wake)
        try:
            yield
        finally:
            with self._lock:
                watchers = self.waiting.get(id_, [])
                if wake in watchers:  # unless a fork came in between
                    watchers.remove(wake)
                if not watchers:
                    self.waiting.pop(id_, None)

    def tell(self, id_: Id) -> None:
        """Wake whoever waits for this record. The caller does not hold the lock."""
        if id_ in self.waiting:
            with self._lock:
                watchers = list(self.waiting.get(id_, ()))
            for wake in watchers:
                with suppress(RuntimeError):  # a waiter's event loop was closed, which is no matter of who tells
                    wake()


def _forget_all() -> None:
    # They wait in the parent, and what wakes them may need a lock that was taken there.
    for watchers in _all:
        watchers.waiting = {}


_all: Final[weakref.WeakSet[Watchers]] = weakref.WeakSet()
call_in_child(_forget_all)
