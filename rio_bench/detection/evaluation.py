"""LVIS average precision of a list of detections; without Detectron2, so that any detector's results can be measured.

The rules are those of Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019, and of
their `lvis` package: the numbers agree with its LVISEval. faster-coco-eval does the matching.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from rio_bench.errors import UserError
from rio_bench.records import Metrics

logger = logging.getLogger(__name__)

MAX_DETECTIONS_PER_IMAGE = 300
BUCKETS = ("r", "c", "f")


def lvis_ap(annotations: Path, detections: list[dict]) -> dict[str, Metrics]:
    """Box and mask AP in percent of LVIS results against an annotation file in LVIS format.

    A detection holds image_id, category_id (the file's), bbox [x, y, width, height] in pixels, score, and segmentation,
    an RLE of the picture's size. One that breaks this is left out, and each kind of fault is told in a log warning.
    The 300 best of each image across all categories are kept. `detections` is not changed.

    Returns "box" and "mask". Raises UserError where the annotation file lacks what LVIS evaluation needs.
    """
    truth = _read_annotations(annotations)
    kept = _limit_per_image(_leave_out_faulty(detections, truth), MAX_DETECTIONS_PER_IMAGE)
    kept = _leave_out_unjudged(kept, truth)
    return {"box": _measure(truth, kept, "bbox"), "mask": _measure(truth, kept, "segm")}


def _read_annotations(path: Path) -> dict[str, Any]:
    """The annotation file, checked, with only the fields that the evaluation reads."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an LVIS annotation file: {error}") from error
    try:
        categories = [
            {"id": category["id"], "name": category["name"], "frequency": category["frequency"]}
            for category in content["categories"]
        ]
        images = [
            {
                "id": image["id"],
                "height": image["height"],
                "width": image["width"],
                # faster-coco-eval only asks what is in them; it would take missing ones as empty
                "neg_category_ids": frozenset(image["neg_category_ids"]),
                "not_exhaustive_category_ids": frozenset(image["not_exhaustive_category_ids"]),
            }
            for image in content["images"]
        ]
        # ids from 1, as 0 means "unmatched" to the matching; no crowd flag, as LVIS has none; no object of area 0, as
        # the lvis package reads none
        objects = [
            {key: entry[key] for key in ("image_id", "category_id", "bbox", "area", "segmentation")} | {"id": number}
            for number, entry in enumerate(content["annotations"], start=1)
            if 0 < entry["area"] < math.inf
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not an annotation file in LVIS format: {error} is missing or of the wrong type"
        ) from error
    for category in categories:
        if category["frequency"] not in BUCKETS:
            raise UserError(
                f"{path}: category {category['name']!r} has the frequency {category['frequency']!r}, expected r, c or f"
            )
    repeated = [name for name, count in Counter(category["name"] for category in categories).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: two categories are called {repeated[0]!r}: AP is kept by name")
    return {"categories": categories, "images": images, "annotations": objects}


def _leave_out_faulty(detections: list[dict], truth: dict[str, Any]) -> list[dict]:
    """The sound detections, in order, as new dicts of plain values; the others are counted and told."""
    if not detections:
        logger.warning("no detections at all: every AP is 0")
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    category_ids = {category["id"] for category in truth["categories"]}
    sound = []
    faults: Counter[str] = Counter()
    for detection in detections:
        score = float(detection["score"])
        box = [float(value) for value in detection["bbox"]]
        mask = detection.get("segmentation")
        if detection["image_id"] not in sizes:
            faults["an image_id that the annotation file does not know"] += 1
        elif detection["category_id"] not in category_ids:
            faults["a category_id that the annotation file does not know"] += 1
        elif not math.isfinite(score):
            faults["a score that is not finite"] += 1
        elif len(box) != 4 or not all(map(math.isfinite, box)):
            faults["a box that is not four finite numbers"] += 1
        elif not isinstance(mask, dict) or list(mask["size"]) != sizes[detection["image_id"]]:
            faults["no mask of the picture's size"] += 1
        else:
            ids = {"image_id": detection["image_id"], "category_id": detection["category_id"]}
            sound.append(ids | {"bbox": box, "score": score, "segmentation": mask})
    for fault, count in faults.items():
        logger.warning("%d of %d detections left out: %s", count, len(detections), fault)
    return sound


def _limit_per_image(detections: list[dict], limit: int) -> list[dict]:
    """The `limit` best of each image across all categories; of equal scores the earlier, as in the lvis package."""
    by_image: dict[int, list[dict]] = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    kept = []
    for of_image in by_image.values():
        if len(of_image) > limit:
            of_image = sorted(of_image, key=lambda detection: detection["score"], reverse=True)[:limit]
        kept += of_image
    return kept


def _leave_out_unjudged(detections: list[dict], truth: dict[str, Any]) -> list[dict]:
    """The detections that count: of a category that the image's annotations say is there, or is not there.

    faster-coco-eval drops the others too, but then stops at an image with neither ground truth nor a detection left.
    """
    judged = {image["id"]: set(image["neg_category_ids"]) for image in truth["images"]}
    for entry in truth["annotations"]:
        if entry["image_id"] in judged:
            judged[entry["image_id"]].add(entry["category_id"])
    # the lvis package counts boxes of area 0 among the 300, and evaluates them no further
    return [
        detection
        for detection in detections
        if detection["category_id"] in judged[detection["image_id"]]
        and 0 < detection["bbox"][2] * detection["bbox"][3] < math.inf
    ]


def _measure(truth: dict[str, Any], detections: list[dict], iou_type: str) -> Metrics:
    """The metrics of one kind of IoU ("bbox" or "segm"). Means over categories skip those without ground truth."""
    from faster_coco_eval import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    if not truth["annotations"]:
        return Metrics(
            AP=None, AP50=None, AP75=None, APr=None, APc=None, APf=None,
            per_category={category["name"]: None for category in truth["categories"]},
        )  # fmt: skip
    # both write into the dicts they are given
    ground_truth = COCO({key: [dict(entry) for entry in entries] for key, entries in truth.items()})
    results = ground_truth.loadRes([dict(detection) for detection in detections])
    evaluation = COCOeval_faster(ground_truth, results, iouType=iou_type, lvis_style=True, print_function=logger.debug)
    evaluation.params.maxDets = [MAX_DETECTIONS_PER_IMAGE]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()

    # [IoU thresholds, recall thresholds, categories by id]; all entries of a category without ground truth are -1
    precision = 100 * evaluation.eval["precision"][:, :, :, 0, 0]
    with_truth = {
        category_id: precision[:, :, index]
        for index, category_id in enumerate(evaluation.params.catIds)
        if precision[0, 0, index] >= 0
    }
    average = {category_id: float(values.mean()) for category_id, values in with_truth.items()}
    at_50 = [float(values[0].mean()) for values in with_truth.values()]
    at_75 = [float(values[5].mean()) for values in with_truth.values()]

    def bucket_mean(bucket: str) -> float | None:
        members = [category["id"] for category in truth["categories"] if category["frequency"] == bucket]
        return _mean([average[category_id] for category_id in members if category_id in average])

    return Metrics(
        AP=_mean(list(average.values())),
        AP50=_mean(at_50),
        AP75=_mean(at_75),
        APr=bucket_mean("r"),
        APc=bucket_mean("c"),
        APf=bucket_mean("f"),
        per_category={category["name"]: average.get(category["id"]) for category in truth["categories"]},
    )


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
