"""Coroutines in the caller's own transaction, on a small AsyncStore over sqlite3."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from idempo import (
    RERUN,
    UNKNOWN,
    Claim,
    Event,
    EventKind,
    FingerprintMismatchError,
    Idempotency,
    InDoubtError,
    InProgressError,
    Key,
    LeaseLostError,
    Record,
    ReentrantCallError,
    Resolved,
    ResultLostError,
    StoreError,
    current_operation,
)
from idempo.protocols import AsyncTransactionalStore
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock

KEY = "order-42"
NAME = Key("billing", KEY)


class OutOfStockError(Exception):
    """What a body raises."""


class AsyncJoined:
    """The store under test: it gives way to other tasks before and after each step, as one with I/O does."""

    def __init__(self, store: SqliteStore, connection: sqlite3.Connection) -> None:
        self.inner = store.joining(connection)
        self.calls: list[str] = []

    async def _do(self, name: str, *args: Any, **options: Any) -> Any:
        self.calls.append(name)
        await asyncio.sleep(0)
        answer = getattr(self.inner, name)(*args, **options)
        await asyncio.sleep(0)
        return answer

    async def claim(self, key: Key, **options: Any) -> Claim:
        claim: Claim = await self._do("claim", key, **options)
        return claim

    async def complete(self, key: Key, **options: Any) -> bool:
        return bool(await self._do("complete", key, **options))

    async def release(self, key: Key, **options: Any) -> bool:
        return bool(await self._do("release", key, **options))

    async def renew(self, key: Key, **options: Any) -> bool:
        return bool(await self._do("renew", key, **options))

    async def get(self, key: Key) -> Record | None:
        record: Record | None = await self._do("get", key)
        return record

    async def delete(self, key: Key, **options: Any) -> bool:
        return bool(await self._do("delete", key, **options))

    def savepoint(self, board: Callable[[object], None] | None = None) -> AsyncSavepoint:
        return AsyncSavepoint(self, board)


class AsyncSavepoint:
    """No generator, since it may be left twice."""

    def __init__(self, store: AsyncJoined, board: Callable[[object], None] | None) -> None:
        self.inner = store.inner.savepoint(board)
        self.calls = store.calls

    async def __aenter__(self) -> None:
        await asyncio.sleep(0)
        self.inner.__enter__()
        self.calls.append("savepoint")
        await asyncio.sleep(0)

    async def __aexit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        await asyncio.sleep(0)
        self.inner.__exit__(kind, *rest)
        self.calls.append("undone" if kind else "released")
        await asyncio.sleep(0)


class Shop:
    """A file with a ledger, and guards that join its transactions."""

    def __init__(self, path: Path, **policy: Any) -> None:
        self.path = path
        self.clock = FakeClock()
        self.store = SqliteStore(path, clock=self.clock)
        self.policy = policy
        self.events: list[Event] = []
        with closing(self.connect()) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS ledger (amount INTEGER)")

    def connect(self) -> sqlite3.Connection:
        """Open a connection of the application."""
        return sqlite3.connect(self.path, timeout=0.05, isolation_level=None)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[tuple[sqlite3.Connection, Idempotency]]:
        """Begin a transaction, and commit it at the end, or roll it back on an error."""
        with closing(self.connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection, self.guard(connection)
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def guard(self, connection: sqlite3.Connection) -> Idempotency:
        """Return a guard that joins the connection's transaction."""
        joined = AsyncJoined(self.store, connection)
        return Idempotency(joined, namespace="billing", observers=[self.events.append], **self.policy)  # type: ignore[arg-type]

    def ledger(self) -> list[int]:
        """Return what is committed."""
        with closing(self.connect()) as connection:
            return [amount for (amount,) in connection.execute("SELECT amount FROM ledger")]

    def kinds(self) -> list[EventKind]:
        """Return the kinds of the events so far."""
        return [event.kind for event in self.events]


