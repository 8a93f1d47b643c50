"""Real processes and real signals: no run is lost, none is done twice, and how each ended is told."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rio_bench import scheduler
from rio_bench.config import RunConfig
from rio_bench.engines.local import LocalEngine, visible_gpus
from rio_bench.errors import UserError
from rio_bench.plan import Plan, PlannedRun
from rio_bench.progress import (
    PlainDisplay,
    Progress,
    RunView,
    Sighting,
    TableDisplay,
    clock,
    read_progress,
    read_tail,
    rows_to_show,
    seconds_left,
)
from rio_bench.records import ResultFolder, RunFolder
from rio_bench.scheduler import Outcome, Scheduler, exit_cause, run_experiment

# Does what a worker does with its folder, in 0.2 s and without torch. What it shall do otherwise is in ROOT/behaviour:
# NAME.json, "crash" ... "stubborn". Each start is a line of ROOT/starts.
FAKE_WORKER = """
import argparse, json, os, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
for option in ("--device", "--initial-weights", "--parent"):
    parser.add_argument(option)
options = parser.parse_args()
root = options.folder.parent.parent
behaviour = root / "behaviour" / options.folder.name
behaviour = behaviour.read_text() if behaviour.exists() else ""
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
from rio_bench.engines.local import end_with_parent
from rio_bench.records import Metrics, Record, RunFolder, append_json_line
end_with_parent(int(options.parent))
folder = RunFolder(options.folder)
run = folder.read_run()
append_json_line(root / "starts", {"name": run.name, "pid": os.getpid(), "weights": options.initial_weights,
    "threads": os.environ["OMP_NUM_THREADS"]})
append_json_line(folder.metrics_file, {"iteration": 0, "total_loss": 2.5})
time.sleep(0.2)
if behaviour == "crash":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "raise":
    raise ValueError("the loss is not finite")
if behaviour == "no record":
    sys.exit(0)
if behaviour == "long":
    time.sleep(60)
if behaviour == "stubborn":
    time.sleep(3)
folder.final_weights.write_bytes(b"weights")
metrics = Metrics(AP=20, AP50=20, AP75=20, APr=None, APc=20, APf=20, per_category={})
folder.write_record(Record(
    identity=run.identity, name=run.name, method=run.method, experiment=run.experiment, config=run.config, seed=0,
    metrics={"box": metrics, "mask": metrics}, num_train_images=10, passes=1, base_passes=0,
    seconds={"train": 0.1, "evaluate": 0.1, "total": 0.2}, peak_memory_bytes=1, device="cpu",
    code={"revision": None, "dirty": None}, versions={}, finished="2026-01-01T00:00:00+00:00"))
if behaviour == "crash after the record":
    os.kill(os.getpid(), signal.SIGKILL)
