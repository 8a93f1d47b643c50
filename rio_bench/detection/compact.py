"""The detections of a whole data set in arrays: what evaluation needs of each, and no more.

Of every detection the picture, the category and the score: they decide which are the best. The box only where it
counts: where the picture's annotations tell of the category. The mask only where there are objects to compare it with.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from rio_bench.datasets import rle
from rio_bench.detection.detections import Batch, read_batches
from rio_bench.detection.ground_truth import GroundTruth
from rio_bench.errors import UserError

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOG_LINES = 10
SLACK = 1.0  # pixels that a box may reach beyond its picture before that is told


@dataclass(frozen=True)
class CompactDetections:
    """The N sound detections of a file, in its order; pictures and categories by their positions in the annotations.

    J of them count: their category is known to be in their picture, or not to be.
    """

    pictures: NDArray[np.int32]  # [N]
    categories: NDArray[np.int32]  # [N]
    scores: NDArray[np.float64]  # [N]
    rows: NDArray[np.int64]  # [J]: those that count, as positions among the N
    boxes: NDArray[np.float64]  # [J, 4]: x, y, width, height
    masks: bytearray  # compressed RLEs, one after the other
    mask_ends: NDArray[np.int64]  # [J]; nothing where the picture has no object of the category
    has_masks: bool  # False: a detector of boxes

    def mask(self, index: int) -> bytes:
        """The compressed RLE of the index-th detection of those that count; empty where none is needed."""
        start = self.mask_ends[index - 1] if index else 0
        return bytes(self.masks[start : self.mask_ends[index]])


def read_detections(path: Path, truth: GroundTruth) -> CompactDetections:
    """Read a detections file against an annotation file; progress is logged.

    Left out, and told in a warning by kind: detections of a picture or category that the annotation file does not know,
    and those with a box of negative width or height. Told, but evaluated as the lvis package does: boxes without an
    area, boxes that reach beyond their picture, empty masks.

    Raises UserError where the file cannot be read, where nothing of it fits the annotation file, and where some
    detections have a box or a mask and others have none; with the number of the detection where a mask is not of its
    picture's size, or is broken (only masks that are compared, or that a box is taken from, are looked at).
    """
    reader = _Reader(truth)
    last_line = time.monotonic()
    for batch in read_batches(path):
        reader.add(batch)
        if time.monotonic() - last_line > SECONDS_BETWEEN_LOG_LINES:
            logger.info("read %s detections (%.0f%%)", f"{reader.seen:,}", 100 * batch.share_read)
            last_line = time.monotonic()
    return reader.finish(path)


def best_of_each(groups: NDArray[np.int32], scores: NDArray[np.float64], limit: int) -> NDArray[np.bool_]:
    """Which detections [N] are among the `limit` best of their group; of equal scores the earlier ones."""
    best = np.ones(len(groups), dtype=bool)
    if not len(groups):
        return best
    is_large = np.bincount(groups) > limit
    rows = np.flatnonzero(is_large[groups])  # only these need sorting
    order = rows[np.lexsort((-scores[rows], groups[rows]))]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    best[order[rank >= limit]] = False
    return best


EMPTY_COLUMNS: dict[str, np.ndarray] = {
    "pictures": np.zeros(0, np.int32),
    "categories": np.zeros(0, np.int32),
    "scores": np.zeros(0),
    "counts": np.zeros(0, bool),
    "boxes": np.zeros((0, 4)),
    "mask_lengths": np.zeros(0, np.int32),
}


class _Reader:
    """Turns batches into the columns of `CompactDetections`, and notes what is to be told."""

    def __init__(self, truth: GroundTruth) -> None:
        self._truth = truth
        self._category_ids = np.array([category.id for category in truth.categories], dtype=np.int64)
        self.seen = 0
        self._has_masks: bool | None = None  # as the first detection has one or not
        self._left_out: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._columns: dict[str, list[np.ndarray]] = {name: [empty] for name, empty in EMPTY_COLUMNS.items()}
        self._masks = bytearray()

    def add(self, batch: Batch) -> None:
        truth, detections = self._truth, batch.detections
        self.seen += len(detections)
        self._complete(batch)
        image_ids = np.array([detection.image_id for detection in detections])
        category_ids = np.array([detection.category_id for detection in detections])
        scores = np.array([detection.score for detection in detections])
        boxes = np.array([detection.bbox for detection in detections])

        pictures, known_picture = _positions(image_ids, truth.image_ids)
        categories, known_category = _positions(category_ids, self._category_ids)
        known = known_picture & known_category
        upright = (boxes[:, 2:] >= 0).all(axis=1)
        self._leave_out("an image_id that the annotation file does not know", ~known_picture)
        self._leave_out("a category_id that the annotation file does not know", known_picture & ~known_category)
        self._leave_out("a box of negative width or height", known & ~upright)
        sound = np.flatnonzero(known & upright)
        pictures, categories, boxes = pictures[sound], categories[sound], boxes[sound]

        height, width = truth.image_sizes[pictures].T
        beyond = (boxes[:, :2] < -SLACK).any(axis=1)
        with np.errstate(over="ignore"):  # such a box is told, as it reaches beyond its picture
            area = boxes[:, 2] * boxes[:, 3]
            beyond |= (boxes[:, 0] + boxes[:, 2] > width + SLACK) | (boxes[:, 1] + boxes[:, 3] > height + SLACK)
        self._told["a box without an area: counted among an image's best, and then dropped"] += int((area == 0).sum())
        self._told["a box that reaches beyond its picture: evaluated as it is"] += int(beyond.sum())

        pairs = truth.pair(pictures, categories)
        is_present = _positions(pairs, truth.present)[1]
        counts = (is_present | _positions(pairs, truth.absent)[1]) & (area > 0)
        self._append("pictures", pictures)
        self._append("categories", categories)
        self._append("scores", scores[sound])
        self._append("counts", counts)
        self._append("boxes", boxes[counts])
        if self._has_masks:
            self._add_masks(batch, sound[counts], pictures[counts], is_present[counts])
        else:
            self._append("mask_lengths", np.zeros(counts.sum()))

    def _complete(self, batch: Batch) -> None:
        """Give a detection that has no box its mask's, as in the lvis package; all have a mask, or none has."""
        for index, detection in enumerate(batch.detections):
            has_mask = detection.segmentation is not None
            if self._has_masks is None:
                self._has_masks = has_mask
            if has_mask != self._has_masks:
                told = "a mask, and those before it have none" if has_mask else "no mask, and those before it have one"
                raise UserError(f"{batch.place(index)}: has {told}")
        without_box = [index for index, detection in enumerate(batch.detections) if detection.bbox is None]
        for index, box in zip(without_box, _boxes_of_masks(batch, without_box), strict=True):
            batch.detections[index].bbox = box

    def _add_masks(
        self, batch: Batch, indices: NDArray[np.int64], pictures: NDArray[np.int64], is_compared: NDArray[np.bool_]
    ) -> None:
        """Append the masks of the detections that count, given by their indices in the batch."""
        sizes = self._truth.image_sizes[pictures[is_compared]]
        texts, areas = _checked_masks(batch, indices[is_compared].tolist(), sizes.tolist())
        self._told["an empty mask, in a picture that has objects of its category"] += int((areas == 0).sum())
        lengths = np.zeros(len(is_compared))
        lengths[is_compared] = [len(text) for text in texts]
        self._append("mask_lengths", lengths)
        self._masks += b"".join(texts)

    def _append(self, column: str, values: np.ndarray) -> None:
        self._columns[column].append(values.astype(EMPTY_COLUMNS[column].dtype, copy=False))

    def _leave_out(self, fault: str, mask: NDArray[np.bool_]) -> None:
        self._left_out[fault] += int(mask.sum())

    def finish(self, path: Path) -> CompactDetections:
        columns = {name: np.concatenate(self._columns.pop(name)) for name in EMPTY_COLUMNS}
        left_out = [(count, fault) for fault, count in self._left_out.items() if count]
        if left_out and not len(columns["pictures"]):
            raise UserError(
                f"{path}: nothing in it fits {self._truth.path}:"
                f" {max(left_out)[0]:,} of {self.seen:,} detections have {max(left_out)[1]}"
            )
        for count, fault in left_out:
            logger.warning("%s: %s of %s detections left out: %s", path.name, f"{count:,}", f"{self.seen:,}", fault)
        for oddity, count in self._told.items():
            if count:
                logger.warning("%s: %s of %s detections have %s", path.name, f"{count:,}", f"{self.seen:,}", oddity)
        if not self.seen:
            logger.warning("%s: no detections at all: every AP is 0", path.name)
        return CompactDetections(
            pictures=columns["pictures"],
            categories=columns["categories"],
            scores=columns["scores"],
            rows=np.flatnonzero(columns["counts"]),
            boxes=columns["boxes"],
            masks=self._masks,
            mask_ends=np.cumsum(columns["mask_lengths"], dtype=np.int64),
            has_masks=self._has_masks is not False,
        )


