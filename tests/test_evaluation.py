from __future__ import annotations

import copy
import json
import logging
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lvis_cases import SHORT_MASK, SMALL_MASK, encode, found, lvis_ap, one_picture, runs, square, write
from pycocotools import mask as mask_utils

from rio_bench.detection import compact, evaluation
from rio_bench.detection.detections import DetectionsWriter
from rio_bench.errors import UserError
from rio_bench.records import Metrics

# ------------------------------------------------------------------------------------------- against the lvis package


def ellipse(box: list[float], height: int, width: int) -> np.ndarray:
    """A mask that fills part of a box. [height, width] uint8"""
    x, y, w, h = box
    rows, columns = np.mgrid[:height, :width] + 0.5
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    return np.asfortranarray(inside, dtype=np.uint8)


def polygon(box: list[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x + w / 3, y + h]]


def random_box(rng: np.random.Generator, height: int, width: int) -> list[float]:
    w, h = rng.uniform(3, 0.8 * width), rng.uniform(3, 0.8 * height)
    return [float(rng.uniform(0, width - w)), float(rng.uniform(0, height - h)), float(w), float(h)]


def random_case(seed: int, most_detections: int) -> tuple[dict[str, Any], list[dict]]:
    """An annotation file's content and detections with all that LVIS evaluation distinguishes."""
    rng = np.random.default_rng(seed)
    category_ids = rng.permutation(60)[: rng.integers(1, 9)].tolist()
    frequencies = rng.choice(["r", "c", "f"], size=len(category_ids)).tolist()
    categories = [
        {"id": category_id, "name": f"name {category_id}", "frequency": frequency}
        for category_id, frequency in zip(category_ids, frequencies, strict=True)
    ]
    images, objects, detections = [], [], []
    for image_id in (1 + rng.permutation(40)[: rng.integers(1, 6)]).tolist():
        height, width = rng.integers(24, 60, size=2).tolist()
        size = {"height": height, "width": width}
        crowded = rng.random() < 0.3
        for _ in range(rng.integers(0, 25 if crowded else 6)):
            box = random_box(rng, height, width)
            mask = ellipse(box, height, width)
            form = rng.integers(3)
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice(category_ids)),
                    "bbox": box,
                    # the area of the file is what counts, not the mask's; 0 and beyond 1e5^2 are the edges
                    "area": float(rng.choice([mask.sum(), 0, 1e10, 2e10], p=[0.91, 0.03, 0.03, 0.03])),
                    "segmentation": polygon(box) if form == 0 else encode(mask) if form == 1 else runs(mask),
                }
            )
        federated = rng.random(len(category_ids))
        images.append(
            {
                "id": image_id,
                **size,
                "neg_category_ids": [c for c, u in zip(category_ids, federated, strict=True) if u < 0.4],
                "not_exhaustive_category_ids": [
                    c for c, u in zip(category_ids, federated, strict=True) if 0.3 < u < 0.6
                ],
            }
        )
        of_image = [entry for entry in objects if entry["image_id"] == image_id]
        levels = rng.choice([3, 50, 10**6])  # few levels of score: many ties
        for _ in range(int(rng.choice([0, 8, most_detections]))):
            if of_image and rng.random() < 0.7:
                target = of_image[rng.integers(len(of_image))]
                shift = rng.normal(0, rng.choice([0, 1, 4]), size=2)
                x, y, w, h = target["bbox"]
                box = [x + shift[0], y + shift[1], w * rng.uniform(0.8, 1.2), h]
                category_id = target["category_id"]
            else:
                box, category_id = random_box(rng, height, width), int(rng.choice(category_ids))
            mask = ellipse(box, height, width)
            if rng.random() < 0.03:
                box[2] = 0.0
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": category_id if rng.random() < 0.9 else int(rng.choice(category_ids)),
                    "bbox": [float(value) for value in box],
                    "score": float(rng.integers(1, levels + 1) / levels),
                    "segmentation": encode(mask),
                }
            )
    rng.shuffle(detections)
    return {"categories": categories, "images": images, "annotations": objects}, detections


