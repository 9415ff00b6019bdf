"""The way to a memcached or NATS server fails: answers are lost, the server is paused, restarted, or full.

pymemcache's clients send once, unless they are told otherwise; NatsStore sends again within each step.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymemcache import HashClient, PooledClient
from pymemcache.client.retrying import RetryingClient

from idempo import Idempotency, Key, LeaseLostError, State, StoreError, StoreFullError
from idempo.stores.memcached import MemcachedStore
from idempo.testing import check_store
from tests.kv_support import KEY, PATIENCE, address_of, claim, memcached_store, nats_store, new_prefix
from tests.servers.fixtures import Servers
from tests.servers.process import Server
from tests.servers.proxy import Proxy


def is_write(request: bytes) -> bool:
    return any(word in request for word in (b"add ", b"cas ", b"HPUB $KV."))


@pytest.fixture(params=["memcached", "nats"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(request: pytest.FixtureRequest, kind: str) -> str:
    return str(request.getfixturevalue(f"{kind}_url"))


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with Proxy(*address_of(url)) as proxy:
        yield proxy


@pytest.fixture
def prefix() -> str:
    return new_prefix()


@pytest.fixture
def beside(kind: str, url: str, prefix: str) -> Iterator[Any]:
    """The same records, by a way that does not fail."""
    with (memcached_store if kind == "memcached" else nats_store)(url, prefix) as store:
        yield store


@pytest.fixture
def store(kind: str, proxy: Proxy, prefix: str) -> Iterator[Any]:
    """By way of the proxy, with a client that sends again, and with a connection made."""
    if kind == "nats":
        with nats_store(f"nats://127.0.0.1:{proxy.port}", prefix, timeout=2.0) as store:
            assert store.get(KEY) is None
            yield store
        return
    client = PooledClient((proxy.host, proxy.port), connect_timeout=5, timeout=5)
    yield MemcachedStore(RetryingClient(client, attempts=5), prefix=prefix)
    client.close()


METHODS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "claim": (lambda store: None, lambda store: claim(store).acquired),
    "complete": (claim, lambda store: store.complete(KEY, owner="owner-a", outcome=b"kept", ttl=60)),
    "release": (claim, lambda store: store.release(KEY, owner="owner-a", ttl=60)),
    "renew": (claim, lambda store: store.renew(KEY, owner="owner-a", lease=60, ttl=60)),
}


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_that_is_lost_is_as_if_it_had_arrived(proxy: Proxy, store: Any, method: str) -> None:
    """Behaviour 34: what is sent again is told that somebody was before it, and finds that it was itself."""
    before, ask = METHODS[method]
    before(store)
    proxy.drop_answers(1, only=is_write)
    assert ask(store) is True
    assert proxy.dropped == 1
    record = store.get(KEY)
    assert record is not None
    assert record.attempt == 1


def test_without_a_client_that_sends_again_the_drivers_own_retries_are_enough(memcached_url: str, prefix: str) -> None:
    """Behaviours 33, 34: a claim and an outcome whose answers are lost."""
    with Proxy(*address_of(memcached_url)) as proxy:
        with memcached_store(f"memcached://127.0.0.1:{proxy.port}", prefix) as store:
            guard = Idempotency(store, namespace="lost")
            proxy.drop_answers(1, only=is_write)

            def body() -> str:
                proxy.drop_answers(1, only=is_write)
                return "placed"

            assert guard.run("order-42", body) == "placed"
            assert proxy.dropped == 2
            assert guard.run("order-42", str.upper) == "placed"
            proxy.drop_answers(100, only=is_write)
            with pytest.raises(StoreError) as raised:
                guard.run("order-43", pytest.fail)
            assert raised.value.key == Key("lost", "order-43")
    with memcached_store(memcached_url, prefix) as beside:
        assert Idempotency(beside, namespace="lost", wait=0).run("order-43", lambda: "placed") == "placed"


def test_through_a_lossy_way_answers_can_be_explained_by_single_steps(proxy: Proxy, prefix: str, kind: str) -> None:
    """Behaviours 21-23, 34: now and then a connection is reset after the server has acted, and nobody knows."""
    chance = random.Random(1)
    # To memcached every thread has a connection. NATS' is shared by all, and sends again by itself.
    options = {"timeout": 5} if kind == "memcached" else {"timeout": 1.0}
    make: Any = memcached_store if kind == "memcached" else nats_store
    with make(f"{kind}://127.0.0.1:{proxy.port}", prefix, **options) as store:
        assert store.get(KEY) is None
        proxy.drop_answers(1_000_000, only=lambda request: is_write(request) and chance.random() < 0.03)
        check_store(store, rounds=6, unit=0.15, slack=0.1)
    assert proxy.dropped > 1


def test_a_deletion_that_was_sent_twice_is_one(nats_url: str, prefix: str) -> None:
    """Behaviour 34: the mark that stands is known for this very deletion's."""
    with Proxy(*address_of(nats_url)) as proxy, nats_store(f"nats://127.0.0.1:{proxy.port}", prefix) as store:
        assert claim(store).acquired
        proxy.drop_answers(1, only=is_write)
        assert store.delete(KEY) is True
        assert proxy.dropped == 1
        assert store.delete(KEY) is False


