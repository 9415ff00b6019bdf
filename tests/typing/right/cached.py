"""A cached store has the abilities of the far one, typed."""

from typing import assert_type

from idempo import MemoryStore
from idempo.protocols import PurgeableStore, ScannableStore, SweepableStore, WatchableStore
from idempo.stores.cached import CachedStore

store = CachedStore(MemoryStore())
assert_type(store.purge("billing"), int)
assert_type(store.sweep(), int)
scannable: ScannableStore = store
purgeable: PurgeableStore = store
sweepable: SweepableStore = store
watchable: WatchableStore = store
