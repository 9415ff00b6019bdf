"""What a store from a URL has beyond the six methods: told by what it is an instance of."""

from idempo.protocols import PurgeableStore, SweepableStore
from idempo.stores import store_from_url
from idempo.stores.sqlalchemy import SqlAlchemyStore

with store_from_url("sqlite+pysqlite:///records.db") as store:
    if isinstance(store, SqlAlchemyStore):
        store.create_table()
    if isinstance(store, PurgeableStore):
        store.purge("billing")
    if isinstance(store, SweepableStore):
        store.sweep(1000)