def measured_by_lvis(
    lvis: ModuleType, path: Path, detections: list[dict], iou_type: str, max_dets: int = 300
) -> Metrics:
    ground_truth = lvis.LVIS(str(path))
    results = lvis.LVISResults(ground_truth, copy.deepcopy(detections), max_dets=max_dets)
    evaluation = lvis.LVISEval(ground_truth, results, iou_type)
    evaluation.run()

    def percent(value: float) -> float | None:
        return None if value == -1 else 100 * float(value)

    precision = evaluation.eval["precision"][:, :, :, 0]  # all areas
    per_category = {}
    for index, category_id in enumerate(evaluation.params.cat_ids):
        values = precision[:, :, index]
        per_category[evaluation.lvis_gt.cats[category_id]["name"]] = percent(
            values[values > -1].mean() if (values > -1).any() else -1
        )
    keys = ("AP", "AP50", "AP75", "APr", "APc", "APf")
    return Metrics(**{key: percent(evaluation.results[key]) for key in keys}, per_category=per_category)


def assert_same(ours: Metrics, theirs: Metrics) -> None:
    """All but AP_fixed, which the package does not have."""

    def values(metrics: Metrics) -> dict[str, float | None]:
        fields = metrics.model_dump()
        averages = {key: value for key, value in fields.items() if "fixed" not in key}
        return averages.pop("per_category") | averages

    ours_values, theirs_values = values(ours), values(theirs)
    assert ours_values.keys() == theirs_values.keys()
    for key, value in theirs_values.items():
        assert ours_values[key] == (None if value is None else pytest.approx(value, abs=1e-6)), key


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), most_detections=st.sampled_from([20, 60]))
def test_equals_the_lvis_package(lvis_package: ModuleType, tmp_path: Path, seed: int, most_detections: int) -> None:
    assert_equals_lvis(lvis_package, tmp_path, *random_case(seed, most_detections))


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_lvis_package_over_300_detections_an_image(
    lvis_package: ModuleType, tmp_path: Path, seed: int
) -> None:
    while True:  # until a case where the cut matters
        content, detections = random_case(seed, most_detections=380)
        per_image = Counter(detection["image_id"] for detection in detections)
        if content["annotations"] and max(per_image.values(), default=0) > 300:
            break
        seed += 100
    assert_equals_lvis(lvis_package, tmp_path, content, detections)


def assert_equals_lvis(lvis: ModuleType, folder: Path, content: dict, detections: list[dict]) -> None:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    if not detections:  # the lvis package stops at an empty list; a detection of area 0 is as good as none
        size = [content["images"][0]["height"], content["images"][0]["width"]]
        detections = [
            {
                "image_id": content["images"][0]["id"],
                "category_id": content["categories"][0]["id"],
                "bbox": [0.0, 0.0, 0.0, 0.0],
                "score": 0.5,
                "segmentation": encode(np.zeros(size, dtype=np.uint8, order="F")),
            }
        ]
    ours = lvis_ap(path, detections)
    assert_same(ours["box"], measured_by_lvis(lvis, path, detections, "bbox"))
    assert_same(ours["mask"], measured_by_lvis(lvis, path, detections, "segm"))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_ap_fixed_equals_the_lvis_package_given_the_best_of_each_category(
    lvis_package: ModuleType, tmp_path: Path, seed: int
) -> None:
    content, detections = random_case(seed, most_detections=350)
    if not detections:
        return
    path = write(tmp_path / "annotations.json", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "FIXED_DETECTIONS_PER_CATEGORY", 25)
        ours = lvis_ap(path, detections)
    by_category: dict[int, list[dict]] = {}
    for detection in sorted(detections, key=lambda entry: entry["score"], reverse=True):
        by_category.setdefault(detection["category_id"], []).append(detection)
    best = [id(detection) for entries in by_category.values() for detection in entries[:25]]
    in_file_order = [detection for detection in detections if id(detection) in best]
    for kind, iou_type in ("box", "bbox"), ("mask", "segm"):
        theirs = measured_by_lvis(lvis_package, path, in_file_order, iou_type, max_dets=-1)
        for key in ("AP", "APr", "APc", "APf"):
            expected = getattr(theirs, key)
            fixed = getattr(ours[kind], f"{key}_fixed")
            assert fixed == (None if expected is None else pytest.approx(expected, abs=1e-6)), key


