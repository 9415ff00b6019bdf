"""What can be asked of a guarded function, and guarded methods, of which the same is asked for their object.

A Python function in a class hands its attributes on to what binds it, so that ``till.charge.forget`` would not know the
till. A guarded method therefore is an object of a class of its own; functions stay functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import attrgetter
from types import MethodType
from typing import Any, Final

import attrs

from idempo.keys import CompiledCall
from idempo.records import Key, Stats
from idempo.telling import total
from idempo.terms import Terms
from idempo.upkeep import Steps, ask, ask_async, forget, lookup, resolve

_UNSET: Final[Any] = object()


@attrs.frozen
class Questions:
    """What can be asked of one guarded function, beside calling it."""

    name: str
    namespace: str
    terms: Terms
    compiled: CompiledCall
    is_coroutine: bool
    of_class: bool
    """Whether it is a class method: what binds one is Python's own, and does not hand the class on."""
    has_force: bool
    """Whether the function has a parameter of this name itself."""
    rewrap: Callable[..., Any]

    def key_for(self, /, *args: Any, **kwargs: Any) -> Key:
        """Return the key of a call."""
        if self.of_class and not isinstance(args[0] if args else kwargs.get("cls"), type):
            raise TypeError(
                f"{self.name}() is a class method: give the class first, here and to lookup, forget and resolve"
            )
        return Key(self.namespace, self.compiled(*args, **kwargs)[0])

    def lookup(self, /, *args: Any, **kwargs: Any) -> Any:
        """Return the record of a call; a coroutine on a coroutine function."""
        return self._ask(lookup(self.key_for(*args, **kwargs)))

    def forget(self, /, *args: Any, force: Any = _UNSET, **kwargs: Any) -> Any:
        """Forget a call; a coroutine on a coroutine function."""
        if self.has_force and force is not _UNSET:
            raise TypeError(
                f"{self.name}() has a parameter force of its own: give that one by its place here. To forget under a "
                "live claim, delete key_for(...) from the store"
            )
        return self._ask(
            forget(self.terms.store, self.key_for(*args, **kwargs), force=force is not _UNSET and bool(force))
        )

    def resolve(self, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Give the outcome of a call by hand; a coroutine on a coroutine function."""
        return self._ask(resolve(self.terms, self.key_for(*args, **kwargs), value))

    def options(self, **changes: Any) -> Any:
        """Return the function guarded with other options."""
        return self.rewrap(**changes)

    def stats(self) -> Stats:
        """Count this wrapper's events."""
        return total([self.terms.teller.counts])

    def _ask(self, steps: Steps[Any]) -> Any:
        asked: Any = ask_async if self.is_coroutine else ask
        return asked(self.terms.store, steps)


def equip(wrapper: Callable[..., Any], fn: Callable[..., Any], questions: Questions, *, is_method: bool) -> Any:
    """Return the wrapper of a function as what can be asked as well as called."""
    if is_method:
        return GuardedMethod(wrapper, fn, questions)
    attributes: Any = wrapper
    for name in ("key_for", "lookup", "forget", "resolve", "options", "stats"):
        setattr(attributes, name, getattr(questions, name))
    attributes._terms = questions.terms
    return wrapper


class GuardedMethod:
    """A guarded function that stands in a class."""

    def __init__(self, wrapper: Any, fn: Callable[..., Any], questions: Questions) -> None:
        functools.update_wrapper(self, fn)
        self._questions = questions
        self._wrapper = wrapper
        wrapper.guarded = self
        # With these `inspect` takes it for a function, and sees whether it is a coroutine function.
        self.__code__, self.__defaults__, self.__kwdefaults__ = wrapper.__code__, None, None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._wrapper(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if instance is owner:  # by a classmethod; from Python 3.13 on, that binds by itself
            return MethodType(self, instance)
        return BoundMethod(self._wrapper, instance)

    @property
    def guarded(self) -> GuardedMethod:
        """Itself: a bound method finds it by what it calls, which may also be this."""
        return self

    @property
    def _terms(self) -> Terms:
        return self._questions.terms

    def key_for(self, /, *args: Any, **kwargs: Any) -> Key:
        return self._questions.key_for(*args, **kwargs)

    def lookup(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._questions.lookup(*args, **kwargs)

    def forget(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._questions.forget(*args, **kwargs)

    def resolve(self, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self._questions.resolve(value, *args, **kwargs)

    def options(self, **changes: Any) -> Any:
        return self._questions.options(**changes)

    def stats(self) -> Stats:
        return self._questions.stats()

    def __repr__(self) -> str:
        return f"<guarded {self._questions.name} at {id(self):#x}>"

    def __reduce__(self) -> Any:
        return self.__qualname__  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]  # by name, as functions are


class BoundMethod(functools.partial[Any]):  # in C: a ``__call__`` of ours would cost each call a frame
    """A guarded method of one object."""

    @property
    def __self__(self) -> Any:
        return self.args[0]

    @property
    def __func__(self) -> Any:
        func: Any = self.func
        return func.guarded

    @property
    def __wrapped__(self) -> Any:
        return MethodType(self.__func__.__wrapped__, self.__self__)

    def key_for(self, /, *args: Any, **kwargs: Any) -> Key:
        key: Key = self.__func__.key_for(self.__self__, *args, **kwargs)
        return key

    def lookup(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.__func__.lookup(self.__self__, *args, **kwargs)

    def forget(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.__func__.forget(self.__self__, *args, **kwargs)

    def resolve(self, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.__func__.resolve(value, self.__self__, *args, **kwargs)

    def options(self, **changes: Any) -> Any:
        return self.__func__.options(**changes).__get__(self.__self__, type(self.__self__))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__func__, name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundMethod):
            return NotImplemented
        return self.__func__ is other.__func__ and self.__self__ is other.__self__

    def __hash__(self) -> int:
        return hash((id(self.__self__), self.__func__))

    def __repr__(self) -> str:
        return f"<bound guarded {self.__qualname__} of {self.__self__!r}>"

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self.__name__)


def _pass_on(*names: str) -> None:
    # Every class has these, so that `__getattr__` is not asked for them.
    for name in names:
        setattr(BoundMethod, name, property(attrgetter(f"__func__.{name}")))


_pass_on("__doc__", "__module__")
