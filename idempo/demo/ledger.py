"""The ledger that is booked to, and the count that it is held against."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from typing import Final

import attrs

from idempo.demo.deliveries import Delivery, Money

_NO_ACCOUNT: Final = frozenset({"XTS", "XXX"})  # ISO 4217: "for testing", and "no currency"

_BUSY_TIMEOUT: Final = 30.0

_LEDGER: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS demo_runs (run INTEGER PRIMARY KEY AUTOINCREMENT);
CREATE TABLE IF NOT EXISTS demo_ledger (
    booking TEXT PRIMARY KEY,
    event TEXT NOT NULL,
    currency TEXT NOT NULL,
    amount INTEGER NOT NULL,
    run INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS demo_ledger_event ON demo_ledger (event);
INSERT INTO demo_runs DEFAULT VALUES;
COMMIT;
"""


def has_account(money: Money) -> bool:
    """Return whether the ledger keeps an account in the money's currency."""
    return money.currency not in _NO_ACCOUNT


@attrs.frozen
class Entry:
    """One line of the ledger.

    Attributes:
        money: What was booked.
        run: Which run of the demo booked it.
    """

    money: Money
    run: int


class Ledger:
    """An SQLite table of entries: the effect that must not happen twice. Any thread may use it.

    Each booking commits by itself, apart from the store's record: between the two commits the process can be killed.
    The guard then runs the handler again (at least once), and the unique key of the booking keeps the ledger right.

    Args:
        path: The database; "" is a private temporary one that SQLite removes. Its journal mode stays as it is.

    Attributes:
        run: The number of this run, which stands in what it books.

    Raises:
        sqlite3.Error: The file cannot be opened or written, or is no database.
    """

    def __init__(self, path: str = "") -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            self._db.executescript(_LEDGER)
            self.run: Final = int(self._db.execute("SELECT last_insert_rowid()").fetchone()[0])
        except BaseException:
            self._db.close()
            raise

    def book(self, booking: str, event: str, money: Money) -> bool:
        """Write an entry, and return True; return False where an entry of this booking is there already.

        Args:
            booking: The booking's own idempotency key.
            event: The id of the event that caused it.
            money: What is moved.
        """
        with self._lock:
            written = self._db.execute(
                "INSERT INTO demo_ledger VALUES (?, ?, ?, ?, ?) ON CONFLICT (booking) DO NOTHING",
                (booking, event, money.currency, money.amount, self.run),
            )
            return written.rowcount == 1

    def entries(self, event: str) -> list[Entry]:
        """Return what was booked for an event, by this run or an earlier one."""
        with self._lock:
            rows = self._db.execute("SELECT currency, amount, run FROM demo_ledger WHERE event = ?", (event,))
            return [Entry(Money(currency, amount), run) for currency, amount, run in rows]

    def booked_now(self) -> int:
        """Return how many entries this run wrote."""
        with self._lock:
            row = self._db.execute("SELECT count(*) FROM demo_ledger WHERE run = ?", (self.run,)).fetchone()
        return int(row[0])

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()


class Expectation:
    """The count that knows nothing of guards: the first payload of every distinct id of the input.

    It is kept in a temporary database that SQLite spills to disk, so that it bounds the memory for any input. For one
    thread.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute(
            "CREATE TABLE first (event TEXT PRIMARY KEY, currency TEXT, amount INTEGER, line INTEGER) WITHOUT ROWID"
        )
        self._db.execute("BEGIN")  # never committed: the count dies with the process, as it should

    def see(self, delivery: Delivery) -> None:
        """Take note of a delivery, in the order of the input."""
        money = delivery.money if delivery.money and has_account(delivery.money) else None
        currency, amount = (money.currency, money.amount) if money else (None, None)
        values = (delivery.id, currency, amount, delivery.line)
        self._db.execute("INSERT OR IGNORE INTO first VALUES (?, ?, ?, ?)", values)

    def take_back(self, delivery: Delivery) -> None:
        """Forget a delivery that nobody began to handle; those that came after it must be taken back as well."""
        self._db.execute("DELETE FROM first WHERE event = ? AND line = ?", (delivery.id, delivery.line))

    def __iter__(self) -> Iterator[tuple[str, Money | None]]:
        """Yield each event's id and what it should have booked."""
        for event, currency, amount in self._db.execute("SELECT event, currency, amount FROM first ORDER BY event"):
            yield event, None if currency is None else Money(currency, amount)

    def close(self) -> None:
        """Close the database, and so remove it."""
        self._db.close()


@attrs.define
class Account:
    """The totals of one currency, in its minor unit.

    Attributes:
        booked: What the ledger holds for the events of this input.
        expected: What it should hold.
    """

    booked: int = 0
    expected: int = 0

    @property
    def right(self) -> bool:
        """Whether they agree."""
        return self.booked == self.expected


@attrs.define
class Verdict:
    """The ledger held against the count, event by event.

    Attributes:
        events: How many distinct events the input had.
        entries: How many entries the ledger holds for them.
        accounts: The totals by currency.
        missing: Events that should have been booked and were not.
        doubled: Events that were booked more than once.
        differing: Events that were booked with another payload than their first, or should not have been booked.
        stray: Entries of this run that belong to no event of the input.
        kept: Events that an earlier run, on another input, had booked with another payload: there, that was the first.
    """

    events: int = 0
    entries: int = 0
    accounts: dict[str, Account] = attrs.Factory(dict)
    missing: int = 0
    doubled: int = 0
    differing: int = 0
    stray: int = 0
    kept: int = 0

    @property
    def right(self) -> bool:
        """Whether each event was booked once, with its first payload, and nothing else was."""
        totals = all(account.right for account in self.accounts.values())
        return totals and not (self.missing or self.doubled or self.differing or self.stray)

    def account(self, money: Money) -> Account:
        """Return the account of the money's currency."""
        return self.accounts.setdefault(money.currency, Account())


def audit(ledger: Ledger, expectation: Expectation) -> Verdict:
    """Hold the ledger against the count."""
    verdict = Verdict()
    of_this_run = 0
    for event, first in expectation:
        entries = ledger.entries(event)
        of_this_run += sum(entry.run == ledger.run for entry in entries)
        verdict.events += 1
        verdict.entries += len(entries)
        wanted = first
        if len(entries) > 1:
            verdict.doubled += 1
        elif not entries:
            verdict.missing += first is not None
        elif entries[0].money != first:
            if entries[0].run == ledger.run:
                verdict.differing += 1
            else:
                verdict.kept += 1
                wanted = entries[0].money
        for entry in entries:
            verdict.account(entry.money).booked += entry.money.amount
        if wanted is not None:
            verdict.account(wanted).expected += wanted.amount
    verdict.stray = ledger.booked_now() - of_this_run
    verdict.accounts = dict(sorted(verdict.accounts.items()))
    return verdict
