"""The isolation level of an engine, or of its server, is none of the store's: its connections have their own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import uuid4

import pytest
import sqlalchemy as sa

from idempo import Key
from idempo.stores._sql_mysql import MYSQL
from idempo.stores._sql_stepwise import Stepwise
from idempo.stores.sqlalchemy import SqlAlchemyStore

CLAIMANTS = 4


@pytest.mark.parametrize("several_steps", [False, True], ids=["mariadb", "mysql"])
@pytest.mark.parametrize("level", ["READ UNCOMMITTED", "READ COMMITTED", "SERIALIZABLE"])
def test_an_absent_key_is_acquired_by_one(mysql_url: str, level: str, several_steps: bool) -> None:
    """Behaviours 1, 21: below REPEATABLE READ a locked read of a row that is not there locks nothing."""
    engine = sa.create_engine(mysql_url, isolation_level=level)  # type: ignore[arg-type]
    barrier = threading.Barrier(CLAIMANTS)
    with (
        closing(SqlAlchemyStore(engine, table=f"idempo_{uuid4().hex}")) as store,
        ThreadPoolExecutor(CLAIMANTS) as pool,
    ):
        store.create_table()
        if several_steps:
            store._statements = Stepwise(store.table.name, MYSQL)

        def acquired(owner: int, number: int) -> bool:
            barrier.wait(30)
            key = Key("isolation", f"order-{number}")
            return store.claim(key, owner=f"owner-{owner}", fingerprint=None, lease=30, ttl=60).acquired

        for number in range(25):
            answers = list(pool.map(acquired, range(CLAIMANTS), [number] * CLAIMANTS))
            assert answers.count(True) == 1
    with engine.begin() as connection:
        store.table.drop(connection)
    engine.dispose()
