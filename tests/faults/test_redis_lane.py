"""The connection that a store keeps: used again and again, and never in an unknown state."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from idempo import RecordError, StoreError
from idempo.records import State
from idempo.stores.redis import RedisStore
from tests.forked import said_by_child
from tests.redis_support import PATIENCE, claimed, key, new_prefix
from tests.servers.fixtures import Servers
from tests.servers.proxy import Proxy

NEVER: Any = {"retry": Retry(NoBackoff(), 0)}
OFTEN: Any = {"retry": Retry(NoBackoff(), 5), "retry_on_error": [redis.ConnectionError, redis.TimeoutError]}


def is_script(request: bytes) -> bool:
    return b"EVAL" in request


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    parts = urlsplit(redis_url)
    assert parts.hostname
    with Proxy(parts.hostname, parts.port or 6379) as proxy:
        yield proxy


@pytest.fixture(params=["patient", "impatient"])
def client(proxy: Proxy, request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    with redis.Redis(port=proxy.port, **(OFTEN if request.param == "patient" else NEVER)) as client:
        yield client


def warm(store: RedisStore) -> RedisStore:
    for _ in range(10):
        store.get(key("warm"))
    return store


def kept(client: Any) -> int:
    """Return how many connections of a pool are out while nothing is asked."""
    pool = client.connection_pool
    if hasattr(pool, "_in_use_connections"):
        return len(pool._in_use_connections)
    return len(pool._connections) - sum(each is not None for each in pool.pool.queue)


@pytest.fixture
def store(client: redis.Redis) -> Iterator[RedisStore]:
    with RedisStore(client, prefix=new_prefix()) as store:
        claimed(store, key("held"))
        warm(store)
        assert kept(client) == 1
        yield store


def test_one_connection_is_kept_and_given_back_when_the_store_is_closed(
    proxy: Proxy, client: redis.Redis, store: RedisStore
) -> None:
    """Behaviour 48: and the store can be used on, and keeps one again."""
    proxy.reset_counts()
    warm(store)
    assert (kept(client), proxy.connections, proxy.round_trips) == (1, 0, 10)
    store.close()
    store.close()
    assert kept(client) == 0
    warm(store)
    assert (kept(client), proxy.connections) == (1, 0)


def test_a_kept_connection_that_was_cut_in_between_is_seen_by_nobody(proxy: Proxy, store: RedisStore) -> None:
    """Behaviours 34, 48: also where the client never tries again: its pool would have looked before it asked."""
    for _ in range(3):
        proxy.cut()
        assert store.renew(key("held"), owner="owner-a", lease=60, ttl=60)
        warm(store)


def test_an_answer_lost_on_it_is_as_if_it_had_arrived(
    proxy: Proxy, client: redis.Redis, store: RedisStore, request: pytest.FixtureRequest
) -> None:
    """Behaviour 34: where the client tries again; else it is an error as ever, and the next goes another way."""
    tries_again = "impatient" not in request.node.name
    proxy.drop_answers(1, only=is_script)
    if tries_again:
        assert claimed(store, key()).acquired
    else:
        with pytest.raises(StoreError):
            claimed(store, key())
        assert kept(client) == 0
    assert proxy.dropped == 1
    record = store.get(key())
    assert record is not None
    assert (record.state, record.attempt) == (State.RUNNING, 1)
    assert store.complete(key(), owner="owner-a", outcome=b"kept", ttl=60)


def test_where_nobody_answers_any_more_it_is_a_store_error_and_nothing_is_kept(
    proxy: Proxy, client: redis.Redis, store: RedisStore
) -> None:
    """Behaviour 32: and once somebody does, all is as before."""
    proxy.refuse()
    with pytest.raises(StoreError):
        claimed(store, key())
    assert kept(client) == 0
    store.close()
    proxy.accept()
    assert claimed(store, key()).acquired
    warm(store)
    assert kept(client) == 1


def test_no_connection_can_be_made_where_one_would_be_kept(proxy: Proxy, client: redis.Redis) -> None:
    """Behaviour 32: an error of the store's at each request, as by the client itself."""
    proxy.refuse()
    store = RedisStore(client, prefix=new_prefix(), eviction="allow")
    for _ in range(6):
        with pytest.raises(StoreError):
            store.get(key())
    proxy.accept()
    warm(store)
    assert kept(client) == 1


