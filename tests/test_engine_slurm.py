"""The SLURM engine: its batch scripts, submitit's local executor, and a real cluster of two nodes on this machine."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clusters
import pytest
import slurm_cluster
from clusters import a_run, beside, events, hold
from rich.console import Console
from test_scheduler import a_plan, names, wait_for

from rio_bench import engines
from rio_bench.config import Execution
from rio_bench.errors import UserError
from rio_bench.files import RecordError
from rio_bench.progress import PlainDisplay
from rio_bench.records import ResultFolder
from rio_bench.scheduler import Scheduler
from rio_bench.tasks import Outcome

submitit = pytest.importorskip("submitit", reason="submitit is not installed (the extra `slurm`)")

from rio_bench.engines import slurm, slurm_node  # noqa: E402

# A harness in a process of its own: HARNESS ROOT NUMBER_OF_RUNS
HARNESS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_engine_slurm
from pathlib import Path
test_engine_slurm.run_harness(Path(sys.argv[1]), int(sys.argv[2]))
"""

# sbatch, srun, squeue ... as far as the engine sees them: they keep what they are asked, and answer what a file says.
FAKE_COMMAND = """#!/bin/sh
echo "$(basename "$0") $*" >> {folder}/asked
if [ "$(basename "$0")" = sbatch ]; then cp "$1" {folder}/script; fi
cat {folder}/"$(basename "$0").answer"
"""


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Sets what a fake command of SLURM answers."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for command in ("sbatch", "srun", "squeue", "scancel", "sinfo"):
        (folder / command).write_text(FAKE_COMMAND.format(folder=folder))
        (folder / command).chmod(0o755)
        (folder / f"{command}.answer").touch()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 0.0)

    def answer(command: str, text: str) -> None:
        (folder / f"{command}.answer").write_text(text)

    answer("sbatch", "Submitted batch job 7\n")
    return answer


def submitted(tmp_path: Path, device: str, **execution: Any) -> tuple[list[str], slurm_node.WorkerCommand]:
    """The lines of the batch script of a run, and what its nodes do."""
    engine = engines.make_engine("slurm", Execution.model_validate(execution), device)
    engine.start(a_run(tmp_path), 0, Path("base.pth"))
    (pickle,) = (a_run(tmp_path).submissions).glob("7_submitted.pkl")
    return (tmp_path / "fake" / "script").read_text().splitlines(), submitit.core.utils.DelayedSubmission.load(
        pickle
    ).function


# The batch script


def test_a_run_on_a_core(answers: Callable[[str, str], None], tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    script, work = submitted(tmp_path, "cpu")
    settings = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")}
    assert settings == {
        f"--job-name={folder.name}",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
        "--time=1440",
        "--signal=USR2@120",
        "--requeue",
        "--open-mode=append",
        f"--output={folder.log_file}",
        f"--error={folder.log_file}",
        "--wckey=submitit",
    }
    (start,) = [line for line in script if line.startswith("srun")]
    assert f"--output {folder.log_file} --error {folder.log_file} --open-mode=append --cpus-per-task=1" in start
    assert work.command == engines.worker_command(folder, "cpu", Path("base.pth"))
    assert work.threads == 1


def test_gpus_nodes_and_a_time_limit(answers: Callable[[str, str], None], tmp_path: Path) -> None:
    script, work = submitted(tmp_path, "cuda", gpus_per_run=8, nodes_per_run=2, time_limit_minutes=30.5)
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --gpus-per-node=4"} <= set(script)
    assert {"#SBATCH --cpus-per-task=16", "#SBATCH --time=35"} <= set(script)
    assert any("--cpus-per-task=16" in line for line in script if line.startswith("srun"))
    launcher = ["-m", "rio_bench.engines.launch", "--nnodes=2", "--rdzv-backend=c10d", "--nproc-per-node=4", "-m"]
    assert work.command[1:7] == launcher
    assert work.threads == 4
    script, work = submitted(tmp_path, "cuda", gpus_per_run=4)
    assert {"#SBATCH --nodes=1", "#SBATCH --gpus-per-node=4"} <= set(script)
    assert work.command[1:5] == ["-m", "rio_bench.engines.launch", "--standalone", "--nproc-per-node=4"]


def test_what_cannot_be_is_told(
    answers: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"execution.runs_per_gpu: 2: SLURM gives a job whole GPUs"):
        engines.make_engine("slurm", Execution(runs_per_gpu=2))
    (tmp_path / "fake" / "sbatch").write_text("#!/bin/sh\necho invalid account >&2; exit 1\n")
    with pytest.raises(RecordError, match="cannot be submitted: .*invalid account"):
        engines.make_engine("slurm", Execution()).start(a_run(tmp_path), 0, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--engine slurm: no sbatch here"):
        engines.make_engine("slurm", Execution())


def test_gpus_are_taken_where_the_cluster_has_some(answers: Callable[[str, str], None]) -> None:
    answers("sinfo", "(null)\n")
    assert engines.make_engine("slurm", Execution()).device == "cpu"
    answers("sinfo", "(null)\ngpu:a100:4(S:0-1)\n")
    engine = engines.make_engine("slurm", Execution())
    assert (engine.device, engine.slots()) == ("cuda", 32)
    assert engines.make_engine("slurm", Execution(), "cpu", jobs=3).slots() == 3


# How a job is followed


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("OUT_OF_MEMORY", -9),
        ("CANCELLED", -15),
        ("TIMEOUT", -15),
        ("FAILED", 1),
        ("NODE_FAIL", 255),
        ("PREEMPTED", 255),
    ],
)
def test_a_job_that_ends_without_a_result(
    answers: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    answers("squeue", "6|FAILED|\n7|PENDING|(Resources)\n")
    engine = engines.make_engine("slurm", Execution(), "cpu")
    job = engine.start(a_run(tmp_path), 0, None)
    assert (job.poll(), job.queued, job.where) == (None, True, "job 7 (Resources)")
    answers("squeue", "7|RUNNING|node7\n")
    assert (job.poll(), job.queued, job.where) == (None, False, "job 7 node7")
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 0.3)  # its result may be on its way
    answers("squeue", f"7|{state}|node7\n")
    assert job.poll() is None
    time.sleep(0.3)
    assert [job.poll(), job.poll()] == [code, code]


