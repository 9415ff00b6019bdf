"""Tokens: issued, redeemed once, for their purpose and subject."""

from __future__ import annotations

import asyncio
import builtins
import enum
import importlib
import logging
import pickle
import sys
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo import (
    Event,
    ExpiredTokenError,
    IdempotencyError,
    InDoubtError,
    InvalidKeyError,
    InvalidTokenError,
    Key,
    MemoryStore,
    ReentrantCallError,
    TokenError,
    UsedTokenError,
    WrongPurposeError,
    current_operation,
)
from idempo.stores.cas import AsyncCasStore
from idempo.testing import FlakyStore, unguarded
from idempo.testing.backend import AsyncDictBackend
from tests.tokens_support import OTHER, PATIENCE, SECRET, each_store, issuer

store = each_store


def test_a_token_redeems_once_for_what_it_was_issued(store: Any) -> None:
    """Behaviour 68: the second time it is used; the first gives back what it was issued with."""
    tokens = issuer(store)
    before = datetime.now(UTC)
    token = tokens.issue("order", subject="user-7", data={"cart": [1, None, "ü"]})
    redemption = tokens.redeem(token, "order", subject="user-7")
    assert (redemption.purpose, redemption.subject, redemption.data) == ("order", "user-7", {"cart": [1, None, "ü"]})
    assert abs(redemption.issued_at - before) < timedelta(seconds=PATIENCE)
    assert redemption.expires_at - redemption.issued_at == timedelta(hours=1)
    with pytest.raises(UsedTokenError) as caught:
        tokens.redeem(token, "order", subject="user-7")
    assert caught.value.key == Key("tokens", redemption.id)
    with pytest.raises(UsedTokenError), tokens.redeeming(token, "order", subject="user-7"):
        pytest.fail("the block must not begin")


def test_coroutines_redeem_as_plain_functions_do(store: Any) -> None:
    """Behaviour 68: by `redeem_async` and `async with`, on the same stores."""

    async def main() -> None:
        tokens = issuer(store)
        first, second = tokens.issue("order"), tokens.issue("order")
        assert (await tokens.redeem_async(first, "order")).purpose == "order"
        with pytest.raises(UsedTokenError):
            await tokens.redeem_async(first, "order")
        with pytest.raises(ZeroDivisionError):
            async with tokens.redeeming(second, "order"):
                raise ZeroDivisionError
        async with tokens.redeeming(second, "order") as redemption:
            assert current_operation().key.value == redemption.id
        with pytest.raises(UsedTokenError):
            async with tokens.redeeming(second, "order"):
                pytest.fail("the block must not begin")

    asyncio.run(main())


def test_an_async_store_takes_coroutines_alone() -> None:
    tokens = issuer(AsyncCasStore(AsyncDictBackend()))
    token = tokens.issue("order")
    with pytest.raises(TypeError, match="AsyncStore"):
        tokens.redeem(token, "order")
    assert asyncio.run(tokens.redeem_async(token, "order")).purpose == "order"


