"""`Idempotency`: what holds through a guard, in both colours, on the stores that come with the package."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import pickle
import threading
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs
import pytest

from idempo import (
    UNKNOWN,
    FingerprintError,
    FingerprintMismatchError,
    Idempotency,
    InDoubtError,
    InProgressError,
    InvalidKeyError,
    JsonCodec,
    Key,
    MemoryStore,
    PickleCodec,
    RecordError,
    ReentrantCallError,
    ResultLostError,
    State,
    Stats,
    current_operation,
)
from idempo.errors import StoreFullError
from idempo.seals import Signed
from idempo.stores.cas import AsyncCasStore
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock, unguarded
from idempo.testing.backend import AsyncDictBackend, DictBackend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = Key("orders", "o-1")


@attrs.frozen
class Receipt:
    """What a call returns."""

    order: str
    amount: Decimal


@dataclasses.dataclass
class Line:
    """A part of what a call returns."""

    item: str
    receipt: Receipt | None = None


class Colour(enum.Enum):
    """One more type."""

    RED = "red"


class DeclinedError(Exception):
    """A declared error, with attributes."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(code)
        self.reason = reason


class Shop:
    """A guard on one store, asked in one colour."""

    def __init__(self, store: Any, colour: str, clock: FakeClock, path: Path) -> None:
        self.store = store
        self.colour = colour
        self.clock = clock
        self.path = path
        self.ran: list[Any] = []
        self.guard = self.with_policy()

    def with_policy(self, **policy: Any) -> Idempotency:
        """Ask under this policy from here on."""
        policy = {"codec": JsonCodec(types=[Receipt, Line, Colour]), "wait": 0, "lease": 10, **policy}
        self.guard = Idempotency(self.store, namespace="orders", **policy)
        return self.guard

    def __call__(self, value: Any = "paid", key: Any = "o-1", *args: Any, **kwargs: Any) -> Any:
        """Run something that returns the value, or raises it, or calls it."""

        def effect(*_: Any, **__: Any) -> Any:
            self.ran.append(key)
            if isinstance(value, BaseException):
                raise value
            return value() if callable(value) else value

        async def effect_async(*_: Any, **__: Any) -> Any:
            return effect()

        if self.colour == "sync":
            return self.guard.run(key, effect, *args, **kwargs)
        return asyncio.run(self.guard.run_async(key, effect_async, *args, **kwargs))

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call ``lookup``, ``forget`` or ``resolve``, or its twin."""
        if self.colour == "sync":
            return getattr(self.guard, name)(*args, **kwargs)
        return asyncio.run(getattr(self.guard, f"{name}_async")(*args, **kwargs))

    def elsewhere(self, fingerprint: bytes | None = None, *, lapsed: bool = False, key: Key = KEY) -> Any:
        """Let another process claim the key."""
        claim = self.store.claim(key, owner="elsewhere", fingerprint=fingerprint, lease=5, ttl=600)
        assert claim.acquired
        if lapsed:
            self.clock.advance(6)
        return claim.record


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sync", "async"])
def shop(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Shop]:
    clock = FakeClock()
    path = tmp_path / "orders.db"
    with SqliteStore(path, clock=clock) as sqlite:
        yield Shop(MemoryStore(clock=clock) if kind == "memory" else sqlite, request.param, clock, path)


# Running once

VALUES: list[Any] = [
    None,
    0,
    False,
    "",
    [],
    {},
    (),
    (1, [2, (3,)]),
    {1: "one", "1": 1, None: 0},
    {1, 2},
    b"\x00\xff",
    1.0,
    Decimal("1.10"),
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    date(2026, 1, 2),
    timedelta(days=1, microseconds=1),
    UUID(int=7),
    Colour.RED,
    Receipt("o-1", Decimal("5.00")),
    Line("tea", Receipt("o-1", Decimal(5))),
    {"lines": [Line("tea"), Line("cup")], "by": {Colour.RED: (Receipt("o", Decimal(0)),)}},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_result_replays_equal_and_of_the_same_type(shop: Shop, value: Any) -> None:
    """Behaviour 2: as the first caller got it, falsy or nested, in whatever codec."""
    first, second = shop(value), shop("never")
    assert first is value
    assert second == value
    assert type(second) is type(value)
    assert repr(second) == repr(value)
    assert len(shop.ran) == 1


def test_who_changes_the_result_changes_nobody_elses(shop: Shop) -> None:
    """Behaviour 3: the first caller, or a duplicate."""
    first = shop({"lines": [Line("tea")]})
    first["lines"].append("spilt")
    second = shop()
    second["lines"][0].item = "stained"
    assert shop() == {"lines": [Line("tea")]}


def test_the_arguments_of_run_are_its_payload(shop: Shop) -> None:
    """Behaviours 4, 6: a dict in another order is the same; none at all, or ``payload=None``, checks nothing."""
    shop("paid", "o-1", {"a": 1, "b": 2}, note="x")
    assert shop("again", "o-1", {"b": 2, "a": 1}, note="x") == "paid"
    for args, kwargs in [(({"a": 1},), {"note": "x"}), (({"a": 1, "b": 2},), {}), ((), {"note": "x"})]:
        with pytest.raises(FingerprintMismatchError) as caught:
            shop("again", "o-1", *args, **kwargs)
        assert caught.value.key == KEY
    assert shop("again", "o-1") == "paid"
    assert shop("again", "o-1", 7, payload=None) == "paid"
    shop("paid", "o-2", 1, payload={"amount": 5})
    assert shop("again", "o-2", 2, payload={"amount": 5}) == "paid"
    assert shop.ran == ["o-1", "o-2"]


def test_keys_that_look_alike_are_several_and_spellings_of_one_are_one(shop: Shop) -> None:
    """Behaviours 5, 7: with one payload or another."""
    apart = [("a:b", "c"), ("a", "b:c"), ("a", ("b", "c")), "a", b"a", "A", "a ", "7a", 7]
    for number, key in enumerate(apart):
        assert shop(number, key, "payload") == number
    assert [shop("again", key, "payload") for key in apart] == list(range(len(apart)))
    assert shop("again", "7") == apart.index(7)
    other = Idempotency(shop.store, namespace="tenant-2", codec=JsonCodec())
    assert other.run("a", lambda: "theirs") == "theirs"


def test_another_payload_is_refused_in_every_state_but_released(shop: Shop, kind: str) -> None:
    """Behaviour 6: while it runs, when it is in doubt, and after completion; nothing ran and nothing changed."""
    fingerprint = b"\x01" + bytes(32)
    shop.elsewhere(fingerprint)
    for _ in "running", "in doubt":
        before = shop.store.get(KEY)
        with pytest.raises(FingerprintMismatchError):
            shop("paid", "o-1", 1)
        after = shop.store.get(KEY)
        assert (after.owner, after.token, after.fingerprint) == (before.owner, before.token, fingerprint)
        shop.clock.advance(6)
    assert shop.store.complete(KEY, owner="elsewhere", outcome=b"whatever", ttl=60)
    with pytest.raises(FingerprintMismatchError):
        shop("paid", "o-1", 1)
    assert shop.ran == []
    shop.ask("forget", "o-1")
    shop.elsewhere(fingerprint)
    shop.store.release(KEY, owner="elsewhere", ttl=60)
    assert shop("paid", "o-1", 1) == "paid"


def test_after_its_ttl_a_key_is_new_with_any_payload(shop: Shop) -> None:
    """Behaviour 8: counted from completion; not a moment before."""
    shop.with_policy(ttl=100)
    shop("first", "o-1", 1)
    shop.clock.advance(99.9)
    assert shop("second", "o-1", 1) == "first"
    shop.clock.advance(0.2)
    assert shop("second", "o-1", 2) == "second"
    record = shop.ask("lookup", "o-1")
    assert (record.attempt, record.state) == (1, State.COMPLETED)


def test_a_race_at_the_end_of_the_ttl_runs_once(shop: Shop) -> None:
    """Behaviour 8: many callers at that instant."""
    shop.with_policy(ttl=100, wait=20, lease=600)
    shop("first")
    shop.clock.advance(101)
    barrier = threading.Barrier(6)
    answers: list[str] = []

    def call() -> None:
        barrier.wait(20)
        answers.append(shop("second"))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == ["second"] * 6
    assert shop.ran == ["o-1"] * 2


def test_a_bad_key_or_payload_is_refused_and_nothing_ran(shop: Shop) -> None:
    """Behaviours 9, 10: by the error that says what was wrong."""
    for bad in (None, "", "x" * 256, 1.5, True, (), object()):
        with pytest.raises(InvalidKeyError):
            shop("paid", bad)
        for name in ("lookup", "forget"):
            with pytest.raises(InvalidKeyError):
                shop.ask(name, bad)
        with pytest.raises(InvalidKeyError):
            shop.ask("resolve", bad, "paid")
    with pytest.raises(FingerprintError) as caught:
        shop("paid", "o-1", [1, {"session": object()}])
    assert caught.value.path == "args[0][1].session"
    with pytest.raises(FingerprintError):
        shop("paid", "o-1", payload=object())
    assert shop.ran == []
    assert shop.ask("lookup", "o-1") is None


def test_a_coroutine_function_is_refused_by_run_and_an_async_store_too(shop: Shop) -> None:
    """Each error says what to use instead; nothing is claimed."""

    async def coroutine() -> None: ...

    with pytest.raises(TypeError, match="run_async"):
        shop.guard.run("o-1", coroutine)
    guard = Idempotency(AsyncCasStore(AsyncDictBackend(DictBackend())))
    with pytest.raises(TypeError, match="run_async"):
        guard.run("o-1", str)
    for ask in (guard.lookup, guard.forget, lambda key: guard.resolve(key, 1)):
        with pytest.raises(TypeError, match="_async methods"):
            ask("o-1")
    assert shop.ask("lookup", "o-1") is None


def test_unguarded_run_simply_runs(shop: Shop) -> None:
    """With a bad key refused, and no payload looked at."""
    with unguarded():
        assert [shop(value, "o-1") for value in "ab"] == ["a", "b"]
        assert shop(lambda: current_operation().attempt) == 0
        with pytest.raises(InvalidKeyError):
            shop("paid", "")
    assert shop.ask("lookup", "o-1") is None
    assert shop.guard.stats() == Stats()


def test_a_call_within_a_call_is_recursion_only_for_the_keys_around_it(shop: Shop) -> None:
    """Behaviour 17: however deep it stands; a key that others hold is merely in progress."""
    shop.elsewhere(key=Key("orders", "theirs"))
    raised: list[type[Exception]] = []

    async def within() -> None:
        for key in ("theirs", "outer", "inner"):
            try:
                await shop.guard.run_async(key, within)
            except Exception as error:
                raised.append(type(error))

    def within_sync() -> None:
        for key in ("theirs", "outer", "inner"):
            try:
                shop.guard.run(key, within_sync)
            except Exception as error:
                raised.append(type(error))

    async def nested() -> None:
        await shop.guard.run_async("outer", lambda: shop.guard.run_async("inner", within))

    if shop.colour == "sync":
        shop.guard.run("outer", lambda: shop.guard.run("inner", within_sync))
    else:
        asyncio.run(nested())
    assert raised == [InProgressError, ReentrantCallError, ReentrantCallError]


# Doubt, attempts and tokens


def overtaken(shop: Shop) -> None:
    """A body that loses its lease while it runs."""
    shop.clock.advance(20)
    assert shop.store.claim(KEY, owner="elsewhere", fingerprint=None, lease=0, ttl=600).took_over


@pytest.mark.parametrize("doubt", ["crash", "lost lease", "exception"])
@pytest.mark.parametrize("end", ["resolve", "forget"])
def test_at_most_once_never_runs_twice_by_itself(shop: Shop, doubt: str, end: str) -> None:
    """Behaviour 26: a crash, a lost lease and an undeclared exception all leave doubt, until somebody ends it."""
    shop.with_policy(in_doubt="raise")
    if doubt == "crash":
        shop.elsewhere(lapsed=True)
    else:
        with pytest.raises(Exception):  # noqa: B017
            shop((lambda: overtaken(shop)) if doubt == "lost lease" else ConnectionError())
    runs = len(shop.ran)
    for _ in "12":
        with pytest.raises(InDoubtError) as caught:
            shop("again")
        assert caught.value.key == KEY
    assert len(shop.ran) == runs
    assert shop.ask(end, "o-1", *(["by hand"] if end == "resolve" else []))
    assert shop("again") == ("by hand" if end == "resolve" else "again")


def test_a_probe_that_does_not_know_changes_nothing(shop: Shop) -> None:
    """Behaviour 26: the call is refused, and the slow holder can still complete."""
    looked: list[Key] = []

    def probe(key: Key) -> Any:
        looked.append(key)
        return UNKNOWN

    shop.with_policy(in_doubt=probe)
    before = shop.elsewhere(lapsed=True)
    with pytest.raises(InDoubtError):
        shop()
    assert looked == [KEY]
    after = shop.store.get(KEY)
    assert attrs.evolve(after, lease_left=0, expires_in=0) == attrs.evolve(before, lease_left=0, expires_in=0)
    outcome = Idempotency(MemoryStore(), codec=JsonCodec())
    assert outcome.resolve("x", "late")
    stored = outcome.lookup("x")
    assert stored is not None
    assert stored.outcome is not None
    assert shop.store.complete(KEY, owner="elsewhere", outcome=stored.outcome, ttl=60)
    assert shop() == "late"
    assert shop.ran == []


def test_attempts_rise_while_a_record_is_left_and_tokens_always(shop: Shop, kind: str) -> None:
    """Behaviour 27: over release, take-over, expiry, forgetting, and a restart of the store."""
    seen: list[tuple[int, int]] = []

    def note() -> None:
        operation = current_operation()
        seen.append((operation.attempt, operation.token))

    def fail() -> None:
        note()
        raise ConnectionError

    shop.with_policy(ttl=100)
    for _ in "12":
        with pytest.raises(ConnectionError):
            shop(fail)
    shop.elsewhere(lapsed=True)
    shop(note)  # takes over
    shop.clock.advance(200)
    shop(note)  # after expiry
    shop.ask("forget", "o-1")
    shop(note)
    if kind == "sqlite":
        shop.ask("forget", "o-1")
        shop.store.close()
        shop.clock.advance(1)
        with SqliteStore(shop.path, clock=shop.clock) as shop.store:
            shop.with_policy(ttl=100)
            shop(note)
    assert [attempt for attempt, _ in seen] == [1, 2, 4, 1, 1, 1][: len(seen)]
    tokens = [token for _, token in seen]
    assert tokens == sorted(set(tokens))


def test_a_derived_key_is_the_same_on_every_attempt_and_for_nothing_else(shop: Shop) -> None:
    """Behaviour 28: it differs for every name, key and namespace, whatever their texts run together to."""
    derived: list[str] = []

    def derive() -> None:
        derived.append(current_operation().derive("capture"))
        raise ConnectionError

    for _ in "123":
        with pytest.raises(ConnectionError):
            shop(derive)
    assert len(derived) == 3
    assert len(set(derived)) == 1
    assert len(derived[0]) == 40
    assert int(derived[0], 16)

    def of(namespace: str, key: str, name: str) -> str:
        return str(Idempotency(namespace=namespace).run(key, lambda: current_operation().derive(name)))

    assert of("orders", "o-1", "capture") == derived[0]
    texts = ["a", "ab", "b", "a:b", "b:a", "aa", "\x00", "a\x00b"]
    keys = {(namespace, key, name) for namespace in texts for key in texts for name in [*texts, "", "\ud800"]}
    assert len({of(*parts) for parts in keys}) == len(keys)
    assert (
        of("orders", "order-42", "capture") == "74730cfba3594c58d8b7ce9b95befa831698d5ec"
    )  # lasting: stored elsewhere


def test_a_derived_keys_name_is_text() -> None:
    """7 and "7" would be two names that read the same."""
    wrong: Any = 7
    with pytest.raises(TypeError, match="a derived key's name must be a str, not int"):
        Idempotency().run("k", lambda: current_operation().derive(wrong))


# Failures


def test_a_declared_error_replays_and_any_other_frees_the_key(shop: Shop) -> None:
    """Behaviour 29: equal, with its attributes, as another object."""
    shop.with_policy(replay_errors=DeclinedError)
    with pytest.raises(ConnectionError):
        shop(ConnectionError())
    error = DeclinedError(402, reason="no funds")
    raised: list[DeclinedError] = []
    for _ in "123":
        with pytest.raises(DeclinedError) as caught:
            shop(error)
        raised.append(caught.value)
    assert [(one.args, one.reason) for one in raised] == [((402,), "no funds")] * 3
    assert raised[0] is error
    assert len({id(one) for one in raised}) == 3
    assert len(shop.ran) == 2


@pytest.mark.parametrize("value", [threading.Lock(), "x" * 2000], ids=["no codec", "too large"])
def test_a_result_that_cannot_be_kept_is_lost_and_nothing_reruns(shop: Shop, value: Any) -> None:
    """Behaviour 31: its caller has it; duplicates are told, with the key."""
    shop.with_policy(max_result=1000)
    assert shop(value) is value
    for _ in "12":
        with pytest.raises(ResultLostError, match="its outcome was not kept") as caught:
            shop("again")
        assert caught.value.key == KEY
    assert len(shop.ran) == 1


def stored_outcome(shop: Shop) -> bytes:
    """Return the outcome that is kept, and forget the key."""
    shop("paid")
    outcome = shop.store.get(KEY).outcome
    assert shop.store.delete(KEY)
    shop.ran.clear()
    return bytes(outcome)


def put(shop: Shop, outcome: bytes, key: Key = KEY) -> None:
    """Keep this outcome."""
    shop.elsewhere(key=key)
    assert shop.store.complete(key, owner="elsewhere", outcome=outcome, ttl=600)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "newer", "not ours", "empty"])
def test_an_outcome_that_cannot_be_read_is_never_run_over(shop: Shop, damage: str) -> None:
    """Behaviours 35, 38: RecordError with the key; nothing ran, and the record is as it was."""
    good = stored_outcome(shop)
    bad = {
        "truncated": good[:-1],
        "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "newer": b"\xff" + good[1:],
        "not ours": b'{"paid": true}',
        "empty": b"",
    }[damage]
    put(shop, bad)
    before = shop.store.get(KEY)
    for _ in "12":
        with pytest.raises(RecordError) as caught:
            shop("again")
        assert caught.value.key == KEY
    assert not shop.ask("resolve", "o-1", "by hand")
    after = shop.store.get(KEY)
    assert (after.outcome, after.token, after.owner) == (bad, before.token, before.owner)
    assert shop.ran == []


class Trap:
    """Says when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("unpickled",))


