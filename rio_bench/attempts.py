"""How an attempt at a run ended, in a line, and whether another one may go better."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rio_bench.processes import HELD, TRY_AGAIN

if TYPE_CHECKING:
    from rio_bench.records import Attempt

# The fork server, or the connection to a cluster, was lost: Python tells it by this status.
LOST = 255
ERROR_LINE = re.compile(r"[\w.]*(Error|Exception)\b")


def may_be_mended(code: int) -> bool:
    """Whether a retry may go well: the worker was killed from outside, or says so itself.

    code: exit status, or minus the signal.
    """
    return code < 0 or code in (TRY_AGAIN, LOST)


def was_told_to_end(code: int) -> bool:
    """Whether it ended as one that is told to: by a signal, or lost with its machine; not by an error of its own."""
    return code < 0 or code == LOST


def is_held(code: int) -> bool:
    """Whether the worker left the run to another one."""
    return code == HELD


def last_telling(attempts: Sequence[Attempt]) -> Attempt | None:
    """The last of a run's attempts that tells how the run is: not one that left it to another worker."""
    return next((attempt for attempt in reversed(attempts) if not is_held(attempt.exit_status or 0)), None)


def signal_name(number: int) -> str:
    """9 -> SIGKILL; real-time signals have no name of their own."""
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


def exit_cause(code: int, took: str, log: str) -> str:
    """Why a worker ended without a record, in a line. code: exit status, or minus the signal; took: 0:01:05."""
    if code < 0:
        name = signal_name(-code)
        cause = f"killed by {name} after {took}" + (": out of memory?" if name == "SIGKILL" else "")
    elif code == 0:
        cause = f"ended without a record after {took}"
    else:
        cause = f"exit status {code} after {took}"
    last = last_error(log) if code < 0 else last_error(log) or last_line(log)  # a killed worker's last line is no cause
    return ": ".join(filter(None, [cause, last.removeprefix("error: ")]))


def last_error(log: str) -> str:
    """The worker's own last word on what failed, or else the last line that looks like an exception's."""
    lines = [line.strip() for line in log.splitlines()]
    told = [line for line in lines if line.startswith("error: ")] or [line for line in lines if ERROR_LINE.match(line)]
    return told[-1] if told else ""


def last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else ""
