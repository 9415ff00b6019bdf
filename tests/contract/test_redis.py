"""RedisStore and AsyncRedisStore through the contract of every store, on a real server."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from idempo.records import Key
from idempo.stores.redis import AsyncRedisStore, RedisStore
from idempo.testing import AsyncStoreContract, StoreContract, check_store


def damage(client: Any, name: bytes, how: str) -> None:
    """Damage what is kept under a name."""
    kept = client.get(name)
    assert kept
    if how == "foreign":
        client.delete(name)
        client.hset(name, "owner", "somebody else")
        return
    damaged = {"truncated": kept[:-1], "flipped": kept[:42] + b"R" + kept[43:], "newer": b"i2" + kept[2:]}
    client.set(name, damaged[how])


class OnRedis:
    own_clock = True
    unit = 0.08

    @pytest.fixture
    def client(self, redis_url: str) -> Iterator[redis.Redis]:
        with redis.Redis.from_url(redis_url) as client:
            yield client

    def damage(self, store: Any, key: Key, how: str) -> None:
        with redis.Redis.from_url(self.url) as client:
            damage(client, store._names.of(key), how)


class TestRedisStore(OnRedis, StoreContract):
    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[RedisStore]:
        self.url = redis_url
        with redis.Redis.from_url(redis_url) as client:
            with RedisStore(client, prefix=f"test-{secrets.token_hex(6)}:") as store:
                yield store

    def reopen(self, store: RedisStore) -> RedisStore:
        return RedisStore(store._client, prefix=store.prefix)


class TestAsyncRedisStore(OnRedis, AsyncStoreContract):
    @pytest.fixture
    def store(self, redis_url: str, run: Callable[[Any], Any]) -> Iterator[AsyncRedisStore]:
        self.url = redis_url
        client = redis.asyncio.Redis.from_url(redis_url)
        store = AsyncRedisStore(client, prefix=f"test-{secrets.token_hex(6)}:")
        yield store
        run(store.aclose())
        run(client.aclose())

    def reopen(self, store: AsyncRedisStore) -> AsyncRedisStore:
        return AsyncRedisStore(store._client, prefix=store.prefix)


@pytest.mark.parametrize("seed", range(2))
def test_its_answers_can_be_explained_by_single_steps(redis_url: str, seed: int) -> None:
    """Behaviours 21-23: many threads, and owners that come too late."""
    with redis.Redis.from_url(redis_url) as client:
        check_store(RedisStore(client, prefix=f"test-{secrets.token_hex(6)}:"), rounds=20, unit=0.03, seed=seed)
