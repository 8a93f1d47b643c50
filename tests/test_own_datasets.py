"""One's own files: what COCO's format lacks is computed, identities follow the content, and what is wrong is a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rio_bench import datasets, plan
from rio_bench.config import Experiment, RunConfig, canonical, load_experiment
from rio_bench.datasets import inspection
from rio_bench.datasets.lvis import Dataset, Split, read_split
from rio_bench.errors import UserError
from rio_bench.plan import identity, make_plan

SQUARE = [[2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]]
CATEGORIES = [{"id": 3, "name": "wren"}, {"id": 1, "name": "owl"}, {"id": 8, "name": "kiwi"}]
Objects = list[tuple[int, int]]  # (image, category)


def coco_file(objects: Objects, images: list[int] | None = None) -> dict[str, Any]:
    """A file in COCO's format: objects are squares; pictures are called 1.png, ..."""
    images = images or sorted({image for image, _ in objects})
    return {
        "categories": [dict(category, supercategory="bird") for category in CATEGORIES],
        "images": [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 20} for n in images],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": [2, 2, 10, 10],
                "area": 100,
                "iscrowd": 0,
                "segmentation": SQUARE,
            }
            for number, (image, category) in enumerate(objects, start=1)
        ],
    }


def write(folder: Path, train: dict[str, Any], val: dict[str, Any], name: str = "birds") -> Dataset:
    splits = []
    for role, content in (("train", train), ("val", val)):
        path = folder / f"{role}.json"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        (folder / role).mkdir(exist_ok=True)
        for image in content["images"]:
            (folder / role / image["file_name"]).touch()
        splits.append(Split(path, folder / role))
    return Dataset(name, *splits)