FORGED = {
    "nothing": None,
    "empty": "",
    "bytes": b"abc",
    "no token": "hello",
    "no Unicode": "\udc80.abc",
    "huge": "a" * 20_000 + ".b",
    "a foreign secret": issuer(secrets=OTHER).issue("order", "user-7"),
    "a foreign namespace": issuer(namespace="elsewhere").issue("order", "user-7"),
    "cut short": issuer().issue("order", "user-7")[:-1],
    "longer": issuer().issue("order", "user-7") + "A",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_token_is_invalid(name: str) -> None:
    """Behaviour 68: whatever a client sends that we did not sign for here."""
    token: Any = FORGED[name]
    with pytest.raises(InvalidTokenError) as caught:
        issuer().redeem(token, "order", "user-7")
    assert caught.value.key is None
    assert caught.value.__cause__ is None
    assert not token or str(token) not in str(caught.value)


@pytest.mark.parametrize("content", ["no JSON", "7", "[]", '[2,"id",0,1,"order",null,null]'])
def test_what_we_signed_and_cannot_read_is_invalid(content: str) -> None:
    """Another version, or another program with our secret and salt."""
    from itsdangerous.encoding import base64_encode

    tokens = issuer()
    with pytest.raises(InvalidTokenError):
        tokens.redeem(tokens._signer.sign(base64_encode(content)).decode(), "order")


@given(st.data())
def test_any_altered_character_makes_it_invalid(data: st.DataObject) -> None:
    """Behaviour 68: also one in whose place another decodes to the same bytes, and one that base64 passes over."""
    tokens = issuer()
    token = tokens.issue("order", "user-7", data.draw(st.text(max_size=5)))
    place = data.draw(st.sampled_from([len(token) - 1, *range(len(token))]))
    letters = st.characters(codec="utf-8") | st.sampled_from(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_=!. "
    )
    other = data.draw(letters.filter(lambda letter: letter != token[place]))
    with_more = data.draw(st.booleans())
    altered = token[:place] + other + token[place if with_more else place + 1 :]
    with pytest.raises(InvalidTokenError):
        tokens.redeem(altered, "order", "user-7")
    tokens.redeem(token, "order", "user-7")


def test_the_last_character_has_one_spelling() -> None:
    """Two of its bits are in no byte of the signature: all four spellings verify in itsdangerous."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    tokens = issuer()
    token = tokens.issue("order")
    for letter in letters.replace(token[-1], ""):
        with pytest.raises(InvalidTokenError):
            tokens.redeem(token[:-1] + letter, "order")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@given(purpose=st.text(min_size=1, max_size=40), subject=st.none() | st.text(min_size=1, max_size=40), data=json_values)
def test_what_is_issued_comes_back(purpose: str, subject: str | None, data: Any) -> None:
    tokens = issuer()
    token = tokens.issue(purpose, subject, data)
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert tokens.redeem(token, purpose, subject).data == data


@pytest.mark.parametrize(
    ("purpose", "subject"),
    [("refund", "user-7"), ("order", "user-8"), ("order", None), ("user-7", "order"), ("order", ("user-7",))],
)
def test_a_foreign_token_stays_unused(purpose: str, subject: Any) -> None:
    """Behaviour 68: another purpose, another subject, or no subject named where there is one."""
    tokens = issuer()
    token = tokens.issue("order", "user-7")
    with pytest.raises(WrongPurposeError, match="another purpose or subject"):
        tokens.redeem(token, purpose, subject)
    assert tokens.redeem(token, "order", "user-7").subject == "user-7"
    bare = tokens.issue("order")
    with pytest.raises(WrongPurposeError):
        tokens.redeem(bare, "order", "user-7")


class Purpose(enum.Enum):
    ORDER = "order"


def test_subjects_and_purposes_count_by_their_text() -> None:
    """As keys do: a number and its text are one."""
    tokens, user = issuer(), uuid.uuid4()
    assert tokens.redeem(tokens.issue("order", 7), "order", "7").subject == "7"
    assert tokens.redeem(tokens.issue("order", user), "order", str(user)).subject == str(user)
    assert tokens.redeem(tokens.issue(Purpose.ORDER.value), "order").purpose == "order"
    assert tokens.redeem(tokens.issue("order", ("a", "b")), "order", ("a", "b")).subject == "(a,b)"


@pytest.mark.parametrize("wrong", ["", "x" * 256, 1.5, True, "\ud800", b""])
def test_what_names_nothing_is_no_purpose_and_no_subject(wrong: Any) -> None:
    tokens = issuer()
    for call in (
        lambda: tokens.issue(wrong),
        lambda: tokens.issue("order", wrong),
        lambda: tokens.redeem(tokens.issue("order"), wrong),
        lambda: tokens.redeem(tokens.issue("order"), "order", wrong),
    ):
        with pytest.raises(InvalidKeyError):
            call()
    with pytest.raises(InvalidKeyError):
        tokens.issue(None)  # type: ignore[arg-type]


DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"hush": (1, 2)}, TypeError),
        ({1: "hush"}, TypeError),
        ({"hush": {1}}, TypeError),
        (float("nan"), TypeError),
        (b"hush", TypeError),
        ("hush" * 1100, ValueError),
        (DEEP, ValueError),
    ],
    ids=["tuple", "number as key", "set", "nan", "bytes", "large", "deep"],
)
def test_data_is_json_of_bounded_size(data: Any, error: type[Exception]) -> None:
    """What would come back otherwise is refused when the token is issued, and is not shown."""
    with pytest.raises(error, match="data must") as caught:
        issuer().issue("order", data=data)
    assert "hush" not in str(caught.value)


def test_the_largest_token_is_taken() -> None:
    tokens = issuer()
    purpose, subject, data = "\U0001f355" * 255, "\U0001f600" * 255, "d" * 4094
    assert tokens.redeem(tokens.issue(purpose, subject, data), purpose, subject).data == data


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"secrets": []}, ValueError, "at least one secret"),
        ({"secrets": "short"}, ValueError, "at least 16 bytes"),
        ({"secrets": [SECRET, "short"]}, ValueError, "at least 16 bytes"),
        ({"secrets": [7]}, TypeError, "a secret must be bytes"),
        ({"secrets": None}, TypeError, "secrets must be"),
        ({"ttl": 0}, ValueError, "ttl must be"),
        ({"ttl": 0.5}, ValueError, "ttl must be"),
        ({"ttl": timedelta(days=367)}, ValueError, "ttl must be at most 366 days"),
        ({"ttl": "1h"}, TypeError, "ttl must be"),
        ({"leeway": -1}, ValueError, "leeway must be"),
        ({"leeway": timedelta(days=2)}, ValueError, "leeway must be at most a day"),
        ({"in_doubt": lambda key: None}, ValueError, "in_doubt must be"),
        ({"clock": 7}, TypeError, "clock must be"),
        ({"namespace": "a/b"}, ValueError, "'/'"),
        ({"release_errors": "all"}, TypeError, "release_errors must be"),
        ({"store": "redis://"}, TypeError, "store must be"),
    ],
)
def test_what_an_issuer_is_made_of_is_checked(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        issuer(**options)
    assert "short" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_secrets_rotate() -> None:
    """The first signs, all verify; what was signed with one that was taken away is invalid."""
    store = MemoryStore()
    before, during, after = (issuer(store, secrets=each) for each in ([SECRET], (OTHER, SECRET), OTHER.encode()))
    old, new = before.issue("order"), during.issue("order")
    assert during.redeem(old, "order").purpose == "order"
    assert after.redeem(new, "order").purpose == "order"
    with pytest.raises(InvalidTokenError):
        after.redeem(old, "order")
    with pytest.raises(UsedTokenError):
        during.redeem(new, "order")


def test_a_failed_block_leaves_the_token_unused(store: Any) -> None:
    """Behaviour 68: and one that ends does not; inside, downstream calls have keys that stay the same."""
    tokens = issuer(store)
    token = tokens.issue("order")
    derived = []
    with pytest.raises(ZeroDivisionError), tokens.redeeming(token, "order"):
        derived.append(current_operation().derive("payment"))
        raise ZeroDivisionError
    with tokens.redeeming(token, "order") as redemption:
        derived.append(current_operation().derive("payment"))
        assert redemption.purpose == "order"
    assert len(set(derived)) == 1
    with pytest.raises(UsedTokenError):
        tokens.redeem(token, "order")


def test_an_interrupted_block_is_in_doubt_unless_it_may_run_again() -> None:
    """By default at most once: an operator says whether it was used."""
    tokens = issuer()
    used, unused = tokens.issue("order"), tokens.issue("order")
    doubts = []
    for token in (used, unused):
        with pytest.raises(KeyboardInterrupt), tokens.redeeming(token, "order"):
            raise KeyboardInterrupt
        with pytest.raises(InDoubtError) as caught:
            tokens.redeem(token, "order")
        doubts.append(caught.value.key)
    assert tokens.guard.resolve(doubts[0], None)
    assert tokens.guard.forget(doubts[1])
    with pytest.raises(UsedTokenError):
        tokens.redeem(used, "order")
    assert tokens.redeem(unused, "order").purpose == "order"

    again = issuer(in_doubt="rerun")
    token = again.issue("order")
    with pytest.raises(KeyboardInterrupt), again.redeeming(token, "order"):
        raise KeyboardInterrupt
    assert again.redeem(token, "order").purpose == "order"


def test_an_option_says_which_failures_leave_it_unused() -> None:
    tokens = issuer(release_errors=LookupError)
    declined, unknown = tokens.issue("order"), tokens.issue("order")
    with pytest.raises(KeyError), tokens.redeeming(declined, "order"):
        raise KeyError("declined")
    tokens.redeem(declined, "order")
    with pytest.raises(TimeoutError), tokens.redeeming(unknown, "order"):
        raise TimeoutError
    with pytest.raises(InDoubtError):
        tokens.redeem(unknown, "order")


def test_inside_its_own_block_a_token_is_refused_at_once() -> None:
    tokens = issuer()
    token = tokens.issue("order")
    with tokens.redeeming(token, "order"), pytest.raises(ReentrantCallError):
        tokens.redeem(token, "order")


def test_a_lost_answer_makes_no_difference() -> None:
    """The store has applied what it did not answer."""
    store = FlakyStore(MemoryStore(), [("claim", 1, "after"), ("complete", 1, "after")])
    tokens = issuer(store)
    token = tokens.issue("order")
    assert tokens.redeem(token, "order").purpose == "order"
    with pytest.raises(UsedTokenError):
        tokens.redeem(token, "order")


def test_nothing_of_a_token_is_logged_or_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Keys are the id alone; texts of errors, events and objects hold neither data nor subject nor secret."""
    events: list[Event] = []
    store = MemoryStore()
    tokens = issuer(store, observers=[events.append], wait=0)
    token = tokens.issue("hush purpose", "hush subject", {"hush": "data"})
    errors: list[IdempotencyError] = []
    with caplog.at_level(logging.DEBUG, logger="idempo"):
        for purpose in ("hush purpose", "other", "hush purpose"):
            try:
                assert "hush': 'data" not in repr(tokens.redeem(token, purpose, "hush subject"))
            except TokenError as error:
                errors.append(error)
        with pytest.raises(KeyboardInterrupt), tokens.redeeming(again := tokens.issue("hush"), "hush"):
            raise KeyboardInterrupt
        with pytest.raises(InDoubtError) as caught:
            tokens.redeem(again, "hush")
    errors.append(caught.value)
    assert len(errors) == 3
    shown = [*map(str, errors), *map(repr, errors), *map(str, events), caplog.text, repr(tokens)]
    assert caplog.records
    for text in shown:
        assert "hush" not in text
        assert SECRET not in text
        assert token not in text
        assert token.partition(".")[2] not in text
    assert {event.key.namespace for event in events} == {"tokens"}
    assert {len(event.key.value) for event in events} == {22}


@pytest.mark.parametrize("cls", [InvalidTokenError, ExpiredTokenError, UsedTokenError, WrongPurposeError])
def test_the_errors_have_one_root_and_survive_pickling(cls: type[TokenError]) -> None:
    """Behaviour 68: different errors, which one clause catches."""
    back = pickle.loads(pickle.dumps(cls("so it is", key=Key("tokens", "id"))))
    assert (type(back), back.key) == (cls, Key("tokens", "id"))
    assert issubclass(cls, TokenError)


def test_a_redemption_is_frozen() -> None:
    tokens = issuer()
    redemption = tokens.redeem(tokens.issue("order"), "order")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        redemption.subject = "user-8"  # type: ignore[misc]


def test_in_an_unguarded_block_of_a_test_tokens_redeem_at_will() -> None:
    tokens = issuer()
    token = tokens.issue("order")
    with unguarded():
        for _ in range(2):
            assert tokens.redeem(token, "order").purpose == "order"


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "itsdangerous":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    import idempo

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "idempo.tokens")
    monkeypatch.delattr(idempo, "tokens")
    with pytest.raises(ImportError, match=r"idempo\[tokens\]"):
        importlib.import_module("idempo.tokens")