def test_a_pickle_in_a_json_store_is_never_unpickled(shop: Shop) -> None:
    """Behaviour 36: whoever wrote it there."""
    json = stored_outcome(shop)
    seal = Signed([b"sixteen bytes ..", b"and another one."])
    other = Idempotency(shop.store, namespace="orders", codec=PickleCodec(), seal=seal)
    other.run("o-1", lambda: "pickled")
    for outcome in (shop.store.get(KEY).outcome, json.replace(b'"paid"', pickle.dumps(Trap())), pickle.dumps(Trap())):
        shop.store.delete(KEY)
        put(shop, outcome)
        with pytest.raises(RecordError):
            shop("again")
    assert shop.ran == []


def test_a_sealed_outcome_that_was_moved_to_another_key_is_refused(shop: Shop) -> None:
    """Behaviour 36: and one that was altered, or not sealed at all."""
    unsealed = stored_outcome(shop)
    shop.with_policy(seal=Signed(b"sixteen bytes .."))
    sealed = stored_outcome(shop)
    put(shop, sealed)
    assert shop("again") == "paid"
    other = Key("orders", "o-2")
    put(shop, sealed, other)
    with pytest.raises(RecordError) as caught:
        shop("again", "o-2")
    assert caught.value.key == other
    for outcome in (unsealed, sealed.replace(b"paid", b"free")):
        shop.store.delete(KEY)
        put(shop, outcome)
        with pytest.raises(RecordError):
            shop("again")
    assert shop.ran == []


