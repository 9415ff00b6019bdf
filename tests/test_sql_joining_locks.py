"""SqlAlchemyStore.joining when several transactions want one key (behaviours 51 and 54, on real servers)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from idempo import EventKind, Idempotency, InProgressError, StoreError
from idempo.stores._sql_stepwise import Stepwise
from tests.sql_joining_support import DATABASES, KEY, NAME, PATIENCE, PLACE, OutOfStockError, Shop, shops

OWN_LIMIT = {
    "postgresql": ("SET LOCAL lock_timeout = '7s'", "SHOW lock_timeout", "7s"),
    "mysql": ("SET innodb_lock_wait_timeout = 7", "SELECT @@innodb_lock_wait_timeout", 7),
    "sqlite": ("PRAGMA busy_timeout = 7000", "PRAGMA busy_timeout", 7000),
}
SHORT_LIMIT = {
    "postgresql": "SET LOCAL lock_timeout = '50ms'",
    "mysql": "SET innodb_lock_wait_timeout = 1",
    "sqlite": "PRAGMA busy_timeout = 50",
}
BLOCKED = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%records%'",
    # Not innodb_trx, which is made anew only when nobody has looked for 0.1 s.
    "mysql": "SELECT count(*) FROM information_schema.processlist"
    " WHERE info REGEXP '^(SET STATEMENT .* FOR )?INSERT INTO .*records'",
}
SOME = ("connection", "async session")


@pytest.fixture(params=DATABASES)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """A shop on one database."""
    yield from shops(request, tmp_path)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for the other transactions."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def blocked(shop: Shop, count: int = 1) -> None:
    """Return once so many transactions wait for a lock of this shop's; where the server does not tell, at once."""
    if shop.kind == "sqlite":
        return
    deadline = time.monotonic() + PATIENCE
    with shop.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(sa.text(shop.named(BLOCKED[shop.kind]))) < count:
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.01)


def duplicate(shop: Shop, colour: str, *statements: str, **options: Any) -> Any:
    """Place the order in a transaction of its own."""
    with shop.desk(colour, **options) as desk:
        answer = desk.call(*statements)
        desk.commit()
        return answer


def retried(shop: Shop, colour: str, *statements: str) -> Any:
    """Place the order, in another transaction where the database says so: what the caller has to do."""
    for _ in range(10):
        try:
            return duplicate(shop, colour, *statements)
        except StoreError as error:
            if shop.kind != "mysql" or "retry your transaction" not in str(error):
                raise
    raise AssertionError("retried ten times in vain")


@pytest.mark.parametrize("colour", SOME)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_duplicate_blocks_then_replays_or_runs(shop: Shop, pool: ThreadPoolExecutor, colour: str, end: str) -> None:
    """Behaviour 54 (real): it never sees what was not committed: not in this process either."""
    with shop.desk(colour) as desk:
        desk.call(PLACE)
        other = pool.submit(duplicate, shop, colour, PLACE)
        blocked(shop)
        assert not other.done()
        getattr(desk, end)()
    assert other.result(PATIENCE) == "placed"
    assert shop.placed() == [42]
    second = EventKind.REPLAYED if end == "commit" else EventKind.EXECUTED
    assert shop.kinds() == [EventKind.EXECUTED, second]


def test_of_many_that_have_waited_one_runs(shop: Shop, pool: ThreadPoolExecutor) -> None:
    """Behaviour 54 (real): after a rollback they follow one another; InnoDB may tell some that it is a deadlock.

    Who waits for a row that is rolled back is given the gap where it was, and shares that with all who have waited.
    """
    with shop.desk("connection") as desk:
        desk.call(PLACE)
        others = [pool.submit(retried, shop, "connection", PLACE) for _ in range(3)]
        blocked(shop, 3)
        desk.rollback()
    assert [other.result(PATIENCE) for other in others] == ["placed"] * 3
    assert shop.placed() == [42]
    told = [kind.value for kind in shop.kinds() if shop.kind != "mysql" or kind is not EventKind.STORE_FAILED]
    assert sorted(told) == ["executed", "executed", "replayed", "replayed"]


