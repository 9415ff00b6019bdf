"""What the demo is made of: the ledger and its audit, the workers, Ctrl-C, and progress."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from idempo.demo.deliveries import Delivery, Money
from idempo.demo.interrupts import Interrupts
from idempo.demo.ledger import Account, Expectation, Ledger, audit
from idempo.demo.progress import Progress
from idempo.demo.workers import Workers

TEN = Money("EUR", 10)
ELEVEN = Money("EUR", 11)


def delivery(event_id: str, money: Money | None = TEN, line: int = 1) -> Delivery:
    return Delivery(line, {"id": event_id}, f"{event_id} {money}".encode(), money, None)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with closing(Ledger()) as opened:
        yield opened


@pytest.fixture
def expectation() -> Iterator[Expectation]:
    with closing(Expectation()) as opened:
        yield opened


# The ledger


def test_a_booking_is_written_once(ledger: Ledger) -> None:
    """The ledger's own key: the same booking again changes nothing, whatever it says, and says so."""
    assert ledger.book("b1", "evt_1", TEN) is True
    assert ledger.book("b1", "evt_1", ELEVEN) is False
    assert ledger.book("b2", "evt_2", ELEVEN) is True
    assert [entry.money for entry in ledger.entries("evt_1")] == [TEN]
    assert ledger.entries("evt_3") == []


def test_a_booking_is_written_once_by_many_threads(ledger: Ledger) -> None:
    """Threads that book the same at once: one writes."""
    start = threading.Barrier(8)
    answers: list[bool] = []

    def book() -> None:
        start.wait()
        answers.append(ledger.book("b1", "evt_1", TEN))

    threads = [threading.Thread(target=book) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]


def test_a_ledger_in_a_file_survives(tmp_path: Path) -> None:
    """What was booked stands in the file, and each run has a number of its own."""
    path = str(tmp_path / "ledger.db")
    with closing(Ledger(path)) as first:
        first.book("b1", "evt_1", TEN)
    with closing(Ledger(path)) as second:
        assert second.book("b1", "evt_1", TEN) is False
        assert second.book("b2", "evt_2", TEN) is True
        assert [entry.run for entry in second.entries("evt_1")] == [first.run]
        assert second.booked_now() == 1
        assert second.run > first.run


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """Opening something else is an error, before anything is written."""
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to look like one" * 20)
    before = path.read_bytes()
    with pytest.raises(sqlite3.DatabaseError):
        Ledger(str(path))
    assert path.read_bytes() == before


# The audit


def test_right_is_one_entry_for_each_event_with_its_first_payload(ledger: Ledger, expectation: Expectation) -> None:
    """Later deliveries of an id, altered or not, change nothing of what is expected."""
    for seen in (delivery("a"), delivery("b", ELEVEN), delivery("a"), delivery("a", ELEVEN), delivery("c", None)):
        expectation.see(seen)
    ledger.book("1", "a", TEN)
    ledger.book("2", "b", ELEVEN)
    verdict = audit(ledger, expectation)
    assert verdict.right
    assert (verdict.events, verdict.entries) == (3, 2)
    assert verdict.accounts == {"EUR": Account(21, 21)}


def test_what_the_ledger_has_no_account_for_is_not_expected(ledger: Ledger, expectation: Expectation) -> None:
    """An event in a currency that cannot be booked is right when nothing was booked."""
    expectation.see(delivery("a", Money("XTS", 5)))
    expectation.see(delivery("b", Money("XXX", 5)))
    assert audit(ledger, expectation).right


@pytest.mark.parametrize(
    ("bookings", "wrong"),
    [
        ([], {"missing": 2}),
        ([("1", "a", TEN)], {"missing": 1}),
        ([("1", "a", TEN), ("2", "b", TEN), ("3", "a", TEN)], {"doubled": 1}),
        ([("1", "a", ELEVEN), ("2", "b", TEN)], {"differing": 1}),
        ([("1", "a", Money("USD", 10)), ("2", "b", TEN)], {"differing": 1}),
        ([("1", "a", TEN), ("2", "b", TEN), ("3", "no money", TEN)], {"differing": 1}),
        ([("1", "a", TEN), ("2", "b", TEN), ("3", "unknown", TEN)], {"stray": 1}),
    ],
)
def test_each_mistake_is_found(
    bookings: list[tuple[str, str, Money]], wrong: dict[str, int], ledger: Ledger, expectation: Expectation
) -> None:
    """A ledger that lacks, doubles, alters or invents an entry is WRONG, and the verdict says how."""
    for seen in (delivery("a"), delivery("b"), delivery("no money", None)):
        expectation.see(seen)
    for booking in bookings:
        ledger.book(*booking)
    verdict = audit(ledger, expectation)
    assert not verdict.right
    found = {name: getattr(verdict, name) for name in ("missing", "doubled", "differing", "stray")}
    assert found == dict.fromkeys(found, 0) | wrong


