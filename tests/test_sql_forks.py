"""Forked children that let go of what they inherit: their parents' connections to a database server go on."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from idempo._fork import inherited
from tests.forked import in_child
from tests.sql_support import URLS, Database, claimed, key, opened

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(params=URLS)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from opened(request, request.param)


def let_go() -> None:
    """Drop in a child all that is kept of the parent's, as the end of an interpreter does."""
    assert inherited
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it was not closed, which is what is wanted
        inherited.clear()
        gc.collect()


def test_a_child_that_drops_everything_ends_no_session_of_its_parents(database: Database) -> None:
    """Behaviour 43: its parent's next call goes by the very connection that it had."""
    store = database.store()
    claimed(store, key())
    (before,) = map(id, store._connections._idle)  # no reference, which the child would have as well
    in_child(let_go)
    store._connections._idle[0].execute("SELECT 1", {})
    assert store.complete(key(), owner="owner-a", outcome=b"", ttl=60)
    assert list(map(id, store._connections._idle)) == [before]


def test_a_child_that_drops_everything_ends_no_session_of_coroutines(database: Database) -> None:
    """Behaviour 43: as for plain calls."""

    async def main() -> None:
        async with database.async_store() as store:
            await store.get(key())
            connections: Any = store._connections
            (before,) = map(id, connections._of_loop().idle)
            in_child(let_go)
            await connections._of_loop().idle[0].execute("SELECT 1", {})
            assert await store.get(key()) is None
            assert list(map(id, connections._of_loop().idle)) == [before]

    asyncio.run(main())
