"""A search carried out: the real scheduler and study, runs that are reused, pruned, killed and given out again."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import trial_worker
from rich.console import Console

from rio_bench.config import Experiment, load_experiment
from rio_bench.engines.local import TIED, LocalEngine
from rio_bench.plan import make_plan, stored_plan, with_trials
from rio_bench.progress import PlainDisplay
from rio_bench.records import ResultFolder
from rio_bench.report.cells import compare
from rio_bench.scheduler import Scheduler
from rio_bench.search import Search
from rio_bench.tasks import Outcome

FILE = """
name: capacities
baseline: rio
run: {dataset: glyphs-mini, recipe: small, backbone: R18-FPN, strategy: rio, iterations: 10}
execution: {evaluate_every: 5}
search:
  objectives: AP.b
  trials: TRIALS
  sampler: RandomSampler
  pruner: {name: ThresholdPruner, lower: 5.0}
  space: {strategy.bank_capacity: [10, 20, 60, 80, 90]}
"""

HARNESS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_search_runs
from pathlib import Path
test_search_runs.go(Path(sys.argv[1]), int(sys.argv[2]))
"""


def go(root: Path, trials: int) -> tuple[Outcome, Search]:
    root.mkdir(exist_ok=True)
    file = root / "experiment.yaml"
    file.write_text(FILE.replace("TRIALS", str(trials)))
    experiment: Experiment = load_experiment(file)
    results = ResultFolder(root / "results")
    plan, search = make_plan(experiment), Search(experiment, results)
    results.write_plan(stored_plan(with_trials(plan, search.planned())))
    engine = LocalEngine(plan.execution, "cpu", 2, main=trial_worker.main, preload=(TIED,))
    with PlainDisplay(Console(file=io.StringIO())) as display:
        return Scheduler(plan, results, engine, search=search).run(display), search


def starts(root: Path) -> Counter[str]:
    file = root / "results" / "starts"
    return Counter(json.loads(line)["name"] for line in file.read_text().splitlines()) if file.exists() else Counter()


def test_a_search_prunes_reuses_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    outcome, search = go(tmp_path, 8)
    assert not outcome.failed and not outcome.stopped
    results = ResultFolder(tmp_path / "results")
    first = results.read_search()
    assert first is not None
    assert len(first.trials) == 8
    for trial in first.trials:
        low = trial.params["strategy.bank_capacity"] < trial_worker.LOW
        assert trial.state == ("pruned" if low else "finished")
        assert low or trial.values == {"AP.b": trial.params["strategy.bank_capacity"] / 10}
    drawn = {trial.params["strategy.bank_capacity"] for trial in first.trials}
    assert set(starts(tmp_path).values()) == {1}  # the same configuration is trained once, however often it is drawn
    assert len(starts(tmp_path)) == len(drawn)
    assert len(outcome.pruned) == len([capacity for capacity in drawn if capacity < trial_worker.LOW])
    best = max(trial.values["AP.b"] for trial in first.trials if trial.values)
    assert f"AP.b {best:.2f}" in "\n".join(search.summary())
    table = compare(results)
    assert sorted(cell.mean("AP.b") or 0 for cell in table.cells if cell.records) == sorted(
        capacity / 10 for capacity in drawn if capacity >= trial_worker.LOW
    )

    assert sum(starts(tmp_path).values()) == len(drawn)
    again, _ = go(tmp_path, 8)
    assert (again.finished, again.failed, again.pruned) == ([], [], [])
    assert sum(starts(tmp_path).values()) == len(drawn)
    go(tmp_path, 12)
    more = results.read_search()
    assert more is not None
    assert more.trials[:8] == first.trials
    assert len(more.trials) == 12


def test_trials_of_a_killed_harness_are_given_out_again(tmp_path: Path) -> None:
    harness = subprocess.Popen([sys.executable, "-c", HARNESS, str(tmp_path), "5"])
    deadline = time.monotonic() + 60
    while len(starts(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    harness.kill()
    harness.wait()
    results = ResultFolder(tmp_path / "results")
    outcome, _ = go(tmp_path, 5)
    assert not outcome.failed and not outcome.stopped
    found = results.read_search()
    assert found is not None
    assert len(found.trials) == 5
    assert all(trial.state in ("finished", "pruned") for trial in found.trials)