def setting(dataset: Dataset, name: str | None = None) -> dict[str, Any]:
    """What an experiment file says for it."""
    files = {
        role: {"json": str(split.annotations), "images": str(split.images)}
        for role, split in (("train", dataset.train), ("val", dataset.val))
    }
    return files | ({"name": name} if name else {})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and a cache folder of its own."""
    monkeypatch.setenv("RIO_BENCH_CACHE", str(tmp_path / "cache"))
    plan._dataset_fingerprint.cache_clear()
    return tmp_path / "birds"


# ---------------------------------------------------------------------------------------------------------- COCO format


def test_what_coco_lacks_is_computed(folder: Path, capsys: pytest.CaptureFixture[str]):
    # owl in 12 training pictures, wren in 1, kiwi in none; picture 2 of val has a crowd of wrens
    train = coco_file([*((image, 1) for image in range(1, 13)), (1, 1), (5, 3)], list(range(1, 14)))
    val = coco_file([(1, 1), (2, 8), (2, 3)], [1, 2])
    val["annotations"][2] |= {"iscrowd": 1, "segmentation": {"size": [20, 20], "counts": [100, 300]}}
    dataset = write(folder, train, val)

    completed = datasets.load(dataset)
    told = capsys.readouterr().err
    assert told == (
        "birds: train.json and val.json in COCO format: groups by the number of training pictures (2 rare, 1 common, "
        "0 frequent); categories without an object in a picture counted as absent from it (neg_category_ids); "
        "1 crowd regions left out, their categories not_exhaustive there\n"
    )
    for split in (completed.train, completed.val):
        content = json.loads(split.annotations.read_text())
        assert content["categories"] == [
            {"id": 1, "name": "owl", "frequency": "c", "image_count": 12, "instance_count": 13},
            {"id": 3, "name": "wren", "frequency": "r", "image_count": 1, "instance_count": 1},
            {"id": 8, "name": "kiwi", "frequency": "r", "image_count": 0, "instance_count": 0},
        ]
    assert json.loads(completed.val.annotations.read_text())["images"] == [
        {"id": 1, "height": 20, "width": 20, "file_name": "1.png", "neg_category_ids": [3, 8],
         "not_exhaustive_category_ids": []},
        {"id": 2, "height": 20, "width": 20, "file_name": "2.png", "neg_category_ids": [1],
         "not_exhaustive_category_ids": [3]},
    ]  # fmt: skip
    records = read_split(completed.val, skip_empty=False).records
    assert [record["file_name"] for record in records] == [str(folder / "val" / f"{n}.png") for n in (1, 2)]
    assert [[entry["category_id"] for entry in record["annotations"]] for record in records] == [[0], [2]]
    assert len(read_split(completed.train, skip_empty=False).records) == 13


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.lists(st.tuples(st.integers(1, 6), st.sampled_from([1, 3, 8]), st.booleans()), min_size=1, max_size=14)
)
def test_federated_fields_equal_a_plain_loop(entries: list[tuple[int, int, bool]], folder: Path):
    content = coco_file([(image, category) for image, category, _ in entries], list(range(1, 7)))
    for annotation, (_, _, is_crowd) in zip(content["annotations"], entries, strict=True):
        annotation["iscrowd"] = int(is_crowd)
    objects = [(image, category) for image, category, is_crowd in entries if not is_crowd]
    if not objects:
        return
    dataset = write(folder, content, content)
    completed = json.loads(datasets.load(dataset).val.annotations.read_text())
    assert [(entry["image_id"], entry["category_id"]) for entry in completed["annotations"]] == objects
    for image in completed["images"]:
        seen = {category for i, category, _ in entries if i == image["id"]}
        crowded = {category for i, category, is_crowd in entries if i == image["id"] and is_crowd}
        assert image["neg_category_ids"] == [category for category in (1, 3, 8) if category not in seen]
        assert image["not_exhaustive_category_ids"] == sorted(crowded)
    for category in completed["categories"]:
        in_images = [image for image, of_category in objects if of_category == category["id"]]
        assert (category["image_count"], category["instance_count"]) == (len(set(in_images)), len(in_images))


def test_the_lvis_package_scores_the_truth_perfect(folder: Path, lvis_package: ModuleType, tmp_path: Path):
    objects = [(1, 1), (2, 3), (2, 1), (3, 8)]
    completed = datasets.load(write(folder, coco_file(objects), coco_file(objects)))
    path = completed.val.annotations
    truth = json.loads(path.read_text())
    kept = ("image_id", "category_id", "bbox", "segmentation")
    detections = [{key: entry[key] for key in kept} | {"score": 1.0} for entry in truth["annotations"]]
    for iou_type in ("bbox", "segm"):
        evaluation = lvis_package.LVISEval(str(path), json.loads(json.dumps(detections)), iou_type)
        evaluation.run()
        assert evaluation.get_results()["AP"] == pytest.approx(1)
        assert evaluation.get_results()["APr"] == pytest.approx(1)


def test_masks_are_polygons_or_run_lengths(folder: Path, capsys: pytest.CaptureFixture[str]):
    mask_utils = pytest.importorskip("pycocotools.mask")
    square = np.zeros((20, 20), dtype=np.uint8, order="F")
    square[2:12, 2:12] = 1
    lengths = [42] + [10, 10] * 9 + [10, 20 * 20 - 42 - 10 * 19]
    text = mask_utils.encode(square)["counts"].decode()
    content = coco_file([(1, 1), (1, 3), (1, 8), (1, 8), (1, 8)])
    shapes = [{"size": [20, 20], "counts": lengths}, {"size": [20, 20], "counts": text}, SQUARE, [], [[1, 2, 3, 4]]]
    for annotation, shape in zip(content["annotations"], shapes, strict=True):
        annotation["segmentation"] = shape
    del content["annotations"][4]["segmentation"]
    (record,) = read_split(datasets.load(write(folder, content, content)).train, skip_empty=True).records
    assert "4 objects without a mask left out" in capsys.readouterr().err  # two in each file
    first, second, polygons = (entry["segmentation"] for entry in record["annotations"])
    assert first == second == {"size": [20, 20], "counts": text}
    assert polygons == SQUARE


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [20, 20], "counts": [100, -20, 320]},
        {"size": [20, 20], "counts": [2**32]},
        {"size": [20, 20], "counts": [100, 200]},
        {"size": [20, 20], "counts": []},
        {"size": [-20, -20], "counts": [400]},
        {"size": [20, 20], "counts": "zzzz"},
        {"size": [10, 40], "counts": [400]},
        [[1e9, 1, 2e9, 1, 2e9, 1e9]],
    ],
)
@pytest.mark.parametrize("is_lvis", [False, True])
def test_broken_masks_are_refused_before_anything_trains(folder: Path, mask: Any, is_lvis: bool):
    content = lvis_of(coco_file([(1, 1), (1, 3)])) if is_lvis else coco_file([(1, 1), (1, 3)])
    content["annotations"][1]["segmentation"] = mask
    dataset = write(folder, content, content)
    told = "the runs of its mask do not fill|its mask is of|a polygon of its mask reaches"
    with pytest.raises(UserError, match=f"train.json: annotation 2: ({told})"):
        datasets.load(dataset)


@pytest.mark.parametrize("is_lvis", [False, True])
def test_detectron2_trains_on_the_records(folder: Path, is_lvis: bool):
    data = pytest.importorskip("detectron2.data")
    content = coco_file([(1, 1), (1, 3)])
    content["annotations"][1]["segmentation"] = {"size": [20, 20], "counts": [100, 50, 250]}
    content = lvis_of(content) if is_lvis else content
    dataset = write(folder, content, content)
    Image.new("RGB", (20, 20)).save(folder / "train" / "1.png")
    (record,) = read_split(datasets.load(dataset).train, skip_empty=True).records
    mapper = data.DatasetMapper(
        is_train=True, augmentations=[], image_format="BGR", use_instance_mask=True, instance_mask_format="bitmask"
    )
    instances = mapper(record)["instances"]
    assert instances.gt_classes.tolist() == [0, 1]
    assert instances.gt_masks.tensor.sum(dim=(1, 2)).tolist() == [100, 50]


def test_a_coco_file_names_pictures_by_file_name_although_it_has_coco_urls(folder: Path):
    content = coco_file([(1, 1)])
    content["images"][0] |= {"coco_url": "http://images.cocodataset.org/train2017/7.jpg"}
    content["images"][0]["file_name"] = "COCO_train2014_000000000007.jpg"
    dataset = write(folder, content, content)
    datasets.check(dataset)
    (record,) = read_split(datasets.load(dataset).train, skip_empty=True).records
    assert record["file_name"] == str(folder / "train" / "COCO_train2014_000000000007.jpg")


def lvis_of(content: dict[str, Any]) -> dict[str, Any]:
    """The same in the LVIS format."""
    federated = {"neg_category_ids": [8], "not_exhaustive_category_ids": []}
    return content | {
        "categories": [{**category, "frequency": "f"} for category in content["categories"]],
        "images": [{**image, **federated} for image in content["images"]],
    }


def test_files_in_the_lvis_format_are_taken_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]):
    content = lvis_of(coco_file([(1, 1), (2, 3)]))
    dataset = write(folder, content, content)
    assert datasets.load(dataset) == dataset
    assert capsys.readouterr().err == ""
    assert [category.frequency for category in read_split(dataset.val, skip_empty=False).categories] == ["f", "f", "f"]


def test_only_what_lacks_is_computed(folder: Path):
    content = coco_file([(1, 1), (2, 3)])
    dataset = write(folder, lvis_of(content), content)
    completed = datasets.load(dataset)
    assert completed.train == dataset.train
    written = json.loads(completed.val.annotations.read_text())
    assert [category["frequency"] for category in written["categories"]] == ["f", "f", "f"]  # as the training file says
    assert [image["neg_category_ids"] for image in written["images"]] == [[3, 8], [1, 8]]


def test_completed_files_are_made_once_and_whole(folder: Path, monkeypatch: pytest.MonkeyPatch):
    content = coco_file([(1, 1), (2, 3)])
    dataset = write(folder, content, content)

    def fail(*_: Any) -> bytes:
        raise RuntimeError("the disk is on fire")

    with monkeypatch.context() as patch:
        patch.setattr("rio_bench.datasets.coco._completed", fail)
        with pytest.raises(RuntimeError):
            datasets.load(dataset)
    completed = datasets.load(dataset)
    made = completed.val.annotations.stat()
    monkeypatch.setattr("rio_bench.datasets.coco._completed", fail)
    assert datasets.load(dataset) == completed
    assert completed.val.annotations.stat() == made
    assert not list(completed.val.annotations.parent.parent.glob("*partial*"))


# ----------------------------------------------------------------------------------------------- in an experiment file

RUN = {"backbone": "R18-FPN", "strategy": "rio", "iterations": 10}


def config_of(dataset: Dataset, name: str | None = None) -> RunConfig:
    return RunConfig.model_validate({**RUN, "dataset": setting(dataset, name)})


def test_a_configuration_is_stored_and_read_back_wherever_it_was_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    content = coco_file([(1, 1)])
    write(folder, content, content)
    monkeypatch.chdir(folder)
    files = {"train": {"json": "train.json", "images": "train"}, "val": {"json": "./val.json", "images": "val"}}
    config = RunConfig.model_validate({**RUN, "dataset": files})
    monkeypatch.chdir("/")
    stored = json.loads(json.dumps(canonical(config)))
    assert RunConfig.model_validate(stored) == config
    assert datasets.load(config.dataset).name == "train"
    assert stored["dataset"]["train"] == {"json": str(folder / "train.json"), "images": str(folder / "train")}
    assert datasets.label(stored["dataset"]) == datasets.label(config.dataset) == "train"


def test_identity_is_of_the_content_and_not_of_the_place_or_the_name(folder: Path, tmp_path: Path):
    content, other = coco_file([(1, 1), (2, 3)]), coco_file([(1, 1), (2, 1)])
    here, there = write(folder, content, content), write(tmp_path / "there", content, content)
    changed = write(tmp_path / "changed", content, other)
    assert identity(config_of(here)) == identity(config_of(there, "owls"))
    assert identity(config_of(here)) != identity(config_of(changed))
    warm = [
        RunConfig.model_validate({**canonical(config_of(d)), "warm_start": canonical(config_of(d))})
        for d in (here, there)
    ]
    assert identity(warm[0]) == identity(warm[1])
    grid = {"dataset": [setting(here, "a"), setting(there, "a"), setting(changed, "b")]}
    assert len(make_plan(Experiment(name="x", run=RUN, grid=grid)).runs) == 2


def test_two_data_sets_need_two_names(folder: Path, tmp_path: Path):
    here = write(folder, coco_file([(1, 1)]), coco_file([(1, 1)]))
    other = write(tmp_path / "other", coco_file([(1, 3)]), coco_file([(1, 1)]))
    grid = {"dataset": [setting(here), setting(other)]}
    with pytest.raises(UserError, match="two data sets are called 'train'"):
        make_plan(Experiment(name="x", run=RUN, grid=grid))


def experiment_file(path: Path, dataset: str) -> Path:
    path.write_text(f"run:\n  backbone: R18-FPN\n  iterations: 10\n  strategy: rio\n  dataset: {dataset}\n")
    return path


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ("18", "run.dataset: expected a data set's name or {train: {json: FILE, images: FOLDER}, val:"),
        ("{}", "run.dataset.train: is required"),
        ("{train: {json: a, images: b}}", "run.dataset.val: is required"),
        ("{train: a.json, val: b.json}", "run.dataset.train: expected a mapping, got 'a.json'"),
        ("{train: {jsn: a, images: b}, val: {}}", "run.dataset.train.jsn: unknown key (did you mean 'json'?)"),
        ("{trian: {}}", "run.dataset.trian: unknown key (did you mean 'train'?)"),
        ("{name: lvis_v1, train: {json: a, images: b}, val: {json: a, images: b}}", "'lvis_v1' is another data set's"),
        ("{name: '', train: {json: a, images: b}, val: {json: a, images: b}}", "run.dataset.name: expected a name"),
        ("{train: {json: 3, images: b}, val: {json: a, images: b}}", "dataset.train.json: expected a valid string"),
    ],
)
def test_a_wrong_setting_is_told_with_its_place(dataset: str, says: str, tmp_path: Path):
    file = experiment_file(tmp_path / "own.yaml", dataset)
    with pytest.raises(UserError) as caught:
        load_experiment(file)
    assert str(caught.value).startswith(f"{file}:5: ") and says in str(caught.value)


def run_command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rio_bench", *arguments],
        cwd=folder,
        env={**os.environ, "RIO_BENCH_CACHE": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def lose(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lose("val.json"), "dataset birds: val.json ({folder}/val.json) missing: expected a file and a folder each"),
        (lose("train"), "dataset birds: train.images ({folder}/train) missing: expected a file and a folder each"),
        (
            lose("train/2.png"),
            "birds: 1 of the 2 pictures of {folder}/train.json are missing, such as {folder}/train/2",
        ),
        (
            lambda folder: (folder / "train.json").write_text("{"),
            "{folder}/train.json: the annotation file is not JSON",
        ),
        (lambda folder: (folder / "val.json").write_text("[]"), "{folder}/val.json: not a file in the LVIS format"),
    ],
    ids=["annotations", "folder", "picture", "torn", "a list"],
)
def test_the_plan_tells_what_is_missing_or_broken(spoil: Callable[[Path], object], says: str, folder: Path):
    dataset = write(folder, coco_file([(1, 1), (2, 3)]), coco_file([(1, 1)]))
    file = experiment_file(folder / "own.yaml", json.dumps(setting(dataset, "birds")))
    good = run_command(folder, "run", str(file), "--dry-run")
    assert (good.returncode, good.stderr) == (0, "")
    assert "birds: 2 + 1 pictures, 2 + 1 objects, 3 categories (3 rare, 0 common, 0 frequent)" in good.stdout
    assert "train.json and val.json in COCO format: groups by the number of training pictures" in good.stdout
    spoil(folder)
    bad = run_command(folder, "run", str(file))
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)
    assert bad.stderr.startswith("error: " + says.format(folder=folder))
    assert not (folder / "results").exists()


def test_looking_imports_nothing_heavy(folder: Path):
    dataset = write(folder, coco_file([(1, 1)]), coco_file([(1, 1)]))
    file = experiment_file(folder / "own.yaml", json.dumps(setting(dataset)))
    script = (
        "import sys, rio_bench.cli\n"
        f"sys.argv = ['rio_bench', 'run', {str(file)!r}, '--dry-run']\n"
        "try:\n    rio_bench.cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'detectron2', 'pandas', 'pycocotools'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_an_inspection_knows_its_version(folder: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = write(folder, coco_file([(1, 1)]), coco_file([(1, 1)]))
    before = inspection.inspect(dataset.train)
    monkeypatch.setattr(inspection, "VERSION", inspection.VERSION + 1)
    assert inspection.inspect(dataset.train).version == before.version + 1
