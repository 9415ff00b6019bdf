"""The other end of the pipes to `orders`, and what the database has in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from idempo import Key, Record
from idempo.stores.sqlalchemy import SqlAlchemyStore
from idempo.stores.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]


class Clerks:
    """Processes that place orders, one after the other."""

    def __init__(self, kind: str, address: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("orders.py")), kind, address]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        self._pid = 0
        assert self._hear() == "ready"

    def place(self, order: str) -> str:
        """Have an order placed, and return how that went."""
        self._tell(f"{order} -")
        return self._end()

    def begin(self, order: str, step: str) -> None:
        """Have an order placed as far as a step."""
        self._tell(f"{order} {step}")
        self._pid = int(self._hear())
        while (said := self._hear()) != step:
            assert not said.startswith(("failed", "done")), said

    def kill(self) -> None:
        """Kill the process that stands at its step."""
        os.kill(self._pid, signal.SIGKILL)
        assert self._hear() == "gone"

    def go_on(self) -> str:
        """Let the process that stands at its step go on, and return how that went."""
        self._tell("go on")
        return self._end()

    def _end(self) -> str:
        while not (said := self._hear()).startswith(("failed", "done")):
            pass
        assert self._hear() == "gone"
        return said

    def close(self) -> None:
        """End them."""
        self._process.communicate(timeout=60)

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "it has ended"
        return line

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


class Books:
    """What others see of the orders and the records."""

    def __init__(self, kind: str, address: str) -> None:
        if kind == "sqlite3":
            self.engine = sa.create_engine(f"sqlite:///{address}")
            self.store: Any = SqliteStore(address)
        else:
            self.engine = sa.create_engine(address.replace("+aiosqlite", "").replace("+asyncmy", "+pymysql"))
            self.store = SqlAlchemyStore(self.engine)
        self.store.create_table()
        with self.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS orders")
            connection.exec_driver_sql("CREATE TABLE orders (number VARCHAR(60))")

    def rows(self, order: str) -> int:
        """How often the order stands."""
        asked = f"SELECT count(*) FROM orders WHERE number = '{order}'"
        with closing(self.engine.connect()) as connection:
            return int(connection.exec_driver_sql(asked).scalar_one())

    def record(self, order: str) -> Record | None:
        """Its record."""
        record: Record | None = self.store.get(Key("shop", order))
        return record

    def forget_connections(self) -> None:
        """After the server has ended."""
        self.engine.dispose()

    def close(self) -> None:
        """Close it."""
        self.store.close()
        self.engine.dispose()
