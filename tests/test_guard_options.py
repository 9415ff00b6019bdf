"""`Idempotency.options`: a guard like another one, with other options."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest

from idempo import Event, Idempotency, InvalidKeyError, JsonCodec, Key, MemoryStore, PickleCodec, Stats


def test_a_guard_with_other_options_is_another_family_on_the_same_store() -> None:
    """Its events count in the first one's too; what was not named stays as it was."""
    told: list[Event] = []
    seen: list[Event] = []
    guard = Idempotency(MemoryStore(), namespace="orders", ttl=60, wait=0, observers=[told.append])
    strict = guard.options(namespace="strict", ttl=5, observers=[seen.append])
    assert (strict.namespace, strict.store, strict.policy) == ("orders/strict", guard.store, guard.policy.evolve(ttl=5))
    assert [strict.run("o-1", str, "strictly") for _ in "12"] == ["strictly"] * 2
    assert guard.run("o-1", str, "plainly") == "plainly"
    assert [event.kind.value for event in seen] == ["executed", "replayed"]
    assert [(event.kind.value, event.key.namespace) for event in told] == [
        ("executed", "orders/strict"),
        ("replayed", "orders/strict"),
        ("executed", "orders"),
    ]
    assert (strict.stats(), guard.stats()) == (Stats(executed=1, replayed=1), Stats(executed=2, replayed=1))
    assert Idempotency(guard.store, namespace="orders").stats() == Stats()


def test_without_a_namespace_it_has_the_same_keys() -> None:
    guard = Idempotency(namespace="orders")
    brief = guard.options(ttl=5)
    assert brief.namespace == "orders"
    assert (guard.run("o-1", str, "first"), brief.run("o-1", str, "first")) == ("first", "first")
    assert brief.stats().replayed == 1
    assert guard.options(namespace="a").options(namespace="b").namespace == "orders/a/b"


def test_the_first_one_answers_for_its_keys() -> None:
    """With the other's codec: what is resolved by hand can be read."""
    guard = Idempotency(namespace="orders", codec=JsonCodec())
    pickled = guard.options(namespace="pickled", codec=PickleCodec())
    key = Key("orders/pickled", "o-1")
    assert guard.resolve(key, "by hand") is True
    assert pickled.run("o-1", str, "never run") == "by hand"
    found = pickled.lookup("o-1")
    assert found is not None
    assert found == attrs.evolve(guard.lookup(key), expires_in=found.expires_in)
    assert guard.forget(key) is True
    with pytest.raises(InvalidKeyError):
        pickled.lookup(Key("orders", "o-1"))


def test_it_serves_coroutines_and_blocks_and_functions() -> None:
    guard = Idempotency(namespace="orders").options(namespace="more", wait=0)

    async def place() -> str:
        return "placed"

    async def main() -> None:
        assert [await guard.run_async("o-1", place) for _ in "12"] == ["placed", "placed"]
        async with guard.operation("o-1") as operation:
            assert not operation.fresh

    asyncio.run(main())
    named = guard.idempotent(namespace="f", key="order")(lambda order: order)
    assert named("x") == "x"
    assert named.key_for("x").namespace == "orders/more/f"
    assert guard.stats() == Stats(executed=2, replayed=2)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"store": MemoryStore()}, TypeError, "store"),
        ({"namespace": ""}, ValueError, "1 to 255 characters"),
        ({"namespace": "n" * 250}, ValueError, "1 to 255 characters"),
        ({"wait": -1}, ValueError, "wait"),
        ({"observers": [1]}, TypeError, "observer"),
        ({"fingerprinter": 1}, TypeError, "fingerprinter must be"),
    ],
)
def test_options_are_checked_where_they_are_given(options: dict[str, Any], error: type[Exception], told: str) -> None:
    """Not at the first call."""
    guard = Idempotency(namespace="orders")
    with pytest.raises(error, match=told):
        guard.options(**options)
