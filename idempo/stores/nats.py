"""Records in a JetStream key-value bucket, by nats-py. Install it with the extra: ``pip install "idempo[nats]"``."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, Final

from idempo._checks import check_flag, check_limit
from idempo._time import seconds
from idempo.records import Claim, Key, Record
from idempo.stores._loop_thread import LoopThread
from idempo.stores._nats_bucket import JetStreamContext, KeyValue, create_bucket
from idempo.stores._nats_opening import Connecting, Given, LazyBucket, Opener
from idempo.stores.cas import AsyncCasStore

__all__ = ["NatsStore", "SyncNatsStore"]

_PREFIX: Final = re.compile(r"([-/_=a-zA-Z0-9]+\.)*[-/_=a-zA-Z0-9]*")
_LONGEST_PREFIX: Final = 100
_STEPS: Final = 6  # a plain call may take that many steps of a store, each of which is bounded, before it is given up


class NatsStore(AsyncCasStore):
    """Keeps records in a JetStream key-value bucket: replicated where the bucket is, without any other server.

    For coroutines; `SyncNatsStore` is for plain functions. Fresh calls take three round trips (a claim two), replays
    one. The stream's revisions are the fencing tokens: they rise over deletion, expiry and restart, and begin anew only
    with a new bucket. Leases are watched, as `CasStore` says. Waiters are told of changes, with a poll beside it.

    The bucket is looked at before its first use. It must be kept in files, with a history of 1, and refuse when it is
    full. Where it allows message TTLs (NATS 2.11 and newer, and what `create_bucket` makes) each record is forgotten
    after its own ttl. Elsewhere the bucket's TTL is that of every record, and must be as long as any that is asked.

    Args:
        bucket: nats-py's ``KeyValue``, on the event loop that uses the store.
        prefix: What every key in the bucket begins with: letters, digits and ``-/_=``, with single dots between, 100
            characters at most. Two prefixes are two stores.
        timeout: How long one step may take, in seconds: it is tried again meanwhile, while nodes elect a leader or the
            connection comes back.
        largest_outcome: The largest outcome that is sent, in bytes; a larger one becomes a *lost* one. By default what
            fits below the server's own limit of 1 MiB (its option ``max_payload``).
        max_watched: See `CasStore`.
        clock: See `CasStore`.

    Raises:
        TypeError: ``bucket`` is no bucket; another argument is of the wrong type.
        ValueError: The prefix cannot be part of a key; a number is too small.
    """

    def __init__(
        self,
        bucket: KeyValue,
        *,
        prefix: str = "idempo.",
        timeout: float | timedelta = 5.0,
        largest_outcome: int = 1_000_000,
        max_watched: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(bucket, KeyValue):
            raise TypeError(f"bucket must be a key-value bucket of nats-py, not {type(bucket).__name__}")
        self._set(Given(bucket), prefix, timeout, largest_outcome, max_watched, clock)

    @classmethod
    def at(
        cls,
        servers: str | Sequence[str],
        bucket: str = "idempo",
        *,
        create: bool = True,
        replicas: int = 1,
        connect: Mapping[str, Any] | None = None,
        prefix: str = "idempo.",
        timeout: float | timedelta = 5.0,
        largest_outcome: int = 1_000_000,
        max_watched: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> NatsStore:
        """Make a store with connections of its own, one for each event loop that uses it, opened at first use.

        Close it with `aclose`, on each of those loops.

        Args:
            servers: A URL such as ``nats://localhost:4222``, or those of several servers of one cluster.
            bucket: The bucket's name.
            create: Whether to make the bucket where there is none, as `create_bucket` does.
            replicas: How many servers keep a bucket that is made.
            connect: What else ``nats.connect`` is to be given: credentials, TLS, callbacks.
            prefix: See `NatsStore`.
            timeout: See `NatsStore`; connecting may take as long again.
            largest_outcome: See `NatsStore`.
            max_watched: See `NatsStore`.
            clock: See `NatsStore`.
        """
        limit = seconds(timeout, "timeout", minimum=0.001)
        check_flag(create, "create")
        check_limit(replicas, "replicas")
        opener = Connecting(
            servers, bucket, create=create, replicas=replicas, timeout=limit, connect=dict(connect or {})
        )
        made = cls.__new__(cls)
        made._set(opener, prefix, limit, largest_outcome, max_watched, clock)
        return made

    def _set(
        self,
        opener: Opener,
        prefix: str,
        timeout: float | timedelta,
        largest_outcome: int,
        max_watched: int,
        clock: Callable[[], float],
    ) -> None:
        limit = seconds(timeout, "timeout", minimum=0.001)
        check_limit(largest_outcome, "largest_outcome")
        self._lazy = LazyBucket(opener, limit)
        AsyncCasStore.__init__(self, self._lazy, prefix=prefix, max_watched=max_watched, clock=clock)
        if not _PREFIX.fullmatch(prefix) or len(prefix) > _LONGEST_PREFIX:
            raise ValueError(
                f"prefix must be letters, digits and -/_= with single dots between, {_LONGEST_PREFIX} characters at"
                f" most, not {prefix!r}"
            )
        self.largest_outcome: int = largest_outcome

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._lazy.name!r}, prefix={self._book.prefix!r})"

    @staticmethod
    async def create_bucket(
        js: JetStreamContext, name: str = "idempo", *, replicas: int = 1, max_bytes: int | None = None
    ) -> KeyValue:
        """Make a bucket that is fit for records, and return it; one of that name that is there stays as it is.

        It may be called many times, and by many at once. Records are kept in files, and each is forgotten by itself.

        Args:
            js: nats-py's JetStream context.
            name: The bucket's name: letters, digits, ``-`` and ``_``.
            replicas: How many servers keep it: 3 outlive the loss of one.
            max_bytes: How large it may become; then new claims are refused. None: as large as the account allows.

        Raises:
            StoreError: The server refused, or did not answer.
        """
        return await create_bucket(js, name, replicas=replicas, max_bytes=max_bytes)

    @asynccontextmanager
    async def watch(self, key: Key, wake: Callable[[], None]) -> AsyncIterator[None]:
        """See `AsyncWatchableStore.watch`. What happens while the connection is away is left to the poll beside it."""
        bucket = await self._lazy.opened()
        async with bucket.watching(self._book.name(key), wake):
            yield

    async def __aenter__(self) -> NatsStore:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection that the store has opened on this event loop, if it has. The next call opens another."""
        await self._lazy.close()


