"""Keys and payloads: from a call to the text of its key and its fingerprint."""

from __future__ import annotations

import copy
import enum
import functools
import pickle
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idempo.errors import FingerprintError, InvalidKeyError
from idempo.fingerprint import Fingerprinter
from idempo.keys import (
    ALL_ARGUMENTS,
    EVERYTHING,
    check_namespace,
    compile_call,
    key_text,
    spelled_fingerprint,
)

FINGERPRINTER = Fingerprinter()
compiled = functools.partial(compile_call, fingerprinter=FINGERPRINTER)


def digest(payload: object) -> bytes:
    return FINGERPRINTER.digest(FINGERPRINTER.text(payload))


def charge(order_id: str, amount: int = 5, *notes: object, tag: object = "x", **extra: object) -> None:
    raise AssertionError("a call's key is made before the function runs, and without it")


class Order:
    def __init__(self, number: object) -> None:
        self.id = number


class Color(enum.Enum):
    RED = "red"
    SEVEN = 7
    PAIR = ("a", "b")
    NOTHING = None
    YES = True


class Size(enum.IntEnum):
    SEVEN = 7


class Name(str):
    def __str__(self) -> str:
        return "another"


class Point(NamedTuple):
    x: int
    y: int


# ------------------------------------------------------------------------------------------------ the text of a key


def normal(value: object) -> object:
    """What makes two keys the same key, told in Python's own equality."""
    if isinstance(value, enum.Enum):
        return normal(value.value)
    if isinstance(value, tuple):
        return tuple(normal(part) for part in value)
    return value if isinstance(value, bytes) else str(value)


def read_key(text: str) -> object:
    """Read a key's text back: what can be read in one way only was not written for two keys."""
    if text[:2] == "\\x":
        return bytes.fromhex(text[2:])
    if text[0] == "\\":
        return text[1:]
    if text[0] != "(":
        return text
    value, rest = _read_tuple(text)
    assert not rest
    return value


def _read_tuple(text: str) -> tuple[object, str]:
    parts: list[object] = []
    while text[0] != ")":
        part, text = _read_part(text[1:])
        parts.append(part)
    return tuple(parts), text[1:]


def _read_part(text: str) -> tuple[object, str]:
    if text[0] == "(":
        return _read_tuple(text)
    if text[:2] == "\\x":
        end = min(place for place in (text.find(","), text.find(")")) if place > 0)
        return bytes.fromhex(text[2:end]), text[end:]
    part = ""
    while text[0] not in ",)":
        text = text[text[0] == "\\" :]
        part, text = part + text[0], text[1:]
    return part, text


texts = st.text("\\x(),7aé:", min_size=1, max_size=8) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8
)
leaves = (
    texts | st.integers() | st.binary(min_size=1, max_size=4) | st.uuids() | st.sampled_from([Color.RED, Size.SEVEN])
)
parts = st.recursive(leaves, lambda inner: st.lists(inner, min_size=1, max_size=3).map(tuple), max_leaves=5)


@given(parts)
@example(("a:b", "c"))
@example(("a", "b:c"))
@example(("a,b",))
@example("(a)")
@example("\\x41")
@example(b"A")
@example(("\\x41", b"A"))
def test_no_two_keys_have_one_text(value: object) -> None:
    """Behaviour 5: a key's text can be read back in one way only, so that no two keys share one."""
    assert read_key(key_text(value)) == normal(value)


def test_neighbouring_parts_do_not_run_together() -> None:
    """Behaviour 5: ("a:b", "c") and ("a", "b:c") are two keys, and so are others that joining would confuse."""
    values: list[object] = [
        "a", ("a",), (("a",),), "(a)", "\\(a)", b"a", (b"a",), "\\x61", ("\\x61",), "a,b", ("a", "b"), ("a,b",),
        ("a\\", "b"), ("a\\,b",), ("a:b", "c"), ("a", "b:c"), (("a", "b"), "c"), ("a", ("b", "c")), ("a", "b", "c"),
    ]  # fmt: skip
    assert len({key_text(value) for value in values}) == len(values)


