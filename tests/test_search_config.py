"""The section `search` of an experiment file: what it means, and what it refuses in one line with its place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest

from rio_bench import strategy
from rio_bench.config import Experiment, RunConfig, load_experiment
from rio_bench.errors import UserError
from rio_bench.plan import make_plan, select, trial_planner
from rio_bench.records import ResultFolder
from rio_bench.search_config import Choices, Range, SearchConfig

GOOD = """\
run:
  dataset: glyphs-mini
  backbone: R18-FPN
  iterations: 10
  strategy: rio
search:
  trials: 5
  objectives: [AP.b.r]
  space:
    strategy.bank_capacity: {low: 10, high: 100}
    strategy.repeat_threshold: {low: 0.01, high: 1.0, log: true}
    classifier: [linear, cosine]
"""
PRUNED = GOOD + "  pruner: MedianPruner\nexecution: {evaluate_every: 5}\n"


def load(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> Experiment:
    path = folder / "small.yaml"
    path.write_text(text)
    return load_experiment(path, overrides)


def searched(experiment: Experiment) -> SearchConfig:
    assert experiment.search is not None
    return experiment.search


def test_a_search_in_a_file(tmp_path: Path) -> None:
    experiment = load(tmp_path, GOOD)
    search = searched(experiment)
    assert (search.trials, search.objectives, str(search.sampler), search.pruner) == (5, ["AP.b.r"], "TPESampler", None)
    assert experiment.cells == ()
    config = experiment.trial({"strategy.bank_capacity": 57, "strategy.repeat_threshold": 0.5, "classifier": "linear"})
    assert config.strategy == strategy.load("rio")(bank_capacity=57, repeat_threshold=0.5)
    assert config.classifier.name == "linear"
    # Each bound and each choice is resolved as a run before any is trained.
    points = [
        (p.strategy.bank_capacity, p.strategy.repeat_threshold, p.classifier.name) for p in experiment.search_points
    ]  # type: ignore[attr-defined]
    assert {point[0] for point in points} == {10, 100}
    assert {point[1] for point in points} == {0.01, 1.0}
    assert {point[2] for point in points} == {"linear", "cosine"}


def test_a_sampler_and_a_pruner_with_arguments(tmp_path: Path) -> None:
    text = PRUNED.replace("MedianPruner", "{name: MedianPruner, n_warmup_steps: 100}")
    search = searched(load(tmp_path, text + "", ("search.sampler={name: TPESampler, n_startup_trials: 5}",)))
    assert (str(search.sampler), str(search.pruner)) == (
        "TPESampler(n_startup_trials=5)",
        "MedianPruner(n_warmup_steps=100)",
    )


@pytest.mark.parametrize("name", ["RandomSampler", "TPESampler", "NSGAIISampler", "NSGAIIISampler", "QMCSampler"])
def test_samplers_by_their_names(tmp_path: Path, name: str) -> None:
    assert (
        searched(load(tmp_path, GOOD, (f"search.sampler={name}", "search.objectives=[AP.b, AP.m]"))).sampler.name
        == name
    )


def test_numbers_are_whole_where_both_bounds_are() -> None:
    from optuna.distributions import FloatDistribution, IntDistribution

    assert Range(low=1, high=8).distribution() == IntDistribution(1, 8)
    assert Range(low=1, high=8.0).distribution() == FloatDistribution(1, 8)
    assert Range(low=1, high=8, log=True).distribution() == IntDistribution(1, 8, log=True)
    # The highest step is what is checked and searched: 10, 40, 70, 100 of 10 ... 110.
    assert Range(low=10, high=110, step=30).distribution() == IntDistribution(10, 100, step=30)
    assert Range(low=0.1, high=0.3, step=0.1).distribution() == FloatDistribution(0.1, 0.3, step=0.1)


def test_which_values_a_range_holds() -> None:
    held = {value: Range(low=10, high=110, step=30).param_of(value) for value in (9, 10, 40, 41, 100, 110, True, "10")}
    assert [value for value, param in held.items() if param is not None] == [10, 40, 100]
    assert Range(low=1, high=50).param_of(20.0) == 20 and Range(low=1, high=50).param_of(20.5) is None
    assert Range(low=0.1, high=0.5, step=0.1).param_of(0.1 + 0.2) is not None


def test_choices_of_any_kind_have_labels_that_a_study_can_hold() -> None:
    choices = Choices(values=["rio", {"name": "rio", "samples_per_class": 8}, None, 3])
    assert choices.labels == ["rio", '{"name": "rio", "samples_per_class": 8}', None, 3]
    assert [choices.value_of(label) for label in choices.labels] == choices.values


def test_the_label_of_a_trial_tells_what_is_searched(tmp_path: Path) -> None:
    experiment = load(tmp_path, GOOD)
    params = {"strategy.bank_capacity": 57, "strategy.repeat_threshold": 0.0123456789, "classifier": "cosine"}
    (run,) = trial_planner(experiment)(experiment.trial(params))
    assert run.method == "rio (bank_capacity=57, repeat_threshold=0.01235), cosine"
    # What is trained is the number itself.
    assert run.config.strategy.repeat_threshold == 0.0123456789  # type: ignore[attr-defined]


def test_the_plan_of_a_search_holds_the_base_run_that_all_trials_share(tmp_path: Path) -> None:
    assert make_plan(load(tmp_path, GOOD)).runs == ()
    of_rio = GOOD.replace("    classifier: [linear, cosine]\n", "")
    base = "warm_start: {strategy: none, iterations: 5}\n"
    experiment = load(tmp_path, of_rio + base)
    (shared,) = make_plan(experiment).runs
    assert shared.is_base and shared.config.iterations == 5
    planned = trial_planner(experiment)(experiment.search_points[0])
    assert planned[0] == shared and planned[1].after == shared.name
    assert make_plan(experiment).search == experiment.search
    # A base run with each trial's own strategy is no common one.
    assert make_plan(load(tmp_path, of_rio + "warm_start: {iterations: 5}\n")).runs == ()


def test_a_dry_run_tells_what_is_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rio_bench.listing import print_plan

    text = PRUNED.replace("100}", "110, step: 50}")
    print_plan(make_plan(load(tmp_path, text)), ResultFolder(tmp_path / "small"))
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "and a search: 5 trials by TPESampler for AP.b.r, pruned by MedianPruner",
        "  strategy.bank_capacity: 10 to 110, steps of 50",
        "  strategy.repeat_threshold: 0.01 to 1.0, log scale",
        "  classifier: linear or cosine",
    ]


def test_a_search_has_no_runs_to_pick_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--only picks runs that are known beforehand"):
        select(make_plan(load(tmp_path, GOOD)), ["rio"])


def test_the_baseline_may_be_a_strategy_that_is_searched(tmp_path: Path) -> None:
    text = GOOD.replace("  strategy: rio\n", "")
    text = text[: text.index("    strategy.bank")] + "    strategy: [none, rio]\n"
    assert load(tmp_path, text + "baseline: rio\n").baseline == "rio"
    with pytest.raises(UserError, match="small.yaml:10: baseline: no run of the experiment has the strategy 'image_on"):
        load(tmp_path, text + "baseline: image_only\n")


# A file's text, the line that the error names, and what it says.
BAD = {
    "a grid, too": (GOOD + "grid: {seed: [0, 1]}\n", 6, "search: a file has a grid or a search, not both"),
    "unknown key": (GOOD.replace("trials", "trails"), 7, "search.trails: unknown key (did you mean 'trials'?)"),
    "no trials": (GOOD.replace("  trials: 5\n", ""), 6, "search.trials: is required"),
    "zero trials": (GOOD.replace("5", "0"), 7, "search.trials: expected greater than or equal to 1, got 0"),
    "no objective": (GOOD.replace("[AP.b.r]", "[]"), 8, "search.objectives: expected at least one value"),
    "unknown objective": (
        GOOD.replace("[AP.b.r]", "AP.b.x"),
        8,
        "search.objectives[0]: no run reports 'AP.b.x' (did you mean 'AP.b.",
    ),
    "objective twice": (GOOD.replace("[AP.b.r]", "[AP.b, AP.b]"), 8, "objectives[1]: 'AP.b' is there twice"),
    "unknown sampler": (
        GOOD + "  sampler: TPESamplr\n",
        13,
        "search.sampler: unknown sampler 'TPESamplr' (did you mean 'TPESampler'?)",
    ),
    "sampler of a wrong kind": (GOOD + "  sampler: [TPESampler]\n", 13, "expected the name of one of Optuna's"),
    "argument of no sampler": (
        GOOD + "  sampler:\n    name: TPESampler\n    n_startup_trial: 3\n",
        15,
        "search.sampler.n_startup_trial: unknown key of TPESampler (did you mean 'n_startup_trials'?)",
    ),
    "argument of a wrong type": (
        GOOD + "  sampler: {name: TPESampler, n_startup_trials: many}\n",
        13,
        "search.sampler.n_startup_trials: expected a valid integer, got 'many'",
    ),
    "a function as argument": (GOOD + "  sampler: {name: TPESampler, gamma: 5}\n", 13, "unknown key of TPESampler"),
    "grid sampler": (GOOD + "  sampler: GridSampler\n", 13, "GridSampler: every combination once is what grid: is for"),
    "brute force": (GOOD + "  sampler: BruteForceSampler\n", 13, "take it instead of search:"),
    "sampler around another": (GOOD + "  sampler: PartialFixedSampler\n", 13, "unknown sampler 'PartialFixedSampler'"),
    "sampler for one objective": (
        GOOD.replace("[AP.b.r]", "[AP.b.r, AP.b]") + "  sampler: CmaEsSampler\n",
        13,
        "search.sampler: CmaEsSampler",
    ),
    "unknown pruner": (GOOD + "  pruner: MedianPrunner\n", 13, "unknown pruner 'MedianPrunner' (did you mean 'Median"),
    "pruner around another": (GOOD + "  pruner: {name: PatientPruner, patience: 3}\n", 13, "unknown pruner 'PatientPr"),
    "argument of no pruner": (GOOD + "  pruner: {name: MedianPruner, warmup: 3}\n", 13, "unknown key of MedianPruner"),
    "missing": (GOOD + "  pruner: PercentilePruner\n", 13, "pruner.percentile: is required by PercentilePruner"),
    "argument out of bounds": (
        GOOD + "  pruner: {name: PercentilePruner, percentile: 101.0}\n",
        13,
        "search.pruner: PercentilePruner: Percentile must be between 0 and 100",
    ),
    "pruner without evaluations": (
        GOOD + "  pruner: MedianPruner\n",
        13,
        "search.pruner: prunes by intermediate evaluations: set execution.evaluate_every",
    ),
    "pruner of several objectives": (
        PRUNED.replace("[AP.b.r]", "[AP.b.r, AP.b]"),
        13,
        "search.pruner: Optuna prunes for one objective only",
    ),
    "empty space": (GOOD[: GOOD.index("    strategy.bank")].replace("space:", "space: {}"), 9, "space: expected at"),
    "no field": (
        GOOD.replace("classifier:", "clasifier:"),
        12,
        "search.space.clasifier: unknown key (did you mean 'classifier'?)",
    ),
    "no hyperparameter": (
        GOOD.replace("bank_capacity", "capacity"),
        10,
        "search.space.strategy.capacity.low: unknown key of strategy 'rio' (did you mean 'bank_capacity'?)",
    ),
    "in run, too": (GOOD.replace("classifier:", "iterations:"), 12, "search.space.iterations: is set in run, too"),
    "warm start": (GOOD.replace("classifier:", "warm_start:"), 12, "belongs at the top of the file, beside run and"),
    "part of a warm start": (
        GOOD.replace("classifier: [linear, cosine]", "warm_start.iterations: [6, 7]"),
        12,
        "search.space.warm_start.iterations: belongs at the top of the file, beside run and search",
    ),
    "low over high": (GOOD.replace("10, high: 100", "100, high: 10"), 10, "low: 100 is more than high, 10"),
    "log of zero": (GOOD.replace("0.01,", "0,"), 11, "threshold.low: expected more than 0 on a log scale, got 0"),
    "log with steps": (GOOD.replace("log: true", "log: true, step: 0.1"), 11, "step: a log scale has no steps"),
    "step of zero": (GOOD.replace("high: 100", "high: 100, step: 0"), 10, "step: expected more than 0, got 0"),
    "broken step": (GOOD.replace("high: 100", "high: 100, step: 0.5"), 10, "step: expected a whole number, as low and"),
    "text for a number": (GOOD.replace("low: 10", "low: ten"), 10, "bank_capacity.low: expected a number, got 'ten'"),
    "true for a number": (GOOD.replace("low: 10", "low: true"), 10, "bank_capacity.low: expected a number, got True"),
    "no number": (GOOD.replace("low: 10", "low: .nan"), 10, "bank_capacity.low: expected a number, got nan"),
    "range without high": (GOOD.replace(", high: 100", ""), 10, "bank_capacity.high: is required"),
    "unknown key of a range": (GOOD.replace("low: 10", "lo: 10"), 10, "lo: unknown key (did you mean 'low'?)"),
    "neither": (GOOD.replace("[linear, cosine]", "linear"), 12, "expected a list of choices or {low: ..., high: ...}"),
    "empty choices": (GOOD.replace("[linear, cosine]", "[]"), 12, "classifier: expected at least one choice"),
    "choice twice": (GOOD.replace("cosine]", "linear]"), 12, "search.space.classifier[1]: 'linear' is there twice"),
    "bad choice": (
        GOOD.replace("cosine]", "cosin]"),
        12,
        "search.space.classifier[1].name: expected 'linear' or 'cosine', got 'cosin' (did you mean 'cosine'?)",
    ),
    "bad low": (GOOD.replace("low: 10", "low: 0"), 10, "bank_capacity.low: expected greater than or equal to 1, got 0"),
    "bad high": (GOOD.replace("high: 1.0", "high: 2.0"), 11, "threshold.high: expected less than or equal to 1"),
    "fractions for whole numbers": (GOOD.replace("low: 10", "low: 10.5"), 10, "low: expected a valid integer"),
    "no storage": (GOOD + "  storage: study.db\n", 13, "search.storage: expected the URL of a database"),
    "unknown kind of database": (GOOD + "  storage: redis://host/0\n", 13, "expected the URL of a database"),
    "a choice that goes with nothing else": (
        GOOD.replace("  strategy: rio\n", "").replace("classifier: [linear, cosine]", "strategy: [rio, none]"),
        9,
        "unknown key of strategy 'none' (it has no hyperparameters)",
    ),
    "choices that contradict each other": (
        GOOD.replace("classifier: [linear, cosine]", "classifier.name: [linear]\n    classifier.temperature: [20, 48]"),
        12,
        "a linear classifier has no temperature",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message"), BAD.values(), ids=BAD.keys())
def test_bad_searches_are_told(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path}/small.yaml:{line}: ") and message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_values_that_go_with_some_of_the_others_are_no_contradiction(tmp_path: Path) -> None:
    """`replays: ratio` has no samples_per_class, but goes with the choice that leaves them out."""
    text = GOOD[: GOOD.index("    strategy.bank")].replace("  strategy: rio\n", "")
    space = """\
    strategy: [alternative_ratios, {name: alternative_ratios, samples_per_class: 5}]
    strategy.replays: [fixed, ratio]
"""
    experiment = load(tmp_path, text + space)
    replays = {(p.strategy.samples_per_class, p.strategy.replays) for p in experiment.search_points}  # type: ignore[attr-defined]
    assert replays == {(20, "fixed"), (5, "fixed"), (20, "ratio")}
    with pytest.raises(pydantic.ValidationError, match="has no effect with replays: ratio"):
        experiment.trial(
            {
                "strategy": json.dumps({"name": "alternative_ratios", "samples_per_class": 5}),
                "strategy.replays": "ratio",
            }
        )


def test_a_missing_package_of_a_sampler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    text = GOOD.replace("    classifier: [linear, cosine]\n", "")
    with pytest.raises(UserError, match="search.sampler: CmaEsSampler needs cmaes: pip install cmaes"):
        load(tmp_path, text + "  sampler: CmaEsSampler\n")


@pytest.mark.parametrize(
    "storage",
    [
        "postgresql://me:hunter2@host:port/db",
        "postgresql://host:port/db?user=me&password=hunter2",
        "nosuchdb://me:hunter2@host/db",
        "[postgresql://me:hunter2@h/d]",
    ],
)
def test_a_password_is_not_shown(tmp_path: Path, storage: str) -> None:
    for text, overrides in ((GOOD + f"  storage: {storage}\n", ()), (GOOD, (f"search.storage={storage}",))):
        with pytest.raises(UserError, match="expected the URL of a database") as error:
            load(tmp_path, text, overrides)
        assert "hunter2" not in str(error.value)


def test_a_password_is_not_in_what_a_traceback_would_show(tmp_path: Path) -> None:
    experiment = load(tmp_path, GOOD + "  storage: postgresql://me:hunter2@host/db\n")
    assert "hunter2" not in repr(experiment) + str(experiment.search)
    storage = searched(experiment).storage
    assert storage is not None and storage.get_secret_value() == "postgresql://me:hunter2@host/db"


def test_a_grid_needs_no_optuna(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GOOD[: GOOD.index("search")] + "grid: {seed: [0, 1]}\n")
    code = (
        "import sys; from rio_bench.config import load_experiment; from rio_bench.plan import make_plan;"
        f"make_plan(load_experiment({str(path)!r})); print('optuna' in sys.modules, 'sqlalchemy' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_a_trial_is_a_run_like_any_other(tmp_path: Path) -> None:
    params: dict[str, Any] = {"strategy.bank_capacity": 57, "strategy.repeat_threshold": 0.5, "classifier": "cosine"}
    by_hand = {
        "dataset": "glyphs-mini",
        "backbone": "R18-FPN",
        "iterations": 10,
        "strategy": {"name": "rio", "bank_capacity": 57, "repeat_threshold": 0.5},
    }
    assert load(tmp_path, GOOD).trial(params) == RunConfig.model_validate(by_hand)
