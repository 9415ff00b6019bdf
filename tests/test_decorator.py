"""`@idempotent` and `guard.idempotent`: what is guarded, under which name, and with which options."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from idempo import (
    FingerprintError,
    FingerprintMismatchError,
    Idempotency,
    InProgressError,
    InvalidKeyError,
    JsonCodec,
    Key,
    MemoryStore,
    PickleCodec,
    State,
    Stats,
    current_operation,
    idempotent,
)
from idempo.stores.cas import AsyncCasStore
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock, unguarded
from idempo.testing.backend import AsyncDictBackend, DictBackend

if TYPE_CHECKING:
    from pathlib import Path

RAN: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path / "orders.db") as store:
        yield store


def charge(order_id: str, amount: int = 5, note: str = "") -> dict[str, Any]:
    """Charge an order."""
    RAN.append(order_id)
    return {"order": order_id, "amount": amount}


async def charge_async(order_id: str, amount: int = 5, note: str = "") -> dict[str, Any]:
    """Charge an order, later."""
    await asyncio.sleep(0)
    return charge(order_id, amount, note)


class Caller:
    """Calls guarded functions of one colour alike."""

    def __init__(self, colour: str) -> None:
        self.fn: Any = charge if colour == "sync" else charge_async
        self.colour = colour

    def __call__(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Call, and wait for what is returned."""
        return call(*args, **kwargs) if self.colour == "sync" else asyncio.run(call(*args, **kwargs))


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)


# What a guarded function is


def test_it_keeps_colour_signature_and_name(caller: Caller) -> None:
    """So that frameworks that look at functions see the same one."""
    for guarded in (idempotent(caller.fn), idempotent(key="order_id")(caller.fn), Idempotency().idempotent(caller.fn)):
        assert inspect.iscoroutinefunction(guarded) == (caller.colour == "async")
        assert inspect.signature(guarded) == inspect.signature(caller.fn)
        assert guarded.__wrapped__ is caller.fn
        assert (guarded.__name__, guarded.__doc__) == (caller.fn.__name__, caller.fn.__doc__)


def test_each_function_has_a_store_of_its_own(caller: Caller) -> None:
    """No global state: the same function, guarded twice, is two."""
    first, second = idempotent(key="order_id")(caller.fn), idempotent(key="order_id")(caller.fn)
    assert caller(first, "a") == caller(first, "a") == caller(second, "a")
    assert RAN == ["a", "a"]
    assert first.stats() == Stats(executed=1, replayed=1)


def test_spellings_of_one_call_are_one_and_keys_make_the_difference(caller: Caller) -> None:
    """Behaviours 4, 7: positional, keyword and default; another key with the same payload runs again."""
    guarded = idempotent(key="order_id", ignore=["note"])(caller.fn)
    for args, kwargs in [(("a", 5), {}), (("a",), {}), ((), {"amount": 5, "order_id": "a"}), (("a",), {"note": "x"})]:
        assert caller(guarded, *args, **kwargs) == {"order": "a", "amount": 5}
    caller(guarded, "b", 5)
    assert RAN == ["a", "b"]


def test_without_a_key_all_arguments_are_it(caller: Caller) -> None:
    """As with a cache: other arguments are another operation."""
    guarded = idempotent(caller.fn)
    for amount in (5, 6, 5):
        caller(guarded, "a", amount)
    assert RAN == ["a", "a"]
    assert guarded.key_for("a") == guarded.key_for(order_id="a", amount=5) != guarded.key_for("a", 6)


def test_another_payload_is_refused_and_a_bad_one_too_before_anything_ran(caller: Caller) -> None:
    """Behaviours 6, 9, 10: with the key, or with the path to what has no canonical form."""
    guarded = idempotent(key="order_id")(caller.fn)
    caller(guarded, "a", 5)
    with pytest.raises(FingerprintMismatchError) as mismatch:
        caller(guarded, "a", 6)
    assert mismatch.value.key == guarded.key_for("a")
    for bad in (None, "", 1.5, True, "x" * 256, ()):
        with pytest.raises(InvalidKeyError):
            caller(guarded, bad)
    with pytest.raises(FingerprintError) as no_form:
        caller(guarded, "b", note=[1, {"at": object()}])
    assert no_form.value.path == "note[1].at"
    with pytest.raises(TypeError, match="amonut"):
        caller(guarded, "b", amonut=7)
    assert RAN == ["a"]
    assert guarded.stats() == Stats(executed=1, mismatched=1)


