"""What tests of the Redis stores share: prefixes of their own, and clusters."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from idempo.records import Key
from tests.servers.fixtures import Servers
from tests.servers.process import Server, free_port

PATIENCE = 30.0
HAS_RETRIES = int(redis.__version__.partition(".")[0]) >= 6
"""Whether the client tries again by itself; older ones do when told to."""
PATIENT: dict[str, Any] = (
    {}
    if HAS_RETRIES
    else {
        "retry": Retry(NoBackoff(), 5),
        "retry_on_error": [redis.ConnectionError, redis.TimeoutError],
    }
)
SLOTS = 16384


def new_prefix() -> str:
    """Return a prefix that no other test uses: servers are shared."""
    return f"test-{secrets.token_hex(6)}:"


def key(value: str = "order-42") -> Key:
    """Return a key in a namespace of these tests."""
    return Key("redis", value)


def claimed(store: Any, key: Key, owner: str = "owner-a", *, lease: float = 60.0) -> Any:
    """Claim for a minute."""
    return store.claim(key, owner=owner, fingerprint=None, lease=lease, ttl=60.0)


def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)


def start_cluster(servers: Servers, nodes: int, flavour: str = "valkey") -> Sequence[Server]:
    """Start a cluster whose slots are spread over so many nodes, and wait until they agree."""
    made, buses = [], []
    for _ in range(nodes):
        buses.append(free_port())  # by default port + 10000, which may be no port
        options = ("--cluster-enabled", "yes", "--cluster-port", str(buses[-1]))
        made.append(servers.redis(flavour, *options))
    for number, server in enumerate(made):
        with redis.Redis.from_url(server.url) as client:
            first, last = (SLOTS * part // nodes for part in (number, number + 1))
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last - 1)
            if number:
                client.execute_command("CLUSTER MEET", made[0].host, made[0].port, buses[0])
    deadline = time.monotonic() + PATIENCE
    while not all(_agrees(server, nodes) for server in made):
        assert time.monotonic() < deadline, "the nodes do not become a cluster"
        time.sleep(0.02)
    return made


def _agrees(server: Server, nodes: int) -> bool:
    with redis.Redis.from_url(server.url) as client:
        told = client.execute_command("CLUSTER INFO")
        return bool(told["cluster_state"] == "ok" and int(told["cluster_known_nodes"]) == nodes)
