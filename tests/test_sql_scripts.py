"""The scripts of the SQL stores, given rows as from a server: races that are lost again and again, and odd rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from idempo import Key, RecordError, State, StoreError
from idempo.records import Record
from idempo.stores._sql_mysql import MariaDB
from idempo.stores._sql_postgresql import PostgreSQL
from idempo.stores._sql_records import READ, checked, named
from idempo.stores._sql_scripts import Script
from idempo.stores._sql_stepwise import row_of

KEY = Key("sql", "order-42")
NOW = 1 << 50


def row(
    state: State, *, expires_in: float = 60.0, owner: str = "owner-a", lease_left: float | None = None
) -> list[Any]:
    """Return a row as the statements read it."""
    outcome = b"kept" if state is State.COMPLETED else None
    record = Record(state, None, 1, 1, owner, outcome, lease_left, expires_in)
    made = row_of(named(KEY), record, NOW)
    return [made[name] for name in READ]


def answer(script: Script[Any], rows: Callable[[str], list[list[Any]]]) -> Any:
    """Run a script on a server that answers each statement so."""
    try:
        statement, _ = next(script)
        while True:
            statement, _ = script.send(rows(statement))
    except StopIteration as stop:
        return stop.value


POSTGRESQL = PostgreSQL("records")
MARIADB = MariaDB("records")
RUNNING = row(State.RUNNING, lease_left=30.0)
EXPIRED = row(State.COMPLETED, expires_in=-1.0)

LOST: dict[str, tuple[Script[Any], Callable[[str], list[list[Any]]]]] = {
    "postgresql-claim-nothing": (POSTGRESQL.claim(KEY, "owner-b", None, 60, 60, True), lambda _: []),
    "postgresql-claim-expired": (
        POSTGRESQL.claim(KEY, "owner-b", None, 60, 60, True),
        lambda _: [[None, NOW, *EXPIRED]],
    ),
    "postgresql-claim-free": (
        POSTGRESQL.claim(KEY, "owner-b", None, 60, 60, True),
        lambda _: [[None, NOW, *row(State.RELEASED)]],
    ),
    "postgresql-complete": (
        POSTGRESQL.complete(KEY, "owner-a", b"", 60),
        lambda asked: [] if asked.startswith("UPDATE") else [[NOW, *RUNNING]],
    ),
    "postgresql-release-nothing": (POSTGRESQL.release(KEY, "owner-a", 60), lambda _: []),
    "postgresql-release-expired": (POSTGRESQL.release(KEY, "owner-a", 60), lambda _: [[None, NOW, *EXPIRED]]),
    "postgresql-release-held": (POSTGRESQL.release(KEY, "owner-a", 60), lambda _: [[None, NOW, *RUNNING]]),
    "postgresql-delete": (POSTGRESQL.delete(KEY, None), lambda _: [[None, NOW, *RUNNING]]),
    "mariadb-claim": (MARIADB.claim(KEY, "owner-b", None, 60, 60, True), lambda _: [[NOW, *EXPIRED]]),
    "mariadb-complete": (
        MARIADB.complete(KEY, "owner-a", b"", 60),
        lambda asked: [[0]] if asked.startswith("UPDATE") else [[NOW, *RUNNING]],
    ),
    "mariadb-release": (MARIADB.release(KEY, "owner-a", 60), lambda _: [[NOW, *EXPIRED]]),
    "mariadb-delete": (
        MARIADB.delete(KEY, None),
        lambda asked: [[0]] if asked.startswith("DELETE") else [[NOW, *RUNNING]],
    ),
}


@pytest.mark.parametrize("lost", LOST)
def test_a_race_that_is_lost_for_ever_is_a_store_error(lost: str) -> None:
    """Behaviour 51: bounded, and with the key."""
    with pytest.raises(StoreError, match="1000 times") as caught:
        answer(*LOST[lost])
    assert caught.value.key == KEY


def test_a_claim_that_was_written_late_is_made_anew() -> None:
    """Behaviour 20: its lease would be half over; after a few tries it is as it is."""
    late = row(State.RUNNING, owner="owner-b", lease_left=1.0, expires_in=61.0)
    asked: list[str] = []

    def tell(first: list[Any]) -> Callable[[str], list[list[Any]]]:
        def rows(statement: str) -> list[list[Any]]:
            asked.append(statement)
            return [[*first, NOW, *late]]

        return rows

    for statements, first in ((POSTGRESQL, [""]), (MARIADB, [])):
        asked.clear()
        claim = answer(statements.claim(KEY, "owner-b", None, 60, 60, True), tell(first))
        assert claim.acquired
        assert 2 < len(asked) < 10


def test_a_claim_that_lost_the_race_for_a_new_key_is_told_who_won() -> None:
    """Behaviour 1: no row at all says that another's INSERT came first; the same statement then finds it."""
    asked: list[str] = []

    def rows(statement: str) -> list[list[Any]]:
        asked.append(statement)
        return [] if len(asked) == 1 else [[None, NOW, *RUNNING]]

    claim = answer(POSTGRESQL.claim(KEY, "owner-b", None, 60, 60, True), rows)
    assert not claim.acquired
    assert claim.record.owner == "owner-a"
    assert len(asked) == 2


def test_a_row_with_nothing_where_something_belongs_is_damaged() -> None:
    """Behaviour 35: whatever is missing."""
    for number in range(1, len(READ)):
        odd = list(RUNNING)
        if odd[number] is None:
            continue
        odd[number] = None
        with pytest.raises(RecordError, match="damaged"):
            checked(KEY, named(KEY), odd)
