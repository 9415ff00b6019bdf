"""A proxy between a client and its server that counts turns, and loses answers after the server has acted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from tests.servers.process import HOST

_PATIENCE = 30.0


class Proxy:
    """Passes bytes on between clients and one server, on an event loop in a thread of its own.

    Args:
        host: The server's.
        port: The server's.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = HOST
        self.port = 0
        self.connections = 0
        """How many connections clients have made."""
        self.round_trips = 0
        """How many times a client spoke after its server had, or first: turns, whatever number of packets they took."""
        self.dropped = 0
        """How many answers were swallowed."""
        self._server = (host, port)
        self._loop = asyncio.new_event_loop()
        self._open: set[_Pair] = set()
        self._drops = 0
        self._only: Callable[[bytes], bool] | None = None
        self._delay = 0.0
        self._refusing = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()

    def reset_counts(self) -> None:
        """Count from nothing again."""
        self.connections = self.round_trips = self.dropped = 0

    def drop_answers(self, number: int = 1, *, only: Callable[[bytes], bool] | None = None) -> None:
        """Swallow the next answers, each with a reset of its connection: the server has acted, the client cannot know.

        Args:
            number: How many.
            only: Chooses by what the client sent in this turn; any request where it is None.
        """
        self._only = only
        self._drops = number

    def delay(self, seconds: float) -> None:
        """Let every answer come so much later."""
        self._delay = seconds

    def cut(self) -> None:
        """Reset all connections that are open now."""
        self._run(self._cut())

    def refuse(self) -> None:
        """Reset new connections, and all that are open, until `accept`."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Take connections again."""
        self._refusing = False

    def _run(self, work: Awaitable[None]) -> None:
        async def await_it() -> None:
            await work

        asyncio.run_coroutine_threadsafe(await_it(), self._loop).result(_PATIENCE)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accepted, HOST, 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._listener.close()
        await self._cut()
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        if tasks:
            # They end by themselves once cut; one that is cancelled instead is told of on standard error.
            _, left = await asyncio.wait(tasks, timeout=1)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _cut(self) -> None:
        for pair in list(self._open):
            pair.abort()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._refusing:
            _reset(writer)
            return
        try:
            theirs = await asyncio.open_connection(*self._server)
        except OSError:
            _reset(writer)
            return
        pair = _Pair(writer, theirs[1])
        self._open.add(pair)
        try:
            await asyncio.gather(self._requests(pair, reader), self._answers(pair, theirs[0]))
        except OSError:
            pass  # either side has gone, and so does the other
        finally:
            self._open.discard(pair)
            pair.abort()

    async def _requests(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            if not pair.asking:
                pair.asking, pair.request = True, b""
                self.round_trips += 1
            pair.request += data
            pair.server.write(data)
            await pair.server.drain()
        pair.server.close()

    async def _answers(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            if self._drops and pair.asking and (self._only is None or self._only(pair.request)):
                self._drops -= 1
                self.dropped += 1
                raise ConnectionResetError
            pair.asking = False
            if self._delay:
                await asyncio.sleep(self._delay)
            pair.client.write(data)
            await pair.client.drain()
        pair.client.close()


class _Pair:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.asking = False
        self.request = b""

    def abort(self) -> None:
        _reset(self.client)
        _reset(self.server)


def _reset(writer: asyncio.StreamWriter) -> None:
    # A close without lingering is an RST: the other side learns of it at once, and learns nothing else.
    raw: Any = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
