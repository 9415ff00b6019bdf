"""The ``Idempotency-Key`` header: draft-ietf-httpapi-idempotency-key-header-07, section 2.1.

Its value is an Item of Structured Fields (RFC 9651) that must be a String: ``"8e03978e-40d5-43dd-bc93-6894a57f9324"``,
with the quotation marks. Many clients send the bare key, as Stripe's do.
"""

from __future__ import annotations

import re
from typing import Any, Final

from idempo.errors import InvalidKeyError
from idempo.http.client import HEADER

http_sf: Any
try:
    import http_sf
except ImportError:  # whoever is a client does without
    http_sf = None

__all__ = ["HEADER", "check_parser", "parse_key"]

_MAX_KEY: Final = 255  # characters, as of every key
_MAX_FIELD: Final = 4 * _MAX_KEY  # with marks, backslashes and parameters; a longer one is not looked into
_SIMPLE: Final = re.compile(r'"([ !#-\[\]-~]{1,255})"').fullmatch  # a String without escapes, alone: nearly every key
_BARE: Final = re.compile(r"[A-Za-z0-9][!#$%&'*+\-./0-9:=@A-Z^_`a-z|~]*").fullmatch


def check_parser() -> None:
    """Refuse to go on without what parses Structured Fields.

    Raises:
        ImportError: It is not installed.
    """
    if http_sf is None:
        raise ImportError('idempo.http needs http-sf: pip install "idempo[http]"')


def parse_key(values: list[str], *, bare: bool = True) -> str:
    """Return the key of a request.

    Args:
        values: Of every ``Idempotency-Key`` header that it has.
        bare: Whether a key without quotation marks is one: visible ASCII that begins with a letter or a digit, without
            quotation marks, backslashes, brackets, commas, semicolons and spaces.

    Returns:
        1 to 255 characters of ASCII. The same, whether it was sent with quotation marks or without.

    Raises:
        InvalidKeyError: There is no header, or several, or its value is none.

    >>> from idempo.http import parse_key
    >>> parse_key(['"order-42"']), parse_key(["order-42"])
    ('order-42', 'order-42')
    """
    if len(values) != 1:
        raise InvalidKeyError(f"the header was sent {len(values)} times; send it once")
    field = values[0].strip(" \t")
    simple = _SIMPLE(field)
    if simple is not None:
        return simple[1]
    if len(field) > _MAX_FIELD:
        raise InvalidKeyError(f"the key is longer than {_MAX_KEY} characters")
    key = field if bare and _BARE(field) else _string(field)
    if not 0 < len(key) <= _MAX_KEY:
        raise InvalidKeyError(f"the key has {len(key)} characters; send 1 to {_MAX_KEY}")
    return key


def _string(field: str) -> str:
    """Return the text of a String of Structured Fields. Its parameters are not looked at: the draft has none."""
    try:
        item: Any = http_sf.parse(field.encode("latin-1"), tltype="item")
    except (ValueError, RecursionError):  # of text that is no Latin-1, too
        item = (None, {})
    if type(item[0]) is not str:  # a Token is a class of its own
        raise InvalidKeyError('the value is no string in quotation marks, as in "8e03978e-40d5-43dd-bc93-6894a57f9324"')
    return item[0]
