"""What an annotation file in LVIS format says, as LVIS's evaluation needs it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from rio_bench.datasets import rle
from rio_bench.datasets.lvis import Category, FileCategory, read_annotations, unknown_id, without_garbage_collection
from rio_bench.detection.detections import Id
from rio_bench.errors import UserError

logger = logging.getLogger(__name__)


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


class _Category(FileCategory, gc=False):
    id: Id


class _Image(Struct, gc=False):
    id: Id
    height: int
    width: int
    neg_category_ids: list[int]
    not_exhaustive_category_ids: list[int]


class _Object(Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: Annotated[list[float], Meta(min_length=4, max_length=4)]
    area: float
    segmentation: rle.Mask | rle.Polygons


class _File(Struct, gc=False):
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Object]


def read_ground_truth(path: Path) -> GroundTruth:
    """Read an annotation file. An object of area 0 or infinite is left out, as in the lvis package.

    Raises UserError where the file lacks something that LVIS evaluation needs (a missing field is not an empty one), or
    where an id is there twice, or a picture's size, an object's box or its mask is broken. Warnings tell of boxes
    without an area and masks without a pixel.
    """
    with without_garbage_collection():
        return _from_file(path, read_annotations(path, _File))


def _from_file(path: Path, file: _File) -> GroundTruth:
    _check_ids_and_sizes(path, file)
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
    kept: list[_Object] = []
    unsure: list[tuple[_Object, _Image, bytes]] = []
    for entry in file.annotations:
        if entry.image_id not in picture_of or entry.category_id not in category_of:
            raise UserError(f"{path}: {unknown_id(entry, category_of)}")
        if 0 < entry.area < math.inf:
            picture, position = picture_of[entry.image_id], category_of[entry.category_id]
            image = images[picture]
            try:
                mask = rle.compressed(entry.segmentation, image.height, image.width)
            except ValueError as error:
                raise UserError(f"{path}: annotation {entry.id}: {error}") from error
            if isinstance(entry.segmentation, rle.Mask) or len(mask) <= rle.MOST_DIGITS:  # a single run: empty
                unsure.append((entry, image, mask))
            kept.append(entry)
            present.add(picture * len(categories) + position)
            objects[position].append(Object(picture, entry.bbox, entry.area, mask))
    farthest = max((rle.farthest(image.height, image.width) for image in images), default=0)
    for fault, count in (
        ("an empty mask", _check_masks(path, unsure)),
        ("a box without an area", _check_boxes(path, kept, farthest)),
    ):
        if count:
            told = f"{count:,} of {len(kept):,} objects have {fault}, which no detection can meet"
            logger.warning("%s: %s", path.name, told)
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


def _check_ids_and_sizes(path: Path, file: _File) -> None:
    """UserError for an id that is there twice, and for a picture that cannot have a mask."""
    of_all: dict[str, list[Any]] = {
        "categories": file.categories, "images": file.images, "annotations": file.annotations
    }  # fmt: skip
    for what, entries in of_all.items():
        repeated = [id for id, count in Counter(entry.id for entry in entries).items() if count > 1]
        if repeated:
            raise UserError(f"{path}: two {what} have the id {repeated[0]}")
    for image in file.images:
        try:
            rle.check_size(image.height, image.width)
        except ValueError as error:
            raise UserError(f"{path}: image {image.id}: {error}") from error


def _check_boxes(path: Path, entries: list[_Object], farthest: int) -> int:
    """How many boxes have no area. UserError for one that nothing can meet, as one of another layout."""
    boxes: NDArray[np.float64] = np.array([entry.bbox for entry in entries], dtype=np.float64).reshape(-1, 4)
    is_broken = (boxes[:, 2:] < 0).any(axis=1) | (np.abs(boxes) > farthest).any(axis=1)
    for index in np.flatnonzero(is_broken).tolist():
        raise UserError(
            f"{path}: annotation {entries[index].id}: its bbox is {entries[index].bbox}: expected"
            " [x, y, width, height] in pixels, in or near its picture"
        )
    return int((boxes[:, 2:] == 0).any(axis=1).sum())


def _check_masks(path: Path, masks: list[tuple[_Object, _Image, bytes]]) -> int:
    """How many masks are empty. UserError for one that is broken."""
    texts, sizes = [mask for *_, mask in masks], [(image.height, image.width) for _, image, _ in masks]
    areas = rle.checked_areas(texts, sizes, lambda index: f"{path}: annotation {masks[index][0].id}")
    return int((areas == 0).sum())
