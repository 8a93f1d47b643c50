"""Recipes: runs with a name in one file, weights by backbone, and the publication's settings in the shipped ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rio_bench import scaling
from rio_bench.config import Experiment, RunConfig, load_experiment, load_recipe
from rio_bench.errors import UserError
from rio_bench.plan import identity, make_plan, select

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
WEIGHTS = {"R50": "R-50.pkl", "R101": "R-101.pkl", "X101": "X-101-32x8d.pkl"}


def write_lvis(root: Path, name: str) -> None:
    """A tiny LVIS below `root`, where Detectron2 expects it."""
    content = {
        "categories": [{"id": 1, "name": "owl", "frequency": "r"}],
        "images": [
            {
                "id": 1,
                "height": 20,
                "width": 20,
                "coco_url": "http://images.cocodataset.org/train2017/1.jpg",
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [2, 2, 10, 10],
                "area": 50,
                "segmentation": [[2, 2, 12, 2, 12, 12]],
            }
        ],
    }
    (root / "lvis").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "coco" / f"{split}2017").mkdir(parents=True)
        (root / "lvis" / f"{name}_{split}.json").write_text(json.dumps(content))
    (root / "coco" / "train2017" / "1.jpg").touch()


def dry_run(folder: Path, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rio_bench", "run", str(EXPERIMENTS / name / "rio_table.yaml"), "--dry-run"]
    caches = {"RIO_BENCH_CACHE": str(folder / "cache"), "DETECTRON2_DATASETS": str(folder / "data")}
    return subprocess.run(
        [*command, *options], cwd=folder, env={**os.environ, **caches}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", ["lvis_v0.5", "lvis_v1"])
def test_the_shipped_recipes_plan_or_say_what_is_missing(name: str, tmp_path: Path):
    no_data = dry_run(tmp_path, name)
    assert (no_data.returncode, no_data.stdout, no_data.stderr.count("\n")) == (2, "", 1)
    assert f"{name}: missing {tmp_path}/data/lvis/{name}_train.json" in no_data.stderr

    write_lvis(tmp_path / "data", name)
    no_weights = dry_run(tmp_path, name)
    assert (no_weights.returncode, no_weights.stdout, no_weights.stderr.count("\n")) == (2, "", 1)
    files = [f"weights/{file}" for file in sorted(WEIGHTS.values())]
    assert no_weights.stderr.startswith(f"error: weights: no such file: {', '.join(files)}; Detectron2's model zoo has")
    assert all(f"detectron2/ImageNetPretrained/{place}" in no_weights.stderr for place in ("MSRA/R-50", "MSRA/R-101"))

    (tmp_path / "weights").mkdir()
    for file in WEIGHTS.values():
        (tmp_path / "weights" / file).write_text(file)
    whole = dry_run(tmp_path, name)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert f"{name}: 15 runs, 15 without a result" in whole.stdout
    assert f"{name}: 1 + 1 pictures" in whole.stdout
    one = dry_run(tmp_path, name, "--only", "r50_rio")
    (run,) = [line.split() for line in one.stdout.splitlines() if "FPN" in line]
    assert run[0].startswith("rio-R50-FPN-seed0-") and run[1:5] == ["rio,", "cosine", "r50_rio", name]

    (tmp_path / "elsewhere.pkl").write_text("R-50.pkl")
    (tmp_path / "weights" / "R-50.pkl").unlink()
    moved = dry_run(tmp_path, name, "--set", "weights.R50-FPN=elsewhere.pkl", "--only", "r50_rio")
    assert moved.stdout == one.stdout  # identities are of the weights' content


def test_a_recipe_on_fewer_gpus_is_scaled_and_says_so(tmp_path: Path):
    write_lvis(tmp_path / "data", "lvis_v0.5")
    (tmp_path / "weights").mkdir()
    for file in WEIGHTS.values():
        (tmp_path / "weights" / file).write_text(file)
    file = tmp_path / "x.yaml"  # the recipe with another number of GPUs written into it
    text = (EXPERIMENTS / "lvis_v0.5" / "rio_table.yaml").read_text()
    file.write_text(text.replace("gpus_per_run: 8", "gpus_per_run: 1"))
    as_published = dry_run(tmp_path, "lvis_v0.5", "--only", "r50_rio").stdout
    for option in (["--gpus", "8"], ["--gpus", "1", "--batch-size", "16"]):
        assert dry_run(tmp_path, "lvis_v0.5", "--only", "r50_rio", *option).stdout == as_published
    line, _, planned = dry_run(tmp_path, "lvis_v0.5", "--only", "r50_rio", "--gpus", "1").stdout.partition("\n")
    assert line == (
        "1 GPU a run instead of 8, batches of 2 instead of 16: learning rates times 0.125, iterations and warm-up times"
        " 8 (linear scaling), as 0.02 -> 0.0025 and 90,000 -> 720,000; --batch-size 16 keeps the file's own"
    )
    # as far as identities tell: the same run as with batches of 2 on as many GPUs as you like
    by_batch_size = dry_run(tmp_path, "lvis_v0.5", "--only", "r50_rio", "--gpus", "2", "--batch-size", "2").stdout
    assert by_batch_size.partition("\n")[2] == planned and planned != as_published
    assert scaling.told(load_experiment(file)) == [line]
    assert scaling.told(load_experiment(file, ["execution.gpus_per_run=2"]))[0].startswith(
        "2 GPUs a run instead of 8, "
    )


METHODS = {
    "baseline": ("NoResampling", "linear"),
    "rfs": ("ImageOnly", "linear"),
    "rfs_cosine": ("ImageOnly", "cosine"),
    "ocs": ("ObjectOnly", "cosine"),
    "rio": ("RIO", "cosine"),
}


def recipes_of(name: str) -> dict[tuple[str, str], RunConfig]:
    """(backbone, method) -> the recipe's run"""
    return {(b, method): load_recipe(f"{name}/{b.lower()}_{method}") for b in WEIGHTS for method in METHODS}


