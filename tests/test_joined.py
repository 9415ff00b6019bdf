"""Guards in the caller's own transaction, on SqliteStore: effect and record commit together, or not at all."""

from __future__ import annotations

import contextvars
import gc
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
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
    ReentrantCallError,
    Resolved,
    ResultLostError,
    State,
    StoreError,
    current_operation,
)
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock

KEY = "order-42"


class OutOfStockError(Exception):
    """What a body raises."""


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

    def connect(self, *, timeout: float = 0.05) -> sqlite3.Connection:
        """Open a connection of the application."""
        return sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)

    @contextmanager
    def transaction(self, *, timeout: float = 0.05) -> Iterator[tuple[sqlite3.Connection, Idempotency]]:
        """Begin a transaction, and commit it at the end, or roll it back on an error."""
        with closing(self.connect(timeout=timeout)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection, self.guard(connection)
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def guard(self, connection: sqlite3.Connection) -> Idempotency:
        """Return a guard that joins the connection's transaction."""
        joined = self.store.joining(connection)
        return Idempotency(joined, namespace="billing", observers=[self.events.append], **self.policy)

    def ledger(self) -> list[int]:
        """Return what is committed."""
        with closing(self.connect()) as connection:
            return [amount for (amount,) in connection.execute("SELECT amount FROM ledger")]

    def kinds(self) -> list[EventKind]:
        """Return the kinds of the events so far."""
        return [event.kind for event in self.events]


def book(connection: sqlite3.Connection, amount: int, error: BaseException | None = None) -> str:
    """The effect."""
    connection.execute("INSERT INTO ledger VALUES (?)", (amount,))
    if error is not None:
        raise error
    return f"booked {amount}"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path / "shop.db")
    yield shop
    shop.store.close()


def test_a_commit_keeps_effect_and_record(shop: Shop) -> None:
    """Exactly once: the duplicate, in a later transaction, gets the value, and books nothing."""
    for _ in range(2):
        with shop.transaction() as (connection, guard):
            assert guard.run(KEY, book, connection, 5, payload=5) == "booked 5"
    assert shop.ledger() == [5]
    assert shop.kinds() == [EventKind.EXECUTED, EventKind.REPLAYED]


def test_a_rollback_keeps_neither(shop: Shop) -> None:
    """What the caller undoes is undone with its record: the next call runs, and any payload will do."""
    with pytest.raises(OutOfStockError), shop.transaction() as (connection, guard):
        guard.run(KEY, book, connection, 5, payload=5)
        raise OutOfStockError
    assert shop.store.get(Key("billing", KEY)) is None
    with shop.transaction() as (connection, guard):
        assert guard.run(KEY, book, connection, 6, payload=6) == "booked 6"
    assert shop.ledger() == [6]


@pytest.mark.parametrize("declared", [False, True])
def test_a_failing_body_that_the_caller_survives_keeps_neither(shop: Shop, declared: bool) -> None:
    """Its savepoint is rolled back, and what the caller did before stays; a declared error is no outcome here."""
    shop.policy = {"replay_errors": (OutOfStockError,)} if declared else {}
    with shop.transaction() as (connection, guard):
        book(connection, 1)
        with pytest.raises(OutOfStockError):
            guard.run(KEY, book, connection, 5, OutOfStockError(), payload=5)
        book(connection, 2)
    assert shop.ledger() == [1, 2]
    assert shop.store.get(Key("billing", KEY)) is None
    assert shop.kinds() == [EventKind.RELEASED]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit()])
def test_an_interrupt_is_undone_too(shop: Shop, interrupt: BaseException) -> None:
    """Behaviour 30: the original is what is raised."""
    with shop.transaction() as (connection, guard):
        with pytest.raises(type(interrupt)):
            guard.run(KEY, book, connection, 5, interrupt, payload=5)
        assert guard.run(KEY, book, connection, 6, payload=6) == "booked 6"
    assert shop.ledger() == [6]


