"""A state machine for Hypothesis: any sequence of calls, and what a store must answer to each."""

from __future__ import annotations

import functools
import secrets
from typing import Any, Final, TypeAlias, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from idempo.protocols import AsyncStore, PurgeableStore, ScannableStore, Store, SweepableStore
from idempo.records import Key, Record
from idempo.testing.bridge import BlockingStore, LoopThread, is_async
from idempo.testing.clock import FakeClock
from idempo.testing.model import Model

_TICK: Final = 2.0**-10  # added up without a rounding error, and longer than a store's smallest unit of time

# Few of each, so that calls meet.
_Name: TypeAlias = tuple[str, str]
_NAMES: Final[list[_Name]] = [("one", "order-1"), ("one", "order-2"), ("two", "order-1")]
_KEYS = st.sampled_from(_NAMES)
_HOLDER: Final = "(holder)"  # whoever stands in the record then; by chance alone it is seldom named
_CLAIMANTS = st.sampled_from(["owner-a", "owner-b", "owner-c"])
_OWNERS = st.one_of(st.just(_HOLDER), _CLAIMANTS)
_FINGERPRINTS = st.sampled_from([b"\x01one", b"\x01two", b"\x01one", b"\x01two", None])
_OUTCOMES = st.sampled_from([b"", b"\x00", b"outcome", b"\xff" * 1000])
_DURATIONS = st.sampled_from([2.0, 10.0, 3600.0])
_TAKE_OVERS = st.sampled_from([True, True, True, False, _HOLDER, "owner-a"])


