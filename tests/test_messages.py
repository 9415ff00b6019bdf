"""Messages: each once for each consumer, and what becomes of those that cannot be processed now."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from idempo import (
    Idempotency,
    InDoubtError,
    InProgressError,
    InvalidKeyError,
    Key,
    MemoryStore,
    StoreError,
    current_operation,
)
from idempo.messages import Busy, Deduplicator, Duplicate, Failed, NotRun, Processed, Report
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock, FlakyStore, unguarded
from tests.async_support import SlowStore

PATIENCE = 60.0
Message = dict[str, Any]


def dedup_of(guard: Idempotency | None = None, consumer: str = "invoices", **options: Any) -> Deduplicator[Message]:
    return Deduplicator(guard or Idempotency(), consumer=consumer, id=lambda message: message["id"], **options)


def message(id_: object, group: object = None, *, fails: bool = False) -> Message:
    return {"id": id_, "group": group, "fails": fails}


class Handler:
    """Counts what it is given; fails where the message says so."""

    def __init__(self) -> None:
        self.ran: list[Any] = []

    def __call__(self, message: Message) -> Any:
        self.ran.append(message["id"])
        if message["fails"]:
            raise ValueError("the handler's own")
        return message["id"]

    async def awaited(self, message: Message) -> Any:
        await asyncio.sleep(0)
        return self(message)


def _called(fn: Any, message: Message) -> Any:
    return fn(message)


class Colour:
    """One colour of a deduplicator, seen as plain calls."""

    def __init__(self, *, awaited: bool) -> None:
        self.awaited = awaited

    def process(self, dedup: Deduplicator[Message], one: Message, handler: Handler) -> Any:
        if self.awaited:
            return asyncio.run(dedup.process_async(one, handler.awaited))
        return dedup.process(one, handler)

    def batch(self, dedup: Deduplicator[Message], several: list[Message], handler: Handler) -> Report[Message, Any]:
        if self.awaited:
            return asyncio.run(dedup.batch_async(several, handler.awaited))
        return dedup.batch(several, handler)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> Colour:
    return Colour(awaited=request.param)


def test_a_message_is_processed_once_for_each_consumer(colour: Colour) -> None:
    """Behaviour 64: another consumer on the same guard processes it too; the answer to a duplicate has no value."""
    guard, handler = Idempotency(namespace="shop"), Handler()
    one, other = dedup_of(guard), dedup_of(guard, "parcels")
    assert colour.process(one, message("m"), handler) == Processed("m")
    assert colour.process(one, message("m"), handler) == Duplicate()
    assert colour.process(other, message("m"), handler) == Processed("m")
    assert handler.ran == ["m", "m"]
    assert (guard.stats().executed, guard.stats().replayed) == (2, 1)


def test_no_result_is_stored_and_an_id_is_remembered_for_14_days(colour: Colour) -> None:
    """Behaviour 67: whatever the handler returns, also what no codec could keep; and `ttl` says for how long."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    guard = Idempotency(store, max_result=16)
    dedup, handler = dedup_of(guard), Handler()
    handler.ran = [big := object()]
    one = {"id": "m", "fails": False, "answer": b"x" * 1000}
    assert isinstance(colour.process(dedup, one, handler), Processed)
    record = store.get(Key("default/messages/invoices", "m"))
    assert record is not None
    assert record.outcome is not None
    assert len(record.outcome) < 64
    assert record.expires_in == pytest.approx(14 * 24 * 3600)
    clock.advance(14 * 24 * 3600 - 1)
    assert colour.process(dedup, one, handler) == Duplicate()
    clock.advance(2)
    assert colour.process(dedup, one, handler) == Processed("m")
    assert handler.ran == [big, "m", "m"]


