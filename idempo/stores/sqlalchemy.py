"""Records in the application's own SQL database, by an SQLAlchemy engine: PostgreSQL, MariaDB, MySQL, SQLite."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from idempo._checks import check_clock, check_flag, check_limit
from idempo._time import seconds
from idempo.records import Claim, Key, Record
from idempo.stores import _sql_table
from idempo.stores._sql_connections import Connections
from idempo.stores._sql_engines import async_parts, sync_parts
from idempo.stores._sql_joining import JoiningSqlAlchemyStore, Transaction, caller_of, check_database
from idempo.stores._sql_joining_async import AsyncJoiningSqlAlchemyStore, async_caller_of, sync_caller_of
from idempo.stores._sql_joining_servers import Server, server_of
from idempo.stores._sql_listening import Listener
from idempo.stores._sql_listening_async import AsyncListener
from idempo.stores._sql_scripts import BATCH, pages, pages_async

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

__all__ = ["AsyncJoiningSqlAlchemyStore", "AsyncSqlAlchemyStore", "JoiningSqlAlchemyStore", "SqlAlchemyStore"]


# Bytes. PyMySQL and asyncmy write up to two for one, and MariaDB's max_allowed_packet is 16 MiB unless it is set.
_LARGEST: Final = {"mysql": 8_000_000, "mariadb": 8_000_000}


class _Both:
    """What the two stores have in common that is no I/O."""

    blocking: Final = True
    shared: Final = True

    def __init__(
        self,
        engine: sa.Engine | AsyncEngine,
        table: str,
        schema: str | None,
        max_connections: int,
        timeout: float | timedelta,
        notify: bool,
        clock: Callable[[], float],
        largest_outcome: int | None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._server: Server | None = None
        self._table = _sql_table.records_table(table, schema)
        check_limit(max_connections, "max_connections")
        check_flag(notify, "notify")
        check_clock(clock)
        self._timeout = seconds(timeout, "timeout")
        if largest_outcome is not None:
            check_limit(largest_outcome, "largest_outcome")
        else:
            largest_outcome = _LARGEST.get(engine.dialect.name) if hasattr(engine, "dialect") else None
        self.largest_outcome: int | None = largest_outcome

    @property
    def table(self) -> sa.Table:
        """The table, for SQLAlchemy's own tools; ``store.table.to_metadata(metadata)`` shows it to a migration tool."""
        return self._table

    def __repr__(self) -> str:
        # Not the engine's own, which shows what stands in the URL's query: a password may.
        url = self._engine.url.set(query={}).render_as_string(hide_password=True)
        return f"{type(self).__name__}({type(self._engine).__name__}({url}), table={self._table.fullname!r})"

    def ddl(self) -> str:
        """Return the statements that make the table, for a migration of one's own."""
        return _sql_table.ddl(self._table, self._engine.dialect)

    def _transaction(self, caller: Any, lock_timeout: float | timedelta | None) -> Transaction:
        limit = None if lock_timeout is None else seconds(lock_timeout, "lock_timeout")
        given: Any = self._engine
        engine = getattr(given, "sync_engine", given)  # an AsyncEngine has one inside
        check_database(caller, self._table, engine)
        if self._server is None:
            self._server = server_of(engine.dialect, self._table, self._clock)
        return Transaction(caller, self._server, self._table, limit)


