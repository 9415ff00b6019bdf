"""Whatever is connected to says nothing: no store that a URL makes waits for it without end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from idempo import StoreError
from idempo.records import Key
from idempo.stores import _opening, async_store_from_url, store_from_url

LIMIT = 20.0
"""Seconds in which a store must have given up: clients try several times, and psycopg for 2 seconds at least."""
KEY = Key("silent", "order-42")
ASKED: dict[str, Any] = {"owner": "a", "fingerprint": None, "lease": 60.0, "ttl": 60.0}

pytestmark = pytest.mark.realtime

PLAIN = [
    "redis://{}",
    "redis+cluster://{}",
    "postgresql+psycopg://app@{}/app",
    "mysql+pymysql://app@{}/app",
    "mariadb+pymysql://app@{}/app",
    "memcached://{}",
    "memcached://{0},{0}",
    "nats://{}?timeout=0.3",
]
OF_COROUTINES = [url.replace("pymysql", "asyncmy") for url in PLAIN if "memcached" not in url]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the address of a socket where one is connected and told nothing; the default of 5 seconds is made less."""
    monkeypatch.setattr(_opening, "_PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def in_time(work: Any) -> None:
    """Do it in a thread, so that one who waits without end is seen to."""
    pool = ThreadPoolExecutor(1)
    try:
        error = pool.submit(work).exception(LIMIT)
    finally:
        pool.shutdown(wait=False)
    assert isinstance(error, StoreError)


@pytest.mark.parametrize("url", PLAIN)
def test_a_store_from_a_url_gives_up(address: str, url: str) -> None:
    """Behaviour 48: by the URL's time-out, or the default one."""

    def ask() -> None:
        with store_from_url(url.format(address)) as store:
            store.claim(KEY, **ASKED)

    in_time(ask)


@pytest.mark.parametrize("url", OF_COROUTINES)
def test_a_store_of_coroutines_from_a_url_gives_up(address: str, url: str) -> None:
    """Behaviour 48: as the other does."""

    async def main() -> None:
        async with async_store_from_url(url.format(address)) as store:
            claim: Any = store.claim
            await claim(KEY, **ASKED)

    in_time(lambda: asyncio.run(main()))


@pytest.mark.parametrize("url", [url for url in PLAIN if "sql" in url])
def test_making_the_table_gives_up(address: str, url: str) -> None:
    """Behaviour 48: by the limits that the URL's engine has."""

    def make() -> None:
        store: Any = store_from_url(url.format(address))
        with store:
            store.create_table()

    in_time(make)


@pytest.mark.parametrize("url", [url for url in OF_COROUTINES if "sql" in url])
def test_making_the_table_by_coroutines_gives_up(address: str, url: str) -> None:
    """Behaviour 48: and whatever the engine is, for what coroutines do can be broken off."""

    async def main() -> None:
        store: Any = async_store_from_url(url.format(address))
        async with store:
            await store.create_table()

    in_time(lambda: asyncio.run(main()))
