"""SqlAlchemyStore.joining: which callers it takes, and how ORM sessions follow their savepoints (behaviour 54)."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pymysql
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from idempo import EventKind, Idempotency, Key, LeaseLostError, State, StoreError
from idempo.errors import RecordError
from idempo.protocols import AsyncStore, AsyncTransactionalStore, Store, TransactionalStore
from idempo.stores.sqlalchemy import SqlAlchemyStore
from tests.sql_joining_support import COLOURS, DATABASES, KEY, NAME, PLACE, OutOfStockError, Shop, mysql_shop, shops


@pytest.fixture(params=DATABASES)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """A shop on one database."""
    yield from shops(request, tmp_path)


@pytest.fixture
def file_shop(tmp_path: Path) -> Iterator[Shop]:
    """A shop in a file, for what needs no server."""
    request = cast("pytest.FixtureRequest", type("Request", (), {"param": "sqlite"}))
    yield from shops(request, tmp_path)


def guard_of(shop: Shop, caller: Any) -> Idempotency:
    """Return a guard that joins a transaction."""
    return Idempotency(shop.store.joining(caller), namespace="billing", observers=[shop.events.append])


def test_they_are_stores_and_say_what_they_are(file_shop: Shop) -> None:
    """A driver asks for the ability; the stores that they were made by have it not."""
    with file_shop.desk("connection") as desk, file_shop.desk("async connection") as async_desk:
        joining = file_shop.store.joining(desk.caller)
        async_joining = file_shop.async_store.joining(async_desk.caller)
        assert isinstance(joining, Store)
        assert isinstance(joining, TransactionalStore)
        assert isinstance(async_joining, AsyncStore)
        assert isinstance(async_joining, AsyncTransactionalStore)
        assert not isinstance(file_shop.store, TransactionalStore)
        assert repr(joining).startswith("JoiningSqlAlchemyStore(<sqlalchemy")
        assert repr(async_joining).startswith("AsyncJoiningSqlAlchemyStore(<sqlalchemy")
        with joining.savepoint():  # without a guard
            assert joining.claim(NAME, owner="me", fingerprint=None, lease=15, ttl=60).acquired
        with pytest.raises(TypeError, match="plain functions"):
            Idempotency(joining).idempotent(key=lambda: KEY, namespace="place")(asyncio.sleep)
        with pytest.raises(TypeError, match="AsyncStore"):
            Idempotency(async_joining).run(KEY, lambda: None)


def test_a_connection_in_no_transaction_is_refused(shop: Shop) -> None:
    """Behaviour 54: when it is joined, and when its transaction has ended since."""
    with shop.engine.connect() as connection:
        with pytest.raises(ValueError, match="in no transaction"):
            shop.store.joining(connection)
        connection.begin()
        guard = guard_of(shop, connection)
        connection.commit()
        with pytest.raises(ValueError, match="in no transaction"):
            guard.run(KEY, pytest.fail, "runs")
        with pytest.raises(ValueError, match="in no transaction"):
            guard.lookup(KEY)
    with pytest.raises(ValueError, match="in no transaction"):
        shop.store.joining(connection)  # closed
    with pytest.raises(ValueError, match="in no transaction"):
        shop.async_store.joining(shop.async_engine.connect())  # not opened
    assert shop.store.get(NAME) is None


@pytest.mark.parametrize("colour", COLOURS)
def test_autocommit_is_refused(shop: Shop, colour: str) -> None:
    """Behaviour 54 (real): before anything runs, and nothing is left behind."""
    with shop.desk(colour, isolation_level="AUTOCOMMIT") as desk:
        with pytest.raises(ValueError, match="in autocommit"):
            desk.call(PLACE)
        with pytest.raises(ValueError, match="in autocommit"):
            desk.ask("resolve", KEY, "by hand")
    assert (shop.store.get(NAME), shop.placed()) == (None, [])


def test_a_transaction_that_was_begun_by_hand_is_one(shop: Shop) -> None:
    """Behaviour 54 (real): in autocommit too, where the driver can tell."""
    with shop.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN")
        guard_of(shop, connection).run(KEY, lambda: connection.exec_driver_sql(shop.named(PLACE)) and None)
        connection.exec_driver_sql("ROLLBACK")
    assert (shop.store.get(NAME), shop.placed()) == (None, [])


def test_a_session_begins_its_transaction_by_itself(shop: Shop) -> None:
    """Behaviour 54: as with all that it does; one that was told not to is refused."""
    with Session(shop.engine) as session:
        guard_of(shop, session).run(KEY, session.execute, sa.text(shop.named("SELECT 1")), payload=None)
        assert session.in_transaction()
        session.rollback()
    assert shop.store.get(NAME) is None
    with Session(shop.engine, autobegin=False) as session:
        guard = guard_of(shop, session)
        with pytest.raises(ValueError, match="in no transaction"):
            guard.run(KEY, pytest.fail, "runs")
        with session.begin():
            guard.run(KEY, lambda: None)
    assert shop.store.get(NAME) is not None


def test_what_is_no_caller_is_refused(file_shop: Shop, tmp_path: Path) -> None:
    """Behaviour 54: a typed error, which says what was wrong, before any effect."""
    for wrong in (file_shop.engine, file_shop.async_engine.connect(), "connection"):
        with pytest.raises(TypeError, match=r"sqlalchemy\.Connection or an sqlalchemy\.orm\.Session is needed"):
            file_shop.store.joining(cast("Any", wrong))
    with Session(file_shop.engine) as session:
        with pytest.raises(TypeError, match="an AsyncConnection or an AsyncSession"):
            file_shop.async_store.joining(cast("Any", session))
        with pytest.raises(TypeError, match="lock_timeout"):
            file_shop.store.joining(session, lock_timeout=cast("Any", "long"))
        with pytest.raises(ValueError, match="lock_timeout"):
            file_shop.store.joining(session, lock_timeout=-1)
    other = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    for engine in (other, sa.create_engine("sqlite://")):
        with Session(engine) as session, pytest.raises(ValueError, match="belong in the same database"):
            file_shop.store.joining(session)
        engine.dispose()
    postgres = sa.create_engine("postgresql+psycopg://localhost/app")
    with Session(postgres) as session:
        with pytest.raises(ValueError, match=r"postgresql\+psycopg, and the store's engine is sqlite\+pysqlite"):
            file_shop.store.joining(session)


def test_the_same_file_by_another_name_is_the_same_database(file_shop: Shop, tmp_path: Path) -> None:
    """Behaviour 54: a link leads to it."""
    (tmp_path / "link.db").symlink_to(tmp_path / "shop.db")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'link.db'}")
    with engine.begin() as connection:
        guard_of(file_shop, connection).run(KEY, lambda: None)
    engine.dispose()
    assert file_shop.store.get(NAME) is not None


def test_scoped_sessions_are_sessions(file_shop: Shop) -> None:
    """Behaviour 54: the one of this thread, or task, is joined."""
    sessions = scoped_session(sessionmaker(file_shop.engine))
    guard_of(file_shop, sessions).run(KEY, lambda: None)
    sessions.rollback()
    sessions.remove()
    assert file_shop.store.get(NAME) is None

    async def serve() -> None:
        async_sessions = async_scoped_session(async_sessionmaker(file_shop.async_engine), asyncio.current_task)
        guard = Idempotency(file_shop.async_store.joining(async_sessions), namespace="billing")
        await guard.run_async(KEY, asyncio.sleep, 0)
        await async_sessions.commit()
        await async_sessions.remove()

    file_shop.loop.run(serve())
    assert file_shop.store.get(NAME) is not None


def test_a_session_of_several_binds_names_the_tables_own(file_shop: Shop, tmp_path: Path) -> None:
    """Behaviour 54: as it does for its other tables."""
    other = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    orders = sa.table(file_shop.orders)
    with Session(binds={orders: file_shop.engine}) as session:
        with pytest.raises(ValueError, match=r"no bind for table records_.*binds="):
            file_shop.store.joining(session)
    with Session(other, binds={file_shop.store.table: file_shop.engine}) as session, session.begin():
        guard_of(file_shop, session).run(KEY, lambda: None)
    other.dispose()
    assert file_shop.store.get(NAME) is not None


def test_a_table_that_is_not_there_is_told(shop: Shop) -> None:
    """Behaviour 54 (real): and so is one that is not ours; the caller's transaction goes on."""
    absent = SqlAlchemyStore(shop.engine, table=f"{shop.records}x")
    foreign = SqlAlchemyStore(shop.engine, table=shop.orders)
    with shop.engine.connect() as connection:
        connection.begin()
        connection.exec_driver_sql(shop.named(PLACE))
        with pytest.raises(StoreError, match=r"create_table\(\)"):
            Idempotency(absent.joining(connection)).run(KEY, pytest.fail, "runs")
        with pytest.raises(RecordError):
            Idempotency(foreign.joining(connection)).run(KEY, pytest.fail, "runs")
        connection.commit()
    absent.close()
    foreign.close()
    assert shop.placed() == [42]


