"""SqlAlchemyStore.joining, on each database and by each kind of caller (behaviour 54)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idempo import (
    EventKind,
    FingerprintMismatchError,
    InDoubtError,
    InProgressError,
    LeaseLostError,
    State,
)
from tests.sql_joining_support import COLOURS, DATABASES, KEY, NAME, PLACE, OutOfStockError, Shop, shops


@pytest.fixture(params=DATABASES)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """A shop on one database."""
    yield from shops(request, tmp_path)


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> str:
    """A kind of caller."""
    return str(request.param)


def test_a_commit_keeps_both(shop: Shop, colour: str) -> None:
    """Behaviour 54 (real): nobody else sees either before; then a duplicate, in a later transaction, replays."""
    with shop.desk(colour) as desk:
        assert desk.call(PLACE, payload=5) == "placed"
        assert desk.call(PLACE, payload=5) == "placed"  # a transaction sees what it has written itself
        assert shop.store.get(NAME) is None
        assert shop.placed() == []
        desk.commit()
    with shop.desk(colour) as desk:
        assert desk.call(PLACE, payload=5) == "placed"
        with pytest.raises(FingerprintMismatchError):
            desk.call(PLACE, payload=6)
        desk.commit()
    record = shop.store.get(NAME)
    assert record is not None
    assert (record.state, record.attempt, shop.placed()) == (State.COMPLETED, 1, [42])
    assert 86_000 < record.expires_in <= 86_400  # the ttl is kept
    assert shop.kinds() == [EventKind.EXECUTED, EventKind.REPLAYED, EventKind.REPLAYED, EventKind.MISMATCHED]


def test_a_rollback_keeps_neither(shop: Shop, colour: str) -> None:
    """Behaviour 54 (real): the next call runs, and any payload will do."""
    with shop.desk(colour) as desk:
        desk.call(PLACE, payload=5)
        desk.rollback()
    assert (shop.store.get(NAME), shop.placed()) == (None, [])
    with shop.desk(colour) as desk:
        assert desk.call(PLACE, payload=6) == "placed"
        desk.commit()
    assert shop.placed() == [42]


@pytest.mark.parametrize("declared", [False, True])
def test_a_failing_body_that_the_caller_survives_keeps_neither(shop: Shop, colour: str, declared: bool) -> None:
    """Behaviour 54 (real): what the caller did before, and does after, stays; a declared error is no outcome here."""
    with shop.desk(colour, {"replay_errors": (OutOfStockError,)} if declared else {}) as desk:
        desk.execute("INSERT INTO orders VALUES (1, 'before')")
        with pytest.raises(OutOfStockError):
            desk.call(PLACE, error=OutOfStockError())
        desk.execute("INSERT INTO orders VALUES (2, 'after')")
        assert desk.ask("lookup", KEY) is None
        desk.commit()
    assert (shop.store.get(NAME), shop.placed()) == (None, [1, 2])
    assert shop.kinds() == [EventKind.RELEASED]


def test_a_statement_that_fails_in_the_body_undoes_the_body_alone(shop: Shop, colour: str) -> None:
    """Behaviour 54 (real): PostgreSQL fails the whole transaction then, and the savepoint brings it back."""
    with shop.desk(colour) as desk:
        desk.execute("INSERT INTO orders VALUES (1, 'before')")
        with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
            desk.call(PLACE, PLACE)
        assert desk.call(PLACE) == "placed"
        desk.commit()
    assert shop.placed() == [1, 42]


def test_calls_within_a_call(shop: Shop) -> None:
    """Behaviour 54 (real): the inner failure undoes the inner effect alone; the outer one undoes both."""
    with shop.desk("connection") as desk:

        def outer(fails: bool) -> None:
            desk.call("INSERT INTO orders VALUES (1, 'inner')", key="a")
            with pytest.raises(OutOfStockError):
                desk.call(PLACE, key="b", error=OutOfStockError())
            if fails:
                raise OutOfStockError

        guard = desk.guard
        with pytest.raises(OutOfStockError):
            guard.run("outer", outer, True)
        assert desk.ask("lookup", "a") is None
        guard.run("outer", outer, False)
        assert desk.ask("lookup", "a") is not None
        desk.commit()
    assert shop.placed() == [1]


def test_what_other_calls_have_claimed_is_respected(shop: Shop, colour: str) -> None:
    """Behaviours 16, 25, 26, 54: a live claim is in progress, doubt is for the policy, a released key is free."""
    shop.store.claim(NAME, owner="other", fingerprint=None, lease=60, ttl=1000)
    with shop.desk(colour) as desk:
        with pytest.raises(InProgressError):
            desk.call(PLACE)
        desk.commit()
    shop.store.renew(NAME, owner="other", lease=0, ttl=1000)
    with shop.desk(colour, {"in_doubt": "raise"}) as desk:
        with pytest.raises(InDoubtError):
            desk.call(PLACE)
        desk.commit()
    with shop.desk(colour) as desk:
        desk.call(PLACE)
        desk.rollback()  # and it is as it was
    with shop.desk(colour) as desk:
        desk.call(PLACE)
        desk.commit()
    assert shop.kinds()[-2:] == [EventKind.TAKEN_OVER, EventKind.EXECUTED]
    assert shop.placed() == [42]
    shop.store.claim(NAME, owner="other", fingerprint=None, lease=60, ttl=1000)
    shop.store.delete(NAME)
    shop.store.claim(NAME, owner="other", fingerprint=b"\x01x", lease=60, ttl=1000)
    shop.store.release(NAME, owner="other", ttl=1000)
    with shop.desk(colour) as desk:
        desk.call("INSERT INTO orders VALUES (43, 'pen')")
        desk.commit()
    assert shop.placed() == [42, 43]


def test_questions_stand_in_the_transaction(shop: Shop, colour: str) -> None:
    """lookup, resolve and forget see what the transaction has written, and are undone with it."""
    with shop.desk(colour) as desk:
        assert desk.ask("resolve", KEY, "by hand")
        assert not desk.ask("resolve", KEY, "twice")
        assert desk.call(PLACE) == "by hand"
        assert shop.store.get(NAME) is None
        assert desk.ask("forget", KEY)
        assert desk.ask("lookup", KEY) is None
        assert desk.ask("resolve", KEY, "again")
        desk.rollback()
    assert shop.store.get(NAME) is None


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_body_that_ends_the_transaction_is_told(shop: Shop, end: str) -> None:
    """Behaviour 54 (real): effect and record may have been parted, and that is never silent."""

    def by_sqlalchemy(desk: Any) -> None:
        desk.execute(PLACE)
        getattr(desk.caller, end.lower())()

    def by_a_statement(desk: Any) -> None:
        desk.execute(PLACE)
        desk.execute(end)

    for kind in ("connection", "session"):
        for body in (by_sqlalchemy, by_a_statement):
            with shop.desk(kind) as desk:
                with pytest.raises(LeaseLostError, match=r"committed or rolled back|its lease was lost") as caught:
                    desk.guard.run(KEY, body, desk, payload=None)
                assert caught.value.key == NAME
            with shop.engine.begin() as connection:
                for table in (shop.orders, shop.records):
                    connection.exec_driver_sql(f"DELETE FROM {table}")
