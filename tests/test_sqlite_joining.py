"""SqliteStore.joining: the record in the caller's own transaction (behaviour 54)."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier
from typing import Any, cast

import pytest

from idempo.errors import LeaseLostError, RecordError, StoreError
from idempo.protocols import Store, TransactionalStore
from idempo.records import Key, State
from idempo.stores.sqlite import JoiningSqliteStore, SqliteStore

KEY = Key("billing", "order-42")
PATIENCE = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path / "app.db", synchronous="NORMAL", busy_timeout=PATIENCE) as store:
        with closing(connect(store)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE payments (id TEXT)")
        yield store


@pytest.fixture
def connection(store: SqliteStore) -> Iterator[sqlite3.Connection]:
    store.create_table()
    with closing(connect(store)) as connection:
        connection.execute("BEGIN")
        yield connection


def connect(store: SqliteStore, timeout: float = PATIENCE) -> sqlite3.Connection:
    return sqlite3.connect(store.path, timeout=timeout, isolation_level=None)


def claim(store: Store, owner: str = "owner-a") -> Any:
    return store.claim(KEY, owner=owner, fingerprint=b"\x01payload", lease=15, ttl=100)


def pay(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO payments VALUES ('order-42')")


def run(joining: JoiningSqliteStore, connection: sqlite3.Connection) -> None:
    with joining.savepoint():
        assert claim(joining).acquired
        pay(connection)
        assert joining.complete(KEY, owner="owner-a", outcome=b"paid", ttl=100)


def payments(store: SqliteStore) -> int:
    with closing(connect(store)) as connection:
        ((count,),) = connection.execute("SELECT count(*) FROM payments").fetchall()
    return int(count)


def test_it_is_a_store_and_says_what_it_is(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """A driver asks for `TransactionalStore`; the store that it was made by is none."""
    joining = store.joining(connection)
    assert isinstance(joining, Store)
    assert isinstance(joining, TransactionalStore)
    assert not isinstance(store, TransactionalStore)


def test_commit_keeps_effect_and_record(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """Behaviour 54 (real): and nobody else sees either before."""
    run(store.joining(connection), connection)
    assert store.get(KEY) is None
    assert payments(store) == 0
    connection.execute("COMMIT")
    record = store.get(KEY)
    assert record is not None
    assert (record.state, record.outcome, payments(store)) == (State.COMPLETED, b"paid", 1)


def test_rollback_keeps_neither(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """Behaviour 54 (real): the next caller runs."""
    run(store.joining(connection), connection)
    connection.execute("ROLLBACK")
    assert (store.get(KEY), payments(store)) == (None, 0)
    assert claim(store).record.attempt == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_body_keeps_neither(
    store: SqliteStore, connection: sqlite3.Connection, error: type[BaseException]
) -> None:
    """Behaviour 54 (real): while the caller, who survives it, keeps what else was done."""
    connection.execute("INSERT INTO payments VALUES ('before')")
    joining = store.joining(connection)
    with pytest.raises(error), joining.savepoint():
        claim(joining)
        pay(connection)
        raise error
    assert joining.get(KEY) is None
    connection.execute("COMMIT")
    assert (store.get(KEY), payments(store)) == (None, 1)


def test_savepoints_nest(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """A guarded call inside a guarded call, on one transaction: the inner failure undoes the inner only."""
    joining = store.joining(connection)
    with joining.savepoint():
        claim(joining)
        with pytest.raises(ValueError, match="inner"), joining.savepoint():
            pay(connection)
            raise ValueError("inner")
        assert joining.complete(KEY, owner="owner-a", outcome=b"paid", ttl=100)
    connection.execute("COMMIT")
    assert (store.get(KEY) is not None, payments(store)) == (True, 0)


def test_every_method_stays_in_the_transaction(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """Renew, release and delete too."""
    joining = store.joining(connection)
    claim(joining)
    assert joining.renew(KEY, owner="owner-a", lease=30, ttl=100)
    assert joining.release(KEY, owner="owner-a", ttl=100)
    assert joining.delete(KEY)
    assert claim(joining).record.attempt == 1
    assert store.get(KEY) is None
    connection.execute("ROLLBACK")
    assert store.get(KEY) is None


def test_a_duplicate_blocks_then_replays(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """Behaviour 54 (real): bounded by its connection's time-out; it sees what was committed meanwhile."""
    run(store.joining(connection), connection)
    begun = Barrier(2)

    def duplicate() -> Any:
        with closing(connect(store)) as other:
            other.execute("BEGIN")
            begun.wait(PATIENCE)
            joining = store.joining(other)
            with joining.savepoint():
                claimed = claim(joining, "owner-b")
            other.execute("COMMIT")
            return claimed

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(duplicate)
        begun.wait(PATIENCE)
        connection.execute("COMMIT")
        claimed = future.result(PATIENCE)
    assert (claimed.acquired, claimed.record.outcome, payments(store)) == (False, b"paid", 1)


