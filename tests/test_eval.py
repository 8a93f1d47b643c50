"""The command `eval`: weights and detections files to a table; test-time augmentation."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from rio_bench import cli, config, datasets
from rio_bench.config import RunConfig
from rio_bench.datasets.lvis import Dataset, Split, read_split
from rio_bench.detection import augmented, checkpoints, known_warnings
from rio_bench.detection.augmented import with_augmentation
from rio_bench.detection.evaluation import lvis_ap
from rio_bench.detection.inference import detect
from rio_bench.detection.model import build_detector
from rio_bench.detection.recipe import build_cfg
from rio_bench.errors import UserError
from rio_bench.evaluate import evaluate, evaluate_detections, evaluate_weights, weights_of
from rio_bench.records import RunFolder, StoredRun

SIDE = 64
CATEGORIES = [{"id": 3, "name": "square", "frequency": "r"}, {"id": 7, "name": "bar", "frequency": "f"}]


def write_data(folder: Path) -> dict[str, Any]:
    """Two pictures with a bright square and bar each, as one's own data set."""
    (folder / "pictures").mkdir()
    images, annotations = [], []
    for number in (1, 2):
        pixels = np.zeros((SIDE, 2 * SIDE, 3), dtype=np.uint8)
        for category, (x, y, width, height) in ((3, (8 * number, 20, 20, 20)), (7, (70, 5 * number, 40, 8))):
            pixels[y : y + height, x : x + width] = 250
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": category, "segmentation": [corners]}
                | {"bbox": [x, y, width, height], "area": width * height}
            )
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        fields = {"id": number, "file_name": f"{number}.png", "height": SIDE, "width": 2 * SIDE}
        images.append(fields | {"neg_category_ids": [], "not_exhaustive_category_ids": []})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "data.json").write_text(json.dumps(content))
    split = {"json": str(folder / "data.json"), "images": str(folder / "pictures")}
    return {"name": "shapes", "train": split, "val": split}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The recipe shapes/tiny_rio, whose backbone weights are not there."""
    run = {"dataset": write_data(tmp_path), "recipe": "small", "backbone": "R18-FPN", "iterations": 2}
    content = {"run": run | {"weights": {"R18-FPN": "nowhere.pkl"}}, "variants": {"tiny_rio": {"strategy": "rio"}}}
    (tmp_path / "experiments" / "shapes").mkdir(parents=True)
    (tmp_path / "experiments" / "shapes" / "table.yaml").write_text(json.dumps(content))
    monkeypatch.setattr(config, "EXPERIMENTS", tmp_path / "experiments")
    return config.load_recipe("shapes/tiny_rio")


def detector(recipe: RunConfig) -> nn.Module:
    return build_detector(recipe, build_cfg(recipe, len(CATEGORIES), "cpu"))


def numbers(table: str) -> list[list[str]]:
    return [line.split()[1:] for line in table.splitlines() if line.split()[:1] in (["box"], ["mask"])]


def test_weights_are_evaluated_with_their_recipe_alone(recipe: RunConfig, tmp_path: Path) -> None:
    model = detector(recipe.model_copy(update={"seed": 5}))
    checkpoints.save(tmp_path / "model_final.pth", model, seconds=1.0)
    output = tmp_path / "made" / "output"
    told = evaluate_weights(tmp_path / "model_final.pth", "shapes/tiny_rio", output, "cpu", tta=False)
    assert told.startswith("shapes val: model_final.pth (AP in percent)")

    data = datasets.load(recipe.dataset)
    cfg = build_cfg(recipe, len(CATEGORIES), "cpu")
    detect(model, cfg, read_split(data.val, skip_empty=False), "cpu", tmp_path / "expected.json.gz")
    assert (output / "detections.json.gz").read_bytes() == (tmp_path / "expected.json.gz").read_bytes()
    found = lvis_ap(data.val.annotations, tmp_path / "expected.json.gz")
    assert numbers(told)[0][:2] == [f"{found['box'].AP:.1f}", f"{found['box'].APr:.1f}"]
    assert numbers(told)[0][2] == "–"  # no common category
    assert len(numbers(told)) == 2

    with (output / "categories.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], float(row["AP.b"])) for row in rows] == [
        (name, pytest.approx(ap, abs=1e-4)) for name, ap in found["box"].per_category.items()
    ]


def test_nothing_is_left_behind_without_an_output_folder(recipe: RunConfig, tmp_path: Path) -> None:
    torch.save({"model": detector(recipe).state_dict()}, tmp_path / "model.pth")
    before = sorted(tmp_path.rglob("*"))
    evaluate_weights(tmp_path / "model.pth", "shapes/tiny_rio", None, "auto", tta=False)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def a_run(recipe: RunConfig, tmp_path: Path) -> RunFolder:
    """The folder of a run of the recipe from random weights: with a batch norm that trains, and counts batches."""
    folder = RunFolder(tmp_path / "a_run")
    folder.create()
    stored = recipe.model_copy(update={"weights": None}).model_dump(mode="json", exclude_defaults=True)
    names = {"name": "a_run", "identity": "0" * 16, "experiment": "test", "method": "rio", "config": stored}
    folder.write_run(StoredRun(**names, is_base=False, after=None))
    return folder


def test_a_runs_folder_stands_for_its_recipe(recipe: RunConfig, a_run: RunFolder) -> None:
    checkpoints.save(a_run.final_weights, detector(recipe), seconds=1.0)
    told = evaluate_weights(a_run.final_weights, str(a_run.path), None, "cpu", tta=False)
    assert len(numbers(told)) == 2


def test_a_runs_folder_stands_for_its_newest_weights_too(recipe: RunConfig, a_run: RunFolder) -> None:
    with pytest.raises(UserError, match="a_run/checkpoints: no weights there: the run has not come to its first"):
        weights_of(a_run)
    with pytest.raises(UserError, match=r"nowhere: not the folder of a run .*: has no config.json"):
        weights_of(RunFolder(a_run.path.parent / "nowhere"))
    of_keep = ["model_0001000.pth", "model_0002000.pth", "model_best.pth"]  # all, and best
    for name in (of_keep[2], *of_keep[:2], "previous.pth", "last.pth", "model_final.pth"):
        (a_run.checkpoints / name).touch()
        assert weights_of(a_run).name == name
    for file in a_run.checkpoints.iterdir():
        file.unlink()
    state = {"optimizer": {}, "schedule": {}, "banks": [], "best_ap": 1.0}
    checkpoints.save_last(a_run.last_checkpoint, detector(recipe), iteration=1, seconds=1.0, **state)
    told = evaluate(a_run.path, None, None, None, None, None, "cpu", False)
    assert told.startswith("shapes val: last.pth") and len(numbers(told)) == 2


def test_only_our_own_lines_are_printed(recipe: RunConfig, a_run: RunFolder, tmp_path: Path) -> None:
    """Not what torch tells Detectron2's authors; in a process of its own, as such warnings come once in each."""
    checkpoints.save(a_run.final_weights, detector(recipe), seconds=1.0)
    command = [sys.executable, "-m", "rio_bench", "eval", str(a_run.path), "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    ours = (r".*tensors loaded", r"evaluated \d+/2 pictures", r"detections\.json\.gz: ", "AP_fixed is not truly fixed")
    assert [line for line in done.stderr.splitlines() if not re.match("|".join(ours), line)] == []


def test_other_warnings_are_shown() -> None:
    with pytest.warns(FutureWarning, match="soon"), known_warnings.left_out():
        warnings.warn("soon", FutureWarning, stacklevel=1)


def perfect_detections(path: Path) -> Path:
    """glyphs-mini's validation annotations as results of a detector."""
    content = json.loads(datasets.load("glyphs-mini").val.annotations.read_text())
    fields = ("image_id", "category_id", "bbox", "segmentation")
    results = [{key: entry[key] for key in fields} | {"score": 0.9} for entry in content["annotations"]]
    path.write_text(json.dumps(results))
    return path


def test_a_detections_file_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = perfect_detections(tmp_path / "any.json")
    told = evaluate_detections(file, "glyphs-mini", tmp_path)
    assert numbers(told) == [["100.0"] * 10, ["100.0"] * 10]
    with (tmp_path / "categories.csv").open() as rows:
        assert {row["AP.m"] for row in csv.DictReader(rows)} == {"100.0"}
    assert exit_status(["--detections", str(file), "--dataset", "glyphs-mini"], capsys)[0] == 0


def test_a_recipe_or_a_run_stands_for_its_data_set(a_run: RunFolder, tmp_path: Path) -> None:
    results = [{"image_id": 1, "category_id": 7, "bbox": [70, 5, 40, 8], "score": 0.5}]
    (tmp_path / "boxes.json").write_text(json.dumps(results))
    of_recipe, of_run = (
        evaluate_detections(tmp_path / "boxes.json", name, None) for name in ("shapes/tiny_rio", str(a_run.path))
    )
    assert of_recipe == of_run and of_run.startswith("shapes val: boxes.json")
    stored = json.loads(a_run.config_file.read_text())
    stored["config"]["strategy"] = {"name": "of_another_package"}
    a_run.config_file.write_text(json.dumps(stored))
    assert evaluate_detections(tmp_path / "boxes.json", str(a_run.path), None) == of_run


def test_ones_own_files_in_the_lvis_format_need_nothing_of_training(recipe: RunConfig, tmp_path: Path) -> None:
    no_train = Split(tmp_path / "train.json", tmp_path / "train")
    assert isinstance(recipe.dataset, Dataset)
    assert datasets.load_val(Dataset("shapes", no_train, recipe.dataset.val)) == recipe.dataset.val
    no_pictures = Split(recipe.dataset.val.annotations, tmp_path / "nowhere")
    assert datasets.load_val(Dataset("shapes", no_train, no_pictures), pictures=False) == no_pictures
    with pytest.raises(
        UserError, match=r"^dataset shapes: val.images \(.*nowhere\) missing: expected a file and a fol"
    ):
        datasets.load_val(Dataset("shapes", no_train, no_pictures))
    content = json.loads(recipe.dataset.val.annotations.read_text())
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    recipe.dataset.val.annotations.write_text(json.dumps(content))  # COCO's: groups are counted in the training file
    of_coco = Dataset("shapes", no_train, no_pictures)
    with pytest.raises(
        UserError, match=r"^dataset shapes: train.json \(\S+train.json\) missing: expected a file and a f"
    ):
        datasets.load_val(of_coco, pictures=False)
    no_train.annotations.write_text(recipe.dataset.val.annotations.read_text())
    assert datasets.load_val(of_coco, pictures=False).images == no_pictures.images


def test_lvis_needs_its_validation_annotations_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: RunConfig
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    results = [{"image_id": 1, "category_id": 7, "bbox": [70, 5, 40, 8], "score": 0.5}]  # one of the two bars
    (tmp_path / "boxes.json").write_text(json.dumps(results))
    place, download = f"{tmp_path}/lvis/lvis_v0.5_val.json", "unpack lvis_v0.5_val.json.zip (lvisdataset.org) there"
    with pytest.raises(UserError, match=f"^lvis_v0.5: missing {re.escape(place)}: {re.escape(download)}, or set"):
        evaluate_detections(tmp_path / "boxes.json", "lvis_v0.5", None)
    with pytest.raises(UserError, match=r"^lvis_v0.5: missing \S+val.json, \S+coco/val2017: unpack"):
        datasets.load_val("lvis_v0.5")
    with pytest.raises(UserError, match=r"^lvis_v1: missing \S+val.json, \S+/train2017, \S+/val2017: unpack"):
        datasets.load_val("lvis_v1")
    (tmp_path / "lvis").mkdir()
    (tmp_path / "data.json").rename(tmp_path / "lvis" / "lvis_v0.5_val.json")
    [boxes] = numbers(evaluate_detections(tmp_path / "boxes.json", "lvis_v0.5", None))
    # half of the recall at full precision: 51 of 101 levels; no square
    assert boxes[:4] == ["25.2", "0.0", "–", "50.5"]


def exit_status(arguments: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """And what was printed to stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["rio_bench", "eval", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the folder of a run, --weights FILE with --recipe NAME, or --detections FILE with --dataset NAME"),
        (["--weights", "w.pth"], "--weights FILE with --recipe NAME"),
        (["a_folder", "--weights", "w.pth"], "give the folder of a run, --weights FILE"),
        (["a_folder"], "a_folder: not the folder of a run"),
        (["--detections", "d.json", "--dataset", "glyphs-mini", "--tta"], "(without --tta)"),
        (["--weights", "w.pth", "--recipe", "shapes/tiny_rio"], "error: --weights w.pth: No such file or directory"),
        (["--weights", ".", "--recipe", "shapes/tiny_rio"], "error: --weights .: is a folder, expected a file"),
        (["--weights", "w.pth", "--recipe", "shapes/tiny_ri"], "did you mean 'shapes/tiny_rio'?"),
        (["--detections", "d.json", "--dataset", "glyphs-mni"], "did you mean 'glyphs-mini'?"),
        (["--detections", "d.json", "--dataset", "a/b"], "no recipe is named 'a/b'"),
        (["--detections", "d.json", "--dataset", "glyphs-mini"], "error: --detections d.json: No such file"),
        (["--weights", __file__, "--recipe", "shapes/tiny_rio", "--device", "cuda"], "--device cuda: no GPU found"),
        (["--detections", __file__, "--dataset", "glyphs-mini", "--output", "/dev/null/x"], "cannot be made: Not a"),
    ],
)
def test_bad_input_is_told_in_a_line(
    arguments: list[str], message: str, recipe: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, told = exit_status(arguments, capsys)
    assert status == 2
    assert message in told
    assert told.startswith("error: ") and told.count("\n") == 1


def test_what_is_cheap_to_look_at_comes_before_the_data(recipe: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "data.json").unlink()
    (tmp_path / "w.pth").touch()
    for weights, output, told in (
        ("no.pth", tmp_path / "out", "--weights .*no.pth: No such file"),
        ("w.pth", tmp_path / "w.pth", "--output .*w.pth: cannot be made"),
        ("w.pth", tmp_path / "out", "dataset shapes: val.json .* missing"),
    ):
        with pytest.raises(UserError, match=told):
            evaluate_weights(tmp_path / weights, "shapes/tiny_rio", output, "cpu", tta=False)


def test_missing_pictures_are_told_before_detecting(recipe: RunConfig, tmp_path: Path) -> None:
    torch.save({"model": detector(recipe).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "pictures" / "2.png").unlink()
    with pytest.raises(UserError, match=r"shapes: 1 validation pictures are missing, such as .*2\.png"):
        evaluate_weights(tmp_path / "model.pth", "shapes/tiny_rio", None, "cpu", tta=False)


class SeesBrightSquare(GeneralizedRCNN):
    """A detector that finds the bright region of each picture it is given, in that picture's own pixels."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.roi_heads = nn.Identity()
        self.seen: list[tuple[int, ...]] = []

    def inference(
        self, batch: list[dict], detected: list[Instances] | None = None, do_postprocess: bool = True
    ) -> list:
        assert not do_postprocess
        results = []
        for number, entry in enumerate(batch):
            size = tuple(entry["image"].shape[1:])
            if detected is not None:
                detected[number].pred_masks = torch.ones(len(detected[number]), 1, 28, 28)
                results.append(detected[number])
                continue
            self.seen.append(size)
            rows, columns = torch.nonzero(entry["image"][0] > 100, as_tuple=True)
            box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            found = {"pred_boxes": Boxes(torch.tensor([box], dtype=torch.float)), "scores": torch.tensor([0.5])}
            results.append(Instances(size, **found, pred_classes=torch.tensor([1])))
        return results


def test_augmented_versions_are_merged_in_the_pictures_frame(recipe: RunConfig, tmp_path: Path) -> None:
    cfg = build_cfg(recipe, len(CATEGORIES), "cpu")
    image = torch.zeros(3, 128, 256, dtype=torch.uint8)  # as the test size of 128 makes it of 64 x 128
    image[:, 40:80, 16:56] = 250
    model = SeesBrightSquare().eval()
    [output] = with_augmentation(model, cfg)([{"image": image, "height": 64, "width": 128}])
    sizes = [64, 80, 96, 112, 128, 144, 160, 176, 192]  # 1/2 to 3/2 of 128, each mirrored too
    assert model.seen == [(size, 2 * size) for size in sizes for _ in range(2)]
    found = output["instances"]
    assert (found.image_size, len(found)) == ((64, 128), 1)  # 18 boxes of one object are one
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([[8.0, 20.0, 28.0, 40.0]]), atol=1.0, rtol=0)
    assert found.pred_classes.tolist() == [1]
    mask = found.pred_masks[0]
    assert mask.shape == (64, 128)
    assert 18 * 18 < mask.sum() < 22 * 22 and mask[22:38, 10:26].all()


def test_a_real_detector_detects_with_augmentation(recipe: RunConfig) -> None:
    cfg = build_cfg(recipe, len(CATEGORIES), "cpu").clone()
    cfg.defrost()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.DETECTIONS_PER_IMAGE = [400], 3  # of 800: half the size
    model = build_detector(recipe, cfg).eval()
    picture = {"image": torch.randint(0, 256, (3, 64, 128), dtype=torch.uint8), "height": 64, "width": 128}
    with torch.no_grad():
        [output] = with_augmentation(model, cfg)([picture])
    found = output["instances"]
    assert len(found) == 3
    assert found.pred_masks.shape == (3, 64, 128)
    boxes = found.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2] <= 128).all() and (boxes[:, 3] <= 64).all()


def test_augmentation_is_an_option(recipe: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": detector(recipe).state_dict()}, tmp_path / "model.pth")
    given = []
    monkeypatch.setattr(augmented, "with_augmentation", lambda model, cfg: given.append(model) or model)
    told = evaluate_weights(tmp_path / "model.pth", "shapes/tiny_rio", None, "cpu", tta=True)
    assert told.startswith("shapes val: model.pth with test-time augmentation")
    assert isinstance(given[0], GeneralizedRCNN)
