"""Codecs: what comes back is equal, and of the same types throughout."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import json
import math
import pickle
import sys
import types
import typing
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, Generic, NamedTuple, Optional, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo.codecs import JsonCodec, PickleCodec, return_annotation
from idempo.errors import CodecError
from idempo.protocols import Codec

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    ALSO_RED = "red"  # noqa: PIE796  # an alias
    BLUE = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: Any
    y: Any = 0


Pair = collections.namedtuple("Pair", ["first", "second"])  # noqa: PYI024  # the old way too


@dataclasses.dataclass
class Money:
    amount: Any
    currency: str = "EUR"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    key: Any
    __hidden: Any = None


@attrs.frozen
class Order:
    id: Any
    _secret: Any = None
    lines: list[Money] = attrs.field(factory=list)


CLASSES = (Colour, Level, Access, Point, Pair, Money, Frozen, Order)
CODEC = JsonCodec(types=CLASSES)
PLAIN = JsonCodec()


def same(one: Any, other: Any) -> bool:
    """Compare deeply, types and everything that is stored included; NaN equals NaN, and 0.0 does not equal -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal | datetime | time):
        return repr(one) == repr(other)
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(a, b) for pair in zip(one.items(), other.items(), strict=True) for a, b in [pair]
        )
    if isinstance(one, set | frozenset):
        return len(one) == len(other) and all(any(same(a, b) for b in other) for a in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Money | Frozen | Order):
        names = [field.name for field in (attrs.fields(Order) if isinstance(one, Order) else dataclasses.fields(one))]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


def made(cls: Any, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return instances of a class; `st.builds` itself would guess at arguments from its annotations."""
    return st.tuples(*parts).map(lambda items: cls(*items))


def quiet(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return the strategy with a short repr: Hypothesis notes reprs, and warns of long ones (6.150 and later)."""

    @st.composite
    def value(draw: st.DrawFn) -> Any:
        return draw(strategy)

    return value()


zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.text()),
    st.sampled_from([ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")]),
)
text = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates too
hashable_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(1 << 1020, 1 << 1030),
    st.floats(),
    st.complex_numbers(),
    text,
    st.sampled_from(["$", "$tuple", "$dict", "$object"]),
    st.binary(max_size=8),
    st.decimals(allow_nan=False),
    st.sampled_from([Decimal("NaN"), Decimal("-0"), Decimal("1.00"), Decimal("Infinity")]),
    st.fractions(),
    st.uuids(),
    st.dates(),
    st.times(timezones=zones),
    st.datetimes(timezones=zones),
    st.builds(lambda value, fold: value.replace(fold=fold), st.datetimes(timezones=zones), st.sampled_from([0, 1])),
    st.timedeltas(),
    st.sampled_from([*Colour, *Level, Access(0), Access.READ, Access.READ | Access.WRITE]),
)
scalars = hashable_scalars | st.binary(max_size=8).map(bytearray)
hashables = st.recursive(
    quiet(hashable_scalars),
    lambda inner: quiet(
        st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3), made(Point, inner), made(Frozen, inner))
    ),
    max_leaves=4,
)
values = st.recursive(
    quiet(scalars),
    lambda inner: quiet(
        st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.sets(hashables, max_size=3),
            st.frozensets(hashables, max_size=3),
            st.dictionaries(text, inner, max_size=3),
            st.dictionaries(st.sampled_from(["$tuple", "$x", "$", "a"]), inner, max_size=2),
            st.dictionaries(hashables, inner, max_size=3),
            made(Point, inner, inner),
            made(Pair, inner, inner),
            made(Money, inner, text),
            made(Frozen, inner, inner),
            made(Order, inner, inner, st.lists(made(Money, inner), max_size=2)),
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("codec", [CODEC, PickleCodec()], ids=["json", "pickle"])
@given(value=values)
def test_comes_back_equal_and_of_the_same_types(codec: Codec, value: Any) -> None:
    """Behaviour 2: a replay equals the first caller's result, types included."""
    assert same(codec.decode(codec.encode(value)), value)


@given(one=values, other=values)
def test_no_two_values_share_a_text(one: Any, other: Any) -> None:
    """Behaviour 2: what differs in value or type differs in what is stored."""
    if CODEC.encode(one) == CODEC.encode(other):
        assert same(one, other)


@given(value=values)
def test_what_is_stored_is_plain_json(value: Any) -> None:
    """Any JSON reader can look into a record, NaN, surrogates and huge numbers included."""

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    json.loads(CODEC.encode(value).decode("utf-8"), parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, 2.5, None, True, "é"]}, '{"a":[1,2.5,null,true,"é"]}'),
        ((), '{"$tuple":[]}'),
        ({1: "x"}, '{"$dict":[[1,"x"]]}'),
        ({"$tuple": [1]}, '{"$dict":[["$tuple",[1]]]}'),
        ({"$tuple": [1], "b": 2}, '{"$tuple":[1],"b":2}'),
        ("\ud800", '{"$str":"7aCA"}'),
        (1 << 1024, '{"$int":"0x1' + "0" * 256 + '"}'),
        (-math.inf, '{"$float":"-inf"}'),
        (b"\0\xff", '{"$bytes":"AP8="}'),
        (Decimal("1.00"), '{"$decimal":"1.00"}'),
        (datetime(2026, 1, 2, 3, 4, 5), '{"$datetime":"2026-01-02T03:04:05"}'),  # noqa: DTZ001  # a naive one
        (datetime(2026, 1, 2, tzinfo=UTC), '{"$datetime":["2026-01-02T00:00:00",[0],0]}'),
        (time(1, fold=1), '{"$time":["01:00:00",null,1]}'),
        (time(1, tzinfo=ZoneInfo("Europe/Berlin")), '{"$time":["01:00:00","Europe/Berlin",0]}'),
        (time(1, tzinfo=timezone(timedelta(hours=1), "X")), '{"$time":["01:00:00",[3600000000,"X"],0]}'),
        (timedelta(-1, 5), '{"$timedelta":[-1,5,0]}'),
        (Fraction(1, 3), '{"$fraction":[1,3]}'),
        (complex(1, math.inf), '{"$complex":[1.0,{"$float":"inf"}]}'),
        (Colour.ALSO_RED, '{"$enum":["Colour","RED"]}'),
        (Access.READ | Access.WRITE, '{"$flag":["Access",3]}'),
        (Point(1), '{"$namedtuple":["Point",{"x":1,"y":0}]}'),
        (Money(1), '{"$object":["Money",{"amount":1,"currency":"EUR"}]}'),
    ],
    ids=repr,
)
def test_the_text_is_the_documented_one(value: Any, text: str) -> None:
    """Records outlive a version of idempo: what is written down may not change unnoticed."""
    assert CODEC.encode(value).decode() == text
    assert same(CODEC.decode(text.encode()), value)