def test_a_call_that_failed_holds_its_key_no_more(shop: Shop) -> None:
    """Behaviour 54 (real): while its caller's transaction goes on, another may run; SQLite has one writer at a time."""
    if shop.kind == "sqlite":
        pytest.skip("SQLite has one writer")
    with shop.desk("connection") as desk:
        with pytest.raises(OutOfStockError):
            desk.call(error=OutOfStockError())
        assert duplicate(shop, "connection", PLACE, lock_timeout=5) == "placed"
        desk.execute("INSERT INTO orders VALUES (1, 'of the caller')")
        desk.commit()
    assert shop.placed() == [1, 42]


@pytest.mark.realtime
@pytest.mark.parametrize("colour", SOME)
def test_a_duplicate_waits_for_a_bounded_time(shop: Shop, colour: str) -> None:
    """Behaviour 54 (real): it is told to retry; its caller's own work can go on; the first is not disturbed."""
    with shop.desk(colour) as desk:
        desk.call(PLACE)
        with shop.desk(colour, lock_timeout=0.1) as other:
            started = time.monotonic()
            with pytest.raises(StoreError, match="retry your transaction") as caught:
                other.call(PLACE)
            assert time.monotonic() - started < 5
            assert caught.value.__cause__ is not None
            assert "[parameters" not in f"{caught.value}{caught.value.__cause__}"
            if shop.kind != "sqlite":  # which has one writer
                other.execute("INSERT INTO orders VALUES (1, 'of the caller')")
                other.commit()
        desk.commit()
    assert shop.placed() == ([42] if shop.kind == "sqlite" else [1, 42])
    assert shop.kinds() == [EventKind.EXECUTED, EventKind.STORE_FAILED]


@pytest.mark.parametrize("lock_timeout", [None, 3.0, 30.0])
def test_the_connections_own_limit_is_put_back(shop: Shop, lock_timeout: float | None) -> None:
    """Behaviour 54 (real): after a call that ran, one that raised, and one that was refused."""
    set_it, ask, own = OWN_LIMIT[shop.kind]
    with shop.desk("connection", lock_timeout=lock_timeout) as desk:
        desk.execute(set_it)
        desk.call(PLACE)
        assert desk.execute(ask) == [(own,)]
        with pytest.raises(OutOfStockError):
            desk.call(key="fails", error=OutOfStockError())
        assert desk.execute(ask) == [(own,)]
        desk.ask("forget", KEY)
        assert desk.execute(ask) == [(own,)]


@pytest.mark.realtime
def test_a_shorter_limit_of_the_connection_counts(shop: Shop) -> None:
    """Behaviour 54 (real): and it is the same after the lock was not to be had."""
    with shop.desk("connection") as desk:
        desk.call(PLACE)
        with shop.desk("connection", lock_timeout=60) as other:
            other.execute(SHORT_LIMIT[shop.kind])
            before = other.execute(OWN_LIMIT[shop.kind][1])
            started = time.monotonic()
            with pytest.raises(StoreError, match="retry your transaction"):
                other.call(PLACE)
            assert time.monotonic() - started < 10
            assert other.execute(OWN_LIMIT[shop.kind][1]) == before