def test_an_answer_waited_for_in_vain_is_not_waited_for_once_more(proxy: Proxy, redis_url: str) -> None:
    """Behaviour 48: the client's own retries were made; and the late answer is nobody's."""
    with redis.Redis(port=proxy.port, socket_timeout=0.2, **NEVER) as client:
        store = RedisStore(client, prefix=new_prefix())
        claimed(store, key("held"))
        warm(store)
        proxy.reset_counts()
        proxy.delay(0.6)
        with pytest.raises(StoreError, match="Timeout"):
            store.get(key("held"))
        assert proxy.connections == 0
        assert kept(client) == 0
        proxy.delay(0)
        assert store.get(key()) is None
        assert store.get(key("held")) is not None


def test_an_error_that_the_server_answers_leaves_the_connection_in_use(
    proxy: Proxy, client: redis.Redis, store: RedisStore
) -> None:
    """Behaviours 31, 48: it was read to its end. A server that forgot the scripts is asked once more on it."""
    client.set(store._name(key("odd")), b"of somebody else")
    proxy.reset_counts()
    for _ in range(3):
        with pytest.raises(RecordError):
            store.get(key("odd"))
    client.script_flush()
    assert store.get(key("held")) is not None
    assert (kept(client), proxy.connections) == (1, 0)


def test_an_interrupt_while_the_answer_is_on_its_way(client: redis.Redis, store: RedisStore) -> None:
    """Behaviour 48: that connection is closed; nobody reads another's answer."""

    class Interrupting:
        def __init__(self, own: Any) -> None:
            self.own = own
            self.connection: Any = None
            self.connection_pool = own.connection_pool

        def execute_command(self, *args: Any, **options: Any) -> Any:
            self.connection.send_command(*args)
            raise KeyboardInterrupt

    (item,) = store._lane._kept
    own, connection = item
    store._lane._kept[:] = [(Interrupting(own), connection)]
    with pytest.raises(KeyboardInterrupt):
        claimed(store, key())
    assert kept(client) == 0
    assert store.get(key("nobody's")) is None
    found = store.get(key())  # what was sent may have been done
    assert found is None or found.owner == "owner-a"


def test_a_former_primary_is_left(servers: Servers) -> None:
    """Behaviour 48: it answers READONLY; its connection is closed, so that the next goes to who bears the name now."""
    server = servers.redis()
    with redis.Redis(port=server.port) as client, redis.Redis(port=server.port) as operator:
        store = warm(RedisStore(client, prefix=new_prefix()))
        store.check()
        operator.replicaof("127.0.0.1", "1")
        with pytest.raises(StoreError, match="replica"):
            claimed(store, key())
        assert kept(client) == 0
        operator.replicaof("NO", "ONE")
        assert claimed(store, key()).acquired


def test_threads_at_once_use_one_kept_connection_and_the_pool(client: redis.Redis, store: RedisStore) -> None:
    """Behaviours 22, 48: whoever finds it taken asks by the client."""
    together = threading.Barrier(8)

    def work(number: int) -> list[bool]:
        together.wait(PATIENCE)
        return [claimed(store, key(f"{number}-{each}"), f"owner-{number}").acquired for each in range(40)]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(each) for each in pool.map(work, range(8)))
    assert kept(client) == 1


@pytest.mark.parametrize("pool_of", [redis.ConnectionPool, redis.BlockingConnectionPool])
def test_a_child_never_uses_its_parents_connection(proxy: Proxy, pool_of: Any) -> None:
    """Behaviour 36: it makes its own, and the parent's goes on."""
    pool = pool_of(port=proxy.port, host=proxy.host, max_connections=50)
    with redis.Redis(connection_pool=pool) as client, RedisStore(client, prefix=new_prefix()) as store:
        claimed(store, key())
        warm(store)
        proxy.reset_counts()

        def in_child() -> tuple[bool, int]:
            answers = {store.renew(key(), owner="owner-a", lease=60, ttl=60) for _ in range(10)}
            gc.collect()
            return answers == {True}, kept(client)

        assert said_by_child(in_child) == "(True, 1)"
        assert proxy.connections >= 1
        proxy.reset_counts()
        warm(store)
        assert (kept(client), proxy.connections) == (1, 0)
    pool.disconnect()


