"""A JetStream key-value bucket: opened, judged, and as the four methods that CasStore needs.

The pages of NATS' documentation that this stands on: "Key/Value Store", "Streams" (message TTL, discard policy), and
the wire API reference of JetStream.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

try:
    import nats.errors
    import nats.js.errors
    from nats.js import JetStreamContext, api
    from nats.js.kv import KeyValue
except ImportError as error:  # pragma: no cover  # the test environments have it
    raise ImportError('idempo.stores.nats needs nats-py: pip install "idempo[nats]"') from error

from idempo.errors import StoreError, StoreFullError

__all__ = [
    "FAILURES",
    "Bucket",
    "JetStreamContext",
    "KeyValue",
    "create_bucket",
    "failed",
    "judge",
    "one_try",
    "open_bucket",
    "persistently",
]

_Answer = TypeVar("_Answer")

OPERATION: Final = "KV-Operation"
_MARKERS: Final = (OPERATION, "Nats-Marker-Reason")
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_TTL: Final = "Nats-TTL"
_WRITE: Final = "Idempo-Write"

_NO_MESSAGE: Final = 10037
_WRONG_SEQUENCE: Final = (10071, 10164)
_NAME_IN_USE: Final = 10058
_FULL: Final = (10023, 10047, 10077)  # insufficient resources, insufficient storage, maximum bytes exceeded

_PAUSES: Final = (0.02, 0.05, 0.1, 0.2, 0.5)  # between tries, while nodes elect a leader or a connection comes back
_CONSUMER_KEPT: Final = 10.0  # seconds that the server keeps what watches after its client has gone
_MARKER_KEPT: Final = 2.0  # seconds that the mark of a deletion stays: it wakes who watches, and nobody else needs it

FAILURES: Final = (nats.errors.Error, OSError, asyncio.TimeoutError)
_PASSING: Final = (
    asyncio.TimeoutError,  # nats-py's own is one
    OSError,
    nats.errors.NoRespondersError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.StaleConnectionError,
    nats.js.errors.NoStreamResponseError,
    nats.js.errors.ServiceUnavailableError,
    nats.js.errors.ServerError,
)

_UNHEARD: Final = (
    nats.errors.NoRespondersError,
    nats.errors.OutboundBufferLimitError,
    nats.js.errors.NoStreamResponseError,
)
"""Of these it is certain that nothing came of the request."""


def failed(error: BaseException) -> StoreError:
    """Return what a store raises for an error of the client's. What a client says of itself names no password."""
    if isinstance(error, nats.js.errors.APIError):
        code, said = error.err_code, error.description
        if code in _FULL:
            return StoreFullError(f"the bucket is full: {said} ({code})")
        return StoreError(f"NATS refused: {said} ({code})")
    return StoreError(f"NATS failed: {type(error).__name__}: {error}")


async def create_bucket(
    js: JetStreamContext, name: str, *, replicas: int = 1, max_bytes: int | None = None
) -> KeyValue:
    """See `NatsStore.create_bucket`."""
    try:
        return await _create(js, name, replicas, max_bytes)
    except FAILURES as error:
        raise failed(error) from error


async def _create(js: JetStreamContext, name: str, replicas: int, max_bytes: int | None) -> KeyValue:
    config = api.StreamConfig(
        name=f"KV_{name}",
        subjects=[f"$KV.{name}.>"],
        max_msgs_per_subject=1,
        max_bytes=-1 if max_bytes is None else max_bytes,
        max_msgs=-1,
        max_consumers=-1,
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.NEW,
        num_replicas=replicas,
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_msg_ttl=True,
    )
    try:
        await js.add_stream(config)
    except nats.js.errors.APIError as error:
        if error.err_code != _NAME_IN_USE:
            raise
        # There is one of other settings; whether they will do is judged when it is used.
    return await js.key_value(name)


async def open_bucket(js: JetStreamContext, name: str, *, create: bool, replicas: int) -> KeyValue:
    """Return a bucket; where there is none, make it, or say so.

    Raises:
        StoreError: There is none.
        nats.errors.Error: The server refused, or did not answer.
    """
    try:
        return await js.key_value(name)
    except nats.js.errors.BucketNotFoundError as error:
        if not create:
            what = f"there is no bucket {name!r}: make it with NatsStore.create_bucket(js, {name!r})"
            raise StoreError(what) from error
    return await _create(js, name, replicas, None)


def judge(config: api.StreamConfig, name: str) -> str | None:
    """Return what is wrong with a bucket for keeping records, and what to do; None where nothing is."""
    if config.max_msgs_per_subject != 1:
        return f"bucket {name!r} has a history, from which forgotten records would come back: set its history to 1"
    if config.storage != api.StorageType.FILE:
        return f"bucket {name!r} is kept in memory, and its revisions begin anew with the server: use file storage"
    limited = any((limit or 0) > 0 for limit in (config.max_bytes, config.max_msgs))
    if limited and config.discard != api.DiscardPolicy.NEW:
        return f"bucket {name!r} drops records when it is full: set its discard policy to new"
    if not config.allow_msg_ttl and not config.max_age:
        return (
            f"bucket {name!r} would forget nothing: allow message TTLs in it (allow_msg_ttl; NATS 2.11 and newer), as"
            " NatsStore.create_bucket does, or give it a TTL of its own"
        )
    return None