def test_a_damaged_record_is_told(shop: Shop) -> None:
    """Behaviour 35: and leaves no limit behind."""
    shop.store.claim(NAME, owner="other", fingerprint=None, lease=60, ttl=1000)
    with shop.engine.begin() as connection:
        connection.exec_driver_sql(shop.named("UPDATE records SET attempt = 7"))
        with pytest.raises(RecordError, match="damaged"):
            guard_of(shop, connection).run(KEY, pytest.fail, "runs")
        with pytest.raises(RecordError, match="damaged"):
            guard_of(shop, connection).resolve(KEY, "by hand")
        guard_of(shop, connection).forget(KEY, force=True)
        guard_of(shop, connection).run(KEY, lambda: "mended")
    assert shop.store.get(NAME) is not None


@pytest.mark.parametrize("raises", [False, True])
def test_a_connection_that_is_cut_is_told(shop: Shop, raises: bool) -> None:
    """Behaviour 54 (real): the server has rolled back, and nothing is kept."""
    ends = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
        "mysql": ("SELECT connection_id()", "KILL {}"),
    }
    if shop.kind not in ends:
        pytest.skip("SQLite has no server")
    which, kill = ends[shop.kind]
    with shop.engine.connect() as connection:
        connection.begin()
        number = connection.exec_driver_sql(which).scalar()

        def body() -> None:
            connection.exec_driver_sql(shop.named(PLACE))
            with shop.engine.connect() as other:
                other.exec_driver_sql(kill.format(number))
            if raises:
                raise OutOfStockError

        with pytest.raises(OutOfStockError if raises else StoreError):
            guard_of(shop, connection).run(KEY, body)
        assert shop.kinds()[0] == EventKind.STORE_FAILED
        with pytest.raises(StoreError, match="cannot go on"):
            guard_of(shop, connection).run(KEY, pytest.fail, "runs")
    assert (shop.store.get(NAME), shop.placed()) == (None, [])


