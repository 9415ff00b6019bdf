"""The servers that are measured against: the tests' own, started on this machine when they are first asked for.

As for the tests, the address that ``IDEMPO_TEST_REDIS_URL`` and its like give comes first, then a server from a wheel,
then the system's. What is not here is left out, with the reason; under ``IDEMPO_REQUIRE_SERVERS=1`` that is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from urllib.parse import urlsplit

import attrs


@attrs.frozen
class _Kind:
    variable: str
    flavour: str
    libraries: tuple[str, ...]
    ask_version: Callable[[str], str]


def _redis_version(url: str) -> str:
    with import_module("redis").Redis.from_url(url) as client:
        info = client.info("server")
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"


def _sql_version(statement: str, name: str) -> Callable[[str], str]:
    def ask(url: str) -> str:
        sqlalchemy = import_module("sqlalchemy")
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            found = connection.execute(sqlalchemy.text(statement)).scalar()
        engine.dispose()
        return f"{name} {str(found).split('-')[0]}"

    return ask


def _memcached_version(url: str) -> str:
    address = urlsplit(url)
    client = import_module("pymemcache").Client((address.hostname, address.port))
    found = client.version().decode()
    client.close()
    return f"memcached {found}"


def _nats_version(url: str) -> str:
    import asyncio

    async def ask() -> str:
        client = await import_module("nats").connect(url)
        found = client.connected_server_version
        await client.close()
        return f"nats-server {found.major}.{found.minor}.{found.patch}"

    return asyncio.run(ask())


_KINDS: Final = {
    "redis": _Kind("REDIS", "redis", ("redis",), _redis_version),
    "postgresql": _Kind(
        "POSTGRES", "postgres", ("sqlalchemy", "psycopg"), _sql_version("SHOW server_version", "PostgreSQL")
    ),
    "mariadb": _Kind(
        "MYSQL", "mysql", ("sqlalchemy", "pymysql", "asyncmy"), _sql_version("SELECT version()", "MariaDB")
    ),
    "memcached": _Kind("MEMCACHED", "memcached", ("pymemcache",), _memcached_version),
    "nats": _Kind("NATS", "nats", ("nats-py",), _nats_version),
}
_IMPORTED_AS: Final = {"nats-py": "nats"}


class Servers:
    """Starts each server when its address is first asked for, and ends them all with the block.

    Attributes:
        missing: Why one is not here, by name.
        versions: What answered, and what was used to ask it, by name.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._urls: dict[str, str] = {}
        self._started: list[Any] = []

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._started:
            self._started.pop().close()

    def url(self, name: str) -> str | None:
        """Return the address of "redis", "postgresql", "mariadb", "memcached" or "nats"; None where there is none.

        Raises:
            LookupError: There is none, and IDEMPO_REQUIRE_SERVERS demands it.
        """
        if name not in self._urls and name not in self.missing:
            try:
                self._urls[name] = self._find(_KINDS[name])
            except LookupError as error:
                if os.environ.get("IDEMPO_REQUIRE_SERVERS"):
                    raise
                self.missing[name] = str(error)
        return self._urls.get(name)

    def _find(self, kind: _Kind) -> str:
        for library in kind.libraries:
            try:
                import_module(_IMPORTED_AS.get(library, library))
            except ImportError as error:
                raise LookupError(f"{library} cannot be imported: {error}") from error
        url = os.environ.get(f"IDEMPO_TEST_{kind.variable}_URL") or self._start(kind)
        server, _, number = kind.ask_version(url).partition(" ")
        self.versions[server] = number
        for library in kind.libraries:
            self.versions[library] = version(library)
        return url

    def _start(self, kind: _Kind) -> str:
        try:
            import pytest

            from tests.servers import flavours
        except ImportError as error:
            raise LookupError(f"the tests' servers are not here: {error}") from error
        try:
            server = getattr(flavours, kind.flavour)()
        except (pytest.skip.Exception, pytest.fail.Exception) as error:  # how the tests say that there is none
            raise LookupError(str(error)) from None
        self._started.append(server)
        server.start()
        url: str = server.url
        return url


def version_of(package: str) -> str | None:
    """Return the version of a package that may not be installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