def nested(depth: int) -> object:
    value: object = "x"
    for _ in range(depth):
        value = (value,)
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("order-42", "order-42"),
        (7, "7"),
        (-7, "-7"),
        (Color.RED, "red"),
        (Color.SEVEN, "7"),
        (Size.SEVEN, "7"),
        (Color.PAIR, "(a,b)"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (b"A\xff", "\\x41ff"),
        (("a", 7), "(a,7)"),
        (("a", Color.PAIR), "(a,(a,b))"),
        (Point(1, 2), "(1,2)"),
        ("\x00\n ", "\x00\n "),
        ("naïve 🗝", "naïve 🗝"),
        ("(a", "\\(a"),
        ("\\a", "\\\\a"),
        ("x" * 255, "x" * 255),
        ("é" * 255, "é" * 255),
        (10**254, "1" + "0" * 254),
        (b"x" * 126, "\\x" + "78" * 126),
        (nested(127), "(" * 127 + "x" + ")" * 127),
        (("x",) * 127, "(" + ",".join("x" * 127) + ")"),
    ],
)
def test_the_text_of_a_key(value: object, text: str) -> None:
    """7 and "7" are one key, an Enum counts by its value, and what is written stays as it is for stores to come."""
    assert key_text(value) == text


def test_a_subclass_counts_as_its_base() -> None:
    """What a class thinks of its own text is not the key."""
    assert key_text(Name("real")) == "real"
    assert type(key_text(Name("real"))) is str
    assert key_text((Name("real"),)) == "(real)"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "is None"),
        (Color.NOTHING, "is None"),
        (("a", None), "is None"),
        ("", "empty"),
        (b"", "empty"),
        ((), "empty"),
        (("a", ""), "empty"),
        (("a", ()), "empty"),
        (True, "bool"),
        (Color.YES, "bool"),
        (7.0, "float"),
        (("a", 7.0), "float"),
        (["a"], "list"),
        ({"a": 1}, "dict"),
        (bytearray(b"a"), "bytearray"),
        (object(), "object"),
        ("x" * 256, "255"),
        ("(" + "x" * 254 + ")", "255"),
        (("x" * 254,), "255"),
        (("x" * 256,), "255"),
        (("x" * 127, "x" * 127), "255"),
        (("x",) * 128, "255"),
        (nested(128), "255"),
        (nested(5000), "255"),
        (b"x" * 127, "255"),
        (b"x" * 256, "255"),
        (10**255, "255"),
        (10**100_000, "255"),
        ("\ud800", "Unicode"),
        (("a", "\ud800"), "Unicode"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_key(value: object, says: str) -> None:
    """Behaviour 9: a key that is missing, None, "", too long, or that names nothing reliably, is refused with the
    reason.
    """
    with pytest.raises(InvalidKeyError, match=f"^the key of the order .*{says}"):
        key_text(value, "the key of the order")


def test_a_key_needs_no_uuid_module() -> None:
    """Whoever makes no UUIDs is spared their module, and the error is the same without it."""
    code = "import sys; sys.modules['uuid'] = None\nfrom idempo.keys import key_text\nprint(key_text(7))\nkey_text(7.5)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "7\n"
    assert "InvalidKeyError" in run.stderr


@pytest.mark.parametrize("namespace", ["billing", "app.orders.charge", "ключ 🗝", "x" * 255])
def test_a_namespace(namespace: str) -> None:
    """A namespace is any text that stores can keep."""
    assert check_namespace(namespace) == namespace
    assert check_namespace(namespace, allow_slash=False) == namespace


@pytest.mark.parametrize("namespace", ["", "x" * 256, "\ud800"])
def test_a_namespace_that_no_store_can_keep(namespace: str) -> None:
    """A namespace that is empty, too long or no Unicode is refused."""
    with pytest.raises(ValueError, match="namespace"):
        check_namespace(namespace)


def test_a_namespace_is_text() -> None:
    """Nothing else becomes a namespace by its str()."""
    number: Any = 7
    with pytest.raises(TypeError, match="must be a str, not int"):
        check_namespace(number)


def test_a_guards_namespace_holds_no_slash() -> None:
    """The slash ends a guard's part: "a/b" as a guard's own could pass for guard "a" and function "b"."""
    assert check_namespace("billing/app.charge") == "billing/app.charge"
    with pytest.raises(ValueError, match="no '/'"):
        check_namespace("billing/app", allow_slash=False)


# ------------------------------------------------------------------------------------------------ one call, one key

values = st.sampled_from(
    [None, True, 0, 1, 1.0, -0.0, "", "1", "é", [], [1], {}, {"b": 1, "a": [2]}, b"x", 10**30]
).map(copy.deepcopy)  # the same value is another object each time, save where the interpreter shares it


class Call(NamedTuple):
    """A function, and one call of it in two spellings, with the payload that both should have."""

    fn: Callable[..., Any]
    spellings: list[tuple[list[Any], dict[str, Any]]]
    payload: dict[str, Any]


def function(parameters: str, defaults: Mapping[str, object]) -> Callable[..., Any]:
    scope: dict[str, Any] = {"defaults": defaults}
    exec(f"def fn({parameters}): pass", scope)
    fn: Callable[..., Any] = scope["fn"]
    return fn


@st.composite
def functions(draw: st.DrawFn) -> tuple[Callable[..., Any], list[str], list[str], list[str], dict[str, object]]:
    """Return a function with any mix of parameters; its names by kind, the variadic ones starred; its defaults."""
    names = draw(st.permutations(["a", "_1", "type", "_", "é", "Z", "__2"]))
    only = [names.pop() for _ in range(draw(st.integers(0, 2)))]
    either = [names.pop() for _ in range(draw(st.integers(0, 2)))]
    keywords = [names.pop() for _ in range(draw(st.integers(0, 2)))]
    first_default = draw(st.integers(0, len(only + either)))
    with_default = [*(only + either)[first_default:], *(name for name in keywords if draw(st.booleans()))]
    defaults: dict[str, object] = {name: draw(values) for name in with_default}

    def written(group: list[str]) -> list[str]:
        return [f"{name}=defaults[{name!r}]" if name in defaults else name for name in group]

    variadic = draw(st.sampled_from([(), ("*args",), ("**kwargs",), ("*args", "**kwargs")]))
    pieces = [*written(only), *["/"] * bool(only), *written(either)]
    pieces += ["*args"] if "*args" in variadic else ["*"] * bool(keywords)
    pieces += [*written(keywords), *["**kwargs"] * ("**kwargs" in variadic)]
    return function(", ".join(pieces), defaults), only, either, [*keywords, *variadic], defaults


@st.composite
def calls(draw: st.DrawFn) -> Call:
    fn, only, either, others, defaults = draw(functions())
    positional, keywords = only + either, [name for name in others if "*" not in name]
    arguments = {
        name: draw(st.just(defaults[name]) | values) if name in defaults else draw(values)
        for name in positional + keywords
    }
    extra = draw(st.lists(values, max_size=2)) if "*args" in others else []
    more = draw(st.dictionaries(st.sampled_from([*only, "k", "l"]), values)) if "**kwargs" in others else {}

    def is_default(name: str) -> bool:
        return name in defaults and FINGERPRINTER.text(arguments[name]) == FINGERPRINTER.text(defaults[name])

    def spelling() -> tuple[list[Any], dict[str, Any]]:
        needed = max((place for place, name in enumerate(only, 1) if not is_default(name)), default=0)
        count = len(positional) if extra else draw(st.integers(needed, len(positional)))
        rest = [*positional[max(count, len(only)) :], *keywords]
        named = {name: arguments[name] for name in rest if not (is_default(name) and draw(st.booleans()))}
        spelled = copy.deepcopy([arguments[name] for name in positional[:count]] + extra)
        return spelled, dict(draw(st.permutations(list(copy.deepcopy({**named, **more}).items()))))

    payload = {name: value for name, value in arguments.items() if not is_default(name)}
    payload |= {"args": tuple(extra)} if extra else {}
    payload |= {"kwargs": more} if more else {}
    return Call(fn, [spelling(), spelling()], payload)


@given(calls())
def test_any_spelling_of_one_call_is_one_call(call: Call) -> None:
    """Behaviour 4: positional, keyword and default spellings of a call have one key and one fingerprint, and it is the
    documented one: that of a dict of what is not left out.
    """
    answers = [compiled(call.fn)(*args, **kwargs) for args, kwargs in call.spellings]
    fingerprint = digest(call.payload)
    assert answers == [(fingerprint.hex(), fingerprint)] * 2


@given(
    functions(),
    st.lists(st.just("v"), max_size=6),
    st.dictionaries(st.sampled_from(["a", "_1", "type", "é", "Z"]), texts),
)
def test_a_call_that_does_not_fit_fails_as_the_function_would(
    made: Any, args: list[Any], kwargs: dict[str, Any]
) -> None:
    """Wrong arguments raise the function's own TypeError, word for word."""
    fn = made[0]
    said: list[str | None] = []
    for called in (fn, compiled(fn)):
        try:
            called(*args, **kwargs)
        except TypeError as error:
            said.append(str(error))
        else:
            said.append(None)
    assert said[0] == said[1]


def test_a_call_that_does_not_fit_names_the_function_and_asks_nobody() -> None:
    """The error names the function that was meant, before any callable of the user's is asked."""

    def asked(*args: object, **kwargs: object) -> str:
        raise AssertionError("asked about a call that cannot be made")

    with pytest.raises(TypeError, match=r"^charge\(\) missing 1 required positional argument: 'order_id'$"):
        compiled(charge, key="order_id")()
    with pytest.raises(TypeError, match=r"^charge\(\) missing 1 required positional argument: 'order_id'$"):
        compiled(charge, key=asked, payload=asked)()
    with pytest.raises(TypeError, match=r"^Order\.__init__\(\) missing 1 required positional argument: 'number'$"):
        compiled(Order.__init__, key="number")(None)


def test_a_dict_in_another_order_is_the_same_payload() -> None:
    """Behaviour 4: so is a dict in another order, of an argument or of keyword arguments."""
    call = compiled(charge, key="order_id")
    assert call("a", tag={"b": 1, "c": 2}, k=1, l=2) == call("a", l=2, k=1, tag={"c": 2, "b": 1})


def test_another_payload_has_another_fingerprint_and_the_same_key() -> None:
    """Key and fingerprint speak of different things."""
    call = compiled(charge, key="order_id")
    (one, first), (two, second) = call("a", 1), call("a", 2)
    assert one == two == "a"
    assert first != second


def test_another_key_with_the_same_payload() -> None:
    """Behaviour 7: two keys with one payload are two operations."""
    call = compiled(charge, key="order_id", ignore="order_id")
    (one, first), (two, second) = call("a", 1), call("b", 1)
    assert (one, two) == ("a", "b")
    assert first == second


# -------------------------------------------------------------------------------------------------------- defaults


def test_a_new_optional_parameter_changes_no_fingerprint() -> None:
    """What is stored under the old signature still matches under the new one."""

    def new(order_id: str, amount: int = 5, *notes: object, tag: object = "x", more: object = None) -> None: ...

    assert compiled(charge, key="order_id")("a", 6) == compiled(new, key="order_id")("a", 6)


def test_a_default_that_the_function_changes_is_known_as_it_was() -> None:
    """A mutable default counts by its text at decoration, and by its identity for ever."""

    def append(item: str, to: list[str] = []) -> None: ...  # noqa: B006

    call = compiled(append, key="item")
    left_out = call("a")
    assert append.__defaults__ is not None
    append.__defaults__[0].append("changed")
    assert call("a") == call("a", []) == call("a", append.__defaults__[0]) == left_out
    assert call("a", ["changed"]) != left_out


def test_a_default_without_a_canonical_form_is_known_by_identity() -> None:
    """A sentinel as default, given or not, is left out; anything else in its place is payload."""
    missing = object()

    def look(key: str, default: object = missing) -> None: ...

    call = compiled(look, key="key")
    assert call("a") == call("a", missing) == ("a", digest({"key": "a"}))
    assert call("a", None) == ("a", digest({"key": "a", "default": None}))
    with pytest.raises(FingerprintError) as caught:
        call("a", object())
    assert caught.value.path == "default"


def test_a_default_is_no_key_where_it_names_nothing() -> None:
    """Behaviour 9: a key left out, whose default is None, is a missing key."""

    def fetch(request_id: str | None = None) -> None: ...

    with pytest.raises(InvalidKeyError, match=r"^the key 'request_id' of .*fetch\(\) is None"):
        compiled(fetch, key="request_id")()


# ------------------------------------------------------------------------------------------------------------- key


def handle(event: Any, *rest: Any, **extra: Any) -> None: ...


class Headers(Mapping[str, str]):
    def __getitem__(self, name: str) -> str:
        return {"x-request-id": "r1"}[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() == "x-request-id"

    def __iter__(self) -> Any: ...

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("key", "args", "kwargs", "text"),
    [
        ("event", (7,), {}, "7"),
        (("event",), (7,), {}, "7"),
        (["event", "extra.tenant"], ("(a", ), {"tenant": "b,c"}, "(\\(a,b\\,c)"),
        ("event.id", (Order("o1"),), {}, "o1"),
        ("event.id", ({"id": "o1"},), {}, "o1"),
        ("event.id", (MappingProxyType({"id": "o1"}),), {}, "o1"),
        ("event.detail.id", ({"detail": Order("o1")},), {}, "o1"),
        ("event.detail.id", (SimpleNamespace(detail={"id": "o1"}),), {}, "o1"),
        ("event.X-Request-Id", (Headers(),), {}, "r1"),
        ("event.items", ({"items": "no method"},), {}, "no method"),
        ("rest", (0, 1, 2), {}, "(1,2)"),
        ("extra.tenant", (0,), {"tenant": "acme"}, "acme"),
        (lambda event, **extra: event["id"], ({"id": "o1"},), {"tenant": "acme"}, "o1"),
        (lambda *args, **kwargs: (len(args), *kwargs), (0, 1), {"tenant": "acme"}, "(2,tenant)"),
        (str, (7.5,), {}, "7.5"),
    ],
)  # fmt: skip
def test_where_a_key_is_found(key: Any, args: tuple[Any, ...], kwargs: dict[str, Any], text: str) -> None:
    """A key is a parameter, a place inside one, several of them, or what a callable makes of the call as spelled."""
    assert compiled(handle, key=key, payload=None)(*args, **kwargs) == (text, None)


def test_several_are_joined_as_a_tuple_is() -> None:
    """Behaviour 5: a sequence of names has the text of the tuple of their values."""
    call = compiled(handle, key=("event", "extra.a", "extra.b"), payload=None)
    for parts in [("a:b", "c", b"d"), ("a", "b:c", 7), ("(", ("x", "y"), Color.PAIR), ("é,", Name("n"), "\\")]:
        assert call(parts[0], a=parts[1], b=parts[2])[0] == key_text(parts)


@pytest.mark.parametrize(
    ("key", "event", "says"),
    [
        ("event", None, "the key 'event' of handle() is None"),
        ("event", "", "the key 'event' of handle() is or holds an empty text"),
        (("event", "rest"), "a", "the key 'rest' of handle() is or holds an empty tuple"),
        (("event", "event.x"), "x" * 256, "the key 'event' of handle() is longer than 255"),
        (("event", "extra.x"), "x" * 255, "the key of handle() is longer than 255"),
        (lambda *args, **kwargs: None, 1, "the key that key= made for handle() is None"),
        ("event.detail.id", {}, "the key 'event.detail.id' of handle() is missing: there is no item 'detail'"),
        (
            "event.detail.id",
            {"detail": 7},
            "the key 'event.detail.id' of handle() is missing: the int has no attribute 'id'",
        ),
        ("extra.tenant", 7, "the key 'extra.tenant' of handle() is missing: there is no item 'tenant'"),
    ],
)
def test_a_call_without_a_key(key: Any, event: object, says: str) -> None:
    """Behaviour 9: the error says which key of which function is missing, and why."""
    with pytest.raises(InvalidKeyError) as caught:
        compiled(handle, key=key, payload=None)(event, x="xx")
    assert str(caught.value).startswith(says)


def test_looking_for_a_key_changes_nothing() -> None:
    """A defaultdict does not grow the item that was looked for."""
    event: dict[str, str] = defaultdict(str)
    with pytest.raises(InvalidKeyError):
        compiled(handle, key="event.id")(event)
    assert not event


def test_what_a_callable_raises_is_the_callers() -> None:
    """The error of a key= or payload= callable comes through as it is."""

    def look(event: Any) -> Any:
        return event["id"]

    made: list[dict[str, Any]] = [{"key": look}, {"key": "event", "payload": look}]
    for options in made:
        with pytest.raises(TypeError, match="not subscriptable"):
            compiled(handle, **options)(7)


def test_a_callable_may_be_anything_that_can_be_called() -> None:
    """An object that can be called and counts as false is still what was given."""

    class Registry(dict[str, str]):
        def __call__(self, event: object) -> object:
            return event

    assert compiled(handle, key=Registry(), payload=Registry())(7) == ("7", digest(7))


def test_all_arguments_are_the_key() -> None:
    """Without a key of its own, a call is known by all its arguments but those to be ignored."""
    fingerprint = digest({"order_id": "a", "amount": 6})
    assert compiled(charge)("a", 6) == (fingerprint.hex(), fingerprint)
    assert compiled(charge, payload=None)("a", 6) == (fingerprint.hex(), None)
    assert compiled(charge, ignore=["tag"])("a", 6, tag=object()) == (fingerprint.hex(), fingerprint)
    assert compiled(charge, ignore=["tag"], payload=lambda *args, **kwargs: 1)("a", 6) == (fingerprint.hex(), digest(1))
    assert compiled(charge, payload=["amount"])("a", 6) == (fingerprint.hex(), digest({"amount": 6}))
    assert compiled(lambda: 0)() == (digest({}).hex(), digest({}))


def test_a_method_must_name_its_key() -> None:
    """The object that a method is called on is no payload; "self.tenant" is a path like any other."""

    class Shop:
        tenant = "acme"

        def sell(self, item: str) -> None: ...

        def build(cls, item: str) -> None: ...  # noqa: N805

        @staticmethod
        def cost(item: str) -> None: ...

    for method in (Shop.sell, Shop.build):
        with pytest.raises(TypeError, match=r"Shop\.\w+\(\) is a method, which must name its key"):
            compiled(method)
        assert compiled(method, key="item")(Shop(), "a") == ("a", digest({"item": "a"}))
    assert compiled(Shop.sell, key=("self.tenant", "item"))(Shop(), item="a") == ("(acme,a)", digest({"item": "a"}))
    for free in (Shop.cost, Shop().sell, lambda item, self: None, lambda *self: None, lambda: None):
        assert compiled(free)  # no method: all arguments are its key
    assert compiled(Shop().sell)("a")[1] == digest({"item": "a"})


# --------------------------------------------------------------------------------------------------------- payload


@pytest.mark.parametrize(
    ("options", "payload"),
    [
        ({"payload": "amount"}, {"amount": 6}),
        ({"payload": ("tag", "amount")}, {"amount": 6, "tag": {"total": 9}}),
        ({"payload": ("tag.total", "amount", "extra.k")}, {"amount": 6, "tag.total": 9, "extra.k": 1}),
        ({"payload": ["notes", "extra"]}, {"notes": (7,), "extra": {"k": 1}}),
        ({"payload": lambda order_id, amount, *notes, **named: [amount, sorted(named)]}, [6, ["k", "tag"]]),
        ({"ignore": ("tag", "notes", "extra")}, {"order_id": "a", "amount": 6}),
        ({"ignore": {"order_id", "extra", "notes"}}, {"amount": 6, "tag": {"total": 9}}),
        ({"ignore": "tag", "payload": EVERYTHING}, {"order_id": "a", "amount": 6, "notes": (7,), "extra": {"k": 1}}),
        ({"ignore": "tag", "payload": "amount"}, {"amount": 6}),
    ],
)
def test_what_is_fingerprinted(options: dict[str, Any], payload: object) -> None:
    """The payload is every argument but some, or the named ones, or what a callable makes of the call as spelled."""
    call = compiled(charge, key="order_id", **options)
    assert call("a", 6, 7, tag={"total": 9}, k=1) == ("a", digest(payload))


def test_named_payloads_leave_defaults_out_too() -> None:
    """An argument that is its default is no payload, however the payload is chosen."""
    call = compiled(charge, key="order_id", payload=("amount", "tag", "notes"))
    assert call("a") == call("a", 5, tag="x") == ("a", digest({}))
    assert call("a", 6)[1] == digest({"amount": 6})


@pytest.mark.parametrize("options", [{}, {"payload": ("notes", "tag", "extra", "amount")}])
@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        (("a", object()), {}, "amount"),
        (("a", 1, 2, object()), {}, "notes[1]"),
        (("a",), {"tag": {"items": [1, 2, 3, {"session": object()}]}}, "tag.items[3].session"),
        (("a",), {"k": object()}, "extra.k"),
    ],
)
def test_an_argument_without_a_canonical_form(options: Any, args: Any, kwargs: Any, path: str) -> None:
    """Behaviour 10: the error names the path to it, from the parameter's name on."""
    with pytest.raises(FingerprintError) as caught:
        compiled(charge, key="order_id", **options)(*args, **kwargs)
    assert caught.value.path == path
    assert path in str(caught.value)


