"""Mistakes of setting up are told at once, as what they are, with what to do."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from idempo import Event, Fingerprinter, Idempotency, JsonCodec, MemoryStore, idempotent
from idempo._time import LONGEST
from idempo.seals import Signed


def charge(order_id: str) -> str:
    """Charge an order."""
    return order_id


WAYS: list[Any] = [
    pytest.param(Idempotency, id="guard"),
    pytest.param(lambda **options: idempotent(key="order_id", **options)(charge), id="decorator"),
    pytest.param(lambda **options: Idempotency().idempotent(key="order_id", **options)(charge), id="guard's"),
    pytest.param(lambda **options: idempotent(key="order_id")(charge).options(**options), id="options"),
]
WITH_STORE, OF_ONE = WAYS[:2], WAYS[1:]


@pytest.mark.parametrize("way", WITH_STORE)
@pytest.mark.parametrize(
    ("store", "told"),
    [
        (
            "sqlite:///orders.db",
            r"store must be a store, such as SqliteStore\(path\), not the str 'sqlite:///orders.db'",
        ),
        (MemoryStore, r"store is the class MemoryStore: make one of it, as in MemoryStore\(\.\.\.\)"),
        (object(), "store must have the six methods of idempo.Store, and object has not"),
        ({}, "store must have the six methods of idempo.Store, and dict has not"),
    ],
)
def test_what_is_no_store_is_told_before_any_rule_of_names(way: Callable[..., Any], store: Any, told: str) -> None:
    """Of a local function too, which on a shared store would have to be given a namespace."""
    with pytest.raises(TypeError, match=told):
        way(store=store)

    def local(order_id: str) -> str:
        return order_id

    with pytest.raises(TypeError, match=told):
        idempotent(store=store)(local)
    with pytest.raises(TypeError, match=told):  # when the option is given, not when a function is decorated
        idempotent(store=store)


@pytest.mark.parametrize("way", WAYS)
def test_a_class_is_no_codec(way: Callable[..., Any]) -> None:
    """It has the methods, and none of them could be called."""
    with pytest.raises(TypeError, match=r"codec is the class JsonCodec: make one of it, as in JsonCodec\(\.\.\.\)"):
        way(codec=JsonCodec)
    with pytest.raises(TypeError, match="codec must have encode and decode, and str has not"):
        way(codec="json")


def test_a_class_is_no_seal() -> None:
    """Nor is what has no methods of one."""
    wrong: Any = Signed
    with pytest.raises(TypeError, match=r"seal is the class Signed: make one of it, as in Signed\(\.\.\.\)"):
        Idempotency(seal=wrong)
    for wrong in (object(), b"secret"):
        with pytest.raises(TypeError, match=f"seal must have seal and open, and {type(wrong).__name__} has not"):
            Idempotency(seal=wrong)


async def observe(event: Event) -> None: ...


class Observes:
    """An object whose call is a coroutine."""

    async def __call__(self, event: Event) -> None:
        """Observe."""


@pytest.mark.parametrize("way", WAYS)
def test_observers_are_several_and_plain(way: Callable[..., Any]) -> None:
    """One alone is not taken for several, and nobody would await a coroutine."""
    with pytest.raises(
        TypeError, match=r"observers must be a sequence of observers, as in \[print\], not a builtin_func"
    ):
        way(observers=print)
    with pytest.raises(TypeError, match=r"observers must be a sequence of observers, .* not a str"):
        way(observers="print")
    for wrong in (observe, functools.partial(observe), Observes()):
        with pytest.raises(TypeError, match="an observer must be a plain function: nobody would await"):
            way(observers=[wrong])
    with pytest.raises(TypeError, match="an observer must be callable, not int"):
        way(observers=(3,))
    assert way(observers=iter([print]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["replay_errors", "release_errors"])
def test_error_classes_are_a_class_or_a_tuple(way: Callable[..., Any], name: str) -> None:
    """As `isinstance` takes them."""
    with pytest.raises(TypeError, match=f"{name} must be an exception class or a tuple of them, not a list"):
        way(**{name: [ValueError]})
    for wrong in (int, (ValueError, int), "ValueError", (ValueError(),)):
        with pytest.raises(TypeError, match=f"{name} must be an exception class or a tuple of them, not "):
            way(**{name: wrong})


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"max_records": "a"}, TypeError, "max_records must be a whole number, not str"),
        ({"max_records": True}, TypeError, "max_records must be a whole number, not bool"),
        ({"max_records": 1.5}, TypeError, "max_records must be a whole number, not float"),
        ({"max_records": None}, TypeError, "max_records must be a whole number, not NoneType"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be a whole number, not float"),
        ({"max_bytes": False}, TypeError, "max_bytes must be a whole number, not bool"),
        ({"max_records": 0}, ValueError, "max_records must be at least 1, not 0"),
        ({"max_bytes": -1}, ValueError, "max_bytes must be at least 1, not -1"),
        ({"clock": 5}, TypeError, "clock must be a function that gives seconds, not int"),
        ({"on_full": "panic"}, ValueError, 'on_full must be "evict" or "refuse"'),
        ({"on_full": ["evict"]}, ValueError, 'on_full must be "evict" or "refuse"'),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_options_of_a_memory_store(options: Any, error: type[Exception], told: str) -> None:
    """They are checked when it is made, not at its first claim."""
    with pytest.raises(error, match=told):
        MemoryStore(**options)


@pytest.mark.parametrize(
    ("way", "options", "told"),
    [
        (WAYS[0].values[0], {"tll": 60}, r"Idempotency\(\) has no option 'tll': did you mean 'ttl'\?"),
        (WAYS[0].values[0], {"nothing": 60}, r"Idempotency\(\) has no option 'nothing'$"),
        (WAYS[0].values[0], {"key": "a"}, r"Idempotency\(\) has no option 'key': it is one of guard.idempotent\(\)"),
        (WAYS[1].values[0], {"lese": 60}, r"idempotent\(\) has no option 'lese': did you mean 'lease'\?"),
        (WAYS[1].values[0], {"seal": 60}, r"idempotent\(\) has no option 'seal': give it to a guard, Idempotency\("),
        (WAYS[2].values[0], {"tll": 60}, r"guard.idempotent\(\) has no option 'tll'"),
        (WAYS[2].values[0], {"store": MemoryStore()}, r"guard.idempotent\(\) has no option 'store': it is the guard's"),
        (WAYS[2].values[0], {"seal": 60}, r"guard.idempotent\(\) has no option 'seal': it is the guard's"),
        (WAYS[3].values[0], {"tll": 60}, r"options\(\) has no option 'tll'"),
        (WAYS[3].values[0], {"store": 6}, r"options\(\) has no option 'store': the function keeps its own"),
        (WAYS[3].values[0], {"namespace": "a"}, r"options\(\) has no option 'namespace': the function keeps its own"),
    ],
)
def test_an_option_that_there_is_not_is_told_by_who_was_asked(way: Any, options: Any, told: str) -> None:
    """Not by a constructor that the caller has never heard of."""
    with pytest.raises(TypeError, match=told):
        way(**options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["ttl", "lease", "max_run", "wait"])
def test_durations_have_an_upper_bound(way: Callable[..., Any], name: str) -> None:
    """A hundred years: whatever waits, counts in microseconds or adds to a clock can hold them."""
    for wrong in (10**400, 1e308, LONGEST * 1.001, timedelta.max):
        with pytest.raises(ValueError, match=f"{name} must be at most 100 years, which are 3155760000 seconds"):
            way(**{name: wrong})
    with pytest.raises(ValueError, match=f"{name} must be a finite number of seconds"):
        way(**{name: -(10**400)})
    assert way(**{name: LONGEST})
    assert way(**{name: timedelta(days=36_500)})


def test_the_longest_durations_can_be_used() -> None:
    """By a store too."""
    guard = Idempotency(ttl=LONGEST, lease=LONGEST, max_run=LONGEST, wait=LONGEST)
    assert [guard.run("a", lambda: 1), guard.run("a", lambda: 2)] == [1, 1]
    record = guard.lookup("a")
    assert record is not None
    assert record.expires_in == pytest.approx(LONGEST)


def test_a_guard_is_immutable_and_shows_what_it_is_without_secrets() -> None:
    """What was settled once cannot be half changed."""
    guard: Any = Idempotency(
        MemoryStore(), namespace="billing", fingerprinter=Fingerprinter(secret=b"0123456789abcdef"), ttl=60
    )
    assert repr(guard) == "Idempotency(<MemoryStore>, namespace='billing')"
    for name in ("namespace", "store", "policy", "_terms", "nothing"):
        with pytest.raises(AttributeError, match=f"a guard is immutable: {name} cannot be set; make another one"):
            setattr(guard, name, "x")
    with pytest.raises(AttributeError, match="a guard is immutable: namespace cannot be deleted"):
        del guard.namespace
    assert guard.run("a", len, "abc") == 3


def publish(topic: str, payload: bytes = b"") -> str:
    """Has a parameter named as one of run's."""
    return f"{topic}: {payload!r}"