class SyncNatsStore:
    """`NatsStore` for plain functions: nats-py runs on an event loop in a thread of the store's own.

    The thread and its one connection begin with the first call, and end with `close`, or with the store object. Calls
    from any number of threads run at once on it. A forked child has a thread and a connection of its own.

    Coroutines can use it too, by worker threads; `NatsStore` spares them that.

    Args:
        servers: A URL such as ``nats://localhost:4222``, or those of several servers of one cluster.
        bucket: The bucket's name.
        create: Whether to make the bucket where there is none, as `NatsStore.create_bucket` does.
        replicas: How many servers keep a bucket that is made.
        connect: What else ``nats.connect`` is to be given: credentials, TLS, callbacks.
        prefix: See `NatsStore`.
        timeout: See `NatsStore`. A call, which takes several steps, is given up after six times as long.
        largest_outcome: See `NatsStore`.
        max_watched: See `NatsStore`.
        clock: See `NatsStore`.

    Raises:
        TypeError: See `NatsStore`.
        ValueError: See `NatsStore`.
    """

    blocking = True
    shared = True
    exact_expiry = False

    def __init__(
        self,
        servers: str | Sequence[str],
        bucket: str = "idempo",
        *,
        create: bool = True,
        replicas: int = 1,
        connect: Mapping[str, Any] | None = None,
        prefix: str = "idempo.",
        timeout: float | timedelta = 5.0,
        largest_outcome: int = 1_000_000,
        max_watched: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        store = NatsStore.at(
            servers,
            bucket,
            create=create,
            replicas=replicas,
            connect=connect,
            prefix=prefix,
            timeout=timeout,
            largest_outcome=largest_outcome,
            max_watched=max_watched,
            clock=clock,
        )
        self._store = store
        self._thread = LoopThread("idempo-nats", _STEPS * seconds(timeout, "timeout"), store.aclose)
        self.largest_outcome: int = store.largest_outcome

    def __repr__(self) -> str:
        return repr(self._store).replace("NatsStore", type(self).__name__, 1)

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
        """See `Store.claim`."""
        return self._thread.run(
            self._store.claim(key, owner=owner, fingerprint=fingerprint, lease=lease, ttl=ttl, take_over=take_over)
        )

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return self._thread.run(self._store.complete(key, owner=owner, outcome=outcome, ttl=ttl))

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return self._thread.run(self._store.release(key, owner=owner, ttl=ttl))

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return self._thread.run(self._store.renew(key, owner=owner, lease=lease, ttl=ttl))

    def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        return self._thread.run(self._store.get(key))

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        return self._thread.run(self._store.delete(key, owner=owner))

    @contextmanager
    def watch(self, key: Key, wake: Callable[[], None]) -> Iterator[None]:
        """See `WatchableStore.watch`."""
        watching = self._store.watch(key, wake)
        self._thread.run(watching.__aenter__())
        try:
            yield
        finally:
            self._thread.run(watching.__aexit__(None, None, None))

    def close(self) -> None:
        """Close the connection, and end the thread. What is called later is a StoreError."""
        self._thread.close()

    def __enter__(self) -> SyncNatsStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