def test_what_is_asked_of_a_key(caller: Caller) -> None:
    """``key_for``, ``lookup`` and ``forget`` take a call's arguments, and wait where the function does."""
    guarded = idempotent(key="order_id")(caller.fn)
    assert guarded.key_for("a", 5) == Key(f"{__name__}.{caller.fn.__name__}", "a")
    assert caller(guarded.lookup, "a") is None
    assert not caller(guarded.forget, "a")
    caller(guarded, "a")
    assert caller(guarded.lookup, "a", 6).state is State.COMPLETED  # the key is what is looked for
    assert caller(guarded.forget, "a")
    caller(guarded, "a", 6)
    assert RAN == ["a", "a"]


def test_a_live_claim_is_forgotten_by_force_alone(caller: Caller) -> None:
    """A duplicate would run beside the one that runs."""
    store = MemoryStore()
    guarded = idempotent(key="order_id", store=store)(caller.fn)
    store.claim(guarded.key_for("a"), owner="elsewhere", fingerprint=None, lease=60, ttl=60)
    with pytest.raises(InProgressError) as caught:
        caller(guarded.forget, "a")
    assert caught.value.key == guarded.key_for("a")
    assert caller(guarded.forget, "a", force=True)
    assert caller(guarded.lookup, "a") is None


def test_options_make_another_wrapper_on_the_same_store(caller: Caller) -> None:
    """The first is as it was; records are shared, counts are not, and what is not changed is kept."""
    told: list[Any] = []
    guarded = idempotent(key="order_id", ignore=["note"], ttl=60, observers=[told.append])(caller.fn)
    hasty = guarded.options(wait=0, payload=None)
    caller(guarded, "a")
    assert caller(hasty, "a", 7, note="x") == {"order": "a", "amount": 5}
    assert (guarded.stats(), hasty.stats()) == (Stats(executed=1), Stats(replayed=1))
    assert len(told) == 2
    assert hasty.key_for("a") == guarded.key_for("a")
    silent = hasty.options(key=("order_id", "amount"), observers=(), ttl=600, codec=JsonCodec())
    caller(silent, "a", 7)
    assert len(told) == 2
    assert caller(silent.lookup, "a", 7).expires_in == pytest.approx(600, abs=5)
    assert RAN == ["a", "a"]
    kept = guarded.options(wait=0)
    assert caller(kept, "a", note="is ignored") == {"order": "a", "amount": 5}
    with pytest.raises(FingerprintMismatchError):
        caller(kept, "a", 7)
    caller(kept, "b")
    assert caller(kept.lookup, "b").expires_in == pytest.approx(60, abs=5)
    for refused in ({"store": MemoryStore()}, {"namespace": "other"}):
        with pytest.raises(TypeError, match=next(iter(refused))):
            guarded.options(**refused)


def test_unguarded_a_function_simply_runs_with_an_operation_to_ask(caller: Caller) -> None:
    """No store is asked and no event told; bad arguments are found all the same."""
    asked: list[Any] = []

    def effect(order_id: str) -> list[str]:
        operation = current_operation()
        asked.append((operation.key, operation.attempt, operation.token, operation.fresh))
        operation.ensure_held()
        return [order_id]

    async def effect_async(order_id: str) -> list[str]:
        return effect(order_id)

    guarded: Any = idempotent(key="order_id")(effect if caller.colour == "sync" else effect_async)
    with unguarded():
        assert caller(guarded, "a") == caller(guarded, "a") == ["a"]
        with pytest.raises(InvalidKeyError):
            caller(guarded, "")
    assert asked == [(guarded.key_for("a"), 0, 0, True)] * 2
    assert guarded.stats() == Stats()
    assert caller(guarded.lookup, "a") is None
    with pytest.raises(LookupError):
        current_operation()


