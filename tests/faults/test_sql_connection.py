"""The way to an SQL server fails: answers are lost, connections cut, all are in use, the server sleeps."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from idempo import Idempotency, StoreError
from idempo.stores._sql_mysql import statements_for
from idempo.stores.sqlalchemy import SqlAlchemyStore
from idempo.testing import check_store
from tests.servers.proxy import Proxy
from tests.sql_support import PATIENCE, URLS, Database, claimed, key, opened


def is_ours(request: bytes) -> bool:
    """Tell the store's statements from what drivers say to make a connection."""
    prepared = request[:1] == b"B" and b"sql_mode" not in request  # of PostgreSQL, and nothing that has that length
    return b"records_" in request or prepared


@pytest.fixture(params=URLS)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from opened(request, request.param)


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    assert database.url.host
    with Proxy(database.url.host, database.url.port or 0) as proxy:
        yield proxy


@pytest.fixture
def store(database: Database, proxy: Proxy) -> SqlAlchemyStore:
    """By way of the proxy, with a connection made."""
    made = database.store(proxy.port)
    Idempotency(made, namespace="warm").run("up", dict)
    return made


def test_a_fresh_call_costs_two_round_trips_and_a_replay_one(proxy: Proxy, store: SqlAlchemyStore) -> None:
    """Behaviour 46: counted between client and server; so does every other method that finds what it changes."""
    guard = Idempotency(store, namespace="counted")
    for number in range(14):
        if number < 6:  # psycopg prepares a statement when it is executed for the sixth time, which costs one more
            guard.run(f"order-{number}", str.upper, "placed")
            guard.run(f"order-{number}", str.upper, "placed")
            continue
        proxy.reset_counts()
        assert guard.run(f"order-{number}", str.upper, "placed") == "PLACED"
        assert proxy.round_trips == 2
        assert guard.run(f"order-{number}", str.upper, "placed") == "PLACED"
        assert proxy.round_trips == 3
    proxy.reset_counts()
    claimed(store, key())
    store.renew(key(), owner="owner-a", lease=1, ttl=1)
    store.release(key(), owner="owner-a", ttl=9)
    store.get(key())
    store.delete(key())
    assert proxy.round_trips == 5
    assert proxy.connections == 0


def test_coroutines_cost_as_many_round_trips(database: Database, proxy: Proxy) -> None:
    """Behaviour 46: two, then one."""

    async def order() -> str:
        return "placed"

    async def main() -> list[int]:
        counts = []
        async with database.async_store(proxy.port) as store:
            guard = Idempotency(store, namespace="counted")
            for number in range(14):
                for _ in range(2):
                    proxy.reset_counts()
                    assert await guard.run_async(f"order-{number}", order) == "placed"
                    counts.append(proxy.round_trips)
        return counts

    assert asyncio.run(main())[12:] == [2, 1] * 8


