"""Three NATS servers that keep one bucket between them; the one that leads is killed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import nats
import pytest

from idempo import Idempotency, StoreError
from idempo.stores.nats import NatsStore, SyncNatsStore
from idempo.testing import check_store
from tests.kv_support import KEY, claim, new_prefix
from tests.servers import every_server
from tests.servers.fixtures import Servers
from tests.servers.process import Server, free_port

PATIENCE = 60.0
BUCKET = "replicated"

pytestmark = pytest.mark.realtime


class Cluster:
    """Three servers, and the bucket of three replicas."""

    def __init__(self, servers: Servers) -> None:
        ports = [free_port() for _ in range(3)]
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        self.nodes: dict[str, Server] = {}
        for number, port in enumerate(ports):
            name = f"node-{number}"
            cluster = ("--cluster_name", "three", "--cluster", f"nats://127.0.0.1:{port}", "--routes", routes)
            self.nodes[name] = servers.nats("-n", name, *cluster)
        self.urls = [node.url for node in self.nodes.values()]
        asyncio.run(self._make_bucket())

    async def _make_bucket(self) -> None:
        deadline = time.monotonic() + PATIENCE
        client = await nats.connect(self.urls)
        while True:
            try:
                await NatsStore.create_bucket(client.jetstream(timeout=2), BUCKET, replicas=3)
                break
            except Exception:
                assert time.monotonic() < deadline, "the servers do not become a cluster"
                await asyncio.sleep(0.1)
        await client.close()

    def leader(self) -> Server:
        """Return the server that leads the bucket's stream."""

        async def ask() -> str:
            client = await nats.connect(self.urls)
            try:
                return str((await client.jetstream().stream_info(f"KV_{BUCKET}")).cluster.leader)
            finally:
                await client.close()

        return self.nodes[asyncio.run(ask())]

    def store(self, **options: Any) -> SyncNatsStore:
        return SyncNatsStore(self.urls, BUCKET, create=False, **{"prefix": new_prefix(), **options})


@pytest.fixture
def cluster(servers: Servers) -> Iterator[Cluster]:
    return Cluster(servers)


def test_the_leader_is_killed_in_mid_call_and_the_call_completes(cluster: Cluster) -> None:
    """Behaviours 1, 27, 33, 47: exactly one run; who waits in another client gets its value; tokens go on rising."""
    prefix = new_prefix()
    # An election takes some seconds, ten now and then: a step may last as long.
    with cluster.store(prefix=prefix, timeout=15.0) as store, cluster.store(prefix=prefix, timeout=15.0) as other:
        token = claim(store).record.token
        runs: list[int] = []
        begun = threading.Event()

        def effect() -> str:
            runs.append(1)
            begun.set()
            cluster.leader().kill()
            return "value"

        values: list[Any] = []
        guards = [Idempotency(each, namespace="n", lease=30, wait=60) for each in (store, other)]
        holder = threading.Thread(target=lambda: values.append(guards[0].run("k", effect)))
        holder.start()
        assert begun.wait(PATIENCE)
        values.append(guards[1].run("k", effect))
        holder.join(PATIENCE)
        assert (values, len(runs)) == (["value"] * 2, 1)
        assert store.delete(KEY)
        assert claim(store, "owner-b").record.token > token


@every_server
def test_over_the_loss_of_the_leader_answers_can_be_explained_by_single_steps(cluster: Cluster) -> None:
    """Behaviours 21-23, 34: by several clients at once, each of which may talk to another server."""
    with cluster.store(timeout=15.0) as store:
        assert store.get(KEY) is None
        leader = cluster.leader()
        killing = threading.Timer(1.0, leader.kill)
        killing.start()
        for seed in range(2):  # the seventh round is of a ttl that runs out, which is rounded up beyond slack
            check_store(store, rounds=6, unit=0.4, slack=0.2, seed=seed)
        killing.join()
        assert not leader.running


@every_server
def test_without_a_majority_nothing_runs_and_with_one_again_it_does(cluster: Cluster) -> None:
    """Behaviours 32, 47: one server of three decides nothing; what was stored before stands."""
    with cluster.store(timeout=1.0) as store:
        guard = Idempotency(store, namespace="n")
        assert guard.run("before", lambda: "first") == "first"
        nodes = list(cluster.nodes.values())
        for node in nodes[:2]:
            node.kill()
        with pytest.raises(StoreError):
            guard.run("meanwhile", pytest.fail)
        for node in nodes[:2]:
            node.start()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert guard.run("before", pytest.fail) == "first"
                assert guard.run("after", lambda: "second") == "second"
                break
            except StoreError:
                assert time.monotonic() < deadline
