"""The Idempotency-Key header: what is a key, and what is none."""

from __future__ import annotations

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo import InvalidKeyError
from idempo.http import parse_key

_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255)


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ('"8e03978e-40d5-43dd-bc93-6894a57f9324"', "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ('  "k" \t', "k"),
        ('"k";version=1;a', "k"),
        (r'"a \"quoted\" \\ key"', 'a "quoted" \\ key'),
        ('"' + "k" * 255 + '"', "k" * 255),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("42", "42"),
        ("order:42/a+b=.~_", "order:42/a+b=.~_"),
    ],
)
def test_keys_with_and_without_quotation_marks(field: str, key: str) -> None:
    """A String of Structured Fields, and what Stripe's clients send."""
    assert parse_key([field]) == key


@pytest.mark.parametrize(
    "field",
    [
        "",
        '""',
        '"k',
        'k"',
        '"a", "b"',
        "a,b",
        "a b",
        '"a" "b"',
        '"é"',
        "é",
        "\x00",
        '"\x00"',
        ":aGVsbG8=:",
        "?1",
        "@1659578233",
        "(a b)",
        '"' + "k" * 256 + '"',
        "k" * 256,
        '"' + "\\\\" * 256 + '"',
        '"k"' + ";a" * 5000,
        '"\N{SNOWMAN}"',
    ],
)
def test_what_is_no_key_is_refused(field: str) -> None:
    """Behaviour 56."""
    with pytest.raises(InvalidKeyError):
        parse_key([field])


@pytest.mark.parametrize("field", ["k-1", "42", "1.5", "k_1"])
def test_bare_keys_are_an_option(field: str) -> None:
    assert parse_key([field]) == field
    with pytest.raises(InvalidKeyError, match="quotation marks"):
        parse_key([field], bare=False)


@pytest.mark.parametrize("fields", [[], ['"k"', '"k"']])
def test_a_header_is_sent_once(fields: list[str]) -> None:
    with pytest.raises(InvalidKeyError, match="send it once"):
        parse_key(fields)


@given(_TEXT)
def test_whatever_text_a_string_holds_is_the_key(text: str) -> None:
    """RFC 9651 section 3.3.3."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    assert parse_key([f'"{escaped}"']) == text


@given(st.text(st.characters(max_codepoint=0x17F), max_size=300))
def test_any_field_is_a_key_or_refused(field: str) -> None:
    """Fuzzed: nothing else is ever raised, and what is a key is one for every store."""
    try:
        key = parse_key([field])
    except InvalidKeyError:
        return
    assert 0 < len(key) <= 255
    assert key.isascii()


@given(st.one_of(st.text(st.characters(max_codepoint=0xFF), max_size=20).map(lambda text: f'"{text}"'), st.text()))
def test_a_simple_string_is_what_the_parser_says(field: str) -> None:
    """The short way for most keys is no other grammar."""
    try:
        said = http_sf.parse(field.strip(" \t").encode("latin-1"), tltype="item")
        expected = said[0] if isinstance(said, tuple) and type(said[0]) is str else ""
    except ValueError:
        expected = ""
    try:
        found = parse_key([field], bare=False)
    except InvalidKeyError:
        found = ""
    assert found == expected
