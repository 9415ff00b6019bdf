"""CasStore, beyond what every store does: whose clock counts, answers that are lost, what is watched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias
from zlib import crc32

import pytest

from idempo.errors import RecordError, StoreError, StoreFullError
from idempo.protocols import AsyncStore, Store
from idempo.records import Key, State
from idempo.stores.cas import AsyncCasBackend, AsyncCasStore, CasBackend, CasStore
from idempo.testing import FakeClock
from idempo.testing.backend import AsyncDictBackend, DictBackend
from idempo.testing.bridge import BlockingStore, LoopThread

KEY = Key("billing", "order-42")
LEASE = 15.0


class Line:
    """What lies between a client and its server: it counts, and fails on demand, before or after the server acts."""

    def __init__(self, server: DictBackend) -> None:
        self.server = server
        self.lasting_revisions = server.lasting_revisions
        self.calls: list[str] = []
        self.lost: set[str] = set()  # methods that the server applies, and answers as if sent twice
        self.down: set[str] = set()
        self.error: Exception = TimeoutError("no answer")
        self.mute: set[str] = set()  # methods that the server applies, and whose answer does not arrive
        self.meanwhile: Callable[[], object] | None = None  # what another does between a read and the next write

    def _call(self, method: str, *args: Any) -> Any:
        self.calls.append(method)
        if method in self.down:
            raise self.error
        if method != "get" and self.meanwhile is not None:
            self.meanwhile()
        answer = getattr(self.server, method)(*args)
        if method in self.lost:
            self.lost.remove(method)
            return getattr(self.server, method)(*args)
        if method in self.mute:
            self.mute.remove(method)
            raise TimeoutError("no answer")
        return answer

    def get(self, key: str) -> Any:
        return self._call("get", key)

    def add(self, key: str, value: bytes, ttl: float) -> Any:
        return self._call("add", key, value, ttl)

    def compare_and_swap(self, key: str, value: bytes, revision: int, ttl: float) -> Any:
        return self._call("compare_and_swap", key, value, revision, ttl)

    def delete(self, key: str, revision: int | None = None) -> Any:
        return self._call("delete", key, revision)


class AsyncLine:
    """`Line`, in coroutines."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.lasting_revisions = line.lasting_revisions

    async def get(self, key: str) -> Any:
        return self.line.get(key)

    async def add(self, key: str, value: bytes, ttl: float) -> Any:
        return self.line.add(key, value, ttl)

    async def compare_and_swap(self, key: str, value: bytes, revision: int, ttl: float) -> Any:
        return self.line.compare_and_swap(key, value, revision, ttl)

    async def delete(self, key: str, revision: int | None = None) -> Any:
        return self.line.delete(key, revision)


MakeStore: TypeAlias = Callable[..., Store]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> DictBackend:
    return DictBackend(clock)


@pytest.fixture
def line(server: DictBackend) -> Line:
    return Line(server)


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Iterator[MakeStore]:
    """Make a store, of either kind, called alike: one set of tests for both halves."""
    if request.param == "sync":
        yield CasStore
        return
    with LoopThread() as loop:
        yield lambda line, **options: BlockingStore(AsyncCasStore(AsyncLine(line), **options), loop)


@pytest.fixture
def store(make: MakeStore, line: Line, clock: FakeClock) -> Store:
    return make(line, clock=clock, wall_clock=clock)


def claim(store: Store, owner: str = "owner-a", key: Key = KEY, *, take_over: bool | str = True) -> Any:
    return store.claim(key, owner=owner, fingerprint=b"\x01payload", lease=LEASE, ttl=1000, take_over=take_over)


def complete(store: Store, owner: str = "owner-a", outcome: bytes = b"outcome") -> bool:
    return store.complete(KEY, owner=owner, outcome=outcome, ttl=1000)


# Whose clock counts


def test_a_lease_is_over_once_it_was_watched_for_its_length(
    make: MakeStore, server: DictBackend, clock: FakeClock
) -> None:
    """Behaviours 21, 45: who comes later has watched for less, however long the holder has been dead."""
    holder, late = make(Line(server), clock=clock), make(Line(server), clock=clock)
    claim(holder)
    clock.advance(LEASE + 1)
    first = claim(late, "owner-b")
    assert (first.acquired, first.record.lease_left) == (False, LEASE)
    clock.advance(LEASE - 1)
    assert not claim(late, "owner-b").acquired
    clock.advance(1)
    taken = claim(late, "owner-b")
    assert (taken.acquired, taken.took_over, taken.record.attempt) == (True, True, 2)


