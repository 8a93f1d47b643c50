"""Reading LVIS files: names of pictures, contiguous categories, Detectron2's own records, what is missing or broken."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rio_bench import datasets, listing
from rio_bench.datasets import cache, coco, glyphs, inspection
from rio_bench.datasets.inspection import inspect
from rio_bench.datasets.lvis import Category, FileImage, Split, image_name, read_split
from rio_bench.errors import UserError

POLYGON = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]
Change = Callable[[dict[str, Any]], None]


def content() -> dict[str, Any]:
    """Two pictures, one of them empty, three objects of two categories out of order."""

    def image(number: int, **more: Any) -> dict[str, Any]:
        url = f"http://images.cocodataset.org/train2017/{number:012}.jpg"
        federated = {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
        return {"id": number, "height": 30, "width": 40, "coco_url": url, **federated, **more}

    def annotation(number: int, category: int) -> dict[str, Any]:
        box = {"bbox": [1.5, 1, 4, 4], "area": 8.0}
        return {"id": number, "image_id": 42, "category_id": category, "segmentation": POLYGON, **box}

    return {
        "categories": [
            {"id": 2, "name": "zebra", "frequency": "f"},
            {"id": 1, "name": "apple", "frequency": "r"},
        ],
        "images": [image(42), image(7, not_exhaustive_category_ids=[2])],
        "annotations": [annotation(9, 2), annotation(3, 1), annotation(5, 2)],
    }


def write_lvis(root: Path, name: str = "lvis_v1") -> Path:
    """A small LVIS below `root`, where Detectron2 expects it."""
    (root / "lvis").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "coco" / f"{split}2017").mkdir(parents=True)
        (root / "lvis" / f"{name}_{split}.json").write_text(json.dumps(content()))
    for number in (42, 7):
        (root / "coco" / "train2017" / f"{number:012}.jpg").touch()
    return root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small LVIS v1, and a cache folder of its own."""
    monkeypatch.setenv("RIO_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return write_lvis(tmp_path / "data")


# ---------------------------------------------------------------------------------------------------------- as records


@pytest.mark.parametrize(
    ("image", "annotations", "expected"),
    [
        ({"coco_url": "http://images.cocodataset.org/val2017/000000155379.jpg"}, "lvis_v1_train.json",
         "val2017/000000155379.jpg"),
        ({"file_name": "COCO_val2014_000000001268.jpg"}, "lvis_v0.5_train.json", "train2017/000000001268.jpg"),
        ({"file_name": "COCO_train2014_000000001268.jpg"}, "lvis_v0.5_val.json", "val2017/000000001268.jpg"),
        ({"file_name": "COCO_train2014_000000001268.jpg"}, "own_val.json", "COCO_train2014_000000001268.jpg"),
        ({"file_name": "pictures/one.png"}, "own.json", "pictures/one.png"),
    ],
)  # fmt: skip
def test_image_names(image: dict, annotations: str, expected: str):
    assert image_name(FileImage(id=1, height=2, width=3, **image), Path("/lvis", annotations)) == expected


def test_a_record_is_detectron2s_standard_dict(root: Path):
    read = read_split(datasets.load("lvis_v1").train, skip_empty=True)
    assert read.categories == [Category(1, "apple", "r"), Category(2, "zebra", "f")]

    def annotation(category: int) -> dict[str, Any]:
        return {"bbox": [1.5, 1, 4, 4], "bbox_mode": 1, "category_id": category, "segmentation": POLYGON}

    assert read.records == [
        {
            "file_name": str(root / "coco" / "train2017" / "000000000042.jpg"),
            "height": 30,
            "width": 40,
            "image_id": 42,
            "neg_category_ids": [3],
            "not_exhaustive_category_ids": [],
            "annotations": [annotation(1), annotation(0), annotation(1)],
        }
    ]


def test_the_records_are_those_of_detectron2s_loader(root: Path, request: pytest.FixtureRequest):
    detectron2_lvis = pytest.importorskip("detectron2.data.datasets.lvis")
    package: ModuleType = request.getfixturevalue("lvis_package")
    assert package is not None
    path = root / "lvis" / "lvis_v1_train.json"
    theirs = detectron2_lvis.load_lvis_json(str(path), f"{root}/coco/")
    assert len(theirs) == 2
    assert read_split(Split(path, root / "coco"), skip_empty=False).records == theirs


def rename_category(file: dict[str, Any]) -> None:
    file["annotations"][0]["category_id"] = 11


def lose_image(file: dict[str, Any]) -> None:
    file["images"].pop(0)


def two_point_polygon(file: dict[str, Any]) -> None:
    file["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]


def odd_polygon(file: dict[str, Any]) -> None:
    file["annotations"][1]["segmentation"] = [[1, 2, 3, 4, 5, 6, 7]]


def no_file_name(file: dict[str, Any]) -> None:
    del file["images"][0]["coco_url"]


def repeat_annotation(file: dict[str, Any]) -> None:
    file["annotations"][0]["id"] = 3


def text_for_a_number(file: dict[str, Any]) -> None:
    file["images"][0]["height"] = "30"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda file: file.pop("annotations"), "LVIS format: .*`annotations`"),
        (lambda file: file["categories"][0].pop("frequency"), r"`frequency` - at `\$.categories\[0\]`"),
        (rename_category, "annotation 9 is of category 11, which the file does not have"),
        (lose_image, "annotation 9 is in image 42, which the file does not have"),
        (two_point_polygon, r"length >= 6 - at `\$.annotations\[1\].segmentation\[0\]`"),
        (odd_polygon, "annotation 3 has a polygon with an odd number of coordinates"),
        (no_file_name, "image 42 has neither coco_url nor file_name"),
        (repeat_annotation, "3 annotations have only 2 different ids"),
        (text_for_a_number, r"Expected `int`, got `str` - at `\$.images\[0\].height`"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(change: Change, expected: str, tmp_path: Path):
    file = content()
    change(file)
    path = tmp_path / "own.json"
    path.write_text(json.dumps(file))
    with pytest.raises(UserError, match=expected) as caught:
        read_split(Split(path, tmp_path), skip_empty=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "LVIS format"),
        (b'{"categories": [{"id": 1, "name": "\xff"}]}', "not JSON"),
        (b'{"info": ' + b"[" * 100_000, "not JSON"),
    ],
    ids=["missing", "empty", "torn", "a list", "not UTF-8", "too deep"],
)
def test_what_is_no_annotation_file_is_told_in_a_line(text: bytes | None, expected: str, tmp_path: Path):
    path = tmp_path / "own.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match=expected) as caught:
        read_split(Split(path, tmp_path), skip_empty=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- found and missing


def test_what_is_there_passes_the_check_and_is_counted(root: Path):
    datasets.check("lvis_v1")
    train, val = datasets.statistics("lvis_v1") or ((), ())
    assert (train.images, train.objects, val.images) == (2, 3, 2)
    assert [(e["image_count"], e["instance_count"], e["frequency"]) for e in train.categories] == [
        (1, 1, "r"),
        (1, 2, "f"),
    ]
    assert datasets.summary("lvis_v1") == (
        "2 + 2 pictures, 3 + 3 objects, 2 categories (1 rare, 0 common, 1 frequent), 2 in at most 30 training pictures"
    )


@pytest.mark.parametrize(
    ("missing", "download"),
    [
        ("lvis/lvis_v1_train.json", "lvis_v1_train.json.zip (lvisdataset.org)"),
        ("lvis/lvis_v1_val.json", "lvis_v1_val.json.zip (lvisdataset.org)"),
        ("coco/train2017", "train2017.zip (cocodataset.org)"),
        ("coco/val2017", "val2017.zip (cocodataset.org)"),
    ],
)
@pytest.mark.parametrize("function", [datasets.load, datasets.check, datasets.fingerprint])
def test_a_missing_file_is_named_with_its_place_and_its_download(missing: str, download: str, function, root: Path):
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(UserError, match="set DETECTRON2_DATASETS") as caught:
        function("lvis_v1")
    said = str(caught.value)
    assert said.startswith(f"lvis_v1: missing {root / missing}: unpack {download} there")
    assert "\n" not in said


def test_all_that_is_missing_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        datasets.check("lvis_v0.5")
    for part in ("lvis/lvis_v0.5_train.json", "lvis/lvis_v0.5_val.json", "coco/train2017", "coco/val2017"):
        assert str(tmp_path / "datasets" / part) in str(caught.value)


def test_missing_pictures_are_counted_and_one_is_named(root: Path):
    (root / "coco" / "train2017" / "000000000007.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of the 2 pictures of .*lvis_v1_train.json are missing, such as .*07.jpg"):
        datasets.check("lvis_v1")
    (root / "coco" / "train2017" / "000000000007.jpg").touch()
    datasets.check("lvis_v1")  # remembering the file's content does not remember what is missing


def other_categories(file: dict[str, Any]) -> None:
    file["categories"][1]["name"] = "pear"


def no_federation(file: dict[str, Any]) -> None:
    for image in file["images"]:
        del image["neg_category_ids"]


def half_a_federation(file: dict[str, Any]) -> None:
    del file["images"][1]["neg_category_ids"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (other_categories, "category 1 is 'apple' in .*_train.json and 'pear' in .*_val.json"),
        (lambda file: file["categories"].append({"id": 5, "name": "b", "frequency": "r"}), "category 5 is missing in"),
        (no_federation, "_val.json: not in the LVIS format: is it the file of another data set"),
        (half_a_federation, "image 7 has no neg_category_ids, which others have"),
        (two_point_polygon, r"annotation 3 has no mask \(1 of them\)"),
        (odd_polygon, r"annotation 3 has no mask \(1 of them\)"),
        (lambda file: file["annotations"].clear(), "has no objects"),
        (lambda file: file["images"].clear(), "has no images"),
        (lambda file: file["annotations"][2].pop("area"), "annotation 5 has no area"),
        (repeat_annotation, "two annotations have the id 3"),
        (lambda file: file["categories"][0].update(name="apple"), "two categories have the name 'apple'"),
        (rename_category, "annotation 9 is of category 11"),
        (lambda file: file.pop("images"), "not a file in the LVIS format: .*`images`"),
        (lambda file: file["annotations"][0].pop("bbox"), r"`bbox` - at `\$.annotations\[0\]`"),
    ],
)
def test_a_broken_file_is_told_before_anything_runs(change: Change, expected: str, root: Path):
    file = content()
    change(file)
    path = root / "lvis" / "lvis_v1_val.json"
    path.write_text(json.dumps(file))
    with pytest.raises(UserError, match=expected) as caught:
        datasets.check("lvis_v1")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ the true sizes