# ------------------------------------------------------------------------------------------------ cases worked by hand


def test_hand_computed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0), (1, 20), (2, 40)]))
    # rare: one of two objects found: precision 1 up to recall 0.5, at 51 of the 101 recall levels; common: found;
    # frequent: no ground truth, so skipped, and its detection dropped as nothing says that it is not there
    metrics = lvis_ap(path, [found(1, 0, 0.9), found(2, 40, 0.8), found(3, 60, 0.7)])
    for kind in ("box", "mask"):
        assert metrics[kind].APr == pytest.approx(100 * 51 / 101)
        assert metrics[kind].APc == pytest.approx(100)
        assert metrics[kind].APf is None
        assert metrics[kind].AP == metrics[kind].AP50 == metrics[kind].AP75 == pytest.approx((100 * 51 / 101 + 100) / 2)
        assert metrics[kind].per_category == {
            "rare": pytest.approx(100 * 51 / 101), "common": pytest.approx(100), "frequent": None
        }  # fmt: skip


def test_iou_thresholds(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0)]))
    # a box 13 wide over one 10 wide: IoU 10 / 13 = 0.769, a hit at 0.50, 0.55, ... 0.75: 6 of the 10 thresholds
    metrics = lvis_ap(path, [found(1, 0, 0.9, bbox=[0.0, 0.0, 13.0, 10.0])])["box"]
    averages = [metrics.AP, metrics.AP50, metrics.AP75]
    assert averages == pytest.approx([60, 100, 100])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"neg_category_ids": [1]}, 50),  # the false positive comes first: precision 1/2 at every recall level
        ({"neg_category_ids": [1], "not_exhaustive_category_ids": [1]}, 100),  # unmatched detections are ignored
    ],
)
def test_not_exhaustive_categories(tmp_path: Path, fields: dict, expected: float) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0)], **fields))
    average = lvis_ap(path, [found(1, 50, 0.9), found(1, 0, 0.8)])["mask"].AP
    assert average == pytest.approx(expected)


def test_negative_categories_count_false_positives_of_other_pictures(tmp_path: Path) -> None:
    content = one_picture([(1, 0)])
    other = content["images"][0] | {"id": 8}
    detections = [found(1, 0, 0.8), found(1, 50, 0.9, image_id=8)]
    for negative, expected in ([1], 50), ([], 100):
        images = [content["images"][0], other | {"neg_category_ids": negative}]
        average = lvis_ap(write(tmp_path / "a.json", content | {"images": images}), detections)["box"].AP
        assert average == pytest.approx(expected)


def test_300_an_image_across_all_categories(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0), (2, 40)], neg_category_ids=[3]))
    others = [found(3, 60, 0.5) for _ in range(299)]

    def found_of_301(rare_score: float) -> dict[str, float | None]:
        return lvis_ap(path, [found(1, 0, rare_score), *others, found(2, 40, 0.5)])["box"].per_category

    assert found_of_301(0.5) == {
        "rare": pytest.approx(100),
        "common": 0,
        "frequent": None,
    }  # of equals the earlier stay
    assert found_of_301(0.4) == {"rare": 0, "common": pytest.approx(100), "frequent": None}


def test_ap_fixed_counts_what_the_limit_an_image_cuts_off(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0), (2, 40)], neg_category_ids=[3]))
    metrics = lvis_ap(path, [found(3, 60, 0.9) for _ in range(299)] + [found(1, 0, 0.5), found(2, 40, 0.4)])["mask"]
    assert (metrics.AP, metrics.APc, metrics.AP_fixed, metrics.APc_fixed) == pytest.approx((50, 0, 100, 100))
    assert (metrics.APf, metrics.APf_fixed) == (None, None)


