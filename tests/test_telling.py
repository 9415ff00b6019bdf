"""Events, counts and the log: each outcome once, trouble loudly, and nothing of what was worked on."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo import Event, EventKind, Idempotency, Key, MemoryStore, Stats, idempotent
from idempo._showing import shown
from idempo.hub import hub_of
from idempo.stores.sqlite import SqliteStore
from idempo.telling import Counts, total
from idempo.testing import Call, FakeClock, FlakyStore
from idempo.testing.flaky import When

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEY = Key("orders", "o-1")
DUPLICATES = {EventKind.REPLAYED, EventKind.WAITED, EventKind.REFUSED}
QUIET = {EventKind.EXECUTED, EventKind.RELEASED, EventKind.FAILED}


class DeclinedError(Exception):
    """An outcome of its own."""


class Scene:
    """One key, calls of one colour, and what is told of them."""

    def __init__(
        self, store: Any, colour: str, clock: FakeClock, faults: Any = (), broken: Any = (), **policy: Any
    ) -> None:
        self.told: list[Event] = []
        self.heard = threading.Semaphore(0)
        self.clock = clock
        self.store: Any = FlakyStore(store, faults) if faults else store
        self.guard = Idempotency(self.store, namespace="orders", observers=[*broken, self.hear, *broken], **policy)
        self.colour = colour

    def hear(self, event: Event) -> None:
        """Observe."""
        self.told.append(event)
        self.heard.release()

    def call(self, effect: Callable[[], Any] = lambda: "paid", payload: Any = None) -> None:
        """Call, and do not mind what is raised."""

        async def coroutine() -> Any:
            return effect()

        with suppress(Exception):
            if self.colour == "sync":
                self.guard.run("o-1", effect, payload=payload)
            else:
                asyncio.run(self.guard.run_async("o-1", coroutine, payload=payload))

    def elsewhere(self, lease: float = 60) -> None:
        """Let another process claim the key."""
        assert self.store.claim(KEY, owner="elsewhere", fingerprint=None, lease=lease, ttl=600).acquired


def by_the_call_itself(call: Call) -> When | None:
    """Fail every try of a call to complete; the renewer, which offers the outcome afterwards, gets through."""
    offered = threading.current_thread().name in ("idempo-renewer", "idempo-renewing")
    return "before" if call.method == "complete" and not offered else None


def fail() -> None:
    raise ConnectionError


def decline() -> None:
    raise DeclinedError


def replay(scene: Scene) -> None:
    scene.call()
    scene.call()


def wait(scene: Scene) -> None:
    """The other process completes as soon as the claim was refused, so that the wait ends when it has begun."""
    spare = Idempotency(scene.store, namespace="orders")
    assert spare.resolve("o-1", "paid")
    outcome = scene.store.get(KEY).outcome
    scene.store.delete(KEY)
    scene.elsewhere()
    claim = scene.store.claim

    def first(*args: Any, **options: Any) -> Any:
        scene.store.claim = claim
        answer = claim(*args, **options)
        scene.store.complete(KEY, owner="elsewhere", outcome=outcome, ttl=60)
        return answer

    scene.store.claim = first
    scene.call()
    del scene.store.claim


def refuse(scene: Scene) -> None:
    scene.elsewhere()
    scene.call()


def mismatch(scene: Scene) -> None:
    scene.call(payload=1)
    scene.call(payload=2)


def take_over(scene: Scene) -> None:
    scene.elsewhere(lease=1)
    scene.clock.advance(2)
    scene.call()


def doubt(scene: Scene) -> None:
    scene.call(fail)
    scene.call()


def lose_lease(scene: Scene) -> None:
    def overtaken() -> None:
        assert scene.store.delete(KEY)
        scene.elsewhere()

    scene.call(overtaken)


def lose_result(scene: Scene) -> None:
    scene.call(threading.Lock)
    scene.call()


SCENES: dict[str, tuple[Callable[[Scene], None], dict[str, Any], list[tuple[str, int, str | None]]]] = {
    "executed": (Scene.call, {}, [("executed", 1, None)]),
    "replayed": (replay, {}, [("executed", 1, None), ("replayed", 1, None)]),
    "waited": (wait, {}, [("waited", 1, None), ("replayed", 1, None)]),
    "refused": (refuse, {"wait": 0}, [("refused", 1, "InProgressError")]),
    "mismatched": (mismatch, {}, [("executed", 1, None), ("mismatched", 1, "FingerprintMismatchError")]),
    "released": (lambda scene: scene.call(fail), {}, [("released", 1, "ConnectionError")]),
    "failed": (
        lambda scene: [scene.call(decline), scene.call(decline)],  # type: ignore[func-returns-value, dict-item]
        {"replay_errors": DeclinedError},
        [("failed", 1, "DeclinedError"), ("replayed", 1, None)],
    ),
    "taken over": (take_over, {}, [("taken_over", 2, None), ("executed", 2, None)]),
    "in doubt": (doubt, {"in_doubt": "raise"}, [("in_doubt", 1, "ConnectionError"), ("in_doubt", 1, "InDoubtError")]),
    "lease lost": (lose_lease, {}, [("lease_lost", 1, "LeaseLostError")]),
    "result lost": (lose_result, {}, [("result_lost", 1, None), ("replayed", 1, None)]),
    "store failed at claim": (
        Scene.call,
        {"faults": [("claim", None, "before")]},
        [("store_failed", 0, "StoreError")],
    ),
    "store failed at claim, done without": (
        Scene.call,
        {"faults": [("claim", None, "before")], "store_errors": "run"},
        [("store_failed", 0, "StoreError")],
    ),
    "store failed at complete, and is back": (
        Scene.call,
        {"faults": by_the_call_itself, "lease": 0.2},
        [("store_failed", 1, "StoreError"), ("executed", 1, None)],
    ),
}


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes are offered again without delay."""
    monkeypatch.setattr("idempo.renewal._FIRST_RETRY", 0.001)