def test_a_renewal_begins_the_watch_anew(make: MakeStore, server: DictBackend, clock: FakeClock) -> None:
    """Behaviours 20, 21: a live lease is never taken, though one has looked at it for longer than it is."""
    holder, other = make(Line(server), clock=clock), make(Line(server), clock=clock)
    claim(holder)
    for _ in range(3):
        assert not claim(other, "owner-b").acquired
        clock.advance(LEASE - 1)
        assert holder.renew(KEY, owner="owner-a", lease=LEASE, ttl=1000)
    assert not claim(other, "owner-b").acquired
    clock.advance(LEASE)
    assert claim(other, "owner-b").took_over


def test_looking_is_watching(make: MakeStore, server: DictBackend, clock: FakeClock) -> None:
    """A waiter that only reads can take over in the end."""
    holder, other = make(Line(server), clock=clock), make(Line(server), clock=clock)
    claim(holder)
    assert other.get(KEY) is not None
    clock.advance(LEASE)
    record = other.get(KEY)
    assert record is not None
    assert record.lease_left == 0
    assert claim(other, "owner-b").acquired


def test_a_slow_answer_does_not_undo_what_was_seen_meanwhile(server: DictBackend, clock: FakeClock) -> None:
    """Behaviour 21: of two reads of one client the older may arrive last; the newer revision goes on being watched."""
    holder = CasStore(server, clock=clock, wall_clock=clock)
    holder.claim(KEY, owner="owner-a", fingerprint=None, lease=LEASE, ttl=100)
    line = Line(server)
    store = CasStore(line, clock=clock, wall_clock=clock)
    plain_get = line.get

    def overtaken(name: str) -> Any:
        line.get = plain_get  # type: ignore[method-assign]
        old = plain_get(name)
        assert holder.renew(KEY, owner="owner-a", lease=LEASE, ttl=100)
        store.get(KEY)
        clock.advance(LEASE - 1)
        return old

    line.get = overtaken  # type: ignore[method-assign]
    store.get(KEY)
    clock.advance(1)
    assert claim(store, "owner-b").took_over


def test_its_twin_is_not_misled_by_a_slow_answer_either(server: DictBackend, clock: FakeClock) -> None:
    """Behaviour 21: the same of `AsyncCasStore`, where every read can be overtaken by another task's."""

    async def scenario() -> bool:
        holder = CasStore(server, clock=clock, wall_clock=clock)
        holder.claim(KEY, owner="owner-a", fingerprint=None, lease=LEASE, ttl=100)
        line = AsyncLine(Line(server))
        store = AsyncCasStore(line, clock=clock, wall_clock=clock)
        plain_get = line.get

        async def overtaken(name: str) -> Any:
            line.get = plain_get  # type: ignore[method-assign]
            old = await plain_get(name)
            assert holder.renew(KEY, owner="owner-a", lease=LEASE, ttl=100)
            await store.get(KEY)
            clock.advance(LEASE - 1)
            return old

        line.get = overtaken  # type: ignore[method-assign]
        await store.get(KEY)
        clock.advance(1)
        return (await store.claim(KEY, owner="owner-b", fingerprint=None, lease=LEASE, ttl=100)).took_over

    assert asyncio.run(scenario())


def test_no_clients_clock_matters(make: MakeStore, server: DictBackend, clock: FakeClock) -> None:
    """Behaviour 45: one is a day behind, one a day ahead; each measures only how long it has watched."""
    behind, ahead = FakeClock(1.0), FakeClock(1e9 + 86400)
    holder = make(Line(server), clock=behind, wall_clock=behind)
    other = make(Line(server), clock=ahead, wall_clock=ahead)
    claim(holder)
    refused = claim(other, "owner-b")
    assert (refused.acquired, refused.record.lease_left, refused.record.expires_in) == (False, LEASE, LEASE + 1000)
    for each in (clock, behind, ahead):
        each.advance(1)
    assert not claim(other, "owner-b").acquired
    assert complete(holder)
    assert claim(other, "owner-b").record.outcome == b"outcome"


def test_a_lease_of_nothing_is_doubt_at_once_to_everybody(
    make: MakeStore, server: DictBackend, clock: FakeClock
) -> None:
    """Behaviour 26: the holder itself said so; nothing need be watched."""
    holder, other = make(Line(server), clock=clock), make(Line(server), clock=clock)
    claim(holder)
    holder.renew(KEY, owner="owner-a", lease=0, ttl=1000)
    assert claim(other, "owner-b").took_over


