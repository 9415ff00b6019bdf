"""MemoryStore and who is woken: neither a waiter that is gone nor one of a parent process is in the way."""

from __future__ import annotations

import gc
import os
import signal
import weakref

import pytest

from idempo import Key, MemoryStore

KEY = Key("orders", "o-1")


def test_a_waiter_that_cannot_be_woken_is_in_nobodys_way() -> None:
    """Behaviour 11: as one whose event loop was closed; the others are woken."""
    store = MemoryStore()
    store.claim(KEY, owner="ann", fingerprint=None, lease=60, ttl=600)
    woken: list[str] = []

    def gone() -> None:
        woken.append("gone")
        raise RuntimeError("Event loop is closed")

    with store.watch(KEY, lambda: woken.append("first")), store.watch(KEY, gone):
        with store.watch(KEY, lambda: woken.append("last")):
            assert store.complete(KEY, owner="ann", outcome=b"", ttl=600)
    assert woken == ["first", "gone", "last"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_wakes_nobody_of_its_parent() -> None:
    """Behaviour 43: whose locks may be taken there; a watch that the fork came into ends well in both."""
    store = MemoryStore()
    store.claim(KEY, owner="ann", fingerprint=None, lease=60, ttl=600)
    woken: list[int] = []

    def wake() -> None:
        woken.append(os.getpid())

    child = -1
    try:
        with store.watch(KEY, wake):
            child = os.fork()
            if not child:  # pragma: no cover - another process
                signal.alarm(20)  # a child that hangs ends all the same
                store.complete(KEY, owner="ann", outcome=b"", ttl=600)
                assert not woken
                with store.watch(KEY, lambda: woken.append(0)):
                    store.delete(KEY)
                assert woken == [0]
        if not child:  # pragma: no cover - another process
            os._exit(0)
    finally:
        if not child:  # pragma: no cover - another process
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert not woken
    with store.watch(KEY, wake):
        store.delete(KEY)
    assert woken == [os.getpid()]


def test_a_store_that_nobody_uses_is_not_kept() -> None:
    """Behaviour 41: for no child's sake."""
    kept = weakref.ref(MemoryStore())
    gc.collect()
    assert kept() is None
