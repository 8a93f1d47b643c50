"""What an annotation file holds: counts, buckets, picture names, and what it lacks of the LVIS format.

Read through once for each content of a file; after that the cache tells it, so that a start does not wait for a
gigabyte of JSON.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Raw, Struct
from typing_extensions import TypedDict

from rio_bench.datasets import rle
from rio_bench.datasets.cache import cache_folder, file_hash, read_cached, write_cached
from rio_bench.datasets.lvis import (
    FileImage,
    Polygons,
    Split,
    image_name,
    read_annotations,
    unknown_id,
    without_garbage_collection,
)
from rio_bench.errors import UserError
from rio_bench.files import Stored

VERSION = 2  # raise it when an inspection of the same file would find something else
BIG_FILE = 50_000_000  # bytes: reading a larger one takes seconds
BUCKETS = {"r": "rare", "c": "common", "f": "frequent"}
RIO_BANK_MAX_IMAGES = 30  # the publication's bank holds the categories in at most so many training images

Bucket = Literal["r", "c", "f"]


def bucket(image_count: int) -> str:
    """LVIS's buckets by the number of training images: r at most 10, c at most 100, f more."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


class CategoryCount(TypedDict):
    """image_count, instance_count: counted in the file's annotations; frequency: as the file says, if it does."""

    id: int
    name: str
    frequency: Bucket | None
    image_count: int
    instance_count: int


class Inspection(Stored):
    """Of one annotation file. `categories` by id; objects are those with a mask that are no crowd."""

    version: int
    sha256: str
    images: int
    objects: int
    categories: tuple[CategoryCount, ...]
    federated: bool  # images name the categories that are absent, and those not annotated exhaustively
    crowds: int
    without_mask: int
    first_without_mask: int | None  # id of the annotation
    first_without_area: int | None
    picture_names: tuple[str, ...]  # relative to the folder of the pictures

    @property
    def is_lvis(self) -> bool:
        """Whether the file has all that the LVIS format has over COCO's."""
        return self.federated and not self.crowds and all(entry["frequency"] for entry in self.categories)

    def bank_categories(self, max_images: int = RIO_BANK_MAX_IMAGES) -> int:
        """Number of categories in 1..max_images images of the file."""
        return sum(0 < entry["image_count"] <= max_images for entry in self.categories)


# COCO's format and LVIS's alike; an object's mask is looked at by itself, so that they are never all in memory.


class AnyCategory(Struct, gc=False):
    id: int
    name: str
    frequency: Bucket | None = None


class AnyImage(FileImage, gc=False):
    neg_category_ids: list[int] | None = None  # type: ignore[assignment]
    not_exhaustive_category_ids: list[int] | None = None  # type: ignore[assignment]


