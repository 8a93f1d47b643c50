"""Where workers run: one contract, an engine a file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rio_bench.errors import UserError, did_you_mean
from rio_bench.records import RunFolder

if TYPE_CHECKING:
    from rio_bench.config import Execution

# engine -> the package it needs, which is also the name of the extra that installs it
ENGINES = {"local": None, "ray": "ray", "slurm": "submitit"}


class Job(Protocol):
    """A worker that was started, or waits in a cluster's queue and is to start.

    where: for people, as "gpu 0" or "node7"; pid: of its process there, 0 where not known. Both may change with poll().
    """

    pid: int
    where: str
    queued: bool

    def poll(self) -> int | None:
        """None while it runs; then its exit status, or minus the signal that ended it."""

    def terminate(self) -> None:
        """Ask it to end; while it trains, it writes a checkpoint first."""

    def kill(self) -> None:
        """End it and its children at once."""


class Engine(Protocol):
    """device: cpu or cuda, what its workers compute on."""

    device: str

    def slots(self) -> int:
        """How many runs go on at a time; it may change while they do."""

    def start(self, folder: RunFolder, slot: int, initial_weights: Path | None) -> Job:
        """Start the worker of a run in a free slot. Raises RecordError where it cannot be started."""

    def close(self) -> None:
        """Free what the engine holds; no worker runs any more."""


def make_engine(name: str, execution: Execution, device: str = "auto", jobs: int | None = None) -> Engine:
    """The engine of that name. Raises UserError: unknown, not installed, or not able to do what is asked for."""
    if name not in ENGINES:
        raise UserError(f"--engine {name}: no such engine{did_you_mean(name, ENGINES)}")
    package = ENGINES[name]
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"--engine {name}: {package} is not installed: pip install --no-build-isolation -e '.[{name}]'")
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: expected 1 or more")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: expected auto, cpu or cuda")
    if name == "ray":
        from rio_bench.engines.ray import RayEngine

        return RayEngine(execution, device, jobs)
    if name == "slurm":
        from rio_bench.engines.slurm import SlurmEngine

        return SlurmEngine(execution, device, jobs)
    from rio_bench.engines.local import LocalEngine

    return LocalEngine(execution, device, jobs)


def worker_arguments(folder: RunFolder, device: str, initial_weights: Path | None) -> list[str]:
    """What every engine hands to the worker."""
    arguments = [str(folder.path.resolve()), "--device", device]
    if initial_weights is not None:
        arguments += ["--initial-weights", str(initial_weights.resolve())]
    return arguments


def worker_command(
    folder: RunFolder, device: str, initial_weights: Path | None, processes: int = 1, launcher: tuple[str, ...] = ()
) -> list[str]:
    """The worker as a command; with several processes through torch's launcher (default options: one machine)."""
    worker = ["-m", "rio_bench.worker", *worker_arguments(folder, device, initial_weights)]
    if processes == 1 and not launcher:
        return [sys.executable, *worker]
    options = launcher or ("--standalone",)
    return [sys.executable, "-m", "rio_bench.engines.launch", *options, f"--nproc-per-node={processes}", *worker]
