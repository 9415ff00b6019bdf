"""Records written in the caller's own SQLite transaction."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

from idempo.errors import StoreError
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

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what is done inside, record and effect, when it raises; the caller's transaction goes on.

        Raises:
            StoreError: The transaction is over: the body itself must neither commit nor roll back.
        """
        name = f"idempo_{next(self._savepoints)}"
        self._reading(_execute, f"SAVEPOINT {name}")
        try:
            yield
        except BaseException:
            # Where SQLite has already rolled the whole transaction back, there is nothing left to undo.
            if self._connection.in_transaction:
                self._reading(_execute, f"ROLLBACK TO {name}")
                self._reading(_execute, f"RELEASE {name}")
            raise
        self._reading(_execute, f"RELEASE {name}")

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
        if not connection.in_transaction:
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


def _execute(connection: sqlite3.Connection, statement: str) -> None:
    connection.execute(statement)
