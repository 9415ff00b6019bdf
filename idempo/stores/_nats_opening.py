"""The bucket of a NatsStore on each event loop: the user's own, or one behind a connection that the store opens."""

from __future__ import annotations

import asyncio
import math
import re
import socket
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from idempo.errors import StoreError
from idempo.stores._nats_bucket import FAILURES, Bucket, KeyValue, failed, judge, one_try, open_bucket, persistently

_BUCKET: Final = re.compile("[-_a-zA-Z0-9]+")
_PAUSE: Final = 0.25  # seconds between two openings at least, however many calls want one


class Opener(Protocol):
    """Comes to a bucket on the running event loop."""

    name: str
    """The bucket's."""

    async def open(self) -> KeyValue:
        """Return the bucket."""
        ...

    def is_over(self, bucket: KeyValue, /) -> bool:
        """Say whether its connection was closed for good, and another is to be opened in its place."""
        ...

    async def close(self, bucket: KeyValue) -> None:
        """Let go of a bucket."""
        ...


class Given:
    """The user's own bucket, on a connection of the user's."""

    def __init__(self, bucket: KeyValue) -> None:
        self._bucket = bucket
        self.name = str(bucket._name)
        self._loop: weakref.ReferenceType[asyncio.AbstractEventLoop] | None = None

    async def open(self) -> KeyValue:
        """See `Opener.open`.

        Raises:
            StoreError: Another event loop has used the bucket before, and its connection belongs to that.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = weakref.ref(loop)
        elif self._loop() is not loop:
            raise StoreError("the bucket's connection belongs to another event loop: make a store for each loop")
        return self._bucket

    def is_over(self, _: KeyValue) -> bool:
        """See `Opener.is_over`: whatever became of the user's, there is no other."""
        return False

    async def close(self, bucket: KeyValue) -> None:
        """See `Opener.close`: the user's stays open."""


