"""Contract cases: the optional abilities, each only for a store that has it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pytest

from idempo.protocols import (
    InstantStore,
    NearStore,
    PurgeableStore,
    ScannableStore,
    Store,
    SweepableStore,
    WatchableStore,
)
from idempo.records import Key, State
from idempo.testing._case import LONG, PAYLOAD, Case
from idempo.testing._key_cases import TEXTS
from idempo.testing.bridge import PATIENCE

_Ability = TypeVar("_Ability")


def _leave_doubt(store: Store, key: Key) -> object:
    return store.renew(key, owner="owner-a", lease=0, ttl=LONG)


def _take_over(store: Store, key: Key) -> object:
    return store.claim(key, owner="owner-b", fingerprint=None, lease=LONG, ttl=LONG).acquired


_CHANGES: dict[str, list[Callable[[Store, Key], object]]] = {
    "claim": [lambda store, key: store.claim(key, owner="owner-a", fingerprint=None, lease=LONG, ttl=LONG).acquired],
    "complete": [lambda store, key: store.complete(key, owner="owner-a", outcome=b"outcome", ttl=LONG)],
    "release": [lambda store, key: store.release(key, owner="owner-a", ttl=LONG)],
    "renew-to-doubt": [_leave_doubt],
    "take-over": [_leave_doubt, _take_over],
    "delete": [lambda store, key: store.delete(key)],
}


class AbilityCases(Case):
    """Watching, scanning, purging, sweeping, and answering from near memory."""

    @pytest.mark.parametrize("change", _CHANGES)
    def test_a_watcher_is_woken_by_a_change(self, subject: Store, change: str) -> None:
        """Behaviour 13: by each kind of change that a waiter waits for."""
        store = _with(subject, WatchableStore)
        key = self.key()
        if change != "claim":
            self.held(subject, key)
        *before, last = _CHANGES[change]
        for step in before:
            step(subject, key)
        woken = threading.Event()
        with store.watch(key, woken.set):
            assert last(subject, key)
            assert woken.wait(PATIENCE), f"{change} woke nobody"

    def test_every_watcher_of_a_key_is_woken(self, subject: Store) -> None:
        """And one who has left is not."""
        store = _with(subject, WatchableStore)
        key = self.key()
        self.held(subject, key)
        first, second, left = threading.Event(), threading.Event(), threading.Event()
        with store.watch(key, left.set):
            pass
        with store.watch(key, first.set), store.watch(key, second.set):
            subject.complete(key, owner="owner-a", outcome=b"outcome", ttl=LONG)
            assert first.wait(PATIENCE)
            assert second.wait(PATIENCE)
        assert not left.is_set()

    def test_a_change_after_entering_is_never_missed(self, subject: Store) -> None:
        """Behaviour 11: who enters, reads that nothing has come yet, and waits, is woken."""
        store = _with(subject, WatchableStore)
        for number in range(20):
            key = self.key(f"order-{number}")
            self.held(subject, key)

            def act(role: int, key: Key = key) -> bool:
                if role == 0:
                    return subject.complete(key, owner="owner-a", outcome=b"outcome", ttl=LONG)
                woken = threading.Event()
                with store.watch(key, woken.set):
                    record = subject.get(key)
                    assert record is not None
                    return record.state is State.COMPLETED or woken.wait(PATIENCE)

            assert all(self.race(act, threads=3))

    def test_scan_yields_the_live_records_of_one_namespace(self, subject: Store) -> None:
        """With their keys exactly as they were given, and in any state."""
        store = _with(subject, ScannableStore)
        keys = {self.key(text): b"%d" % number for number, text in enumerate(TEXTS)}
        for key, outcome in keys.items():
            self.completed(subject, key, outcome=outcome)
        for neighbour in self._neighbours():
            self.held(subject, neighbour)
        found = list(store.scan(self.namespace))
        assert {key: record.outcome for key, record in found} == keys
        assert len(found) == len(keys)
        for key, record in found[:5]:
            self.assert_same(record, subject.get(key))

    def test_scan_leaves_out_expired_records(self, subject: Store) -> None:
        """They are absent, whether or not they have been removed."""
        store = _with(subject, ScannableStore)
        self.completed(subject, self.key("expired"), ttl=self.unit)
        self.doubtful(subject, self.key("doubt"))
        self.released(subject, self.key("released"))
        self.advance(2 * self.unit)
        states = {key.value: record.state for key, record in store.scan(self.namespace)}
        assert states == {"doubt": State.RUNNING, "released": State.RELEASED}
        assert list(store.scan(self.namespace + "-empty")) == []

    def test_purge_removes_one_namespace_only(self, subject: Store) -> None:
        """Behaviour 52: in whatever state its records are, and none of a namespace that looks alike."""
        store = _with(subject, PurgeableStore)
        self.held(subject, self.key("running"))
        self.doubtful(subject, self.key("doubt"))
        self.completed(subject, self.key("completed"))
        self.released(subject, self.key("released"))
        others = self._neighbours()
        for other in others:
            self.completed(subject, other)
        assert store.purge(self.namespace) == 4
        for name in ("running", "doubt", "completed", "released"):
            assert subject.get(self.key(name)) is None
        for other in others:
            assert subject.get(other) is not None, f"{other!r} went with {self.namespace!r}"
        assert store.purge(self.namespace) == 0
        assert subject.complete(self.key("running"), owner="owner-a", outcome=b"", ttl=LONG) is False

    def test_sweep_refuses_what_is_no_number_of_records(self, subject: Store) -> None:
        """Behaviour 52: before anything is removed; "-1" would be all to some servers."""
        store = _with(subject, SweepableStore)
        refused: list[tuple[Any, type[Exception]]] = [
            (0, ValueError),
            (-1, ValueError),
            ("3", TypeError),
            (2.5, TypeError),
        ]
        for limit, error in refused:
            with pytest.raises(error):
                store.sweep(limit)

    def test_sweep_removes_expired_records_in_bounded_batches(self, subject: Store) -> None:
        """Behaviour 52: and never one that has not expired."""
        store = _with(subject, SweepableStore)
        for number in range(7):
            self.completed(subject, self.key(f"expired-{number}"), ttl=self.unit)
        self.claim(subject, self.key("lapsed"), lease=self.unit)
        live = [self.key("lapsed"), self.key("running"), self.key("completed"), self.key("released")]
        self.held(subject, live[1])
        self.completed(subject, live[2])
        self.released(subject, live[3])
        self.advance(2 * self.unit)
        before = [subject.get(key) for key in live]
        removed = []
        while batch := store.sweep(limit=3):
            removed.append(batch)
            assert batch <= 3
            assert len(removed) < 10_000, "sweep finds something for ever"
        assert sum(removed) >= 7
        assert store.sweep() == 0
        for key, record in zip(live, before, strict=True):
            assert record is not None
            self.assert_same(record, subject.get(key))

    def test_near_answers_completed_records_only(self, subject: Store) -> None:
        """Behaviour 55: or says nothing; never longer than the record lives."""
        store = _with(subject, NearStore)
        for name, leave in (("running", self.held), ("doubt", self.doubtful), ("released", self.released)):
            leave(subject, self.key(name))
            assert store.near(self.namespace, name) is None
        assert store.near(self.namespace, "absent") is None
        kept = self.completed(subject, self.key("kept"), outcome=b"", ttl=LONG)
        self.completed(subject, self.key("brief"), ttl=self.unit)
        self.completed(subject, self.key("deleted"))
        self.claim(subject, self.key("kept"), "owner-b")
        assert store.near(self.namespace, "kept") in (None, (PAYLOAD, b"", 1, kept.token))
        subject.delete(self.key("deleted"))
        assert store.near(self.namespace, "deleted") is None
        self.advance(2 * self.unit)
        assert store.near(self.namespace, "brief") is None

    def test_a_new_key_claimed_at_once_is_claimed_as_any_other(self, subject: Store) -> None:
        """Behaviours 21, 27: the same record as by ``claim``, and nothing at all where there is one already."""
        store = _with(subject, InstantStore)
        new, token = self.key("new"), None
        for _ in range(2):
            claimed = store.claim_new((new.namespace, new.value), "owner-a", PAYLOAD, LONG, LONG)
            assert (claimed is None) == (token is not None)
            token = claimed or token
            record = self.stands(subject, new, State.RUNNING)
            assert (record.owner, record.fingerprint, record.attempt, record.token) == ("owner-a", PAYLOAD, 1, token)
            assert record.lease_left == pytest.approx(LONG, abs=self.unit)
            assert record.expires_in == pytest.approx(2 * LONG, abs=self.unit)
        for name, leave in (("done", self.completed), ("doubt", self.doubtful), ("released", self.released)):
            leave(subject, self.key(name))
            before = subject.get(self.key(name))
            assert store.claim_new((self.namespace, name), "owner-b", PAYLOAD, LONG, LONG) is None
            after = subject.get(self.key(name))
            assert before is not None
            assert after is not None
            assert (after.state, after.owner, after.token) == (before.state, before.owner, before.token)
        subject.delete(new)
        again = store.claim_new((new.namespace, new.value), "owner-b", None, LONG, LONG)
        assert token is not None
        assert again is not None
        assert again > token

    def _neighbours(self) -> list[Key]:
        name = self.namespace
        spellings = {name[:-1], name.upper(), name.title(), "%", "*", "_" * len(name), "?" * len(name)}
        spellings |= {name + text for text in ("x", "/x", ":x", "%", "*", "_", " ", "\0", "\n", ".", "-1")}
        # A case may run on a store that others use; so no neighbour is a record of theirs.
        return [Key(spelling, f"neighbour of {name}") for spelling in sorted(spellings)]


def _with(store: object, ability: Callable[..., _Ability]) -> _Ability:
    # A protocol cannot be made, so type checkers do not take it for a `type`; a callable it is.
    protocol = cast("type[_Ability]", ability)
    if not isinstance(store, protocol):
        pytest.skip(f"this store is no {protocol.__name__}")
    return store