# Methods


class Till:
    """Methods of every kind."""

    def __init__(self, tenant: str = "north") -> None:
        self.tenant = tenant

    @idempotent(key="order_id")
    def charge(self, order_id: str, amount: int = 5) -> str:
        """By the order alone."""
        RAN.append((self.tenant, order_id))
        return self.tenant

    @idempotent(key=("self.tenant", "order_id"))
    async def refund(self, order_id: str) -> str:
        """By tenant and order."""
        RAN.append((self.tenant, order_id))
        return self.tenant

    @classmethod
    @idempotent(key="order_id")
    def open(cls, order_id: str) -> str:
        """Of the class."""
        RAN.append(cls.__name__)
        return cls.__name__

    @staticmethod
    @idempotent
    def add(first: int, second: int) -> int:
        """Of nobody."""
        RAN.append("add")
        return first + second


def test_methods_of_every_kind_are_guarded() -> None:
    """Behaviour 5: the object is no payload; a path leads into it, and tenants do not share keys."""
    north, south = Till("m-north"), Till("m-south")
    assert [north.charge("m-1"), south.charge("m-1"), Till.charge(north, order_id="m-1", amount=5)] == ["m-north"] * 3
    assert [asyncio.run(till.refund("m-1")) for till in (north, south, north)] == ["m-north", "m-south", "m-north"]
    assert [Till.open("m-1"), north.open("m-1")] == ["Till", "Till"]
    assert [Till.add(1, 2), north.add(first=1, second=2), Till.add(2, 2)] == [3, 3, 4]
    assert RAN == [("m-north", "m-1"), ("m-north", "m-1"), ("m-south", "m-1"), "Till", "add", "add"]
    assert Till.charge.key_for(north, "m-1") == Key(f"{__name__}.Till.charge", "m-1")
    assert Till.refund.key_for(south, "m-1").value == "(m-south,m-1)"


def test_a_method_must_name_its_key_and_static_and_class_go_outside(caller: Caller) -> None:
    """The object that it is called on could not tell one operation from another."""

    def method(self: Any, order_id: str) -> None: ...

    def of_class(cls: Any, order_id: str) -> None: ...

    for fn in (method, of_class):
        with pytest.raises(TypeError, match="is a method, which must name its key"):
            idempotent(fn)
    for kind in (staticmethod, classmethod):
        with pytest.raises(TypeError, match=f"put @{kind.__name__} outside"):
            idempotent(kind(caller.fn))


# What cannot be guarded


def generate(order_id: str) -> Iterator[str]:
    yield order_id


async def generate_async(order_id: str) -> AsyncIterator[str]:
    yield order_id


class Generates:
    """An object whose call is a generator."""

    def __call__(self, order_id: str) -> Iterator[str]:
        """Generate."""
        yield order_id


@pytest.mark.parametrize("way", [idempotent, Idempotency().idempotent], ids=["own store", "guard"])
@pytest.mark.parametrize("fn", [generate, generate_async, functools.partial(generate, "a"), Generates()])
def test_generators_are_refused(way: Any, fn: Any) -> None:
    """Their end is not what is returned."""
    with pytest.raises(TypeError, match="is a generator: its end cannot be an outcome"):
        way(namespace="orders")(fn)


@pytest.mark.parametrize("fn", [3, None.__class__, dict, "charge"], ids=repr)
def test_what_is_no_function_is_refused(fn: Any) -> None:
    """Nor is a class one."""
    with pytest.raises(TypeError, match="only functions can be guarded"):
        idempotent(fn)


