"""Outcomes: values, errors and lost ends as bytes, and back."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo.codecs import JsonCodec, PickleCodec
from idempo.envelope import Kind, pack
from idempo.errors import CodecError, IdempotencyError, RecordError
from idempo.outcomes import Outcomes
from idempo.seals import Signed

AT = ("namespace", "key", b"fingerprint")
ANY: tuple[type[BaseException], ...] = (BaseException,)


def outcomes(codec: Any = None, **options: Any) -> Outcomes:
    options = {"max_result": 1 << 20, "replay_errors": ANY} | options
    return Outcomes(JsonCodec() if codec is None else codec, **options)


JSON, PICKLE, SIGNED = outcomes(), outcomes(PickleCodec()), outcomes(seal=Signed("a secret of some length"))
each = pytest.mark.parametrize("under_test", [JSON, PICKLE, SIGNED], ids=["json", "pickle", "signed"])


def replayed(under_test: Outcomes, error: BaseException) -> Any:
    kind, again = under_test.read(under_test.encode_error(error, *AT), *AT)
    assert kind is Kind.ERROR, again
    assert again is not error
    return again


@each
def test_a_value_comes_back(under_test: Outcomes) -> None:
    """Behaviours 2, 3: equal, and a new object for each reader."""
    for value in (None, 0, False, "", [], {}, (1, "x")):
        assert under_test.read(under_test.encode_value(value, *AT), *AT) == (Kind.VALUE, value)
    stored = under_test.encode_value({"a": []}, *AT)
    one, other = (under_test.read(stored, *AT)[1] for _ in range(2))
    assert one is not other
    assert one["a"] is not other["a"]


@each
def test_a_lost_end_comes_back_whatever_the_reason(under_test: Outcomes) -> None:
    """Behaviour 31: to say that a result is lost never fails."""
    assert under_test.read(under_test.encode_lost("too large", *AT), *AT) == (Kind.LOST, "too large")
    kind, reason = under_test.read(under_test.encode_lost("\ud800" + "x" * 10_000, *AT), *AT)
    assert kind is Kind.LOST
    assert reason == "\\ud800" + "x" * 499


class Declined(Exception):  # noqa: N818
    made = 0

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"declined: {code}")
        self.code = code
        self.why = why
        Declined.made += 1


class Slotted(Declined):
    __slots__ = ("more", "unset")


@attrs.define
class ByAttrs(Exception):  # noqa: N818
    code: int
    note: str = ""


def _raised(code: Any) -> BaseException:
    try:
        code()
    except BaseException as error:
        return error
    raise AssertionError


def _noted() -> BaseException:
    error = ValueError("x")
    error.add_note("a note")
    return error


def _changed() -> BaseException:
    error = OSError("only text")
    error.errno, error.filename = 5, "/tmp/x"
    return error


def _slotted() -> BaseException:
    error = Slotted(3, why="slots")
    error.more = [1]
    return error


ERRORS = [
    ValueError(),
    ValueError("x", 1, None, (2,)),
    KeyError("x"),
    OSError(2, "no such file", "a"),
    OSError(2, "no such file", "a", None, "b"),
    BlockingIOError(11, "again", 5),
    _changed(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    UnicodeEncodeError("ascii", "é", 0, 1, "bad"),
    SystemExit(3),
    KeyboardInterrupt(),
    StopIteration(4),
    ImportError("no", name="module", path="place"),
    _raised(lambda: compile("a b", "file", "exec")),
    _noted(),
    IdempotencyError("with a key"),
    Declined(3, why="poor"),
    _slotted(),
    ByAttrs(7, "note"),
]


def attributes(error: BaseException) -> dict[str, Any]:
    hidden = {"with_traceback", "add_note"}
    return {name: getattr(error, name, None) for name in dir(error) if name[0] != "_" and name not in hidden}


@each
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_with_args_and_attributes(under_test: Outcomes, error: BaseException) -> None:
    """Behaviour 29: a declared error replays equal, with its attributes, and its class is not called for it."""
    made = Declined.made
    again = replayed(under_test, error)
    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error)
    assert attributes(again) == attributes(error)
    assert vars(again) == vars(error)
    assert getattr(again, "__notes__", None) == getattr(error, "__notes__", None)
    assert again.__traceback__ is None
    assert Declined.made == made


def test_what_an_attribute_error_was_about_is_left_behind() -> None:
    """It can be any live object, and pickle leaves it behind too."""
    error = _raised(lambda: object().nothing)  # type: ignore[attr-defined]
    again = replayed(JSON, error)
    assert (str(again), again.name, again.obj) == (str(error), "nothing", None)


def test_a_group_is_kept_where_the_codec_keeps_its_errors() -> None:
    group = ExceptionGroup("several", [ValueError(1), KeyError("x")])
    again = replayed(PICKLE, group)
    assert (type(again), again.message, list(map(repr, again.exceptions))) == (
        ExceptionGroup,
        "several",
        ["ValueError(1)", "KeyError('x')"],
    )
    with pytest.raises(CodecError, match=r"a builtins:ExceptionGroup carries cannot be encoded.*ValueError"):
        JSON.encode_error(group, *AT)


class Multiple(KeyError, ConnectionError):  # noqa: N818
    pass


def test_the_layout_decides_which_built_in_class_is_built() -> None:
    """The next class in the MRO need not be the one that the instance is made of."""
    error = Multiple(5, "text", "file")
    again = replayed(JSON, error)
    assert (again.args, again.errno, again.filename) == (error.args, error.errno, error.filename)


class Crooked(UnicodeDecodeError):  # noqa: N818
    def __init__(self) -> None:
        Exception.__init__(self, "not what a UnicodeDecodeError takes")


class Swallowing(Exception):  # noqa: N818
    __slots__ = ("value",)


class Impostor:
    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __hash__ = object.__hash__


def test_an_error_that_cannot_be_rebuilt_is_refused_when_it_is_stored() -> None:
    """Behaviour 31: not stored as something that no duplicate could read."""
    with pytest.raises(CodecError, match="Crooked cannot be encoded"):
        JSON.encode_error(Crooked.__new__(Crooked, "just one"), *AT)
    with pytest.raises(CodecError, match=r"carries cannot be encoded: result.0..0.: a builtins.object"):
        JSON.encode_error(ValueError(object()), *AT)
    error = ValueError("x")
    error.client = Impostor()  # type: ignore[attr-defined]
    with pytest.raises(CodecError, match=r"result\[1\].client: a .*Impostor cannot be kept"):
        JSON.encode_error(error, *AT)
    hidden = OSError("x")
    vars(hidden)["filename"] = "behind the attribute of that name"
    with pytest.raises(CodecError, match=r"OSError cannot be encoded .ValueError."):
        JSON.encode_error(hidden, *AT)
    kept = Swallowing("x")
    kept.value = Impostor()
    with pytest.raises(CodecError, match=r"Impostor"):
        JSON.encode_error(kept, *AT)


class Shadowed(OSError):  # noqa: N818
    @property
    def errno(self) -> int:  # type: ignore[override]
        return 7


def test_a_property_over_a_built_in_attribute_disturbs_nothing() -> None:
    error = Shadowed(3, "text")
    again = replayed(JSON, error)
    assert (again.errno, str(again), OSError.errno.__get__(again)) == (7, str(error), 3)  # type: ignore[attr-defined]


def test_an_undeclared_error_is_refused_and_one_declared_no_more_is_lost() -> None:
    """Behaviour 29: the class must be declared where it is stored and where it is read; subclasses are."""
    declared = outcomes(replay_errors=(LookupError,))
    with pytest.raises(CodecError, match="builtins:ValueError is no class of replay_errors"):
        declared.encode_error(ValueError(), *AT)
    stored = declared.encode_error(KeyError("x"), *AT)
    assert declared.read(stored, *AT)[0] is Kind.ERROR
    kind, reason = outcomes(replay_errors=(ValueError,)).read(stored, *AT)
    assert kind is Kind.LOST
    assert "builtins:KeyError, which replay_errors does not declare here" in reason


def _class_of(base: type[BaseException], name: str = "Local") -> type[Any]:
    return type(name, (base,), {"__module__": "somewhere", "__qualname__": name})


def test_of_two_classes_with_one_name_the_younger_counts() -> None:
    """A class decorator that replaces a class leaves the first one behind until it is collected."""
    first = _class_of(LookupError)
    second = _class_of(LookupError)
    under_test = outcomes(replay_errors=(LookupError,))
    assert type(replayed(under_test, second())) is second
    with pytest.raises(CodecError, match="shares its name with another class"):
        under_test.encode_error(first(), *AT)
    assert type(replayed(outcomes(replay_errors=(first, LookupError)), first())) is first


def test_a_record_that_names_a_class_imports_nothing() -> None:
    """Behaviour 36: a class that is not loaded as a declared one is lost, not looked for."""
    gone = _class_of(LookupError, "Gone")
    stored = JSON.encode_error(gone("x"), *AT)
    fresh = outcomes()
    del gone
    JSON._known.clear()
    gc.collect()
    assert fresh.read(stored, *AT)[0] is Kind.LOST


def _error_body(under_test: Outcomes, name: bytes, encoded: bytes) -> bytes:
    return pack(Kind.ERROR, b"\4json" + len(name).to_bytes(2, "big") + name + encoded)


def test_an_error_that_does_not_fit_its_class_any_more_is_lost() -> None:
    """It ran, and must not run again: lost is what is known of it."""
    for encoded in (b"[]", b"3", b'[{"$tuple":[1]},{}]', b'[{"$tuple":[]},{"start":"x"}]'):
        kind, reason = JSON.read(_error_body(JSON, b"builtins:UnicodeDecodeError", encoded), *AT)
        assert kind is Kind.LOST
        assert "builtins:UnicodeDecodeError, which cannot be rebuilt" in reason
    with pytest.raises(RecordError, match="cannot be decoded"):
        JSON.read(_error_body(JSON, b"builtins:ValueError", b"{"), *AT)


def test_the_size_limit_counts_encoded_bytes() -> None:
    """Behaviour 31: over the limit is a CodecError that tells size and limit, and nothing of the result."""
    small = outcomes(max_result=10)
    assert small.read(small.encode_value("12345678", *AT), *AT)[1] == "12345678"
    with pytest.raises(CodecError, match=r"the result takes 11 bytes, over the limit of 10 .max_result."):
        small.encode_value("123456789", *AT)
    with pytest.raises(CodecError, match=r"the error takes .* bytes, over the limit of 10"):
        small.encode_error(ValueError("a longer text"), *AT)
    small.encode_lost("a reason longer than that", *AT)


class Failing:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def encode(self, value: Any) -> bytes:
        raise self.error

    def decode(self, data: bytes) -> Any:
        raise self.error


def test_whatever_a_codec_raises_is_a_codec_error_but_an_interrupt() -> None:
    """Behaviours 30, 31: user code in an encoder can raise anything; an interrupt stays one."""
    with pytest.raises(CodecError, match=r"a dict cannot be encoded \(ZeroDivisionError\)") as caught:
        outcomes(Failing(ZeroDivisionError("secret"))).encode_value({}, *AT)
    assert "secret" not in str(caught.value)
    with pytest.raises(CodecError, match=r"builtins:ValueError cannot be encoded \(RecursionError\)"):
        outcomes(Failing(RecursionError())).encode_error(ValueError(), *AT)
    own = CodecError("as it is")
    with pytest.raises(CodecError) as caught:
        outcomes(Failing(own)).encode_value(1, *AT)
    assert caught.value is own
    with pytest.raises(KeyboardInterrupt):
        outcomes(Failing(KeyboardInterrupt())).encode_value(1, *AT)
    stored = pack(Kind.VALUE, b"\7Failing")
    with pytest.raises(RecordError, match=r"cannot be decoded: ZeroDivisionError"):
        outcomes(Failing(ZeroDivisionError("secret"))).read(stored, *AT)


def test_a_pickle_in_a_json_store_is_never_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 36: what another codec wrote is a RecordError that names it, before any of it is decoded."""
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    stored = PICKLE.encode_value({"a": 1}, *AT)
    with pytest.raises(RecordError, match="written by the codec 'pickle', and is not given to JsonCodec"):
        JSON.read(stored, *AT)
    with pytest.raises(RecordError, match="codec 'pickle'"):
        JSON.read(PICKLE.encode_error(ValueError(), *AT), *AT)
    with pytest.raises(RecordError, match="codec 'json'"):
        PICKLE.read(JSON.encode_value({"a": 1}, *AT), *AT)
    with pytest.raises(RecordError, match="codec ''"):
        JSON.read(pack(Kind.VALUE, b""), *AT)
    with pytest.raises(RecordError):
        JSON.read(pickle.dumps({"a": 1}), *AT)


