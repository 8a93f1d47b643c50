"""COCO's format made LVIS's: what LVIS has over it is computed, and written beside the caches.

COCO is annotated exhaustively: a category without an object in a picture is absent from it (neg_category_ids), and
one with a crowd region has objects there that are not annotated one by one (not_exhaustive_category_ids).
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock
from msgspec import Struct

from rio_bench.datasets import rle
from rio_bench.datasets.cache import cache_folder
from rio_bench.datasets.inspection import (
    BUCKETS,
    AnyFile,
    AnyImage,
    AnyObject,
    Inspection,
    bucket,
    mask_of,
    picture_name,
)
from rio_bench.datasets.lvis import Dataset, Split, read_annotations, without_garbage_collection
from rio_bench.errors import UserError

VERSION = 1  # raise it when the same files would be completed in another way


def as_lvis(dataset: Dataset, fingerprint: str, train: Inspection, val: Inspection) -> Dataset:
    """The data set with annotation files in the LVIS format: its own where they are, else completed ones, made once.

    Raises UserError where the cache cannot be written.
    """
    if train.is_lvis and val.is_lvis:
        return dataset
    folder = cache_folder() / "completed" / f"{fingerprint}-v{VERSION}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.is_dir():  # another process may have made it meanwhile
                    _make_folder(folder, dataset, train, val)
        except OSError as error:
            raise UserError(
                f"{folder}: the completed annotation files of {dataset.name} cannot be written here "
                f"({error.strerror}); set RIO_BENCH_CACHE to a folder with room"
            ) from error
    splits = (("train", dataset.train, train), ("val", dataset.val, val))
    return Dataset(
        dataset.name,
        *(split if found.is_lvis else Split(folder / f"{role}.json", split.images) for role, split, found in splits),
    )


def what_is_computed(dataset: Dataset, train: Inspection, val: Inspection) -> str:
    """A line about what the files lack of the LVIS format, and what stands for it; "" where they lack nothing."""
    told = []
    lacking = [
        split.annotations.name for split, found in ((dataset.train, train), (dataset.val, val)) if not found.is_lvis
    ]
    if any(entry["frequency"] is None for entry in (*train.categories, *val.categories)):
        sizes = ", ".join(f"{count:,} {BUCKETS[key]}" for key, count in bucket_sizes(train).items())
        told.append(f"groups by the number of training pictures ({sizes})")
    if not (train.federated and val.federated):
        told.append("categories without an object in a picture counted as absent from it (neg_category_ids)")
    crowds, without_mask = train.crowds + val.crowds, train.without_mask + val.without_mask
    if crowds:
        told.append(f"{crowds} crowd regions left out, their categories not_exhaustive there")
    if without_mask and lacking:
        told.append(f"{without_mask} objects without a mask left out")
    return f"{' and '.join(lacking)} in COCO format: {'; '.join(told)}" if told else ""


def bucket_sizes(train: Inspection) -> dict[str, int]:
    """Bucket -> number of categories, by the training file."""
    found = list(_frequencies(train).values())
    return {key: found.count(key) for key in BUCKETS}


class CompletedObject(Struct):
    id: int
    image_id: int
    category_id: int
    bbox: Sequence[float]
    area: float | None
    segmentation: Any  # polygons as in the file, or compressed run lengths


def _make_folder(folder: Path, dataset: Dataset, train: Inspection, val: Inspection) -> None:
    for left_over in folder.parent.glob(f"{folder.name}.partial-*"):  # of a making that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    counts = {entry["id"]: entry for entry in train.categories}
    frequencies = _frequencies(train)
    try:
        partial.mkdir()
        for role, split, found in (("train", dataset.train, train), ("val", dataset.val, val)):
            if found.is_lvis:
                continue
            categories = [
                {
                    "id": entry["id"],
                    "name": entry["name"],
                    "frequency": entry["frequency"] or frequencies[entry["id"]],
                    "image_count": counts[entry["id"]]["image_count"],
                    "instance_count": counts[entry["id"]]["instance_count"],
                }
                for entry in found.categories
            ]
            with without_garbage_collection():
                (partial / f"{role}.json").write_bytes(_completed(split, found, categories))
        os.sync()  # a power cut must not leave a renamed folder with empty files
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _frequencies(train: Inspection) -> dict[int, str]:
    """Category id -> bucket by the images counted in the training file, or as that file says."""
    return {entry["id"]: entry["frequency"] or bucket(entry["image_count"]) for entry in train.categories}


def _completed(split: Split, found: Inspection, categories: list[dict[str, Any]]) -> bytes:
    file = read_annotations(split.annotations, AnyFile)
    shown: dict[int, set[int]] = defaultdict(set)
    crowded: dict[int, set[int]] = defaultdict(set)
    objects = []
    for entry in file.annotations:
        if entry.iscrowd:
            crowded[entry.image_id].add(entry.category_id)
        elif (mask := mask_of(entry)) is not None:
            shown[entry.image_id].add(entry.category_id)
            objects.append(_object(entry, mask))
    ids = [entry["id"] for entry in categories]
    images = [
        {
            "id": image.id,
            "height": image.height,
            "width": image.width,
            "file_name": picture_name(image, split.annotations, found.federated),
            "neg_category_ids": _negatives(image, ids, shown[image.id] | crowded[image.id]),
            "not_exhaustive_category_ids": sorted({*(image.not_exhaustive_category_ids or ()), *crowded[image.id]}),
        }
        for image in file.images
    ]
    return msgspec.json.encode({"categories": categories, "images": images, "annotations": objects})


def _negatives(image: AnyImage, category_ids: list[int], seen: set[int]) -> list[int]:
    if image.neg_category_ids is not None:
        return image.neg_category_ids
    return [category for category in category_ids if category not in seen]


def _object(entry: AnyObject, mask: list[list[float]] | rle.Mask) -> CompletedObject:
    """The mask is sound: the file has been inspected."""
    segmentation = rle.as_compressed(mask) if isinstance(mask, rle.Mask) else entry.segmentation
    return CompletedObject(entry.id, entry.image_id, entry.category_id, entry.bbox, entry.area, segmentation)