def test_a_plain_function_on_an_async_store_is_refused() -> None:
    """It could not wait for it."""
    store = AsyncCasStore(AsyncDictBackend(DictBackend()))

    def inner(order_id: str) -> str:  # a namespace, which it has not, would not help it
        return order_id

    for fn in (charge, functools.partial(charge, "a"), inner):
        with pytest.raises(TypeError, match="is a plain function, and its store an AsyncStore"):
            idempotent(key="amount", store=store, namespace="orders")(fn)
    guarded: Any = idempotent(key="order_id", store=store)(charge_async)
    assert [asyncio.run(guarded("a")) for _ in "12"] == [{"order": "a", "amount": 5}] * 2
    assert RAN == ["a"]


def test_an_async_probe_of_a_plain_function_is_refused() -> None:
    """It could not be asked."""

    async def probe(key: Key) -> Any: ...

    with pytest.raises(TypeError, match=r"the probe of charge is a coroutine function, and the function a plain one"):
        idempotent(in_doubt=probe)(charge)
    assert idempotent(in_doubt=probe)(charge_async)


@pytest.mark.parametrize("way", ["own", "guard"])
def test_an_object_whose_call_is_a_coroutine_is_a_coroutine_function(way: str) -> None:
    """Its coroutine is awaited, not taken for the outcome."""

    class Charges:
        async def __call__(self, order_id: str) -> list[str]:
            RAN.append(order_id)
            return [order_id]

    store = MemoryStore()
    guard = Idempotency(store)
    guarded: Any = (idempotent if way == "own" else guard.idempotent)(key="order_id", namespace="orders")(Charges())
    assert inspect.iscoroutinefunction(guarded)
    assert [asyncio.run(guarded("a")) for _ in "12"] == [["a"], ["a"]]
    with pytest.raises(TypeError, match="run_async"):
        guard.run("a", Charges(), "a")
    assert RAN == ["a"]


# Codecs


def test_a_codec_that_is_none_or_unsafe_is_refused_at_decoration(shared: SqliteStore) -> None:
    """A pickle in a store that others can write is code that they run."""
    wrong: Any = object()
    with pytest.raises(TypeError, match="codec must have encode and decode, and object has not"):
        idempotent(codec=wrong)(charge)
    with pytest.raises(TypeError, match="seal must have seal and open, and object has not"):
        Idempotency(seal=wrong)
    with pytest.raises(TypeError, match="PickleCodec is unsafe in a store that others can write"):
        idempotent(store=shared, codec=PickleCodec())(charge)
    with pytest.raises(TypeError, match="PickleCodec is unsafe"):
        idempotent(store=shared)(charge).options(codec=PickleCodec())


def test_a_return_annotation_that_the_codec_cannot_keep_is_refused_at_decoration(shared: SqliteStore) -> None:
    """Not when the first result is lost."""

    def connect() -> FakeClock: ...

    with pytest.raises(TypeError, match="FakeClock"):
        idempotent(store=shared, namespace="orders")(connect)
    assert idempotent(connect)  # a memory store pickles


# Namespaces


def test_the_default_is_module_and_qualified_name_and_a_guards_is_a_prefix(caller: Caller) -> None:
    """Behaviour 5: two functions of one name, of two modules or classes, share no key."""

    class Other:
        @staticmethod
        def charge(order_id: str) -> None: ...

    name = f"{__name__}.{caller.fn.__name__}"
    assert idempotent(caller.fn).key_for("a").namespace == name
    assert idempotent(namespace="orders/v2")(caller.fn).key_for("a").namespace == "orders/v2"
    guard = Idempotency(namespace="billing")
    assert guard.idempotent(caller.fn).key_for("a").namespace == f"billing/{name}"
    assert guard.idempotent(namespace="v2")(caller.fn).key_for("a").namespace == "billing/v2"
    assert Idempotency().idempotent(caller.fn).key_for("a").namespace == f"default/{name}"
    assert idempotent(Other.charge).key_for("a").namespace.endswith(".Other.charge")


def test_two_functions_of_one_guard_share_no_key(caller: Caller) -> None:
    """Behaviour 5: nor do a function and a key of the guard's own."""
    guard = Idempotency(namespace="billing")
    other = guard.idempotent(key="order_id", namespace="other")(caller.fn)
    first = guard.idempotent(key="order_id")(caller.fn)
    for guarded in (first, other):
        caller(guarded, "a", 1 if guarded is first else 2)
    assert guard.run("a", str, "own") == "own"
    assert RAN == ["a", "a"]
    assert guard.stats() == Stats(executed=3)


