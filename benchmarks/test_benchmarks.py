"""Each figure's workload under pytest-benchmark; with ``--benchmark-disable``, a smoke test that all of them run.

``pytest benchmarks`` shows the timings themselves. Ratios and bars are the business of ``python -m benchmarks``, which
measures side by side.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import report
from benchmarks.children import ask
from benchmarks.contenders import AMOUNT, BARE_CACHE, CURRENCY, FLOOR, IDEMPO, IDEMPO_UNCHECKED, Contender, peers
from benchmarks.crowds import guard_with_idempo, tasks_on_one_future, tasks_on_one_key, threads_on_keys
from benchmarks.fingerprints import json_bytes, large_payload, small_payload
from benchmarks.floor import by_hand, fingerprint_by_hand
from benchmarks.growth import filled, with_floor, with_idempo
from benchmarks.imports import import_once
from benchmarks.measuring import Figure
from benchmarks.memory import measure
from benchmarks.messages import guarded as consumer
from benchmarks.single_calls import new_orders
from benchmarks.sqlite import OUTCOME, by_store, new_keys
from benchmarks.sqlite import by_hand as sql_by_hand
from benchmarks.tokens import by_itsdangerous, issue_and_redeem
from idempo import FingerprintMismatchError, fingerprint
from idempo.messages import Duplicate, Processed

_PEERS = list(peers().present.values())
_SYNC = [IDEMPO, IDEMPO_UNCHECKED, FLOOR, BARE_CACHE, *_PEERS]
_ASYNC = [IDEMPO, *_PEERS]


def _name(contender: Contender) -> str:
    return contender.name


def _result(order_id: str) -> dict[str, Any]:
    return {"order_id": order_id, "status": "charged", "amount": AMOUNT}


@pytest.mark.parametrize("contender", _SYNC, ids=_name)
def test_sync_replay(benchmark: Any, contender: Contender) -> None:
    call, (order,) = contender.guarded(), new_orders(1)
    call(*order)
    assert benchmark(call, *order) == _result(order[0])


@pytest.mark.parametrize("contender", _SYNC, ids=_name)
def test_sync_fresh(benchmark: Any, contender: Contender) -> None:
    call = contender.guarded()

    def set_up() -> tuple[tuple[str, int, str], dict[str, Any]]:
        (order,) = new_orders(1)
        return order, {}

    assert benchmark.pedantic(call, setup=set_up, rounds=1_000)["status"] == "charged"


def test_message_skipped(benchmark: Any) -> None:
    call, (order,) = consumer(), new_orders(1)
    assert call(*order) == Processed(_result(order[0]))
    assert benchmark(call, *order) == Duplicate()


@pytest.mark.parametrize("contender", _ASYNC, ids=_name)
def test_async_replay(benchmark: Any, contender: Contender) -> None:
    assert contender.guarded_async is not None
    call, (order,) = contender.guarded_async(), new_orders(1)

    async def awaited() -> Any:
        return await call(*order)

    with asyncio.Runner() as runner:
        runner.run(awaited())
        assert benchmark(lambda: runner.run(awaited())) == _result(order[0])


@pytest.mark.parametrize("contender", _ASYNC, ids=_name)
def test_async_fresh(benchmark: Any, contender: Contender) -> None:
    assert contender.guarded_async is not None
    call = contender.guarded_async()

    async def awaited() -> Any:
        (order,) = new_orders(1)
        return await call(*order)

    with asyncio.Runner() as runner:
        assert benchmark(lambda: runner.run(awaited()))["status"] == "charged"


@pytest.mark.parametrize("contender", [IDEMPO, FLOOR], ids=_name)
def test_what_is_compared_checks_the_payload(contender: Contender) -> None:
    """The floor does what it is said to do, or to be slower than it would mean nothing."""
    call = contender.guarded()
    call("order-0000000042", AMOUNT, CURRENCY)
    with pytest.raises((FingerprintMismatchError, ValueError)):
        call("order-0000000042", AMOUNT + 1, CURRENCY)


@pytest.mark.parametrize("digest", [fingerprint, fingerprint_by_hand])
@pytest.mark.parametrize("payload", [small_payload, large_payload])
def test_fingerprint(benchmark: Any, digest: Callable[[Any], bytes], payload: Callable[[], dict[str, Any]]) -> None:
    assert len(benchmark(digest, payload())) >= 32


def test_payloads_are_as_large_as_they_are_called() -> None:
    assert json_bytes(small_payload()) == 100
    assert 69_000 < json_bytes(large_payload()) < 71_000


@pytest.mark.parametrize("crowd", [tasks_on_one_key, tasks_on_one_future])
def test_tasks_on_one_key(benchmark: Any, crowd: Callable[[int, float], float]) -> None:
    benchmark.pedantic(crowd, args=(100, 0.01), rounds=1)


@pytest.mark.parametrize("guard", [guard_with_idempo, by_hand])
@pytest.mark.parametrize("keys", [1, 8])
def test_threads(benchmark: Any, guard: Any, keys: int) -> None:
    benchmark.pedantic(threads_on_keys, args=(guard,), kwargs={"threads": 8, "calls": 10, "keys": keys}, rounds=3)


@pytest.mark.parametrize("make", [with_idempo, with_floor])
@pytest.mark.parametrize("records", [100, 1_000])
def test_replay_among_records(benchmark: Any, make: Callable[[int], Any], records: int) -> None:
    call, made = filled(make, records)
    assert benchmark(call, *made[records // 2]) == _result(made[records // 2][0])


def test_memory_of_a_record(benchmark: Any) -> None:
    assert benchmark.pedantic(measure, args=(500,), kwargs={"traced": True}, rounds=1) > 0


@pytest.mark.parametrize("modules", ["idempo", "attrs, cachetools"])
def test_import(benchmark: Any, modules: str) -> None:
    _, asyncio_imported = benchmark.pedantic(import_once, args=(modules,), rounds=1)
    assert not asyncio_imported


@pytest.mark.parametrize("side", [issue_and_redeem, by_itsdangerous])
def test_tokens(benchmark: Any, side: Callable[[], Callable[[], object]]) -> None:
    assert benchmark(side()) == {"cart": 42}


@pytest.mark.parametrize("side", [by_store, sql_by_hand])
def test_sqlite(benchmark: Any, side: Callable[[Path], Any], tmp_path: Path) -> None:
    claim, complete = side(tmp_path / "records.db")

    def claim_and_complete() -> bool:
        (key,) = new_keys(1)
        claimed = claim(key, "an owner") is None
        return claimed and complete(key, "an owner") and claim(key, "another owner") == OUTCOME

    assert benchmark(claim_and_complete)


def test_the_sql_by_hand_is_the_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides send the same statements, but for the table's name."""
    connect: Any = sqlite3.connect

    def traced(side: str) -> list[str]:
        def connect_traced(*args: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **options)
            connection.set_trace_callback(statements.append)
            return connection

        statements: list[str] = []
        monkeypatch.setattr(sqlite3, "connect", connect_traced)
        claim, complete = {"store": by_store, "hand": sql_by_hand}[side](tmp_path / f"{side}.db")
        first, second = new_keys(2)
        claim(first, "an owner")  # makes the table
        statements.clear()
        claim(second, "an owner")
        complete(second, "an owner")
        claim(second, "another owner")
        return [statement.split(" ", 1)[0] for statement in statements]

    claim, complete, replay = ["SELECT", "BEGIN", "SELECT", "INSERT", "COMMIT"], ["SELECT", "UPDATE"], ["SELECT"]
    assert traced("store") == traced("hand") == [*claim, *complete, *replay]


