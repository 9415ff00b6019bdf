"""MemoryStore when it is full: what a refused claim leaves, and what is never forgotten."""

from __future__ import annotations

import threading
from typing import Any, Literal

import pytest

from idempo import Idempotency, Key, MemoryStore, State
from idempo.errors import StoreFullError

PATIENCE = 20  # seconds; no test waits that long unless it fails


def key(number: object) -> Key:
    return Key("orders", f"o-{number}")


def complete(store: MemoryStore, number: object, *, outcome: bytes = b"outcome") -> None:
    assert store.claim(key(number), owner="ann", fingerprint=None, lease=60, ttl=600).acquired
    assert store.complete(key(number), owner="ann", outcome=outcome, ttl=600)


def kept(store: MemoryStore) -> set[str]:
    return {found.value for found, _ in store.scan("orders")}


def test_no_call_gets_in_after_one_that_was_refused() -> None:
    """Behaviour 39: what a refused call leaves is no room for the next one."""
    store = MemoryStore(max_records=2)
    guard = Idempotency(store, namespace="orders")
    running, end = threading.Semaphore(0), threading.Event()

    def hold() -> None:
        running.release()
        assert end.wait(PATIENCE)

    threads = [threading.Thread(target=guard.run, args=(f"o-{number}", hold), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
        assert running.acquire(timeout=PATIENCE)
    try:
        for number in range(2, 12):
            with pytest.raises(StoreFullError):
                guard.run(f"o-{number}", pytest.fail)
            assert kept(store) == {"o-0", "o-1"}
    finally:
        end.set()
        for thread in threads:
            thread.join(PATIENCE)


@pytest.mark.parametrize("max_bytes", [None, 10**6])
def test_a_store_that_refuses_forgets_no_outcome_however_often_it_refuses(max_bytes: int | None) -> None:
    """Behaviour 41: and says with `evictions` what is true."""
    store = MemoryStore(max_records=2, max_bytes=max_bytes, on_full="refuse")
    guard = Idempotency(store)
    ran: list[str] = []
    for one in "ab":
        guard.run(one, ran.append, one)
    for one in "cdefc":
        with pytest.raises(StoreFullError):
            guard.run(one, ran.append, one)
    for one in "ab":
        guard.run(one, ran.append, one)
    assert ran == ["a", "b"]
    assert store.evictions == 0


def test_the_release_of_an_absent_key_is_kept_only_where_there_is_room() -> None:
    """Behaviour 41: so that no number of them makes the store grow; below the limit it bars a late claim."""
    store = MemoryStore(max_records=3)
    complete(store, "done")
    for number in range(100):
        assert not store.release(key(number), owner="ann", ttl=60)
    assert kept(store) == {"o-done", "o-0", "o-1"}
    late = store.claim(key(0), owner="ann", fingerprint=None, lease=60, ttl=600)
    assert not late.acquired
    assert late.record.state is State.RELEASED


@pytest.mark.parametrize("on_full", ["evict", "refuse"])
def test_room_is_made_until_there_is_some(on_full: Literal["evict", "refuse"]) -> None:
    """Behaviour 39: however many records there are beyond the limit; claims that run stay."""
    store = MemoryStore(max_records=6, on_full=on_full)
    for number in range(6):
        assert store.claim(key(number), owner="ann", fingerprint=None, lease=60, ttl=600).acquired
        if number < 4:
            assert store.release(key(number), owner="ann", ttl=60)
    store._max_records = 3
    assert store.claim_new(("orders", "o-new"), "ann", None, 60, 600) is None
    assert store.claim(key("new"), owner="ann", fingerprint=None, lease=60, ttl=600).acquired
    assert kept(store) == {"o-4", "o-5", "o-new"}


def test_a_claim_that_is_still_noted_as_released_is_not_dropped_for_room() -> None:
    """Behaviour 39: as an interrupt of the claim leaves it."""
    store = MemoryStore(max_records=2)
    store.claim(key(1), owner="ann", fingerprint=None, lease=60, ttl=600)
    store.release(key(1), owner="ann", ttl=60)
    left = store._released[("orders", "o-1")]
    store.claim(key(1), owner="bob", fingerprint=None, lease=60, ttl=600)
    store._released[left.id] = left
    store.claim(key(2), owner="ann", fingerprint=None, lease=60, ttl=600)
    assert kept(store) == {"o-1", "o-2"}
    with pytest.raises(StoreFullError):
        store.claim(key(3), owner="ann", fingerprint=None, lease=60, ttl=600)


def test_a_key_can_be_claimed_again_and_again_at_the_limit() -> None:
    """Behaviour 41: a store at its limit takes the end of each operation that it let in."""
    store: Any = MemoryStore(max_records=1, on_full="refuse")
    store.claim(key(1), owner="ann", fingerprint=None, lease=60, ttl=600)
    assert store.complete(key(1), owner="ann", outcome=b"x", ttl=600)
    assert store.complete(key(1), owner="ann", outcome=b"x", ttl=600)
    assert store.get(key(1)).outcome == b"x"


def test_a_store_that_refuses_forgets_no_outcome_for_a_large_one() -> None:
    """Behaviour 41: its bytes, too, are a reason to let nobody in, and none to forget who was there."""
    store = MemoryStore(max_bytes=4000, on_full="refuse")
    guard = Idempotency(store)
    guard.run("small", lambda: b"s")
    assert guard.run("large", lambda: b"l" * 10_000)
    with pytest.raises(
        StoreFullError, match="full: 4000 bytes are kept, and nothing is evicted; raise max_bytes, or wait"
    ):
        guard.run("late", pytest.fail)
    assert store.claim_new(("default", "late"), "ann", None, 60, 600) is None
    assert guard.run("small", pytest.fail) == b"s"
    assert guard.run("large", pytest.fail) == b"l" * 10_000
    assert store.evictions == 0
    assert guard.forget("large")
    assert guard.run("late", lambda: "in") == "in"


@pytest.mark.parametrize(
    ("on_full", "says"),
    [
        ("evict", "2 of 2 records are running or in doubt"),
        ("refuse", "2 of 2 records are kept, and nothing is evicted"),
    ],
)
def test_a_full_store_says_with_what(on_full: Literal["evict", "refuse"], says: str) -> None:
    """Behaviour 39: and what to do."""
    store = MemoryStore(max_records=2, on_full=on_full)
    complete(store, 1)
    store.claim(key(2), owner="ann", fingerprint=None, lease=60, ttl=600)
    if on_full == "evict":
        store.claim(key(3), owner="ann", fingerprint=None, lease=60, ttl=600)
    with pytest.raises(StoreFullError, match=says):
        store.claim(key(4), owner="ann", fingerprint=None, lease=60, ttl=600)