def _boxes_of_masks(batch: Batch, indices: list[int]) -> list[tuple[float, float, float, float]]:
    """The boxes around the RLEs of some detections of a batch. UserError for one that has none, or a broken one."""
    sizes = []
    for index in indices:
        mask = batch.detections[index].segmentation
        if not isinstance(mask, rle.Mask):
            raise UserError(f"{batch.place(index)}: has neither a bbox nor an RLE to take it from")
        try:
            rle.check_size(*mask.size)
        except ValueError as error:
            raise UserError(f"{batch.place(index)}: its mask: {error}") from error
        sizes.append(mask.size)
    texts, areas = _checked_masks(batch, indices, sizes)
    boxes = mask_utils.toBbox([{"size": size, "counts": text} for size, text in zip(sizes, texts, strict=True)])
    boxes[areas == 0] = 0  # where runs have no pixel, it may be anything
    return [tuple(box) for box in boxes.tolist()]


def _checked_masks(
    batch: Batch, indices: list[int], sizes: Sequence[Sequence[int]]
) -> tuple[list[bytes], NDArray[np.int64]]:
    """The compressed masks of some detections of a batch that have one, and their areas. UserError for a broken one.

    sizes: height and width of their pictures.
    """
    texts = []
    for index, (height, width) in zip(indices, sizes, strict=True):
        mask = batch.detections[index].segmentation
        assert mask is not None
        try:
            texts.append(rle.compressed(mask, height, width))
        except ValueError as error:
            raise UserError(f"{batch.place(index)}: {error}") from error
    return texts, rle.checked_areas(texts, sizes, lambda position: batch.place(indices[position]))


def _positions(values: np.ndarray, of: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where in `of`, sorted, each value is (anything where it is not), and whether it is there."""
    if not len(of):
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    positions = np.minimum(np.searchsorted(of, values), len(of) - 1)
    return positions, of[positions] == values