def test_a_store_full_of_claims_refuses_and_nothing_ran(shop: Shop) -> None:
    """Behaviours 39, 41: with the key; duplicates of what is kept are answered."""
    shop.store = MemoryStore(max_records=2, clock=shop.clock)
    shop.with_policy()
    shop("paid", "o-2")
    for number in range(3, 5):
        shop.elsewhere(key=Key("orders", f"o-{number}"))
    with pytest.raises(StoreFullError) as caught:
        shop()
    assert caught.value.key == KEY
    assert shop.ran == ["o-2"]
    assert shop.store.evictions == 1
    with pytest.raises(InProgressError):
        shop("again", "o-3")


# Asking for a key


def test_lookup_and_forget(shop: Shop) -> None:
    """The record or None; whether there was one; not under a live claim, unless it is forced."""
    assert shop.ask("lookup", "o-1") is None
    assert shop.ask("forget", "o-1") is False
    shop()
    assert shop.ask("lookup", "o-1").state is State.COMPLETED
    assert shop.ask("forget", "o-1") is True
    shop.elsewhere()
    with pytest.raises(InProgressError, match="force=True") as caught:
        shop.ask("forget", "o-1")
    assert caught.value.key == KEY
    assert shop.ask("lookup", "o-1").owner == "elsewhere"
    assert shop.ask("forget", "o-1", force=True) is True
    assert shop.ask("forget", "o-1", force=True) is False
    shop.elsewhere(lapsed=True)
    assert shop.ask("forget", "o-1") is True
    assert shop("again") == "again"


