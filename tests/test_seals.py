"""Seals: forged, altered and moved outcomes are refused."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo.errors import RecordError
from idempo.protocols import Seal
from idempo.seals import Encrypted, Signed

pytest.importorskip("cryptography")

OLD, NEW = "an old secret of some length", b"a new secret of some length"
SEALS = [Signed(NEW), Encrypted(bytes(32))]
each_seal = pytest.mark.parametrize("seal", SEALS, ids=["signed", "encrypted"])


@each_seal
@given(data=st.binary(max_size=100), context=st.binary(max_size=100))
def test_opens_what_it_sealed(seal: Seal, data: bytes, context: bytes) -> None:
    assert seal.open(seal.seal(data, context=context), context=context) == data


@each_seal
def test_follows_the_protocol(seal: Seal) -> None:
    assert isinstance(seal, Seal)


@each_seal
def test_refuses_an_outcome_that_was_moved(seal: Seal) -> None:
    """Behaviour 36: a sealed outcome under another key is a RecordError."""
    with pytest.raises(RecordError, match="moved from another key"):
        seal.open(seal.seal(b"data", context=b"key 1"), context=b"key 2")


@each_seal
def test_context_and_data_cannot_be_shifted_into_each_other(seal: Seal) -> None:
    """Behaviour 36: the boundary between what is bound and what is sealed is sealed too."""
    sealed = seal.seal(b"bc", context=b"a")
    with pytest.raises(RecordError):
        seal.open(sealed.replace(b"bc", b"c"), context=b"ab")


@each_seal
@given(data=st.data())
def test_refuses_every_altered_bit(seal: Seal, data: st.DataObject) -> None:
    """Behaviour 35: no altered byte passes, wherever it stands."""
    sealed = bytearray(seal.seal(b"some data", context=b"context"))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(RecordError):
        seal.open(bytes(sealed), context=b"context")


@each_seal
def test_refuses_truncated_and_foreign_bytes(seal: Seal) -> None:
    """Behaviour 35: what is cut short or not sealed at all is a RecordError."""
    sealed = seal.seal(b"some data", context=b"context")
    for length in range(len(sealed)):
        with pytest.raises(RecordError):
            seal.open(sealed[:length], context=b"context")
    with pytest.raises(RecordError, match="by idempo"):
        seal.open(b"\xd6i\x01V and so on, long enough for a signature to fit in", context=b"context")


def test_a_seal_does_not_open_the_other_ones() -> None:
    signed, encrypted = (seal.seal(b"data", context=b"") for seal in SEALS)
    with pytest.raises(RecordError, match="not signed"):
        SEALS[0].open(encrypted, context=b"")
    with pytest.raises(RecordError, match="not encrypted"):
        SEALS[1].open(signed, context=b"")


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [(Signed, OLD, NEW), (Encrypted, b"o" * 16, b"n" * 32)],
    ids=["signed", "encrypted"],
)
def test_secrets_can_be_replaced_one_by_one(make: Any, old: Any, new: Any) -> None:
    """The first one writes, all of them read, and a stranger's is refused."""
    sealed = make(old).seal(b"data", context=b"c")
    assert make([new, old]).open(sealed, context=b"c") == b"data"
    with pytest.raises(RecordError, match="not among these"):
        make(new).open(sealed, context=b"c")
    assert make(new).open(make([new, old]).seal(b"data", context=b"c"), context=b"c") == b"data"


def test_a_signature_is_the_documented_one() -> None:
    """Sealed records outlive a version of idempo: the bytes may not change unnoticed."""
    sealed = Signed("s" * 16).seal(b"data", context=b"context")
    assert sealed.hex() == "5331" + "1f00b188131caa8d7fad00455589a3a0ab9cb6bc98c94651f8e1cb7935539122" + b"data".hex()


def test_encrypted_data_is_not_to_be_seen_and_differs_each_time() -> None:
    seal = Encrypted(os.urandom(32))
    one, other = (seal.seal(b"card number", context=b"") for _ in range(2))
    assert b"card number" not in one
    assert one != other


@pytest.mark.parametrize("size", [16, 24, 32])
def test_every_aes_key_size_works(size: int) -> None:
    seal = Encrypted([os.urandom(size)])
    assert seal.open(seal.seal(b"data", context=b""), context=b"") == b"data"


@pytest.mark.parametrize(
    ("make", "bad", "error", "says"),
    [
        (Signed, [], ValueError, "at least one secret"),
        (Signed, "short", ValueError, "at least 16 bytes.*token_urlsafe"),
        (Signed, [NEW, ""], ValueError, "at least 16 bytes"),
        (Signed, 7, TypeError, "not int"),
        (Signed, [7], TypeError, "not int"),
        (Encrypted, [], ValueError, "at least one key"),
        (Encrypted, b"x" * 17, ValueError, "16, 24 or 32 random bytes, not 17"),
        (Encrypted, "x" * 16, TypeError, "password is no key"),
        (Encrypted, ["x" * 16], TypeError, "not str"),
        (Encrypted, None, TypeError, "not NoneType"),
    ],
)
def test_bad_secrets_are_refused_when_the_seal_is_made(make: Any, bad: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        make(bad)


def test_secrets_never_show() -> None:
    """A seal's repr ends up in logs and tracebacks; no secret may go with it."""
    assert repr(Signed([OLD, NEW])) == "Signed(<2 secrets>)"
    assert repr(Encrypted(b"k" * 16)) == "Encrypted(<1 keys>)"
    with pytest.raises(ValueError, match="bytes") as caught:
        Signed("hunter2")
    assert "hunter2" not in str(caught.value)


def test_without_cryptography_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ImportError, match="pip install cryptography"):
        Encrypted(bytes(16))
