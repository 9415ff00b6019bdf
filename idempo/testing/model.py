"""The rules of the protocol in their plainest form: what a store must answer, worked out beside it.

It shares no code with any store, and keeps no token: those are for the store to choose.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from idempo.records import Key, State


@attrs.define
class Remembered:
    """What must be known of a key: times are points on the clock. ``token`` is what the store said it is."""

    state: State
    owner: str
    fingerprint: bytes | None
    attempt: int
    expires: float
    lease_end: float | None = None
    outcome: bytes | None = None
    token: int | None = None


@attrs.frozen
class Answer:
    """What a claim must answer, but for the record, which is the one remembered then."""

    acquired: bool
    took_over: bool
    new: bool


class Model:
    """A store that exists only to be compared with.

    Args:
        clock: The clock of the store that it is compared with.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: dict[Key, Remembered] = {}

    def get(self, key: Key) -> Remembered | None:
        """Return what is known of the key now."""
        kept = self._kept.get(key)
        if kept is not None and kept.expires <= self._clock():
            del self._kept[key]
            return None
        return kept

    def holds(self, key: Key, owner: str) -> bool:
        """Tell whether the owner holds the key."""
        kept = self.get(key)
        return kept is not None and kept.state is State.RUNNING and kept.owner == owner

    def in_doubt(self, key: Key) -> bool:
        """Tell whether the key was claimed and its lease has run out."""
        kept = self.get(key)
        return kept is not None and kept.lease_end is not None and kept.lease_end <= self._clock()

    def claim(
        self, key: Key, owner: str, fingerprint: bytes | None, lease: float, ttl: float, take_over: bool | str
    ) -> Answer:
        """See `Store.claim`."""
        kept = self.get(key)
        lease_end = self._clock() + lease
        if self.holds(key, owner):
            assert kept is not None
            kept.lease_end, kept.expires = lease_end, lease_end + ttl
            return Answer(acquired=True, took_over=False, new=False)
        took_over = (
            kept is not None
            and self.in_doubt(key)
            and take_over in (True, kept.owner)
            and (fingerprint is None or kept.fingerprint is None or fingerprint == kept.fingerprint)
        )
        free = kept is None or (kept.state is State.RELEASED and kept.owner != owner)
        if not free and not took_over:
            return Answer(acquired=False, took_over=False, new=False)
        attempt = 1
        if kept is not None:
            attempt = kept.attempt + 1
            fingerprint = kept.fingerprint if fingerprint is None else fingerprint
        self._kept[key] = Remembered(State.RUNNING, owner, fingerprint, attempt, lease_end + ttl, lease_end)
        return Answer(acquired=True, took_over=took_over, new=True)

    def complete(self, key: Key, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        kept = self.get(key)
        if kept is None or kept.owner != owner:
            return False
        if kept.state is State.RUNNING:
            kept.state, kept.outcome, kept.lease_end = State.COMPLETED, outcome, None
            kept.expires = self._clock() + ttl
        return kept.state is State.COMPLETED

    def release(self, key: Key, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        kept = self.get(key)
        if kept is None:
            self._kept[key] = Remembered(State.RELEASED, owner, None, 0, self._clock() + ttl)
            return False
        if kept.owner != owner:
            return False
        if kept.state is State.RUNNING:
            kept.state, kept.lease_end, kept.expires = State.RELEASED, None, self._clock() + ttl
        return kept.state is State.RELEASED and kept.attempt > 0

    def renew(self, key: Key, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        if not self.holds(key, owner):
            return False
        kept = self._kept[key]
        kept.lease_end = self._clock() + lease
        kept.expires = kept.lease_end + ttl
        return True

    def delete(self, key: Key, owner: str | None) -> bool:
        """See `Store.delete`."""
        kept = self.get(key)
        if kept is None or owner not in (None, kept.owner):
            return False
        del self._kept[key]
        return True

    def purge(self, namespace: str) -> int:
        """See `PurgeableStore.purge`."""
        return sum(self.delete(key, None) for key in list(self._kept) if key.namespace == namespace)

    def keys(self, namespace: str) -> set[Key]:
        """Return the keys of a namespace that have a record."""
        return {key for key in list(self._kept) if key.namespace == namespace and self.get(key) is not None}
