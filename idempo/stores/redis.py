"""Records in Redis or Valkey: shared by every process that reaches the server, judged by the server's clock.

The client is yours, of the library that you use already: *redis*, or *valkey*.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Final

from idempo.records import Claim, Key, Record
from idempo.stores import _redis_scripts as scripts
from idempo.stores._redis_clients import Eviction, RedisClient, checked_client, checked_eviction, judge, unasked
from idempo.stores._redis_lane import Lane
from idempo.stores._redis_listening import AsyncListeners, Listener
from idempo.stores._redis_records import (
    Names,
    claim_of,
    is_unknown_script,
    key_of,
    microseconds,
    optional,
    overriding,
    record_of,
    sealed,
    text,
    translated,
)
from idempo.stores._redis_scripts import Script

__all__ = ["AsyncRedisStore", "RedisStore"]

_BATCH: Final = 200
_RAW: Final = {"NEVER_DECODE": True}  # an outcome is bytes, even to a client that decodes what it is answered


class _Requests:
    """What both stores are, and what they send."""

    blocking: Final = True
    shared: Final = True

    _client: Any

    def __init__(self, client: Any, prefix: str, eviction: Eviction) -> None:
        self._client = client
        self._names = Names(prefix)
        self._eviction: Eviction = checked_eviction(eviction)
        self._execute = client.execute_command
        self._name = self._names.of
        self._checked = eviction == "allow"

    @property
    def prefix(self) -> str:
        """What every key in the server begins with."""
        return self._names.prefix

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._client).__name__}, prefix={self.prefix!r})"

    def _judge(self, answers: list[Any]) -> None:
        judge(answers, self._eviction)
        self._checked = True

    def _in_batches(self, script: Script, batch: list[Any], *args: bytes) -> Any:
        """Return a pipeline that runs a script for each of the keys."""
        pipeline = self._client.pipeline(transaction=False)
        for name in batch:
            # Not by its digest: a pipeline cannot look whether the server knows it.
            pipeline.execute_command("EVAL", script.text, 1, name, *args, **_RAW)
        return pipeline


class RedisStore(_Requests):
    """Keeps records in Redis or Valkey, one key each, and lets the server's clock judge them.

    Works with a server alone, with replicas and Sentinel, and with a Cluster. Each method is one script and one round
    trip: a fresh call costs two, a replay one. The server forgets expired records by itself. Duplicates of a call that
    runs in another process wait for a message from the server, with a slow poll beside it; that takes one more
    connection of the client's pool while there are any.
    Of a pool of 50 or more connections the store keeps one for itself, until it is closed or gone.

    What the server loses, runs again: a failover can lose what was acknowledged just before it (replication is
    asynchronous), and so can a restart, by its settings for persistence.

    Args:
        client: A ``redis.Redis``, a ``redis.cluster.RedisCluster``, or one of *valkey*; its settings,
            retries and pool are yours. Give it a ``socket_timeout``: a server that hangs
            holds up a call for as long as that, retries included.
        prefix: What every key in the server begins with, 1 to 100 printable ASCII characters: two prefixes are two
            stores.
        eviction: What to do about a server whose ``maxmemory-policy`` is not ``noeviction``, so that it may drop
            claims: "refuse" (StoreError at the first claim, and at `check`), "warn" in the log, or "allow", which does
            not ask.

    Raises:
        TypeError: The client is none, or one of coroutines.
        ValueError: An option is out of its range.

    >>> from redis import Redis  # doctest: +SKIP
    >>> guard = Idempotency(RedisStore(Redis()), namespace="billing")  # doctest: +SKIP
    """

    def __init__(self, client: RedisClient, *, prefix: str = "idempo:", eviction: Eviction = "refuse") -> None:
        super().__init__(checked_client(client, wants_coroutines=False), prefix, eviction)
        self._listener = Listener(self._client, self.prefix)
        self._lane = Lane(self._client)

    def __enter__(self) -> RedisStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and give all connections back. The client stays open, and the store can be used on."""
        self._listener.close()
        self._lane.close()

    def check(self) -> None:
        """Ask every server that holds records for its ``maxmemory-policy``. The first claim does it, too.

        Raises:
            StoreError: A server may evict records, and that is to be refused; or one did not answer.
        """
        client = self._client
        try:
            if hasattr(client, "get_primaries"):
                nodes = client.get_primaries()
                answers = [client.execute_command("INFO", "memory", target_nodes=node) for node in nodes]
            else:
                answers = [client.execute_command("INFO", "memory")]
        except Exception as error:
            if not unasked(error):
                raise translated(error, None) from error
            answers = []
        self._judge(answers)

    def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """See `Store.claim`.

        Raises:
            StoreFullError: The server has reached its maxmemory.
        """
        if not self._checked:
            self.check()
        answer = self._run(
            scripts.CLAIM,
            key,
            text(owner),
            optional(fingerprint),
            microseconds(lease),
            microseconds(ttl),
            overriding(take_over),
            text(key.namespace),
            text(key.value),
        )
        return claim_of(answer, key, owner, fingerprint, lease, ttl)

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`. Also when the server has reached its maxmemory."""
        return bool(self._run(scripts.COMPLETE, key, text(owner), sealed(outcome), microseconds(ttl)))

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`. Also when the server has reached its maxmemory."""
        names = (text(key.namespace), text(key.value))
        return bool(self._run(scripts.RELEASE, key, text(owner), microseconds(ttl), *names))

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`. Also when the server has reached its maxmemory."""
        return bool(self._run(scripts.RENEW, key, text(owner), microseconds(lease), microseconds(ttl)))

    def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        answer = self._run(scripts.GET, key)
        return answer and record_of(key, *answer[1:])

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        return bool(self._run(scripts.DELETE, key, optional(None if owner is None else text(owner))))

    def watch(self, key: Key, wake: Callable[[], None]) -> AbstractContextManager[None]:
        """See `WatchableStore.watch`. Entering raises StoreError where the server does not confirm it at once."""
        return self._listener.watch(self._name(key), wake)

    def scan(self, namespace: str) -> Iterator[tuple[Key, Record]]:
        """See `ScannableStore.scan`. The server looks at all of its keys for it, a few at a time."""
        seen: set[Any] = set()
        for batch in self._batches(namespace):
            new = [name for name in batch if name not in seen]
            seen.update(new)  # the server may show a key twice
            yield from _found(self._each(scripts.GET, new))

    def purge(self, namespace: str) -> int:
        """See `PurgeableStore.purge`. Looks for them as `scan` does; removes damaged records, too."""
        return sum(_removed(self._each(scripts.DELETE, batch, b"")) for batch in self._batches(namespace))

    def _batches(self, namespace: str) -> Iterator[list[Any]]:
        names = iter(self._client.scan_iter(match=self._names.pattern(namespace), count=_BATCH))
        while True:
            batch: list[Any] = []
            try:
                for name in names:
                    batch.append(name)
                    if len(batch) == _BATCH:
                        break
            except Exception as error:
                raise translated(error, None) from error
            if not batch:
                return
            yield batch

    def _each(self, script: Script, batch: list[Any], *args: bytes) -> list[Any]:
        try:
            answers: list[Any] = self._in_batches(script, batch, *args).execute(raise_on_error=False)
            return answers
        except Exception as error:
            raise translated(error, None) from error

    def _run(self, script: Script, key: Key, *args: bytes) -> Any:
        try:
            return self._lane.ask(script, self._name(key), args)
        except Exception as error:
            raise translated(error, key) from error