def test_a_lambda_on_a_store_that_is_not_its_own_needs_a_namespace(shared: SqliteStore) -> None:
    """All lambdas of a module have one name."""
    for store in (MemoryStore(), shared):
        for way in (idempotent(key="a", store=store), Idempotency(store, namespace="billing").idempotent(key="a")):
            with pytest.raises(TypeError, match="a lambda on a store that is not its own must be given a namespace"):
                way(lambda a: a)
        assert idempotent(key="a", store=store, namespace="orders")(lambda a: a)("x") == "x"
    assert idempotent(lambda a: a)("x") == "x"


def test_what_has_no_name_of_its_own_needs_a_namespace() -> None:
    """Behaviour 5: two partials of two functions would share their class's name, and so their keys."""
    guard = Idempotency()
    first, second = functools.partial(charge, "a"), functools.partial(charge, "b")
    for fn in (first, second):
        with pytest.raises(TypeError, match=r"this partial has no name of its own: .* it must be given a namespace"):
            guard.idempotent(fn)
    assert guard.idempotent(namespace="a")(first)()["order"] == "a"
    assert guard.idempotent(namespace="b")(second)()["order"] == "b"
    assert [idempotent(fn)()["order"] for fn in (first, second)] == ["a", "b"]


def test_a_function_made_inside_a_function_needs_a_namespace_on_a_shared_store(shared: SqliteStore) -> None:
    """Another process may make another one under the same name; within one process it is as good as any."""

    def inner(order_id: str) -> str:
        return order_id

    for way in (idempotent(store=shared), Idempotency(shared, namespace="billing").idempotent):
        with pytest.raises(
            TypeError,
            match=r"made inside a function: .* a namespace of its own, .*guard's is not",
        ):
            way(inner)
    assert idempotent(store=shared, namespace="orders")(inner)("a") == "a"
    assert Idempotency(shared).idempotent(namespace="orders")(inner)("a") == "a"
    assert idempotent(store=MemoryStore())(inner)("a") == Idempotency().idempotent(inner)("a") == "a"


def test_a_function_of_main_needs_a_namespace_on_a_shared_store(shared: SqliteStore) -> None:
    """Every script is __main__: its own namespace will do, or its guard's."""

    def script(order_id: str) -> str:
        return order_id

    script.__module__, script.__qualname__ = "__main__", "script"
    for way in (idempotent(store=shared), Idempotency(shared).idempotent):
        with pytest.raises(TypeError, match=r"script is of __main__: .* must be given a namespace"):
            way(script)
    assert (
        Idempotency(shared, namespace="billing").idempotent(script).key_for("a").namespace == "billing/__main__.script"
    )
    assert idempotent(store=shared, namespace="orders")(script)("a") == "a"
    assert idempotent(script)("a") == idempotent(store=MemoryStore())(script)("a") == "a"


def test_a_namespace_that_cannot_be_kept_is_refused() -> None:
    """A guard's holds no slash, which would let it pass for another guard's function; all fit into any store."""
    for wrong in ("a/b", "", "x" * 256, "\ud800"):
        with pytest.raises(ValueError, match="namespace must"):
            Idempotency(namespace=wrong)
    for wrong in ("", "x" * 256):
        for way in (idempotent, Idempotency().idempotent):
            with pytest.raises(ValueError, match="namespace must"):
                way(namespace=wrong)(charge)
    with pytest.raises(ValueError, match="1 to 255 characters, not 256"):
        Idempotency(namespace="x" * 100).idempotent(namespace="y" * 155)(charge)
    assert Idempotency(namespace="x" * 100).idempotent(namespace="y" * 154)(charge)
    with pytest.raises(TypeError, match="must be a str, not int"):
        idempotent(namespace=3)(charge)  # type: ignore[call-overload]
