"""Reading LVIS files: names of images, contiguous categories, and one clear line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rio_bench import datasets
from rio_bench.datasets import glyphs
from rio_bench.datasets.lvis import Category, Split, image_path, read_split
from rio_bench.errors import UserError

POLYGON = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]


def content_with(image: dict) -> dict:
    return {
        "categories": [
            {"id": 7, "name": "zebra", "frequency": "f"},
            {"id": 3, "name": "apple", "frequency": "r"},
        ],
        "images": [{"id": 42, "height": 30, "width": 40, **image}],
        "annotations": [
            {"id": 1, "image_id": 42, "category_id": 7, "bbox": [1, 1, 4, 4], "area": 8, "segmentation": POLYGON}
        ],
    }


def write_lvis(root: Path, name: str = "lvis_v1") -> None:
    (root / "lvis").mkdir(parents=True)
    (root / "coco").mkdir()
    for split in ("train", "val"):
        url = f"http://images.cocodataset.org/{split}2017/000000155379.jpg"
        (root / "lvis" / f"{name}_{split}.json").write_text(json.dumps(content_with({"coco_url": url})))


@pytest.mark.parametrize(
    ("image", "annotations", "expected"),
    [
        ({"coco_url": "http://images.cocodataset.org/val2017/000000155379.jpg"}, "lvis_v1_train.json",
         "val2017/000000155379.jpg"),
        ({"file_name": "COCO_val2014_000000001268.jpg"}, "lvis_v0.5_train.json", "train2017/000000001268.jpg"),
        ({"file_name": "COCO_train2014_000000001268.jpg"}, "lvis_v0.5_val.json", "val2017/000000001268.jpg"),
        ({"file_name": "pictures/one.png"}, "own.json", "pictures/one.png"),
    ],
)  # fmt: skip
def test_image_names(image: dict, annotations: str, expected: str):
    assert image_path(image, Split(Path(annotations), Path("/coco"))) == Path("/coco") / expected


def test_a_record_is_detectron2s_standard_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_lvis(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    read = read_split(datasets.load("lvis_v1").train, skip_empty=True)
    assert read.categories == [Category(3, "apple", "r"), Category(7, "zebra", "f")]
    assert read.records == [
        {
            "file_name": str(tmp_path / "coco" / "train2017" / "000000155379.jpg"),
            "height": 30,
            "width": 40,
            "image_id": 42,
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
            "annotations": [{"bbox": [1, 1, 4, 4], "bbox_mode": 1, "category_id": 1, "segmentation": POLYGON}],
        }
    ]


def test_the_fingerprint_of_lvis_follows_its_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_lvis(tmp_path, "lvis_v0.5")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    before = datasets.fingerprint("lvis_v0.5")
    assert before == datasets.fingerprint("lvis_v0.5")
    path = tmp_path / "lvis" / "lvis_v0.5_val.json"
    path.write_text(path.read_text().replace("apple", "pear"))
    assert datasets.fingerprint("lvis_v0.5") != before


@pytest.mark.parametrize("missing", ["lvis/lvis_v1_train.json", "lvis/lvis_v1_val.json", "coco"])
def test_missing_files_are_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_lvis(tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match="DETECTRON2_DATASETS") as caught:
        datasets.load("lvis_v1")
    assert str(tmp_path / missing) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[]", "LVIS format"),
        (json.dumps({"categories": [], "images": []}), "annotations"),
        (json.dumps({**content_with({"file_name": "a.png"}), "categories": []}), "7"),
        (json.dumps(content_with({})), "file_name"),
    ],
)
def test_a_bad_file_is_one_line(text: str | None, expected: str, tmp_path: Path):
    path = tmp_path / "own.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        read_split(Split(path, tmp_path), skip_empty=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_names_are_complete_and_described():
    assert datasets.names() == ["glyphs-lvis", "glyphs-mini", "lvis_v0.5", "lvis_v1"]
    assert {name for name in datasets.names() if name.startswith("glyphs-")} == set(glyphs.PRESETS)
    assert all(datasets.describe(name) and "\n" not in datasets.describe(name) for name in datasets.names())


@pytest.mark.parametrize("function", [datasets.load, datasets.fingerprint, datasets.describe])
def test_a_wrong_name_gets_a_suggestion(function):
    with pytest.raises(UserError, match="did you mean 'glyphs-mini'"):
        function("glyph-mini")