class Text(str):
    __slots__ = ()


class Unlisted(enum.Enum):
    X = 1


class Odd(tzinfo):
    pass


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Text("x"), "test_codecs.Text would come back as its base class"),
        (collections.OrderedDict(a=1), "OrderedDict would come back as its base class"),
        (collections.defaultdict(int), "defaultdict would come back"),
        (http_status := __import__("http").HTTPStatus.OK, "HTTPStatus cannot be kept: name the class in the decorated"),
        (Unlisted.X, "Unlisted cannot be kept"),
        (object(), "builtins.object cannot be kept"),
        (range(3), "builtins.range cannot be kept"),
        (iter([]), "list_iterator cannot be kept"),
        (datetime.max.replace(tzinfo=Odd()), "time zone class .*test_codecs.Odd cannot be kept"),
        (datetime.max.replace(tzinfo=ZoneInfo.no_cache("UTC")), "convert the time to UTC"),
    ],
    ids=lambda value: str(type(value)),
)
def test_what_would_lose_its_type_is_refused(value: Any, says: str) -> None:
    """Behaviour 31: nothing is silently turned into something like it; the error says what to do."""
    with pytest.raises(CodecError, match=f"^result: .*{says}"):
        PLAIN.encode(value)


@pytest.mark.parametrize("data", [b"1 2", b"1 ", b"[1]]", b""])
def test_what_is_more_or_less_than_one_value_is_refused(data: bytes) -> None:
    """Behaviour 35: the codec writes one value, and nothing after it."""
    with pytest.raises(CodecError, match="not what JsonCodec writes"):
        PLAIN.decode(data)


def test_an_error_tells_the_path_and_no_value() -> None:
    """The text is logged and stored: a dict's key that is no name may be a customer's address."""
    with pytest.raises(CodecError) as caught:
        CODEC.encode({"lines": [1, Order({"me@example.com": Money({3: (4, object())})})]})
    assert str(caught.value).startswith("result.lines[1].id[str].amount[int][1]: a builtins.object cannot be kept")
    with pytest.raises(CodecError, match=r"^result\[tuple\]\[1\]: "):
        PLAIN.encode({(1, object()): 2})


