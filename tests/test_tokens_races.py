"""Tokens that many redeem at once, and processes that die of it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from idempo import (
    InDoubtError,
    InProgressError,
    Key,
    MemoryStore,
    ReentrantCallError,
    UsedTokenError,
)
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock
from idempo.tokens import TokenIssuer
from tests.forked import in_child
from tests.tokens_support import PATIENCE, SECRET, each_store, issuer

store = each_store


@pytest.mark.parametrize("in_doubt", ["raise", "rerun"])
def test_a_process_that_dies_inside_a_block_leaves_it_in_doubt(in_doubt: Any) -> None:
    """Behaviour 68: the record as it is left behind: claimed, and its lease run out."""
    clock = FakeClock()
    tokens = issuer(MemoryStore(clock=clock), clock=clock, in_doubt=in_doubt)
    token = tokens.issue("order")
    key = Key("tokens", tokens._claims(token)[0])
    tokens.guard.store.claim(key, owner="who died", fingerprint=None, lease=15, ttl=3600)
    clock.advance(16)
    if in_doubt == "raise":
        with pytest.raises(InDoubtError):
            tokens.redeem(token, "order")
    else:
        assert tokens.redeem(token, "order").purpose == "order"


DIES = """
import os, signal, sys
from idempo.stores.sqlite import SqliteStore
from idempo.tokens import TokenIssuer

path, secret, token, how = sys.argv[1:]
tokens = TokenIssuer(SqliteStore(path, synchronous="NORMAL"), secrets=secret, ttl=3600)
if how == "inside":
    with tokens.redeeming(token, "order"):
        os.kill(os.getpid(), signal.SIGKILL)
tokens.redeem(token, "order")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["inside", "after"])
@pytest.mark.parametrize("in_doubt", ["raise", "rerun"])
def test_a_process_is_killed(tmp_path: Path, how: str, in_doubt: Any) -> None:
    """Behaviour 68 (real): inside a block the token is in doubt, or unused, as was told; after one it is used."""
    path = tmp_path / "tokens.db"
    # By this clock the lease of whoever was killed is out.
    with SqliteStore(path, synchronous="NORMAL", clock=lambda: time.time() + 60) as store:
        tokens = issuer(store, in_doubt=in_doubt)
        token = tokens.issue("order")
        command = [sys.executable, "-c", DIES, str(path), SECRET, token, how]
        assert subprocess.run(command, timeout=PATIENCE, check=False).returncode == -signal.SIGKILL
        if how == "after":
            with pytest.raises(UsedTokenError):
                tokens.redeem(token, "order")
        elif in_doubt == "raise":
            with pytest.raises(InDoubtError):
                tokens.redeem(token, "order")
        else:
            assert tokens.redeem(token, "order").purpose == "order"


RACES = """
import sys
from idempo import UsedTokenError
from idempo.stores.sqlite import SqliteStore
from idempo.tokens import TokenIssuer

path, secret, token = sys.argv[1:]
tokens = TokenIssuer(SqliteStore(path, synchronous="NORMAL"), secrets=secret, ttl=3600, wait=60)
print("ready", flush=True)
sys.stdin.readline()
try:
    tokens.redeem(token, "order")
    print("redeemed")
except UsedTokenError:
    print("used")
"""


