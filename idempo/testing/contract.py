"""The conformance suite for stores: subclass it, give it your store, and run it with pytest.

What a store has to do is written in `idempo.protocols`. These cases hold it to that, sentence by sentence, one caller
at a time and many at once. The numbers in their docstrings ("Behaviour 21") are those of the page "What holds, by
number" of the documentation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from idempo.protocols import AsyncStore, Codec, Store
from idempo.records import Key
from idempo.testing._ability_cases import AbilityCases
from idempo.testing._claim_cases import ClaimCases
from idempo.testing._key_cases import KeyCases
from idempo.testing._race_cases import RaceCases
from idempo.testing._time_cases import TimeCases
from idempo.testing._write_cases import WriteCases
from idempo.testing.bridge import BlockingStore, LoopThread

_T = TypeVar("_T")


class _Cases(ClaimCases, WriteCases, TimeCases, KeyCases, RaceCases, AbilityCases):
    """All groups of cases, on the fixture ``subject``: the store, as one of plain methods."""

    def damage(self, store: Any, key: Key, how: str) -> None:
        """Damage the record of a key where it is kept, behind the store's back.

        Args:
            store: What the ``store`` fixture gave.
            key: A key with a completed record.
            how: "truncated", "flipped" (a bit of it), "newer" (a version that does not exist yet) or "foreign" (not
                written by idempo). Skip with ``pytest.skip`` what cannot happen to this store.
        """
        pytest.skip("override damage() to try records that cannot be read")

    @pytest.fixture
    def damaged(self, store: Any) -> Callable[[Key, str], None]:
        """`damage`, on the suite's store."""
        return lambda key, how: self.damage(store, key, how)

    def test_what_the_store_says_of_itself_can_be_used(self, store: Any, subject: Store) -> None:
        """The attributes that are read at decoration are of their types."""
        assert isinstance(subject, Store)
        assert isinstance(getattr(store, "blocking", True), bool)
        assert isinstance(getattr(store, "shared", True), bool)
        codec = getattr(store, "default_codec", None)
        if codec is not None:
            assert isinstance(codec, Codec)
            assert codec.decode(codec.encode({"a": [1, "b", None]})) == {"a": [1, "b", None]}


class StoreContract(_Cases):
    """The conformance suite for a `Store`.

    Subclass it in a test module, with a ``store`` fixture::

        class TestMyStore(StoreContract):
            @pytest.fixture
            def store(self, clock):
                return MyStore(clock=clock)

    A fixture that asks for ``clock`` gets a `FakeClock`, and the suite turns it. A store with a clock of its own does
    not ask, and the suite sleeps, a few units of time in each case that is about time.

    Attributes:
        unit: The step of time, in seconds: durations in the cases are multiples of it. Without ``clock`` a step of a
            case must be over within one unit; a store that counts whole seconds needs 2.
        tolerance: How far a duration that the store tells may be from the one it was given, in seconds.
        threads: How many callers race.
        largest_outcome: The largest outcome that the store takes, in bytes.
        tokens_survive_delete: Whether fencing tokens rise over deletion and expiry.
        own_clock: Whether the store's clock is not this machine's; then a client's clock must not matter.

    Override `reopen` for a store whose records outlive the object, and `damage` for one whose records can be damaged.
    A case that a store cannot pass is overridden with a skip that says why.
    """

    @pytest.fixture
    def store(self) -> Any:
        """The store under test. Override it."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture named store")

    @pytest.fixture
    def subject(self, store: Store) -> Store:
        """The store as the cases call it."""
        return store

    def reopen(self, store: Any) -> Store:
        """Return another store object on the same records, as after a restart of the process."""
        pytest.skip("override reopen() for a store whose records outlive the object")

    @pytest.fixture
    def reopened(self, store: Store) -> Callable[[], Store]:
        """`reopen`, on the suite's store."""
        return lambda: self.reopen(store)


class AsyncStoreContract(_Cases):
    """The conformance suite for an `AsyncStore`: the same cases, on an event loop in a thread of its own.

    The ``run`` fixture runs a coroutine on that loop, for a client that belongs to one::

        class TestMyStore(AsyncStoreContract):
            @pytest.fixture
            def store(self, run):
                client = run(connect())
                yield MyStore(client)
                run(client.aclose())

    The attributes are those of `StoreContract`.
    """

    @pytest.fixture
    def loop(self) -> Iterator[LoopThread]:
        """The event loop on which the store is called."""
        with LoopThread() as loop:
            yield loop

    @pytest.fixture
    def run(self, loop: LoopThread) -> Callable[[Coroutine[Any, Any, _T]], _T]:
        """Run a coroutine on the store's loop and return its result."""
        return loop.run

    @pytest.fixture
    def store(self) -> Any:
        """The store under test. Override it."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture named store")

    @pytest.fixture
    def subject(self, store: AsyncStore, loop: LoopThread) -> Store:
        """The store as the cases call it."""
        return BlockingStore(store, loop)

    def reopen(self, store: Any) -> AsyncStore:
        """Return another store object on the same records, as after a restart of the process."""
        pytest.skip("override reopen() for a store whose records outlive the object")

    @pytest.fixture
    def reopened(self, store: AsyncStore, loop: LoopThread) -> Callable[[], Store]:
        """`reopen`, on the suite's store."""
        return lambda: BlockingStore(self.reopen(store), loop)

    def test_the_methods_are_coroutine_functions(self, store: AsyncStore) -> None:
        """An `AsyncStore` is told by them."""
        assert isinstance(store, AsyncStore)
        for name in ("claim", "complete", "release", "renew", "get", "delete"):
            assert inspect.iscoroutinefunction(getattr(store, name)), f"{name} is no coroutine function"
