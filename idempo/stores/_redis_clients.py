"""What is asked of a Redis or Valkey client, whichever library it is of, and of the server that it reaches."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, Protocol, TypeAlias

from idempo._checks import refuse_class
from idempo.errors import StoreError

Eviction: TypeAlias = Literal["refuse", "warn", "allow"]

_EVICTION: Final = ("refuse", "warn", "allow")
_logger: Final = logging.getLogger("idempo")


class RedisClient(Protocol):
    """What a store needs of its client: ``redis.Redis`` and ``redis.cluster.RedisCluster`` have it, Valkey's too.

    The clients of ``redis.asyncio`` and ``valkey.asyncio`` have the same, with coroutines.
    """

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command and return the answer."""
        ...

    def pipeline(self, *, transaction: Any = None) -> Any:
        """Return a pipeline."""
        ...


def checked_client(client: Any, *, wants_coroutines: bool) -> Any:
    """Return the client, if it is one of the kind that is wanted.

    Raises:
        TypeError: It is none.
    """
    refuse_class(client, "client")
    if isinstance(client, str | bytes):
        raise TypeError("client must be a client, such as redis.Redis.from_url(...), not a URL")
    if not all(callable(getattr(client, name, None)) for name in ("execute_command", "pipeline", "scan_iter")):
        raise TypeError(f"client must be a Redis or Valkey client, not {type(client).__name__}")
    if hasattr(client, "command_stack"):
        raise TypeError("client must be the client itself, not a pipeline of it")
    if has_coroutines(client) is not wants_coroutines:
        raise TypeError(
            "AsyncRedisStore needs a client of coroutines, such as redis.asyncio.Redis; with this one use RedisStore"
            if wants_coroutines
            else "RedisStore needs a client of plain methods, such as redis.Redis; with this one use AsyncRedisStore"
        )
    return client


def has_coroutines(client: object) -> bool:
    """Say whether a client's methods are coroutines."""
    return hasattr(client, "__aenter__") or inspect.iscoroutinefunction(getattr(client, "execute_command", None))


def checked_eviction(eviction: Eviction) -> Eviction:
    """Return the option, if it is one of its values.

    Raises:
        ValueError: It is not.
    """
    if eviction not in _EVICTION:
        raise ValueError(f"eviction must be one of {', '.join(_EVICTION)}, not {eviction!r}")
    return eviction


def judge(answers: Iterable[Any], eviction: Eviction) -> None:
    """Look at what servers say of their memory, and refuse, or warn of, one that may drop claims.

    Args:
        answers: What each of them answered to INFO.
        eviction: What to do about it.

    Raises:
        StoreError: A server may evict records, and ``eviction`` is "refuse".
    """
    for answer in answers:
        policy = _policy(answer)
        if policy is None:
            _logger.warning("the server does not tell its maxmemory-policy; idempo needs noeviction")
        elif policy != "noeviction":
            what = (
                f"the server's maxmemory-policy is {policy}: short of memory it would drop claims and outcomes, and "
                "operations would run twice"
            )
            if eviction == "refuse":
                raise StoreError(f'{what}; set it to noeviction, or make the store with eviction="warn"')
            _logger.warning("%s", what)


def unasked(error: Exception) -> bool:
    """Say whether the server may not be asked, and note that; other errors are none of this."""
    if type(error).__name__ != "NoPermissionError" and "NOPERM" not in str(error):
        return False
    _logger.warning("this user may not ask for the server's maxmemory-policy (INFO); idempo needs noeviction")
    return True


def _policy(answer: Any) -> str | None:
    if not isinstance(answer, Mapping):
        return None
    policy = answer.get("maxmemory_policy")
    return policy.decode() if isinstance(policy, bytes) else policy
