"""From a call to its key and its fingerprint, compiled once for each function.

`compile_call` reads a function's signature and what ``key=``, ``payload=`` and ``ignore=`` say of it, refuses what does
not fit, and has `CallSource` write the function that is called before every guarded call.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from idempo._call_source import Blame, CallSource, CompiledCall, Path
from idempo._key_text import LONGEST_KEY, check_namespace, key_text
from idempo.errors import FingerprintError
from idempo.records import Key

if TYPE_CHECKING:
    from idempo.fingerprint import Fingerprinter

__all__ = [
    "ALL_ARGUMENTS",
    "EVERYTHING",
    "LONGEST_KEY",
    "CompiledCall",
    "KeySpec",
    "Marker",
    "PayloadSpec",
    "check_namespace",
    "compile_call",
    "key_text",
    "spelled_fingerprint",
]


class Marker(enum.Enum):
    """Values that mean themselves, for options where None means something else."""

    ALL_ARGUMENTS = "ALL_ARGUMENTS"
    EVERYTHING = "EVERYTHING"

    def __repr__(self) -> str:
        return f"idempo.{self.name}"


ALL_ARGUMENTS: Final = Marker.ALL_ARGUMENTS
"""For ``key=``: the key is the fingerprint of all arguments but those in ``ignore``."""

EVERYTHING: Final = Marker.EVERYTHING
"""For ``payload=``: it was not given, so that every argument but those in ``ignore`` is the payload."""

KeySpec: TypeAlias = str | Sequence[str] | Callable[..., Any] | Literal[Marker.ALL_ARGUMENTS]
"""A parameter's name or dotted path, several of them, a callable given the call's arguments, or `ALL_ARGUMENTS`."""

PayloadSpec: TypeAlias = str | Sequence[str] | Callable[..., Any] | Literal[Marker.EVERYTHING] | None
"""A parameter's name or dotted path, several of them, a callable given the call's arguments, None, or `EVERYTHING`."""


def compile_call(
    fn: Callable[..., Any],
    *,
    key: KeySpec = ALL_ARGUMENTS,
    payload: PayloadSpec = EVERYTHING,
    ignore: Collection[str] = (),
    fingerprinter: Fingerprinter,
    namespace: str = "",
) -> CompiledCall:
    """Return a function with the parameters of ``fn`` that answers with a call's key and fingerprint.

    The fingerprint is that of a dict from the payload's names to their values. An argument that is its default, or
    reads as its default did when this was called, is left out, as are empty ``*args`` and ``**kwargs``.

    What is returned raises InvalidKeyError and FingerprintError, the TypeError of a call that does not fit, and
    whatever a callable ``key`` or ``payload`` raises.

    Args:
        fn: Any function or bound method; only its signature is read, and no annotation is evaluated.
        key: Where the key is. With `ALL_ARGUMENTS` its text is the fingerprint of all arguments, in hexadecimal.
        payload: What is fingerprinted; None checks nothing.
        ignore: Parameters that are part of no payload that is not spelled out, and of no `ALL_ARGUMENTS`.
        fingerprinter: Writes and digests the payload.
        namespace: Of the keys that a FingerprintError names.

    Raises:
        TypeError: An option is of the wrong type, is empty or names no parameter, or ``fn`` is no function.
    """
    target = _Target(fn)
    ignored = target.names(ignore)
    if key is ALL_ARGUMENTS and target.takes_self:
        raise TypeError(
            f"{target} is a method, which must name its key, as in key='order_id': the object that it is called on is "
            "no argument that could tell one operation from another"
        )
    everything = target.whole_parameters(without=ignored)
    key_of = payload_of = known = None
    text, digest = "''", "None"

    def blame(error: FingerprintError, text: str) -> None:
        error.key = Key(namespace, text)

    source = CallSource(target.qualname, target.parameters.values(), fingerprinter)
    if key is ALL_ARGUMENTS:
        digest = source.add_digest(everything)
        text = known = f"{digest}.hex()"
    elif (key_of := target.callable(key, "key")) is None:
        text = known = source.add_key(target.paths(key, "key"))
    if payload is EVERYTHING:
        if key is not ALL_ARGUMENTS:
            digest = source.add_digest(everything, key=known, blame=blame)
    elif payload is None or (payload_of := target.callable(payload, "payload")) is not None:
        digest = "None"
    else:
        digest = source.add_digest(target.paths(payload, "payload", without=ignored), key=known, blame=blame)
    compiled = source.compile(f"({text}, {digest})")
    if key_of is not None or payload_of is not None:
        what = f"the key that key= made for {target}"
        return _with_callables(compiled, key_of, payload_of, what, fingerprinter, blame)
    return compiled


def _with_callables(
    compiled: CompiledCall,
    key_of: Callable[..., Any] | None,
    payload_of: Callable[..., Any] | None,
    what: str,
    fingerprinter: Fingerprinter,
    blame: Blame,
) -> CompiledCall:
    """Return a compiled call that asks the user's callables, which see the call as it was spelled."""

    def call(*args: Any, **kwargs: Any) -> tuple[str, bytes | None]:
        try:
            text, digest = compiled(*args, **kwargs)  # first: it refuses a call that the function would not take
        except FingerprintError as error:
            if key_of is not None:  # a bad key is told first
                blame(error, key_text(key_of(*args, **kwargs), what))
            raise
        if key_of is not None:
            text = key_text(key_of(*args, **kwargs), what)
        if payload_of is not None:
            made = payload_of(*args, **kwargs)
            try:
                digest = fingerprinter.digest(fingerprinter.text(made))
            except FingerprintError as error:
                blame(error, text)
                raise
        return text, digest

    return call


