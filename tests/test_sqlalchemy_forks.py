"""Processes that fork while SqlAlchemyStore and AsyncSqlAlchemyStore have connections to an SQLite file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from idempo.stores.sqlalchemy import SqlAlchemyStore
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
