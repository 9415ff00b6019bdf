"""Records written in the caller's own SQLite transaction."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TypeVar, TypeVarTuple

from idempo.errors import IdempotencyError, LeaseLostError, StoreError
from idempo.stores._sqlite_records import Records, Work, is_busy, key_of, translated
from idempo.stores._sqlite_table import Table

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")


class JoiningSqliteStore(Records):
    """Writes its record in the caller's own transaction: made by `SqliteStore.joining`.

    Making it takes SQLite's write lock, as does every call but ``get``, waiting as long as the *connection's* own
    time-out, so that a concurrent duplicate is seen as it was committed. Nothing is retried here: a database that is
    locked, or that changed since the transaction first read, is a StoreError, and the transaction must be rolled back
    and run again.
    """

    def __init__(self, connection: sqlite3.Connection, path: str, table: Table, clock: Callable[[], float]) -> None:
        super().__init__(table, clock)
        if not isinstance(connection, sqlite3.Connection):
            raise TypeError(f"a sqlite3.Connection is needed to join its transaction, not {type(connection).__name__}")
        self._connection = connection
        self._savepoints = itertools.count(1)
        self._reading(self._prepare, path)

    def savepoint(self, board: Callable[[object], None] | None = None) -> AbstractContextManager[None]:
        """Return a context that undoes what is done inside, record and effect, when it raises.

        The caller's transaction goes on. One that is never left undoes and writes nothing, as in a forked child.

        Args:
            board: See `TransactionalStore.savepoint`.

        Raises:
            LeaseLostError: When it is left without an error: the transaction was committed or rolled back inside.
            StoreError: SQLite refuses the statement.
        """
        return _Savepoint(
            self, f"idempo_{next(self._savepoints)}", None if board is None else partial(board, self._connection)
        )

    @property
    def in_transaction(self) -> bool:
        """Whether the transaction that was joined, or another on its connection, is open."""
        try:
            return self._connection.in_transaction
        except sqlite3.ProgrammingError:  # closed
            return False

    def execute(self, statement: str) -> None:
        """Execute one of idempo's own statements in the transaction.

        Raises:
            ValueError: The connection is in no transaction.
            StoreError: SQLite refuses it.
        """
        self._reading(_execute, statement)

    def _prepare(self, connection: sqlite3.Connection, path: str) -> None:
        files = {name: file for _, name, file in connection.execute("PRAGMA database_list").fetchall()}
        if not files["main"] or os.path.realpath(files["main"]) != os.path.realpath(path):
            raise ValueError(f"the connection's main database is {files['main'] or 'in memory'}, not {path}")
        # The lock first: to look for the table is to read, and a transaction that has read before others wrote can only
        # fail when it writes in its turn.
        try:
            self._table.lock(connection)
        except sqlite3.Error as error:
            if is_busy(error):
                raise
            self._table.create(connection)
        self._table.exists(connection)

    def _reading(self, work: Work[*_Args, _Result], *args: *_Args) -> _Result:
        connection = self._connection
        with self._joined(args):
            return work(connection, *args)

    def _writing(self, work: Work[*_Args, _Result], *args: *_Args) -> _Result:
        connection = self._connection
        with self._joined(args):
            # Once more, since a savepoint that was undone may have taken the lock with it.
            self._table.lock(connection)
            return work(connection, *args)

    @contextmanager
    def _joined(self, args: tuple[object, ...]) -> Iterator[None]:
        connection = self._connection
        if not self.in_transaction:
            raise ValueError(
                "the connection is in no transaction, so effect and record could not commit together: begin one "
                'with connection.execute("BEGIN IMMEDIATE"), and commit it after the call'
            )
        factories = connection.row_factory, connection.text_factory
        connection.row_factory, connection.text_factory = None, str
        try:
            yield
        except sqlite3.Error as error:
            if is_busy(error):
                raise StoreError(
                    f"the database is locked, retry your transaction: {error}", key=key_of(args)
                ) from error
            raise translated(error, "the transaction that was joined", args) from error
        finally:
            connection.row_factory, connection.text_factory = factories


class _Savepoint:
    """A savepoint; no generator, which would be run to its end when it is collected, in whatever process that is."""

    def __init__(self, store: JoiningSqliteStore, name: str, board: Callable[[], None] | None) -> None:
        self._store = store
        self._name = name
        self._board = board

    def __enter__(self) -> None:
        if self._board is not None:
            self._board()
        self._store.execute(f"SAVEPOINT {self._name}")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._release()
        elif self._store.in_transaction:  # else SQLite has rolled all of it back, and nothing is left to undo
            self._store.execute(f"ROLLBACK TO {self._name}")
            self._store.execute(f"RELEASE {self._name}")

    def _release(self) -> None:
        try:
            self._store.execute(f"RELEASE {self._name}")
        except (ValueError, IdempotencyError) as error:
            if self._store.in_transaction and "no such savepoint" not in str(error.__cause__):
                raise
            raise LeaseLostError("the transaction that was joined is over: it was committed, or rolled back") from error


def _execute(connection: sqlite3.Connection, statement: str) -> None:
    connection.execute(statement)
