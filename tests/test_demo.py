"""The main job: ``python -m idempo demo``, in this process and, where processes die, in real ones."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from idempo import Idempotency, MemoryStore
from idempo.__main__ import main
from idempo.demo import sample
from idempo.demo.deliveries import Delivery, Money
from idempo.demo.handling import Desk, Handler, NoAnswerError
from idempo.demo.ledger import Ledger

SAMPLE = list(sample.make_deliveries())
SIGNS = {"charge.succeeded": 1, "refund.created": -1, "payout.paid": -1, "dispute.funds_withdrawn": -1}
DOCS = Path(__file__).parent.parent / "docs"


def right_entries(deliveries: Sequence[dict[str, Any]]) -> dict[str, tuple[str, int]]:
    """Count anew, with nothing of the demo's, what a ledger should hold: by event, currency and amount."""
    entries: dict[str, tuple[str, int]] = {}
    seen = set()
    for delivery in deliveries:
        moved = delivery["data"]["object"]
        if delivery["id"] not in seen and delivery["type"] in SIGNS and moved["currency"] != "xts":
            entries[delivery["id"]] = (moved["currency"].upper(), SIGNS[delivery["type"]] * moved["amount"])
        seen.add(delivery["id"])
    return entries


def without_account(deliveries: Sequence[dict[str, Any]]) -> int:
    return len({delivery["id"] for delivery in deliveries if delivery["data"]["object"].get("currency") == "xts"})


RIGHT = right_entries(SAMPLE)
EVENTS = len({delivery["id"] for delivery in SAMPLE})
NO_ACCOUNT = without_account(SAMPLE)
SMALL = list(sample.make_deliveries(events=400, seed=5))  # for what waits for a disk
SMALL_RIGHT = right_entries(SMALL)
SMALL_RUNS = 400 - without_account(SMALL)
LOST_ANSWERS = sum(delivery["delivery"].get("fault") == "timeout" and delivery["id"] in RIGHT for delivery in SAMPLE)


