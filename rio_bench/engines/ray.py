"""The Ray engine: an actor a run, on whatever node of a cluster has room for it.

The actor holds the run's GPUs or cores. The worker is its child, which is told to end when the actor dies: with its
node, or with the harness. RAY_ADDRESS names the cluster; else Ray takes one that runs on this machine, or starts one.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import ray

from rio_bench import engines
from rio_bench.attempts import LOST
from rio_bench.config import Execution
from rio_bench.engines.local import MEMORY_PER_RUN
from rio_bench.engines.ray_node import WorkerActor
from rio_bench.errors import UserError
from rio_bench.processes import BAD_INPUT
from rio_bench.records import RunFolder

PASSED_ON = ("RIO_BENCH_CACHE", "DETECTRON2_DATASETS")  # a node's environment is not the harness's
# Ray would kill a worker when its actor ends, with the harness; it has its own way to end, with a checkpoint.
ACTORS_ENVIRONMENT = {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}}


class RayJob:
    """A run's actor: it waits for a node, or is at work there."""

    def __init__(self, actor: Any, command: list[str], log: Path, settings: dict[str, str]) -> None:
        self.pid, self.where, self.queued, self._actor, self._log = 0, "", True, actor, log
        self._answer, self._sent = actor.start.remote(command, log, settings), 0  # _sent: the last signal
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is not None or not ray.wait([self._answer], timeout=0)[0]:
            return self._code
        try:
            if self.queued:
                self.where, self.pid = ray.get(self._answer)
                self.queued = False
                self._answer = self._actor.wait.remote()
                return None
            self._code = ray.get(self._answer)
        except ray.exceptions.RayTaskError as error:  # not Ray's: the worker cannot be started there
            with open(self._log, "a") as log:
                log.write(f"error: on a node of the Ray cluster: {error.cause}\n")
            self._code = BAD_INPUT
        except ray.exceptions.RayError:  # the node is lost, or the run was ended before it got one
            self._code = -self._sent or LOST
        ray.kill(self._actor)  # another run may have its place
        return self._code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        self._sent = number
        if self.queued:
            ray.kill(self._actor)
        else:
            self._actor.send.remote(number)


class RayEngine:
    """As many runs at a time as the cluster has room for; or `jobs`, then what is too much waits in Ray's queue."""

    def __init__(self, execution: Execution, device: str = "auto", jobs: int | None = None) -> None:
        if execution.nodes_per_run > 1:
            raise UserError(f"execution.nodes_per_run: {execution.nodes_per_run} machines need --engine slurm")
        join_cluster()
        if device == "auto":
            device = "cuda" if any("GPU" in node for node in nodes()) else "cpu"
        self.device, self._jobs = device, jobs
        self._processes, self._needs = execution.gpus_per_run, needs(execution, device)
        if self.slots() < 1:
            ray.shutdown()
            what = "GPUs and cores" if device == "cuda" else f"cores with {MEMORY_PER_RUN >> 30} GiB each"
            raise UserError(f"--engine ray: no node has {self._processes} {what} for a run: --jobs N waits for one")

    def slots(self) -> int:
        return self._jobs or sum(min(int(node.get(k, 0) / v) for k, v in self._needs.items()) for node in nodes())

    def start(self, folder: RunFolder, slot: int, initial_weights: Path | None) -> RayJob:
        command = engines.worker_command(folder, self.device, initial_weights, self._processes)
        settings = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        cpus, gpus, memory = (self._needs.get(name) for name in ("CPU", "GPU", "memory"))
        options = {"num_cpus": cpus, "num_gpus": gpus, "memory": memory, "runtime_env": ACTORS_ENVIRONMENT}
        actor = ray.remote(WorkerActor).options(**options).remote()
        return RayJob(actor, command, folder.log_file.resolve(), settings)

    def close(self) -> None:
        ray.shutdown()


def join_cluster() -> None:
    """Connect to the cluster that Ray finds, or start one on this machine; without Ray's own lines."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    ray._private.worker._worker_logs_enabled = False  # what it tells of lost nodes knows no public switch
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would try for many minutes
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise UserError(f"--engine ray: RAY_ADDRESS={address}: {error}") from error


def nodes() -> list[dict[str, float]]:
    """What each node has in all, by Ray's names of resources; a lost one has nothing."""
    return [node["Resources"] for node in ray.nodes()]


def needs(execution: Execution, device: str) -> dict[str, float]:
    """What a run takes of its node, by Ray's names of resources."""
    if device == "cpu":
        return {"CPU": execution.gpus_per_run, "memory": MEMORY_PER_RUN * execution.gpus_per_run}
    return dict.fromkeys(("GPU", "CPU"), execution.gpus_per_run / execution.runs_per_gpu)
