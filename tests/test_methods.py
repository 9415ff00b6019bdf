"""Guarded methods: what is asked of one is asked for the object that it is bound to."""

from __future__ import annotations

import abc
import asyncio
import copy
import functools
import gc
import inspect
import pickle
import weakref
from typing import Any

import pytest

from idempo import Idempotency, InProgressError, InvalidKeyError, Key, MemoryStore, State, Stats, idempotent

RAN: list[Any] = []
STORE = MemoryStore()
GUARD = Idempotency(STORE, namespace="tills")


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()
    for method in ("charge", "refund", "open", "add"):
        STORE.purge(f"tills/{__name__}.Till.{method}")


class Till:
    """Methods of every kind."""

    def __init__(self, tenant: str = "north") -> None:
        self.tenant = tenant

    @GUARD.idempotent(key="order_id")
    def charge(self, order_id: str, amount: int = 1) -> str:
        """Charge an order."""
        RAN.append((self.tenant, order_id, amount))
        return self.tenant

    @GUARD.idempotent(key=("self.tenant", "order_id"))
    async def refund(self, order_id: str, amount: int = 1) -> str:
        """Refund an order."""
        RAN.append((self.tenant, order_id, amount))
        return self.tenant

    @classmethod
    @GUARD.idempotent(key="order_id")
    def open(cls, order_id: str, amount: int = 1) -> str:
        """Open for an order."""
        RAN.append(cls.__name__)
        return cls.__name__

    @staticmethod
    @GUARD.idempotent(key="first")
    def add(first: int, second: int) -> int:
        """Add two numbers."""
        RAN.append("add")
        return first + second


class Kiosk(Till):
    """Inherits, and calls what it inherits."""

    def charge(self, order_id: str, amount: int = 1) -> str:
        """Charge, as its base does."""
        return "kiosk " + super().charge(order_id, amount)


def test_what_is_asked_of_a_method_is_asked_for_its_object() -> None:
    """The call's own arguments are enough: none of them is taken for the object."""
    till = Till()
    assert till.charge("order-42", 500) == till.charge("order-42", 500) == "north"
    assert till.charge.key_for("order-42", 500) == Till.charge.key_for(till, "order-42", 500)
    assert till.charge.key_for("order-42", 500) == Key(f"tills/{__name__}.Till.charge", "order-42")
    record = till.charge.lookup("order-42", 500)
    assert record is not None
    assert record.state is State.COMPLETED
    assert till.charge.lookup(order_id="500") is None
    till.charge("500")
    assert till.charge.forget("order-42", 500)
    assert till.charge.lookup("order-42") is None
    assert till.charge.lookup("500") is not None
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'order_id'"):
        till.charge.key_for()
    assert RAN == [("north", "order-42", 500), ("north", "500", 1)]


def test_what_is_asked_of_a_coroutine_method_is_asked_for_its_object() -> None:
    """A path into the object leads into the right one."""
    north, south = Till("north"), Till("south")

    async def ask() -> None:
        assert await north.refund("a", 5) == "north"
        assert north.refund.key_for("a").value == "(north,a)"
        assert (await north.refund.lookup("a", 5)) is not None
        assert await south.refund.lookup("a", 5) is None
        assert not await south.refund.forget("a")
        assert await north.refund.forget("a", amount=5)

    asyncio.run(ask())
    assert RAN == [("north", "a", 5)]


def test_options_and_counts_of_a_bound_method() -> None:
    """They are those of the method; what `options` gives is bound to the object too."""
    till = Till()
    told: list[Any] = []
    noted = till.charge.options(observers=[told.append])
    assert noted("a") == "north"
    assert noted.key_for("a") == till.charge.key_for("a")
    assert noted.forget("a")
    assert noted.stats() == Stats(executed=1)
    assert len(told) == 1
    before = till.charge.stats().executed
    till.charge("b")
    assert till.charge.stats().executed == Till.charge.stats().executed == before + 1


def test_a_live_claim_of_a_bound_method_is_forgotten_by_force_alone() -> None:
    """``force`` is of `forget`, the rest of the method."""
    till = Till()
    STORE.claim(till.charge.key_for("a"), owner="elsewhere", fingerprint=None, lease=60, ttl=60)
    with pytest.raises(InProgressError):
        till.charge.forget("a")
    assert till.charge.forget("a", force=True)
    assert till.charge.lookup("a") is None


def test_a_class_method_is_asked_with_its_class() -> None:
    """Python binds it so that nobody else learns the class: to leave it out is refused, not misread."""
    assert [Till.open("a", 5), Till("x").open("a", 5)] == ["Till", "Till"]
    for bound in (Till.open, Till("x").open):
        asked: Any = bound
        for question in (asked.key_for, asked.lookup, asked.forget):
            with pytest.raises(TypeError, match=r"Till\.open\(\) is a class method: give the class first"):
                question("a", 5)
            with pytest.raises(TypeError, match="give the class first"):
                question(order_id="a")
        assert asked.key_for(Till, "a", 5).value == asked.key_for(cls=Till, order_id="a").value == "a"
        assert asked.lookup(Till, "a", 5) is not None
    assert asked.forget(Till, "a", 5)
    assert Till.open("a", 5) == "Till"
    assert Kiosk.open("b") == "Kiosk"
    assert RAN == ["Till", "Till", "Kiosk"]


def test_a_static_method_is_a_function() -> None:
    """It is asked with its own arguments, on the class and on an object."""
    assert [Till.add(1, 2), Till("x").add(1, 2)] == [3, 3]
    assert Till.add.key_for(1, 2) == Till("x").add.key_for(1, second=2)
    assert Till("x").add.forget(1, 2)
    assert RAN == ["add"]


