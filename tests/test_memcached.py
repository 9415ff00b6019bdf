"""MemcachedStore, beyond what every store does: which clients it takes, times, threads, forks, interrupts."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from pymemcache import Client, HashClient, PooledClient, serde
from pymemcache.client.retrying import RetryingClient
from pymemcache.exceptions import MemcacheServerError

from idempo import Idempotency, Key, ResultLostError, StoreError, StoreFullError
from idempo.stores.memcached import MemcachedStore
from tests.forked import in_child
from tests.servers.fixtures import Servers
from tests.servers.proxy import Proxy

KEY = Key("billing", "order-42")
BOUNDED = {"connect_timeout": 5, "timeout": 5}
DAY = 24 * 60 * 60
NOWHERE = ("127.0.0.1", 1)


@pytest.fixture
def address(memcached_url: str) -> tuple[str, int]:
    parts = urlsplit(memcached_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@pytest.fixture
def prefix() -> str:
    return f"test-{secrets.token_hex(6)}-"


@pytest.fixture
def client(address: tuple[str, int]) -> Iterator[PooledClient]:
    client = PooledClient(address, **BOUNDED)
    yield client
    client.close()


def claim(store: MemcachedStore, owner: str = "owner-a", *, key: Key = KEY, ttl: float = 1000) -> Any:
    return store.claim(key, owner=owner, fingerprint=b"\x01payload", lease=15, ttl=ttl)


# Clients that would do harm


@pytest.mark.parametrize("make", [Client, PooledClient, lambda address, **options: HashClient([address], **options)])
def test_a_client_that_would_do_harm_is_refused(make: Any) -> None:
    """Before anything is sent: it unpickles, it waits for ever, or it takes an error for absence."""
    for options, error, what in (
        ({**BOUNDED, "serde": serde.pickle_serde}, TypeError, "serde"),
        ({**BOUNDED, "serializer": lambda key, value: (value, 0)}, TypeError, "serde"),
        ({"connect_timeout": 5}, ValueError, "no timeout"),
        ({"timeout": 5}, ValueError, "no connect_timeout"),
        ({**BOUNDED, "ignore_exc": True}, ValueError, "ignore_exc"),
    ):
        with pytest.raises(error, match=what):
            MemcachedStore(make(NOWHERE, **options))
        with pytest.raises(error, match=what):
            MemcachedStore(RetryingClient(make(NOWHERE, **options)))


@pytest.mark.parametrize("option", ["connect_timeout", "timeout"])
@pytest.mark.parametrize("value", [0, -1.5])
def test_a_client_that_waits_for_no_answer_is_refused(option: str, value: float) -> None:
    """It would fail every call, or block for ever."""
    client = PooledClient(NOWHERE, **{**BOUNDED, option: value})
    with pytest.raises(ValueError, match=rf"the client's {option} must be more than 0 seconds, not {value:g}"):
        MemcachedStore(client)


def test_a_store_is_shown_by_its_client_and_prefix() -> None:
    """Not by where the client connects to."""
    assert repr(MemcachedStore(PooledClient(NOWHERE, **BOUNDED))) == "MemcachedStore(PooledClient, prefix='idempo-')"


def test_what_is_no_client_is_refused() -> None:
    """A typed error, that says what is meant."""
    good = Client(NOWHERE, **BOUNDED)
    with pytest.raises(TypeError, match="one of pymemcache's clients, not str"):
        MemcachedStore("memcached://localhost")
    for options, error in (
        ({"prefix": "has a space"}, ValueError),
        ({"prefix": "newline\n"}, ValueError),
        ({"prefix": "ünïcode"}, ValueError),
        ({"prefix": "x" * 187}, ValueError),
        ({"prefix": b"bytes"}, TypeError),
        ({"largest_outcome": 0}, ValueError),
        ({"largest_outcome": 1.5}, TypeError),
    ):
        with pytest.raises(error):
            MemcachedStore(good, **options)
    MemcachedStore(good, prefix="x" * 186)
    with pytest.raises(ValueError, match="at most 180 characters"):
        MemcachedStore(Client(NOWHERE, key_prefix="client", **BOUNDED), prefix="x" * 181)


# What it costs


def test_what_a_call_costs(address: tuple[str, int], prefix: str) -> None:
    """Behaviour 46: a claim two round trips, its end two, a replay one; more than thirty days ask the server's time."""
    with Proxy(*address) as proxy:
        client = PooledClient((proxy.host, proxy.port), **BOUNDED)
        guard = Idempotency(MemcachedStore(client, prefix=prefix), namespace="billing")
        counted = []
        for _ in range(2):
            proxy.reset_counts()
            assert guard.run("order-42", str.upper, "placed") == "PLACED"
            counted.append(proxy.round_trips)
        proxy.reset_counts()
        long = Idempotency(MemcachedStore(client, prefix=prefix), namespace="billing", ttl=90 * DAY)
        assert long.run("order-43", str.upper, "placed") == "PLACED"
        counted.append(proxy.round_trips)
        client.close()
    assert counted == [4, 1, 6]


