"""Who waits for news of which key, and what is to be told to the server about that: without I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from idempo.errors import StoreError

PATIENCE: Final = 2.0
"""Seconds that a waiter waits for its subscription to be confirmed."""
TICK: Final = 1.0
"""Seconds after which a listener looks round where the server says nothing."""
IDLE: Final = 10.0
"""Seconds after which a listener that nobody listens to ends."""
DOWN: Final = 1.0
"""Seconds for which nobody tries again after the connection was lost for good."""


def refuse_deaf(client: Any) -> None:
    """Refuse a client that has no connection to spare for listening, or none that can listen.

    Raises:
        StoreError: It is one.
    """
    if not hasattr(client, "pubsub"):
        raise StoreError(f"{type(client).__name__} cannot subscribe; calls that wait poll")
    if getattr(getattr(client, "connection_pool", None), "max_connections", None) == 1:
        raise StoreError("the client's pool has one connection, which calls need; calls that wait poll")


def unconfirmed() -> StoreError:
    """Return the error for a subscription that the server has not confirmed."""
    return StoreError("the server has not confirmed the subscription; the call polls")


class Watcher:
    """One who waits for news of a key.

    Args:
        wake: Called with each of them.
        settle: Called once it is known whether the server will send any.

    Attributes:
        confirmed: Whether it will.
    """

    __slots__ = ("_settle", "_wake", "confirmed")

    def __init__(self, wake: Callable[[], object], settle: Callable[[], object]) -> None:
        self._wake = wake
        self._settle = settle
        self.confirmed = False

    def wake(self) -> None:
        """Tell of news."""
        with suppress(RuntimeError):  # the waiter's event loop was closed, which is no matter of who tells
            self._wake()

    def settle(self, *, confirmed: bool) -> None:
        """Tell whether there will be any."""
        self.confirmed = confirmed
        self._settle()


class _Channel:
    __slots__ = ("asked", "confirmed", "watchers")

    def __init__(self) -> None:
        self.watchers: list[Watcher] = []
        self.asked = False
        self.confirmed = False


class Subscriptions:
    """The channels of one connection, and who waits at each. Whoever uses it from several threads holds a lock."""

    def __init__(self) -> None:
        self._channels: dict[bytes, _Channel] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return any(channel.watchers for channel in self._channels.values())

    def enter(self, name: bytes, watcher: Watcher) -> bool:
        """Let somebody wait, and say whether the server must be asked for it."""
        channel = self._channels.setdefault(name, _Channel())
        channel.watchers.append(watcher)
        if channel.confirmed:
            watcher.settle(confirmed=True)
        return not channel.asked

    def leave(self, name: bytes, watcher: Watcher) -> None:
        """Let somebody wait no more. The channel stays for a while: who polls comes back."""
        channel = self._channels.get(name)
        if channel is not None and watcher in channel.watchers:  # unless a fork came in between
            channel.watchers.remove(watcher)

    def news(self) -> tuple[list[bytes], list[bytes]]:
        """Return what is to be subscribed to, and what to be left; the caller asks the server for it."""
        join, part = [], []
        for name, channel in list(self._channels.items()):
            if channel.watchers and not channel.asked:
                channel.asked = True
                join.append(name)
            elif not channel.watchers and (channel.confirmed or not channel.asked):
                # Not while the answer is on its way: it would pass for that of the next who comes.
                del self._channels[name]
                if channel.asked:
                    part.append(name)
        return join, part

    def heard(self, message: Mapping[str, Any] | None) -> list[Watcher]:
        """Take in what the server says, and return who is to be woken."""
        if message is None:
            return []
        name = message["channel"]
        channel = self._channels.get(name.encode() if isinstance(name, str) else name)
        if channel is None:
            return []
        if message["type"] == "subscribe":
            if not channel.confirmed:
                channel.confirmed = True
                for watcher in channel.watchers:
                    watcher.settle(confirmed=True)
                return []
            # Once more: the connection was lost and made anew, and news with it.
            return list(channel.watchers)
        return list(channel.watchers) if message["type"] == "message" else []

    def lost(self) -> list[Watcher]:
        """Forget all channels, as the connection is gone, and return who is to be woken to look for himself."""
        watchers = [watcher for channel in self._channels.values() for watcher in channel.watchers]
        self._channels.clear()
        for watcher in watchers:
            if not watcher.confirmed:
                watcher.settle(confirmed=False)
        return watchers
