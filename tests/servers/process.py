"""One server: a process of the tests' own, in a folder of its own, on a free port of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HOST = "127.0.0.1"
PATIENCE = 60.0
"""Seconds in which a server must have started, or ended."""


class ServerError(Exception):
    """A server did not start; the text has the end of its log."""


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A server process that tests may kill, pause and start again, on the same port and data.

    It leads a process group of its own, which every signal reaches, as it does its children: some servers are several
    processes.

    Args:
        name: What it is called, in its folder's name and in errors.
        command: Gives the command line, from the folder and the port.
        ready: Is given the server, and raises as long as it does not answer.
        url: The form of its address: ``{host}`` and ``{port}`` are put in.
        prepare: Fills the new folder, before the first start.
        user: The user to run as, where root may not; owner of the folder then.
        stop_signal: What asks the server to end in good order.
        clean_up: Ends what the server leaves behind when it has ended.
        environment: Variables that the server needs beside this process's own; ``{folder}`` and ``{port}`` are put in.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[Path, int], Sequence[str]],
        ready: Callable[[Server], object],
        *,
        url: str,
        prepare: Callable[[Path], object] | None = None,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        environment: dict[str, str] | None = None,
        clean_up: Callable[[], object] | None = None,
    ) -> None:
        self.name = name
        self.host = HOST
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"idempo-{name}-"))
        self.log = self.folder / "server.log"
        self._command = command
        self._ready = ready
        self._url = url
        self._user = user
        self._stop_signal = stop_signal
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._prepare = prepare
        self._clean_up = clean_up
        if user is not None:
            shutil.chown(self.folder, user)

    def __repr__(self) -> str:
        return f"<{self.name} on port {self.port}>"

    @property
    def url(self) -> str:
        """Its address."""
        return self._url.format(host=self.host, port=self.port)

    def url_at(self, port: int) -> str:
        """Return its address at another port: a proxy's."""
        return self._url.format(host=self.host, port=port)

    @property
    def pid(self) -> int:
        """The process that was started."""
        assert self._process is not None, f"{self!r} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Server:
        """Start it, and wait until it answers."""
        assert not self.running, f"{self!r} is running"
        if self._prepare is not None:
            self._prepare(self.folder)
            self._prepare = None
        environment = {
            **os.environ,
            **{name: value.format(folder=self.folder, port=self.port) for name, value in self._environment.items()},
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self.folder, self.port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
                user=self._user,
                group=None if self._user is None else _group_of(self._user),
                extra_groups=None if self._user is None else (),
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._ready(self)
                return self
            except Exception as error:
                if not self.running or time.monotonic() > deadline:
                    ended = "" if self.running else f" (it ended with {self._process.returncode})"
                    self.kill()
                    raise ServerError(f"{self!r} did not start{ended}: {error}\n{self._tail()}") from error
            time.sleep(0.01)  # between two questions to a process that cannot tell

    def stop(self) -> None:
        """End it in good order."""
        if self._process is None:
            return
        self.resume()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, self._stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):  # then by force
            self._process.wait(PATIENCE)
        self.kill()

    def kill(self) -> None:
        """End it without a chance to write anything down."""
        if self._process is None:
            return
        self._signal(signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._process = None
        if self._clean_up is not None:
            self._clean_up()

    def pause(self) -> None:
        """Let it stand still: it takes connections, and answers nothing."""
        self._signal(signal.SIGSTOP)
        # A thread may go on for a moment, and answer a request that comes in it.
        deadline = time.monotonic() + PATIENCE
        while not all(_stands_still(pid) for pid in (self.pid, *_children_of(self.pid))):
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} does not stand still")
            time.sleep(0.001)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """End it in good order, and start it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it for good, and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        # PostgreSQL puts each of its processes into a group of its own; one that lives on would still commit.
        for pid in (*_children_of(self._process.pid), self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _tail(self) -> str:
        try:
            return self.log.read_text(errors="replace")[-2000:]
        except OSError:
            return ""


def _stands_still(pid: int) -> bool:
    try:
        tasks = list(Path(f"/proc/{pid}/task").glob("*/stat"))
        return all(task.read_text().rpartition(")")[2].split()[0] in "TtZX" for task in tasks)
    except OSError:  # it has ended meanwhile
        return True


def _group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


def _children_of(parent: int) -> list[int]:
    """Return the processes that a process has begun, as Linux tells it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found