def test_a_statement_that_commits_by_itself_is_told(shop: Shop) -> None:
    """Behaviour 54 (real): MySQL and MariaDB commit before they make a table."""
    if shop.kind != "mysql":
        pytest.skip("elsewhere it is part of the transaction")

    def body(connection: sa.Connection) -> None:
        connection.exec_driver_sql(shop.named(PLACE))
        connection.exec_driver_sql(shop.named("CREATE TABLE IF NOT EXISTS orders (id INTEGER)"))

    with shop.engine.connect() as connection:
        connection.begin()
        with pytest.raises(LeaseLostError, match="committed or rolled back"):
            guard_of(shop, connection).run(KEY, body, connection, payload=None)
        connection.rollback()
    record = shop.store.get(NAME)
    assert record is not None
    assert (record.state, shop.placed()) == (State.RUNNING, [42])


@pytest.mark.parametrize("colour", COLOURS)
def test_every_method_stays_in_the_transaction(shop: Shop, colour: str) -> None:
    """Renew, release and delete too."""
    with shop.desk(colour) as desk:
        joining: Any = desk.guard.store

        def ask(method: str, *args: Any, **options: Any) -> Any:
            answer = getattr(joining, method)(*args, **options)
            return shop.loop.run(answer) if colour.startswith("async") else answer

        claimed = {"owner": "a", "fingerprint": b"x", "lease": 60, "ttl": 100}
        assert ask("claim", NAME, **claimed).acquired
        assert ask("renew", NAME, owner="a", lease=30, ttl=100)
        assert ask("release", NAME, owner="a", ttl=100)
        assert ask("get", NAME).state is State.RELEASED
        assert ask("delete", NAME, owner="a")
        assert not ask("delete", NAME)
        assert not ask("release", NAME, owner="b", ttl=100)
        assert ask("claim", NAME, **claimed).record.attempt == 1
        assert shop.store.get(NAME) is None
        desk.rollback()
    assert shop.store.get(NAME) is None


# -- ORM ---------------------------------------------------------------------------------------------------------------


def order_class(shop: Shop) -> Any:
    """Return a class for the shop's orders."""

    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = shop.orders
        id: Mapped[int] = mapped_column(primary_key=True)
        item: Mapped[str | None]

    return Order


