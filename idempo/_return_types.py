"""Which classes a return annotation says that a function returns, and whether a JSON codec can keep them."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import enum
import inspect
import numbers
import sys
import types
import typing
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from uuid import UUID

import attrs

from idempo._json_classes import is_namedtuple, kind_of

_KEPT_CLASSES: Final[frozenset[Any]] = frozenset(
    {bool, int, float, complex, str, bytes, bytearray, type(None), list, dict, tuple, set, frozenset}
    | {Decimal, Fraction, UUID, datetime, date, time, timedelta}
    # What may be any of the above.
    | {object, numbers.Number, numbers.Complex, numbers.Real, numbers.Rational, numbers.Integral}
    | {collections.abc.Iterable, collections.abc.Collection, collections.abc.Container, collections.abc.Reversible}
    | {collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Set, collections.abc.MutableSet}
    | {collections.abc.Mapping, collections.abc.MutableMapping, collections.abc.Hashable, collections.abc.Sized}
)
_SAYS_NOTHING: Final[tuple[Any, ...]] = (
    *(Any, None, inspect.Signature.empty, typing.NoReturn, typing.Never, typing.LiteralString, Ellipsis),
    *(typing.AnyStr,),
)
# Wrapped around a type, these say nothing about the value.
_WRAPPERS: Final[tuple[Any, ...]] = (
    *(typing.Annotated, typing.Final, typing.ClassVar, typing.Required, typing.NotRequired),
    *([typing.ReadOnly] if sys.version_info >= (3, 13) else []),  # type: ignore[attr-defined,unused-ignore]
)


def return_annotation(function: Callable[..., Any]) -> Any:
    """Return what a function is annotated to return, as a type where its names can be found.

    Annotations of parameters are not looked at: their names may exist for type checkers only.

    Returns:
        The annotation; `inspect.Signature.empty` where there is none; the text itself where a name in it is unknown.
    """
    function = inspect.unwrap(function)
    annotation = getattr(function, "__annotations__", {}).get("return", inspect.Signature.empty)
    if annotation is inspect.Signature.empty:
        return annotation
    holder = types.SimpleNamespace(__annotations__={"return": annotation})
    names = {parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())}
    with contextlib.suppress(TypeError, ValueError):  # a callable object, or a closure that is not filled yet
        names.update(inspect.getclosurevars(function).nonlocals)
    try:
        hints = typing.get_type_hints(holder, getattr(function, "__globals__", {}), names, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError):
        return annotation
    return hints["return"]


def classes_in(annotation: Any, known: Iterable[type], *, where: str = "the return annotation") -> list[type]:
    """Return the classes in an annotation that have to be known to keep a value of it, fields of fields included.

    Args:
        annotation: A resolved annotation. A text stands for a class of that name among ``known``.
        known: The classes known already.
        where: What the annotation is, for the error's text.

    Raises:
        TypeError: It names something that cannot be kept; the text says what and where.
    """
    walk = _Walk(known)
    walk.look_at(annotation, where, owner=None)
    return walk.found


class _Walk:
    def __init__(self, known: Iterable[type]) -> None:
        self._known = list(known)
        self._seen: list[Any] = []
        self.found: list[type] = []

    def look_at(self, annotation: Any, where: str, owner: type | None) -> None:  # noqa: C901, PLR0912
        """Collect the classes of an annotation: one branch for each thing that an annotation can be."""
        if any(annotation is nothing for nothing in _SAYS_NOTHING):
            return
        if isinstance(annotation, str | typing.ForwardRef):
            name = annotation if isinstance(annotation, str) else annotation.__forward_arg__
            if not any(name in (cls.__name__, cls.__qualname__) for cls in self._known):
                raise TypeError(f"{where}: the name in {name!r} cannot be found; give its class in types=")
            return
        if annotation is typing.Self:
            if owner is None:
                raise TypeError(f"{where}: Self does not say which class; name it")
            return
        if any(annotation is seen for seen in self._seen):  # a class or, from 3.12 on, an alias that contains itself
            return
        if isinstance(annotation, typing.TypeVar):
            for part in annotation.__constraints__ or (annotation.__bound__,):
                self.look_at(part, where, owner)
            return
        if isinstance(annotation, typing.NewType):
            self.look_at(annotation.__supertype__, where, owner)
            return
        if sys.version_info >= (3, 12) and isinstance(
            annotation, typing.TypeAliasType
        ):  # pragma: no cover  # not on 3.11
            self._seen.append(annotation)
            self.look_at(annotation.__value__, where, owner)
            return
        origin = typing.get_origin(annotation)
        if origin is None:
            self._look_at_class(annotation, where)
        elif origin is typing.Literal:
            for value in typing.get_args(annotation):
                self.look_at(type(value), where, owner)
        elif any(origin is wrapper for wrapper in _WRAPPERS):
            self.look_at(typing.get_args(annotation)[0], where, owner)
        elif origin in (typing.Union, types.UnionType):
            for part in typing.get_args(annotation):
                self.look_at(part, where, owner)
        elif sys.version_info >= (3, 12) and isinstance(
            origin, typing.TypeAliasType
        ):  # pragma: no cover  # not on 3.11
            for part in (origin, *typing.get_args(annotation)):
                self.look_at(part, where, owner)
        else:
            self._look_at_class(origin, where)
            for part in typing.get_args(annotation):
                self.look_at(part, where, owner)

    def _look_at_class(self, cls: Any, where: str) -> None:
        if not isinstance(cls, type):
            raise TypeError(f"{where}: {cls!r} cannot be kept by JsonCodec; return plain data, or give another codec=")
        if cls in _KEPT_CLASSES or cls in self._seen:
            return
        if typing.is_typeddict(cls):
            self._seen.append(cls)
            self._look_at_fields(cls, where)
            return
        if kind_of(cls) is not None:
            self._seen.append(cls)
            self.found.append(cls)
            if not issubclass(cls, enum.Enum):
                self._look_at_fields(cls, where)
            return
        # A common base of classes that are known: what it returns will be one of those.
        if not any(issubclass(known, cls) for known in self._known):
            raise TypeError(
                f"{where}: JsonCodec cannot keep a {cls.__module__}.{cls.__qualname__}; return plain data, an attrs"
                " class, a dataclass, a namedtuple or an Enum, or give another codec="
            )

    def _look_at_fields(self, cls: Any, where: str) -> None:
        where = f"{where} → {cls.__qualname__}"
        for name, annotation in _field_annotations(cls).items():
            self.look_at(annotation, f"{where}.{name}", cls)


def _field_annotations(cls: Any) -> dict[str, Any]:
    """Return the annotations of a class's fields, each resolved where its names can be found."""
    if attrs.has(cls):
        raw = {field.name: field.type for field in attrs.fields(cls)}
    elif dataclasses.is_dataclass(cls):
        raw = {field.name: field.type for field in dataclasses.fields(cls)}
    else:
        names = cls._fields if is_namedtuple(cls) else ()
        raw = dict.fromkeys(names, Any) | dict(getattr(cls, "__annotations__", {}))
    return {name: _resolved(annotation, _owner_of(name, cls)) for name, annotation in raw.items()}


def _owner_of(field: str, cls: Any) -> Any:
    """Return the class that annotates a field: the names in the annotation are those of its module."""
    return next((owner for owner in cls.__mro__ if field in vars(owner).get("__annotations__", ())), cls)


def _resolved(annotation: Any, owner: Any) -> Any:
    # One by one: a field whose names exist for type checkers only takes no other field with it.
    holder = types.SimpleNamespace(__annotations__={"field": annotation})
    names = {
        "typing": typing,  # dataclasses.make_dataclass writes "typing.Any"
        **{parameter.__name__: parameter for parameter in getattr(owner, "__type_params__", ())},
        **vars(owner),
        owner.__name__: owner,
    }
    module = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
    try:
        # The module's names come before the class's, or `date: date = None` would be resolved to None.
        hints = typing.get_type_hints(holder, names, module, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError):
        return annotation
    return hints["field"]
