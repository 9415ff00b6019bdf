"""The six methods in PostgreSQL's words: one statement each, by the server's clock.

- Each reads the row before it writes, so that what changes nothing writes nothing, no lock either.
- ``clock_timestamp()`` is read anew once a row is locked: ``now()`` is the time at which the transaction began, and a
  value from EXCLUDED was computed before the statement had to wait.
- Whoever means to claim a key takes an advisory lock on it first, and only then looks at the clock. Without that a
  claim could read the clock, be overtaken by another claim and its deletion, and write a token less than theirs.
- A statement that answers no row lost a race on an old snapshot: it changed nothing, and is sent again.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

from idempo.errors import RecordError
from idempo.records import Claim, Key, Record, State
from idempo.stores._sql_records import (
    LONGEST,
    MICROSECONDS,
    READ,
    VERSION,
    Name,
    decoded,
    encoded,
    named,
    prefix_of,
    text_of,
)
from idempo.stores._sql_scripts import BATCH, ROUNDS, Script, outrun

_NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_LEASE: Final = "(%(lease)s::float8 * 1000000)::bigint"
_TTL: Final = "(%(ttl)s::float8 * 1000000)::bigint"
_LONGEST: Final = LONGEST / MICROSECONDS
_OWN: Final = "r.state = 1 AND r.owner = %(owner)s::bytea"


def _checksum(**columns: str) -> str:
    """The checksum of `_sql_records.checksum`, over columns of ``r`` unless expressions for them are given."""
    names = (*READ[:-1], "namespace", "key")
    c = {name: columns.get(name, f"r.{name}") for name in names}
    sizes = [f"octet_length({c[name]})" for name in ("namespace", "key", "owner", "fingerprint", "outcome")]
    numbers = [c[name] for name in ("version", "state", "attempt", "token", "lease_ends", "expires")]
    form = ",".join(["%%s"] * 11)
    parts = [c["namespace"], c["key"], c["owner"], *(f"coalesce({c[name]}, '')" for name in ("fingerprint", "outcome"))]
    whole = " || ".join([f"format('{form};', {', '.join([*numbers, *sizes])})::bytea", *parts])
    return f"substring(sha256({whole}) FROM 1 FOR 8)"


_INTACT: Final = f"r.version = {VERSION} AND r.checksum = {_checksum()}"


class PostgreSQL:
    """`Statements` for one table.

    Args:
        table: The table's name, as it stands in a statement.
        channel: The notification channel on which changes of watched keys are told; None tells nobody.
    """

    def __init__(self, table: str, channel: str | None = None) -> None:
        self.channel = channel
        # Locks go by number in a whole database: these are of this table, and of this library.
        place = sha256(b"idempo\0" + table.encode()).digest()
        self._locks = int.from_bytes(place[:8], "big", signed=True)
        self._watches = int.from_bytes(place[8:16], "big", signed=True)
        columns = ", ".join(f"r.{name}" for name in READ)
        self._columns = f"r.took_over, {_NOW} AS now, {columns}"
        self._table = table
        self._claim = self._writing(
            may="r.expires <= {now}"
            f" OR ({_OWN})"
            " OR (r.state = 3 AND r.owner <> %(owner)s::bytea)"
            " OR (r.state = 1 AND r.lease_ends <= {now} AND (%(any)s::bool OR r.owner = %(probed)s::bytea)"
            " AND (r.fingerprint IS NULL OR coalesce(%(fingerprint)s::bytea, r.fingerprint) = r.fingerprint))",
            new={
                "state": "1",
                "took_over": "0",
                "attempt": "1",
                "fingerprint": "%(fingerprint)s::bytea",
                "lease_ends": f"m.now + {_LEASE}",
                "expires": f"m.now + {_LEASE} + {_TTL}",
            },
            changed={
                "state": "1",
                "took_over": "CASE WHEN r.expires > m.now AND r.state = 1 AND r.owner <> %(owner)s::bytea"
                " THEN 1 ELSE 0 END",
                "attempt": f"CASE WHEN r.expires <= m.now THEN 1 WHEN {_OWN} THEN r.attempt ELSE r.attempt + 1 END",
                "token": f"CASE WHEN r.expires > m.now AND {_OWN} THEN r.token ELSE greatest(r.token + 1, m.now) END",
                "fingerprint": "CASE WHEN r.expires <= m.now THEN %(fingerprint)s::bytea"
                f" WHEN {_OWN} THEN r.fingerprint ELSE coalesce(%(fingerprint)s::bytea, r.fingerprint) END",
                "lease_ends": f"m.now + {_LEASE}",
                "expires": f"m.now + {_LEASE} + {_TTL}",
            },
        )
        self._release = self._writing(
            may=f"r.expires <= {{now}} OR ({_OWN})",
            new={
                "state": "3",
                "took_over": "0",
                "attempt": "0",
                "fingerprint": "NULL::bytea",
                "lease_ends": "NULL::bigint",
                "expires": f"m.now + {_TTL}",
            },
            changed={
                "state": "3",
                "took_over": "0",
                "attempt": "CASE WHEN r.expires <= m.now THEN 0 ELSE r.attempt END",
                "token": "CASE WHEN r.expires <= m.now THEN greatest(r.token + 1, m.now) ELSE r.token END",
                "fingerprint": "CASE WHEN r.expires <= m.now THEN NULL ELSE r.fingerprint END",
                "lease_ends": "NULL::bigint",
                "expires": f"m.now + {_TTL}",
            },
        )
        done = {
            "state": "2",
            "outcome": "%(outcome)s::bytea",
            "lease_ends": "NULL::bigint",
            "expires": f"m.now + {_TTL}",
        }
        self._complete = self._updating(done, self._told())
        renewed = {"lease_ends": f"m.now + {_LEASE}", "expires": f"m.now + {_LEASE} + {_TTL}"}
        # Only a lease that ends at once is a change that somebody may wait for.
        self._renew = self._updating(renewed, "''")
        self._end_lease = self._updating(renewed, self._told())
        found = f"SELECT false, {self._columns}, '' FROM {table} r WHERE r.id = %(id)s::bytea"
        self._get = found
        removed = (
            f"WITH removed AS (DELETE FROM {table} r WHERE r.id = %(id)s::bytea AND {{which}}"
            f" RETURNING {self._columns})"
        )
        answer = (
            f" SELECT true, r.*, {self._told()} FROM removed r UNION ALL {found} AND NOT EXISTS (SELECT FROM removed)"
        )
        live = f"r.expires > {_NOW}"
        self._delete = removed.format(which=f"(({_INTACT}) IS NOT TRUE OR {live})") + answer
        mine = f"r.owner = %(owner)s::bytea AND {live} AND {_INTACT}"
        self._delete_own = removed.format(which=mine) + answer
        within = "r.id > %(after)s::bytea AND r.id <= %(last)s::bytea"
        self._page = (
            f"SELECT r.id, r.namespace, r.key, {_NOW} AS now, {columns} FROM {table} r WHERE {within}"
            f" ORDER BY r.id LIMIT {BATCH}"
        )
        self._purge = (
            f"WITH gone AS MATERIALIZED (SELECT r.id FROM {table} r WHERE {within}"
            f" ORDER BY r.id LIMIT {BATCH} FOR UPDATE),"
            f" removed AS (DELETE FROM {table} r USING gone g WHERE r.id = g.id RETURNING {live} AS live)"
            " SELECT count(*), count(*) FILTER (WHERE live) FROM removed"
        )
        # As a subquery of its own the clock is read once, and the index can be used. SKIP LOCKED: what somebody is
        # about to claim anew, or others sweep, is left alone.
        self._sweep = (
            f"WITH gone AS MATERIALIZED (SELECT r.id FROM {table} r WHERE r.expires <= (SELECT {_NOW})"
            f" AND r.version = {VERSION} AND r.checksum = {_checksum()}"
            " ORDER BY r.expires LIMIT %(limit)s::int FOR UPDATE SKIP LOCKED),"
            f" removed AS (DELETE FROM {table} r USING gone g WHERE r.id = g.id RETURNING 1)"
            " SELECT count(*) FROM removed"
        )

    def _told(self) -> str:
        # Who waits for a key holds a shared lock on its number; where nobody does, nothing is sent. A notification
        # costs a lock that all commits of a database share.
        if self.channel is None:
            return "''"
        sent = f"pg_notify('{self.channel}', encode(%(id)s::bytea, 'hex'))::text"
        return f"CASE WHEN pg_try_advisory_xact_lock(%(watch)s::bigint) THEN '' ELSE {sent} END"

    def _writing(self, *, may: str, new: dict[str, str], changed: dict[str, str]) -> str:
        """A method that makes the row where there is none, and changes it where it ``may``."""
        table = self._table
        given = {
            "namespace": "%(namespace)s::bytea",
            "key": "%(key)s::bytea",
            "version": str(VERSION),
            "token": "m.now",
            "owner": "%(owner)s::bytea",
            "outcome": "NULL::bytea",
        }
        new = {**given, **new}
        changed = {"owner": given["owner"], "outcome": given["outcome"], **changed}
        allowed = f"CASE WHEN {{may}} THEN {_INTACT} ELSE false END"
        before = allowed.format(may=may.format(now="r.now"))
        after = allowed.format(may=may.format(now=_NOW))
        new["checksum"] = _checksum(**new)
        changed["checksum"] = _checksum(**changed)
        return (
            f"WITH found AS MATERIALIZED (SELECT {self._columns}, r.namespace, r.key FROM {table} r"
            " WHERE r.id = %(id)s::bytea),"
            " free AS MATERIALIZED (SELECT pg_advisory_xact_lock(%(lock)s::bigint)"
            f" WHERE NOT EXISTS (SELECT FROM found r WHERE ({before}) IS NOT TRUE)),"
            f" moment AS MATERIALIZED (SELECT {_NOW} AS now FROM free),"
            f" written AS (INSERT INTO {table} AS r (id, {', '.join(new)})"
            f" SELECT %(id)s::bytea, {', '.join(new.values())} FROM moment m"
            f" ON CONFLICT (id) DO UPDATE SET ({', '.join(changed)}) ="
            f" (SELECT {', '.join(changed.values())} FROM (SELECT {_NOW} AS now) m)"
            f" WHERE {after} RETURNING {self._columns})"
            f" SELECT true, r.*, {self._told()} FROM written r"
            f" UNION ALL SELECT false, r.took_over, r.now, {', '.join(f'r.{name}' for name in READ)}, ''"
            " FROM found r WHERE NOT EXISTS (SELECT FROM free)"
        )

    def _updating(self, changed: dict[str, str], told: str) -> str:
        """A method of the holder's."""
        table = self._table
        changed = {**changed, "checksum": _checksum(**changed)}
        return (
            f"WITH written AS (UPDATE {table} r SET ({', '.join(changed)}) ="
            f" (SELECT {', '.join(changed.values())} FROM (SELECT {_NOW} AS now) m)"
            f" WHERE r.id = %(id)s::bytea AND {_OWN} AND r.expires > {_NOW} AND {_INTACT} RETURNING {self._columns})"
            f" SELECT true, r.*, {told} FROM written r"
            f" UNION ALL SELECT false, {self._columns}, '' FROM {table} r WHERE r.id = %(id)s::bytea"
            " AND NOT EXISTS (SELECT FROM written)"
        )

    def lock_of(self, name: Name) -> int:
        """Return the number of the advisory lock that whoever claims the key takes."""
        return name.number ^ self._locks

    def watch_of(self, name: Name) -> int:
        """Return the number of the advisory lock that whoever waits for the key shares."""
        return name.number ^ self._watches

    def claim(
        self, key: Key, owner: str, fingerprint: bytes | None, lease: float, ttl: float, take_over: bool | str
    ) -> Script[Claim]:
        """`Store.claim`."""
        name = named(key)
        params = {
            "id": name.id,
            "namespace": name.namespace,
            "key": name.key,
            "owner": encoded(owner),
            "fingerprint": fingerprint,
            "lease": min(float(lease), _LONGEST),
            "ttl": min(float(ttl), _LONGEST),
            "any": take_over is True,
            "probed": encoded(take_over) if isinstance(take_over, str) else None,
            "lock": name.number ^ self._locks,
            "watch": name.number ^ self._watches,
        }
        for _ in ROUNDS:
            rows = yield self._claim, params
            if not rows:
                continue
            acquired, took_over, now, *row, _ = rows[0]
            record = decoded(key, name, row, now)
            if record is not None:
                return Claim(acquired, record, acquired and took_over == 1)
            # It expired between two looks at the clock: now it may be taken.
        raise outrun(key)

    def complete(self, key: Key, owner: str, outcome: bytes, ttl: float) -> Script[bool]:
        """`Store.complete`."""
        params = {"outcome": outcome, "ttl": min(float(ttl), _LONGEST)}
        return self._update(self._complete, key, owner, params, State.COMPLETED)

    def renew(self, key: Key, owner: str, lease: float, ttl: float) -> Script[bool]:
        """`Store.renew`."""
        params = {"lease": min(float(lease), _LONGEST), "ttl": min(float(ttl), _LONGEST)}
        return self._update(self._renew if lease > 0 else self._end_lease, key, owner, params, None)

    def _update(
        self, statement: str, key: Key, owner: str, params: dict[str, Any], repeated: State | None
    ) -> Script[bool]:
        name = named(key)
        params |= {"id": name.id, "owner": encoded(owner), "watch": name.number ^ self._watches}
        for _ in ROUNDS:
            rows = yield statement, params
            if not rows:
                return False
            written, _, now, *row, _ = rows[0]
            if written:
                return True
            record = decoded(key, name, row, now)
            if record is None or record.owner != owner or record.state is not State.RUNNING:
                return record is not None and record.owner == owner and record.state is repeated
            # It was taken over, or renewed, while the statement looked.
        raise outrun(key)

    def release(self, key: Key, owner: str, ttl: float) -> Script[bool]:
        """`Store.release`."""
        name = named(key)
        params = {
            "id": name.id,
            "namespace": name.namespace,
            "key": name.key,
            "owner": encoded(owner),
            "ttl": min(float(ttl), _LONGEST),
            "lock": name.number ^ self._locks,
            "watch": name.number ^ self._watches,
        }
        for _ in ROUNDS:
            rows = yield self._release, params
            if not rows:
                continue
            written, _, now, *row, _ = rows[0]
            record = decoded(key, name, row, now)
            if record is not None:
                held = record.state is State.RELEASED and record.attempt > 0
                return held and (written or record.owner == owner)
            if written:  # for a time so short that it is over
                return bool(row[2])
        raise outrun(key)

    def get(self, key: Key) -> Script[Record | None]:
        """`Store.get`."""
        name = named(key)
        rows = yield self._get, {"id": name.id}
        if not rows:
            return None
        _, _, now, *row, _ = rows[0]
        return decoded(key, name, row, now)

    def delete(self, key: Key, owner: str | None) -> Script[bool]:
        """`Store.delete`."""
        name = named(key)
        params = {"id": name.id, "watch": name.number ^ self._watches}
        statement = self._delete
        if owner is not None:
            params["owner"] = encoded(owner)
            statement = self._delete_own
        for _ in ROUNDS:
            rows = yield statement, params
            if not rows:
                return False
            removed, _, now, *row, _ = rows[0]
            if removed:
                return True
            record = decoded(key, name, row, now)
            if record is None or (owner is not None and record.owner != owner):
                return False
        raise outrun(key)

    def page(self, namespace: str, after: bytes) -> Script[tuple[list[tuple[Key, Record]], bytes | None]]:
        """Return live records of a namespace, and where the next page begins, or None after the last."""
        prefix, spelled = prefix_of(namespace)
        rows = yield self._page, {"after": after or prefix, "last": prefix + b"\xff" * 32}
        found: list[tuple[Key, Record]] = []
        for id_, space, value, now, *row in rows:
            name = Name(id_, space, value)
            if space != spelled or prefix + sha256(value).digest() != id_:
                raise RecordError(f"a record of namespace {namespace!r} is damaged")
            key = Key(namespace, text_of(value))
            record = decoded(key, name, row, now)
            if record is not None:
                found.append((key, record))
        return found, rows[-1][0] if len(rows) == BATCH else None

    def purge(self, namespace: str) -> Script[tuple[int, int]]:
        """Remove a batch of a namespace's rows, and return how many, and how many of them had not expired."""
        prefix, _ = prefix_of(namespace)
        rows = yield self._purge, {"after": prefix, "last": prefix + b"\xff" * 32}
        removed, live = rows[0]
        return removed, live

    def sweep(self, limit: int) -> Script[int]:
        """Remove at most so many expired rows, and return how many."""
        rows = yield self._sweep, {"limit": limit}
        removed: int = rows[0][0]
        return removed