class Custom:
    def encode(self, value: Any) -> bytes:
        return str(value).encode()

    def decode(self, data: bytes) -> Any:
        return data.decode()


class Tagged(Custom):
    tag = b"v2"


class OtherCustom(Custom):
    pass


def test_a_codec_of_ones_own_is_told_apart_by_tag_or_class() -> None:
    stored = outcomes(Custom()).encode_value(1, *AT)
    assert outcomes(Custom()).read(stored, *AT) == (Kind.VALUE, "1")
    for other in (Tagged(), OtherCustom()):
        with pytest.raises(RecordError, match="codec 'Custom'"):
            outcomes(other).read(stored, *AT)
    assert outcomes(Tagged()).read(outcomes(Tagged()).encode_value(1, *AT), *AT)[1] == "1"


@pytest.mark.parametrize("tag", [b"", b"x" * 256, "text"])
def test_a_bad_tag_is_refused(tag: Any) -> None:
    codec = Custom()
    codec.tag = tag  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="tag of a codec must be 1 to 255 bytes"):
        outcomes(codec)


def test_damage_is_a_record_error() -> None:
    """Behaviour 35: truncated, flipped, or foreign: never a value."""
    stored = JSON.encode_value({"a": 1}, *AT)
    for broken in (b"", stored[:-1], stored[:5], stored.replace(b"1", b"2"), b"x" + stored):
        with pytest.raises(RecordError):
            JSON.read(broken, *AT)


