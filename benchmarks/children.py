"""Asking a new interpreter, which has imported and allocated nothing yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import idempo

_IDEMPO: Final = str(Path(idempo.__file__).resolve().parent.parent)
_BENCHMARKS: Final = str(Path(__file__).resolve().parent.parent)

# The same idempo as here, wherever it was installed; ours come last, since a checkout's idempo lies beside them.
_PROLOGUE: Final = f"import sys; sys.path.insert(0, {_IDEMPO!r}); sys.path.append({_BENCHMARKS!r})\n"


def ask(code: str) -> Any:
    """Run the code in a new interpreter and return what it printed as JSON."""
    command = [sys.executable, "-c", _PROLOGUE + code]
    # Compiled files are part of what is measured: whoever starts a program twice has them.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)
