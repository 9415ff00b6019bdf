"""The connections of one SqlAlchemyStore: its own, in autocommit, and not those of the engine's pool.

They are made as the engine makes its own (the same address, arguments and listeners), so that a store neither sends a
BEGIN, a ROLLBACK or a ping around its one statement, nor waits for connections that the application holds.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, TypeVarTuple

from idempo._fork import Forkable, forks, inherited, new_lock
from idempo.errors import IdempotencyError, StoreError
from idempo.records import Claim, Key
from idempo.stores import _sql_limits
from idempo.stores._sql_errors import Trouble, translated, trouble_of
from idempo.stores._sql_scripts import AnswerLost, Rows, Script
from idempo.stores._sql_table import DatabaseError

if TYPE_CHECKING:
    import sqlalchemy as sa

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")


class LaneLike(Protocol):
    """One connection.

    Attributes:
        generation: That of the process that opened it.
    """

    generation: int

    def execute(self, statement: str, params: Mapping[str, Any]) -> Rows:
        """Execute one statement, and return its rows."""
        ...

    def settle(self) -> bool:
        """Leave no transaction open, and say whether the connection can be used again."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.1


def pause(tries: int) -> float:
    """Return how long to wait before trying again what others were in the way of."""
    return random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**tries))


class Connections(Forkable):
    """Opens connections when they are needed, keeps them, and runs scripts on them.

    Args:
        engine: The engine whose connections they are like.
        lane: Makes one of them ready.
        errors: What it can raise.
        table: The table's name, for errors.
        size: How many there may be at once.
        timeout: Seconds that a caller waits for one to be free, that one may take to be opened, and that others may
            be in the way.
    """

    def __init__(
        self,
        engine: sa.Engine,
        lane: Callable[[Any], LaneLike],
        errors: tuple[type[Exception], ...],
        table: str,
        *,
        size: int,
        timeout: float,
    ) -> None:
        self._engine = engine
        self._lane = lane
        self._errors: tuple[type[Exception], ...] = (*errors, DatabaseError)
        self._table = table
        self._size = size
        self._timeout = timeout
        self._closed = False
        self._idle: deque[LaneLike] = deque()
        self._held = 0
        _sql_limits.limit(engine)
        self._closing = new_lock()  # a fork waits for those that are being closed, too
        self._begin()
        forks.register(self)

    def _begin(self) -> None:
        self._slots = threading.Semaphore(self._size)
        self._factory = self._engine.pool.recreate()

    def run(self, method: Callable[[*_Args], Script[_Result]], *args: *_Args) -> _Result:
        """Run a script to its end, from the start again where others were in the way, or a connection was lost.

        Args:
            method: Makes the script.
            *args: Its arguments, those of the method in its order.

        Raises:
            StoreError: No connection was to be had, or no answer.
        """
        started = time.monotonic()
        tries = cuts = 0
        script: Script[_Result] | None = None
        while True:
            lane = self._take(args)
            kept = False
            try:
                if script is None:
                    script = method(*args)
                    statement, params = next(script)
                else:
                    refuse_late(args, time.monotonic() - started)
                    statement, params = script.throw(AnswerLost())
                while True:
                    statement, params = script.send(lane.execute(statement, params))
            except StopIteration as stop:
                kept = True
                result: _Result = stop.value
                if cuts and is_unsure(result, args, time.monotonic() - started):
                    raise StoreError(NOT_KNOWN, key=key_of(args)) from None
                return result
            except AnswerLost:
                kept, script = True, None
            except IdempotencyError:
                kept = lane.settle()
                raise
            except self._errors as error:
                trouble = trouble_of(error)
                in_time = time.monotonic() - started < self._timeout
                kept = trouble not in (Trouble.CUT, Trouble.SILENT) and lane.settle()
                if trouble is Trouble.AGAIN and in_time:
                    tries += 1
                    script = script if cuts else None  # to be told that an answer was lost, it goes on
                elif trouble is Trouble.CUT and in_time and not cuts:
                    cuts += 1
                    self.forget_idle()  # what cut this one has cut them
                else:
                    raise self.translated(error, args) from error
            finally:
                self._give(lane, kept=kept)
            if tries:
                time.sleep(pause(tries))

    def translated(self, error: Exception, args: tuple[object, ...]) -> IdempotencyError:
        """Return an error of a driver's as one of ours; ``args`` are those of the script."""
        return translated_by(self._table, error, args)

    def close(self) -> None:
        """Close the connections, each when its call has ended."""
        self._closed = True
        self.forget_idle()

    def _take(self, args: tuple[object, ...]) -> LaneLike:
        if not self._slots.acquire(timeout=self._timeout):
            raise StoreError(
                f"none of the store's {self._size} connections was free within {self._timeout:g} s", key=key_of(args)
            )
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return self.open()
        except self._errors as error:
            self._slots.release()
            raise self.translated(error, args) from error
        except BaseException:
            self._slots.release()
            raise

    def open(self) -> LaneLike:
        """Open a connection more, which belongs to the caller.

        Raises:
            StoreError: The store was closed.
        """
        if self._closed:
            raise StoreError("the store was closed")
        with _sql_limits.connecting(self._timeout):
            fairy = self._factory.connect()
        connection: Any = fairy.driver_connection
        fairy.detach()  # from here on it is the store's alone
        try:
            return self._lane(connection)
        except BaseException:
            with suppress(Exception):
                connection.close()
            raise

    def _give(self, lane: LaneLike, *, kept: bool) -> None:
        if lane.generation != forks.generation:  # pragma: no cover  # in a child that was forked amid this very call
            inherited.append(lane)
            return
        if kept and not self._closed:
            self._idle.append(lane)
        else:
            lane.close()
        self._slots.release()

    def forget_idle(self) -> None:
        """Close those that nobody uses."""
        with self._closing, suppress(IndexError):
            while True:
                self._idle.pop().close()

    def before_fork(self) -> None:
        """Close all connections of SQLite's, waiting for those in use as long as a statement may take, and a moment.

        A child inherits what SQLite believes about its locks, and not the locks (sqlite.org/howtocorrupt.html, 2.6).
        """
        if self._engine.dialect.name == "sqlite":
            deadline = time.monotonic() + self._timeout + 1
            while self._held < self._size and self._slots.acquire(timeout=max(0.0, deadline - time.monotonic())):
                self._held += 1  # each of them is one that nobody uses, or opens
            self.forget_idle()

    def after_fork_in_parent(self) -> None:
        """Let connections be opened again."""
        if self._held:
            self._slots.release(self._held)
            self._held = 0

    def after_fork_in_child(self) -> None:  # pragma: no cover  # runs in another process, which no coverage follows
        """Leave the parent's connections alone."""
        inherited.extend(self._idle)
        self._idle = deque()
        self._held = 0
        self._begin()

    def __del__(self) -> None:
        self.forget_idle()


