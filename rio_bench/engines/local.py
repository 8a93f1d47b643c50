"""The local engine: a process a run, on this machine's GPUs or CPU cores.

Workers are forked from one process that has torch and Detectron2 imported already (Python's own fork server), which
saves each run the seconds of these imports. Each still is a process of its own, with its own log, session and slot.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from rio_bench.config import Execution
from rio_bench.engines import worker_arguments, worker_command
from rio_bench.errors import UserError
from rio_bench.files import RecordError
from rio_bench.processes import ask_for_signal
from rio_bench.records import RunFolder

SECONDS_TO_LEAVE = 120  # for a checkpoint, where a process of a run or its whole machine is told to end
MEMORY_PER_RUN = 4 * 2**30  # bytes: a run of the small recipe took up to 3.2 GiB on a CPU (X101)
# What the fork server imports before it forks: first what ties its life to the harness's, then the seconds to save.
TIED = "rio_bench.engines.fork_server"
PRELOAD = (TIED, *(f"rio_bench.detection.{room}" for room in ("trainer", "model", "recipe", "inference", "evaluation")))


class LocalJob:
    """A running worker."""

    queued = False

    def __init__(self, process: ForkServerProcess, where: str) -> None:
        self._process = process
        self.pid = process.pid or 0
        self.where = where

    def poll(self) -> int | None:
        return self._process.exitcode

    def terminate(self) -> None:
        # The worker alone: it ends its own children (data loaders, the ranks of torch's launcher) after its checkpoint.
        with contextlib.suppress(ProcessLookupError):  # it ended by itself in between
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        for end in (os.killpg, os.kill):  # the group is its own a moment after the start
            with contextlib.suppress(ProcessLookupError):
                end(self.pid, signal.SIGKILL)


class LocalEngine:
    """A worker a slot. On GPUs a slot is a GPU, a share of one (runs_per_gpu) or several (gpus_per_run)."""

    def __init__(
        self,
        execution: Execution,
        device: str = "auto",
        jobs: int | None = None,
        main: Callable[[list[str]], int] | None = None,
        preload: Sequence[str] = PRELOAD,
    ) -> None:
        """jobs: so many runs at a time, whatever was found. main: a worker's work, default rio_bench.worker.main."""
        if execution.nodes_per_run > 1:
            raise UserError(f"execution.nodes_per_run: {execution.nodes_per_run} machines need --engine slurm")
        gpus = [] if device == "cpu" else visible_gpus()
        if device == "cuda" and not gpus:
            raise UserError("--device cuda: no GPU found (nvidia-smi -L lists none): take --device cpu")
        self.device = "cuda" if gpus else "cpu"
        self._processes = execution.gpus_per_run
        self._slots = gpu_slots(gpus, execution) if gpus else cpu_slots(len(os.sched_getaffinity(0)), execution)
        self._slots = in_turn(self._slots, jobs)
        self._threads = threads_per_process(self.device, len(self._slots) * self._processes)
        self._main = main
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))

    def slots(self) -> int:
        return len(self._slots)

    def start(self, folder: RunFolder, slot: int, initial_weights: Path | None = None) -> LocalJob:
        gpus = self._slots[slot]
        environment = {"CUDA_VISIBLE_DEVICES": gpus} if self.device == "cuda" else {}
        if self._processes > 1:
            work: tuple = (replace_process, worker_command(folder, self.device, initial_weights, self._processes))
        else:
            work = (self._main or worker_main, worker_arguments(folder, self.device, initial_weights))
        process = self._context.Process(target=work_in_slot, args=(folder.log_file, environment, *work))
        try:
            with environment_of_workers(self._threads):  # the fork server takes it over when it starts
                process.start()
        except OSError as error:
            raise RecordError(f"{folder.path}: the worker cannot be started: {error.strerror or error}") from error
        return LocalJob(process, f"gpu {gpus}" if self.device == "cuda" else f"cpu slot {slot}")

    def close(self) -> None:
        pass  # the fork server ends with this process


def gpu_slots(gpus: Sequence[str], execution: Execution) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is set to in each slot, the shares of a GPU far from each other."""
    wanted = execution.gpus_per_run
    if wanted > len(gpus):
        hint = f"`run --gpus {len(gpus)}` takes so many"
        raise UserError(f"execution.gpus_per_run: {wanted} GPUs a run, but this machine shows {len(gpus)}: {hint}")
    groups = [",".join(gpus[first : first + wanted]) for first in range(0, len(gpus) - wanted + 1, wanted)]
    return groups * execution.runs_per_gpu


def cpu_slots(cores: int, execution: Execution) -> list[str]:
    """A process a core, as far as the memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    processes = max(1, min(cores, memory // MEMORY_PER_RUN))
    return [""] * max(1, processes // execution.gpus_per_run)


def in_turn(slots: list[str], jobs: int | None) -> list[str]:
    """As many slots as were asked for, taking turns where these are more."""
    return slots if jobs is None else [slots[number % len(slots)] for number in range(jobs)]


def threads_per_process(device: str, processes: int) -> int:
    """On a CPU one: sums depend on the number of threads, and the same run has to give the same numbers everywhere."""
    return 1 if device == "cpu" else max(1, len(os.sched_getaffinity(0)) // processes)


@contextlib.contextmanager
def environment_of_workers(threads: int) -> Iterator[None]:
    """torch and its libraries take their number of threads from the environment when they are first imported.

    torch's launcher takes from there how long its processes may take to end; else it would kill them after 30 s.
    """
    settings = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    settings["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SECONDS_TO_LEAVE)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def work_in_slot(log: Path, environment: dict[str, str], work: Callable, arguments: list[str]) -> None:
    """In the worker's process: a session of its own, its log, its GPUs; then the work. Ends the process."""
    os.setsid()  # Ctrl-C in the terminal reaches the harness only, which decides
    end_with_parent()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(environment)
    sys.exit(work(arguments))


def worker_main(arguments: list[str]) -> int:
    from rio_bench import worker

    return worker.main(arguments)


def replace_process(command: list[str]) -> int:
    """Become another program; the process, its log and its ties stay."""
    os.execv(command[0], command)


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when the fork server dies, which dies with the harness.

    The plain choice, Linux only: no thread that watches, nothing to poll, and it works while torch computes.
    """
    ask_for_signal(signal.SIGTERM)
    harness = multiprocessing.parent_process()
    if harness is not None and not harness.is_alive():  # it died before the kernel was asked
        sys.exit("error: the harness that started this run is gone")


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