@pytest.mark.parametrize("pool_of", [redis.ConnectionPool, redis.BlockingConnectionPool])
@pytest.mark.parametrize("size", [1, 2, 49])
def test_of_a_small_pool_none_is_kept(redis_url: str, size: int, pool_of: Any) -> None:
    """Behaviour 48: the application may count on all of them."""
    pool = pool_of.from_url(redis_url, max_connections=size)
    with redis.Redis(connection_pool=pool) as client, RedisStore(client, prefix=new_prefix()) as store:
        warm(store)
        assert kept(client) == 0
    pool.disconnect()


def _by_sentinel(url: str) -> Any:
    from redis.sentinel import Sentinel

    return Sentinel([(urlsplit(url).hostname, 1)]).master_for("shop")


class _OfTheUsers(redis.Redis):
    def __init__(self, url: str) -> None:
        super().__init__(connection_pool=redis.ConnectionPool.from_url(url))


def _watched(url: str) -> Any:
    client = redis.Redis.from_url(url)
    plain = client.execute_command
    client.execute_command = functools.partial(plain)  # type: ignore[method-assign]
    return client


def _single(url: str) -> Any:
    return redis.Redis.from_url(url, single_connection_client=True)


@pytest.mark.parametrize("make", [_OfTheUsers, _watched, _single])
def test_a_client_that_cannot_be_had_again_as_it_is_is_asked_itself(redis_url: str, make: Callable[[str], Any]) -> None:
    """Behaviour 48: a class that is made in another way, one that was wrapped, one that is a single connection's."""
    client = make(redis_url)
    with RedisStore(client, prefix=new_prefix()) as store:
        before = kept(client)
        claimed(store, key())
        warm(store)
        assert kept(client) == before
    client.close()
    client.connection_pool.disconnect()


def test_by_sentinel_none_is_kept(redis_url: str) -> None:
    """Behaviour 48: its pool looks at each connection that comes back whether it leads to a former primary."""
    store = RedisStore(_by_sentinel(redis_url), prefix=new_prefix())
    assert store._lane._kept == []


@pytest.mark.parametrize("pool_of", [redis.ConnectionPool, redis.BlockingConnectionPool])
def test_stores_that_are_dropped_use_up_no_connections(redis_url: str, pool_of: Any) -> None:
    """Behaviour 48: neither in the pool, nor at the server; nor is there a warning of any."""
    pool = pool_of.from_url(redis_url, max_connections=50)
    with redis.Redis(connection_pool=pool) as client:
        for _ in range(120):
            store = warm(RedisStore(client, prefix=new_prefix()))
            store.me = store  # type: ignore[attr-defined]  # a ring, for the collector
            del store
        gc.collect()
        warm(RedisStore(client, prefix=new_prefix()))
        RedisStore(client)
        assert kept(client) == 0
    pool.disconnect()


def test_an_application_that_closes_only_its_client_has_closed_the_connection(proxy: Proxy) -> None:
    """Behaviour 48: and may use both again."""
    client = redis.Redis(port=proxy.port, client_name=(name := new_prefix()))
    store = warm(RedisStore(client, prefix=new_prefix()))
    client.close()
    with redis.Redis(port=proxy.port) as operator:
        assert name not in {each["name"] for each in operator.client_list()}
    assert claimed(store, key()).acquired
    client.close()
    del client
    del store
    gc.collect()


@pytest.mark.parametrize("options", [{"decode_responses": True}, {"protocol": 3}, {"health_check_interval": 1}])
def test_the_clients_settings_are_those_of_the_kept_connection(redis_url: str, options: Any) -> None:
    """Behaviour 46: answers that are decoded elsewhere, RESP3, health checks."""
    with redis.Redis.from_url(redis_url, **options) as client, RedisStore(client, prefix=new_prefix()) as store:
        warm(store)
        assert claimed(store, key()).acquired
        assert store.complete(key(), owner="owner-a", outcome=b"\xff\x00", ttl=60)
        record = store.get(key())
        assert record is not None
        assert record.outcome == b"\xff\x00"
        assert kept(client) == 1


def test_a_client_of_valkeys_own_keeps_one_too(redis_url: str) -> None:
    """Behaviour 46: it has the same ways."""
    valkey = pytest.importorskip("valkey")
    with valkey.Valkey.from_url(redis_url) as client, RedisStore(client, prefix=new_prefix()) as store:
        warm(store)
        assert claimed(store, key()).acquired
        client.set(store._name(key("odd")), b"of somebody else")
        with pytest.raises(RecordError):
            store.get(key("odd"))
        client.script_flush()
        assert not claimed(store, key(), "owner-b").acquired
        assert kept(client) == 1
