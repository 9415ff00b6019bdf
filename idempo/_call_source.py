"""The function that makes key and fingerprint of one call, generated once for each guarded function.

It has the guarded function's own parameters. Binding is then the interpreter's: positional, keyword and default
spellings of a call cannot differ, wrong arguments raise the very TypeError that the function itself would raise, and no
`inspect.Signature` is bound anew for each call. For ``def charge(order_id, amount=0)`` with ``key="order_id"`` it
reads, with speaking names instead of fresh ones::

    def charge(order_id, amount=default):
        key = key_text(order_id, "the key 'order_id' of charge()")
        try:
            if amount is default:
                amount_piece = ""
            else:
                amount_text = writer_for(type(amount), general)(amount)
                amount_piece = "" if amount_text == default_text else ',"amount":' + amount_text
            order_id_text = writer_for(type(order_id), general)(order_id)
            pieces = f'{amount_piece},"order_id":{order_id_text}'
            fingerprint = digest(f"{{{pieces[1:]}}}")
        except FingerprintError as error:
            blame(error, key)
            raise
        return key, fingerprint
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from idempo._key_text import checked_text, key_text, part_text
from idempo.errors import FingerprintError, InvalidKeyError
from idempo.fingerprint import SCALAR_WRITERS

if TYPE_CHECKING:
    from idempo.fingerprint import Fingerprinter

CompiledCall: TypeAlias = Callable[..., tuple[str, bytes | None]]
"""Takes a call's arguments and returns its key's text and its fingerprint, None where nothing is checked."""

Blame: TypeAlias = Callable[[FingerprintError, str], None]
"""Notes on the error which key it speaks of, by the key's text."""

_STARS: Final[Mapping[Any, str]] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}