def test_forget_removes_only_what_it_looked_at(shop: Shop) -> None:
    """Who has claimed the key since then holds it rightly."""
    shop.elsewhere(lapsed=True)
    look = shop.store.get

    def get(key: Key) -> Any:
        record = look(key)
        assert shop.store.claim(KEY, owner="next", fingerprint=None, lease=5, ttl=60).took_over
        return record

    shop.store.get = get
    assert shop.ask("forget", "o-1") is False
    del shop.store.get
    assert shop.ask("lookup", "o-1").owner == "next"


@pytest.mark.parametrize("before", ["absent", "released", "in doubt"])
def test_resolve_gives_the_outcome_and_keeps_the_fingerprint(shop: Shop, before: str) -> None:
    """Behaviour 26: an operator's answer; duplicates get it, with the payload that the call was made with."""
    if before != "absent":
        with pytest.raises(ConnectionError):
            shop.with_policy(in_doubt="rerun" if before == "released" else "raise")
            shop(ConnectionError(), "o-1", 1)
    fingerprint = None if before == "absent" else shop.store.get(KEY).fingerprint
    assert (fingerprint is None) == (before == "absent")
    assert shop.ask("resolve", "o-1", {"by": ("hand",)}) is True
    record = shop.ask("lookup", "o-1")
    assert (record.state, record.fingerprint) == (State.COMPLETED, fingerprint)
    assert record.expires_in == pytest.approx(24 * 3600, abs=60)
    assert shop("again", "o-1", 1) == {"by": ("hand",)}
    if before != "absent":
        with pytest.raises(FingerprintMismatchError):
            shop("again", "o-1", 2)


