"""Fingerprints: digests by which a repeated operation is known to be the same one, or caught being another.

A fingerprint is a version byte and the SHA-256 (or, with a secret, HMAC-SHA-256) of a value's canonical text. It is the
same in every process, under every hash seed and on every Python version; `docs/fingerprints.md` says how to make it in
another language.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn

from idempo._canonical import JSON_TYPES, MAX_DEPTH, SCALAR_WRITERS, Walk, json_text
from idempo._canonical_types import NoFormError
from idempo.errors import FingerprintError

__all__ = ["MAX_DEPTH", "SCALAR_WRITERS", "Fingerprinter", "fingerprint", "fingerprint_version_supported"]

_SHA256: Final = b"\x01"
_HMAC_SHA256: Final = b"\x02"
_DIGEST_SIZE: Final = 32


class Fingerprinter:
    """Makes fingerprints. Immutable, and safe to share between threads.

    Example:
        >>> from idempo import Fingerprinter
        >>> by_card = Fingerprinter(secret=b"from your vault, 32 random bytes")
        >>> by_card({"card": "4242424242424242"}) == by_card({"card": "4000000000000002"})
        False

    Args:
        secret: Makes fingerprints HMAC-SHA-256, so that whoever reads the store cannot find a payload by trying all
            there may be (card numbers, PINs). Every process that shares a store needs the same; text counts as UTF-8.
        hooks: From classes to functions that give a value to write in place of an instance, under the qualified name of
            the instance's class. The class itself counts first, then the nearest in its method resolution order, before
            every form that idempo knows, and before ``__idempo_payload__``; so a hook for `int` is asked about bools
            too. A hook for `object` is asked only about what has no form otherwise. Where a hook gives a value of the
            very class it was asked about, that one is written without asking again.

    Raises:
        TypeError: The secret is neither bytes nor str, or hooks do not lead from classes to callables.
        ValueError: The secret is empty.
    """

    __slots__ = ("_hooks", "_is_plain", "_secret", "scalar_writers")

    _hooks: dict[type, Callable[[Any], Any]]
    _is_plain: bool
    _secret: bytes | None

    scalar_writers: Mapping[type, Callable[[Any], str]]
    """From exact types to functions that write one value of it as `text` does; without the types that hooks concern."""

    def __init__(
        self, *, secret: bytes | str | None = None, hooks: Mapping[type, Callable[[Any], Any]] | None = None
    ) -> None:
        if isinstance(secret, str):
            secret = secret.encode()
        elif secret is not None and not isinstance(secret, bytes):
            raise TypeError(f"secret must be bytes or str, not {type(secret).__name__}")
        if secret is not None and not secret:
            raise ValueError("secret must not be empty: give at least 16 random bytes, or None for plain SHA-256")
        hooks = dict(hooks or {})
        for cls, hook in hooks.items():
            if not isinstance(cls, type):
                raise TypeError(f"hooks must lead from classes, not from {cls!r}")
            if not callable(hook):
                raise TypeError(f"the hook for {cls.__qualname__} must be callable, not a {type(hook).__name__}")

        def is_hooked(cls: type) -> bool:
            return any(base in hooks for base in cls.__mro__[:-1])

        writers = {cls: writer for cls, writer in SCALAR_WRITERS.items() if not is_hooked(cls)}
        set_once = super().__setattr__
        set_once("_secret", secret)
        set_once("_hooks", hooks)
        set_once("_is_plain", not any(map(is_hooked, JSON_TYPES)))
        set_once("scalar_writers", MappingProxyType(writers))

    def __call__(self, value: Any) -> bytes:
        """Return the fingerprint of a value: 33 bytes.

        Raises:
            FingerprintError: Something in the value has no canonical form; its ``path`` leads there.
        """
        return self.digest(self.text(value))

    def text(self, value: Any, path: str = "") -> str:
        """Return the canonical text of a value.

        Args:
            value: What to write.
            path: What the value is called, to begin the path in an error.

        Raises:
            FingerprintError: Something in the value has no canonical form; its ``path`` leads there.
        """
        if self._is_plain:
            text = json_text(value)
            if text is not None:
                return text
        try:
            return Walk(self._hooks).write(value)
        except NoFormError as error:
            steps = "".join(reversed(error.segments))
            where = path + steps if path else steps.removeprefix(".")
            message = f"{where or 'the value'}: {error.reason}"
            raise FingerprintError(message, path=where) from error.__cause__

    def digest(self, text: str) -> bytes:
        """Return the fingerprint of the value that a canonical text stands for."""
        # A lone surrogate is written as its three bytes, as if UTF-8 allowed it: each text has bytes of its own.
        data = text.encode("utf-8", "surrogatepass")
        if self._secret is None:
            return _SHA256 + hashlib.sha256(data).digest()
        import hmac

        return _HMAC_SHA256 + hmac.digest(self._secret, data, "sha256")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Fingerprinter is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Fingerprinter is immutable: {name} cannot be deleted")


PLAIN: Final = Fingerprinter()
"""SHA-256, no hooks."""


def fingerprint(value: Any) -> bytes:
    """Return the fingerprint of a value: the same for values that mean the same, in every process and Python version.

    Example:
        >>> from idempo import fingerprint
        >>> fingerprint({"amount": 5, "to": "ann"}) == fingerprint({"to": "ann", "amount": 5})
        True
        >>> fingerprint(1) == fingerprint(1.0)
        False

    Args:
        value: Anything made of None, bool, int, float, str, bytes, lists, tuples, dicts, sets, Decimal, Fraction,
            UUID, paths, the types of `datetime`, Enums, namedtuples, attrs classes, dataclasses, and classes with
            ``__idempo_payload__()``, which returns a value to write in their place. Nested at most `MAX_DEPTH` deep.

    Returns:
        33 bytes: a version byte and a SHA-256 digest.

    Raises:
        FingerprintError: Something in the value has no canonical form; its ``path`` leads there.
    """
    return PLAIN(value)


def fingerprint_version_supported(stored: bytes) -> bool:
    """Tell whether a stored fingerprint was made by a version of the encoding that this release knows.

    One that was not equals no fingerprint of today, whatever the payload.
    """
    return len(stored) == 1 + _DIGEST_SIZE and stored[:1] in (_SHA256, _HMAC_SHA256)
