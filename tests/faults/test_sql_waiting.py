"""Calls that wait for news from PostgreSQL: news that is lost, connections that break, loops that end, and forks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from idempo import Idempotency, StoreError
from idempo.stores import _sql_listening, _sql_listening_async
from idempo.stores.sqlalchemy import SqlAlchemyStore
from tests.forked import in_child
from tests.servers.proxy import Proxy
from tests.sql_support import PATIENCE, Database, claimed, key, opened


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from opened(request, "postgresql")


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    assert database.url.host
    with Proxy(database.url.host, database.url.port or 0) as proxy:
        yield proxy


@pytest.fixture
def beside(database: Database) -> SqlAlchemyStore:
    """The same records, by a way that does not fail."""
    return database.store()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def change(store: SqlAlchemyStore, name: str = "order-42") -> None:
    store.delete(key(name))
    assert claimed(store, key(name)).acquired


@pytest.fixture
def _soon_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_sql_listening, _sql_listening_async):
        monkeypatch.setattr(module, "IDLE", 0.05)


def test_a_waiter_is_told_at_once(database: Database, beside: SqlAlchemyStore) -> None:
    """Behaviours 11, 13: by another store, long before its poll, or the lease of the holder, would come."""
    guard = Idempotency(database.store(), namespace="sql", wait=60)
    claimed(beside, key())
    watched = threading.Event()
    original = guard.store.watch  # type: ignore[attr-defined]

    def watch(*args: Any) -> Any:
        watched.set()
        return original(*args)

    guard.store.watch = watch  # type: ignore[attr-defined]
    values: list[str] = []
    waiter = threading.Thread(target=lambda: values.append(guard.run("order-42", lambda: "mine")))
    waiter.start()
    assert watched.wait(PATIENCE)
    beside.release(key(), owner="owner-a", ttl=60)
    waiter.join(PATIENCE)
    assert values == ["mine"]


def test_nothing_is_sent_where_nobody_waits(database: Database, beside: SqlAlchemyStore) -> None:
    """Behaviour 19: a notification is made for a key that somebody watches, and for no other."""
    told: list[str] = []
    store = database.store()
    lane = store._connections.open()
    lane.listen(f'LISTEN "{store._listener._statements.channel}"', told.append)  # type: ignore[attr-defined, union-attr]
    change(beside)
    with store.watch(key("watched"), lambda: None):
        change(beside)
        change(beside, "watched")
        lane.execute("SELECT 1", {})
        lane.notified()  # type: ignore[attr-defined]
        assert len(told) == 1
    lane.close()


@pytest.mark.realtime
def test_a_call_whose_news_was_lost_is_woken_by_its_poll(database: Database, beside: SqlAlchemyStore) -> None:
    """Behaviour 19: here nothing is sent at all."""
    silent = database.store(notify=False)
    assert not hasattr(silent, "watch")
    guard = Idempotency(database.store(), namespace="sql", wait=60)
    claimed(silent, key())
    listener = guard.store._listener  # type: ignore[attr-defined]
    values: list[str] = []
    waiter = threading.Thread(target=lambda: values.append(guard.run("order-42", lambda: "mine")))
    waiter.start()
    until(lambda: any(watched.ready.is_set() for watched in listener._watched.values()))
    silent.release(key(), owner="owner-a", ttl=60)
    waiter.join(PATIENCE)
    assert values == ["mine"]


def test_after_its_connection_broke_everybody_looks_again(
    database: Database, proxy: Proxy, beside: SqlAlchemyStore
) -> None:
    """Behaviour 19: news may have been lost meanwhile; then it goes on as before."""
    store = database.store(proxy.port)
    woken = threading.Event()
    with store.watch(key(), woken.set):
        proxy.cut()
        assert woken.wait(PATIENCE)  # that it is lost
        until(lambda: not any(watched.lost for watched in store._listener._watched.values()))  # type: ignore[union-attr]
        woken.clear()
        change(beside)
        assert woken.wait(PATIENCE)


@pytest.mark.usefixtures("_soon_idle")
def test_where_there_is_no_connection_to_listen_by_who_waits_polls(
    database: Database, proxy: Proxy, beside: SqlAlchemyStore
) -> None:
    """Behaviours 19, 48: it is told soon that nothing will be told."""
    store = database.store(proxy.port)
    proxy.refuse()
    with pytest.raises(StoreError, match="does not tell"), store.watch(key(), lambda: None):
        pytest.fail("nobody listens")
    proxy.accept()
    until(lambda: store._listener._thread is None)  # type: ignore[union-attr]
    woken = threading.Event()
    with store.watch(key(), woken.set):
        change(beside)
        assert woken.wait(PATIENCE)


@pytest.mark.usefixtures("_soon_idle")
def test_a_listener_that_nobody_needs_ends(database: Database, beside: SqlAlchemyStore) -> None:
    """Behaviour 20: its thread and its connection; who comes later has another."""
    store = database.store()
    for _ in range(2):
        woken = threading.Event()
        with store.watch(key(), woken.set):
            change(beside)
            assert woken.wait(PATIENCE)
        until(lambda: store._listener._thread is None)  # type: ignore[union-attr]
    with store.watch(key(), lambda: None):
        store.close()
        assert store._listener._thread is None  # type: ignore[union-attr]


@pytest.mark.realtime
@pytest.mark.usefixtures("_soon_idle")
def test_a_listener_stays_while_somebody_waits_and_hears_what_is_told_to_others(
    database: Database, beside: SqlAlchemyStore
) -> None:
    """Behaviours 11, 19: one channel for a table; each is woken for its own key."""
    store, coroutines = database.store(), database.async_store()
    woken, others = threading.Event(), threading.Event()

    async def main() -> None:
        async with coroutines.watch(key("third"), lambda: None):
            await asyncio.sleep(0.2)
            change(beside, "other")
            assert await asyncio.to_thread(others.wait, PATIENCE)
            await asyncio.sleep(0.1)
            mine = coroutines._listener._of_loop()  # type: ignore[union-attr]
            assert mine.task is not None
        await coroutines.aclose()

    with store.watch(key(), woken.set), beside.watch(key("other"), others.set):
        asyncio.run(main())
        assert not woken.is_set()
        change(beside)
        assert woken.wait(PATIENCE)


@pytest.mark.usefixtures("_soon_idle")
def test_coroutines_are_told_on_each_of_their_loops(database: Database, proxy: Proxy, beside: SqlAlchemyStore) -> None:
    """Behaviours 19, 42: a task of each loop listens, through cut connections, and ends when nobody needs it."""
    store = database.async_store(proxy.port)

    async def main() -> None:
        woken = asyncio.Event()
        async with store.watch(key(), woken.set):
            await asyncio.to_thread(change, beside)
            await asyncio.wait_for(woken.wait(), PATIENCE)
            woken.clear()
            proxy.cut()
            await asyncio.wait_for(woken.wait(), PATIENCE)
            mine = store._listener._of_loop()  # type: ignore[union-attr]
            while any(watched.lost for watched in mine.watched.values()):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.01)
            woken.clear()
            async with store.watch(key(), lambda: None):
                await asyncio.to_thread(change, beside)
            await asyncio.wait_for(woken.wait(), PATIENCE)
        while mine.task is not None:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)
        proxy.refuse()
        with pytest.raises(StoreError, match="does not tell"):
            async with store.watch(key(), woken.set):
                pytest.fail("nobody listens")
        proxy.accept()

    async def last() -> None:
        async with store.watch(key(), lambda: None):
            await store.aclose()

    asyncio.run(main())
    asyncio.run(main())
    asyncio.run(last())


def test_a_forked_child_listens_for_itself(database: Database, beside: SqlAlchemyStore) -> None:
    """Behaviour 43: and its parent's listener hears as before."""
    store = database.store()
    theirs = threading.Event()

    def child() -> None:
        woken = threading.Event()
        fresh = SqlAlchemyStore(sa.create_engine(database.url), table=database.table)
        with store.watch(key("child"), woken.set):
            change(fresh, "child")
            assert woken.wait(PATIENCE)
        store.close()
        fresh.close()

    with store.watch(key(), theirs.set):
        in_child(child)
        change(beside)
        assert theirs.wait(PATIENCE)


