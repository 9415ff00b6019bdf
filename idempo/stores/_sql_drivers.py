"""One connection of a store's own by the plain drivers: SQLite's, and those of MySQL and MariaDB."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from idempo.stores._sql_scripts import Rows

SQLITE_ERRORS: Final = (sqlite3.Error,)


class SqliteLane:
    """A connection of the standard library's."""

    def __init__(self, connection: sqlite3.Connection, timeout: float) -> None:
        connection.commit()  # what listeners of the engine's may have begun
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
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
        return False

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class AioSqliteLane:
    """A connection of aiosqlite's: each statement goes to a thread of its own and back."""

    def __init__(self, connection: Any, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    async def begin(self) -> None:
        """Make the connection ready. Whatever is written here is written between BEGIN and COMMIT."""
        await self._connection.commit()
        await self._connection.execute_fetchall(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")

    async def execute(self, statement: str, params: Mapping[str, Any]) -> Rows:
        """Execute one statement, and return its rows."""
        rows: Rows = await self._connection.execute_fetchall(statement, params)
        return rows

    async def settle(self) -> bool:
        """Leave no transaction open, and say whether the connection can be used again."""
        with suppress(sqlite3.Error, ValueError):
            await self._connection.rollback()
            return True
        return False

    async def close(self) -> None:
        """Close the connection, and end its thread."""
        await self._connection.close()
