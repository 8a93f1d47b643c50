"""The experiment file: what it means, and what it refuses (each refusal through the command line: test_cli.py)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pydantic
import pytest

from rio_bench.config import ClassifierConfig, Experiment, RunConfig, canonical, load_experiment
from rio_bench.errors import UserError
from rio_bench.strategy import load
from rio_bench.yaml_source import YamlSource

RUN = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": "rio", "iterations": 10}
EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def write(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def cell(experiment: Experiment) -> RunConfig:
    assert len(experiment.cells) == 1
    return experiment.cells[0]


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_experiment_is_valid(file: Path) -> None:
    assert load_experiment(file).description


def test_grid_is_the_product_of_its_axes_last_axis_fastest(tmp_path: Path) -> None:
    experiment = load_experiment(
        write(
            tmp_path,
            """
run: {dataset: glyphs-mini, iterations: 10, strategy: {name: rio, bank_capacity: 40}}
grid:
  backbone: [R18-FPN, R50-FPN]
  strategy.samples_per_class: [5, 20]
  seed: [0, 1, 2]
""",
        )
    )
    assert experiment.name == "small"
    assert len(experiment.cells) == 12
    assert [cell.seed for cell in experiment.cells[:4]] == [0, 1, 2, 0]
    assert experiment.cells[4].strategy == load("rio")(bank_capacity=40, samples_per_class=20)
    assert [cell.backbone for cell in experiment.cells] == ["R18-FPN"] * 6 + ["R50-FPN"] * 6


def test_a_dotted_key_changes_what_a_whole_field_holds_wherever_it_stands() -> None:
    run = {key: value for key, value in RUN.items() if key != "strategy"}
    grid = {"strategy.samples_per_class": [5], "strategy": ["rio"]}
    experiment = Experiment(name="x", run={"classifier.temperature": 20, **run}, grid=grid)
    assert cell(experiment).strategy == load("rio")(samples_per_class=5)
    assert cell(experiment).classifier == ClassifierConfig(temperature=20.0)


def test_warm_start_overlays_each_cells_own_configuration() -> None:
    experiment = Experiment(
        name="x",
        run={"dataset": "glyphs-mini", "strategy": "rio", "iterations": 10, "classifier": "linear"},
        warm_start={"strategy": "none", "iterations": 100},
        grid={"backbone": ["R18-FPN", "R50-FPN"]},
    )
    for config in experiment.cells:
        base = config.warm_start
        assert base is not None and base.warm_start is None
        assert base == RunConfig.model_validate(
            {**RUN, "backbone": config.backbone, "classifier": "linear", "strategy": "none", "iterations": 100}
        )


def test_overrides(tmp_path: Path) -> None:
    path = write(
        tmp_path, "run: {dataset: glyphs-mini, backbone: R18-FPN, iterations: 10}\ngrid: {strategy: [none, rio]}\n"
    )
    overrides = [
        "iterations=20",
        "run.learning_rate=1e-3",
        "grid.strategy=[{name: rio, bank_capacity: 7}]",
        "name=other",
    ]
    experiment = load_experiment(path, overrides)
    assert experiment.name == "other"
    assert cell(experiment).iterations == 20
    assert cell(experiment).learning_rate == 0.001
    assert cell(experiment).strategy == load("rio")(bank_capacity=7)
    assert [config.strategy for config in load_experiment(path).cells] == [load("none")(), load("rio")()]
    dotted = load_experiment(path, ["grid.strategy=[rio]", "strategy.bank_capacity=9"])
    assert cell(dotted).strategy == load("rio")(bank_capacity=9)


def test_yaml_1_2_numbers_and_texts(tmp_path: Path) -> None:
    text = (
        "run: {dataset: glyphs-mini, backbone: R18-FPN, iterations: 1_000, learning_rate: 1e-3, seed: 0x10,"
        " strategy: {name: image_only, repeat_threshold: 1}}\n"
    )
    config = cell(load_experiment(write(tmp_path, text)))
    assert (config.iterations, config.learning_rate, config.seed) == (1000, 0.001, 16)
    assert type(config.iterations) is int and type(config.learning_rate) is float
    assert config.strategy == load("image_only")(repeat_threshold=1.0)


def test_a_source_holds_plain_types(tmp_path: Path) -> None:
    data = YamlSource(write(tmp_path, "{a: 1_000, b: 1e-3, c: 0x10, d: 'text', e: [true, null], f: {g: 9e4}}\n")).data
    assert data == {"a": 1000, "b": 0.001, "c": 16, "d": "text", "e": [True, None], "f": {"g": 90000.0}}
    leaves = [data["a"], data["b"], data["c"], data["d"], data["e"], data["f"], data["f"]["g"]]
    assert [type(leaf) for leaf in leaves] == [int, float, int, str, list, dict, float]


def test_an_error_in_a_warm_start_is_not_laid_to_the_grid_it_overlays(tmp_path: Path) -> None:
    text = """
