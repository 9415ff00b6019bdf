"""How long a driver may take to connect for a store: the store's time-out, where the application set no limit.

What coroutines do for a store is broken off from outside, whatever it is: `limit` is for plain functions.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlalchemy as sa

_here = threading.local()


def arguments(driver: str, seconds: float) -> Mapping[str, Any]:
    """Return the arguments by which a driver is told how long to wait, as connect() takes them."""
    if driver == "pymysql":
        # The first ends with the TCP connection: the server's greeting, and all after it, are read by the second.
        return {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds}
    if driver in ("psycopg", "psycopg_async") and "PGCONNECT_TIMEOUT" not in os.environ:
        return {"connect_timeout": math.ceil(seconds)}  # whole seconds, of which psycopg makes at least 2
    return {"connect_timeout": seconds} if driver == "asyncmy" else {}


def limit(engine: sa.Engine) -> None:
    """Let `connecting` have its effect on the engine's driver; the application's own connections are as before."""
    from sqlalchemy import event

    event.listen(engine.dialect, "do_connect", _limited)  # heard once, however many stores say it


@contextmanager
def connecting(seconds: float) -> Iterator[None]:
    """Limit what this thread connects meanwhile."""
    _here.seconds = seconds
    try:
        yield
    finally:
        del _here.seconds


def _limited(dialect: sa.Dialect, _record: object, _args: object, params: dict[str, Any]) -> None:
    seconds: float | None = getattr(_here, "seconds", None)
    if seconds is not None:
        for name, value in arguments(dialect.driver, seconds).items():
            if params.get(name) is None:
                params[name] = value
