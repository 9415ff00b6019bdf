"""Records written in the caller's own transaction, by his SQLAlchemy connection or ORM session."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, TypeAlias, TypeVar, TypeVarTuple

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError, UnboundExecutionError
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from idempo.errors import IdempotencyError, LeaseLostError, StoreError
from idempo.records import Claim, Key, Record
from idempo.stores._sql_connections import key_of
from idempo.stores._sql_errors import Trouble, translated, trouble_of
from idempo.stores._sql_joining_servers import Server
from idempo.stores._sql_scripts import Rows, Script

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")

Caller: TypeAlias = sa.Connection | Session
Board: TypeAlias = Callable[[object], None]

NO_TRANSACTION: Final = (
    "the connection is in no transaction, so effect and record could not commit together: begin one with "
    "`with connection.begin():`, and call within it"
)
_AUTOCOMMIT: Final = (
    "the connection is in autocommit, so effect and record could not commit together: take one whose isolation level "
    "is not AUTOCOMMIT"
)


def caller_of(given: object) -> Caller:
    """Return the connection or session that was given.

    Raises:
        TypeError: It is none.
    """
    if isinstance(given, scoped_session):
        given = given()
    if not isinstance(given, sa.Connection | Session):
        raise TypeError(
            "an sqlalchemy.Connection or an sqlalchemy.orm.Session is needed to join its transaction, "
            f"not {type(given).__name__}"
        )
    return given


def check_database(caller: Caller, table: sa.Table, known: sa.Engine) -> None:
    """Find out whether a transaction is one of the database that the store knows, as far as that can be told.

    Raises:
        ValueError: It is not; or the session has several binds, and none for the table.
    """
    try:
        engine = (caller if isinstance(caller, sa.Connection) else caller.get_bind(**_bound(table))).engine
    except UnboundExecutionError as error:
        raise ValueError(
            f"the session has no bind for table {table.name}: name the one of its effects, as in "
            "Session(binds={store.table: engine, ...})"
        ) from error
    one, other = engine.dialect, known.dialect
    if (one.name, one.driver) != (other.name, other.driver):
        raise ValueError(
            f"the transaction is one of {one.name}+{one.driver}, and the store's engine is {other.name}+{other.driver}:"
            " record and effect belong in the same database"
        )
    if one.name == "sqlite" and _file(engine) != _file(known):
        raise ValueError(
            f"the transaction is one of {engine.url.database or 'a database in memory'}, and the store's engine is one "
            f"of {known.url.database}: record and effect belong in the same database"
        )


def _bound(table: sa.Table) -> dict[str, Any]:
    """Return what lets a session of several binds choose."""
    return {"clause": sa.delete(table)}


def _file(engine: sa.Engine) -> str:
    name = engine.url.database or ""
    return name if name.startswith("file:") else os.path.realpath(name)


Nested: TypeAlias = sa.NestedTransaction | SessionTransaction


class Transaction:
    """The caller's transaction: runs scripts in it, and opens savepoints.

    Args:
        caller: The connection or session.
        server: What its server needs.
        table: The table of records.
        lock_timeout: Seconds that a statement waits for others at most; None for the connection's own limit.

    Raises:
        ValueError: The connection is in no transaction.
    """

    def __init__(self, caller: Caller, server: Server, table: sa.Table, lock_timeout: float | None) -> None:
        self.caller = caller
        self.server = server
        self._table = table
        self._limit = lock_timeout
        if isinstance(caller, sa.Connection) and not caller.in_transaction():
            raise ValueError(NO_TRANSACTION)

    def run(self, method: Callable[[*_Args], Script[_Result]], *args: *_Args) -> _Result:
        """Run a script that only reads, or only writes what the transaction has locked already.

        Raises:
            ValueError: There is no transaction to join.
            StoreError: The database refuses.
        """
        return self._within(args, lambda connection: _ran(connection, method(*args)))

    def run_locking(self, method: Callable[[*_Args], Script[_Result]], *args: *_Args) -> _Result:
        """Run a script that may have to wait for others."""

        def work(connection: sa.Connection) -> _Result:
            self._prepare(connection)
            return _ran(connection, self.server.bounded(method(*args), self._limit))

        return self._within(args, work)

    def begin_nested(self, board: Board | None) -> Nested:
        """Open a savepoint. The locks that must come before anything is read are taken first."""
        caller = self.caller
        if board is not None:
            board(caller)  # a session need have no connection yet, and only one call may make it take one
            if isinstance(caller, Session):
                self._within((), board)
        self._within((), self._prepare)
        if isinstance(caller, Session):
            caller.flush()  # here, and not by `begin_nested`: what fails in it is the caller's own
        return self._within((), lambda _: caller.begin_nested())

    def translated(self, error: BaseException, key: Key | None = None) -> IdempotencyError:
        """Return an error of a driver's as one of ours."""
        told = str(error).strip()
        if isinstance(error, SQLAlchemyError):
            return StoreError(f"the transaction cannot go on: {told}", key=key)
        if trouble_of(error) is Trouble.AGAIN:
            return StoreError(f"others were in the way, retry your transaction: {told}", key=key)
        if self.server.is_failed(error):
            return StoreError(f"the transaction has failed: roll it back, and retry your transaction: {told}", key=key)
        return translated(error, self._table.fullname, key)

    def _within(self, args: tuple[object, ...], work: Callable[[sa.Connection], _Result]) -> _Result:
        try:
            return work(self._connection())
        except SQLAlchemyError as error:
            original = original_of(error)
        raise self.translated(original, key_of(args)) from original

    def _connection(self) -> sa.Connection:
        caller = self.caller
        if isinstance(caller, sa.Connection):
            if not caller.in_transaction():
                raise ValueError(NO_TRANSACTION)
            connection = caller
        elif not caller.in_transaction() and not caller.autobegin:
            raise ValueError(NO_TRANSACTION)
        else:
            # Which begins the session's transaction, as all that it does.
            connection = caller.connection(bind_arguments=_bound(self._table))
        self._refuse_autocommit(connection, prepared=False)
        return connection

    def _prepare(self, connection: sa.Connection) -> None:
        _ran(connection, self.server.prepared(self._limit))
        self._refuse_autocommit(connection, prepared=True)

    def _refuse_autocommit(self, connection: sa.Connection, *, prepared: bool) -> None:
        driver = connection.connection.driver_connection
        if self.server.is_autocommit(driver, prepared=prepared):
            raise ValueError(_AUTOCOMMIT)


