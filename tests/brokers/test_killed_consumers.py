"""Consumers of real brokers, killed between the effect and the acknowledgement."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import nats
import pika
import redis
from nats.js.api import ConsumerConfig

from tests.brokers import consumers
from tests.brokers.consumers import Consumer


def dies_and_goes_on(consumer: Consumer) -> None:
    consumer.consume(dies=True)
    assert consumer.effects == ["m-1"]
    assert consumer.consume() == ["Duplicate", True]
    assert consumer.effects == ["m-1"]


def test_rabbitmq_delivers_again_and_it_is_skipped(rabbitmq_url: str, tmp_path: Path) -> None:
    """Behaviour 65 (real): the connection is gone, so the message is in the queue again."""
    queue = f"killed-{uuid4().hex}"
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.basic_publish("", queue, b"", pika.BasicProperties(message_id="m-1", delivery_mode=2))
        dies_and_goes_on(Consumer(consumers.RABBITMQ, rabbitmq_url, queue, tmp_path))
        channel.queue_delete(queue)


def test_a_stream_of_redis_keeps_it_pending_and_it_is_skipped(redis_url: str, tmp_path: Path) -> None:
    """Behaviour 65 (real): another consumer of the group claims the pending entry."""
    queue = f"killed-{uuid4().hex}"
    with redis.Redis.from_url(redis_url) as client:
        client.xgroup_create(queue, "invoices", "0", mkstream=True)
        client.xadd(queue, {"id": "m-1"})
        dies_and_goes_on(Consumer(consumers.REDIS, redis_url, queue, tmp_path))
        assert client.xpending(queue, "invoices")["pending"] == 0
        client.delete(queue)


def test_nats_delivers_again_and_it_is_skipped(nats_url: str, tmp_path: Path) -> None:
    """Behaviour 65 (real): JetStream waits for the acknowledgement, and then sends the message again."""
    queue = f"killed-{uuid4().hex}"

    async def prepare() -> None:
        client = await nats.connect(nats_url)
        stream = client.jetstream()
        await stream.add_stream(name=queue, subjects=[queue])
        await stream.add_consumer(queue, ConsumerConfig(durable_name="invoices", ack_policy="explicit", ack_wait=3))
        await stream.publish(queue, headers={"Nats-Msg-Id": "m-1"})
        await client.close()

    async def clean_up() -> None:
        client = await nats.connect(nats_url)
        await client.jetstream().delete_stream(queue)
        await client.close()

    asyncio.run(prepare())
    dies_and_goes_on(Consumer(consumers.NATS, nats_url, queue, tmp_path))
    asyncio.run(clean_up())