def test_no_answer_is_no_end(
    answers: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines.make_engine("slurm", Execution(), "cpu")
    job = engine.start(a_run(tmp_path), 0, None)
    (tmp_path / "fake" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert [job.poll() for _ in range(3)] == [None] * 3
    (tmp_path / "fake" / "squeue").write_text("#!/bin/sh\nexit 0\n")
    assert job.poll() == 255  # SLURM does not know it any more
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 100.0)
    assert engine.start(a_run(tmp_path, 1), 1, None).poll() is None  # that answer is from before


def test_a_job_is_told_to_end_whether_it_waits_or_runs(answers: Callable[[str, str], None], tmp_path: Path) -> None:
    job = engines.make_engine("slurm", Execution(), "cpu").start(a_run(tmp_path), 0, None)
    job.terminate()
    answers("squeue", "7|RUNNING|node7\n")
    assert job.poll() is None
    job.kill()
    answers("squeue", "7|FAILED|node7\n")
    assert job.poll() == -9
    asked = (tmp_path / "fake" / "asked").read_text().splitlines()
    assert [line for line in asked if line.startswith("scancel")] == [
        "scancel --state=PENDING 7",
        "scancel --signal=TERM 7",
        "scancel 7",
    ]


# On the node, with submitit's local executor


@pytest.fixture
def local(tmp_path: Path) -> Callable[..., Any]:
    """Submits a command to this machine; as often as asked for it may go on after its time is over."""

    def submit(command: list[str], goes_on: int = 1) -> Any:
        executor = submitit.AutoExecutor(tmp_path / "submissions", cluster="local", local_max_num_timeout=goes_on)
        return executor.submit(slurm_node.WorkerCommand(command, 1))

    return submit


def task_of(job: Any) -> int:
    """The process that waits for the command."""
    return int(subprocess.check_output(["pgrep", "-P", job.job_id], text=True))


def test_a_job_that_has_to_leave_goes_on_later(local: Callable[..., Any], tmp_path: Path) -> None:
    held, folder = hold(tmp_path), a_run(tmp_path)
    job = local(clusters.command(folder, "cpu", None))
    wait_for(lambda: events(tmp_path, "start"))
    assert events(tmp_path, "start")[0]["OMP_NUM_THREADS"] == "1"
    os.kill(events(tmp_path, "start")[0]["pid"], signal.SIGUSR2)  # which SLURM sends to all: not the worker's business
    time.sleep(0.2)
    os.kill(task_of(job), signal.SIGUSR2)
    wait_for(lambda: len(events(tmp_path, "start")) == 2)
    assert len(events(tmp_path, "checkpoint")) == 1
    held.unlink()
    assert job.result() == 0
    assert folder.read_record() is not None


def test_a_job_leaves_when_the_checkpoint_is_written(tmp_path: Path) -> None:
    work = slurm_node.WorkerCommand([], 1)
    trap = f"trap 'sleep 0.5; touch {tmp_path}/checkpoint; exit' TERM"
    with subprocess.Popen(
        ["/bin/bash", "-c", f"{trap}; touch {tmp_path}/begun; while sleep 0.1; do :; done"]
    ) as worker:
        wait_for((tmp_path / "begun").exists)
        work._pid = worker.pid
        work.checkpoint()
        assert (tmp_path / "checkpoint").exists()
    work.checkpoint()  # it ended before


def test_a_job_whose_time_is_over_for_good(local: Callable[..., Any], tmp_path: Path) -> None:
    hold(tmp_path)
    job = local(clusters.command(a_run(tmp_path), "cpu", None), goes_on=0)
    wait_for(lambda: events(tmp_path, "start"))
    os.kill(task_of(job), signal.SIGUSR2)
    assert job.result() == -signal.SIGTERM
    assert len(events(tmp_path, "checkpoint")) == 1


def test_a_launcher_that_was_told_to_end_did_not_fail(local: Callable[..., Any], tmp_path: Path) -> None:
    wait = f"touch {tmp_path}/begun; while sleep 0.1; do :; done"
    job = local(["/bin/bash", "-c", f"trap 'exit 1' TERM; {wait}"])  # torch's ends with status 1, too
    wait_for((tmp_path / "begun").exists)
    task = task_of(job)
    os.kill(task, signal.SIGTERM)
    os.kill(int(subprocess.check_output(["pgrep", "-P", str(task)], text=True)), signal.SIGTERM)
    assert job.result() == -signal.SIGTERM
    assert local(["/bin/bash", "-c", "exit 1"]).result() == 1


def test_a_second_job_of_a_run_leaves_it_alone(local: Callable[..., Any], tmp_path: Path) -> None:
    held, command = hold(tmp_path), clusters.command(a_run(tmp_path), "cpu", None)
    first = local(command)
    wait_for(lambda: events(tmp_path, "start"))
    assert local(command).result() == 3
    held.unlink()
    assert first.result() == 0
    assert len(events(tmp_path, "start")) == 1


# On a real cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    reason = slurm_cluster.missing()
    if reason:
        pytest.skip(f"no SLURM cluster can be started: {reason}")
    with pytest.MonkeyPatch.context() as patch, slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as file:
        patch.setenv("SLURM_CONF", str(file))
        patch.setattr(engines, "worker_command", clusters.command)
        patch.setattr(slurm, "LOOK_SECONDS", 0.3)
        patch.setattr(slurm, "CORES_PER_GPU", 1)
        yield


def run_plan(root: Path, number: int, device: str = "cpu", **execution: Any) -> tuple[Outcome, str]:
    console = Console(file=io.StringIO(), width=200)
    with PlainDisplay(console) as display:
        engine = engines.make_engine("slurm", Execution.model_validate(execution), device)
        outcome = Scheduler(a_plan(number), ResultFolder(root), engine).run(display)
    assert isinstance(console.file, io.StringIO)
    return outcome, console.file.getvalue()


def run_harness(root: Path, number: int) -> None:
    engines.worker_command = clusters.command
    slurm.LOOK_SECONDS = 0.3
    print(run_plan(root, number)[1])


def queue(*options: str) -> list[str]:
    return subprocess.check_output(["squeue", "--noheader", "--format=%i", *options], text=True).split()


@pytest.mark.slow
def test_more_runs_than_there_is_room_for(cluster: None, tmp_path: Path) -> None:
    held = hold(tmp_path)

    def let_go() -> None:
        wait_for(lambda: len(events(tmp_path, "start")) == 4)  # two cores a node
        wait_for(lambda: len(queue("--states=PENDING")) == 1)
        held.unlink()

    with beside(let_go):
        outcome, shown = run_plan(tmp_path, 5)
    assert sorted(outcome.finished) == names(a_plan(5))
    assert "seed4-0000000000000004: queued" in shown
    assert "starting on job" in shown
    log = a_run(tmp_path).log_file.read_text().splitlines()
    assert log.count("training") == 1
    assert log[-1].endswith("Exiting after successful completion")


@pytest.mark.slow
def test_runs_end_as_they_are_told(cluster: None, tmp_path: Path) -> None:
    held, folders = hold(tmp_path), [a_run(tmp_path, seed) for seed in range(5)]
    engine = engines.make_engine("slurm", Execution(), "cpu")
    jobs = [engine.start(folder, slot, None) for slot, folder in enumerate(folders)]
    wait_for(lambda: len(events(tmp_path, "start")) == 4)
    wait_for(lambda: [job.poll() for job in jobs] == [None] * 5 and sum(job.queued for job in jobs) == 1)
    (waiting,) = [job for job in jobs if job.queued]
    assert waiting.where.endswith("(Resources)")
    told, killed, cancelled, going_on = [job for job in jobs if not job.queued]
    waiting.terminate()
    told.terminate()
    killed.kill()
    subprocess.check_call(["scancel", cancelled.where.split()[1]])  # by somebody else
    ended = (waiting, told, killed, cancelled)
    wait_for(lambda: None not in [job.poll() for job in ended])
    assert [job.poll() for job in ended] == [-signal.SIGTERM] * 4  # SLURM sends it before SIGKILL
    wrote = {event["name"] for event in events(tmp_path, "checkpoint")}
    assert wrote == {folders[jobs.index(job)].name for job in (told, killed, cancelled)}
    held.unlink()
    wait_for(lambda: going_on.poll() is not None)
    assert going_on.poll() == 0


@pytest.mark.slow
def test_a_preempted_run_goes_on_in_the_same_job(cluster: None, tmp_path: Path) -> None:
    held = hold(tmp_path)

    def preempt() -> None:
        wait_for(lambda: events(tmp_path, "start"))
        urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
        subprocess.check_call(urgent, stdout=subprocess.DEVNULL)
        wait_for(lambda: events(tmp_path, "checkpoint"))
        held.unlink()
        job = events(tmp_path, "start")[0]["SLURM_JOB_ID"]
        wait_for(lambda: job in queue("--states=PENDING"))
        time.sleep(2)  # SLURM takes a job that is back at once for the one that left
        subprocess.check_call(["scontrol", "update", f"JobId={job}", "StartTime=now"])  # else it waits two minutes

    with beside(preempt):
        outcome, _ = run_plan(tmp_path, 1, device="cuda", gpus_per_run=2)
    assert outcome.finished == names(a_plan(1))
    first, second = events(tmp_path, "start")
    assert first["SLURM_JOB_ID"] == second["SLURM_JOB_ID"]
    assert [start["SLURM_RESTART_COUNT"] for start in (first, second)] == [None, "1"]
    assert [start["CUDA_VISIBLE_DEVICES"] for start in (first, second)] == ["0,1", "0,1"]
    (attempt,) = a_run(tmp_path).read_attempts()
    assert attempt.exit_status == 0


@pytest.mark.slow
def test_jobs_outlive_their_harness_and_the_next_one_takes_their_records(cluster: None, tmp_path: Path) -> None:
    held = hold(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HARNESS, str(tmp_path), "2"], stdout=subprocess.PIPE) as harness:
        wait_for(lambda: len(events(tmp_path, "start")) == 2)
        harness.send_signal(signal.SIGKILL)

    def let_go() -> None:
        time.sleep(2)
        held.unlink()

    with beside(let_go):
        outcome, shown = run_plan(tmp_path, 2)
    assert outcome == Outcome(reused=names(a_plan(2)))
    assert "held" in shown
    assert len(events(tmp_path, "start")) == 2


