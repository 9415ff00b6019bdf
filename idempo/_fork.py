"""What is done around a fork: a child finds locks free, and nothing of its parent's that it could break."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_PATIENCE: Final = 1.0  # seconds; locks held longer than this while a thread forks are not waited for

inherited: Final[list[object]] = []
"""A forked child's copies of what its parent uses: never used, and never let go of, since that might close it."""


class Forkable:
    """What has something to do around a fork, once it is registered. Each step does nothing by default."""

    __slots__ = ()

    def before_fork(self) -> None:
        """Come to rest, waiting for other threads within bounds."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew. There is no other thread, and none of those that were waited for in vain will ever go on."""


class _ForkGuard:
    """Takes every registered lock around a fork, so that no child inherits a structure half changed."""

    def __init__(self) -> None:
        self._locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
        self._forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()
        self._registering = threading.RLock()
        self._forking = threading.RLock()  # one thread at a time
        self._resting: list[Forkable] = []
        self._taken: list[Any] = []  # locks; typeshed has had no type for a re-entrant one in all versions
        self._missed: list[Any] = []
        self._in_child: list[Callable[[], None]] = []
        self.generation = 0
        """How many forks lie between this process and the one that imported idempo."""

    def lock(self) -> threading.RLock:
        made = threading.RLock()
        with self._registering:
            self._locks.add(made)
        return made

    def register(self, forkable: Forkable) -> None:
        with self._registering:
            self._forkables.add(forkable)

    def call_in_child(self, callback: Callable[[], None]) -> None:
        self._in_child.append(callback)

    def before(self) -> None:
        self._forking.acquire()
        while True:
            self._registering.acquire()
            others = [forkable for forkable in self._forkables if forkable not in self._resting]
            if not others:
                break
            self._registering.release()  # who is waited for may make a store
            for forkable in others:
                with suppress(Exception):  # a connection that cannot be closed: the others are to be
                    forkable.before_fork()
                self._resting.append(forkable)
        self._taken.append(self._registering)
        # No idempo lock is ever taken while another is held, so any order will do.
        deadline = time.monotonic() + _PATIENCE
        for lock in list(self._locks):
            is_taken = lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
            (self._taken if is_taken else self._missed).append(lock)

    def after(self) -> None:
        self._release()
        self._missed.clear()
        resting, self._resting = self._resting, []
        for forkable in resting:
            forkable.after_fork_in_parent()
        self._forking.release()

    def after_in_child(self) -> None:
        self.generation += 1
        while self._missed:
            # Who holds it does not exist here. Such locks are held over I/O, and for what a child makes anew.
            self._missed.pop()._at_fork_reinit()
        self._release()
        resting, self._resting = self._resting, []
        for forkable in resting:
            forkable.after_fork_in_child()
        for callback in self._in_child:
            callback()
        self._forking.release()

    def _release(self) -> None:
        while self._taken:
            self._taken.pop().release()


forks: Final = _ForkGuard()
new_lock: Final = forks.lock
"""Make a re-entrant lock that no forked child finds taken. Re-entrant: signal handlers and finalizers come between."""
call_in_child: Final = forks.call_in_child
"""Register a callback for every forked child, for the life of the process."""


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(before=forks.before, after_in_parent=forks.after, after_in_child=forks.after_in_child)