def test_coroutines_of_a_forked_child_listen_for_themselves(database: Database, beside: SqlAlchemyStore) -> None:
    """Behaviour 43: on the child's own loop; the parent's loop hears as before."""
    store = database.async_store()

    async def hear() -> None:
        woken = asyncio.Event()
        async with store.watch(key(), woken.set):
            fresh = SqlAlchemyStore(sa.create_engine(database.url), table=database.table)
            await asyncio.to_thread(change, fresh)
            await asyncio.wait_for(woken.wait(), PATIENCE)
            fresh.close()

    def child() -> None:
        failed: list[BaseException] = []

        def work() -> None:
            try:
                asyncio.run(hear())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not failed, failed

    async def main() -> None:
        woken = asyncio.Event()
        async with store.watch(key(), woken.set):
            in_child(child)
            await asyncio.to_thread(change, beside)
            await asyncio.wait_for(woken.wait(), PATIENCE)
        await store.aclose()

    asyncio.run(main())


def test_who_waits_is_not_kept_from_polling_by_a_server_that_does_not_answer(
    database: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviours 19, 48: bounded, and shorter than a call's own time-out."""
    for module in (_sql_listening, _sql_listening_async):
        monkeypatch.setattr(module, "PATIENCE", 0.1)
    store, coroutines = database.store(proxy.port), database.async_store(proxy.port)
    proxy.delay(3)
    with pytest.raises(StoreError, match="does not tell"), store.watch(key(), lambda: None):
        pytest.fail("it cannot listen yet")

    async def main() -> None:
        with pytest.raises(StoreError, match="does not tell"):
            async with coroutines.watch(key(), lambda: None):
                pytest.fail("it cannot listen yet")
        await coroutines.aclose()

    asyncio.run(main())
    proxy.cut()
    monkeypatch.undo()
    store.close()
