"""Fingerprints: equal for values that mean the same, different for all others, the same everywhere."""

# ruff: noqa: DTZ001, DTZ901  # naive datetimes are among what is tested
from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import hashlib
import hmac
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import unicodedata
import uuid
from collections import Counter, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idempo._canonical import Walk, json_text
from idempo.errors import FingerprintError, IdempotencyError
from idempo.fingerprint import (
    MAX_DEPTH,
    SCALAR_WRITERS,
    Fingerprinter,
    fingerprint,
    fingerprint_version_supported,
)
from tests import fingerprint_reference as reference

text = Fingerprinter().text


class Color(enum.Enum):
    RED = 1
    GREEN = "green"
    ROUGE = 1  # noqa: PIE796  # an alias


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    ONE = "one"


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Pair(NamedTuple):
    left: Any
    right: Any


@attrs.frozen
class Point:
    x: Any
    y: Any


@dataclasses.dataclass(frozen=True)
class Line:
    sku: Any
    count: Any


class Name(str):
    pass


class Celsius(float):
    pass


class Account:
    """Says itself what it is."""

    def __init__(self, number: Any) -> None:
        self.number = number

    def __idempo_payload__(self) -> Any:
        return [self.number]


class Session:
    """Has no canonical form."""


# --- an independent notion of what is equal ---------------------------------------------------------------------------


def meaning(value: Any) -> Any:
    """Return a hashable that is equal for two values when, and only when, they should have one fingerprint."""
    match value:
        case enum.Flag():
            return "class", type(value).__qualname__, ("int", value.value)
        case enum.Enum():
            return "class", type(value).__qualname__, ("str", value.name)
        case Pair() | Point() | Line():
            names = [field.name for field in getattr(value, "__attrs_attrs__", ())] or list(value.__annotations__)
            fields = ((("str", name), meaning(getattr(value, name))) for name in names)
            return "class", type(value).__qualname__, ("dict", frozenset(Counter(fields).items()))
        case Account():
            return "class", "Account", ("list", (meaning(value.number),))
        case None | bool():
            return "constant", str(value)
        case int() | str():
            return type(value).__name__, value
        case float():
            return "float", "nan" if value != value else struct.pack(">d", value)
        case bytes() | bytearray():
            return "bytes", bytes(value)
        case list() | tuple():
            return "list", tuple(map(meaning, value))
        case dict():
            return "dict", frozenset(Counter((meaning(key), meaning(member)) for key, member in value.items()).items())
        case set() | frozenset():
            return "set", frozenset(Counter(map(meaning, value)).items())
    return meaning_of_tagged(value)


def meaning_of_tagged(value: Any) -> Any:
    match value:
        case Decimal():
            return "decimal", str(value) if value.is_nan() else (value, value.is_signed())
        case Fraction():
            return "fraction", (value.numerator, value.denominator)
        case uuid.UUID():
            return "uuid", value.int
        case PurePosixPath():
            return "path", str(value)
        case PureWindowsPath():
            return "winpath", str(value).replace("\\", "/")
        case dt.datetime() if value.tzinfo is None:
            return "datetime", (value.replace(fold=0), value.fold)
        case dt.datetime():
            return "instant", value - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
        case dt.date():
            return "date", value
        case dt.time() if value.tzinfo is None:
            return "time", (value.replace(fold=0), value.fold)
        case dt.timedelta():
            return "duration", value
        case dt.timezone():
            return "offset", value.utcoffset(None)
    raise AssertionError(f"the strategies make no {type(value)}")


def meaning_of_text(written: str) -> Any:
    """Read a canonical text back to its meaning: where that can be done, no two meanings share a text."""
    value, end = _read(written, 0)
    assert end == len(written)
    return value


def _read(written: str, at: int) -> tuple[Any, int]:
    if written[at] == "!":
        end = at + 1
        while written[end].isalpha():
            end += 1
        content, after = _read(written, end)
        return _TAGS[written[at + 1 : end]](content), after
    if written[at] in "[{":
        return _read_items(written, at)
    for constant, found in _CONSTANTS.items():
        if written.startswith(constant, at):
            return found, at + len(constant)
    found, end = json.JSONDecoder(strict=False).raw_decode(written, at)
    return meaning(found), end


def _read_items(written: str, at: int) -> tuple[Any, int]:
    is_dict, items, at = written[at] == "{", [], at + 1
    while written[at] not in "]}":
        item, at = _read(written, at + (written[at] == ","))
        if is_dict:
            assert written[at] == ":"
            member, at = _read(written, at + 1)
            item = (item, member)
        items.append(item)
    return ("dict", frozenset(Counter(items).items())) if is_dict else ("list", tuple(items)), at + 1


_CONSTANTS = {
    "null": meaning(None),
    "true": meaning(True),
    "false": meaning(False),
    "NaN": meaning(float("nan")),
    "Infinity": meaning(float("inf")),
    "-Infinity": meaning(float("-inf")),
}


def _with_fold(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    return lambda content: meaning(parse(content[1].removesuffix(" fold")).replace(fold=content[1].endswith(" fold")))


_TAGS: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda content: ("bytes", bytes.fromhex(content[1])),
    "map": lambda content: ("dict", frozenset(Counter(pair[1] for pair in content[1]).items())),
    "set": lambda content: ("set", frozenset(Counter(content[1]).items())),
    "class": lambda content: ("class", content[1][0][1], content[1][1]),
    "decimal": lambda content: meaning(Decimal(content[1])),
    "fraction": lambda content: meaning(Fraction(content[1])),
    "uuid": lambda content: meaning(uuid.UUID(content[1])),
    "path": lambda content: ("path", content[1]),
    "winpath": lambda content: ("winpath", content[1]),
    "instant": lambda content: ("instant", dt.timedelta(microseconds=int(content[1]))),
    "datetime": _with_fold(dt.datetime.fromisoformat),
    "date": lambda content: meaning(dt.date.fromisoformat(content[1])),
    "time": _with_fold(dt.time.fromisoformat),
    "duration": lambda content: meaning(dt.timedelta(microseconds=int(content[1]))),
    "offset": lambda content: ("offset", dt.timedelta(microseconds=int(content[1]))),
}


