"""A record as the memory store keeps it, and the order in which records come due."""

from __future__ import annotations

import heapq
import math
from typing import Final, TypeAlias

from cachetools import LRUCache

from idempo.records import Record, State

Id: TypeAlias = tuple[str, str]

OVERHEAD: Final = 600  # bytes of a completed record beside its outcome, as measured
_SPARSE: Final = 1024  # bytes for each member; a set that is in use takes some 20 to 110, an empty one 200

_RUNNING: Final = State.RUNNING  # reading a member off its class is a call into Python until 3.12


class Entry:
    """A record as kept: with points in time where `Record` has seconds left.

    RUNNING while it has a lease, COMPLETED once it has an outcome, RELEASED with neither.
    """

    __slots__ = ("attempt", "bucket", "expires", "fingerprint", "id", "lease_end", "outcome", "owner", "token")

    def __init__(
        self, id_: Id, owner: str, fingerprint: bytes | None, attempt: int, token: int, lease_end: float | None
    ) -> None:
        self.id = id_  # the very one under which it is kept, in whatever state: each takes 56 bytes
        self.owner = owner
        self.fingerprint = fingerprint
        self.attempt = attempt
        self.token = token
        self.lease_end = lease_end
        self.outcome: bytes | None = None
        self.bucket: _Bucket | None = None

    expires: float

    def record(self, now: float) -> Record:
        """Return the record as it stands at this point in time."""
        lease_end = self.lease_end
        if lease_end is None:
            state, lease_left = State.RELEASED if self.outcome is None else State.COMPLETED, None
        else:
            state, lease_left = _RUNNING, lease_end - now
        return Record(
            state,
            self.fingerprint,
            self.attempt,
            self.token,
            self.owner,
            self.outcome,
            lease_left,
            self.expires - now,
        )


def new_cache(max_bytes: int | None) -> LRUCache[Id, Entry]:
    """Return a cache of completed records that knows their sizes where there is a limit, but obeys none by itself."""
    return LRUCache(math.inf, None if max_bytes is None else _bytes_of)


def _bytes_of(entry: Entry) -> int:
    return len(entry.outcome or b"") + OVERHEAD


class _Bucket:
    """Records that come due between two points in time."""

    __slots__ = ("end", "ids", "start")

    def __init__(self, start: float, end: float) -> None:
        self.start = start
        self.end = end
        self.ids: set[Id] = set()


class Expiry:
    """Which records are due, in buckets of a thirty-second to a sixty-fourth of their ttl.

    A bucket is looked at only when all of it is due, so that finding the next due record is one step, adding and
    removing one are constant, and a record costs a place in a set. (A heap of records would keep removed ones, and
    cachetools' TLRUCache removes everything that is due within one call.)
    """

    __slots__ = ("_buckets", "_ends", "_last", "_last_ttl", "next_due")

    def __init__(self) -> None:
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        self._ends: list[tuple[float, tuple[int, int]]] = []
        # Where a record was put last: the next one of the same ttl mostly goes there too.
        self._last, self._last_ttl = _NOWHERE, math.nan
        self.next_due = math.inf
        """No record is due before this point in time."""

    def put(self, entry: Entry, expires: float, ttl: float) -> None:
        """Note when this record expires, in place of what was noted before."""
        bucket = self._last
        if ttl != self._last_ttl or not bucket.start <= expires < bucket.end:
            self._last_ttl = math.nan  # nothing matches it while the two are no pair
            bucket = self._last = self._find(expires, ttl)
            self._last_ttl = ttl
        before = entry.bucket
        if bucket is not before:
            bucket.ids.add(entry.id)
            entry.bucket = bucket
            if before is not None:
                before.ids.discard(entry.id)
        entry.expires = expires

    def take_out(self, entry: Entry) -> None:
        """Forget when this record expires."""
        assert entry.bucket is not None  # whatever is kept was put
        ids = entry.bucket.ids
        ids.discard(entry.id)
        # A set does not shrink by itself, and a full store evicts whole buckets long before they are due.
        if not ids or ids.__sizeof__() > _SPARSE * len(ids):
            entry.bucket.ids = set(ids)  # in one step: an interrupt leaves the one or the other

    def pop(self, now: float) -> Id | None:
        """Take out one record that is due, if there is any."""
        while self.next_due <= now:
            bucket = self._buckets.get(self._ends[0][1])
            if bucket is not None and bucket.ids:
                return bucket.ids.pop()
            self._last = _NOWHERE  # it may be the one that goes
            self._buckets.pop(heapq.heappop(self._ends)[1], None)
            self.next_due = self._ends[0][0] if self._ends else math.inf
        return None

    def _find(self, expires: float, ttl: float) -> _Bucket:
        width = math.frexp(ttl)[1] - 6
        index = int(math.ldexp(expires, -width))
        bucket = self._buckets.get((width, index))
        if bucket is None:
            bucket = _Bucket(math.ldexp(index, width), math.ldexp(index + 1, width))
            # It comes due before it is filled, also where an interrupt comes between: what is not due would never go.
            heapq.heappush(self._ends, (bucket.end, (width, index)))
            self.next_due = self._ends[0][0]
            self._buckets[width, index] = bucket
        return bucket


_NOWHERE: Final = _Bucket(math.inf, -math.inf)
