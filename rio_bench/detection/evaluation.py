"""LVIS average precision of a detections file; without Detectron2, so that any detector's results can be measured.

The rules are those of Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019, and of
their `lvis` package: the numbers agree with its LVISEval. AP_fixed is that of Dave et al., "Evaluating Large-Vocabulary
Object Detectors: The Devil is in the Details", arXiv 2102.01066. faster-coco-eval does the matching, category by
category: it goes through every pair of the pictures and categories it is given, and on LVIS nearly all are empty.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rio_bench.datasets.lvis import Category
from rio_bench.detection.compact import SECONDS_BETWEEN_LOG_LINES, CompactDetections, best_of_each, read_detections
from rio_bench.detection.ground_truth import GroundTruth, read_ground_truth
from rio_bench.records import Metrics, write_atomically

logger = logging.getLogger(__name__)

MAX_DETECTIONS_PER_IMAGE = 300
FIXED_DETECTIONS_PER_CATEGORY = 10_000  # of AP_fixed: over the whole data set, with no limit an image
LARGEST_AREA = 1e5**2  # pixels: larger objects are ignored
IOU_TYPES = {"box": "bbox", "mask": "segm"}
EMPTY_MASK = b"0"  # for one that is not compared with any


def lvis_ap(annotations_file: Path, detections_file: Path) -> dict[str, Metrics]:
    """Box and mask AP in percent of a detections file against an annotation file in LVIS format.

    Returns "box" and "mask"; "box" alone where the detections have no masks. Which detections are refused (UserError),
    left out, or told in a warning: compact.read_detections. Raises UserError too where the annotation file lacks what
    LVIS evaluation needs. Progress is logged.
    """
    return evaluate(annotations_file, detections_file).metrics()


@dataclass(frozen=True)
class AveragePrecision:
    """One category's, in percent. AP: the mean over the IoU thresholds 0.50, 0.55 ... 0.95."""

    AP: float
    AP50: float
    AP75: float
    AP_fixed: float


@dataclass(frozen=True)
class CategoryResult:
    category: Category
    objects: int  # annotated
    detections: int  # those evaluated: of the 300 best of an image that its annotations tell of the category
    measured: dict[str, AveragePrecision] | None  # "box", "mask"; None without objects


@dataclass(frozen=True)
class Evaluation:
    """The result for each category, in the order of their ids."""

    categories: list[CategoryResult]
    kinds: tuple[str, ...]  # "box", "mask"

    def metrics(self) -> dict[str, Metrics]:
        """The metrics by kind. Means over categories skip those without objects."""
        return {kind: self._metrics(kind) for kind in self.kinds}

    def _metrics(self, kind: str) -> Metrics:
        def mean(key: str, bucket: str | None = None) -> float | None:
            values = [
                getattr(result.measured[kind], key)
                for result in self.categories
                if result.measured and bucket in (None, result.category.frequency)
            ]
            return math.fsum(values) / len(values) if values else None

        return Metrics(
            AP=mean("AP"),
            AP50=mean("AP50"),
            AP75=mean("AP75"),
            APr=mean("AP", "r"),
            APc=mean("AP", "c"),
            APf=mean("AP", "f"),
            AP_fixed=mean("AP_fixed"),
            APr_fixed=mean("AP_fixed", "r"),
            APc_fixed=mean("AP_fixed", "c"),
            APf_fixed=mean("AP_fixed", "f"),
            per_category={
                result.category.name: result.measured[kind].AP if result.measured else None
                for result in self.categories
            },
        )

    def write_csv(self, path: Path) -> None:
        """A row for each category; AP in percent, empty where the category has no object. UserError where it cannot."""
        columns = [(kind, key) for kind in self.kinds for key in ("AP", "AP50", "AP75", "AP_fixed")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["id", "name", "frequency", "objects", "detections", *(f"{key}.{kind[0]}" for kind, key in columns)]
        )
        for result in self.categories:
            category, measured = result.category, result.measured
            values = [round(getattr(measured[kind], key), 4) if measured else "" for kind, key in columns]
            writer.writerow(
                [category.id, category.name, category.frequency, result.objects, result.detections, *values]
            )
        write_atomically(path, text.getvalue())


def evaluate(annotations_file: Path, detections_file: Path) -> Evaluation:
    """As `lvis_ap`, with the results of each category."""
    truth = read_ground_truth(annotations_file)
    detections = read_detections(detections_file, truth)
    _warn_of_few_detections(truth, detections)
    is_kept = best_of_each(detections.pictures, detections.scores, MAX_DETECTIONS_PER_IMAGE)[detections.rows]
    is_fixed = best_of_each(detections.categories, detections.scores, FIXED_DETECTIONS_PER_CATEGORY)[detections.rows]
    kinds = ("box", "mask") if detections.has_masks else ("box",)

    # by category, then by picture, then in the file's order
    categories = detections.categories[detections.rows]
    order = np.lexsort((detections.pictures[detections.rows], categories))
    starts = np.searchsorted(categories[order], np.arange(len(truth.categories) + 1))
    results = []
    last_line = time.monotonic()
    for position, category in enumerate(truth.categories):
        rows = order[starts[position] : starts[position + 1]]
        kept, fixed = rows[is_kept[rows]], rows[is_fixed[rows]]
        num_objects = sum(entry.area <= LARGEST_AREA for entry in truth.objects[position])
        measured = _measure(truth, detections, position, kept, fixed, kinds) if num_objects else None
        results.append(CategoryResult(category, num_objects, len(kept), measured))
        if time.monotonic() - last_line > SECONDS_BETWEEN_LOG_LINES:
            logger.info("evaluated %d of %d categories", position + 1, len(truth.categories))
            last_line = time.monotonic()
    return Evaluation(results, kinds)


