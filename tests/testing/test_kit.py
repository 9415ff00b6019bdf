"""The package as a whole: what it offers, and what it needs."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize(
    ("missing", "name", "says"),
    [
        ("pytest", "StoreContract", 'StoreContract needs pytest: pip install "idempo[testing]"'),
        ("hypothesis", "StoreMachine", 'StoreMachine needs hypothesis: pip install "idempo[testing]"'),
        ("idempo.testing.model", "StoreMachine", "idempo.testing.model"),
    ],
)
def test_what_needs_the_extra_says_so(missing: str, name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of whatever else is missing Python speaks for itself."""
    monkeypatch.delitem(vars(idempo.testing), name, raising=False)
    for module in ("contract", "machine", *(f"_{group}_cases" for group in ("claim", "key", "race", "time", "write"))):
        monkeypatch.delitem(sys.modules, f"idempo.testing.{module}", raising=False)
        monkeypatch.delattr(idempo.testing, module, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=re.escape(says)):
        getattr(idempo.testing, name)
