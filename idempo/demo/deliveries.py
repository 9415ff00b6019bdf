"""Reads deliveries: JSON lines, one event each, from whoever sent them. Nothing in them is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any, Final

import attrs

from idempo.errors import FingerprintError
from idempo.fingerprint import fingerprint

MAX_LINE: Final = 1 << 20
"""The longest line that is read, in bytes, so that a file without newlines does not fill the memory."""

MAX_ID: Final = 255
MAX_AMOUNT: Final = 10**15

FAULTS: Final = ("unreachable", "timeout")
"""What ``delivery.fault`` can ask for, at the first try of that delivery: the ledger is not reached at all, or it books
and its answer is lost."""

_SIGNS: Final = {
    "charge.succeeded": 1,
    "refund.created": -1,
    "payout.paid": -1,
    "dispute.funds_withdrawn": -1,
    "dispute.funds_reinstated": 1,
}


@attrs.frozen
class Money:
    """An amount that an event moves.

    Attributes:
        currency: Three capital letters.
        amount: In the currency's minor unit (cents); negative where money leaves.
    """

    currency: str
    amount: int


@attrs.frozen(eq=False)
class Delivery:
    """One delivery of an event; the same event can come in many.

    Attributes:
        line: Where it stands in the input; the first line is 1.
        event: What the provider says happened. The same in every delivery of the event, unless a client made a mistake.
        digest: The event's fingerprint.
        money: What the event moves; None for one that moves nothing.
        fault: One of `FAULTS`, or None.
    """

    line: int
    event: dict[str, Any]
    digest: bytes
    money: Money | None
    fault: str | None

    @property
    def id(self) -> str:
        """The event's id: what names the operation."""
        event_id: str = self.event["id"]
        return event_id


@attrs.frozen
class BadLine:
    """A line that is no delivery.

    Attributes:
        line: Where it stands in the input.
        reason: What is wrong with it.
    """

    line: int
    reason: str


class _MalformedError(Exception):
    """Says what is wrong with a line."""


def read_deliveries(stream: IO[bytes]) -> Iterator[Delivery | BadLine]:
    """Yield each line as a delivery, or as a bad line. Holds one line in memory at a time.

    Raises:
        OSError: The stream broke off.
    """
    for number, line in enumerate(_lines(stream), 1):
        try:
            yield _parse(number, line)
        except _MalformedError as problem:
            yield BadLine(number, str(problem))


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Yield each line, or None in the place of one that is too long."""
    first = True
    while line := stream.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line.removeprefix(b"\xef\xbb\xbf") if first else line
        first = False


def _parse(number: int, line: bytes | None) -> Delivery:
    if line is None:
        raise _MalformedError(f"longer than {MAX_LINE:,} bytes")
    event = _load(line)
    if not isinstance(event, dict):
        raise _MalformedError(f"not a JSON object but {_kind(event)}")
    fault = _fault(event.pop("delivery", None))
    _check_id(event)
    money = _money(event)
    try:
        digest = fingerprint(event)
    except FingerprintError as error:
        raise _MalformedError(str(error)) from None
    return Delivery(number, event, digest, money, fault)


def _load(line: bytes) -> Any:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise _MalformedError(f"not UTF-8 (byte {error.start + 1})") from None
    if not text.strip():
        raise _MalformedError("blank")
    try:
        return json.loads(text.rstrip("\r\n"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _MalformedError(f"not JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise _MalformedError("nested too deeply") from None
    except ValueError:  # what int() says of a number of thousands of digits
        raise _MalformedError("a number is too long") from None


def _refuse_constant(name: str) -> None:
    raise _MalformedError(f"not JSON ({name} is no number)")


def _fault(delivery: object) -> str | None:
    if delivery is None:
        return None
    if not isinstance(delivery, dict):
        raise _MalformedError(f'"delivery" is {_kind(delivery)}, not an object')
    fault = delivery.get("fault")
    if fault is not None and fault not in FAULTS:
        raise _MalformedError(f'"delivery.fault" is neither {" nor ".join(FAULTS)}')
    return fault


def _check_id(event: dict[str, Any]) -> None:
    if "id" not in event:
        raise _MalformedError('no "id"')
    event_id = event["id"]
    if not isinstance(event_id, str):
        raise _MalformedError(f'"id" is {_kind(event_id)}, not a string')
    if not 1 <= len(event_id) <= MAX_ID:
        raise _MalformedError(f'"id" has {len(event_id)} characters; it must have 1 to {MAX_ID}')
    try:
        event_id.encode()
    except UnicodeEncodeError:
        raise _MalformedError('"id" holds half of a surrogate pair') from None


def _money(event: dict[str, Any]) -> Money | None:
    kind = event.get("type")
    if not isinstance(kind, str):
        raise _MalformedError('no "type"' if kind is None else f'"type" is {_kind(kind)}, not a string')
    sign = _SIGNS.get(kind)
    if sign is None:
        return None
    data = event.get("data")
    moved = data.get("object") if isinstance(data, dict) else None
    if not isinstance(moved, dict):
        raise _MalformedError('no "data.object"')
    amount, currency = moved.get("amount"), moved.get("currency")
    if isinstance(amount, bool) or not isinstance(amount, int) or not 0 <= amount <= MAX_AMOUNT:
        raise _MalformedError(f'"data.object.amount" is not an integer from 0 to {MAX_AMOUNT:,} (in minor units)')
    if not (isinstance(currency, str) and len(currency) == 3 and currency.isascii() and currency.isalpha()):
        raise _MalformedError('"data.object.currency" is not a code of three letters')
    return Money(currency.upper(), sign * amount)


def _kind(value: object) -> str:
    """Return what JSON calls a value of this type."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return "a number"