@pytest.mark.parametrize("colour", SOME)
def test_a_deadlock_is_told_and_not_retried(shop: Shop, pool: ThreadPoolExecutor, colour: str) -> None:
    """Behaviours 51, 54 (real): one of two that claim crosswise is told; rolled back and run again, it replays."""
    if shop.kind == "sqlite":
        pytest.skip("SQLite has one lock, and no deadlocks")
    holding = threading.Barrier(2)

    def crosswise(first: int, second: int) -> StoreError | None:
        with shop.desk(colour) as desk:
            desk.call(f"INSERT INTO orders VALUES ({first}, 'book')", key=str(first))
            holding.wait(PATIENCE)
            try:
                desk.call(f"INSERT INTO orders VALUES ({second}, 'book')", key=str(second))
            except StoreError as error:
                desk.rollback()
                return error
            desk.commit()
            return None

    ends = [pool.submit(crosswise, *keys) for keys in ((1, 2), (2, 1))]
    (victim,) = [error for end in ends if (error := end.result(PATIENCE)) is not None]
    assert "retry your transaction" in str(victim)
    assert "deadlock" in str(victim.__cause__).lower()
    assert shop.placed() == [1, 2]
    with shop.desk(colour) as desk:
        for key in "12":
            assert desk.call("fails if it runs", key=key) == "placed"


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("colour", SOME)
def test_a_snapshot_that_hides_the_record(shop: Shop, colour: str, level: str) -> None:
    """Behaviours 51, 54 (real): PostgreSQL refuses it (40001), which is told; MySQL and MariaDB see what stands."""
    if shop.kind == "sqlite":
        pytest.skip("SQLite: test_a_transaction_that_has_read_too_early")
    if shop.kind == "mysql" and level == "SERIALIZABLE":
        pytest.skip("MySQL: whatever is read is locked then, and nothing hides")
    with shop.desk(colour, isolation_level=level) as desk:
        assert desk.execute("SELECT id FROM orders WHERE id = 41") == []  # the snapshot
        duplicate(shop, "connection", PLACE)
        if shop.kind == "postgresql":
            with pytest.raises(StoreError, match="retry your transaction") as caught:
                desk.call(PLACE)
            assert getattr(caught.value.__cause__, "sqlstate", None) == "40001"
            desk.rollback()
            desk.begin()
        assert desk.call(PLACE) == "placed"
        desk.commit()
    assert shop.placed() == [42]
    assert shop.kinds()[-1] == EventKind.REPLAYED


def test_a_snapshot_that_shows_a_claim_as_it_was(shop: Shop) -> None:
    """Behaviour 54 (real): MySQL and MariaDB decide by what stands; PostgreSQL has nothing but the snapshot."""
    if shop.kind == "sqlite":
        pytest.skip("SQLite: test_a_transaction_that_has_read_too_early")
    shop.store.claim(NAME, owner="other", fingerprint=None, lease=60, ttl=1000)
    with shop.desk("connection", isolation_level="REPEATABLE READ") as desk:
        assert len(desk.execute("SELECT state FROM records")) == 1
        with shop.desk("connection") as resolving:
            assert resolving.ask("forget", KEY, force=True)
            assert resolving.ask("resolve", KEY, "by hand")
            resolving.commit()
        if shop.kind == "postgresql":
            with pytest.raises(InProgressError):
                desk.call(PLACE)
        else:
            assert desk.call(PLACE) == "by hand"


@pytest.mark.parametrize("limit", [20.0, None])
def test_what_a_call_costs(shop: Shop, limit: float | None) -> None:
    """Behaviour 46, as far as it can hold here: statements of a call that runs, and of one that replays."""
    if shop.kind == "sqlite":
        pytest.skip("SQLite has no network between")
    statements: list[str] = []
    with shop.desk("connection", lock_timeout=limit) as desk:
        desk.call(key="first")  # asks a MySQL server which it is
        sa.event.listen(desk.caller, "before_cursor_execute", lambda *args: statements.append(args[2]))
        found = []
        for _ in range(2):
            statements.clear()
            desk.call()
            found.append(len(statements))
    by_steps = isinstance(getattr(shop.store._server.statements, "_chosen", None), Stepwise)  # type: ignore[union-attr]
    runs, replays = (7, 4) if by_steps else (4, 3)
    extra = 2 if limit else 0
    assert found == [runs + extra, replays + extra]


