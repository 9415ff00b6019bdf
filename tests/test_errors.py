"""Errors: one root, a key on each, and all of it survives pickling."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest

from idempo import Idempotency, Key, errors
from idempo.errors import (
    FingerprintError,
    FingerprintMismatchError,
    IdempotencyError,
    InDoubtError,
    InProgressError,
    InvalidKeyError,
    LeaseLostError,
    ResultNotStoredError,
    StoreError,
    StoreFullError,
)

KEY = Key("orders", "o-1\n\ud800")
CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, IdempotencyError)]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling_with_its_key(cls: type[IdempotencyError], protocol: int) -> None:
    """Behaviour 38: class, text and key come back, and without a key there is none."""
    for key in (KEY, None):
        error = cls("what was wrong", key=key)
        for back in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
            assert type(back) is cls
            assert str(back) == "what was wrong"
            assert back.args == error.args
            assert back.key == key


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (FingerprintError("no form", key=KEY, path="items[3].session"), "path", "items[3].session"),
        (InProgressError("busy", key=KEY, retry_after=1.5), "retry_after", 1.5),
        (LeaseLostError("late", key=KEY, result=["paid"]), "result", ["paid"]),
        (ResultNotStoredError("unstored", key=KEY, result=("paid", 1)), "result", ("paid", 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_error_carries_survives_pickling(error: IdempotencyError, name: str, value: object) -> None:
    """Behaviour 38: its own attributes too."""
    back = pickle.loads(pickle.dumps(error))
    assert getattr(back, name) == getattr(error, name) == value
    assert back.key == KEY


def test_one_except_clause_catches_them_all_and_the_old_ones_still_work() -> None:
    """A bad key is a ValueError, a bad payload a TypeError, and all are IdempotencyError."""
    assert len(CLASSES) > 12
    assert issubclass(InvalidKeyError, ValueError)
    assert issubclass(FingerprintError, TypeError)
    assert issubclass(StoreFullError, StoreError)
    for cls in CLASSES:
        assert inspect.getdoc(cls), cls


def test_errors_that_a_guard_raised_survive_pickling() -> None:
    """Behaviour 38: as they were raised, with what they caught on them."""
    guard = Idempotency(namespace="orders", wait=0, in_doubt="raise")

    def raised(call: Any) -> IdempotencyError:
        with pytest.raises(IdempotencyError) as caught:
            call()
        return pickle.loads(pickle.dumps(caught.value))

    guard.run("done", len, "x")
    mismatch = raised(lambda: guard.run("done", len, "y"))
    assert (type(mismatch), mismatch.key) == (FingerprintMismatchError, Key("orders", "done"))

    with pytest.raises(ZeroDivisionError):
        guard.run("doubt", lambda: 1 // 0)
    doubt = raised(lambda: guard.run("doubt", lambda: 1))
    assert (type(doubt), doubt.key) == (InDoubtError, Key("orders", "doubt"))

    guard.store.claim(Key("orders", "busy"), owner="elsewhere", fingerprint=None, lease=60, ttl=60)
    busy = raised(lambda: guard.run("busy", lambda: 1))
    assert isinstance(busy, InProgressError)
    assert busy.key == Key("orders", "busy")
    assert 0 < busy.retry_after <= 2

    assert raised(lambda: guard.run("", lambda: 1)).key is None
