"""How well each picture is detected: what `visualize` sorts pictures by.

A detection is right where it meets an object of its category with an IoU of at least 0.5 (of masks, or of
boxes where the detector gives no masks) that no detection with a higher score has met; else it is false. LVIS's rules
hold: where the annotations do not tell whether a category is in the picture, or not of all its objects, it is neither.
Only detections from a score on count: the score that gives the highest F1 over all pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from rio_bench.detection.compact import CompactDetections
from rio_bench.detection.ground_truth import GroundTruth, Object

IOU = 0.5


@dataclass(frozen=True)
class PictureScore:
    """Objects found and missed, and false detections, of the chosen categories in a picture (by position)."""

    picture: int
    found: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        return 2 * self.found / (2 * self.found + self.missed + self.false)

    @property
    def is_worse(self) -> tuple[float, int, int]:
        """A key to sort by, the worst first: of equal F1 the one with more errors."""
        return self.f1, -(self.missed + self.false), self.picture

    @property
    def is_better(self) -> tuple[float, int, int]:
        """A key to sort by, the best first: of equal F1 the one with more objects."""
        return -self.f1, -self.found, self.picture


@dataclass(frozen=True)
class Ranking:
    """The pictures that hold objects of the chosen categories, or where such are falsely detected."""

    threshold: float  # the lowest score that counts
    f1: float  # over all pictures
    pictures: list[PictureScore]


def rank_pictures(truth: GroundTruth, detections: CompactDetections, categories: Collection[int]) -> Ranking:
    """The score of each picture, by the detections of some categories (positions)."""
    is_right = np.zeros(len(detections.rows), dtype=bool)
    counts = np.zeros(len(detections.rows), dtype=bool)
    by_category = np.argsort(detections.categories[detections.rows], kind="stable")
    starts = np.searchsorted(detections.categories[detections.rows][by_category], np.arange(len(truth.categories) + 1))
    objects = np.zeros(len(truth.image_ids), dtype=np.int64)
    for category in categories:
        rows = by_category[starts[category] : starts[category + 1]]
        is_right[rows], counts[rows] = _judge(truth, detections, category, rows)
        np.add.at(objects, [entry.picture for entry in truth.objects[category]], 1)

    scores, pictures = detections.scores[detections.rows], detections.pictures[detections.rows]
    threshold, f1 = _best_threshold(scores[counts], is_right[counts], int(objects.sum()))
    counts &= scores >= threshold
    found = np.bincount(pictures[counts & is_right], minlength=len(objects))
    false = np.bincount(pictures[counts & ~is_right], minlength=len(objects))
    return Ranking(
        threshold,
        f1,
        [
            PictureScore(picture, int(found[picture]), int(objects[picture] - found[picture]), int(false[picture]))
            for picture in np.flatnonzero(objects + false).tolist()
        ],
    )


def _judge(
    truth: GroundTruth, detections: CompactDetections, category: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections of a category are right, and which count: not the wrong ones where objects may be missing."""
    objects: defaultdict[int, list[Object]] = defaultdict(list)
    for entry in truth.objects[category]:
        objects[entry.picture].append(entry)
    found: defaultdict[int, list[int]] = defaultdict(list)  # positions among `rows`
    scores = detections.scores[detections.rows[rows]]
    pictures = detections.pictures[detections.rows[rows]].tolist()
    for position in np.argsort(-scores, kind="stable").tolist():
        found[pictures[position]].append(position)

    is_right = np.zeros(len(rows), dtype=bool)
    counts = np.ones(len(rows), dtype=bool)
    for picture, positions in found.items():
        size = truth.image_sizes[picture].tolist()
        if detections.has_masks:
            shapes: list[Any] = [{"size": size, "counts": detections.mask(rows[position])} for position in positions]
        else:
            shapes = detections.boxes[rows[positions]].tolist()
        met = match(shapes, shapes_of(objects[picture], size, detections.has_masks))
        is_right[positions] = [entry is not None for entry in met]
        if truth.pair(picture, category) in truth.not_exhaustive:
            counts[positions] = is_right[positions]
    return is_right, counts


def shapes_of(objects: list[Object], size: list[int], has_masks: bool) -> list[Any]:
    """The masks of objects, or their boxes, as `match` takes them."""
    return [{"size": size, "counts": entry.mask} if has_masks else entry.bbox for entry in objects]


def match(found: list[Any], objects: list[Any]) -> list[int | None]:
    """The object that each detection meets; detections of one category and picture, the highest score first.

    Shapes are RLEs, or boxes [x, y, width, height].
    """
    if not found or not objects:
        return [None] * len(found)
    ious = mask_utils.iou(found, objects, [False] * len(objects))
    met: list[int | None] = []
    for row in ious:
        best = int(row.argmax())
        met.append(best if row[best] >= IOU else None)
        if met[-1] is not None:
            ious[:, best] = -1  # met once
    return met


def _best_threshold(scores: NDArray[np.float64], is_right: NDArray[np.bool_], objects: int) -> tuple[float, float]:
    """The score from which on detections give the highest F1, and that F1."""
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(is_right[order])
    f1 = 2 * right / (np.arange(1, len(scores) + 1) + objects)
    f1[np.append(scores[1:] == scores[:-1], False)[: len(scores)]] = 0  # equal scores count all or none
    if not f1.any():  # nothing is found: as many as there are objects
        return (float(scores[min(objects, len(scores)) - 1]) if len(scores) else 0.0), 0.0
    return float(scores[f1.argmax()]), float(f1.max())
