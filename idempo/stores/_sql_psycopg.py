"""One connection to PostgreSQL by psycopg, for a store alone: autocommit, and no wait without end."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import Any

from idempo._fork import forks
from idempo.stores._sql_scripts import Rows

try:
    import psycopg
    from psycopg.rows import tuple_row
except ImportError as error:  # pragma: no cover  # the tests have it
    raise ImportError('PostgreSQL needs psycopg: pip install "idempo[postgresql]"') from error

ERRORS = (psycopg.Error, OSError)
"""What a statement can raise."""


def _bounded(work: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
    """Let psycopg's own generator go on until the time is over: it has no limit, and a server may be paused."""
    deadline = time.monotonic() + seconds
    try:
        wanted = next(work)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                # Of psycopg's own kind: its waits for coroutines take an OSError for a socket that was closed.
                raise psycopg.errors.ConnectionTimeout(f"the server did not answer within {seconds:g} s")
            wanted = work.send(ready)
    except StopIteration as stop:
        return stop.value


def _patient(connection: Any, seconds: float) -> Callable[..., Any]:
    """Return what to put in place of a connection's own ``wait``."""
    kind, ref = type(connection), weakref.ref(connection)  # a circle would keep it open

    def wait(work: Generator[Any, Any, Any], *args: Any, **options: Any) -> Any:
        return kind.wait(ref(), _bounded(work, seconds), *args, **options)

    return wait


def _finish_with(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Let the connection be closed when it is dropped, as with a store that nobody closed: no warning is due then."""
    weakref.finalize(connection, _finish, connection.pgconn, forks.generation).atexit = False


def _finish(pgconn: psycopg.pq.abc.PGconn, generation: int, of_process: Any = forks) -> None:
    """Close a connection, but not a forked child's copy: that would end the session, which is the parent's."""
    if generation == of_process.generation:
        pgconn.finish()


def tell_all(pgconn: psycopg.pq.abc.PGconn, told: Callable[[str], None]) -> None:
    """Read what the server has sent, and tell of the notifications in it."""
    pgconn.consume_input()
    while (notify := pgconn.notifies()) is not None:
        told(notify.extra.decode())


class Lane:
    """A connection and its cursor."""

    def __init__(self, connection: psycopg.Connection[Any], timeout: float) -> None:
        connection.wait = _patient(connection, timeout)  # type: ignore[method-assign]
        connection.commit()  # what listeners of the engine's may have begun
        connection.autocommit = True
        _finish_with(connection)
        self.generation = forks.generation
        self._connection = connection
        self._cursor: psycopg.Cursor[Any] = psycopg.Cursor(connection, row_factory=tuple_row)
        self._cursor.format = psycopg.pq.Format.BINARY

    def execute(self, statement: str, params: Mapping[str, Any]) -> Rows:
        """Execute one statement, and return its rows."""
        cursor = self._cursor
        cursor.execute(statement, params)  # pyright: ignore[reportArgumentType]  # the text is not of a literal
        return cursor.fetchall()

    def listen(self, statement: str, told: Callable[[str], None]) -> None:
        """Execute a LISTEN, and have each notification's payload told, by `execute` or `notified`."""
        self._told = told
        self._connection.add_notify_handler(lambda notify: told(notify.payload))
        self._connection.execute(statement.encode())

    def notified(self) -> None:
        """Tell of the notifications that have come; called when the socket can be read."""
        tell_all(self._connection.pgconn, self._told)

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._connection.fileno()

    def settle(self) -> bool:
        """Say whether the connection can be used again after an error; nothing is left open in it."""
        return self._connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE

    def close(self) -> None:
        """Close the connection, without waiting for anything."""
        self._connection.close()


class AsyncLane:
    """`Lane`, for one event loop."""

    is_at_rest = False

    def __init__(self, connection: psycopg.AsyncConnection[Any], timeout: float) -> None:
        connection.wait = _patient(connection, timeout)  # type: ignore[method-assign]
        _finish_with(connection)
        self.generation = forks.generation
        self._connection = connection
        self._cursor: psycopg.AsyncCursor[Any] = psycopg.AsyncCursor(connection, row_factory=tuple_row)
        self._cursor.format = psycopg.pq.Format.BINARY

    async def begin(self) -> None:
        """Make the connection ready."""
        await self._connection.commit()
        await self._connection.set_autocommit(True)

    async def execute(self, statement: str, params: Mapping[str, Any]) -> Rows:
        """Execute one statement, and return its rows."""
        cursor = self._cursor
        await cursor.execute(statement, params)  # pyright: ignore[reportArgumentType]
        return await cursor.fetchall()

    async def listen(self, statement: str, told: Callable[[str], None]) -> None:
        """See `Lane.listen`."""
        self._told = told
        self._connection.add_notify_handler(lambda notify: told(notify.payload))
        await self._connection.execute(statement.encode())

    def notified(self) -> None:
        """See `Lane.notified`."""
        tell_all(self._connection.pgconn, self._told)

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._connection.fileno()

    async def settle(self) -> bool:
        """Say whether the connection can be used again after an error."""
        return self._connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE

    async def close(self) -> None:
        """Close the connection, without waiting for anything."""
        await self._connection.close()

    def __del__(self) -> None:
        # Its loop is gone, or the store was dropped: in circles the finalizer comes first, else this does.
        _finish(self._connection.pgconn, self.generation)
