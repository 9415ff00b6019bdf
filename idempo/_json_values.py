"""Python values as plain JSON that keeps their types, and back.

What JSON has is written as it is. Everything else is an object with one member, whose name, the tag, begins with ``$``:
``{"$tuple": [1, 2]}``. A dict that could be taken for one is itself written behind a tag: no two values share a text.
docs/codecs.md lists the tags.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from idempo._json_classes import Kept, Refused
from idempo.errors import CodecError

MAX_DEPTH: Final = 100
"""How deep containers and objects may be nested. Well below what the interpreter's JSON reader can follow."""

_LARGEST_PLAIN_INT: Final = 1 << 1024  # in decimal, a larger one costs quadratic time and is refused from 4,300 digits
_PLAIN: Final = frozenset({bool, type(None)})
_LONGEST_SHOWN_KEY: Final = 40

_dumps: Final = json.JSONEncoder(
    ensure_ascii=False,  # or a character outside the BMP and the two surrogates that spell it would share a text
    allow_nan=False,
    check_circular=False,
    separators=(",", ":"),
).encode


class _Writer:
    """One walk over one value."""

    __slots__ = ("_depth", "_kept", "_names", "_surrogates")

    def __init__(self, kept: dict[type, Kept], names: dict[type, str], *, surrogates: bool) -> None:
        self._kept = kept
        self._names = names
        self._surrogates = surrogates
        self._depth = 0

    def write(self, value: Any) -> Any:  # one return for each kind of value
        cls = type(value)
        if cls is str:
            return _surrogate_str(value) if self._surrogates else value
        if cls in _PLAIN:
            return value
        if cls is int:
            return value if -_LARGEST_PLAIN_INT < value < _LARGEST_PLAIN_INT else {"$int": hex(value)}
        if cls is float:
            return value if value - value == 0.0 else {"$float": repr(value)}
        scalar = _SCALARS.get(cls)
        if scalar is not None:
            tag, write = scalar
            return {tag: write(value)}
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Refused(f"it is nested more than {MAX_DEPTH} deep, or contains itself")
        result = self._container(cls, value)
        self._depth -= 1
        return result

    def _container(self, cls: type, value: Any) -> Any:
        if cls is dict:
            return self._dict(value)
        if cls is list:
            return self._items(value)
        tag = _SEQUENCES.get(cls)
        if tag is not None:
            return {tag: self._items(value)}
        kept = self._kept.get(cls)
        if kept is None:
            raise Refused(_not_kept(cls))
        return {kept.tag: [self._names[cls], kept.take_apart(value, self.write)]}

    def _dict(self, value: dict[Any, Any]) -> Any:
        plain = not self._surrogates and all(type(key) is str for key in value)
        if plain and not (len(value) == 1 and next(iter(value)).startswith("$")):
            result = {}
            key = None
            try:
                for key, item in value.items():
                    result[key] = self.write(item)
            except Refused as refused:
                raise refused.at(_shown(key)) from None
            return result
        pairs = []
        key = None
        try:
            for key, item in value.items():
                pairs.append([self.write(key), self.write(item)])
        except Refused as refused:
            raise refused.at(_shown(key)) from None
        return {"$dict": pairs}

    def _items(self, values: Iterable[Any]) -> list[Any]:
        result: list[Any] = []
        try:
            for item in values:
                result.append(self.write(item))  # noqa: PERF401  # how many there are is the index in the path
        except Refused as refused:
            raise refused.at(f"[{len(result)}]") from None
        return result


def encode(value: Any, kept: dict[type, Kept], names: dict[type, str]) -> bytes:
    """Return the value as JSON in UTF-8.

    Raises:
        CodecError: Something in it cannot be kept; the text names its class and the path to it, and no value.
    """
    try:
        text = _dumps(_Writer(kept, names, surrogates=False).write(value))
        try:
            return text.encode()
        except UnicodeEncodeError:  # a lone surrogate somewhere: rare enough to pay for with a second walk
            return _dumps(_Writer(kept, names, surrogates=True).write(value)).encode()
    except Refused as refused:
        path = "".join(reversed(refused.path))
        raise CodecError(f"result{path}: {refused.message}") from None
    except RecursionError as error:
        raise CodecError("the result is nested too deep for the stack that is left") from error