"""

# A harness in a process of its own: HARNESS ROOT NUMBER_OF_RUNS SLOTS
HARNESS = f"""
import json, sys
from dataclasses import asdict
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_scheduler
from pathlib import Path
outcome, _ = test_scheduler.go(Path(sys.argv[1]), test_scheduler.a_plan(int(sys.argv[2])), jobs=int(sys.argv[3]))
print(json.dumps(asdict(outcome), default=str))
"""


def planned(seed: int, after: str | None = None, is_base: bool = False) -> PlannedRun:
    fields = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": "none", "iterations": 10, "seed": seed}
    config = RunConfig.model_validate(fields)
    identity = f"{seed:016x}"
    name = f"none-R18-FPN-seed{seed}-{identity}"
    return PlannedRun(config=config, identity=identity, name=name, method="none", after=after, is_base=is_base)


def a_plan(number: int) -> Plan:
    return Plan("quickstart", "none", tuple(planned(seed) for seed in range(number)))


def plan_with_base(number: int) -> Plan:
    base = planned(1000, is_base=True)
    return Plan("quickstart", "none", (base, *(planned(seed, after=base.name) for seed in range(number))))


def engine(root: Path, jobs: int) -> LocalEngine:
    root.mkdir(exist_ok=True)
    script = root / "fake_worker.py"
    script.write_text(FAKE_WORKER)
    return LocalEngine("cpu", jobs, command=(sys.executable, str(script)))


def go(root: Path, plan: Plan, jobs: int = 2, on_finished: Callable[[], None] | None = None) -> tuple[Outcome, str]:
    """One harness on a plan in this process: how the runs ended, and what was displayed."""
    console = Console(file=io.StringIO(), width=200)
    with PlainDisplay(console) as display:
        outcome = Scheduler(plan, ResultFolder(root), engine(root, jobs), on_finished).run(display)
    assert isinstance(console.file, io.StringIO)
    return outcome, console.file.getvalue()


def behave(root: Path, run: PlannedRun, behaviour: str) -> None:
    (root / "behaviour").mkdir(parents=True, exist_ok=True)
    (root / "behaviour" / run.name).write_text(behaviour)


def starts(root: Path) -> list[dict]:
    file = root / "starts"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def names(plan: Plan) -> list[str]:
    return [run.name for run in plan.runs]


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def harness(root: Path, number: int, slots: int = 2) -> subprocess.Popen[str]:
    engine(root, slots)  # the fake worker is there before two harnesses would both write it
    command = [sys.executable, "-c", HARNESS, str(root), str(number), str(slots)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_what_has_a_record_is_not_run_again(tmp_path: Path) -> None:
    plan = a_plan(3)
    calls: list[int] = []
    outcome, shown = go(tmp_path, plan, on_finished=lambda: calls.append(len(starts(tmp_path))))
    assert outcome == Outcome(finished=names(plan))
    assert len(calls) == 3
    assert "3 runs · 3 waiting" in shown
    assert shown.count("AP.b 20.0") == 3
    for run in plan.runs:
        folder = ResultFolder(tmp_path).run(run.name)
        assert folder.read_record(run.identity) is not None
        (attempt,) = folder.read_attempts()
        assert (attempt.exit_status, attempt.signal) == (0, None)
        assert attempt.started < attempt.ended

    outcome, shown = go(tmp_path, a_plan(4), on_finished=lambda: calls.append(0))
    assert outcome == Outcome(reused=names(plan), finished=[planned(3).name])
    assert len(starts(tmp_path)) == 4
    assert len(calls) == 4


def test_failures_are_told_and_cost_the_others_nothing(tmp_path: Path) -> None:
    plan = a_plan(5)
    ok, crash, raising, silent, late = plan.runs
    behave(tmp_path, crash, "crash")
    behave(tmp_path, raising, "raise")
    behave(tmp_path, silent, "no record")
    behave(tmp_path, late, "crash after the record")
    results = ResultFolder(tmp_path)
    (results.run(crash.name)).create()
    results.run(crash.name).log_file.write_text("error: of an attempt before\n")

    outcome, shown = go(tmp_path, plan)
    assert outcome.finished == [ok.name, late.name]  # the record alone is the done marker
    reasons = {failure.name: failure.reason for failure in outcome.failed}
    assert set(reasons) == {crash.name, raising.name, silent.name}
    assert reasons[crash.name].startswith("killed by SIGKILL after 0:00:0")
    assert reasons[crash.name].endswith(": out of memory?")  # not the error of the attempt before
    assert reasons[raising.name].startswith("exit status 1 after 0:00:0")
    assert reasons[raising.name].endswith(": ValueError: the loss is not finite")
    assert reasons[silent.name].startswith("ended without a record")
    for failure in outcome.failed:
        assert failure.log == results.run(failure.name).log_file
        assert failure.log.exists()
        assert failure.reason in shown
    (attempt,) = results.run(crash.name).read_attempts()
    assert (attempt.exit_status, attempt.signal) == (None, "SIGKILL")

    for run in (crash, raising, silent):
        behave(tmp_path, run, "")
    outcome, _ = go(tmp_path, plan)
    assert outcome == Outcome(finished=[crash.name, raising.name, silent.name], reused=[ok.name, late.name])
    assert Counter(start["name"] for start in starts(tmp_path))[ok.name] == 1


def test_runs_start_from_their_base(tmp_path: Path) -> None:
    plan = plan_with_base(2)
    outcome, _ = go(tmp_path, plan, jobs=3)
    assert outcome.finished == names(plan)
    base, *others = starts(tmp_path)
    weights = ResultFolder(tmp_path).run(plan.runs[0].name).final_weights
    assert (base["name"], base["weights"]) == (plan.runs[0].name, None)
    assert [start["weights"] for start in others] == [str(weights)] * 2

    # Without anything that waits for it a base is not needed again, however its weights fared; else it is.
    weights.unlink()
    assert go(tmp_path, plan)[0].reused == names(plan)
    outcome, shown = go(tmp_path, plan_with_base(3))
    assert outcome.finished == [plan.runs[0].name, planned(2).name]
    assert "has lost its weights" in shown
    assert "set aside as record.set-aside-1.json" in shown


def test_a_failed_base_skips_what_waits_for_it(tmp_path: Path) -> None:
    plan = plan_with_base(2)
    plan = Plan(plan.experiment, plan.baseline, (*plan.runs, planned(7)))
    behave(tmp_path, plan.runs[0], "raise")
    outcome, _ = go(tmp_path, plan)
    assert outcome.finished == [planned(7).name]
    assert [failure.name for failure in outcome.failed] == names(plan)[:3]
    assert outcome.failed[1].reason == f"skipped: its base run {plan.runs[0].name} failed"
    assert len(starts(tmp_path)) == 2


def test_a_torn_or_foreign_record_is_set_aside_and_the_run_done_again(tmp_path: Path) -> None:
    plan = a_plan(2)
    go(tmp_path, plan)
    torn, foreign = (ResultFolder(tmp_path).run(run.name) for run in plan.runs)
    foreign.record_file.write_bytes(torn.record_file.read_bytes())
    torn.record_file.write_bytes(torn.record_file.read_bytes()[:100])
    outcome, shown = go(tmp_path, plan)
    assert outcome.finished == names(plan)
    for folder in (torn, foreign):
        assert str(folder.record_file) in shown
        assert (folder.path / "record.set-aside-1.json").exists()


def test_a_table_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    def broken() -> None:
        raise UserError("leaderboard.csv: cannot be written")

    outcome, shown = go(tmp_path, a_plan(2), on_finished=broken)
    assert outcome == Outcome(finished=names(a_plan(2)))
    assert "warning: leaderboard.csv: cannot be written" in shown


def test_a_run_folder_that_cannot_be_made_fails_that_run_only(tmp_path: Path) -> None:
    plan = a_plan(2)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / plan.runs[0].name).write_text("a file in its place")
    outcome, _ = go(tmp_path, plan)
    assert outcome.finished == [plan.runs[1].name]
    assert "cannot be made" in outcome.failed[0].reason


def test_a_worker_killed_from_outside_is_told_and_only_its_run_is_left(tmp_path: Path) -> None:
    plan = a_plan(3)
    behave(tmp_path, plan.runs[1], "long")

    def kill_it() -> None:
        wait_for(lambda: any(start["name"] == plan.runs[1].name for start in starts(tmp_path)))
        os.kill(next(s["pid"] for s in starts(tmp_path) if s["name"] == plan.runs[1].name), signal.SIGKILL)

    killer = threading.Thread(target=kill_it)
    killer.start()
    outcome, _ = go(tmp_path, plan)
    killer.join()
    assert outcome.finished == [plan.runs[0].name, plan.runs[2].name]
    assert outcome.failed[0].reason.startswith("killed by SIGKILL")
    behave(tmp_path, plan.runs[1], "")
    assert go(tmp_path, plan)[0].finished == [plan.runs[1].name]


def test_workers_of_a_killed_harness_end_and_the_next_completes(tmp_path: Path) -> None:
    plan = a_plan(3)
    for run in plan.runs[1:]:
        behave(tmp_path, run, "long")
    folders = [ResultFolder(tmp_path).run(run.name) for run in plan.runs]
    with harness(tmp_path, 3) as process:
        wait_for(lambda: len(starts(tmp_path)) == 3)
        assert folders[1].lock() is None
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: all(_is_free(folder) for folder in folders), seconds=10)  # free: neither of the two lives
    assert [folder.record_file.exists() for folder in folders] == [True, False, False]
    for run in plan.runs:
        behave(tmp_path, run, "")
    assert go(tmp_path, plan)[0] == Outcome(reused=names(plan)[:1], finished=names(plan)[1:])


def _is_free(folder: RunFolder) -> bool:
    lock = folder.lock()
    if lock is not None:
        lock.release()
    return lock is not None


def test_an_orphan_is_waited_for_not_doubled(tmp_path: Path) -> None:
    plan = a_plan(1)
    behave(tmp_path, plan.runs[0], "stubborn")
    with harness(tmp_path, 1) as process:
        wait_for(lambda: starts(tmp_path))
        process.send_signal(signal.SIGKILL)
    outcome, shown = go(tmp_path, plan)
    assert outcome == Outcome(reused=names(plan))
    assert "held" in shown
    assert len(starts(tmp_path)) == 1


def test_two_harnesses_do_every_run_once(tmp_path: Path) -> None:
    plan = a_plan(10)
    first, second = harness(tmp_path, 10), harness(tmp_path, 10)
    outcomes = [Outcome(**json.loads(process.communicate()[0])) for process in (first, second)]
    assert Counter(start["name"] for start in starts(tmp_path)) == Counter(names(plan))
    assert sorted(outcomes[0].finished + outcomes[1].finished) == sorted(names(plan))
    for outcome in outcomes:
        assert sorted(outcome.finished + outcome.reused) == sorted(names(plan))
        assert outcome.failed == outcome.stopped == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_ends_the_workers_and_gives_out_no_more(tmp_path: Path, number: signal.Signals) -> None:
    plan = a_plan(4)
    for run in plan.runs:
        behave(tmp_path, run, "long")
    with harness(tmp_path, 4) as process:
        wait_for(lambda: len(starts(tmp_path)) == 2)
        process.send_signal(number)
        answer = json.loads(process.communicate()[0])
    assert answer == {"finished": [], "reused": [], "failed": [], "stopped": names(plan)}
    assert len(starts(tmp_path)) == 2
    (attempt,) = ResultFolder(tmp_path).run(plan.runs[0].name).read_attempts()
    assert attempt.signal == "SIGTERM"


def test_workers_may_finish_after_one_interrupt_but_not_after_two(tmp_path: Path) -> None:
    plan = a_plan(2)
    behave(tmp_path, plan.runs[0], "stubborn")
    with harness(tmp_path, 2, slots=1) as process:
        wait_for(lambda: starts(tmp_path))
        process.send_signal(signal.SIGINT)
        answer = json.loads(process.communicate()[0])
    assert (answer["finished"], answer["stopped"]) == (names(plan)[:1], names(plan)[1:])

    behave(tmp_path, plan.runs[1], "stubborn")
    with harness(tmp_path, 2, slots=1) as process:
        wait_for(lambda: len(starts(tmp_path)) == 2)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)  # two of a kind at the same moment would count as one
        answer = json.loads(process.communicate()[0])
    assert (answer["reused"], answer["stopped"]) == (names(plan)[:1], names(plan)[1:])
    assert ResultFolder(tmp_path).run(plan.runs[1].name).read_attempts()[-1].signal == "SIGKILL"


def test_an_unforeseen_error_leaves_no_worker_behind(tmp_path: Path) -> None:
    plan = a_plan(2)
    behave(tmp_path, plan.runs[1], "long")
    handler = signal.getsignal(signal.SIGINT)

    def broken() -> None:
        wait_for(lambda: len(starts(tmp_path)) == 2)
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        go(tmp_path, plan, on_finished=broken)
    for start in starts(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(start["pid"], 0)
    assert all(_is_free(ResultFolder(tmp_path).run(run.name)) for run in plan.runs)
    assert signal.getsignal(signal.SIGINT) is handler


def test_data_sets_are_made_before_runs_and_only_when_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, int]] = []
    monkeypatch.setattr(scheduler.datasets, "load", lambda name: loaded.append((name, len(starts(tmp_path)))))
    monkeypatch.setattr(scheduler, "LocalEngine", lambda device, jobs: engine(tmp_path, 2))
    results, plan = ResultFolder(tmp_path), a_plan(2)
    assert run_experiment(plan, results).finished == names(plan)
    assert run_experiment(plan, results).reused == names(plan)
    assert loaded == [("glyphs-mini", 0)]
    stored = results.read_plan()
    assert stored is not None
    assert [(run.name, run.identity, run.method) for run in stored.runs] == [
        (run.name, run.identity, run.method) for run in plan.runs
    ]
    assert RunConfig.model_validate(stored.runs[1].config) == plan.runs[1].config


def test_a_part_of_the_plan_is_run_and_the_folder_knows_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler.datasets, "load", lambda name: None)
    monkeypatch.setattr(scheduler, "LocalEngine", lambda device, jobs: engine(tmp_path, 2))
    results, plan = ResultFolder(tmp_path), a_plan(3)
    chosen = dataclasses.replace(plan, runs=plan.runs[1:2])
    assert run_experiment(plan, results, chosen=chosen).finished == names(chosen)
    stored = results.read_plan()
    assert stored is not None
    assert [run.name for run in stored.runs] == names(plan)


# How a worker's end is told


@pytest.mark.parametrize(
    ("code", "log", "told"),
    [
        (2, "loading\nerror: weights: no such file\n", "exit status 2 after 0:01:05: weights: no such file"),
        (1, "Traceback:\ntorch.MyError: CUDA\nbye\n", "exit status 1 after 0:01:05: torch.MyError: CUDA"),
        (3, "last words\n\n", "exit status 3 after 0:01:05: last words"),
        (1, "", "exit status 1 after 0:01:05"),
        (-9, "training\n", "killed by SIGKILL after 0:01:05: out of memory?"),
        (-11, "training\n", "killed by SIGSEGV after 0:01:05"),
        (-50, "", "killed by signal 50 after 0:01:05"),
        (0, "done\n", "ended without a record after 0:01:05: done"),
    ],
)
def test_the_cause_of_an_end_in_a_line(code: int, log: str, told: str) -> None:
    assert exit_cause(code, "0:01:05", log) == told


# The local engine


def test_a_run_on_a_cpu_has_a_core_and_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    gibibytes = {"SC_PAGE_SIZE": 2**30}
    monkeypatch.setattr(os, "sysconf", (gibibytes | {"SC_PHYS_PAGES": 64}).__getitem__)
    assert LocalEngine("cpu").slots() == 8
    monkeypatch.setattr(os, "sysconf", (gibibytes | {"SC_PHYS_PAGES": 17}).__getitem__)
    assert LocalEngine("cpu").slots() == 4
    go(tmp_path, a_plan(1), jobs=3)
    assert starts(tmp_path)[0]["threads"] == "1"


def test_slots_take_turns_on_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb     Device  0: (UUID: MIG-1)\nGPU 1: NVIDIA H100\n"
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\nprintf '{listing}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = LocalEngine("auto")
    assert (found.device, found.slots()) == ("cuda", 2)
    shared = LocalEngine("cuda", jobs=3)
    assert [shared._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    assert "CUDA_VISIBLE_DEVICES" not in LocalEngine("cpu")._environment(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible_gpus() == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert LocalEngine("auto").device == "cpu"


def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert LocalEngine("auto").device == "cpu"
    with pytest.raises(UserError, match="no GPU found"):
        LocalEngine("cuda")
    with pytest.raises(UserError, match="--jobs 0"):
        LocalEngine("cpu", jobs=0)
    with pytest.raises(UserError, match="expected auto, cpu or cuda"):
        LocalEngine("tpu")


# Progress


@pytest.mark.parametrize(
    ("tail", "progress"),
    [
        (b"", Progress("starting", 0, None)),
        (b'{"iteration": 9, "total_loss": 1.5}\n', Progress("training", 10, 1.5)),
        (b'{"iteration": 9, "total_loss": 1.5}\n{"iteration": 19, "tot', Progress("training", 10, 1.5)),
        (b'oss": 2.5}\n{"iteration": 9}\n', Progress("training", 10, None)),
        (b'{"iteration": 9, "total_loss": 1.5}\n{"phase": "evaluate"}\n', Progress("evaluating", 10, 1.5)),
        (b'{"phase": "evaluate"}\n{"iteration": 0, "total_loss": 3.0}\n', Progress("training", 1, 3.0)),
        (b'{"iteration": 4, "total_loss": 1.5}\n7\n{"lr": 0.1}\n\xff\xfe\n', Progress("training", 5, 1.5)),
    ],
)
def test_progress_is_the_last_whole_line(tail: bytes, progress: Progress) -> None:
    assert read_progress(tail) == progress


@given(st.integers(1, 30), st.integers(0, 2000))
def test_progress_never_runs_ahead_of_a_torn_file(lines: int, cut: int) -> None:
    whole = b"".join(b'{"iteration": %d, "total_loss": 1.0}\n' % index for index in range(lines))
    assert read_progress(whole[:cut]).done == whole[:cut].count(b"}")


def test_a_tail_begins_where_the_attempt_began(tmp_path: Path) -> None:
    assert read_tail(tmp_path / "none") == b""
    (tmp_path / "log").write_bytes(b"x" * 100_000 + b"end")
    tail = read_tail(tmp_path / "log")
    assert tail.endswith(b"end")
    assert len(tail) < 100_000
    assert read_tail(tmp_path / "log", first_byte=100_000) == b"end"


def test_time_left_follows_the_pace_since_first_seen() -> None:
    first, later = Sighting(100.0, 20), Sighting(105.0, 30)  # 0.5 s an iteration
    assert seconds_left(first, first, total=100, now=101.0) is None
    assert seconds_left(first, later, total=100, now=105.0) == 35
    assert seconds_left(first, later, total=100, now=108.0) == 32
    assert seconds_left(first, later, total=100, now=200.0) == 0
    assert clock(3725.4) == "1:02:05"


def many_views() -> list[RunView]:
    views = [RunView(f"run-{index:03}", 100) for index in range(200)]
    for index in range(100):
        views[index].state, views[index].started, views[index].ended, views[index].ap = "finished", 0.0, index, 12.0
    views[7].state, views[7].reason = "failed", "killed by SIGKILL [out of memory?]"
    views[100].state, views[100].started = "running", 0.0
    views[100].progress, views[100].seconds_left = Progress("training", 40, 1.2345), 65.0
    return views


def test_a_table_of_200_runs_shows_what_matters() -> None:
    views = many_views()
    shown = [view.name for view in rows_to_show(views, rows=20)]
    assert shown == ["run-007", "run-095", "run-096", "run-097", "run-098", "run-099", "run-100"]
    assert [view.name for view in rows_to_show(views, rows=2)] == ["run-007", "run-100"]
    assert rows_to_show(views[:10], rows=20) == views[:10]

    console = Console(file=io.StringIO(), width=120, height=30, force_terminal=True, color_system=None)
    with TableDisplay(console) as display:
        display.update(views)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "200 runs · 99 finished · 1 running · 99 waiting · 1 failed" in text
    row = next(line for line in text.splitlines() if "run-100" in line)
    assert all(part in row for part in ("training", "40/100", "1.234", "0:01:05"))


def test_plain_lines_tell_changes_once() -> None:
    views = many_views()
    console = Console(file=io.StringIO(), width=40)
    display = PlainDisplay(console)
    display.update(views)
    views[100].state, views[100].ended, views[100].ap = "finished", 70.0, 31.26
    views[101].state, views[101].reason = "failed", "killed by SIGKILL [out of memory?]"
    display.update(views)
    display.update(views)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].endswith("run-100: iteration 40/100, loss 1.234, 0:01:05 left")
    assert lines[2].endswith("run-100: finished in 0:01:10, AP.b 31.3")
    assert lines[3].endswith("run-101: failed: killed by SIGKILL [out of memory?]")