def test_a_duplicate_after_a_rollback_runs(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """Behaviour 54 (real): nothing is left of the first."""
    run(store.joining(connection), connection)
    connection.execute("ROLLBACK")
    connection.execute("BEGIN")
    run(store.joining(connection), connection)
    connection.execute("COMMIT")
    assert payments(store) == 1


def test_a_locked_database_tells_to_retry_the_transaction(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """Behaviour 54 (real): after the connection's own time-out, once, with the key."""
    run(store.joining(connection), connection)
    with closing(connect(store, timeout=0.01)) as other:
        other.execute("BEGIN")
        with pytest.raises(StoreError, match="retry your transaction"):
            store.joining(other)


def test_a_transaction_that_has_read_too_early_is_told_to_retry(
    store: SqliteStore, connection: sqlite3.Connection
) -> None:
    """Behaviour 54 (real): its snapshot hides what was committed since, so it may not go on, nor be waited for."""
    connection.execute("SELECT * FROM payments").fetchall()
    claim(store, "owner-b")
    store.complete(KEY, owner="owner-b", outcome=b"paid", ttl=100)
    with pytest.raises(StoreError, match="retry your transaction"):
        store.joining(connection)
    connection.execute("ROLLBACK")
    connection.execute("BEGIN")
    joining = store.joining(connection)
    connection.execute("ROLLBACK")
    connection.execute("BEGIN")
    connection.execute("SELECT * FROM payments").fetchall()
    store.renew(KEY, owner="owner-b", lease=1, ttl=1)
    store.delete(KEY)
    with pytest.raises(StoreError, match="retry your transaction") as caught:
        claim(joining)
    assert caught.value.key == KEY
    connection.execute("ROLLBACK")
    claim(store, "owner-b")
    store.complete(KEY, owner="owner-b", outcome=b"paid", ttl=100)
    connection.execute("BEGIN")
    assert claim(store.joining(connection)).record.outcome == b"paid"


def test_a_claim_locks_before_it_reads(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """So that a duplicate in a transaction of its own can only come before or after."""
    joining = store.joining(connection)
    connection.execute("ROLLBACK")
    connection.execute("BEGIN")
    assert not joining.complete(KEY, owner="owner-a", outcome=b"", ttl=1)  # changes nothing, and locks all the same
    with closing(connect(store, timeout=0)) as other, pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")


def test_a_connection_in_no_transaction_is_refused(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """Behaviour 54: when it is joined, and when its transaction has ended since."""
    with closing(connect(store)) as idle, pytest.raises(ValueError, match="BEGIN IMMEDIATE"):
        store.joining(idle)
    joining = store.joining(connection)
    connection.execute("COMMIT")
    for act in (lambda: claim(joining), lambda: joining.get(KEY), lambda: joining.savepoint().__enter__()):
        with pytest.raises(ValueError, match="no transaction"):
            act()
    assert store.get(KEY) is None


@pytest.mark.parametrize("isolation_level", ["DEFERRED", "IMMEDIATE"])
def test_pythons_own_transactions_are_transactions(store: SqliteStore, isolation_level: Any) -> None:
    """The old way of `sqlite3`: it begins one with the first statement that writes, and not before."""
    store.create_table()
    with closing(sqlite3.connect(store.path, isolation_level=isolation_level)) as connection:
        with pytest.raises(ValueError, match="no transaction"):
            store.joining(connection)
        with connection:
            pay(connection)
            run(store.joining(connection), connection)
    assert (store.get(KEY) is not None, payments(store)) == (True, 2)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has had autocommit since 3.12")
def test_autocommit_is_refused_and_its_opposite_is_not(store: SqliteStore) -> None:
    """Behaviour 54: ``autocommit=True`` is in no transaction, ``autocommit=False`` always in one."""
    store.create_table()
    connect: Any = sqlite3.connect
    with closing(connect(store.path, autocommit=True)) as connection:
        with pytest.raises(ValueError, match="no transaction"):
            store.joining(connection)
    with closing(connect(store.path, autocommit=False)) as connection:
        run(store.joining(connection), connection)
        connection.commit()
    assert (store.get(KEY) is not None, payments(store)) == (True, 1)


def test_the_connection_must_be_one_to_the_same_file(store: SqliteStore, tmp_path: Path) -> None:
    """A record in another database would guard nothing."""
    for name in (":memory:", str(tmp_path / "other.db")):
        with closing(sqlite3.connect(name, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            with pytest.raises(ValueError, match="main database is"):
                store.joining(connection)
    (tmp_path / "link.db").symlink_to(store.path)
    with closing(sqlite3.connect(tmp_path / "link.db", isolation_level=None)) as connection:
        connection.execute("BEGIN")
        store.joining(connection)
    with pytest.raises(TypeError, match=r"sqlite3\.Connection is needed.*not str"):
        store.joining(cast("Any", "app.db"))


def test_the_callers_factories_are_respected(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """Whatever rows and texts its connection makes, we read ours, and it goes on reading its own."""

    def row_factory(cursor: sqlite3.Cursor, row: tuple[object, ...]) -> list[object]:
        return ["row", *row]

    connection.row_factory, connection.text_factory = row_factory, bytes
    run(store.joining(connection), connection)
    assert claim(store.joining(connection), "owner-b").record.outcome == b"paid"
    assert connection.execute("SELECT id FROM payments").fetchall() == [["row", b"order-42"]]
    connection.execute("COMMIT")
    assert store.get(KEY) is not None


def test_a_table_that_is_not_there_is_made_in_the_transaction(store: SqliteStore) -> None:
    """And goes with it; the store's own connection then makes it for everybody."""
    with closing(connect(store)) as connection:
        connection.execute("BEGIN")
        run(store.joining(connection), connection)
        connection.execute("ROLLBACK")
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("payments",)]
        connection.execute("BEGIN")
        run(store.joining(connection), connection)
        connection.execute("COMMIT")
    assert store.get(KEY) is not None


def test_a_record_that_cannot_be_read_is_a_record_error(store: SqliteStore, connection: sqlite3.Connection) -> None:
    """Behaviour 35: here too, and in a table of another's making."""
    joining = store.joining(connection)
    claim(joining)
    connection.execute("UPDATE idempo_records SET attempt = 7")
    with pytest.raises(RecordError):
        claim(joining, "owner-b")
    connection.execute("DROP TABLE idempo_records")
    with pytest.raises(StoreError, match=r"transaction that was joined failed.*no such table"):
        claim(joining)
    connection.execute("CREATE TABLE idempo_records (id TEXT)")
    with pytest.raises(RecordError, match="not made by idempo"):
        store.joining(connection)


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_body_that_ends_the_transaction_is_told(store: SqliteStore, connection: sqlite3.Connection, end: str) -> None:
    """Its effect and record may have been parted: that is never silent. A body's own error comes first."""
    joining = store.joining(connection)
    with pytest.raises(LeaseLostError, match="committed, or rolled back"), joining.savepoint():
        claim(joining)
        connection.execute(end)
    connection.execute("BEGIN")
    with pytest.raises(KeyError), joining.savepoint():
        connection.execute(end)
        raise KeyError
    connection.execute("BEGIN")
    with pytest.raises(LeaseLostError, match="committed, or rolled back"), joining.savepoint():
        connection.execute(end)
        connection.execute("BEGIN")