def _warn_of_few_detections(truth: GroundTruth, detections: CompactDetections) -> None:
    """With a limit of 300 an image in force, a category with fewer than 10,000 detections may have had more."""
    per_image = np.bincount(detections.pictures, minlength=1)
    per_category = np.bincount(detections.categories, minlength=len(truth.categories))
    has_objects = np.array([len(objects) > 0 for objects in truth.objects])
    few = int((has_objects & (per_category < FIXED_DETECTIONS_PER_CATEGORY)).sum())
    if few and per_image.max() == MAX_DETECTIONS_PER_IMAGE:
        logger.warning(
            "AP_fixed is not truly fixed: %d categories have fewer than %s detections, and %d images have just %d: the"
            " detector seems to have kept no more of an image",
            few, f"{FIXED_DETECTIONS_PER_CATEGORY:,}", (per_image == MAX_DETECTIONS_PER_IMAGE).sum(),
            MAX_DETECTIONS_PER_IMAGE,
        )  # fmt: skip


def _measure(
    truth: GroundTruth,
    detections: CompactDetections,
    category: int,
    kept: NDArray[np.int64],
    fixed: NDArray[np.int64],
    kinds: tuple[str, ...],
) -> dict[str, AveragePrecision]:
    precision = _precision(truth, detections, category, kept, kinds)
    # the two limits leave the same detections of most categories
    precision_fixed = (
        precision if np.array_equal(kept, fixed) else _precision(truth, detections, category, fixed, kinds)
    )
    return {
        kind: AveragePrecision(
            AP=float(precision[kind].mean()),
            AP50=float(precision[kind][0].mean()),
            AP75=float(precision[kind][5].mean()),
            AP_fixed=float(precision_fixed[kind].mean()),
        )
        for kind in kinds
    }


def _precision(
    truth: GroundTruth, detections: CompactDetections, category: int, rows: NDArray[np.int64], kinds: tuple[str, ...]
) -> dict[str, NDArray[np.float64]]:
    """Precision in percent [10 IoU thresholds, 101 levels of recall] of one category that has objects."""
    from faster_coco_eval import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    if not len(rows):
        return {kind: np.zeros((10, 101)) for kind in kinds}
    found = _results(truth, detections, category, rows)
    most_in_a_picture = int(np.bincount(detections.pictures[detections.rows[rows]]).max())
    ground_truth = COCO(_content(truth, category, {detection["image_id"] for detection in found}))
    results = ground_truth.loadRes(found)
    precision = {}
    for kind in kinds:
        evaluation = COCOeval_faster(
            ground_truth, results, iouType=IOU_TYPES[kind], lvis_style=True, print_function=logger.debug
        )
        evaluation.params.maxDets = [most_in_a_picture]  # no further limit; memory is taken for as many in each
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        precision[kind] = 100 * evaluation.eval["precision"][:, :, 0, 0, 0]
    return precision


def _results(
    truth: GroundTruth, detections: CompactDetections, category: int, rows: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Some detections as LVIS results; pictures are known by their positions, counted from 1."""
    pictures = detections.pictures[detections.rows[rows]]
    sizes = truth.image_sizes[pictures].tolist()
    scores = detections.scores[detections.rows[rows]].tolist()
    return [
        {
            "image_id": picture + 1,
            "category_id": category + 1,
            "bbox": box,
            "score": score,
            "segmentation": {"size": size, "counts": detections.mask(row) or EMPTY_MASK},
        }
        for picture, box, score, size, row in zip(
            pictures.tolist(), detections.boxes[rows].tolist(), scores, sizes, rows.tolist(), strict=True
        )
    ]


def _content(truth: GroundTruth, category: int, found_in: set[int]) -> dict[str, Any]:
    """The annotations of one category, and the pictures that have objects or detections of it."""
    objects = truth.objects[category]
    pictures = sorted({entry.picture for entry in objects} | {image_id - 1 for image_id in found_in})
    sizes = truth.image_sizes[pictures].tolist()
    annotations = [
        {
            "id": number,  # from 1: 0 means "unmatched" to the matching
            "image_id": entry.picture + 1,
            "category_id": category + 1,
            "bbox": entry.bbox,
            "area": entry.area,
            "segmentation": {"size": truth.image_sizes[entry.picture].tolist(), "counts": entry.mask},
        }
        for number, entry in enumerate(objects, start=1)
    ]
    return {
        "categories": [{"id": category + 1, "frequency": truth.categories[category].frequency}],
        "images": [
            {
                "id": picture + 1,
                "height": height,
                "width": width,
                # all these detections count: those of other pictures were left out before
                "neg_category_ids": [category + 1],
                "not_exhaustive_category_ids": (
                    [category + 1] if truth.pair(picture, category) in truth.not_exhaustive else []
                ),
            }
            for picture, (height, width) in zip(pictures, sizes, strict=True)
        ],
        "annotations": annotations,
    }