class AsyncRedisStore(_Requests):
    """`RedisStore` for coroutines, over a client of ``redis.asyncio`` or ``valkey.asyncio``.

    A client belongs to one event loop, and so does its store.

    Args:
        client: A ``redis.asyncio.Redis``, a ``redis.asyncio.cluster.RedisCluster``, or one of *valkey*.
        prefix: See `RedisStore`.
        eviction: See `RedisStore`.

    Raises:
        TypeError: The client is none, or one of plain methods.
        ValueError: An option is out of its range.
    """

    def __init__(self, client: RedisClient, *, prefix: str = "idempo:", eviction: Eviction = "refuse") -> None:
        super().__init__(checked_client(client, wants_coroutines=True), prefix, eviction)
        self._listeners = AsyncListeners(self._client, self.prefix)

    async def __aenter__(self) -> AsyncRedisStore:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See `RedisStore.close`: for the running loop. Else the task for listening ends after ten idle seconds."""
        await self._listeners.of_this_loop().close()

    async def check(self) -> None:
        """See `RedisStore.check`."""
        client = self._client
        try:
            if hasattr(client, "get_primaries"):
                await client.initialize()
                nodes = client.get_primaries()
                answers = [await client.execute_command("INFO", "memory", target_nodes=node) for node in nodes]
            else:
                answers = [await client.execute_command("INFO", "memory")]
        except Exception as error:
            if not unasked(error):
                raise translated(error, None) from error
            answers = []
        self._judge(answers)

    async def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """See `RedisStore.claim`."""
        if not self._checked:
            await self.check()
        answer = await self._run(
            scripts.CLAIM,
            key,
            text(owner),
            optional(fingerprint),
            microseconds(lease),
            microseconds(ttl),
            overriding(take_over),
            text(key.namespace),
            text(key.value),
        )
        return claim_of(answer, key, owner, fingerprint, lease, ttl)

    async def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `RedisStore.complete`."""
        return bool(await self._run(scripts.COMPLETE, key, text(owner), sealed(outcome), microseconds(ttl)))

    async def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `RedisStore.release`."""
        names = (text(key.namespace), text(key.value))
        return bool(await self._run(scripts.RELEASE, key, text(owner), microseconds(ttl), *names))

    async def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `RedisStore.renew`."""
        return bool(await self._run(scripts.RENEW, key, text(owner), microseconds(lease), microseconds(ttl)))

    async def get(self, key: Key) -> Record | None:
        """See `RedisStore.get`."""
        answer = await self._run(scripts.GET, key)
        return answer and record_of(key, *answer[1:])

    async def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `RedisStore.delete`."""
        return bool(await self._run(scripts.DELETE, key, optional(None if owner is None else text(owner))))

    def watch(self, key: Key, wake: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """See `RedisStore.watch`."""
        return self._listeners.of_this_loop().watch(self._name(key), wake)

    async def scan(self, namespace: str) -> AsyncIterator[tuple[Key, Record]]:
        """See `RedisStore.scan`."""
        seen: set[Any] = set()
        async for batch in self._batches(namespace):
            new = [name for name in batch if name not in seen]
            seen.update(new)
            for found in _found(await self._each(scripts.GET, new)):
                yield found

    async def purge(self, namespace: str) -> int:
        """See `RedisStore.purge`."""
        return sum([_removed(await self._each(scripts.DELETE, batch, b"")) async for batch in self._batches(namespace)])

    async def _batches(self, namespace: str) -> AsyncIterator[list[Any]]:
        batch: list[Any] = []
        try:
            async for name in self._client.scan_iter(match=self._names.pattern(namespace), count=_BATCH):
                batch.append(name)
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
        except Exception as error:
            raise translated(error, None) from error
        if batch:
            yield batch

    async def _each(self, script: Script, batch: list[Any], *args: bytes) -> list[Any]:
        try:
            answers: list[Any] = await self._in_batches(script, batch, *args).execute(raise_on_error=False)
            return answers
        except Exception as error:
            raise translated(error, None) from error

    async def _run(self, script: Script, key: Key, *args: bytes) -> Any:
        name = self._name(key)
        try:
            try:
                return await self._execute(*script.first, 1, name, *args, NEVER_DECODE=True)
            except Exception as error:
                if not is_unknown_script(error):
                    raise
                return await self._execute("EVAL", script.text, 1, name, *args, NEVER_DECODE=True)
        except Exception as error:
            raise translated(error, key) from error


def _found(answers: list[Any]) -> Iterator[tuple[Key, Record]]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise translated(answer, None)
        if answer is not None:
            key = key_of(answer[3])
            yield key, record_of(key, *answer[1:])


def _removed(answers: list[Any]) -> int:
    for answer in answers:
        if isinstance(answer, Exception):
            raise translated(answer, None)
    return sum(answers)
