"""What the nodes of a SLURM job do: they run the worker, and end it in time where the job has to leave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import submitit
from submitit.core.utils import DelayedSubmission, UncompletedJobError
from submitit.helpers import Checkpointable

from rio_bench.engines.local import environment_of_workers


class WorkerCommand(Checkpointable):
    """On each node of a job: the worker, or torch's launcher of several.

    SLURM's signals reach every process of a job. SIGTERM ends the worker, with a checkpoint. SIGUSR2 tells that the job
    has to leave (preempted, or its time is over): submitit calls checkpoint() and puts the job into the queue again.
    """

    def __init__(self, command: list[str], threads: int) -> None:
        self.command, self.threads = command, threads
        self._pid, self._told = 0, False

    def __call__(self) -> int:
        """Returns the exit status of the worker, or minus its signal."""
        signal.signal(signal.SIGTERM, self._note)
        job = submitit.JobEnvironment()
        with environment_of_workers(self.threads):
            environment = {**os.environ, **launcher_settings(job.job_id, job.hostnames[0])}
            process = subprocess.Popen(self.command, env=environment, preexec_fn=ignore_user_signal)
        self._pid = process.pid
        try:
            code = process.wait()
        except UncompletedJobError:  # raised by submitit after checkpoint(), where the job may not go on
            code = -signal.SIGTERM
        return -signal.SIGTERM if self._told and code else code  # torch's launcher has a status of its own for that

    def checkpoint(self) -> DelayedSubmission:
        """End the worker, which writes its checkpoint; returns what the job does next time."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if self._pid:
                os.kill(self._pid, signal.SIGTERM)
                os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)  # left to __call__, which this interrupts
        return DelayedSubmission(WorkerCommand(self.command, self.threads))

    def _note(self, number: int, frame: object) -> None:
        self._told = True


def ignore_user_signal() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def launcher_settings(job_id: str, first_host: str) -> dict[str, str]:
    """Options of torch's launcher: where those of all nodes meet. Jobs that share a node have ports of their own."""
    return {"PET_RDZV_ID": job_id, "PET_RDZV_ENDPOINT": f"{first_host}:{20_000 + int(job_id) % 10_000}"}
