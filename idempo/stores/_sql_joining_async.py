"""Records written in the caller's own transaction, by his AsyncConnection or AsyncSession: `_sql_joining`, awaited."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, TypeVarTuple

from idempo.records import Claim, Key, Record
from idempo.stores._sql_joining import NO_TRANSACTION, Board, Caller, Savepoint, Transaction

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")

AsyncCaller: TypeAlias = "AsyncConnection | AsyncSession"


def async_caller_of(given: object) -> AsyncCaller:
    """Return the connection or session that was given.

    Raises:
        TypeError: It is none.
    """
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session  # whoever has one has it

    if isinstance(given, async_scoped_session):
        given = given()
    if not isinstance(given, AsyncConnection | AsyncSession):
        raise TypeError(
            "an AsyncConnection or an AsyncSession of sqlalchemy.ext.asyncio is needed to join its transaction, "
            f"not {type(given).__name__}"
        )
    return given


def sync_caller_of(caller: AsyncCaller) -> Caller:
    """Return what is inside.

    Raises:
        ValueError: The connection is not open.
    """
    from sqlalchemy.ext.asyncio import AsyncSession

    inner = caller.sync_session if isinstance(caller, AsyncSession) else caller.sync_connection
    if inner is None:
        raise ValueError(NO_TRANSACTION)
    return inner


class AsyncJoiningSqlAlchemyStore:
    """`JoiningSqlAlchemyStore` for coroutines: made by `AsyncSqlAlchemyStore.joining`."""

    blocking: Final = True
    shared: Final = True

    def __init__(self, caller: AsyncCaller, transaction: Transaction, largest_outcome: int | None = None) -> None:
        self.largest_outcome = largest_outcome
        self._caller = caller
        self._transaction = transaction
        self._statements = transaction.server.statements

    def __repr__(self) -> str:
        return f"AsyncJoiningSqlAlchemyStore({self._caller!r})"

    def savepoint(self, board: Board | None = None) -> AbstractAsyncContextManager[None]:
        """See `JoiningSqlAlchemyStore.savepoint`."""
        return _AsyncSavepoint(self._caller, Savepoint(self._transaction, board))

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
        """See `Store.claim`."""
        run = self._transaction.run_locking
        return await self._run(run, self._statements.claim, key, owner, fingerprint, lease, ttl, take_over)

    async def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return await self._run(self._transaction.run, self._statements.complete, key, owner, outcome, ttl)

    async def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return await self._run(self._transaction.run_locking, self._statements.release, key, owner, ttl)

    async def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return await self._run(self._transaction.run_locking, self._statements.renew, key, owner, lease, ttl)

    async def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        return await self._run(self._transaction.run, self._statements.get, key)

    async def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        return await self._run(self._transaction.run_locking, self._statements.delete, key, owner)

    async def _run(self, work: Callable[[*_Args], _Result], *args: *_Args) -> _Result:
        return await _awaited(self._caller, work, *args)


class _AsyncSavepoint(AbstractAsyncContextManager[None]):
    def __init__(self, caller: AsyncCaller, inner: Savepoint) -> None:
        self._caller = caller
        self._inner = inner

    async def __aenter__(self) -> None:
        await _awaited(self._caller, self._inner.enter)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await _awaited(self._caller, self._inner.leave, error)


async def _awaited(caller: AsyncCaller, work: Callable[[*_Args], _Result], *args: *_Args) -> _Result:
    """Run what is written in plain calls where SQLAlchemy awaits the driver for it."""

    def run(_: Any) -> _Result:
        return work(*args)

    return await caller.run_sync(run)
