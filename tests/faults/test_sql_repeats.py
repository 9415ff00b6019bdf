"""The repeat of a request whose answer was lost fails in its turn: on a deadlock, which its server makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from idempo.records import Claim
from tests.servers.proxy import Proxy
from tests.sql_support import URLS, Database, claimed, key, opened

# The second change of a row fails, and the third does not: a sequence goes on whatever is rolled back.
DEADLOCKS = {
    "postgresql": (
        "CREATE SEQUENCE {table}_turns",
        (
            "CREATE FUNCTION {table}_fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF nextval('{table}_turns') = 2 THEN RAISE EXCEPTION 'a deadlock' USING ERRCODE = '40P01'; END IF;"
            " RETURN NEW; END $$"
        ),
        "CREATE TRIGGER fails BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_fail()",
    ),
    "mariadb": (
        "CREATE SEQUENCE {table}_turns",
        (
            "CREATE TRIGGER {table}_fails BEFORE UPDATE ON {table} FOR EACH ROW IF NEXTVAL({table}_turns) = 2 THEN"
            " SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'a deadlock'; END IF"
        ),
    ),
}
REMOVED = {
    "postgresql": ("DROP FUNCTION {table}_fail() CASCADE", "DROP SEQUENCE {table}_turns"),
    "mariadb": ("DROP TRIGGER {table}_fails", "DROP SEQUENCE {table}_turns"),
}

TURNS = {
    "postgresql": "SELECT last_value FROM {table}_turns",
    "mariadb": "SELECT NEXTVAL({table}_turns) - 1",
}


@pytest.fixture(params=URLS)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from opened(request, request.param)


@contextmanager
def deadlocks(database: Database) -> Iterator[None]:
    """Let the second of the changes that follow meet a deadlock."""
    for statement in DEADLOCKS[database.kind]:
        database.execute(statement)
    try:
        yield
    finally:
        for statement in REMOVED[database.kind]:
            database.execute(statement)


async def claimed_by_coroutine(database: Database, proxy: Proxy) -> Claim:
    async with database.async_store(proxy.port) as store:
        await store.get(key())
        proxy.drop_answers(1, only=lambda asked: b"UPDATE" in asked)
        return await store.claim(key(), owner="owner-b", fingerprint=None, lease=60, ttl=60)


@pytest.mark.parametrize("colour", ["plain", "async"])
def test_a_take_over_is_told_though_the_repeat_of_its_claim_met_a_deadlock(database: Database, colour: str) -> None:
    """Behaviour 34 (real): as if the first answer had arrived."""
    assert database.url.host
    near = database.store()
    claimed(near, key())
    near.renew(key(), owner="owner-a", lease=0, ttl=60)
    with Proxy(database.url.host, database.url.port or 0) as proxy, deadlocks(database):
        if colour == "plain":
            store = database.store(proxy.port)
            store.get(key())
            proxy.drop_answers(1, only=lambda asked: b"UPDATE" in asked)
            claim = claimed(store, key(), "owner-b")
        else:
            claim = asyncio.run(claimed_by_coroutine(database, proxy))
        assert proxy.dropped == 1
        [(turns,)] = database.execute(TURNS[database.kind])
        assert turns == 3
    assert (claim.acquired, claim.took_over, claim.record.attempt) == (True, True, 2)
