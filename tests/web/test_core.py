"""What the core says by itself, where no middleware comes to it; and responses as outcomes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo import CodecError, Idempotency, LeaseLostError, ReentrantCallError
from idempo.errors import ResultNotStoredError
from idempo.http import HttpIdempotency, Response
from idempo.http._stored import ResponseCodec

_TEXT = st.text(st.characters(max_codepoint=0xFF), max_size=20)


@given(
    st.builds(
        Response,
        st.integers(100, 599),
        st.lists(st.tuples(_TEXT, _TEXT), max_size=4).map(tuple),
        st.binary(max_size=50),
    )
)
def test_a_response_is_read_as_it_was_written(response: Response) -> None:
    """And no part of it can pass for another."""
    codec = ResponseCodec()
    encoded = codec.encode(response)
    assert codec.decode(encoded) == response
    for end in range(1, len(encoded) - len(response.body)):
        with pytest.raises(CodecError, match="cut short"):
            codec.decode(encoded[:end])


@given(st.sampled_from([None, 1, "text", [1, {"a": (1, 2)}]]))
def test_what_a_declared_error_carries_is_kept_as_json(value: Any) -> None:
    codec = ResponseCodec()
    assert codec.decode(codec.encode(value)) == value


def test_who_joined_a_request_whose_outcome_could_not_be_stored_has_its_response() -> None:
    """Behaviour 62; where that was too large, it is lost. What is a mistake of the program rises."""
    rules = HttpIdempotency(Idempotency(), principal=None)
    answer = rules.answer(ResultNotStoredError("not stored", result=Response(201, (), b"made")))
    assert (answer.status, answer.body, answer.header("Idempotent-Replayed")) == (201, b"made", "true")
    assert rules.answer(LeaseLostError("gone", result=None)).status == 409
    assert rules.answer(ReentrantCallError("itself")).status == 409
    with pytest.raises(CodecError):
        rules.answer(CodecError("a mistake"))
