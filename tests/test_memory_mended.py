"""MemoryStore after an interrupt within a step of the cache that it keeps completed records in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import cachetools
import pytest

from idempo import Key, MemoryStore

LIBRARY = cachetools.LRUCache.__setitem__.__code__.co_filename


class Struck(BaseException):
    """An interrupt."""


def struck_at(point: int, work: Callable[[], object]) -> bool:
    """Run this and interrupt it before so many lines of the library; say whether it had as many."""
    left = point
    before = sys.gettrace()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != LIBRARY:
            return trace if event == "call" else None
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(before)
                raise Struck
        return trace

    sys.settrace(trace)
    try:
        work()
    except Struck:
        return True
    finally:
        sys.settrace(before)
    return False


def key(number: object) -> Key:
    return Key("orders", f"o-{number}")


def operate(store: MemoryStore, number: object) -> None:
    assert store.claim(key(number), owner="ann", fingerprint=None, lease=60, ttl=600).acquired
    assert store.complete(key(number), owner="ann", outcome=b"outcome", ttl=600)


def claim(store: MemoryStore) -> None:
    store.claim(key("new"), owner="ann", fingerprint=None, lease=60, ttl=600)


def complete(store: MemoryStore) -> None:
    store.claim(key("new"), owner="ann", fingerprint=None, lease=60, ttl=600)
    store.complete(key("new"), owner="ann", outcome=b"outcome", ttl=600)


def delete(store: MemoryStore) -> None:
    store.delete(key(1))


@pytest.mark.parametrize("max_bytes", [None, 2500])
@pytest.mark.parametrize("work", [claim, complete, delete])
def test_a_full_store_goes_on_after_an_interrupt_at_any_point(work: Any, max_bytes: int | None) -> None:
    """Behaviour 39: the call can be repeated, records come and go, and what the last keys gave is kept."""
    point = 0
    while True:
        store = MemoryStore(max_records=3, max_bytes=max_bytes)
        for number in range(3):
            operate(store, number)
        if not struck_at(point, lambda: work(store)):  # noqa: B023 - called at once
            break
        work(store)
        assert store.delete(key("new")) or work is delete
        for number in range(3, 12):
            operate(store, number)
            assert store.delete(key(number))
            operate(store, number)
        assert len(store) == 3
        assert [number for number in range(12) if store.get(key(number))] == [9, 10, 11], point
        if max_bytes is not None:  # an outcome that was interrupted on its way in may go uncounted
            assert store._completed.currsize in (2 * 607, 3 * 607), point
        for number in range(12):
            store.delete(key(number))
        assert len(store) == 0
        point += 1
    assert point > 3


@pytest.mark.parametrize("end", ["delete", "place"])
def test_a_record_without_its_size_can_be_removed_and_replaced(end: str) -> None:
    """Behaviour 39: as an interrupt leaves it whatever the library's release."""
    store: Any = MemoryStore(max_bytes=10_000)
    operate(store, 1)
    operate(store, 2)
    id_ = ("orders", "o-1")
    del store._completed._Cache__size[id_]
    if end == "delete":
        assert store.delete(key(1))
    else:
        store._place(store._completed[id_])
    assert store.get(key(2)) is not None
    assert store._completed.currsize == 607 * len(store)
