"""The six methods in the words of MariaDB and MySQL, by the server's clock.

MariaDB answers what stands after an INSERT (RETURNING, since 10.5), so that claim and release are one statement each.
MySQL has no such thing: there, whatever writes is a transaction of several statements (`Stepwise`).

- Where a row is there, assignments are made from left to right, and each sees those before it ("INSERT ... ON DUPLICATE
  KEY UPDATE" and "UPDATE" in both manuals). So the first one writes down, in place of the checksum, what is to be done;
  the others go by it; and the last one makes the checksum anew. Where nothing is to be done, nothing changes.
- No row count is believed but that of an UPDATE or DELETE that cannot fail to change a row which it finds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from idempo.records import Claim, Key, Record, State
from idempo.stores import _transitions
from idempo.stores._sql_records import (
    LONGEST,
    MICROSECONDS,
    READ,
    REPEATED,
    TAKEN_OVER,
    VERSION,
    decoded,
    encoded,
    named,
    prefix_of,
    spelled_as,
)
from idempo.stores._sql_scripts import BATCH, ROUNDS, AnswerLost, Script, Statements, outrun
from idempo.stores._sql_stepwise import Stepwise, Words

# SYSDATE() is the time now, and not that of the statement's begin, but in the session's time zone: when summer time
# ends, an hour comes twice. UTC_TIMESTAMP() knows no zone, and of SYSDATE() only what has passed since is taken.
# (A server with --sysdate-is-now takes the begin for both: a lease then counts from before its statement had to wait.)
_BEGAN: Final = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
_NOW: Final = f"({_BEGAN} + TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)))"

MYSQL: Final = Words(
    param="%({})s",
    now=_NOW,
    lock=" FOR UPDATE",
    begin="START TRANSACTION",
    upsert="ON DUPLICATE KEY UPDATE",
    excluded="VALUES({})",
    changes="SELECT ROW_COUNT()",
    delete_some="DELETE FROM {table} WHERE {which} LIMIT {limit}",
)

_EXPIRED, _OWN, _FREE, _DOUBT = "x'01'", "x'02'", "x'03'", "x'04'"
_DOING: Final = "LENGTH(checksum) = 1"
_RUNS: Final = f"state IN (1, {TAKEN_OVER}, {REPEATED})"
_HELD: Final = f"{_RUNS} AND owner = %(owner)s"
_ROW: Final = ", ".join(READ)


def _number(column: str, size: int) -> str:
    return f"UNHEX(LPAD(HEX({column}), {2 * size}, '0'))"


def _bytes(column: str) -> str:
    return f"x'00000011', IF({column} IS NULL, x'FFFFFFFF', CONCAT({_number(f'LENGTH({column})', 4)}, {column}))"


def _checksum(**given: str) -> str:
    """The checksum of `_sql_records.checksum`, over the columns, unless expressions for them are given."""
    c = {name: given.get(name, name) for name in ("id", *READ)}
    instant = "x'00000014', IF({0} IS NULL, x'FFFFFFFF', CONCAT(x'00000008', {1}))"
    parts = [
        "x'0000000A'",
        *(f"x'0000001500000002', {_number(c[name], 2)}" for name in ("version", "state")),
        f"x'0000001700000004', {_number(c['attempt'], 4)}",
        f"x'0000001400000008', {_number(c['token'], 8)}",
        *(_bytes(c[name]) for name in ("owner", "fingerprint", "outcome")),
        *(instant.format(c[name], _number(c[name], 8)) for name in ("lease_ends", "expires")),
        _bytes(c["id"]),
    ]
    return f"UNHEX(SHA2(CONCAT({', '.join(parts)}), 256))"


_INTACT: Final = f"version = {VERSION} AND checksum = {_checksum()}"

# Two of MariaDB's modes assign from the columns as they were ("SQL_MODE"). The others stay: the driver goes by them.
_IN_ORDER: Final = (
    "SET STATEMENT sql_mode = REPLACE(REPLACE(@@sql_mode, 'SIMULTANEOUS_ASSIGNMENT', ''), 'ORACLE', '') FOR "
)


class MariaDB:
    """`Statements` for one table.

    Args:
        table: The table's name, as it stands in a statement.
        any_mode: Whether the session's sql_mode is not the store's own, but the caller's.
    """

    def __init__(self, table: str, *, any_mode: bool = False) -> None:
        self._table = table
        in_order = _IN_ORDER if any_mode else ""
        self._read = f"SELECT {_NOW}, {_ROW} FROM {table} WHERE id = %(id)s"
        matches = "(fingerprint IS NULL OR COALESCE(%(fingerprint)s, fingerprint) = fingerprint)"
        self._claim = in_order + self._writing(
            new={"state": "1", "attempt": "1", "fingerprint": "%(fingerprint)s", "lease_ends": "n.clock + %(lease)s"},
            expires="%(lease)s + %(ttl)s",
            turns=f"WHEN {_HELD} THEN {_OWN} WHEN state = 3 AND owner <> %(owner)s THEN {_FREE}"
            f" WHEN {_RUNS} AND lease_ends <= {_NOW} AND (%(any)s OR owner = %(probed)s)"
            f" AND {matches} THEN {_DOUBT}",
            changed={
                "fingerprint": f"CASE checksum WHEN {_EXPIRED} THEN %(fingerprint)s WHEN {_OWN} THEN fingerprint"
                " ELSE COALESCE(%(fingerprint)s, fingerprint) END",
                "attempt": f"CASE checksum WHEN {_EXPIRED} THEN 1 WHEN {_OWN} THEN attempt ELSE attempt + 1 END",
                "lease_ends": "expires - %(ttl)s",
                "token": f"IF(checksum = {_OWN}, token, GREATEST(token + 1, lease_ends - %(lease)s))",
                "state": f"CASE WHEN checksum = {_DOUBT} THEN {TAKEN_OVER}"
                f" WHEN checksum = {_OWN} AND state = {TAKEN_OVER} THEN {REPEATED} ELSE 1 END",
            },
        )
        self._release = in_order + self._writing(
            new={"state": "3", "attempt": "0", "fingerprint": "NULL", "lease_ends": "NULL"},
            expires="%(ttl)s",
            turns=f"WHEN {_HELD} THEN {_OWN}",
            changed={
                "fingerprint": f"IF(checksum = {_OWN}, fingerprint, NULL)",
                "attempt": f"IF(checksum = {_OWN}, attempt, 0)",
                "lease_ends": "NULL",
                "token": f"IF(checksum = {_OWN}, token, GREATEST(token + 1, expires - %(ttl)s))",
                "state": "3",
            },
        )
        holding = f"WHERE id = %(id)s AND {_HELD} AND expires > {_NOW} AND {_INTACT}"
        self._complete = (
            f"{in_order}UPDATE {table} SET state = 2, outcome = %(outcome)s, lease_ends = NULL,"
            f" expires = {_NOW} + %(ttl)s, checksum = {_checksum()} {holding}"
        )
        self._renew = (
            f"{in_order}UPDATE {table} SET expires = {_NOW} + %(lease)s + %(ttl)s, lease_ends = expires - %(ttl)s,"
            f" checksum = {_checksum()} {holding}"
        )
        self._delete = f"DELETE FROM {table} WHERE id = %(id)s AND (NOT ({_INTACT}) OR expires > {_NOW})"
        self._delete_own = (
            f"DELETE FROM {table} WHERE id = %(id)s AND owner = %(owner)s AND expires > {_NOW} AND {_INTACT}"
        )
        within = "id > %(after)s AND id <= %(last)s"
        self._page = (
            f"SELECT id, namespace, value, {_NOW}, {_ROW} FROM {table} WHERE {within} ORDER BY id LIMIT {BATCH}"
        )
        self._purge = f"DELETE FROM {table} WHERE {within} ORDER BY id LIMIT {BATCH} RETURNING expires > {_NOW}"
        # By the statement's begin: for a time that may change meanwhile no index is used.
        self._sweep = f"DELETE FROM {table} WHERE expires <= {_BEGAN} AND {_INTACT} ORDER BY expires LIMIT %(limit)s"

    def _writing(self, *, new: dict[str, str], expires: str, turns: str, changed: dict[str, str]) -> str:
        """Make a row where there is none, or change it by what the first assignment finds."""
        new = {
            "namespace": "%(namespace)s",
            "value": "%(value)s",
            "version": str(VERSION),
            "token": "n.clock",
            "owner": "%(owner)s",
            "outcome": "NULL",
            "expires": f"n.clock + {expires}",
            **new,
        }
        new["checksum"] = _checksum(id="%(id)s", **new)
        done = {
            "fingerprint": changed["fingerprint"],
            "attempt": changed["attempt"],
            "expires": f"{_NOW} + {expires}",
            "lease_ends": changed["lease_ends"],
            "token": changed["token"],
            "state": changed["state"],
            "owner": "%(owner)s",
            "outcome": "NULL",
            "checksum": _checksum(),
        }
        turn = (
            f"CASE WHEN NOT ({_INTACT}) THEN checksum WHEN expires <= {_NOW} THEN {_EXPIRED} {turns} ELSE checksum END"
        )
        # LIMIT keeps the clock a table of its own, which is read once.
        return (
            f"INSERT INTO {self._table} (id, {', '.join(new)})"
            f" SELECT %(id)s, {', '.join(new.values())} FROM (SELECT {_NOW} AS clock LIMIT 1) n"
            f" ON DUPLICATE KEY UPDATE checksum = {turn}, "
            + ", ".join(f"{name} = IF({_DOING}, {value}, {name})" for name, value in done.items())
            + f" RETURNING {_NOW}, {_ROW}"
        )

    def claim(
        self, key: Key, owner: str, fingerprint: bytes | None, lease: float, ttl: float, take_over: bool | str
    ) -> Script[Claim]:
        """`Store.claim`."""
        name = named(key)
        params = {
            "id": name.id,
            "namespace": name.namespace,
            "value": name.value,
            "owner": encoded(owner),
            "fingerprint": fingerprint,
            "lease": _microseconds(lease),
            "ttl": _microseconds(ttl),
            "any": take_over is True,
            "probed": encoded(take_over) if isinstance(take_over, str) else b"",
        }
        took_over = repeated = False
        for tries in ROUNDS:
            try:
                rows = yield self._claim, params
            except AnswerLost:
                repeated = True
                continue
            now, *row = rows[0]
            record = decoded(key, name, row, now)
            if record is None:
                continue  # it expired meanwhile
            if record.state is not State.RUNNING or record.owner != owner:
                return Claim(False, record, False)
            took_over = took_over or row[1] == TAKEN_OVER or (repeated and row[1] == REPEATED)
            assert record.lease_left is not None
            # What an INSERT had to wait for was rolled back, and its clock was read before: it is made anew.
            if record.lease_left > lease / 2 or tries > _LATE:
                return Claim(True, record, took_over)
        raise outrun(key)

    def complete(self, key: Key, owner: str, outcome: bytes, ttl: float) -> Script[bool]:
        """`Store.complete`."""
        params = {"outcome": outcome, "ttl": _microseconds(ttl)}
        return self._update(self._complete, key, owner, params, State.COMPLETED)

    def renew(self, key: Key, owner: str, lease: float, ttl: float) -> Script[bool]:
        """`Store.renew`."""
        params = {"lease": _microseconds(lease), "ttl": _microseconds(ttl)}
        return self._update(self._renew, key, owner, params, None)

    def _update(
        self, statement: str, key: Key, owner: str, params: dict[str, Any], repeated: State | None
    ) -> Script[bool]:
        name = named(key)
        params |= {"id": name.id, "owner": encoded(owner)}
        for _ in ROUNDS:
            rows = yield statement, params
            if rows[0][0]:
                return True
            rows = yield self._read, params
            record = decoded(key, name, rows[0][1:], rows[0][0]) if rows else None
            if record is None or record.owner != owner or record.state is not State.RUNNING:
                return record is not None and record.owner == owner and record.state is repeated
        raise outrun(key)

    def release(self, key: Key, owner: str, ttl: float) -> Script[bool]:
        """`Store.release`."""
        name = named(key)
        params = {
            "id": name.id,
            "namespace": name.namespace,
            "value": name.value,
            "owner": encoded(owner),
            "ttl": _microseconds(ttl),
        }
        for _ in ROUNDS:
            rows = yield self._release, params
            record = decoded(key, name, rows[0][1:], rows[0][0])
            if record is not None:
                return record.state is State.RELEASED and record.owner == owner and record.attempt > 0
        raise outrun(key)

    def get(self, key: Key) -> Script[Record | None]:
        """`Store.get`."""
        name = named(key)
        rows = yield self._read, {"id": name.id}
        return decoded(key, name, rows[0][1:], rows[0][0]) if rows else None

    def delete(self, key: Key, owner: str | None) -> Script[bool]:
        """`Store.delete`."""
        name = named(key)
        params = {"id": name.id}
        statement = self._delete
        if owner is not None:
            params["owner"] = encoded(owner)
            statement = self._delete_own
        for _ in ROUNDS:
            rows = yield statement, params
            if rows[0][0]:
                return True
            rows = yield self._read, params
            if not rows or not _transitions.delete(decoded(key, name, rows[0][1:], rows[0][0]), owner):
                return False
        raise outrun(key)

    def page(self, namespace: str, after: bytes) -> Script[tuple[list[tuple[Key, Record]], bytes | None]]:
        """Return live records of a namespace, and where the next page begins, or None after the last."""
        prefix, _ = prefix_of(namespace)
        rows = yield self._page, {"after": after or prefix, "last": prefix + b"\xff" * 32}
        found: list[tuple[Key, Record]] = []
        for id_, space, value, now, *row in rows:
            key, name = spelled_as(namespace, id_, space, value)
            record = decoded(key, name, row, now)
            if record is not None:
                found.append((key, record))
        return found, rows[-1][0] if len(rows) == BATCH else None

    def purge(self, namespace: str) -> Script[tuple[int, int]]:
        """Remove a batch of a namespace's rows, and return how many, and how many of them had not expired."""
        prefix, _ = prefix_of(namespace)
        rows = yield self._purge, {"after": prefix, "last": prefix + b"\xff" * 32}
        return len(rows), sum(live for (live,) in rows)

    def sweep(self, limit: int) -> Script[int]:
        """Remove at most so many expired rows, and return how many."""
        rows = yield self._sweep, {"limit": limit}
        removed: int = rows[0][0]
        return removed


