"""The servers that the tests start: each answers, and can be killed, paused and started again."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.servers.fixtures import Servers
from tests.servers.process import Server
from tests.servers.proxy import Proxy

KINDS = ("redis", "postgres", "mysql", "memcached", "nats")


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_comes_back_on_its_port(servers: Servers, kind: str) -> None:
    """It is killed, is gone, and answers again at the same address; its folder goes with it."""
    server: Server = getattr(servers, kind)()
    url, first = server.url, server.pid
    server.kill()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((server.host, server.port), timeout=5)
    server.start()
    assert (server.url, server.pid != first) == (url, True)
    server.restart()
    server.pause()
    server.resume()
    folder: Path = server.folder
    server.close()
    assert not folder.exists()


def test_rabbitmq_answers(servers: Servers) -> None:
    """It starts, and leaves nothing behind."""
    server = servers.rabbitmq()
    assert server.running
    server.close()
    assert not server.running


def test_the_proxy_counts_turns_and_loses_answers(redis_url: str) -> None:
    """What the server did stands, though its answer never came; a request in two packets is one turn."""
    address = urlsplit(redis_url)
    assert address.hostname is not None
    assert address.port is not None
    key = f"proxy-{uuid4().hex}"
    with Proxy(address.hostname, address.port) as proxy:

        def ask(*parts: str) -> bytes:
            with socket.create_connection((proxy.host, proxy.port), timeout=5) as connection:
                for part in parts:
                    connection.sendall(part.encode())
                return connection.recv(4096)

        assert ask(f"INCR {key}\r\n") == b":1\r\n"
        proxy.drop_answers(only=lambda request: b"INCR" in request)
        assert ask("PING\r\n") == b"+PONG\r\n"
        with pytest.raises(ConnectionResetError):
            ask("INCR ", f"{key}\r\n")
        assert ask(f"GET {key}\r\n") == b"$1\r\n2\r\n"
        assert (proxy.connections, proxy.round_trips, proxy.dropped) == (4, 4, 1)
        proxy.refuse()
        with pytest.raises(OSError):
            assert not ask("PING\r\n")
        proxy.accept()
        assert ask(f"DEL {key}\r\n") == b":1\r\n"