class SqlAlchemyStore(_Both):
    """Keeps records in a table of an SQL database.

    Each method is one statement on a connection in autocommit. The connections are the store's own, made as the engine
    makes its own, so that a call neither waits for one that the application holds nor takes part in a transaction.

    Args:
        engine: The application's engine.
        table: The table's name: at most 63 ASCII letters, digits and underscores.
        schema: The schema that it is in, of the same form; by default the connection's own.
        max_connections: How many connections the store opens at most.
        timeout: How long a call waits for a connection to be free, for an answer, and for others who are in the way,
            each, in seconds, before StoreError.
        notify: For PostgreSQL alone: whether waiters are told of a change by LISTEN and NOTIFY, over one connection
            more while somebody waits. Where false, as it must be behind a pooler that shares connections between
            transactions, they poll with backoff.
        largest_outcome: The largest outcome that is sent, in bytes; a larger one becomes a *lost* one. By default
            8,000,000 on MariaDB and MySQL, where it must be less than half of the server's ``max_allowed_packet``, and
            any elsewhere.
        clock: For SQLite alone, which has no server: gives seconds since 1970. All processes must agree about it.

    Raises:
        TypeError: It is no Engine, or an argument is of the wrong type.
        ValueError: The engine's database or driver is none that the store knows, or an option is out of its range.
    """

    _engine: sa.Engine

    def __init__(
        self,
        engine: sa.Engine,
        *,
        table: str = "idempo_records",
        schema: str | None = None,
        max_connections: int = 10,
        timeout: float | timedelta = 10.0,
        notify: bool = True,
        largest_outcome: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(engine, table, schema, max_connections, timeout, notify, clock, largest_outcome)
        parts = sync_parts(engine, self.table, timeout=self._timeout, clock=clock, notify=notify)
        self._statements = parts.statements
        self._connections = Connections(
            engine, parts.lane, parts.errors, self.table.fullname, size=max_connections, timeout=self._timeout
        )
        self._run = self._connections.run
        self._listener: Listener | None = None
        if parts.notifying is not None:
            self._listener = Listener(self._connections.open, parts.notifying)
            self.watch = self._listener.watch

    def __enter__(self) -> SqlAlchemyStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store's connections, each when its call has ended. A later call raises StoreError."""
        if self._listener is not None:
            self._listener.close()
        self._connections.close()

    def create_table(self) -> None:
        """Make the table where it is not there. May be called many times, and by many at once.

        Raises:
            StoreError: The database cannot be reached, or refuses.
            RecordError: There is a table of this name, of another version or not idempo's.
        """
        try:
            with self._engine.begin() as connection:
                _sql_table.create(connection, self._table)
        except _sql_table.DatabaseError as error:
            raise self._connections.translated(error, ()) from error

    def joining(
        self,
        connection_or_session: sa.Connection | Session | scoped_session[Any],
        *,
        lock_timeout: float | timedelta | None = 20.0,
    ) -> JoiningSqlAlchemyStore:
        """Return a store that writes its record in the transaction of the caller's own connection or ORM session.

        Effect and record then commit or roll back together: exactly once, for effects in the same database. A session
        begins its transaction by this store's first statement, if it has not begun before, as by any other. Claim and
        function stand in a savepoint, ``session.begin_nested()`` for a session.

        Args:
            connection_or_session: In the transaction to join, and not in autocommit. By an engine of the same kind of
                database and the same driver as the store's.
            lock_timeout: How long a duplicate waits, in seconds, for a transaction that holds its key, before
                StoreError; where the connection has a shorter limit of its own (PostgreSQL's ``lock_timeout``, MySQL's
                ``innodb_lock_wait_timeout`` in whole seconds, SQLite's time-out) that counts, and with None that alone.

        Raises:
            TypeError: It is neither.
            ValueError: It is in no transaction, or of another database.
        """
        return JoiningSqlAlchemyStore(
            self._transaction(caller_of(connection_or_session), lock_timeout), self.largest_outcome
        )

    def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """See `Store.claim`.

        Raises:
            StoreFullError: The database has no room.
        """
        return self._run(self._statements.claim, key, owner, fingerprint, lease, ttl, take_over)

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return self._run(self._statements.complete, key, owner, outcome, ttl)

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return self._run(self._statements.release, key, owner, ttl)

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return self._run(self._statements.renew, key, owner, lease, ttl)

    def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        return self._run(self._statements.get, key)

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        return self._run(self._statements.delete, key, owner)

    def scan(self, namespace: str) -> Iterator[tuple[Key, Record]]:
        """See `ScannableStore.scan`. Reads a page at a time."""
        return pages(self._run, self._statements, namespace)

    def purge(self, namespace: str) -> int:
        """See `PurgeableStore.purge`. Removes a batch at a time, damaged records too."""
        total = 0
        while True:
            removed, live = self._run(self._statements.purge, namespace)
            total += live
            if removed < BATCH:
                return total

    def sweep(self, limit: int = 1000) -> int:
        """See `SweepableStore.sweep`. Call it now and then: nothing else removes expired rows."""
        check_limit(limit, "limit")
        return self._run(self._statements.sweep, limit)


class AsyncSqlAlchemyStore(_Both):
    """`SqlAlchemyStore` for an AsyncEngine; its arguments and promises are the same.

    It may be used on several event loops; each has connections of its own, at most ``max_connections`` of them.
    """

    _engine: AsyncEngine

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        table: str = "idempo_records",
        schema: str | None = None,
        max_connections: int = 10,
        timeout: float | timedelta = 10.0,
        notify: bool = True,
        largest_outcome: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(engine, table, schema, max_connections, timeout, notify, clock, largest_outcome)
        # Here, and not above: greenlet, which it needs, is no need of the plain store's.
        from idempo.stores._sql_connections_async import AsyncConnections

        parts = async_parts(engine, self.table, timeout=self._timeout, clock=clock, notify=notify)
        self._statements = parts.statements
        self._connections = AsyncConnections(
            engine, parts.lane, parts.errors, self.table.fullname, size=max_connections, timeout=self._timeout
        )
        self._run = self._connections.run
        self._listener: AsyncListener | None = None
        if parts.notifying is not None:
            self._listener = AsyncListener(self._connections.open, parts.notifying)
            self.watch = self._listener.watch

    async def __aenter__(self) -> AsyncSqlAlchemyStore:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of the running loop. A later call, on any loop, raises StoreError."""
        if self._listener is not None:
            await self._listener.close()
        await self._connections.close()

    async def create_table(self) -> None:
        """See `SqlAlchemyStore.create_table`."""
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._engine.connect()
            async with aclosing(connection), connection.begin():
                await connection.run_sync(_sql_table.create, self._table)
        except (_sql_table.DatabaseError, TimeoutError) as error:
            raise self._connections.translated(error, ()) from error

    def joining(
        self,
        connection_or_session: AsyncConnection | AsyncSession | async_scoped_session[Any],
        *,
        lock_timeout: float | timedelta | None = 20.0,
    ) -> AsyncJoiningSqlAlchemyStore:
        """`SqlAlchemyStore.joining`, for coroutines.

        A statement that was begun is waited for, whoever is cancelled: to break one off would cost the connection, and
        so the whole transaction.
        """
        caller = async_caller_of(connection_or_session)
        return AsyncJoiningSqlAlchemyStore(
            caller, self._transaction(sync_caller_of(caller), lock_timeout), self.largest_outcome
        )

    async def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """See `Store.claim`.

        Raises:
            StoreFullError: The database has no room.
        """
        return await self._run(self._statements.claim, key, owner, fingerprint, lease, ttl, take_over)

    async def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return await self._run(self._statements.complete, key, owner, outcome, ttl)

    async def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return await self._run(self._statements.release, key, owner, ttl)

    async def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return await self._run(self._statements.renew, key, owner, lease, ttl)

    async def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        return await self._run(self._statements.get, key)

    async def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `SqlAlchemyStore.delete`."""
        return await self._run(self._statements.delete, key, owner)

    def scan(self, namespace: str) -> AsyncIterator[tuple[Key, Record]]:
        """See `ScannableStore.scan`. Reads a page at a time."""
        return pages_async(self._run, self._statements, namespace)

    async def purge(self, namespace: str) -> int:
        """See `PurgeableStore.purge`. Removes a batch at a time, damaged records too."""
        total = 0
        while True:
            removed, live = await self._run(self._statements.purge, namespace)
            total += live
            if removed < BATCH:
                return total

    async def sweep(self, limit: int = 1000) -> int:
        """See `SqlAlchemyStore.sweep`."""
        check_limit(limit, "limit")
        return await self._run(self._statements.sweep, limit)