class Path:
    """A parameter, or a place inside one."""

    __slots__ = ("root", "steps", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.root, *steps = text.split(".")
        self.steps = tuple(steps)

    def reach(self, value: Any, refuse: Callable[[str], Exception]) -> Any:
        """Follow the steps from the root's value: an item of a mapping, an attribute of anything else."""
        for step in self.steps:
            if type(value) is dict or isinstance(value, Mapping):
                if step not in value:  # asked first: looking it up would change a defaultdict
                    raise refuse(f"there is no item {step!r}")
                value = value[step]
            else:
                try:
                    value = getattr(value, step)
                except AttributeError as error:
                    raise refuse(f"the {type(value).__qualname__} has no attribute {step!r}") from error
        return value


class CallSource:
    """The source of one such function, as it is written.

    Args:
        name: The guarded function's qualified name, under which calls that do not fit are refused.
        parameters: Its parameters.
        fingerprinter: Writes and digests the payload.
    """

    def __init__(self, name: str, parameters: Collection[Parameter], fingerprinter: Fingerprinter) -> None:
        self._name = name
        self._parameters = {parameter.name: parameter for parameter in parameters}
        self._fingerprinter = fingerprinter
        self._prefix = "_"
        while any(name.startswith(self._prefix) for name in self._parameters):
            self._prefix += "_"  # so that no parameter, whatever its name, hides a name of ours
        self._fresh_names = 0
        self._globals: dict[str, Any] = {"__builtins__": {}}
        self._lines: list[str] = []
        self._type = self._bind(type)
        self._writer_for = self._bind(dict(fingerprinter.scalar_writers).get)
        self._defaults = {
            parameter.name: self._bind(parameter.default)
            for parameter in parameters
            if parameter.default is not Parameter.empty
        }

    def add_key(self, paths: Sequence[Path]) -> str:
        """Write what makes the text of the key at these places, and return its variable."""
        write = self._bind(key_text if len(paths) == 1 else part_text)
        texts = []
        for path in paths:
            what = f"the key {path.text!r} of {self._name}()"
            texts.append(self._let(f"{write}({self._value(path, partial(_no_key, what))}, {what!r})"))
        if len(texts) == 1:
            return texts[0]
        joined = " ',' ".join(map(_hole, texts))
        return self._let(f"{self._bind(checked_text)}('(' {joined} ')', {f'the key of {self._name}()'!r})")

    def add_digest(self, paths: Sequence[Path], *, key: str | None = None, blame: Blame | None = None) -> str:
        """Write what digests the dict from these places to their values, and return its variable.

        Args:
            paths: The places.
            key: The variable of the key's text, where that is known by then.
            blame: Told the FingerprintError, and this text.
        """
        written, self._lines = self._lines, []
        digest = self._add_digest(paths)
        if key is None or blame is None:
            self._lines = written + self._lines
            return digest
        error = self._fresh()
        self._lines = [
            *written,
            "try:",
            *(f"    {line}" for line in self._lines),
            f"except {self._bind(FingerprintError)} as {error}:",
            f"    {self._bind(blame)}({error}, {key})",
            "    raise",
        ]
        return digest

    def _add_digest(self, paths: Sequence[Path]) -> str:
        pieces: list[str] = []
        first_is_certain = False
        for path in sorted(paths, key=lambda path: path.text):
            label = SCALAR_WRITERS[str](path.text) + ":"  # never by a hook: a name is no value of the user's
            parameter = self._parameters[path.root]
            if not path.steps and (_is_variadic(parameter) or parameter.default is not Parameter.empty):
                pieces.append(_hole(self._add_optional(parameter, label)))
                continue
            first_is_certain = first_is_certain or not pieces
            value = self._let(self._value(path, partial(_no_payload, path.text))) if path.steps else path.root
            text = self._let(self._text(value, path.text))
            pieces.append(f"{',' * bool(pieces) + label!r} {_hole(text)}")
        listed = " ".join(pieces) or "''"
        if not first_is_certain:  # then each piece that is not empty begins with a comma, wherever it stands
            listed = _hole(f"{self._let(listed)}[1:]")
        return self._let(f"{self._bind(self._fingerprinter.digest)}('{{' {listed} '}}')")

    def _add_optional(self, parameter: Parameter, label: str) -> str:
        """Write the piece of an argument that says nothing when it is empty or its default; return its variable."""
        name, label, piece = parameter.name, "," + label, self._fresh()
        if _is_variadic(parameter):
            self._lines += [f"{piece} = {label!r} + {self._text(name, name)} if {name} else ''"]
            return piece
        try:
            # Now, not at the first call: by then the function may have changed its own default.
            default = self._bind(self._fingerprinter.text(parameter.default, name))
        except FingerprintError:
            default = self._bind(None)  # no text equals it: such a default is known by its identity only
        self._lines += [
            f"if {name} is {self._defaults[name]}:",
            f"    {piece} = ''",
            "else:",
            f"    {piece} = {self._text(name, name)}",
            f"    {piece} = '' if {piece} == {default} else {label!r} + {piece}",
        ]
        return piece

    def compile(self, answer: str) -> CompiledCall:
        """Return the function, whose answer is this expression."""
        name = self._fresh()
        source = "\n    ".join([f"def {name}({self._signature()}):", *self._lines, f"return {answer}"])
        # Of what others wrote, only parameters' names, which are identifiers, and literals made by repr() get here.
        exec(compile(source, f"<key of {self._name}()>", "exec"), self._globals)  # noqa: S102  # reason above
        compiled: CompiledCall = self._globals.pop(name)
        compiled.__qualname__ = self._name  # what the interpreter calls the function that a call does not fit
        return compiled

    def _signature(self) -> str:
        listed: list[str] = []
        before: Any = None
        for name, parameter in self._parameters.items():
            kind = parameter.kind
            if before is Parameter.POSITIONAL_ONLY and kind is not Parameter.POSITIONAL_ONLY:
                listed.append("/")
            if kind is Parameter.KEYWORD_ONLY and before not in (Parameter.KEYWORD_ONLY, Parameter.VAR_POSITIONAL):
                listed.append("*")
            default = f"={self._defaults[name]}" if name in self._defaults else ""
            listed.append(f"{_STARS.get(kind, '')}{name}{default}")
            before = kind
        if before is Parameter.POSITIONAL_ONLY:
            listed.append("/")
        return ", ".join(listed)

    def _value(self, path: Path, refuse: Callable[[str], Exception]) -> str:
        return f"{self._bind(path.reach)}({path.root}, {self._bind(refuse)})" if path.steps else path.root

    def _text(self, name: str, path: str) -> str:
        """Return the expression for the canonical text of a variable."""
        general = self._bind(partial(self._fingerprinter.text, path=path))
        return f"{self._writer_for}({self._type}({name}), {general})({name})"

    def _let(self, expression: str) -> str:
        """Write an assignment to a fresh variable, and return its name."""
        name = self._fresh()
        self._lines.append(f"{name} = {expression}")
        return name

    def _bind(self, value: object) -> str:
        """Return a fresh name by which the source reaches this object."""
        name = self._fresh()
        self._globals[name] = value
        return name

    def _fresh(self) -> str:
        self._fresh_names += 1
        return f"{self._prefix}{self._fresh_names}"


def _hole(expression: str) -> str:
    """Return a piece of source that puts a text between literals; the interpreter joins a row of them in one step."""
    return f"f'{{{expression}}}'"


def _is_variadic(parameter: Parameter) -> bool:
    return parameter.kind in _STARS


def _no_key(what: str, problem: str) -> InvalidKeyError:
    return InvalidKeyError(f"{what} is missing: {problem}")


def _no_payload(path: str, problem: str) -> FingerprintError:
    return FingerprintError(f"the payload {path!r} is missing: {problem}", path=path)
