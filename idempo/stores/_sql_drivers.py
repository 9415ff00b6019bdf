"""One connection of a store's own by the plain drivers: SQLite's, and those of MySQL and MariaDB."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from idempo._fork import forks
from idempo.stores._sql_errors import ClosedByForkError
from idempo.stores._sql_scripts import Rows

SQLITE_ERRORS: Final = (sqlite3.Error, ClosedByForkError)

# The session is the store's own. What does not fit is an error here, and never cut to size; no mode that gives another
# meaning to backslashes, quotes, or a column that was assigned already.
# By UTC, so that no change to or from summer time moves the clock under a statement that waits.
_SETTINGS: Final = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00'"
# Whatever the engine's or the server's own: below it MySQL locks no gap, and two could each find a key absent.
_LEVEL: Final = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ"


def _plain_cursor() -> Any:
    from pymysql.cursors import Cursor  # type: ignore[import-untyped]

    return Cursor


class SqliteLane:
    """A connection of the standard library's."""

    def __init__(self, connection: sqlite3.Connection, timeout: float) -> None:
        connection.commit()  # what listeners of the engine's may have begun
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
        self.generation = forks.generation
        self._connection = connection
        self._cursor = connection.cursor()
        self._cursor.row_factory = None

    def execute(self, statement: str, params: Mapping[str, Any]) -> Rows:
        """Execute one statement, and return its rows."""
        return self._cursor.execute(statement, params).fetchall()

    def settle(self) -> bool:
        """Leave no transaction open, and say whether the connection can be used again."""
        with suppress(sqlite3.Error):
            self._connection.rollback()
            return True
        return False  # pragma: no cover  # it was lost between the error and now

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class PyMySqlLane:
    """A connection of PyMySQL's."""

    def __init__(self, connection: Any, timeout: float) -> None:
        connection.rollback()  # what listeners of the engine's may have begun
        connection.autocommit(True)
        if connection._read_timeout is None:
            # By a function of the application's own that makes connections: PyMySQL knows no other way, once connected.
            connection._read_timeout = connection._write_timeout = timeout
        self.generation = forks.generation
        self._connection = connection
        self._cursor = connection.cursor(_plain_cursor())
        self.execute(_SETTINGS, {})
        self.execute(_LEVEL, {})

    def execute(self, statement: str, params: Mapping[str, Any]) -> Rows:
        """Execute one statement, and return its rows, or one with their number where it gives none."""
        cursor = self._cursor
        cursor.execute(statement, params)
        return cursor.fetchall() if cursor.description else ((cursor.rowcount,),)

    def settle(self) -> bool:
        """Leave no transaction open, and say whether the connection can be used again."""
        with suppress(Exception):
            self._connection.rollback()
            return True
        return False  # pragma: no cover  # it was lost between the error and now

    def close(self) -> None:
        """Close the connection, without waiting for anything."""
        self._connection._force_close()


class AioMySqlLane:
    """A connection of asyncmy's."""

    is_at_rest = False

    def __init__(self, connection: Any, timeout: float) -> None:
        self.generation = forks.generation
        self._connection = connection
        self._timeout = timeout

    async def begin(self) -> None:
        """Make the connection ready."""
        await self._connection.rollback()
        await self._connection.autocommit(True)
        self._cursor = self._connection.cursor()
        await self.execute(_SETTINGS, {})
        await self.execute(_LEVEL, {})

    async def execute(self, statement: str, params: Mapping[str, Any]) -> Rows:
        """Execute one statement, and return its rows, or one with their number where it gives none."""
        cursor = self._cursor
        async with asyncio.timeout(self._timeout):
            await cursor.execute(statement, params)
        return await cursor.fetchall() if cursor.description else ((cursor.rowcount,),)

    async def settle(self) -> bool:
        """Leave no transaction open, and say whether the connection can be used again."""
        with suppress(Exception):
            async with asyncio.timeout(self._timeout):
                await self._connection.rollback()
            return True
        return False  # pragma: no cover  # it was lost between the error and now

    async def close(self) -> None:
        """Close the connection, without waiting for anything."""
        self._connection.close()


class AioSqliteLane:
    """A connection of aiosqlite's: each statement goes to a thread of its own and back."""

    is_at_rest = False

    def __init__(self, connection: Any, timeout: float) -> None:
        self.generation = forks.generation
        self._connection = connection
        self._timeout = timeout

    async def begin(self) -> None:
        """Make the connection ready. Whatever is written here is written between BEGIN and COMMIT."""
        with self._closed_by_fork():
            await self._connection.commit()
            await self._connection.execute_fetchall(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")

    async def execute(self, statement: str, params: Mapping[str, Any]) -> Rows:
        """Execute one statement, and return its rows."""
        with self._closed_by_fork():
            rows: Rows = await self._connection.execute_fetchall(statement, params)
        return rows

    @contextmanager
    def _closed_by_fork(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            if self.is_at_rest:
                raise ClosedByForkError("this process forked meanwhile") from error
            raise  # pragma: no cover  # no statement of the store's is wrong

    def rest(self) -> Callable[[], bool]:
        """Begin to close it before a fork, from any thread; return what says whether it is closed.

        Its own thread closes it, after the statement that it is at.
        """
        self.is_at_rest = True
        connection, answer = self._connection, _Answer()
        own: sqlite3.Connection | None = connection._connection
        if own is not None:  # pragma: no branch  # by chance, as it was being closed
            connection._tx.put_nowait((answer, own.close))
        # It is None once it was closed in another way; its thread may have ended then, and will not answer.
        return lambda: answer.has_come or connection._connection is None

    async def settle(self) -> bool:
        """Leave no transaction open, and say whether the connection can be used again."""
        with suppress(sqlite3.Error, ValueError):
            await self._connection.rollback()
            return True
        return False  # pragma: no cover  # it was lost between the error and now

    async def close(self) -> None:
        """Close the connection, and end its thread."""
        await self._connection.close()


class _Answer:
    """What aiosqlite's thread tells that something is done, in the place of a future: no loop waits for it."""

    has_come = False

    def get_loop(self) -> _Answer:
        return self

    def call_soon_threadsafe(self, *_: object) -> None:
        self.has_come = True
