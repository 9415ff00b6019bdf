"""The types of guarded functions, for type checkers and for annotations.

A guarded function has the signature of the function; these protocols say what it carries beside, in both colours.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from idempo.records import Key, Record, Stats

R = TypeVar("R")
P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
_S_contra = TypeVar("_S_contra", contravariant=True)
_R_co = TypeVar("_R_co", covariant=True)
_Found_co = TypeVar("_Found_co", covariant=True)
_Forgot_co = TypeVar("_Forgot_co", covariant=True)


class _TakesFirst(Protocol[_S_contra, Q, _R_co]):
    """A function with its first parameter told apart: mypy does not solve one inside a Concatenate of ``self``."""

    def __call__(self, first: _S_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> _R_co: ...


class _Keyed(Protocol[P]):
    """What guarded functions of both colours carry."""

    __name__: str
    __qualname__: str

    def key_for(self, *args: P.args, **kwargs: P.kwargs) -> Key:
        """Return the key of a call with these arguments. Asks no store.

        Raises:
            InvalidKeyError: They give none.
            FingerprintError: The payload has no canonical form.
        """
        ...

    def stats(self) -> Stats:
        """Count the events of this wrapper, in this process."""
        ...


class _OfClass(_Keyed[P], Protocol[Q, _R_co, P, _Found_co, _Forgot_co]):
    """A guarded class method of either colour: called without the class, and asked with it."""

    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> _R_co: ...

    def lookup(self, *args: P.args, **kwargs: P.kwargs) -> _Found_co: ...

    def forget(self, *args: Any, force: bool = False, **kwargs: Any) -> _Forgot_co: ...

    def resolve(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> _Forgot_co: ...


class Guarded(_Keyed[P], Protocol[P, _R_co]):
    """A guarded function: the function's own signature, and what can be asked of its keys.

    A method that is bound to its object is one too, without the first parameter.
    """

    @property
    def __wrapped__(self) -> Callable[P, _R_co]:
        """The function itself."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> _R_co:
        """Run the function once for its key, or give the first outcome.

        Raises:
            IdempotencyError: Any of idempo's errors; which, and whether anything ran, is said by each class.
        """
        ...

    def lookup(self, *args: P.args, **kwargs: P.kwargs) -> Record | None:
        """Return the record of a call with these arguments, or None.

        Raises:
            RecordError: The record cannot be read.
            StoreError: The store did not answer.
        """
        ...

    def forget(self, *args: Any, force: bool = False, **kwargs: Any) -> bool:
        """Forget the call with these arguments, and say whether there was a record.

        Raises:
            InProgressError: A live claim holds the key, and ``force`` was not given.
            RecordError: The record cannot be read. One whose *outcome* alone cannot be read is forgotten.
            StoreError: The store did not answer.
            TypeError: ``force`` was given, and the function has a parameter of that name itself.
        """
        ...

    def resolve(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Give the outcome of the call with these arguments by hand, as `Idempotency.resolve` does.

        Args:
            value: What duplicates get from now on.
            *args: The call's own arguments.
            **kwargs: Likewise.

        Returns:
            False, and nothing was changed, where there is an outcome already.

        Raises:
            InProgressError: A live claim holds the key; or the key was claimed, or forgotten, meanwhile.
            RecordError: The record cannot be read.
            ResultNotStoredError: The outcome cannot be sealed; the key is left in doubt.
            StoreError: The store failed twice. The key may be left in doubt: resolve it again.
            StoreFullError: There is no room for a key without a record; nothing was changed.
        """
        ...

    def options(self, **changes: Any) -> Guarded[P, _R_co]:
        """Return a new wrapper on the same store and namespace, with these options changed. It counts for itself.

        Args:
            **changes: Options of ``@idempotent``, save ``store`` and ``namespace``.

        Raises:
            TypeError: There is no such option, or it is of the wrong type.
            ValueError: It is out of its range.
        """
        ...

    # Type checkers ask `__get__` under @staticmethod and @classmethod too: a first parameter that takes the instance,
    # or its class, is bound, and any other is a static method's own.
    @overload
    def __get__(
        self: _TakesFirst[type[S], Q, _R_co], instance: None, owner: type[S], /
    ) -> _OfClass[Q, _R_co, P, Record | None, bool]: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> Guarded[P, _R_co]: ...
    @overload
    def __get__(
        self: _TakesFirst[type[S], Q, _R_co], instance: S, owner: Any, /
    ) -> _OfClass[Q, _R_co, P, Record | None, bool]: ...
    @overload
    def __get__(self: _TakesFirst[S, Q, _R_co], instance: S, owner: Any, /) -> Guarded[Q, _R_co]: ...
    @overload
    def __get__(self, instance: object, owner: Any, /) -> Guarded[P, _R_co]: ...


class AsyncGuarded(_Keyed[P], Protocol[P, _R_co]):
    """A guarded coroutine function: as `Guarded`, with calls, `lookup`, `forget` and `resolve` to be awaited."""

    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, _R_co]]:
        """The coroutine function itself."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, _R_co]:
        """`Guarded.__call__`, to be awaited."""
        ...

    def lookup(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Record | None]:
        """`Guarded.lookup`, to be awaited."""
        ...

    def forget(self, *args: Any, force: bool = False, **kwargs: Any) -> Coroutine[Any, Any, bool]:
        """`Guarded.forget`, to be awaited."""
        ...

    def resolve(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, bool]:
        """`Guarded.resolve`, to be awaited."""
        ...

    def options(self, **changes: Any) -> AsyncGuarded[P, _R_co]:
        """`Guarded.options`."""
        ...

    @overload
    def __get__(
        self: _TakesFirst[type[S], Q, Coroutine[Any, Any, _R_co]], instance: None, owner: type[S], /
    ) -> _OfClass[Q, Coroutine[Any, Any, _R_co], P, Coroutine[Any, Any, Record | None], Coroutine[Any, Any, bool]]: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> AsyncGuarded[P, _R_co]: ...
    @overload
    def __get__(
        self: _TakesFirst[type[S], Q, Coroutine[Any, Any, _R_co]], instance: S, owner: Any, /
    ) -> _OfClass[Q, Coroutine[Any, Any, _R_co], P, Coroutine[Any, Any, Record | None], Coroutine[Any, Any, bool]]: ...
    @overload
    def __get__(
        self: _TakesFirst[S, Q, Coroutine[Any, Any, _R_co]], instance: S, owner: Any, /
    ) -> AsyncGuarded[Q, _R_co]: ...
    @overload
    def __get__(self, instance: object, owner: Any, /) -> AsyncGuarded[P, _R_co]: ...


class Decorator(Protocol):
    """What ``idempotent`` returns when it is given options."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncGuarded[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Guarded[P, R]: ...
    def __call__(self, fn: Callable[P, Any], /) -> Any:
        """Return the function guarded."""
        ...