def test_a_server_that_is_paused_makes_no_difference_to_who_holds_the_key(servers: Servers, kind: str) -> None:
    """Behaviour 48: what is asked meanwhile is in doubt, and the same owner still wins."""
    server = servers.memcached() if kind == "memcached" else servers.nats()
    if kind == "memcached":
        context: Any = memcached_store(server.url, new_prefix(), timeout=0.3)
    else:
        context = nats_store(server.url, new_prefix(), timeout=0.5)
    with context as store:
        assert claim(store).acquired
        other = Key("billing", "order-43")
        server.pause()
        with pytest.raises(StoreError):
            store.complete(KEY, owner="owner-a", outcome=b"kept", ttl=60)
        with pytest.raises(StoreError):
            claim(store, key=other)
        server.resume()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert store.complete(KEY, owner="owner-a", outcome=b"kept", ttl=60)
                assert claim(store, key=other).acquired
                break
            except StoreError:
                assert time.monotonic() < deadline
        record = store.get(other)
        assert record is not None
        assert (record.owner, record.attempt, record.state) == ("owner-a", 1, State.RUNNING)


def anew(server: Server) -> None:
    """Restart, without the second that memcached takes to end in good order."""
    server.kill()
    server.start()


def test_memcached_that_restarts_has_forgotten_the_claim(servers: Servers) -> None:
    """Behaviour 47: its owner is told, with its value; and a claim that came meanwhile is not written over.

    After the restart memcached's own "cas unique" begin anew, and come again for the same key.
    """
    server = servers.memcached()
    with memcached_store(server.url, "restart-") as store, memcached_store(server.url, "restart-") as other:
        guard = Idempotency(store, namespace="n")

        def gone() -> str:
            anew(server)
            return "value"

        with pytest.raises(LeaseLostError) as lost:
            guard.run("gone", gone)
        assert lost.value.result == "value"

        anew(server)  # so that the two claims below are the server's first write each

        def claimed_anew() -> str:
            anew(server)
            assert claim(other, "owner-b", key=Key("n", "anew")).acquired
            return "value"

        with pytest.raises(LeaseLostError):
            guard.run("anew", claimed_anew)
        record = other.get(Key("n", "anew"))
        assert record is not None
        assert (record.owner, record.state) == ("owner-b", State.RUNNING)


def test_nats_that_restarts_has_kept_the_claim(servers: Servers) -> None:
    """Behaviours 27, 47: killed in mid-call, it completes; and tokens go on rising."""
    server = servers.nats()
    with nats_store(server.url, new_prefix()) as store:
        guard = Idempotency(store, namespace="n")
        first = claim(store).record.token

        def killed() -> str:
            server.kill()
            server.start()
            return "value"

        assert guard.run("k", killed) == "value"
        assert guard.run("k", pytest.fail) == "value"
        assert store.delete(KEY)
        server.restart()
        assert claim(store, "owner-b").record.token > first