def test_a_failing_handler_frees_the_id_and_its_error_is_the_callers(colour: Colour) -> None:
    """Behaviour 64: the message is delivered again, and runs again."""
    dedup, handler = dedup_of(), Handler()
    for _ in range(2):
        with pytest.raises(ValueError, match="own"):
            colour.process(dedup, message("m", fails=True), handler)
    assert colour.process(dedup, message("m"), handler) == Processed("m")
    assert handler.ran == ["m", "m", "m"]


@pytest.mark.parametrize("bad", [{}, None, {"id": None}, {"id": ""}, {"id": 1.5}, {"id": "x" * 300}])
def test_a_message_without_an_id_is_refused_and_nothing_runs(colour: Colour, bad: Any) -> None:
    """Behaviour 64: an id that is missing, or is none, is a typed error before any effect."""
    handler = Handler()
    with pytest.raises(InvalidKeyError):
        colour.process(dedup_of(), bad, handler)
    assert handler.ran == []


def test_what_is_in_progress_elsewhere_is_busy() -> None:
    """Behaviour 64: the other thread is not waited for; the delay is no hot loop; the other one is undisturbed."""
    dedup, begun, go_on = dedup_of(), threading.Event(), threading.Event()
    answers: list[Any] = []

    def slow(message: Message) -> str:
        begun.set()
        assert go_on.wait(PATIENCE)
        return "slow"

    thread = threading.Thread(target=lambda: answers.append(dedup.process(message("m"), slow)))
    thread.start()
    assert begun.wait(PATIENCE)
    handler = Handler()
    busy = dedup.process(message("m"), handler)
    report = dedup.batch([message("m"), message("m"), message("n")], handler)
    go_on.set()
    thread.join(PATIENCE)
    assert isinstance(busy, Busy)
    assert busy.delay >= 0.5
    assert (report.redeliver, report.delay) == ([message("m"), message("m")], busy.delay)
    assert handler.ran == ["n"]
    assert answers == [Processed("slow")]
    assert dedup.process(message("m"), handler) == Duplicate()


def test_a_coroutine_is_busy_beside_another_on_its_loop() -> None:
    """Behaviour 64: two tasks of one loop; with `wait` the second is answered when the first has ended."""

    async def scenario() -> list[Any]:
        guard = Idempotency(SlowStore())
        dedup, patient = dedup_of(guard), dedup_of(guard, wait=PATIENCE)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(message: Message) -> str:
            begun.set()
            await go_on.wait()
            return "slow"

        first = asyncio.create_task(dedup.process_async(message("m"), slow))
        await begun.wait()
        busy = await dedup.process_async(message("m"), Handler().awaited)
        waiting = asyncio.create_task(patient.process_async(message("m"), Handler().awaited))
        await asyncio.sleep(0)
        go_on.set()
        return [busy, await first, await waiting]

    busy, first, waited = asyncio.run(scenario())
    assert isinstance(busy, Busy)
    assert (first, waited) == (Processed("slow"), Duplicate())


def test_an_error_of_a_guard_inside_the_handler_is_the_handlers_own(colour: Colour) -> None:
    """A handler that finds something else in progress has failed: it is not this message that is busy."""

    class Refused(Handler):
        def __call__(self, message: Message) -> Any:
            raise InProgressError("something else", key=Key("default/messages/invoices", "m"))

    with pytest.raises(InProgressError):
        colour.process(dedup_of(), message("m"), Refused())


def test_what_is_in_doubt_waits_for_somebody_to_look(colour: Colour) -> None:
    """Behaviour 64: under at-most-once a failure leaves doubt; `resolve` and `forget` of the guard end it."""
    guard = Idempotency(in_doubt="raise")
    dedup, handler = dedup_of(guard), Handler()
    for id_ in "ab":
        with pytest.raises(ValueError, match="own"):
            colour.process(dedup, message(id_, fails=True), handler)
    with pytest.raises(InDoubtError) as doubt:
        colour.process(dedup, message("a"), handler)
    report = colour.batch(dedup, [message("a"), message("c")], handler)
    assert isinstance(report.errors["a"], InDoubtError)
    assert report.acknowledge == [message("c")]
    assert guard.resolve(doubt.value.key, None)
    dedup.guard.forget("b")
    assert colour.process(dedup, message("a"), handler) == Duplicate()
    assert colour.process(dedup, message("b"), handler) == Processed("b")


