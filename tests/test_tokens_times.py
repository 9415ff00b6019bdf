"""Tokens expire, and no record of a redemption before its token."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idempo import (
    ExpiredTokenError,
    InvalidTokenError,
    MemoryStore,
    State,
    TokenError,
    UsedTokenError,
)
from idempo.testing import FakeClock
from idempo.tokens import TokenIssuer
from tests.tokens_support import issuer


def test_a_token_expires() -> None:
    """Behaviour 68: at its end, and whether it was used or not."""
    clock = FakeClock()
    tokens = issuer(MemoryStore(clock=clock), ttl=60, clock=clock)
    used, last, late = (tokens.issue("order") for _ in range(3))
    tokens.redeem(used, "order")
    clock.advance(59.9)
    tokens.redeem(last, "order")
    clock.advance(0.1)
    for token in (used, last, late):
        with pytest.raises(ExpiredTokenError):
            tokens.redeem(token, "order")


@given(
    ttl=st.floats(1, 1000),
    leeway=st.floats(0, 100),
    first=st.floats(0, 1),
    issuing=st.floats(-1, 1),
    other=st.floats(-1, 1),
    later=st.floats(0, 1),
)
@example(ttl=60.0, leeway=30.0, first=0.0, issuing=1.0, other=-1.0, later=0.9)
@example(ttl=60.0, leeway=30.0, first=0.0, issuing=1.0, other=0.0, later=0.6)
def test_a_token_outlives_no_record_of_its_use(
    ttl: float, leeway: float, first: float, issuing: float, other: float, later: float
) -> None:
    """Behaviour 68: whenever it comes again, to whichever machine.

    The clocks of who issues it and of who gets it next differ by the leeway, at most, from that of the first redeemer.
    """
    true = FakeClock()
    store = MemoryStore(clock=true)

    def machine(ahead: float) -> TokenIssuer:
        return issuer(store, ttl=ttl, leeway=leeway, clock=lambda: true() + ahead * leeway * 0.99)

    token = machine(issuing).issue("order")
    true.advance(first * ttl)
    try:
        machine(0).redeem(token, "order")
    except ExpiredTokenError:
        return
    true.advance(later * (ttl + 2 * leeway))
    with pytest.raises(TokenError):  # used, expired, or from too far ahead
        machine(other).redeem(token, "order")


def test_a_token_of_a_longer_life_than_ours_is_remembered_for_its_own() -> None:
    """Two releases with different ttls share a store for a while."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    long, short = (issuer(store, ttl=ttl, leeway=0, clock=clock) for ttl in (3600, 60))
    token = long.issue("order")
    short.redeem(token, "order")
    clock.advance(3599)
    for each in (short, long):
        with pytest.raises(UsedTokenError):
            each.redeem(token, "order")


def test_a_token_from_the_future_is_invalid() -> None:
    """Its record would be gone before it expires."""
    clock = FakeClock()
    ahead, here = issuer(clock=lambda: clock() + 301), issuer(clock=clock)
    with pytest.raises(InvalidTokenError, match="clocks differ"):
        here.redeem(ahead.issue("order"), "order")


def test_a_token_that_expires_while_it_waits_is_not_redeemed() -> None:
    """Its time is looked at when the turn is its own, too; then it is in nobody's hands."""
    times = iter([0.0, 1.0, 59.0, 61.0])  # when it is issued, twice as it is read, and as its turn comes
    tokens = issuer(ttl=60, clock=lambda: next(times))
    first = tokens.issue("order")
    with pytest.raises(ExpiredTokenError):
        tokens.redeem(first, "order")
    record = tokens.guard.lookup(tokens._claims(first)[0])
    assert record is None or record.state is State.RELEASED


@pytest.mark.parametrize("is_async", [False, True])
def test_a_block_that_begins_too_late_does_not_begin(is_async: bool) -> None:
    """And leaves no doubt, whatever else does."""
    clock = FakeClock()
    tokens = issuer(ttl=60, clock=clock, release_errors=LookupError)
    block = tokens.redeeming(tokens.issue("order"), "order")
    clock.advance(60)

    async def enter() -> None:
        async with block:
            pytest.fail("the block must not begin")

    with pytest.raises(ExpiredTokenError):
        if is_async:
            asyncio.run(enter())
        else:
            with block:
                pytest.fail("the block must not begin")
    assert tokens.guard.stats().released == 1
