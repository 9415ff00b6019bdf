"""The guarded handler: what an application would write, and the counting of how its deliveries end."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Literal, TypeAlias

import attrs

from idempo import FingerprintMismatchError, Idempotency, InProgressError, Stats, current_operation
from idempo.demo.deliveries import Delivery
from idempo.demo.ledger import Ledger, has_account

TRIES: Final = 3
"""How often a delivery whose handler failed is handed in: a provider sends it again until it is told "done"."""

SILENCE: Final = 2.0
"""Seconds for which all deliveries in hand wait for another process before that is told."""

End: TypeAlias = Literal["ran", "replayed", "refused", "busy", "failed", "retried"]


class NoAccountError(Exception):
    """The ledger keeps no account in the event's currency. It never will: an outcome, not a failure to try again."""


class NoAnswerError(Exception):
    """The ledger did not answer: whether it booked is not known. To be tried again."""


@attrs.frozen
class Booking:
    """What the handler answers.

    Attributes:
        booking: The booking's own idempotency key; None where the event moves no money.
        currency: Three capital letters; "" where the event moves no money.
        amount: In the currency's minor unit.
    """

    booking: str | None
    currency: str
    amount: int


@attrs.define(eq=False)
class Desk:
    """What the handler works with, and what it leaves there. None of it is payload.

    Attributes:
        delivery: What is handled.
        ledger: Where to book.
        work: How long the handler pretends to work, in seconds.
        fault: What goes wrong at this try; one of the delivery's faults, or None.
        ran: Whether the handler ran, as opposed to a stored outcome being replayed.
        found_booked: Whether the ledger had this booking already when the handler came to book it.
        since: When this try began, by the monotonic clock.
    """

    delivery: Delivery
    ledger: Ledger
    work: float
    fault: str | None = None
    ran: bool = False
    found_booked: bool = False
    since: float = attrs.Factory(monotonic)

    def pretend_to_work(self) -> None:
        """Take half of the time that the handler pretends to work."""
        if self.work:  # even a sleep of zero seconds gives the processor away
            time.sleep(self.work / 2)


def book(event: dict[str, Any], desk: Desk) -> Booking:
    """Book what an event moves. The guard is put around it by `Handler`."""
    desk.ran = True
    desk.pretend_to_work()
    money = desk.delivery.money
    if money is None:
        return Booking(None, "", 0)
    if not has_account(money):
        raise NoAccountError(f"no account in {money.currency}")
    if desk.fault == "unreachable":
        raise NoAnswerError("the ledger could not be reached")
    booking = current_operation().derive("booking")
    # The process can be killed between the next line and the moment when the guard has stored what we return. Then
    # the handler runs again, with the same booking, and the ledger says that it has it already.
    desk.found_booked = not desk.ledger.book(booking, event["id"], money)
    desk.pretend_to_work()
    if desk.fault == "timeout":
        raise NoAnswerError("the ledger's answer was lost")
    return Booking(booking, money.currency, money.amount)


@attrs.define
class Tally:
    """How the deliveries ended. Each one counts as exactly one of ran, replayed, refused, busy and failed.

    Attributes:
        ran: The handler ran to its end.
        replayed: A duplicate was given the stored outcome.
        refused: The id was used before for another payload.
        busy: Somebody else held the id for longer than a duplicate waits.
        failed: The handler raised, at the last try too.
        retried: How often a failed delivery was handed in again.
        found_booked: How often the handler ran again and found that the ledger had the booking already.
    """

    ran: int = 0
    replayed: int = 0
    refused: int = 0
    busy: int = 0
    failed: int = 0
    retried: int = 0
    found_booked: int = 0

    def add(self, end: End, *, found_booked: bool) -> None:
        """Count one try, by the name of the count that it belongs to."""
        setattr(self, end, getattr(self, end) + 1)
        self.found_booked += found_booked

    @property
    def deliveries(self) -> int:
        """How many deliveries have ended."""
        return self.ran + self.replayed + self.refused + self.busy + self.failed


class Handler:
    """Runs each delivery through the guarded `book`, as a consumer of webhooks would. Any thread may use it.

    Args:
        guard: What keeps an event from being handled twice.
        ledger: Where to book.
        work: How long the handler pretends to work, in seconds; that duplicates come while it runs, and a kill, too.
        tell: Called with a line of text for each delivery that nobody handled, and when all of them wait.
        done: Called after each delivery that has ended.
    """

    def __init__(
        self,
        guard: Idempotency,
        ledger: Ledger,
        *,
        work: float,
        tell: Callable[[str], None],
        done: Callable[[], None],
    ) -> None:
        self._book = guard.idempotent(key="event.id", ignore=("desk",), replay_errors=NoAccountError)(book)
        self._ledger = ledger
        self._work = work
        self._tell = tell
        self._done = done
        self._lock = threading.Lock()
        self._wait = guard.policy.wait
        self._desks: set[Desk] = set()
        self._silent = False
        self.tally: Final = Tally()

    def stats(self) -> Stats:
        """Return the guard's own count of events."""
        return self._book.stats()

    def handle(self, delivery: Delivery) -> None:
        """Handle one delivery to its end. Whatever the handler raises is counted and told, and goes no further."""
        desk = Desk(delivery, self._ledger, self._work, delivery.fault)
        with self._lock:
            self._desks.add(desk)
        tries = 0
        while True:
            tries += 1
            desk.since, desk.ran, desk.found_booked = monotonic(), False, False
            try:
                end = self._end_of_try(desk)
            except NoAnswerError as error:
                end = "retried" if tries < TRIES else self._failed(delivery, error)
            with self._lock:
                self.tally.add(end, found_booked=desk.found_booked)
                if end != "retried":
                    self._desks.remove(desk)
            if end != "retried":
                break
            desk.fault = None
        self._done()

    def look_up(self) -> None:
        """Tell, once for each time that it happens, that all deliveries in hand wait for what another process holds.

        None of them runs here then, so whoever they wait for is elsewhere, or dead: then until its lease runs out.
        """
        with self._lock:
            ran = any(desk.ran for desk in self._desks)
            waited = 0.0 if ran else monotonic() - max((desk.since for desk in self._desks), default=math.inf)
        silent = waited >= SILENCE
        if silent and not self._silent:
            left = math.ceil(max(self._wait - waited, 0))
            self._tell(f"waiting up to {left} s for what another process holds, or held when it died")
        self._silent = silent

    def _end_of_try(self, desk: Desk) -> End:
        """Hand the delivery in once, and return the count in which it ends.

        Raises:
            NoAnswerError: It has not ended: to be handed in again.
        """
        try:
            self._book(desk.delivery.event, desk)
        except NoAnswerError:
            raise
        except FingerprintMismatchError:
            self._tell_of(desk.delivery, "refused", "the id was used before for another payload")
            return "refused"
        except InProgressError:
            self._tell_of(desk.delivery, "busy", "another process is handling it")
            return "busy"
        except NoAccountError as error:
            return self._failed(desk.delivery, error) if desk.ran else "replayed"
        except Exception as error:  # noqa: BLE001  # one delivery that fails does not stop the others
            return self._failed(desk.delivery, error)
        return "ran" if desk.ran else "replayed"

    def _failed(self, delivery: Delivery, error: Exception) -> End:
        self._tell_of(delivery, "failed", f"{type(error).__name__}: {error}")
        return "failed"

    def _tell_of(self, delivery: Delivery, end: End, reason: str) -> None:
        self._tell(f"line {delivery.line}: event {delivery.id!a} {end}: {reason}")
