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
    options = parser.parse_args(argv)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:  # where a command had nothing to bring to its end
        return 130
    except BrokenPipeError:  # whoever read the report has seen enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