@pytest.mark.parametrize("event", [{}, 7])
def test_a_payload_that_is_not_there(event: object) -> None:
    """Behaviour 10: a payload's path that leads nowhere is an error that names it, not an empty payload."""
    with pytest.raises(FingerprintError, match=r"'event\.id' is missing") as caught:
        compiled(handle, key="extra.key", payload="event.id")(event, key="a")
    assert caught.value.path == "event.id"


@pytest.mark.parametrize("name", ["$", "tuple", "date", "é", "a.$dict", "a.\"'{}\\", "a.\ud800"])
def test_every_name_is_written_as_the_fingerprint_writes_it(name: str) -> None:
    """Whatever a payload's name holds, the digest is that of the dict."""
    root, _, step = name.partition(".")
    fn = function(f"{root}, b" if root.isidentifier() else "b", {})
    payload = name if root.isidentifier() else "b"
    argument = {step: 1} if step else 1
    args = (argument, 0) if root.isidentifier() else (1,)
    assert compiled(fn, key=lambda *args: "k", payload=(payload,))(*args) == ("k", digest({payload: 1}))


def test_a_hook_writes_arguments_and_no_names() -> None:
    """A hook for a class as plain as str is asked about arguments and defaults, and never about parameters' names."""
    hooked = Fingerprinter(hooks={str: str.upper, int: float})
    call = compile_call(charge, key="order_id", fingerprinter=hooked)
    text = f'{{"amount":{hooked.text(7)},"order_id":{hooked.text("a")}}}'
    assert call("a", 7) == ("a", hooked.digest(text))
    assert call("a", 7) == ("a", call("A", 7, tag="X")[1])
    assert call("a", 7)[1] != compiled(charge, key="order_id")("a", 7)[1]