def test_a_duplicate_in_the_same_transaction_is_replayed(shop: Shop) -> None:
    """Before the commit too: a transaction sees what it wrote itself."""
    with shop.transaction() as (connection, guard):
        assert guard.run(KEY, book, connection, 5, payload=5) == "booked 5"
        assert guard.run(KEY, book, connection, 5, payload=5) == "booked 5"
        with pytest.raises(FingerprintMismatchError):
            guard.run(KEY, book, connection, 6, payload=6)
    assert shop.ledger() == [5]


def test_a_local_duplicate_never_sees_what_was_not_committed(shop: Shop) -> None:
    """It blocks until the first ends, then runs, since that was rolled back; then the next one is replayed."""
    begun, go_on = threading.Event(), threading.Event()
    answers: list[str] = []

    def duplicate() -> None:
        begun.wait()
        go_on.set()
        with shop.transaction(timeout=30) as (connection, guard):
            answers.append(guard.run(KEY, book, connection, 6, payload=6))

    thread = threading.Thread(target=duplicate)
    thread.start()
    with pytest.raises(OutOfStockError), shop.transaction() as (connection, guard):
        guard.run(KEY, book, connection, 5, payload=5)
        begun.set()
        go_on.wait()
        raise OutOfStockError
    thread.join()
    assert answers == ["booked 6"]
    assert shop.ledger() == [6]


def test_a_duplicate_elsewhere_blocks_for_a_bounded_time(shop: Shop) -> None:
    """The second transaction is told to begin again; what the first does is not disturbed."""
    with shop.transaction() as (connection, guard):
        guard.run(KEY, book, connection, 5, payload=5)
        with closing(shop.connect()) as other:
            other.execute("BEGIN")
            with pytest.raises(StoreError, match="retry your transaction"):
                shop.guard(other)
    assert shop.ledger() == [5]


_CHILD = """
import sqlite3, sys
from idempo import Idempotency
from idempo.stores.sqlite import SqliteStore
def book(amount):
    connection.execute("INSERT INTO ledger VALUES (?)", (amount,))
    return f"booked {amount}"
events = []
store = SqliteStore(sys.argv[1])
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
print("ready", flush=True)
sys.stdin.readline()
connection.execute("BEGIN IMMEDIATE")
guard = Idempotency(store.joining(connection), namespace="billing", observers=[events.append])
value = guard.run("order-42", book, 5)
connection.execute("COMMIT")
print(events[0].kind.value, value)
"""


def test_processes_book_once(shop: Shop) -> None:
    """Behaviour 1 (real): of several processes one books, and each has its value."""
    command = [sys.executable, "-c", _CHILD, str(shop.path)]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        children = [stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) for _ in "123"]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        found = [child.communicate(timeout=60)[0] for child in children]
    assert sorted(found) == ["executed booked 5\n", "replayed booked 5\n", "replayed booked 5\n"]
    assert shop.ledger() == [5]


def test_a_block_joins_too(shop: Shop) -> None:
    """The value is stored where it is given; what the block raises afterwards is for the caller's transaction."""
    with shop.transaction() as (connection, guard):
        with pytest.raises(OutOfStockError), guard.operation(KEY, payload=5) as op:
            assert op.fresh
            assert current_operation() is op
            op.ensure_held()
            assert op.token > 0
            op.complete(book(connection, 5))
            raise OutOfStockError
        with guard.operation(KEY, payload=5) as op:
            assert (op.fresh, op.result) == (False, "booked 5")
        with pytest.raises(OutOfStockError), guard.operation("other") as op:
            book(connection, 7, OutOfStockError())
        with guard.operation("empty"):
            pass
        with guard.operation("given") as op:
            op.complete(book(connection, 6))
    assert shop.ledger() == [5, 6]
    assert shop.store.get(Key("billing", "other")) is None
    assert shop.store.get(Key("billing", "empty")) is not None
    assert shop.kinds().count(EventKind.EXECUTED) == 3


