"""Records in memcached, by pymemcache. Install it with the extra: ``pip install "idempo[memcached]"``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final, TypeAlias, TypeVar

try:
    from pymemcache.client.base import Client, PooledClient
    from pymemcache.client.hash import HashClient
    from pymemcache.client.retrying import RetryingClient
    from pymemcache.exceptions import MemcacheError, MemcacheServerError
    from pymemcache.pool import ObjectPool
    from pymemcache.serde import LegacyWrappingSerde
except ImportError as error:  # pragma: no cover  # the test environments have it
    raise ImportError('idempo.stores.memcached needs pymemcache: pip install "idempo[memcached]"') from error

from idempo._checks import check_limit
from idempo._fork import forks, new_lock
from idempo.errors import StoreError, StoreFullError
from idempo.stores.cas import CasStore

__all__ = ["MemcachedStore"]

_Answer = TypeVar("_Answer")
_Inner: TypeAlias = "Client | PooledClient | HashClient"

_LONGEST_KEY: Final = 250
_DIGITS: Final = 64
_LONGEST_RELATIVE: Final = 30 * 24 * 60 * 60
_LAST_TIME: Final = (1 << 31) - 1  # a later one wraps, and the record is gone at once

# HashClient's own book of failed servers is not made for threads, and a used-up pool is a RuntimeError.
_FAILURES: Final = (MemcacheError, OSError, RuntimeError, KeyError)


class MemcachedStore(CasStore):
    """Best effort: keeps records in memcached, which evicts what it likes, and forgets everything at a restart.

    An operation whose record is gone runs again. Where that must not be, use another store.

    Fresh calls take four round trips (a claim two, its end two), replays one, renewals two. A ``ttl`` of more than
    thirty days costs one more, for the server's time. What else holds is said of `CasStore`: leases are watched, and a
    dead holder is taken over by a client that has watched it for a full lease.

    Args:
        client: A ``Client``, ``PooledClient``, ``HashClient`` or ``RetryingClient`` of pymemcache, with
            ``connect_timeout`` and ``timeout``, and without a serde or ``ignore_exc``. Calls on a client that does not
            pool its connections wait for each other: threads share a ``PooledClient``, or a ``HashClient`` with
            ``use_pooling=True``. A forked child opens connections of its own.
        prefix: What every key in the server begins with: visible ASCII characters, at most 186 of them, less the
            client's own ``key_prefix``. Two prefixes are two stores.
        largest_outcome: The largest outcome that is sent, in bytes; a larger one becomes a *lost* one. By default what
            fits below memcached's own limit of 1 MiB (its option ``-I``).
        max_watched: See `CasStore`.
        clock: See `CasStore`.
        wall_clock: See `CasStore`.

    Raises:
        TypeError: The client is none of pymemcache's, or has a serde; another argument is of the wrong type.
        ValueError: The client may wait for ever, or takes errors for absence; the prefix cannot be part of a key; a
            number is too small.
    """

    def __init__(
        self,
        client: Client | PooledClient | HashClient | RetryingClient,
        *,
        prefix: str = "idempo-",
        largest_outcome: int = 1_000_000,
        max_watched: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        inner = _inner(client)
        for member in _members(inner):
            _check(member)
        if getattr(inner, "ignore_exc", False):
            raise ValueError("a client with ignore_exc=True takes errors for absence, and operations would run again")
        check_limit(largest_outcome, "largest_outcome")
        super().__init__(
            _Backend(client, inner), prefix=prefix, max_watched=max_watched, clock=clock, wall_clock=wall_clock
        )
        _check_prefix(prefix, inner)
        self.largest_outcome: int = largest_outcome
        self._client_name = type(client).__name__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._client_name}, prefix={self._book.prefix!r})"


class _Backend:
    """The four methods of `CasBackend`, over gets, add, cas and delete.

    A revision is a digest of the value, not memcached's "cas unique": those begin anew with the server, so that one
    could come again for a key, and add does not tell them. They are asked for right before they are used.
    """

    lasting_revisions = False

    def __init__(self, client: Any, inner: _Inner) -> None:
        self._client = client  # the user's own, with its retries
        self._inner = inner
        self._pooled = all(isinstance(member, PooledClient) for member in _members(inner))
        self._lock = new_lock()
        self._generation = forks.generation
        self._talking = False

    def get(self, key: str) -> tuple[bytes, int] | None:
        value, _ = self._gets(key)
        return None if value is None else (value, _revision(value))

    def add(self, key: str, value: bytes, ttl: float) -> int | None:
        expire = self._expire(key, ttl)
        added = self._ask(lambda: self._client.add(key, value, expire=expire, noreply=False))
        return _revision(value) if added else None

    def compare_and_swap(self, key: str, value: bytes, revision: int, ttl: float) -> int | None:
        expire = self._expire(key, ttl)
        return _revision(value) if self._replace(key, value, revision, expire) else None

    def delete(self, key: str, revision: int | None = None) -> bool:
        if revision is None:
            return bool(self._ask(lambda: self._client.delete(key, noreply=False)))
        # memcached's delete takes no cas unique: an empty value that has expired before it is written is the same.
        return self._replace(key, b"", revision, expire=-1)

    def _replace(self, key: str, value: bytes, revision: int, expire: int) -> bool:
        found, unique = self._gets(key)
        if found is None or _revision(found) != revision:
            return False
        return bool(self._ask(lambda: self._client.cas(key, value, unique, expire=expire, noreply=False)))

    def _gets(self, key: str) -> tuple[bytes | None, Any]:
        answer = self._ask(lambda: self._client.gets(key))
        if answer is None:
            # HashClient says so of a server that has just failed, whatever its keys.
            raise StoreError("memcached failed a moment ago, and the client does not ask it yet")
        value, unique = answer
        return value, unique

    def _expire(self, key: str, ttl: float) -> int:
        """Return memcached's ``exptime``: seconds from now up to thirty days, beyond that a time by the server's clock.

        See "Expiration times" in memcached's protocol.txt. The server's clock ticks once a second, so that what is to
        be kept for N seconds may be gone up to one second early: it is asked for one more.
        """
        seconds = math.ceil(ttl) + 1
        if seconds <= _LONGEST_RELATIVE:
            return seconds
        if seconds < _LAST_TIME:
            now = int(self._ask(lambda: self._member(key).stats())[b"time"])
            if now + seconds <= _LAST_TIME:
                return now + seconds
        raise StoreError(f"memcached keeps nothing for {ttl} seconds: its last time is in January 2038; use less ttl")

    def _member(self, key: str) -> Any:
        if not isinstance(self._inner, HashClient):
            return self._inner
        node = self._inner.hasher.get_node(key)
        if node is None:
            raise StoreError("all memcached servers seem to be down")
        return self._inner.clients[node]

    def _ask(self, request: Callable[[], _Answer]) -> _Answer:
        if self._generation != forks.generation:
            with self._lock:
                self._leave_to_parent()
        try:
            return request() if self._pooled else self._alone(request)
        except MemcacheServerError as error:
            if b"out of memory" in _said(error):
                raise StoreFullError("memcached is out of memory, and may evict nothing (-M), or too little") from error
            raise _failed(error) from error
        except _FAILURES as error:
            raise _failed(error) from error

    def _alone(self, request: Callable[[], _Answer]) -> _Answer:
        with self._lock:
            if self._talking:
                # A signal handler, or a finalizer, in the middle of this thread's own request: it would be given the
                # answer to that.
                raise StoreError("the client is in use further up on this thread's own stack: use a PooledClient")
            self._talking = True
            try:
                return request()
            except Exception:
                raise
            except BaseException:
                # pymemcache closes a connection after an error. After an interrupt too: an answer may be on its way.
                self._close()
                raise
            finally:
                self._talking = False

    def _leave_to_parent(self) -> None:
        if self._generation != forks.generation:  # pragma: no branch  # another thread may have been before this one
            for member in _members(self._inner):
                _anew(member)
            self._talking = False
            self._generation = forks.generation

    def _close(self) -> None:
        for member in _members(self._inner):
            member.close()


def _anew(member: Client | PooledClient) -> None:
    """Let go of inherited connections, and of a pool whose lock a thread of the parent may have held."""
    if not isinstance(member, PooledClient):
        member.close()
        return
    pool = member.client_pool
    for connection in (*pool.free, *pool.used):
        connection.close()
    member.client_pool = ObjectPool(
        member._create_client,
        after_remove=lambda connection: connection.close(),
        max_size=pool.max_size,
        idle_timeout=pool.idle_timeout,
    )


def _revision(value: bytes) -> int:
    return int.from_bytes(sha256(value).digest()[:8], "big")


def _said(error: MemcacheError) -> bytes:
    said = error.args[0] if error.args else b""
    return said if isinstance(said, bytes) else str(said).encode()


def _failed(error: Exception) -> StoreError:
    return StoreError(f"memcached failed: {type(error).__name__}: {error}")


def _inner(client: object) -> _Inner:
    inner = client._client if isinstance(client, RetryingClient) else client
    if not isinstance(inner, Client | PooledClient | HashClient):
        raise TypeError(f"client must be one of pymemcache's clients, not {type(client).__name__}")
    return inner


def _members(inner: _Inner) -> list[Client | PooledClient]:
    return list(inner.clients.values()) if isinstance(inner, HashClient) else [inner]


def _check(member: Client | PooledClient) -> None:
    serde = member.serde
    plain = isinstance(serde, LegacyWrappingSerde) and all(
        getattr(method, "__self__", None) is serde for method in (serde.serialize, serde.deserialize)
    )
    if not plain:
        raise TypeError(
            "the client has a serde, which would change what is kept, and might unpickle what others wrote: make a"
            " client of its own for idempo, without one"
        )
    for option in ("connect_timeout", "timeout"):
        if getattr(member, option) is None:
            raise ValueError(f"the client has no {option}, and would wait for ever: give it one, in seconds")
        if getattr(member, option) <= 0:
            raise ValueError(f"the client's {option} must be more than 0 seconds, not {getattr(member, option):g}")
    if member.ignore_exc:
        raise ValueError("a client with ignore_exc=True takes errors for absence, and operations would run again")


def _check_prefix(prefix: str, inner: _Inner) -> None:
    if not all("!" <= character <= "~" for character in prefix):
        raise ValueError(f"prefix must be visible ASCII characters without spaces, not {prefix!r}")
    before = max((len(member.key_prefix) for member in _members(inner)), default=0)
    longest = _LONGEST_KEY - _DIGITS - before
    if len(prefix) > longest:
        raise ValueError(f"prefix must be at most {longest} characters with this client, not {len(prefix)}")