@pytest.mark.slow
def test_the_runs_of_a_lost_node_move(cluster: None, tmp_path: Path) -> None:
    held = hold(tmp_path)

    def lose_a_node() -> None:
        wait_for(lambda: events(tmp_path, "start"))
        node = events(tmp_path, "start")[0]["SLURMD_NODENAME"]
        subprocess.check_call(["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test"])
        wait_for(lambda: len(events(tmp_path, "start")) == 2)
        held.unlink()
        subprocess.check_call(["scontrol", "update", f"NodeName={node}", "State=RESUME"])

    with beside(lose_a_node):
        outcome, _ = run_plan(tmp_path, 1)
    assert outcome.finished == names(a_plan(1))
    first, second = events(tmp_path, "start")
    assert first["SLURMD_NODENAME"] != second["SLURMD_NODENAME"]


@pytest.mark.slow
def test_a_run_on_two_nodes_through_torchs_launcher(cluster: None, tmp_path: Path) -> None:
    outcome, _ = run_plan(tmp_path, 1, gpus_per_run=2, nodes_per_run=2)
    assert outcome.finished == names(a_plan(1)), a_run(tmp_path).log_file.read_text()
    starts = events(tmp_path, "start")
    assert {(start["RANK"], start["WORLD_SIZE"]) for start in starts} == {("0", "2"), ("1", "2")}
    assert {start["SLURMD_NODENAME"] for start in starts} == set(slurm_cluster.NODES)