def test_a_dead_owners_watch_is_not_the_next_ones(make: MakeStore, server: DictBackend, clock: FakeClock) -> None:
    """Behaviour 21: of many who watched, one takes over, and the others watch him from the beginning."""
    holder, *others = (make(Line(server), clock=clock) for _ in range(4))
    claim(holder)
    for number, other in enumerate(others):
        claim(other, f"other-{number}")
    clock.advance(LEASE)
    taken = [claim(other, f"other-{number}").acquired for number, other in enumerate(others)]
    assert taken == [True, False, False]
    assert complete(others[0], "other-0")
    assert not complete(holder)


def test_what_is_watched_is_bounded(line: Line, clock: FakeClock) -> None:
    """And what is forgotten is watched anew: later, never sooner."""
    other = CasStore(line.server, clock=clock, max_watched=2)
    store = CasStore(line, clock=clock)
    keys = [Key("billing", str(number)) for number in range(3)]
    for key in keys:
        claim(store, key=key)
        assert not claim(other, "owner-b", key).acquired
    assert len(other._book) == 2
    clock.advance(LEASE)
    assert not claim(other, "owner-b", keys[0]).acquired
    assert claim(other, "owner-b", keys[2]).acquired
    assert len(other._book) == 2


def test_what_is_over_is_watched_no_more(store: Store, line: Line, clock: FakeClock) -> None:
    """Completed, released, deleted, expired: a store in long use keeps nothing of them."""
    book = CasStore(line, clock=clock)
    for end in (
        lambda key: book.complete(key, owner="owner-a", outcome=b"", ttl=1),
        lambda key: book.release(key, owner="owner-a", ttl=1),
        book.delete,
        lambda key: (line.server.values.clear(), book.get(key)),
        lambda key: (store.complete(key, owner="owner-a", outcome=b"", ttl=1), book.get(key)),
    ):
        key = Key("billing", str(id(end)))
        claim(book, key=key)
        assert len(book._book) == 1
        end(key)
        assert len(book._book) == 0


# Answers that are lost


def test_a_claim_that_was_sent_twice_is_acquired(store: Store, line: Line) -> None:
    """Behaviour 34: the client library repeats it, the server says "there is one": it is ours."""
    line.lost.add("add")
    claimed = claim(store)
    assert (claimed.acquired, claimed.record.attempt, claimed.record.owner) == (True, 1, "owner-a")
    assert claimed.record.token == 1
    assert complete(store)


def test_a_take_over_that_was_sent_twice_is_one(store: Store, line: Line, clock: FakeClock) -> None:
    """Behaviour 34: took_over, attempt and token are those of the first that arrived."""
    claim(store)
    clock.advance(LEASE)
    line.lost.add("compare_and_swap")
    claimed = claim(store, "owner-b")
    assert (claimed.acquired, claimed.took_over, claimed.record.attempt) == (True, True, 2)
    record = store.get(KEY)
    assert record is not None
    assert record.token == claimed.record.token == 2


@pytest.mark.parametrize(
    "act",
    [
        complete,
        lambda store: store.release(KEY, owner="owner-a", ttl=9),
        lambda store: store.renew(KEY, owner="owner-a", lease=LEASE, ttl=9),
    ],
    ids=["complete", "release", "renew"],
)
def test_a_write_that_was_sent_twice_is_true(store: Store, line: Line, act: Callable[[Store], bool]) -> None:
    """Behaviour 34: and no different from one that was sent once."""
    claim(store)
    line.lost.add("compare_and_swap")
    assert act(store) is True
    assert line.lost == set()


def test_a_renewal_after_one_whose_answer_was_lost_is_written(
    make: MakeStore, server: DictBackend, clock: FakeClock
) -> None:
    """Behaviours 21, 34: others watch the first since it arrived; only a write gives the second its full lease."""
    line = Line(server)
    holder, other = make(line, clock=clock), make(Line(server), clock=clock)
    claim(holder)
    line.mute.add("compare_and_swap")
    with pytest.raises(StoreError):
        holder.renew(KEY, owner="owner-a", lease=LEASE, ttl=1000)
    assert not claim(other, "owner-b").acquired
    clock.advance(LEASE - 1)
    assert holder.renew(KEY, owner="owner-a", lease=LEASE, ttl=1000)
    clock.advance(LEASE - 1)
    assert not claim(other, "owner-b").acquired


