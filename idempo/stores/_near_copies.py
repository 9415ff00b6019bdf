"""What CachedStore and its asynchronous twin share: copies of completed records, and when one may be kept.

No I/O. An answer of the far store may be on its way while the record is removed; so every request is noted until its
answer is there, and what happens to the key meanwhile makes that answer one that is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Self, TypeAlias

import attrs
from cachetools import LRUCache

from idempo._fork import new_lock
from idempo.records import Claim, Key, Record, State

_Id: TypeAlias = tuple[str, str]

OVERHEAD: Final = 900  # bytes of a copy beside its outcome, as measured

_COMPLETED: Final = State.COMPLETED  # reading a member off its class is a call into Python until 3.12


class _Copy:
    """A completed record, as the far store told it."""

    __slots__ = ("record", "told", "until")

    def __init__(self, record: Record, told: float, until: float) -> None:
        self.record = record
        self.told = told  # no later than the far store's own point in time
        self.until = until


class Copies:
    """Completed records at hand, least recently used ones evicted first.

    Args:
        max_records: The most copies at once.
        max_bytes: The most bytes of them, by estimate.
        ttl: How long a copy is used at most, in seconds from when the request for it was sent.
        clock: Gives seconds, and never runs back.
        exact: Whether the far store knows how long a completed record still lives. Where it does not, what it tells of
            one is not kept: nobody here can say until when. Only outcomes that this process stored are.
    """

    def __init__(
        self, max_records: int, max_bytes: int, ttl: float, clock: Callable[[], float], *, exact: bool = True
    ) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._clock = clock
        self._exact = exact
        self._lock = new_lock()
        self._copies = self._new()
        self._held: dict[_Id, Record] = {}
        """Claims by this process: `complete` is not told the fingerprint."""
        self._asked: dict[_Id, list[Asked]] = {}
        """Requests whose answers are on their way; in a forked child those of its parent stay, some few."""

    def __len__(self) -> int:
        """How many copies are kept, those past their time included."""
        return len(self._copies)

    def near(self, namespace: str, value: str) -> tuple[bytes | None, bytes, int, int] | None:
        """See `NearStore.near`."""
        copy = self._find((namespace, value))
        if copy is None:
            return None
        record = copy.record
        return record.fingerprint, record.outcome or b"", record.attempt, record.token

    def refused(self, key: Key) -> Claim | None:
        """Return what a claim of the key is answered, if there is a copy: it is taken already."""
        copy = self._find((key.namespace, key.value))
        if copy is None:
            return None
        left = copy.record.expires_in - (self._clock() - copy.told)
        return Claim(False, attrs.evolve(copy.record, expires_in=left), False)

    def ask(self, key: Key) -> Asked:
        """Return a context for a request that changes nothing where the record is completed."""
        return Asked(self, (key.namespace, key.value), self._clock())

    def take(self, key: Key) -> Taking:
        """Return a context for a claim, which changes nothing where the record is completed."""
        return Taking(self, (key.namespace, key.value), self._clock())

    def write(self, key: Key) -> Write:
        """Return a context for a request after which no copy that was made before it may be used."""
        return Write(self, (key.namespace, key.value), self._clock())

    def complete(self, key: Key, owner: str) -> Completion:
        """Return a context for a request that keeps the outcome of the owner's operation."""
        id_ = (key.namespace, key.value)
        with self._lock:
            held = self._held.get(id_)
            if held is not None and held.owner == owner:
                # For this request alone: a second one may be a repetition, and the far record older than it seems.
                del self._held[id_]
            else:
                held = None
        return Completion(self, id_, self._clock(), held)

    def drop_all(self, namespace: str) -> None:
        """Use no copy of this namespace any more, nor any answer that is on its way."""
        with self._lock:
            ids = [id_ for id_ in [*self._copies, *self._asked] if id_[0] == namespace]
        for id_ in ids:
            self.drop(id_)

    def drop(self, id_: _Id) -> None:
        """Use no copy of this key any more, nor any answer that is on its way."""
        with self._lock:
            for asked in self._asked.get(id_, ()):
                asked.stands = False
            self._pop(id_)

    def hold(self, id_: _Id, record: Record) -> None:
        """Note a claim that this process holds."""
        with self._lock:
            self._held.pop(id_, None)
            while len(self._held) >= self._max_records:
                del self._held[next(iter(self._held))]  # its outcome will not be kept near: that costs a request
            self._held[id_] = record

    def seen(self, asked: Asked, record: Record) -> None:
        """Take note that the far store says of a record that it is completed."""
        if self._exact:
            self.keep(asked, record)
            return
        copy = self._find(asked.id)
        # A copy of this very record stays, and for no longer than it would have: it is ours, so we know how long.
        if copy is None or copy.record.token != record.token or copy.record.owner != record.owner:
            self.drop(asked.id)

    def keep(self, asked: Asked, record: Record) -> None:
        """Keep a completed record that was the answer to this request, if nothing has happened to the key since."""
        until = asked.sent + min(record.expires_in, self._ttl)
        copy = _Copy(record, asked.sent, until)
        if until <= self._clock() or _bytes_of(copy) > self._max_bytes:
            return
        with self._lock:
            if asked.stands:
                try:
                    self._put(asked.id, copy)
                except KeyError:
                    self._copies = self._new()
                    self._copies[asked.id] = copy

    def register(self, asked: Asked) -> None:
        """Note a request that is about to be sent."""
        with self._lock:
            self._asked.setdefault(asked.id, []).append(asked)

    def unregister(self, asked: Asked) -> None:
        """Note that the request was answered, or will not be."""
        with self._lock:
            others = [other for other in self._asked.get(asked.id, ()) if other is not asked]
            if others:
                self._asked[asked.id] = others
            else:
                self._asked.pop(asked.id, None)

    def _find(self, id_: _Id) -> _Copy | None:
        if id_ not in self._copies:  # a look without the lock, which spares new keys the lock
            return None
        with self._lock:
            try:
                copy = self._copies[id_]
            except KeyError:
                return None
            if copy.until > self._clock():
                return copy
            self._pop(id_)
        return None

    def _put(self, id_: _Id, copy: _Copy) -> None:
        before = self._copies.get(id_)
        if before is not None and before.record.token > copy.record.token:
            return  # this answer was overtaken by a later one
        while len(self._copies) >= self._max_records and id_ not in self._copies:
            self._copies.popitem()
        self._copies[id_] = copy

    def _pop(self, id_: _Id) -> None:
        if id_ in self._copies:
            try:
                del self._copies[id_]
            except KeyError:
                self._copies = self._new()

    def _new(self) -> LRUCache[_Id, _Copy]:
        # Also in place of one that an interrupt has left half changed, which it tells by a KeyError: copies can go.
        return LRUCache(self._max_bytes, _bytes_of)