@pytest.mark.parametrize(("name", "iterations"), [("lvis_v0.5", 90_000), ("lvis_v1", 180_000)])
def test_a_recipe_is_a_row_of_the_publication(name: str, iterations: int):
    recipes = recipes_of(name)
    assert set(load_experiment(EXPERIMENTS / name / "rio_table.yaml").cells) == set(recipes.values())
    for (backbone, method), config in recipes.items():
        assert (config.dataset, config.recipe, config.backbone) == (name, "standard", f"{backbone}-FPN")
        assert (config.iterations, config.batch_size) == (iterations, 16)
        assert config.weights == f"weights/{WEIGHTS[backbone]}"
        assert (type(config.strategy).__name__, config.classifier.name) == METHODS[method]
        assert config.classifier.temperature == 48
        settings = dict(config.strategy)
        if "samples_per_class" in settings:
            of_bank = (settings["samples_per_class"], settings["bank_capacity"])
            assert of_bank == ((5, 100) if (name, backbone) == ("lvis_v1", "X101") else (20, 60))
            assert (settings["bank_max_images"], settings["sampling"]) == (30, "newest")
        assert settings.get("repeat_threshold", 0.001) == 0.001


@pytest.mark.parametrize(
    ("name", "steps"), [("lvis_v0.5", (60_000, 80_000, 90_000)), ("lvis_v1", (120_000, 160_000, 180_000))]
)
def test_a_recipe_is_built_in_the_publications_settings(name: str, steps: tuple[int, ...]):
    recipe = pytest.importorskip("rio_bench.detection.recipe")
    for (backbone, _), config in recipes_of(name).items():
        cfg = recipe.build_cfg(config, 10, "cpu")
        assert (*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == steps
        assert cfg.SOLVER.BASE_LR == 0.02 and cfg.SOLVER.IMS_PER_BATCH == 16
        assert list(cfg.INPUT.MIN_SIZE_TRAIN) == [640, 672, 704, 736, 768, 800]
        assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 1e-4 and cfg.TEST.DETECTIONS_PER_IMAGE == 300
        assert list(cfg.MODEL.PIXEL_STD) == ([57.375, 57.12, 58.395] if backbone == "X101" else [1, 1, 1])
        assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is (backbone != "X101")
        assert (cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT) == ("FrozenBN", 2)  # as ImageNet weights need


@pytest.mark.parametrize(("gpus", "factor"), [(1, 8), (2, 4), (6, 4 / 3), (8, 1), (16, 1 / 2)])
def test_the_whole_schedule_of_a_recipe_follows_the_gpus(gpus: int, factor: float):
    recipe = pytest.importorskip("rio_bench.detection.recipe")
    file = EXPERIMENTS / "lvis_v0.5" / "rio_table.yaml"
    for written, cell in zip(
        load_experiment(file).cells, load_experiment(file, [f"execution.gpus_per_run={gpus}"]).cells, strict=True
    ):
        solver = recipe.build_cfg(cell, 10, "cpu").SOLVER
        schedule = [*solver.STEPS, solver.MAX_ITER, solver.WARMUP_ITERS]
        assert schedule == [round(number * factor) for number in (60_000, 80_000, 90_000, 1000)]
        batch, rate = solver.IMS_PER_BATCH, solver.BASE_LR
        assert (batch, rate) == (2 * gpus, pytest.approx(0.02 / factor))
        assert (cell == written) is (gpus == 8)


@pytest.mark.parametrize(("iterations", "steps"), [(1, ()), (2, (1,)), (4, (3,)), (5, (3, 4))])
def test_a_trial_of_a_few_iterations_has_the_steps_that_fit(iterations: int, steps: tuple[int, ...]):
    recipe = pytest.importorskip("rio_bench.detection.recipe")
    trial = load_recipe("lvis_v0.5/r50_rio").model_copy(update={"iterations": iterations})
    solver = recipe.build_cfg(trial, 10, "cpu").SOLVER
    assert (*solver.STEPS,) == steps


def test_the_gpus_scale_what_says_how_many_it_is_for_alone(tmp_path: Path):
    run = {**SMALL, "backbone": "R18-FPN", "strategy": "none", "batch_size": 8, "iterations": 400}
    file = tmp_path / "x.yaml"

    def cell(**rest: Any) -> RunConfig:
        file.write_text(json.dumps({"run": run, **rest}))
        return load_experiment(file, ["execution.gpus_per_run=2"]).cells[0]

    assert cell() == RunConfig.model_validate(run)
    halved = cell(reference_gpus=4, warm_start={"iterations": 100, "batch_size": 16, "warmup_iterations": 5})
    assert (halved.batch_size, halved.iterations, halved.warmup_iterations) == (4, 800, None)  # a tenth, as before
    base = halved.warm_start
    assert base is not None
    assert (base.batch_size, base.iterations, base.warmup_iterations) == (8, 200, 10)
    with pytest.raises(UserError, match=r"reference_gpus: 3 GPUs cannot share a batch of 8 images evenly"):
        cell(reference_gpus=3)


def test_each_batch_size_that_is_scaled_is_told_and_the_way_back_only_where_there_is_one(tmp_path: Path):
    file = tmp_path / "x.yaml"
    run = {**SMALL, "backbone": "R18-FPN", "strategy": "rio", "batch_size": 16, "iterations": 100}
    file.write_text(json.dumps({"run": run, "warm_start": {"strategy": "none", "batch_size": 8}, "reference_gpus": 8}))

    of_base, of_run = scaling.told(load_experiment(file, ["execution.gpus_per_run=3"]))
    assert of_base.startswith("3 GPUs a run instead of 8, batches of 3 instead of 8: learning rates times 0.375")
    assert of_run.startswith("3 GPUs a run instead of 8, batches of 6 instead of 16")
    assert not any("keeps the file's own" in line for line in (of_base, of_run))
    of_base, of_run = scaling.told(load_experiment(file, ["execution.gpus_per_run=2"]))
    assert of_run.endswith("; --batch-size 16 keeps the file's own")


def test_a_batch_size_of_ones_own_goes_before_what_the_gpus_would_give(tmp_path: Path):
    run = {**SMALL, "backbone": "R18-FPN", "strategy": "none", "batch_size": 12}
    (tmp_path / "x.yaml").write_text(json.dumps({"run": run, "reference_gpus": 8}))  # 8 cannot share 12
    command = [sys.executable, "-m", "rio_bench", "run", "x.yaml", "--gpus", "3", "--batch-size", "6", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "batches of 6 instead of 12: learning rates times 0.5, iterations and warm-up times 2" in done.stdout


def test_an_unknown_recipe_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'lvis_v0.5/r50_rio'"):
        load_recipe("lvis_v0.5/r50_riot")


# ------------------------------------------------------------------------------------------------ variants and weights

SMALL = {"dataset": "glyphs-mini", "iterations": 10}


def test_variants_overlay_the_run_and_have_each_cell_of_the_grid():
    experiment = Experiment(
        name="x",
        run={**SMALL, "strategy.samples_per_class": 7, "classifier": "cosine", "backbone": "R50-FPN"},
        variants={
            "small": {"backbone": "R18-FPN", "strategy": "rio", "classifier": "linear"},
            "large": {"strategy": {"name": "object_only"}, "strategy.samples_per_class": 9},
        },
        grid={"seed": [0, 1]},
    )
    found = [(c.backbone, type(c.strategy).__name__, dict(c.strategy)["samples_per_class"], c.classifier.name, c.seed)
             for c in experiment.cells]  # fmt: skip
    assert found == [
        ("R18-FPN", "RIO", 7, "linear", 0),
        ("R18-FPN", "RIO", 7, "linear", 1),
        ("R50-FPN", "ObjectOnly", 9, "cosine", 0),
        ("R50-FPN", "ObjectOnly", 9, "cosine", 1),
    ]
    plan = make_plan(experiment)
    assert [run.variant for run in plan.runs] == ["small", "small", "large", "large"]
    assert select(plan, ["large"]).runs == plan.runs[2:]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "variants:\n  a: {strategy: none, seed: 1}\ngrid: {seed: [0]}\n",
            "6: variants.a.seed: is an axis of the grid",
        ),
        ("variants:\n  a: {strategy: none, warm_start: {}}\n", "6: variants.a.warm_start: belongs at the top"),
        ("variants:\n  a: {strategy: none, sed: 1}\n", "6: variants.a.sed: unknown key (did you mean 'seed'?)"),
        ("variants:\n  a: {strategy: nona}\n", "6: variants.a.strategy: unknown strategy 'nona'"),
        ("variants:\n  a: {strategy: none, backbone: R50-FPN}\n", "2: run.backbone: has no effect: every variant sets"),
        ("variants: [a]\n", "variants: expected a mapping"),
        ("grid: {strategy: [none]}\nvariants: {a: 3}\n", "variants.a: expected a mapping, got 3"),
    ],
)
def test_wrong_variants_are_told_with_their_place(text: str, says: str, tmp_path: Path):
    run = "run:\n  backbone: R18-FPN\n  dataset: glyphs-mini\n  iterations: 10\n"
    (tmp_path / "v.yaml").write_text(run + text)
    with pytest.raises(UserError) as caught:
        load_experiment(tmp_path / "v.yaml")
    assert says in str(caught.value)


