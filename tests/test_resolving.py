"""Doubt about a decorated function is ended by hand: on it, or on its guard by the key that the error carries."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import attrs
import pytest

from idempo import Idempotency, InDoubtError, InvalidKeyError, Key, idempotent
from idempo.stores.sqlite import SqliteStore


@attrs.frozen
class Receipt:
    """What is returned: the function's own codec knows it by the annotation, and the guard's does not."""

    order: str


class Till:
    """Has a guarded method."""

    @idempotent(key="order", in_doubt="raise")
    def charge(self, order: str) -> str:
        """Leave doubt."""
        raise TimeoutError


def in_doubt(call: Any, *args: Any) -> Key:
    """Leave a call in doubt, and return the key that its duplicates are told."""
    with pytest.raises(TimeoutError):
        call(*args)
    with pytest.raises(InDoubtError) as caught:
        call(*args)
    assert caught.value.key is not None
    return caught.value.key


@pytest.mark.parametrize("by", ["function", "guard"])
def test_a_decorated_function_is_resolved(tmp_path: Path, by: str) -> None:
    """Behaviour 26: with its own codec, so that the value replays as what the function returns."""
    with SqliteStore(tmp_path / "records.db") as store:
        guard = Idempotency(store, namespace="billing", in_doubt="raise")

        @guard.idempotent(key="order", namespace="charge")
        def charge(order: str, amount: int) -> Receipt:
            raise TimeoutError

        key = in_doubt(charge, "o-1", 5)
        assert key == charge.key_for("o-1", 5) == Key("billing/charge", "o-1")
        found = [guard.lookup(key), charge.lookup("o-1", 5)]
        assert [record and record.attempt for record in found] == [1, 1]
        if by == "function":
            assert charge.resolve(Receipt("o-1"), "o-1", 5)
            assert not charge.resolve(Receipt("o-2"), order="o-1", amount=5)
        else:
            assert guard.resolve(key, Receipt("o-1"))
            assert not guard.resolve(key, Receipt("o-2"))
        assert charge("o-1", 5) == Receipt("o-1")
        assert guard.lookup("o-1") is None
        assert guard.forget(key)
        assert charge.lookup("o-1", 5) is None


def test_a_coroutine_function_is_resolved_by_awaiting() -> None:
    """Behaviour 26: both ways are coroutines."""
    guard = Idempotency(namespace="billing", in_doubt="raise")

    @guard.idempotent(key="order", namespace="charge")
    async def charge(order: str) -> str:
        raise TimeoutError

    def call(order: str) -> str:
        return asyncio.run(charge(order))

    key = in_doubt(call, "o-1")
    assert asyncio.run(charge.resolve("by hand", "o-1"))
    assert not asyncio.run(guard.resolve_async(key, "late"))
    assert call("o-1") == "by hand"
    assert asyncio.run(guard.lookup_async(key)) is not None
    assert asyncio.run(guard.forget_async(key))


def test_a_method_is_resolved() -> None:
    """Behaviour 26: bound, or by its class with the object first."""
    till = Till()
    in_doubt(till.charge, "o-1")
    assert till.charge.resolve("by hand", "o-1")
    assert till.charge("o-1") == "by hand"
    in_doubt(till.charge, "o-2")
    assert Till.charge.resolve("by hand", till, "o-2")
    assert till.charge("o-2") == "by hand"


@pytest.mark.parametrize("namespace", ["other", "billing2", "billing2/charge", "other/billing"])
def test_a_key_of_another_guard_is_refused(namespace: str) -> None:
    """It would be looked for under a name that nothing of this guard has."""
    guard = Idempotency(namespace="billing")
    for ask in (guard.lookup, guard.forget, lambda key: guard.resolve(key, 1)):
        with pytest.raises(InvalidKeyError, match="this guard's is 'billing'"):
            ask(Key(namespace, "o-1"))
    assert guard.resolve(Key("billing", "o-1"), 1)
    assert guard.run("o-1", int) == 1


def test_a_key_of_a_function_that_is_decorated_elsewhere_is_resolved_by_the_guards_own_terms() -> None:
    """Behaviour 26: an operator's process need not import the function."""
    guard = Idempotency(namespace="billing")
    assert guard.resolve(Key("billing/charge", "o-1"), "by hand")
    decorated = guard.idempotent(key="order", namespace="charge")(lambda order: pytest.fail("ran"))
    assert decorated("o-1") == "by hand"
