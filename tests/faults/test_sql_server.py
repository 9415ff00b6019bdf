"""An SQL server is restarted, lets statements wait, refuses them, has no room, or keeps what is not ours."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from idempo import Idempotency, RecordError, StoreError
from idempo.errors import StoreFullError
from idempo.records import State
from idempo.stores import _sql_errors, _sql_table
from idempo.stores._sql_errors import Trouble
from idempo.stores._sql_records import named
from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore
from tests.servers.fixtures import Servers
from tests.sql_support import PATIENCE, URLS, Database, claimed, key, new_table, opened


@pytest.fixture(params=URLS)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from opened(request, request.param)


@pytest.fixture
def postgresql(request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from opened(request, "postgresql")


@pytest.fixture
def mariadb(request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from opened(request, "mariadb")


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.12)  # InnoDB looks at its transactions anew when nobody has asked for 0.1 s


@contextmanager
def waiting_for(database: Database, sql: str, work: Any, *args: Any, **options: Any) -> Iterator[Future[Any]]:
    """Lock by a statement, let the work run into the lock, go into the block, and end the transaction after it."""
    with database.connected() as blocker, ThreadPoolExecutor(1) as pool:
        blocker.execute(sa.text(sql.format(table=database.table)), {"id": named(key()).id})
        future = pool.submit(work, *args, **options)
        until(lambda: waits(database) or future.done())
        yield future
        blocker.rollback()


def waits(database: Database) -> bool:
    """Say whether a statement on the table waits for a lock."""
    if database.kind == "postgresql":
        asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :like"
    else:
        asked = (
            "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT' AND trx_query LIKE :like"
        )
    (found,) = database.execute(asked, like=f"%{database.table}%")
    return bool(found[0])


@pytest.mark.realtime
@pytest.mark.parametrize("kind", URLS)
def test_a_call_outlives_a_restart_of_its_server(servers: Servers, kind: str) -> None:
    """Behaviours 27, 47: the server is killed, and started again, while the function runs; tokens go on rising."""
    server = servers.postgres("-c", "fsync=on") if kind == "postgresql" else servers.mysql()
    database = Database(kind, server.url)
    store = database.store()
    guard = Idempotency(store, namespace="restarted")
    tokens = []

    def body() -> str:
        record = guard.lookup("order-42")
        assert record is not None
        tokens.append(record.token)
        server.kill()
        server.start()
        return "placed"

    assert guard.run("order-42", body) == "placed"
    assert guard.run("order-42", pytest.fail) == "placed"
    guard.forget("order-42")
    guard.run("order-42", body)
    assert tokens[0] < tokens[1]
    database.end()


@pytest.mark.realtime
@pytest.mark.parametrize("before", ["nothing", "doubt", "released"])
def test_a_claim_that_had_to_wait_has_its_whole_lease(database: Database, before: str) -> None:
    """Behaviours 20, 21: the clock is read once the row is free; else a lease could be over when it begins."""
    store = database.store()
    if before == "nothing":  # somebody inserts the row, and rolls back
        columns = "id, namespace, value, version, state, attempt, token, owner, expires, checksum"
        lock = f"INSERT INTO {{table}} ({columns}) VALUES (:id, :id, :id, 1, 3, 1, 1, :id, 1, :id)"
        lock = lock.replace(", :id)", ", 'x')")
    else:
        claimed(store, key(), "before")
        if before == "doubt":
            store.renew(key(), owner="before", lease=0, ttl=60)
        else:
            store.release(key(), owner="before", ttl=60)
        lock = "SELECT * FROM {table} WHERE id = :id FOR UPDATE"
    with waiting_for(database, lock, claimed, store, key(), lease=0.8) as claim:
        time.sleep(0.5)
    assert claim.result(PATIENCE).acquired
    record = store.get(key())
    assert record is not None
    assert record.lease_left is not None
    assert record.lease_left > 0.4
    assert not claimed(store, key(), "owner-b").acquired


@pytest.mark.parametrize("method", ["complete", "renew", "release"])
def test_what_the_holder_writes_waits_for_who_has_the_row(database: Database, method: str) -> None:
    """Behaviour 51: a lock is no answer."""
    store = database.store()
    claimed(store, key())
    args: dict[str, Any] = {"complete": {"outcome": b"kept", "ttl": 60}, "renew": {"lease": 60, "ttl": 60}}.get(
        method, {"ttl": 60}
    )
    lock = "SELECT * FROM {table} WHERE id = :id FOR UPDATE"
    with waiting_for(database, lock, getattr(store, method), key(), owner="owner-a", **args) as answer:
        assert not answer.done()
    assert answer.result(PATIENCE) is True


def test_a_replay_waits_for_nobody_and_writes_nothing(postgresql: Database) -> None:
    """Behaviour 46: no lock is taken, and not one byte of WAL is written, however often it is replayed."""
    store = postgresql.store()
    guard = Idempotency(store, namespace="replayed")
    guard.run("order-42", lambda: "placed")
    claimed(store, key("running"))

    def written() -> int:
        # Of the whole server, which other tests use; so the least of several tries.
        return int(postgresql.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")[0][0])

    least = None
    for _ in range(200):
        before = written()
        for _ in range(20):
            assert guard.run("order-42", pytest.fail) == "placed"
            assert not claimed(store, key("running"), "owner-b").acquired
            assert store.get(key("running")) is not None
        least = written() - before if least is None else min(least, written() - before)
        if least == 0:
            break
    assert least == 0
    with waiting_for(postgresql, "SELECT * FROM {table} FOR UPDATE", guard.run, "order-42", pytest.fail) as replay:
        assert replay.result(PATIENCE) == "placed"


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_any_isolation_level_will_do(postgresql: Database, level: str) -> None:
    """Behaviours 1, 51: what the server calls a serialization failure (40001) is tried again."""
    options = {"options": f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"}
    engine = postgresql.engine(connect_args=options)
    with SqlAlchemyStore(engine, table=postgresql.table) as store:
        troubles = watched_troubles(store)
        for number in range(12):
            barrier = threading.Barrier(4)

            def race(owner: int, number: int = number, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait(PATIENCE)
                return bool(claimed(store, key(f"order-{number}"), f"owner-{owner}").acquired)

            with ThreadPoolExecutor(4) as pool:
                assert list(pool.map(race, range(4))).count(True) == 1
        # One for certain: the statement looks, then waits, and then the row is another.
        claimed(store, key())
        change = "UPDATE {table} SET expires = expires + 1 WHERE id = :id"
        with waiting_for(postgresql, change, store.renew, key(), owner="owner-a", lease=60, ttl=60) as renewed:
            pass
        assert renewed.result(PATIENCE) is True  # rolled back, and so no failure
        assert set(troubles) <= {Trouble.AGAIN}


def watched_troubles(store: SqlAlchemyStore) -> list[Trouble]:
    """Note what goes wrong in a store and is tried again."""
    import idempo.stores._sql_connections as connections

    seen: list[Trouble] = []

    def note(error: BaseException) -> Trouble:
        seen.append(_sql_errors.trouble_of(error))
        return seen[-1]

    connections.trouble_of = note  # type: ignore[assignment]
    return seen


@pytest.fixture(autouse=True)
def _no_notes() -> Iterator[None]:
    import idempo.stores._sql_connections as connections

    yield
    connections.trouble_of = _sql_errors.trouble_of


def test_a_serialization_failure_is_tried_again(postgresql: Database) -> None:
    """Behaviour 51: provoked: the row changes, and the change is committed, while the statement waits for it."""
    engine = postgresql.engine(connect_args={"options": "-c default_transaction_isolation=serializable"})
    with SqlAlchemyStore(engine, table=postgresql.table) as store:
        claimed(store, key())
        troubles = watched_troubles(store)
        with postgresql.connected() as other, ThreadPoolExecutor(1) as pool:
            # A change that leaves the row as it is.
            other.execute(sa.text(f"UPDATE {postgresql.table} SET owner = owner"))
            renewed = pool.submit(store.renew, key(), owner="owner-a", lease=60, ttl=60)
            until(lambda: waits(postgresql))
            other.commit()
            assert renewed.result(PATIENCE) is True
    assert troubles == [Trouble.AGAIN]


def test_a_deadlock_is_tried_again(database: Database) -> None:
    """Behaviour 51: provoked: a purge has some rows and wants another, whose owner wants those."""
    store = database.store()
    first, second = sorted([key("a"), key("b")], key=lambda one: named(one).id)
    for one in (first, second):
        claimed(store, one)
    troubles = watched_troubles(store)
    with database.connected() as other, ThreadPoolExecutor(1) as pool:
        lock = sa.text(f"UPDATE {database.table} SET owner = owner, token = token + 1 WHERE id = :id")
        if database.kind == "mariadb":  # it gives up who has changed least
            for number in range(20):
                other.execute(lock, {"id": named(key(f"other-{number}")).id})
        other.execute(lock, {"id": named(second).id})
        purged = pool.submit(store.purge, "sql")
        until(lambda: waits(database))
        try:
            other.execute(lock, {"id": named(first).id})
            other.rollback()
        except sa.exc.DBAPIError:  # the other was given up, and not the store
            other.rollback()
            pytest.skip("the database gave the other one up")
        purged.result(PATIENCE)
    assert Trouble.AGAIN in troubles
    assert store.get(first) is None
    assert store.get(second) is None


def test_a_lock_that_lasts_is_a_store_error_within_bounds(postgresql: Database) -> None:
    """Behaviours 48, 51: where the application bounds waits for locks, they are tried again for so long."""
    engine = postgresql.engine(connect_args={"options": "-c lock_timeout=50"})
    with SqlAlchemyStore(engine, table=postgresql.table, timeout=0.4) as store:
        claimed(store, key())
        with postgresql.connected() as other:
            other.execute(sa.text(f"SELECT * FROM {postgresql.table} FOR UPDATE"))
            with pytest.raises(StoreError, match="in the way"):
                store.renew(key(), owner="owner-a", lease=60, ttl=60)
        assert store.renew(key(), owner="owner-a", lease=60, ttl=60)


def test_coroutines_try_again_too(postgresql: Database) -> None:
    """Behaviour 51: where others have the row for longer than one try waits."""

    async def main() -> None:
        engine = create_async_engine(postgresql.url, connect_args={"options": "-c lock_timeout=20"})
        async with AsyncSqlAlchemyStore(engine, table=postgresql.table) as store:
            await store.claim(key(), owner="owner-a", fingerprint=None, lease=60, ttl=60)
            with postgresql.connected() as other:
                other.execute(sa.text(f"SELECT * FROM {postgresql.table} FOR UPDATE"))
                renewal = asyncio.create_task(store.renew(key(), owner="owner-a", lease=60, ttl=60))
                await asyncio.sleep(0.1)
                assert not renewal.done()
                other.rollback()
            assert await renewal is True
        await engine.dispose()

    asyncio.run(main())


def test_who_makes_the_table_for_ever_is_not_waited_for(mariadb: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 53: a bounded wait, and a StoreError."""
    monkeypatch.setattr(_sql_table, "_PATIENCE", 0)
    store = SqlAlchemyStore(mariadb.engine(), table=new_table())
    with mariadb.connected() as other:
        other.execute(sa.text(f"SELECT GET_LOCK('idempo.{store.table.name}', 0)"))
        with pytest.raises(StoreError, match="others have been making"):
            store.create_table()