class Connecting:
    """A connection of the store's own to each event loop.

    Args:
        servers: One URL, or several of one cluster.
        bucket: The bucket's name.
        create: Whether to make the bucket where there is none.
        replicas: Of a bucket that is made.
        timeout: For connecting, in seconds.
        connect: What else `nats.connect` is to be given.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        bucket: str,
        *,
        create: bool,
        replicas: int,
        timeout: float,
        connect: Mapping[str, Any],
    ) -> None:
        several = isinstance(servers, Sequence) and not isinstance(servers, bytes)
        self._servers = [servers] if isinstance(servers, str) else list(servers) if several else []
        if not self._servers or not all(isinstance(server, str) for server in self._servers):
            raise TypeError(f"servers must be a URL, or several in a list, not {type(servers).__name__}")
        if not isinstance(bucket, str):
            raise TypeError(f"bucket must be a name, not {type(bucket).__name__}")
        if not _BUCKET.fullmatch(bucket):
            raise ValueError(f"bucket must be letters, digits, - and _, not {bucket!r}")
        self.name = bucket
        self._create = create
        self._replicas = replicas
        self._timeout = timeout
        self._connect = connect

    async def open(self) -> KeyValue:
        """See `Opener.open`.

        Raises:
            StoreError: No server could be reached, or there is no such bucket.
        """
        from nats.aio.client import Client

        client: Any = Client()
        told: list[Exception] = []

        async def note(error: Exception) -> None:
            # It is left to the calls, each of which says what failed it: nats-py would log the same again, by itself.
            told[:] = [error]

        options = {
            "connect_timeout": self._timeout,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.1,
            "error_cb": note,
            **self._connect,
        }
        try:
            async with asyncio.timeout(self._timeout):
                await client.connect(servers=self._servers, **options)
                js = client.jetstream(timeout=one_try(self._timeout))
                bucket, _ = await persistently(
                    lambda: open_bucket(js, self.name, create=self._create, replicas=self._replicas), self._timeout
                )
                return bucket
        except FAILURES as error:
            reached = client.is_connected
            await _close(client)
            if isinstance(error, TimeoutError) and not reached:
                raise self._unreached(told) from error
            raise failed(error) from error
        except BaseException:
            await _close(client)
            raise

    def _unreached(self, told: list[Exception]) -> StoreError:
        # Without what stands before a host: it may be a password.
        where = ", ".join(server.rpartition("//")[2].rpartition("@")[2] for server in self._servers)
        match told:
            case [socket.gaierror()]:
                why = "unknown host"
            case [ConnectionRefusedError()]:
                why = "connection refused"
            case [OSError(strerror=str() as said)] if not isinstance(told[0], TimeoutError):
                why = said
            case _:
                why = f"no answer within {self._timeout:g} seconds"
        return StoreError(f"NATS cannot be reached at {where}: {why}")

    def is_over(self, bucket: KeyValue) -> bool:
        """See `Opener.is_over`: nats-py gives up after so many tries, or where the server refuses the user."""
        return bool(bucket._js._nc.is_closed)

    async def close(self, bucket: KeyValue) -> None:
        """See `Opener.close`."""
        await _close(bucket._js._nc)


async def _close(client: Any) -> None:
    # Whatever it is: older ones trip over a connection that never was, and nobody wants this one any more.
    with suppress(Exception):
        await client.close()


class LazyBucket:
    """`AsyncCasBackend` over a bucket that is opened, and judged, when an event loop first needs it."""

    lasting_revisions = True

    def __init__(self, opener: Opener, timeout: float) -> None:
        self._opener = opener
        self.name = opener.name
        self._timeout = timeout
        self._opened: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[tuple[KeyValue, Bucket]]] = (
            weakref.WeakKeyDictionary()
        )
        self._last: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, float] = weakref.WeakKeyDictionary()

    async def opened(self) -> Bucket:
        """Return the bucket of the running loop.

        Raises:
            StoreError: It cannot be reached, or will not do.
        """
        loop = asyncio.get_running_loop()
        task = self._opened.get(loop)
        if task is None or self._is_spent(task):
            task = self._opened[loop] = loop.create_task(self._open())
            task.add_done_callback(_seen)
        if not task.done():
            # One that is cancelled leaves it to the others who wait for the same.
            await asyncio.wait([task])
        if task.cancelled():
            raise StoreError("the store was closed while it connected")
        return task.result()[1]

    def _is_spent(self, task: asyncio.Task[tuple[KeyValue, Bucket]]) -> bool:
        if not task.done():
            return False
        return task.cancelled() or task.exception() is not None or self._opener.is_over(task.result()[0])

    async def close(self) -> None:
        """Let go of the bucket of the running loop."""
        loop = asyncio.get_running_loop()
        task = self._opened.pop(loop, None)
        self._last.pop(loop, None)
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        if task is not None and not task.cancelled() and task.exception() is None:
            await self._opener.close(task.result()[0])

    async def _open(self) -> tuple[KeyValue, Bucket]:
        loop = asyncio.get_running_loop()
        pause = self._last.get(loop, -math.inf) + _PAUSE - loop.time()
        if pause > 0:
            await asyncio.sleep(pause)
        self._last[loop] = loop.time()
        bucket = await self._opener.open()
        try:
            limit = one_try(self._timeout)
            status, _ = await persistently(lambda: asyncio.wait_for(bucket.status(), limit), self._timeout)
            config = status.stream_info.config
            wrong = judge(config, bucket._name)
            if wrong is not None:
                raise StoreError(wrong)
        except BaseException:
            await self._opener.close(bucket)
            raise
        return bucket, Bucket(bucket, config, self._timeout)

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """See `AsyncCasBackend.get`."""
        return await (await self.opened()).get(key)

    async def add(self, key: str, value: bytes, ttl: float) -> int | None:
        """See `AsyncCasBackend.add`."""
        return await (await self.opened()).add(key, value, ttl)

    async def compare_and_swap(self, key: str, value: bytes, revision: int, ttl: float) -> int | None:
        """See `AsyncCasBackend.compare_and_swap`."""
        return await (await self.opened()).compare_and_swap(key, value, revision, ttl)

    async def delete(self, key: str, revision: int | None = None) -> bool:
        """See `AsyncCasBackend.delete`."""
        return await (await self.opened()).delete(key, revision)


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # who waited for it has gone: nothing is to be logged of that