def test_ap_fixed_takes_the_best_of_a_category(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "FIXED_DETECTIONS_PER_CATEGORY", 2)
    content = one_picture([(1, 0), (1, 20)])
    content["images"].append(content["images"][0] | {"id": 8, "neg_category_ids": [2]})
    path = write(tmp_path / "a.json", content)
    # the two best of the category: one on an object, one in a picture of which nothing is known of the category
    detections = [found(1, 0, 0.9), found(1, 0, 0.8, image_id=8), found(1, 20, 0.7)]
    metrics = lvis_ap(path, detections)["box"]
    assert (metrics.AP, metrics.AP_fixed) == pytest.approx((100, 100 * 51 / 101))


@pytest.mark.parametrize(
    ("detections", "is_told"),
    [
        (300, True),  # as many as a limit of 300 an image leaves
        (299, False),  # the detector gave all it had
        (301, False),  # it kept more than LVIS's limit
    ],
)
def test_too_few_detections_for_ap_fixed_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, detections: int, is_told: bool
) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0), (2, 40)]))
    lvis_ap(path, [found(1, 0, 0.9) for _ in range(detections)])
    told = [line for line in caplog.messages if "AP_fixed is not truly fixed: 2 categories have fewer" in line]
    assert len(told) == is_told


def test_memory_is_taken_for_the_most_detections_of_a_picture_not_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """faster-coco-eval allocates pictures x the limit: for LVIS's commonest category with no limit 41 GB."""
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    limits = []
    original = COCOeval_faster.evaluate

    def noting(self: Any) -> None:
        limits.append(self.params.maxDets)
        original(self)

    monkeypatch.setattr(COCOeval_faster, "evaluate", noting)
    content = one_picture([(1, 0)])
    images = [content["images"][0] | {"id": id, "neg_category_ids": [1]} for id in range(1, 21)]
    path = write(tmp_path / "a.json", content | {"images": images})
    metrics = lvis_ap(path, [found(1, x, 0.5, image_id=id) for id in range(1, 21) for x in (60, 50, 0)])
    assert limits == [[3], [3]]
    average = metrics["box"].AP  # of equal scores by picture: 6 with three false ones each, two more, the right one
    assert average == pytest.approx(100 / 21)


def test_progress_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in compact, evaluation:
        monkeypatch.setattr(room, "SECONDS_BETWEEN_LOG_LINES", -1)
    path = write(tmp_path / "a.json", one_picture([(1, 0)]))
    with caplog.at_level(logging.INFO, logger="rio_bench"):
        lvis_ap(path, [found(1, 0, 0.9), found(2, 40, 0.8)])
    assert caplog.messages == ["read 2 detections (100%)", *(f"evaluated {n} of 3 categories" for n in (1, 2, 3))]


def test_no_detections_give_zero_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = lvis_ap(write(tmp_path / "a.json", one_picture([(1, 0)])), [])
    assert (metrics["mask"].AP, metrics["box"].APr, metrics["box"].APf) == (0, 0, None)
    assert "no detections" in caplog.text


def test_no_ground_truth_gives_none(tmp_path: Path) -> None:
    metrics = lvis_ap(write(tmp_path / "a.json", one_picture([])), [found(1, 0, 0.9)])["box"]
    assert metrics.AP is None and metrics.per_category == {"rare": None, "common": None, "frequent": None}