# --- generated values -------------------------------------------------------------------------------------------------

texts = st.text(st.characters(), max_size=8)  # lone surrogates too
offsets = st.integers(-86_399_999_999, 86_399_999_999).map(lambda count: dt.timezone(dt.timedelta(microseconds=count)))
json_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), texts, st.sampled_from(["1", "null", ""])
)
scalars = st.one_of(
    json_scalars,
    st.binary(max_size=6),
    st.decimals().filter(lambda number: not number.is_snan()),  # which cannot be hashed, so that no set can hold it
    st.sampled_from([Decimal("1.0"), Decimal("-0"), Decimal("0E3"), Decimal("-NaN7")]),
    st.fractions(),
    st.uuids(),
    texts.filter(lambda name: "\0" not in name).map(PurePosixPath),
    texts.filter(lambda name: "\0" not in name).map(PureWindowsPath),
    st.datetimes(allow_imaginary=True),
    st.datetimes(dt.datetime(1, 1, 3), dt.datetime(9999, 12, 29), timezones=offsets),
    st.datetimes().map(lambda moment: moment.replace(fold=1)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    offsets,
    st.sampled_from([*Color, *Number, *Word, Access.READ | Access.RUN, Access(0), Access.WRITE]),
)
hashables = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.tuples(inner),
        st.tuples(inner, inner),
        st.frozensets(inner, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Line, inner, inner),
    ),
    max_leaves=5,
)
values = st.recursive(
    st.one_of(scalars, hashables),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(texts, inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=3),
        st.sets(hashables, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Line, inner, inner),
        st.builds(Account, inner),
    ),
    max_leaves=8,
)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(texts, inner, max_size=4),
        st.dictionaries(json_scalars, inner, max_size=3),
    ),
    max_leaves=15,
)


@given(values)
@example({1: "x"})
@example({"!set": [1]})
@example("\ud83d\ude00")
@example("\U0001f600")
@example([0.0, -0.0])
@example(Decimal("sNaN12"))
def test_no_two_meanings_have_one_text(value: Any) -> None:
    """The text can be read back to what the value means, so that values of another meaning have another text."""
    assert meaning_of_text(text(value)) == meaning(value)


@given(values, values)
def test_two_values_have_one_fingerprint_when_they_mean_the_same_and_only_then(one: Any, other: Any) -> None:
    """Two values drawn at random agree in fingerprint as they agree in meaning."""
    assert (fingerprint(one) == fingerprint(other)) == (meaning(one) == meaning(other))


small = st.recursive(
    st.sampled_from(
        [None, True, 1, 1.0, "1", b"1", Decimal(1), Fraction(1), Number.ONE, Word.ONE, "one", "", 0, False]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(["1", 1, b"1", None]), inner, max_size=2),
        st.frozensets(st.sampled_from(["1", 1, b"1", "one", Word.ONE]), max_size=2),
    ),
    max_leaves=3,
)


@given(small, small)
def test_values_that_are_easily_confused_are_not(one: Any, other: Any) -> None:
    """Small values of look-alike parts, of which many pairs are equal in Python but not in meaning."""
    assert (fingerprint(one) == fingerprint(other)) == (meaning(one) == meaning(other))


def respelled(value: Any, chance: random.Random) -> Any:
    """Return another spelling of a value that means the same."""
    match value:
        case enum.Enum() | Account():
            return value
        case Pair() | Point() | Line():
            names = [field.name for field in getattr(value, "__attrs_attrs__", ())] or list(value.__annotations__)
            return type(value)(*[respelled(getattr(value, name), chance) for name in names])
        case bytes():
            return bytearray(value)
        case list() | tuple():
            return chance.choice([list, tuple])(respelled(item, chance) for item in value)
        case dict():
            items = [(key, respelled(member, chance)) for key, member in value.items()]
            chance.shuffle(items)
            return chance.choice([dict, OrderedDict])(items)
        case set() | frozenset():
            members = list(value)
            chance.shuffle(members)
            return chance.choice([set, frozenset])(members)
        case Decimal() if value.is_finite() and len(value.as_tuple().digits) < 20 and value.as_tuple().exponent > -999:
            sign, digits, exponent = value.as_tuple()
            return Decimal((sign, (*digits, 0, 0), exponent - 2))
        case dt.datetime() if value.tzinfo is not None:
            return value.astimezone(dt.timezone(dt.timedelta(minutes=chance.randrange(-1439, 1440))))
        case str():
            return chance.choice([str, Name])(value)
    return value


@given(values, st.randoms(use_true_random=False))
def test_spellings_of_one_value_have_one_fingerprint(value: Any, chance: random.Random) -> None:
    """Behaviour 4: the order of a dict or a set, list or tuple, a time zone, trailing zeros do not count."""
    assert fingerprint(respelled(value, chance)) == fingerprint(value)


@given(json_values)
@example({1: "x"})
@example({"a": {1: "x"}})
@example({"b": 1, "a": {"{i": "{g"}})
@example([float("nan"), float("inf"), -float("inf"), -0.0, 1e16, 10**5000])
@example({"\uffff": 1, "\U0001f600": 2, "": 3, "é": 4, "a!": 5, "a": 6})
@example({"\ud83d\ude00": 1, "\U0001f600": 2})
@example({True: 1, "True": 2})
@example({None: 1})
@example({1.5: 1})
@example({2**40: 1})
def test_the_fast_writer_writes_what_the_walk_writes(value: Any) -> None:
    """Behaviour 4: whether the C encoder or the walk writes a value makes no difference to its fingerprint."""
    fast = json_text(value)
    assert fast is None or fast == Walk({}).write(value)


