"""What the URL of a store says: which store, what is for its client, what is for the store itself. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

_TEXT: Final[Callable[[str], Any]] = str


def _flag(text: str) -> bool:
    """Return what is said: true or false.

    Raises:
        ValueError: Neither is.
    """
    return ("false", "true").index(text.lower()) == 1


class Family(NamedTuple):
    """The schemes of one store.

    Attributes:
        schemes: As they are written before "://".
        options: Which of the store's own options a query may give, and what makes values of their texts. What else a
            query gives is the client's.
    """

    schemes: tuple[str, ...]
    options: Mapping[str, Callable[[str], Any]]


FAMILIES: Final[Mapping[str, Family]] = {
    "memory": Family(("memory",), {"max_records": int, "max_bytes": int, "on_full": _TEXT}),
    "sqlite": Family(("sqlite",), {"table": _TEXT, "synchronous": _TEXT, "busy_timeout": float}),
    "redis": Family(
        ("redis", "rediss", "valkey", "valkeys", "unix", "redis+cluster", "rediss+cluster"),
        {"prefix": _TEXT, "eviction": _TEXT},
    ),
    "sqlalchemy": Family(
        (
            "postgresql+psycopg",
            "mysql+pymysql",
            "mysql+asyncmy",
            "mariadb+pymysql",
            "mariadb+asyncmy",
            "sqlite+pysqlite",
            "sqlite+aiosqlite",
        ),
        {
            "table": _TEXT,
            "schema": _TEXT,
            "max_connections": int,
            "timeout": float,
            "notify": _flag,
            "largest_outcome": int,
        },
    ),
    "nats": Family(
        ("nats",),
        {
            "prefix": _TEXT,
            "create": _flag,
            "replicas": int,
            "timeout": float,
            "largest_outcome": int,
            "max_watched": int,
        },
    ),
    "memcached": Family(("memcached",), {"prefix": _TEXT, "largest_outcome": int, "max_watched": int}),
}


class Address(NamedTuple):
    """A URL, read. It may hold a password, and so is shown to nobody.

    Attributes:
        family: Which store it is of; a key of `FAMILIES`.
        parts: The URL, with only that left in its query which is for the client.
        options: What it says for the store.
    """

    family: str
    parts: SplitResult
    options: dict[str, Any]

    @property
    def url(self) -> str:
        """For the client."""
        scheme, netloc, path, query, _ = self.parts
        return f"{scheme}://{netloc}{path}" + (f"?{query}" if query else "")  # urlunsplit() drops slashes

    @property
    def path(self) -> str:
        """Without the first slash and percent-encoding; "" where there is none."""
        return unquote(self.parts.path[1:])

    @property
    def for_client(self) -> list[str]:
        """The names in its query that are for the client."""
        return [name for name, _ in parse_qsl(self.parts.query, keep_blank_values=True)]

    def hosts(self, port: int) -> list[tuple[str, int]]:
        """Return hosts and ports, of which several are separated by commas.

        Args:
            port: The port of a host without one.

        Raises:
            ValueError: There is no host.
        """
        scheme = self.parts.scheme
        hosts = [_split(f"//{host}") for host in self.parts.netloc.rpartition("@")[2].split(",")]
        if not all(host.hostname for host in hosts):
            raise ValueError(f"{scheme}:// needs a host, or several with commas between: {scheme}://localhost:{port}")
        return [(host.hostname or "", host.port or port) for host in hosts]

    @property
    def user(self) -> tuple[str | None, str | None]:
        """User name and password, without percent-encoding; each None where it is not given."""
        before, is_given, _ = self.parts.netloc.rpartition("@")
        name, has_password, password = before.partition(":")
        return unquote(name) if is_given else None, unquote(password) if has_password else None

    def numbers(self, known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
        """Return what the query gives for a client that has no URLs of its own.

        Raises:
            ValueError: There is something else, or it is no number.
        """
        given = {}
        for name, value in parse_qsl(self.parts.query, keep_blank_values=True):
            if name not in known:
                self.refuse(name, *known)
            given[name] = _value(name, value, known[name])
        return given

    def refuse_no_time(self, *names: str) -> None:
        """Refuse a time-out of the client's, among these, that gives the server no time.

        Raises:
            ValueError: One is no more than zero.
        """
        for name, value in parse_qsl(self.parts.query, keep_blank_values=True):
            if name in names and not _value(name, value, float) > 0:
                raise ValueError(f"{name} in the URL's query must be more than 0 seconds, not {value!r}")

    def only_path(self) -> None:
        """Refuse what a file cannot have: a host, or a query for a client.

        Raises:
            ValueError: There is some.
        """
        scheme = self.parts.scheme
        if self.parts.netloc:
            raise ValueError(
                f"{scheme}:// has no host: a path begins with a third slash, and an absolute one with a fourth"
            )
        self.no_query()

    def no_query(self) -> None:
        """Refuse a query for a client: there is none.

        Raises:
            ValueError: There is one.
        """
        for name in self.for_client:
            self.refuse(name)

    def refuse(self, name: str, *beside: str) -> NoReturn:
        """Say that there is no such option, and what there is: the store's, and those of its client ``beside``.

        Raises:
            ValueError: Always.
        """
        known = ", ".join([*FAMILIES[self.family].options, *beside])
        raise ValueError(f"{self.parts.scheme}:// has no option {name!r} in its query; it has {known}")


def read(url: str, options: Mapping[str, Any]) -> Address:
    """Return what a URL says, with the options that were given beside it.

    Raises:
        TypeError: The URL is no text.
        ValueError: No store has its scheme, it is no URL, or an option of its query has no such value, or is given
            twice.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a text, not {type(url).__name__}")
    parts = _split(url)
    family = _family(parts.scheme, url)
    own, others = dict(options), []
    for piece in parts.query.split("&"):
        name, is_pair, value = (unquote(text.replace("+", " ")) for text in piece.partition("="))
        make = FAMILIES[family].options.get(name)
        if make is None:
            others.append(piece)  # as it is spelled: the client reads it
            continue
        if name in own:
            raise ValueError(f"{name} is given twice: once in the URL's query is enough, or once as an option")
        own[name] = _value(name, value if is_pair else "", make)
    return Address(family, parts._replace(query="&".join(filter(None, others))), own)


