"""``python -m idempo COMMAND``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from idempo.demo.command import add_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code.

    Args:
        argv: The command line without the program's name; by default the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m idempo", description="Makes any operation safe to repeat.", allow_abbrev=False
    )
    add_parser(parser.add_subparsers(metavar="COMMAND", required=True))
    if sys.stderr is None:  # closed by whoever started the process: what is told there goes nowhere
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    options = parser.parse_args(argv)
    try:
        code: int = options.run(options)
    except KeyboardInterrupt:  # where a command had nothing to bring to its end
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
