"""The six methods in PostgreSQL's words, by the server's clock: one statement each for what calls mostly come to.

A second one follows where a claim finds a record over which it may be made, and where the holder's is gone.

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

from idempo.records import Claim, Key, Record, State
from idempo.stores import _transitions
from idempo.stores._sql_records import (
    CHECKED,
    LONGEST,
    MICROSECONDS,
    READ,
    REPEATED,
    TAKEN_OVER,
    VERSION,
    Name,
    decoded,
    encoded,
    named,
    prefix_of,
    record_of,
    spelled_as,
)
from idempo.stores._sql_scripts import BATCH, ROUNDS, AnswerLost, Script, outrun

_NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_LEASE: Final = "(%(lease)s::float8 * 1000000)::bigint"
_TTL: Final = "(%(ttl)s::float8 * 1000000)::bigint"
_LONGEST: Final = LONGEST / MICROSECONDS
_RUNS: Final = f"r.state IN (1, {TAKEN_OVER}, {REPEATED})"
_OWN: Final = f"{_RUNS} AND r.owner = %(owner)s::bytea"
_GIVEN: Final = {
    "version": f"{VERSION}::smallint",
    "owner": "%(owner)s::bytea",
    "outcome": "NULL::bytea",
    "namespace": "%(namespace)s::bytea",
    "value": "%(value)s::bytea",
}
_NOTHING: Final = ", ".join("NULL" for _ in READ)
_LATE: Final = 2  # tries; then a lease that is over when it begins is meant to be
_ROW: Final = ", ".join(f"r.{name}" for name in READ)


def _checksum(**columns: str) -> str:
    """The checksum of `_sql_records.checksum`, over columns of ``r`` where no expressions for them are given."""
    # One function for the whole row: every function in a statement costs it half a microsecond, called or not.
    return f"sha256(record_send(ROW({', '.join(columns.get(name, f'r.{name}') for name in CHECKED)})))"


_INTACT: Final = f"r.version = {VERSION} AND r.checksum = {_checksum()}"


class PostgreSQL:
    """`Statements` for one table.

    Args:
        table: The table's name, as it stands in a statement.
        notify: Whether changes of a key that somebody watches are told, on the notification channel `channel`.
    """

    def __init__(self, table: str, *, notify: bool = False) -> None:
        # Locks go by number in a whole database: these are of this library and of tables of this name.
        place = sha256(b"idempo\0" + table.rpartition(".")[2].strip('"').encode()).digest()
        self._locks = int.from_bytes(place[:8], "big", signed=True)
        self._watches = int.from_bytes(place[8:16], "big", signed=True)
        self.channel = f"idempo_{place[16:24].hex()}" if notify else None
        told = self._told()
        by_id = f"FROM {table} r WHERE r.id = %(id)s::bytea"
        self._get = f"SELECT {_NOW}, {_ROW} {by_id}"
        self._claim_new = self._making(table)
        self._claim = self._writing(
            table,
            may=f"({_OWN}) OR (r.state = 3 AND r.owner <> %(owner)s::bytea)"
            f" OR ({_RUNS} AND r.lease_ends <= r.now AND (%(any)s::bool OR r.owner = %(probed)s::bytea)"
            " AND (r.fingerprint IS NULL OR coalesce(%(fingerprint)s::bytea, r.fingerprint) = r.fingerprint))",
            new={
                "state": f"(CASE WHEN {_RUNS} AND r.owner <> %(owner)s::bytea THEN {TAKEN_OVER}"
                f" WHEN r.state = {TAKEN_OVER} THEN {REPEATED} ELSE 1 END)::smallint",
                "attempt": f"CASE WHEN r.id IS NULL THEN 1 WHEN {_OWN} THEN r.attempt ELSE r.attempt + 1 END",
                "token": f"CASE WHEN {_OWN} THEN r.token ELSE greatest(m.token + 1, m.now) END",
                "fingerprint": f"CASE WHEN {_OWN} THEN r.fingerprint"
                " ELSE coalesce(%(fingerprint)s::bytea, r.fingerprint) END",
                "lease_ends": f"m.now + {_LEASE}",
                "expires": f"m.now + {_LEASE} + {_TTL}",
            },
        )
        self._release = self._writing(
            table,
            may=_OWN,
            new={
                "state": "3::smallint",
                "attempt": "coalesce(r.attempt, 0)",
                "token": "coalesce(r.token, greatest(m.token + 1, m.now))",
                "fingerprint": "r.fingerprint",
                "lease_ends": "NULL::bigint",
                "expires": f"m.now + {_TTL}",
            },
        )
        done = {
            "state": "2::smallint",
            "outcome": "%(outcome)s::bytea",
            "lease_ends": "NULL::bigint",
            "expires": f"m.now + {_TTL}",
        }
        self._complete = self._updating(table, done, told)
        renewed = {"lease_ends": f"m.now + {_LEASE}", "expires": f"m.now + {_LEASE} + {_TTL}"}
        # Only a lease that ends at once is a change that somebody may wait for.
        self._renew = self._updating(table, renewed, "''")
        self._end_lease = self._updating(table, renewed, told)
        live = f"r.expires > {_NOW}"
        removed = (
            f"WITH written AS (DELETE {by_id} AND {{which}} RETURNING 1)"
            f" SELECT {told}, {_NOW}, {_NOTHING} FROM written"
            f" UNION ALL SELECT NULL, {_NOW}, {_ROW} {by_id} AND NOT EXISTS (SELECT FROM written)"
        )
        self._delete = removed.format(which=f"(({_INTACT}) IS NOT TRUE OR {live})")
        self._delete_own = removed.format(which=f"r.owner = %(owner)s::bytea AND {live} AND {_INTACT}")
        within = "r.id > %(after)s::bytea AND r.id <= %(last)s::bytea"
        self._page = (
            f"SELECT r.id, r.namespace, r.value, {_NOW}, {_ROW} FROM {table} r"
            f" WHERE {within} ORDER BY r.id LIMIT {BATCH}"
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
            f"WITH gone AS MATERIALIZED (SELECT r.id FROM {table} r WHERE r.expires <= (SELECT {_NOW}) AND {_INTACT}"
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

    def _making(self, table: str) -> str:
        """Make a row for a claim where there is none, or tell what is there: what most claims come to, for less.

        What takes time in a statement is the number of its parts, used or not.
        """
        new = {
            **_GIVEN,
            "state": "1::smallint",
            "attempt": "1",
            "token": "m.now",
            "fingerprint": "%(fingerprint)s::bytea",
            "lease_ends": f"m.now + {_LEASE}",
            "expires": f"m.now + {_LEASE} + {_TTL}",
        }
        checksum = _checksum(id="%(id)s::bytea", **new)
        return (
            f"WITH found AS MATERIALIZED (SELECT {_NOW} AS now, {_ROW} FROM {table} r WHERE r.id = %(id)s::bytea),"
            f" m AS MATERIALIZED (SELECT {_NOW} AS now FROM (SELECT pg_advisory_xact_lock(%(lock)s::bigint)"
            " WHERE NOT EXISTS (SELECT FROM found) OFFSET 0) locked),"
            f" made AS (INSERT INTO {table} AS r (id, {', '.join(new)}, checksum)"
            f" SELECT %(id)s::bytea, {', '.join(new.values())}, {checksum} FROM m"
            f" ON CONFLICT (id) DO NOTHING RETURNING {_ROW})"
            f" SELECT {self._told()}, {_NOW}, {_ROW} FROM made r"
            f" UNION ALL SELECT NULL, r.now, {_ROW} FROM found r"
        )

    def _writing(self, table: str, *, may: str, new: dict[str, str]) -> str:
        """Make a row where there is none, or an expired one, and otherwise where it ``may`` be changed.

        ``found`` is the row as the statement first saw it. What is written follows from that: it is put in place of
        that very row, which its checksum pins, or, where there was none, into an empty place. An INSERT alone will not
        do for both: where the row that was found has been removed meanwhile, it would find an empty place too.
        """
        new = {**_GIVEN, **new}
        names = ", ".join(new)
        checksum = _checksum(id="%(id)s::bytea", **{name: name for name in new})
        return (
            f"WITH found AS MATERIALIZED (SELECT r.id, {_NOW} AS now, {_ROW}"
            f" FROM {table} r WHERE r.id = %(id)s::bytea),"
            " free AS MATERIALIZED (SELECT pg_advisory_xact_lock(%(lock)s::bigint)"
            f" WHERE NOT EXISTS (SELECT FROM found r WHERE (CASE WHEN r.expires <= r.now OR {may} THEN {_INTACT}"
            " ELSE false END) IS NOT TRUE)),"
            " m AS MATERIALIZED (SELECT now, (SELECT token FROM found)"
            f" FROM (SELECT {_NOW} AS now FROM free) m),"
            " next AS MATERIALIZED ("
            f"SELECT {', '.join(f'{value} AS {name}' for name, value in new.items())}, m.now"
            " FROM m LEFT JOIN found r ON r.expires > r.now),"
            f" whole AS MATERIALIZED (SELECT *, {checksum} AS checksum FROM next),"
            f" made AS (INSERT INTO {table} (id, {names}, checksum) SELECT %(id)s::bytea, {names}, checksum FROM whole"
            " WHERE NOT EXISTS (SELECT FROM found) ON CONFLICT (id) DO NOTHING RETURNING 1),"
            f" changed AS (UPDATE {table} r SET ({names}, checksum) ="
            f" ROW({', '.join(f'w.{name}' for name in new)}, w.checksum) FROM whole w"
            " WHERE r.id = %(id)s::bytea AND r.checksum = (SELECT checksum FROM found) RETURNING 1),"
            " written AS (SELECT FROM made UNION ALL SELECT FROM changed)"
            f" SELECT {self._told()}, {_NOW}, {', '.join(READ[:-1])}, NULL FROM whole"
            " WHERE EXISTS (SELECT FROM written)"
            f" UNION ALL SELECT NULL, now, {', '.join(READ)} FROM found WHERE NOT EXISTS (SELECT FROM written)"
        )

    def _updating(self, table: str, changed: dict[str, str], told: str) -> str:
        """Change the row where the owner holds it; no row is answered where it was not."""
        changed = {**changed, "checksum": _checksum(**changed)}
        # A row that others have locked is written late, by the clock as it was; its owner counts from before that.
        return (
            f"UPDATE {table} r SET ({', '.join(changed)}) ="
            f" (SELECT {', '.join(changed.values())} FROM (SELECT {_NOW} AS now) m)"
            f" WHERE r.id = %(id)s::bytea AND {_OWN} AND r.expires > {_NOW} AND {_INTACT} RETURNING {told}"
        )

    def watch_of(self, name: Name) -> int:
        """Return the number of the advisory lock that whoever waits for the key shares."""
        return name.number ^ self._watches

    def claim(
        self, key: Key, owner: str, fingerprint: bytes | None, lease: float, ttl: float, take_over: bool | str
    ) -> Script[Claim]:
        """`Store.claim`."""
        name = named(key)
        number = name.number
        params = {
            "id": name.id,
            "namespace": name.namespace,
            "value": name.value,
            "owner": encoded(owner),
            "fingerprint": fingerprint,
            "lease": min(float(lease), _LONGEST),
            "ttl": min(float(ttl), _LONGEST),
            "any": take_over is True,
            "probed": encoded(take_over) if isinstance(take_over, str) else None,
            "lock": number ^ self._locks,
            "watch": number ^ self._watches,
        }
        repeated = took_over = False
        statement = self._claim_new
        for tries in ROUNDS:
            try:
                rows = yield statement, params
            except AnswerLost:
                repeated = True
                continue
            if not rows:
                continue
            told, now, *row = rows[0]
            if told is not None:
                took_over = took_over or row[1] == TAKEN_OVER or (repeated and row[1] == REPEATED)
                # A row that others had locked was written late: once more, and the lease counts from then.
                if (row[8] - now) / MICROSECONDS > ttl + lease / 2 or tries > _LATE:
                    return Claim(True, record_of(row, now), took_over)
                continue
            record = decoded(key, name, row, now)
            # Where it may be taken after all, others were faster, and what the statement saw is old.
            if record is not None:
                claim, write = _transitions.claim(record, 0, owner, fingerprint, lease, ttl, take_over)
                if write is None:
                    return claim
            statement = self._claim
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
            if rows:
                return True
            rows = yield self._get, params
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
            "ttl": min(float(ttl), _LONGEST),
            "lock": name.number ^ self._locks,
            "watch": name.number ^ self._watches,
        }
        for _ in ROUNDS:
            rows = yield self._release, params
            if not rows:
                continue
            told, now, *row = rows[0]
            if told is not None:
                return record_of(row, now).attempt > 0
            record = decoded(key, name, row, now)
            if record is not None:
                answer, write = _transitions.release(record, 0, owner, ttl)
                if write is None:
                    return answer
        raise outrun(key)

    def get(self, key: Key) -> Script[Record | None]:
        """`Store.get`."""
        name = named(key)
        rows = yield self._get, {"id": name.id}
        return decoded(key, name, rows[0][1:], rows[0][0]) if rows else None

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
            told, now, *row = rows[0]
            if told is not None:
                return True
            if not _transitions.delete(decoded(key, name, row, now), owner):
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
        removed, live = rows[0]
        return removed, live

    def sweep(self, limit: int) -> Script[int]:
        """Remove at most so many expired rows, and return how many."""
        rows = yield self._sweep, {"limit": limit}
        removed: int = rows[0][0]
        return removed