METHODS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "claim": (lambda store: None, lambda store: claimed(store, key()).acquired),
    "complete": (
        lambda store: claimed(store, key()),
        lambda store: store.complete(key(), owner="owner-a", outcome=b"kept", ttl=60),
    ),
    "release": (lambda store: claimed(store, key()), lambda store: store.release(key(), owner="owner-a", ttl=60)),
    "renew": (
        lambda store: claimed(store, key()),
        lambda store: store.renew(key(), owner="owner-a", lease=60, ttl=60),
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_that_is_lost_is_as_if_it_had_arrived(proxy: Proxy, store: SqlAlchemyStore, method: str) -> None:
    """Behaviour 34: the store asks again, on another connection, and is answered as the first time."""
    before, ask = METHODS[method]
    before(store)
    proxy.drop_answers(1)
    assert ask(store) is True
    assert proxy.dropped == 1
    record = store.get(key())
    assert record is not None
    assert record.attempt == 1


def test_a_deletion_whose_answer_is_lost_is_not_known(proxy: Proxy, store: SqlAlchemyStore) -> None:
    """Behaviours 32, 34: the second time there is nothing to delete, and that is not what the first time found."""
    claimed(store, key())
    proxy.drop_answers(1)
    with pytest.raises(StoreError, match="says nothing of it"):
        store.delete(key())
    assert store.get(key()) is None
    claimed(store, key())
    proxy.cut()  # before it is asked
    assert store.delete(key()) is True


def test_of_a_call_whose_answers_are_lost_one_by_one_nothing_is_seen(proxy: Proxy, store: SqlAlchemyStore) -> None:
    """Behaviours 33, 34: the claim's, and the outcome's."""
    guard = Idempotency(store, namespace="lost")
    proxy.drop_answers(1)

    def body() -> str:
        proxy.drop_answers(1)
        return "placed"

    assert guard.run("order-42", body) == "placed"
    assert proxy.dropped == 2
    assert guard.run("order-42", str.upper) == "placed"


def test_a_claim_that_is_never_answered_wedges_nothing(
    database: Database, proxy: Proxy, store: SqlAlchemyStore
) -> None:
    """Behaviours 32, 34: the server made it; nothing ran; whoever comes next runs at once."""
    proxy.drop_answers(100, only=is_ours)
    with pytest.raises(StoreError) as caught:
        Idempotency(store, namespace="lost").run("order-42", pytest.fail)
    assert proxy.dropped == 6  # two claims and a release, each on two connections
    assert caught.value.key is not None
    beside = Idempotency(database.store(), namespace="lost", wait=0)
    assert beside.run("order-42", lambda: "placed") == "placed"


@pytest.mark.realtime
def test_through_a_lossy_way_answers_can_be_explained_by_single_steps(proxy: Proxy, store: SqlAlchemyStore) -> None:
    """Behaviours 21-23, 34: one connection in thirty is reset after the server has acted, and nobody knows."""
    chance = random.Random(7)
    proxy.drop_answers(1_000_000, only=lambda request: is_ours(request) and chance.random() < 0.06)
    check_store(store, rounds=9, unit=0.1, slack=0.02, seed=7)
    assert proxy.dropped > 5


def test_a_connection_that_was_cut_is_made_anew(proxy: Proxy, store: SqlAlchemyStore) -> None:
    """Behaviours 34, 47: as by a firewall that forgets, or a server that was restarted: no call fails for it."""
    with ThreadPoolExecutor(3) as pool:
        barrier = threading.Barrier(3)

        def one(number: int) -> bool:
            barrier.wait(PATIENCE)
            return bool(claimed(store, key(f"before-{number}")).acquired)

        assert all(pool.map(one, range(3)))
    proxy.cut()
    for number in range(3):
        assert claimed(store, key(f"after-{number}")).acquired


def test_coroutines_are_cut_off_no_longer(database: Database, proxy: Proxy) -> None:
    """Behaviours 34, 47: on an event loop too; a lost answer to a claim is as if it had arrived."""

    async def main() -> None:
        async with database.async_store(proxy.port) as store:
            await asyncio.gather(*(_claimed(store, f"before-{number}") for number in range(3)))
            proxy.cut()
            assert (await _claimed(store, "after")).acquired
            proxy.drop_answers(1)
            assert (await _claimed(store, "lost")).acquired
            assert proxy.dropped == 1
            proxy.refuse()
            with pytest.raises(StoreError) as caught:
                await _claimed(store, "refused")
            assert caught.value.key == key("refused")
            proxy.accept()
            assert (await _claimed(store, "again")).acquired

    asyncio.run(main())


async def _claimed(store: Any, value: str) -> Any:
    return await store.claim(key(value), owner="owner-a", fingerprint=None, lease=60, ttl=60)


def test_coroutines_do_not_know_of_a_deletion_whose_answer_is_lost(database: Database, proxy: Proxy) -> None:
    """Behaviours 32, 34: as plain calls."""

    async def main() -> None:
        async with database.async_store(proxy.port) as store:
            await _claimed(store, "order-42")
            proxy.drop_answers(1)
            with pytest.raises(StoreError, match="says nothing of it"):
                await store.delete(key())

    asyncio.run(main())


@pytest.mark.parametrize("colour", ["plain", "async"])
def test_several_steps_are_begun_again_where_one_was_cut_off(request: pytest.FixtureRequest, colour: str) -> None:
    """Behaviour 34: as on MySQL, which takes a transaction for a claim; each of its answers is lost once."""
    for database in opened(request, "mariadb"):
        assert database.url.host
        with Proxy(database.url.host, database.url.port or 0) as proxy:
            for number in range(5):
                if colour == "plain":
                    store = as_on_mysql(database.store(proxy.port))
                    claimed(store, key(f"warm-{number}"))
                    drop_the(number, proxy)
                    claim = claimed(store, key(f"order-{number}"))
                else:
                    claim = asyncio.run(_stepwise(database, proxy, number))
                assert proxy.dropped == number + 1
                assert claim.acquired
                record = database.store().get(key(f"order-{number}"))
                assert record is not None
                assert (record.attempt, record.token) == (1, claim.record.token)


def as_on_mysql(store: Any) -> Any:
    """Let the store take the server for one without RETURNING."""
    store._statements._chosen = statements_for("8.4.0", store.table.name)
    return store


def drop_the(number: int, proxy: Proxy) -> None:
    """Lose an answer, after so many others."""
    left = iter([False] * number + [True])
    proxy.drop_answers(1, only=lambda _: next(left))


async def _stepwise(database: Database, proxy: Proxy, number: int) -> Any:
    async with database.async_store(proxy.port) as store:
        as_on_mysql(store)
        await _claimed(store, f"warm-{number}")
        drop_the(number, proxy)
        return await _claimed(store, f"order-{number}")


def test_a_connection_that_is_lost_while_it_is_made_is_a_store_error(
    request: pytest.FixtureRequest,
) -> None:
    """Behaviour 32: nothing is left of it, and the next one is made."""
    for database in opened(request, "mariadb"):
        assert database.url.host
        with Proxy(database.url.host, database.url.port or 0) as proxy:
            store = database.store(proxy.port)
            proxy.drop_answers(1, only=lambda asked: b"STRICT_ALL_TABLES" in asked)
            with pytest.raises(StoreError):
                store.get(key())
            assert store.get(key()) is None

            async def main(database: Database = database, proxy: Proxy = proxy) -> None:
                async with database.async_store(proxy.port) as other:
                    proxy.drop_answers(1, only=lambda asked: b"STRICT_ALL_TABLES" in asked)
                    with pytest.raises(StoreError):
                        await other.get(key())
                    assert await other.get(key()) is None

            asyncio.run(main())


def test_how_long_the_application_waits_for_its_server_is_kept(request: pytest.FixtureRequest) -> None:
    """Behaviour 48: where its engine says so."""
    for database in opened(request, "mariadb"):
        with SqlAlchemyStore(database.engine(connect_args={"read_timeout": 7}), table=database.table) as store:
            store.get(key())
            (lane,) = store._connections._idle
            assert lane._connection._read_timeout == 7  # type: ignore[attr-defined]


def test_where_nobody_answers_it_is_a_store_error_that_names_the_key(proxy: Proxy, store: SqlAlchemyStore) -> None:
    """Behaviour 32: of every method, and of what looks at many keys."""
    proxy.refuse()
    for ask in [
        lambda: claimed(store, key()),
        lambda: store.complete(key(), owner="owner-a", outcome=b"", ttl=1),
        lambda: store.get(key()),
        lambda: store.delete(key()),
    ]:
        with pytest.raises(StoreError) as caught:
            ask()
        assert caught.value.key == key()
        assert "pass" not in str(caught.value)
    for ask in [lambda: list(store.scan("sql")), lambda: store.purge("sql"), store.sweep, store.create_table]:
        with pytest.raises(StoreError):
            ask()


def test_no_password_is_told(database: Database) -> None:
    """Bad input: of an address that nobody answers at, an error tells no secret."""
    url = database.url.set(port=1, username="clerk", password="sesame")
    engine = sa.create_engine(url, poolclass=NullPool)
    store = SqlAlchemyStore(engine)
    with pytest.raises(StoreError) as caught:
        store.get(key())
    assert "sesame" not in f"{caught.value} {store!r}"


def answers(asked: list[Any]) -> tuple[int, int]:
    """Return how many were answered, and how many were told that no connection was free."""
    errors = [answer for answer in asked if isinstance(answer, StoreError)]
    assert all("connections was free within" in str(error) and error.key is not None for error in errors)
    return len(asked) - len(errors), len(errors)


@pytest.mark.realtime
def test_where_all_connections_are_in_use_it_is_a_bounded_wait_and_a_store_error(
    database: Database, proxy: Proxy
) -> None:
    """Behaviour 48: and once one is free, calls go on."""
    store = database.store(proxy.port, max_connections=1, timeout=0.6)
    claimed(store, key("warm"))

    def ask(number: int) -> Any:
        try:
            return claimed(store, key(f"order-{number}"))
        except StoreError as error:
            return error

    proxy.delay(0.4)  # so that the third would have to wait for 0.8 s
    with ThreadPoolExecutor(4) as pool:
        answered, refused = answers(list(pool.map(ask, range(4))))
    assert answered >= 1
    assert refused >= 1
    proxy.delay(0)
    assert claimed(store, key("afterwards")).acquired


@pytest.mark.realtime
def test_coroutines_wait_for_a_connection_as_long(database: Database, proxy: Proxy) -> None:
    """Behaviour 48: each for itself."""

    async def main() -> None:
        async with database.async_store(proxy.port, max_connections=1, timeout=0.6) as store:
            await _claimed(store, "warm")
            proxy.delay(0.4)
            asked = (_claimed(store, f"order-{number}") for number in range(4))
            answered, refused = answers(await asyncio.gather(*asked, return_exceptions=True))
            assert answered >= 1
            assert refused >= 1
            proxy.delay(0)
            assert (await _claimed(store, "afterwards")).acquired

    asyncio.run(main())


def test_the_applications_own_pool_is_left_alone(database: Database) -> None:
    """Behaviour 48: a function that holds the only connection of its engine can be guarded on that engine."""
    engine = database.engine(pool_size=1, max_overflow=0, pool_timeout=1)
    with SqlAlchemyStore(engine, table=database.table) as store, engine.begin() as connection:
        connection.execute(sa.text("SELECT 1"))
        guard = Idempotency(store, namespace="held")
        assert guard.run("order-42", lambda: connection.execute(sa.text("SELECT 2")).scalar()) == 2
