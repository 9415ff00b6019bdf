r"""A key's text: different for different keys, and short enough for every store.

- a str is itself, with a backslash before it where it begins with ``(`` or a backslash; an int and a UUID are their
  usual text, an Enum is its value's; bytes are ``\x`` and hexadecimal digits;
- a tuple is its parts between parentheses, joined by commas. In a part that is no tuple and no bytes, each backslash,
  comma and parenthesis has a backslash before it.
"""

from __future__ import annotations

import enum
import re
import sys
from typing import Final, NoReturn

from idempo.errors import InvalidKeyError

LONGEST_KEY: Final = 255
_MAX_PARTS: Final = (LONGEST_KEY - 1) // 2  # n parts need n characters, n - 1 commas and two parentheses
_MAX_BITS: Final = 3 * LONGEST_KEY + 100  # more bits are more than 255 digits; str() of a huge int is slow or refused
_SPECIAL: Final = re.compile(r"[\\,()]").search
_IN_TUPLE: Final = str.maketrans({character: "\\" + character for character in "\\,()"})


def key_text(value: object, what: str = "the key") -> str:
    """Return a key's text: 1 to 255 characters, different for different keys.

    An int and its decimal text are one key, as are a UUID and its text; an Enum counts by its value. Tuples may be
    nested.

    Args:
        value: A str, int, UUID, Enum, bytes, or a tuple of these.
        what: What the value is called, for the error's text.

    Raises:
        InvalidKeyError: The value is None, empty, too long, of another type (bool and float included), or text that
            is no Unicode.
    """
    if type(value) is str and value.isascii() and 0 < len(value) <= LONGEST_KEY and value[0] not in "(\\":
        return value
    if isinstance(value, enum.Enum):
        return key_text(value.value, what)
    if isinstance(value, tuple):
        return checked_text(_tuple_text(value, what, 1), what)
    if isinstance(value, bytes):
        return checked_text(_bytes_text(value, what), what)
    text = _plain_text(value, what)
    return checked_text("\\" + text if text[0] in "(\\" else text, what)


def part_text(value: object, what: str, depth: int = 1) -> str:
    """Return the text of one part of a tuple, escaped so that no part can pass for two, or for the end of its tuple."""
    if type(value) is str and value.isascii() and 0 < len(value) <= LONGEST_KEY:
        return value.translate(_IN_TUPLE) if _SPECIAL(value) else value
    if isinstance(value, enum.Enum):
        return part_text(value.value, what, depth)
    if isinstance(value, tuple):
        return _tuple_text(value, what, depth + 1)
    if isinstance(value, bytes):
        return _bytes_text(value, what)
    return _plain_text(value, what).translate(_IN_TUPLE)


def _tuple_text(value: tuple[object, ...], what: str, depth: int) -> str:
    if not value:
        raise InvalidKeyError(f"{what} is or holds an empty tuple: every part of a key must name something")
    if len(value) > _MAX_PARTS or depth > _MAX_PARTS:
        _refuse_length(what)
    return "(" + ",".join([part_text(part, what, depth) for part in value]) + ")"


def _bytes_text(value: bytes, what: str) -> str:
    if not value:
        _refuse_empty(what)
    if len(value) > LONGEST_KEY:
        _refuse_length(what)
    return "\\x" + value.hex()


def _plain_text(value: object, what: str) -> str:
    """Return the text of a value that has a usual one. Subclasses count as their base, whatever their ``__str__``."""
    if isinstance(value, str):
        if not value:
            _refuse_empty(what)
        if len(value) > LONGEST_KEY:
            _refuse_length(what)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise InvalidKeyError(
                    f"{what} is text that is no Unicode ({error.reason} at {error.start}), which stores cannot keep: "
                    "give the bytes that it was read from"
                ) from None
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > _MAX_BITS:
            _refuse_length(what)
        return int.__repr__(value)
    # Whoever has a UUID has imported its module; whoever has none is spared the import.
    uuid = sys.modules.get("uuid")
    if uuid is not None and isinstance(value, uuid.UUID):
        text: str = uuid.UUID.__str__(value)
        return text
    if value is None:
        raise InvalidKeyError(f"{what} is None: give every operation a key of its own")
    raise InvalidKeyError(
        f"{what} is or holds a value of type {type(value).__qualname__}, which names nothing reliably: "
        "give a str, int, UUID, Enum or bytes, or a tuple of these"
    )


def checked_text(text: str, what: str) -> str:
    """Return the text of a whole key, unless it is too long."""
    if len(text) > LONGEST_KEY:
        _refuse_length(what)
    return text


def _refuse_empty(what: str) -> NoReturn:
    raise InvalidKeyError(f"{what} is or holds an empty text: every part of a key must name something")


def _refuse_length(what: str) -> NoReturn:
    raise InvalidKeyError(f"{what} is longer than {LONGEST_KEY} characters as text: give a shorter one, or its digest")


def check_namespace(namespace: str, *, allow_slash: bool = True) -> str:
    """Return the namespace, if it is a valid one.

    Args:
        namespace: 1 to 255 characters of Unicode text.
        allow_slash: Whether it may hold ``/``. A guard's own may not: the slash ends a guard's part of a namespace.

    Raises:
        TypeError: It is no str.
        ValueError: It is empty, too long, no Unicode, or holds a slash where none is allowed.
    """
    if not isinstance(namespace, str):
        raise TypeError(f"a namespace must be a str, not {type(namespace).__name__}")
    if not 0 < len(namespace) <= LONGEST_KEY:
        raise ValueError(f"a namespace must have 1 to {LONGEST_KEY} characters, not {len(namespace)}")
    if "/" in namespace and not allow_slash:
        raise ValueError(
            f"a guard's namespace must hold no '/', which ends it where functions have theirs: {namespace!r}"
        )
    try:
        namespace.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a namespace must be Unicode text that stores can keep, not {namespace!r}") from None
    return str.__str__(namespace)