def test_objects_are_written_before_the_savepoint_is_released(shop: Shop) -> None:
    """Behaviour 54 (real): those of the body in it, and those of the caller before it."""
    order = order_class(shop)
    with Session(shop.engine) as session, session.begin():
        session.add(order(id=1, item="before"))
        with pytest.raises(OutOfStockError):

            def fails() -> None:
                session.add(order(id=2, item="undone"))
                session.get(order, 1).item = "changed"
                raise OutOfStockError

            guard_of(shop, session).run("fails", fails)
        assert [found.item for found in session.scalars(sa.select(order))] == ["before"]
        guard_of(shop, session).run(KEY, lambda: session.add(order(id=42, item="book")), payload=None)
        assert not session.new
    record = shop.store.get(NAME)
    assert record is not None
    assert (record.state, shop.placed()) == (State.COMPLETED, [1, 42])


def test_objects_that_the_database_refuses_undo_the_body(shop: Shop) -> None:
    """Behaviour 54 (real): at the end of the body, the error is its own; before it began, the caller's."""
    order = order_class(shop)
    with Session(shop.engine) as session:
        session.add(order(id=1, item="before"))
        with pytest.raises(sa.exc.IntegrityError):
            guard_of(shop, session).run(KEY, lambda: session.add(order(id=1, item="again")))
        assert guard_of(shop, session).lookup(KEY) is None
        guard_of(shop, session).run(KEY, lambda: session.add(order(id=42, item="book")), payload=None)
        session.commit()
    assert shop.placed() == [1, 42]
    assert shop.kinds() == [EventKind.RELEASED, EventKind.EXECUTED]
    with Session(shop.engine) as session:
        session.add(order(id=42, item="again"))
        with pytest.raises(sa.exc.IntegrityError):
            guard_of(shop, session).run("other", pytest.fail, "runs")


def test_a_savepoint_that_the_body_leaves_open_is_released_with_it(shop: Shop) -> None:
    """Behaviour 54 (real): and rolled back with it where the body raises."""
    order = order_class(shop)

    def body(number: int, error: Exception | None = None) -> None:
        session.begin_nested()
        session.add(order(id=number, item="book"))
        session.flush()
        if error is not None:
            raise error

    with Session(shop.engine) as session:
        with pytest.raises(OutOfStockError):
            guard_of(shop, session).run("fails", body, 1, OutOfStockError(), payload=None)
        guard_of(shop, session).run(KEY, body, 42, payload=None)
        session.commit()
    assert shop.placed() == [42]


def test_a_listener_that_refuses_is_the_bodys_error(file_shop: Shop) -> None:
    """Behaviour 54: a ValueError too, which is no sign that there was no transaction."""
    order = order_class(file_shop)

    def refuse(*_: object) -> None:
        raise ValueError("out of stock")

    sa.event.listen(order, "before_insert", refuse)
    with Session(file_shop.engine) as session:
        with pytest.raises(ValueError, match="out of stock"):
            guard_of(file_shop, session).run(KEY, lambda: session.add(order(id=1)), payload=None)
        session.commit()
    assert (file_shop.store.get(NAME), file_shop.placed()) == (None, [])
    assert file_shop.kinds() == [EventKind.RELEASED]


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_a_body_that_ends_the_sessions_transaction_is_told(shop: Shop, end: str) -> None:
    """Behaviour 54 (real): and what it raises itself comes first."""
    order = order_class(shop)
    for error in (None, OutOfStockError()):
        with Session(shop.engine) as session:

            def body(session: Session = session, error: Exception | None = error) -> str:
                session.add(order(id=42, item="book"))
                session.flush()
                getattr(session, end)()
                if error is not None:
                    raise error
                return "placed"

            with pytest.raises(LeaseLostError if error is None else OutOfStockError):
                guard_of(shop, session).run(KEY, body, payload=None)
            session.rollback()
        with shop.engine.begin() as connection:
            for table in ("orders", "records"):
                connection.exec_driver_sql(shop.named(f"DELETE FROM {table}"))


def test_a_closed_async_session_autobegins(file_shop: Shop) -> None:
    """Behaviour 54: as every session does: closing one only ends its transaction."""

    async def serve() -> None:
        session = AsyncSession(file_shop.async_engine)
        guard = Idempotency(file_shop.async_store.joining(session), namespace="billing")
        await guard.run_async(KEY, asyncio.sleep, 0)
        await session.close()
        assert await guard.run_async(KEY, asyncio.sleep, 0, "anew", payload=None) == "anew"
        await session.commit()
        await session.close()

    file_shop.loop.run(serve())
    assert file_shop.store.get(NAME) is not None


