"""One of the processes that race for one key: see `benchmarks.processes`."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from benchmarks.children import answer, told
from idempo import idempotent

_WAIT = 60.0
_Ends = list[tuple[float, dict[str, Any]]]


def main(url: str, prefix: str, what: str) -> None:
    """Make as many duplicates as told, at the time that is told; answer how often it ran, and when the last had it."""
    (_tasks if what == "tasks" else _threads)(url, prefix)


def _answer(runs: int, ends: _Ends) -> None:
    values = {value["ended"]: value for _, value in ends}
    answer(
        {
            "runs": runs,
            "answered": len(ends),
            "last": max(end for end, _ in ends),
            "values": list(values.values()),
        }
    )


def _tasks(url: str, prefix: str) -> None:
    from redis.asyncio import Redis

    from idempo.stores.redis import AsyncRedisStore

    runs = 0

    async def crowd() -> None:
        nonlocal runs
        async with Redis.from_url(url) as client, AsyncRedisStore(client, prefix=prefix) as store:

            @idempotent(key="order_id", payload=None, store=store, namespace="benchmarks", wait=_WAIT)
            async def charge(order_id: str, body: float) -> dict[str, Any]:
                nonlocal runs
                runs += 1
                await asyncio.sleep(body)
                return {"order_id": order_id, "ended": time.monotonic()}

            async def call(order_id: str, body: float) -> tuple[float, dict[str, Any]]:
                value = await charge(order_id, body)
                return time.monotonic(), value

            loop, lines = asyncio.get_running_loop(), told()
            while (line := await loop.run_in_executor(None, next, lines, None)) is not None:
                if "warm" in line:
                    await charge(line["warm"], 0.0)
                    answer({})
                    continue
                runs = 0
                await asyncio.sleep(line["at"] - time.monotonic())
                calls = [call(line["order"], line["body"]) for _ in range(line["duplicates"])]
                ends = await asyncio.gather(*calls)
                _answer(runs, ends)

    asyncio.run(crowd())


def _threads(url: str, prefix: str) -> None:
    from redis import Redis

    from idempo.stores.redis import RedisStore

    runs: list[str] = []
    with Redis.from_url(url) as client, RedisStore(client, prefix=prefix) as store:

        @idempotent(key="order_id", payload=None, store=store, namespace="benchmarks", wait=_WAIT)
        def charge(order_id: str, body: float) -> dict[str, Any]:
            runs.append(order_id)
            time.sleep(body)
            return {"order_id": order_id, "ended": time.monotonic()}

        for line in told():
            if "warm" in line:
                charge(line["warm"], 0.0)
                answer({})
                continue
            runs.clear()
            ends: _Ends = []

            def call(line: dict[str, Any] = line, ends: _Ends = ends) -> None:
                time.sleep(max(0.0, line["at"] - time.monotonic()))
                value = charge(line["order"], line["body"])
                ends.append((time.monotonic(), value))

            threads = [threading.Thread(target=call) for _ in range(line["duplicates"])]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            _answer(len(runs), ends)
