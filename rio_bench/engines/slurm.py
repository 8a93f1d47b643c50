"""The SLURM engine: a batch job a run, through submitit.

Jobs outlive the harness. One that SLURM preempts, or whose time is over, writes a checkpoint and waits again under its
number. What a site wants beyond this sbatch reads from its environment: SBATCH_PARTITION, SBATCH_ACCOUNT, ...
"""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import time
from pathlib import Path

import submitit
from submitit.core.utils import UncompletedJobError

from rio_bench import engines
from rio_bench.attempts import LOST
from rio_bench.config import Execution
from rio_bench.engines.local import SECONDS_TO_LEAVE
from rio_bench.engines.slurm_node import WorkerCommand
from rio_bench.errors import UserError
from rio_bench.files import RecordError
from rio_bench.records import RunFolder

JOBS = 32  # in the queue at a time
CORES_PER_GPU = 4
LOOK_SECONDS = 10.0  # between two looks at the queue, each for all jobs
PATIENCE_SECONDS = 60.0  # until the result of a job that ended is seen through a network file system
# State of a job without a result -> exit status; any other: it goes on. "": SLURM does not know the job any more.
ENDED = {"CANCELLED": -signal.SIGTERM, "TIMEOUT": -signal.SIGTERM, "OUT_OF_MEMORY": -signal.SIGKILL, "FAILED": 1}
ENDED |= dict.fromkeys(("", "BOOT_FAIL", "COMPLETED", "DEADLINE", "NODE_FAIL", "PREEMPTED"), LOST)


class Queue:
    """What SLURM says of this user's jobs: number -> state, and its nodes or in brackets why it waits."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[str, str]] = {}
        self.asked = self.answered = float("-inf")  # on time.monotonic()'s clock

    def look(self) -> None:
        """Ask again if it was long ago; no answer changes nothing."""
        if time.monotonic() - self.asked >= LOOK_SECONDS:
            self.asked = time.monotonic()
            answer = ask("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%R")
            if answer is not None:
                self.jobs = {number: (state, place) for number, state, place in (line.split("|", 2) for line in answer)}
                self.answered = self.asked

    def cancel(self, *what: str) -> None:
        ask("scancel", *what)
        self.asked = float("-inf")


class SlurmJob:
    """A run's job, in the queue or at work."""

    pid = 0

    def __init__(self, job: submitit.Job, queue: Queue) -> None:
        self.queued, self.where = True, f"job {job.job_id}"
        self._job, self._queue = job.task(0), queue
        self._looked, self._ended, self._sent = time.monotonic(), float("inf"), 0  # _sent: minus the last signal
        self._code: int | None = None

    def poll(self) -> int | None:
        self._queue.look()
        if self._code is None and self._queue.answered > self._looked:
            self._looked = self._queue.answered
            self._code = self._read()
        return self._code

    def _read(self) -> int | None:
        state, place = self._queue.jobs.get(self._job.job_id, ("", ""))
        self.queued, self.where = state in ("PENDING", "CONFIGURING"), f"job {self._job.job_id} {place}".strip()
        if self._job.paths.result_pickle.exists():
            try:
                return self._job.result()
            except UncompletedJobError:  # the log tells why
                return 1
        if state not in ENDED:
            self._ended = float("inf")
            return None
        self._ended = min(self._ended, self._looked)
        return self._sent or (ENDED[state] if self._looked - self._ended >= PATIENCE_SECONDS else None)

    def terminate(self) -> None:
        self._sent = -signal.SIGTERM
        self._queue.cancel("--state=PENDING", self._job.job_id)
        self._queue.cancel("--signal=TERM", self._job.job_id)  # one that runs may take its time

    def kill(self) -> None:
        self._sent = -signal.SIGKILL
        self._queue.cancel(self._job.job_id)


class SlurmEngine:
    """As many jobs in the queue at a time as `jobs` says; SLURM starts them when there is room."""

    def __init__(self, execution: Execution, device: str = "auto", jobs: int | None = None) -> None:
        if execution.runs_per_gpu > 1:
            raise UserError(f"execution.runs_per_gpu: {execution.runs_per_gpu}: SLURM gives a job whole GPUs: take 1")
        if shutil.which("sbatch") is None:
            raise UserError("--engine slurm: no sbatch here: start it where jobs are submitted, as on a login node")
        if device == "auto":
            device = "cuda" if any("gpu" in node for node in ask("sinfo", "--noheader", "--format=%G") or ()) else "cpu"
        self.device, self._execution, self._jobs, self._queue = device, execution, jobs or JOBS, Queue()

    def slots(self) -> int:
        return self._jobs

    def start(self, folder: RunFolder, slot: int, initial_weights: Path | None) -> SlurmJob:
        nodes, limit = self._execution.nodes_per_run, self._execution.time_limit_minutes
        processes = self._execution.gpus_per_run // nodes
        launcher = (f"--nnodes={nodes}", "--rdzv-backend=c10d") if nodes > 1 else ()
        threads, log = CORES_PER_GPU if self.device == "cuda" else 1, str(folder.log_file.resolve())
        cores = processes * threads
        executor = submitit.AutoExecutor(folder.submissions, "slurm", slurm_max_num_timeout=0 if limit else 10_000)
        executor.update_parameters(
            name=folder.name,
            nodes=nodes,
            tasks_per_node=1,
            gpus_per_node=processes if self.device == "cuda" else None,
            cpus_per_task=cores,
            # The harness ends a run at its limit, SLURM where the harness is gone. Without one a job goes on every day.
            timeout_min=math.ceil(limit + 2 * SECONDS_TO_LEAVE / 60) if limit else 24 * 60,
            slurm_signal_delay_s=SECONDS_TO_LEAVE,
            slurm_srun_args=["--output", log, "--error", log, "--open-mode=append", f"--cpus-per-task={cores}"],
            slurm_additional_parameters={"output": log, "error": log, "requeue": True},
        )
        command = engines.worker_command(folder, self.device, initial_weights, processes, launcher)
        try:
            return SlurmJob(executor.submit(WorkerCommand(command, threads)), self._queue)
        except (OSError, RuntimeError) as error:  # RuntimeErrors are submitit's
            raise RecordError(f"{folder.path}: cannot be submitted: {' '.join(str(error).split())}") from error

    def close(self) -> None:
        pass  # jobs are SLURM's


def ask(*command: str) -> list[str] | None:
    """The lines of what a command of SLURM answers; None where it does not."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
