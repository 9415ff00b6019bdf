"""The types that a user sees, expected errors included, as mypy strict and pyright strict see them.

Both run where no checkout is found: they read the installed package, by its ``py.typed``. A line of ``right/`` that is
an error on purpose says so to both; a comment about an error that is none any more fails, as does a wrong type in an
``assert_type``. That each of these is found is shown on ``wrong/``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CHECKERS = {
    "mypy": ("--strict", "--python-version", "3.11", "--cache-dir", "/dev/null", "--config-file", "", "."),
    "pyright": ("--pythonpath", sys.executable),
}


def check(name: str, folder: str) -> tuple[bool, str]:
    """Run one checker on a folder and return whether it was content, and what it said."""
    command = [sys.executable, "-m", name, *CHECKERS[name]]
    run = subprocess.run(command, cwd=HERE / folder, capture_output=True, text=True, check=False)
    return run.returncode == 0, run.stdout + run.stderr


def main() -> int:
    """Check what must pass and what must not, and return the exit code."""
    mistakes = [
        f"wrong.py:{number}:"
        for number, line in enumerate((HERE / "wrong" / "wrong.py").read_text().splitlines(), start=1)
        if "MISTAKE" in line
    ]
    failed = False
    for name in CHECKERS:
        content, said = check(name, "right")
        if not content:
            failed = True
            print(f"{name} does not see the types that right/ pins:\n{said}")
        content, said = check(name, "wrong")
        unseen = [mistake for mistake in mistakes if mistake not in said]
        if content or unseen:
            failed = True
            print(f"{name} did not find the mistakes at {unseen}:\n{said}")
    print("the types differ" if failed else "the types are as pinned, for mypy and pyright")
    return failed


if __name__ == "__main__":
    sys.exit(main())
