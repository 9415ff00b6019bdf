"""Makes deliveries as a payment provider sends them, mistakes included: the same bytes for the same seed.

``python -m idempo.demo.sample > deliveries.jsonl`` makes the file that is shipped beside this module;
``--events`` and ``--seed`` make others.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

EVENTS: Final = 1000
SEED: Final = 20240917

_START: Final = 1_726_560_000  # 17 September 2024, 08:00 UTC
_ID_LETTERS: Final = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_CURRENCIES: Final = ("eur", "eur", "eur", "eur", "usd", "usd", "gbp", "jpy")
_TYPES: Final = (
    *("charge.succeeded",) * 14,
    *("refund.created",) * 3,
    "payout.paid",
    "dispute.funds_withdrawn",
    "customer.updated",
)
_BRANDS: Final = ("visa", "mastercard", "amex")
_REASONS: Final = ("requested_by_customer", "duplicate", "fraudulent")


class _Dice:
    """Chance that is the same on every Python: of `random.Random`, only ``random()`` is promised to be."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, end: int) -> int:
        """Return an int from 0 to ``end - 1``."""
        return int(self._random() * end)

    def one_of(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def one_in(self, n: int) -> bool:
        return self.below(n) == 0

    def name(self, prefix: str, length: int = 16) -> str:
        return prefix + "".join(self.one_of(_ID_LETTERS) for _ in range(length))


def make_deliveries(events: int = EVENTS, seed: int = SEED) -> Iterator[dict[str, Any]]:
    """Yield the deliveries of so many events, in the order in which they arrive.

    About one event in ten is delivered again later, one in sixteen several times at once, one in fifty first meets a
    handler that fails, one in a hundred has its id used again for another payload, and as many are in a currency that
    no ledger can book.

    Args:
        events: How many distinct events, at least 0. There are about two fifths more deliveries.
        seed: Which events; the same seed gives the same deliveries.
    """
    dice = _Dice(seed)
    customers = [dice.name("cus_", 14) for _ in range(120)]
    arrivals: list[tuple[float, dict[str, Any]]] = []
    for number in range(events):
        event = _event(dice, number, customers)
        at = float(number)
        arrivals.append((at, _delivery(dice, event, 1)))
        if dice.one_in(50):
            fault = dice.one_of(("unreachable", "timeout"))
            arrivals[-1][1]["delivery"]["fault"] = fault
        elif dice.one_in(16):
            arrivals.extend((at, _delivery(dice, event, 1)) for _ in range(1 + dice.below(4)))
        if dice.one_in(10):
            later = at
            for attempt in range(2, 3 + dice.below(3)):
                later += 20 + dice.below(200)
                arrivals.append((later, _delivery(dice, event, attempt)))
        if "amount" in event["data"]["object"] and dice.one_in(100):
            arrivals.append((at + 50 + dice.below(200), _delivery(dice, _altered(dice, event), 1)))
    arrivals.sort(key=lambda arrival: arrival[0])
    for _, delivery in arrivals:
        yield delivery


def _event(dice: _Dice, number: int, customers: Sequence[str]) -> dict[str, Any]:
    kind = dice.one_of(_TYPES)
    return {
        "id": dice.name("evt_"),
        "object": "event",
        "type": kind,
        "created": _START + 7 * number + dice.below(7),
        "livemode": True,
        "data": {"object": _object(dice, kind, dice.one_of(customers))},
    }


def _object(dice: _Dice, kind: str, customer: str) -> dict[str, Any]:
    if kind == "customer.updated":
        return {"id": customer, "object": "customer", "email": f"{customer[4:].lower()}@example.com"}
    currency = "xts" if dice.one_in(100) else dice.one_of(_CURRENCIES)
    amount = 100 + dice.below(25_000)
    money = {"amount": 8 * amount if kind == "payout.paid" else amount, "currency": currency}
    if kind == "charge.succeeded":
        card = {"brand": dice.one_of(_BRANDS), "last4": f"{dice.below(10_000):04}"}
        return {"id": dice.name("ch_"), "object": "charge", **money, "customer": customer, "card": card}
    if kind == "payout.paid":
        return {"id": dice.name("po_"), "object": "payout", **money, "method": "standard"}
    name, prefix = ("refund", "re_") if kind == "refund.created" else ("dispute", "dp_")
    charge = {"charge": dice.name("ch_"), "customer": customer, "reason": dice.one_of(_REASONS)}
    return {"id": dice.name(prefix), "object": name, **money, **charge}


def _altered(dice: _Dice, event: dict[str, Any]) -> dict[str, Any]:
    """Return the event with another amount under the same id: what a mistaken client sends."""
    changed = event["data"]["object"] | {"amount": event["data"]["object"]["amount"] + 1 + dice.below(900)}
    return event | {"data": {"object": changed}}


def _delivery(dice: _Dice, event: dict[str, Any], attempt: int) -> dict[str, Any]:
    return event | {"delivery": {"id": dice.name("whd_", 12), "attempt": attempt}}


def write_deliveries(events: int = EVENTS, seed: int = SEED) -> Iterator[bytes]:
    """Yield `make_deliveries` as lines of JSON, newline included."""
    for delivery in make_deliveries(events, seed):
        yield json.dumps(delivery, separators=(",", ":")).encode("ascii") + b"\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the deliveries to standard output."""
    parser = argparse.ArgumentParser(prog="python -m idempo.demo.sample", description=__doc__, allow_abbrev=False)
    parser.add_argument("--events", type=int, default=EVENTS, help="how many distinct events (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="which events (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.events < 0:
        parser.error(f"argument --events: {options.events} is less than 0")
    for line in write_deliveries(options.events, options.seed):
        sys.stdout.buffer.write(line)


if __name__ == "__main__":
    main()