@pytest.mark.parametrize(
    ("faulty", "told"),
    [
        ({"image_id": 99}, "an image_id that the annotation file does not know"),
        ({"category_id": 99}, "a category_id that the annotation file does not know"),
        ({"bbox": [10.0, 0.0, -10.0, 10.0]}, "a box of negative width or height"),
    ],
)
def test_detections_that_are_left_out_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, faulty: dict, told: str
) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0)]))
    sound = lvis_ap(path, [found(1, 0, 0.5)])
    with caplog.at_level(logging.WARNING):
        # the faulty ones would be the best of the picture, and 300 of them would fill it
        assert lvis_ap(path, [found(1, 0, 0.9) | faulty] * 300 + [found(1, 0, 0.5)]) == sound
    assert caplog.messages == [f"detections.json.gz: 300 of 301 detections left out: {told}"]


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"bbox": [0.0, 0.0, 10.0, 12.0]}, None),  # on the edge of the picture is within it
        ({"bbox": [0.0, 0.0, 10.0, 22.0]}, "a box that reaches beyond its picture: evaluated as it is"),
        ({"bbox": [-2.0, 0.0, 12.0, 10.0]}, "a box that reaches beyond its picture: evaluated as it is"),
        ({"bbox": [0.0, 0.0, 0.0, 10.0]}, "a box without an area: counted among an image's best, and then dropped"),
        (
            {"segmentation": encode(np.zeros((20, 100), dtype=np.uint8, order="F"))},
            "an empty mask, in a picture that has objects of its category",
        ),
    ],
)
def test_odd_detections_are_evaluated_as_the_lvis_package_does_and_told(
    lvis_package: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture, odd: dict, told: str | None
) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0), (1, 20)]))
    detections = [found(1, 0, 0.9) | odd, found(1, 20, 0.8)]
    with caplog.at_level(logging.WARNING):
        ours = lvis_ap(path, detections)
    expected = [f"detections.json.gz: 1 of 2 detections have {told}"] if told else []
    assert [line for line in caplog.messages if "detections.json.gz" in line] == expected
    assert_same(ours["box"], measured_by_lvis(lvis_package, path, detections, "bbox"))
    assert_same(ours["mask"], measured_by_lvis(lvis_package, path, detections, "segm"))


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"segmentation": SMALL_MASK}, r"detection 2: its mask is of \(21, 100\) \(height, width\), its picture of"),
        ({"segmentation": SHORT_MASK}, "detection 2: the runs of its mask do not fill 20 x 100 pixels"),
        (
            {"segmentation": {"size": [20, 100], "counts": "é"}},
            "detection 2: the runs of its mask do not fill 20 x 100",
        ),
        ({"segmentation": {"size": [20, 100], "counts": [-5, 2005]}}, "detection 2: the runs of its mask do not fill"),
        ({"segmentation": {"size": [20, 100], "counts": [2**32]}}, "detection 2: the runs of its mask do not fill"),
        ({"segmentation": [[0, 0, 5, 0, 5, 5, 0]]}, r"detection 2: a polygon .* odd number of coordinates \(7\)"),
        ({"segmentation": [[0, 0, 1e9, 0, 5, 5]]}, r"detection 2: a polygon of its mask reaches to 1e\+09, far beyond"),
        ({"segmentation": None}, "detection 2: has no mask, and those before it have one"),
        ({"bbox": [0.0, 10.0, 10.0]}, r"detection 2: .*length 4, got 3 - at `\$.bbox`"),
        ({"bbox": None, "segmentation": [[0, 0, 5, 0, 5, 5]]}, "detection 2: has neither a bbox nor an RLE"),
        ({"score": None}, r"detection 2: Expected `float`, got `null` - at `\$.score`"),
        ({"score": "0.5"}, r"detection 2: Expected `float`, got `str` - at `\$.score`"),
        ({"image_id": 7.5}, r"detection 2: Expected `int`, got `float` - at `\$.image_id`"),
        ({"category_id": 10**30}, "detection 2: "),
    ],
)
def test_broken_detections_are_refused(tmp_path: Path, broken: dict, told: str) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0)]))
    with pytest.raises(UserError, match=f"detections.json.gz: {told}"):
        lvis_ap(path, [found(1, 0, 0.9), found(1, 0, 0.8) | broken, found(1, 0, 0.7)])


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (SHORT_MASK, "the runs of its mask do not fill 20 x 100 pixels"),
        ({"size": [20, 100], "counts": ""}, "the runs of its mask do not fill 20 x 100 pixels"),
        ({"size": [20, 100], "counts": "é"}, "the runs of its mask do not fill 20 x 100 pixels"),
        ({"size": [20, 100], "counts": "oo"}, "the runs of its mask do not fill 20 x 100 pixels"),
        ({"size": [20, 100], "counts": [5, -5, 2000]}, "the runs of its mask do not fill 20 x 100 pixels"),
        ({"size": [0, 0], "counts": "000"}, "its mask: height 0 and width 0: expected at least 1 each"),
        ({"size": [-20, -100], "counts": "0"}, "its mask: height -20 and width -100: expected at least 1 each"),
        ({"size": [2**31, 2**31], "counts": "0"}, "its mask: height 2147483648 .* and 536,870,911 pixels at most"),
        (SMALL_MASK, "the runs of its mask do not fill 21 x 100 pixels"),
    ],
)
def test_a_box_is_not_taken_from_a_broken_mask(tmp_path: Path, mask: dict, told: str) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0)]))
    detections = [found(1, 0, 0.9, bbox=None), found(2, 0, 0.8, bbox=None, segmentation=mask)]  # 2: not compared
    with pytest.raises(UserError, match=f"detections.json.gz: detection 2: {told}"):
        lvis_ap(path, detections)


