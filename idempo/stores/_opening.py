"""From a URL to a store that owns its client, and closes it. A client library is imported for its own scheme only."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

from idempo.errors import StoreError
from idempo.stores import _sql_limits, _sql_options
from idempo.stores._urls import Address, read

_PATIENCE: Final = 5.0
"""Seconds that a client waits for its server, unless the URL says otherwise: no call of a store may hang."""


def open_store(url: str, options: Mapping[str, Any]) -> Any:
    """See `idempo.stores.store_from_url`."""
    address = read(url, options)
    return _SYNC[address.family](address)


def open_async_store(url: str, options: Mapping[str, Any]) -> Any:
    """See `idempo.stores.async_store_from_url`."""
    address = read(url, options)
    return _ASYNC[address.family](address)


# -- closing -------------------------------------------------------------------------------------------------------


def _owning(made: type, store: Callable[[Any], Any], close_client: Callable[[], object] | None = None) -> Any:
    """Return a store of a subclass that can be closed, by plain code and by coroutines, together with its client."""

    class Owner(made):  # type: ignore[misc]
        def close(self) -> None:
            try:
                close = getattr(super(), "close", None)
                if close is not None:
                    close()
            finally:
                if close_client is not None:
                    close_client()

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exc_info: object) -> None:
            self.close()

        async def aclose(self) -> None:
            import asyncio  # whoever awaits has it

            await asyncio.to_thread(self.close)

        async def __aenter__(self) -> Any:
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            await self.aclose()

    return _made(Owner, made, store, close_client)


def _owning_async(made: type, store: Callable[[Any], Any], close_client: Callable[[], Any] | None = None) -> Any:
    """Return a store of coroutines, of a subclass that is closed together with its client."""

    class Owner(made):  # type: ignore[misc]
        async def aclose(self) -> None:
            try:
                await super().aclose()
            finally:
                if close_client is not None:
                    await close_client()

        async def __aenter__(self) -> Any:
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            await self.aclose()

    return _made(Owner, made, store, None)


def _made(owner: type, made: type, store: Callable[[Any], Any], close_client: Callable[[], object] | None) -> Any:
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):  # it is shown as what it is
        setattr(owner, name, getattr(made, name))
    try:
        return store(owner)
    except BaseException:
        if close_client is not None:
            close_client()
        raise


@contextmanager
def _needing(extra: str, scheme: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("idempo"):
            raise
        raise ImportError(f'{scheme}:// needs {error.name}: pip install "idempo[{extra}]"') from error


# -- without a server ----------------------------------------------------------------------------------------------


def _memory(address: Address) -> Any:
    from idempo.stores.memory import MemoryStore

    if address.parts.netloc or address.parts.path:
        raise ValueError("memory:// has neither host nor path: every store made from it has its own memory")
    address.no_query()
    return _owning(MemoryStore, lambda owner: owner(**address.options))


def _sqlite(address: Address) -> Any:
    from idempo.stores.sqlite import SqliteStore

    address.only_path()
    if not address.path:
        raise ValueError("sqlite:// needs a path: sqlite:///records.db, or sqlite:////var/lib/records.db")
    return _owning(SqliteStore, lambda owner: owner(address.path, **address.options))


# -- Redis and Valkey ----------------------------------------------------------------------------------------------


def _redis(address: Address) -> Any:
    from idempo.stores.redis import RedisStore

    with _needing("redis", address.parts.scheme):
        import redis
        from redis import connection
    make = redis.RedisCluster.from_url if _is_cluster(address) else redis.Redis.from_url
    client = _redis_client(address, make, connection)
    return _owning(RedisStore, lambda owner: owner(client, **address.options), client.close)


def _async_redis(address: Address) -> Any:
    from idempo.stores.redis import AsyncRedisStore

    with _needing("redis", address.parts.scheme):
        from redis.asyncio import Redis, RedisCluster, connection
    make = RedisCluster.from_url if _is_cluster(address) else Redis.from_url
    client = _redis_client(address, make, connection)
    return _owning_async(AsyncRedisStore, lambda owner: owner(client, **address.options), client.aclose)


def _is_cluster(address: Address) -> bool:
    return address.parts.scheme.endswith("+cluster")


def _redis_client(address: Address, make: Callable[..., Any], connection: Any) -> Any:
    parts = address.parts
    scheme = parts.scheme.removesuffix("+cluster").replace("valkey", "redis")  # they speak one language
    if scheme != "unix":
        database = address.path.rstrip("/")
        if _is_cluster(address) and database:
            raise ValueError("a cluster has one database: leave the path away")
        if database and not database.isdecimal():
            # It is not shown: the rest of a password with a slash in it looks like one.
            raise ValueError(f"the path of {parts.scheme}:// is the number of a database, and no other text")
    classes = {"unix": connection.UnixDomainSocketConnection, "rediss": connection.SSLConnection}
    known = {*_parameters(classes.get(scheme, connection.Connection)), *_parameters(connection.ConnectionPool)}
    for name in address.for_client:
        if name not in known:
            address.refuse(name)
    address.refuse_no_time("socket_timeout", "socket_connect_timeout")
    try:
        # What the URL's query gives takes precedence.
        return make(
            address._replace(parts=parts._replace(scheme=scheme)).url,
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
        )
    except (TypeError, ValueError):  # not from the error itself, which may show a part of the URL
        raise ValueError(f"the redis client does not accept this {parts.scheme}:// URL's query") from None
    except Exception as error:  # a cluster's client asks the cluster at once
        raise StoreError(f"the cluster cannot be reached: {error}") from error


def _parameters(cls: type) -> set[str]:
    return {
        name
        for each in cls.__mro__
        for name, parameter in inspect.signature(vars(each).get("__init__", object.__init__)).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    } - {"self"}


# -- SQL -----------------------------------------------------------------------------------------------------------

_EXTRAS: Final = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql", "sqlite+aiosqlite": "aiosqlite"}


def _extra(scheme: str) -> str:
    return _EXTRAS.get(scheme) or _EXTRAS.get(scheme.partition("+")[0], "sqlalchemy")


def _sqlalchemy(address: Address) -> Any:
    scheme = address.parts.scheme
    with _needing(_extra(scheme), scheme):
        from sqlalchemy import create_engine

        from idempo.stores.sqlalchemy import SqlAlchemyStore

        engine = _engine(address, create_engine)
    if engine.dialect.is_async:
        raise ValueError(f"the driver of {scheme}:// is one of coroutines: use async_store_from_url, or another driver")
    _check_query(address, engine)
    return _owning(SqlAlchemyStore, lambda owner: owner(engine, **address.options), engine.dispose)


def _async_sqlalchemy(address: Address) -> Any:
    scheme = address.parts.scheme
    with _needing(_extra(scheme), scheme):
        import_module("greenlet")  # SQLAlchemy's own error is no ModuleNotFoundError
        from sqlalchemy.exc import InvalidRequestError
        from sqlalchemy.ext.asyncio import create_async_engine

        from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore

        try:
            engine = _engine(address, create_async_engine)
        except InvalidRequestError:
            raise ValueError(
                f"the driver of {scheme}:// is one of plain functions: use store_from_url, or another driver"
            ) from None
    _check_query(address, engine.sync_engine)
    return _owning_async(AsyncSqlAlchemyStore, lambda owner: owner(engine, **address.options), engine.dispose)


def _engine(address: Address, create: Callable[..., Any]) -> Any:
    from sqlalchemy.exc import InvalidRequestError, SAWarning

    driver = address.parts.scheme.partition("+")[2]
    limits = {
        name: value
        for name, value in _sql_limits.arguments(driver, _PATIENCE).items()
        if name not in address.for_client  # it would give way to them
    }
    address.options.setdefault("timeout", _PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)  # of what _check_query makes an error
            return create(address.url, connect_args=limits)
    except (ImportError, InvalidRequestError):
        raise
    except Exception:  # noqa: BLE001 (not from the error itself, which may show a part of the URL)
        raise ValueError(f"SQLAlchemy does not accept this {address.parts.scheme}:// URL") from None


def _check_query(address: Address, engine: Any) -> None:
    for name in _sql_options.unknown(engine.dialect, engine.url):
        address.refuse(name)


# -- memcached -----------------------------------------------------------------------------------------------------

_OF_MEMCACHED: Final[Mapping[str, Callable[[str], Any]]] = {
    "connect_timeout": float,
    "timeout": float,
    "max_pool_size": int,
}


def _memcached(address: Address) -> Any:
    with _needing("memcached", "memcached"):
        from pymemcache.client.base import PooledClient
        from pymemcache.client.hash import HashClient

        from idempo.stores.memcached import MemcachedStore
    if address.path or address.user != (None, None):
        raise ValueError("memcached:// has neither path nor user name and password")
    settings: dict[str, Any] = {"connect_timeout": _PATIENCE, "timeout": _PATIENCE}
    settings |= address.numbers(_OF_MEMCACHED)
    address.refuse_no_time("timeout", "connect_timeout")
    servers = address.hosts(11211)
    if len(servers) == 1:
        client = PooledClient(servers[0], **settings)
    else:
        client = HashClient(servers, use_pooling=True, **settings)
    return _owning(MemcachedStore, lambda owner: owner(client, **address.options), client.close)


# -- NATS ----------------------------------------------------------------------------------------------------------


def _nats(address: Address) -> Any:
    with _needing("nats", "nats"):
        from idempo.stores.nats import SyncNatsStore
    settings = _nats_settings(address)
    return _owning(SyncNatsStore, lambda owner: owner(**settings))


def _async_nats(address: Address) -> Any:
    with _needing("nats", "nats"):
        from idempo.stores.nats import NatsStore
    settings = _nats_settings(address)
    return _owning_async(NatsStore, lambda owner: owner.at(**settings))


def _nats_settings(address: Address) -> dict[str, Any]:
    address.no_query()
    name, password = address.user
    # Beside the servers: the client would take them with their percent-encoding, and tell its errors with them.
    if password is not None:
        login = {"user": name, "password": password}
    else:
        login = {"token": name} if name is not None else {}
    servers = [
        f"nats://[{host}]:{port}" if ":" in host else f"nats://{host}:{port}" for host, port in address.hosts(4222)
    ]
    settings = {"servers": servers, **address.options}
    if address.path:
        settings["bucket"] = address.path
    settings["connect"] = {**login, **(settings.get("connect") or {})}
    return settings


_SYNC: Final[Mapping[str, Callable[[Address], Any]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
    "sqlalchemy": _sqlalchemy,
    "memcached": _memcached,
    "nats": _nats,
}
_ASYNC: Final[Mapping[str, Callable[[Address], Any]]] = {
    **_SYNC,  # where a store serves coroutines itself
    "redis": _async_redis,
    "sqlalchemy": _async_sqlalchemy,
    "nats": _async_nats,
}
