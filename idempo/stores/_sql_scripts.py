"""What the SQL stores have in common: each method is a script that asks for statements and is given their rows.

Scripts do no I/O, so that plain connections, those of asyncio and the caller's own run the same ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from idempo.errors import StoreError
from idempo.records import Claim, Key, Record

_Result = TypeVar("_Result")

Rows: TypeAlias = Sequence[Sequence[Any]]
Step: TypeAlias = tuple[str, Mapping[str, Any]]
"""A statement as the driver takes it, and its parameters."""

Script: TypeAlias = Generator[Step, Rows, _Result]
"""Yields steps, is sent the rows of each, and returns a method's answer.

It may be given up at any step, and begun again from the start: each method is idempotent for its owner. What it has
written in a transaction of its own is rolled back then by whoever runs it.
"""


class AnswerLost(Exception):  # noqa: N818  # it is no error, but what a script is told
    """Thrown into a script in place of rows: the connection is gone, and there is another.

    And again, where others were in the way of what it then asked.
    A script that catches it goes on from where it is. One that does not is begun again from the start.
    """


ROUNDS: Final = range(1000)  # each lost round is another caller's write to the same key within microseconds


class Statements(Protocol):
    """The methods of a store as scripts, in the words of one kind of server."""

    def claim(
        self, key: Key, owner: str, fingerprint: bytes | None, lease: float, ttl: float, take_over: bool | str
    ) -> Script[Claim]:
        """`Store.claim`."""
        ...

    def complete(self, key: Key, owner: str, outcome: bytes, ttl: float) -> Script[bool]:
        """`Store.complete`."""
        ...

    def release(self, key: Key, owner: str, ttl: float) -> Script[bool]:
        """`Store.release`."""
        ...

    def renew(self, key: Key, owner: str, lease: float, ttl: float) -> Script[bool]:
        """`Store.renew`."""
        ...

    def get(self, key: Key) -> Script[Record | None]:
        """`Store.get`."""
        ...

    def delete(self, key: Key, owner: str | None) -> Script[bool]:
        """`Store.delete`."""
        ...

    def page(self, namespace: str, after: bytes) -> Script[tuple[list[tuple[Key, Record]], bytes | None]]:
        """Return live records of a namespace, and where the next page begins, or None after the last."""
        ...

    def purge(self, namespace: str) -> Script[tuple[int, int]]:
        """Remove a batch of a namespace's rows, and return how many, and how many of them had not expired.

        Less than `BATCH` are the last.
        """
        ...

    def sweep(self, limit: int) -> Script[int]:
        """Remove at most so many expired rows, and return how many."""
        ...


BATCH: Final = 500
"""How many rows a page or a batch has at most."""


def outrun(key: Key) -> StoreError:
    """Return what is raised when others are faster again and again."""
    return StoreError(f"others changed the record of {key.value!r} {len(ROUNDS)} times while it was written", key=key)


def pages(run: Callable[..., Any], statements: Statements, namespace: str) -> Iterator[tuple[Key, Record]]:
    """Go through the pages of a namespace."""
    after: bytes | None = b""
    while after is not None:
        page, after = run(statements.page, namespace, after)
        yield from page


async def pages_async(
    run: Callable[..., Any], statements: Statements, namespace: str
) -> AsyncIterator[tuple[Key, Record]]:
    """`pages`, with a coroutine function."""
    after: bytes | None = b""
    while after is not None:
        page, after = await run(statements.page, namespace, after)
        for item in page:
            yield item