def test_a_record_without_the_number_of_its_write_is_read(store: Store, server: DictBackend) -> None:
    """Behaviour 35: what was written before each write had one stays readable."""
    claim(store)
    ((name, (value, revision, expires)),) = server.values.items()
    head, body = value[:7], value[11:]
    line, _, outcome = body.partition(b"\n")
    fields = json.loads(line)
    del fields["write"]
    body = json.dumps(fields).encode() + b"\n" + outcome
    server.values[name] = (head + crc32(body).to_bytes(4, "big") + body, revision, expires)
    record = store.get(KEY)
    assert record is not None
    assert (record.state, record.owner) == (State.RUNNING, "owner-a")
    assert complete(store)


def test_a_release_before_its_claim_that_was_sent_twice_is_false(store: Store, line: Line) -> None:
    """Behaviours 22, 34: and still refuses the claim that comes late."""
    line.lost.add("add")
    assert store.release(KEY, owner="owner-a", ttl=9) is False
    assert store.release(KEY, owner="owner-a", ttl=9) is False
    assert not claim(store).acquired
    assert claim(store, "owner-b").record.attempt == 1


def test_who_finds_it_deleted_meanwhile_has_not_removed_it(store: Store, line: Line) -> None:
    """Of many deletes one removed the record; whose answer was lost is not known to be that one."""
    claim(store)
    line.meanwhile = lambda: CasStore(line.server).delete(KEY)
    assert store.delete(KEY) is False
    assert store.get(KEY) is None


def test_a_delete_that_lost_a_race_looks_again(store: Store, line: Line) -> None:
    """It removes what it is asked to, or nothing: the owner's record, not the next one's."""
    claim(store)
    other = CasStore(line.server)

    def others() -> None:
        line.meanwhile = None
        other.delete(KEY)
        claim(other, "owner-b")

    line.meanwhile = others
    assert store.delete(KEY, owner="owner-a") is False
    record = store.get(KEY)
    assert record is not None
    assert record.owner == "owner-b"


@pytest.mark.parametrize("method", ["get", "add", "compare_and_swap", "delete"])
def test_a_server_that_does_not_answer_is_a_store_error(store: Store, line: Line, method: str) -> None:
    """Behaviour 32: whatever the client library calls it; the key is on it, and "absent" is never said."""
    steps: dict[str, Callable[[], object]] = {
        "get": lambda: store.get(KEY),
        "add": lambda: claim(store, key=Key("billing", "another")),
        "compare_and_swap": lambda: complete(store),
        "delete": lambda: store.delete(KEY),
    }
    claim(store)
    line.down.add(method)
    with pytest.raises(StoreError, match="TimeoutError: no answer") as caught:
        steps[method]()
    assert caught.value.key is not None
    line.down.clear()
    steps[method]()


@pytest.mark.parametrize("method", ["get", "add", "compare_and_swap", "delete"])
@pytest.mark.parametrize("kind", [StoreError, StoreFullError])
def test_a_store_error_of_the_backend_names_the_key(
    store: Store, line: Line, method: str, kind: type[StoreError]
) -> None:
    """Behaviour 32: the key that was asked for, also where one error ends the calls of several; and its class stays."""
    other = Key("billing", "another")
    steps: dict[str, Callable[[Key], object]] = {
        "get": store.get,
        "add": lambda key: claim(store, key=Key("billing", f"new {key.value}")),
        "compare_and_swap": lambda key: store.renew(key, owner="owner-a", lease=LEASE, ttl=60),
        "delete": store.delete,
    }
    claim(store)
    claim(store, key=other)
    line.down.add(method)
    line.error = kind("no connection")
    for key in (KEY, other):
        with pytest.raises(kind, match="no connection") as caught:
            steps[method](key)
        assert type(caught.value) is kind
        assert caught.value.key is not None
        assert caught.value.key.value.endswith(key.value)
        assert caught.value.__cause__ is line.error
    assert line.error.key is None
    line.error = kind("no connection", key=Key("theirs", "k"))
    with pytest.raises(kind) as caught:
        steps[method](KEY)
    assert caught.value.key == Key("theirs", "k")


def test_a_write_that_lost_a_race_decides_anew(store: Store, line: Line) -> None:
    """Behaviour 21: by what stands then."""
    other = CasStore(line.server)

    def others() -> None:
        line.meanwhile = None
        claim(other, "owner-b")
        complete(other, "owner-b")

    line.meanwhile = others
    claimed = claim(store)
    assert (claimed.acquired, claimed.record.outcome) == (False, b"outcome")


