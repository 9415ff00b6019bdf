"""Fingerprints a second time, written from docs/fingerprints.md alone: it imports nothing of idempo.

It works as a program in another language would: from descriptions of values, as `data/fingerprint_vectors.json` holds
them. ``python tests/fingerprint_reference.py`` writes that file; a test checks that it is what stands there.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import re
import struct
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parent / "data" / "fingerprint_vectors.json"
SECRET = b"not a secret: published with the vectors"

Description = dict[str, Any]


def text_of(value: Description) -> str:
    """Return the canonical text of a described value."""
    match value:
        case {"type": "none"}:
            return "null"
        case {"type": "bool", "value": flag}:
            return "true" if flag else "false"
        case {"type": "int", "value": digits}:
            return digits
        case {"type": "float", "bits": bits}:
            return _float(struct.unpack(">d", bytes.fromhex(bits))[0])
        case {"type": "str", "value": text}:
            return _string(text)
        case {"type": "str", "code_points": numbers}:
            return _string("".join(map(chr, numbers)))
        case {"type": "list", "items": items}:
            return "[" + ",".join(map(text_of, items)) + "]"
        case {"type": "dict", "items": items} if all(key["type"] == "str" for key, _ in items):
            members = sorted((_code_points(key), text_of(key) + ":" + text_of(member)) for key, member in items)
            return "{" + ",".join(member for _, member in members) + "}"
        case {"type": "dict", "items": items}:
            return "!map[" + ",".join(sorted(f"[{text_of(key)},{text_of(member)}]" for key, member in items)) + "]"
        case {"type": "set", "items": items}:
            return "!set[" + ",".join(sorted(map(text_of, items))) + "]"
        case {"type": "class", "name": name, "payload": payload}:
            return f"!class[{_string(name)},{text_of(payload)}]"
    return _tagged(value)


def _tagged(value: Description) -> str:
    match value:
        case {"type": "bytes", "hex": digits}:
            return f'!bytes"{digits}"'
        case {"type": "decimal", "value": number}:
            return f'!decimal"{_decimal(number)}"'
        case {"type": "fraction", "value": ratio}:
            return f'!fraction"{ratio}"'
        case {"type": "uuid", "value": text}:
            return f'!uuid"{text.lower()}"'
        case {"type": "path", "value": text}:
            return "!path" + _string(text)
        case {"type": "windows path", "value": text}:
            return "!winpath" + _string(text.replace("\\", "/"))
        case {"type": "date", "value": text}:
            return f'!date"{text}"'
        case {"type": "datetime", "value": text, "offset_microseconds": offset}:
            since = dt.datetime.fromisoformat(text) - dt.datetime(1970, 1, 1)  # noqa: DTZ001  # the offset is subtracted below
            return f'!instant"{since // dt.timedelta(microseconds=1) - int(offset)}"'
        case {"type": "time", "value": text, "offset_microseconds": offset}:
            hours, minutes, seconds = text.split(":")
            since_midnight = (int(hours) * 60 + int(minutes)) * 60_000_000 + int(seconds.replace(".", ""))
            return f'!utctime"{since_midnight - int(offset)}"'
        case {"type": "datetime" | "time" as tag, "value": text}:
            return f'!{tag}"{text}{" fold" if value.get("fold") else ""}"'
        case {"type": "duration" | "offset" as tag, "microseconds": count}:
            return f'!{tag}"{count}"'
        case {"type": "zone", "value": key}:
            return "!zone" + _string(key)
    raise ValueError(f"no such description: {value}")


def _code_points(key: Description) -> list[int]:
    return list(key["code_points"]) if "code_points" in key else [ord(character) for character in key["value"]]


def _string(text: str) -> str:
    short = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    written = (short.get(c) or (f"\\u{ord(c):04x}" if ord(c) < 0x20 else c) for c in text)
    return f'"{"".join(written)}"'


def _float(number: float) -> str:
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "Infinity" if number > 0 else "-Infinity"
    return repr(number)


def _decimal(number: str) -> str:
    match = re.fullmatch(r"(-?)(\d+)(?:\.(\d*))?(?:E([+-]?\d+))?", number)
    if match is None:
        return number
    sign, whole, part, exponent = match[1], match[2], match[3] or "", int(match[4] or 0)
    digits = (whole + part).lstrip("0")
    kept = digits.rstrip("0")
    if not kept:
        return sign + "0E0"
    return f"{sign}{kept}E{exponent - len(part) + len(digits) - len(kept)}"


def data_of(text: str) -> bytes:
    """Return the bytes that are digested; a lone surrogate gives three of them."""
    return text.encode("utf-8", "surrogatepass")


def fingerprint_of(text: str) -> bytes:
    return b"\x01" + hashlib.sha256(data_of(text)).digest()


def keyed_fingerprint_of(text: str, secret: bytes) -> bytes:
    return b"\x02" + hmac.new(secret, data_of(text), hashlib.sha256).digest()


def int_(value: int | str) -> Description:
    return {"type": "int", "value": str(value)}


def float_(value: float) -> Description:
    return {"type": "float", "bits": struct.pack(">d", value).hex()}


def str_(value: str) -> Description:
    if any(0xD800 <= ord(character) < 0xE000 for character in value):
        return {"type": "str", "code_points": [ord(character) for character in value]}
    return {"type": "str", "value": value}


def list_(*items: Description) -> Description:
    return {"type": "list", "items": list(items)}


def dict_(*items: tuple[Description, Description]) -> Description:
    return {"type": "dict", "items": [list(item) for item in items]}


def set_(*items: Description) -> Description:
    return {"type": "set", "items": list(items)}


def class_(name: str, payload: Description) -> Description:
    return {"type": "class", "name": name, "payload": payload}


def plain(tag: str, value: str, **more: Any) -> Description:
    return {"type": tag, "value": value, **more}


def _nested(depth: int) -> Description:
    value = list_()
    for _ in range(depth - 1):
        value = list_(value)
    return value


NONE: Description = {"type": "none"}
ORDER = dict_(
    (str_("amount"), int_(1999)), (str_("currency"), str_("EUR")), (str_("paid"), {"type": "bool", "value": True})
)

_HOUR = 3_600_000_000

VALUES: list[tuple[str, list[Description]]] = [
    ("none", [NONE]),
    ("false", [{"type": "bool", "value": False}]),
    ("true", [{"type": "bool", "value": True}]),
    *((f"the int {number}", [int_(number)]) for number in (0, 1, -1, 2**53 + 1, -(2**64))),
    ("an int of 700 digits", [int_("9" * 700)]),
    ("an int of 5,000 digits", [int_("7" * 5000)]),
    ("zero", [float_(0.0)]),
    ("negative zero", [float_(-0.0)]),
    ("one, a float", [float_(1.0)]),
    ("a tenth", [float_(0.1)]),
    ("the float before an exponent is written", [float_(9999999999999998.0)]),
    ("the first float with an exponent", [float_(1e16)]),
    ("the least float without an exponent", [float_(0.0001)]),
    ("a small float with an exponent", [float_(0.00001)]),
    ("17 digits", [float_(0.1 + 0.2)]),
    ("the least float", [float_(5e-324)]),
    ("the greatest float", [float_(1.7976931348623157e308)]),
    ("every NaN is one", [float_(float("nan")), {"type": "float", "bits": "fff8000000000001"}]),
    ("infinity", [float_(float("inf"))]),
    ("negative infinity", [float_(float("-inf"))]),
    ("the empty str", [str_("")]),
    ("text like other values", [list_(str_("null"), str_("1"), str_("1.0"), str_("!set[]"))]),
    ("what is escaped", [str_('quote " backslash \\ slash / \b\f\n\r\t \x00\x1f\x7f')]),
    ("what is not escaped", [str_("é ß 漢 \u2028 \U0001f600")]),
    ("NFC", [str_("\u00e9")]),
    ("NFD", [str_("e\u0301")]),
    ("a lone surrogate", [str_("\ud83d")]),
    ("two lone surrogates that spell U+1F600 in UTF-16", [str_("\ud83d\ude00")]),
    ("U+1F600", [str_("\U0001f600")]),
    ("no bytes", [{"type": "bytes", "hex": ""}]),
    ("bytes", [{"type": "bytes", "hex": "00ff61"}]),
    ("the empty list", [list_()]),
    ("one string of two", [list_(str_("ab"))]),
    ("two strings", [list_(str_("a"), str_("b"))]),
    ("a list of many types", [list_(NONE, int_(1), float_(1.0), str_("1"), list_(), dict_(), set_())]),
    ("the deepest list", [_nested(100)]),
    ("the empty dict", [dict_()]),
    ("the order of a dict's items does not count", [ORDER, {"type": "dict", "items": ORDER["items"][::-1]}]),
    (
        "keys are sorted by code point, not by UTF-16 unit",
        [dict_((str_("\U0001f600"), int_(1)), (str_("\uffff"), int_(2)), (str_("a"), int_(3)), (str_("B"), int_(4)))],
    ),
    ("a key before its own prolongation", [dict_((str_('a"'), int_(1)), (str_("a"), int_(2)), (str_("a!"), int_(3)))]),
    ("a str key", [dict_((str_("1"), str_("x")))]),
    ("an int key", [dict_((int_(1), str_("x")))]),
    (
        "keys of several types",
        [
            dict_((int_(10), str_("a")), (int_(9), str_("b")), (str_("9"), str_("c")), (NONE, str_("d"))),
            dict_((NONE, str_("d")), (str_("9"), str_("c")), (int_(9), str_("b")), (int_(10), str_("a"))),
        ],
    ),
    ("a dict that looks like a tag", [dict_((str_("!set"), list_(int_(1))))]),
    ("the empty set", [set_()]),
    ("the order of a set does not count", [set_(int_(10), int_(9), str_("9")), set_(str_("9"), int_(9), int_(10))]),
    ("a decimal one", [plain("decimal", "1"), plain("decimal", "1.0"), plain("decimal", "1.00")]),
    ("a decimal hundred", [plain("decimal", "100"), plain("decimal", "1E+2"), plain("decimal", "100.0")]),
    ("a decimal fraction", [plain("decimal", "-0.0150"), plain("decimal", "-0.015"), plain("decimal", "-1.5E-2")]),
    ("a decimal zero", [plain("decimal", "0"), plain("decimal", "0.00"), plain("decimal", "0E+5")]),
    ("a decimal negative zero", [plain("decimal", "-0"), plain("decimal", "-0.0")]),
    *((f"the decimal {name}", [plain("decimal", name)]) for name in ("NaN", "sNaN", "Infinity", "-Infinity")),
    ("a fraction", [plain("fraction", "-1/3")]),
    ("a whole fraction", [plain("fraction", "2/1")]),
    ("a UUID", [plain("uuid", "12345678-1234-5678-1234-567812345678")]),
    ("a POSIX path", [plain("path", "/srv/a b/é")]),
    ("a relative path", [plain("path", "a/b")]),
    ("a Windows path", [plain("windows path", "C:\\a\\b")]),
    ("a date", [plain("date", "2024-02-29")]),
    ("a date's text", [str_("2024-02-29")]),
    ("an early date", [plain("date", "0001-01-01")]),
    ("a naive datetime", [plain("datetime", "2024-10-27T02:30:00.000000")]),
    ("the second 02:30 of that night", [plain("datetime", "2024-10-27T02:30:00.000000", fold=1)]),
    (
        "one instant in three time zones",
        [
            plain("datetime", "2024-10-27T12:30:00.250000", offset_microseconds="0"),
            plain("datetime", "2024-10-27T13:30:00.250000", offset_microseconds=str(_HOUR)),
            plain("datetime", "2024-10-27T07:00:00.250000", offset_microseconds=str(-11 * _HOUR // 2)),
        ],
    ),
    ("an instant before 1970", [plain("datetime", "1969-12-31T23:59:59.999999", offset_microseconds="0")]),
    (
        "an instant before year 1",
        [plain("datetime", "0001-01-01T00:00:00.000000", offset_microseconds=str(14 * _HOUR))],
    ),
    ("a naive time", [plain("time", "23:59:59.999999")]),
    ("a naive time, the second time", [plain("time", "02:30:00.000000", fold=1)]),
    (
        "one time in two time zones",
        [
            plain("time", "12:00:00.000000", offset_microseconds="0"),
            plain("time", "13:00:00.000000", offset_microseconds=str(_HOUR)),
        ],
    ),
    ("a time of the day before", [plain("time", "00:30:00.000000", offset_microseconds=str(_HOUR))]),
    ("a duration", [{"type": "duration", "microseconds": "90000000"}]),
    ("a negative duration", [{"type": "duration", "microseconds": "-1"}]),
    ("an offset from UTC", [{"type": "offset", "microseconds": str(-_HOUR)}]),
    ("a time zone", [plain("zone", "Europe/Berlin")]),
    ("an instance with fields", [class_("Point", dict_((str_("x"), int_(1)), (str_("y"), int_(2))))]),
    ("a dict with the same fields", [dict_((str_("x"), int_(1)), (str_("y"), int_(2)))]),
    ("a member of an Enum", [class_("Color", str_("RED"))]),
    ("members of a Flag", [class_("Access", int_(5))]),
    ("a class inside a class", [class_("Outer.Inner", dict_())]),
    (
        "an order with everything",
        [
            dict_(
                (str_("at"), plain("datetime", "2024-10-27T12:30:00.250000", offset_microseconds="0")),
                (str_("total"), plain("decimal", "19.90")),
                (str_("lines"), list_(class_("Line", dict_((str_("sku"), str_("A-1")), (str_("n"), int_(2)))))),
                (str_("tags"), set_(str_("new"), str_("gift"))),
            )
        ],
    ),
]


def vectors() -> dict[str, Any]:
    """Return the content of the published file."""
    return {
        "about": (
            "Fingerprints of idempo, as docs/fingerprints.md specifies them. Each of the values has the text and the "
            "fingerprints beside it, in hexadecimal. Where a text holds lone surrogates, its bytes stand in its place."
        ),
        "secret_hex": SECRET.hex(),
        "vectors": [_vector(about, values) for about, values in VALUES],
    }


def _vector(about: str, values: list[Description]) -> dict[str, Any]:
    text = text_of(values[0])
    lone = any(0xD800 <= ord(character) < 0xE000 for character in text)
    return {
        "about": about,
        "values": values,
        **({"bytes_hex": data_of(text).hex()} if lone else {"text": text}),
        "fingerprint": fingerprint_of(text).hex(),
        "keyed_fingerprint": keyed_fingerprint_of(text, SECRET).hex(),
    }


def file_text() -> str:
    """Return the published file as it is written."""
    return json.dumps(vectors(), indent=1) + "\n"


if __name__ == "__main__":
    VECTORS.write_text(file_text(), encoding="ascii")
