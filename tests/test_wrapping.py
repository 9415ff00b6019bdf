"""What is settled when a function is decorated."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from idempo import (
    Fingerprinter,
    FingerprintError,
    FingerprintMismatchError,
    Idempotency,
    Key,
    MemoryStore,
    fingerprint,
    idempotent,
)
from idempo.stores.sqlite import SqliteStore
from idempo.terms import shortcut

if TYPE_CHECKING:
    from pathlib import Path


@attrs.frozen
class Receipt:
    """What a call returns."""

    order: str


def take(order: str, where: Path | None = None) -> Receipt:
    """Return a receipt; one parameter is annotated with a name that is not there at run time."""
    return Receipt(order)


def test_a_parameter_that_only_a_type_checker_can_name_does_not_hide_the_class_that_is_returned(
    tmp_path: Path,
) -> None:
    """Behaviour 2: the codec learns the returned class from the return annotation alone."""
    with SqliteStore(tmp_path / "records.db") as store:
        guarded = Idempotency(store, namespace="orders").idempotent(key="order", namespace="take")(take)
        assert [guarded("a"), guarded("a")] == [Receipt("a"), Receipt("a")]
        assert guarded.stats().executed == 1
        assert guarded.stats().replayed == 1


def test_what_is_no_store_is_refused_at_once_with_what_it_lacks() -> None:
    """Bad input is told before any effect."""
    nothing: Any = object()
    with pytest.raises(TypeError, match="six methods"):
        Idempotency(nothing)


class Session:
    """Has no canonical form of its own."""

    def __init__(self, user: str) -> None:
        self.user = user


def test_a_fingerprinter_of_ones_own_is_used_by_all_ways_in() -> None:
    """Its hooks and its secret count for run, blocks, and decorated functions, whose options can change it."""
    hooked = Fingerprinter(secret=b"sixteen bytes ..", hooks={Session: lambda session: session.user})
    guard = Idempotency(namespace="orders", fingerprinter=hooked)

    def place(session: Session) -> str:
        return session.user

    assert guard.run("a", place, Session("ann")) == guard.run("a", place, Session("ann")) == "ann"
    with pytest.raises(FingerprintMismatchError):
        guard.run("a", place, Session("bob"))
    with guard.operation("b", payload=Session("ann")):
        pass
    with pytest.raises(FingerprintMismatchError), guard.operation("b", payload=Session("bob")):
        pytest.fail("entered")
    record = guard.lookup("b")
    assert record is not None
    assert record.fingerprint == hooked(Session("ann")) != fingerprint("ann")

    decorated = guard.idempotent(namespace="place")(place)
    own = idempotent(fingerprinter=hooked)(place)
    for guarded in (decorated, own, own.options(ttl=60)):
        assert guarded(Session("ann")) == guarded(Session("ann")) == "ann"
        assert guarded.stats().executed + guarded.stats().replayed == 2
    plain = decorated.options(fingerprinter=Fingerprinter())
    with pytest.raises(FingerprintError, match="session"):
        plain(Session("ann"))


def test_what_is_no_fingerprinter_is_refused_at_once() -> None:
    """Bad input is told before any effect."""
    wrong: Any = b"a secret"
    with pytest.raises(TypeError, match="Fingerprinter"):
        Idempotency(fingerprinter=wrong)
    with pytest.raises(TypeError, match="Fingerprinter"):
        idempotent(fingerprinter=wrong)(take)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("how", ["subclass", "object"])
def test_a_claim_of_a_stores_own_is_what_is_asked(is_async: bool, how: str) -> None:
    """A store that counts, traces or refuses claims sees all of them; no short cut of its base goes past it."""
    claims: list[str] = []

    class Counting(MemoryStore):
        def claim(self, key: Key, **options: Any) -> Any:
            claims.append(key.value)
            return super().claim(key, **options)

    store: Any = Counting() if how == "subclass" else MemoryStore()
    if how == "object":
        plain = store.claim
        store.claim = lambda key, **options: claims.append(key.value) or plain(key, **options)
    guard = Idempotency(store)

    async def place() -> str:
        return "placed"

    for _ in range(2):
        if is_async:
            assert asyncio.run(guard.run_async("a", place)) == "placed"
        else:
            assert guard.run("a", lambda: "placed") == "placed"
    assert claims == ["a", "a"]


def test_a_short_cut_of_a_subclass_of_its_own_is_taken() -> None:
    """Who writes one knows the claim that he inherits."""

    class Nearer(MemoryStore):
        def near(self, namespace: str, value: str) -> Any:
            asked.append(value)
            return super().near(namespace, value)

    asked: list[str] = []
    guard = Idempotency(Nearer())
    assert [guard.run("a", lambda: 1), guard.run("a", lambda: 1)] == [1, 1]
    assert asked == ["a", "a"]


class Proxy:
    """A store that counts what is asked of another; methods and attributes are found when they are asked for."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return getattr(self._store, name)


def test_a_store_that_stands_for_another_is_asked_itself() -> None:
    """No short cut leads past a ``claim`` that somebody put before it."""
    proxy: Any = Proxy(MemoryStore())
    assert Idempotency(proxy).run("a", lambda: "placed") == "placed"
    assert {"claim", "complete"} <= set(proxy.asked)
    assert "claim_new" not in proxy.asked
    assert shortcut(proxy, "claim_new") is None
    assert shortcut(proxy._store, "claim_new") == proxy._store.claim_new
    proxy._store.claim = proxy._store.claim
    assert shortcut(proxy._store, "claim_new") is None
