"""A program that is told to end when its parent dies: python -m rio_bench.engines.tied PARENT_PID COMMAND ...

Becomes the command; asking the kernel before exec, in the new process, is safe however many threads the parent has.
"""

from __future__ import annotations

import os
import signal
import sys

from rio_bench.processes import ask_for_signal


def main(parent: int, command: list[str]) -> None:
    """Become `command`, which gets SIGTERM when the process `parent` that started this one is gone."""
    ask_for_signal(signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel was asked
        sys.exit("error: what started this run is gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