def test_many_make_the_table_at_once(database: Database) -> None:
    """Behaviour 53: and again, and by coroutines."""
    for _ in range(3):
        table = new_table()
        barrier = threading.Barrier(4)

        def make(_: int, table: str = table, barrier: threading.Barrier = barrier) -> None:
            engine = database.engine()
            with SqlAlchemyStore(engine, table=table) as store:
                barrier.wait(PATIENCE)
                store.create_table()
                store.create_table()
                assert claimed(store, key(threading.current_thread().name)).acquired

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(make, range(4)))
        database.execute(f"DROP TABLE {table}")

    async def main() -> None:
        async with database.async_store() as store:
            await store.create_table()
            await store.create_table()

    asyncio.run(main())


def test_before_the_table_is_made_an_error_says_how(database: Database) -> None:
    """Behaviour 32: of every kind of request."""
    with SqlAlchemyStore(database.engine(), table=new_table()) as store:
        for ask in (lambda: claimed(store, key()), lambda: store.get(key()), store.sweep, lambda: store.purge("sql")):
            with pytest.raises(StoreError, match=r"call create_table\(\)"):
                ask()


def test_a_table_that_is_not_ours_is_left_alone(database: Database) -> None:
    """Behaviours 35, 53: whether it is asked to be made, or used."""
    table = new_table()
    database.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, total INTEGER)")
    try:
        with SqlAlchemyStore(database.engine(), table=table) as store:
            with pytest.raises(RecordError, match="has the columns id, total"):
                store.create_table()
            with pytest.raises(RecordError, match="made by idempo"):
                claimed(store, key())
    finally:
        database.execute(f"DROP TABLE {table}")


