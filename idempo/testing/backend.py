"""The plainest key-value server there is: a dict under a lock, and the same in coroutines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable


class DictBackend:
    """A `CasBackend` in memory, with expiry: for tests of `CasStore`, and an example of what it needs.

    Args:
        clock: Gives seconds, and never runs back.
        lasting_revisions: Whether it says that its revisions rise for ever; within this object they do.

    >>> from idempo.testing.backend import DictBackend
    >>> backend = DictBackend()
    >>> backend.add("key", b"value", ttl=60), backend.add("key", b"other", ttl=60)
    (1, None)
    """

    blocking = False
    shared = False

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, lasting_revisions: bool = True) -> None:
        self.lasting_revisions = lasting_revisions
        self.values: dict[str, tuple[bytes, int, float]] = {}
        self._clock = clock
        self._lock = threading.RLock()
        self._revision = 0

    def get(self, key: str) -> tuple[bytes, int] | None:
        """See `CasBackend.get`."""
        with self._lock:
            value, revision, expires = self.values.get(key, (b"", 0, 0.0))
            if revision and expires <= self._clock():
                del self.values[key]
                return None
            return (value, revision) if revision else None

    def add(self, key: str, value: bytes, ttl: float) -> int | None:
        """See `CasBackend.add`."""
        with self._lock:
            return None if self.get(key) else self._put(key, value, ttl)

    def compare_and_swap(self, key: str, value: bytes, revision: int, ttl: float) -> int | None:
        """See `CasBackend.compare_and_swap`."""
        with self._lock:
            found = self.get(key)
            return self._put(key, value, ttl) if found and found[1] == revision else None

    def delete(self, key: str, revision: int | None = None) -> bool:
        """See `CasBackend.delete`."""
        with self._lock:
            found = self.get(key)
            if found is None or revision not in (None, found[1]):
                return False
            del self.values[key]
            return True

    def _put(self, key: str, value: bytes, ttl: float) -> int:
        self._revision += 1
        self.values[key] = (value, self._revision, self._clock() + ttl)
        return self._revision


class AsyncDictBackend:
    """An `AsyncCasBackend`: a `DictBackend` in coroutines, each of which lets other tasks run first.

    Attributes:
        plain: The backend that it asks; a new one where none is given.
    """

    shared = False

    def __init__(self, plain: DictBackend | None = None) -> None:
        self.plain = DictBackend() if plain is None else plain
        self.lasting_revisions = self.plain.lasting_revisions

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """See `DictBackend.get`."""
        await asyncio.sleep(0)
        return self.plain.get(key)

    async def add(self, key: str, value: bytes, ttl: float) -> int | None:
        """See `DictBackend.add`."""
        await asyncio.sleep(0)
        return self.plain.add(key, value, ttl)

    async def compare_and_swap(self, key: str, value: bytes, revision: int, ttl: float) -> int | None:
        """See `DictBackend.compare_and_swap`."""
        await asyncio.sleep(0)
        return self.plain.compare_and_swap(key, value, revision, ttl)

    async def delete(self, key: str, revision: int | None = None) -> bool:
        """See `DictBackend.delete`."""
        await asyncio.sleep(0)
        return self.plain.delete(key, revision)