def test_a_batch_is_processed_each_message_by_itself(colour: Colour) -> None:
    """Behaviour 66: one that fails fails no neighbours; copies are found; one without an id is redelivered alone."""
    dedup, handler = dedup_of(), Handler()
    colour.process(dedup, message("old"), handler)
    several = [
        message("old"),
        message("a"),
        message("b", fails=True),
        message("a"),
        message("b"),
        message(None),
        message(7),
        message("7"),
    ]
    report = colour.batch(dedup, several, handler)
    assert [entry.answer for entry in report.entries] == [
        Duplicate(),
        Processed("a"),
        Failed(report.errors["b"]),
        Duplicate(),
        NotRun("an earlier copy of it was not processed"),
        Failed(report.errors[None]),
        Processed(7),
        Duplicate(),
    ]
    assert isinstance(report.errors[None], InvalidKeyError)
    assert report.acknowledge == [several[n] for n in (0, 1, 3, 6, 7)]
    assert report.redeliver == [several[n] for n in (2, 4, 5)]
    assert report.by_id["a"] == Processed("a")
    assert report.delay == 0
    assert handler.ran == ["old", "a", "b", 7]
    again = colour.batch(dedup, report.redeliver[1:2], handler)
    assert again.acknowledge == [message("b")]


def test_later_messages_of_a_group_wait_for_one_that_failed(colour: Colour) -> None:
    """Behaviour 66: an ordered queue stays in order; other groups, and messages of none, go on."""
    dedup, handler = dedup_of(group=lambda message: message["group"]), Handler()
    several = [
        message("a1", "a"),
        message("a2", "a", fails=True),
        message("b1", "b"),
        message("a3", "a"),
        message("n"),
        message("b2", "b"),
        message(None, "c"),
        message("c2", "c"),
        message("d", []),
    ]
    report = colour.batch(dedup, several, handler)
    assert handler.ran == ["a1", "a2", "b1", "n", "b2"]
    assert report.acknowledge == [several[n] for n in (0, 2, 4, 5)]
    assert report.by_id["a3"] == report.by_id["c2"] == NotRun("an earlier message of its group was not processed")
    assert isinstance(report.errors[None], InvalidKeyError)


@pytest.mark.parametrize("method", ["claim", "complete"])
def test_a_store_that_fails_ends_the_batch(colour: Colour, method: str) -> None:
    """Behaviour 66: what was processed is acknowledged, nothing more runs, and the rest is to be redelivered."""
    calls = {"claim": [3, 4], "complete": range(3, 1000)}[method]
    store = FlakyStore(MemoryStore(), [(method, n, "before") for n in calls])
    # No retry could help: the lease is short for the sake of the test.
    dedup, handler = dedup_of(Idempotency(store, lease=0.2)), Handler()
    several = [message(n) for n in "abcd"]
    report = colour.batch(dedup, several, handler)
    assert report.acknowledge == several[:2]
    assert isinstance(report.by_id["c"], Failed)
    assert report.by_id["d"] == NotRun("the store failed at an earlier message")
    assert handler.ran == ["a", "b"] + ["c"] * (method == "complete")


def test_a_store_error_of_the_handlers_own_ends_no_batch(colour: Colour) -> None:
    """Behaviour 66: it is one message that failed."""

    class OtherStore(Handler):
        def __call__(self, message: Message) -> Any:
            if message["fails"]:
                raise StoreError("another store", key=Key("other", "m"))
            return super().__call__(message)

    report = colour.batch(dedup_of(), [message("a", fails=True), message("b")], OtherStore())
    assert report.acknowledge == [message("b")]