class AnyObject(Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    segmentation: Raw = Raw(b"null")
    iscrowd: int = 0


class AnyFile(Struct, gc=False):
    categories: list[AnyCategory]
    images: list[AnyImage]
    annotations: list[AnyObject]


_MASK = msgspec.json.Decoder(Polygons | rle.Mask)


def inspect(split: Split) -> Inspection:
    """What a split's annotation file holds.

    Raises UserError where it cannot be read, is not in the LVIS or COCO format, or contradicts itself.
    """
    path = split.annotations
    sha256 = file_hash(path)
    key = hashlib.sha256(f"{sha256} {path.name}".encode()).hexdigest()  # LVIS v0.5's picture names follow the file's
    place = cache_folder() / "annotations" / f"{key[:32]}.json"
    known = read_cached(place, Inspection)
    if known is not None and (known.version, known.sha256) == (VERSION, sha256):
        return known
    if path.stat().st_size > BIG_FILE:
        print(f"reading {path} (once: {place.parent} keeps what is found)", file=sys.stderr, flush=True)
    with without_garbage_collection():
        found = _inspect(read_annotations(path, AnyFile), path, sha256)
    write_cached(place, found)
    return found


def _inspect(file: AnyFile, path: Path, sha256: str) -> Inspection:
    _refuse_repeated(path, "categories", "id", (entry.id for entry in file.categories))
    _refuse_repeated(path, "categories", "name", (entry.name for entry in file.categories))  # AP is kept by name
    _refuse_repeated(path, "images", "id", (entry.id for entry in file.images))
    _refuse_repeated(path, "annotations", "id", (entry.id for entry in file.annotations))
    for what, entries in (("categories", file.categories), ("images", file.images)):
        if not entries:
            raise UserError(f"{path}: has no {what}")
    _refuse_some(path, "category", "frequency", file.categories, [entry.frequency for entry in file.categories])
    federation = {
        field: _refuse_some(path, "image", field, file.images, [getattr(entry, field) for entry in file.images])
        for field in ("neg_category_ids", "not_exhaustive_category_ids")
    }
    instances = dict.fromkeys((entry.id for entry in file.categories), 0)
    images = {entry.id: entry for entry in file.images}
    masks = _MaskCheck(path)
    pairs: set[tuple[int, int]] = set()
    crowds, without_mask = 0, []
    for entry in file.annotations:
        if entry.category_id not in instances or entry.image_id not in images:
            raise UserError(f"{path}: {unknown_id(entry, instances)}")
        if entry.iscrowd:
            crowds += 1
        elif (mask := mask_of(entry)) is None:
            without_mask.append(entry.id)
        else:
            masks.add(entry.id, mask, images[entry.image_id])
            instances[entry.category_id] += 1
            pairs.add((entry.category_id, entry.image_id))
    masks.finish()
    image_counts = Counter(category for category, _ in pairs)
    is_lvis = all(federation.values())
    return Inspection(
        version=VERSION,
        sha256=sha256,
        images=len(images),
        objects=sum(instances.values()),
        categories=tuple(
            CategoryCount(
                id=entry.id,
                name=entry.name,
                frequency=entry.frequency,
                image_count=image_counts[entry.id],
                instance_count=instances[entry.id],
            )
            for entry in sorted(file.categories, key=lambda entry: entry.id)
        ),
        federated=is_lvis,
        crowds=crowds,
        without_mask=len(without_mask),
        first_without_mask=min(without_mask, default=None),
        first_without_area=next((entry.id for entry in file.annotations if entry.area is None), None),
        picture_names=tuple(picture_name(entry, path, is_lvis) for entry in file.images),
    )


def mask_of(entry: AnyObject) -> list[list[float]] | rle.Mask | None:
    """An object's run lengths, or its polygons of 3 points or more; None where it has neither."""
    try:
        mask = _MASK.decode(entry.segmentation)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return None if isinstance(mask, list) and any(len(polygon) % 2 for polygon in mask) else mask


class _MaskCheck:
    """Refuses masks that no picture of theirs can have; run lengths all at once in the end, which is quicker."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._run_lengths: list[tuple[int, tuple[int, int], bytes]] = []  # annotation, its picture's size, its mask

    def add(self, annotation: int, mask: list[list[float]] | rle.Mask, image: AnyImage) -> None:
        try:
            rle.check_size(image.height, image.width)
            if isinstance(mask, rle.Mask):
                text = rle.compressed(mask, image.height, image.width)
                self._run_lengths.append((annotation, (image.height, image.width), text))
            else:
                for polygon in mask:
                    rle.check_polygon(polygon, image.height, image.width)
        except ValueError as error:
            raise UserError(f"{self._path}: annotation {annotation}: {error}") from error

    def finish(self) -> None:
        texts, sizes = [text for *_, text in self._run_lengths], [size for _, size, _ in self._run_lengths]
        rle.checked_areas(texts, sizes, lambda index: f"{self._path}: annotation {self._run_lengths[index][0]}")


def picture_name(image: FileImage, annotations: Path, is_lvis: bool) -> str:
    """LVIS's rule in its own format; in COCO's the file_name, its coco_url being that of another folder's copy."""
    return image.file_name if image.file_name and not is_lvis else image_name(image, annotations)


def missing_pictures(split: Split, names: Iterable[str]) -> list[Path]:
    """The pictures that are not in their folders; each folder is listed once."""
    by_folder: dict[str, set[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        by_folder.setdefault(folder, set()).add(file)
    missing = []
    for folder, files in by_folder.items():
        path = split.images / folder
        there = os.listdir(path) if path.is_dir() else []
        missing += [path / file for file in files.difference(there)]
    return sorted(missing)


def _refuse_repeated(path: Path, what: str, field: str, values: Iterable[object]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: two {what} have the {field} {repeated[0]!r}")


def _refuse_some(path: Path, what: str, field: str, entries: list, values: list) -> bool:
    """Whether all have the field (False: none has it). UserError where some do: a guess for the others may be wrong."""
    lacking = [entry.id for entry, value in zip(entries, values, strict=True) if value is None]
    if 0 < len(lacking) < len(entries):
        raise UserError(f"{path}: {what} {lacking[0]} has no {field}, which others have: give it to all or to none")
    return not lacking