def test_a_lone_surrogate_changes_nothing_beside_it() -> None:
    value = {"fine": "text", "\ud83d\ude00": ["\ud800", "😀"]}
    assert same(PLAIN.decode(PLAIN.encode(value)), value)


def test_depth_is_bounded_and_cycles_are_refused() -> None:
    """What can be written can be read: 100 levels, of the deepest kind of value."""
    value: Any = 1
    for _ in range(100):
        value = Money(value)
    assert CODEC.decode(CODEC.encode(value)) == value
    with pytest.raises(CodecError, match="nested more than 100 deep, or contains itself"):
        CODEC.encode([value])
    value = []
    value.append(value)
    with pytest.raises(CodecError, match="contains itself"):
        CODEC.encode(value)


def test_with_no_stack_left_it_is_a_codec_error() -> None:
    def deeper() -> None:
        try:
            deeper()
        except RecursionError:
            CODEC.encode([[[[[[[[[[1]]]]]]]]]])
            raise

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(__import__("inspect").stack()) + 60)
    try:
        with pytest.raises((CodecError, RecursionError)):
            deeper()
    finally:
        sys.setrecursionlimit(limit)


def test_nothing_runs_when_an_instance_comes_back() -> None:
    """No __init__, __post_init__, converter, validator, hook or default of the class is called a second time."""
    calls = []

    @attrs.define
    class Converted:
        price: int = attrs.field(converter=lambda price: price * 100, on_setattr=attrs.setters.convert)
        made: int = attrs.field(init=False, factory=lambda: calls.append("factory") or 1)

        def __attrs_post_init__(self) -> None:
            calls.append("attrs")

    @dataclasses.dataclass
    class Posted:
        name: str
        total: int = dataclasses.field(init=False)
        later: int = dataclasses.field(init=False)

        def __post_init__(self) -> None:
            calls.append("dataclass")
            object.__setattr__(self, "total", 7)
            object.__setattr__(self, "name", "x")

        def __setattr__(self, name: str, value: Any) -> None:
            calls.append(name)

    values = [Converted(5), Posted("x")]
    codec = JsonCodec(types=[Converted, Posted])
    before = list(calls)
    converted, posted = codec.decode(codec.encode(values))
    assert calls == before
    assert converted == values[0]
    assert converted.price == 500
    assert vars(posted) == vars(values[1]) == {"name": "x", "total": 7}


def test_what_is_no_field_is_refused_and_what_can_be_computed_again_is_left_behind() -> None:
    @dataclasses.dataclass
    class Plain:
        x: int

        @functools.cached_property
        def double(self) -> int:
            return self.x * 2

    @attrs.define
    class Slotted:
        x: int

        @functools.cached_property
        def double(self) -> int:
            return self.x * 2

    @dataclasses.dataclass
    class Slots:
        __slots__ = ("other", "x")
        x: int

    codec = JsonCodec(types=[Plain, Slotted, Slots])
    for cls in (Plain, Slotted):
        value: Any = cls(3)
        assert value.double == 6
        back = codec.decode(codec.encode(value))
        assert back == value
        back.x = 4
        assert back.double == 8
    plain: Any = Plain(1)
    plain.extra = 2
    with pytest.raises(CodecError, match="attribute 'extra', which is no field"):
        codec.encode(plain)
    slots: Any = Slots(1)
    assert codec.decode(codec.encode(slots)) == slots
    slots.other = 2
    with pytest.raises(CodecError, match="attribute 'other', which is no field"):
        codec.encode(slots)


@pytest.mark.parametrize("slots", [True, False])
def test_a_cached_hash_is_not_kept(slots: bool) -> None:
    """A hash of text is another one in every process."""

    @attrs.define(frozen=True, cache_hash=True, slots=slots)
    class Hashed:
        name: str

    codec = JsonCodec(types=[Hashed])
    value = Hashed("x")
    assert hash(value)
    encoded = codec.encode(value)
    assert b"_attrs_cached_hash" not in encoded
    back = codec.decode(encoded)
    assert back._attrs_cached_hash is None
    assert hash(back) == hash(value)