async def book(connection: sqlite3.Connection, amount: int, error: BaseException | None = None) -> str:
    """The effect."""
    connection.execute("INSERT INTO ledger VALUES (?)", (amount,))
    await asyncio.sleep(0)
    if error is not None:
        raise error
    return f"booked {amount}"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path / "shop.db")
    yield shop
    shop.store.close()


def test_commit_keeps_both_and_a_duplicate_is_replayed(shop: Shop) -> None:
    """Behaviour 54: in a later transaction, and in the same one; another payload is refused."""

    async def main() -> None:
        for _ in range(2):
            async with shop.transaction() as (connection, guard):
                assert await guard.run_async(KEY, book, connection, 5, payload=5) == "booked 5"
                assert await guard.run_async(KEY, book, connection, 5, payload=5) == "booked 5"
                with pytest.raises(FingerprintMismatchError):
                    await guard.run_async(KEY, book, connection, 6, payload=6)

    asyncio.run(main())
    assert shop.ledger() == [5]
    assert shop.kinds()[:2] == [EventKind.EXECUTED, EventKind.REPLAYED]


def test_nothing_but_claim_and_complete_within_a_savepoint(shop: Shop) -> None:
    """Behaviour 54: no renewal, no look, no release; two statements around the body."""

    async def main() -> None:
        async with shop.transaction() as (connection, guard):
            await guard.run_async(KEY, book, connection, 5, payload=5)
            assert isinstance(guard.store, AsyncTransactionalStore)
            assert guard.store.calls == ["savepoint", "claim", "complete", "released"]  # type: ignore[union-attr]

    asyncio.run(main())


def test_rollback_keeps_neither(shop: Shop) -> None:
    """Behaviour 54: what the caller undoes is undone with its record."""

    async def main() -> None:
        with pytest.raises(OutOfStockError):
            async with shop.transaction() as (connection, guard):
                await guard.run_async(KEY, book, connection, 5, payload=5)
                raise OutOfStockError
        assert shop.store.get(NAME) is None
        async with shop.transaction() as (connection, guard):
            assert await guard.run_async(KEY, book, connection, 6, payload=6) == "booked 6"

    asyncio.run(main())
    assert shop.ledger() == [6]


@pytest.mark.parametrize("declared", [False, True])
def test_a_failing_body_keeps_neither(shop: Shop, declared: bool) -> None:
    """Behaviour 54: the caller survives it, and its own work stays; a declared error is no outcome here."""
    shop.policy = {"replay_errors": (OutOfStockError,)} if declared else {}

    async def main() -> None:
        async with shop.transaction() as (connection, guard):
            await book(connection, 1)
            with pytest.raises(OutOfStockError):
                await guard.run_async(KEY, book, connection, 5, OutOfStockError(), payload=5)
            await book(connection, 2)

    asyncio.run(main())
    assert shop.ledger() == [1, 2]
    assert shop.store.get(NAME) is None
    assert shop.kinds() == [EventKind.RELEASED]


@pytest.mark.parametrize("error", [None, OutOfStockError()])
def test_a_cancelled_call_is_undone_wherever_it_was(shop: Shop, error: Exception | None) -> None:
    """Behaviours 30, 54: at every await; record and effect are both there or both gone, and the transaction goes on."""

    async def cancelled_after(turns: int) -> bool:
        async with shop.transaction() as (connection, guard):
            task = asyncio.ensure_future(guard.run_async(str(turns), book, connection, turns, error, payload=5))
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                assert task.exception() is error
                return False
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            kept = await guard.lookup_async(str(turns)) is not None
            found = connection.execute("SELECT count(*) FROM ledger WHERE amount = ?", (turns,)).fetchone()[0]
            assert found == kept
            kinds.add(kept)
            connection.execute("INSERT INTO ledger VALUES (-1)")
        return True

    async def main() -> int:
        turns = 0
        while await cancelled_after(turns):
            turns += 1
        return turns

    kinds: set[bool] = set()
    turns = asyncio.run(main())
    assert kinds == ({False, True} if error is None else {False})
    assert shop.ledger().count(-1) == turns
    assert EventKind.STORE_FAILED not in shop.kinds()  # nothing is undone twice


