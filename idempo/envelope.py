r"""The small frame around every stored outcome: whose it is, which kind of end, and whether it arrived whole.

Layout, big-endian: ``b"\xd6i"``, one byte of version, one letter of `Kind`, four bytes of the body's length, four of
CRC-32 over the first four and the body, then the body. A checksum finds damage, not forgery: that is a seal's
work.
"""

from __future__ import annotations

import enum
import struct
from typing import Final
from zlib import crc32

from idempo.errors import RecordError


class Kind(enum.Enum):
    """How an operation ended. The value is the letter that is written down."""

    VALUE = b"V"
    """It returned; the body is the value."""
    ERROR = b"E"
    """It raised a declared error; the body is that error."""
    LOST = b"L"
    """It ran, but its end could not be kept; the body says why."""

    __hash__ = object.__hash__  # an Enum's own is written in Python, and would be half the cost of `pack`


_MAGIC: Final = b"\xd6i"  # the first byte opens no UTF-8 text before an ASCII letter, no JSON and no pickle
_VERSION: Final = 1
_FRAME: Final = struct.Struct(">4sII")
_SIZE: Final = _FRAME.size
_frame: Final = _FRAME.pack
_unframe: Final = _FRAME.unpack_from

# The head of an envelope, and the checksum over it from which that over the body goes on.
_HEADS: Final = {
    kind: (head, crc32(head)) for kind, head in ((kind, _MAGIC + bytes([_VERSION]) + kind.value) for kind in Kind)
}
_KINDS: Final = {head: (kind, start) for kind, (head, start) in _HEADS.items()}


def pack(kind: Kind, body: bytes) -> bytes:
    """Return the body in its envelope."""
    head, start = _HEADS[kind]
    return _frame(head, len(body), crc32(body, start)) + body


def unpack(data: bytes) -> tuple[Kind, bytes]:
    """Return the kind and the body of what `pack` made.

    Raises:
        RecordError: The bytes are not idempo's, of an unknown version, cut short, or altered; the text says which.
    """
    body = data[_SIZE:]
    try:
        head, length, checksum = _unframe(data)
        kind, start = _KINDS[head]
    except (struct.error, KeyError):
        raise RecordError(_what_is_wrong_with(data)) from None
    if length != len(body) or checksum != crc32(body, start):
        raise RecordError(_what_is_wrong_with(data))
    return kind, body


def _what_is_wrong_with(data: bytes) -> str:
    if not data.startswith(_MAGIC):
        return (
            "the outcome was not written by idempo, or is sealed and read without its seal, or its first bytes are"
            f" damaged ({len(data)} bytes)"
        )
    if data[2:3] not in (b"", bytes([_VERSION])):
        return f"the outcome is of envelope version {data[2]}; this idempo reads version {_VERSION}: upgrade it"
    if len(data) < _SIZE:
        return f"the outcome is cut short: {len(data)} bytes of a header of {_SIZE}"
    head, length, _ = _FRAME.unpack_from(data)
    if head not in _KINDS:
        return "the outcome is damaged: its kind is unknown"
    if length != len(data) - _SIZE:
        return f"the outcome is cut short or damaged: {len(data) - _SIZE} bytes where {length} were written"
    return "the outcome is damaged: its checksum does not match"