@contextmanager
def scene(name: str, kind: str, colour: str, path: Path, **more: Any) -> Iterator[tuple[Scene, Any]]:
    """Make a scene, play it, and give it with the events that are expected of it."""
    play, options, expected = SCENES[name]
    clock = FakeClock()
    with SqliteStore(path / "orders.db", clock=clock) as sqlite:
        store = sqlite if kind == "sqlite" else MemoryStore(clock=clock)
        made = Scene(store, colour, clock, **{"wait": 5, **options, **more})
        play(made)
        for _ in expected:
            assert made.heard.acquire(timeout=20)  # an outcome that is offered again is stored by another thread
        yield made, expected


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("name", SCENES)
def test_each_outcome_is_told_once_with_key_and_attempt(name: str, kind: str, colour: str, tmp_path: Path) -> None:
    """Behaviour 37: observers and counts agree on it; no other event comes with it."""
    with scene(name, kind, colour, tmp_path) as (played, expected):
        found = [(event.kind.value, event.attempt, event.error and type(event.error).__name__) for event in played.told]
        assert found == expected
        assert {event.key for event in played.told} == {KEY}
        counts = {kind.value: sum(event.kind is kind for event in played.told) for kind in EventKind}
        assert played.guard.stats() == Stats(**counts)


@pytest.mark.parametrize("name", [name for name in SCENES if not name.endswith("is back")])
def test_what_was_timed_has_a_duration(name: str, colour: str, tmp_path: Path) -> None:
    """The run of a function, and the wait of a duplicate; nothing else, not even what is stored late."""
    with scene(name, "memory", colour, tmp_path) as (played, _):
        timed = {EventKind.EXECUTED, EventKind.RESULT_LOST, EventKind.WAITED, EventKind.REFUSED}
        for event in played.told:
            assert (event.duration is not None) == (event.kind in timed)
            assert event.duration is None or 0 <= event.duration < 60