braceless = st.text(st.characters(exclude_characters="{"), max_size=5)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, -1.25]) | braceless,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(braceless, inner, max_size=4),
    )
)
def test_plain_json_takes_the_fast_way(value: Any) -> None:
    """What a JSON body decodes to needs no walk, as long as no byte in it looks like an opening brace to marshal."""
    assert json_text(value) is not None


@given(json_scalars)
@example(10**5000)
@example(-(10**5000))
def test_a_table_writes_scalars_as_the_general_way_does(value: Any) -> None:
    """Whoever writes an argument by its exact type gets the same text."""
    assert SCALAR_WRITERS[type(value)](value) == text(value)


@given(st.dictionaries(texts, values, max_size=4))
def test_the_text_of_a_dict_can_be_put_together_from_parts(value: dict[str, Any]) -> None:
    """A dict of strings is written as its members are, one by one, by the order of the keys' code points."""
    parts = (f"{SCALAR_WRITERS[str](key)}:{text(value[key])}" for key in sorted(value))
    assert Fingerprinter().digest("{" + ",".join(parts) + "}") == fingerprint(value)


# --- the published vectors --------------------------------------------------------------------------------------------


def made(value: reference.Description) -> Any:
    """Return the value of Python that a description describes."""
    match value:
        case {"type": "none"}:
            return None
        case {"type": "bool" | "str", "value": found}:
            return found
        case {"type": "int", "value": digits}:
            return int(Decimal(digits))  # int() of a str refuses more than 4,300 digits
        case {"type": "float", "bits": bits}:
            return struct.unpack(">d", bytes.fromhex(bits))[0]
        case {"type": "str", "code_points": numbers}:
            return "".join(map(chr, numbers))
        case {"type": "bytes", "hex": digits}:
            return bytes.fromhex(digits)
        case {"type": "list", "items": items}:
            return [made(item) for item in items]
        case {"type": "dict", "items": items}:
            return {made(key): made(member) for key, member in items}
        case {"type": "set", "items": items}:
            return {made(item) for item in items}
        case {"type": "class", "name": name, "payload": payload}:
            content = made(payload)
            body = {"__qualname__": name, "__idempo_payload__": lambda _self: content}
            return type(name, (), body)()
    return made_of_text(value)


def made_of_text(value: reference.Description) -> Any:
    match value:
        case {"type": "datetime" | "time" as kind, "value": written}:
            moment = (dt.datetime if kind == "datetime" else dt.time).fromisoformat(written)
            if "offset_microseconds" in value:
                offset = dt.timedelta(microseconds=int(value["offset_microseconds"]))
                return moment.replace(tzinfo=dt.timezone(offset))
            return moment.replace(fold=value.get("fold", 0))
        case {"type": "duration", "microseconds": count}:
            return dt.timedelta(microseconds=int(count))
        case {"type": "offset", "microseconds": count}:
            return dt.timezone(dt.timedelta(microseconds=int(count)))
    makers: dict[str, Callable[[str], Any]] = {
        "decimal": Decimal,
        "fraction": Fraction,
        "uuid": uuid.UUID,
        "path": PurePosixPath,
        "windows path": PureWindowsPath,
        "date": dt.date.fromisoformat,
        "zone": ZoneInfo,
    }
    return makers[value["type"]](value["value"])


PUBLISHED = json.loads(reference.VECTORS.read_text(encoding="ascii"))


@pytest.mark.parametrize("vector", PUBLISHED["vectors"], ids=lambda vector: vector["about"])
def test_every_published_vector_holds(vector: dict[str, Any]) -> None:
    """Behaviour 4: the fingerprints that other languages were told are those that this Python makes."""
    expected = bytes.fromhex(vector["bytes_hex"]) if "bytes_hex" in vector else vector["text"].encode()
    keyed = Fingerprinter(secret=bytes.fromhex(PUBLISHED["secret_hex"]))
    for description in vector["values"]:
        value = made(description)
        assert text(value).encode("utf-8", "surrogatepass") == expected
        assert Walk({}).write(value).encode("utf-8", "surrogatepass") == expected
        assert fingerprint(value).hex() == vector["fingerprint"]
        assert keyed(value).hex() == vector["keyed_fingerprint"]


def test_the_published_file_is_what_the_specification_gives() -> None:
    """A second implementation, which shares no code with the first, writes this very file."""
    assert reference.VECTORS.read_text(encoding="ascii") == reference.file_text()
    for _, descriptions in reference.VALUES:
        assert len({reference.text_of(description) for description in descriptions}) == 1


def test_no_two_published_vectors_have_one_fingerprint() -> None:
    """What the file keeps apart is apart."""
    assert len({vector["fingerprint"] for vector in PUBLISHED["vectors"]}) == len(PUBLISHED["vectors"])


def in_child(code: str, **environment: str) -> str:
    """Run code in another process, and return what it printed."""
    path = os.pathsep.join(filter(None, sys.path))  # the very idempo that is tested here
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


_CHILD = """
import sys
from decimal import Decimal
from idempo.fingerprint import fingerprint
class Thing:
    def __idempo_payload__(self):
        return {"b", "a", ("c", 1), None}
value = {frozenset({"x", "y", "z", i}): {"k%d" % j for j in range(9)} for i in range(9)}
print(fingerprint([value, Thing(), {"b": 1, "a": {1, "1", Decimal("1.10")}}]).hex())
"""


