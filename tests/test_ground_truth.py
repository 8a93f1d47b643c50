"""Annotation files that an evaluation refuses, or tells of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lvis_cases import SHORT_MASK, SMALL_MASK, encode, found, lvis_ap, one_picture, write

from rio_bench.datasets import rle
from rio_bench.errors import UserError


@pytest.mark.parametrize("field", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_missing_federated_fields_are_an_error(tmp_path: Path, field: str) -> None:
    content = one_picture([(1, 0)])
    del content["images"][0][field]
    with pytest.raises(UserError, match=f"a.json: .*missing required field `{field}`"):
        lvis_ap(write(tmp_path / "a.json", content), [])


def test_unusable_annotation_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.json: the annotation file cannot be read"):
        lvis_ap(tmp_path / "none.json", [])
    content = one_picture([])
    content["categories"][0]["frequency"] = "often"
    with pytest.raises(UserError, match="a.json: .*'often' - at `\\$.categories.*frequency`"):
        lvis_ap(write(tmp_path / "a.json", content), [])
    content = one_picture([])
    content["categories"][0]["name"] = "common"
    with pytest.raises(UserError, match="two categories are called 'common'"):
        lvis_ap(write(tmp_path / "b.json", content), [])


FILLED = [0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (SMALL_MASK, r"its mask is of \(21, 100\) \(height, width\), its picture of \(20, 100\)"),
        (SHORT_MASK, "the runs of its mask do not fill 20 x 100 pixels"),  # was compared for ever
        ({"size": [20, 100], "counts": ""}, "the runs of its mask do not fill"),
        ({"size": [20, 100], "counts": "é"}, "the runs of its mask do not fill"),
        ({"size": [20, 100], "counts": "no mask"}, "the runs of its mask do not fill"),
        ({"size": [20, 100], "counts": []}, "the runs of its mask do not fill"),
        ({"size": [20, 100], "counts": [400, 10, 1589]}, "the runs of its mask do not fill"),
        ({"size": [20, 100], "counts": [410, -10, 1600]}, "the runs of its mask do not fill"),
        ({"size": [20, 100], "counts": [2**32, 2000]}, "the runs of its mask do not fill"),
        ([FILLED[:-1]], r"a polygon of its mask has an odd number of coordinates \(7\)"),
        ([FILLED, FILLED[:5]], "a polygon of its mask has fewer than three points"),
        ([[*FILLED, 1e9, 0.0]], r"a polygon of its mask reaches to 1e\+09, far beyond 20 x 100 pixels"),
    ],
)
def test_objects_with_broken_masks_are_refused(tmp_path: Path, mask: Any, told: str) -> None:
    content = one_picture([(1, 0), (1, 20), (2, 40)])
    content["annotations"][1]["segmentation"] = mask
    with pytest.raises(UserError, match=f"a.json: annotation 2: {told}"):
        lvis_ap(write(tmp_path / "a.json", content), [found(1, 0, 0.9), found(1, 20, 0.8)])


def test_a_broken_mask_is_found_among_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rle, "MASKS_AT_A_TIME", 3)
    content = one_picture([(1, 5 * n) for n in range(11)])
    average = lvis_ap(write(tmp_path / "a.json", content), [found(1, 0, 0.9)])["mask"].AP
    assert average == pytest.approx(100 * 10 / 101)
    content["annotations"][7]["segmentation"] = SHORT_MASK
    with pytest.raises(UserError, match="annotation 8: the runs of its mask do not fill"):
        lvis_ap(write(tmp_path / "a.json", content), [found(1, 0, 0.9)])


@pytest.mark.parametrize(
    ("where", "broken", "told"),
    [
        ("images", {"height": 0}, "image 7: height 0 and width 100: expected at least 1 each"),
        ("images", {"width": -100}, "image 7: height 20 and width -100: expected at least 1 each"),
        ("images", {"width": 2**33}, "image 7: height 20 and width 8589934592: .* 536,870,911 pixels at most"),
        ("images", {"id": 10**30}, r"Expected `int` <= .* `\$.images\[0\].id`"),
        ("categories", {"id": 10**30}, r"Expected `int` <= .* `\$.categories\[0\].id`"),
        ("annotations", {"bbox": [0.0, 0.0, 10.0]}, r"Expected `array` of length >= 4 .* `\$.annotations\[0\].bbox`"),
        (
            "annotations",
            {"bbox": [10.0, 0.0, -10.0, 10.0]},
            "annotation 1: its bbox is .*: expected .x, y, width, height. in pixels",
        ),
        (
            "annotations",
            {"bbox": [0.0, 0.0, 1e200, 1e200]},
            "annotation 1: its bbox is .*, in or near its picture",
        ),
        ("annotations", {"bbox": [-1e308, 0.0, 9.0, 9.0]}, "annotation 1: its bbox is .*, in or near its picture"),
    ],
)
def test_broken_annotations_are_refused(tmp_path: Path, where: str, broken: dict, told: str) -> None:
    content = one_picture([(1, 0)])
    content["annotations"][0]["segmentation"] = [FILLED]
    content[where][0] |= broken
    with pytest.raises(UserError, match=f"a.json: .*{told}"):
        lvis_ap(write(tmp_path / "a.json", content), [found(1, 0, 0.9)])


@pytest.mark.parametrize(
    ("where", "told"),
    [("images", "images .* 7"), ("categories", "categories .* 1"), ("annotations", "annotations .* 1")],
)
def test_an_id_that_is_there_twice_is_refused(tmp_path: Path, where: str, told: str) -> None:
    content = one_picture([(1, 0)])
    content[where].append(content[where][0] | {"name": "other"})
    with pytest.raises(UserError, match=f"a.json: two {told}"):  # else the AP of what it names twice is 0
        lvis_ap(write(tmp_path / "a.json", content), [found(1, 0, 0.9)])


@pytest.mark.parametrize(
    "mask",
    [
        encode(np.zeros((20, 100), dtype=np.uint8, order="F")),
        [[value / 100 for value in FILLED]],  # shares of the picture instead of pixels
        [[value + 500 for value in FILLED]],
    ],
    ids=["RLE", "shares", "outside"],
)
def test_objects_that_no_detection_can_meet_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mask: Any
) -> None:
    content = one_picture([(1, 0), (1, 20), (1, 40)])
    content["annotations"][0]["segmentation"] = mask
    content["annotations"][2]["bbox"][2] = 0.0
    lvis_ap(write(tmp_path / "a.json", content), [found(1, 0, 0.9)])
    assert [line for line in caplog.messages if line.startswith("a.json")] == [
        "a.json: 1 of 3 objects have an empty mask, which no detection can meet",
        "a.json: 1 of 3 objects have a box without an area, which no detection can meet",
    ]