_COLUMNS = {
    "version": "2",
    "state": "3",
    "attempt": "attempt + 1",
    "token": "token + 1",
    "owner": "'owner-b'",
    "fingerprint": "'other'",
    "lease_ends": "lease_ends - 3600000000",
    "expires": "expires - 7200000000",
    "checksum": "namespace",
}


@pytest.mark.parametrize("column", _COLUMNS)
def test_a_change_of_any_column_is_noticed(database: Database, column: str) -> None:
    """Behaviour 35: a claim that stands, altered behind the store's back, is neither taken over nor swept away."""
    store = database.store()
    store.claim(key(), owner="owner-a", fingerprint=b"payload", lease=3600, ttl=3600)
    database.execute(f"UPDATE {{table}} SET {column} = {_COLUMNS[column]}")
    before = database.execute("SELECT * FROM {table}")
    for ask in (
        lambda: store.claim(key(), owner="owner-b", fingerprint=None, lease=60, ttl=60),
        lambda: store.claim(key(), owner="owner-a", fingerprint=None, lease=60, ttl=60),
        lambda: store.complete(key(), owner="owner-a", outcome=b"", ttl=60),
        lambda: store.release(key(), owner="owner-a", ttl=60),
        lambda: store.renew(key(), owner="owner-a", lease=60, ttl=60),
        lambda: store.get(key()),
        lambda: list(store.scan("sql")),
    ):
        with pytest.raises(RecordError):
            ask()
    assert store.sweep() == 0
    assert database.execute("SELECT * FROM {table}") == before
    assert store.purge("sql") in (0, 1)
    assert store.get(key()) is None


