"""Rows of an SQL table and the records that they stand for: names, the checksum, and the way back.

Knows no database and no client library.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import attrs

from idempo.errors import RecordError
from idempo.records import Key, Record, State

VERSION: Final = 1
"""The version written into every row. A row with another is not read, and not touched."""

RUNNING: Final = 1
COMPLETED: Final = 2
RELEASED: Final = 3
TAKEN_OVER: Final = 4
"""Running too, by a claim that was acquired over a record in doubt."""
REPEATED: Final = 5
"""Running too, by the same claim, which has been repeated once. Whoever repeats a claim because its answer was lost is
told by this that it took over: the first answer would have said so."""
NUMBERS: Final = {State.RUNNING: RUNNING, State.COMPLETED: COMPLETED, State.RELEASED: RELEASED}
_STATES: Final = {number: state for state, number in NUMBERS.items()} | {
    TAKEN_OVER: State.RUNNING,
    REPEATED: State.RUNNING,
}

MICROSECONDS: Final = 1_000_000
LONGEST: Final = 1 << 61
"""The longest duration in microseconds: two of them and the clock are still within 64 bits."""

Row: TypeAlias = Sequence[Any]
"""The columns `READ`, in that order, as a driver gives them."""

READ: Final = (
    "version",
    "state",
    "attempt",
    "token",
    "owner",
    "fingerprint",
    "outcome",
    "lease_ends",
    "expires",
    "checksum",
)
CHECKED: Final = (*READ[:-1], "id")
"""What the checksum is over. The id stands for namespace and value, which are there to be listed by."""
COLUMNS: Final = ("id", "namespace", "value", *READ)
"""The table's."""


@attrs.frozen(slots=False)  # made for every call, and in half the time
class Name:
    """A key as the table has it.

    Attributes:
        id: What rows are found by: 16 bytes for the namespace and 32 for the value, so that those of a namespace lie
            together, and any two texts are two keys whatever the database thinks of case, accents and spaces.
        namespace: The namespace's UTF-8, lone surrogates too.
        value: The value's.
    """

    id: bytes
    namespace: bytes
    value: bytes

    @property
    def number(self) -> int:
        """A number of 64 bits, with sign, for locks that go by numbers."""
        return int.from_bytes(self.id[:8], "big", signed=True) ^ int.from_bytes(self.id[16:24], "big", signed=True)


def encoded(text: str) -> bytes:
    """Return any text as bytes."""
    return text.encode("utf-8", "surrogatepass")


def text_of(data: bytes) -> str:
    """Return what `encoded` was given."""
    return data.decode("utf-8", "surrogatepass")


@lru_cache(maxsize=256)
def prefix_of(namespace: str) -> tuple[bytes, bytes]:
    """Return how the ids of a namespace begin, and its bytes."""
    data = encoded(namespace)
    return hashlib.sha256(data).digest()[:16], data


def named(key: Key) -> Name:
    """Return the key as the table has it."""
    prefix, namespace = prefix_of(key.namespace)
    value = encoded(key.value)
    return Name(prefix + hashlib.sha256(value).digest(), namespace, value)


# PostgreSQL's record_send(): the number of columns, then of each its type, its length and itself, all big-endian
# (src/backend/utils/adt/rowtypes.c). A server can take it in one step, and any other can build it.
_INT2, _INT4, _INT8, _BYTEA = 21, 23, 20, 17
_NUMBERS: Final = struct.Struct(">i" + "iih" * 2 + "iii" + "iiq")
_LENGTH: Final = struct.Struct(">ii")
_INSTANT: Final = struct.Struct(">iiq")
_NULL_INSTANT: Final = _LENGTH.pack(_INT8, -1)
_NULL_BYTES: Final = _LENGTH.pack(_BYTEA, -1)


def checksum(
    name: Name,
    version: int,
    state: int,
    attempt: int,
    token: int,
    owner: bytes,
    fingerprint: bytes | None,
    outcome: bytes | None,
    lease_ends: int | None,
    expires: int,
) -> bytes:
    """Return the checksum of a row: SHA-256 over the columns `CHECKED`, as PostgreSQL sends them."""
    return hashlib.sha256(
        b"".join(
            (
                _NUMBERS.pack(10, _INT2, 2, version, _INT2, 2, state, _INT4, 4, attempt, _INT8, 8, token),
                _LENGTH.pack(_BYTEA, len(owner)),
                owner,
                _NULL_BYTES if fingerprint is None else _LENGTH.pack(_BYTEA, len(fingerprint)) + fingerprint,
                _NULL_BYTES if outcome is None else _LENGTH.pack(_BYTEA, len(outcome)) + outcome,
                _NULL_INSTANT if lease_ends is None else _INSTANT.pack(_INT8, 8, lease_ends),
                _INSTANT.pack(_INT8, 8, expires),
                _LENGTH.pack(_BYTEA, len(name.id)),
                name.id,
            )
        )
    ).digest()


def checked(key: Key, name: Name, row: Row) -> None:
    """Find out whether a row is what idempo wrote for this key.

    Raises:
        RecordError: It is of another version, or damaged.
    """
    version = row[0]
    if version != VERSION:
        raise RecordError(
            f"the record of {key.value!r} is of version {version!r}; this idempo reads version {VERSION} only", key=key
        )
    try:
        intact = row[9] == checksum(name, *row[:9]) and row[1] in _STATES
    except (TypeError, struct.error):  # nothing where something belongs, and the like
        intact = False
    if not intact:
        raise RecordError(f"the record of {key.value!r} is damaged", key=key)


def decoded(key: Key, name: Name, row: Row, now: int) -> Record | None:
    """Return the record of a row, or None where it has expired.

    Raises:
        RecordError: It is of another version, or damaged.
    """
    checked(key, name, row)
    return None if row[8] <= now else record_of(row, now)


def record_of(row: Row, now: int) -> Record:
    """Return the record of a row that is known to be intact."""
    _, state, attempt, token, owner, fingerprint, outcome, lease_ends, expires, _ = row
    return Record(
        _STATES[state],
        fingerprint,
        attempt,
        token,
        text_of(owner),
        outcome,
        None if lease_ends is None else (lease_ends - now) / MICROSECONDS,
        (expires - now) / MICROSECONDS,
    )


def found_at(key: Key, name: Name, row: Row) -> tuple[Record | None, int]:
    """Return the record of a row that begins with the clock, and its token, also where it has expired.

    A row of nothing but the clock is no record, with token 0.

    Raises:
        RecordError: It is of another version, or damaged.
    """
    now, *columns = row
    if columns[0] is None:
        return None, 0
    return decoded(key, name, columns, now), columns[3]


def spelled_as(namespace: str, id_: bytes, space: bytes, value: bytes) -> tuple[Key, Name]:
    """Return the key of a row that was found by its namespace alone.

    Raises:
        RecordError: Its columns contradict each other.
    """
    prefix, spelled = prefix_of(namespace)
    if space != spelled or prefix + hashlib.sha256(value).digest() != id_:
        raise RecordError(f"a record of namespace {namespace!r} is damaged")
    return Key(namespace, text_of(value)), Name(id_, space, value)
