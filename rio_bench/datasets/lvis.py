"""Data sets in the LVIS file format (v1.0, v0.5 and those made here), read as plain Detectron2-style records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read_split(split: Split, *, skip_empty: bool) -> LVISSplit:
    """Read one split as Detectron2's standard dicts.

    A record holds file_name (absolute), height, width, image_id, neg_category_ids and not_exhaustive_category_ids
    (the file's ids) and annotations: bbox [x, y, w, h] in pixels, bbox_mode 1 (XYWH_ABS), category_id (contiguous,
    from 0) and segmentation (polygons or RLE, as in the file). `skip_empty` leaves out images without annotations.
    Raises UserError where the file is missing, is not JSON or lacks a field.
    """
    content = _read_json(split.annotations)
    try:
        categories = sorted(
            (Category(entry["id"], entry["name"], entry["frequency"]) for entry in content["categories"]),
            key=lambda category: category.id,
        )
        position = {category.id: index for index, category in enumerate(categories)}
        objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            objects[annotation["image_id"]].append(
                {
                    "bbox": annotation["bbox"],
                    "bbox_mode": XYWH_ABS,
                    "category_id": position[annotation["category_id"]],
                    "segmentation": annotation["segmentation"],
                }
            )
        records = [
            {
                "file_name": str(image_path(image, split).absolute()),
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                "neg_category_ids": image.get("neg_category_ids", []),
                "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
                "annotations": objects[image["id"]],
            }
            for image in sorted(content["images"], key=lambda image: image["id"])
            if objects[image["id"]] or not skip_empty
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{split.annotations}: not a file in the LVIS format: {error!r} does not fit") from error
    return LVISSplit(records, categories)


def image_path(image: dict[str, Any], split: Split) -> Path:
    """Where an image entry's file lies.

    LVIS names images by the last two parts of coco_url ("train2017/000000155379.jpg"). A v0.5 entry without it has
    COCO's 2014 name, of which the last 16 characters are the file's name in train2017 or val2017. Other files
    name their images relative to the image folder.
    """
    if image.get("coco_url"):
        return split.images.joinpath(*image["coco_url"].split("/")[-2:])
    name = image["file_name"]
    if name.startswith("COCO_"):
        return split.images / ("train2017" if "train" in split.annotations.name else "val2017") / name[-16:]
    return split.images / name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"{path}: the annotation file cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: the annotation file is not JSON ({error})") from error
