"""`MemoryStore.near` looks before it takes the lock; what changes in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from idempo import Key, MemoryStore

KEY = Key("orders", "o-1")
KEY_ID = (KEY.namespace, KEY.value)


class LateLock:
    """A lock before which another thread comes first, once."""

    def __init__(self, lock: Any, other: Callable[[], object]) -> None:
        self._lock = lock
        self._other: Callable[[], object] | None = other

    def __enter__(self) -> None:
        other, self._other = self._other, None
        if other is not None:
            other()
        self._lock.__enter__()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.__exit__(*exc_info)


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    store.claim(KEY, owner="a", fingerprint=b"f", lease=15.0, ttl=60.0)
    store.complete(KEY, owner="a", outcome=b"done", ttl=60.0)
    return store


def test_a_record_that_is_removed_meanwhile_is_not_at_hand(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_lock", LateLock(store._lock, lambda: store.delete(KEY)))
    assert store.near(*KEY_ID) is None
    assert store.get(KEY) is None


def test_a_record_that_is_replaced_meanwhile_is_given_as_it_stands(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace() -> None:
        store.delete(KEY)
        store.claim(KEY, owner="b", fingerprint=b"g", lease=15.0, ttl=60.0)
        store.complete(KEY, owner="b", outcome=b"done again", ttl=60.0)

    monkeypatch.setattr(store, "_lock", LateLock(store._lock, replace))
    found = store.near(*KEY_ID)
    assert found is not None
    assert found[:3] == (b"g", b"done again", 1)