@pytest.mark.parametrize("name", SCENES)
def test_the_log_tells_duplicates_at_info_and_trouble_at_warning(
    name: str, colour: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Behaviour 37: each event is one line, with kind, key and attempt; what is as it should be is for debugging."""
    caplog.set_level(logging.DEBUG, "idempo")
    with scene(name, "memory", colour, tmp_path) as (played, _):
        logged = [record for record in caplog.records if record.name == "idempo"][-len(played.told) :]
        for event, record in zip(played.told, logged, strict=True):
            level = logging.INFO if event.kind in DUPLICATES else logging.WARNING
            assert record.levelno == (logging.DEBUG if event.kind in QUIET else level)
            suffix = "" if event.error is None else f": {type(event.error).__name__}"
            assert record.getMessage() == f"{event.kind.value}: orders:o-1 (attempt {event.attempt}){suffix}"


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR])
@pytest.mark.parametrize("name", ["replayed", "mismatched", "refused"])
def test_without_observers_the_log_is_told_what_it_asks_for(
    name: str, level: int, colour: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And everything is counted, whoever listens."""
    caplog.set_level(level, "idempo")
    play, options, expected = SCENES[name]
    made = Scene(MemoryStore(), colour, FakeClock(), **options)
    made.guard = Idempotency(made.store, namespace="orders", **options)
    play(made)
    kinds = [EventKind(kind) for kind, _, _ in expected]
    levels = [logging.DEBUG if k in QUIET else logging.INFO if k in DUPLICATES else logging.WARNING for k in kinds]
    assert [record.levelno for record in caplog.records] == [one for one in levels if one >= level]
    assert sum(getattr(made.guard.stats(), kind.value) for kind in kinds) == len(kinds)


@pytest.mark.parametrize("configured", [False, True])
def test_whoever_configures_no_logging_is_printed_nothing(configured: bool) -> None:
    """A library prints nothing by itself, not even what Python's handler of last resort would: a warning."""
    program = f"""
import logging
from idempo import FingerprintMismatchError, Idempotency

if {configured}:
    logging.basicConfig(format="%(message)s")
guard = Idempotency()
for payload in (1, 2):
    try:
        guard.run("key", list, payload=payload)
    except FingerprintMismatchError:
        print("refused")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "refused\n"
    assert ended.stderr == ("mismatched: default:key (attempt 1): FingerprintMismatchError\n" if configured else "")


@pytest.mark.parametrize("name", SCENES)
def test_an_observer_that_raises_breaks_nothing_and_is_logged(
    name: str, colour: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Behaviour 37: the calls end as they would, the other observers hear of all, and the log of each failure."""

    def broken(event: Event) -> None:
        raise LookupError("what it was working on")

    caplog.set_level(logging.WARNING, "idempo")
    with scene(name, "memory", colour, tmp_path, broken=[broken]) as (played, expected):
        assert [(event.kind.value, event.attempt) for event in played.told] == [one[:2] for one in expected]
    failures = [record for record in caplog.records if "an observer failed" in record.msg]
    assert {record.levelno for record in failures} == {logging.WARNING}
    assert {record.exc_info for record in failures} == {None}
    for event in played.told:
        assert f"an observer failed on {event.kind.value}: LookupError" in [one.getMessage() for one in failures]
    assert "what it was working on" not in caplog.text


def test_what_is_no_observer_is_refused_at_once() -> None:
    """Bad input is told before any effect."""
    ways: list[Any] = [Idempotency, idempotent(len).options, lambda **options: idempotent(**options)(len)]
    for way in ways:
        with pytest.raises(TypeError, match="an observer must be callable, not str"):
            way(observers=["print"])


# Keys in a log


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (Key("orders", "o-1"), "orders:o-1"),
        (Key("orders", "a\nWARNING forged\x1b[2J"), r"orders:a\nWARNING forged\x1b[2J"),
        (Key("orders", "ärger\ud800"), r"orders:\xe4rger\ud800"),
        (Key("orders", "x" * 73), "orders:" + "x" * 73),
        (Key("orders", "x" * 74), "orders:" + "x" * 72 + "…"),
    ],
)
def test_a_key_is_escaped_and_cut(key: Key, text: str) -> None:
    """A client chooses it: it must neither forge a line nor fill the log."""
    assert shown(key) == text