def write_with_counts(path: Path, image_counts: Sequence[int]) -> None:
    """Category c is in the first image_counts[c] pictures, at most 101: that many keep its bucket."""
    counts = [min(count, 101) for count in image_counts]
    federated = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    names = ["r" if count <= 10 else "c" if count <= 100 else "f" for count in counts]
    objects = [(image, category) for category, count in enumerate(counts, start=1) for image in range(1, count + 1)]
    file = {
        "categories": [{"id": n, "name": f"c{n}", "frequency": name} for n, name in enumerate(names, start=1)],
        "images": [{"id": n, "height": 9, "width": 9, "file_name": f"{n}.png", **federated} for n in range(1, 102)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": [0, 0, 5, 5], "segmentation": POLYGON}
            for n, (image, category) in enumerate(objects)
        ],
    }
    path.write_text(json.dumps(file))


def lvis_v1_image_counts() -> list[int]:
    table = Path(glyphs.__file__).with_name("glyphs_lvis.csv").read_text(encoding="utf-8").splitlines()
    return [int(row["lvis_image_count"]) for row in csv.DictReader(line for line in table if line[0] != "#")]


# v0.5's counts are not known here: any with its 454 rare and 252 common categories in at most 30 pictures.
LVIS_V0_5_IMAGE_COUNTS = [1, 10] * 227 + [11, 30] * 126 + [31] * 209 + [200] * 315