names = st.text(st.characters(exclude_categories=()), max_size=4)
places = st.tuples(names, names, st.none() | st.binary(max_size=4))


@given(one=places, other=places)
def test_a_sealed_outcome_opens_only_where_it_was_sealed(one: Any, other: Any) -> None:
    """Behaviour 36: moved to another namespace, key or fingerprint it is a RecordError."""
    for stored in (
        SIGNED.encode_value(1, *one),
        SIGNED.encode_error(ValueError(), *one),
        SIGNED.encode_lost("why", *one),
    ):
        SIGNED.read(stored, *one)
        if one != other:
            with pytest.raises(RecordError):
                SIGNED.read(stored, *other)


def test_the_seal_is_bound_where_parts_run_together() -> None:
    """Behaviours 5, 36: ("ab", "c") is not ("a", "bc"), and no fingerprint is not an empty one."""
    stored = SIGNED.encode_value(1, "ab", "c", None)
    for place in (("a", "bc", None), ("ab", "c", b""), ("ab", "", b"c")):
        with pytest.raises(RecordError, match="moved"):
            SIGNED.read(stored, *place)


def test_an_unsealed_outcome_is_refused_where_a_seal_is_asked_for() -> None:
    """Whoever can write to the store could otherwise leave the seal off."""
    with pytest.raises(RecordError, match="not signed"):
        SIGNED.read(JSON.encode_value(1, *AT), *AT)
    with pytest.raises(RecordError, match="not written by idempo"):
        JSON.read(SIGNED.encode_value(1, *AT), *AT)


@each
def test_what_is_larger_than_the_store_takes_cannot_be_kept(under_test: Outcomes) -> None:
    """Behaviour 31: envelope and seal count, for they are what the store is handed."""
    codec, seal = under_test._codec, under_test._seal
    size = len(under_test.encode_value("x" * 100, *AT))
    fitting, tight = (outcomes(codec, seal=seal, largest=largest) for largest in (size, size - 1))
    assert fitting.read(fitting.encode_value("x" * 100, *AT), *AT) == (Kind.VALUE, "x" * 100)
    with pytest.raises(CodecError, match=f"takes {size} bytes, and the store takes {size - 1} at most"):
        tight.encode_value("x" * 100, *AT)
    with pytest.raises(CodecError, match="the store takes"):
        tight.encode_error(ValueError("x" * 200), *AT)
    assert tight.encode_lost("a reason", *AT)
