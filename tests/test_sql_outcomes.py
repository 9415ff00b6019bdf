"""What an SQL server does not take: it is lost, and nothing runs again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from idempo import Idempotency, ResultLostError, StoreError
from idempo.stores._sql_errors import translated
from idempo.stores.sqlalchemy import SqlAlchemyStore
from tests.sql_support import URLS, Database, claimed, key, opened

LARGEST = 8_000_000
QUOTES = b"'" * LARGEST
"""Of which each takes two bytes in a statement."""


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Any:
    yield from opened(request, "mariadb")


def test_a_store_says_what_it_takes(database: Database) -> None:
    """Of MariaDB and MySQL a number that fits the server's own default, and whatever is given."""
    with database.store() as store, database.connected() as connection:
        assert store.largest_outcome == LARGEST
        with connection.begin():
            assert store.joining(connection).largest_outcome == LARGEST
    engine = database.engine()
    assert SqlAlchemyStore(engine, largest_outcome=7).largest_outcome == 7
    with pytest.raises(ValueError, match="largest_outcome must be at least 1"):
        SqlAlchemyStore(engine, largest_outcome=0)
    with pytest.raises(TypeError, match="largest_outcome must be a whole number"):
        SqlAlchemyStore(engine, largest_outcome="7")  # type: ignore[arg-type]
    assert SqlAlchemyStore(sa.create_engine("sqlite:///records.db")).largest_outcome is None


def test_the_largest_is_kept_whatever_it_holds(database: Database) -> None:
    """By either driver, on a server that nobody has set up."""
    with database.store() as store:
        assert claimed(store, key()).acquired
        assert store.complete(key(), owner="owner-a", outcome=QUOTES, ttl=60)
        record = store.get(key())
        assert record is not None
        assert record.outcome == QUOTES

    async def main() -> None:
        async with database.async_store() as store:
            other = key("other")
            assert store.largest_outcome == LARGEST
            assert (await claimed(store, other)).acquired
            assert await store.complete(other, owner="owner-a", outcome=QUOTES, ttl=60)

    asyncio.run(main())


def test_a_larger_one_is_lost_and_nothing_runs_again(database: Database) -> None:
    """As with any store that says what it takes."""
    runs: list[int] = []

    def large() -> str:
        runs.append(1)
        return "'" * (LARGEST + 1)

    with database.store() as store:
        guard = Idempotency(store, namespace="large", max_result=1 << 30)
        assert len(guard.run("order-42", large)) == LARGEST + 1
        with pytest.raises(ResultLostError):
            guard.run("order-42", large)
    assert len(runs) == 1


class RefusedError(Exception):
    """An error of a driver's."""


class ConnectionTimeout(RefusedError):  # noqa: N818
    """By the name that psycopg's has."""

    sqlstate = None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TimeoutError(), "did not answer in time, or cannot be reached: TimeoutError"),
        (TimeoutError("the server did not answer within 3 s"), "did not answer in time.*within 3 s"),
        (ConnectionTimeout("connection timeout expired"), "did not answer in time.*expired"),
        (RefusedError(2013, "Lost connection to MySQL server during query (timed out)"), "did not answer in time"),
        (RefusedError(2013, "Lost connection to MySQL server during query"), "connection to the database was lost"),
        (RefusedError(2003, "Can't connect to MySQL server on 'a'"), "cannot be reached"),
        (RefusedError(1153, "Got a packet bigger than 'max_allowed_packet' bytes"), "give the store a largest_outcome"),
        (RefusedError("no"), "the database refused: no"),
    ],
)
def test_what_is_told_of_an_error(error: Exception, told: str) -> None:
    """Silence is no refusal, and what has no text is named."""
    with pytest.raises(StoreError, match=told):
        raise translated(error, "records", key())


@pytest.mark.realtime
@pytest.mark.parametrize("kind", URLS)
def test_a_server_that_does_not_answer_has_not_refused(servers: Any, kind: str) -> None:
    """Asked in vain, by plain functions and by coroutines."""
    server = servers.postgres() if kind == "postgresql" else servers.mysql()
    database = Database(kind, server.url)

    async def main() -> None:
        async with database.async_store(timeout=1) as store:
            await claimed(store, key("warm"))
            server.pause()
            try:
                with pytest.raises(StoreError, match="did not answer in time"):
                    await claimed(store, key())
            finally:
                server.resume()
            assert (await claimed(store, key())).acquired

    with database.store(timeout=1) as store:
        claimed(store, key("warm"))
        server.pause()
        try:
            with pytest.raises(StoreError, match="did not answer in time"):
                claimed(store, key())
        finally:
            server.resume()
    asyncio.run(main())
    database.end()