def test_two_mistakes_that_cancel_out_are_found(ledger: Ledger, expectation: Expectation) -> None:
    """The totals can agree while the entries do not."""
    expectation.see(delivery("a", TEN))
    expectation.see(delivery("b", ELEVEN))
    ledger.book("1", "a", ELEVEN)
    ledger.book("2", "b", TEN)
    verdict = audit(ledger, expectation)
    assert verdict.accounts == {"EUR": Account(21, 21)}
    assert verdict.differing == 2
    assert not verdict.right


def test_what_an_earlier_run_booked_is_kept(tmp_path: Path, expectation: Expectation) -> None:
    """Where an earlier run booked another payload of the id, that one was the first, and is what counts."""
    path = str(tmp_path / "ledger.db")
    with closing(Ledger(path)) as earlier:
        earlier.book("1", "a", TEN)
        earlier.book("2", "elsewhere", TEN)
    with closing(Ledger(path)) as ledger:
        expectation.see(delivery("a", ELEVEN))
        verdict = audit(ledger, expectation)
    assert verdict.right
    assert verdict.kept == 1
    assert verdict.accounts == {"EUR": Account(10, 10)}


def test_what_was_not_begun_is_not_expected(ledger: Ledger, expectation: Expectation) -> None:
    """A delivery that is taken back takes its event along, unless an earlier delivery of it had brought that."""
    first, again, other = delivery("a", line=1), delivery("a", line=2), delivery("b", line=3)
    for seen in (first, again, other):
        expectation.see(seen)
    for dropped in (again, other):
        expectation.take_back(dropped)
    ledger.book("1", "a", TEN)
    verdict = audit(ledger, expectation)
    assert verdict.right
    assert verdict.events == 1


# The workers


def test_everything_submitted_is_handled_on_several_threads() -> None:
    """Deliveries are handled side by side, each once."""
    meeting = threading.Barrier(4)
    handled: list[str] = []

    def handle(seen: Delivery) -> None:
        meeting.wait(timeout=30)  # breaks, and so fails, unless four handle at once
        handled.append(seen.id)

    workers = Workers(handle, 4)
    for number in range(20):
        workers.submit(delivery(str(number)))
    workers.finish()
    assert sorted(handled, key=int) == [str(number) for number in range(20)]


def test_duplicates_are_handled_side_by_side() -> None:
    """Nothing keeps two deliveries of one payload apart: that is the guard's business."""
    meeting = threading.Barrier(2)

    def handle(_: Delivery) -> None:
        meeting.wait(timeout=30)  # breaks, and so fails, unless both are handled at once

    workers = Workers(handle, 2)
    workers.submit(delivery("a"))
    workers.submit(delivery("a"))
    workers.finish()