def test_a_decorated_function_joins_too(shop: Shop) -> None:
    """The connection is no payload."""
    with shop.transaction() as (connection, guard):

        @guard.idempotent(key="order", ignore=["connection"], namespace="book")
        def place(connection: sqlite3.Connection, order: str, amount: int) -> str:
            return book(connection, amount)

        assert place(connection, KEY, 5) == place(connection, KEY, 5) == "booked 5"
        assert place.lookup(connection, KEY, 5) is not None
        with pytest.raises(FingerprintMismatchError):
            place(connection, KEY, 6)
    assert shop.ledger() == [5]


def test_the_same_key_inside_its_own_call_is_refused(shop: Shop) -> None:
    """Behaviour 17, and both are undone where nobody catches it."""
    with shop.transaction() as (connection, guard):
        with pytest.raises(ReentrantCallError):
            guard.run(KEY, lambda: guard.run(KEY, book, connection, 5, payload=5))
        assert guard.lookup(KEY) is None
    assert shop.ledger() == []


def test_a_live_claim_of_another_call_is_not_waited_for(shop: Shop) -> None:
    """Behaviour 16: to wait would be to hold the write lock that the other needs."""
    shop.store.claim(Key("billing", KEY), owner="alive", fingerprint=None, lease=15, ttl=1000)
    with shop.transaction() as (connection, guard), pytest.raises(InProgressError):
        guard.run(KEY, book, connection, 5, payload=5)
    assert shop.ledger() == []


def leave_doubt(shop: Shop) -> None:
    """Leave a claim whose process died."""
    shop.store.claim(Key("billing", KEY), owner="dead", fingerprint=None, lease=15, ttl=1000)
    shop.clock.advance(16)


@pytest.mark.parametrize("probe", [lambda key: RERUN, "rerun"])
def test_doubt_that_may_be_run_again(shop: Shop, probe: Any) -> None:
    """Behaviours 25, 26: what another call left in doubt is taken over."""
    leave_doubt(shop)
    shop.policy = {"in_doubt": probe}
    with shop.transaction() as (_, guard):
        assert guard.run(KEY, lambda: current_operation().attempt) == 2
    assert shop.kinds() == [EventKind.TAKEN_OVER, EventKind.EXECUTED]


def broken(key: Key) -> Any:
    """A probe that raises."""
    raise OSError("no answer")


@pytest.mark.parametrize("probe", [lambda key: UNKNOWN, "raise", broken])
def test_doubt_that_stays(shop: Shop, probe: Any) -> None:
    """Behaviour 26: nothing runs, and nothing is changed."""
    leave_doubt(shop)
    shop.policy = {"in_doubt": probe}
    before = shop.store.get(Key("billing", KEY))
    with shop.transaction() as (connection, guard), pytest.raises(InDoubtError):
        guard.run(KEY, book, connection, 5, payload=5)
    assert shop.store.get(Key("billing", KEY)) == before
    assert shop.ledger() == []


def test_doubt_that_a_probe_ends(shop: Shop) -> None:
    """Behaviour 26: the effect is found to have happened: its value is kept, with the caller's commit."""
    leave_doubt(shop)
    shop.policy = {"in_doubt": lambda key: Resolved("booked by the dead one")}
    for _ in range(2):
        with shop.transaction() as (connection, guard):
            assert guard.run(KEY, book, connection, 5, payload=5) == "booked by the dead one"
        shop.policy = {"in_doubt": "raise"}
    assert shop.ledger() == []


@pytest.mark.parametrize("answer", [RERUN, Resolved("found")])
def test_a_probe_that_ends_the_transaction_is_told(shop: Shop, answer: Any) -> None:
    """Behaviour 54: the claim that follows finds none to join, which is the caller's mistake; nothing runs."""
    leave_doubt(shop)
    with closing(shop.connect()) as connection:

        def probe(key: Key) -> Any:
            connection.execute("COMMIT")
            return answer

        shop.policy = {"in_doubt": probe}
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(ValueError, match="in no transaction"):
            shop.guard(connection).run(KEY, book, connection, 5, payload=5)
    assert shop.ledger() == []
    record = shop.store.get(Key("billing", KEY))
    assert record is not None
    assert (record.owner, record.state) == ("dead", State.RUNNING)
    assert EventKind.STORE_FAILED not in shop.kinds()