@pytest.mark.parametrize("column", ["namespace", "value"])
def test_a_row_whose_key_was_altered_is_listed_as_no_other(database: Database, column: str) -> None:
    """Behaviour 35: a row is found by a digest of its key, and by that alone."""
    store = database.store()
    claimed(store, key())
    database.execute(f"UPDATE {{table}} SET {column} = 'x'")
    assert not claimed(store, key(), "owner-b").acquired
    with pytest.raises(RecordError):
        list(store.scan("sql"))


@pytest.mark.realtime
def test_sweeping_beside_claims_removes_what_has_expired_and_nothing_else(database: Database) -> None:
    """Behaviours 8, 52: several sweep at once, in batches, while keys that have expired are claimed anew."""
    store = database.store()
    keys = [key(f"order-{number}") for number in range(60)]
    for one in keys:
        claimed(store, one)
        store.complete(one, owner="owner-a", outcome=b"", ttl=0.05)
    time.sleep(0.1)
    barrier = threading.Barrier(3)

    def work(number: int) -> int:
        barrier.wait(PATIENCE)
        if number:
            return sum(store.sweep(limit=7) for _ in range(12))
        return sum(claimed(store, one, "owner-b").acquired for one in keys)

    with ThreadPoolExecutor(3) as pool:
        acquired, *swept = pool.map(work, range(3))
    assert acquired == len(keys)
    assert sum(swept) <= len(keys)
    while store.sweep(limit=7):
        pass
    records = [store.get(one) for one in keys]
    assert all(record is not None and record.owner == "owner-b" for record in records)


