"""RedisStore and AsyncRedisStore beside the contract: what they refuse, what they store, how they read it."""

from __future__ import annotations

import asyncio
import logging
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha1, sha256
from typing import Any

import pytest
import redis

from idempo import Idempotency, RecordError, StoreError, StoreFullError
from idempo.records import Key, Record, State
from idempo.stores._redis_clients import judge
from idempo.stores._redis_records import Names, microseconds, translated
from idempo.stores._redis_subscriptions import Subscriptions, Watcher
from idempo.stores.redis import AsyncRedisStore, RedisStore
from tests.redis_support import PATIENCE, claimed, key, new_prefix


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def store(client: redis.Redis) -> Iterator[RedisStore]:
    with RedisStore(client, prefix=new_prefix()) as store:
        yield store


class TestWhatIsRefused:
    """Bad input: a typed error, when the store is made, and no I/O."""

    @pytest.mark.parametrize(
        ("client", "message"),
        [
            (redis.Redis, "client is the class Redis: make one of it"),
            ("redis://localhost", "not a URL"),
            (42, "must be a Redis or Valkey client, not int"),
            (redis.Redis().pipeline(), "not a pipeline"),
            (redis.asyncio.Redis(), "with this one use AsyncRedisStore"),
        ],
    )
    def test_no_client(self, client: Any, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            RedisStore(client)

    def test_a_plain_client_for_coroutines(self) -> None:
        with pytest.raises(TypeError, match="with this one use RedisStore"):
            AsyncRedisStore(redis.Redis())

    @pytest.mark.parametrize("prefix", ["", "x" * 101, "é:", "a\nb", "\0"])
    def test_a_prefix_that_is_none(self, prefix: str) -> None:
        with pytest.raises(ValueError, match="prefix must be 1 to 100 printable ASCII"):
            RedisStore(redis.Redis(), prefix=prefix)

    def test_a_prefix_that_is_no_text(self) -> None:
        with pytest.raises(TypeError, match="prefix must be a text, not bytes"):
            RedisStore(redis.Redis(), prefix=b"idempo:")  # type: ignore[arg-type]

    def test_an_option_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="eviction must be one of refuse, warn, allow, not 'ignore'"):
            RedisStore(redis.Redis(), eviction="ignore")  # type: ignore[arg-type]

    def test_making_a_store_reaches_for_no_server(self) -> None:
        store = RedisStore(redis.Redis(port=1, password="secret"), prefix="a:")
        assert repr(store) == "RedisStore(Redis, prefix='a:')"
        assert store.prefix == "a:"


def write_by_hand(client: redis.Redis, prefix: str, value: bytes, *, left: float) -> None:
    """Write a record as it is described, with so many seconds left of its life, and never to be removed."""
    name = prefix.encode()
    name += sha256(b"billing").hexdigest()[:32].encode() + b":" + sha256(b"order-42").hexdigest()[:32].encode()
    seconds, _ = client.time()
    rest = struct.pack(">cIddd", b"C", 3, 1.7e15, 0.0, (seconds + left) * 1e6)
    rest += struct.pack(">IIIII", 5, 3, 7, 8, 4 + len(value)) + b"owner=\x01fbillingorder-42"
    outcome = struct.pack(">I", zlib.crc32(value)) + value
    client.set(name, b"i1" + sha1(name + rest).hexdigest().encode() + rest + outcome)


def test_a_record_that_the_server_has_not_removed_yet_is_over_nevertheless(
    client: redis.Redis, store: RedisStore
) -> None:
    """Behaviours 8, 27, 52: its own time counts; what is left of it is the token, which the next one's is above."""
    write_by_hand(client, store.prefix, b"outcome", left=-1)
    named = Key("billing", "order-42")
    assert store.get(named) is None
    assert list(store.scan("billing")) == []
    assert not store.delete(named)
    record = claimed(store, named).record
    assert record.attempt == 1
    assert record.token > 1_700_000_000_000_000


def test_a_record_of_format_1_is_read_as_long_as_that_is_known(client: redis.Redis, store: RedisStore) -> None:
    """What is stored stays readable: this is how the format is described, and a record made by hand."""
    named, value = Key("billing", "order-42"), b"outcome"
    write_by_hand(client, store.prefix, value, left=60)
    record = store.get(named)
    assert record is not None
    expected = Record(State.COMPLETED, b"\x01f", 3, 1_700_000_000_000_000, "owner", value, None, record.expires_in)
    assert record == expected
    assert 58 < record.expires_in <= 60
    assert next(iter(store.scan("billing")))[0] == named


