"""The Ray engine on a real cluster of two nodes, both on this machine; the workers are scripts without torch."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clusters
import pytest
from clusters import a_run, beside, events, hold
from rich.console import Console
from test_scheduler import a_plan, names, wait_for

from rio_bench import engines
from rio_bench.config import Execution
from rio_bench.errors import UserError
from rio_bench.progress import PlainDisplay
from rio_bench.records import ResultFolder
from rio_bench.scheduler import Scheduler

ray = pytest.importorskip("ray", reason="ray is not installed (the extra `ray`)")
pytestmark = pytest.mark.slow
GIBIBYTE = 2**30

# A harness in a process of its own: HARNESS ROOT NUMBER_OF_RUNS
HARNESS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_engine_ray
from pathlib import Path
test_engine_ray.run_harness(Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A node of one core, and one of two with a GPU that is none."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray keeps a token there
        memory = {"memory": 9 * GIBIBYTE, "object_store_memory": 100 * 2**20}
        soon = {"health_check_period_ms": 500, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}
        head = memory | {"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.second_node = cluster.add_node(**memory, num_cpus=2, num_gpus=1)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def fake_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "worker_command", clusters.command)


@pytest.fixture
def make_engine(cluster: Any) -> Iterator[Callable[..., engines.Engine]]:
    def make(device: str = "cpu", jobs: int | None = None, **execution: Any) -> engines.Engine:
        return engines.make_engine("ray", Execution.model_validate(execution), device, jobs)

    yield make
    ray.shutdown()


def ended(job: engines.Job) -> int:
    wait_for(lambda: job.poll() is not None)
    code = job.poll()
    assert code is not None
    return code


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run_harness(root: Path, number: int) -> None:
    engines.worker_command = clusters.command
    with PlainDisplay(Console()) as display:
        engine = engines.make_engine("ray", Execution(), "cpu")
        Scheduler(a_plan(number), ResultFolder(root), engine).run(display)


def test_a_run_ends_on_its_node_as_it_is_told(make_engine: Callable[..., engines.Engine], tmp_path: Path) -> None:
    engine, folders = make_engine(jobs=9), [a_run(tmp_path, seed) for seed in range(5)]
    held = hold(tmp_path)
    jobs = [engine.start(folder, slot, None) for slot, folder in enumerate(folders)]
    wait_for(lambda: len(events(tmp_path, "start")) == 3)
    wait_for(lambda: [job.poll() for job in jobs] == [None] * 5 and sum(job.queued for job in jobs) == 2)
    at_work = [job for job in jobs if job.where == socket.gethostname()]
    waiting = [job for job in jobs if job.where == ""]
    assert (len(at_work), len(waiting)) == (3, 2)
    starts = events(tmp_path, "start")
    assert {job.pid for job in at_work} == {start["pid"] for start in starts}
    assert {start["OMP_NUM_THREADS"] for start in starts} == {"1"}

    waiting[1].terminate()
    assert ended(waiting[1]) == -signal.SIGTERM
    at_work[0].kill()
    assert ended(at_work[0]) == -signal.SIGKILL
    (killed,) = [start for start in starts if start["pid"] == at_work[0].pid]
    wait_for(lambda: not is_alive(killed["loader"]))
    wait_for(lambda: len(events(tmp_path, "start")) == 4)  # in the place of the killed one
    at_work[1].terminate()
    assert ended(at_work[1]) == -signal.SIGTERM
    assert [told["pid"] for told in events(tmp_path, "checkpoint")] == [at_work[1].pid]
    held.unlink()
    assert [ended(waiting[0]), ended(at_work[2])] == [0, 0]
    assert folders[jobs.index(waiting[0])].log_file.read_text() == "training\n"
    assert len(events(tmp_path, "start")) == 4


def test_the_workers_of_a_killed_harness_write_a_checkpoint_and_end(cluster: Any, tmp_path: Path) -> None:
    hold(tmp_path)
    command = [sys.executable, "-c", HARNESS, str(tmp_path), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as harness:
        wait_for(lambda: len(events(tmp_path, "start")) == 2)
        harness.send_signal(signal.SIGKILL)
        assert harness.stdout is not None
        shown = harness.stdout.read()
    assert "2 runs" in shown
    assert not [line for line in shown.splitlines() if "ray" in line.lower()]  # Ray keeps silent
    wait_for(lambda: len(events(tmp_path, "checkpoint")) == 2)
    for start in events(tmp_path, "start"):
        wait_for(lambda pid=start["pid"]: not is_alive(pid))


def test_ctrl_c_on_a_cluster_of_the_harness_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps a token there
    root = tmp_path / "results"
    hold(root)
    command = [sys.executable, "-c", HARNESS, str(root), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as harness:
        wait_for(lambda: events(root, "start"))
        os.killpg(harness.pid, signal.SIGINT)  # as a terminal: to Ray's processes too
        shown = harness.communicate()[0]
    assert shown.endswith(": stopped\n")
    assert len(events(root, "checkpoint")) == 1


def test_gpus_are_shared_out(make_engine: Callable[..., engines.Engine], tmp_path: Path) -> None:
    assert make_engine("cuda", runs_per_gpu=7).slots() == 7
    ray.shutdown()
    engine = make_engine("auto", runs_per_gpu=2)
    assert (engine.device, engine.slots()) == ("cuda", 2)
    jobs = [engine.start(a_run(tmp_path, seed), seed, None) for seed in range(2)]
    assert [ended(job) for job in jobs] == [0, 0]
    assert [start["CUDA_VISIBLE_DEVICES"] for start in events(tmp_path, "start")] == ["0", "0"]


def test_what_the_cluster_cannot_do_is_told(
    make_engine: Callable[..., engines.Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--engine ray: no node has 2 GPUs and cores for a run: --jobs N"):
        make_engine("cuda", gpus_per_run=2)
    assert make_engine("cuda", gpus_per_run=2, jobs=1).slots() == 1
    ray.shutdown()
    with pytest.raises(UserError, match="no node has 3 cores with 4 GiB each"):
        make_engine("cpu", gpus_per_run=3)
    with pytest.raises(UserError, match=r"execution.nodes_per_run: 2 machines need --engine slurm"):
        make_engine(nodes_per_run=2, gpus_per_run=2)
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(UserError, match="--engine ray: RAY_ADDRESS=nonsense: Invalid address"):
        make_engine()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UserError, match="--engine ray: RAY_ADDRESS=127.0.0.1:9: .*Connection refused"):
        make_engine()


def test_a_node_without_the_result_folder_is_told(make_engine: Callable[..., engines.Engine], tmp_path: Path) -> None:
    from rio_bench.engines.ray import RayJob
    from rio_bench.engines.ray_node import WorkerActor

    make_engine()
    with open(tmp_path / "log", "w") as log:
        number = fcntl.fcntl(log.fileno(), fcntl.F_DUPFD_CLOEXEC, 900)
        only_here = Path(f"/dev/fd/{number}")  # a path of this process alone
        assert ended(RayJob(ray.remote(WorkerActor).remote(), ["true"], only_here, {})) == 2
        os.close(number)
    assert (tmp_path / "log").read_text().startswith("error: on a node of the Ray cluster: [Errno 2] No such file")


def test_the_runs_of_a_lost_node_move(
    cluster: Any, make_engine: Callable[..., engines.Engine], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = a_plan(4)
    held, engine = hold(tmp_path), make_engine()
    assert engine.slots() == 3
    lost: list[str] = []

    def kill_a_node() -> None:
        wait_for(lambda: len(events(tmp_path, "start")) == 3)
        raylet = cluster.second_node.all_processes["raylet"][0].process.pid
        lost.extend(start["name"] for start in events(tmp_path, "start") if start["RAY_RAYLET_PID"] == str(raylet))
        cluster.remove_node(cluster.second_node, allow_graceful=False)
        wait_for(lambda: len(events(tmp_path, "checkpoint")) == len(lost))
        held.unlink()

    with beside(kill_a_node), PlainDisplay(Console(file=io.StringIO(), width=200)) as display:
        outcome = Scheduler(plan, ResultFolder(tmp_path), engine).run(display)
    assert sorted(outcome.finished) == sorted(names(plan))
    assert len(lost) == 2
    assert Counter(start["name"] for start in events(tmp_path, "start")) == Counter(names(plan)) + Counter(lost)
    assert Counter(done["name"] for done in events(tmp_path, "done")) == Counter(names(plan))
    for name in lost:
        before, after = ResultFolder(tmp_path).run(name).read_attempts()
        assert (before.exit_status, after.exit_status) == (255, 0)
    assert engine.slots() == 1
    assert "raylet" not in capfd.readouterr().out  # Ray keeps silent
