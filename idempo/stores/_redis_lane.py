"""A lane of a store's own: one connection of the client's pool, kept between requests.

Taking a connection from its pool, looking at it and giving it back costs a client more than the request itself. The
kept one is a single-connection client, as ``client.client()`` makes it: the user's class, retries, credentials and
health checks stay on, so that what fails there fails as it would by the client. Whoever takes it out has it alone;
whoever finds it taken, or ended meanwhile, asks the client itself.
"""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import suppress
from typing import Any, Final

from idempo._fork import call_in_child
from idempo.stores._redis_records import is_unknown_script
from idempo.stores._redis_scripts import Script

ROOMY: Final = 50
"""Connections that a pool has at least, where one of them is kept: as many as a blocking one has by default."""
_WARM: Final = 4  # requests before one is kept: a store that is made for one call is not worth it


def can_keep(client: Any) -> bool:
    """Say whether a client can spare a connection.

    Not one whose pool is small: the application may count on each of its connections. Not a cluster's, and not one by
    Sentinel, whose pool drops a former master's connections as they come back. Nor one whose token is renewed on
    connections as they come back, nor one that itself was told by whom to be asked.
    """
    pool = getattr(client, "connection_pool", None)
    settings = getattr(pool, "connection_kwargs", None)
    return (
        isinstance(settings, dict)
        and getattr(pool, "max_connections", 0) >= ROOMY
        and callable(getattr(client, "client", None))
        and getattr(client, "connection", None) is None
        and not hasattr(pool, "sentinel_manager")
        and not hasattr(settings.get("credential_provider"), "on_next")
        and "execute_command" not in vars(client)
    )


class Lane:
    """Asks for a store of plain methods, by its kept connection where it is there and free.

    Args:
        client: The store's.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        # Its one item is the kept client and its connection, or how many requests went without one; there is none
        # while that is out. In here the client is without its connection, so that it has nothing to do when it is
        # collected: the pool's lock may be taken then, by this very thread.
        self._kept: list[Any] = [0] if can_keep(client) else []
        _tidy()
        _all.add(self)

    def __del__(self) -> None:
        for item in self._kept:
            if type(item) is not int:
                own, connection = item
                with suppress(Exception):
                    connection.disconnect()
                _left.append((weakref.ref(own.connection_pool), weakref.ref(connection)))

    def ask(self, script: Script, name: bytes, args: tuple[bytes, ...]) -> Any:
        """Run a script and return the answer. Raises what the client raises."""
        kept = self._kept  # a fork in between leaves this list behind, and what is put into it
        try:
            item = kept.pop()
        except IndexError:
            return _asked(self._client, script, name, args)
        if type(item) is int:
            item = self._next(kept, item)
            if item is None:
                return _asked(self._client, script, name, args)
        own, connection = item
        own.connection = connection
        try:
            fit = _is_fit(connection)
            answer = fit and _asked(own, script, name, args)
        except BaseException as error:
            own.connection = None
            if _was_answered(error):
                kept.append(item)
            else:
                _drop(own, connection)
                kept.append(0)
            raise
        own.connection = None
        if fit:
            kept.append(item)
            return answer
        _drop(own, connection)
        kept.append(0)
        return _asked(self._client, script, name, args)

    def close(self) -> None:
        """Give the connection back. Later requests may keep one again."""
        kept = self._kept
        try:
            item = kept.pop()
        except IndexError:  # none is kept, or it is out
            return
        if type(item) is not int:
            own, connection = item
            own.connection_pool.release(connection)
        kept.append(0)

    def after_fork(self) -> None:
        """Forget the parent's connection, which is its own."""
        self._kept = [0] if can_keep(self._client) else []

    def _next(self, kept: list[Any], asked: int) -> Any:
        """Return a client to be kept and its connection, or None while the store is not warm."""
        if asked < _WARM:
            kept.append(asked + 1)
            return None
        _tidy()
        try:
            own = self._client.client()
        except TypeError:  # a class of the user's, made in another way
            return None  # and none is kept from now on
        except BaseException:
            kept.append(0)
            raise
        return own, own.connection


def _asked(client: Any, script: Script, name: bytes, args: tuple[bytes, ...]) -> Any:
    # An outcome is bytes, even to a client that decodes what it is answered.
    try:
        return client.execute_command(*script.first, 1, name, *args, NEVER_DECODE=True)
    except Exception as error:
        if not is_unknown_script(error):
            raise
        return client.execute_command("EVAL", script.text, 1, name, *args, NEVER_DECODE=True)


def _is_fit(connection: Any) -> bool:
    """Say whether nothing came meanwhile, not even the connection's end. So looks a pool at what it gives out."""
    with suppress(Exception):
        return not connection.can_read()
    return False


def _drop(own: Any, connection: Any) -> None:
    """Close a connection, and give its place back: an answer may be on its way, which nobody else may read."""
    connection.disconnect()
    own.connection_pool.release(connection)


def _was_answered(error: BaseException) -> bool:
    """Say whether the server refused, by a whole answer, and will go on answering as it should."""
    # By name: which library the client is of is nothing that this module needs to know.
    names = {each.__name__ for each in type(error).__mro__}
    return "ResponseError" in names and "ReadOnlyError" not in names


def _tidy() -> None:
    """Give back the connections of stores that were collected: closed by then, and places in a pool that lives on."""
    while _left:
        try:
            of_pool, of_connection = _left.popleft()
        except IndexError:  # pragma: no cover  # another thread was quicker
            return
        pool, connection = of_pool(), of_connection()
        if pool is not None and connection is not None:
            pool.release(connection)


_left: Final[deque[tuple[weakref.ref[Any], weakref.ref[Any]]]] = deque()
_all: Final[weakref.WeakSet[Lane]] = weakref.WeakSet()


def _after_fork() -> None:
    _left.clear()
    for lane in _all:
        lane.after_fork()


call_in_child(_after_fork)