def decoder(known: dict[str, Kept]) -> Callable[[bytes], Any]:
    """Return what turns the bytes of `encode` back into the value; made once, since the parser is dear to make.

    Args:
        known: The classes that may be read, by the names that they are written under.
    """

    def read_object(found: dict[str, Any]) -> Any:
        if len(found) != 1:
            return found
        ((tag, body),) = found.items()
        if not tag.startswith("$"):
            return found
        read = _READERS.get(tag)
        if read is not None:
            return read(body)
        if tag not in _CLASS_TAGS:
            raise CodecError(f"the record holds the tag {tag!r}, which this version of idempo does not know")
        name, state = body
        kept = known.get(name)
        if kept is None or kept.tag != tag:
            raise CodecError(
                f"the record names the class {name!r}, which this codec was not told of; give it in types="
            )
        try:
            return kept.put_together(state)
        except (KeyError, ValueError) as error:
            raise CodecError(f"the record's {name} does not fit the class: {error}") from error

    parse = json.JSONDecoder(object_hook=read_object, parse_constant=_no_constant).raw_decode

    def decode(data: bytes) -> Any:
        """Return the value that was encoded.

        Raises:
            CodecError: The bytes are not of this codec, or name a class that is not known.
        """
        try:
            text = data.decode()
            value, end = parse(text)
            if end == len(text):
                return value
            raise ValueError("something follows")
        except CodecError:
            raise
        # A record may say anything: whatever goes wrong in rebuilding what it says, the record is at fault.
        except Exception as error:
            raise CodecError(f"the bytes are not what JsonCodec writes ({type(error).__name__})") from error

    return decode


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _not_kept(cls: type) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}"
    if issubclass(cls, ZoneInfo | timezone | datetime | date | time | timedelta | Decimal | Fraction | UUID) or (
        issubclass(cls, str | bytes | int | float | complex | list | tuple | dict | set | frozenset | bytearray)
        and not hasattr(cls, "_member_map_")
        and not hasattr(cls, "_fields")
    ):
        return f"a {name} would come back as its base class; return the base class itself"
    return (
        f"a {name} cannot be kept: name the class in the decorated function's return annotation, or in"
        " JsonCodec(types=...), if it is an attrs class, dataclass, namedtuple or Enum; else return plain data"
    )


def _shown(key: Any) -> str:
    # Part of a text that is logged: of what is no name of a field it says no more than its class.
    if type(key) is str and key.isidentifier() and len(key) <= _LONGEST_SHOWN_KEY:
        return f".{key}"
    return f"[{type(key).__name__}]"


def _surrogate_str(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"$str": b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    return value


def _bytes_text(value: bytes | bytearray) -> str:
    return b64encode(value).decode()


def _bytes_from(text: Any) -> bytes:
    return b64decode(text, validate=True)


def _float_part(value: float) -> Any:
    return value if value - value == 0.0 else {"$float": repr(value)}


def _zone(zone: Any) -> Any:
    """Return a time zone as JSON: None, a name, or the offset in microseconds and perhaps a name for it."""
    cls = type(zone)
    if zone is None:
        return None
    if cls is timezone:
        offset, *name = zone.__getinitargs__()  # pickle's protocol, so it is stable
        return [offset // timedelta(microseconds=1), *name]
    if cls is ZoneInfo:
        key = zone.key
        # Another object for the same zone would not be equal to this one in the hours that a clock is set back over.
        if key is not None and ZoneInfo(key) is zone:
            return key
        raise Refused("a ZoneInfo that ZoneInfo(key) does not give cannot be kept; convert the time to UTC")
    raise Refused(f"the time zone class {cls.__module__}.{cls.__qualname__} cannot be kept; use zoneinfo or UTC")


def _zone_from(body: Any) -> tzinfo | None:
    if body is None:
        return None
    if type(body) is str:
        return ZoneInfo(body)
    offset, *name = body
    return timezone(timedelta(microseconds=offset), *name)


def _clock(value: datetime | time) -> Any:
    text = value.replace(tzinfo=None).isoformat()
    if value.tzinfo is None and not value.fold:
        return text
    return [text, _zone(value.tzinfo), value.fold]


def _clock_reader(cls: Any) -> Callable[[Any], Any]:
    def read(body: Any) -> Any:
        if type(body) is str:
            return cls.fromisoformat(body)
        text, zone, fold = body
        return cls.fromisoformat(text).replace(tzinfo=_zone_from(zone), fold=fold)

    return read


def _int_parts(*values: int) -> list[Any]:
    return [value if abs(value) < _LARGEST_PLAIN_INT else {"$int": hex(value)} for value in values]


_SEQUENCES: Final[dict[type, str]] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset"}

_SCALARS: Final[dict[type, tuple[str, Callable[[Any], Any]]]] = {
    bytes: ("$bytes", _bytes_text),
    bytearray: ("$bytearray", _bytes_text),
    complex: ("$complex", lambda value: [_float_part(value.real), _float_part(value.imag)]),
    Decimal: ("$decimal", str),
    Fraction: ("$fraction", lambda value: _int_parts(value.numerator, value.denominator)),
    UUID: ("$uuid", str),
    datetime: ("$datetime", _clock),
    date: ("$date", date.isoformat),
    time: ("$time", _clock),
    timedelta: ("$timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
}

_CLASS_TAGS: Final = frozenset({"$object", "$namedtuple", "$enum", "$flag"})

_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$dict": dict,
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$str": lambda body: _bytes_from(body).decode("utf-8", "surrogatepass"),
    "$int": lambda body: int(body, 16),
    "$float": float,
    "$bytes": _bytes_from,
    "$bytearray": lambda body: bytearray(_bytes_from(body)),
    "$complex": lambda body: complex(*body),
    "$decimal": Decimal,
    "$fraction": lambda body: Fraction(*body),
    "$uuid": UUID,
    "$datetime": _clock_reader(datetime),
    "$date": date.fromisoformat,
    "$time": _clock_reader(time),
    "$timedelta": lambda body: timedelta(*body),
}