def _bytes_of(copy: _Copy) -> int:
    return len(copy.record.outcome or b"") + OVERHEAD


class Asked:
    """A request to the far store, as a context from before it is sent until its answer is there.

    Attributes:
        id: Of which key.
        sent: When.
        stands: Whether its answer may be kept: nothing has happened to the key since.
    """

    __slots__ = ("_copies", "id", "sent", "stands")

    def __init__(self, copies: Copies, id_: _Id, sent: float) -> None:
        self._copies = copies
        self.id = id_
        self.sent = sent
        self.stands = True

    def __enter__(self) -> Self:
        self._copies.register(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._copies.unregister(self)

    def found(self, record: Record | None) -> Record | None:
        """Take note of how the record stands, and return it."""
        if record is not None and record.state is _COMPLETED:
            self._copies.seen(self, record)
        else:
            self._copies.drop(self.id)
        return record


class Taking(Asked):
    """A claim. Where its answer is lost, it may have been taken: what is known of the key may be of an older life."""

    __slots__ = ()

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is not None:
            self._copies.drop(self.id)
        super().__exit__()

    def claimed(self, claim: Claim) -> Claim:
        """Take note of the answer, and return it."""
        if isinstance(claim, Claim):  # a store's bug is told by who asked
            self.found(claim.record)
            if claim.acquired:
                self._copies.hold(self.id, claim.record)
        return claim


class Write(Asked):
    """A request after which no copy that was made before it may be used, whether or not it was answered."""

    __slots__ = ()

    def __enter__(self) -> Self:
        # Before, for who is answered from now on may be answered as if it were done; and after, for a claim that was
        # sent in between.
        self._copies.drop(self.id)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._copies.drop(self.id)


class Completion(Asked):
    """A request that keeps an outcome; ``held`` is the claim that it belongs to, where this process made it."""

    __slots__ = ("_held",)

    def __init__(self, copies: Copies, id_: _Id, sent: float, held: Record | None) -> None:
        super().__init__(copies, id_, sent)
        self._held = held

    def __enter__(self) -> Self:
        self._copies.drop(self.id)
        self._copies.register(self)
        return self

    def completed(self, stored: bool, outcome: bytes, ttl: float) -> bool:
        """Take note of the answer, and return it."""
        if stored and self._held is not None:
            record = attrs.evolve(self._held, state=_COMPLETED, outcome=outcome, lease_left=None, expires_in=ttl)
            self._copies.keep(self, record)
        return stored