@pytest.mark.parametrize(
    ("image_counts", "buckets", "bank"),
    [(LVIS_V0_5_IMAGE_COUNTS, (454, 461, 315), 706), (lvis_v1_image_counts(), (337, 461, 405), 553)],
    ids=["lvis_v0.5", "lvis_v1"],
)
def test_groups_and_bank_categories(
    image_counts: list[int], buckets: tuple[int, ...], bank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RIO_BENCH_CACHE", str(tmp_path / "cache"))
    write_with_counts(tmp_path / "train.json", image_counts)
    found = inspect(Split(tmp_path / "train.json", tmp_path))
    assert [entry["image_count"] for entry in found.categories] == [min(count, 101) for count in image_counts]
    assert tuple(coco.bucket_sizes(found).values()) == buckets
    assert found.bank_categories() == bank
    assert [inspection.bucket(count) for count in image_counts] == [entry["frequency"] for entry in found.categories]


# ---------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def split(root: Path, monkeypatch: pytest.MonkeyPatch) -> Split:
    """A split whose hash is kept, although its file has just been written."""
    monkeypatch.setattr(cache, "SETTLED_NANOSECONDS", -(10**15))
    return Split(root / "lvis" / "lvis_v1_train.json", root / "coco")


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("read again")


def test_a_file_is_read_and_hashed_once(split: Split, monkeypatch: pytest.MonkeyPatch):
    first = inspect(split)
    monkeypatch.setattr(inspection, "read_annotations", refuse)
    monkeypatch.setattr("hashlib.file_digest", refuse)
    assert inspect(split) == first


@pytest.mark.parametrize(
    "damage", [lambda text: text[: len(text) // 2], lambda _: "", lambda _: "{}", lambda _: "\0" * 99]
)
@pytest.mark.parametrize("kept", ["hashes", "annotations"])
def test_a_torn_cache_is_not_used(split: Split, damage: Callable[[str], str], kept: str):
    first = inspect(split)
    (place,) = (cache.cache_folder() / kept).iterdir()
    whole = place.read_text()
    place.write_text(damage(whole))
    assert inspect(split) == first
    assert place.read_text() == whole  # mended


def test_a_change_that_keeps_size_and_time_is_seen(split: Split):
    before = inspect(split)
    status = split.annotations.stat()
    split.annotations.write_text(split.annotations.read_text().replace("apple", "grape"))
    os.utime(split.annotations, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = split.annotations.stat()
    assert (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    found = inspect(split)
    assert found.sha256 != before.sha256 and found.categories[0]["name"] == "grape"


def test_the_hash_of_a_young_file_is_not_kept(root: Path):
    inspect(Split(root / "lvis" / "lvis_v1_train.json", root / "coco"))
    assert not (cache.cache_folder() / "hashes").exists()


def test_a_file_that_moves_is_not_read_again(split: Split, root: Path, monkeypatch: pytest.MonkeyPatch):
    first = inspect(split)
    (root / "moved").mkdir()
    moved = Split(split.annotations.rename(root / "moved" / split.annotations.name), split.images)
    monkeypatch.setattr(inspection, "read_annotations", refuse)
    assert inspect(moved) == first


def test_without_a_cache_folder_it_only_takes_longer(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = inspect(split)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RIO_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    assert inspect(split) == first


# ------------------------------------------------------------------------------------------------------------- by name


def test_the_fingerprint_of_lvis_follows_its_annotations(root: Path):
    before = datasets.fingerprint("lvis_v1")
    assert before == datasets.fingerprint("lvis_v1")
    path = root / "lvis" / "lvis_v1_val.json"
    path.write_text(path.read_text().replace("apple", "pear"))
    assert datasets.fingerprint("lvis_v1") != before


def test_names_are_complete_and_described():
    assert datasets.names() == ["glyphs-lvis", "glyphs-mini", "lvis_v0.5", "lvis_v1"]
    assert {name for name in datasets.names() if name.startswith("glyphs-")} == set(glyphs.PRESETS)
    assert all(datasets.describe(name) and "\n" not in datasets.describe(name) for name in datasets.names())


@pytest.mark.parametrize("function", [datasets.load, datasets.check, datasets.fingerprint, datasets.describe])
def test_a_wrong_name_gets_a_suggestion(function):
    with pytest.raises(UserError, match="did you mean 'glyphs-mini'"):
        function("glyph-mini")


def test_an_embedded_data_set_that_is_not_made_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RIO_BENCH_CACHE", str(tmp_path))
    assert datasets.summary("glyphs-mini") == "made on first use"
    assert datasets.check("glyphs-mini") is None and not any(tmp_path.iterdir())


def test_the_list_tells_what_is_found_and_what_is_missing(root: Path, capsys: pytest.CaptureFixture[str]):
    (root / "lvis" / "lvis_v0.5_val.json").touch()
    listing.print_datasets()
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: lines[index + 1] for index, line in enumerate(lines) if line[:4] in ("lvis", "glyp")}
    assert told["lvis_v1"].strip().startswith("2 + 2 pictures, 3 + 3 objects, 2 categories")
    assert told["lvis_v0.5"].strip().startswith(f"missing {root}/lvis/lvis_v0.5_train.json: unpack lvis_v0.5_train")
    assert told["glyphs-mini"].strip() == "made on first use"
    (root / "lvis" / "lvis_v1_val.json").write_text("{")
    listing.print_datasets()
    assert f"{root}/lvis/lvis_v1_val.json: the annotation file is not JSON" in capsys.readouterr().out