def test_the_arguments_of_a_run_as_they_are_spelled() -> None:
    """For `run`, what is spelled is the payload; nothing spelled checks nothing."""
    assert spelled_fingerprint((), {}, FINGERPRINTER) is None
    assert spelled_fingerprint((1, [2]), {}, FINGERPRINTER) == digest({"args": (1, [2])})
    assert spelled_fingerprint((), {"b": 1, "a": 2}, FINGERPRINTER) == digest({"kwargs": {"a": 2, "b": 1}})
    assert spelled_fingerprint((1,), {"a": 2}, FINGERPRINTER) == digest({"args": (1,), "kwargs": {"a": 2}})
    for args, kwargs, path in [((0, object()), {}, "args[1]"), ((), {"a": object()}, "kwargs.a")]:
        with pytest.raises(FingerprintError) as caught:
            spelled_fingerprint(args, kwargs, FINGERPRINTER)
        assert caught.value.path == path


# --------------------------------------------------------------------------------------------- mistakes at decoration


async def key_later(*args: object, **kwargs: object) -> str:
    return "k"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"key": "oder_id"},
            "no parameter 'oder_id', named by key='oder_id'; it has: order_id, amount, notes, tag, extra",
        ),
        ({"key": "order.id"}, "no parameter 'order', named by key='order.id'"),
        ({"key": ("order_id", "x")}, "no parameter 'x'"),
        ({"key": ""}, "no parameter ''"),
        ({"key": ()}, "key= is an empty sequence"),
        ({"key": "order_id..id"}, "has an empty step"),
        ({"key": ("order_id", "order_id")}, "names 'order_id' twice"),
        ({"key": ("order_id", 7)}, "must hold names of parameters, not 7"),
        ({"key": 7}, "key= must be a name, a sequence of names or a callable, not 7"),
        ({"key": None}, "key= must be a name"),
        ({"key": b"order_id"}, "key= must be a name"),
        ({"key": {"order_id"}}, "key= must be a name"),
        ({"key": EVERYTHING}, "key= must be a name"),
        ({"key": "notes.first"}, "leads into *notes"),
        ({"key": "extra"}, "is a dict and so no key: name one of its items, as in 'extra.name'"),
        ({"key": key_later}, "key= must not be a coroutine function"),
        ({"payload": "amonut"}, "no parameter 'amonut'"),
        ({"payload": []}, "payload= is an empty sequence"),
        ({"payload": True}, "payload= must be a name"),
        ({"payload": ALL_ARGUMENTS}, "payload= must be a name"),
        ({"payload": ("notes.x",)}, "leads into *notes"),
        ({"payload": key_later}, "payload= must not be a coroutine function"),
        ({"payload": "amount", "ignore": ("amount",)}, "payload= and ignore= both name 'amount'"),
        ({"payload": "tag.total", "ignore": ("tag",)}, "payload= and ignore= both name 'tag'"),
        ({"ignore": ("session",)}, "no parameter 'session', named by ignore='session'"),
        ({"ignore": "tag.total"}, "no parameter 'tag.total'"),
        ({"ignore": [7]}, "no parameter 7"),
        ({"ignore": [["tag"]]}, "no parameter ['tag']"),
        ({"ignore": b"tag"}, "no parameter 116"),
        ({"ignore": 7}, "ignore= must be names of parameters, not 7"),
        ({"ignore": None}, "ignore= must be names of parameters"),
    ],
)
def test_a_mistake_is_found_at_decoration(options: dict[str, Any], says: str) -> None:
    """Behaviour 9: a typo in key= is told at decoration, as is every other option that cannot be meant."""
    with pytest.raises(TypeError) as caught:
        compiled(charge, **options)
    assert says in str(caught.value)
    assert str(caught.value).startswith("charge()")


