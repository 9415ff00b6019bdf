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
        look_up: Called a few times a second while whoever submits, or finishes, has to wait.

    Attributes:
        dropped: What was submitted and, since `stop` was called, never begun, in the order of submission.
    """

    def __init__(
        self, handle: Callable[[Delivery], None], threads: int, look_up: Callable[[], object] = lambda: None
    ) -> None:
        self.dropped: Final[list[Delivery]] = []
        self._handle = handle
        self._look_up = look_up
        lock = threading.Lock()
        self._landed = threading.Condition(lock)  # for whoever submits
        self._submitted = threading.Condition(lock)  # for the threads
        self._queue: deque[Delivery | None] = deque()
        self._room = threads * _AHEAD
        self._in_flight: dict[str, tuple[bytes, int]] = {}  # event id: the payload's digest, how many deliveries
        self._count = 0
        self._stopping = False
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
            self._wait_until(lambda: self._stopping or self._may_come(delivery))
            if self._stopping:
                self.dropped.append(delivery)
                return
            _, others = self._in_flight.get(delivery.id, (delivery.digest, 0))
            self._in_flight[delivery.id] = (delivery.digest, others + 1)
            self._count += 1
            self._queue.append(delivery)
            self._submitted.notify()

    def stop(self) -> None:
        """Begin nothing more: what is only queued is dropped, and so is whatever is submitted from now on.

        Any thread may call it.
        """
        with self._landed:
            self._stopping = True
            for delivery in filter(None, self._queue):
                self.dropped.append(delivery)
                self._take_off(delivery)
            self._queue = deque(item for item in self._queue if item is None)
            self._landed.notify()

    def finish(self) -> None:
        """Wait until everything submitted has been handled or dropped, and end the threads.

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
            if not self._landed.wait(timeout=_LOOK_UP):
                self._look_up()
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
                self._take_off(delivery)
                self._landed.notify()

    def _take_off(self, delivery: Delivery) -> None:
        digest, deliveries = self._in_flight.pop(delivery.id)
        if deliveries > 1:
            self._in_flight[delivery.id] = (digest, deliveries - 1)
        self._count -= 1
