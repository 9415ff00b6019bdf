"""Consumers as processes of their own, one for each broker: they take what comes, and some are killed on the way.

Each is given, as JSON: the broker's address, the name of its queue, the file of the store, the file of effects, and
whether to die between the effect and the acknowledgement.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

_PRELUDE = """
import asyncio, json, os, signal, sys
from idempo import Idempotency
from idempo.messages import Deduplicator
from idempo.stores.sqlite import SqliteStore

url, queue, records, effects, dies = json.loads(sys.argv[1])
guard = Idempotency(SqliteStore(records), namespace="shop")
dedup = Deduplicator(guard, consumer="invoices", id=lambda id_: id_)

def handle(id_):
    with open(effects, "a") as file:
        file.write(id_ + "\\n")

async def handle_async(id_):
    handle(id_)

def before_acknowledging():
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
"""

RABBITMQ = """
import pika
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
for method, properties, body in channel.consume(queue, inactivity_timeout=60):
    answer = dedup.process(properties.message_id, handle)
    before_acknowledging()
    channel.basic_ack(method.delivery_tag)
    break
connection.close()
print(json.dumps([type(answer).__name__, method.redelivered]))
"""

REDIS = """
import redis
client = redis.Redis.from_url(url, decode_responses=True)
_, found, *_ = client.xautoclaim(queue, "invoices", "me", min_idle_time=0)
redelivered = bool(found)
if not found:
    [[_, found]] = client.xreadgroup("invoices", "me", {queue: ">"}, block=60000)
[(entry, fields)] = found
answer = dedup.process(fields["id"], handle)
before_acknowledging()
client.xack(queue, "invoices", entry)
client.close()
print(json.dumps([type(answer).__name__, redelivered]))
"""

NATS = """
import nats
async def main():
    client = await nats.connect(url)
    subscription = await client.jetstream().pull_subscribe(queue, "invoices")
    [message] = await subscription.fetch(1, timeout=60)
    answer = await dedup.process_async(message.headers["Nats-Msg-Id"], handle_async)
    before_acknowledging()
    await message.ack_sync()
    print(json.dumps([type(answer).__name__, message.metadata.num_delivered > 1]))
    await client.close()
asyncio.run(main())
"""


@attrs.frozen
class Consumer:
    """Starts processes that consume one queue."""

    code: str
    url: str
    queue: str
    folder: Path

    def consume(self, *, dies: bool = False) -> Any:
        """Take one delivery; return what it was answered, and whether it came again."""
        records, effects = str(self.folder / "records.db"), str(self.folder / "effects")
        arguments = json.dumps([self.url, self.queue, records, effects, dies])
        command = [sys.executable, "-c", _PRELUDE + self.code, arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        if dies:
            assert ended.returncode == -signal.SIGKILL, ended.stderr
            return None
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    @property
    def effects(self) -> list[str]:
        """What happened, in order."""
        return (self.folder / "effects").read_text().split()
