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
from typing import Any

import fake_worker
import pytest
from rich.console import Console

from rio_bench import scheduler
from rio_bench.config import Execution, RunConfig
from rio_bench.engines.local import TIED, LocalEngine
from rio_bench.errors import UserError
from rio_bench.plan import Plan, PlannedRun, stored_run
from rio_bench.progress import PlainDisplay
from rio_bench.records import Record, ResultFolder, RunFolder
from rio_bench.scheduler import Scheduler, run_experiment
from rio_bench.tasks import Outcome

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


def a_plan(number: int, **execution: Any) -> Plan:
    runs = tuple(planned(seed) for seed in range(number))
    return Plan("quickstart", "none", runs, Execution.model_validate(execution))


def plan_with_base(number: int) -> Plan:
    base = planned(1000, is_base=True)
    return Plan("quickstart", "none", (base, *(planned(seed, after=base.name) for seed in range(number))))


def engine(jobs: int, execution: Execution | None = None) -> LocalEngine:
    return LocalEngine(execution or Execution(), "cpu", jobs, main=fake_worker.main, preload=(TIED,))


def go(root: Path, plan: Plan, jobs: int = 2, on_finished: Callable[[], None] | None = None) -> tuple[Outcome, str]:
    """One harness on a plan in this process: how the runs ended, and what was displayed."""
    root.mkdir(exist_ok=True)
    console = Console(file=io.StringIO(), width=200)
    with PlainDisplay(console) as display:
        outcome = Scheduler(plan, ResultFolder(root), engine(jobs, plan.execution), on_finished).run(display)
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
    plan = a_plan(5, retries=0)
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
    plan = a_plan(3, retries=0)
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
    assert answer == {"finished": [], "reused": [], "failed": [], "stopped": names(plan), "pruned": []}
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
    results, plan = ResultFolder(tmp_path), a_plan(2)
    assert run_experiment(plan, results, engine(2)).finished == names(plan)
    assert run_experiment(plan, results, engine(2)).reused == names(plan)
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
    results, plan = ResultFolder(tmp_path), a_plan(3)
    chosen = dataclasses.replace(plan, runs=plan.runs[1:2])
    assert run_experiment(plan, results, engine(2), chosen=chosen).finished == names(chosen)
    stored = results.read_plan()
    assert stored is not None
    assert [run.name for run in stored.runs] == names(plan)


# Retries, limits, other workers


def test_what_a_retry_mends_is_tried_again_and_the_rest_is_not(tmp_path: Path) -> None:
    plan = a_plan(4)
    killed, unlucky, hopeless, wrong = plan.runs
    behave(tmp_path, killed, "crash,1")
    behave(tmp_path, unlucky, "try again,2")
    behave(tmp_path, hopeless, "try again")
    behave(tmp_path, wrong, "raise")
    outcome, shown = go(tmp_path, plan)
    assert sorted(outcome.finished) == sorted([killed.name, unlucky.name])
    counts = Counter(start["name"] for start in starts(tmp_path))
    assert counts == {killed.name: 2, unlucky.name: 3, hopeless.name: 3, wrong.name: 1}
    assert f"{killed.name}: killed by SIGKILL" in shown
    assert "starting it again (2 of 2 retries)" in shown
    reasons = {failure.name: failure.reason for failure in outcome.failed}
    assert reasons[hopeless.name].startswith("exit status 75 after")
    assert reasons[hopeless.name].endswith("the network is gone (3 attempts)")
    assert "attempts" not in reasons[wrong.name]
    assert len(ResultFolder(tmp_path).run(hopeless.name).read_attempts()) == 3


def test_a_time_limit_ends_a_run_and_only_that(tmp_path: Path) -> None:
    plan = a_plan(3, time_limit_minutes=0.02)
    behave(tmp_path, plan.runs[1], "long")
    outcome, _ = go(tmp_path, plan)
    assert outcome.finished == [plan.runs[0].name, plan.runs[2].name]
    (failure,) = outcome.failed
    assert failure.reason == "time limit: 0.02 minutes are over at iteration 1 of 10; its checkpoint stays"
    (attempt,) = ResultFolder(tmp_path).run(plan.runs[1].name).read_attempts()
    assert (attempt.signal, attempt.cause) == ("SIGTERM", "time limit")


def test_who_does_not_end_when_told_to_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "GRACE_SECONDS", 0.2)
    plan = a_plan(1, time_limit_minutes=0.01)
    behave(tmp_path, plan.runs[0], "stubborn")
    go(tmp_path, plan)
    (attempt,) = ResultFolder(tmp_path).run(plan.runs[0].name).read_attempts()
    assert (attempt.signal, attempt.cause) == ("SIGKILL", "time limit")


def test_a_run_that_a_worker_elsewhere_does_is_waited_for(tmp_path: Path) -> None:
    """As under SLURM, where a worker outlives its harness: its own lock tells."""
    plan = a_plan(2)
    folder = ResultFolder(tmp_path).run(plan.runs[0].name)
    folder.create()
    lock = folder.lock_as_worker()
    assert lock is not None
    folder.write_run(stored_run(plan.runs[0], plan))
    run = folder.read_run()

    def finish_elsewhere() -> None:
        wait_for(lambda: starts(tmp_path))
        time.sleep(0.5)
        folder.write_record(fake_worker.record_of(run, 30.0))
        lock.release()

    elsewhere = threading.Thread(target=finish_elsewhere)
    elsewhere.start()
    outcome, shown = go(tmp_path, plan)
    elsewhere.join()
    assert (outcome.finished, outcome.reused) == ([plan.runs[1].name], [plan.runs[0].name])
    assert f"{plan.runs[0].name}: held" in shown


