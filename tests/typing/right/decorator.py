"""A guarded function has its own signature and return type, and what can be asked of its keys."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from idempo import (
    ALL_ARGUMENTS,
    AsyncGuarded,
    Guarded,
    Idempotency,
    JsonCodec,
    Key,
    MemoryStore,
    Record,
    Resolved,
    Stats,
    idempotent,
)
from idempo.stores.sqlite import SqliteStore


@dataclass
class Receipt:
    order_id: str
    amount: int


guard = Idempotency(MemoryStore(max_records=50_000), namespace="billing", ttl=timedelta(days=1))

# Functions


@idempotent
def resize(image_id: str, width: int = 100) -> bytes:
    return b""


@idempotent(key="order_id", ttl=60, in_doubt="raise", replay_errors=(ValueError,))
def charge(order_id: str, *, amount: int) -> Receipt:
    return Receipt(order_id, amount)


@guard.idempotent
def refund(order_id: str) -> Receipt | None:
    return None


@guard.idempotent(key=("tenant", "order_id"), ignore=("session",), lease=timedelta(seconds=5))
def cancel(session: object, tenant: str, order_id: str) -> list[str]:
    return []


assert_type(resize("a"), bytes)
assert_type(resize("a", 5), bytes)
assert_type(charge("o-1", amount=5), Receipt)
assert_type(refund("o-1"), Receipt | None)
assert_type(cancel(None, "t", "o-1"), list[str])

resize()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
resize("a", "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
charge("o-1", 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
charge("o-1", amount="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
charge("o-1", amount=5, currency="EUR")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
cancel(None, "t", 7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# What a guarded function carries

assert_type(charge.key_for("o-1", amount=5), Key)
assert_type(charge.lookup("o-1", amount=5), Record | None)
assert_type(charge.stats(), Stats)
assert_type(charge.options(wait=0)("o-1", amount=5), Receipt)
assert_type(charge.forget("o-1", amount=5), bool)

assert_type(charge.__name__, str)
assert_type(charge.__qualname__, str)
assert_type(charge.__wrapped__("o-1", amount=5), Receipt)

charge.key_for(7, amount=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
charge.nothing()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

# Methods


class Till:
    tenant = "t"

    @idempotent(key=("self.tenant", "order_id"))
    def charge(self, order_id: str, amount: int) -> Receipt:
        return Receipt(order_id, amount)

    @staticmethod
    @idempotent(key="order_id")
    def refund(order_id: str) -> int:
        return 0

    @classmethod
    @idempotent(key="order_id")
    def cancel(cls, order_id: str) -> str:
        return ""

    @classmethod
    @idempotent(key="order_id")
    async def audit(cls, order_id: str) -> str:
        return ""

    @guard.idempotent(key="order_id")
    async def ship(self, order_id: str) -> Receipt:
        return Receipt(order_id, 0)


class Kiosk(Till):
    pass


till = Till()
assert_type(till.charge("o-1", 5), Receipt)
assert_type(till.charge(order_id="o-1", amount=5), Receipt)
assert_type(Till.charge(till, "o-1", 5), Receipt)
assert_type(Kiosk().charge("o-1", 5), Receipt)
assert_type(Till.charge.key_for(till, "o-1", 5), Key)
assert_type(till.charge.key_for("o-1", 5), Key)
assert_type(till.charge.lookup(order_id="o-1", amount=5), Record | None)
assert_type(till.charge.forget("o-1", 5, force=True), bool)
assert_type(till.charge.options(wait=0)("o-1", 5), Receipt)
assert_type(till.charge.stats(), Stats)
assert_type(till.charge.__name__, str)
assert_type(till.charge.__wrapped__("o-1", 5), Receipt)
assert_type(Kiosk().charge.key_for("o-1", 5), Key)
assert_type(Till.refund("o-1"), int)
assert_type(till.refund.key_for("o-1"), Key)
assert_type(Kiosk.cancel("o-1"), str)
assert_type(Kiosk().cancel("o-1"), str)
assert_type(Till.cancel.key_for(Till, "o-1"), Key)
assert_type(till.cancel.lookup(Till, "o-1"), Record | None)
assert_type(Till.cancel.forget(Till, "o-1"), bool)
assert_type(Till.cancel.stats(), Stats)
assert_type(till.refund("o-1"), int)
assert_type(Till.cancel("o-1"), str)
assert_type(till.cancel("o-1"), str)

till.charge("o-1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
till.charge("o-1", "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
till.charge.key_for(till, "o-1", 5)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
Till.charge.key_for("o-1", 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Till.cancel.key_for("o-1")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
Till.refund(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Coroutine functions


@idempotent(key="order_id")
async def place(order_id: str, amount: int = 1) -> Receipt:
    return Receipt(order_id, amount)


@idempotent
async def pack(order_id: str) -> None: ...


@guard.idempotent
async def send(order_id: str) -> Receipt | None:
    return None


async def coroutines() -> None:
    assert_type(await place("o-1"), Receipt)
    assert_type(await Till.audit("o-1"), str)
    assert_type(await till.audit.lookup(Kiosk, "o-1"), Record | None)
    assert_type(await till.ship("o-1"), Receipt)
    assert_type(await Till.ship(till, "o-1"), Receipt)
    assert_type(place.key_for("o-1"), Key)
    for each in (place, place.options(wait=0)):
        assert_type(await each.lookup("o-1"), Record | None)
        assert_type(await each.forget("o-1", force=True), bool)
        assert_type(each.stats(), Stats)
    assert_type(await place.__wrapped__("o-1"), Receipt)
    assert_type(place.__name__, str)
    assert_type(place.__qualname__, str)
    assert_type(await pack.lookup("o-1"), Record | None)
    assert_type(await send("o-1"), Receipt | None)
    assert_type(await send.forget("o-1"), bool)
    assert_type(await till.ship.lookup("o-1"), Record | None)
    assert_type(await till.ship.forget("o-1"), bool)
    assert_type(till.ship.key_for("o-1"), Key)
    assert_type(await till.ship.options(wait=0)("o-1"), Receipt)
    assert_type(await Till.ship.lookup(till, "o-1"), Record | None)
    await place(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await place.lookup(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await charge("o-1", amount=5)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    await charge.lookup("o-1", amount=5)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]


async def forgotten_awaits() -> None:
    place("o-1").order_id.upper()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    print(place.lookup("o-1").attempt)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
    found: Record | None = place.lookup("o-1")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    forgotten: bool = till.ship.forget("o-1")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(found, forgotten)


def in_an_annotation(fn: Guarded[[str], int], later: AsyncGuarded[[str], int]) -> int:
    asyncio.run(later.forget("o-1"))
    return fn("o-1") + asyncio.run(later("o-1"))


in_an_annotation(Till.refund, pack)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Options


def look(key: Key) -> Resolved:
    return Resolved(key.value)


async def look_async(key: Key) -> Resolved:
    return Resolved(key.value)


def wrong_probe(key: Key) -> bool:
    return False


def tenant_of(order_id: str) -> tuple[str, str]:
    return "t", order_id


idempotent(key="order_id", ttl="1h")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
idempotent(in_doubt="perhaps")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
idempotent(tll=60)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
idempotent(store=object())  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
idempotent("order_id")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
Idempotency(wait="1h")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Idempotency(tll=60)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Idempotency(MemoryStore(on_full="panic"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

idempotent(key=ALL_ARGUMENTS)
idempotent(key=tenant_of, payload=None, codec=JsonCodec(types=(Receipt,)))
Idempotency(SqliteStore("records.sqlite"), in_doubt=look)
Idempotency(in_doubt=look_async)
Idempotency(in_doubt=wrong_probe)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


guard.namespace = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
guard.nothing = 3  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


# run and operation


def total(prices: Sequence[int], *, vat: float = 0.2) -> float:
    return sum(prices) * (1 + vat)


assert_type(guard.run("order-42", total, [1, 2], vat=0.1), float)
assert_type(guard.run(("billing", 42), charge, "o-1", amount=5), Receipt)
assert_type(guard.lookup("order-42"), Record | None)
assert_type(guard.resolve("order-42", 3.3), bool)
assert_type(guard.forget("order-42", force=True), bool)

with guard.operation("order-42", payload=[1, 2]) as op:
    assert_type(op.fresh, bool)
    assert_type(op.key, Key)
    assert_type(op.complete(total([1, 2])), float)


async def in_a_coroutine() -> None:
    async with guard.operation("order-42", payload=[1, 2]) as op:
        assert_type(op.fresh, bool)
        assert_type(await op.complete(total([1, 2])), float)
        op.complete("never awaited").upper()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    assert_type(await guard.run_async("order-42", refund_later, 5), Receipt)
    assert_type(await guard.lookup_async("order-42"), Record | None)
    assert_type(await guard.resolve_async("order-42", 3.3), bool)
    assert_type(await guard.forget_async("order-42", force=True), bool)


async def refund_later(amount: int) -> Receipt:
    return charge("o-1", amount=amount)


guard.run("order-42", 7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
with guard.operation():  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    pass
