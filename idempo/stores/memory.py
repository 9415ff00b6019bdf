"""Records in this process's memory: the store that a decorated function has when none is given."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, Literal

from idempo._checks import check_clock, check_limit
from idempo._fork import new_lock
from idempo.codecs import PickleCodec
from idempo.errors import StoreFullError
from idempo.protocols import Codec
from idempo.records import Claim, Key, Record, State
from idempo.stores._memory_records import OVERHEAD, Entry, Expiry, Id, new_cache
from idempo.stores._memory_watchers import Watchers

__all__ = ["MemoryStore"]

_RUNNING: Final = State.RUNNING  # reading a member off its class is a call into Python until 3.12
_SWEEP_PER_CLAIM: Final = 8
_KEPT: Final = "kept, and nothing is evicted"


class MemoryStore:
    """Keeps records in memory, for threads, tasks and event loops of one process. Nothing outlives the process.

    Records that run or are in doubt are never evicted; completed ones go, least recently used first, when the store is
    full, and are counted in `evictions`. An evicted operation is forgotten: a duplicate of it would run again, so
    choose ``max_records`` for the number of keys within their ``ttl``.

    Expired records are removed a few at a time, with each claim; no call does unbounded work. A completed record takes
    some 700 bytes beside its outcome.

    Args:
        max_records: The most records at once, in whatever state.
        max_bytes: The most bytes of completed records, their outcomes and an estimate of the rest; None for no limit.
            A single outcome larger than this is still kept, alone; and where nothing is evicted, so are the outcomes
            of all calls that began below it.
        on_full: "evict" makes room by evicting completed records; "refuse" refuses new claims with StoreFullError.
        clock: Gives seconds, and never runs back.

    Raises:
        TypeError: ``max_records`` or ``max_bytes`` is no int, or ``clock`` cannot be called.
        ValueError: ``max_records`` or ``max_bytes`` is below 1, or ``on_full`` is neither word.

    >>> from idempo import Idempotency, MemoryStore
    >>> guard = Idempotency(MemoryStore(max_records=50_000), namespace="billing")
    >>> guard.run("order-42", lambda: "placed")
    'placed'
    """

    blocking: Final = False
    shared: Final = False

    def __init__(
        self,
        *,
        max_records: int = 100_000,
        max_bytes: int | None = None,
        on_full: Literal["evict", "refuse"] = "evict",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_limit(max_records, "max_records")
        if max_bytes is not None:
            check_limit(max_bytes, "max_bytes")
        check_clock(clock)
        if on_full not in ("evict", "refuse"):
            raise ValueError(f'on_full must be "evict" or "refuse", not {on_full!r}')
        self._max_records = max_records
        self._clock = clock
        self._lock = new_lock()
        self._running: dict[Id, Entry] = {}
        self._released: dict[Id, Entry] = {}
        # Without a limit of its own, by which it would evict unseen, and also where nothing must be evicted.
        self._completed = new_cache(max_bytes)
        self._max_bytes = max_bytes
        self._evicts = on_full == "evict"
        self._refuse_at = None if self._evicts else max_bytes
        self._expiry = Expiry()
        self._watchers = Watchers(self._lock)
        # Starts from the wall clock, so that fencing tokens also rise from one process to the next.
        self._tokens = itertools.count(time.time_ns() // 1000)
        self._evictions = 0

    @property
    def default_codec(self) -> Codec:
        """`PickleCodec`: the bytes never leave the process."""
        return PickleCodec()

    @property
    def evictions(self) -> int:
        """How many completed records were evicted before their time."""
        return self._evictions

    def __len__(self) -> int:
        """How many records are kept, expired ones that are not yet removed included."""
        return len(self._running) + len(self._completed) + len(self._released)

    def near(self, namespace: str, value: str) -> tuple[bytes | None, bytes, int, int] | None:
        """See `NearStore.near`."""
        id_ = (namespace, value)
        if id_ not in self._completed:
            return None
        with self._lock:
            try:
                entry = self._completed[id_]
            except KeyError:  # gone since the look without the lock, which spares new keys the lock
                return None
        if entry.expires <= self._clock() or entry.outcome is None:
            return None
        return entry.fingerprint, entry.outcome, entry.attempt, entry.token

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
        """See `Store.claim`.

        Raises:
            StoreFullError: Records that must not be evicted fill the store, or ``on_full`` is "refuse".
        """
        id_ = (key.namespace, key.value)
        with self._lock:
            now = self._clock()
            if self._expiry.next_due <= now:
                self._sweep(now, _SWEEP_PER_CLAIM)
            found = self._find(id_, now)
            took_over = False
            if found is None:
                if self._refuse_at is not None and self._completed.currsize >= self._refuse_at:
                    what = f"{self._refuse_at} bytes are {_KEPT}; raise max_bytes, or wait until some expire"
                    raise StoreFullError(f"the memory store is full: {what}", key=key)
                if len(self._running) + len(self._completed) + len(self._released) >= self._max_records:
                    self._make_room(key)
                entry = Entry(id_, owner, fingerprint, 1, next(self._tokens), now + lease)
            elif found.lease_end is None:
                if found.outcome is not None or found.owner == owner:
                    return Claim(False, found.record(now), False)
                entry = self._successor(found, owner, fingerprint, now + lease)
            elif found.owner == owner:
                entry = found
                entry.lease_end = now + lease
            elif (
                found.lease_end <= now
                and (take_over is True or take_over == found.owner)
                and (fingerprint is None or found.fingerprint is None or fingerprint == found.fingerprint)
            ):
                took_over = True
                entry = self._successor(found, owner, fingerprint, now + lease)
            else:
                return Claim(False, found.record(now), False)
            self._expiry.put(entry, now + lease + ttl, ttl)
            self._place(entry)
        self._watchers.tell(id_)
        attempt, token, kept = entry.attempt, entry.token, entry.fingerprint
        return Claim(True, Record(_RUNNING, kept, attempt, token, owner, None, lease, lease + ttl), took_over)

    def claim_new(self, id_: Id, owner: str, fingerprint: bytes | None, lease: float, ttl: float) -> int | None:
        """See `InstantStore.claim_new`."""
        with self._lock:
            now = self._clock()
            if self._expiry.next_due <= now:
                self._sweep(now, _SWEEP_PER_CLAIM)
            running = self._running
            if self._find(id_, now) is not None:
                return None
            if len(running) + len(self._completed) + len(self._released) >= self._max_records:
                return None
            if self._refuse_at is not None and self._completed.currsize >= self._refuse_at:
                return None
            entry = Entry(id_, owner, fingerprint, 1, next(self._tokens), now + lease)
            self._expiry.put(entry, now + lease + ttl, ttl)
            running[id_] = entry
        self._watchers.tell(id_)
        return entry.token

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        id_ = (key.namespace, key.value)
        with self._lock:
            now = self._clock()
            entry = self._find(id_, now)
            if entry is None or entry.owner != owner:
                return False
            if entry.lease_end is None:
                self._place(entry)
                return entry.outcome is not None
            if self._max_bytes is not None and self._evicts:
                self._free_bytes(len(outcome) + OVERHEAD, self._max_bytes)
            self._expiry.put(entry, now + ttl, ttl)
            entry.outcome = outcome
            entry.lease_end = None
            self._place(entry)
        self._watchers.tell(id_)
        return True

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        id_ = (key.namespace, key.value)
        with self._lock:
            now = self._clock()
            entry = self._find(id_, now)
            held = entry is not None
            if entry is None:
                if len(self) >= self._max_records:
                    return False  # no room to bar a claim that may be on its way
                entry = Entry(id_, owner, None, 0, next(self._tokens), None)
            elif entry.owner != owner or entry.outcome is not None:
                return False
            elif entry.lease_end is None:
                self._place(entry)
                return entry.attempt > 0
            self._expiry.put(entry, now + ttl, ttl)
            entry.lease_end = None
            self._place(entry)
        self._watchers.tell(id_)
        return held

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        id_ = (key.namespace, key.value)
        with self._lock:
            now = self._clock()
            entry = self._find(id_, now)
            if entry is None or entry.owner != owner or entry.lease_end is None:
                return False
            self._expiry.put(entry, now + lease + ttl, ttl)
            entry.lease_end = now + lease
        if lease == 0:
            self._watchers.tell(id_)
        return True

    def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        with self._lock:
            now = self._clock()
            entry = self._find((key.namespace, key.value), now)
            return None if entry is None else entry.record(now)

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        id_ = (key.namespace, key.value)
        with self._lock:
            entry = self._find(id_, self._clock())
            if entry is None or (owner is not None and entry.owner != owner):
                return False
            self._drop(entry)
        self._watchers.tell(id_)
        return True

    def watch(self, key: Key, wake: Callable[[], None]) -> AbstractContextManager[None]:
        """See `WatchableStore.watch`."""
        return self._watchers.watch((key.namespace, key.value), wake)

    def scan(self, namespace: str) -> Iterator[tuple[Key, Record]]:
        """See `ScannableStore.scan`."""
        for id_ in self._ids(namespace):
            key = Key(*id_)
            record = self.get(key)
            if record is not None:
                yield key, record

    def purge(self, namespace: str) -> int:
        """See `PurgeableStore.purge`."""
        return sum(self.delete(Key(*id_)) for id_ in self._ids(namespace))

    def sweep(self, limit: int = 1000) -> int:
        """See `SweepableStore.sweep`. Records may stay up to a thirty-second of their ttl longer."""
        check_limit(limit, "limit")
        with self._lock:
            return self._sweep(self._clock(), limit)

    def _ids(self, namespace: str) -> list[Id]:
        with self._lock:
            return [
                id_ for ids in (self._running, self._completed, self._released) for id_ in ids if id_[0] == namespace
            ]

    # An interrupt may come between any two steps. So a record is noted to expire before it is kept, takes its new state
    # in one step, and is kept in its new place before it leaves the old one; what is then left over in another place is
    # found there last, and removed with the record. Whoever repeats the call puts it right.

    def _successor(self, found: Entry, owner: str, fingerprint: bytes | None, lease_end: float) -> Entry:
        kept = found.fingerprint if fingerprint is None else fingerprint
        entry = Entry(found.id, owner, kept, found.attempt + 1, next(self._tokens), lease_end)
        entry.bucket = found.bucket
        return entry

    def _place(self, entry: Entry) -> None:
        id_ = entry.id
        if entry.lease_end is not None:
            self._running[id_] = entry
            if id_ in self._released:
                del self._released[id_]
            return
        if entry.outcome is not None:
            try:
                self._completed[id_] = entry
            except KeyError:
                self._mend()
                self._completed[id_] = entry
        else:
            self._released[id_] = entry
        if id_ in self._running:
            del self._running[id_]

    def _find(self, id_: Id, now: float) -> Entry | None:
        entry = self._running.get(id_)
        if entry is None:
            entry = self._completed[id_] if id_ in self._completed else self._released.get(id_)
            if entry is None:
                return None
        if entry.expires <= now:
            self._drop(entry)
            return None
        return entry

    def _drop(self, entry: Entry) -> None:
        id_ = entry.id
        self._running.pop(id_, None)
        if id_ in self._completed:
            try:
                del self._completed[id_]
            except KeyError:
                self._mend(without=id_)
        self._released.pop(id_, None)
        self._expiry.take_out(entry)

    def _free_bytes(self, size: int, limit: int) -> None:
        while self._completed and self._completed.currsize + size > limit:
            self._evict()

    def _make_room(self, key: Key) -> None:
        while len(self) >= self._max_records:
            if self._released:
                id_, entry = next(iter(self._released.items()))
                if id_ in self._running:  # an interrupt left it: the key is claimed again
                    del self._released[id_]
                else:
                    self._drop(entry)
            elif self._completed and self._evicts:
                self._evict()
            else:
                used, what = (len(self), _KEPT) if self._completed else (len(self._running), "running or in doubt")
                raise StoreFullError(
                    f"the memory store is full: {used} of {self._max_records} records are {what}; raise max_records",
                    key=key,
                )

    def _evict(self) -> None:
        try:
            _, entry = self._completed.popitem()
        except KeyError:
            self._mend()  # whoever makes room looks again
        else:
            self._expiry.take_out(entry)
            self._evictions += 1

    def _mend(self, without: Id | None = None) -> None:
        # LRUCache takes several steps to keep or to remove a record; an interrupt between them leaves its order and its
        # sizes with keys that are gone, or without some that are there. This is as long as the store, and as rare.
        mended = new_cache(self._max_bytes)
        for id_ in list(self._completed):
            entry = self._completed.get(id_)
            if entry is not None and id_ != without:
                mended[id_] = entry
        self._completed = mended

    def _sweep(self, now: float, limit: int) -> int:
        swept = 0
        while swept < limit and (id_ := self._expiry.pop(now)) is not None:
            self._find(id_, now)
            swept += 1
        return swept