def spelled_fingerprint(args: tuple[Any, ...], kwargs: Mapping[str, Any], fingerprinter: Fingerprinter) -> bytes | None:
    """Return the fingerprint of a call's arguments as they are spelled, or None where there are none.

    It is that of a dict with the tuple ``"args"`` and the dict ``"kwargs"``, each left out when empty.

    Raises:
        FingerprintError: An argument has no canonical form; the path begins with ``args`` or ``kwargs``.
    """
    if not args and not kwargs:
        return None
    parts = []
    if args:
        parts.append('"args":' + fingerprinter.text(args, "args"))
    if kwargs:
        parts.append('"kwargs":' + fingerprinter.text(kwargs, "kwargs"))
    return fingerprinter.digest("{" + ",".join(parts) + "}")


class _Target:
    """The function concerned: its name, its parameters, and what options may say of them."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        if isinstance(fn, staticmethod | classmethod):
            raise TypeError(f"put @{type(fn).__name__} outside: it must be the decorator that is applied last")
        if isinstance(fn, type) or not callable(fn):
            raise TypeError(f"only functions can be guarded, not {fn!r}")
        self.qualname: str = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        try:
            signature = inspect.signature(fn)
        except ValueError as error:
            raise TypeError(f"{self} does not tell its parameters: guard a function that calls it") from error
        self.parameters: Mapping[str, Parameter] = signature.parameters
        first = next(iter(self.parameters.values()), None)
        self.takes_self = (
            first is not None
            and first.name in ("self", "cls")
            and first.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        )

    def __str__(self) -> str:
        return f"{self.qualname}()"

    def whole_parameters(self, *, without: frozenset[str]) -> list[Path]:
        """Return every parameter but these and a first one that is named self or cls."""
        names = list(self.parameters)
        return [Path(name) for name in names[self.takes_self :] if name not in without]

    def callable(self, spec: object, option: str) -> Callable[..., Any] | None:
        """Return the option's value, if it is a callable."""
        if not callable(spec):
            return None
        if inspect.iscoroutinefunction(spec):
            raise TypeError(f"{self}: {option}= must not be a coroutine function: it is called before anything waits")
        return spec

    def names(self, ignore: object) -> frozenset[str]:
        """Return the parameters that ``ignore`` names."""
        if isinstance(ignore, str):
            ignore = (ignore,)
        if not isinstance(ignore, Collection):
            raise TypeError(f"{self}: ignore= must be names of parameters, not {ignore!r}")
        for name in ignore:
            self._check_root(name, name, "ignore")
        return frozenset(ignore)

    def paths(self, spec: object, option: str, *, without: frozenset[str] = frozenset()) -> list[Path]:
        """Return the places that ``key`` or ``payload`` names, in the order given."""
        if isinstance(spec, str):
            spec = (spec,)
        if not isinstance(spec, Sequence) or isinstance(spec, bytes):
            raise TypeError(f"{self}: {option}= must be a name, a sequence of names or a callable, not {spec!r}")
        if not spec:
            raise TypeError(f"{self}: {option}= is an empty sequence: name at least one parameter")
        paths = [self._path(text, option) for text in spec]
        for path in paths:
            if spec.count(path.text) > 1:
                raise TypeError(f"{self}: {option}= names {path.text!r} twice")
            if path.root in without:
                raise TypeError(f"{self}: {option}= and ignore= both name {path.root!r}: leave one out")
        return paths

    def _path(self, text: object, option: str) -> Path:
        if not isinstance(text, str):
            raise TypeError(f"{self}: {option}= must hold names of parameters, not {text!r}")
        path = Path(text)
        self._check_root(path.root, text, option)
        if "" in path.steps:
            raise TypeError(f"{self}: {option}={text!r} has an empty step")
        kind = self.parameters[path.root].kind
        if path.steps and kind is Parameter.VAR_POSITIONAL:
            raise TypeError(f"{self}: {option}={text!r} leads into *{path.root}, a tuple, which has no names inside")
        if option == "key" and not path.steps and kind is Parameter.VAR_KEYWORD:
            raise TypeError(f"{self}: key={text!r} is a dict and so no key: name one of its items, as in '{text}.name'")
        return path

    def _check_root(self, root: object, text: object, option: str) -> None:
        if not isinstance(root, str) or root not in self.parameters:
            known = ", ".join(self.parameters) or "none"
            raise TypeError(f"{self} has no parameter {root!r}, named by {option}={text!r}; it has: {known}")
