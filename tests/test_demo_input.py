"""What the demo reads: the sample that is shipped, and lines from anybody."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

from idempo.demo import sample
from idempo.demo.deliveries import MAX_LINE, BadLine, Delivery, Money, read_deliveries

CHARGE: dict[str, Any] = {
    "id": "evt_1",
    "type": "charge.succeeded",
    "data": {"object": {"amount": 1200, "currency": "eur"}},
}


def shipped() -> bytes:
    return files("idempo.demo").joinpath("deliveries.jsonl").read_bytes()


def read(data: bytes) -> list[Delivery | BadLine]:
    return list(read_deliveries(io.BytesIO(data)))


def one(line: bytes | dict[str, Any]) -> Delivery | BadLine:
    (found,) = read(line if isinstance(line, bytes) else json.dumps(line).encode())
    return found


def charge(**changes: Any) -> dict[str, Any]:
    return CHARGE | {"data": {"object": CHARGE["data"]["object"] | changes}}


# The sample


def test_the_shipped_sample_is_what_the_script_makes() -> None:
    """The shipped deliveries are the script's, byte for byte, whatever the Python and the hash seed."""
    command = [sys.executable, "-m", "idempo.demo.sample"]
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    made = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    assert made.stdout == b"".join(sample.write_deliveries()) == shipped()


def test_the_sample_is_what_a_provider_sends() -> None:
    """At least 1,000 deliveries, with redeliveries, duplicates at once, altered payloads, and failures."""
    deliveries = [json.loads(line) for line in shipped().splitlines()]
    ids = [delivery["id"] for delivery in deliveries]
    assert len(set(ids)) == sample.EVENTS >= 1000
    first: dict[str, Any] = {}
    seen_at: dict[str, int] = {}
    met = Counter[str]()
    for position, delivery in enumerate(deliveries):
        meta = delivery.pop("delivery")
        if position and ids[position - 1] == delivery["id"]:
            met["at once"] += 1
        elif delivery["id"] in first:
            met["later" if delivery == first[delivery["id"]] else "altered"] += 1
            assert position - seen_at[delivery["id"]] > 10
        first.setdefault(delivery["id"], delivery)
        seen_at.setdefault(delivery["id"], position)
        met[meta.get("fault", "no fault")] += 1
        met["no account"] += delivery["data"]["object"].get("currency") == "xts"
    assert met["at once"] >= 100
    assert met["later"] >= 100
    assert met["altered"] >= 10
    assert met["unreachable"] >= 5
    assert met["timeout"] >= 5
    assert met["no account"] >= 5
    assert len({delivery["type"] for delivery in deliveries}) >= 4


def test_every_line_of_the_sample_is_a_delivery() -> None:
    """No line of the shipped sample is bad."""
    assert [line for line in read(shipped()) if isinstance(line, BadLine)] == []