def test_a_memcached_that_is_full_and_may_not_evict_refuses(servers: Servers) -> None:
    """Behaviour 49: the claim, with nothing run. A held one cannot be completed there either, and is told."""
    server = servers.memcached("-M", "-m", "2")
    with memcached_store(server.url, "full-") as store:
        guard = Idempotency(store, namespace="n", lease=0.5)
        assert claim(store).acquired
        with pytest.raises(StoreFullError):
            for number in range(100_000):
                claim(store, key=Key("filling", str(number)))
        with pytest.raises(StoreFullError):
            guard.run("another", pytest.fail)
        with pytest.raises(StoreFullError):
            store.complete(KEY, owner="owner-a", outcome=b"kept", ttl=60)
        assert store.delete(Key("filling", "0"))  # what replaces a record needs room, beside it, and an end does not


def test_memcached_evicts_what_it_likes(servers: Servers) -> None:
    """Behaviour 50: so the class says in its first line that it is best effort; what was evicted runs again."""
    assert (MemcachedStore.__doc__ or "").startswith("Best effort")
    server = servers.memcached("-m", "2")
    with memcached_store(server.url, "evicted-") as store:
        guard = Idempotency(store, namespace="n")
        assert guard.run("k", lambda: "first") == "first"
        for number in range(10_000):
            claim(store, key=Key("filling", str(number)))
        assert guard.run("k", lambda: "second") == "second"


def test_what_a_failed_memcached_of_several_had_runs_again_on_another(servers: Servers) -> None:
    """Behaviour 47: HashClient asks the others, which have never heard of its keys; those of the others stand."""
    nodes = [servers.memcached() for _ in range(2)]
    client = HashClient([(node.host, node.port) for node in nodes], retry_attempts=0, connect_timeout=5, timeout=5)
    guard = Idempotency(MemcachedStore(client), namespace="n")
    names = [str(number) for number in range(20)]
    for name in names:
        assert guard.run(name, str, "first") == "first"
    nodes[0].kill()
    with pytest.raises(StoreError):
        for name in names:
            guard.run(name, str, "first")
    again = {guard.run(name, lambda: "second", payload=None) for name in names}
    assert again == {"first", "second"}
    client.close()


def test_a_connection_that_is_cut_comes_back(proxy: Proxy, store: Any, beside: Any) -> None:
    """Behaviours 13, 48: calls go on by another; who waits in another client is told by its poll, at the latest."""
    guard = Idempotency(store, namespace="n", wait=20)
    assert claim(beside, key=Key("n", "k")).acquired
    waiter: list[Any] = []
    entered = threading.Event()
    plain = store.get

    def get(key: Key) -> Any:
        entered.set()
        return plain(key)

    store.get = get
    waiting = threading.Thread(target=lambda: waiter.append(guard.run("k", lambda: "ran")))
    waiting.start()
    deadline = time.monotonic() + PATIENCE
    while not entered.is_set() and proxy.round_trips < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    proxy.cut()
    assert beside.release(Key("n", "k"), owner="owner-a", ttl=60)
    waiting.join(PATIENCE)
    assert waiter == ["ran"]
    del store.get


def test_a_claim_that_is_cancelled_wedges_nothing(nats_url: str, prefix: str) -> None:
    """Behaviours 30, 34: at every moment of it; whoever comes next runs at once."""
    from idempo.stores.nats import NatsStore

    async def scenario() -> None:
        store = NatsStore.at(nats_url, "faults", prefix=prefix)
        assert await store.get(KEY) is None
        guard = Idempotency(store, namespace="cancelled", wait=5)

        async def body() -> str:
            return "ran"

        for moment in range(12):
            call = asyncio.ensure_future(guard.run_async(str(moment), body))
            for _ in range(moment):
                await asyncio.sleep(0.0002)
            call.cancel()
            await asyncio.wait([call])
            assert await guard.run_async(str(moment), body) == "ran"
        await store.aclose()

    asyncio.run(scenario())
