"""Locks that a forked child finds free, and what else must be put right there."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

_PATIENCE: Final = 1.0  # seconds; a lock held longer than this while a thread forks is not waited for


class _ForkGuard:
    """Takes every registered lock around a fork, so that no child inherits a structure half changed."""

    def __init__(self) -> None:
        self._locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
        self._registering = threading.RLock()
        self._taken: list[threading.RLock] = []
        self._in_child: list[Callable[[], None]] = []
        self.generation = 0
        """How many forks lie between this process and the one that imported idempo."""

    def lock(self) -> threading.RLock:
        made = threading.RLock()
        with self._registering:
            self._locks.add(made)
        return made

    def call_in_child(self, callback: Callable[[], None]) -> None:
        self._in_child.append(callback)

    def before(self) -> None:
        # No idempo lock is ever taken while another is held, so any order will do.
        self._registering.acquire()
        self._taken = [lock for lock in list(self._locks) if lock.acquire(timeout=_PATIENCE)]

    def after(self) -> None:
        taken, self._taken = self._taken, []
        for lock in taken:
            lock.release()
        self._registering.release()

    def after_in_child(self) -> None:
        self.generation += 1
        self.after()
        for callback in self._in_child:
            callback()


forks: Final = _ForkGuard()
new_lock: Final = forks.lock
"""Make a re-entrant lock that no forked child finds taken. Re-entrant: signal handlers and finalizers come between."""
call_in_child: Final = forks.call_in_child
"""Register a callback for every forked child, for the life of the process."""


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(before=forks.before, after_in_parent=forks.after, after_in_child=forks.after_in_child)