# Times


def test_what_memcached_cannot_keep_so_long_is_refused(client: PooledClient, address: Any, prefix: str) -> None:
    """Its times end in January 2038: nothing is claimed that it would forget at once."""
    hashed = HashClient([address], use_pooling=True, **BOUNDED)
    for one in (client, hashed):
        store = MemcachedStore(one, prefix=prefix)
        for ttl in (20 * 365 * DAY, 100 * 365 * DAY):
            with pytest.raises(StoreError, match="January 2038"):
                claim(store, ttl=ttl)
            with pytest.raises(StoreError, match="January 2038"):  # the reason reaches the caller
                Idempotency(store, ttl=ttl).run("order-42", pytest.fail)
        assert store.get(KEY) is None
        assert claim(store, ttl=400 * DAY).acquired
        assert store.delete(KEY)
    hashed.close()


@pytest.mark.realtime
def test_nothing_is_forgotten_before_its_ttl(client: PooledClient, prefix: str) -> None:
    """Behaviour 8: whenever in the second that memcached's clock ticks in it was written."""
    store = MemcachedStore(client, prefix=prefix)
    keys = [Key("billing", str(number)) for number in range(10)]
    written: list[float] = []
    looked = 0
    began = time.monotonic()
    for step in range(20):
        time.sleep(max(0.0, began + step * 0.1 - time.monotonic()))
        if step < len(keys):
            claim(store, key=keys[step])
            written.append(time.monotonic())
            assert store.complete(keys[step], owner="owner-a", outcome=b"", ttl=1.0)
        if step >= 9:
            for key, at in zip(keys, written, strict=False):
                record = store.get(key)
                if time.monotonic() - at < 1.0:
                    looked += 1
                    assert record is not None, f"gone after {time.monotonic() - at} seconds"
    assert looked > 10


# Sizes


def test_a_result_that_is_too_large_is_lost_and_runs_once(client: PooledClient, prefix: str) -> None:
    """Behaviour 31: a policy allows 1 MiB, and memcached takes a little less: no outcome is offered in vain."""
    guard = Idempotency(MemcachedStore(client, prefix=prefix), namespace="billing")
    large = "x" * 1_000_100
    assert guard.run("order-42", str, large) == large
    with pytest.raises(ResultLostError, match="the store takes 1000000 at most"):
        guard.run("order-42", str, large)
    assert (guard.stats().result_lost, guard.stats().replayed) == (1, 1)


def test_a_server_that_takes_less_says_so(servers: Servers) -> None:
    """As an error of the store's; ``largest_outcome`` is there to say it beforehand."""
    server = servers.memcached("-I", "512k", "-o", "slab_chunk_max=262144")
    client = PooledClient((server.host, server.port), **BOUNDED)
    store = MemcachedStore(client)
    assert claim(store).acquired
    with pytest.raises(StoreError, match="object too large") as raised:
        store.complete(KEY, owner="owner-a", outcome=b"x" * 600_000, ttl=100)
    assert not isinstance(raised.value, StoreFullError)
    assert store.complete(KEY, owner="owner-a", outcome=b"x" * 400_000, ttl=100)
    client.close()


# Threads, forks, interrupts


@pytest.mark.parametrize("hashed", [False, True])
def test_threads_share_a_client_that_is_not_made_for_it(address: tuple[str, int], prefix: str, *, hashed: bool) -> None:
    """Behaviour 42: they wait for each other, and none is given another's answer."""
    client: Any = HashClient([address], **BOUNDED) if hashed else Client(address, **BOUNDED)
    store = MemcachedStore(client, prefix=prefix)
    barrier = threading.Barrier(8)
    wrong: list[Any] = []

    def work(number: int) -> None:
        barrier.wait(20)
        for turn in range(20):
            key = Key("billing", f"{number}-{turn}")
            outcome = f"{number} {turn}".encode()
            claim(store, key=key)
            store.complete(key, owner="owner-a", outcome=outcome, ttl=100)
            record = store.get(key)
            if record is None or record.outcome != outcome:
                wrong.append((key, record))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    client.close()


@pytest.mark.parametrize("kind", [Client, PooledClient])
def test_a_forked_child_has_connections_of_its_own(address: tuple[str, int], prefix: str, kind: Any) -> None:
    """Behaviour 43: on an inherited one it would read its parent's answers."""
    client = kind(address, **BOUNDED)
    store = MemcachedStore(client, prefix=prefix)
    assert claim(store).acquired

    def child() -> None:
        for number in range(200):
            key = Key("child", str(number))
            assert claim(store, key=key).acquired
            record = store.get(key)
            assert record is not None
            assert record.owner == "owner-a"
        assert not claim(store, "owner-b").acquired

    if kind is PooledClient:
        with client.client_pool._lock:  # as another thread may hold it
            in_child(child)
        assert store.delete(Key("child", "0"))
        for number in range(1, 200):
            store.delete(Key("child", str(number)))
    ended, wrong = threading.Event(), list[Any]()

    def parent() -> None:
        while not ended.is_set():
            try:
                record = store.get(KEY)
                assert record is not None
                assert record.owner == "owner-a"
            except BaseException as error:
                wrong.append(error)

    beside = threading.Thread(target=parent)
    beside.start()
    in_child(child)
    ended.set()
    beside.join()
    assert wrong == []
    assert store.complete(KEY, owner="owner-a", outcome=b"parent", ttl=100)
    client.close()


