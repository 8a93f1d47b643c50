"""The embedded data sets: exact counts and masks, LVIS's federation, the same bytes from the same seed, all or
nothing."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from rio_bench.datasets import glyph_images, glyphs
from rio_bench.datasets.glyph_images import PlacedObject
from rio_bench.datasets.glyphs import GLYPHS_LVIS, GLYPHS_MINI
from rio_bench.datasets.lvis import Dataset, read_split
from rio_bench.errors import UserError

TINY = glyphs.Preset(
    name="glyphs-tiny",
    glyphs="AΩ★5Ж#",
    image_counts=(101, 40, 11, 10, 3, 1),
    val_image_counts=(2, 3, 6),
    num_images=(110, 10),
    image_size=64,
    object_size=(10, 32),
    max_categories=5,
    negatives=2,
    image_format="png",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIO_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield glyphs.make(TINY, workers=2)


def content_of(dataset: Dataset, split: str) -> dict:
    return json.loads(getattr(dataset, split).annotations.read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_with_one_worker(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RIO_BENCH_CACHE", str(tmp_path))
    again = glyphs.make(TINY, workers=1)
    assert again.train.images.name == tiny.train.images.name  # the fingerprint is in it
    made = files_of(again.train.images)
    assert len(made) == 122 and made == files_of(tiny.train.images)


def test_another_seed_gives_other_pictures(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RIO_BENCH_CACHE", str(tmp_path))
    other = glyphs.make(replace(TINY, seed=1))
    assert other.train.images.name != tiny.train.images.name
    first, second = (files_of(dataset.train.images) for dataset in (tiny, other))
    assert first.keys() == second.keys()
    assert not any(first[name] == second[name] for name in first)
    categories = [[plan.objects for plan in glyphs.plan_split(replace(TINY, seed=seed), "train")] for seed in (0, 1)]
    assert categories[0] != categories[1]


def test_every_picture_differs(tiny: Dataset):
    pictures = [content for name, content in files_of(tiny.train.images).items() if name.endswith(".png")]
    assert len(set(pictures)) == len(pictures) == 120


def test_counts_and_buckets_hold_exactly(tiny: Dataset):
    for split, expected in (("train", TINY.image_counts), ("val", (6, 3, 3, 2, 2, 2))):
        content = content_of(tiny, split)
        pairs = {(entry["category_id"], entry["image_id"]) for entry in content["annotations"]}
        counts = Counter(category for category, _ in pairs)
        assert tuple(counts[number] for number in range(1, 7)) == expected
        assert "".join(entry["frequency"] for entry in content["categories"]) == "fccrrr"
        assert tuple(entry["image_count"] for entry in content["categories"]) == TINY.image_counts
    instances = Counter(entry["category_id"] for entry in content_of(tiny, "train")["annotations"])
    for split in glyphs.SPLITS:
        assert {entry["id"]: entry["instance_count"] for entry in content_of(tiny, split)["categories"]} == instances


@pytest.mark.parametrize(("count", "expected"), [(1, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f")])
def test_bucket_bounds_are_those_of_lvis(count: int, expected: str):
    assert glyphs.bucket(count) == expected


def test_masks_are_apart_and_boxes_tight(tiny: Dataset):
    for split in glyphs.SPLITS:
        for record in read_split(getattr(tiny, split), skip_empty=False).records:
            with Image.open(record["file_name"]) as picture:
                assert picture.size == (record["width"], record["height"]) == (64, 64)
            seen = np.zeros((64, 64), dtype=int)
            for entry in record["annotations"]:
                mask = rle.decode(entry["segmentation"])
                seen += mask
                left, top, width, height = map(int, entry["bbox"])
                inside = mask[top : top + height, left : left + width]
                assert inside.sum() == mask.sum() > 0
                assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            assert seen.max(initial=0) <= 1
        for entry in content_of(tiny, split)["annotations"]:
            assert entry["area"] == rle.area(entry["segmentation"])


def test_a_mask_is_the_visible_part_by_hand():
    """A 4 x 4 square, over its corner a 2 x 2 one of which a pixel is covered by less than half."""
    back = PlacedObject(0, True, 1, 2, np.full((4, 4), 255, dtype=np.uint8))
    front = PlacedObject(1, True, 4, 5, np.array([[255, 128], [127, 200]], dtype=np.uint8))
    hidden_label = PlacedObject(2, False, 1, 2, np.full((1, 4), 255, dtype=np.uint8))
    first, second = glyph_images.annotate([back, front, hidden_label], 8)
    # back: rows 2..5, columns 1..4; row 2 is under the unannotated object, (5, 4) under the front one
    assert (first["category"], first["bbox"], first["area"]) == (0, [1, 3, 4, 3], 11)
    assert (second["category"], second["bbox"], second["area"]) == (1, [4, 5, 2, 2], 3)
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[5, 4] = expected[5, 5] = expected[6, 5] = 1
    np.testing.assert_array_equal(rle.decode(second["segmentation"]), expected)


def test_only_covered_pixels_are_painted():
    plan = next(plan for plan in glyphs.plan_split(TINY, "train") if len(plan.objects) >= 3)
    random = np.random.default_rng(plan.seed)
    placed = glyph_images.place_objects(TINY.glyphs, 64, TINY.object_size, plan, random)
    background = glyph_images.textured_background(64, random)
    canvas, covered, solid = background.copy(), np.zeros((64, 64), dtype=bool), np.zeros((64, 64), dtype=bool)
    for entry in placed:
        glyph_images.paint(canvas, entry, random)
        window = np.s_[entry.top : entry.top + entry.alpha.shape[0], entry.left : entry.left + entry.alpha.shape[1]]
        covered[window] |= entry.alpha > 0
        solid[window] |= entry.alpha >= 128
    changed = np.abs(canvas - background).max(-1)
    assert changed[~covered].max() == 0
    assert np.median(changed[solid]) > 40


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 14))
def test_every_object_stays_visible(seed: int, count: int):
    plan = replace(glyphs.plan_split(TINY, "val")[0], objects=tuple((i % 6, True) for i in range(count)))
    random = np.random.default_rng(seed)
    placed = glyph_images.place_objects(TINY.glyphs, 64, TINY.object_size, plan, random)
    assert [entry.category for entry in placed] == [i % 6 for i in range(count)]
    for entry, annotation in zip(placed, glyph_images.annotate(placed, 64), strict=True):
        assert annotation["area"] >= glyph_images.MIN_VISIBLE * (entry.alpha >= 128).sum()


def test_the_federation_is_consistent():
    for split in glyphs.SPLITS:
        plans = glyphs.plan_split(GLYPHS_MINI, split)
        for plan in plans:
            annotated = {category for category, is_annotated in plan.objects if is_annotated}
            unannotated = {category for category, is_annotated in plan.objects if not is_annotated}
            assert len(set(plan.negatives)) == len(plan.negatives) == GLYPHS_MINI.negatives
            assert not set(plan.negatives) & (annotated | unannotated)
            assert set(plan.not_exhaustive) == annotated & unannotated
        assert any(plan.not_exhaustive for plan in plans)
        assert any({c for c, seen in plan.objects if not seen} - set(plan.not_exhaustive) for plan in plans)


def test_the_file_says_what_the_plan_says(tiny: Dataset):
    for split in glyphs.SPLITS:
        content = content_of(tiny, split)
        for image, plan in zip(content["images"], glyphs.plan_split(TINY, split), strict=True):
            objects = [entry["category_id"] for entry in content["annotations"] if entry["image_id"] == image["id"]]
            assert objects == [category + 1 for category, is_annotated in plan.objects if is_annotated]
            assert image["neg_category_ids"] == [category + 1 for category in plan.negatives]
            assert image["not_exhaustive_category_ids"] == [category + 1 for category in plan.not_exhaustive]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=10, max_size=20), st.integers(0, 2**32), st.sampled_from([3, 9]))
def test_a_plan_holds_its_counts(counts: list[int], seed: int, max_categories: int):
    preset = replace(
        TINY,
        glyphs="".join(chr(ord("a") + index) for index in range(len(counts))),
        image_counts=tuple(counts),
        num_images=(100, 100),
        max_categories=max_categories,
        seed=seed,
    )
    shown = [{c for c, is_annotated in plan.objects if is_annotated} for plan in glyphs.plan_split(preset, "train")]
    assert [sum(category in image for image in shown) for category in range(len(counts))] == counts
    assert max(map(len, shown)) <= max_categories


def test_too_few_images_are_an_error():
    with pytest.raises(ValueError, match="too few"):
        glyphs.plan_split(replace(TINY, num_images=(100, 10)), "train")
    assert len(glyphs.plan_split(replace(TINY, num_images=(101, 10)), "train")) == 101


def test_the_lvis_package_reads_it_and_scores_the_truth_perfect(tiny: Dataset, lvis_package: ModuleType):
    truth = lvis_package.LVIS(str(tiny.val.annotations))
    assert len(truth.get_cat_ids()) == 6 and len(truth.get_img_ids()) == 10
    annotations = truth.load_anns(truth.get_ann_ids())
    assert all(truth.ann_to_mask(entry).sum() == entry["area"] for entry in annotations)
    keys = ("image_id", "category_id", "segmentation")
    detections = [{**{key: entry[key] for key in keys}, "score": 0.9} for entry in annotations]
    evaluation = lvis_package.LVISEval(truth, lvis_package.LVISResults(truth, detections), "segm")
    evaluation.run()
    results = evaluation.get_results()
    assert [results[name] for name in ("AP", "APr", "APc", "APf")] == pytest.approx([1.0] * 4)


SMALL = replace(GLYPHS_MINI, image_size=48, object_size=(8, 24))
MAKE = (
    "from dataclasses import replace; from rio_bench.datasets import glyphs; "
    "glyphs.make(replace(glyphs.GLYPHS_MINI, image_size=48, object_size=(8, 24)), workers=2)"
)


def start_making(cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKE],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "RIO_BENCH_CACHE": str(cache)},
        stderr=subprocess.PIPE,
    )


def test_a_killed_making_leaves_nothing_that_loads(tmp_path: Path):
    process = start_making(tmp_path)
    while len(list(tmp_path.rglob("*.png"))) < 40:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()  # returns when the workers, who share stderr, have ended too
    assert process.returncode == -signal.SIGKILL and b"made the data set" not in errors
    final = tmp_path / f"glyphs-mini-{glyphs.fingerprint(SMALL)}"
    assert not final.exists() and list(tmp_path.glob(f"{final.name}.partial-*"))
    assert len(list(tmp_path.rglob("*.png"))) < 440

    again = start_making(tmp_path)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert len(list(final.rglob("*.png"))) == 440
    assert sorted(path.name for path in tmp_path.iterdir()) == [final.name, f"{final.name}.lock"]


def test_two_processes_make_it_once(tmp_path: Path):
    both = [start_making(tmp_path) for _ in range(2)]
    errors = b"".join(process.communicate()[1] for process in both)
    assert [process.returncode for process in both] == [0, 0], errors
    assert errors.count(b"making the data set") == errors.count(b"made the data set") == 1


def test_a_failed_worker_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RIO_BENCH_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="ended early"):
        glyphs.make(replace(TINY, image_format="nonsense"))
    assert "unknown file extension" in capfd.readouterr().err
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_worker_that_dies_before_it_reads_its_jobs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RIO_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    many = replace(TINY, num_images=(3000, 10))  # jobs of more bytes than a pipe holds
    with pytest.raises(UserError, match=r"ended before it took its work \(exit status 1\)"):
        glyphs.make(many, workers=1)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RIO_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="RIO_BENCH_CACHE"):
        glyphs.make(TINY)


@pytest.mark.parametrize("preset", [GLYPHS_MINI, GLYPHS_LVIS], ids=lambda preset: preset.name)
def test_categories_are_distinct(preset: glyphs.Preset):
    assert len(preset.glyphs) == len(preset.image_counts)
    assert len({glyphs.category_name(glyph) for glyph in preset.glyphs}) == len(preset.glyphs)
    shapes = {glyph_images.turned_glyph(glyph, 64, 0).tobytes() for glyph in preset.glyphs}
    assert len(shapes) == len(preset.glyphs)


def test_glyphs_mini_has_every_bucket():
    assert Counter(map(glyphs.bucket, GLYPHS_MINI.image_counts)) == {"r": 10, "c": 10, "f": 10}


def test_glyphs_lvis_has_the_buckets_and_counts_of_lvis():
    counts = GLYPHS_LVIS.image_counts
    assert Counter(map(glyphs.bucket, counts)) == {"r": 337, "c": 461, "f": 405}
    spec = find_spec("detectron2")
    assert spec is not None and spec.submodule_search_locations
    table = Path(spec.submodule_search_locations[0], "data/datasets/lvis_v1_category_image_count.py")
    published = {row["id"]: row["image_count"] for row in runpy.run_path(str(table))["LVIS_CATEGORY_IMAGE_COUNT"]}
    assert counts == tuple(min(published[number], 300) for number in range(1, 1204))


def test_glyphs_lvis_plans_a_validation_split_with_every_category():
    counts = Counter(
        category
        for plan in glyphs.plan_split(GLYPHS_LVIS, "val")
        for category in {c for c, seen in plan.objects if seen}
    )
    expected = {"r": 5, "c": 8, "f": 16}
    assert all(counts[i] == expected[glyphs.bucket(count)] for i, count in enumerate(GLYPHS_LVIS.image_counts))


@pytest.mark.slow
def test_glyphs_lvis_draws(tmp_path: Path):
    plans = glyphs.plan_split(GLYPHS_LVIS, "train")
    counts = Counter(category for plan in plans for category in {c for c, seen in plan.objects if seen})
    assert tuple(counts[index] for index in range(1203)) == GLYPHS_LVIS.image_counts
    (tmp_path / "train").mkdir()
    for plan in sorted(plans, key=lambda plan: len(plan.objects))[-4:]:
        annotations = glyph_images.draw_image(
            (GLYPHS_LVIS.glyphs, GLYPHS_LVIS.image_size, GLYPHS_LVIS.object_size, plan, str(tmp_path))
        )
        assert [entry["category"] for entry in annotations] == [c for c, seen in plan.objects if seen]
        with Image.open(tmp_path / plan.file_name) as picture:
            assert picture.size == (320, 320)