def test_an_interrupt_leaves_the_batch() -> None:
    """Behaviour 66: there is no report; all of it comes again, and what was processed is skipped."""
    dedup, handler = dedup_of(), Handler()

    def interrupted(one: Message) -> Any:
        if one["fails"]:
            raise KeyboardInterrupt
        return handler(one)

    with pytest.raises(KeyboardInterrupt):
        dedup.batch([message("a"), message("b", fails=True), message("c")], interrupted)
    report = dedup.batch([message("a"), message("b"), message("c")], handler)
    assert [entry.answer for entry in report.entries] == [Duplicate(), Processed("b"), Processed("c")]


def test_a_decorated_handler_keeps_its_colour_and_name() -> None:
    """Called with a message it answers as `process` does, and may ask for its operation."""
    dedup = dedup_of()

    @dedup.handler
    def plain(one: Message) -> str:
        return current_operation().key.value

    @dedup.handler
    async def awaited(one: Message) -> int:
        current_operation().ensure_held()
        return current_operation().attempt

    assert (plain(message("m")), plain(message("m"))) == (Processed("m"), Duplicate())
    assert asyncio.run(awaited(message("n"))) == Processed(1)
    assert plain.__name__ == "plain"


def test_unguarded_every_message_runs() -> None:
    """As in users' own tests."""
    dedup, handler = dedup_of(), Handler()
    with unguarded():
        assert [dedup.process(message("m"), handler) for _ in range(2)] == [Processed("m")] * 2


def test_handlers_of_the_wrong_colour_are_refused() -> None:
    """Before anything has happened; what only turns out to be a coroutine is closed."""
    dedup, handler = dedup_of(), Handler()
    with pytest.raises(TypeError, match="process_async"):
        dedup.process(message("m"), handler.awaited)
    with pytest.raises(TypeError, match="process_async"):
        dedup.process(message("m"), functools.partial(_called, handler.awaited))
    with pytest.raises(TypeError, match="batch_async"):
        dedup.batch([message("m")], handler.awaited)
    with pytest.raises(TypeError, match="batch_async"):
        dedup_of(Idempotency(SlowStore())).batch([message("m")], handler)
    with pytest.raises(TypeError, match="must be a function"):
        dedup.handler(5)
    with pytest.raises(TypeError, match="generator"):

        @dedup.handler
        def generator(one: Message) -> Any:
            yield one

    assert handler.ran == []


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"guard": MemoryStore()}, TypeError, "Idempotency"),
        ({"consumer": None}, TypeError, "consumer"),
        ({"consumer": ""}, ValueError, "consumer"),
        ({"id": "id"}, TypeError, "id must be callable"),
        ({"group": "g"}, TypeError, "group must be callable"),
        ({"id": Handler().awaited}, TypeError, "coroutine"),
        ({"ttl": "x"}, TypeError, "ttl"),
        ({"wait": -1}, ValueError, "wait"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """When it is made, with what is wrong."""
    made: dict[str, Any] = {"guard": Idempotency(), "consumer": "c", "id": str, **options}
    with pytest.raises(error, match=text):
        Deduplicator(made.pop("guard"), **made)


def test_in_the_callers_transaction_effect_and_record_share_its_fate(tmp_path: Path) -> None:
    """Behaviours 54, 64: a consumer whose effect is rows of the same database processes exactly once."""
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection, SqliteStore(path) as store:
        connection.execute("CREATE TABLE invoices (id TEXT)")
        connection.commit()

        def invoice(message: Message) -> None:
            connection.execute("INSERT INTO invoices VALUES (?)", (message["id"],))

        def deliver() -> Any:
            connection.execute("BEGIN IMMEDIATE")
            return dedup_of(Idempotency(store.joining(connection), namespace="shop")).process(message("m-1"), invoice)

        assert deliver() == Processed(None)
        connection.rollback()  # and so nothing happened
        assert deliver() == Processed(None)
        connection.commit()
        assert deliver() == Duplicate()
        connection.commit()
        assert connection.execute("SELECT id FROM invoices").fetchall() == [("m-1",)]