@given(namespace=st.text(max_size=255), value=st.text(st.characters(exclude_categories=()), max_size=255))
def test_any_key_is_one_short_printable_line(namespace: str, value: str) -> None:
    """Whatever its text."""
    text = shown(Key(namespace, value))
    assert len(text) <= 80
    assert text.removesuffix("…").isascii()
    assert text.isprintable()


# What never reaches a log


class _Everything(logging.Handler):
    """Keeps all that a handler could write of a record, its traceback and its arguments included."""

    def __init__(self) -> None:
        super().__init__(0)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record as a file would, and show what else is on it."""
        self.text += f"{logging.Formatter().format(record)} {vars(record)!r}"


@contextmanager
def everything_logged() -> Iterator[_Everything]:
    """Collect what any logger of the process is told, at every level."""
    handler, root, own = _Everything(), logging.getLogger(), logging.getLogger("idempo")
    before = root.level, own.level
    root.addHandler(handler)
    root.setLevel(0)
    own.setLevel(1)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        own.setLevel(before[1])


_ENDS: dict[str, Callable[[str], Any]] = {
    "value": lambda text: {"card": text},
    "lost": lambda text: [text, threading.Lock()],
    "declared": lambda text: DeclinedError(text, {"card": text}),
    "undeclared": ConnectionError,
    "interrupt": KeyboardInterrupt,
}
_FAULTS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "complete", "release", "renew"]),
        st.integers(1, 3),
        st.sampled_from(["before", "after"]),
    ),
    max_size=3,
    unique_by=lambda fault: fault[:2],
)


@given(
    secret=st.text("abcdef0123456789", min_size=12, max_size=20).map("s3cr3t-{}".format),
    ends=st.lists(st.sampled_from(sorted(_ENDS)), min_size=1, max_size=4),
    keys=st.integers(1, 2),
    faults=_FAULTS,
    options=st.fixed_dictionaries(
        {"in_doubt": st.sampled_from(["rerun", "raise"]), "store_errors": st.sampled_from(["raise", "run"])}
    ),
    is_async=st.booleans(),
)
def test_nothing_of_what_is_worked_on_ever_reaches_a_log(
    secret: str, ends: list[str], keys: int, faults: Any, options: Any, is_async: bool
) -> None:
    """Behaviour 37: no payload, result or error text, in any logger's records, tracebacks and arguments included."""

    def broken(event: Event) -> None:
        raise LookupError(secret, event)

    store = FlakyStore(MemoryStore(), faults)
    guard = Idempotency(
        store, namespace="orders", observers=[broken], replay_errors=DeclinedError, wait=0, lease=0.01, **options
    )

    def charge(card: str, end: str, **details: str) -> Any:
        made = _ENDS[end](card)
        if isinstance(made, BaseException):
            raise made
        return made

    async def charge_async(card: str, end: str, **details: str) -> Any:
        return charge(card, end, **details)

    with everything_logged() as logged:
        for number, end in enumerate(ends):
            key = f"o-{number % keys}"
            with suppress(Exception, KeyboardInterrupt):
                if is_async:
                    asyncio.run(guard.run_async(key, charge_async, secret, end, note=secret))
                else:
                    guard.run(key, charge, secret, end, note=secret)
        for flight in list(hub_of(store).flights._table.values()):
            hub_of(store).withdraw(flight)  # or what is stored later would be told in the midst of another test
    assert "an observer failed on" in logged.text
    assert secret not in logged.text


# Counts


def test_counts_are_exact_whoever_counts_and_reads_at_once() -> None:
    """Behaviour 37: no event is lost or counted twice."""
    interval = sys.getswitchinterval()
    counts, others = Counts(), Counts()
    idle: list[int] = []  # what was read, by all threads at once, while nothing was counted
    others.add[EventKind.EXECUTED]()
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait(20)
        for _ in range(500):
            counts.add[EventKind.REPLAYED]()
            idle.append(others.read()["executed"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    sys.setswitchinterval(1e-6)  # threads take turns within single lines
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        sys.setswitchinterval(interval)
    assert set(idle) == {1}
    others.add[EventKind.REPLAYED]()
    assert total([counts]) == Stats(replayed=2000)
    assert total([counts, others]) == Stats(replayed=2001, executed=1)
    assert total([]) == Stats()