def test_a_cancelled_undo_is_made_again(shop: Shop) -> None:
    """Behaviour 30: the end of `asyncio.run` cancels what the store is asked too."""

    class Stuck(AsyncSavepoint):
        async def __aexit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
            if not stuck:
                stuck.append(self)
                for task in asyncio.all_tasks():
                    task.cancel()
                await asyncio.sleep(60)
            await super().__aexit__(kind, *rest)

    async def main() -> None:
        async with shop.transaction() as (connection, guard):
            guard.store.savepoint = lambda board: Stuck(guard.store, board)  # type: ignore[union-attr, arg-type]
            await book(connection, 1)
            with pytest.raises(asyncio.CancelledError):
                await guard.run_async(KEY, book, connection, 5, OutOfStockError(), payload=5)

    stuck: list[AsyncSavepoint] = []
    asyncio.run(main())
    assert shop.ledger() == [1]
    assert shop.store.get(NAME) is None


def test_a_local_duplicate_never_sees_what_was_not_committed(shop: Shop) -> None:
    """Behaviour 54: two tasks with two transactions do not join: the second is told to begin again."""

    async def main() -> None:
        async with shop.transaction() as (connection, guard):
            await guard.run_async(KEY, book, connection, 5, payload=5)
            with closing(shop.connect()) as other:
                other.execute("BEGIN")
                with pytest.raises(StoreError, match="retry your transaction"):
                    shop.guard(other)
            connection.execute("DELETE FROM ledger")

    asyncio.run(main())
    assert shop.ledger() == []


def test_a_call_on_the_same_transaction_is_not_joined(shop: Shop) -> None:
    """Behaviour 54: a second task on the same connection is refused: its savepoint would be in the first one's."""

    async def main() -> None:
        async with shop.transaction() as (connection, guard):
            begun, go_on = asyncio.Event(), asyncio.Event()

            async def body() -> str:
                begun.set()
                await go_on.wait()
                return await book(connection, 5)

            first = asyncio.ensure_future(guard.run_async(KEY, body, payload=5))
            await begun.wait()
            for key, used in ((KEY, guard), ("other", guard), ("other", shop.guard(connection))):
                with pytest.raises(RuntimeError, match="follow one another"):
                    await used.run_async(key, book, connection, 5, payload=5)
            go_on.set()
            assert await first == "booked 5"

    asyncio.run(main())
    assert shop.ledger() == [5]


def test_calls_of_tasks_within_a_call_follow_one_another(shop: Shop) -> None:
    """Behaviour 54: one at a time they may; savepoints nest, and a call that fails would take another's along."""

    async def main() -> None:
        async with shop.transaction() as (connection, guard):

            async def inner(key: str) -> str:
                return await guard.run_async(key, book, connection, 5, payload=5)

            async with guard.operation("outer"):
                assert await asyncio.create_task(inner("a")) == "booked 5"
                answers = await asyncio.gather(inner("b"), inner("c"), return_exceptions=True)
                assert answers[0] == "booked 5"
                assert isinstance(answers[1], RuntimeError)

    asyncio.run(main())
    assert shop.ledger() == [5, 5]


