"""Errors: one root, a key on each, and all of it survives pickling."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
from typing import Any

import pytest

from idempo import Idempotency, Key, MemoryStore, errors
from idempo.errors import (
    FingerprintError,
    FingerprintMismatchError,
    IdempotencyError,
    InDoubtError,
    InProgressError,
    InvalidKeyError,
    LeaseLostError,
    ResultNotStoredError,
    StoreError,
    StoreFullError,
)
from idempo.stores.cas import AsyncCasStore
from idempo.testing.backend import AsyncDictBackend, DictBackend

KEY = Key("orders", "o-1\n\ud800")
CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, IdempotencyError)]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling_with_its_key(cls: type[IdempotencyError], protocol: int) -> None:
    """Behaviour 38: class, text and key come back, and without a key there is none."""
    for key in (KEY, None):
        error = cls("what was wrong", key=key)
        for back in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
            assert type(back) is cls
            assert str(back) == ("what was wrong" if key is None else r"key orders:o-1\n\ud800: what was wrong")
            assert back.args == error.args
            assert back.key == key


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (FingerprintError("no form", key=KEY, path="items[3].session"), "path", "items[3].session"),
        (InProgressError("busy", key=KEY, retry_after=1.5), "retry_after", 1.5),
        (LeaseLostError("late", key=KEY, result=["paid"]), "result", ["paid"]),
        (ResultNotStoredError("unstored", key=KEY, result=("paid", 1)), "result", ("paid", 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_error_carries_survives_pickling(error: IdempotencyError, name: str, value: object) -> None:
    """Behaviour 38: its own attributes too."""
    back = pickle.loads(pickle.dumps(error))
    assert getattr(back, name) == getattr(error, name) == value
    assert back.key == KEY


def test_one_except_clause_catches_them_all_and_the_old_ones_still_work() -> None:
    """A bad key is a ValueError, a bad payload a TypeError, and all are IdempotencyError."""
    assert len(CLASSES) > 12
    assert issubclass(InvalidKeyError, ValueError)
    assert issubclass(FingerprintError, TypeError)
    assert issubclass(StoreFullError, StoreError)
    for cls in CLASSES:
        assert inspect.getdoc(cls), cls


def test_errors_that_a_guard_raised_survive_pickling() -> None:
    """Behaviour 38: as they were raised, with what they caught on them."""
    guard = Idempotency(namespace="orders", wait=0, in_doubt="raise")

    def raised(call: Any) -> IdempotencyError:
        with pytest.raises(IdempotencyError) as caught:
            call()
        return pickle.loads(pickle.dumps(caught.value))

    guard.run("done", len, "x")
    mismatch = raised(lambda: guard.run("done", len, "y"))
    assert (type(mismatch), mismatch.key) == (FingerprintMismatchError, Key("orders", "done"))

    with pytest.raises(ZeroDivisionError):
        guard.run("doubt", lambda: 1 // 0)
    doubt = raised(lambda: guard.run("doubt", lambda: 1))
    assert (type(doubt), doubt.key) == (InDoubtError, Key("orders", "doubt"))

    guard.store.claim(Key("orders", "busy"), owner="elsewhere", fingerprint=None, lease=60, ttl=60)
    busy = raised(lambda: guard.run("busy", lambda: 1))
    assert isinstance(busy, InProgressError)
    assert busy.key == Key("orders", "busy")
    assert 0 < busy.retry_after <= 2

    assert raised(lambda: guard.run("", lambda: 1)).key is None
    assert str(busy).startswith("key orders:busy: the operation is in progress elsewhere")


def test_an_errors_text_names_its_key_once_it_is_known() -> None:
    """Escaped and cut, as in a log: whoever reads the text alone knows which operation it speaks of."""
    error = StoreError("the store did not answer")
    assert str(error) == "the store did not answer"
    error.key = Key("orders", "a\nforged" + "x" * 100)
    assert str(error) == r"key orders:a\nforged" + "x" * 63 + "…: the store did not answer"
    assert str(StoreError(key=Key("orders", "a"))) == "key orders:a"
    assert error.args == ("the store did not answer",)


class Broken(MemoryStore):
    """Fails, and does not know which key it was asked for."""

    error: Exception = StoreError("gone")

    def get(self, key: Key) -> Any:
        """Fail."""
        raise self.error

    def claim(self, key: Key, **options: Any) -> Any:
        """Fail."""
        raise self.error

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """Fail."""
        raise self.error


class BrokenAsync(AsyncCasStore):
    """Fails, and does not know which key it was asked for."""

    error: Exception = StoreError("gone")

    async def get(self, key: Key) -> Any:
        """Fail."""
        raise self.error

    async def claim(self, key: Key, **options: Any) -> Any:
        """Fail."""
        raise self.error

    async def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """Fail."""
        raise self.error


@pytest.mark.parametrize("raised", [StoreError("gone"), OSError("gone")], ids=lambda error: type(error).__name__)
def test_what_a_store_of_ones_own_raises_is_a_store_error_that_carries_the_key(raised: Exception) -> None:
    """From lookup, forget and resolve, of a guard and of a decorated function, in both colours."""
    store, later = Broken(), BrokenAsync(AsyncDictBackend(DictBackend()))
    store.error = later.error = raised
    guard, async_guard = Idempotency(store, namespace="orders"), Idempotency(later, namespace="orders")
    place = guard.idempotent(key="order_id", namespace="place")(lambda order_id: order_id)

    async def place_later(order_id: str) -> None: ...

    decorated = async_guard.idempotent(key="order_id", namespace="place")(place_later)
    ways: list[tuple[str, Any]] = [
        ("orders:a", lambda: guard.lookup("a")),
        ("orders:a", lambda: guard.forget("a")),
        ("orders:a", lambda: guard.forget("a", force=True)),
        ("orders:a", lambda: guard.resolve("a", 1)),
        ("orders/place:a", lambda: place.lookup("a")),
        ("orders/place:a", lambda: place.forget("a", force=True)),
        ("orders:a", lambda: asyncio.run(guard.lookup_async("a"))),
        ("orders:a", lambda: asyncio.run(async_guard.lookup_async("a"))),
        ("orders:a", lambda: asyncio.run(async_guard.forget_async("a"))),
        ("orders:a", lambda: asyncio.run(async_guard.resolve_async("a", 1))),
        ("orders/place:a", lambda: asyncio.run(decorated.lookup("a"))),
    ]
    for key, way in ways:
        with pytest.raises(StoreError) as caught:
            way()
        assert str(caught.value.key) == key
        assert caught.value is raised or caught.value.__cause__ is raised
        caught.value.key = None  # one error serves all


def test_a_payload_without_a_canonical_form_is_told_with_the_key() -> None:
    """A valid key is known by then; a bad one is told first."""
    guard, bad = Idempotency(namespace="orders"), object()

    @guard.idempotent(key="order_id", namespace="place")
    def place(order_id: str, item: object = None) -> None: ...

    @guard.idempotent(key=lambda order_id, item: order_id, namespace="called")
    def called(order_id: str, item: object) -> None: ...

    @guard.idempotent(key=("order_id", "tenant"), payload=lambda order_id, tenant: bad, namespace="made")
    def made(order_id: str, tenant: str) -> None: ...

    @guard.idempotent(key="order_id", payload="item.size", namespace="path")
    async def path(order_id: str, item: object) -> None: ...

    @guard.idempotent(ignore=["item"], payload=lambda order_id, item: item, namespace="named")
    def named(order_id: str, item: object) -> None: ...

    @guard.idempotent(namespace="all")
    def all_arguments(order_id: str, item: object) -> None: ...

    ways: list[tuple[str | None, Any]] = [
        ("orders:a", lambda: guard.run("a", len, bad)),
        ("orders:a", lambda: guard.run("a", len, payload=bad)),
        ("orders:a", lambda: asyncio.run(guard.run_async("a", path, bad))),
        ("orders:a", lambda: guard.operation("a", payload=bad)),
        ("orders/place:a", lambda: place("a", bad)),
        ("orders/place:a", lambda: place("a", item=bad)),
        ("orders/place:a", lambda: place.key_for("a", bad)),
        ("orders/called:a", lambda: called("a", bad)),
        ("orders/made:(a,b)", lambda: made("a", "b")),
        ("orders/path:a", lambda: asyncio.run(path("a", bad))),
        (str(named.key_for("a", 1)), lambda: named("a", bad)),
        (None, lambda: all_arguments("a", bad)),
        (None, lambda: all_arguments.options(payload=lambda order_id, item: 1)("a", bad)),
    ]
    for key, way in ways:
        with pytest.raises(FingerprintError) as caught:
            way()
        assert (None if caught.value.key is None else str(caught.value.key)) == key
        assert key is None or str(caught.value).startswith(f"key {key}: ")
    none: Any = None
    for way in (
        lambda: guard.run(none, len, bad),
        lambda: guard.operation(none, payload=bad),
        lambda: place(none, bad),
        lambda: called(none, bad),
        lambda: asyncio.run(path(none, bad)),
    ):
        with pytest.raises(InvalidKeyError) as refused:
            way()
        assert refused.value.key is None