def test_a_worker_that_finds_another_one_at_work_leaves_the_run_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the harness's look and the worker's start another worker began, as after a wait in a queue."""
    plan = a_plan(1)
    folder = ResultFolder(tmp_path).run(plan.runs[0].name)
    folder.create()
    lock = folder.lock_as_worker()
    assert lock is not None
    looks: list[int] = []
    monkeypatch.setattr(RunFolder, "is_worked_on", lambda self: len(looks) > 0)

    def release_when_told() -> None:
        wait_for(lambda: (ResultFolder(tmp_path).run(plan.runs[0].name)).read_attempts())
        lock.release()
        looks.clear()

    other = threading.Thread(target=release_when_told)
    other.start()
    outcome, shown = go(tmp_path, plan)
    other.join()
    assert outcome.finished == names(plan)
    assert f"{plan.runs[0].name}: held" in shown
    assert [attempt.exit_status for attempt in folder.read_attempts()] == [3, 0]


class Curves:
    """A search of two trials that prunes the one whose first evaluation is low."""

    def __init__(self, plan: Plan) -> None:
        self.left, self.told, self.reports = list(plan.runs), [], []

    def planned(self) -> list[PlannedRun]:
        return []

    def ask(self) -> PlannedRun | None:
        return self.left.pop(0) if self.left else None

    def is_exhausted(self) -> bool:
        return not self.left

    def report(self, name: str, iteration: int, values: dict[str, float | None]) -> bool:
        self.reports.append((name, iteration, values))
        return values["AP.b"] == 1.0

    def tell(self, name: str, how: str, record: Record | None = None) -> str | None:
        self.told.append((name, how, record and record.metrics["box"].AP))
        return None

    def write(self) -> None:
        pass


def search_with(search: Curves, root: Path, jobs: int) -> Outcome:
    plan = dataclasses.replace(a_plan(1), runs=())
    with PlainDisplay(Console(file=io.StringIO())) as display:
        return Scheduler(plan, ResultFolder(root), engine(jobs), search=search).run(display)  # type: ignore[arg-type]


def test_runs_of_a_search_are_asked_for_followed_and_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.datasets, "load", lambda name: None)
    trials = a_plan(3)
    low, high, failing = trials.runs
    behave(tmp_path, low, "low curve")
    behave(tmp_path, high, "high curve")
    behave(tmp_path, failing, "raise")
    search = Curves(trials)
    outcome = search_with(search, tmp_path, jobs=2)
    assert (outcome.finished, outcome.pruned) == ([high.name], [low.name])
    assert [failure.name for failure in outcome.failed] == [failing.name]
    assert sorted(search.told) == sorted(
        [(low.name, "pruned", None), (high.name, "finished", 20.0), (failing.name, "failed", None)]
    )
    assert (low.name, 4, {"AP.b": 1.0}) in search.reports
    pruned = ResultFolder(tmp_path).run(low.name)
    assert pruned.read_attempts()[-1].cause == "pruned"
    assert list(pruned.checkpoints.iterdir()) == []


def test_a_search_that_breaks_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.datasets, "load", lambda name: None)
    trials = a_plan(2)
    search = Curves(trials)

    def gone(*arguments: object) -> None:
        raise UserError("postgresql://host/db: the server closed the connection")

    monkeypatch.setattr(search, "tell", gone)
    with PlainDisplay(Console(file=io.StringIO())) as display:
        outcome = Scheduler(dataclasses.replace(trials, runs=()), ResultFolder(tmp_path), engine(1), search=search).run(
            display
        )  # type: ignore[arg-type]
    assert outcome.finished == [trials.runs[0].name]
    assert outcome.failed[0].reason == "search: postgresql://host/db: the server closed the connection"


def test_a_search_that_cannot_tell_its_trials_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.datasets, "load", lambda name: None)
    search = Curves(a_plan(2))
    answers = [[], list(search.left[:1])]

    def planned_or_gone() -> list[PlannedRun]:
        if not answers:
            raise UserError("postgresql://host/db: the server closed the connection")
        return answers.pop(0)

    monkeypatch.setattr(search, "planned", planned_or_gone)
    outcome = search_with(search, tmp_path, jobs=2)
    assert outcome.finished == names(a_plan(2))
    assert outcome.failed[0].reason == "search: postgresql://host/db: the server closed the connection"


def test_a_base_run_that_fails_is_not_tried_for_every_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.datasets, "load", lambda name: None)
    base, *trials = plan_with_base(3).runs
    behave(tmp_path, base, "raise")
    search = Curves(Plan("quickstart", "none", tuple(trials)))
    monkeypatch.setattr(search, "planned", lambda: [base, *trials])
    outcome = search_with(search, tmp_path, jobs=2)
    assert len(outcome.failed) == 4
    assert [start["name"] for start in starts(tmp_path)] == [base.name]


def test_a_record_that_cannot_be_read_now_is_neither_set_aside_nor_made_again(tmp_path: Path) -> None:
    plan = a_plan(1)
    folder = ResultFolder(tmp_path).run(plan.runs[0].name)
    folder.create()
    folder.record_file.mkdir()  # reading it fails, whoever reads
    outcome, _ = go(tmp_path, plan)
    assert "record.json: cannot be read: Is a directory" in outcome.failed[0].reason
    assert folder.record_file.is_dir()
    assert starts(tmp_path) == []


def test_a_failure_while_stopping_is_told_as_one(tmp_path: Path) -> None:
    plan = a_plan(1)
    behave(tmp_path, plan.runs[0], "full disk")
    with harness(tmp_path, 1) as process:
        wait_for(lambda: starts(tmp_path))
        process.send_signal(signal.SIGINT)
        answer = json.loads(process.communicate()[0])
    assert answer["stopped"] == []
    assert answer["failed"][0][1].endswith("last.pth: cannot be written: No space left on device")