def test_a_class_may_gain_a_field_with_a_default() -> None:
    """A deployment that adds a field goes on reading the records of the one before it."""
    old = b'{"$object":["%s",{"x":1}]}'

    @attrs.define
    class Slotted:
        x: int
        y: int = 2

    @attrs.define(slots=False)
    class InDict:
        x: int
        y: int = 2

    @dataclasses.dataclass
    class Plain:
        x: int
        y: int = 2

    for cls in (Slotted, InDict, Plain):
        value: Any = JsonCodec(types=[cls]).decode(old % cls.__qualname__.encode())
        assert (value.x, value.y) == (1, 2)
    assert CODEC.decode(b'{"$namedtuple":["Point",{"x":1}]}') == Point(1, 0)
    deleted: Any = Slotted(1)
    del deleted.y
    with pytest.raises(CodecError, match="has no 'y'"):
        JsonCodec(types=[Slotted]).encode(deleted)


class NamedWithDict(Point):
    pass


class Grown(Point):
    __slots__ = ()

    def __new__(cls, *items: Any) -> Grown:
        return tuple.__new__(cls, items)


def test_a_namedtuple_that_holds_more_than_its_fields_is_refused() -> None:
    codec = JsonCodec(types=[NamedWithDict, Grown])
    value: Any = NamedWithDict(1, 2)
    assert same(codec.decode(codec.encode(value)), value)
    value.more = 3
    with pytest.raises(CodecError, match="attributes beside its items"):
        codec.encode(value)
    with pytest.raises(CodecError, match="as many items as fields"):
        codec.encode(Grown(1, 2, 3))


def test_an_enum_member_that_its_class_does_not_list_is_refused() -> None:
    class Half(enum.Enum):
        ONE = 1

        @classmethod
        def _missing_(cls, value: object) -> Any:
            member = object.__new__(cls)
            member._name_, member._value_ = str(value), value
            return member

    class Wide(enum.Flag):
        A = 1

    codec = JsonCodec(types=[Half, Wide])
    for value in ("TWO", "ONE"):  # one with a name of its own, one that only looks like a member
        with pytest.raises(CodecError, match="does not list"):
            codec.encode(Half(value))
    stray: Any = object.__new__(Wide)
    stray._name_, stray._value_ = "A", 1
    with pytest.raises(CodecError, match="does not lead back"):
        codec.encode(stray)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"NaN",
        pickle.dumps({"a": 1}),
        b'{"$bytes":"?"}',
        b'{"$dict":[[[],1]]}',
        b'{"$object":7}',
        b'{"$object":["Money",[]]}',
        b'{"$object":["Money",{"amount":1,"surplus":2}]}',
        b'{"$namedtuple":["Point",{}]}',
        b'{"$enum":["Colour","GREEN"]}',
        b'{"$enum":["Colour",[]]}',
        b'{"$flag":["Access",true]}',
        b'{"$flag":["Access",8]}',
        b'{"$time":["01:00:00","../../etc/passwd",0]}',
        b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_not_of_this_codec_is_a_codec_error(data: bytes) -> None:
    """Behaviours 35, 36: whatever stands in a record, a pickle too, decoding it gives a CodecError and nothing else."""
    with pytest.raises(CodecError):
        CODEC.decode(data)


def test_a_record_that_names_a_class_imports_nothing() -> None:
    """Behaviour 36: only the classes that the codec was told of are known, by name."""
    for name in ("this", "this:Zen", "Money", "test_codecs:Money"):
        with pytest.raises(CodecError, match=f"names the class '{name}', which this codec was not told of.*types="):
            PLAIN.decode(b'{"$object":["%s",{}]}' % name.encode())
    assert "this" not in sys.modules
    with pytest.raises(CodecError, match="not told of"):  # a known class, taken for another kind
        CODEC.decode(b'{"$object":["Colour",{}]}')
    with pytest.raises(CodecError, match=r"tag '.newer'"):
        PLAIN.decode(b'{"$newer":1}')


def _class_called(qualname: str, module: str) -> Any:
    cls = dataclasses.make_dataclass("C", ["x"])
    cls.__qualname__, cls.__module__ = qualname, module
    return cls


def test_classes_that_share_a_name_are_told_apart_by_module() -> None:
    one, other = _class_called("Address", "billing"), _class_called("Address", "shipping")
    codec = JsonCodec(types=[one, other])
    assert codec.encode(one(1)) == b'{"$object":["billing:Address",{"x":1}]}'
    assert type(codec.decode(codec.encode(other(1)))) is other
    with pytest.raises(CodecError, match="not told of"):  # written when only one of them was known: it could be either
        codec.decode(b'{"$object":["Address",{"x":1}]}')
    assert type(JsonCodec(types=[other]).decode(codec.encode(other(1)))) is other
    with pytest.raises(TypeError, match="two classes are called billing:Address"):
        JsonCodec(types=[one, _class_called("Address", "billing")])


