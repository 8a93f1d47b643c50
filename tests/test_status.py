"""How runs are, told from the folder alone: any state, files that are torn, 200 runs at once."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import fake_worker
import pytest

from rio_bench.errors import UserError
from rio_bench.files import append_json_line, to_json
from rio_bench.find import experiment_folder
from rio_bench.progress import STATES, RunView
from rio_bench.records import Attempt, Holder, Record, ResultFolder, RunFolder, StoredPlan, StoredRun
from rio_bench.status import look_at, look_at_all, print_status

HERE = {"host": "node7", "pid": 12, "device": "cuda"}


def stored(name: str = "rio-R18-FPN-seed0-00000000000000ff", after: str | None = None) -> StoredRun:
    return StoredRun(
        name=name,
        identity=name.rpartition("-")[2],
        experiment="quickstart",
        method="rio",
        is_base=False,
        after=after,
        config={"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": {"name": "rio"}, "iterations": 400},
    )


def many_runs(number: int) -> list[StoredRun]:
    return [stored(f"rio-R18-FPN-seed{index}-{index:016x}") for index in range(number)]


def results_of(root: Path, runs: list[StoredRun]) -> ResultFolder:
    results = ResultFolder(root)
    results.write_plan(StoredPlan(experiment="quickstart", baseline="none", runs=tuple(runs)))
    return results


def ago(**time_ago: float) -> str:
    return (datetime.now().astimezone() - timedelta(**time_ago)).isoformat(timespec="milliseconds")


def attempt(**changes: Any) -> Attempt:
    fields = {"started": ago(seconds=90), "ended": ago(seconds=25), "exit_status": 1, "signal": None, "host": "here"}
    return Attempt.model_validate({**fields, "pid": 1, **changes})


def record_of(run: StoredRun, ap: float, finished: str) -> Record:
    return fake_worker.record_of(run, ap).model_copy(update={"finished": finished})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = ResultFolder(tmp_path).run(stored().name)
    folder.create()
    return folder


def look(folder: RunFolder) -> RunView:
    return look_at(folder, stored(), time.time())


# One state after another


def test_a_run_without_a_folder_waits(tmp_path: Path) -> None:
    view = look(ResultFolder(tmp_path).run(stored().name))
    assert (view.state, view.iterations) == ("waiting", 400)
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_has_its_ap_and_when(folder: RunFolder) -> None:
    now = datetime(2026, 3, 4, 12, 0).astimezone()
    for finished, told in ((now.replace(hour=9, minute=5), "09:05"), (now - timedelta(days=2), "02 Mar 12:00")):
        folder.write_record(record_of(stored(), 12.5, finished.isoformat()))
        view = look_at(folder, stored(), now.timestamp())
        assert (view.state, view.ap, view.when) == ("finished", 12.5, told)


def test_a_run_that_a_harness_has_is_queued_until_its_worker_begins(folder: RunFolder) -> None:
    lock = folder.lock()
    assert lock is not None
    assert look(folder).state == "queued"
    worker = folder.lock_as_worker()
    assert worker is not None
    view = look(folder)
    assert (view.state, view.where, view.progress.phase) == ("running", "", "starting")  # nothing is written yet
    worker.release()
    lock.release()
    assert look(folder).state == "waiting"


def test_a_running_run_tells_where_it_is_how_far_and_how_long(folder: RunFolder) -> None:
    append_json_line(folder.metrics_file, {"iteration": 389, "time": 9.0, "total_loss": 0.5})
    os.utime(folder.metrics_file, (time.time() - 300,) * 2)
    worker = folder.lock_as_worker()  # a worker of whatever harness, or of none
    assert worker is not None
    worker.write(to_json(Holder(**HERE, started=ago(minutes=2))))
    view = look(folder)
    assert (view.state, view.where) == ("running", "node7 cuda, pid 12")
    assert (view.progress.phase, view.progress.done) == ("starting", 0)  # the line is of an attempt before
    assert view.started is not None and 119 < time.time() - view.started < 130

    append_json_line(folder.metrics_file, {"iteration": 99, "time": 0.5, "total_loss": 1.5})
    view = look(folder)
    assert (view.progress.phase, view.progress.done, view.progress.loss) == ("training", 100, 1.5)
    assert view.seconds_left == 150
    append_json_line(folder.metrics_file, {"phase": "evaluate"})
    view = look(folder)
    assert (view.progress.phase, view.seconds_left) == ("evaluating", None)
    worker.release()


@pytest.mark.parametrize(
    ("how", "log", "state", "reason"),
    [
        (attempt(), "x\nerror: weights: no such file\n", "failed", "exit status 1 after 0:01:05: weights: no such"),
        (attempt(), "Segmentation\n\n", "failed", "exit status 1 after 0:01:05: Segmentation"),
        (attempt(exit_status=0), "", "failed", "ended without a record after 0:01:05"),
        (
            attempt(exit_status=None, signal="SIGKILL"),
            "error: of the attempt before\nevaluated 3/120\n",
            "failed",
            "killed by SIGKILL after 0:01:05: out of memory?; its log ends with: evaluated 3/120",
        ),
        (attempt(exit_status=None, signal="signal 50"), "", "failed", "killed by signal 50 after 0:01:05"),
        (attempt(cause="time limit"), "stopped: x\n", "failed", "time limit; its log ends with: stopped: x"),
        (attempt(cause="pruned"), "stopped: x\n", "pruned", ""),
        (attempt(cause="stopped"), "stopped: x\n", "stopped", ""),
        (attempt(started="then", ended="now"), "", "failed", "exit status 1 after an unknown time"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_how_the_last_attempt_ended(folder: RunFolder, how: Attempt, log: str, state: str, reason: str) -> None:
    folder.add_attempt(attempt(started=ago(hours=3), ended=ago(hours=2), exit_status=None, signal="SIGTERM"))
    folder.add_attempt(how)
    folder.add_attempt(attempt(exit_status=3, ended=ago(seconds=20)))  # it found another worker: no attempt
    folder.log_file.write_text(log)
    view = look(folder)
    assert view.state == state
    assert view.reason.startswith(reason) and bool(view.reason) == bool(reason)


def test_a_worker_killed_together_with_its_harness_left_no_line(folder: RunFolder) -> None:
    folder.add_attempt(attempt(ended=ago(minutes=5), cause="stopped"))
    folder.worker_lock_file.write_text(to_json(Holder(**HERE, started=ago(minutes=6))))
    assert (look(folder).state, look(folder).reason) == ("stopped", "")  # the one whose end is told
    folder.worker_lock_file.write_text(to_json(Holder(**HERE, started=ago(minutes=4))))
    assert (look(folder).state, look(folder).reason) == ("stopped", "its worker was killed, and its harness too")


def test_what_waits_for_a_failed_base_run_is_skipped(tmp_path: Path) -> None:
    base = stored("none-R18-FPN-seed0-00aa")
    results = results_of(tmp_path, [base, stored(after=base.name)])
    assert [view.state for view in look_at_all(results, results.read_plan().runs)] == ["waiting", "waiting"]
    results.run(base.name).create()
    results.run(base.name).add_attempt(attempt())
    views = look_at_all(results, results.read_plan().runs)
    assert [view.state for view in views] == ["failed", "failed"]
    assert views[1].reason == f"skipped: its base run {base.name} failed"


# Files that are torn, and runs that go on meanwhile


def test_no_torn_or_foreign_file_is_in_the_way(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    results = results_of(folder.path.parent.parent, [stored(), stored("other-0001")])
    folder.write_run(stored())
    folder.write_record(record_of(stored(), 12.5, ago(hours=1)))
    append_json_line(folder.metrics_file, {"iteration": 99, "time": 0.5, "total_loss": 1.5})
    folder.add_attempt(attempt())
    folder.log_file.write_text("error: ä\n")
    holder = to_json(Holder(**HERE, started=ago(minutes=4)))
    folder.worker_lock_file.write_text(holder)
    files = [folder.record_file, folder.metrics_file, folder.attempts_file, folder.log_file, folder.worker_lock_file]
    whole = {file: file.read_bytes() for file in files}
    random_cut = random.Random(0)
    seen = set()
    for _ in range(150):
        for file, content in whole.items():
            cut = random_cut.randrange(len(content) + 1)
            noise = random_cut.choice([b"", b"", b"\xff\xfe", b"null", b"[]\n", b'{"iteration": "x", "time": []}\n'])
            file.write_bytes(content[:cut] + noise + content[random_cut.choice([cut, len(content)]) :])
            if random_cut.random() < 0.3:
                file.unlink()
        held = folder.lock_as_worker() if random_cut.random() < 0.3 else None
        seen.add(look(folder).state)
        print_status(results, everything=True)
        if held is not None:
            held.release()
    assert {"finished", "unreadable", "running", "failed", "stopped", "waiting"} <= seen <= set(STATES)
    assert capsys.readouterr().out.count("quickstart: 2 runs") == 150


def test_a_file_that_cannot_be_read_is_named(folder: RunFolder) -> None:
    folder.record_file.write_text("{")
    assert look(folder).state == "unreadable"
    assert look(folder).reason.startswith(f"{folder.record_file}: torn or not JSON")
    folder.record_file.unlink()
    folder.attempts_file.mkdir()
    assert (look(folder).state, look(folder).reason) == ("unreadable", f"{folder.attempts_file}: Is a directory")


def test_looking_takes_no_run_from_who_is_about_to_begin(folder: RunFolder) -> None:
    onlooker = open(folder.worker_lock_file, "w")  # noqa: SIM115
    fcntl.flock(onlooker, fcntl.LOCK_SH)  # as is_worked_on() does, for a moment
    threading.Timer(0.03, onlooker.close).start()
    lock = folder.lock_as_worker()
    assert lock is not None
    lock.release()


def test_two_who_look_do_not_take_each_other_for_a_worker(folder: RunFolder) -> None:
    folder.worker_lock_file.write_text("")
    with open(folder.worker_lock_file) as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not folder.is_worked_on()
        assert folder.lock_as_worker() is None


def test_looking_changes_nothing(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    results = results_of(folder.path.parent.parent, many_runs(3))
    folder.add_attempt(attempt())
    before = {path: path.stat().st_mtime_ns for path in results.root.rglob("*")}
    print_status(results, everything=True)
    assert {path: path.stat().st_mtime_ns for path in results.root.rglob("*")} == before


# Printed


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> ResultFolder:
    """200 runs: 120 finished, 10 failed, 4 that a worker may take, the rest waits."""
    runs = many_runs(200)
    results = results_of(tmp_path_factory.mktemp("here") / "results" / "sweep", runs)
    categories = {f"category {index}": 12.5 for index in range(1203)}
    for index, run in enumerate(runs[:134]):
        folder = results.run(run.name)
        folder.create()
        folder.log_file.write_text("error: ValueError: the loss is not finite\n")
        if index < 120:
            record = record_of(run, 12.5, ago(minutes=200 - index))
            box = record.metrics["box"].model_copy(update={"per_category": categories})
            folder.write_record(record.model_copy(update={"metrics": {"box": box, "mask": box}}))
        elif index < 130:
            folder.add_attempt(attempt())
        folder.lock_file.touch()
        folder.worker_lock_file.touch()
    return results


def test_200_runs_are_told_on_a_page_and_cheaply(sweep: ResultFolder, capsys: pytest.CaptureFixture[str]) -> None:
    runs = many_runs(200)
    locks = [sweep.run(run.name).lock_as_worker() for run in runs[130:134]]
    start = time.thread_time()
    print_status(sweep, everything=False)
    took = time.thread_time() - start
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines[6:]]
    assert len(lines) < 35
    assert shown[:5] == [run.name for run in runs[115:120]]  # ended last
    assert shown[5:15] == [run.name for run in runs[120:130]]
    assert shown[15:19] == [run.name for run in runs[130:134]]
    assert sum("exit status 1 after 0:01:05: ValueError: the loss is not finite" in line for line in lines) == 5
    assert lines[-2] == f"181 more: rio_bench status {sweep.root} --all"
    assert lines[-1] == "quickstart: 200 runs · 120 finished · 4 running · 66 waiting · 10 failed"
    assert took < 1

    print_status(sweep, everything=True)
    out = capsys.readouterr().out
    assert all(run.name in out for run in runs)
    assert out.count("the loss is not finite") == 10
    for lock in locks:
        assert lock is not None
        lock.release()


def test_status_from_another_process(sweep: ResultFolder) -> None:
    def status(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = (
            "import sys, rio_bench.cli\n"
            f"sys.argv = ['rio_bench', 'status', *{arguments!r}]\n"
            "try:\n    rio_bench.cli.main()\n"
            "finally:\n    assert not {'torch', 'detectron2', 'pandas', 'optuna'} & set(sys.modules)"
        )
        command = [sys.executable, "-c", script]
        return subprocess.run(command, cwd=sweep.root.parents[1], capture_output=True, text=True, timeout=60)

    done = status("results/sweep")
    assert done.returncode == 0, done.stderr
    assert "200 runs · 120 finished · 70 waiting · 10 failed" in done.stdout
    wrong = status("results/swep")
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", "error: results/swep: no such file\n")
    assert status("results").stderr.startswith("error: results: no results there: run `rio_bench run")
    torn = ResultFolder(sweep.root.parent / "torn")
    torn.root.mkdir()
    torn.plan_file.write_text("{")
    assert status("results/torn").stderr.startswith("error: results/torn/experiment.json: torn or not JSON")


def test_an_experiment_file_stands_for_its_result_folder(tmp_path: Path) -> None:
    run = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": "none", "iterations": 5}
    (tmp_path / "sweep.yaml").write_text(json.dumps({"run": run}))
    with pytest.raises(UserError, match="no results there"):
        experiment_folder(tmp_path / "sweep.yaml", tmp_path)
    results_of(tmp_path / "sweep", many_runs(1))
    assert experiment_folder(tmp_path / "sweep.yaml", tmp_path).root == tmp_path / "sweep"
    assert experiment_folder(tmp_path / "sweep", tmp_path / "elsewhere").root == tmp_path / "sweep"
