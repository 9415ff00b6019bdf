"""What the tests of CachedStore share: a far store whose requests are counted, and one that can be held back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from idempo import Key
from idempo.records import Claim
from idempo.stores.cached import AsyncCachedStore, CachedStore
from idempo.testing import FakeClock, FlakyStore
from tests.reference_store import ReferenceStore

KEY = Key("default", "k")


class Far(FlakyStore):
    """A store whose requests are counted, and which coroutines may not call themselves."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        super().__init__(ReferenceStore(FakeClock() if clock is None else clock))
        self.blocking = True


def claim(store: Any, owner: str = "ann", key: Key = KEY, ttl: float = 600.0) -> Claim:
    answer: Claim = store.claim(key, owner=owner, fingerprint=b"f", lease=15.0, ttl=ttl)
    return answer


def operate(store: Any, key: Key = KEY, *, owner: str = "ann", outcome: bytes = b"done", ttl: float = 600.0) -> None:
    assert claim(store, owner, key).acquired
    assert store.complete(key, owner=owner, outcome=outcome, ttl=ttl)


def near(store: CachedStore | AsyncCachedStore, key: Key = KEY) -> bytes | None:
    found = store.near(key.namespace, key.value)
    return None if found is None else found[1]


class Held:
    def __init__(self, when: str) -> None:
        self.when = when
        self.asked = threading.Event()
        self.let_go = threading.Event()


class Gated(FlakyStore):
    """Holds back the next request of one method: before the far store has it, or its answer."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._held: dict[str, Held] = {}

    def hold(self, method: str, when: str = "after") -> Held:
        held = self._held[method] = Held(when)
        return held

    def _begin(self, method: str, key: Key, options: Any) -> Any:
        call = super()._begin(method, key, options)
        self._pass(method, "before")
        return call

    def _end(self, call: Any) -> None:
        self._pass(call.method, "after")

    def _pass(self, method: str, when: str) -> None:
        held = self._held.get(method)
        if held is not None and held.when == when:
            del self._held[method]
            held.asked.set()
            assert held.let_go.wait(20)
