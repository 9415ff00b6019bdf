"""What the comparison with peers is made of: each of them, guarding one function, behind one shape.

Each is used as its own documentation shows it, in its memory store and with its defaults, save that leases are short
and that a payload is checked where it can be. Powertools comes without a memory store: it gets a dict behind the four
methods that its documentation asks for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from cachetools import TTLCache, cached

import idempo

if TYPE_CHECKING:
    from collections.abc import Iterator

Call: TypeAlias = Callable[[str, Any], Any]
"""Called with a key and a payload; the function that is guarded is given the payload."""
AsyncCall: TypeAlias = Callable[[str, Any], Awaitable[Any]]

PAYLOAD: Final = 1
WAIT: Final = 2.0  # seconds that a duplicate waits, where that can be said


class Compared(Protocol):
    """One library. Each instance has a new, empty store, which all of its guards share.

    Args:
        lease: How long a claim stands without renewal, in seconds.
    """

    name: str
    package: str
    module: str

    def __init__(self, lease: float = 30.0) -> None: ...

    def guard(self, function: Callable[[Any], Any]) -> Call:
        """Guard a plain function."""
        ...

    def guard_async(self, function: Callable[[Any], Awaitable[Any]]) -> AsyncCall:
        """Guard a coroutine function."""
        ...

    def abandon(self, key: str) -> None:
        """Leave in the store what a process leaves that was killed after its claim."""
        ...

    def usurp(self, key: str) -> None:
        """Let the lease of the running call be over, and another caller claim the key."""
        ...


class Idempo:
    name = "idempo"
    package = "idempo"
    module = "idempo"

    def __init__(self, lease: float = 30.0) -> None:
        self._lease, self._store = lease, idempo.MemoryStore()
        self._guard = idempo.Idempotency(self._store, lease=lease, wait=WAIT)

    def guard(self, function: Callable[[Any], Any]) -> Call:
        return lambda key, payload: self._guard.run(key, function, payload)

    def guard_async(self, function: Callable[[Any], Awaitable[Any]]) -> AsyncCall:
        return lambda key, payload: self._guard.run_async(key, function, payload)

    def abandon(self, key: str) -> None:
        claim = {"fingerprint": None, "lease": self._lease, "ttl": 3600}
        assert self._store.claim(idempo.Key("default", key), owner=f"another {key}", **claim).acquired

    def usurp(self, key: str) -> None:
        id_ = idempo.Key("default", key)
        record = self._store.get(id_)
        assert record is not None
        self._store.renew(id_, owner=record.owner, lease=0, ttl=3600)
        self.abandon(key)


class ExactlyOnce:
    name = "exactly-once"
    package = "exactly-once"
    module = "exactly_once"

    def __init__(self, lease: float = 30.0) -> None:
        self._lease, self._module = lease, import_module("exactly_once")
        self._store = self._module.Store.memory()

    def _once(self, function: Any) -> Any:
        once = self._module.once(
            self._store, key=lambda key, _: key, fingerprint=lambda _, payload: payload, lease_ttl=self._lease
        )
        return once(function)

    def guard(self, function: Callable[[Any], Any]) -> Call:
        return self._once(lambda _, payload: function(payload))  # type: ignore[no-any-return]

    def guard_async(self, function: Callable[[Any], Awaitable[Any]]) -> AsyncCall:
        async def call(_: str, payload: Any) -> Any:
            return await function(payload)

        return self._once(call)  # type: ignore[no-any-return]

    def abandon(self, key: str) -> None:
        self._store.claim(key, lease_ttl=self._lease)

    def usurp(self, key: str) -> None:
        self._store.release(key, self._store.get(key).token)  # what its own policies do once a lease has run out
        self.abandon(key)


class OnceKernel:
    name = "once-kernel"
    package = "once-kernel"
    module = "once"

    def __init__(self, lease: float = 30.0) -> None:
        module = import_module("once")
        self._once = module.Once(lease_sec=lease)
        self._async_once = module.AsyncOnce(self._once)

    def guard(self, function: Callable[[Any], Any]) -> Call:
        return lambda key, payload: self._once.run(key, payload, lambda: function(payload), wait_timeout_sec=WAIT)

    def guard_async(self, function: Callable[[Any], Awaitable[Any]]) -> AsyncCall:
        async def call(key: str, payload: Any) -> Any:
            async def effect() -> Any:
                return await function(payload)

            return await self._async_once.run(key, payload, effect, wait_timeout_sec=WAIT)

        return call

    def abandon(self, key: str) -> None:
        assert self._once.begin(key, PAYLOAD).execute

    def usurp(self, key: str) -> None:
        self._once.store.get(key).lease_expires_at = 0.0
        self.abandon(key)


class Idemkit:
    name = "idemkit"
    package = "idemkit"
    module = "idemkit"

    def __init__(self, lease: float = 30.0) -> None:
        self._lease, self._module = lease, import_module("idemkit")
        self._backend = self._module.InMemoryBackend()

    def _decorated(self, name: str, function: Any) -> Any:
        config = self._module.MethodConfig(
            key_fields=["key"],
            validation_fingerprint=lambda arguments: repr(arguments["payload"]).encode(),
            lease_ttl_seconds=self._lease,
            wait_timeout_seconds=WAIT,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that all callers share one scope, which is meant here
            return getattr(self._module, name)(backend=self._backend, config=config)(function)

    def guard(self, function: Callable[[Any], Any]) -> Call:
        def call(key: str, payload: Any) -> Any:
            return function(payload)

        guarded = self._decorated("idempotent_sync", call)
        self._engine = guarded.idemkit_engine
        return guarded  # type: ignore[no-any-return]

    def guard_async(self, function: Callable[[Any], Awaitable[Any]]) -> AsyncCall:
        async def call(key: str, payload: Any) -> Any:
            return await function(payload)

        return self._decorated("idempotent", call)  # type: ignore[no-any-return]

    def abandon(self, key: str) -> None:
        name = self._engine.effective_key(key, PAYLOAD)
        fingerprint = self._engine._fingerprint({"payload": PAYLOAD})
        asyncio.run(self._backend.claim(name, fingerprint, 1, self._lease))

    def usurp(self, key: str) -> None:
        records, name = self._backend._records, self._engine.effective_key(key, PAYLOAD)
        records[name] = dataclasses.replace(records[name], lease_until=0.0)
        self.abandon(key)


class Powertools:
    name = "Powertools"
    package = "aws-lambda-powertools"
    module = "aws_lambda_powertools.utilities.idempotency"

    def __init__(self, lease: float = 30.0) -> None:
        self._module = import_module("aws_lambda_powertools.utilities.idempotency")
        self._store = _powertools_store()
        self._config = self._module.IdempotencyConfig(
            event_key_jmespath="key", payload_validation_jmespath="payload", lambda_context=_Remaining(lease)
        )

    def guard(self, function: Callable[[Any], Any]) -> Call:
        def effect(*, data: dict[str, Any]) -> Any:
            return function(data["payload"])

        guarded = self._decorated(effect)
        return lambda key, payload: guarded(data={"key": key, "payload": payload})

    def guard_async(self, function: Callable[[Any], Awaitable[Any]]) -> AsyncCall:
        async def effect(*, data: dict[str, Any]) -> Any:
            return await function(data["payload"])

        guarded = self._decorated(effect)

        async def call(key: str, payload: Any) -> Any:
            return await guarded(data={"key": key, "payload": payload})

        return call

    def abandon(self, key: str) -> None:
        remaining = self._config.lambda_context.get_remaining_time_in_millis()
        self._store.save_inprogress({"key": key, "payload": PAYLOAD}, remaining)

    def usurp(self, key: str) -> None:
        self._store.only(key).in_progress_expiry_timestamp = 0
        self.abandon(key)

    def _decorated(self, effect: Any) -> Any:
        return self._module.idempotent_function(
            effect,
            data_keyword_argument="data",
            persistence_store=self._store,
            config=self._config,
            key_prefix="effect",
        )


class _Remaining:
    """A Lambda context, of which only one thing is asked: how long the call may still run. That is its lease."""

    def __init__(self, lease: float) -> None:
        self._lease = lease

    def get_remaining_time_in_millis(self) -> int:
        return int(self._lease * 1000)


def _powertools_store() -> Any:
    base = import_module("aws_lambda_powertools.utilities.idempotency.persistence.base")
    errors = import_module("aws_lambda_powertools.utilities.idempotency.exceptions")

    class DictLayer(base.BasePersistenceLayer):  # type: ignore[name-defined, misc]
        """Puts under the conditions that the DynamoDB layer puts under."""

        def __init__(self) -> None:
            super().__init__()
            self._records: dict[str, Any] = {}
            self._lock = threading.Lock()

        def only(self, key: str) -> Any:
            name = self._get_hashed_idempotency_key({"key": key})
            return self._records[name]

        def _get_record(self, idempotency_key: str) -> Any:
            with self._lock:
                if idempotency_key not in self._records:
                    raise errors.IdempotencyItemNotFoundError
                return self._records[idempotency_key]

        def _put_record(self, data_record: Any) -> None:
            with self._lock:
                found, now = self._records.get(data_record.idempotency_key), time.time() * 1000
                lapsed = found is not None and found.status == "INPROGRESS" and found.in_progress_expiry_timestamp < now
                if found is not None and not lapsed:
                    raise errors.IdempotencyItemAlreadyExistsError
                self._records[data_record.idempotency_key] = data_record

        def _update_record(self, data_record: Any) -> None:
            with self._lock:
                self._records[data_record.idempotency_key] = data_record

        def _delete_record(self, data_record: Any) -> None:
            with self._lock:
                self._records.pop(data_record.idempotency_key, None)

    return DictLayer()


class BareCache:
    name = "cachetools"
    package = "cachetools"
    module = "cachetools"

    def __init__(self, lease: float = 30.0) -> None:
        self._cache: TTLCache[Any, Any] = TTLCache(1000, 3600)
        self._condition = threading.Condition()  # lets a duplicate wait, where a lock would let it run too

    def guard(self, function: Callable[[Any], Any]) -> Call:
        return cached(self._cache, key=lambda key, _: key, condition=self._condition)(
            lambda _, payload: function(payload)
        )

    def guard_async(self, function: Callable[[Any], Awaitable[Any]]) -> AsyncCall:
        async def call(_: str, payload: Any) -> Any:
            return await function(payload)

        return self._cached(call)

    def _cached(self, function: Any) -> Any:
        return cached(self._cache, key=lambda key, _: key, condition=self._condition)(function)

    def abandon(self, key: str) -> None:
        """It notes nothing before a call has returned."""

    def usurp(self, key: str) -> None:
        raise NotImplementedError("nobody holds anything")


ALL: Final[tuple[type[Compared], ...]] = (Idempo, ExactlyOnce, OnceKernel, Idemkit, Powertools, BareCache)


def present() -> dict[str, str]:
    """Return the versions of those that this Python can import, by name."""
    found = {}
    for library in ALL:
        try:
            library()
            found[library.name] = version(library.package)
        except ImportError:
            continue
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the peers warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            gc.collect()  # coroutines that nobody awaited warn when they go
            logging.disable(logging.NOTSET)