class Savepoint:
    """A savepoint of the caller's transaction; with a session, by the session, so that its objects follow."""

    def __init__(self, transaction: Transaction, board: Board | None) -> None:
        self._transaction = transaction
        self._board = board
        self._nested: Nested | None = None

    def enter(self) -> None:
        """Open it.

        Raises:
            ValueError: There is no transaction to join.
            StoreError: The database refuses.
            RuntimeError: Another call is open in the transaction.
        """
        self._nested = self._transaction.begin_nested(self._board)

    def leave(self, error: BaseException | None) -> None:
        """Keep what was done since it was opened, or undo it where there is an error.

        Raises:
            LeaseLostError: There is no error, and the transaction was committed or rolled back meanwhile.
            StoreError: The database refuses.
        """
        nested = self._nested
        if nested is None:
            return
        if error is not None:
            if self._is_open(nested):
                self._ended(nested.rollback)
            return
        if not self._is_open(nested):
            raise _over()
        if isinstance(self._transaction.caller, Session):
            self._transaction.caller.flush()  # what fails in it is the body's own
        self._ended(nested.commit)

    def _is_open(self, nested: Nested) -> bool:
        if isinstance(nested, sa.NestedTransaction):
            return nested.is_active
        caller = self._transaction.caller
        assert isinstance(caller, Session)
        found = caller.get_nested_transaction()
        while found is not None and found is not nested:
            found = found.parent
        return found is nested

    def _ended(self, end: Callable[[], None]) -> None:
        try:
            end()
        except SQLAlchemyError as error:
            original = original_of(error)
        else:
            return
        if self._transaction.server.is_savepoint_gone(original):
            raise _over() from original
        raise self._transaction.translated(original) from original


def original_of(error: SQLAlchemyError) -> BaseException:
    """Return the driver's own error: SQLAlchemy's text has the statement's parameters, and so the outcome."""
    return getattr(error, "orig", None) or error


def _over() -> LeaseLostError:
    return LeaseLostError("the transaction that was joined is over: it was committed, or rolled back")


def _ran(connection: sa.Connection, script: Script[_Result]) -> _Result:
    try:
        step = next(script)
        while True:
            try:
                rows = _executed(connection, *step)
            except SQLAlchemyError as error:
                step = script.throw(error)
            else:
                step = script.send(rows)
    except StopIteration as stop:
        result: _Result = stop.value
        return result


def _executed(connection: sa.Connection, statement: str, params: Mapping[str, Any]) -> Rows:
    result = connection.exec_driver_sql(statement, dict(params))
    return result.fetchall() if result.returns_rows else ((result.rowcount,),)


class JoiningSqlAlchemyStore:
    """Writes its record in the caller's own transaction: made by `SqlAlchemyStore.joining`.

    A call that claims waits for others who hold the key, up to the lock time-out, and then sees what they have
    committed. Nothing is retried here: after a deadlock, a serialization failure or a lock that was not to be had in
    time there is a StoreError, and the transaction must be rolled back and run again.
    """

    blocking: Final = True
    shared: Final = True

    def __init__(self, transaction: Transaction, largest_outcome: int | None = None) -> None:
        self.largest_outcome = largest_outcome
        self._transaction = transaction
        self._statements = transaction.server.statements

    def __repr__(self) -> str:
        return f"JoiningSqlAlchemyStore({self._transaction.caller!r})"

    def savepoint(self, board: Board | None = None) -> AbstractContextManager[None]:
        """Return a context that undoes what is done inside, record and effect, when it raises.

        The caller's transaction goes on; a session's objects are as they were. One that is never left undoes nothing.

        Args:
            board: See `TransactionalStore.savepoint`.

        Raises:
            LeaseLostError: When it is left without an error: the transaction was committed or rolled back inside.
            StoreError: The database refuses.
            ValueError: There is no transaction to join.
        """
        return _Savepoint(self._transaction, board)

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
        """See `Store.claim`."""
        run = self._transaction.run_locking
        return run(self._statements.claim, key, owner, fingerprint, lease, ttl, take_over)

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return self._transaction.run(self._statements.complete, key, owner, outcome, ttl)

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return self._transaction.run_locking(self._statements.release, key, owner, ttl)

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return self._transaction.run_locking(self._statements.renew, key, owner, lease, ttl)

    def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        return self._transaction.run(self._statements.get, key)

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        return self._transaction.run_locking(self._statements.delete, key, owner)


class _Savepoint(AbstractContextManager[None]):
    def __init__(self, transaction: Transaction, board: Board | None) -> None:
        self._inner = Savepoint(transaction, board)

    def __enter__(self) -> None:
        self._inner.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inner.leave(error)
