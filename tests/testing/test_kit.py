"""The package as a whole: what it offers, and what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import idempo.testing


def test_everything_that_it_lists_is_there() -> None:
    """Also what is imported when first asked for."""
    for name in idempo.testing.__all__:
        assert getattr(idempo.testing, name) is not None
    assert idempo.testing.__all__ == sorted(idempo.testing.__all__, key=lambda name: (not name.isupper(), name))


def test_a_name_that_it_has_not_is_an_attribute_error() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        idempo.testing.Nonsense  # noqa: B018


def test_doubles_work_without_pytest_and_hypothesis() -> None:
    """Who tests with something else can still turn a clock and let a store fail."""
    code = (
        "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "from idempo.testing import FakeClock, FlakyStore, RecordingStore, check_store\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