def test_the_hash_seed_does_not_count() -> None:
    """Behaviour 4: processes that order their sets differently agree."""
    printed = {in_child(_CHILD, PYTHONHASHSEED=seed) for seed in ("0", "1", "4242")}
    assert len(printed) == 1
    assert len(printed.pop().strip()) == 66


# --- the equalities and differences of the contract -------------------------------------------------------------------

_BERLIN = dt.timezone(dt.timedelta(hours=1))

EQUAL = {
    "the order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "list and tuple": ([1, [2]], (1, (2,))),
    "the order of a set": ({"a", "b", "c"}, {"c", "b", "a"}),
    "set and frozenset": ({1}, frozenset({1})),
    "bytes and bytearray": (b"ab", bytearray(b"ab")),
    "an instant": (dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC), dt.datetime(2024, 1, 1, 13, tzinfo=_BERLIN)),
    "an instant in a zone": (
        dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 1, 13, tzinfo=ZoneInfo("Europe/Berlin")),
    ),
    "Decimal's zeros": (Decimal("1.0"), Decimal("1.00")),
    "Decimal's exponent": (Decimal("1E+2"), Decimal(100)),
    "NaN": (float("nan"), -float("nan")),
    "a subclass of str": ("a", Name("a")),
    "a subclass of float": (1.5, Celsius(1.5)),
    "a subclass of str as a key": ({"a": 1}, {Name("a"): 1}),
    "subclasses of dict": ({"a": 1}, defaultdict(list, a=1)),
    "a subclass of dict": ({"a": 1}, OrderedDict(a=1)),
    "a subclass of list": ([1], type("Items", (list,), {})([1])),
    "a subclass of tuple": ((1,), type("Items", (tuple,), {})([1])),
    "subclasses of bytes": (b"a", type("Data", (bytes,), {})(b"a")),
    "a subclass of int": (7, type("Count", (int,), {})(7)),
    "a subclass of Decimal": (Decimal(7), type("Money", (Decimal,), {})(7)),
    "a subclass of datetime": (dt.datetime(2024, 1, 1), type("Moment", (dt.datetime,), {})(2024, 1, 1)),
    "an Enum's alias": (Color.RED, Color.ROUGE),
    "a path": (Path("a/b"), Path("a", "b")),
    "a zone of its key": (ZoneInfo("Europe/Berlin"), ZoneInfo.no_cache("Europe/Berlin")),
}

DIFFERENT = {
    "zeros": [0.0, -0.0, 0, False, Decimal(0), Decimal("-0"), "0", ""],
    "ones": [
        1,
        1.0,
        True,
        "1",
        Decimal(1),
        Fraction(1),
        b"1",
        "1.0",
        "True",
        "true",
        Number.ONE,
        dt.timedelta(microseconds=1),
    ],
    "None": [None, "None", "null", [None], {}, ()],
    "keys": [{1: "x"}, {"1": "x"}, {True: "x"}, {1.0: "x"}, {b"1": "x"}, {None: "x"}, {"None": "x"}, [[1, "x"]]],
    "a date": [dt.date(2024, 1, 1), "2024-01-01", dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)],
    "folds": [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, fold=1)],
    "times": [
        dt.time(1),
        dt.time(1, fold=1),
        dt.time(1, tzinfo=dt.UTC),
        dt.time(1, tzinfo=_BERLIN),
        dt.timedelta(hours=1),
    ],
    "splits": [["ab"], ["a", "b"], ["a,b"], ['a","b'], "ab", [["a"], "b"], [["a", "b"]]],
    "bytes": [b"ab", "ab", "6162", [97, 98]],
    "empties": [[], {}, set(), "", b"", None, [[]], 0, False],
    "normal forms": [unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")],
    "surrogates": ["\U0001f600", "\ud83d\ude00", "\ud83d", "\ude00", "?", "\ufffd"],
    "namedtuples": [
        Pair(1, 2),
        (1, 2),
        {"left": 1, "right": 2},
        NamedTuple("Other", [("left", int), ("right", int)])(1, 2),
    ],
    "classes": [Point(1, 2), Line(1, 2), {"x": 1, "y": 2}, ["Point", {"x": 1, "y": 2}], Point(2, 1)],
    "Enums": [Color.RED, Color.GREEN, "RED", 1, "green", Word.ONE, "one", Number.ONE],
    "Flags": [Access.READ, Access.WRITE, Access.READ | Access.WRITE, Access(0), 0, 1],
    "keys of an Enum": [{"one": 1}, {Word.ONE: 1}],
    "paths": [PurePosixPath("a/b"), PureWindowsPath("a/b"), "a/b", PurePosixPath("a\\b")],
    "infinities": [float("inf"), float("-inf"), float("nan"), Decimal("inf"), Decimal("nan"), "NaN", "Infinity"],
    "tags": [{1}, {"!set": [1]}, ["!set", [1]], "!set[1]", ["!set[1]"], {"!set[1]": None}],
    "UUIDs": [uuid.UUID(int=1), str(uuid.UUID(int=1)), 1],
    "zones": [ZoneInfo("UTC"), dt.UTC, "UTC"],
    "near ints": [2**53, 2**53 + 1, float(2**53), 10**5000, 10**5000 + 1],
}


@pytest.mark.parametrize("pair", EQUAL.values(), ids=EQUAL)
def test_values_that_mean_the_same_have_one_fingerprint(pair: tuple[Any, Any]) -> None:
    """Behaviour 4: each equality that the contract lists."""
    one, other = pair
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint({"x": [one]}) == fingerprint({"x": [other]})


@pytest.mark.parametrize("group", DIFFERENT.values(), ids=DIFFERENT)
def test_values_that_differ_have_fingerprints_of_their_own(group: list[Any]) -> None:
    """Behaviour 6 rests on it: each difference that the contract lists."""
    assert len({fingerprint(value) for value in group}) == len(group)
    assert len({fingerprint([value]) for value in group}) == len(group)