def test_a_method_is_found_by_super_and_by_another_name() -> None:
    """It binds as functions do."""
    kiosk = Kiosk("k")
    assert kiosk.charge("a") == "kiosk k"
    assert Till.charge(kiosk, "a") == "k"
    assert RAN == [("k", "a", 1)]

    class Other:
        tenant = "other"
        charge = Till.charge

    assert Other().charge("b") == "other"
    assert Other().charge.key_for("b") == Till.charge.key_for(kiosk, "b")


def test_a_method_looks_as_the_function_that_it_guards() -> None:
    """Name, signature, colour and text; bound, the first parameter is taken."""
    till, plain = Till("n"), Till.__dict__["charge"].__wrapped__
    for method, colour in ((Till.charge, False), (till.charge, False), (Till.refund, True), (till.refund, True)):
        assert inspect.iscoroutinefunction(method) is colour
        assert inspect.isroutine(Till.charge)
        assert method.__module__ == __name__
    for method in (Till.charge, till.charge):
        assert (method.__name__, method.__qualname__) == ("charge", "Till.charge")
        assert inspect.getdoc(method) == "Charge an order."
        assert method.__annotations__ == plain.__annotations__
        assert inspect.getsource(method) == inspect.getsource(plain)
        assert "Till.charge" in repr(method)
    assert list(inspect.signature(Till.charge).parameters) == ["self", "order_id", "amount"]
    assert list(inspect.signature(till.charge).parameters) == ["order_id", "amount"]
    assert Till.charge.__wrapped__ is plain
    assert till.charge.__wrapped__("a") == "n"  # type: ignore[call-arg]
    bound: Any = till.charge
    assert bound.__self__ is till
    assert bound.__func__ is Till.charge
    with pytest.raises(AttributeError, match="nothing"):
        _ = bound.nothing


def test_bound_methods_are_equal_where_method_and_object_are_the_same() -> None:
    """As Python's own: callbacks are found again, and equal objects are not one."""
    till, other = Till("n"), Till("n")
    assert till.charge == till.charge
    assert till.charge != other.charge
    assert till.charge != till.refund
    assert till.charge != 3
    assert {till.charge: 1}[till.charge] == 1
    dead: Any = weakref.WeakMethod(till.charge)  # type: ignore[type-var]
    assert dead()("a") == "n"
    assert dead() == till.charge
    assert dead().key_for("a") == till.charge.key_for("a")
    del till
    gc.collect()
    assert dead() is None


def test_methods_are_copied_and_pickled_by_name() -> None:
    """As functions are: a copy is the same one."""
    till: Any = Till("n")
    for copied in (copy.copy(Till.charge), copy.deepcopy(Till.charge), pickle.loads(pickle.dumps(Till.charge))):
        assert copied is Till.charge
    for bound in (till.charge, till.refund):
        back: Any = pickle.loads(pickle.dumps(bound))
        assert back.__func__ is bound.__func__
        assert back.__self__.tenant == "n"


def test_an_attribute_of_the_method_is_one_of_the_bound_method() -> None:
    """As Python's own: marks of frameworks are found."""

    class Marked:
        @idempotent(key="a")
        def method(self, a: str) -> str:
            return a

    method: Any = Marked.method
    method.mark = "seen"
    assert Marked().method.mark == "seen"  # type: ignore[attr-defined]


def test_another_decorator_around_a_method_answers_for_no_key() -> None:
    """It would be asked without the object, and so for another operation."""

    class Counting:
        @functools.wraps(Till.__dict__["charge"])
        def charge(self, *args: Any) -> str:
            return Till.charge(self, *args)  # type: ignore[arg-type]

    assert not hasattr(Counting().charge, "forget")


def test_an_abstract_method_stays_abstract() -> None:
    """What the function says of itself is kept."""

    class Base(abc.ABC):
        @idempotent(key="order_id")
        @abc.abstractmethod
        def charge(self, order_id: str) -> str: ...

    with pytest.raises(TypeError, match="abstract"):
        Base()  # type: ignore[abstract]


def test_a_first_parameter_of_another_name_is_bound_too() -> None:
    """What is written in the body of a class is a method, whatever it calls its object."""

    class Shop:
        @idempotent(key="order_id", ignore=("this",))
        def charge(this, order_id: str) -> str:  # noqa: N805
            return order_id

        @classmethod
        @idempotent(key="order_id", ignore=("klass",))
        def open(klass, order_id: str) -> str:  # noqa: N804
            return klass.__name__ + order_id

    assert Shop().charge("a") == "a"
    assert Shop().charge.key_for("a").value == "a"
    assert Shop.open("a") == Shop().open("a") == "Shopa"


def test_a_parameter_of_the_functions_own_that_is_named_force_is_not_taken_for_ours() -> None:
    """Which of the two was meant cannot be told, and to forget under a live claim is no guess to make."""

    @idempotent(key="order_id")
    def close(order_id: str, force: bool = False) -> str:
        return order_id

    @idempotent(key="order_id")
    def note(order_id: str, **more: Any) -> str:
        return order_id

    close("a", True)
    for force in (True, False):
        with pytest.raises(TypeError, match=r"close\(\) has a parameter force of its own"):
            close.forget("a", force=force)
    assert close.key_for("a", force=True).value == "a"
    assert close.lookup("a", force=True) is not None
    assert close.forget("a", True)
    note("a")
    assert note.forget("a", force=True)


def test_bad_keys_of_bound_methods_are_refused() -> None:
    """As in a call."""
    for wrong in ("", None):
        with pytest.raises(InvalidKeyError, match="order_id"):
            Till().charge.lookup(wrong)  # type: ignore[arg-type]