def _in_thread(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_submitting_waits_for_room() -> None:
    """However fast the input is, a bounded number of deliveries is in flight."""
    gate = threading.Semaphore(0)

    def handle(_: Delivery) -> None:
        assert gate.acquire(timeout=30)

    workers = Workers(handle, 2)
    submitted: list[int] = []
    all_in = threading.Event()

    def submit() -> None:
        for number in range(100):
            workers.submit(delivery(str(number)))
            submitted.append(number)
        all_in.set()

    thread = _in_thread(submit)
    for released in range(100):
        assert len(submitted) <= released + 2 * 4
        gate.release()
    assert all_in.wait(timeout=30)
    thread.join()
    workers.finish()


def test_two_payloads_of_one_id_are_never_in_flight_at_once() -> None:
    """Of two payloads of one id, the first of the input is handled to its end before the second is begun."""
    log: list[str] = []

    def handle(seen: Delivery) -> None:
        log.append(f"begin {seen.line}")
        if seen.line == 1:
            assert first_may_end.wait(timeout=30)
        log.append(f"end {seen.line}")
        if seen.line == 2:
            second_ended.set()

    first_may_end, second_ended = threading.Event(), threading.Event()
    workers = Workers(handle, 4)
    workers.submit(delivery("a", TEN, line=1))
    workers.submit(delivery("a", TEN, line=2))
    thread = _in_thread(lambda: workers.submit(delivery("a", ELEVEN, line=3)))
    assert second_ended.wait(timeout=30)
    assert "begin 3" not in log
    first_may_end.set()
    thread.join()
    workers.finish()
    assert log.index("begin 3") > max(log.index("end 1"), log.index("end 2"))


@pytest.mark.parametrize("where", ["submit", "finish"])
def test_a_mistake_in_the_handler_stops_the_work(where: str) -> None:
    """What the handler lets out is raised where the work is waited for, instead of a run that hangs."""

    def handle(_: Delivery) -> None:
        raise ZeroDivisionError("made up")

    workers = Workers(handle, 2)
    workers.submit(delivery("a"))
    with pytest.raises(ZeroDivisionError, match="made up"):
        if where == "finish":
            workers.finish()
        for number in range(100):
            workers.submit(delivery(str(number)))


def test_what_is_only_queued_when_it_stops_is_not_begun() -> None:
    """What a thread has in its hands comes to its end; what is queued, or waits for room, is dropped, in order."""
    begun, gate = threading.Semaphore(0), threading.Event()
    handled: list[int] = []

    def handle(seen: Delivery) -> None:
        begun.release()
        assert gate.wait(timeout=30)
        handled.append(seen.line)

    workers = Workers(handle, 2)
    for line in range(1, 9):
        workers.submit(delivery(str(line), line=line))
    for _ in range(2):
        assert begun.acquire(timeout=30)
    thread = _in_thread(lambda: workers.submit(delivery("9", line=9)))
    workers.stop()
    thread.join()
    workers.submit(delivery("10", line=10))
    gate.set()
    workers.finish()
    assert sorted(handled) == [1, 2]
    assert [dropped.line for dropped in workers.dropped] == [3, 4, 5, 6, 7, 8, 9, 10]


def test_what_was_stopped_when_all_was_handled_has_dropped_nothing() -> None:
    workers = Workers(lambda _: None, 2)
    workers.submit(delivery("a"))
    workers.finish()
    workers.stop()
    assert workers.dropped == []


def test_whoever_waits_for_the_workers_looks_up_now_and_then() -> None:
    """While nothing lands, what is passed as ``look_up`` is called again and again."""
    looked = threading.Semaphore(0)

    def handle(_: Delivery) -> None:
        for _ in range(3):
            assert looked.acquire(timeout=30)

    workers = Workers(handle, 1, look_up=looked.release)
    workers.submit(delivery("a"))
    workers.finish()


# Ctrl-C


def _ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def _nothing() -> None:
    pass


def test_the_first_ctrl_c_waits_for_the_place_to_stop() -> None:
    """Between the places to stop, the first Ctrl-C changes nothing; at the next one it stops."""
    reached = False
    told = threading.Event()
    with Interrupts(told.set) as interrupts:
        with interrupts.stop_here():
            pass
        assert not interrupts.asked
        _ctrl_c()
        assert interrupts.asked
        assert told.wait(timeout=30)
        with pytest.raises(KeyboardInterrupt), interrupts.stop_here():
            reached = True
    assert not reached


def test_ctrl_c_stops_what_waits_for_input() -> None:
    """Input that never comes is waited for no longer."""
    with Interrupts(_nothing) as interrupts, pytest.raises(KeyboardInterrupt), interrupts.stop_here():
        _ctrl_c()


def test_the_second_ctrl_c_stops_at_once() -> None:
    """Whoever presses it twice means it, and needs no second word of the first."""
    told: list[str] = []
    with Interrupts(lambda: told.append("stopping")) as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.stop_here():
            _ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            _ctrl_c()
    assert told in ([], ["stopping"])


def test_what_the_first_ctrl_c_tells_comes_first() -> None:
    """Whatever is told after the block stands below what the first Ctrl-C had to tell."""
    told: list[str] = []
    at_the_end = threading.Event()

    def stopping() -> None:
        at_the_end.wait(timeout=30)
        told.append("stopping")

    with Interrupts(stopping):
        _ctrl_c()
        at_the_end.set()
    told.append("the table")
    assert told == ["stopping", "the table"]


def test_the_former_handler_is_back_afterwards() -> None:
    """Whatever SIGINT did before, it does again."""
    before = signal.getsignal(signal.SIGINT)
    with Interrupts(_nothing):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_an_ignored_ctrl_c_is_ignored() -> None:
    """What a shell starts in the background ignores Ctrl-C, which is meant for the foreground."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts(_nothing) as interrupts, interrupts.stop_here():
            _ctrl_c()
        assert not interrupts.asked
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_elsewhere_than_in_the_main_thread_nothing_is_changed() -> None:
    """A thread cannot set a handler; the work goes on without."""
    seen: list[object] = []

    def work() -> None:
        with Interrupts(_nothing) as interrupts, interrupts.stop_here():
            seen.append(signal.getsignal(signal.SIGINT))

    _in_thread(work).join()
    assert seen == [signal.getsignal(signal.SIGINT)]


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_elsewhere_than_on_a_terminal() -> None:
    """In a file or a pipe there is a line for each hundred deliveries, and none is ever taken back."""
    stream = io.StringIO()
    progress = Progress(stream, 1000)
    for _ in range(250):
        progress.handled()
    progress.tell("line 7: blank")
    progress.end()
    assert stream.getvalue().splitlines() == ["100 deliveries handled", "200 deliveries handled", "line 7: blank"]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a bar is drawn over itself, at most ten times a second; messages stand above it."""
    monkeypatch.setenv("COLUMNS", "60")
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = Terminal()
    progress = Progress(stream, 1000)
    progress.read(500)
    progress.handled()
    progress.read(500)
    progress.read(500)
    assert stream.getvalue() == "\r\x1b[K[###############...............]  50%  1 delivery handled"
    progress.handled()
    assert stream.getvalue().count("\r") == 1
    now[0] += 0.125
    progress.handled()
    assert stream.getvalue().endswith("  50%  3 deliveries handled")
    progress.tell("line 7: blank")
    assert "\r\x1b[Kline 7: blank\n\r\x1b[K[###" in stream.getvalue()
    progress.end()
    assert stream.getvalue().endswith("handled\r\x1b[K")
    assert max(map(len, stream.getvalue().replace("\n", "\r").split("\r"))) < 60 + len("\x1b[K")


@pytest.mark.parametrize("columns", ["1", "20"])
def test_a_narrow_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for a bar, there is none."""
    monkeypatch.setenv("COLUMNS", columns)
    stream = Terminal()
    progress = Progress(stream, 10)
    progress.read(11)
    progress.handled()
    assert stream.getvalue() == "\r\x1b[K[] 100%  1 delivery handled"


def test_no_share_of_an_input_without_end() -> None:
    """Of a stream nobody knows the end: the bar only counts."""
    stream = Terminal()
    Progress(stream, None).handled()
    assert stream.getvalue() == "\r\x1b[K1 delivery handled"


def test_the_bar_and_the_number_are_of_what_was_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar goes by the deliveries that ended, as the number does, not by those that were read ahead of them."""
    monkeypatch.setenv("COLUMNS", "60")
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = Terminal()
    progress = Progress(stream, 1000)
    for position in range(100, 900, 100):
        progress.read(position)
    shown = []
    for step in (progress.handled, progress.handled, progress.skipped, progress.handled):
        step()
        now[0] += 1
        shown.append(stream.getvalue().rpartition("]")[2])
    assert shown == [
        "  10%  1 delivery handled",
        "  20%  2 deliveries handled",
        "  20%  2 deliveries handled",  # a bad line is told on a line of its own, which draws the bar anew
        "  40%  3 deliveries handled",
    ]


def test_a_last_word_stands_below_the_bar_that_it_takes_away() -> None:
    """Nothing is drawn after it, and the terminal's next line is free."""
    stream = Terminal()
    progress = Progress(stream, None)
    progress.handled()
    progress.end("stopped at once")
    assert stream.getvalue() == "\r\x1b[K1 delivery handled\r\x1b[Kstopped at once\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe that nobody reads is another error there")
def test_nobody_listens_any_more() -> None:
    """Standard error that was closed at its other end does not stop the work."""
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError), open(writer, "w") as stream:  # raised by the close, which flushes again
        progress = Progress(stream, None)
        progress.tell("unheard")
        progress.tell("unheard too")
        heard = True
    assert heard