def test_a_transaction_that_has_read_too_early(shop: Shop) -> None:
    """Behaviour 54 (real): on SQLite it may not write any more, and is told to begin again."""
    if shop.kind != "sqlite":
        pytest.skip("of SQLite alone")
    with closing(shop.engine.connect()) as connection, connection.begin():
        connection.exec_driver_sql("BEGIN")  # as SQLAlchemy's page on SQLite has it done at each begin
        connection.exec_driver_sql(shop.named("SELECT * FROM orders")).fetchall()
        duplicate(shop, "connection", PLACE)
        guard = Idempotency(shop.store.joining(connection), namespace="billing")
        with pytest.raises(StoreError, match="retry your transaction"):
            guard.run(KEY, lambda: "runs")


def test_an_error_that_the_body_hides_is_told(shop: Shop) -> None:
    """Behaviour 54 (real): PostgreSQL writes nothing after it; the others go on, and so may the body."""
    with shop.desk("connection") as desk:
        desk.execute("INSERT INTO orders VALUES (1, 'before')")

        def body() -> str:
            with pytest.raises(sa.exc.IntegrityError):
                desk.execute("INSERT INTO orders VALUES (1, 'again')")
            return "hidden"

        if shop.kind == "postgresql":
            with pytest.raises(StoreError, match="roll it back, and retry your transaction"):
                desk.guard.run(KEY, body)
        else:
            assert desk.guard.run(KEY, body) == "hidden"
        desk.commit()
    assert shop.placed() == [1]
    assert (shop.store.get(NAME) is None) == (shop.kind == "postgresql")


@pytest.mark.parametrize("colour", SOME)
def test_a_connection_that_is_cut_while_it_waits(shop: Shop, pool: ThreadPoolExecutor, colour: str) -> None:
    """Behaviour 54 (real): a StoreError, and nothing of it stands; the first is not disturbed."""
    kill = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
        "mysql": ("SELECT connection_id()", "KILL {}"),
    }
    if shop.kind not in kill:
        pytest.skip("SQLite has no server")

    def cut(number: Future[Any]) -> None:
        with shop.desk(colour) as other:
            number.set_result(other.execute(kill[shop.kind][0])[0][0])
            with pytest.raises(StoreError, match="connection to the database was lost"):
                other.call(PLACE)
            other.rollback()

    number: Future[Any] = Future()
    with shop.desk("connection") as desk:
        desk.call(PLACE)
        other = pool.submit(cut, number)
        victim = number.result(PATIENCE)
        blocked(shop)
        with shop.engine.connect() as killer:
            killer.exec_driver_sql(kill[shop.kind][1].format(victim))
        other.result(PATIENCE)
        desk.commit()
    assert shop.placed() == [42]


@pytest.mark.parametrize("colour", ["async connection", "async session"])
def test_a_duplicate_that_is_cancelled_while_it_waits(shop: Shop, pool: ThreadPoolExecutor, colour: str) -> None:
    """Behaviours 28, 54 (real): its statement is waited for, so that its transaction can go on."""

    def cancelled(begun: Future[Any]) -> None:
        with shop.desk(colour, lock_timeout=5) as desk:
            desk.execute("SELECT 1")

            async def body() -> str:
                await desk._execute(PLACE)  # type: ignore[attr-defined]
                return "placed"

            async def serve() -> None:
                task = asyncio.ensure_future(desk.guard.run_async(KEY, body, payload=None))
                for _ in range(5):
                    await asyncio.sleep(0)
                begun.set_result(task.cancel)
                with pytest.raises(asyncio.CancelledError):
                    await task

            shop.loop.run(serve())
            desk.execute("INSERT INTO orders VALUES (1, 'of the caller')")
            desk.commit()

    begun: Future[Any] = Future()
    with shop.desk("connection") as desk:
        desk.call(PLACE)
        other = pool.submit(cancelled, begun)
        cancel = begun.result(PATIENCE)
        blocked(shop)
        shop.loop.run(called(cancel))
        desk.commit()
    other.result(PATIENCE)
    assert shop.placed() == [1, 42]


async def called(call: Callable[[], Any]) -> Any:
    """Call on the loop."""
    return call()
