"""What every group of contract cases stands on: the store, its time, keys of one's own, and races."""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import pytest

from idempo.protocols import Store
from idempo.records import Claim, Key, Record, State
from idempo.testing.bridge import PATIENCE
from idempo.testing.clock import FakeClock

_T = TypeVar("_T")

LONG: Final = 3600.0
"""A lease or ttl, in seconds, that does not run out within a case."""

PAYLOAD: Final = b"\x01payload"
"""The fingerprint that cases claim with unless they are about fingerprints."""


class Case:
    """The tools of a case, and the settings of a suite; see `StoreContract` for what they mean."""

    unit: float = 0.2
    tolerance: float = 5.0
    threads: int = 8
    largest_outcome: int = 1 << 20
    tokens_survive_delete: bool = True
    own_clock: bool = False

    _clock: FakeClock | None = None

    @pytest.fixture
    def clock(self) -> FakeClock:
        """A clock for the store; a suite whose ``store`` fixture asks for it turns it instead of sleeping."""
        self._clock = FakeClock()
        return self._clock

    def advance(self, seconds: float) -> None:
        """Let this many seconds pass by the store's clock."""
        if self._clock is None:
            time.sleep(seconds)
        else:
            self._clock.advance(seconds)

    def tick(self) -> None:
        """Let the store's clock show another time than before."""
        self.advance(0.001)

    @functools.cached_property
    def namespace(self) -> str:
        """A namespace that no other case uses: the store may be shared, and may remember earlier runs."""
        return f"contract-{secrets.token_hex(6)}"

    def key(self, value: str = "order-42") -> Key:
        """A key in the case's own namespace."""
        return Key(self.namespace, value)

    def claim(
        self,
        store: Store,
        key: Key,
        owner: str = "owner-a",
        *,
        fingerprint: bytes | None = PAYLOAD,
        lease: float = LONG,
        ttl: float = LONG,
        take_over: bool | str = True,
    ) -> Claim:
        """Claim, with everything that a case does not care about filled in."""
        return store.claim(key, owner=owner, fingerprint=fingerprint, lease=lease, ttl=ttl, take_over=take_over)

    def held(
        self, store: Store, key: Key, owner: str = "owner-a", *, fingerprint: bytes | None = PAYLOAD, ttl: float = LONG
    ) -> Record:
        """Let the owner hold the key, and return its record."""
        claim = self.claim(store, key, owner, fingerprint=fingerprint, ttl=ttl)
        assert claim.acquired, f"{key!r} could not be claimed to begin with: {claim!r}"
        return claim.record

    def doubtful(
        self, store: Store, key: Key, owner: str = "owner-a", *, fingerprint: bytes | None = PAYLOAD
    ) -> Record:
        """Leave the key in doubt under the owner, and return the record of its claim."""
        record = self.held(store, key, owner, fingerprint=fingerprint)
        assert store.renew(key, owner=owner, lease=0, ttl=LONG), "renew by the holder was refused"
        return record

    def completed(
        self,
        store: Store,
        key: Key,
        owner: str = "owner-a",
        *,
        fingerprint: bytes | None = PAYLOAD,
        outcome: bytes = b"outcome",
        ttl: float = LONG,
    ) -> Record:
        """Let the owner claim and complete the key, and return the record as read back."""
        self.held(store, key, owner, fingerprint=fingerprint)
        assert store.complete(key, owner=owner, outcome=outcome, ttl=ttl), "complete by the holder was refused"
        return self.stands(store, key, State.COMPLETED)

    def released(
        self,
        store: Store,
        key: Key,
        owner: str = "owner-a",
        *,
        fingerprint: bytes | None = PAYLOAD,
        ttl: float = LONG,
    ) -> Record:
        """Let the owner claim and release the key, and return the record as read back."""
        self.held(store, key, owner, fingerprint=fingerprint)
        assert store.release(key, owner=owner, ttl=ttl), "release by the holder was refused"
        return self.stands(store, key, State.RELEASED)

    def stands(self, store: Store, key: Key, state: State) -> Record:
        """Read the record that must be there, in this state."""
        record = store.get(key)
        assert record is not None, f"the record of {key!r} is gone; it should be {state}"
        assert record.state is state
        return record

    def assert_same(self, before: Record | None, after: Record | None) -> None:
        """A record is what it was, save for the time that has passed."""
        assert _timeless(before) == _timeless(after), "a call that must change nothing changed the record"
        if before is not None and after is not None:
            assert before.expires_in - self.tolerance <= after.expires_in <= before.expires_in + 0.01
            if before.lease_left is not None and after.lease_left is not None:
                assert before.lease_left - self.tolerance <= after.lease_left <= before.lease_left + 0.01

    def assert_about(self, seconds: float | None, expected: float) -> None:
        """A duration is what was asked for, as closely as a store that is asked a moment later can tell."""
        assert seconds is not None
        assert expected - self.tolerance <= seconds <= expected + self.tolerance

    def race(self, work: Callable[[int], _T], threads: int | None = None) -> Sequence[_T]:
        """Run ``work(0)``, ``work(1)``, … at once, one thread each, and return what they return, in that order."""
        count = self.threads if threads is None else threads
        barrier = threading.Barrier(count)

        def run(number: int) -> _T:
            barrier.wait(PATIENCE)
            return work(number)

        with ThreadPoolExecutor(count) as pool:
            return [future.result(PATIENCE) for future in [pool.submit(run, number) for number in range(count)]]


def _timeless(record: Record | None) -> tuple[object, ...] | None:
    if record is None:
        return None
    return (record.state, record.fingerprint, record.attempt, record.token, record.owner, record.outcome)
