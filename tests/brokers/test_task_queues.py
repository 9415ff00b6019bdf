"""The recipes for task queues, run by real workers on a real broker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import dramatiq
from celery.contrib.testing.worker import start_worker

PAGE = Path(__file__).parents[2] / "docs" / "recipes-messages.md"
PATIENCE = 60


def recipe(name: str, url: str, task: str = "invoice") -> dict[str, Any]:
    """Run the example below a heading of the page, with its task under this name; return what it defines."""
    found = re.search(rf"^## {name}$.*?^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    defined: dict[str, Any] = {"__name__": f"recipe_{name}"}
    exec(re.sub(r"(redis|amqp)://localhost:\d+", url, found[1]).replace('name="invoice"', f'name="{task}"'), defined)
    return defined


def test_a_celery_task_runs_once_although_delivered_twice(rabbitmq_url: str) -> None:
    """Behaviour 64 (real): the second delivery of the task is skipped."""
    task = f"invoice-{uuid4().hex}"  # the page, which may have run in this process, has a task of the other name
    made = recipe("Celery", rabbitmq_url, task)
    app, invoice = made["app"], made["invoice"]
    app.conf.task_default_queue = f"celery-{uuid4().hex}"
    app.conf.worker_hijack_root_logger = False
    for task_id in ("order-42", "order-42", "order-43"):
        invoice.apply_async((task_id,), task_id=task_id)
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=PATIENCE) as worker:
        drain(lambda: worker.state.total_count.get(task, 0) >= 3)
    assert made["sent"] == ["order-42", "order-43"]
    assert made["dedup"].guard.stats().replayed == 1


def test_a_dramatiq_task_runs_once_although_delivered_twice(redis_url: str) -> None:
    """Behaviour 64 (real): one message that the broker has twice, and a task that was sent twice."""
    made = recipe("Dramatiq", redis_url)
    broker, receipt = made["broker"], made["receipt"]
    broker.namespace = f"dramatiq-{uuid4().hex}"
    message = receipt.message("order-42")
    for each in (message, message, receipt.message("order-42"), receipt.message("order-43")):
        broker.enqueue(each)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()
    broker.join("receipts", timeout=PATIENCE * 1000)
    worker.join()
    worker.stop()
    broker.close()
    assert sorted(made["printed"]) == ["order-42", "order-43"]
    assert made["dedup"].guard.stats().replayed == 2


def drain(done: Any) -> None:
    import time

    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
