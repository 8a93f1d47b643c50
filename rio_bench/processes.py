"""What the processes of a run and of a harness agree on."""

from __future__ import annotations

import ctypes
import os
import signal

# Exit statuses of a worker beside 0 (its record is written) and 1 (it failed for a reason of its own)
BAD_INPUT = 2
HELD = 3  # another worker does the run
TRY_AGAIN = 75  # EX_TEMPFAIL: what failed may go well a second time

PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def number_of_processes() -> int:
    """How many processes do this run together; torch's launcher tells it to each."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among those of the run."""
    return int(os.environ.get("RANK", "0"))


def ask_for_signal(number: signal.Signals) -> None:
    """Have the kernel send it to this process when the thread that started the process is gone. Linux only."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