@pytest.mark.parametrize("what", ["outcome", "every bit"])
def test_a_bit_that_has_changed_is_found(client: redis.Redis, store: RedisStore, what: str) -> None:
    """Behaviour 35: wherever it is; nothing runs, and the record is left as it is."""
    claimed(store, key())
    store.complete(key(), owner="owner-a", outcome=b"outcome", ttl=60)
    name = store._names.of(key())
    kept = client.get(name)
    assert kept
    guard = Idempotency(store, namespace="redis")
    bits = range(8 * (len(kept) - 7), 8 * len(kept), 5) if what == "outcome" else range(0, 8 * len(kept), 11)
    for bit in bits:
        damaged = bytearray(kept)
        damaged[bit // 8] ^= 1 << bit % 8
        client.set(name, bytes(damaged), keepttl=True)
        for ask in (store.get, lambda key: claimed(store, key)):
            with pytest.raises(RecordError) as caught:
                ask(key())
            assert caught.value.key == key()
        with pytest.raises(RecordError):
            guard.run("order-42", pytest.fail)
        assert client.get(name) == damaged


def test_a_record_that_was_moved_to_another_key_is_none_of_it(client: redis.Redis, store: RedisStore) -> None:
    """Behaviour 35: its checksum is over its name, too."""
    claimed(store, key())
    client.rename(store._names.of(key()), store._names.of(key("other")))
    with pytest.raises(RecordError):
        store.get(key("other"))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (b"", "not written by idempo"),
        (b"hello", "not written by idempo"),
        (b"i1", "damaged"),
        (b"i1" + bytes(1000), "damaged"),
        (b"i2 whatever", "format 2, and this idempo reads format 1"),
    ],
)
def test_what_is_not_ours_is_said_to_be(client: redis.Redis, store: RedisStore, kept: bytes, message: str) -> None:
    """Behaviour 35: with what is the matter with it."""
    client.set(store._names.of(key()), kept)
    with pytest.raises(RecordError, match=message):
        claimed(store, key())
    assert client.get(store._names.of(key())) == kept
    assert store.delete(key())


def test_who_waits_is_woken_when_a_damaged_record_is_removed(client: redis.Redis, store: RedisStore) -> None:
    """Behaviours 13, 35: by somebody who has looked at it."""
    client.hset(store._names.of(key()), "a", "b")
    woken = threading.Event()
    with store.watch(key(), woken.set):
        assert store.delete(key())
        assert woken.wait(PATIENCE)


def test_scan_says_what_it_cannot_read_and_purge_removes_it(client: redis.Redis, store: RedisStore) -> None:
    """Behaviours 35, 52: a foreign hash under one of our names, too."""
    for number in range(3):
        claimed(store, key(f"order-{number}"))
    name = store._names.of(key("order-1"))
    client.delete(name)
    client.hset(name, "a", "b")
    with pytest.raises(RecordError):
        list(store.scan("redis"))
    assert store.purge("redis") == 3
    assert list(store.scan("redis")) == []


def test_many_records_are_scanned_and_purged_in_batches(store: RedisStore) -> None:
    """Behaviour 52: some of them may be shown twice by the server, and are not by us."""
    for number in range(450):
        claimed(store, key(f"order-{number}"))
    assert len(list(store.scan("redis"))) == len(dict(store.scan("redis"))) == 450
    assert store.purge("redis") == 450


@pytest.mark.parametrize("prefix", ["*?[a]^\\-:", "{tag}:", "a b c"])
def test_a_prefix_means_what_it_says(client: redis.Redis, prefix: str) -> None:
    """Behaviour 52: no character of it stands for others when the server looks for names."""
    unlike = RedisStore(client, prefix=new_prefix() + prefix.replace("*", "x").replace("?", "y").replace("[a]", "a"))
    like = RedisStore(client, prefix=unlike.prefix[:18] + prefix)
    for store in (like, unlike):
        claimed(store, key())
    assert len(list(like.scan("redis"))) == 1
    assert like.purge("redis") == 1
    assert unlike.get(key()) is not None or like.prefix == unlike.prefix


def test_a_client_that_decodes_what_it_reads_is_none_the_wiser(redis_url: str) -> None:
    """Behaviour 2: outcomes are bytes."""
    outcome = bytes(range(256))
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        store = RedisStore(client, prefix=new_prefix())
        claimed(store, key())
        assert store.complete(key(), owner="owner-a", outcome=outcome, ttl=60)
        record = store.get(key())
        assert record is not None
        assert record.outcome == outcome
        with store.watch(key(), lambda: None):
            pass
        store.close()
        assert [found.value for found, _ in store.scan("redis")] == ["order-42"]
        assert store.purge("redis") == 1


