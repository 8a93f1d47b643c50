"""The runs of a plan as a scheduler handles them: how far each is, and in the end how each ended."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from rio_bench.attempts import signal_name
from rio_bench.engines import Job
from rio_bench.files import FileLock
from rio_bench.plan import PlannedRun
from rio_bench.progress import RunView, Sighting
from rio_bench.records import Attempt, ResultFolder, RunFolder


@dataclass
class Running:
    """What goes with a worker while it runs."""

    job: Job
    slot: int
    lock: FileLock
    started: datetime
    log_start: int  # sizes before this attempt: what lies before is another attempt's
    metrics_start: int
    first: Sighting | None = None  # of progress
    latest: Sighting | None = None
    cause: str | None = None  # why it was told to end: "stopped", "pruned", "time limit"
    kill_at: float | None = None  # when it is ended the hard way, on time.monotonic()'s clock

    def attempt(self, code: int) -> Attempt:
        """How it ended, for the run's folder. code: exit status, or minus the signal."""
        return Attempt(
            started=self.started.isoformat(timespec="milliseconds"),
            ended=datetime.now().astimezone().isoformat(timespec="milliseconds"),
            exit_status=code if code >= 0 else None,
            signal=signal_name(-code) if code < 0 else None,
            host=socket.gethostname(),
            pid=self.job.pid,
            cause=self.cause,
        )


@dataclass
class Task:
    """A run of the plan and how far it is; the view holds its state."""

    run: PlannedRun
    folder: RunFolder
    view: RunView
    running: Running | None = None
    retries: int = 0
    reported: int = -1  # the last iteration whose evaluation the search knows


class Failure(NamedTuple):
    """A run without a result: why, in a line, and where its log is."""

    name: str
    reason: str
    log: Path


@dataclass
class Outcome:
    """Names of runs by how they ended. stopped: by Ctrl-C, they go on with the next harness."""

    finished: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)


def outcome_of(tasks: list[Task], search_failure: str, results: ResultFolder) -> Outcome:
    """How the runs ended, and why the search did where it could not go on."""
    outcome = Outcome()
    lists = {"finished": outcome.finished, "reused": outcome.reused, "pruned": outcome.pruned}
    for task in tasks:
        if task.view.state == "failed":
            outcome.failed.append(Failure(task.run.name, task.view.reason, task.folder.log_file))
        else:
            lists.get(task.view.state, outcome.stopped).append(task.run.name)
    if search_failure:
        outcome.failed.append(Failure("search", search_failure, results.root))
    return outcome
