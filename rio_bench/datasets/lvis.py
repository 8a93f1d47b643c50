"""Data sets in the LVIS file format (v1.0, v0.5 and those made here), read as plain Detectron2-style records."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from rio_bench.datasets import rle
from rio_bench.errors import UserError

XYWH_ABS = 1  # detectron2.structures.BoxMode.XYWH_ABS, as a number: this room does not import detectron2


@dataclass(frozen=True)
class Split:
    """One annotation file and the folder its image names are relative to."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class Dataset:
    name: str
    train: Split
    val: Split


@dataclass(frozen=True)
class Category:
    """A category of the file: `id` is the file's own, `frequency` is "r", "c" or "f" as the file says."""

    id: int
    name: str
    frequency: str


@dataclass(frozen=True)
class LVISSplit:
    """Records sorted by image id, categories sorted by id: a record's `category_id` is a position in `categories`."""

    records: list[dict[str, Any]]
    categories: list[Category]


# What is read of a file; other fields are skipped. msgspec checks the types while it parses.


class FileCategory(Struct, gc=False):
    id: int
    name: str
    frequency: Literal["r", "c", "f"]


class FileImage(Struct, gc=False):
    id: int
    height: int
    width: int
    file_name: str = ""
    coco_url: str = ""
    neg_category_ids: list[int] = []
    not_exhaustive_category_ids: list[int] = []


Polygons = Annotated[list[Annotated[list[float], Meta(min_length=6)]], Meta(min_length=1)]


class FileObject(Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: Annotated[list[float], Meta(min_length=4, max_length=4)]
    segmentation: Polygons | rle.Mask


class LVISFile(Struct, gc=False):
    categories: list[FileCategory]
    images: list[FileImage]
    annotations: list[FileObject]


def read_split(split: Split, *, skip_empty: bool) -> LVISSplit:
    """Read one split as Detectron2's standard dicts.

    A record holds file_name (absolute), height, width, image_id, neg_category_ids and not_exhaustive_category_ids
    (the file's ids) and annotations: bbox [x, y, w, h] in pixels, bbox_mode 1 (XYWH_ABS), category_id (contiguous,
    from 0) and segmentation (polygons, or a compressed RLE). `skip_empty` leaves out images without annotations.
    Raises UserError where the file is missing, is not JSON, lacks a field, or has a polygon of fewer than 3 points.
    """
    with without_garbage_collection():
        return _to_records(read_annotations(split.annotations, LVISFile), split, skip_empty)


def _to_records(file: LVISFile, split: Split, skip_empty: bool) -> LVISSplit:
    path = split.annotations
    file.categories.sort(key=lambda category: category.id)
    position = {category.id: index for index, category in enumerate(file.categories)}
    objects: dict[int, list[dict[str, Any]]] = {image.id: [] for image in file.images}
    annotation_ids = set()
    annotations, file.annotations = file.annotations, []
    for entry in annotations:
        if entry.image_id not in objects or entry.category_id not in position:
            raise UserError(f"{path}: {unknown_id(entry, position)}")
        segmentation: Any = entry.segmentation
        if type(segmentation) is not list:
            try:
                segmentation = rle.as_compressed(segmentation)
            except ValueError as error:
                raise UserError(f"{path}: annotation {entry.id}: {error}") from error
        elif any(len(polygon) % 2 for polygon in segmentation):
            raise UserError(f"{path}: annotation {entry.id} has a polygon with an odd number of coordinates")
        annotation_ids.add(entry.id)
        objects[entry.image_id].append(
            {
                "bbox": entry.bbox,
                "bbox_mode": XYWH_ABS,
                "category_id": position[entry.category_id],
                "segmentation": segmentation,
            }
        )
    for what, entries, ids in (
        ("categories", file.categories, position),
        ("images", file.images, objects),
        ("annotations", annotations, annotation_ids),
    ):
        if len(ids) < len(entries):
            raise UserError(f"{path}: {len(entries)} {what} have only {len(ids)} different ids")
    folder = str(split.images.absolute())
    records = [
        {
            "file_name": os.path.join(folder, image_name(image, path)),
            "height": image.height,
            "width": image.width,
            "image_id": image.id,
            "neg_category_ids": image.neg_category_ids,
            "not_exhaustive_category_ids": image.not_exhaustive_category_ids,
            "annotations": objects[image.id],
        }
        for image in sorted(file.images, key=lambda image: image.id)
        if objects[image.id] or not skip_empty
    ]
    return LVISSplit(records, [Category(entry.id, entry.name, entry.frequency) for entry in file.categories])


def image_name(image: FileImage, annotations: Path) -> str:
    """An image's file, relative to the image folder.

    LVIS names images by the last two parts of coco_url ("train2017/000000155379.jpg"). A v0.5 entry without it has
    COCO's 2014 name, of which the last 16 characters are the file's name in train2017 or val2017. Other files
    name their images relative to the image folder.
    """
    if image.coco_url:
        return "/".join(image.coco_url.split("/")[-2:])
    if not image.file_name:
        raise UserError(f"{annotations}: image {image.id} has neither coco_url nor file_name")
    if image.file_name.startswith("COCO_") and annotations.name.startswith("lvis_v0.5"):
        return f"{'train2017' if 'train' in annotations.name else 'val2017'}/{image.file_name[-16:]}"
    return image.file_name


def unknown_id(entry: Any, categories: Any) -> str:
    """Why an annotation whose image or category is not in the file does not fit."""
    if entry.category_id not in categories:
        return f"annotation {entry.id} is of category {entry.category_id}, which the file does not have"
    return f"annotation {entry.id} is in image {entry.image_id}, which the file does not have"


FileModel = TypeVar("FileModel", bound=Struct)


def read_annotations(path: Path, model: type[FileModel]) -> FileModel:
    """An annotation file as `model`. Raises UserError where it is missing, not JSON or of another shape."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=model)
    except OSError as error:
        raise UserError(f"{path}: the annotation file cannot be read ({error.strerror})") from error
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: not a file in the LVIS format: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: the annotation file is not JSON ({error})") from error


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """The collector would look through millions of new lists again and again, and find nothing to collect."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