def test_who_is_always_overtaken_gives_up(store: Store, line: Line) -> None:
    """Behaviour 51: a StoreError after a bounded number of rounds."""
    claim(store)
    other = CasStore(line.server)
    line.meanwhile = lambda: other.renew(KEY, owner="owner-a", lease=line.server._revision + 60, ttl=1000)
    with pytest.raises(StoreError, match="100 times"):
        complete(store)
    with pytest.raises(StoreError, match="100 times"):
        store.delete(KEY)


# Round trips, tokens, records


def test_round_trips(store: Store, line: Line, make: MakeStore, clock: FakeClock) -> None:
    """Behaviour 46: a first call is get, add, and one compare-and-swap; a duplicate one get."""

    def calls(act: Callable[[], object]) -> list[str]:
        line.calls.clear()
        act()
        return list(line.calls)

    assert calls(lambda: claim(store)) == ["get", "add"]
    assert calls(lambda: store.renew(KEY, owner="owner-a", lease=LEASE, ttl=1000)) == ["compare_and_swap"]
    assert calls(lambda: complete(store)) == ["compare_and_swap"]
    assert calls(lambda: claim(store, "owner-b")) == ["get"]
    assert calls(lambda: complete(store)) == ["get"]
    assert calls(lambda: store.delete(KEY)) == ["get", "delete"]
    claim(store)
    other = make(line, clock=clock)
    assert calls(lambda: complete(other)) == ["get", "compare_and_swap"]


def test_a_claim_of_ones_own_that_is_gone_is_noticed(store: Store, line: Line) -> None:
    """Behaviours 22, 47: the read that was spared is made up for."""
    claim(store)
    line.server.values.clear()
    assert complete(store) is False
    claim(store)
    other = CasStore(line.server)
    other.delete(KEY)
    claim(other, "owner-b")
    assert complete(store) is False
    assert complete(store, "owner-b") is True


def test_lasting_revisions_are_the_tokens(store: Store, line: Line) -> None:
    """Behaviour 27: greater for each later claim, over deletion too; one claim keeps its own."""
    first = claim(store).record
    store.renew(KEY, owner="owner-a", lease=LEASE, ttl=1000)
    assert claim(store).record.token == first.token
    complete(store)
    record = store.get(KEY)
    assert record is not None
    assert record.token == first.token
    store.delete(KEY)
    second = claim(store, "owner-b").record
    assert second.token > first.token
    read = CasStore(line.server).get(KEY)
    assert read is not None
    assert read.token == second.token


def test_without_lasting_revisions_tokens_rise_with_a_clock(make: MakeStore, clock: FakeClock) -> None:
    """Behaviour 27: the previous one plus one where the clock stands, or runs back."""
    wall = FakeClock(1000.0)
    store = make(Line(DictBackend(clock, lasting_revisions=False)), clock=clock, wall_clock=wall)
    first = claim(store).record.token
    assert first == 1_000_000_000
    store.release(KEY, owner="owner-a", ttl=9)
    assert claim(store, "owner-b").record.token == first + 1
    store.delete(KEY)
    wall.advance(1)
    assert claim(store).record.token == first + 1_000_000


def test_a_record_is_bound_to_its_key(store: Store, line: Line) -> None:
    """Behaviour 35: one that was copied to another key is not that key's."""
    claim(store)
    complete(store)
    other = Key("billing", "order-43")
    claim(store, key=other)
    mine, others = list(line.server.values)
    line.server.values[others] = line.server.values[mine]
    with pytest.raises(RecordError, match="one of"):
        store.get(other)
    with pytest.raises(RecordError, match="one of"):
        store.delete(other, owner="owner-a")
    assert store.delete(other)
    assert store.get(other) is None
    assert store.get(KEY) is not None


