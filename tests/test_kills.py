"""A sweep that is killed again and again gives the table of one that was left alone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rio_bench.detection import checkpoints
from rio_bench.records import ResultFolder, RunFolder
from rio_bench.report.cells import compare
from rio_bench.report.leaderboard import leaderboard

KILLS = 50
RUNS = 60
EXPERIMENT = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"

# A harness in a process of its own: HARNESS ROOT
HARNESS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import resuming_worker, test_scheduler
from pathlib import Path
from rio_bench.engines.local import TIED, LocalEngine
from rio_bench.records import ResultFolder, RunFolder
from rio_bench.scheduler import run_experiment
plan = test_scheduler.a_plan({RUNS}, retries=1000)
engine = LocalEngine(plan.execution, "cpu", 2, main=resuming_worker.main, preload=(TIED,))
outcome = run_experiment(plan, ResultFolder(Path(sys.argv[1])), engine)
sys.exit(len(outcome.finished) + len(outcome.reused) != {RUNS})
"""


def start(root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", HARNESS, str(root)], stdout=subprocess.DEVNULL)


def workers(root: Path) -> list[int]:
    """Process ids of those at work."""
    holders = [ResultFolder(root).run(path.name).read_holder() for path in (root / "runs").glob("*")]
    return [holder.pid for holder in holders if holder is not None]


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    chance = random.Random(0)
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert start(undisturbed).wait() == 0

    victims = chance.choices(["harness", "worker", "both"], k=KILLS)
    harness, killed = start(disturbed), 0
    for victim in victims:
        # A harness is killed while it starts, too; a worker at random moments of its work.
        time.sleep(chance.uniform(0, 0.3))
        at_start = victim == "harness" and chance.random() < 0.3
        while not at_start and not (running := workers(disturbed)):
            if harness.poll() is not None:
                break  # all runs are done: the kills that are left have nobody
            time.sleep(0.01)
        if victim != "harness" and not at_start and running:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself in between
                os.kill(chance.choice(running), signal.SIGKILL)
            killed += 1
        if victim != "worker":
            harness.kill()
            harness.wait()
            harness = start(disturbed)
    assert harness.wait() == 0

    tables = [leaderboard(compare(ResultFolder(root))) for root in (undisturbed, disturbed)]
    assert len(tables[0]) > 0
    assert tables[0].equals(tables[1])
    assert killed > KILLS / 3  # most of the two thirds that are aimed at workers
    attempts = [RunFolder(path).read_attempts() for path in (disturbed / "runs").iterdir()]
    assert any(attempt.signal == "SIGKILL" for of_run in attempts for attempt in of_run)
    assert not any(RunFolder(path).is_worked_on() for path in (disturbed / "runs").iterdir())


def start_real(results: Path) -> subprocess.Popen[bytes]:
    """Two real trainings on two slots."""
    command = [sys.executable, "-m", "rio_bench", "run", str(EXPERIMENT), "--results", str(results), "--device", "cpu"]
    settings = ["--set", "iterations=15", "--set", "batch_size=2", "--only", "object_only", "--only", "rio"]
    return subprocess.Popen([*command, *settings], stdout=subprocess.DEVNULL)


def wait_for_checkpoint(folders: list[RunFolder], harness: subprocess.Popen[bytes]) -> RunFolder:
    """The folder of a run that is in the middle of its training."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert harness.poll() is None
        for folder in folders:
            if folder.last_checkpoint.exists() and folder.read_holder() is not None:
                return folder
        time.sleep(0.02)
    raise AssertionError("waited in vain")


@pytest.mark.slow
def test_real_trainings_that_were_killed_end_bit_for_bit_as_undisturbed_ones(tmp_path: Path) -> None:
    assert start_real(tmp_path / "undisturbed").wait() == 0
    undisturbed = ResultFolder(tmp_path / "undisturbed" / "quickstart")
    names = sorted(path.name for path in undisturbed.runs.iterdir())

    disturbed = ResultFolder(tmp_path / "disturbed" / "quickstart")
    folders = [disturbed.run(name) for name in names]
    for victim in ("worker", "harness", "both"):
        harness = start_real(tmp_path / "disturbed")
        folder = wait_for_checkpoint(folders, harness)
        holder = folder.read_holder()
        if victim != "harness" and holder is not None:
            os.kill(holder.pid, signal.SIGKILL)
            time.sleep(0.5)  # for the retry
        harness.kill()
        harness.wait()
    assert start_real(tmp_path / "disturbed").wait() == 0

    for name, folder in zip(names, folders, strict=True):
        other = undisturbed.run(name)
        record, other_record = folder.read_record(), other.read_record()
        assert record is not None and other_record is not None
        assert record.metrics == other_record.metrics
        weights, other_weights = (checkpoints.load(f.final_weights)["model"] for f in (folder, other))
        assert weights.keys() == other_weights.keys()
        assert all(torch.equal(weights[key], other_weights[key]) for key in weights)
    assert any("going on from iteration" in folder.log_file.read_text() for folder in folders)
