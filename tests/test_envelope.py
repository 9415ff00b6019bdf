"""The envelope around stored outcomes."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo.envelope import Kind, pack, unpack
from idempo.errors import RecordError


@given(kind=st.sampled_from(Kind), body=st.binary(max_size=200))
def test_gives_back_what_was_packed(kind: Kind, body: bytes) -> None:
    assert unpack(pack(kind, body)) == (kind, body)


def test_layout_is_the_documented_one() -> None:
    """Records live longer than a version of idempo: the bytes may not change unnoticed."""
    assert pack(Kind.VALUE, b"body") == bytes.fromhex("d6690156000000043d9d94a4") + b"body"


@given(kind=st.sampled_from(Kind), body=st.binary(min_size=1, max_size=60), data=st.data())
def test_any_flipped_bit_is_found(kind: Kind, body: bytes, data: st.DataObject) -> None:
    """Behaviour 35: a record with one bit flipped is a RecordError."""
    packed = bytearray(pack(kind, body))
    bit = data.draw(st.integers(0, 8 * len(packed) - 1))
    packed[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(RecordError):
        unpack(bytes(packed))


def test_every_truncation_is_found_and_named() -> None:
    """Behaviour 35: a record cut short is a RecordError that says so."""
    packed = pack(Kind.ERROR, b"some body")
    for length in range(2, len(packed)):
        with pytest.raises(RecordError, match="cut short"):
            unpack(packed[:length])


@pytest.mark.parametrize("foreign", [b"", b"\xd6", b"{}", b'{"a":1}', pickle.dumps({"a": 1}), b"\0" * 40])
def test_foreign_bytes_are_named_as_such(foreign: bytes) -> None:
    """Behaviour 35: bytes that idempo did not write, or wrote behind a seal, are a RecordError that says both."""
    with pytest.raises(RecordError, match="not written by idempo, or is sealed and read without its seal"):
        unpack(foreign)


def test_an_unknown_version_is_named() -> None:
    """Behaviour 35: a record of a newer version is a RecordError that names the version."""
    packed = bytearray(pack(Kind.VALUE, b"body"))
    packed[2] = 9
    with pytest.raises(RecordError, match=r"version 9.*reads version 1.*upgrade"):
        unpack(bytes(packed))


def test_an_unknown_kind_and_a_wrong_checksum_are_named() -> None:
    packed = bytearray(pack(Kind.VALUE, b"body"))
    packed[3:4] = b"X"
    with pytest.raises(RecordError, match="its kind is unknown"):
        unpack(bytes(packed))
    with pytest.raises(RecordError, match="checksum does not match"):
        unpack(pack(Kind.VALUE, b"body")[:-1] + b"i")
    with pytest.raises(RecordError, match="5 bytes where 4 were written"):
        unpack(pack(Kind.VALUE, b"body") + b"!")


def test_the_kind_is_under_the_checksum() -> None:
    """A value turned into an error by one byte would replay as what never happened."""
    with pytest.raises(RecordError, match="checksum"):
        unpack(pack(Kind.VALUE, b"body").replace(b"V", b"E"))
