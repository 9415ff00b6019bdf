"""The test kit: for who writes a store, and for who tests code that is guarded.

Importing idempo never imports it. Parts that need pytest or hypothesis (the extra ``idempo[testing]``) import them
when they are first asked for, so that the rest works without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from idempo.testing.bridge import BlockingStore, LoopThread
from idempo.testing.clock import FakeClock
from idempo.testing.flaky import AsyncFlakyStore, Call, FlakyStore
from idempo.testing.history import UNKNOWN, Asked, RecordingStore, late_writes
from idempo.testing.linearizability import NotLinearizableError, check_history
from idempo.testing.unguarding import unguarded
from idempo.testing.workload import check_store

if TYPE_CHECKING:
    from idempo.testing.contract import AsyncStoreContract, StoreContract
    from idempo.testing.machine import StoreMachine

_NEEDS_MORE = {
    "AsyncStoreContract": "contract",
    "StoreContract": "contract",
    "StoreMachine": "machine",
}

__all__ = [
    "UNKNOWN",
    "Asked",
    "AsyncFlakyStore",
    "AsyncStoreContract",
    "BlockingStore",
    "Call",
    "FakeClock",
    "FlakyStore",
    "LoopThread",
    "NotLinearizableError",
    "RecordingStore",
    "StoreContract",
    "StoreMachine",
    "check_history",
    "check_store",
    "late_writes",
    "unguarded",
]


def __getattr__(name: str) -> Any:
    module = _NEEDS_MORE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = _needing_more(name, module)
    except ModuleNotFoundError as error:
        if error.name not in ("pytest", "hypothesis"):
            raise
        raise ImportError(f'{name} needs {error.name}: pip install "idempo[testing]"') from error
    globals()[name] = value
    return value


def _needing_more(name: str, module: str) -> Any:
    if module == "contract":
        import pytest

        # The cases are plain asserts in modules that are no test modules: pytest explains only those it is told of.
        groups = ("case", "ability_cases", "claim_cases", "key_cases", "race_cases", "time_cases", "write_cases")
        pytest.register_assert_rewrite("idempo.testing.contract", *(f"idempo.testing._{group}" for group in groups))
    return getattr(import_module(f"idempo.testing.{module}"), name)