def test_a_function_without_parameters_says_so() -> None:
    """Behaviour 9: the error for a typo lists what there is."""
    with pytest.raises(TypeError, match=r"it has: none$"):
        compiled(lambda: None, key="a")


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (Order, "only functions"),
        (7, "only functions"),
        (property(charge), "only functions"),
        (staticmethod(charge), "put @staticmethod outside"),
        (classmethod(lambda cls: None), "put @classmethod outside"),
        (dict.pop, "does not tell its parameters"),
    ],
)
def test_what_cannot_be_guarded(fn: Any, says: str) -> None:
    """A class, a descriptor or a builtin without a signature is refused with what to do."""
    with pytest.raises(TypeError, match=says):
        compiled(fn, key="self")


def test_annotations_are_never_evaluated() -> None:
    """Names that exist only for type checkers do no harm."""
    fn = function("a: NoSuchName, b: 1 / 0 = 3", {})
    assert compiled(fn, key="a")("x") == ("x", digest({"a": "x"}))


def test_any_callable_with_a_signature() -> None:
    """Partials and callable objects are called as they say, and errors have a name for them."""

    class Handler:
        def __call__(self, a: int) -> None: ...

    assert compiled(Handler(), key="a")(7) == ("7", digest({"a": 7}))
    partial = functools.partial(charge, tag="y")
    assert compiled(partial, key="order_id")("a") == ("a", digest({"order_id": "a"}))
    with pytest.raises(TypeError, match=r"^partial\(\) has no parameter"):
        compiled(partial, key="x")


def test_the_markers_are_themselves_everywhere() -> None:
    """A marker survives pickling and copying, and prints as it is written."""
    for marker, name in [(ALL_ARGUMENTS, "idempo.ALL_ARGUMENTS"), (EVERYTHING, "idempo.EVERYTHING")]:
        assert repr(marker) == name
        assert pickle.loads(pickle.dumps(marker)) is marker
        assert copy.deepcopy(marker) is marker