def test_a_class_that_moves_to_another_module_keeps_its_fingerprints() -> None:
    """Classes are tagged by their qualified name alone, and what kind of class it is does not count either."""
    moved = attrs.make_class("Point", ["x", "y"])
    moved.__module__ = "somewhere.else"
    rewritten = dataclasses.make_dataclass("Point", ["y", "x"])
    assert fingerprint(moved(1, 2)) == fingerprint(rewritten(x=1, y=2)) == fingerprint(Point(1, 2))


def test_classes_of_one_name_in_two_others_are_two() -> None:
    """The qualified name counts, not the last part of it."""

    class Cat:
        class Id(NamedTuple):
            number: int

    class Dog:
        class Id(NamedTuple):
            number: int

    assert fingerprint(Cat.Id(1)) != fingerprint(Dog.Id(1))
    Cat.Id.__qualname__ = "Cat.Id"
    assert text(Cat.Id(1)) == '!class["Cat.Id",{"number":1}]'


def test_fields_that_instances_are_not_compared_by_do_not_count() -> None:
    """A cache, a lock or a clock in a field marked so neither changes a fingerprint nor prevents it."""

    @attrs.define
    class Cached:
        number: int
        cache: Any = attrs.field(eq=False, factory=object)

    @dataclasses.dataclass
    class Locked:
        number: int
        lock: Any = dataclasses.field(compare=False, default_factory=threading.Lock)

    assert fingerprint(Cached(1)) == fingerprint(Cached(1)) != fingerprint(Cached(2))
    assert fingerprint(Locked(1)) == fingerprint(Locked(1)) != fingerprint(Locked(2))