def test_the_script_writes_other_samples(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """--events and --seed make other deliveries; the same seed, the same ones."""
    sample.main(["--events", "30", "--seed", "7"])
    written = capfdbinary.readouterr().out
    assert written == b"".join(sample.write_deliveries(30, 7))
    assert len({json.loads(line)["id"] for line in written.splitlines()}) == 30
    assert not set(written.splitlines()) & set(shipped().splitlines())


@pytest.mark.parametrize("value", ["-1", "many"])
def test_the_script_refuses_what_is_no_number_of_events(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad option is told, with exit code 2, before anything is written."""
    with pytest.raises(SystemExit) as exit_:
        sample.main(["--events", value])
    assert exit_.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "--events" in told.err


# Lines


def test_a_delivery_is_its_event_and_the_rest_is_left_out() -> None:
    """Two deliveries of one event have one payload; only what is under "delivery" differs."""
    first, second = read(
        json.dumps(CHARGE | {"delivery": {"id": "whd_1", "fault": "timeout"}}).encode()
        + b"\r\n"
        + json.dumps(dict(reversed(CHARGE.items())) | {"delivery": {"id": "whd_2"}}).encode()
    )
    assert isinstance(first, Delivery)
    assert isinstance(second, Delivery)
    assert (first.id, first.line, first.fault) == ("evt_1", 1, "timeout")
    assert (second.id, second.line, second.fault) == ("evt_1", 2, None)
    assert first.event == second.event == CHARGE
    assert first.digest == second.digest


def test_another_amount_is_another_payload() -> None:
    """An altered event has another digest."""
    first, second = one(CHARGE), one(charge(amount=1201))
    assert isinstance(first, Delivery)
    assert isinstance(second, Delivery)
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("kind", "money"),
    [
        ("charge.succeeded", Money("EUR", 1200)),
        ("refund.created", Money("EUR", -1200)),
        ("payout.paid", Money("EUR", -1200)),
        ("dispute.funds_withdrawn", Money("EUR", -1200)),
        ("dispute.funds_reinstated", Money("EUR", 1200)),
        ("customer.updated", None),
    ],
)
def test_money_comes_in_and_goes_out(kind: str, money: Money | None) -> None:
    """The type of an event says which way its money moves, if it moves any."""
    delivery = one(CHARGE | {"type": kind})
    assert isinstance(delivery, Delivery)
    assert delivery.money == money


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "blank"),
        (b"  \t ", "blank"),
        (b"\xff\xfe", "not UTF-8 (byte 1)"),
        (json.dumps(CHARGE).encode("utf-16"), "not UTF-8 (byte 1)"),
        (b"{", "not JSON (Expecting property name enclosed in double quotes, column 2)"),
        (b'{"id": "evt_1"', "not JSON (Expecting ',' delimiter, column 15)"),
        (b'{"id": NaN}', "not JSON (NaN is no number)"),
        (b'{"id": -Infinity}', "not JSON (-Infinity is no number)"),
        (b'{"id": ' + b"9" * 5000 + b"}", "a number is too long"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"null", "not a JSON object but null"),
        (b"true", "not a JSON object but a boolean"),
        (b"12.5", "not a JSON object but a number"),
        (b'"evt_1"', "not a JSON object but a string"),
        (b"[]", "not a JSON object but an array"),
        (b'{"type": "charge.succeeded"}', 'no "id"'),
        (b'{"id": 7}', '"id" is a number, not a string'),
        (b'{"id": {}}', '"id" is an object, not a string'),
        (b'{"id": ""}', '"id" has 0 characters; it must have 1 to 255'),
        (b'{"id": "' + b"x" * 256 + b'"}', '"id" has 256 characters; it must have 1 to 255'),
        (b'{"id": "\\ud800"}', '"id" holds half of a surrogate pair'),
        (b'{"id": "evt_1"}', 'no "type"'),
        (b'{"id": "evt_1", "type": []}', '"type" is an array, not a string'),
        (b'{"id": "evt_1", "type": "payout.paid"}', 'no "data.object"'),
        (b'{"id": "evt_1", "type": "payout.paid", "data": {"object": 1}}', 'no "data.object"'),
        (b'{"id": "evt_1", "type": "x", "delivery": 4}', '"delivery" is a number, not an object'),
        (
            b'{"id": "evt_1", "type": "x", "delivery": {"fault": "fire"}}',
            '"delivery.fault" is neither unreachable nor timeout',
        ),
        (
            b'{"id": "evt_1", "type": "x", "delivery": {"fault": []}}',
            '"delivery.fault" is neither unreachable nor timeout',
        ),
    ],
)
def test_a_bad_line_is_named(line: bytes, reason: str) -> None:
    """A line that is no delivery is named by its number, with what is wrong; those around it are read."""
    good = json.dumps(CHARGE).encode()
    before, bad, after = read(good + b"\n" + line + b"\n" + good)
    assert bad == BadLine(2, reason)
    assert isinstance(before, Delivery)
    assert isinstance(after, Delivery)
    assert after.line == 3


@pytest.mark.parametrize("amount", [None, "12", 1.5, True, -1, 10**15 + 1])
def test_an_amount_is_whole_minor_units(amount: object) -> None:
    """An amount of another type, or out of range, is a bad line."""
    bad = one(charge(amount=amount))
    assert isinstance(bad, BadLine)
    assert "amount" in bad.reason


@pytest.mark.parametrize("currency", [None, 978, "", "eu", "euro", "e€r", "12e"])
def test_a_currency_is_three_letters(currency: object) -> None:
    """A currency that is no code is a bad line."""
    bad = one(charge(currency=currency))
    assert isinstance(bad, BadLine)
    assert "currency" in bad.reason


def test_a_payload_without_a_fingerprint_is_a_bad_line() -> None:
    """Behaviour 10: what is nested deeper than a fingerprint goes is named, and nothing ran."""
    depth = 500
    bad = one(b'{"id": "evt_1", "type": "x", "deep": ' + b"[" * depth + b"]" * depth + b"}")
    assert isinstance(bad, BadLine)
    assert "deep" in bad.reason
    assert len(bad.reason) < 500


def test_a_line_that_is_too_long_is_skipped_whole() -> None:
    """A line over the limit, however long, is one bad line, and is never held in memory; the next one is read."""
    good = json.dumps(CHARGE).encode()
    full = good + b" " * (MAX_LINE - len(good))
    longest, too_long, far_too_long, last = read(b"\n".join([full, full + b" ", b"x" * (3 * MAX_LINE), good]))
    assert isinstance(longest, Delivery)
    assert too_long == BadLine(2, "longer than 1,048,576 bytes")
    assert far_too_long == BadLine(3, "longer than 1,048,576 bytes")
    assert isinstance(last, Delivery)
    assert last.line == 4
    assert read(b"x" * (MAX_LINE + 1)) == [BadLine(1, "longer than 1,048,576 bytes")]


def test_a_byte_order_mark_is_no_mistake() -> None:
    """A mark at the very beginning is what some editors write; elsewhere it is a mistake."""
    line = b"\xef\xbb\xbf" + json.dumps(CHARGE).encode()
    first, second = read(line + b"\n" + line)
    assert isinstance(first, Delivery)
    assert isinstance(second, BadLine)


def test_lines_are_read_one_at_a_time() -> None:
    """The input is never read ahead by more than one line, so that it may be of any size."""

    class Endless(io.RawIOBase):
        lines = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            self.lines += 1
            return json.dumps(CHARGE).encode() + b"\n"

    stream = Endless()
    deliveries = read_deliveries(stream)
    for read_so_far in range(1, 4):
        next(deliveries)
        assert stream.lines == read_so_far