def test_a_released_claim_of_the_same_owner_is_no_trap(shop: Shop) -> None:
    """RELEASED frees the key, whatever its fingerprint."""
    shop.store.claim(Key("billing", KEY), owner="other", fingerprint=b"\x01x", lease=15, ttl=1000)
    shop.store.release(Key("billing", KEY), owner="other", ttl=15)
    with shop.transaction() as (connection, guard):
        assert guard.run(KEY, book, connection, 5, payload=5) == "booked 5"
    assert shop.ledger() == [5]


def test_a_result_that_cannot_be_kept_is_lost(shop: Shop) -> None:
    """Behaviour 31: its caller has it, and nothing runs twice."""
    value = object()
    with shop.transaction() as (_, guard):
        assert guard.run(KEY, lambda: value) is value
    with shop.transaction() as (_, guard), pytest.raises(ResultLostError):
        guard.run(KEY, lambda: value)


def test_a_body_that_forgets_its_own_key_is_told(shop: Shop) -> None:
    """Behaviour 22: the effect is undone with the claim that is gone."""

    def body(connection: sqlite3.Connection, guard: Idempotency) -> str:
        guard.forget(KEY, force=True)
        return book(connection, 5)

    with shop.transaction() as (connection, guard), pytest.raises(LeaseLostError) as caught:
        guard.run(KEY, body, connection, guard, payload=5)
    assert caught.value.result == "booked 5"
    assert shop.ledger() == []


@pytest.mark.parametrize("statements", [["COMMIT"], ["ROLLBACK"], ["COMMIT", "BEGIN"], ["ROLLBACK", "BEGIN IMMEDIATE"]])
def test_a_body_that_ends_the_transaction_is_told(shop: Shop, statements: list[str]) -> None:
    """Effect and record could not be kept together: LeaseLostError, with the value, since the effect may stand."""

    def body(connection: sqlite3.Connection) -> str:
        value = book(connection, 5)
        for statement in statements:
            connection.execute(statement)
        return value

    shop.store.create_table()
    with closing(shop.connect()) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(LeaseLostError, match=r"committed or rolled back|its lease was lost") as caught:
            shop.guard(connection).run(KEY, body, connection, payload=5)
        assert caught.value.result == "booked 5"
        assert caught.value.key == Key("billing", KEY)
    assert shop.kinds()[0] == EventKind.LEASE_LOST


def test_a_body_that_closes_the_connection_and_raises(shop: Shop) -> None:
    """There is nothing left to undo: the original is what is raised."""
    with closing(shop.connect()) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutOfStockError), shop.guard(connection).operation(KEY):
            connection.close()
            raise OutOfStockError
    assert shop.ledger() == []