def test_resolving_asks_a_failed_transaction_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 54: the first error tells what is the matter; a second would only tell that there was a first."""
    asked: list[object] = []

    async def fail(key: Key, **options: object) -> bool:
        asked.append(key)
        raise StoreError("retry your transaction")

    async def main() -> None:
        async with shop.transaction() as (_, guard):
            monkeypatch.setattr(guard.store, "claim", fail)
            with pytest.raises(StoreError, match="retry your transaction"):
                await guard.resolve_async(KEY, "by hand")

    asyncio.run(main())
    assert len(asked) == 1


def test_a_block_and_a_decorated_function_join_too(shop: Shop) -> None:
    """Behaviour 54: ``async with`` stores its value where it is given; a decorated function as `run_async`."""

    async def main() -> None:
        async with shop.transaction() as (connection, guard):
            with pytest.raises(OutOfStockError):
                async with guard.operation(KEY, payload=5) as op:
                    assert op.fresh
                    assert current_operation() is op
                    await op.complete(await book(connection, 5))
                    raise OutOfStockError
            async with guard.operation(KEY, payload=5) as op:
                assert (op.fresh, op.result) == (False, "booked 5")

            @guard.idempotent(key=lambda amount: f"sale-{amount}", namespace="sales")
            async def sell(amount: int) -> str:
                return await book(connection, amount)

            assert [await sell(7), await sell(7)] == ["booked 7", "booked 7"]

            async with guard.operation("left", payload=5):
                pass
            with pytest.raises(OutOfStockError):
                async with guard.operation("raised", payload=5):
                    raise OutOfStockError
            assert await guard.lookup_async("raised") is None

    asyncio.run(main())
    assert shop.ledger() == [5, 7]


def test_plain_functions_are_refused(shop: Shop) -> None:
    """A plain function on an AsyncStore: a TypeError, at decoration too."""

    async def main() -> None:
        async with shop.transaction() as (_, guard):
            with pytest.raises(TypeError, match="sync store"):
                guard.idempotent(key=lambda: KEY, namespace="place")(lambda: None)
            with pytest.raises(TypeError, match="AsyncStore"):
                guard.run(KEY, lambda: None)
            with pytest.raises(TypeError, match="AsyncStore"), guard.operation(KEY):
                pytest.fail("entered")

    asyncio.run(main())


def test_the_same_key_inside_its_own_call_is_refused(shop: Shop) -> None:
    """Behaviour 17: both are undone where nobody catches it."""

    async def main() -> None:
        async with shop.transaction() as (connection, guard):

            async def body() -> str:
                return await guard.run_async(KEY, book, connection, 5, payload=5)

            with pytest.raises(ReentrantCallError):
                await guard.run_async(KEY, body)
            assert await guard.lookup_async(KEY) is None

    asyncio.run(main())
    assert shop.ledger() == []


async def rerun(key: Key) -> Any:
    """A probe that takes its time."""
    await asyncio.sleep(0)
    return RERUN


async def broken(key: Key) -> Any:
    """A probe that fails."""
    raise OSError("no answer")


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ("rerun", "booked 5"),
        (rerun, "booked 5"),
        (lambda key: RERUN, "booked 5"),
        (lambda key: Resolved("found"), "found"),
        ("raise", InDoubtError),
        (lambda key: UNKNOWN, InDoubtError),
        (broken, InDoubtError),
    ],
)
def test_doubt_is_for_the_policy(shop: Shop, probe: Any, expected: Any) -> None:
    """Behaviours 25, 26: a claim outside whose process died is taken over, resolved or refused."""
    shop.store.claim(NAME, owner="dead", fingerprint=None, lease=15, ttl=1000)
    shop.clock.advance(16)
    before = shop.store.get(NAME)
    shop.policy = {"in_doubt": probe}

    async def main() -> None:
        async with shop.transaction() as (connection, guard):
            if isinstance(expected, str):
                assert await guard.run_async(KEY, book, connection, 5, payload=5) == expected
            else:
                with pytest.raises(expected):
                    await guard.run_async(KEY, book, connection, 5, payload=5)

    asyncio.run(main())
    assert shop.ledger() == ([5] if expected == "booked 5" else [])
    assert (shop.store.get(NAME) == before) == (expected is InDoubtError)


def test_a_live_claim_outside_is_not_waited_for(shop: Shop) -> None:
    """Behaviour 16: to wait would be to hold the caller's locks."""
    shop.store.claim(NAME, owner="alive", fingerprint=None, lease=15, ttl=1000)

    async def main() -> None:
        async with shop.transaction() as (connection, guard):
            with pytest.raises(InProgressError):
                await guard.run_async(KEY, book, connection, 5, payload=5)

    asyncio.run(main())
    assert shop.ledger() == []


