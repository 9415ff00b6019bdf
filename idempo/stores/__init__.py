"""Stores: each a module of its own, imported only where it is used; and what makes one from a URL."""

from __future__ import annotations

from typing import Any, cast

from idempo.protocols import AsyncClosableStore, ClosableStore

__all__ = ["async_store_from_url", "store_from_url"]


def store_from_url(url: str, **options: Any) -> ClosableStore:
    """Make a store from a URL, such as ``redis://localhost:6379`` or ``sqlite:///records.db``.

    Which schemes there are, and what their queries may say, is told by the page "Choosing a store". What is for the
    store may stand in the query or among the options; the rest of a query is the client's own.

    The store owns its client: leave it by ``with``, or call ``close()``. It has the timeouts that the URL gives, and
    else 5 seconds for a server to answer. Nothing is asked of a server here, save of a cluster.

    Args:
        url: The URL. It is shown by no error, and by no ``repr``, since it may hold a password.
        **options: What the store's own class takes, such as ``prefix`` or ``table``.

    Raises:
        ImportError: The library for the scheme is not installed; the error names the extra.
        TypeError: An option is of the wrong type, or unknown.
        ValueError: No store has this scheme, the URL cannot be read, or something that it says is unknown or out of
            its range; or its client has coroutines only.
        StoreError: A cluster could not be reached.

    >>> from idempo import Idempotency
    >>> from idempo.stores import store_from_url
    >>> with store_from_url("memory://?max_records=500") as store:
    ...     Idempotency(store, namespace="billing").run("order-42", str.upper, "placed")
    'PLACED'
    """
    from idempo.stores._opening import open_store  # `import idempo` does without

    return cast("ClosableStore", open_store(url, options))


def async_store_from_url(url: str, **options: Any) -> ClosableStore | AsyncClosableStore:
    """Make the store for coroutines from a URL: an `AsyncStore` where there is one for its scheme.

    Of the others (``memory``, ``sqlite``, ``memcached``) it makes the same as `store_from_url`, which serves coroutines
    too. All of them are left by ``async with``, or by ``await store.aclose()``.

    Args:
        url: See `store_from_url`.
        **options: See `store_from_url`.

    Raises:
        ImportError: See `store_from_url`.
        TypeError: See `store_from_url`.
        ValueError: See `store_from_url`; or its client has plain methods only.
    """
    from idempo.stores._opening import open_async_store  # as above

    return cast("ClosableStore | AsyncClosableStore", open_async_store(url, options))