def test_a_store_that_fails_is_told_and_undone(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviours 32, 33: no retry, no unguarded run: the caller's transaction is what is retried."""
    shop.policy = {"store_errors": "run"}
    calls: list[object] = []

    def fail(key: Key, **options: object) -> bool:
        calls.append(key)
        raise StoreError("retry your transaction")

    for method, runs in (("claim", 0), ("complete", 1)):
        calls.clear()
        with shop.transaction() as (connection, guard):
            monkeypatch.setattr(guard.store, method, fail)
            ran: list[object] = []
            with pytest.raises(StoreError, match="retry your transaction"):
                guard.run(KEY, lambda note, where: note(book(where, 5)), ran.append, connection, payload=5)
        assert (len(calls), len(ran)) == (1, runs)
        assert EventKind.STORE_FAILED in shop.kinds()
    assert shop.ledger() == []
    assert shop.store.get(Key("billing", KEY)) is None


def test_an_undo_that_fails_is_told_and_the_original_raised(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 30: whatever the savepoint has to say, the body's error is what the caller gets."""

    @contextmanager
    def savepoint(board: object) -> Iterator[None]:
        try:
            yield
        except BaseException:
            raise StoreError("retry your transaction") from None

    with shop.transaction() as (connection, guard):
        monkeypatch.setattr(guard.store, "savepoint", savepoint)
        with pytest.raises(OutOfStockError):
            guard.run(KEY, book, connection, 5, OutOfStockError(), payload=5)
    assert shop.kinds() == [EventKind.STORE_FAILED]


def test_a_savepoint_that_cannot_be_released_is_undone(shop: Shop) -> None:
    """Behaviours 33, 54: the transaction stands, so this is no lost lease, and neither effect nor record is kept."""

    def authorize(action: int, operation: str | None, *rest: object) -> int:
        denied = action == sqlite3.SQLITE_SAVEPOINT and operation == "RELEASE"
        return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK

    with shop.transaction() as (connection, guard):
        connection.execute("INSERT INTO ledger VALUES (1)")
        connection.set_authorizer(authorize)
        with pytest.raises(StoreError, match="not authorized"):
            guard.run(KEY, book, connection, 5, payload=5)
        connection.set_authorizer(None)
    assert shop.ledger() == [1]
    assert shop.store.get(Key("billing", KEY)) is None


def test_calls_at_once_by_two_stores_on_a_connection_are_refused(shop: Shop, tmp_path: Path) -> None:
    """Behaviour 54: savepoints nest, whichever store sets them; a call within the other, or after it, may."""
    outside = contextvars.copy_context()
    with shop.transaction() as (connection, guard):
        other = shop.guard(connection)
        with guard.operation(KEY):
            assert other.run("within", book, connection, 1, payload=1) == "booked 1"
            for refused in (other, guard):
                with pytest.raises(RuntimeError, match="follow one another"):
                    outside.run(refused.run, "beside", book, connection, 5, payload=5)
        assert outside.run(other.run, "after", book, connection, 2, payload=2) == "booked 2"
        elsewhere = Shop(tmp_path / "elsewhere.db")
        with closing(elsewhere.store), elsewhere.transaction() as (far, far_guard), guard.operation("open"):
            assert outside.run(far_guard.run, KEY, book, far, 3, payload=3) == "booked 3"
    assert shop.ledger() == [1, 2]


def test_a_call_that_nobody_will_end_is_not_open(shop: Shop) -> None:
    """Behaviour 54: nor does it keep the connection from being collected."""
    with shop.transaction() as (connection, guard):
        gone = guard.operation(KEY)
        contextvars.copy_context().run(gone.__enter__)
        del gone
        gc.collect()
        assert shop.guard(connection).run("next", book, connection, 5, payload=5) == "booked 5"
    assert shop.ledger() == [5]


def test_coroutines_are_refused(shop: Shop) -> None:
    """Other tasks' statements would come in between: a TypeError at decoration."""

    async def place() -> None: ...

    with shop.transaction() as (_, guard):
        with pytest.raises(TypeError, match="plain functions"):
            guard.idempotent(key=lambda: KEY, namespace="place")(place)
        with pytest.raises(TypeError, match="plain functions"):
            guard.run_async(KEY, place).send(None)
        with pytest.raises(TypeError, match="plain functions"):
            guard.operation(KEY).__aenter__().send(None)


@pytest.mark.parametrize("error", [None, OutOfStockError()])
def test_a_forked_child_writes_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, error: OutOfStockError | None
) -> None:
    """Behaviour 43: neither outcome nor undo: the connection is the parent's."""
    with closing(shop.connect()) as connection:
        connection.execute("BEGIN")
        statements: list[str] = []
        with pytest.raises(OutOfStockError if error else LeaseLostError), shop.guard(connection).operation(KEY) as op:
            monkeypatch.setattr("idempo._fork.forks.generation", -1)
            connection.set_trace_callback(statements.append)
            with pytest.raises(LeaseLostError):
                op.ensure_held()
            if error is not None:
                raise error
            op.complete("child's")
        del op
        gc.collect()
        assert statements == []


def test_an_interrupt_before_the_savepoint_leaves_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 30: at any point."""

    def interrupt(board: object) -> None:
        raise KeyboardInterrupt

    with shop.transaction() as (connection, guard):
        with monkeypatch.context() as patch:
            patch.setattr(guard.store, "savepoint", interrupt)
            with pytest.raises(KeyboardInterrupt):
                guard.run(KEY, book, connection, 5, payload=5)
        assert guard.run(KEY, book, connection, 6, payload=6) == "booked 6"


def test_a_record_that_changes_between_two_looks_is_looked_at_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On other databases than SQLite a transaction may see what others commit meanwhile."""
    leave_doubt(shop)
    answers = iter([Resolved("found"), Resolved("found"), RERUN])
    shop.policy = {"in_doubt": lambda key: next(answers)}
    with shop.transaction() as (connection, guard):
        claim = guard.store.claim  # type: ignore[union-attr]
        asked: list[Any] = []

        def overtaken(key: Key, **options: Any) -> Any:
            asked.append(options["take_over"])
            answer = claim(key, **options)
            if len(asked) == 2:  # the one that would keep what the probe found
                return Claim(False, answer.record, False)
            if len(asked) == 3:
                return Claim(False, attrs.evolve(answer.record, state=State.RELEASED, lease_left=None), False)
            return answer

        monkeypatch.setattr(guard.store, "claim", overtaken)
        with pytest.raises(InProgressError):  # by the claim that the test has made under another owner
            guard.run(KEY, book, connection, 5, payload=5)
        assert asked == [False, "dead", False, False]


def test_a_claim_that_fails_leaves_no_savepoint(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 32: entering a block fails, and the transaction goes on as if it had not been tried."""

    def fail(key: Key, **options: object) -> Any:
        raise StoreError("retry your transaction")

    with shop.transaction() as (connection, guard):
        with monkeypatch.context() as patch:
            patch.setattr(guard.store, "claim", fail)
            with pytest.raises(StoreError), guard.operation(KEY):
                pytest.fail("entered")
            patch.setattr(guard.store, "claim", type(guard.store).claim.__get__(guard.store))
            patch.setattr(guard.store, "complete", fail)
            with pytest.raises(StoreError), guard.operation(KEY):
                book(connection, 5)
        with pytest.raises(sqlite3.OperationalError, match="no such savepoint"):
            connection.execute("RELEASE idempo_1")
        assert guard.lookup(KEY) is None
    assert shop.ledger() == []


@pytest.mark.parametrize(("method", "runs"), [("claim", 0), ("complete", 1)])
@pytest.mark.parametrize("wrong", ["raises", "answers None"])
def test_whatever_a_store_raises_or_answers_is_its_failure(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, method: str, runs: int, wrong: str
) -> None:
    """Behaviours 32, 33: typed, told, with the key, and undone; an answer that is none claims and stores nothing."""

    def broken(key: Key, **options: object) -> None:
        if wrong == "raises":
            raise ConnectionError("no answer")

    ran: list[object] = []
    with shop.transaction() as (connection, guard):
        with monkeypatch.context() as patch:
            patch.setattr(guard.store, method, broken)
            expected = LeaseLostError if (wrong, method) == ("answers None", "complete") else StoreError
            with pytest.raises(expected) as caught:
                guard.run(KEY, lambda note, where: note(book(where, 5)), ran.append, connection, payload=5)
        assert caught.value.key == Key("billing", KEY)
        assert guard.lookup(KEY) is None
    assert len(ran) == runs
    assert shop.ledger() == []
    assert (EventKind.STORE_FAILED in shop.kinds()) == (expected is StoreError)