async def publish_later(topic: str, *, payload: bytes = b"") -> str:
    """Has a parameter named as one of run_async's."""
    return publish(topic, payload)


def forward(*args: Any, **options: Any) -> dict[str, Any]:
    """Takes whatever it is given by name."""
    return options


@pytest.mark.parametrize("payload", [b"x", None])
def test_payload_is_not_taken_from_a_function_that_has_such_a_parameter(payload: Any) -> None:
    """Which of the two was meant cannot be told, and the function would run without it."""
    guard = Idempotency()

    @functools.wraps(publish)
    def wrapped(*args: Any, **kwargs: Any) -> str:
        return publish(*args, **kwargs)

    told = r"(publish\w*|partial)\(\) has a parameter payload of its own: .* functools.partial\(fn, payload=...\)"
    for fn in (publish, wrapped, idempotent(key="topic")(publish), functools.partial(publish, "topic")):
        with pytest.raises(TypeError, match=told):
            guard.run("a", fn, payload=payload)
    with pytest.raises(TypeError, match=told):
        asyncio.run(guard.run_async("a", publish_later, "topic", payload=payload))
    assert guard.lookup("a") is None


def test_the_ways_round_a_parameter_named_payload() -> None:
    """A partial that gives it, or its place; what takes any name is not asked."""
    guard = Idempotency()
    assert guard.run("a", functools.partial(publish, payload=b"x"), "topic", payload="x") == "topic: b'x'"
    assert guard.run("b", publish, "topic", b"x") == "topic: b'x'"
    assert guard.run("c", forward, payload=b"x", more=1) == {"more": 1}
    assert guard.run("d", int, "7", payload=None) == 7  # tells no parameters, or has none of the name
    assert guard.run("e", dict, payload=None) == {}
    later = functools.partial(publish_later, payload=b"x")
    assert asyncio.run(guard.run_async("f", later, "topic", payload=None)) == "topic: b'x'"
