"""RedisStore under the state machine, on a real server and by its own clock."""

from __future__ import annotations

import redis
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from idempo.stores.redis import AsyncRedisStore, RedisStore
from idempo.testing import StoreMachine
from tests.redis_support import new_prefix

_RUN = settings(max_examples=15, stateful_step_count=30, deadline=None)


def test_any_sequence_of_calls_is_answered_as_the_model_answers(redis_url: str) -> None:
    """Behaviours 21-23, 27, 34, 52: in whatever order they come."""

    class Machine(StoreMachine):
        turns_clock = False

        def make_store(self) -> RedisStore:
            return RedisStore(redis.Redis.from_url(redis_url), prefix=new_prefix())

        def close_store(self) -> None:
            self.made._client.close()

    run_state_machine_as_test(Machine, settings=_RUN)


def test_any_sequence_of_calls_is_answered_so_to_coroutines(redis_url: str) -> None:
    """Behaviours 21-23, 27, 34, 52: in whatever order they come."""

    class Machine(StoreMachine):
        turns_clock = False

        def make_store(self) -> AsyncRedisStore:
            return AsyncRedisStore(redis.asyncio.Redis.from_url(redis_url), prefix=new_prefix())

        def close_store(self) -> None:
            self.loop.run(self.made._client.aclose())

    run_state_machine_as_test(Machine, settings=settings(_RUN, max_examples=5))
