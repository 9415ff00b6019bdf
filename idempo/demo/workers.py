"""A fixed number of threads that work through deliveries, a few ahead of them at most."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from idempo.demo.deliveries import Delivery

_AHEAD: Final = 4
"""How many deliveries a worker may have before it: what bounds the memory, and how far a kill reaches back."""

_LOOK_UP: Final = 0.2
"""Seconds after which a wait begins anew: Python runs no signal handler for a Ctrl-C that came right before a wait."""


class Workers:
    """Threads that handle deliveries side by side, duplicates of one event too.

    Two payloads of one id never run side by side, though: "the first" would be whichever thread was quicker, and no
    count of the input could say which amount is right.

    Args:
        handle: Called with each delivery, in any of the threads. What it raises stops the work.
        threads: How many, at least 1.
    """

    def __init__(self, handle: Callable[[Delivery], None], threads: int) -> None:
        self._handle = handle
        lock = threading.Lock()
        self._landed = threading.Condition(lock)  # for whoever submits
        self._submitted = threading.Condition(lock)  # for the threads
        self._queue: deque[Delivery | None] = deque()
        self._room = threads * _AHEAD
        self._in_flight: dict[str, tuple[bytes, int]] = {}  # event id: the payload's digest, how many deliveries
        self._count = 0
        self._failure: BaseException | None = None
        # Daemons: a second Ctrl-C ends the process without waiting for them.
        self._threads = [threading.Thread(target=self._work, name=f"demo-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, delivery: Delivery) -> None:
        """Hand a delivery to the workers; waits while there is no room for it.

        Raises:
            BaseException: What ``handle`` raised.
        """
        with self._landed:
            self._wait_until(lambda: self._may_come(delivery))
            _, others = self._in_flight.get(delivery.id, (delivery.digest, 0))
            self._in_flight[delivery.id] = (delivery.digest, others + 1)
            self._count += 1
            self._queue.append(delivery)
            self._submitted.notify()

    def finish(self) -> None:
        """Wait until everything submitted has been handled, and end the threads.

        Raises:
            BaseException: What ``handle`` raised.
        """
        with self._landed:
            self._wait_until(lambda: self._count == 0)
            self._queue.extend([None] * len(self._threads))
            self._submitted.notify_all()
        for thread in self._threads:
            thread.join()

    def _may_come(self, delivery: Delivery) -> bool:
        digest, _ = self._in_flight.get(delivery.id, (delivery.digest, 0))
        return self._count < self._room and digest == delivery.digest

    def _wait_until(self, fits: Callable[[], bool]) -> None:
        while self._failure is None and not fits():
            self._landed.wait(timeout=_LOOK_UP)
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while True:
            with self._submitted:
                self._submitted.wait_for(lambda: self._queue)
                delivery = self._queue.popleft()
            if delivery is None:
                return
            try:
                self._handle(delivery)
            except BaseException as error:  # noqa: BLE001  # raised where the work is waited for
                with self._landed:
                    self._failure = error
                    self._landed.notify()
                return
            with self._landed:
                digest, deliveries = self._in_flight.pop(delivery.id)
                if deliveries > 1:
                    self._in_flight[delivery.id] = (digest, deliveries - 1)
                self._count -= 1
                self._landed.notify()