@pytest.mark.parametrize("protocol", [2, 3])
def test_either_protocol_will_do(redis_url: str, protocol: int) -> None:
    """The answers are the same."""
    with redis.Redis.from_url(redis_url, protocol=protocol) as client:
        with RedisStore(client, prefix=new_prefix()) as store:
            assert claimed(store, key()).acquired
            assert not claimed(store, key(), "owner-b").acquired
            with store.watch(key(), lambda: None):
                assert [found for found, _ in store.scan("redis")] == [key()]


def test_any_text_is_an_owner(store: RedisStore) -> None:
    """Behaviour 44: a store's caller may choose it."""
    for owner in ("", " ", "\n", "\0", "=", "\ud800", "🔑" * 100):
        named = key(f"of {owner!r}")
        record = claimed(store, named, owner).record
        assert record.owner == owner
        assert claimed(store, named, owner).record.token == record.token
        assert store.renew(named, owner=owner, lease=0, ttl=60)
        assert claimed(store, named, "next", lease=0).took_over
        assert not claimed(store, named, owner).took_over or owner != "next"


def test_keys_of_lone_surrogates_stay_distinct(store: RedisStore) -> None:
    """Behaviour 44: what is no Unicode text is a key nevertheless, and is found again by scan."""
    keys = [Key("\udc00", "\ud800"), Key("\udc00", "\ud801"), Key("\udc01", "\ud800")]
    assert all(claimed(store, one).acquired for one in keys)
    assert {found for found, _ in store.scan("\udc00")} == set(keys[:2])


@pytest.mark.parametrize("seconds", [1e12, 1e300, float("inf"), -1.0])
def test_durations_beyond_all_bounds_are_the_longest_there_are(store: RedisStore, seconds: float) -> None:
    """A hundred years; the guard allows no longer ones, and the numbers stay exact up to there."""
    century = 100 * 365.25 * 86400
    record = store.claim(key(), owner="owner-a", fingerprint=None, lease=seconds, ttl=seconds).record
    read = store.get(key())
    if seconds < 0:
        assert read is None
        return
    assert read is not None
    assert read.token == record.token
    assert read.lease_left == pytest.approx(century, abs=60)
    assert read.expires_in == pytest.approx(2 * century, abs=60)
    assert int(microseconds(seconds)) == century * 1_000_000


def test_what_servers_say_of_their_memory(caplog: pytest.LogCaptureFixture) -> None:
    """Behaviour 50: one that evicts among several that do not; one that does not say."""
    fine, bad = {"maxmemory_policy": "noeviction"}, {"maxmemory_policy": b"allkeys-lfu"}
    with caplog.at_level(logging.WARNING, "idempo"):
        judge([fine, fine], "refuse")
        with pytest.raises(StoreError, match="allkeys-lfu"):
            judge([fine, bad], "refuse")
        assert not caplog.records
        judge([{}, "text"], "refuse")
        judge([bad], "warn")
    assert ["does not tell" in record.getMessage() for record in caplog.records] == [True, True, False]


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (redis.ConnectionError("Connection refused."), StoreError, "ConnectionError: Connection refused."),
        (redis.TimeoutError("Timeout"), StoreError, "TimeoutError"),
        (redis.BusyLoadingError("loading"), StoreError, "loading"),
        (redis.ReadOnlyError("You can't write"), StoreError, "ReadOnlyError"),
        (redis.exceptions.ClusterDownError("CLUSTERDOWN"), StoreError, "CLUSTERDOWN"),
        (redis.exceptions.OutOfMemoryError("command not allowed. script: 42"), StoreFullError, "not allowed$"),
        (
            redis.ResponseError("Error running script (call to f_0): @user_script: 5: -OOM command"),
            StoreFullError,
            "maxmemory",
        ),
        (redis.ResponseError("WRONGTYPE Operation"), RecordError, "not even a string"),
        (redis.ResponseError("ERR unknown command 'EVALSHA', with args beginning with: 'a'"), StoreError, "EVALSHA'$"),
        (RecordError("as it is"), RecordError, "as it is"),
    ],
)
def test_what_clients_raise_is_one_of_ours(raised: Exception, expected: type[Exception], text: str) -> None:
    """Behaviour 32: with the key, and without what was sent."""
    error = translated(raised, key())
    assert type(error) is expected
    with pytest.raises(expected, match=text):
        raise error


