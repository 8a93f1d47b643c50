"""The local engine: one child process a run, on this machine's GPUs or CPU cores."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rio_bench.errors import UserError
from rio_bench.records import RecordError, RunFolder, RunLock

WORKER = (sys.executable, "-m", "rio_bench.worker")
MEMORY_PER_RUN = 4 * 2**30  # bytes: a run of the small recipe took up to 3.2 GiB on a CPU (X101)
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


class LocalJob:
    """A running worker."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """None while it runs; then its exit status, or minus the signal that ended it."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask the worker and its children to end (SIGTERM)."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End the worker and its children at once (SIGKILL)."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself in between
                os.killpg(self.pid, number)


class LocalEngine:
    """A worker a slot; on GPUs slot i has the GPU i (more slots than GPUs share them in turn)."""

    def __init__(self, device: str = "auto", jobs: int | None = None, command: Sequence[str] = WORKER) -> None:
        """device: auto (a GPU where there is one), cpu or cuda. jobs: runs at a time; None: one a GPU, or by cores."""
        if jobs is not None and jobs < 1:
            raise UserError(f"--jobs {jobs}: expected 1 or more")
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {device}: expected auto, cpu or cuda")
        self._gpus = [] if device == "cpu" else visible_gpus()
        if device == "cuda" and not self._gpus:
            raise UserError("--device cuda: no GPU found (nvidia-smi -L lists none): take --device cpu")
        self.device = "cuda" if self._gpus else "cpu"
        self._cores = len(os.sched_getaffinity(0))
        self._slots = jobs or len(self._gpus) or cpu_slots(self._cores)
        self._command = tuple(command)

    def slots(self) -> int:
        """How many runs go on at a time."""
        return self._slots

    def start(self, folder: RunFolder, slot: int, lock: RunLock, initial_weights: Path | None = None) -> LocalJob:
        """Start the worker of a run in a slot; what it prints is appended to the run's log."""
        arguments = [str(folder.path), "--device", self.device, "--parent", str(os.getpid())]
        if initial_weights is not None:
            arguments += ["--initial-weights", str(initial_weights)]
        try:
            with open(folder.log_file, "ab") as log:
                process = subprocess.Popen(
                    [*self._command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(slot),
                    pass_fds=[lock.descriptor],
                    start_new_session=True,  # Ctrl-C in the terminal reaches the harness only, which decides
                )
        except OSError as error:
            raise RecordError(f"{folder.log_file}: the worker cannot be started: {error.strerror}") from error
        return LocalJob(process)

    def _environment(self, slot: int) -> dict[str, str]:
        # torch takes its number of threads from these. On a CPU always one: sums depend on their number, and the same
        # configuration has to give the same numbers, whatever else runs beside it.
        threads = "1" if self.device == "cpu" else str(max(1, self._cores // self._slots))
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return environment


def cpu_slots(cores: int) -> int:
    """A run a core, as far as the memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // MEMORY_PER_RUN))


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to, one a GPU, found without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    if listing.returncode != 0 or not found:
        return []
    if chosen is None:
        return [str(index) for index in range(len(found))]
    return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]


def end_with_parent(parent: int) -> None:
    """Called by a worker first: have the kernel end this process (SIGTERM) when the harness `parent` dies.

    The plain choice, Linux only: no thread that watches, nothing to poll, and it works while torch computes. The
    kernel means the thread that started the worker, so the harness starts workers from its main thread.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the kernel was asked
        sys.exit("error: the harness that started this run is gone")
