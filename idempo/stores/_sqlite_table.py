"""The table that SqliteStore keeps its records in: its SQL, and the way between rows and records."""

from __future__ import annotations

import os
import re
import sqlite3
import struct
from typing import Any, Final, TypeAlias
from zlib import crc32

from idempo.errors import RecordError
from idempo.records import Key, Record, State

FORMAT: Final = 1
"""The version written into every row. A row with another is not read, and not touched."""

MICROSECONDS: Final = 1_000_000
_LAST_INSTANT: Final = 1 << 62  # well inside SQLite's 64 bits, however long a ttl is
_NUMBERS: Final = struct.Struct("<7q")
_STATES: Final = {state.value: state for state in State}
_STATE_NAMES: Final = {state: state.value for state in State}
_NAME: Final = re.compile(r"(?!sqlite_)[A-Za-z_][A-Za-z0-9_]{0,62}", re.IGNORECASE)

_COLUMNS: Final = (
    "namespace",
    "key",
    "format",
    "state",
    "attempt",
    "token",
    "owner",
    "fingerprint",
    "outcome",
    "lease_ends",
    "expires",
    "revision",
    "checksum",
)

_CREATE_TABLE: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    namespace TEXT NOT NULL COLLATE BINARY,
    key TEXT NOT NULL COLLATE BINARY,
    format INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    token INTEGER NOT NULL,
    owner TEXT NOT NULL,
    fingerprint BLOB,
    outcome BLOB,
    lease_ends INTEGER,  -- microseconds since 1970, as is expires
    expires INTEGER NOT NULL,
    revision INTEGER NOT NULL,  -- of the row: random at first, rises with every write
    checksum INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
)
"""
_CREATE_INDEX: Final = "CREATE INDEX IF NOT EXISTS main.{index} ON {bare} (expires)"

_Text: TypeAlias = str | bytes
_Values: TypeAlias = tuple[int, str, int, int, str, bytes | None, bytes | None, int | None, int]


Row: TypeAlias = tuple[Record | None, int, int]
"""What was read: the record, or None where it has expired; and its token and the row's revision, which together pin
this very state of the row for the write that follows."""


def _bindable(text: str) -> _Text:
    """Return what to bind for a text: itself, or, where UTF-8 cannot hold it, bytes, which equal no text in SQLite."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return text.encode("utf-8", "surrogatepass")
    return text


def _unbound(value: _Text) -> str:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def _checksum(
    key: Key,
    format_: int,
    state: str,
    attempt: int,
    token: int,
    owner: str,
    fingerprint: bytes | None,
    outcome: bytes | None,
    lease_ends: int | None,
    expires: int,
) -> int:
    text = f"{key.namespace}\0{key.value}\0{state}\0{owner}\0".encode("utf-8", "surrogatepass")
    numbers = _NUMBERS.pack(
        format_,
        attempt,
        token,
        -1 if lease_ends is None else lease_ends,
        expires,
        -1 if fingerprint is None else len(fingerprint),
        -1 if outcome is None else len(outcome),
    )
    return crc32(b"".join((text, numbers, fingerprint or b"", outcome or b"")))


def instant(now: int, seconds: float) -> int:
    """Return the microsecond that lies so many seconds after ``now``."""
    return now + min(round(seconds * MICROSECONDS), _LAST_INSTANT - now)