def _value(name: str, value: str, make: Callable[[str], Any]) -> Any:
    try:
        return make(value)
    except ValueError:
        kind = "true or false" if make is _flag else "a number"
        raise ValueError(f"{name} in the URL's query must be {kind}, not {value!r}") from None


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if "," not in parts.netloc:
            _ = parts.port  # read for its error
    except ValueError:
        # Not from the error itself, and without the URL: both may show a password, or a part of one.
        raise ValueError(
            "the URL cannot be read: percent-encode user name and password, and give the port as a number"
        ) from None
    if parts.fragment:
        raise ValueError('the URL has a "#": percent-encode it, as %23')
    return parts


def _family(scheme: str, url: str) -> str:
    for name, family in FAMILIES.items():
        if scheme in family.schemes:
            if not url[len(scheme) :].startswith("://"):
                raise ValueError(f"the URL must begin with {scheme}://")
            return name
    if scheme.partition("+")[0] in ("postgres", "postgresql", "mysql", "mariadb", "sqlite"):
        known = ", ".join(f"{scheme}://" for scheme in FAMILIES["sqlalchemy"].schemes)
        raise ValueError(f"{scheme}:// names no driver that a store is made for; there are {known}")
    known = ", ".join(f"{scheme}://" for family in FAMILIES.values() for scheme in family.schemes)
    # What comes before a colon may be anything, a user's name too.
    shown = f"{scheme}:// is the scheme of no store" if "://" in url and scheme else "the URL has no scheme"
    raise ValueError(f"{shown}; there are {known}")