def test_what_a_subclass_makes_of_its_own_methods_does_not_count() -> None:
    """A subclass of a built-in is read as its base is, however it prints, iterates or compares."""

    class Loud(str):
        def __str__(self) -> str:
            return "LOUD"

        __repr__ = __str__

        def __format__(self, spec: str) -> str:
            return "LOUD"

    class Big(int):
        def __repr__(self) -> str:
            return "BIG"

        __str__ = __repr__

    class Warm(float):
        def __repr__(self) -> str:
            return "WARM"

        __str__ = __repr__

    class Backwards(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            return reversed(self)

    class Half(dict[Any, Any]):
        def items(self) -> Any:
            raise LookupError("not now")

    plain = ["a", 1, 1.5, [1, 2], {"k": "v"}, {"a": 1}]
    assert fingerprint([Loud("a"), Big(1), Warm(1.5), Backwards([1, 2]), Half(k="v"), {Loud("a"): 1}]) == fingerprint(
        plain
    )


def test_digits_beyond_the_interpreters_limit_are_written_in_any_process() -> None:
    """An int of any size has a text, whatever sys.set_int_max_str_digits() says."""
    number, limit = 7 * 10**5000 + 3, sys.get_int_max_str_digits()
    expected = "7" + "0" * 4999 + "3"
    try:
        for digits in (640, 0, limit):
            sys.set_int_max_str_digits(digits)
            assert text([number, -number, Fraction(number, 2)]) == f'[{expected},-{expected},!fraction"{expected}/2"]'
    finally:
        sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize("moment", [dt.datetime.min, dt.datetime.max])
@pytest.mark.parametrize("hours", [-14, 14])
def test_an_instant_outside_of_the_years_of_utc_has_a_fingerprint(moment: dt.datetime, hours: int) -> None:
    """The first and the last datetimes there are have one in every time zone."""
    aware = moment.replace(tzinfo=dt.timezone(dt.timedelta(hours=hours)))
    assert fingerprint(aware) != fingerprint(moment.replace(tzinfo=dt.UTC))


# --- what classes and hooks say ---------------------------------------------------------------------------------------


def test_a_class_says_itself_what_to_write() -> None:
    """What __idempo_payload__ returns is written under the class's name, and goes before any other form."""

    class Special(enum.Enum):
        ONE = 1

        def __idempo_payload__(self) -> Any:
            return {"value": self.value}

    assert text(Account({1})) == '!class["Account",[!set[1]]]'
    assert text(Special.ONE).endswith(',{"value":1}]')
    assert fingerprint(Account(1)) != fingerprint([1])


def test_a_hook_is_found_by_class_then_by_the_nearest_base() -> None:
    """The class itself goes before its bases, and those by the order of method resolution."""

    class Base: ...

    class Middle(Base): ...

    class Leaf(Middle): ...

    Base.__qualname__, Middle.__qualname__, Leaf.__qualname__ = "Base", "Middle", "Leaf"
    hooked = Fingerprinter(hooks={Base: lambda _: "base", Middle: lambda _: "middle", Leaf: lambda _: "leaf"})
    assert hooked.text([Base(), Middle(), Leaf()]) == (
        '[!class["Base","base"],!class["Middle","middle"],!class["Leaf","leaf"]]'
    )
    assert Fingerprinter(hooks={Base: lambda _: 1, Middle: lambda _: 2}).text(Leaf()) == '!class["Leaf",2]'


def test_a_hook_goes_before_every_other_form() -> None:
    """Attrs classes, Enums, __idempo_payload__ and even built-in types can be given another form."""
    hooks: dict[type, Any] = {Account: lambda _: 1, Point: lambda _: 2, Color: lambda _: 3, dt.date: lambda _: 4}
    hooked = Fingerprinter(hooks=hooks)
    assert hooked.text([Account(0), Point(0, 0), Color.RED, dt.date(2024, 1, 1)]) == (
        '[!class["Account",1],!class["Point",2],!class["Color",3],!class["date",4]]'
    )


def test_a_hook_may_give_a_value_of_the_class_that_it_was_asked_about() -> None:
    """A hook that rounds floats is not asked about its own answer."""
    rounding = Fingerprinter(hooks={float: lambda number: round(number, 1), list: lambda items: items})
    assert rounding.text({"a": 1.234}) == '{"a":!class["float",1.2]}'
    assert rounding.text([0.51]) == '!class["list",[!class["float",0.5]]]'
    assert rounding.scalar_writers.keys() == SCALAR_WRITERS.keys() - {float}


def test_a_hook_for_str_is_asked_about_keys_too() -> None:
    """A hooked key is no plain string any more, so that the dict is written as pairs."""
    folded = Fingerprinter(hooks={str: lambda word: unicodedata.normalize("NFC", word)})
    assert folded({"e\u0301": 1}) == folded({"\u00e9": 1})
    assert folded.text({"a": None}) == '!map[[!class["str","a"],null]]'
    assert str not in folded.scalar_writers


def test_a_hook_for_int_is_asked_about_bools() -> None:
    """A bool is an int, and the nearest hook in the order of method resolution is int's."""
    hooked = Fingerprinter(hooks={int: str})
    assert hooked.text([True, 1]) == '[!class["bool","True"],!class["int","1"]]'
    assert hooked.scalar_writers.keys() == SCALAR_WRITERS.keys() - {int, bool}


def test_a_hook_for_object_is_the_last_resort() -> None:
    """It is asked about nothing that has a form of its own."""
    hooked = Fingerprinter(hooks={object: lambda value: type(value).__name__})
    value = [1, "a", Point(1, 2), Color.RED, {1}]
    assert hooked.text(value) == text(value)
    assert hooked.text(Session()) == '!class["Session","Session"]'
    assert hooked.scalar_writers == SCALAR_WRITERS


def test_what_a_hook_gives_is_hooked_in_turn() -> None:
    """Values inside of a hook's answer are written like any other."""
    hooked = Fingerprinter(hooks={Session: lambda _: [Color.RED], Color: lambda color: color.value})
    assert hooked.text(Session()) == '!class["Session",[!class["Color",1]]]'


def test_a_hook_changes_no_other_fingerprinter() -> None:
    """Neither the module's function nor the dict that was handed in is bound to it."""
    hooks: dict[type, Any] = {Session: lambda _: 1}
    hooked = Fingerprinter(hooks=hooks)
    hooks.clear()
    assert hooked.text(Session()) == '!class["Session",1]'
    with pytest.raises(FingerprintError):
        fingerprint(Session())


# --- secrets and versions ---------------------------------------------------------------------------------------------


def test_a_fingerprint_is_a_version_and_a_digest() -> None:
    """Without a secret anyone can make it again."""
    assert fingerprint({"b": 1, "a": None}) == b"\x01" + hashlib.sha256(b'{"a":null,"b":1}').digest()


def test_a_secret_makes_fingerprints_that_nobody_else_can_make() -> None:
    """HMAC-SHA-256 under another version byte; text counts as its UTF-8."""
    keyed = Fingerprinter(secret="Schlüssel")
    assert keyed([1]) == b"\x02" + hmac.new("Schlüssel".encode(), b"[1]", hashlib.sha256).digest()
    assert keyed([1]) == Fingerprinter(secret="Schlüssel".encode())([1]) != Fingerprinter(secret="other")([1])
    assert keyed.text([1]) == text([1])


def test_a_secret_does_not_show() -> None:
    """A Fingerprinter in a log or a traceback gives nothing away."""
    assert "hunter2" not in repr(Fingerprinter(secret="hunter2"))


@pytest.mark.parametrize(
    ("stored", "supported"),
    [
        (fingerprint(1), True),
        (Fingerprinter(secret="x")(1), True),
        (b"\x00" + bytes(32), False),
        (b"\x03" + bytes(32), False),
        (b"\x01" + bytes(31), False),
        (b"", False),
    ],
)
def test_fingerprints_of_unknown_versions_are_told(stored: bytes, supported: bool) -> None:
    """A record of a version that this release cannot make says so instead of looking like a client's mistake."""
    assert fingerprint_version_supported(stored) is supported


def test_a_fingerprinter_cannot_be_changed() -> None:
    """It is shared between threads and guards."""
    shared: Any = Fingerprinter()
    for name in ("_secret", "scalar_writers", "new"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(shared, name, b"x")
    with pytest.raises(AttributeError, match="immutable"):
        del shared._secret


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"secret": 7}, TypeError, "secret must be bytes or str, not int"),
        ({"secret": b""}, ValueError, "must not be empty"),
        ({"secret": ""}, ValueError, "must not be empty"),
        ({"hooks": {"Session": str}}, TypeError, "from classes, not from 'Session'"),
        ({"hooks": {Session: "id"}}, TypeError, "the hook for Session must be callable, not a str"),
    ],
)
def test_wrong_options_are_told_when_it_is_made(options: dict[str, Any], error: type[Exception], said: str) -> None:
    """Not at the first call in production."""
    with pytest.raises(error, match=said):
        Fingerprinter(**options)


# --- what has no canonical form ---------------------------------------------------------------------------------------


class Broken:
    def __idempo_payload__(self) -> Any:
        raise ValueError("card 4242")


class Unset:
    __slots__ = ("number",)
    __attrs_attrs__ = attrs.fields(attrs.make_class("Unset", ["number"]))


class Lazy(dt.tzinfo):
    def utcoffset(self, _moment: dt.datetime | None) -> None:
        return None


class Nanoseconds(dt.datetime):
    nanosecond = 7


class NoTime(dt.datetime):
    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = dt.datetime.__hash__


class LongNanoseconds(dt.timedelta):
    nanoseconds = 7