class Table:
    """A table by its name.

    Every method is given the connection to use, whose rows and texts come as Python's own tuples and str; none begins
    or ends a transaction.

    Args:
        name: The table's name: ASCII letters, digits and underscores.

    Raises:
        TypeError: The name is no text.
        ValueError: The name is not of that form, or is one that SQLite keeps for itself.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"table must be a name, not {type(name).__name__}")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"table must be a name of at most 63 ASCII letters, digits and underscores, "
                f"not beginning with a digit or with sqlite_, not {name!r}"
            )
        self.name = name
        table = f'main."{name}"'
        where = "WHERE namespace = ? AND key = ?"
        values = ", ".join(_COLUMNS[2:])
        self._create = (
            _CREATE_TABLE.format(table=table),
            _CREATE_INDEX.format(index=f'"{name}_expires"', bare=f'"{name}"'),
        )
        self._lock = f"DELETE FROM {table} WHERE 0"
        self._select = f"SELECT {values} FROM {table} {where}"
        self._insert = (
            f"INSERT INTO {table} ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
            f"ON CONFLICT (namespace, key) DO NOTHING"
        )
        self._update = (
            f"UPDATE {table} SET ({values}) = ({', '.join('?' * len(_COLUMNS[2:]))}) "
            f"{where} AND token = ? AND revision = ?"
        )
        self._discard = f"DELETE FROM {table} {where}"
        self._delete = f"DELETE FROM {table} {where} AND token = ? AND revision = ?"
        self._scan = (
            f"SELECT key, {values} FROM {table} WHERE namespace = ? AND key > ? AND expires > ? ORDER BY key LIMIT ?"
        )
        in_batch = f"DELETE FROM {table} WHERE namespace = ? AND key IN (SELECT key FROM {table} WHERE namespace = ?"
        self._purge_live = f"{in_batch} AND expires > ? LIMIT ?)"
        self._purge_expired = f"{in_batch} AND expires <= ? LIMIT ?)"
        self._newest_of_namespace = f"SELECT max(token) FROM {table} WHERE namespace = ?"
        expired = f"FROM {table} WHERE expires <= ? AND format = {FORMAT} ORDER BY expires LIMIT ?"
        self._sweep = f"DELETE FROM {table} WHERE (namespace, key) IN (SELECT namespace, key {expired})"
        self._newest_expired = f"SELECT max(token) FROM (SELECT token {expired})"

    def exists(self, connection: sqlite3.Connection) -> bool:
        """Say whether the table is there.

        Raises:
            RecordError: Something of that name is, and it is not of this version's making.
        """
        # The pragma and not its function form, which would need a name that may be bound, and knows no "main" of it.
        found = tuple(row[1] for row in connection.execute(f'PRAGMA main.table_info("{self.name}")').fetchall())
        if found and found != _COLUMNS:
            raise RecordError(
                f"table {self.name} was not made by idempo, or by another version of it: it has the columns "
                f"{', '.join(map(str, found))} (a SqlAlchemyStore's in the same file is another: give each a table=)"
            )
        return bool(found)

    def create(self, connection: sqlite3.Connection) -> None:
        """Make the table and its index, where they are not there. The caller's transaction makes it one step."""
        for statement in self._create:
            connection.execute(statement)

    def lock(self, connection: sqlite3.Connection) -> None:
        """Take SQLite's write lock for the transaction that is open, before anything is read in it."""
        connection.execute(self._lock)

    def read(self, connection: sqlite3.Connection, key: Key, now: int) -> Row | None:
        """Return the key's row, or None.

        Raises:
            RecordError: The row is damaged, or of another version.
        """
        try:
            rows = connection.execute(self._select, (key.namespace, key.value)).fetchall()
        except UnicodeEncodeError:
            rows = connection.execute(self._select, (_bindable(key.namespace), _bindable(key.value))).fetchall()
        return self._decoded(key, rows[0], now) if rows else None

    def write(self, connection: sqlite3.Connection, key: Key, now: int, record: Record, found: Row | None) -> bool:
        """Put the record in place of what `read` found, and say whether that still stood."""
        values: _Values = (
            FORMAT,
            _STATE_NAMES[record.state],
            record.attempt,
            record.token,
            record.owner,
            record.fingerprint,
            record.outcome,
            None if record.lease_left is None else instant(now, record.lease_left),
            instant(now, record.expires_in),
        )
        name = (_bindable(key.namespace), _bindable(key.value))
        checksum = _checksum(key, *values)
        if found is None:
            # Random, or a row that was removed and made anew while the clock stood could pass for the one before: two
            # processes then give one token. The system's own, since programs may seed Python's alike.
            revision = int.from_bytes(os.urandom(8), "big") >> 2  # 62 of the 63 bits: it is to rise
            cursor = connection.execute(self._insert, (*name, *values, revision, checksum))
        else:
            _, token, revision = found
            cursor = connection.execute(self._update, (*values, revision + 1, checksum, *name, token, revision))
        return cursor.rowcount == 1

    def remove(self, connection: sqlite3.Connection, key: Key, found: Row) -> bool:
        """Remove the row that `read` found, and say whether it still stood."""
        name = (_bindable(key.namespace), _bindable(key.value))
        _, token, revision = found
        return connection.execute(self._delete, (*name, token, revision)).rowcount == 1

    def discard(self, connection: sqlite3.Connection, key: Key) -> bool:
        """Remove the key's row, whatever it holds, and say whether there was one."""
        name = (_bindable(key.namespace), _bindable(key.value))
        return connection.execute(self._discard, name).rowcount == 1

    def page(
        self, connection: sqlite3.Connection, namespace: str, after: _Text, now: int, limit: int
    ) -> list[tuple[_Text, Key, Record]]:
        """Return live records of a namespace whose key comes after ``after``, each with what to pass for the next."""
        rows = connection.execute(self._scan, (_bindable(namespace), after, now, limit)).fetchall()
        page = []
        for bound, *values in rows:
            key = Key(namespace, _unbound(bound))
            record = self._decoded(key, tuple(values), now)[0]
            if record is not None:  # pragma: no branch  # the statement asked for live ones only
                page.append((bound, key, record))
        return page

    def purge_live(self, connection: sqlite3.Connection, namespace: str, now: int, limit: int) -> int:
        """Remove at most ``limit`` live rows of a namespace, and return how many."""
        return self._purge(connection, self._purge_live, namespace, now, limit)

    def purge_expired(self, connection: sqlite3.Connection, namespace: str, now: int, limit: int) -> int:
        """Remove at most ``limit`` expired rows of a namespace, and return how many."""
        return self._purge(connection, self._purge_expired, namespace, now, limit)

    def _purge(self, connection: sqlite3.Connection, statement: str, namespace: str, now: int, limit: int) -> int:
        name = _bindable(namespace)
        return connection.execute(statement, (name, name, now, limit)).rowcount

    def newest_of_namespace(self, connection: sqlite3.Connection, namespace: str) -> int:
        """Return the greatest token of a namespace, or 0."""
        rows = connection.execute(self._newest_of_namespace, (_bindable(namespace),)).fetchall()
        return rows[0][0] or 0

    def newest_expired(self, connection: sqlite3.Connection, now: int, limit: int) -> int:
        """Return the greatest token of what `sweep` would remove, or 0."""
        rows = connection.execute(self._newest_expired, (now, limit)).fetchall()
        return rows[0][0] or 0

    def sweep(self, connection: sqlite3.Connection, now: int, limit: int) -> int:
        """Remove at most ``limit`` expired rows, and return how many."""
        return connection.execute(self._sweep, (now, limit)).rowcount

    def _decoded(self, key: Key, row: tuple[Any, ...], now: int) -> Row:
        format_, name, attempt, token, owner, fingerprint, outcome, lease_ends, expires, revision, checksum = row
        if format_ != FORMAT:
            raise RecordError(
                f"the record of {key.value!r} in table {self.name} is of format {format_!r}; this version of idempo "
                f"reads format {FORMAT} only",
                key=key,
            )
        try:
            intact = checksum == _checksum(
                key, format_, name, attempt, token, owner, fingerprint, outcome, lease_ends, expires
            )
        except (TypeError, struct.error):  # text where a number belongs, and the like
            intact = False
        if not intact:
            raise RecordError(f"the record of {key.value!r} in table {self.name} is damaged", key=key)
        if expires <= now:
            return None, token, revision
        lease_left = None if lease_ends is None else (lease_ends - now) / MICROSECONDS
        left = (expires - now) / MICROSECONDS
        return Record(_STATES[name], fingerprint, attempt, token, owner, outcome, lease_left, left), token, revision
