"""The Redis server itself fails: it is restarted, is full, may evict, forgets scripts, or lets its user do little."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from idempo import Idempotency, LeaseLostError, StoreError, StoreFullError
from idempo.records import State
from idempo.stores.redis import AsyncRedisStore, RedisStore
from tests.redis_support import PATIENCE, PATIENT, claimed, key, new_prefix, until
from tests.servers import every_server
from tests.servers.fixtures import Servers
from tests.servers.process import Server

FLAVOURS = ["valkey", *(pytest.param(name, marks=every_server) for name in ("redis", "system", "oldest"))]


@pytest.fixture
def clients() -> Iterator[list[redis.Redis]]:
    made: list[redis.Redis] = []
    yield made
    for client in made:
        client.close()


@pytest.fixture
def connect(clients: list[redis.Redis]) -> Any:
    def connect(server: Server, **options: Any) -> redis.Redis:
        clients.append(redis.Redis.from_url(server.url, **(PATIENT | options)))
        return clients[-1]

    return connect


def test_a_server_that_forgets_takes_the_claim_with_it(servers: Servers, connect: Any) -> None:
    """Behaviour 47: restarted in mid-call, without persistence: the owner is told, with its value."""
    server = servers.redis()
    guard = Idempotency(RedisStore(connect(server)), namespace="restarted")

    def body() -> str:
        server.restart()
        return "placed"

    with pytest.raises(LeaseLostError) as caught:
        guard.run("order-42", body)
    assert caught.value.result == "placed"


def test_a_server_that_remembers_completes_the_call(servers: Servers, connect: Any) -> None:
    """Behaviours 27, 47: killed and started again in mid-call, with an append-only file: nothing is seen of it."""
    server = servers.redis("valkey", "--appendonly", "yes", "--appendfsync", "always")
    store = RedisStore(connect(server))
    guard = Idempotency(store, namespace="restarted")

    def body() -> str:
        server.kill()
        server.start()
        return "placed"

    assert guard.run("order-42", body) == "placed"
    server.kill()
    server.start()
    assert guard.run("order-42", pytest.fail) == "placed"
    token = claimed(store, key()).record.token
    store.delete(key())
    server.restart()
    assert claimed(store, key(), "owner-b").record.token > token


def test_a_server_that_has_forgotten_the_scripts_is_sent_them_again(redis_url: str) -> None:
    """Behaviour 51: as a new primary has after a failover."""
    with redis.Redis.from_url(redis_url) as client:
        store = RedisStore(client, prefix=new_prefix())
        for owner in ("owner-a", "owner-b"):
            client.script_flush()
            assert claimed(store, key(), owner).acquired
            client.script_flush()
            assert store.complete(key(), owner=owner, outcome=b"kept", ttl=60)
            client.script_flush()
            assert store.get(key()) is not None
            client.script_flush()
            assert not store.renew(key(), owner=owner, lease=1, ttl=1)
            client.script_flush()
            assert store.delete(key(), owner=owner)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_full_server_refuses_claims_and_takes_the_ends_of_those_it_has(
    servers: Servers, connect: Any, flavour: str
) -> None:
    """Behaviour 49: the new call does not run; whoever holds a key renews, completes, releases."""
    client = connect(servers.redis(flavour, "--maxmemory", "20mb"))
    store = RedisStore(client)
    for owner in ("complete", "release", "lapsed"):
        claimed(store, key(owner), owner)
    store.renew(key("lapsed"), owner="lapsed", lease=0, ttl=60)
    with pytest.raises(redis.ResponseError):
        for number in range(1000):
            client.set(f"other-{number}", bytes(100_000))
    while True:  # the last bytes, too
        try:
            client.append("other-0", bytes(100))
        except redis.ResponseError:
            break
    for new in ("new", "lapsed"):
        with pytest.raises(StoreFullError) as caught:
            claimed(store, key(new))
        assert caught.value.key == key(new)
    with pytest.raises(StoreFullError):
        Idempotency(store, namespace="full").run("order-42", pytest.fail)
    assert claimed(store, key("complete"), "complete").acquired  # its answer may have been lost
    assert store.renew(key("complete"), owner="complete", lease=60, ttl=60)
    assert store.complete(key("complete"), owner="complete", outcome=bytes(50_000), ttl=60)
    assert store.release(key("release"), owner="release", ttl=60)
    assert store.release(key("never"), owner="never", ttl=60) is False
    states = {name: store.get(key(name)) for name in ("complete", "release", "never")}
    assert [record.state for record in states.values() if record] == [State.COMPLETED, State.RELEASED, State.RELEASED]
    assert store.delete(key("release"))


def test_a_policy_that_may_drop_claims_is_refused_with_the_reason(servers: Servers, connect: Any) -> None:
    """Behaviour 50: before anything is claimed, and until it is mended."""
    client = connect(servers.redis("valkey", "--maxmemory-policy", "allkeys-lru"))
    store = RedisStore(client)
    with pytest.raises(StoreError, match=r"maxmemory-policy is allkeys-lru.*noeviction"):
        store.check()
    for _ in range(2):
        with pytest.raises(StoreError, match="allkeys-lru"):
            Idempotency(store, namespace="evicting").run("order-42", pytest.fail)
    left = [record.state for _, record in store.scan("evicting")]
    assert set(left) <= {State.RELEASED}  # by the driver, in case that the claim had arrived
    client.config_set("maxmemory-policy", "noeviction")
    store.check()
    assert claimed(store, key()).acquired


@pytest.mark.parametrize("eviction", ["warn", "allow"])
def test_a_policy_that_may_drop_claims_can_be_put_up_with(
    servers: Servers, connect: Any, caplog: pytest.LogCaptureFixture, eviction: Any
) -> None:
    """Behaviour 50: with one warning, or with none."""
    store = RedisStore(connect(servers.redis("valkey", "--maxmemory-policy", "volatile-ttl")), eviction=eviction)
    with caplog.at_level(logging.WARNING, "idempo"):
        for _ in range(2):
            assert claimed(store, key()).acquired
    assert [("volatile-ttl" in record.getMessage()) for record in caplog.records] == [True] * (eviction == "warn")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_user_who_may_do_little_is_served_nevertheless(
    servers: Servers, connect: Any, caplog: pytest.LogCaptureFixture, flavour: str
) -> None:
    """Behaviours 19, 50: who may not ask for the policy is warned; who may not publish, polls."""
    server = servers.redis(flavour)
    connect(server).execute_command(
        *("ACL", "SETUSER", "little", "on", ">secret", "~idempo:*", "resetchannels", "-@all"),
        *("+evalsha", "+eval", "+get", "+set", "+time", "+unlink", "+persist", "+client", "+hello"),
    )
    with caplog.at_level(logging.WARNING, "idempo"):
        store = RedisStore(connect(server, username="little", password="secret"))
        assert claimed(store, key()).acquired
        assert store.complete(key(), owner="owner-a", outcome=b"kept", ttl=60)
    assert [record.getMessage() for record in caplog.records] == [
        "this user may not ask for the server's maxmemory-policy (INFO); idempo needs noeviction"
    ]
    with pytest.raises(StoreError), store.watch(key(), lambda: None):
        pytest.fail("nobody may subscribe")

    async def check() -> None:
        async with redis.asyncio.Redis.from_url(server.url, username="little", password="secret") as other:
            await AsyncRedisStore(other).check()

    asyncio.run(check())
    assert store.delete(key())
    with pytest.raises(StoreError, match=r"NoPermission|permission"):
        store.purge("redis")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_rights_that_the_page_asks_for_are_enough(
    servers: Servers, connect: Any, caplog: pytest.LogCaptureFixture, flavour: str
) -> None:
    """Behaviours 19, 50, 52: for everything, and nothing is warned about."""
    server = servers.redis(flavour)
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")
    rights = page.partition("## Rights")[2].partition("## ")[0]
    given = [right for code in re.findall(r"`([^`]*)`", rights) for right in code.split() if right[0] in "~&+"]
    connect(server).execute_command("ACL", "SETUSER", "right", "on", ">secret", "resetchannels", "-@all", *given)
    store = RedisStore(connect(server, username="right", password="secret"), prefix="shop:")
    guard = Idempotency(store, namespace="redis")
    for _ in range(2):
        assert guard.run("order-42", str.upper, "placed") == "PLACED"
    claimed(store, key("other"))
    assert store.renew(key("other"), owner="owner-a", lease=1, ttl=60)
    assert store.release(key("other"), owner="owner-a", ttl=60)
    assert store.delete(key("other"))
    woken = threading.Event()
    with store.watch(key("other"), woken.set):
        claimed(store, key("other"))
        assert woken.wait(PATIENCE)
    assert len(list(store.scan("redis"))) == 2
    assert store.purge("redis") == 2
    store.close()
    assert caplog.records == []


def test_a_replica_is_written_to_by_nobody(servers: Servers, connect: Any) -> None:
    """Behaviour 32: a client that is led to one is told so, and nothing runs."""
    first = servers.redis("valkey", "--repl-diskless-sync-delay", "0")
    second = servers.redis("valkey", "--replicaof", f"{first.host} {first.port}")
    store = RedisStore(connect(second))
    with pytest.raises(StoreError, match=r"(?i)read.?only") as caught:
        Idempotency(store, namespace="replica").run("order-42", pytest.fail)
    assert caught.value.key is not None
    claimed(RedisStore(connect(first)), key())
    until(lambda: store.get(key()))
    with pytest.raises(StoreError, match=r"(?i)read.?only"):
        store.purge("redis")