def test_the_clock_of_the_server_counts_and_no_time_zone(mariadb: Database) -> None:
    """Behaviour 45: sessions in different zones, one of which moves meanwhile, agree about every lease."""
    east = mariadb.store()
    engine = mariadb.engine(connect_args={"init_command": "SET time_zone = '-09:00', timestamp = 86400"})
    with SqlAlchemyStore(engine, table=mariadb.table) as west:
        claim = claimed(east, key())
        assert abs(claim.record.token / 1e6 - time.time()) < 60
        refused = claimed(west, key(), "owner-b")
        assert not refused.acquired
        assert refused.record.lease_left == pytest.approx(60, abs=10)
        other = claimed(west, key("other")).record.token
        assert other > claim.record.token
        assert claimed(east, key("third")).record.token > other


def test_an_outcome_too_large_for_a_packet_is_an_error_and_nothing_is_stored(servers: Servers) -> None:
    """Behaviour 49: it says what the server said; the claim stands, and a smaller outcome is taken."""
    server = servers.mysql("--max-allowed-packet=1M")
    database = Database("mariadb", server.url)
    store = database.store()
    claimed(store, key())
    with pytest.raises(StoreError):
        store.complete(key(), owner="owner-a", outcome=b"x" * (2 << 20), ttl=60)
    assert store.complete(key(), owner="owner-a", outcome=b"x", ttl=60)
    database.end()


def test_a_full_database_refuses_the_claim(servers: Servers) -> None:
    """Behaviour 49: nothing ran, and what is held can still be completed once there is room."""
    database = Database("mariadb", servers.mysql().url)
    database.execute(
        "CREATE TRIGGER full BEFORE INSERT ON {table} FOR EACH ROW"
        " SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1114, MESSAGE_TEXT = 'The table is full'"
    )
    with pytest.raises(StoreFullError) as caught:
        Idempotency(database.store(), namespace="full").run("order-42", pytest.fail)
    assert caught.value.key is not None
    database.end()


@pytest.mark.parametrize("kind", URLS)
def test_an_address_that_leads_nowhere_is_a_store_error(kind: str, request: pytest.FixtureRequest) -> None:
    """Behaviour 32: to a database that is not there."""
    url = sa.make_url(request.getfixturevalue(URLS[kind])).set(database="nowhere_at_all")
    store = SqlAlchemyStore(sa.create_engine(url))
    with pytest.raises(StoreError, match="nowhere_at_all"):
        store.get(key())
    store.close()


def test_states_are_told_in_words_by_the_store(database: Database) -> None:
    """Behaviour 27: a record that was taken over, and claimed again by its owner, runs as any other."""
    store = database.store()
    claimed(store, key(), "owner-a")
    store.renew(key(), owner="owner-a", lease=0, ttl=60)
    first, second, third = (claimed(store, key(), "owner-b") for _ in range(3))
    assert (first.took_over, second.took_over, third.took_over) == (True, False, False)
    assert {claim.record.state for claim in (first, second, third)} == {State.RUNNING}
    assert {claim.record.token for claim in (first, second, third)} == {first.record.token}
