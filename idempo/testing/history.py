"""Histories: what was asked of a store, when, and what it answered."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import attrs

from idempo.protocols import Store
from idempo.records import Claim, Key, Record

_T = TypeVar("_T")


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown()
"""The answer of an operation whose answer never came: it may have been made, now or later, or not at all."""


@attrs.frozen
class Asked:
    """One operation of a history.

    Attributes:
        method: The name of the store's method.
        key: The key that it was called for.
        options: Its keyword arguments.
        answer: What it returned; `UNKNOWN` where it raised, or never returned.
        first: Its place in the order of all beginnings and ends: it began at this one.
        last: And ended at this one; infinite where the answer is unknown.
        began: When it began, in seconds by the clock of the history.
        ended: When it ended; infinite where the answer is unknown.
    """

    method: str
    key: Key
    options: Mapping[str, Any]
    answer: Any
    first: float
    last: float
    began: float
    ended: float


class RecordingStore:
    """A store that writes down each call of the six methods, from any thread.

    A call that raises is written down with an unknown answer, and its exception goes on to the caller.

    Args:
        store: Where the calls are made.
        clock: The clock of the history, in seconds. It must run as the store's does: the store's own `FakeClock`, or
            this machine's monotonic clock.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._order = itertools.count(1)
        self._lock = threading.Lock()
        self._asked: list[Asked] = []

    @property
    def history(self) -> list[Asked]:
        """What was asked so far, in the order of the beginnings."""
        with self._lock:
            return sorted(self._asked, key=lambda asked: asked.first)

    def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """See `Store.claim`."""
        options = {"owner": owner, "fingerprint": fingerprint, "lease": lease, "ttl": ttl, "take_over": take_over}
        return self._ask("claim", self._store.claim, key, options)

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return self._ask("complete", self._store.complete, key, {"owner": owner, "outcome": outcome, "ttl": ttl})

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return self._ask("release", self._store.release, key, {"owner": owner, "ttl": ttl})

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return self._ask("renew", self._store.renew, key, {"owner": owner, "lease": lease, "ttl": ttl})

    def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        return self._ask("get", self._store.get, key, {})

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        return self._ask("delete", self._store.delete, key, {"owner": owner})

    def _ask(self, method: str, step: Callable[..., _T], key: Key, options: Mapping[str, Any]) -> _T:
        began, first = self._clock(), next(self._order)
        answer: _T | _Unknown = UNKNOWN
        try:
            answer = given = step(key, **options)
            return given
        finally:
            # Both spans hold the step itself within them, so neither says more than is known.
            last, ended = float(next(self._order)), self._clock()
            if answer is UNKNOWN:
                last = ended = math.inf
            with self._lock:
                self._asked.append(Asked(method, key, options, answer, first, last, began, ended))


def late_writes(history: Iterable[Asked]) -> int:
    """Count the writes by late owners: begun after another owner had taken over the key that they name.

    A history without any proves nothing about late owners, which is where stores go wrong.
    """
    holders: dict[Key, str] = {}
    late = 0
    # By ends: when a write ended, what had ended before it began has been seen; a write that began before the end of
    # the take-over is not counted as late, though it may be.
    ends: dict[tuple[Key, str], float] = {}
    for asked in sorted(history, key=lambda asked: asked.last):
        owner: str = asked.options.get("owner", "")
        if asked.method == "claim":
            if asked.answer is UNKNOWN or not asked.answer.acquired:
                continue
            if asked.answer.took_over and asked.key in holders:
                ends[asked.key, holders[asked.key]] = asked.last
            holders[asked.key] = owner
        elif asked.method in ("complete", "release", "renew"):
            late += asked.first > ends.get((asked.key, owner), math.inf)
    return late