run: {dataset: glyphs-mini, backbone: R18-FPN, iterations: 10, strategy: rio}
grid:
  strategy.samples_per_class: [5]
warm_start:
  strategy: {name: object_only, samples_per_class: 0}
"""
    with pytest.raises(UserError, match="small.yaml:6: warm_start.strategy.samples_per_class: expected greater"):
        load_experiment(write(tmp_path, text))


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = """
run: {dataset: glyphs-mini, backbone: R18-FPN, iterations: 10}
grid:
  strategy:
    - &base {name: rio, samples_per_class: 8}
    - {<<: *base, bank_capacity: 9}
"""
    strategies = [config.strategy for config in load_experiment(write(tmp_path, text)).cells]
    assert strategies == [load("rio")(samples_per_class=8), load("rio")(samples_per_class=8, bank_capacity=9)]


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ("grid: {warm_start.iterations: [6, 7]}", "6: grid.warm_start.iterations"),
        ("variants: {a: {warm_start.iterations: 6}}", "6: variants.a.warm_start.iterations"),
        ("  warm_start.iterations: 6", "6: run.warm_start.iterations"),
    ],
)
def test_a_part_of_the_base_run_is_set_at_the_top_of_the_file_alone(section: str, place: str, tmp_path: Path) -> None:
    """Elsewhere it would have no effect: the base run is made from the run."""
    run = "run:\n  dataset: glyphs-mini\n  backbone: R18-FPN\n  strategy: none\n  iterations: 10\n"
    text = f"{run}{section}\nwarm_start: {{iterations: 5}}\n"
    with pytest.raises(UserError, match=re.escape(f"{place}: belongs at the top of the file, beside run and grid")):
        load_experiment(write(tmp_path, text))


def test_a_base_run_has_no_base_run(tmp_path: Path) -> None:
    text = """
run: {dataset: glyphs-mini, backbone: R18-FPN, strategy: none, iterations: 10}
warm_start: {iterations: 5, warm_start.iterations: 6}
"""
    with pytest.raises(UserError, match=r"small.yaml:3: warm_start.warm_start.iterations: belongs at the top"):
        load_experiment(write(tmp_path, text))


def test_an_error_in_a_merged_key_names_the_entry_that_merges_it(tmp_path: Path) -> None:
    text = """
run: {dataset: glyphs-mini, backbone: R18-FPN, iterations: 10}
grid:
  strategy:
    - &base {name: rio}
    - {<<: *base, name: none, samples_per_class: 8}
"""
    with pytest.raises(UserError, match=r"small.yaml:6: grid.strategy\[1\].samples_per_class: unknown key"):
        load_experiment(write(tmp_path, text))


def test_canonical_leaves_out_defaults_and_reads_back() -> None:
    config = RunConfig.model_validate(
        {
            **RUN,
            "strategy": {"name": "rio", "samples_per_class": 20, "repeat_threshold": 1, "max_pushes_per_object": 4},
            "classifier": {"name": "cosine", "temperature": 30},
            "seed": 0,
            "warm_start": {**RUN, "classifier": "cosine", "batch_size": 16},
        }
    )
    assert canonical(config) == {
        **RUN,
        "strategy": {"name": "rio", "repeat_threshold": 1.0, "max_pushes_per_object": 4},
        "classifier": {"temperature": 30.0},
        "warm_start": {**RUN, "strategy": {"name": "rio"}},
    }
    assert RunConfig.model_validate(json.loads(json.dumps(canonical(config)))) == config


@pytest.mark.parametrize("field", ["iterations", "batch_size", "seed"])
@pytest.mark.parametrize("value", [True, "10", 10.0, -1, None])
def test_integers_are_integers(field: str, value: object) -> None:
    with pytest.raises(pydantic.ValidationError):
        RunConfig.model_validate({**RUN, field: value})


def test_a_configuration_cannot_be_changed() -> None:
    config = RunConfig.model_validate(RUN)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