_LATE: Final = 2


def _microseconds(seconds: float) -> int:
    return min(round(seconds * MICROSECONDS), LONGEST)


class MySqlOrMariaDB:
    """`Statements` of one of the two, whichever the server says that it is."""

    def __init__(
        self, table: str, stepwise: Callable[[str, Words], Statements] = Stepwise, *, any_mode: bool = False
    ) -> None:
        self._table = table
        self._stepwise = stepwise
        self._any_mode = any_mode
        self._chosen: Statements | None = None

    def _choose(self) -> Script[Statements]:
        if self._chosen is None:  # pragma: no branch  # each method has looked
            rows = yield "SELECT VERSION()", {}
            self._chosen = statements_for(str(rows[0][0]), self._table, self._stepwise, any_mode=self._any_mode)
        return self._chosen

    def claim(
        self, key: Key, owner: str, fingerprint: bytes | None, lease: float, ttl: float, take_over: bool | str
    ) -> Script[Claim]:
        """`Store.claim`."""
        chosen = self._chosen or (yield from self._choose())
        return (yield from chosen.claim(key, owner, fingerprint, lease, ttl, take_over))

    def complete(self, key: Key, owner: str, outcome: bytes, ttl: float) -> Script[bool]:
        """`Store.complete`."""
        chosen = self._chosen or (yield from self._choose())
        return (yield from chosen.complete(key, owner, outcome, ttl))

    def release(self, key: Key, owner: str, ttl: float) -> Script[bool]:
        """`Store.release`."""
        chosen = self._chosen or (yield from self._choose())
        return (yield from chosen.release(key, owner, ttl))

    def renew(self, key: Key, owner: str, lease: float, ttl: float) -> Script[bool]:
        """`Store.renew`."""
        chosen = self._chosen or (yield from self._choose())
        return (yield from chosen.renew(key, owner, lease, ttl))

    def get(self, key: Key) -> Script[Record | None]:
        """`Store.get`."""
        chosen = self._chosen or (yield from self._choose())
        return (yield from chosen.get(key))

    def delete(self, key: Key, owner: str | None) -> Script[bool]:
        """`Store.delete`."""
        chosen = self._chosen or (yield from self._choose())
        return (yield from chosen.delete(key, owner))

    def page(self, namespace: str, after: bytes) -> Script[tuple[list[tuple[Key, Record]], bytes | None]]:
        """Return a page of a namespace."""
        chosen = self._chosen or (yield from self._choose())
        return (yield from chosen.page(namespace, after))

    def purge(self, namespace: str) -> Script[tuple[int, int]]:
        """Remove a batch of a namespace's rows."""
        chosen = self._chosen or (yield from self._choose())
        return (yield from chosen.purge(namespace))

    def sweep(self, limit: int) -> Script[int]:
        """Remove some expired rows."""
        chosen = self._chosen or (yield from self._choose())
        return (yield from chosen.sweep(limit))


def statements_for(
    version: str, table: str, stepwise: Callable[[str, Words], Statements] = Stepwise, *, any_mode: bool = False
) -> Statements:
    """Return the statements for a server that says that it is of this version."""
    # "10.11.6-MariaDB-0+deb12u1"; some put "5.5.5-" before it, so that old replicas take it for a MySQL.
    found = re.search(r"(\d+)\.(\d+)\.\d+-MariaDB", version)
    if found is not None and (int(found[1]), int(found[2])) >= (10, 5):
        return MariaDB(table, any_mode=any_mode)
    return stepwise(table, MYSQL)