@dataclasses.dataclass
class Tagged(dict[str, Any]):
    tag: str


def keyless_zone() -> ZoneInfo:
    data = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbb", 0, 0, 0) + b"UTC\0"
    from io import BytesIO

    return ZoneInfo.from_file(BytesIO(data))


UNKNOWN: dict[str, tuple[Any, str]] = {
    "": (Session(), "the value: a Session has no canonical form"),
    "[3]": ([1, 2, 3, Session()], "a Session"),
    "[1][0]": ((0, (Session(),)), "a Session"),
    "items[3].session": ({"items": [0, 1, 2, {"session": Session()}]}, "a Session"),
    '["not a name"][0]': ({"not a name": [Session()]}, "a Session"),
    "[7]": ({7: Session()}, "a Session"),
    "[null].a": ({None: {"a": Session()}}, "a Session"),
    '[!decimal"15E-1"]': ({Decimal("1.50"): Session()}, "a Session"),
    f'["{"long " * 11}long…]': ({"long " * 30: Session()}, "a Session"),
    "a<key>": ({"a": {Session(): 1}}, "a Session"),
    "a<member>": ({"a": {Session()}}, "a Session"),
    "a<member>[1]": ({"a": {(1, Session())}}, "a Session"),
    "y": (Point(1, Session()), "a Session"),
    "a.count.left": ({"a": Line(1, Pair(Session(), 1))}, "a Session"),
    "a.__idempo_payload__()[0]": ({"a": Account(Session())}, "a Session"),
    "b.__idempo_payload__()": ({"b": Broken()}, "it raised ValueError"),
    "c.number": ({"c": Unset()}, "never set"),
    "d": ({"d": Tagged("x")}, "a Tagged has fields, but also the value of a built-in type"),
    "e": ({"e": dt.datetime(2024, 1, 1, tzinfo=Lazy())}, "a datetime has a time zone that gives it no offset"),
    "f": ({"f": dt.time(1, tzinfo=ZoneInfo("Europe/Berlin"))}, "a time has a time zone that gives it no offset"),
    "g": ({"g": Nanoseconds(2024, 1, 1)}, "a Nanoseconds that is no time, or has nanoseconds"),
    "h": ({"h": NoTime(2024, 1, 1)}, "a NoTime that is no time"),
    "i": ({"i": LongNanoseconds(1)}, "a LongNanoseconds has nanoseconds"),
    "j": ({"j": keyless_zone()}, "a ZoneInfo without a key"),
    "k": ({"k": lambda: None}, "a function"),
    "l": ({"l": int}, "a type"),
    "m": ({"m": 1j}, "a complex"),
    "n": ({"n": memoryview(b"a")}, "a memoryview"),
    "o": ({"o": UserDict(a=1)}, "a UserDict"),
    "p": ({"p": (number for number in [1])}, "a generator"),
    "q": ({"q": range(3)}, "a range"),
    "r": ({"r": ...}, "a ellipsis"),
}


@pytest.mark.parametrize("path", UNKNOWN)
def test_what_has_no_form_is_refused_with_the_way_to_it(path: str) -> None:
    """Behaviour 10: an argument without a canonical form is a FingerprintError that names the path to it."""
    value, said = UNKNOWN[path]
    with pytest.raises(FingerprintError, match=said) as caught:
        fingerprint(value)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path or 'the value'}: ")
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, IdempotencyError)
    assert pickle.loads(pickle.dumps(caught.value)).path == path


@pytest.mark.parametrize(
    ("value", "path"), [(Session(), "order"), ([Session()], "order[0]"), ({"a": Session()}, "order.a")]
)
def test_a_path_begins_with_what_the_value_is_called(value: Any, path: str) -> None:
    """Behaviour 10: an argument's name is the path's first step."""
    with pytest.raises(FingerprintError) as caught:
        text(value, "order")
    assert caught.value.path == path


