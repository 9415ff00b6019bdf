"""Other interpreters: one to be asked once, which has imported and allocated nothing yet, and ones that work on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import idempo

_IDEMPO: Final = str(Path(idempo.__file__).resolve().parent.parent)
_PATIENCE: Final = 30.0
_BENCHMARKS: Final = str(Path(__file__).resolve().parent.parent)

# The same idempo as here, wherever it was installed; ours come last, since a checkout's idempo lies beside them.
_PROLOGUE: Final = f"import sys; sys.path.insert(0, {_IDEMPO!r}); sys.path.append({_BENCHMARKS!r})\n"


def ask(code: str) -> Any:
    """Run the code in a new interpreter and return what it printed as JSON."""
    command = [sys.executable, "-c", _PROLOGUE + code]
    # Compiled files are part of what is measured: whoever starts a program twice has them.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


class Child:
    """A process that is told what to do, line by line, and answers each time.

    Args:
        module: Where its ``main`` is, which reads what it is told by `told` and answers by `answer`.
        arguments: What ``main`` is called with.
    """

    def __init__(self, module: str, *arguments: Any) -> None:
        code = f"{_PROLOGUE}from {module} import main; main(*{arguments!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._process.communicate(timeout=_PATIENCE)  # the end of its input is its end
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def tell(self, **what: Any) -> None:
        """Say what is to be done."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """Wait for the answer.

        Raises:
            RuntimeError: It has ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the benchmarks ended with {self._process.wait(_PATIENCE)}")
        return json.loads(line)


def told() -> Iterator[dict[str, Any]]:
    """In a child: give what it is told, until its parent has no more to say."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(what: Any) -> None:
    """In a child: answer what was told last."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
