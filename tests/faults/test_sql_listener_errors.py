"""What listens to PostgreSQL fails in ways of its own: who waits is told, and it listens again."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from idempo import StoreError
from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore
from tests.sql_support import PATIENCE, Database, claimed, key, opened


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from opened(request, "postgresql")


@pytest.fixture
def beside(database: Database) -> SqlAlchemyStore:
    """The same records, by a way that does not fail."""
    return database.store()


def change(store: SqlAlchemyStore, name: str = "order-42") -> None:
    store.delete(key(name))
    assert claimed(store, key(name)).acquired


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


class OddError(Exception):
    """An error that is none of a driver's, such as a listener of the engine's raises."""


class Fatal(BaseException):
    """What ends a thread, or a task, whatever it is about."""


ERRORS = [
    pytest.param(OddError("no secret today"), id="not-the-drivers"),
    pytest.param(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "of a notification"), id="not-text"),
    pytest.param(sa.exc.InvalidRequestError("the pool is used up"), id="sqlalchemys"),
]


def fails(engine: sa.Engine, listens: Callable[[], bool], errors: list[BaseException]) -> threading.Event:
    """Let a listener of the engine's raise these errors, one for each connection that is to listen."""
    raised = threading.Event()

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        if errors and listens():
            raised.set()
            connection.close()  # SQLAlchemy 2.0 forgets it
            raise errors.pop()

    return raised


def in_listener() -> bool:
    return threading.current_thread().name == "idempo-listener"


def in_task() -> bool:
    task = asyncio.current_task()
    return task is not None and task.get_name() == "idempo-listener"


@pytest.mark.parametrize("error", ERRORS)
def test_whatever_it_fails_with_it_listens_again(database: Database, beside: SqlAlchemyStore, error: Exception) -> None:
    """Behaviours 19, 48: who waits is told at once that nothing is told; the next who does hears of changes."""
    engine = database.engine(poolclass=sa.pool.NullPool)
    raised = fails(engine, in_listener, [error])
    store = SqlAlchemyStore(engine, table=database.table)
    began = time.monotonic()
    with pytest.raises(StoreError, match="does not tell"), store.watch(key(), lambda: None):
        pytest.fail("nobody listens")
    assert raised.is_set()
    hears_again(store, beside)
    assert time.monotonic() - began < PATIENCE
    store.close()


def hears_again(store: SqlAlchemyStore, beside: SqlAlchemyStore, name: str = "order-42") -> None:
    woken = threading.Event()
    with store.watch(key(name), woken.set):
        change(beside, name)
        assert woken.wait(PATIENCE)


def test_a_thread_that_was_ended_is_replaced(database: Database, beside: SqlAlchemyStore) -> None:
    """Behaviour 19: by whatever; nobody who waits is forgotten."""
    engine = database.engine(poolclass=sa.pool.NullPool)
    errors: list[BaseException] = []
    fails(engine, in_listener, errors)
    store = SqlAlchemyStore(engine, table=database.table)
    ended: list[Any] = []
    before, threading.excepthook = threading.excepthook, ended.append
    try:
        woken = threading.Event()
        with store.watch(key(), woken.set):
            errors.append(Fatal())
            store._listener._lane._connection.close()  # type: ignore[union-attr]
            store._listener._nudge[1].send(b"x")  # type: ignore[union-attr, index]
            until(lambda: ended)
            assert woken.is_set()
            woken.clear()
            hears_again(store, beside, "another")  # which is why there is a thread again
            change(beside)
            assert woken.wait(PATIENCE)
    finally:
        threading.excepthook = before
    store.close()


def test_a_connection_that_an_operator_ended_is_made_anew(database: Database, beside: SqlAlchemyStore) -> None:
    """Behaviour 48: by pg_terminate_backend."""
    store = database.store()
    woken = threading.Event()
    with store.watch(key(), woken.set):
        pid = store._listener._lane._connection.info.backend_pid  # type: ignore[union-attr]
        database.execute("SELECT pg_terminate_backend(:pid)", pid=pid)
        assert woken.wait(PATIENCE)  # that it is lost
        until(lambda: not any(watched.lost for watched in store._listener._watched.values()))  # type: ignore[union-attr]
        woken.clear()
        change(beside)
        assert woken.wait(PATIENCE)


@pytest.mark.parametrize("lacking", ["thread", "socket"])
def test_where_there_is_no_thread_to_listen_who_waits_polls(
    database: Database, beside: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """Behaviours 19, 48: nor a socket to nudge it by; once there is, all is as it should be."""
    store = database.store()

    def refused(*_: Any) -> Any:
        raise RuntimeError("can't start new thread") if lacking == "thread" else OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(*((threading.Thread, "start") if lacking == "thread" else (socket, "socketpair")), refused)
        for _ in range(2):
            with pytest.raises(StoreError, match="does not tell"), store.watch(key(), lambda: None):
                pytest.fail("nobody listens")
    hears_again(store, beside)


@pytest.mark.parametrize("error", ERRORS)
def test_a_task_that_fails_listens_again(database: Database, beside: SqlAlchemyStore, error: Exception) -> None:
    """Behaviours 19, 48: on the loop of those who wait, as above."""
    engine = database.async_engine()
    raised = fails(engine.sync_engine, in_task, [error])
    store = AsyncSqlAlchemyStore(engine, table=database.table)

    async def scenario() -> None:
        with pytest.raises(StoreError, match="does not tell"):
            async with store.watch(key(), lambda: None):
                pytest.fail("nobody listens")
        assert raised.is_set()
        woken = asyncio.Event()
        async with store.watch(key(), woken.set):
            await asyncio.to_thread(change, beside)
            await asyncio.wait_for(woken.wait(), PATIENCE)
        await store.aclose()

    asyncio.run(scenario())


def test_a_task_that_was_ended_is_replaced(database: Database, beside: SqlAlchemyStore) -> None:
    """Behaviour 19: whoever waits is told that nothing is told, and is not forgotten."""
    store = database.async_store()

    async def scenario() -> None:
        first, second = asyncio.Event(), asyncio.Event()
        async with store.watch(key(), first.set):
            mine = store._listener._of_loop()  # type: ignore[union-attr]
            assert mine.task is not None
            mine.task.cancel()
            await asyncio.wait_for(first.wait(), PATIENCE)
            first.clear()
            async with store.watch(key("another"), second.set):
                for name, woken in (("another", second), ("order-42", first)):
                    await asyncio.to_thread(change, beside, name)
                    await asyncio.wait_for(woken.wait(), PATIENCE)
        await store.aclose()

    asyncio.run(scenario())
