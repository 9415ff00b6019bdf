"""Processes that fork while SqlAlchemyStore and AsyncSqlAlchemyStore have connections to an SQLite file."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from idempo.stores._sql_drivers import AioSqliteLane
from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore
from tests.forked import in_child, said_by_child
from tests.sql_support import PATIENCE, claimed, key

DESCRIPTORS = Path("/proc/self/fd")

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def is_open(file: Path) -> bool:
    """Say whether this process has a descriptor of the file, or of what SQLite keeps beside it."""
    found = [os.readlink(entry) for entry in DESCRIPTORS.iterdir() if entry.is_symlink()]
    return any(name.startswith(str(file)) for name in found)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return (tmp_path / "app.db").resolve()


@pytest.fixture
def engine(file: Path) -> Iterator[sa.Engine]:
    made = sa.create_engine(f"sqlite:///{file}")
    yield made
    made.dispose()


@pytest.fixture
def store(engine: sa.Engine) -> Iterator[SqlAlchemyStore]:
    with SqlAlchemyStore(engine) as store:
        store.create_table()
        yield store


def test_no_idle_connection_crosses_a_fork(store: SqlAlchemyStore) -> None:
    """Behaviour 43: an open one would take the parent's locks with it when it is closed."""
    claimed(store, key())

    def child() -> None:
        assert not store._connections._idle
        assert not claimed(store, key(), "child").acquired

    in_child(child)
    assert not store._connections._idle
    assert store.complete(key(), owner="owner-a", outcome=b"", ttl=60)


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="this system does not list open files")
def test_a_child_has_no_descriptor_of_the_file(file: Path, store: SqlAlchemyStore) -> None:
    """Behaviour 43: not even by what made the table."""
    in_child(lambda: claimed(store, key("child's")))
    assert said_by_child(lambda: is_open(file)) == "False"
    claimed(store, key())
    assert is_open(file)
    assert said_by_child(lambda: is_open(file)) == "False"


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="this system does not list open files")
def test_a_fork_waits_for_a_connection_in_use(file: Path, engine: sa.Engine) -> None:
    """Behaviour 43: another thread's call ends first, no other begins, and its connection does not cross."""
    inside, forking = threading.Event(), threading.Event()
    deadline = time.monotonic() + PATIENCE

    def clock() -> float:
        inside.set()
        # Once the fork has what is free, and waits for the one that is in use.
        while store._connections._slots._value and not forking.is_set() and time.monotonic() < deadline:
            time.sleep(0.001)
        forking.set()
        return time.time()

    with (
        SqlAlchemyStore(engine, clock=clock, max_connections=2, timeout=PATIENCE) as store,
        ThreadPoolExecutor(1) as pool,
    ):
        store.create_table()
        call = pool.submit(claimed, store, key())
        assert inside.wait(PATIENCE)

        def child() -> bool:
            was_open = is_open(file)
            assert not claimed(store, key(), "child").acquired
            assert claimed(store, key("child's"), "child").acquired
            return was_open

        assert said_by_child(child) == "False"
        assert call.result(PATIENCE).acquired
        assert store.complete(key(), owner="owner-a", outcome=b"", ttl=60)
        assert store.complete(key("child's"), owner="child", outcome=b"", ttl=60)


def test_a_fork_does_not_wait_for_ever(engine: sa.Engine) -> None:
    """Behaviour 43: for a call that is stuck it waits within bounds, and the child has room for as many as before."""
    inside, go_on = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread() is not threading.main_thread() and not inside.is_set():
            inside.set()
            assert go_on.wait(PATIENCE)
        return time.time()

    with SqlAlchemyStore(engine, clock=clock, max_connections=1, timeout=0.01) as store, ThreadPoolExecutor(1) as pool:
        store.create_table()
        call = pool.submit(claimed, store, key())
        assert inside.wait(PATIENCE)
        in_child(lambda: claimed(store, key("child's")))
        go_on.set()
        assert call.result(PATIENCE).acquired


