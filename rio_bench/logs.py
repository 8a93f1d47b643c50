"""A run's log, whole or as it grows."""

from __future__ import annotations

import os
import sys
import time

from rio_bench.errors import UserError
from rio_bench.progress import sentence
from rio_bench.records import RunFolder
from rio_bench.status import look_at

LOOK_SECONDS = 0.25
PATIENCE = 2.0  # seconds without a worker, after which no other attempt will follow


def print_log(folder: RunFolder) -> None:
    """Print a run's log, all attempts. UserError where it has none."""
    if not folder.log_file.exists():
        raise UserError(f"{folder.name}: has no log: it has not begun")
    _print_from(folder, 0)


def follow_log(folder: RunFolder) -> None:
    """Print a run's log as it grows, until its worker ends and no other attempt follows; then how the run is.

    A run that has not begun is waited for.
    """
    if not folder.log_file.exists():
        print(f"{folder.name}: has not begun: waiting for it", file=sys.stderr)
    position = 0
    alone_since: float | None = None
    while alone_since is None or time.monotonic() - alone_since < PATIENCE:
        # Asked before the log is read: what a worker wrote before it ended is printed.
        going_on = folder.is_given_out() or folder.is_worked_on()
        position = _print_from(folder, position)
        if going_on or not folder.log_file.exists():
            alone_since = None
        elif folder.record_file.exists():
            break
        else:
            alone_since = alone_since or time.monotonic()
        time.sleep(LOOK_SECONDS)
    run = folder.read_run()
    if run is not None:
        print(f"{folder.name}: {sentence(look_at(folder, run, time.time()))}", file=sys.stderr)


def _print_from(folder: RunFolder, position: int) -> int:
    """Print what the log holds after `position`; returns where it ends."""
    try:
        with open(folder.log_file, "rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(position if position <= end else 0)  # begun anew
            content = log.read()
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return log.tell()
    except FileNotFoundError:
        return 0
