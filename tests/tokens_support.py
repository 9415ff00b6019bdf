"""What the tests of tokens share: issuers, and the stores that they are tried on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idempo import (
    MemoryStore,
)
from idempo.stores.sqlite import SqliteStore
from idempo.tokens import TokenIssuer

SECRET = "a secret of the tests, long enough"
OTHER = "another secret, as long as the one"
PATIENCE = 60.0


def issuer(store: Any = None, **options: Any) -> TokenIssuer:
    return TokenIssuer(MemoryStore() if store is None else store, **{"secrets": SECRET, "ttl": 3600, **options})


@pytest.fixture(params=["memory", "sqlite", "redis"])
def each_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield MemoryStore(on_full="refuse")
    elif request.param == "sqlite":
        with SqliteStore(tmp_path / "tokens.db", synchronous="NORMAL") as made:
            yield made
    else:
        redis = pytest.importorskip("redis")
        from idempo.stores.redis import RedisStore

        with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
            yield RedisStore(client, prefix=f"tokens-{uuid.uuid4()}:")
