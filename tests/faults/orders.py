"""Processes that place orders, each in one transaction with its record, and say over a pipe how far they are.

Reads commands: ``ORDER STEP``. A process is forked for each, says its id, places the order, and stops at the step until
another line comes. It says each step that it reaches, then ``done`` with the event's kind, or ``failed`` with the
error's class; once it has ended, ``gone`` is said. What forks them has imported everything, and has no connection.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from contextlib import closing
from functools import cache
from typing import Any

from idempo import Event, Idempotency

STEPS = ("connected", "begun", "claimed", "inserted", "completed", "committed")
INSERT = "INSERT INTO orders (number) VALUES ('{}')"


class Clerk:
    """Places orders by one kind of connection."""

    def __init__(self, store: Any, engine: Any) -> None:
        self.store = store
        self.engine = engine
        self.order = self.stop = ""
        self.events: list[Event] = []

    def reach(self, step: str) -> None:
        """Say so, and wait there for a line where that was asked for."""
        say(step)
        if step == self.stop:
            hear()

    def guard(self, connection: Any) -> Idempotency:
        """A guard in the connection's transaction."""
        return Idempotency(self.store.joining(connection), namespace="shop", observers=[self.events.append])

    def body(self, connection: Any) -> str:
        """The effect."""
        self.reach("claimed")
        execute = getattr(connection, "exec_driver_sql", None) or connection.execute
        execute(INSERT.format(self.order))
        self.reach("inserted")
        return f"placed {self.order}"

    def place(self) -> None:
        """Place the order, with SQLAlchemy."""
        with self.engine.connect() as connection:
            self.reach("connected")
            with connection.begin():
                self.reach("begun")
                self.guard(connection).run(self.order, self.body, connection, payload=self.order)
                self.reach("completed")
            self.reach("committed")


class SessionClerk(Clerk):
    """By the ORM's sessions: the order is an object, and is written when it is flushed."""

    def body(self, connection: Any) -> str:
        self.reach("claimed")
        connection.add(order_class()(number=self.order))
        connection.flush()
        self.reach("inserted")
        return f"placed {self.order}"

    def place(self) -> None:
        from sqlalchemy.orm import Session

        with Session(self.engine) as session:
            session.connection()
            session.rollback()
            self.reach("connected")
            with session.begin():
                self.reach("begun")
                self.guard(session).run(self.order, self.body, session, payload=self.order)
                self.reach("completed")
            self.reach("committed")


@cache
def order_class() -> Any:
    """The class of orders."""
    from sqlalchemy import Column, String
    from sqlalchemy.orm import declarative_base

    columns = {"__tablename__": "orders", "number": Column(String(60), primary_key=True)}
    return type("Order", (declarative_base(),), columns)


class PlainClerk(Clerk):
    """By the standard library's sqlite3."""

    def place(self) -> None:
        with closing(sqlite3.connect(self.engine, timeout=60, isolation_level=None)) as connection:
            self.reach("connected")
            connection.execute("BEGIN IMMEDIATE")
            self.reach("begun")
            self.guard(connection).run(self.order, self.body, connection, payload=self.order)
            self.reach("completed")
            connection.execute("COMMIT")
            self.reach("committed")


class AsyncClerk(Clerk):
    """By coroutines."""

    async def body_async(self, connection: Any) -> str:
        """The effect."""
        self.reach("claimed")
        await connection.exec_driver_sql(INSERT.format(self.order))
        self.reach("inserted")
        return f"placed {self.order}"

    async def _place(self) -> None:
        try:
            async with self.engine.connect() as connection:
                self.reach("connected")
                async with connection.begin():
                    self.reach("begun")
                    guard = self.guard(connection)
                    await guard.run_async(self.order, self.body_async, connection, payload=self.order)
                    self.reach("completed")
                self.reach("committed")
        finally:
            await self.engine.dispose()

    def place(self) -> None:
        asyncio.run(self._place())


def clerk_of(kind: str, address: str) -> Clerk:
    """Return a clerk for a database."""
    if kind == "sqlite3":
        from idempo.stores.sqlite import SqliteStore

        return PlainClerk(SqliteStore(address), address)
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.ext.asyncio import create_async_engine

    from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore

    if kind.endswith("async"):
        aengine = create_async_engine(address, poolclass=NullPool)
        return AsyncClerk(AsyncSqlAlchemyStore(aengine), aengine)
    engine = create_engine(address, poolclass=NullPool)
    return (SessionClerk if kind.endswith("session") else Clerk)(SqlAlchemyStore(engine), engine)


def say(text: str) -> None:
    """Say a line, at once."""
    os.write(1, f"{text}\n".encode())


def hear() -> str:
    """Return the next line, and read no further: others read from the same pipe."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit()
        line += byte
    return line.decode()


def serve(clerk: Clerk, order: str, stop: str) -> None:
    """Place one order, and say how it went."""
    say(str(os.getpid()))
    clerk.order, clerk.stop = order, stop
    try:
        clerk.place()
    except Exception as error:
        say(f"failed {type(error).__name__}")
    else:
        say(f"done {clerk.events[0].kind.value}")


def main() -> None:
    """Fork a process for each order, until nobody asks any more."""
    clerk = clerk_of(*sys.argv[1:])
    say("ready")
    while True:
        order, stop = hear().split()
        child = os.fork()
        if not child:
            serve(clerk, order, stop)
            os._exit(0)
        os.waitpid(child, 0)
        say("gone")


if __name__ == "__main__":
    main()
