"""A search over hand-made records: nothing is trained twice, nothing is lost, and what it says it found is so."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pydantic
import pytest
from fake_trials import RUN, SPACE, do_all, experiment, finish, leave_pruned, record_of, start, values_of
from hypothesis import given, settings
from hypothesis import strategies as st

from rio_bench import strategy as strategies
from rio_bench.config import Experiment
from rio_bench.errors import UserError
from rio_bench.plan import PlannedRun, identity, make_plan, trial_planner
from rio_bench.processes import HELD
from rio_bench.records import ResultFolder, StoredSearch
from rio_bench.search import Search
from rio_bench.strategy import Strategy
from rio_bench.study_storage import StudyLock
from rio_bench.takeover import evaluations, params_of, study_name

TESTS = Path(__file__).parent
FOUR = {"strategy.bank_capacity": [20, 60], "strategy.samples_per_class": [5, 20]}  # four configurations


@pytest.fixture
def results(tmp_path: Path) -> ResultFolder:
    return ResultFolder(tmp_path / "banks")


@pytest.fixture(autouse=True)
def _files_are_not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes most of the time, and matters to a power cut alone."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def found(search: Search, results: ResultFolder) -> StoredSearch:
    search.write()
    stored = results.read_search()
    assert stored is not None
    return stored


def test_what_is_written_is_written_once(results: ResultFolder) -> None:
    """A scheduler that finds a thousand results tells each, and has search.json written each time."""
    of = experiment(trials=2)
    search = Search(of, results)
    assert found(search, results).trials == ()
    run = search.ask()
    assert run is not None
    assert [trial.state for trial in found(search, results).trials] == ["running"]
    search.tell(run.name, "finished", finish(run, results, of))
    assert [trial.state for trial in found(search, results).trials] == ["finished"]
    before = results.search_file.stat()
    search.tell(run.name, "finished", record_of(run, values_of(run)))
    search.write()
    assert results.search_file.stat().st_mtime_ns == before.st_mtime_ns


def states(search: Search, results: ResultFolder) -> list[str]:
    return [trial.state for trial in found(search, results).trials]


def names(runs: list[PlannedRun]) -> list[str]:
    return [run.name for run in runs]


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Python in a process of its own, which has the tests' modules."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{code}", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# Asking and telling


def test_a_search_ends_after_as_many_trials_as_asked_for(results: ResultFolder) -> None:
    of = experiment(trials=4)
    search = Search(of, results)
    runs = do_all(search, results, of)
    assert len(set(names(runs))) == 4
    assert search.planned() == runs
    for run in runs:  # ordinary runs: the same name and identity as by hand
        assert run.identity == identity(run.config) and run.after is None and not run.is_base
        assert 10 <= run.config.strategy.bank_capacity <= 100  # type: ignore[attr-defined]
    stored = found(search, results)
    assert [trial.run for trial in stored.trials] == names(runs)
    assert [trial.values for trial in stored.trials] == [{"AP.b.r": values_of(run)["AP.b.r"]} for run in runs]
    assert stored.trials[0].params == {
        "strategy.bank_capacity": runs[0].config.strategy.bank_capacity,  # type: ignore[attr-defined]
        "strategy.repeat_threshold": runs[0].config.strategy.repeat_threshold,  # type: ignore[attr-defined]
    }
    assert stored.objectives == {"AP.b.r": "maximize"} and stored.storage == str(results.study_journal)


def test_several_are_asked_before_one_is_told(results: ResultFolder) -> None:
    of = experiment(trials=3)
    search = Search(of, results)
    runs = [run for run in (search.ask(), search.ask(), search.ask()) if run is not None]
    assert len(set(names(runs))) == 3 and search.ask() is None and not search.is_exhausted()
    for run in runs:
        search.tell(run.name, "finished", finish(run, results, of))
    assert search.ask() is None and search.is_exhausted()


def test_a_search_is_repeatable_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    of = experiment(trials=9, sampler={"name": "TPESampler", "n_startup_trials": 4})
    undisturbed = ResultFolder(tmp_path / "undisturbed")
    expected = names(do_all(Search(of, undisturbed), undisturbed, of))
    results = ResultFolder(tmp_path / "stopped")
    first = experiment(trials=5, sampler={"name": "TPESampler", "n_startup_trials": 4})
    done = names(do_all(Search(first, results), results, first))
    search = Search(of, results)  # another process would have no other state than the journal
    assert not search.is_exhausted()
    done += names(do_all(search, results, of))
    assert done == expected and len(set(done)) == 9
    other_seed = ResultFolder(tmp_path / "seed")
    of = experiment(trials=4, sampler={"name": "TPESampler", "n_startup_trials": 4, "seed": 1})
    assert not set(names(do_all(Search(of, other_seed), other_seed, of))) & set(expected)


def test_a_samplers_own_seed_replaces_the_runs(tmp_path: Path) -> None:
    drawn = []
    for seed, sampler in ((0, "RandomSampler"), (5, {"name": "RandomSampler", "seed": 0}), (5, "RandomSampler")):
        results = ResultFolder(tmp_path / str(len(drawn)))
        search = Search(experiment(run={**RUN, "seed": seed}, sampler=sampler), results)
        search.ask()
        drawn.append(found(search, results).trials[0].params)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("sampler", ["RandomSampler", "QMCSampler", "NSGAIISampler"])
def test_other_samplers_do_not_draw_the_same_again_after_a_restart(results: ResultFolder, sampler: str) -> None:
    done = []
    for trials in (2, 4):
        of = experiment(trials=trials, sampler=sampler)
        done += do_all(Search(of, results), results, of)
    assert len(set(names(done))) == 4


def test_a_lost_trial_is_given_out_again_before_a_new_one(results: ResultFolder) -> None:
    of = experiment(trials=3)
    search = Search(of, results)
    finished, lost = search.ask(), search.ask()
    assert finished is not None and lost is not None
    search.tell(finished.name, "finished", finish(finished, results, of))
    start(lost, results, make_plan(of))
    again = Search(of, results)
    assert again.ask() == lost
    other = again.ask()
    assert other is not None and other.name not in (lost.name, finished.name)
    assert again.ask() is None
    assert names(again.planned()) == names([finished, lost, other])


def test_a_trial_whose_run_another_harness_does_is_not_given_out(results: ResultFolder) -> None:
    of = experiment(trials=2)
    run = Search(of, results).ask()
    assert run is not None
    holding = "from rio_bench.records import RunFolder; import sys, time; from pathlib import Path\n"
    holding += "lock = RunFolder(Path(sys.argv[1])).lock(); print('held', flush=True); time.sleep(60)"
    other = process(holding, results.run(run.name).path)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    search = Search(of, results)
    second = search.ask()
    assert second is not None and second.name != run.name
    assert search.ask() is None
    search.tell(second.name, "finished", finish(second, results, of))
    assert not search.is_exhausted()  # the other's has not ended
    other.kill()
    other.wait()
    assert search.ask() == run


def test_a_record_that_nobody_told_of_counts(results: ResultFolder) -> None:
    """The harness died between the record and the study, or another one did the run."""
    of = experiment(trials=1)
    first = Search(of, results)
    run = first.ask()
    assert run is not None
    finish(run, results, of)
    search = Search(of, results)
    assert search.is_exhausted() and states(search, results) == ["finished"]
    assert first.tell(run.name, "finished", record_of(run, values_of(run))) is None  # told twice: nothing happens
    assert first.is_exhausted()


def test_a_finished_configuration_is_not_trained_again(results: ResultFolder) -> None:
    of = experiment(trials=12, space=FOUR)
    search = Search(of, results)
    runs = do_all(search, results, of)
    assert len(runs) == len(set(names(runs))) <= 4
    stored = found(search, results)
    assert [trial.state for trial in stored.trials] == ["finished"] * 12
    for trial in stored.trials:
        assert trial.values == {"AP.b.r": 9.999}  # no threshold is searched: RIO's own, 0.001
    assert len(search.planned()) == len(runs)


def test_the_same_parameters_asked_while_their_run_goes_on_end_with_it(results: ResultFolder) -> None:
    of = experiment(trials=3, space={"strategy.bank_capacity": [20]})
    search = Search(of, results)
    run = search.ask()
    assert run is not None and search.ask() is None
    assert states(search, results) == ["running"] * 3
    search.tell(run.name, "finished", finish(run, results, of))
    assert states(search, results) == ["finished"] * 3 and search.is_exhausted()


class Picky(Strategy):
    """Refuses more samples than its bank holds, or any other number."""

    samples_per_class: int = pydantic.Field(20, ge=1)
    bank_capacity: int = pydantic.Field(60, ge=1)
    exact: bool = False

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Picky:
        if self.samples_per_class > self.bank_capacity or (self.exact and self.samples_per_class < self.bank_capacity):
            raise ValueError(f"{self.samples_per_class} samples of a bank of {self.bank_capacity}")
        return self


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class EntryPoint:
        name: str
        module: str = __name__
        value: str = f"{__name__}:Picky"
        dist: None = None

        def load(self) -> type[Strategy]:
            return Picky

    known = strategies.registered()
    monkeypatch.setattr(strategies, "registered", lambda: {**known, "picky": EntryPoint("picky")})


def picky_experiment(trials: int, high: int, exact: bool) -> Experiment:
    bounds = {"low": 1, "high": high}
    space = {"strategy.bank_capacity": bounds, "strategy.samples_per_class": bounds}
    run = {
        "dataset": "glyphs-mini",
        "backbone": "R18-FPN",
        "iterations": 10,
        "strategy": {"name": "picky", "exact": exact},
    }
    search = {"trials": trials, "objectives": "AP.b", "space": space, "sampler": "RandomSampler"}
    return Experiment.model_validate({"name": "banks", "run": run, "search": search})


@pytest.mark.usefixtures("picky")
def test_a_combination_that_the_strategy_refuses_is_asked_anew(results: ResultFolder) -> None:
    of = picky_experiment(trials=8, high=40, exact=False)
    search = Search(of, results)
    runs = do_all(search, results, of, lambda run: {"AP.b": 1.0})
    assert len(runs) == 8  # refused ones do not count
    stored = found(search, results)
    refused = [trial for trial in stored.trials if trial.state == "failed"]
    assert refused and all(trial.run is None for trial in refused)
    for trial in stored.trials:
        fits = trial.params["strategy.samples_per_class"] <= trial.params["strategy.bank_capacity"]
        assert fits == (trial.state == "finished")
    assert Search(of, results).is_exhausted()


@pytest.mark.usefixtures("picky")
def test_a_space_of_hardly_any_runs_ends_the_search(results: ResultFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rio_bench.search.REFUSALS_IN_A_ROW", 20)
    search = Search(picky_experiment(trials=2, high=10**9, exact=True), results)
    assert search.ask() is None and search.is_exhausted()
    assert len(found(search, results).trials) == 20
    assert any("no run can have 20 combinations in a row" in line for line in search.summary())


# Ends that are no values


def test_an_objective_without_a_value_fails_its_trial_and_is_told(results: ResultFolder) -> None:
    of = experiment(trials=2, objectives=["AP.b", "AP.b.r"])
    search = Search(of, results)
    run = search.ask()
    assert run is not None
    record = finish(run, results, of, {"AP.b": 20.0, "AP.b.r": None})
    line = search.tell(run.name, "finished", record)
    assert line == "trial 0 failed: the validation set has no category of AP.b.r, which has no value"
    assert states(search, results) == ["failed"]
    again = Search(of, results)  # its record is there: it is not done again
    assert {run.name} & set(names(do_all(again, results, of))) == set()


def test_failed_runs_count_and_are_tried_again_by_the_next_harness(results: ResultFolder) -> None:
    of = experiment(trials=2)
    search = Search(of, results)
    failed = [run for run in (search.ask(), search.ask()) if run is not None]
    for run in failed:
        start(run, results, make_plan(of))
        search.tell(run.name, "failed")
    assert search.ask() is None and search.is_exhausted()
    again = Search(of, results)
    assert names(do_all(again, results, of)) == names(failed)
    assert states(again, results) == ["failed", "failed", "finished", "finished"]
    assert Search(of, results).is_exhausted()


def test_a_configuration_that_failed_fails_again_without_a_run(results: ResultFolder) -> None:
    of = experiment(trials=3, space={"strategy.bank_capacity": [20]})
    search = Search(of, results)
    run = search.ask()
    assert run is not None
    search.tell(run.name, "failed")
    assert search.ask() is None and search.is_exhausted()
    assert states(search, results) == ["failed"] * 3


def test_a_median_pruner_ends_what_lags_behind(results: ResultFolder) -> None:
    """Values at iterations 100 and 200; a trial is pruned where it is below the median of those before it."""
    of = experiment(trials=5, pruner={"name": "MedianPruner", "n_startup_trials": 2, "n_warmup_steps": 150})
    search = Search(of, results)
    curves = [(1.0, 5.0), (2.0, 3.0), (0.5, 6.0), (9.0, 3.5), (9.0, 4.9)]
    pruned = []
    for curve in curves:
        run = search.ask()
        assert run is not None
        assert not search.report(run.name, 100, {"AP.b": 0.0, "AP.b.r": curve[0]})  # warming up
        if search.report(run.name, 200, {"AP.b": 99.0, "AP.b.r": curve[1]}):
            pruned.append(curve)
            search.tell(run.name, "pruned")
        else:
            search.tell(run.name, "finished", finish(run, results, of))
    # Medians at 200: the first two start up; (5, 3) -> 4; (5, 3, 6) -> 5: a trial's best so far, 9, is no worse.
    assert pruned == []
    assert states(search, results) == ["finished"] * 5


def test_a_median_pruner_by_hand(results: ResultFolder) -> None:
    of = experiment(trials=4, pruner={"name": "MedianPruner", "n_startup_trials": 2})
    search = Search(of, results)
    asked = [search.ask() for _ in range(4)]
    runs = [run for run in asked if run is not None]
    for run, value in zip(runs[:2], (4.0, 8.0), strict=True):
        assert not search.report(run.name, 100, {"AP.b.r": value})
        search.tell(run.name, "finished", finish(run, results, of))
    # The median of the finished ones at iteration 100 is 6.
    assert not search.report(runs[2].name, 100, {"AP.b.r": 6.5})
    assert not search.report(runs[3].name, 100, {"AP.b.r": None})  # no category of the bucket
    assert search.report(runs[3].name, 200, {"AP.b.r": 5.5}) is False  # nobody was measured at 200
    assert not search.report(runs[2].name, 100, {"AP.b.r": 1.0})  # a resumed run says it again: the first counts
    search.tell(runs[2].name, "finished", finish(runs[2], results, of))
    assert states(search, results) == ["finished", "finished", "finished", "running"]


def prune_last(search: Search, results: ResultFolder, of: Experiment) -> PlannedRun:
    """Two finish, the third is pruned at iteration 100."""
    runs = [run for run in (search.ask(), search.ask(), search.ask()) if run is not None]
    for run, value in zip(runs[:2], (4.0, 8.0), strict=True):
        assert not search.report(run.name, 100, {"AP.b.r": value})
        search.tell(run.name, "finished", finish(run, results, of))
    assert search.report(runs[2].name, 100, {"AP.b.r": 5.5})
    leave_pruned(runs[2], results, of, {100: 5.5})
    return runs[2]


def test_pruned_trials_stay_pruned(results: ResultFolder) -> None:
    of = experiment(trials=3, pruner={"name": "MedianPruner", "n_startup_trials": 2})
    search = Search(of, results)
    run = prune_last(search, results, of)
    search.tell(run.name, "pruned")
    assert search.is_exhausted()
    stored = found(search, results)
    assert [(trial.state, trial.values is None) for trial in stored.trials][2] == ("pruned", True)
    assert 2 not in stored.best
    assert Search(of, results).is_exhausted()
    results.study_journal.unlink()
    rebuilt = Search(of, results)
    assert rebuilt.is_exhausted() and sorted(states(rebuilt, results)) == ["finished", "finished", "pruned"]


def test_a_run_that_was_pruned_as_its_harness_died_is_pruned(results: ResultFolder) -> None:
    of = experiment(trials=3, pruner={"name": "MedianPruner", "n_startup_trials": 2})
    prune_last(Search(of, results), results, of)
    search = Search(of, results)
    assert search.is_exhausted() and states(search, results) == ["finished", "finished", "pruned"]


def test_a_pruned_run_stays_pruned_where_a_second_worker_was_sent_away(results: ResultFolder) -> None:
    of = experiment(trials=3, pruner={"name": "MedianPruner", "n_startup_trials": 2})
    folder = results.run(prune_last(Search(of, results), results, of).name)
    pruned = folder.read_attempts()[-1]
    folder.add_attempt(pruned.model_copy(update={"exit_status": HELD, "signal": None, "cause": None}))
    results.study_journal.unlink()
    search = Search(of, results)
    assert search.is_exhausted() and sorted(states(search, results)) == ["finished", "finished", "pruned"]


def test_without_a_pruner_a_pruned_run_is_gone_on_with(results: ResultFolder) -> None:
    of = experiment(trials=3, pruner={"name": "MedianPruner", "n_startup_trials": 2})
    search = Search(of, results)
    run = prune_last(search, results, of)
    search.tell(run.name, "pruned")
    results.study_journal.unlink()
    assert names(do_all(Search(experiment(trials=3), results), results, of)) == [run.name]


def test_a_pruned_configuration_is_pruned_again_without_a_run(results: ResultFolder) -> None:
    space = {"strategy.bank_capacity": [20, 60]}
    of = experiment(trials=8, space=space, pruner={"name": "ThresholdPruner", "lower": 5.0})
    search = Search(of, results)
    pruned = search.ask()
    assert pruned is not None and search.report(pruned.name, 100, {"AP.b.r": 1.0})
    search.tell(pruned.name, "pruned")
    assert pruned.name not in names(do_all(search, results, of))
    assert set(states(search, results)) == {"pruned", "finished"}


def test_intermediate_values_are_no_matter_of_several_objectives(results: ResultFolder) -> None:
    search = Search(experiment(objectives=["AP.b", "AP.b.r"]), results)
    run = search.ask()
    assert run is not None and not search.report(run.name, 100, {"AP.b": 1.0, "AP.b.r": 1.0})


def test_intermediate_values_of_a_metrics_file(results: ResultFolder) -> None:
    folder = results.run("some")
    folder.create()
    assert evaluations(folder, "AP.b") == {}
    lines = [
        {"iteration": 99, "total_loss": 1.0},
        {"iteration": 100, "evaluation/AP.b": 5.0, "evaluation/AP.b.r": None},
        {"iteration": 200, "evaluation/AP.b": 6.0},
        {"iteration": 200, "evaluation/AP.b": 6.5},  # after a resume: the later counts
        {"phase": "evaluate"},
    ]
    folder.metrics_file.write_text("\n".join(json.dumps(line) for line in lines) + '\n[1]\n{"iteration": 300, "evalu')
    assert evaluations(folder, "AP.b") == {100: 5.0, 200: 6.5}
    assert evaluations(folder, "AP.b.r") == {}


# The journal: an index of the run folders


def test_deleting_the_journal_loses_nothing(results: ResultFolder) -> None:
    of = experiment(trials=6)
    before = Search(of, results)
    do_all(before, results, of)
    expected = found(before, results)
    results.study_journal.unlink()
    results.search_file.unlink()
    search = Search(of, results)
    assert search.is_exhausted() and search.ask() is None
    rebuilt = found(search, results)
    assert rebuilt == expected  # numbers too: the records tell in which order they came
    assert search.planned() == before.planned()


def test_deleting_the_journal_in_the_middle_loses_no_run_that_goes_on(results: ResultFolder) -> None:
    of = experiment(trials=3)
    search = Search(of, results)
    finished, going = search.ask(), search.ask()
    assert finished is not None and going is not None
    search.tell(finished.name, "finished", finish(finished, results, of))
    start(going, results, make_plan(of))
    results.study_journal.unlink()
    again = Search(of, results)
    assert again.ask() == going
    again.tell(going.name, "finished", finish(going, results, of))
    assert len(do_all(again, results, of)) == 1
    assert len(found(again, results).trials) == 3


@pytest.mark.parametrize("torn", [b'{"op_code":4,"wor', b"\x00\xff\xfe", b'{"op_code":4}', b"\x00\x00\n"], ids=str)
def test_a_torn_last_line_is_cut_when_the_study_is_opened(results: ResultFolder, torn: bytes) -> None:
    of = experiment(trials=3)
    search = Search(of, results)
    run = search.ask()
    assert run is not None
    search.tell(run.name, "finished", finish(run, results, of))
    whole = results.study_journal.read_bytes()
    results.study_journal.write_bytes(whole + torn)
    again = Search(of, results)
    assert names(again.planned()) == [run.name]
    assert results.study_journal.read_bytes() == whole
    assert len(do_all(again, results, of)) == 2
    assert Search(of, results).is_exhausted()


def test_a_harness_goes_on_after_another_died_in_the_middle_of_a_line(results: ResultFolder) -> None:
    of = experiment(trials=2)
    search = Search(of, results)
    first = search.ask()
    assert first is not None
    with open(results.study_journal, "ab") as file:
        file.write(b'{"op_code":6,"worker_id":"x","tri')
    search.tell(first.name, "finished", finish(first, results, of))
    assert len(do_all(search, results, of)) == 1
    assert Search(of, results).is_exhausted()


DAMAGE = {
    "no JSON": b"not JSON\n",
    "no operation": b"[1]\n",
    "an unknown operation": b'{"op_code":99}\n',
    "an operation without its parts": b'{"op_code":5}\n',
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_journal_is_set_aside_and_rebuilt(results: ResultFolder, damage: bytes) -> None:
    of = experiment(trials=3)
    search = Search(of, results)
    do_all(search, results, of)
    expected = found(search, results)
    lines = results.study_journal.read_bytes().splitlines(keepends=True)
    results.study_journal.write_bytes(b"".join([*lines[:4], damage, *lines[4:]]))
    damaged = results.study_journal.read_bytes()
    again = Search(of, results)
    assert again.is_exhausted()
    assert sorted((t.run or "", t.values) for t in found(again, results).trials if t.state == "finished") == sorted(
        (t.run or "", t.values) for t in expected.trials
    )
    # What lies before the damage stays, unless the lines contradict each other.
    stays = b"".join(lines[:4]) in results.study_journal.read_bytes()
    assert stays == (b"op_code" not in damage)
    (aside,) = results.root.glob("study.journal.set-aside-*")
    assert aside.read_bytes() == damaged
    assert any(f"was damaged: kept as {aside}" in line for line in again.summary())
    assert not any("was damaged" in line for line in Search(of, results).summary())


def test_a_killed_holder_of_the_lock_frees_it_at_once(results: ResultFolder) -> None:
    of = experiment(trials=1)
    Search(of, results)
    code = (
        "import time; from pathlib import Path; from rio_bench.study_storage import StudyLock\n"
        "StudyLock(Path(sys.argv[1]), Path(sys.argv[2])).acquire(); print('held', flush=True); time.sleep(60)"
    )
    holder = process(code, results.study_lock, results.study_journal)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGKILL)
    began = time.monotonic()
    search = Search(of, results)
    assert search.ask() is not None
    assert time.monotonic() - began < 5  # Optuna's own locks: 30 s
    holder.wait()


def test_a_lock_that_is_held_too_long_is_told(results: ResultFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(experiment(), results)
    monkeypatch.setattr("rio_bench.study_storage.LOCK_PATIENCE_SECONDS", 0.1)
    with (
        StudyLock(results.study_lock, results.study_journal),
        pytest.raises(UserError, match="another process has held"),
    ):
        search.ask()
    assert search.ask() is not None


def test_harnesses_killed_at_any_moment_lose_nothing(results: ResultFolder) -> None:
    of = experiment(trials=12, sampler="RandomSampler")
    code = (
        "from pathlib import Path; from fake_trials import experiment, harness\n"
        "print('ready', flush=True); harness(Path(sys.argv[1]), experiment(trials=12, sampler='RandomSampler'))"
    )
    results.root.mkdir(parents=True)
    for delay in (0.35, 0.5, 0.45):
        one = process(code, results.root)
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
        time.sleep(delay)
        one.kill()
        one.wait()
    assert process(code, results.root).wait() == 0
    search = Search(of, results)
    stored = found(search, results)
    finished = [trial.run for trial in stored.trials if trial.state == "finished"]
    assert len(finished) == len(set(finished)) == 12 and search.is_exhausted()
    # A run is started again only where its harness was killed in it.
    starts = (results.root / "starts").read_text().split()
    assert len(set(starts)) == 12 and len(starts) <= 12 + 3


def test_two_processes_share_one_study(results: ResultFolder) -> None:
    code = (
        "from pathlib import Path; from fake_trials import experiment, harness\n"
        "harness(Path(sys.argv[1]), experiment(trials=16, sampler='RandomSampler'))"
    )
    results.root.mkdir(parents=True)
    both = [process(code, results.root) for _ in range(2)]
    assert [one.wait(timeout=60) for one in both] == [0, 0]
    starts = (results.root / "starts").read_text().split()
    assert Counter(starts).most_common(1)[0][1] == 1 and len(starts) == 16
    search = Search(experiment(trials=16, sampler="RandomSampler"), results)
    stored = found(search, results)
    assert [trial.state for trial in stored.trials] == ["finished"] * 16
    assert {trial.run for trial in stored.trials} == set(starts) and search.is_exhausted()


def test_a_full_disk_is_told_in_one_line(results: ResultFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    of = experiment(trials=2)
    search = Search(of, results)
    run = search.ask()
    assert run is not None
    record = finish(run, results, of)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("optuna.storages.journal._file.os.fsync", full)
        with pytest.raises(UserError, match="study.journal: No space left on device"):
            search.tell(run.name, "finished", record)
    assert states(Search(of, results), results)[0] == "finished"  # nothing was lost


def test_a_trial_whose_harness_died_while_it_asked_is_closed(results: ResultFolder) -> None:
    of = experiment(trials=2)
    search = Search(of, results)
    search._study.ask()  # what is left of an ask() that SIGKILL ends
    search._study.ask(of.search.distributions())  # type: ignore[union-attr]
    again = Search(of, results)
    assert len(do_all(again, results, of)) == 2
    assert Counter(states(again, results)) == {"failed": 2, "finished": 2}


def test_a_run_that_lost_its_record_is_done_again(results: ResultFolder) -> None:
    of = experiment(trials=2)
    search = Search(of, results)
    first, second = do_all(search, results, of)
    results.run(first.name).record_file.unlink()
    results.run(second.name).record_file.write_text('{"torn')
    again = Search(of, results)
    assert not again.is_exhausted()
    assert [again.ask(), again.ask(), again.ask()] == [first, second, None]
    assert not again.is_exhausted()
    assert again.tell(first.name, "finished", finish(first, results, of)) is None
    line = again.tell(second.name, "finished", finish(second, results, of, {"AP.b.r": 1.0}))
    assert line == f"trial 1: its run now gives other values than the study holds: delete {results.study_journal}"
    assert again.is_exhausted()


# Other files


def test_a_changed_file_starts_another_study_from_the_runs_that_fit(results: ResultFolder) -> None:
    narrow = {"strategy.bank_capacity": {"low": 10, "high": 60}}
    old = experiment(trials=8, space={"strategy.bank_capacity": {"low": 10, "high": 100}}, sampler="RandomSampler")
    runs = do_all(Search(old, results), results, old)
    fitting = [run for run in runs if run.config.strategy.bank_capacity <= 60]  # type: ignore[attr-defined]
    assert 0 < len(fitting) < len(runs)
    new = experiment(trials=len(fitting) + 1, space=narrow, objectives=["AP.b", "AP.b.r"])
    assert study_name(new) != study_name(old)
    search = Search(new, results)
    assert names(search.planned()) == names(fitting)
    assert found(search, results).trials[0].values == values_of(fitting[0])  # both objectives, from the records
    (run,) = do_all(search, results, new)
    assert run.name not in names(runs)
    # The old one is as it was.
    assert Search(old, results).is_exhausted()


def test_more_trials_another_sampler_or_pruner_are_the_same_study() -> None:
    same = [
        experiment(),
        experiment(trials=99),
        experiment(sampler="RandomSampler"),
        experiment(pruner="MedianPruner"),
    ]
    other = [
        experiment(objectives=["AP.b"]),
        experiment(space=FOUR),
        experiment(space={**SPACE, "strategy.bank_capacity": {"low": 10, "high": 100, "log": True}}),
        experiment(name="other"),
        experiment(run={**RUN, "iterations": 200}),
    ]
    assert len({study_name(of) for of in same}) == 1
    assert len({study_name(of) for of in [*same, *other]}) == 6


SPACES: dict[str, dict[str, Any]] = {
    "numbers": {"strategy.bank_capacity": {"low": 10, "high": 100}, "classifier.temperature": {"low": 20, "high": 50}},
    "fractions": {"strategy.repeat_threshold": {"low": 0.01, "high": 1.0, "log": True}, "seed": [0, 1]},
    "steps": {"strategy.samples_per_class": {"low": 5, "high": 65, "step": 20}},
    "whole fields": {
        "classifier": ["linear", "cosine", {"name": "cosine", "temperature": 20}],
        "strategy": ["none", "rio", {"name": "rio", "bank_capacity": 30}],
    },
    "a whole field and its parts": {
        "strategy": ["object_only", {"name": "rio", "repeat_threshold": 0.5}],
        "strategy.bank_capacity": {"low": 10, "high": 100},
    },
    "the strategy's name": {"strategy.name": ["object_only", "rio"], "mixed_precision": [True, False]},
    "none": {"strategy.max_pushes_per_object": [None, 4], "learning_rate": [None, 0.1]},
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_the_parameters_of_a_run_are_found_from_its_configuration(results: ResultFolder, space: dict[str, Any]) -> None:
    run = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "iterations": 10}
    if "strategy" not in space and "strategy.name" not in space:
        run["strategy"] = "rio"
    section = {"trials": 6, "objectives": "AP.b", "space": space, "sampler": "RandomSampler"}
    of = Experiment.model_validate({"name": "banks", "run": run, "search": section})
    search = Search(of, results)
    runs = do_all(search, results, of, lambda run: {"AP.b": 1.0})
    for planned in runs:
        stored = results.run(planned.name).read_run()
        assert stored is not None
        params = params_of(of, stored)
        assert params is not None and identity(of.trial(params)) == planned.identity
        # A run of another length, or of another strategy, is none of the search's.
        longer = of.trial(params).model_copy(update={"iterations": 11})
        config = {**stored.config, "iterations": 11}
        assert params_of(of, stored.model_copy(update={"config": config, "identity": identity(longer)})) is None
    results.study_journal.unlink()
    assert set(names(Search(of, results).planned())) == set(names(runs))


def test_each_trial_starts_from_its_base_run(results: ResultFolder) -> None:
    of = experiment(trials=3, warm_start={"strategy": "none", "iterations": 50})
    search = Search(of, results)
    runs = do_all(search, results, of)
    base, *trials = search.planned()
    assert base.is_base and trials == runs and {run.after for run in runs} == {base.name}
    assert make_plan(of).runs == (base,)
    finish(base, results, of, {})
    results.study_journal.unlink()
    again = Search(of, results)
    assert len(found(again, results).trials) == 3  # the base run is no trial


# What was found


def test_the_pareto_front_by_hand(results: ResultFolder) -> None:
    """(AP.b.r, AP.b): (1, 9), (3, 7), (5, 2) are on it; (2, 6) is worse than (3, 7) in both, (5, 1) than (5, 2)."""
    points = [(1.0, 9.0), (2.0, 6.0), (3.0, 7.0), (5.0, 1.0), (5.0, 2.0)]
    of = experiment(trials=5, objectives=["AP.b.r", "AP.b"])
    search = Search(of, results)
    for rare, every in points:
        run = search.ask()
        assert run is not None
        search.tell(run.name, "finished", finish(run, results, of, {"AP.b.r": rare, "AP.b": every}))
    assert found(search, results).best == (4, 2, 0)
    lines = search.summary()
    start = lines.index("Pareto front of AP.b.r, AP.b: 3 trials")
    assert lines[start + 1].startswith("  AP.b.r 5.00, AP.b 2.00: rio (bank_capacity=")
    assert [line.split(":")[0] for line in lines[start + 2 : start + 4]] == [
        "  AP.b.r 3.00, AP.b 7.00",
        "  AP.b.r 1.00, AP.b 9.00",
    ]


def test_the_best_trial(results: ResultFolder) -> None:
    of = experiment(trials=4)
    search = Search(of, results)
    assert "best: no trial has finished" in search.summary()
    runs = do_all(search, results, of)
    best = min(runs, key=lambda run: run.config.strategy.repeat_threshold)  # type: ignore[attr-defined]
    assert found(search, results).best == (runs.index(best),)
    told = f"best: AP.b.r {values_of(best)['AP.b.r']:.2f}: {best.method} (trial {runs.index(best)}, {best.name})"
    assert told in search.summary()
    assert f"in a browser: optuna-dashboard {results.study_journal} (pip install optuna-dashboard)" in search.summary()


def test_importance_names_what_matters_and_only_with_enough_trials(results: ResultFolder) -> None:
    few = experiment(trials=19, sampler="RandomSampler")
    search = Search(few, results)
    do_all(search, results, few)
    assert found(search, results).importance == {}
    assert "importance of each parameter: from 20 finished trials on" in search.summary()
    many = experiment(trials=40, sampler="RandomSampler")
    search = Search(many, results)
    do_all(search, results, many)
    (shares,) = found(search, results).importance.values()
    assert next(iter(shares)) == "strategy.repeat_threshold"
    assert sum(shares.values()) == pytest.approx(1) and shares["strategy.repeat_threshold"] > 0.8
    assert any(line.startswith("importance for AP.b.r: strategy.repeat_threshold 0.") for line in search.summary())


def test_importance_is_about_the_good_trials(results: ResultFolder) -> None:
    """Among large banks, the good ones, the bank decides; among small ones, the bad ones, the threshold."""

    def values(run: PlannedRun) -> dict[str, float | None]:
        strategy: Any = run.config.strategy
        bank = strategy.bank_capacity
        return {"AP.b.r": bank if bank > 55 else -strategy.repeat_threshold}

    of = experiment(trials=40, sampler="RandomSampler")
    search = Search(of, results)
    do_all(search, results, of, values)
    (shares,) = found(search, results).importance.values()
    assert shares["strategy.bank_capacity"] > 0.5


def test_values_that_do_not_differ_have_no_importance(results: ResultFolder) -> None:
    of = experiment(trials=21, sampler="RandomSampler")
    search = Search(of, results)
    do_all(search, results, of, lambda run: {"AP.b.r": 5.0})
    assert found(search, results).importance == {}


def test_optuna_is_silent(results: ResultFolder) -> None:
    code = (
        "from pathlib import Path; from fake_trials import experiment, harness\n"
        "sampler = {'name': 'TPESampler', 'n_startup_trials': 5, 'group': True}\n"
        "harness(Path(sys.argv[1]), experiment(trials=21, sampler=sampler, pruner='MedianPruner'))"
    )
    results.root.mkdir(parents=True)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{code}", str(results.root)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


# Team: several result folders, one database


def test_result_folders_that_share_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/team.db"
    of = experiment(trials=4, storage=url)
    here, there = ResultFolder(tmp_path / "here"), ResultFolder(tmp_path / "there")
    mine, theirs = Search(of, here), Search(of, there)
    first, second = mine.ask(), theirs.ask()
    assert first is not None and second is not None and first != second
    # Another folder's run is not taken for a lost one, and is no part of this one's plan.
    assert names(mine.planned()) == [first.name] and names(theirs.planned()) == [second.name]
    again = Search(of, here)
    assert again.ask() == first
    again.tell(first.name, "finished", finish(first, here, of))
    third, fourth = again.ask(), again.ask()
    assert third is not None and fourth is not None and again.ask() is None
    for run in (third, fourth):
        again.tell(run.name, "finished", finish(run, here, of))
    assert again.is_exhausted()  # the fourth is for the other folder to end
    assert not theirs.is_exhausted()
    theirs.tell(second.name, "finished", finish(second, there, of))
    assert theirs.is_exhausted()
    assert [trial.state for trial in found(theirs, there).trials] == ["finished"] * 4


def test_what_another_folder_has_finished_is_not_trained_again(tmp_path: Path) -> None:
    of = experiment(trials=3, space={"strategy.bank_capacity": [20]}, storage=f"sqlite:///{tmp_path}/team.db")
    here, there = ResultFolder(tmp_path / "here"), ResultFolder(tmp_path / "there")
    mine, theirs = Search(of, here), Search(of, there)
    run = mine.ask()
    assert run is not None
    mine.tell(run.name, "finished", finish(run, here, of))
    assert theirs.ask() is None and theirs.is_exhausted()
    assert [trial.values for trial in found(theirs, there).trials] == [{"AP.b.r": 9.999}] * 3


def test_a_missing_driver_is_told_with_the_line_that_installs_it(
    results: ResultFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    of = experiment(storage="postgresql://me:hunter2@127.0.0.1/team")
    with pytest.raises(UserError) as error:
        Search(of, results)
    line = "postgresql://me:***@127.0.0.1/team: psycopg is not installed: pip install 'psycopg[binary]'"
    assert str(error.value) == line


@pytest.mark.parametrize(
    "url", ["postgresql://me:hunter2@127.0.0.1:1/team", "postgresql://127.0.0.1:1/team?user=me&password=hunter2"]
)
def test_a_database_that_does_not_answer_is_told_in_one_line(
    results: ResultFolder, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr("rio_bench.study_storage.OPENING_ATTEMPTS", 1)
    with pytest.raises(UserError, match=r"^postgresql://.*\*\*\*.*: .*127.0.0.1.* failed") as error:
        Search(experiment(storage=url), results)
    assert "hunter2" not in str(error.value) and len(str(error.value).splitlines()) == 1


# At random: whatever happens in whatever order


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(["ask", "finish", "fail", "restart", "forget", "tear"]), max_size=25), st.integers(0, 3)
)
def test_whatever_happens_each_run_is_done_once_and_the_search_ends(
    tmp_path_factory: pytest.TempPathFactory, events: list[str], seed: int
) -> None:
    results = ResultFolder(tmp_path_factory.mktemp("random") / "banks")
    of = experiment(
        trials=6,
        space={"strategy.bank_capacity": {"low": 10, "high": 17}},
        sampler={"name": "RandomSampler", "seed": seed},
    )
    search = Search(of, results)
    going: list[PlannedRun] = []
    finished: list[PlannedRun] = []
    for event in events:
        if event == "ask" and (run := search.ask()) is not None:
            assert run.name not in names(going) and run.name not in names(finished)
            start(run, results, make_plan(of))
            going.append(run)
        elif event == "finish" and going:
            run = going.pop(0)
            finished.append(run)
            search.tell(run.name, "finished", finish(run, results, of))
        elif event == "fail" and going:
            search.tell(going.pop().name, "failed")
        elif event in ("restart", "forget", "tear"):
            going.clear()
            if event == "forget":
                results.study_journal.unlink()
            if event == "tear":
                os.truncate(results.study_journal, results.study_journal.stat().st_size * 2 // 3)
            search = Search(of, results)
    for run in going:
        finished.append(run)
        search.tell(run.name, "finished", finish(run, results, of))
    finished += do_all(search, results, of)
    assert len(names(finished)) == len(set(names(finished))) <= 8
    ended = [trial for trial in found(search, results).trials if trial.state in ("finished", "failed") and trial.run]
    assert len(ended) >= 6
    planner = trial_planner(of)
    assert all(planner(run.config) == [run] for run in search.planned())