class Bucket:
    """`AsyncCasBackend` over one bucket, on one event loop.

    A revision is the sequence of the stream. It rises with every write, over deletion, expiry and restart.
    Reads go to the stream's leader, never to whichever replica answers first ("direct get"), whatever the bucket says.

    Args:
        bucket: nats-py's.
        config: The settings of its stream.
        timeout: How long one step may take, tries and pauses included, in seconds.
    """

    def __init__(self, bucket: KeyValue, config: api.StreamConfig, timeout: float) -> None:
        # nats-py has no public way from a bucket to its stream and to its connection.
        self.js: JetStreamContext = bucket._js
        self.stream: str = bucket._stream
        self._pre: str = bucket._pre
        self._ttls = bool(config.allow_msg_ttl)
        self._longest = config.max_age or math.inf  # nothing outlives it, whatever its own TTL
        self._timeout = timeout
        self._try = one_try(timeout)

    def subject(self, key: str) -> str:
        """Return the subject of a key."""
        return self._pre + key

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """See `CasBackend.get`."""
        found = await self._last(key)
        if found is None or _is_marker(found):
            return None
        return found.data or b"", _sequence(found)

    async def add(self, key: str, value: bytes, ttl: float) -> int | None:
        """See `CasBackend.add`."""
        added = await self._publish(key, value, 0, ttl)
        if added is None:
            # What stands there may be the mark of a deletion: absent, but with a revision.
            found = await self._last(key)
            if found is not None and _is_marker(found):
                return await self._publish(key, value, _sequence(found), ttl)
        return added

    async def compare_and_swap(self, key: str, value: bytes, revision: int, ttl: float) -> int | None:
        """See `CasBackend.compare_and_swap`."""
        return await self._publish(key, value, revision, ttl)

    async def delete(self, key: str, revision: int | None = None) -> bool:
        """See `CasBackend.delete`."""
        if revision is None:
            found = await self._last(key)
            if found is None or _is_marker(found):
                return False
            revision = _sequence(found)
        return await self._publish(key, b"", revision, _MARKER_KEPT, {OPERATION: "DEL"}) is not None

    @asynccontextmanager
    async def watching(self, key: str, wake: Callable[[], None]) -> AsyncIterator[None]:
        """Call ``wake`` after each write of a key, once the stream has it: by a consumer that ends with the context."""

        async def changed(_: Any) -> None:
            wake()

        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.NEW,
            ack_policy=api.AckPolicy.NONE,
            headers_only=True,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=_CONSUMER_KEPT,
        )
        try:
            # Tried once, and not for long: who waits is better off with a poll than without a look.
            subscription = await asyncio.wait_for(
                self.js.subscribe(self.subject(key), stream=self.stream, config=config, cb=changed, manual_ack=True),
                self._try,
            )
        except FAILURES as error:
            raise failed(error) from error
        try:
            yield
        finally:
            with suppress(*FAILURES):
                await subscription.unsubscribe()

    async def _last(self, key: str) -> api.RawStreamMsg | None:
        subject = self.subject(key)

        async def read() -> api.RawStreamMsg | None:
            try:
                return await asyncio.wait_for(self.js.get_last_msg(self.stream, subject, direct=False), self._try)
            except nats.js.errors.NotFoundError as error:
                if error.err_code == _NO_MESSAGE:
                    return None
                raise  # the whole stream is gone

        found, _ = await self._ask(read)
        return found

    async def _publish(
        self, key: str, value: bytes, expected: int, ttl: float, mark: dict[str, str] | None = None
    ) -> int | None:
        if ttl > self._longest and mark is None:
            raise StoreError(
                f"the bucket forgets everything after {self._longest:g} seconds, and a record was to be kept for"
                f" {ttl:g} (ttl and lease together): give the bucket a longer TTL, or none, or the guard a shorter ttl"
            )
        write = os.urandom(8).hex()
        headers = {_EXPECTED: str(expected), _WRITE: write, **(mark or {})}
        if self._ttls:
            headers[_TTL] = f"{max(math.ceil(ttl), 1)}s"

        async def send() -> int | None:
            try:
                answer = await self.js.publish(
                    self.subject(key), value, timeout=self._try, stream=self.stream, headers=dict(headers)
                )
            except nats.js.errors.APIError as error:
                if error.err_code in _WRONG_SEQUENCE:
                    return None
                raise
            return answer.seq

        sequence, unanswered = await self._ask(send)
        if sequence is None and unanswered:
            # Refused for the sequence, but an earlier try may have arrived: then that is what stands, or stood.
            found = await self._last(key)
            if found is None or (found.headers or {}).get(_WRITE) != write:
                raise StoreError("the answer to a write was lost, and another write has come after it, or before")
            return _sequence(found)
        return sequence

    async def _ask(self, request: Callable[[], Awaitable[_Answer]]) -> tuple[_Answer, bool]:
        return await persistently(request, self._timeout)


async def persistently(request: Callable[[], Awaitable[_Answer]], patience: float) -> tuple[_Answer, bool]:
    """Make a request, and again while the trouble may pass; say also whether an earlier try may have arrived.

    Args:
        request: Sends it. It must give up by itself, in `one_try` of the time.
        patience: How long, in seconds.

    Raises:
        StoreError: It was refused, or there was no answer.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    tries, unanswered = 0, False
    while True:
        try:
            return await request(), unanswered
        except FAILURES as error:
            pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
            if not _passes(error) or loop.time() + pause >= deadline:
                raise failed(error) from error
            unanswered = unanswered or not isinstance(error, _UNHEARD)
        tries += 1
        await asyncio.sleep(pause)


def one_try(timeout: float) -> float:
    """Return how long one try of a request may take, in seconds: an answer that is lost never comes."""
    return max(timeout / 5, 0.05)


def _passes(error: BaseException) -> bool:
    full = isinstance(error, nats.js.errors.APIError) and error.err_code in _FULL
    return isinstance(error, _PASSING) and not full


def _is_marker(message: api.RawStreamMsg) -> bool:
    return any(name in _MARKERS for name in message.headers or ())


def _sequence(message: api.RawStreamMsg) -> int:
    assert message.seq is not None
    return message.seq
