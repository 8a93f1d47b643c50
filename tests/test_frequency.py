"""Image and instance counts, by hand, by a plain loop, and through a file with an empty image."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rio_bench.datasets.frequency import count_frequency
from rio_bench.datasets.lvis import Category, Split, read_split


def records_of(images: list[list[int]]) -> list[dict]:
    return [{"annotations": [{"category_id": category} for category in image]} for image in images]


def categories_of(buckets: str) -> list[Category]:
    return [Category(index + 1, f"category_{index}", bucket) for index, bucket in enumerate(buckets)]


def test_counts_by_hand():
    frequency = count_frequency(records_of([[2, 0, 2], [], [1, 2]]), categories_of("rcfr"))
    assert frequency.image_count.tolist() == [1, 1, 2, 0]
    assert frequency.instance_count.tolist() == [1, 1, 3, 0]
    assert frequency.bucket == ("r", "c", "f", "r")
    assert frequency.num_images == 3
    assert frequency.pair_image.tolist() == [0, 0, 2, 2]
    assert frequency.pair_category.tolist() == [0, 2, 1, 2]
    assert frequency.pair_instances.tolist() == [1, 2, 1, 1]


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=10))
def test_counts_equal_a_plain_loop(images: list[list[int]]):
    frequency = count_frequency(records_of(images), categories_of("rrccff"))
    instances = Counter((index, category) for index, image in enumerate(images) for category in image)
    pairs = sorted(instances)
    found = zip(frequency.pair_image.tolist(), frequency.pair_category.tolist(), strict=True)
    assert list(found) == pairs
    assert frequency.pair_instances.tolist() == [instances[pair] for pair in pairs]
    for category in range(6):
        assert frequency.image_count[category] == sum(pair[1] == category for pair in pairs)
        assert frequency.instance_count[category] == sum(image.count(category) for image in images)


@pytest.mark.parametrize("category", [-1, 4])
def test_a_category_out_of_bounds_is_refused(category: int):
    with pytest.raises(ValueError, match=r"within 0\.\.3"):
        count_frequency(records_of([[0], [category]]), categories_of("rrcf"))


def test_pairs_follow_the_records_when_empty_images_are_skipped(tmp_path: Path):
    def annotation(number: int, image: int, category: int) -> dict:
        shape = {"bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 2, 0, 2, 2]]}
        return {"id": number, "image_id": image, "category_id": category, **shape}

    content = {
        "categories": [{"id": number, "name": f"c{number}", "frequency": "r"} for number in (4, 9)],
        "images": [{"id": number, "file_name": f"{number}.png", "height": 8, "width": 8} for number in (3, 2, 1)],
        "annotations": [annotation(1, 1, 9), annotation(2, 3, 4), annotation(3, 3, 9)],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    split = Split(tmp_path / "train.json", tmp_path)

    for skip_empty, image_ids, pair_image in ((False, [1, 2, 3], [0, 2, 2]), (True, [1, 3], [0, 1, 1])):
        read = read_split(split, skip_empty=skip_empty)
        frequency = count_frequency(read.records, read.categories)
        assert [record["image_id"] for record in read.records] == image_ids
        assert frequency.num_images == len(image_ids)
        assert frequency.pair_image.tolist() == pair_image
        assert frequency.pair_category.tolist() == [1, 0, 1]
        for image, category in zip(frequency.pair_image.tolist(), frequency.pair_category.tolist(), strict=True):
            assert category in [entry["category_id"] for entry in read.records[image]["annotations"]]
