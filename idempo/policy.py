"""How an operation behaves: the options of one guard or one decorated function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, TypedDict, Unpack, cast

import attrs

from idempo._time import seconds
from idempo.records import Key


@attrs.frozen
class Resolved:
    """A probe's answer: the effect happened, and this is its value."""

    value: Any


class _Answer:
    """One of the two answers of a probe that carry nothing."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"idempo.{self._name}"

    def __reduce__(self) -> str:
        return self._name


RERUN: Final = _Answer("RERUN")
"""A probe's answer: the effect did not happen; run again."""

UNKNOWN: Final = _Answer("UNKNOWN")
"""A probe's answer: it cannot be told; the call gets InDoubtError and nothing is changed."""

ProbeAnswer: TypeAlias = Resolved | _Answer
Probe: TypeAlias = Callable[[Key], ProbeAnswer] | Callable[[Key], Awaitable[ProbeAnswer]]
ErrorClasses: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]
Seconds: TypeAlias = float | timedelta


class PolicyOptions(TypedDict, total=False):
    """The keyword arguments of `Policy`, for every function that passes them on."""

    ttl: Seconds
    lease: Seconds
    max_run: Seconds
    wait: Seconds
    replay_errors: ErrorClasses
    release_errors: ErrorClasses | None
    in_doubt: Literal["rerun", "raise"] | Probe
    store_errors: Literal["raise", "run"]
    max_result: int


def _classes(value: ErrorClasses, name: str) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, tuple) else (value,)
    checked: tuple[object, ...] = classes  # a caller without a type checker can give anything
    for cls in checked:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            what = repr(cls) if isinstance(cls, type) else f"a {type(cls).__name__}"
            raise TypeError(f"{name} must be an exception class or a tuple of them, not {what}")
    return classes


_MIN_DURATION: Final = 0.001  # a shorter lease or ttl is over before a store can answer


@attrs.frozen(kw_only=True, init=False)
class Policy:
    """How an operation behaves. Durations are seconds or a timedelta, at most 100 years, and are kept as seconds.

    Attributes:
        ttl: How long a key is remembered, from completion, or, in doubt, from the end of its lease. At least 1 ms.
        lease: A claim's life without renewal. Renewed at a third of it while the function runs. At least 1 ms.
        max_run: Renewal stops after this long; 0 never renews.
        wait: How long a duplicate waits for the call in progress; 0 refuses at once.
        replay_errors: Exception classes, with their subclasses, that are an outcome: stored and replayed.
        release_errors: Exception classes that prove that nothing happened, so that the key is free again; any other
            leaves the record in doubt. None means every exception under ``in_doubt="rerun"``, and none otherwise.
        in_doubt: What a duplicate does about a record in doubt. "rerun" takes over (at least once); "raise" raises
            InDoubtError (at most once); a probe looks whether the effect happened.
        store_errors: "raise" lets a failing store fail the call; "run" runs it unguarded.
        max_result: The largest encoded outcome, in bytes; a larger one is lost.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option is out of its range.
    """

    ttl: float
    lease: float
    max_run: float
    wait: float
    replay_errors: tuple[type[BaseException], ...]
    release_errors: tuple[type[BaseException], ...] | None
    in_doubt: Literal["rerun", "raise"] | Probe
    store_errors: Literal["raise", "run"]
    max_result: int

    def __init__(
        self,
        *,
        ttl: Seconds = 24 * 60 * 60.0,
        lease: Seconds = 15.0,
        max_run: Seconds = 60 * 60.0,
        wait: Seconds = 20.0,
        replay_errors: ErrorClasses = (),
        release_errors: ErrorClasses | None = None,
        in_doubt: Literal["rerun", "raise"] | Probe = "rerun",
        store_errors: Literal["raise", "run"] = "raise",
        max_result: int = 1 << 20,
    ) -> None:
        if in_doubt not in ("rerun", "raise") and not callable(in_doubt):
            raise ValueError(f'in_doubt must be "rerun", "raise" or a probe, not {in_doubt!r}')
        if store_errors not in ("raise", "run"):
            raise ValueError(f'store_errors must be "raise" or "run", not {store_errors!r}')
        if isinstance(max_result, bool) or not isinstance(max_result, int):
            raise TypeError(f"max_result must be a number of bytes, not {type(max_result).__name__}")
        if max_result < 0:
            raise ValueError(f"max_result must be at least 0, not {max_result}")
        self.__attrs_init__(  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it; pyright does not know
            ttl=seconds(ttl, "ttl", minimum=_MIN_DURATION),
            lease=seconds(lease, "lease", minimum=_MIN_DURATION),
            max_run=seconds(max_run, "max_run"),
            wait=seconds(wait, "wait"),
            replay_errors=_classes(replay_errors, "replay_errors"),
            release_errors=None if release_errors is None else _classes(release_errors, "release_errors"),
            in_doubt=in_doubt,
            store_errors=store_errors,
            max_result=max_result,
        )

    @property
    def probe(self) -> Probe | None:
        """The probe, where ``in_doubt`` is one."""
        return None if isinstance(self.in_doubt, str) else self.in_doubt

    @property
    def releasing(self) -> tuple[type[BaseException], ...]:
        """The exception classes that free the key, with the default for ``in_doubt`` filled in."""
        if self.release_errors is not None:
            return self.release_errors
        return (BaseException,) if self.in_doubt == "rerun" else ()

    def evolve(self, **changes: Unpack[PolicyOptions]) -> Policy:
        """Return a policy with these options changed, validated anew.

        Raises:
            TypeError: There is no such option, or a value is of the wrong type.
            ValueError: A value is out of its range.
        """
        return attrs.evolve(self, **changes) if changes else self

    def options(self) -> PolicyOptions:
        """Return the options that make an equal policy."""
        return cast("PolicyOptions", {field.name: getattr(self, field.name) for field in attrs.fields(Policy)})
