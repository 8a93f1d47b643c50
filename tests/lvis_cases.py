"""Annotation files of one picture, detections in it, and their average precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from rio_bench.detection import evaluation
from rio_bench.detection.detections import DetectionsWriter
from rio_bench.records import Metrics


def lvis_ap(annotations: Path, detections: list[dict]) -> dict[str, Metrics]:
    file = annotations.with_name("detections.json.gz")
    with DetectionsWriter(file) as writer:
        writer.write(detections)
    return evaluation.lvis_ap(annotations, file)


def encode(mask: np.ndarray) -> dict:
    rle = mask_utils.encode(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def runs(mask: np.ndarray) -> dict:
    """The uncompressed form of an RLE, which annotation files may hold: run lengths down the columns, from 0."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [0]])
    edges = np.flatnonzero(np.diff(flat))
    ends = np.concatenate([[0], edges, [mask.size]])
    return {"size": list(mask.shape), "counts": np.diff(ends).tolist()}


def write(path: Path, content: dict) -> Path:
    path.write_text(json.dumps(content))
    return path


def square(x: float) -> tuple[list[float], dict]:
    box = [x, 0.0, 10.0, 10.0]
    mask = np.zeros((20, 100), dtype=np.uint8, order="F")
    mask[:10, int(x) : int(x) + 10] = 1
    return box, encode(mask)


def one_picture(objects: list[tuple[int, float]], **fields: Any) -> dict[str, Any]:
    """A picture of 100 x 20 with 10 x 10 objects (category, x); categories 1 rare, 2 common, 3 frequent."""
    return {
        "categories": [
            {"id": i, "name": name, "frequency": name[0]} for i, name in enumerate(["rare", "common", "frequent"], 1)
        ],
        "images": [
            {"id": 7, "height": 20, "width": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []} | fields
        ],
        "annotations": [
            {
                "id": n,
                "image_id": 7,
                "category_id": category,
                "bbox": square(x)[0],
                "area": 100,
                "segmentation": square(x)[1],
            }
            for n, (category, x) in enumerate(objects, 1)
        ],
    }


def found(category: int, x: float, score: float, **fields: Any) -> dict:
    box, mask = square(x)
    return {"image_id": 7, "category_id": category, "bbox": box, "score": score, "segmentation": mask} | fields


# in pictures of 20 x 100: of another size; of too few pixels
SMALL_MASK = {"size": [21, 100], "counts": "PPYo1"}
SHORT_MASK = {"size": [20, 100], "counts": encode(np.ones((19, 100), dtype=np.uint8, order="F"))["counts"]}