def test_a_client_of_coroutines_that_decodes_survives_its_bytes(redis_url: str) -> None:
    """Behaviours 2, 35, 52: the twin reads, scans and purges the same."""

    async def main() -> None:
        async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client:
            async with AsyncRedisStore(client, prefix=new_prefix(), eviction="warn") as store:
                for number in range(250):
                    await store.claim(key(str(number)), owner="a", fingerprint=b"", lease=60, ttl=60)
                await store.complete(key("0"), owner="a", outcome=b"\xff\0", ttl=60)
                await client.script_flush()
                record = await store.get(key("0"))
                assert record is not None
                assert (record.outcome, record.fingerprint) == (b"\xff\0", b"")
                assert len([found async for found in store.scan("redis")]) == 250
                await client.delete(store._names.of(key("1")).decode())
                await client.hset(store._names.of(key("1")).decode(), "a", "b")
                with pytest.raises(RecordError):
                    _ = [found async for found in store.scan("redis")]
                assert await store.purge("redis") == 250

    asyncio.run(main())


def test_a_record_takes_as_much_room_as_the_page_says(client: redis.Redis, store: RedisStore) -> None:
    """Its outcome, and some 400 bytes more."""
    named = Key("app.orders.charge", "order-00000042-0000-0000-000000000000")
    store.claim(named, owner="a" * 26, fingerprint=bytes(33), lease=60, ttl=60)
    store.complete(named, owner="a" * 26, outcome=bytes(200), ttl=60)
    used = client.memory_usage(store._names.of(named))
    assert isinstance(used, int)
    assert 200 < used < 650


class TestSubscriptions:
    """Who waits at which channel, without a server."""

    @pytest.fixture
    def subscriptions(self) -> Subscriptions:
        return Subscriptions()

    def test_a_channel_is_not_left_before_it_was_entered(self, subscriptions: Subscriptions) -> None:
        """Behaviour 19: else the answer to the first would pass for one to the next who comes."""
        first, second = made(), made()
        assert subscriptions.enter(b"a", first)
        assert subscriptions.news() == ([b"a"], [])
        subscriptions.leave(b"a", first)
        assert subscriptions.news() == ([], [])
        assert not subscriptions.enter(b"a", second)
        assert subscriptions.heard(said("subscribe", b"a")) == []
        assert second.confirmed
        subscriptions.leave(b"a", second)
        assert not subscriptions
        assert subscriptions.news() == ([], [b"a"])
        assert subscriptions.heard(said("message", b"a")) == []
        assert subscriptions.heard(said("unsubscribe", b"a")) == []

    def test_who_left_before_anybody_asked_leaves_nothing(self, subscriptions: Subscriptions) -> None:
        watcher = made()
        subscriptions.enter(b"a", watcher)
        subscriptions.leave(b"a", watcher)
        subscriptions.leave(b"a", watcher)  # as after a fork
        assert subscriptions.news() == ([], [])
        subscriptions.leave(b"a", watcher)

    def test_a_second_confirmation_means_that_news_may_be_lost(self, subscriptions: Subscriptions) -> None:
        """Behaviour 19: the client has connected anew; those who wait look again."""
        watcher = made()
        subscriptions.enter(b"a", watcher)
        subscriptions.news()
        assert subscriptions.heard(None) == []
        assert subscriptions.heard(said("subscribe", "a")) == []
        assert subscriptions.heard(said("message", "a")) == [watcher]
        assert subscriptions.heard(said("subscribe", "a")) == [watcher]
        assert subscriptions.heard(said("pong", "a")) == []
        assert subscriptions.lost() == [watcher]
        assert not subscriptions

    def test_a_waiter_whose_loop_is_closed_harms_nobody(self) -> None:
        def wake() -> None:
            raise RuntimeError("Event loop is closed")

        Watcher(wake, lambda: None).wake()


def made() -> Watcher:
    return Watcher(lambda: None, lambda: None)


def said(kind: str, channel: Any) -> dict[str, Any]:
    return {"type": kind, "channel": channel, "data": b""}


def test_names_can_be_made_by_anybody() -> None:
    """As the page says: by `sha256sum`."""
    digests = [sha256(text).hexdigest()[:32] for text in (b"billing", b"order-42")]
    assert Names("idempo:").of(Key("billing", "order-42")) == f"idempo:{digests[0]}:{digests[1]}".encode()


def test_a_client_that_cannot_listen_is_polled(client: redis.Redis) -> None:
    """Behaviour 19: some have no way to subscribe."""

    class Deaf:
        execute_command: Callable[..., Any] = client.execute_command
        pipeline: Callable[..., Any] = client.pipeline
        scan_iter: Callable[..., Any] = client.scan_iter

    store = RedisStore(Deaf(), prefix=new_prefix())
    assert claimed(store, key()).acquired
    with pytest.raises(StoreError, match="Deaf cannot subscribe"), store.watch(key(), lambda: None):
        pytest.fail("nothing to wait by")
