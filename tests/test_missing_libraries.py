"""A library that is not installed: what does without it works, and what does not says which extra brings it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {library!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run_without(library: str, program: str, *arguments: str) -> str:
    """Run a program in a process that does not find the library, and return what it prints."""
    command = [sys.executable, "-c", WITHOUT.format(library=library) + program, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_plain_sql_store_does_without_greenlet(tmp_path: Path) -> None:
    """From version 2.1 on SQLAlchemy alone does not bring it: only coroutines need it."""
    program = """
import sqlalchemy
from idempo import Idempotency
from idempo.stores.sqlalchemy import SqlAlchemyStore
engine = sqlalchemy.create_engine(f"sqlite:///{sys.argv[1]}")
with SqlAlchemyStore(engine) as store:
    store.create_table()
    print(Idempotency(store, namespace="plain").run("order-42", str.upper, "placed"))
    with engine.begin() as connection:
        print(Idempotency(store.joining(connection), namespace="joined").run("order-42", str.upper, "joined"))
try:
    SqlAlchemyStore("sqlite://")
except TypeError as error:
    print(error)
"""
    printed = run_without("greenlet", program, str(tmp_path / "records.db"))
    assert printed.splitlines() == ["PLACED", "JOINED", "engine must be an sqlalchemy.Engine, not str"]


@pytest.mark.parametrize(
    ("library", "url", "extra"),
    [
        ("greenlet", "mysql+asyncmy://localhost/app", "mysql"),
        ("greenlet", "postgresql+psycopg://localhost/app", "postgresql"),
        ("greenlet", "sqlite+aiosqlite:///records.db", "aiosqlite"),
        ("aiosqlite", "sqlite+aiosqlite:///records.db", "aiosqlite"),
        ("asyncmy", "mysql+asyncmy://localhost/app", "mysql"),
    ],
)
def test_a_url_whose_library_is_missing_names_the_extra(library: str, url: str, extra: str) -> None:
    """One knows what to install."""
    program = """
from idempo.stores import async_store_from_url
try:
    async_store_from_url(sys.argv[1])
except ImportError as error:
    print(error)
"""
    scheme = url.partition(":")[0]
    printed = run_without(library, program, url)
    assert printed == f'{scheme}:// needs {library}: pip install "idempo[{extra}]"\n'


@pytest.mark.parametrize(
    ("library", "module", "extra"),
    [
        ("pymemcache", "memcached", "memcached"),
        ("nats", "nats", "nats"),
        ("sqlalchemy", "sqlalchemy", "sqlalchemy"),
        ("psycopg", "_sql_psycopg", "postgresql"),
    ],
)
def test_a_store_whose_library_is_missing_names_the_extra(library: str, module: str, extra: str) -> None:
    """In a form that every shell takes."""
    program = """
from importlib import import_module
try:
    import_module(f"idempo.stores.{sys.argv[1]}")
except ImportError as error:
    print(error)
"""
    assert run_without(library, program, module).endswith(f': pip install "idempo[{extra}]"\n')


def test_http_clients_do_without_the_parser_of_servers() -> None:
    """Whoever sends a key needs no extra; whoever takes one is told which."""
    program = """
from idempo import Idempotency
from idempo.http.client import format_key
print(format_key("k-1"))
from idempo.http import HttpIdempotency
try:
    HttpIdempotency(Idempotency(), principal=None)
except ImportError as error:
    print(error)
"""
    printed = run_without("http_sf", program)
    assert printed.splitlines() == ['"k-1"', 'idempo.http needs http-sf: pip install "idempo[http]"']
