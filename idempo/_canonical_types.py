"""The canonical text of single values: the leaves of `idempo._canonical`.

Modules that not every program needs are imported when the first value of theirs arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from json.encoder import encode_basestring
from math import isfinite, isnan
from typing import Any, Final

string_text: Final[Callable[[str], str]] = encode_basestring
"""Writes a JSON string. Only ``"``, the backslash and the characters below U+0020 are escaped.

Escaping all beyond ASCII would write one text for U+1F600 and for the two lone surrogates that spell it in UTF-16.
"""


class NoFormError(Exception):
    """A value has no canonical form. Never leaves this package: it becomes a `FingerprintError`.

    Attributes:
        reason: What is wrong.
        segments: The way to the value, its last step first.
    """

    def __init__(self, reason: str, *segments: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.segments = list(segments)


def class_text(cls: type, payload: str) -> str:
    """Return the text of an instance: its class by qualified name, without module, and its payload's text."""
    return f"!class[{string_text(cls.__qualname__)},{payload}]"


def int_text(value: int) -> str:
    """Return decimal digits, however many there are."""
    try:
        return int.__repr__(value)
    except ValueError:
        # Beyond sys.get_int_max_str_digits(), which differs between processes. Decimal knows no such limit.
        import decimal

        return str(decimal.Decimal(value))


def float_text(value: float) -> str:
    """Return the shortest digits that give the same float, or NaN, Infinity, -Infinity."""
    if isfinite(value):
        return float.__repr__(value)
    if isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _decimal_text(value: Any) -> str:
    import decimal

    if not decimal.Decimal.is_finite(value):
        return f'!decimal"{decimal.Decimal.__str__(value)}"'
    sign, digits, exponent = decimal.Decimal.as_tuple(value)
    written = "".join(map(str, digits))
    significant = written.rstrip("0")
    zeros = len(written) - len(significant)
    return f'!decimal"{"-" * sign}{significant or 0}E{int(exponent) + zeros if significant else 0}"'


def _fraction_text(value: Any) -> str:
    return f'!fraction"{int_text(value.numerator)}/{int_text(value.denominator)}"'


def _uuid_text(value: Any) -> str:
    import uuid

    return f'!uuid"{uuid.UUID.__str__(value)}"'


def _path_text(value: Any) -> str:
    import pathlib

    return f"!path{string_text(pathlib.PurePath.as_posix(value))}"


def _windows_path_text(value: Any) -> str:
    import pathlib

    return f"!winpath{string_text(pathlib.PurePath.as_posix(value))}"


def _microseconds(duration: Any) -> int:
    import datetime as dt

    if getattr(duration, "nanoseconds", 0):
        raise NoFormError(f"a {type(duration).__qualname__} has nanoseconds, which would be lost")
    return dt.timedelta.__floordiv__(duration, dt.timedelta(microseconds=1))


def _offset(value: Any) -> Any:
    """Return a datetime's or time's offset from UTC, None where it is naive."""
    if value.tzinfo is None:
        return None
    offset = value.utcoffset()
    if offset is None:
        raise NoFormError(f"a {type(value).__qualname__} has a time zone that gives it no offset from UTC")
    return offset


def _datetime_text(value: Any) -> str:
    import datetime as dt

    # Other libraries' subclasses: one has nanoseconds, and a value for "no time" that equals nothing, itself included.
    if getattr(value, "nanosecond", 0) or value != value:  # noqa: PLR0124
        raise NoFormError(f"a {type(value).__qualname__} that is no time, or has nanoseconds, which would be lost")
    offset = _offset(value)
    # As an exact datetime: a subclass may compute and spell in its own way.
    plain = dt.datetime(  # noqa: DTZ001  # the offset is counted in below
        value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond
    )
    if offset is not None:
        # Counted, since the same instant in UTC may lie outside the years that a datetime can hold.
        return f'!instant"{_microseconds(plain - dt.datetime(1970, 1, 1) - offset)}"'  # noqa: DTZ001
    return f'!datetime"{plain.isoformat(timespec="microseconds")}{" fold" * value.fold}"'


def _time_text(value: Any) -> str:
    import datetime as dt

    offset = _offset(value)
    if offset is not None:
        since_midnight = dt.timedelta(
            hours=value.hour, minutes=value.minute, seconds=value.second, microseconds=value.microsecond
        )
        return f'!utctime"{_microseconds(since_midnight - offset)}"'
    plain = dt.time(value.hour, value.minute, value.second, value.microsecond)
    return f'!time"{plain.isoformat(timespec="microseconds")}{" fold" * value.fold}"'


def _date_text(value: Any) -> str:
    import datetime as dt

    return f'!date"{dt.date(value.year, value.month, value.day).isoformat()}"'


def _duration_text(value: Any) -> str:
    return f'!duration"{_microseconds(value)}"'


def _timezone_text(value: Any) -> str:
    return f'!offset"{_microseconds(value.utcoffset(None))}"'


def _zone_text(value: Any) -> str:
    if value.key is None:
        raise NoFormError("a ZoneInfo without a key has no canonical form")
    return f"!zone{string_text(value.key)}"


LATE_WRITERS: Final[tuple[tuple[str, str, Callable[[Any], str]], ...]] = (
    ("decimal", "Decimal", _decimal_text),
    ("uuid", "UUID", _uuid_text),
    ("datetime", "datetime", _datetime_text),  # before date, which it derives from
    ("datetime", "date", _date_text),
    ("datetime", "time", _time_text),
    ("datetime", "timedelta", _duration_text),
    ("datetime", "timezone", _timezone_text),
    ("zoneinfo", "ZoneInfo", _zone_text),
    ("fractions", "Fraction", _fraction_text),
    ("pathlib", "PurePosixPath", _path_text),
    ("pathlib", "PureWindowsPath", _windows_path_text),
)
"""Module, class and writer of the types that have a form of their own, and that a program may never import."""