def ledger_in(path: Path) -> list[tuple[str, str, int]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT event, currency, amount FROM demo_ledger ORDER BY event").fetchall()


def is_right(path: Path) -> bool:
    return ledger_in(path) == sorted((event, *entry) for event, entry in SMALL_RIGHT.items())


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def lines(*deliveries: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(delivery).encode() + b"\n" for delivery in deliveries)


def charge(event_id: str, amount: int = 1000, **more: Any) -> dict[str, Any]:
    return {
        "id": event_id,
        "type": "charge.succeeded",
        "data": {"object": {"amount": amount, "currency": "eur"}},
    } | more


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "deliveries.jsonl"
    path.write_bytes(lines(*SMALL))
    return str(path)


@pytest.fixture
def demo(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in this process: gives its exit code, its report as JSON, and what it said beside it."""

    def run(*arguments: str | Path) -> tuple[int, dict[str, Any], str]:
        code = main(["demo", "--json", *map(str, arguments)])
        told = capsys.readouterr()
        return code, json.loads(told.out), told.err

    return run


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line of what is said of arguments that are refused with exit code 2."""
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code  # type: ignore[assignment]
    told = capsys.readouterr()
    assert code == 2
    assert told.out == ""
    return told.err.splitlines()[-1]


# What runs, and what does not


def test_each_event_of_the_sample_is_booked_once(demo: Any) -> None:
    """Behaviour 1: of 1,400 deliveries on eight threads each event's handler runs once, and the ledger is right."""
    code, report, _ = demo()
    tally = report["tally"]
    assert code == 0
    assert report["ledger"]["right"] is True
    assert tally["ran"] == EVENTS - NO_ACCOUNT
    assert tally["failed"] == NO_ACCOUNT
    assert tally["refused"] == sum(
        {**delivery, "delivery": None} != {**first, "delivery": None}
        for delivery in SAMPLE
        if (first := next(other for other in SAMPLE if other["id"] == delivery["id"]))
    )
    assert sum(tally[end] for end in ("ran", "replayed", "refused", "busy", "failed")) == len(SAMPLE)
    assert tally["found_booked"] == LOST_ANSWERS
    assert report["ledger"]["entries"] == len(RIGHT)
    assert {currency: account["booked"] for currency, account in report["ledger"]["accounts"].items()} == {
        currency: sum(amount for other, amount in RIGHT.values() if other == currency)
        for currency in ("EUR", "GBP", "JPY", "USD")
    }


def test_duplicates_wait_for_the_first(demo: Any, tmp_path: Path) -> None:
    """Duplicates that come while the first is handled wait for it, and get its outcome."""
    path = tmp_path / "deliveries.jsonl"
    path.write_bytes(lines(*[charge("evt_1")] * 8))
    code, report, _ = demo(path, "--work", "0.3", "--workers", "8")
    assert code == 0
    assert (report["tally"]["ran"], report["tally"]["replayed"], report["waited"]) == (1, 7, 7)


def test_a_second_run_on_one_file_executes_nothing(demo: Any, small: str, tmp_path: Path) -> None:
    """Run twice on one SQLite file: everything is replayed or refused, and the ledger is as it was."""
    path = tmp_path / "demo.db"
    first_code, first, _ = demo(small, "--store", url(path), "--work", "0")
    assert (first_code, first["tally"]["ran"]) == (0, SMALL_RUNS)
    assert is_right(path)
    code, second, said = demo(small, "--store", url(path), "--work", "0")
    assert code == 0
    assert second["tally"] | {"replayed": 0, "refused": 0} == dict.fromkeys(second["tally"], 0)
    assert second["tally"]["refused"] == first["tally"]["refused"]
    assert second["tally"]["replayed"] == len(SMALL) - first["tally"]["refused"]
    assert second["ledger"] == first["ledger"]
    assert "failed" not in said
    assert is_right(path)


def test_a_payload_changed_between_two_runs_is_refused(demo: Any, tmp_path: Path) -> None:
    """Behaviour 6: an id that an earlier run booked keeps its first payload, and the ledger is right."""
    store = url(tmp_path / "demo.db")
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_bytes(lines(charge("evt_1", 1000), charge("evt_2", 7)))
    second.write_bytes(lines(charge("evt_1", 9999), charge("evt_3", 50)))
    assert demo(first, "--store", store)[0] == 0
    code, report, said = demo(second, "--store", store)
    assert code == 0
    assert (report["tally"]["ran"], report["tally"]["refused"]) == (1, 1)
    assert said == "line 1: event 'evt_1' refused: the id was used before for another payload\n"
    assert report["ledger"]["kept"] == 1
    assert report["ledger"]["accounts"] == {"EUR": {"booked": 1050, "expected": 1050}}
    assert ledger_in(tmp_path / "demo.db") == [("evt_1", "EUR", 1000), ("evt_2", "EUR", 7), ("evt_3", "EUR", 50)]


def test_the_first_payload_of_the_input_wins(demo: Any, tmp_path: Path) -> None:
    """Of two payloads of one id, one right after the other, the first is booked, on however many threads."""
    path = tmp_path / "deliveries.jsonl"
    path.write_bytes(lines(*[charge(f"evt_{number}", amount) for number in range(50) for amount in (10, 20, 10, 30)]))
    code, report, _ = demo(path, "--work", "0.001", "--workers", "16")
    assert code == 0
    assert report["ledger"]["accounts"] == {"EUR": {"booked": 500, "expected": 500}}
    assert (report["tally"]["ran"], report["tally"]["replayed"], report["tally"]["refused"]) == (50, 50, 100)


def test_a_ledger_that_was_tampered_with_is_wrong(
    demo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing in the ledger is noticed: WRONG, and exit code 1."""
    path, store = tmp_path / "deliveries.jsonl", tmp_path / "demo.db"
    path.write_bytes(lines(charge("evt_1"), charge("evt_2")))
    demo(path, "--store", url(store))
    with closing(sqlite3.connect(store)) as db, db:
        db.execute("DELETE FROM demo_ledger WHERE event = 'evt_1'")
    code, report, _ = demo(path, "--store", url(store))
    assert code == 1
    assert report["ledger"]["right"] is False
    assert report["ledger"]["missing"] == 1
    assert main(["demo", str(path), "--store", url(store)]) == 1
    text = capsys.readouterr().out
    assert re.search(r"EUR +1,000 +2,000 +WRONG", text)
    assert text.endswith("The ledger is WRONG: 1 not booked.\n")


# How a delivery ends


class Told:
    """A handler on a store, what it told, and a ledger that a test can break."""

    def __init__(self, store: MemoryStore, ledger: Any, *, work: float = 0.0, **policy: Any) -> None:
        self.lines: list[str] = []
        self.done = 0
        guard = Idempotency(store, namespace="demo", **policy)
        self.handler = Handler(guard, ledger, work=work, tell=self.lines.append, done=self._done)
        self.tally = self.handler.tally

    def _done(self) -> None:
        self.done += 1


def delivery(event_id: str = "evt_1", currency: str = "EUR", fault: str | None = None) -> Delivery:
    return Delivery(7, {"id": event_id}, b"", Money(currency, 10), fault)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with closing(Ledger()) as opened:
        yield opened


def ends(told: Told) -> dict[str, int]:
    return {name: count for name in told.tally.__slots__ if (count := getattr(told.tally, name, 0)) and name[0] != "_"}


def test_a_ledger_that_is_not_reached_is_tried_again(ledger: Ledger) -> None:
    """Behaviour 29: a failure before the effect frees the key; the next try books."""
    told = Told(MemoryStore(), ledger)
    told.handler.handle(delivery(fault="unreachable"))
    assert ends(told) == {"retried": 1, "ran": 1}
    assert len(ledger.entries("evt_1")) == 1
    assert told.lines == []
    assert told.done == 1


def test_a_lost_answer_books_once(ledger: Ledger) -> None:
    """At least once: the handler runs again after the ledger's lost answer, with the same booking, booked once."""
    told = Told(MemoryStore(), ledger)
    told.handler.handle(delivery(fault="timeout"))
    assert ends(told) == {"retried": 1, "ran": 1, "found_booked": 1}
    assert len(ledger.entries("evt_1")) == 1


def test_what_cannot_be_booked_is_an_outcome(ledger: Ledger) -> None:
    """Behaviour 29: a declared error is stored; duplicates get it and the handler does not run again."""
    told = Told(MemoryStore(), ledger)
    for _ in range(3):
        told.handler.handle(delivery(currency="XTS"))
    assert ends(told) == {"failed": 1, "replayed": 2}
    assert told.lines == ["line 7: event 'evt_1' failed: NoAccountError: no account in XTS"]
    assert told.done == 3


def test_only_the_last_try_counts(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery whose handler failed, and which was then given another's outcome, is a replay."""
    told = Told(MemoryStore(), ledger)
    tries: list[bool] = []

    def book(_: object, desk: Desk) -> None:
        tries.append(desk.ran)
        if len(tries) == 1:
            desk.ran = desk.found_booked = True
            raise NoAnswerError("silence")

    monkeypatch.setattr(told.handler, "_book", book)
    told.handler.handle(delivery())
    assert tries == [False, False]
    assert ends(told) == {"retried": 1, "replayed": 1, "found_booked": 1}


def test_a_ledger_that_never_answers_is_given_up() -> None:
    """Three tries, then the delivery has failed, and is named by its line."""

    def book(*_: object) -> bool:
        raise NoAnswerError("silence")

    told = Told(MemoryStore(), SimpleNamespace(book=book))
    told.handler.handle(delivery())
    assert ends(told) == {"retried": 2, "failed": 1}
    assert told.lines == ["line 7: event 'evt_1' failed: NoAnswerError: silence"]


def test_whatever_the_handler_raises_stops_nothing() -> None:
    """An error that nobody thought of is one failed delivery, named with its id escaped."""

    def book(*_: object) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    told = Told(MemoryStore(), SimpleNamespace(book=book))
    told.handler.handle(delivery("evt\x1b[2J"))
    assert ends(told) == {"failed": 1}
    assert told.lines == ["line 7: event 'evt\\x1b[2J' failed: OperationalError: disk I/O error"]
    assert told.done == 1


def test_what_waits_for_another_process_is_told_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds of nothing but waiting for what others hold are told, once; what runs here is no silence."""
    now = [100.0]
    monkeypatch.setattr("idempo.demo.handling.monotonic", lambda: now[0])
    asked = threading.Semaphore(0)
    may_end = {"runs here": threading.Event(), "one": threading.Event(), "another": threading.Event()}
    told = Told(MemoryStore(), ledger, lease=9, wait=12)

    def book(_: object, desk: Desk) -> None:
        desk.ran = desk.delivery.id == "runs here"
        asked.release()
        assert may_end[desk.delivery.id].wait(timeout=30)

    def hand_in(event: str) -> threading.Thread:
        thread = threading.Thread(target=told.handler.handle, args=(delivery(event),))
        thread.start()
        assert asked.acquire(timeout=30)
        return thread

    monkeypatch.setattr(told.handler, "_book", book)
    runs_here, one = hand_in("runs here"), hand_in("one")
    now[0] += 8.5
    told.handler.look_up()  # something runs here
    another = hand_in("another")
    now[0] += 1.5
    may_end["runs here"].set()
    runs_here.join()
    told.handler.look_up()  # one of them waits for a second and a half
    assert told.lines == []
    now[0] += 1
    told.handler.look_up()
    told.handler.look_up()
    assert told.lines == ["waiting up to 10 s for what another process holds, or held when it died"]
    for event, thread in (("one", one), ("another", another)):
        may_end[event].set()
        thread.join()
    told.handler.look_up()
    assert len(told.lines) == 1


def test_an_id_that_somebody_else_holds_is_busy(ledger: Ledger) -> None:
    """Behaviour 16: when another holds the id for longer than a duplicate waits, nothing runs."""
    entered, may_end = threading.Event(), threading.Event()

    def book(*_: object) -> bool:
        entered.set()
        return may_end.wait(timeout=30)

    store = MemoryStore()
    holder = Told(store, SimpleNamespace(book=book))
    thread = threading.Thread(target=holder.handler.handle, args=(delivery(),))
    thread.start()
    assert entered.wait(timeout=30)
    told = Told(store, ledger, wait=0)
    told.handler.handle(delivery())
    may_end.set()
    thread.join()
    assert ends(told) == {"busy": 1}
    assert told.lines == ["line 7: event 'evt_1' busy: another process is handling it"]
    assert ledger.entries("evt_1") == []
    assert ends(holder) == {"ran": 1}


# Input, options, output


def test_bad_lines_are_named_and_do_not_stop_it(
    demo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines that are no deliveries are named by number on standard error; the others are handled."""
    data = lines(charge("evt_1")) + b"\nnot json\n[]\n" + lines(charge("evt_2"), {"type": "x"}) + b"\xff\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    code, report, said = demo("-")
    assert code == 0
    assert said.splitlines() == [
        "line 2: blank",
        "line 3: not JSON (Expecting value, column 1)",
        "line 4: not a JSON object but an array",
        'line 6: no "id"',
        "line 7: not UTF-8 (byte 1)",
    ]
    assert report["bad_lines"] == 5
    assert report["tally"]["ran"] == 2
    assert report["source"] == "standard input"


def test_no_input_is_no_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of nothing, nothing is booked, and that is right."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(["demo", "-"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("0 deliveries of 0 events from standard input\n")
    assert text.endswith("  bad lines   0   no delivery\n\nThe ledger is right: nothing was to be booked.\n")


def test_input_without_a_delivery_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines are named, and the exit code is 2: most likely it is another file than was meant."""
    path = tmp_path / "other.txt"
    path.write_text("root:x:0\n{}\n")
    assert main(["demo", str(path)]) == 2
    told = capsys.readouterr()
    assert "bad lines   2" in told.out
    assert told.err.splitlines()[-1] == f"idempo demo: no line of {path} is a delivery: --help says what one is"


def test_input_that_breaks_off_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What came before the break is handled and reported; the break is named, with exit code 2."""

    class Broken(io.RawIOBase):
        broken = False

        def readline(self, size: int | None = -1, /) -> bytes:
            if not self.broken:
                self.broken = True
                return lines(charge("evt_1"))
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Broken()))
    assert main(["demo", "-"]) == 2
    told = capsys.readouterr()
    assert "1 delivery of 1 event from standard input, stopped before the end" in told.out
    assert told.err == "idempo demo: standard input broke off: Input/output error\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["demo", "--wrokers", "3"], "unrecognized arguments: --wrokers"),
        (["demo", "--work"], "--work: expected one argument"),
        (["demo", "--workers", "0"], "--workers: '0' is no number from 1 to 256"),
        (["demo", "--workers", "257"], "--workers: '257' is no number from 1 to 256"),
        (["demo", "--workers", "9" * 5000], "is no number from 1 to 256"),
        (["demo", "--workers", "²"], "--workers: '²' is no number from 1 to 256"),
        (["demo", "--lease", "0"], "--lease: '0' is no number of seconds from 0.05 to 3600"),
        (["demo", "--lease", "nan"], "--lease: 'nan' is no number of seconds from 0.05 to 3600"),
        (["demo", "--lease", "soon"], "--lease: 'soon' is no number of seconds from 0.05 to 3600"),
        (["demo", "--work", "-1"], "--work: '-1' is no number of seconds from 0 to 60"),
        (["demo", "--work", "inf"], "--work: 'inf' is no number of seconds from 0 to 60"),
        (["demo", "--store", "demo.db"], "'demo.db' is neither memory:// nor sqlite:///FILE"),
        (["demo", "--store", "sqlite://demo.db"], "neither memory:// nor sqlite:///FILE"),
        (["demo", "--store", "sqlite:///"], "neither memory:// nor sqlite:///FILE"),
        (["demo", "--store", "sqlite:///:memory:"], "neither memory:// nor sqlite:///FILE"),
        (["demo", "--store", "sqlite:///a%00b"], "neither memory:// nor sqlite:///FILE"),
        (["demo", "--store", "sqlite:///demo.db?mode=ro"], "neither memory:// nor sqlite:///FILE"),
        (["demo", "--store", "redis://localhost"], "neither memory:// nor sqlite:///FILE"),
        (["demo", "no such file"], "idempo demo: cannot read no such file: No such file or directory"),
        (["demo", os.path.dirname(__file__)], "Is a directory"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command, a bad option and an unreadable file: a clear line, exit code 2, and nothing ran."""
    assert said in refused(arguments, capsys)


def test_a_store_that_cannot_be_used_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there, a folder, and a file that is no database: a clear line, exit code 2."""
    notes = tmp_path / "notes.txt"
    notes.write_text("not a database, but long enough to look like one" * 20)
    for path in (tmp_path / "no folder" / "demo.db", tmp_path, notes):
        said = refused(["demo", "--store", url(path)], capsys)
        assert said.startswith(f"idempo demo: cannot use {url(path)}: ")
    assert notes.read_text().startswith("not a database")


def test_tables_that_are_not_ours_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A database in which somebody else has tables of our names: a clear line, exit code 2."""
    for table in ("idempo_records", "demo_ledger"):
        path = tmp_path / f"{table}.db"
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"CREATE TABLE {table} (x)")
        assert refused(["demo", "--store", url(path)], capsys).startswith(f"idempo demo: cannot use {url(path)}: ")


def test_no_store_is_made_for_input_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the input's name leaves no file behind."""
    refused(["demo", str(tmp_path / "missing"), "--store", url(tmp_path / "demo.db")], capsys)
    assert list(tmp_path.iterdir()) == []


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A process can be started without standard input: that is said."""
    monkeypatch.setattr("sys.stdin", None)
    assert refused(["demo", "-"], capsys) == "idempo demo: standard input is closed"


def test_ctrl_c_before_the_first_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while the store is being opened: exit code 130, without a traceback."""

    def interrupted(_: str) -> Ledger:
        raise KeyboardInterrupt

    monkeypatch.setattr("idempo.demo.command.Ledger", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_path_in_a_url_is_unquoted(demo: Any, tmp_path: Path) -> None:
    """A space in a file's name can be written as %20."""
    path = tmp_path / "deliveries.jsonl"
    path.write_bytes(lines(charge("evt_1")))
    assert demo(path, "--store", f"sqlite:///{tmp_path}/my%20demo.db")[0] == 0
    assert ledger_in(tmp_path / "my demo.db") == [("evt_1", "EUR", 1000)]


def test_a_name_that_the_terminal_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file's name may hold what standard output cannot encode: it is escaped there."""
    path = tmp_path / "zahlungen-\N{EURO SIGN}.jsonl"
    path.write_bytes(lines(charge("evt_1")))
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", output)
    assert main(["demo", str(path)]) == 0
    output.seek(0)
    assert r"zahlungen-\u20ac.jsonl" in output.read()


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """People get a table: how the deliveries ended, and the ledger held against the count."""
    path = tmp_path / "deliveries.jsonl"
    path.write_bytes(lines(charge("evt_1", 12345), charge("evt_1", 12345), charge("evt_1", 1)) + b"\n")
    assert main(["demo", str(path), "--workers", "1"]) == 0
    text = re.sub(r"\d+\.\d s", "0.1 s", capsys.readouterr().out)
    assert text.splitlines() == [
        f"3 deliveries of 1 event from {path}",
        "memory://, 1 thread, 0.1 s",
        "",
        "  ran         1   the handler ran, and its result was stored",
        "  replayed    1   a duplicate got the first outcome",
        "  waited      0   times that a delivery waited for another of its event",
        "  refused     1   an id was used again for another payload",
        "  failed      0   the handler raised",
        "  bad lines   1   no delivery",
        "",
        "  ledger   booked   expected   in minor units",
        "  EUR      12,345     12,345   right",
        "",
        "The ledger is right: 1 entry, one for each event that moves money.",
    ]


def test_a_bar_on_a_terminal_shows_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal a bar fills up while a file is read, and is gone at the end."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    path, terminal = tmp_path / "deliveries.jsonl", Terminal()
    path.write_bytes(lines(charge("evt_1"), charge("evt_2")) + b"[]\n" * 2)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["demo", str(path), "--workers", "1"]) == 0
    shown = terminal.getvalue()
    shares = [int(share) for share in re.findall(r"\] +(\d+)%", shown)]
    assert 50 <= shares[-1] <= 100
    assert shares == sorted(shares)
    assert "line 4: not a JSON object but an array\n" in shown
    assert shown.endswith("\r\x1b[K")


def test_the_page_shows_what_a_run_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """The output in docs/demo.md is that of a real run, but for its seconds and how many waited."""
    page = (DOCS / "demo.md").read_text(encoding="utf-8")
    assert main(["demo"]) == 0

    def steady(text: str) -> str:
        return re.sub(r"\d+\.\d s", "N s", re.sub(r"waited +\d+", "waited N", text))

    assert steady(capsys.readouterr().out) in steady(page)


def test_the_page_has_every_key_of_the_report(demo: Any) -> None:
    """docs/demo.md explains each key that --json gives, and the keys within."""
    _, report, _ = demo("--work", "0")
    rows = re.findall(r"^\| (`\w+`[^|]*) \|(.*)\|$", (DOCS / "demo.md").read_text(encoding="utf-8"), re.MULTILINE)
    rows = [(re.findall(r"`(\w+)`", keys), set(re.findall(r"`(\w+)`", meaning))) for keys, meaning in rows]
    assert {key for keys, _ in rows for key in keys} == set(report)
    within = {keys[0]: names for keys, names in rows}
    assert within["tally"] == set(report["tally"])
    assert within["ledger"] == set(report["ledger"]) | {"booked", "expected"}


# Real processes


@contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the command in a process of its own, which does not outlive the block."""
    command = [sys.executable, "-m", "idempo", "demo", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(line)
        if text in line:
            return
    pytest.fail(f"the process ended with {process.wait(timeout=30)}, and never said {text!r}: {''.join(said)}")


def test_killed_again_and_again_the_ledger_is_right(demo: Any, small: str, tmp_path: Path) -> None:
    """Behaviour 25: kill -9 (real) at several moments, then run to the end: each event is booked once."""
    path = tmp_path / "demo.db"
    arguments = (small, "--store", url(path), "--work", "0.016", "--lease", "0.5")
    for handled in (100, 200, 400):
        with started(*arguments) as process:
            read_until(process, f"{handled} deliveries handled")
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
            assert process.returncode == -signal.SIGKILL
        booked = ledger_in(path)
        assert 0 < len(booked) < len(SMALL_RIGHT)
        assert all(SMALL_RIGHT[event] == (currency, amount) for event, currency, amount in booked)
    code, report, _ = demo(*arguments)
    assert code == 0
    assert report["taken_over"] >= 1
    assert report["ledger"]["right"] is True
    assert is_right(path)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_the_effect(moment: str, demo: Any, tmp_path: Path) -> None:
    """Behaviour 25: kill -9 (real) right before or after the effect: the handler runs again, and books once."""
    store, path = tmp_path / "demo.db", tmp_path / "deliveries.jsonl"
    path.write_bytes(lines(charge("evt_1"), charge("evt_2")))
    program = f"""
import os, signal
from idempo.__main__ import main
from idempo.demo.ledger import Ledger

book = Ledger.book

def killed(self, booking, event, money):
    if event == "evt_2":
        if {moment == "after"}:
            book(self, booking, event, money)
        os.kill(os.getpid(), signal.SIGKILL)
    return book(self, booking, event, money)

Ledger.book = killed
main(["demo", {str(path)!r}, "--store", {url(store)!r}, "--lease", "0.3", "--workers", "1"])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(ledger_in(store)) == (2 if moment == "after" else 1)
    code, report, _ = demo(path, "--store", url(store), "--lease", "0.3")
    assert code == 0
    assert (report["tally"]["ran"], report["tally"]["replayed"], report["taken_over"]) == (1, 1, 1)
    assert report["tally"]["found_booked"] == (1 if moment == "after" else 0)
    assert [event for event, _, _ in ledger_in(store)] == ["evt_1", "evt_2"]


def test_two_processes_share_the_work(small: str, tmp_path: Path) -> None:
    """Behaviour 1: two processes (real) on one file: each event is run by one of them, and both find it right."""
    path = tmp_path / "demo.db"
    arguments = (small, "--store", url(path), "--work", "0.002", "--json")
    with started(*arguments) as one, started(*arguments) as other:
        outputs = [process.communicate(timeout=60) for process in (one, other)]
    assert [process.returncode for process in (one, other)] == [0, 0], outputs
    reports = [json.loads(out) for out, _ in outputs]
    assert sum(report["tally"]["ran"] for report in reports) == SMALL_RUNS
    assert all(report["ledger"]["right"] for report in reports)
    for line in "".join(err for _, err in outputs).splitlines():
        assert re.fullmatch(
            r"line \d+: event 'evt_\w+' (refused|failed): .+|[\d,]+ deliveries handled|waiting up to .+", line
        )
    assert is_right(path)


def test_ctrl_c_ends_it_cleanly() -> None:
    """Ctrl-C: what has begun is brought to its end, the table so far is shown, and the exit code is 130."""
    with started("--work", "0.02") as process:
        read_until(process, "100 deliveries handled")
        process.send_signal(signal.SIGINT)
        read_until(process, "stopping: what has begun is brought to its end")
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "from the sample, stopped before the end" in out
    assert "The ledger is right" in out


def test_ctrl_c_begins_nothing_more(tmp_path: Path) -> None:
    """What is only queued when Ctrl-C comes is not worked off, and is not missing in the ledger."""
    path = tmp_path / "deliveries.jsonl"
    path.write_bytes(lines(*[charge(f"evt_{number}") for number in range(7)]) + b"\n")
    with started(str(path), "--work", "2", "--workers", "2", "--json") as process:
        read_until(process, "line 8: blank")  # seven deliveries are in hand or queued: all that there is room for
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    report = json.loads(out)
    assert report["stopped"] is True
    assert 1 <= report["tally"]["ran"] == report["ledger"]["events"] <= 2
    assert report["ledger"]["right"] is True


def test_ctrl_c_twice_ends_it_at_once(tmp_path: Path) -> None:
    """Whoever does not want to wait for what has begun presses Ctrl-C again."""
    path = tmp_path / "deliveries.jsonl"
    charges = lines(*[charge(f"evt_{number}") for number in range(100)])
    path.write_bytes(charges.replace(b"\n", b"\n\n", 1))
    with started(str(path), "--work", "60") as process:
        read_until(process, "line 2: blank")
        process.send_signal(signal.SIGINT)
        read_until(process, "stopping")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err == "stopped at once\n"


def closing_at_start(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a shell does with the redirection."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "idempo", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_standard_output_that_is_closed(tmp_path: Path) -> None:
    """Where no report can be given nothing is begun: a clear line, exit code 2."""
    ended = closing_at_start(">&-", "--store", url(tmp_path / "demo.db"))
    assert (ended.returncode, ended.stderr) == (2, "idempo demo: standard output is closed\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a Linux device that is always full")
def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    """It is told in one line what went wrong, and what the report would have said; the exit code is 2."""
    path, store = tmp_path / "deliveries.jsonl", tmp_path / "demo.db"
    path.write_bytes(lines(charge("evt_1")))
    said = "idempo demo: the report could not be written: No space left on device; the ledger is"
    ended = closing_at_start(">/dev/full", str(path), "--store", url(store))
    assert (ended.returncode, ended.stderr) == (2, f"{said} right\n")
    with closing(sqlite3.connect(store)) as db, db:
        db.execute("DELETE FROM demo_ledger")
    ended = closing_at_start(">/dev/full", str(path), "--store", url(store))
    assert (ended.returncode, ended.stderr) == (2, f"{said} WRONG\n")


def test_standard_error_that_is_closed(tmp_path: Path) -> None:
    """Nobody hears how far it is; the work is done and the report given all the same, and so are exit codes."""
    path = tmp_path / "deliveries.jsonl"
    path.write_bytes(lines(charge("evt_1")) + b"not json\n")
    ended = closing_at_start("2>&-", str(path))
    assert ended.returncode == 0
    assert "The ledger is right: 1 entry" in ended.stdout
    ended = closing_at_start("2>&-", "no such file")
    assert (ended.returncode, ended.stdout) == (2, "")


def test_whoever_reads_the_report_may_stop_reading() -> None:
    """A reader that closes the pipe early gets no traceback, and an exit code that says nothing of the ledger."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "idempo", "demo", "--work", "0"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr
