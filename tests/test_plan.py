"""The plan: which runs an experiment has, their identities, names, labels and order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rio_bench import config as config_module
from rio_bench import plan as plan_module
from rio_bench import scaling
from rio_bench.config import Experiment, RunConfig, canonical
from rio_bench.errors import UserError
from rio_bench.plan import identity, make_plan, select

RUN = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": "rio", "iterations": 10}


def without(*fields: str) -> dict[str, Any]:
    return {key: value for key, value in RUN.items() if key not in fields}


THRESHOLDS = st.sampled_from([0.001, 0.25, 1.0])
STRATEGIES = st.one_of(
    st.just({"name": "none"}),
    st.fixed_dictionaries({"name": st.just("image_only")}, optional={"repeat_threshold": THRESHOLDS}),
    st.fixed_dictionaries(
        {"name": st.just("rio")},
        optional={
            "repeat_threshold": THRESHOLDS,
            "samples_per_class": st.sampled_from([5, 20]),
            "sampling": st.sampled_from(["newest", "random"]),
            "max_pushes_per_object": st.sampled_from([None, 4]),
        },
    ),
)
CLASSIFIERS = st.one_of(
    st.just({"name": "linear"}),
    st.fixed_dictionaries({"name": st.just("cosine")}, optional={"temperature": st.sampled_from([20.0, 48.0])}),
)
SETTINGS = {
    "dataset": st.just("glyphs-mini"),
    "backbone": st.sampled_from(["R18-FPN", "R50-FPN"]),
    "strategy": STRATEGIES,
    "iterations": st.sampled_from([10, 20]),
}
OPTIONAL = {
    "classifier": CLASSIFIERS,
    "recipe": st.sampled_from(["small", "standard"]),
    "batch_size": st.sampled_from([8, 16]),
    "learning_rate": st.sampled_from([None, 1.0, 0.02]),
    "mixed_precision": st.booleans(),
    "seed": st.sampled_from([0, 1]),
}
RUNS = st.fixed_dictionaries(SETTINGS, optional=OPTIONAL)


def say_more(run: dict[str, Any], order: random.Random) -> dict[str, Any]:
    """The same run in other words: every default stated, whole floats as integers, keys in another order."""
    config = RunConfig.model_validate(run)
    full = {field: getattr(config, field) for field in RunConfig.model_fields}
    full["strategy"] = {"name": run["strategy"]["name"], **dict(config.strategy)}
    full["classifier"] = dict(config.classifier) if config.classifier.name == "cosine" else "linear"

    def restate(value: Any) -> Any:
        if isinstance(value, dict):
            items = list(value.items())
            order.shuffle(items)
            return {key: restate(item) for key, item in items}
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return restate(full)


@given(RUNS, st.none() | RUNS, st.randoms())
def test_identity_is_one_whatever_the_words(run: dict[str, Any], base: dict[str, Any] | None, order: Any) -> None:
    plain = RunConfig.model_validate({**run, "warm_start": base})
    restated = RunConfig.model_validate({**say_more(run, order), "warm_start": base and say_more(base, order)})
    assert identity(plain) == identity(restated)
    assert RunConfig.model_validate(canonical(restated)) == plain


@given(RUNS, RUNS, st.none() | RUNS)
def test_identity_differs_where_a_field_differs(
    one: dict[str, Any], other: dict[str, Any], base: dict[str, Any] | None
) -> None:
    first, second = RunConfig.model_validate(one), RunConfig.model_validate({**other, "warm_start": base})
    assert (identity(first) == identity(second)) == (first == second)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "R50-FPN"},
        {"strategy": "none"},
        {"strategy": {"name": "rio", "samples_per_class": 19}},
        {"iterations": 11},
        {"classifier": "linear"},
        {"classifier": {"temperature": 47.0}},
        {"recipe": "small"},
        {"batch_size": 8},
        {"learning_rate": 0.02},
        {"mixed_precision": False},
        {"seed": 1},
        {"warm_start": RUN},
    ],
    ids=str,
)
def test_each_field_counts(change: dict[str, Any]) -> None:
    assert identity(RunConfig.model_validate(RUN)) != identity(RunConfig.model_validate({**RUN, **change}))


def test_the_order_of_the_fields_in_the_code_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.model_validate({**RUN, "seed": 3})
    before = identity(config)
    monkeypatch.setattr(plan_module, "canonical", lambda config: dict(reversed(canonical(config).items())))
    assert identity(config) == before


def test_the_data_sets_content_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.model_validate(RUN)
    before = identity(config)
    monkeypatch.setattr(plan_module, "_dataset_fingerprint", lambda name: "another")
    assert identity(config) != before


RECIPES = {
    "standard.yaml": "MODEL: {DEPTH: 1, FPN: {OUT_CHANNELS: 256, NORM: ''}}\nSOLVER: {BASE_LR: 0.02}\n",
    "small.yaml": "_BASE_: standard.yaml\nMODEL:\n  FPN: {OUT_CHANNELS: 64}\n",
    "backbones/R18-FPN.yaml": "MODEL: {DEPTH: 18}\n",
    "backbones/R50-FPN.yaml": "MODEL: {DEPTH: 50}\n",
}


@pytest.mark.parametrize(
    ("file", "text", "differ"),
    [
        (
            "standard.yaml",
            "# a\nSOLVER:\n  BASE_LR: 2.0e-2 # b\nMODEL: {FPN: {NORM: '', OUT_CHANNELS: 256}, DEPTH: 1}",
            "",
        ),
        ("small.yaml", "MODEL: {FPN: {OUT_CHANNELS: 64}}\n\n_BASE_: 'standard.yaml'\n", ""),
        ("standard.yaml", RECIPES["standard.yaml"].replace("0.02", "0.03"), "small standard"),
        ("standard.yaml", RECIPES["standard.yaml"].replace("NORM: ''", "NORM: BN"), "small standard"),
        ("small.yaml", RECIPES["small.yaml"].replace("64", "32"), "small"),
        ("backbones/R18-FPN.yaml", "MODEL: {DEPTH: 34}\n", "small standard"),
        ("backbones/R50-FPN.yaml", "MODEL: {DEPTH: 51}\n", ""),
        # What a file sets anew does not count in the file below it.
        ("standard.yaml", RECIPES["standard.yaml"].replace("256", "128"), "standard"),
        ("standard.yaml", RECIPES["standard.yaml"].replace("DEPTH: 1", "DEPTH: 2"), ""),
    ],
    ids=[
        "comments and formatting",
        "order",
        "a number of the base",
        "a text of the base",
        "a number of the recipe",
        "the backbone",
        "another backbone",
        "a number that one recipe replaces",
        "a number that the backbone replaces",
    ],
)
def test_what_recipe_and_backbone_set_counts_and_not_how_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, differ: str
) -> None:
    def identities(folder: Path, files: dict[str, str]) -> dict[str, str]:
        (folder / "backbones").mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_text(content)
        monkeypatch.setattr(config_module, "RECIPES", folder)
        monkeypatch.setattr(config_module, "BACKBONES", folder / "backbones")
        return {name: identity(RunConfig.model_validate({**RUN, "recipe": name})) for name in ("small", "standard")}

    before = identities(tmp_path / "before", RECIPES)
    after = identities(tmp_path / "after", {**RECIPES, file: text})
    assert {name for name in before if before[name] != after[name]} == set(differ.split())


def test_the_recipes_fingerprint_is_of_what_detectron2_reads() -> None:
    fvcore = pytest.importorskip("fvcore.common.config")
    for recipe in config_module.recipes():
        file = config_module.recipe_file(recipe)
        assert scaling.file_settings(file) == fvcore.CfgNode.load_yaml_with_base(str(file))


def test_the_weights_content_counts_and_not_where_they_lie(tmp_path: Path) -> None:
    here, there, other = tmp_path / "here.pkl", tmp_path / "there.pkl", tmp_path / "other.pkl"
    here.write_bytes(b"weights")
    there.write_bytes(b"weights")
    other.write_bytes(b"other weights")

    def with_weights(path: Path) -> RunConfig:
        return RunConfig.model_validate({**RUN, "weights": str(path)})

    assert identity(with_weights(here)) == identity(with_weights(there))
    assert identity(with_weights(here)) != identity(with_weights(other))
    assert identity(with_weights(here)) != identity(RunConfig.model_validate(RUN))
    warm = [RunConfig.model_validate({**RUN, "warm_start": with_weights(path)}) for path in (here, there, other)]
    assert identity(warm[0]) == identity(warm[1]) != identity(warm[2])
    with pytest.raises(UserError, match="missing.pkl"):
        identity(with_weights(tmp_path / "missing.pkl"))
    # One content in two places is one run.
    grid = {"weights": [str(here), str(there), str(other)]}
    assert len(make_plan(Experiment(name="x", run=RUN, grid=grid)).runs) == 2


def test_seeds_are_runs_and_equal_cells_are_one_run() -> None:
    grid = {"strategy": ["rio", {"name": "rio", "samples_per_class": 20}], "seed": [0, 1, 2]}
    plan = make_plan(Experiment(name="x", run=without("strategy"), grid=grid))
    assert [run.config.seed for run in plan.runs] == [0, 1, 2]
    assert [run.name for run in plan.runs] == [f"rio-R18-FPN-seed{run.config.seed}-{run.identity}" for run in plan.runs]
    assert {run.method for run in plan.runs} == {"rio"}


def test_base_runs_come_first_once_and_are_waited_for() -> None:
    experiment = Experiment(
        name="x",
        run=without("strategy"),
        warm_start={"strategy": "none", "iterations": 100},
        grid={"seed": [0, 1], "strategy": ["none", "rio"]},
    )
    plan = make_plan(experiment)
    assert [run.is_base for run in plan.runs] == [True, True, False, False, False, False]
    bases = {run.config.seed: run for run in plan.runs[:2]}
    for run in plan.runs[2:]:
        base = bases[run.config.seed]
        assert run.after == base.name
        assert run.config.warm_start == base.config
    assert all(base.after is None and base.config.iterations == 100 for base in bases.values())
    assert len({run.identity for run in plan.runs}) == 6
    # The base's own iterations are no axis of the experiment.
    assert [run.method for run in plan.runs[:4]] == ["none, base run", "none, base run", "none", "rio"]


def labels(run: dict[str, Any], grid: dict[str, list[Any]]) -> list[str]:
    return [planned.method for planned in make_plan(Experiment(name="x", run=run, grid=grid)).runs]


def test_method_labels_tell_what_differs_within_the_experiment() -> None:
    run = without("strategy")
    assert labels(run, {"strategy": ["none", {"name": "rio", "samples_per_class": 5}]}) == ["none", "rio"]
    assert labels({**run, "strategy": "rio"}, {"strategy.samples_per_class": [5, 20]}) == [
        "rio (samples_per_class=5)",
        "rio (samples_per_class=20)",
    ]
    assert labels(run, {"classifier": ["linear", "cosine"], "strategy": ["image_only"]}) == [
        "image_only, linear",
        "image_only, cosine",
    ]
    assert labels({**run, "strategy": "rio"}, {"classifier.temperature": [20, 48]}) == [
        "rio, cosine (temperature=20.0)",
        "rio, cosine (temperature=48.0)",
    ]
    # What is a column of the tables, or averaged over, is no part of the label; every other field is.
    assert set(labels(without("backbone"), {"backbone": ["R18-FPN", "R50-FPN"], "seed": [0, 1]})) == {"rio"}
    assert labels(without("iterations"), {"iterations": [10, 20]}) == ["rio, iterations=10", "rio, iterations=20"]


@given(st.lists(RUNS, min_size=1, max_size=6))
def test_runs_of_one_label_differ_in_backbone_and_seed_only(runs: list[dict[str, Any]]) -> None:
    configs = [RunConfig.model_validate(run) for run in runs]
    label = plan_module.method_labels(configs)
    groups: dict[str, set[RunConfig]] = {}
    for config in configs:
        same = config.model_copy(update={"backbone": "R18-FPN", "seed": 0})
        groups.setdefault(label(config), set()).add(same)
    assert all(len(group) == 1 for group in groups.values())


def test_select_takes_the_base_runs_along_and_names_what_there_is() -> None:
    experiment = Experiment(
        name="x",
        run=without("backbone", "strategy"),
        warm_start={"strategy": "none", "iterations": 100},
        grid={"backbone": ["R18-FPN", "R50-FPN"], "strategy": ["none", "rio"]},
    )
    plan = make_plan(experiment)
    chosen = select(plan, ["rio-R50"]).runs
    assert [(run.config.backbone, run.is_base) for run in chosen] == [("R50-FPN", True), ("R50-FPN", False)]
    assert len(select(plan, ["rio-R50", "R18"]).runs) == 5
    with pytest.raises(UserError, match="--only rioo: no .* contains it .did you mean .rio.."):
        select(plan, ["R18", "rioo"])