def test_everything_in_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one command measures every figure, writes what it found and draws it."""
    found, picture = tmp_path / "found.json", tmp_path / "found.svg"
    assert command.main(["--quick", "--json", str(found), "--plot", str(picture)]) == 0
    names, shown = {figure.name for figure in report.read_json(found)}, capsys.readouterr().out
    assert {"sync replay", "async fresh", "import idempo", "SqliteStore replay"} <= names
    assert "fresh calls of 2 processes, SqliteStore" in names
    assert all(name in shown for name in names)
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


def test_the_docs_are_written_between_their_marks(tmp_path: Path) -> None:
    """What people wrote on the page stays, and so does what was not measured; what an earlier run found goes."""
    page = tmp_path / "benchmarks.md"
    shutil.copy(Path(__file__).parents[1] / "docs" / "benchmarks.md", page)
    before, after = page.read_text(encoding="utf-8").split("<!-- figures")[0], "\n\n![One guarded call beside"
    about = {"python": "a Python", "a-peer": "1.0"}
    for name in ("an earlier figure", "a figure"):
        found = [Figure(name, 1.0, 2.0, "the floor", 0.5, 1.2, middle_half=(0.4, 0.6))]
        report.write_docs(
            tmp_path, [report.Section("figures", found, about), report.Section("figures of the stores", [], {})]
        )
    of_stores = [Figure("a count", 2.0, None, "counted", 2.0, None, unit="", note="not judged")]
    report.write_docs(
        tmp_path, [report.Section("figures", [], {}), report.Section("figures of the stores", of_stores, about)]
    )
    text = page.read_text(encoding="utf-8")
    assert text.startswith(before)
    assert after in text
    assert "| a figure | 1 s | the floor: 2 s | 0.50 × | 0.40–0.60 | ≤ 1.2 × | yes |" in text
    assert "1 of 1 bars met. Measured on: python a Python, a-peer 1.0." in text
    assert "| a count | 2 | counted |  |  |  |  |" in text
    assert "- a count: not judged\n" in text
    assert "0 of 0 bars met." in text
    assert "an earlier figure" not in text
    assert (tmp_path / "_static" / "benchmarks.svg").exists()


def test_a_page_without_marks_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text("# A page\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must hold the lines"):
        report.write_docs(tmp_path, [report.Section("figures", [], {})])


def test_a_missed_bar_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    missed = Figure("a figure", 2.0, 1.0, "the floor", 2.0, 1.2)
    monkeypatch.setitem(command.PARTS, "sync", lambda *_: [missed])
    assert command.main(["sync"]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_a_peer_that_cannot_be_imported_is_named() -> None:
    """It is left out with the reason, and the run goes on without it."""
    answer = ask(
        "import json; sys.modules['exactly_once'] = None\n"
        "from benchmarks.contenders import peers\n"
        "found = peers()\n"
        "print(json.dumps([sorted(found.present), found.missing]))"
    )
    present, missing = answer
    assert "exactly-once" not in present
    assert "exactly_once" in missing["exactly-once"]