@pytest.mark.parametrize("runs_of_nothing", [[2000], [0, 0, 2000]])
def test_the_box_of_an_empty_mask_has_no_area(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, runs_of_nothing: list[int]
) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0)]))
    empty = {"size": [20, 100], "counts": runs_of_nothing}
    metrics = lvis_ap(path, [found(1, 0, 0.9, bbox=None), found(1, 0, 0.8, bbox=None, segmentation=empty)])
    average = metrics["mask"].AP
    assert average == pytest.approx(100)
    told = "a box without an area: counted among an image's best, and then dropped"
    assert [line for line in caplog.messages if "have a" in line] == [
        f"detections.json.gz: 1 of 2 detections have {told}"
    ]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_boxes_beyond_all_numbers_are_told_as_others_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0)]))
    average = lvis_ap(path, [found(1, 0, 0.9), found(1, 0, 0.8, bbox=[1e308, 0, 1e308, 1e308])])["box"].AP
    assert average == pytest.approx(100)
    assert "1 of 2 detections have a box that reaches beyond its picture" in caplog.text


def test_detections_of_another_data_set_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0)]))
    told = "nothing in it fits .*a.json: 2 of 2 detections have an image_id that the annotation file does not know"
    with pytest.raises(UserError, match=told):
        lvis_ap(path, [found(1, 0, 0.9, image_id=8), found(1, 0, 0.8, image_id=9)])


def test_a_detector_of_boxes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0), (1, 20)]))
    detections = [found(1, 0, 0.9), found(1, 50, 0.8), found(1, 20, 0.7)]
    with_masks = lvis_ap(path, detections)
    assert lvis_ap(path, [entry | {"segmentation": None} for entry in detections]) == {"box": with_masks["box"]}
    without_boxes = [{key: value for key, value in entry.items() if key != "bbox"} for entry in detections]
    assert lvis_ap(path, without_boxes) == with_masks


@pytest.mark.parametrize("form", ["polygons", "run lengths"])
def test_masks_that_are_not_compressed(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0)]))
    x, y, w, h = square(0)[0]
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    mask: Any = [corners] if form == "polygons" else runs(mask_utils.decode(square(0)[1]))
    average = lvis_ap(path, [found(1, 0, 0.9, segmentation=mask)])["mask"].AP
    assert average == pytest.approx(100)


def test_results_of_each_category_as_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", one_picture([(1, 0), (1, 20), (2, 40)], neg_category_ids=[3]))
    detections = tmp_path / "detections.json"
    with DetectionsWriter(detections) as writer:
        # IoU of the second 9 / 11: found at 7 of 10 thresholds, half of the objects at the other 3; of the third 6 / 14
        writer.write([found(1, 0, 0.9), found(1, 21, 0.8), found(2, 44, 0.8), found(3, 60, 0.7)])
    evaluation.evaluate(path, detections).write_csv(tmp_path / "categories.csv")
    ap = round((7 * 100 + 3 * 100 * 51 / 101) / 10, 4)
    assert (tmp_path / "categories.csv").read_text().splitlines() == [
        "id,name,frequency,objects,detections,AP.b,AP50.b,AP75.b,AP_fixed.b,AP.m,AP50.m,AP75.m,AP_fixed.m",
        f"1,rare,r,2,2,{ap},100.0,100.0,{ap},{ap},100.0,100.0,{ap}",
        "2,common,c,1,1,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
        "3,frequent,f,0,1,,,,,,,,",
    ]