def test_resolve_changes_no_outcome_and_disturbs_no_live_claim(shop: Shop) -> None:
    """False where there is one, an error where somebody still runs."""
    shop("first")
    before = shop.store.get(KEY)
    assert shop.ask("resolve", "o-1", "other") is False
    after = shop.store.get(KEY)
    assert (after.outcome, after.token) == (before.outcome, before.token)
    shop.ask("forget", "o-1")
    held = shop.elsewhere()
    with pytest.raises(InProgressError) as caught:
        shop.ask("resolve", "o-1", "other")
    assert caught.value.key == KEY
    after = shop.store.get(KEY)
    assert (after.state, after.token, after.owner) == (State.RUNNING, held.token, "elsewhere")


def test_resolve_with_what_cannot_be_kept_is_lost(shop: Shop) -> None:
    """Behaviour 31: it happened, whatever it was."""
    assert shop.ask("resolve", "o-1", threading.Lock()) is True
    with pytest.raises(ResultLostError):
        shop("again")


def test_stats_count_a_guards_calls_and_those_of_its_functions(shop: Shop) -> None:
    """Each guard has its own, on whatever store."""
    placed = shop.guard.idempotent(key="order", namespace="place")(lambda order: order)
    assert (placed("a"), placed("a"), shop(), shop()) == ("a", "a", "paid", "paid")
    assert shop.guard.stats() == Stats(executed=2, replayed=2)
    assert placed.stats() == Stats(executed=1, replayed=1)
    assert Idempotency(shop.store, namespace="orders").stats() == Stats()