def async_store(file: Path, **options: Any) -> AsyncSqlAlchemyStore:
    return AsyncSqlAlchemyStore(create_async_engine(f"sqlite+aiosqlite:///{file}"), **options)


async def claimed_by_coroutine(store: AsyncSqlAlchemyStore, value: str, owner: str = "owner-a") -> bool:
    claim = await store.claim(key(value), owner=owner, fingerprint=None, lease=60, ttl=60)
    return claim.acquired


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="this system does not list open files")
def test_no_connection_of_a_coroutine_crosses_a_fork(file: Path) -> None:
    """Behaviour 43: by aiosqlite, forked by the loop's own thread; both sides see each other's records."""

    async def main() -> None:
        async with async_store(file) as store:
            await store.create_table()
            assert await claimed_by_coroutine(store, "parent's")
            assert is_open(file)

            def child() -> bool:
                was_open = is_open(file)
                claims = [*map(partial(claimed_by_coroutine, store, owner="child"), ("parent's", "child's"))]
                assert [in_own_loop(claim) for claim in claims] == [False, True]
                return was_open

            assert said_by_child(child) == "False"
            assert await store.complete(key("parent's"), owner="owner-a", outcome=b"", ttl=60)
            assert not await claimed_by_coroutine(store, "child's")

    asyncio.run(main())


def in_own_loop(work: Coroutine[Any, Any, bool]) -> bool:
    """Run a coroutine on a loop of a thread's own: that of this one is the parent's."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result(PATIENCE)


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="this system does not list open files")
@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
def test_calls_of_coroutines_amid_which_a_process_forks_are_not_lost(
    file: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """Behaviour 43: forked by the loop's own thread, between or during their statements; each is answered truly."""
    forked: list[str] = []
    is_due = False
    execute = AioSqliteLane.execute

    async def forking(self: AioSqliteLane, asked: str, params: Mapping[str, Any]) -> Any:
        work = execute(self, asked, params)
        nonlocal is_due
        if asked != statement or not is_due:
            return await work
        is_due = False
        # It is on its way to the connection's thread, or was carried out there, as the loop's thread forks.
        under_way = asyncio.ensure_future(work)
        await asyncio.sleep(0)
        forked.append(said_by_child(lambda: is_open(file)))
        return await under_way

    monkeypatch.setattr(AioSqliteLane, "execute", forking)

    async def main() -> None:
        nonlocal is_due
        async with async_store(file) as store:
            await store.create_table()
            await asyncio.gather(*(store.get(key(str(n))) for n in range(5)))  # all connections are open
            is_due = True
            assert await asyncio.gather(*(claimed_by_coroutine(store, str(n)) for n in range(5))) == [True] * 5
            for n in range(5):
                assert not await claimed_by_coroutine(store, str(n), "owner-b")
                assert await store.complete(key(str(n)), owner="owner-a", outcome=b"", ttl=60)

    asyncio.run(main())
    assert forked == ["False"]


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="this system does not list open files")
def test_connections_of_another_threads_loop_cross_no_fork(file: Path) -> None:
    """Behaviour 43: while its coroutines claim, and it opens connections and closes them."""
    end, begun = threading.Event(), threading.Event()

    async def busy() -> int:
        n = 0
        store = async_store(file, max_connections=3)
        await store.create_table()
        while not end.is_set():
            async with async_store(file, max_connections=3) as other:
                values = [f"{n}-{each}" for each in range(4)]
                assert all(await asyncio.gather(*(claimed_by_coroutine(other, value) for value in values)))
                assert not any(await asyncio.gather(*(claimed_by_coroutine(store, value, "b") for value in values)))
            n += 1
            begun.set()
        await store.aclose()
        return n

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(asyncio.run, busy())
        try:
            assert begun.wait(PATIENCE)
            for _ in range(5):
                assert said_by_child(lambda: is_open(file)) == "False"
        finally:
            end.set()
        assert call.result(PATIENCE)
