"""Exactly once: the server is killed at each step of an order, and then the order is placed again."""

from __future__ import annotations

import secrets
import time
from contextlib import closing

import pytest
import sqlalchemy as sa

from idempo import State
from tests.faults.orders import STEPS
from tests.faults.orders_support import Books, Clerks
from tests.servers import every_server
from tests.servers.fixtures import Servers
from tests.servers.process import Server, ServerError
from tests.servers.proxy import Proxy

DEADLINE = 60


def start_again(server: Server) -> None:
    """Start it; what is left of the old one's processes may take a moment to end."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            server.start()
        except ServerError:
            if time.monotonic() > deadline:
                raise
        else:
            return


def address_of(kind: str, url: str) -> str:
    """The address for a kind of process."""
    return url.replace("+pymysql", "+asyncmy") if kind == "mariadb async" else url


@pytest.mark.realtime
@pytest.mark.parametrize(
    "kind",
    [
        "postgresql",
        "postgresql async",
        pytest.param("mariadb", marks=every_server),
        pytest.param("mariadb async", marks=every_server),
    ],
)
def test_the_server_killed_at_each_step(servers: Servers, kind: str) -> None:
    """Behaviours 47, 54 (real): an error unless it was committed; then placed again: one order, one record."""
    server = servers.postgres() if "postgresql" in kind else servers.mysql()
    address = address_of(kind, server.url)
    with closing(Books(kind, server.url)) as books, closing(Clerks(kind, address)) as clerks:
        for step in STEPS:
            order = f"server-killed-when-{step}"
            clerks.begin(order, step)
            server.kill()
            said = clerks.go_on()
            stands = step == "committed"
            assert said.startswith("done executed" if stands else "failed"), (step, said)
            books.forget_connections()
            start_again(server)
            assert (books.rows(order), books.record(order) is not None) == (stands, stands), step
            assert clerks.place(order) == ("done replayed" if stands else "done executed"), step
            record = books.record(order)
            assert record is not None
            assert (books.rows(order), record.state, record.attempt) == (1, State.COMPLETED, 1), step


@pytest.mark.parametrize("kind", ["postgresql", "postgresql async", "mariadb", "mariadb async"])
def test_the_answer_to_the_commit_is_lost(request: pytest.FixtureRequest, kind: str) -> None:
    """Behaviours 35, 54 (real): who places the order again is told that it was committed."""
    server = sa.make_url(request.getfixturevalue("postgres_url" if "postgresql" in kind else "mysql_url"))
    assert server.host is not None
    assert server.port is not None
    with Proxy(server.host, server.port) as proxy:
        url = server.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        direct = server.render_as_string(hide_password=False)
        with closing(Books(kind, direct)) as books, closing(Clerks(kind, address_of(kind, url))) as clerks:
            order = f"lost-{secrets.token_hex(6)}"
            clerks.begin(order, "completed")
            proxy.drop_answers()
            assert clerks.go_on().startswith("failed")
            assert clerks.place(order) == "done replayed"
            assert books.rows(order) == 1