def test_on_an_async_store_the_twins_are_awaited() -> None:
    """Of a guard, and of the functions that it decorates."""
    backend = AsyncDictBackend(DictBackend())
    guard = Idempotency(AsyncCasStore(backend), namespace="orders", in_doubt="raise")

    async def place(order: str) -> str:
        if order == "bad":
            raise ConnectionError
        return order

    placed: Any = guard.idempotent(key="order", namespace="place")(place)

    async def main() -> None:
        assert [await guard.run_async("o-1", place, "tea") for _ in "12"] == ["tea", "tea"]
        assert (await guard.lookup_async("o-1")).state is State.COMPLETED
        assert await guard.forget_async("o-1") is True
        assert await guard.forget_async("o-1", force=True) is False
        with pytest.raises(ConnectionError):
            await guard.run_async("o-1", place, "bad")
        assert await guard.resolve_async("o-1", "by hand") is True
        assert await guard.resolve_async("o-1", "again") is False
        assert await guard.run_async("o-1", place, "bad") == "by hand"
        assert [await placed("tea") for _ in "12"] == ["tea", "tea"]
        assert (await placed.lookup("tea")).state is State.COMPLETED
        assert await placed.forget("tea") is True
        assert await placed.lookup("tea") is None

    asyncio.run(main())
    assert guard.stats() == Stats(executed=2, replayed=3, in_doubt=1)