def weights_of(weights: Any) -> list[str | None]:
    run = {**SMALL, "strategy": "none", "weights": weights}
    return [cell.weights for cell in Experiment(name="x", run=run, grid={"backbone": ["R18-FPN", "R50-FPN"]}).cells]


def test_weights_by_backbone(tmp_path: Path):
    here = tmp_path / "R-50.pkl"
    assert weights_of({"R18-FPN": None, "R50-FPN": str(here)}) == [None, str(here)]
    here.touch()
    assert weights_of(str(here)) == [str(here)] * 2


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("{R18-FPN: a.pkl}", "run.weights: no file for R50-FPN: give one, or null for random weights"),
        ("{R18-FPN: a.pkl, R50: b.pkl}", "run.weights.R50: unknown backbone (did you mean 'R50-FPN'?)"),
        ("{R18-FPN: 3, R50-FPN: b.pkl}", "run.weights: expected a valid string, got 3"),
    ],
)
def test_wrong_weights_are_told_with_their_place(weights: str, says: str, tmp_path: Path):
    file = tmp_path / "w.yaml"
    file.write_text(
        "run: {dataset: glyphs-mini, iterations: 10, strategy: none}\ngrid: {backbone: [R18-FPN, R50-FPN]}\n"
    )
    with pytest.raises(UserError) as caught:
        load_experiment(file, [f"weights={weights}"])
    assert str(caught.value) == f"--set weights={weights}: {says}"


def test_the_weights_of_a_backbone_decide_the_identity_of_its_runs_alone(tmp_path: Path):
    def identities(weights: dict[str, Any]) -> list[str]:
        run = {**SMALL, "strategy": "none", "weights": weights}
        cells = Experiment(name="x", run=run, grid={"backbone": ["R18-FPN", "R50-FPN"]}).cells
        return [identity(cell) for cell in cells]

    one, other = tmp_path / "one.pkl", tmp_path / "other.pkl"
    one.write_text("one")
    other.write_text("other")
    before = identities({"R18-FPN": str(one), "R50-FPN": str(one)})
    after = identities({"R18-FPN": str(one), "R50-FPN": str(other)})
    assert before[0] == after[0] and before[1] != after[1]
    with pytest.raises(UserError, match="weights: .*missing.pkl: No such file"):
        identities({"R18-FPN": str(tmp_path / "missing.pkl"), "R50-FPN": None})
