"""Exactly once: a process that places an order is killed at each step, and another one places the same order."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from idempo import State
from tests.faults.orders import STEPS
from tests.faults.orders_support import Books, Clerks

KINDS = (
    "sqlite3",
    "sqlite",
    "sqlite async",
    "postgresql",
    "postgresql async",
    "postgresql session",
    "mariadb",
    "mariadb async",
)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A kind of database, and the address of an empty one."""
    kind: str = request.param
    if kind.startswith("sqlite"):
        prefix = {"sqlite3": "", "sqlite": "sqlite:///", "sqlite async": "sqlite+aiosqlite:///"}[kind]
        yield kind, f"{prefix}{tmp_path}/shop.db"
        return
    server = sa.make_url(request.getfixturevalue("postgres_url" if "postgresql" in kind else "mysql_url"))
    name = f"shop_{secrets.token_hex(6)}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = server.set(database=name)
    if kind == "mariadb async":
        url = url.set(drivername="mysql+asyncmy")
    yield kind, url.render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name}{' WITH (FORCE)' if 'postgresql' in kind else ''}")
    engine.dispose()


def test_killed_at_each_step(place: tuple[str, str]) -> None:
    """Behaviour 54 (real): both or neither right after the kill, and one of each once the order was placed again."""
    with closing(Books(*place)) as books, closing(Clerks(*place)) as clerks:
        for step in STEPS:
            order = f"killed-when-{step}"
            clerks.begin(order, step)
            clerks.kill()
            stands = step == "committed"
            assert (books.rows(order), books.record(order) is not None) == (stands, stands), step
            assert clerks.place(order) == ("done replayed" if stands else "done executed"), step
            record = books.record(order)
            assert record is not None
            assert (books.rows(order), record.state, record.attempt) == (1, State.COMPLETED, 1), step
