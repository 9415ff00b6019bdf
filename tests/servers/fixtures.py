"""The fixtures: an address of each kind of server for all tests to share, and servers for one test alone.

In order: the address that ``IDEMPO_TEST_REDIS_URL`` and its like give, a server from a wheel, the system's, a skip with
the reason. ``IDEMPO_REQUIRE_SERVERS=1`` fails instead of skipping.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.servers import flavours
from tests.servers.process import Server


class Servers:
    """Makes and starts servers, and ends them all."""

    def __init__(self) -> None:
        self._made: list[Server] = []

    def redis(self, flavour: str = "valkey", *options: str) -> Server:
        """Start a server of the Redis family: "valkey", "redis", "oldest" or "system"."""
        return self.start(flavours.redis(flavour, *options))

    def postgres(self, *options: str) -> Server:
        """Start a PostgreSQL server."""
        return self.start(flavours.postgres(*options))

    def mysql(self, *options: str) -> Server:
        """Start a MariaDB server."""
        return self.start(flavours.mysql(*options))

    def memcached(self, *options: str) -> Server:
        """Start a memcached server."""
        return self.start(flavours.memcached(*options))

    def nats(self, *options: str) -> Server:
        """Start a NATS server."""
        return self.start(flavours.nats(*options))

    def rabbitmq(self) -> Server:
        """Start a RabbitMQ server."""
        return self.start(flavours.rabbitmq())

    def start(self, server: Server) -> Server:
        """Start a server, to be ended with the others."""
        self._made.append(server)
        return server.start()

    def close(self) -> None:
        """End all of them."""
        while self._made:
            self._made.pop().close()


@pytest.fixture
def servers() -> Iterator[Servers]:
    """Servers of this test's own, to be killed, paused and restarted."""
    made = Servers()
    yield made
    made.close()


@pytest.fixture(scope="session")
def _shared() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


def _address(variable: str, start: Callable[[], Server]) -> str:
    return os.environ.get(f"IDEMPO_TEST_{variable}_URL") or start().url


@pytest.fixture(scope="session")
def redis_url(_shared: Servers) -> str:
    """The address of a Redis or Valkey server that all tests share."""
    return _address("REDIS", _shared.redis)


@pytest.fixture(scope="session")
def postgres_url(_shared: Servers) -> str:
    """The address of a PostgreSQL database that all tests share."""
    return _address("POSTGRES", _shared.postgres)


@pytest.fixture(scope="session")
def mysql_url(_shared: Servers) -> str:
    """The address of a MariaDB or MySQL database that all tests share."""
    return _address("MYSQL", _shared.mysql)


@pytest.fixture(scope="session")
def memcached_url(_shared: Servers) -> str:
    """The address of a memcached server that all tests share."""
    return _address("MEMCACHED", _shared.memcached)


@pytest.fixture(scope="session")
def nats_url(_shared: Servers) -> str:
    """The address of a NATS server with JetStream that all tests share."""
    return _address("NATS", _shared.nats)


@pytest.fixture(scope="session")
def rabbitmq_url(_shared: Servers) -> str:
    """The address of a RabbitMQ server that all tests share."""
    return _address("RABBITMQ", _shared.rabbitmq)