class DictClass(dict[str, int]):
    pass


@pytest.mark.parametrize("bad", [int, DictClass, attrs.define(type("E", (Exception,), {})), "Money", object])
def test_types_takes_only_what_can_be_kept(bad: Any) -> None:
    with pytest.raises(TypeError, match="types= takes attrs classes"):
        JsonCodec(types=[bad])


# Return annotations


@attrs.define
class Leaf:
    value: int


@dataclasses.dataclass
class Tree(Generic[T]):
    item: T
    children: list[Tree[T]]
    leaf: Leaf | None = None
    colour: typing.Annotated[Colour, "any"] = Colour.RED


@dataclasses.dataclass
class Node:
    following: Node | None
    leaves: tuple[Leaf, Leaf]


@dataclasses.dataclass
class Dated:
    date: date | None = None


class Row(TypedDict, total=False):
    leaf: typing.Required[Leaf]


class Base:
    pass


@dataclasses.dataclass
class Derived(Base):
    x: int


class WithSelf(NamedTuple):
    parent: typing.Self | None  # type: ignore[misc]
    anything: Any


UserId = typing.NewType("UserId", int)
Bound = TypeVar("Bound", bound=Leaf)
Either = TypeVar("Either", Leaf, Colour)


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        *((one, ()) for one in (int, None, Any, object, str | None, bytes, Decimal, datetime, UserId, T, typing.Never)),
        *(
            (one, ())
            for one in (dict[str, list[tuple[int, ...]]], typing.Sequence[int], typing.Mapping, list, tuple[()])
        ),
        (return_annotation(lambda: 1), ()),
        (Leaf, (Leaf,)),
        (Optional[Leaf], (Leaf,)),  # noqa: UP045  # the old spelling too
        (Leaf | Colour, (Leaf, Colour)),
        (dict[str, tuple[Leaf, ...]], (Leaf,)),
        (typing.Literal[Colour.RED, "x", 3], (Colour,)),
        (Tree[int], (Tree, Leaf, Colour)),
        (Tree[Point], (Tree, Leaf, Colour, Point)),
        (typing.Annotated[Leaf, "note"], (Leaf,)),
        (Node, (Node, Leaf)),
        (Dated, (Dated,)),  # the field's default hides the class of its name
        (Row, (Leaf,)),
        (Bound, (Leaf,)),
        (Either, (Leaf, Colour)),
        (WithSelf, (WithSelf,)),
        (Pair, (Pair,)),
        (Access, (Access,)),
    ],
    ids=str,
)
def test_learns_the_classes_of_a_return_annotation(annotation: Any, expected: tuple[type, ...]) -> None:
    """Fields of fields included, and nothing else."""
    codec = PLAIN.for_return_type(annotation)
    assert set(codec.types) == set(expected)
    assert (codec is PLAIN) == (not expected)


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (Base, "return annotation: JsonCodec cannot keep a .*test_codecs.Base; return plain data"),
        (list[Base], "cannot keep a .*test_codecs.Base"),
        (Iterator[int], "collections.abc.Iterator"),
        (typing.Generator[int, None, None], "collections.abc.Generator"),
        (typing.Callable[[], int], "collections.abc.Callable"),
        (typing.IO[str], "typing.IO"),
        (type[int], "builtins.type"),
        (collections.OrderedDict, "collections.OrderedDict"),
        (collections.Counter[str], "collections.Counter"),
        (Text, "test_codecs.Text"),
        (typing.Self, "Self does not say which class"),
        ("Unknown", "name in 'Unknown' cannot be found; give its class in types="),
        (list["Unknown"], "name in 'Unknown' cannot be found"),  # type: ignore[name-defined]  # noqa: F821
        (7, "7 cannot be kept"),
    ],
    ids=str,
)
def test_a_return_annotation_that_cannot_be_kept_is_a_type_error(annotation: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        PLAIN.for_return_type(annotation)


def test_a_field_that_cannot_be_kept_is_named() -> None:
    @dataclasses.dataclass
    class Session:
        lock: Base

    @attrs.define
    class Holder:
        session: list[Session]

    Holder.__annotations__["session"] = list[Session]
    attrs.resolve_types(Holder, {**globals(), "Session": Session}, {"Session": Session})
    with pytest.raises(TypeError, match=r"→ .*Holder\.session → .*Session\.lock: .*Base"):
        PLAIN.for_return_type(Holder)
    with pytest.raises(TypeError, match=r"types= → .*Session\.lock"):
        JsonCodec(types=[Session])


def test_a_base_class_stands_for_the_known_classes_beneath_it() -> None:
    codec = JsonCodec(types=[Derived])
    assert codec.for_return_type(Base | None) is codec
    assert codec.for_return_type("Derived") is codec


def test_an_unresolvable_field_may_name_a_known_class() -> None:
    @dataclasses.dataclass
    class Local:
        x: int

    @dataclasses.dataclass
    class Outer:
        local: Local

    with pytest.raises(TypeError, match="'Local' cannot be found"):
        PLAIN.for_return_type(Outer)
    codec = JsonCodec(types=[Local]).for_return_type(Outer)
    assert codec.decode(codec.encode(Outer(Local(1)))) == Outer(Local(1))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement came with 3.12")
def test_type_aliases_and_parameters_are_followed() -> None:
    namespace: dict[str, Any] = {"Leaf": Leaf}
    exec("type Nested = Leaf | list[Nested]\ntype Box[X] = list[X]\ndef f[Y: Leaf]() -> 'list[Y]': ...", namespace)
    assert PLAIN.for_return_type(namespace["Nested"]).types == (Leaf,)
    assert PLAIN.for_return_type(namespace["Box"][Leaf]).types == (Leaf,)
    assert PLAIN.for_return_type(return_annotation(namespace["f"])).types == (Leaf,)


def test_the_return_annotation_is_found_though_a_parameter_has_an_unknown_one() -> None:
    def unknown_parameter(x: OnlyForTypeCheckers) -> Leaf | None:  # type: ignore[name-defined]  # noqa: F821
        return None

    def unknown_result() -> OnlyForTypeCheckers:  # type: ignore[name-defined]  # noqa: F821
        return None

    class Callable:
        def __call__(self) -> int:
            return 1

    @attrs.define
    class Enclosed:
        x: int

    def enclosed() -> Enclosed:
        return Enclosed(1)

    def unset() -> int:
        return Later  # assigned below

    assert return_annotation(unknown_parameter) == Leaf | None
    assert return_annotation(unknown_result) == "OnlyForTypeCheckers"
    assert return_annotation(enclosed) is Enclosed
    assert return_annotation(unset) is int
    assert PLAIN.for_return_type(return_annotation(Callable())) is PLAIN
    assert PLAIN.for_return_type(return_annotation(functools.partial(enclosed))) is PLAIN
    Later = 1


def test_a_record_is_not_read_by_attribute_of_a_lookalike() -> None:
    """A class that only looks like a namedtuple or says so is none."""
    lookalike: Any = types.new_class("Lookalike", (tuple,), {}, lambda ns: ns.update(_fields=["x"]))
    with pytest.raises(TypeError):
        JsonCodec(types=[lookalike])


# Pickle


def test_pickle_is_marked_as_unsafe_where_others_write() -> None:
    """Behaviour 36: a shared store takes it only behind a seal."""
    assert PickleCodec.safe_in_shared_store is False
    assert getattr(PLAIN, "safe_in_shared_store", True) is True
    assert PickleCodec.tag != JsonCodec.tag


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("no")


def test_what_cannot_be_pickled_is_a_codec_error() -> None:
    """Behaviour 31, whatever a class's own code raises."""
    for value in (Unpicklable(), lambda: 1, iter([]).__class__):
        if isinstance(value, type):
            continue
        with pytest.raises(CodecError, match="cannot be pickled"):
            PickleCodec().encode(value)
    with pytest.raises(CodecError, match="cannot be unpickled"):
        PickleCodec().decode(b"not a pickle")


def test_reprs_say_what_is_known() -> None:
    assert repr(PLAIN) == "JsonCodec()"
    assert repr(JsonCodec(types=[Leaf])) == "JsonCodec(types=[Leaf])"
    assert repr(PickleCodec()) == "PickleCodec()"
    assert isinstance(PLAIN, Codec)
    assert PLAIN.decode(PLAIN.encode(UUID(int=7))) == UUID(int=7)
