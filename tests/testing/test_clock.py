"""FakeClock."""

from __future__ import annotations

import threading

import pytest

from idempo.testing import FakeClock


def test_it_stands_still_until_it_is_turned() -> None:
    """Behaviour 40: time passes when a test says so."""
    clock = FakeClock(start=5)
    assert clock() == clock() == 5.0
    assert clock.advance(0) == 5.0
    assert clock.advance(2.5) == 7.5
    assert clock() == 7.5
    assert repr(clock) == "FakeClock(7.5)"


def test_threads_that_turn_it_lose_nothing() -> None:
    """Each step counts, from whatever thread."""
    clock = FakeClock(start=0)
    barrier = threading.Barrier(4)

    def turn() -> None:
        barrier.wait(10)
        for _ in range(1000):
            clock.advance(1)

    threads = [threading.Thread(target=turn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock() == 4000.0


@pytest.mark.parametrize(
    ("duration", "error"), [(-1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ("1", TypeError)]
)
def test_it_never_runs_back(duration: float, error: type[Exception]) -> None:
    """A monotonic clock is what stores are promised."""
    clock = FakeClock(start=1)
    with pytest.raises(error, match="duration"):
        clock.advance(duration)
    assert clock() == 1.0
