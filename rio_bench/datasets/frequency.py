"""How often each category occurs: image counts, instance counts, buckets, and the distinct (image, category) pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rio_bench.datasets.lvis import Category


@dataclass(frozen=True)
class Frequency:
    """Counts of C categories over the annotations of `num_images` records.

    An image's index is its position in the records; a pair is an image and a category annotated in it at least once.
    """

    image_count: Tensor  # int64 [C]: images that hold the category
    instance_count: Tensor  # int64 [C]: annotated objects of the category
    bucket: tuple[str, ...]  # [C]: "r", "c" or "f", as the annotation file says
    num_images: int
    pair_image: Tensor  # int64 [P], pairs sorted by image, then category
    pair_category: Tensor  # int64 [P]
    pair_instances: Tensor  # int64 [P]: objects of the category in the image


def count_frequency(records: Sequence[dict[str, Any]], categories: Sequence[Category]) -> Frequency:
    """Count the annotations of `records`, whose category_id is a position in `categories`.

    Count the records that are trained on: leaving out images afterwards would shift the pairs against them.
    """
    num_categories = len(categories)
    objects_per_image = [len(record["annotations"]) for record in records]
    image = np.repeat(np.arange(len(records), dtype=np.int64), objects_per_image)
    category = np.fromiter(
        (annotation["category_id"] for record in records for annotation in record["annotations"]),
        dtype=np.int64,
        count=sum(objects_per_image),
    )
    if category.size and (category.min() < 0 or category.max() >= num_categories):
        raise ValueError(f"category_id must be within 0..{num_categories - 1}")
    pair, pair_instances = np.unique(image * num_categories + category, return_counts=True)
    pair_image, pair_category = np.divmod(pair, max(num_categories, 1))
    return Frequency(
        image_count=torch.from_numpy(np.bincount(pair_category, minlength=num_categories).astype(np.int64)),
        instance_count=torch.from_numpy(np.bincount(category, minlength=num_categories).astype(np.int64)),
        bucket=tuple(entry.frequency for entry in categories),
        num_images=len(records),
        pair_image=torch.from_numpy(pair_image),
        pair_category=torch.from_numpy(pair_category),
        pair_instances=torch.from_numpy(pair_instances.astype(np.int64)),
    )