def test_any_byte_that_changed_is_noticed(server: DictBackend, clock: FakeClock) -> None:
    """Behaviour 35: wherever in the record it is."""
    store = CasStore(server, clock=clock)
    claim(store)
    complete(store, outcome=b"x" * 200)
    ((name, (value, revision, expires)),) = server.values.items()
    assert len(value) > 300
    for position in range(len(value)):
        damaged = value[:position] + bytes([value[position] ^ 4]) + value[position + 1 :]
        server.values[name] = (damaged, revision, expires)
        with pytest.raises(RecordError):
            claim(store, "owner-b")
        assert server.values[name][0] == damaged


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not written by idempo"),
        (b"idempo", "not written by idempo"),
        (b"idempo\x07???", "version 7"),
        (b"{}", "not"),
    ],
)
def test_what_is_not_ours_says_so(store: Store, line: Line, data: bytes, words: str) -> None:
    """Behaviour 35: and a newer version by its number."""
    claim(store)
    (name,) = line.server.values
    line.server.values[name] = (data, 7, 1e12)
    with pytest.raises(RecordError, match=words) as caught:
        claim(store, "owner-b")
    assert caught.value.key == KEY


def test_the_servers_keys_are_plain_and_short(server: DictBackend) -> None:
    """Memcached takes 250 bytes without spaces, NATS letters, digits and some signs; every text must do."""
    store = CasStore(server, prefix="app.")
    keys = [Key("n", "\ud800 \n\0" + "🔑" * 250), Key("n1", ":2"), Key("n", "1:2"), Key("n1:", "2")]
    for number, key in enumerate(keys):
        assert store.claim(key, owner=str(number), fingerprint=None, lease=9, ttl=9).acquired
    assert len(server.values) == 4
    assert all(len(name) == 68 and name.startswith("app.") and name.isascii() for name in server.values)
    record = store.get(keys[0])
    assert record is not None
    assert (record.state, record.fingerprint) == (State.RUNNING, None)


# Making one


def test_a_backend_is_looked_at_when_the_store_is_made(server: DictBackend) -> None:
    """One that lacks a method, or has the other kind, would fail at the first call."""
    line: Any = Line(server)
    backend: Any = AsyncLine(line)
    assert [isinstance(each, CasBackend) for each in (server, line)] == [True, True]
    assert [isinstance(each, AsyncCasBackend) for each in (backend,)] == [True]
    with pytest.raises(TypeError, match="four methods of CasBackend"):
        CasStore({})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="must not be coroutine functions"):
        CasStore(backend)
    with pytest.raises(TypeError, match="four methods of AsyncCasBackend"):
        AsyncCasStore({})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="must be coroutine functions"):
        AsyncCasStore(line)


def test_options_are_checked_when_the_store_is_made(server: DictBackend) -> None:
    """A typed error says what was wrong."""
    options: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"prefix": b"x"}, TypeError, "prefix must be a text"),
        ({"max_watched": 0}, ValueError, "max_watched must be at least 1"),
        ({"max_watched": 1.5}, TypeError, "max_watched must be a whole number, not float"),
        ({"max_watched": True}, TypeError, "max_watched must be a whole number, not bool"),
        ({"clock": 3}, TypeError, "clock must be a function that gives seconds, not int"),
        ({"wall_clock": 3}, TypeError, "wall_clock must be a function that gives seconds, not int"),
    ]
    for wrong, error, words in options:
        with pytest.raises(error, match=words):
            CasStore(server, **wrong)


def test_it_says_of_itself_what_its_backend_says(server: DictBackend) -> None:
    """A dict never waits and is not shared; a server does and is."""
    assert (CasStore(server).blocking, CasStore(server).shared) == (False, False)
    line = Line(server)
    assert (CasStore(line).blocking, CasStore(line).shared) == (True, True)
    store = AsyncCasStore(AsyncLine(line))
    assert isinstance(store, AsyncStore)
    assert store.shared is True


def test_the_dict_is_a_backend_that_forgets(server: DictBackend, clock: FakeClock) -> None:
    """Revisions rise over deletion and expiry, and a delete is for the revision that it names."""
    first = server.add("key", b"value", 10)
    assert first is not None
    assert server.delete("key", first + 1) is False
    assert server.compare_and_swap("key", b"other", first + 1, 10) is None
    clock.advance(10)
    assert server.get("key") is None
    assert server.delete("key") is False
    second = server.add("key", b"value", 10)
    assert second is not None
    assert second > first
    assert server.compare_and_swap("key", b"other", second, 10) == second + 1
    assert server.delete("key") is True


def test_they_show_their_backend_and_prefix_and_no_more() -> None:
    """A backend's own repr may tell addresses."""
    backend = DictBackend()
    assert repr(CasStore(backend, prefix="shop.")) == "CasStore(<DictBackend>, prefix='shop.')"
    shown = repr(AsyncCasStore(AsyncDictBackend(backend), prefix="shop."))
    assert shown == "AsyncCasStore(<AsyncDictBackend>, prefix='shop.')"