def translated_by(table: str, error: Exception, args: tuple[object, ...]) -> IdempotencyError:
    """Return an error of a driver's, or of SQLAlchemy's around one, as one of ours."""
    return translated(getattr(error, "orig", None) or error, table, key_of(args))


_CLAIMS: Final = 6  # the arguments of a claim; no other method has as many
NOT_KNOWN: Final = "the connection was lost, and so was the answer; asked again, the database says nothing of it"


def is_unsure(result: object, args: tuple[object, ...], elapsed: float) -> bool:
    """Say whether the answer to a repeated request leaves it open what the first one was answered.

    "No" does: the first may have been carried out, and then another's claim or deletion came. So does any answer to a
    claim, once the lease that the first had may be over, and so does one that the first may have won by a take-over,
    which the second cannot tell. `StoreError` says so, and the caller may ask anew.
    """
    if isinstance(result, Claim):
        lease = args[3]
        assert isinstance(lease, float | int)
        return elapsed >= lease or (result.acquired and not result.took_over and result.record.attempt > 1)
    return result is False


def refuse_late(args: tuple[object, ...], elapsed: float) -> None:
    """Refuse to send a claim again whose lease may be over, since it would be another claim.

    Raises:
        StoreError: These are the arguments of such a claim.
    """
    if len(args) == _CLAIMS and isinstance(lease := args[3], float | int) and elapsed >= lease:
        raise StoreError(NOT_KNOWN, key=key_of(args))


def key_of(args: tuple[object, ...]) -> Key | None:
    """Return the key that a script with these arguments is about, if it is about one."""
    return args[0] if args and isinstance(args[0], Key) else None