def test_a_session_and_its_connection_have_one_call_at_a_time(shop: Shop) -> None:
    """Behaviour 54: their savepoints are in one transaction, by whichever of them and whichever store it is joined."""
    outside = contextvars.copy_context()
    with Session(shop.engine) as session, session.begin():
        connection = session.connection(bind_arguments={"clause": sa.delete(shop.store.table)})
        for one, other in ((session, connection), (connection, session), (session, session), (connection, connection)):
            with guard_of(shop, one).operation(KEY) as operation:
                assert guard_of(shop, other).run("within", lambda: 1) == 1
                with pytest.raises(RuntimeError, match="follow one another"):
                    outside.run(guard_of(shop, other).run, "beside", pytest.fail, "runs")
                operation.complete(1)
            guard_of(shop, one).forget(KEY)
    with shop.engine.begin() as connection, Session(connection) as session:
        with guard_of(shop, session).operation("bound"):
            with pytest.raises(RuntimeError, match="follow one another"):
                outside.run(guard_of(shop, connection).run, "beside", pytest.fail, "runs")
        session.commit()


def test_coroutines_by_a_session_and_its_connection_follow_one_another(shop: Shop) -> None:
    """Behaviour 54: one of two that begin at once is refused, also where the session has no connection yet."""

    async def place(other: Callable[[], Awaitable[Any]]) -> str:
        await other()
        return "placed"

    def guard(caller: Any) -> Idempotency:
        return Idempotency(shop.async_store.joining(caller), namespace="billing")

    async def nothing() -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        async with AsyncSession(shop.async_engine) as session:
            calls = [guard(session).run_async(f"at once {n}", place, nothing, payload=n) for n in range(3)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert answers[0] == "placed"
            assert [type(answer) for answer in answers[1:]] == [RuntimeError, RuntimeError]
            connection = await session.connection(bind_arguments={"clause": sa.delete(shop.async_store.table)})
            for one in (session, connection):
                for other in (session, connection):
                    begun, go_on = asyncio.Event(), asyncio.Event()

                    async def wait(begun: asyncio.Event = begun, go_on: asyncio.Event = go_on) -> None:
                        begun.set()
                        await go_on.wait()

                    first = asyncio.ensure_future(guard(one).run_async(f"{one!r} {other!r}", place, wait, payload=1))
                    await begun.wait()
                    with pytest.raises(RuntimeError, match="follow one another"):
                        await guard(other).run_async("beside", place, nothing, payload=1)
                    go_on.set()
                    assert await first == "placed"
            await session.commit()

    shop.loop.run(main())


@pytest.mark.parametrize("mode", ["SIMULTANEOUS_ASSIGNMENT", "ORACLE", "ORACLE,NO_BACKSLASH_ESCAPES", "ANSI", ""])
def test_a_session_of_mariadb_may_be_in_any_mode(mysql_url: str, mode: str) -> None:
    """Behaviour 54 (real): some assign from the columns as they were; what is written can be read all the same."""
    if mode.startswith("ORACLE") and pymysql.VERSION < (1, 2, 1):
        pytest.skip("PyMySQL 1.2.1 is the first that writes bytes as hexadecimal digits, which no mode reads otherwise")
    shop = mysql_shop(mysql_url)
    fresh = {"fingerprint": b"\x01payload", "lease": 15, "ttl": 60}
    held, left, doubtful = Key("billing", "held"), Key("billing", "left"), Key("billing", "doubtful")
    with closing(shop), shop.desk("connection") as desk:
        desk.execute(f"SET SESSION sql_mode = '{mode}'")
        joining = shop.store.joining(desk.caller)
        assert desk.call(PLACE) == desk.call(PLACE) == "placed"
        assert joining.claim(held, owner="me", **fresh).acquired
        assert joining.claim(held, owner="me", **fresh).acquired
        assert not joining.claim(held, owner="you", **fresh).acquired
        assert joining.renew(held, owner="me", lease=20, ttl=60)
        assert joining.claim(left, owner="me", **fresh).acquired
        assert joining.release(left, owner="me", ttl=60)
        assert joining.claim(doubtful, owner="me", **fresh).acquired
        assert joining.renew(doubtful, owner="me", lease=0, ttl=60)
        assert joining.claim(doubtful, owner="you", **fresh).took_over
        assert joining.complete(doubtful, owner="you", outcome=b"a'\\'\x00", ttl=60)
        [(after,)] = desk.execute("SELECT @@sql_mode")
        assert set(mode.split(",")) <= set(after.split(","))
        desk.commit()
        assert shop.placed() == [42]
        states = [record.state for record in map(shop.store.get, (NAME, held, left, doubtful)) if record is not None]
        assert states == [State.COMPLETED, State.RUNNING, State.RELEASED, State.COMPLETED]
