"""What is settled when a function is decorated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest

from idempo import Idempotency
from idempo.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path


@attrs.frozen
class Receipt:
    """What a call returns."""

    order: str


def take(order: str, where: Path | None = None) -> Receipt:
    """Return a receipt; one parameter is annotated with a name that is not there at run time."""
    return Receipt(order)


def test_a_parameter_that_only_a_type_checker_can_name_does_not_hide_the_class_that_is_returned(
    tmp_path: Path,
) -> None:
    """Behaviour 2: the codec learns the returned class from the return annotation alone."""
    with SqliteStore(tmp_path / "records.db") as store:
        guarded = Idempotency(store, namespace="orders").idempotent(key="order", namespace="take")(take)
        assert [guarded("a"), guarded("a")] == [Receipt("a"), Receipt("a")]
        assert guarded.stats().executed == 1
        assert guarded.stats().replayed == 1


def test_what_is_no_store_is_refused_at_once_with_what_it_lacks() -> None:
    """Bad input is told before any effect."""
    nothing: Any = object()
    with pytest.raises(TypeError, match="six methods"):
        Idempotency(nothing)