@pytest.mark.realtime
def test_a_child_of_a_process_that_waits_for_the_server_does_not_hang(servers: Servers, prefix: str) -> None:
    """Behaviour 43: the lock that the waiting thread holds is free in the child, and the connection another."""
    server = servers.memcached()
    client = Client((server.host, server.port), connect_timeout=60, timeout=60)
    store = MemcachedStore(client, prefix=prefix)
    assert claim(store).acquired
    server.pause()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(store.get(KEY)))
    thread.start()
    backend: Any = store._backend
    deadline = time.monotonic() + 30
    while not backend._talking:
        assert time.monotonic() < deadline, "the thread never asked"
        time.sleep(0.001)

    def child() -> None:
        server.resume()
        assert not claim(store, "owner-b").acquired
        assert claim(store, key=Key("child", "1")).acquired

    in_child(child)
    thread.join(60)
    assert found[0].owner == "owner-a"
    assert store.complete(KEY, owner="owner-a", outcome=b"parent", ttl=100)
    client.close()


class _Interrupted(BaseException):
    pass


def test_an_interrupt_leaves_no_answer_behind(address: tuple[str, int], prefix: str) -> None:
    """Behaviour 30: the next request on that connection would read it as its own."""
    with Proxy(*address) as proxy:
        client = Client((proxy.host, proxy.port), **BOUNDED)
        store = MemcachedStore(client, prefix=prefix)
        assert claim(store).acquired
        plain = client.sock

        class Interrupting:
            def __getattr__(self, name: str) -> Any:
                return getattr(plain, name)

            def recv(self, size: int) -> bytes:
                raise _Interrupted

        client.sock = Interrupting()
        with pytest.raises(_Interrupted):
            store.get(Key("billing", "another"))
        record = store.get(KEY)
        assert record is not None
        assert record.owner == "owner-a"
        client.close()


def test_a_request_inside_a_request_is_refused(address: tuple[str, int], prefix: str) -> None:
    """A signal handler, on the one connection: it would be given the other's answer."""
    client = Client(address, **BOUNDED)
    store = MemcachedStore(client, prefix=prefix)
    assert claim(store).acquired
    plain = client.gets
    inner: list[StoreError] = []

    def gets(key: str) -> Any:
        client.gets = plain
        with pytest.raises(StoreError, match="further up") as raised:
            store.get(KEY)
        inner.append(raised.value)
        return plain(key)

    client.gets = gets
    assert store.get(KEY) is not None
    assert len(inner) == 1
    client.close()


# Servers that fail


def test_a_server_that_is_not_there_is_a_store_error(servers: Servers) -> None:
    """Whatever the client makes of it: HashClient says for a while that there is nothing, then that all are down."""
    server = servers.memcached()
    address = (server.host, server.port)
    clients: list[Any] = [
        Client(address, **BOUNDED),
        PooledClient(address, **BOUNDED),
        PooledClient(address, max_pool_size=1, **BOUNDED),
        RetryingClient(Client(address, **BOUNDED)),
        HashClient([address], **BOUNDED),
        HashClient([address], retry_attempts=0, **BOUNDED),
    ]
    stores = [MemcachedStore(client) for client in clients]
    server.kill()
    for store in stores:
        for _ in range(3):
            with pytest.raises(StoreError):
                claim(store)
            with pytest.raises(StoreError):
                claim(store, ttl=90 * DAY)
            with pytest.raises(StoreError):
                store.get(KEY)
    with pytest.raises(StoreError, match="down"):
        stores[-1]._backend.add("name", b"value", 90 * DAY)


def test_a_pool_that_is_used_up_is_a_store_error(address: tuple[str, int], prefix: str) -> None:
    """Behaviour 48: pymemcache's pool does not wait."""
    client = PooledClient(address, max_pool_size=1, **BOUNDED)
    store = MemcachedStore(client, prefix=prefix)
    with client.client_pool.get_and_release(), pytest.raises(StoreError, match="Too many objects"):
        claim(store)
    assert claim(store).acquired
    client.close()


def test_an_error_without_words_is_one() -> None:
    """And is taken for no lack of memory."""

    class Wordless(Client):  # type: ignore[misc]
        def gets(self, *_: Any, **__: Any) -> Any:
            raise MemcacheServerError

    with pytest.raises(StoreError, match="memcached failed: MemcacheServerError"):
        MemcachedStore(Wordless(NOWHERE, **BOUNDED)).get(KEY)