def test_a_result_that_cannot_be_kept_is_lost(shop: Shop) -> None:
    """Behaviour 31: its caller has it, and nothing runs twice."""
    value = object()

    async def body() -> object:
        return value

    async def main() -> None:
        async with shop.transaction() as (_, guard):
            assert await guard.run_async(KEY, body) is value
            with pytest.raises(ResultLostError):
                await guard.run_async(KEY, body)
        assert EventKind.STORE_FAILED not in shop.kinds()

    asyncio.run(main())


@pytest.mark.parametrize("statements", [["COMMIT"], ["ROLLBACK"], ["COMMIT", "BEGIN"], ["ROLLBACK", "BEGIN IMMEDIATE"]])
def test_a_body_that_ends_the_transaction_is_told(shop: Shop, statements: list[str]) -> None:
    """Behaviour 54: LeaseLostError with the value, since the effect may stand."""

    async def body(connection: sqlite3.Connection) -> str:
        value = await book(connection, 5)
        for statement in statements:
            connection.execute(statement)
        return value

    async def main() -> None:
        with closing(shop.connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(LeaseLostError) as caught:
                await shop.guard(connection).run_async(KEY, body, connection, payload=5)
            assert caught.value.result == "booked 5"
            assert caught.value.key == NAME

    shop.store.create_table()
    asyncio.run(main())
    assert shop.kinds()[0] == EventKind.LEASE_LOST


@pytest.mark.parametrize(("method", "runs"), [("claim", []), ("complete", [5])])
def test_a_store_that_fails_is_told_and_undone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, method: str, runs: list[int]
) -> None:
    """Behaviours 32, 33: once, with no retry and no unguarded run: the caller's transaction is what is retried."""
    shop.policy = {"store_errors": "run"}
    calls: list[object] = []
    ran: list[int] = []

    async def fail(key: Key, **options: object) -> bool:
        calls.append(key)
        raise StoreError("retry your transaction")

    async def body(connection: sqlite3.Connection) -> None:
        ran.append(5)
        await book(connection, 5)

    async def main() -> None:
        async with shop.transaction() as (connection, guard):
            monkeypatch.setattr(guard.store, method, fail)
            with pytest.raises(StoreError, match="retry your transaction"):
                await guard.run_async(KEY, body, connection, payload=5)

    asyncio.run(main())
    assert (len(calls), ran, shop.ledger()) == (1, runs, [])
    assert EventKind.STORE_FAILED in shop.kinds()
    assert shop.store.get(NAME) is None


def test_a_call_that_is_closed_is_told(shop: Shop) -> None:
    """Behaviour 30: it can await nothing, so nothing is undone; if the caller commits, the record says RUNNING."""
    reached: list[int] = []

    async def body(connection: sqlite3.Connection) -> None:
        await book(connection, 5)
        reached.append(5)
        await asyncio.sleep(0)

    async def main() -> None:
        async with shop.transaction() as (connection, guard):
            call = guard.run_async(KEY, body, connection, payload=5)
            while not reached:
                waiting = call.send(None)
                while waiting is not None and not waiting.done():  # noqa: ASYNC110 (what it waits for is private)
                    await asyncio.sleep(0)
            call.close()
            with pytest.raises(InProgressError):
                await guard.run_async(KEY, book, connection, 5, payload=5)

    asyncio.run(main())
    assert EventKind.STORE_FAILED in shop.kinds()


def test_no_asyncio_for_plain_functions() -> None:
    """The driver of plain functions works without asyncio being imported."""
    code = "import sys, idempo, idempo.driver_joined, idempo.joined; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