class StoreMachine(RuleBasedStateMachine):
    """Makes calls in any order, and holds each answer of a store against a plain model of the protocol.

    Subclass it with a store, and let pytest find its test case:

    >>> from idempo import MemoryStore
    >>> from idempo.testing import StoreMachine
    >>> class MemoryStoreMachine(StoreMachine):
    ...     def make_store(self):
    ...         return MemoryStore(clock=self.clock)
    >>> TestMemoryStore = MemoryStoreMachine.TestCase

    Attributes:
        turns_clock: Whether the store goes by `clock`. Where it has a clock of its own, no time passes: leases end
            only by being renewed with 0.
        tokens_survive_delete: Whether fencing tokens rise over deletion and expiry.
        tolerance: How far a duration that the store tells may be from the one expected, in seconds.
        clock: The `FakeClock` of this run.
    """

    turns_clock: bool = True
    tokens_survive_delete: bool = True
    tolerance: float = 0.01

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        made = self.make_store()
        self.made: Any = made
        self.store: Store = BlockingStore(made, self.loop) if is_async(made) else cast("Store", made)
        self._model = Model(self.clock)
        self._run = secrets.token_hex(6)  # a store that outlives the run must not remember it in the next
        self._tokens: dict[Key, int] = {}

    def make_store(self) -> Store | AsyncStore:
        """Return the store to be driven, which goes by ``self.clock`` if `turns_clock`. Override it."""
        raise NotImplementedError(f"{type(self).__name__} needs a make_store() that returns a store")

    def close_store(self) -> None:
        """Close what `make_store` has opened: ``self.made`` is what it returned."""

    def teardown(self) -> None:
        """End a run."""
        try:
            self.close_store()
        finally:
            if "loop" in self.__dict__:
                self.loop.close()

    @functools.cached_property
    def loop(self) -> LoopThread:
        """The event loop, made when it is first needed."""
        return LoopThread()

    @rule(
        key=_KEYS,
        owner=_CLAIMANTS,
        fingerprint=_FINGERPRINTS,
        lease=_DURATIONS,
        ttl=_DURATIONS,
        take_over=_TAKE_OVERS,
    )
    def claim(
        self, key: _Name, owner: str, fingerprint: bytes | None, lease: float, ttl: float, take_over: bool | str
    ) -> None:
        """Claim: the answer, the record, and the fencing token."""
        named = self._key(key)
        before = self._model.get(named)
        if before is not None and self._model.holds(named, owner):
            fingerprint = before.fingerprint  # a repeated claim is a copy of the first
        if isinstance(take_over, str):
            take_over = self._owner(take_over, named)
        claim = self.store.claim(named, owner=owner, fingerprint=fingerprint, lease=lease, ttl=ttl, take_over=take_over)
        expected = self._model.claim(named, owner, fingerprint, lease, ttl, take_over)
        assert (claim.acquired, claim.took_over) == (expected.acquired, expected.took_over), claim
        if expected.new:
            if before is not None or self.tokens_survive_delete:
                assert claim.record.token > self._tokens.get(named, -1), "a later claim has no greater token"
            self._tokens[named] = claim.record.token
        self._assert_is(claim.record, named)

    @rule(key=_KEYS, owner=_OWNERS, outcome=_OUTCOMES, ttl=_DURATIONS)
    def complete(self, key: _Name, owner: str, outcome: bytes, ttl: float) -> None:
        """Complete, by whoever."""
        named = self._key(key)
        owner = self._owner(owner, named)
        answer = self.store.complete(named, owner=owner, outcome=outcome, ttl=ttl)
        assert answer is self._model.complete(named, owner, outcome, ttl)

    @rule(key=_KEYS, owner=_OWNERS, ttl=_DURATIONS)
    def release(self, key: _Name, owner: str, ttl: float) -> None:
        """Release, by whoever."""
        named = self._key(key)
        owner = self._owner(owner, named)
        answer = self.store.release(named, owner=owner, ttl=ttl)
        assert answer is self._model.release(named, owner, ttl)

    @rule(key=_KEYS, owner=_OWNERS, lease=st.one_of(st.just(0.0), _DURATIONS), ttl=_DURATIONS)
    def renew(self, key: _Name, owner: str, lease: float, ttl: float) -> None:
        """Renew, by whoever; with 0 the record is in doubt."""
        named = self._key(key)
        owner = self._owner(owner, named)
        answer = self.store.renew(named, owner=owner, lease=lease, ttl=ttl)
        assert answer is self._model.renew(named, owner, lease, ttl)

    @rule(key=_KEYS, owner=st.one_of(st.none(), _OWNERS))
    def delete(self, key: _Name, owner: str | None) -> None:
        """Delete, by an owner or by anybody."""
        named = self._key(key)
        owner = owner and self._owner(owner, named)
        assert self.store.delete(named, owner=owner) is self._model.delete(named, owner)

    @rule(key=_KEYS)
    def fail(self, key: _Name) -> None:
        """Leave the key in doubt, as a holder does whose function failed."""
        self.renew(key, _HOLDER, 0.0, 3600.0)

    @precondition(lambda self: self.turns_clock)
    @rule(seconds=st.sampled_from([1.25, 2.5, 9.25, 11.5, 3600.5]))
    def pass_time(self, seconds: float) -> None:
        """Let leases run out and records expire."""
        self.clock.advance(seconds)

    @precondition(lambda self: isinstance(self.store, PurgeableStore))
    @rule(key=_KEYS)
    def purge(self, key: _Name) -> None:
        """Purge a namespace."""
        assert isinstance(self.store, PurgeableStore)
        namespace = self._key(key).namespace
        assert self.store.purge(namespace) == self._model.purge(namespace)

    @precondition(lambda self: isinstance(self.store, ScannableStore))
    @rule(key=_KEYS)
    def scan(self, key: _Name) -> None:
        """Scan a namespace."""
        assert isinstance(self.store, ScannableStore)
        namespace = self._key(key).namespace
        assert {found for found, _ in self.store.scan(namespace)} == self._model.keys(namespace)

    @precondition(lambda self: isinstance(self.store, SweepableStore))
    @rule(limit=st.integers(min_value=1, max_value=3))
    def sweep(self, limit: int) -> None:
        """Sweep: bounded, and what is live stays (which the invariant sees)."""
        assert isinstance(self.store, SweepableStore)
        assert self.store.sweep(limit) <= limit

    @invariant()
    def every_record_is_as_it_must_be(self) -> None:
        """A call that changed what it must not have changed is seen at once."""
        if self.turns_clock:
            self.clock.advance(_TICK)
        for namespace, value in _NAMES:
            named = self._key((namespace, value))
            record = self.store.get(named)
            if record is None:
                assert self._model.get(named) is None, f"the record of {named!r} is gone"
            else:
                self._assert_is(record, named)

    def _key(self, name: _Name) -> Key:
        namespace, value = name
        return Key(f"{self._run}-{namespace}", value)

    def _owner(self, owner: str, key: Key) -> str:
        kept = self._model.get(key)
        return owner if owner != _HOLDER or kept is None else kept.owner

    def _assert_is(self, record: Record, key: Key) -> None:
        kept = self._model.get(key)
        assert kept is not None, f"there must be no record of {key!r}, but there is {record!r}"
        told = (record.state, record.owner, record.fingerprint, record.attempt, record.outcome)
        assert told == (kept.state, kept.owner, kept.fingerprint, kept.attempt, kept.outcome)
        if kept.attempt:  # else nobody was ever given the record's token
            assert record.token == self._tokens[key], "the token changed without a claim"
        if not self.turns_clock:
            return
        assert abs(record.expires_in - (kept.expires - self.clock())) <= self.tolerance
        if kept.lease_end is None:
            assert record.lease_left is None
        else:
            assert record.lease_left is not None
            left = kept.lease_end - self.clock()
            # Zero or less once it has run out; how long ago, a store need not know.
            assert record.lease_left <= 0 if left <= 0 else abs(record.lease_left - left) <= self.tolerance