def test_of_many_processes_one_redeems(tmp_path: Path) -> None:
    """Behaviour 68 (real): on one file."""
    path = tmp_path / "tokens.db"
    with SqliteStore(path, synchronous="NORMAL") as store:
        store.create_table()
        command = [sys.executable, "-c", RACES, str(path), SECRET, issuer(store).issue("order")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started = [subprocess.Popen(command, **pipes) for _ in range(4)]  # type: ignore[call-overload]
        try:
            for each in started:
                assert each.stdout.readline() == "ready\n"
            for each in started:
                each.stdin.write("\n")
                each.stdin.flush()
            said = sorted(each.communicate(timeout=PATIENCE)[0] for each in started)
        finally:
            for each in started:
                each.kill()
                each.communicate()
    assert said == ["redeemed\n", "used\n", "used\n", "used\n"]


def test_a_forked_child_can_redeem_and_ends_no_block_of_its_parents(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "tokens.db", synchronous="NORMAL") as store:
        tokens = issuer(store, wait=0)
        held, free = tokens.issue("order"), tokens.issue("order")

        def child() -> None:
            assert tokens.redeem(free, "order").purpose == "order"
            with pytest.raises(ReentrantCallError):  # a copy of the block is around this
                tokens.redeem(held, "order")

        with tokens.redeeming(held, "order"):
            in_child(child)
        for token in (held, free):
            with pytest.raises(UsedTokenError):
                tokens.redeem(token, "order")


def at_once(work: Callable[[], object], threads: int) -> list[object]:
    """Let so many threads do this at once, and return what each got or raised."""
    barrier, found = threading.Barrier(threads), []

    def one() -> None:
        barrier.wait(PATIENCE)
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    started = [threading.Thread(target=one) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(PATIENCE)
    return found


def test_of_many_threads_one_redeems(store: Any) -> None:
    """Behaviour 68: through one issuer, and through one of its own each."""
    shared = issuer(store)
    for make in (lambda: shared, lambda: issuer(store)):
        token = make().issue("order")
        found = at_once(lambda make=make, token=token: make().redeem(token, "order").purpose, threads=8)
        assert found.count("order") == 1
        assert sum(isinstance(each, UsedTokenError) for each in found) == 7


def test_of_many_tasks_one_redeems(store: Any) -> None:
    """Behaviour 68: by `redeem_async`, and by blocks."""
    tokens = issuer(store)

    async def by_block(token: str) -> str:
        async with tokens.redeeming(token, "order") as redemption:
            await asyncio.sleep(0)
            return redemption.purpose

    async def by_call(token: str) -> str:
        return (await tokens.redeem_async(token, "order")).purpose

    async def main(work: Any) -> None:
        token = tokens.issue("order")
        found = await asyncio.gather(*(work(token) for _ in range(30)), return_exceptions=True)
        assert found.count("order") == 1
        assert sum(isinstance(each, UsedTokenError) for each in found) == 29

    for work in (by_block, by_call):
        asyncio.run(main(work))


class Held:
    """A `redeeming` block that another thread holds open until it is told how to end."""

    def __init__(self, tokens: TokenIssuer, token: str) -> None:
        self._entered, self._end, self._error = threading.Event(), threading.Event(), None
        self._work = (tokens, token)
        self._thread = threading.Thread(target=self._hold)
        self._thread.start()
        assert self._entered.wait(PATIENCE)

    def _hold(self) -> None:
        tokens, token = self._work
        try:
            with tokens.redeeming(token, "order"):
                self._entered.set()
                assert self._end.wait(PATIENCE)
                if self._error is not None:
                    raise self._error
        except ZeroDivisionError:
            pass

    def end(self, error: Exception | None = None) -> None:
        self._error = error
        self._end.set()
        self._thread.join(PATIENCE)


def test_while_a_block_is_open_others_are_refused_or_wait() -> None:
    """Behaviour 68: with no wait InProgressError; once it failed the next may; once it ended nobody."""
    tokens = issuer(wait=0)
    token = tokens.issue("order")
    held = Held(tokens, token)
    with pytest.raises(InProgressError) as caught:
        tokens.redeem(token, "order")
    assert caught.value.retry_after > 0
    held.end(ZeroDivisionError())
    held = Held(tokens, token)
    held.end()
    with pytest.raises(UsedTokenError):
        tokens.redeem(token, "order")


@pytest.mark.parametrize("error", [None, ZeroDivisionError()], ids=["ends", "fails"])
def test_a_second_click_waits_for_the_first(error: Exception | None) -> None:
    """Behaviour 68: it is used where the first ends; it is told of the failure where the first fails."""
    waited = threading.Event()
    tokens = issuer(wait=PATIENCE)
    token = tokens.issue("order")
    held = Held(tokens, token)
    found: list[object] = []

    def click() -> None:
        waited.set()
        try:
            found.append(tokens.redeem(token, "order"))
        except Exception as raised:
            found.append(raised)

    second = threading.Thread(target=click)
    second.start()
    assert waited.wait(PATIENCE)
    held.end(error)
    second.join(PATIENCE)
    if error is None:
        assert [type(each) for each in found] == [UsedTokenError]
    else:  # a second that was not yet waiting redeems it itself
        assert found == [error] or getattr(found[0], "purpose", None) == "order"
    with pytest.raises(UsedTokenError) if found[0] is not error else pytest.MonkeyPatch.context():
        tokens.redeem(token, "order")