def test_no_address_and_no_content_is_told() -> None:
    """Neither repr nor what an error in __idempo_payload__ says, which may hold what nobody should log."""
    session = Session()
    for value in (session, Broken()):
        with pytest.raises(FingerprintError) as caught:
            fingerprint([value])
        assert f"{id(value):x}" not in str(caught.value)
        assert "4242" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_hook_that_fails_is_named() -> None:
    """Behaviour 10: so is one whose answer has no form."""
    hooked = Fingerprinter(hooks={Session: lambda _: 1 // 0, Account: lambda _: [object()]})
    for value, path, said in ((Session(), "[0]<hook>", "ZeroDivisionError"), (Account(1), "[0]<hook>[0]", "a object")):
        with pytest.raises(FingerprintError, match=said) as caught:
            hooked([value])
        assert caught.value.path == path


def test_an_exhausted_stack_is_told_as_what_it_is() -> None:
    """Where a hook finds no room on the stack, the payload is not to blame."""

    def exhausted(_: Any) -> Any:
        raise RecursionError("maximum recursion depth exceeded")

    with pytest.raises(RecursionError):
        Fingerprinter(hooks={Session: exhausted})([Session()])


# --- cycles and depth -------------------------------------------------------------------------------------------------


def nested(depth: int, leaf: Any = 1, *, wrap: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    for _ in range(depth):
        leaf = wrap(leaf)
    return leaf


def test_a_value_that_contains_itself_is_refused() -> None:
    """Behaviour 10: a cycle is told as one, with the way to its closing."""
    items: list[Any] = [1]
    items.append({"again": items})
    with pytest.raises(FingerprintError, match="a list that contains itself") as caught:
        fingerprint({"items": items})
    assert caught.value.path == "items[1].again"

    point = attrs.make_class("Loop", ["next"], eq=False)(None)
    point.next = (point,)
    with pytest.raises(FingerprintError, match="a Loop that contains itself") as caught:
        fingerprint(point)
    assert caught.value.path == "next[0]"

    account = Account(None)
    account.number = account
    with pytest.raises(FingerprintError, match="a Account that contains itself"):
        fingerprint(account)


def test_a_value_may_stand_in_several_places() -> None:
    """What is not inside of itself is no cycle."""
    shared = [Decimal(1)]
    assert fingerprint([shared, shared, {"a": shared}]) == fingerprint(
        [[Decimal(1)], [Decimal(1)], {"a": [Decimal(1)]}]
    )


def test_an_endless_answer_is_refused() -> None:
    """Behaviour 10: an object that gives another of its kind for ever ends at the greatest depth."""
    hooked = Fingerprinter(hooks={Session: lambda _: [Session()]})
    with pytest.raises(FingerprintError, match=f"deeper than {MAX_DEPTH}"):
        hooked(Session())


WRAPS: dict[str, Callable[[Any], Any]] = {
    "lists": lambda inner: [inner],
    "tuples": lambda inner: (inner, 1),
    "dicts": lambda inner: {"a": 1, "b": inner},
    "both": lambda inner: {"a": 1} if inner is None else ([inner] if isinstance(inner, dict) else {"k": inner}),
    "strings that close": lambda inner: ["]", inner],
    "strings that open": lambda inner: {"[": "[", "{": inner},
    "strings with escapes": lambda inner: ['\\"]\\\\', inner, "\\", '"', "\n\x01"],
    "maps": lambda inner: {1: inner},
    "sets": lambda inner: frozenset({inner}),
    "namedtuples": lambda inner: Pair(1, inner),
    "attrs": lambda inner: Point(inner, 1),
    "dataclasses": lambda inner: Line(inner, 1),
    "payloads": Account,
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("leaf", [1, Decimal(1)], ids=["fast", "walked"])
def test_nesting_is_allowed_up_to_the_stated_depth_and_no_further(wrap: Callable[[Any], Any], leaf: Any) -> None:
    """Behaviour 10: the limit is the same whichever way a value is written."""
    levels = MAX_DEPTH // 2 if wrap is WRAPS["payloads"] else MAX_DEPTH  # an instance, and the list that it gives
    assert fingerprint(nested(levels, leaf, wrap=wrap))
    with pytest.raises(FingerprintError, match=f"deeper than {MAX_DEPTH}"):
        fingerprint(nested(levels + 1, leaf, wrap=wrap))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 1_500, 5_000, 100_000])
def test_no_depth_exhausts_the_interpreter(depth: int) -> None:
    """Behaviour 10: what nobody should send is refused, not crashed upon."""
    with pytest.raises(FingerprintError, match=f"deeper than {MAX_DEPTH}"):
        fingerprint({"a": nested(depth)})


def test_a_raised_recursion_limit_lets_nothing_exhaust_the_stack() -> None:
    """Behaviour 10: where a program has raised the recursion limit, nothing crashes; and nested sets end in time."""
    code = """
import sys
from idempo.fingerprint import fingerprint
sys.setrecursionlimit(10**7)
cycle = []
cycle.append(cycle)
deep = {"list": 1, "dict": 1, "tuple": 1, "set": 1}
for _ in range(100_000):
    deep = {
        "list": [deep["list"]],
        "dict": {"a": deep["dict"]},
        "tuple": (deep["tuple"],),
        "set": frozenset({deep["set"]}),
    }
for value in (cycle, *deep.values()):
    try:
        fingerprint(value)
    except TypeError as error:
        print(error.path[:3])
print(fingerprint({"b": 1, "a": 1.5}) == fingerprint({"a": 1.5, "b": 1}))
"""
    assert in_child(code).split() == ["[0]", "[0]", "a.a", "[0]", "<me", "True"]


def test_wide_is_not_deep() -> None:
    """A long list of records is as deep as one of them, whatever its strings look like."""
    records = [{"id": number, "tags": ["[", "]", '"', "\\"], "at": {"x": []}} for number in range(300)]
    assert json_text(records) == Walk({}).write(records)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max(map(depth_of, inner), default=0) + 1 if isinstance(value, list | dict) else 0


brackets = st.text('[]{}"\\a,:\n', max_size=6)


@given(
    st.integers(MAX_DEPTH - 4, MAX_DEPTH + 2),
    st.lists(st.tuples(st.booleans(), brackets, st.booleans()), min_size=1, max_size=6),
    st.recursive(brackets, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(brackets, inner, max_size=3)),
)
def test_depth_is_counted_exactly(levels: int, shapes: list[tuple[bool, str, bool]], leaf: Any) -> None:
    """Brackets, quotes and escapes inside of strings neither hide depth nor add any."""
    value = leaf
    for level in range(levels):
        is_list, beside, first = shapes[level % len(shapes)]
        items = [value, beside] if first else [beside, value]
        value = items if is_list else {beside: items[0], beside + "b": items[1]}
    assert (json_text(value) is not None) == (depth_of(value) <= MAX_DEPTH)


# --- what importing costs ---------------------------------------------------------------------------------------------


def test_types_that_nobody_uses_are_not_imported() -> None:
    """Who has no Decimal, UUID, path or Fraction does not pay for their modules."""
    code = """
import sys
import attrs, cachetools
before = set(sys.modules)
from idempo.fingerprint import fingerprint
class Thing: pass
fingerprint({"a": [1, {2}, b"3"], "b": (None, 1.5)})
try:
    fingerprint(Thing())
except TypeError:
    pass
late = {"decimal", "uuid", "fractions", "pathlib", "dataclasses", "zoneinfo", "hmac", "asyncio"}
print(sorted(late & (set(sys.modules) - before)))
"""
    assert in_child(code).strip() == "[]"
