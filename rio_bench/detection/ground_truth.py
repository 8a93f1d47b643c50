"""What an annotation file in LVIS format says, as LVIS's evaluation needs it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from rio_bench.datasets.lvis import Category, FileCategory, read_annotations, unknown_id, without_garbage_collection
from rio_bench.detection import rle
from rio_bench.errors import UserError


@dataclass(frozen=True)
class Object:
    """One annotated object; `area` in pixels is the file's; `mask`: its compressed RLE."""

    picture: int  # position in `GroundTruth.image_ids`
    bbox: list[float]  # x, y, width, height
    area: float
    mask: bytes


@dataclass(frozen=True)
class GroundTruth:
    """An annotation file. Pictures and categories are known by their positions in the order of their ids."""

    path: Path
    categories: list[Category]
    image_ids: NDArray[np.int64]  # [pictures]
    image_sizes: NDArray[np.int64]  # [pictures, 2]: height, width
    objects: list[list[Object]]  # [categories], in the file's order
    # pairs of a picture and a category, see `pair`; arrays are sorted
    present: NDArray[np.int64]  # the picture has objects of the category
    absent: NDArray[np.int64]  # it was looked for, and there is none
    not_exhaustive: frozenset[int]  # there may be objects of it that are not annotated

    def pair(self, picture: Any, category: Any) -> Any:
        """A picture and a category, by position, as one number; also of arrays."""
        return picture * len(self.categories) + category


class _Image(Struct, gc=False):
    id: int
    height: int
    width: int
    neg_category_ids: list[int]
    not_exhaustive_category_ids: list[int]


class _Object(Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    segmentation: rle.Mask | rle.Polygons


class _File(Struct, gc=False):
    categories: list[FileCategory]
    images: list[_Image]
    annotations: list[_Object]


def read_ground_truth(path: Path) -> GroundTruth:
    """Read an annotation file. An object of area 0 or infinite is left out, as in the lvis package.

    Raises UserError where the file lacks something that LVIS evaluation needs: a missing field is not an empty one.
    """
    with without_garbage_collection():
        return _from_file(path, read_annotations(path, _File))


def _from_file(path: Path, file: _File) -> GroundTruth:
    categories = sorted(
        (Category(entry.id, entry.name, entry.frequency) for entry in file.categories), key=lambda entry: entry.id
    )
    repeated = [name for name, count in Counter(category.name for category in categories).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: two categories are called {repeated[0]!r}: AP is kept by name")
    images = sorted(file.images, key=lambda image: image.id)
    picture_of = {image.id: position for position, image in enumerate(images)}
    category_of = {category.id: position for position, category in enumerate(categories)}

    absent: set[int] = set()
    not_exhaustive: set[int] = set()
    for picture, image in enumerate(images):
        for ids, pairs in (image.neg_category_ids, absent), (image.not_exhaustive_category_ids, not_exhaustive):
            pairs.update(picture * len(categories) + category_of[id] for id in ids if id in category_of)
    present: set[int] = set()
    objects: list[list[Object]] = [[] for _ in categories]
    for entry in file.annotations:
        if entry.image_id not in picture_of or entry.category_id not in category_of:
            raise UserError(f"{path}: {unknown_id(entry, category_of)}")
        if 0 < entry.area < math.inf:
            picture, position = picture_of[entry.image_id], category_of[entry.category_id]
            try:
                mask = rle.compressed(entry.segmentation, images[picture].height, images[picture].width)
            except ValueError as error:
                raise UserError(f"{path}: annotation {entry.id}: {error}") from error
            present.add(picture * len(categories) + position)
            objects[position].append(Object(picture, entry.bbox, entry.area, mask))
    return GroundTruth(
        path=path,
        categories=categories,
        image_ids=np.array([image.id for image in images], dtype=np.int64),
        image_sizes=np.array([[image.height, image.width] for image in images], dtype=np.int64).reshape(-1, 2),
        objects=objects,
        present=np.array(sorted(present), dtype=np.int64),
        absent=np.array(sorted(absent), dtype=np.int64),
        not_exhaustive=frozenset(not_exhaustive),
    )
