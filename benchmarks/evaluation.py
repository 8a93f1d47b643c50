"""Time and peak memory of LVIS evaluation, side by side with the `lvis` package, at up to LVIS v1 val's size.

    python benchmarks/evaluation.py [--pictures 500 1000 2000 19809] [--lvis-up-to 2000] [--folder /tmp/lvis_size]

For each number of pictures an annotation file and a detections file are made: 1,203 categories with a long tail,
12.35 objects and 300 detections a picture, masks and boxes, federated annotations. Then each evaluation is a process of
its own, from the files to box and mask AP. Seconds are of the CPU (of all threads), memory is the process's peak.
The `lvis` package is left out above --lvis-up-to: it takes time and memory for every pair of picture and category.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from rio_bench.detection.detections import DetectionsWriter

LVIS_V1_VAL = 19_809  # pictures; it has 244,707 objects
CATEGORIES = 1203
OBJECTS_PER_PICTURE = 12.35
CATEGORIES_PER_PICTURE = 3.7
NEGATIVES_PER_PICTURE = 8
DETECTIONS_PER_PICTURE = 300
SIZES = ((480, 640), (640, 480), (427, 640))  # height, width
SHAPES_PER_SIZE = 400


# ------------------------------------------------------------------------------------------------------ the files' make


@dataclass(frozen=True)
class Shape:
    """A mask near the top left corner of a picture, in a form that moves at the price of two numbers.

    Moved by `offset` pixels down the columns, only the first and the last run of its RLE change.
    """

    polygon: np.ndarray  # float [N, 2]: its left and upper edge at 2
    size: tuple[float, float]  # width, height
    room: tuple[int, int]  # how far it can go, to the right and down
    area: int
    first_run: int
    last_run: int
    last_run_base: int  # a run is stored as the difference to the one two before it
    middle: str

    def counts_at(self, offset: int) -> str:
        return _token(self.first_run + offset) + self.middle + _token(self.last_run - offset - self.last_run_base)


def _token(value: int) -> str:
    """One number of a compressed RLE: 5 bits a character, the lowest first."""
    text = ""
    while True:
        bits, value = value & 31, value >> 5
        is_last = value == (-1 if bits & 16 else 0)
        text += chr(48 + (bits if is_last else bits | 32))
        if is_last:
            return text


def _shape(rng: np.random.Generator, height: int, width: int) -> Shape:
    """A wobbly ellipse; sizes spread as LVIS's do: half of the objects are smaller than 40 pixels."""
    while True:
        radii = 20 * np.exp(rng.normal(0, 0.9, 2))
        if radii.min() > 2 and 2.6 * radii[0] < width - 4 and 2.6 * radii[1] < height - 4:
            break
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    wobble = 1 + 0.15 * np.sin(rng.integers(2, 6) * angles + rng.uniform(0, 6)) + rng.normal(0, 0.04, 32)
    points = np.stack([np.cos(angles) * radii[0], np.sin(angles) * radii[1]], 1) * wobble[:, None]
    points = np.round(points - points.min(0) + 2, 2)
    rle = mask_utils.merge(mask_utils.frPyObjects([points.ravel().tolist()], height, width))
    runs = np.diff(np.flatnonzero(np.diff(mask_utils.decode(rle).ravel(order="F"), prepend=2, append=2)))
    runs = runs.tolist()
    base = runs[-3] if len(runs) > 3 else 0
    text = rle["counts"].decode()
    middle = text[len(_token(runs[0])) : -len(_token(runs[-1] - base))]
    right, lower = points.max(0).tolist()
    room = int(width - right - 2), int(height - lower - 2)
    shape = Shape(points, (right - 2, lower - 2), room, int(mask_utils.area(rle)), runs[0], runs[-1], base, middle)
    assert shape.counts_at(0) == text
    return shape


def make(folder: Path, pictures: int, seed: int = 0) -> None:
    """Write annotations.json and detections.json.gz."""
    rng = np.random.default_rng(seed)
    shapes = {size: [_shape(rng, *size) for _ in range(SHAPES_PER_SIZE)] for size in SIZES}
    categories = [
        {"id": i + 1, "name": f"category_{i + 1}", "frequency": "f" if i < 405 else "c" if i < 866 else "r"}
        for i in range(CATEGORIES)
    ]
    images, annotations = [], []
    with DetectionsWriter(folder / "detections.json.gz") as writer:
        for image_id in range(1, pictures + 1):
            height, width = SIZES[rng.integers(len(SIZES))]
            present = np.unique(_by_frequency(rng, 1 + rng.poisson(CATEGORIES_PER_PICTURE)))
            absent = np.setdiff1d(rng.integers(0, CATEGORIES, NEGATIVES_PER_PICTURE), present)
            images.append(
                {
                    "id": image_id,
                    "height": height,
                    "width": width,
                    "neg_category_ids": (absent + 1).tolist(),
                    "not_exhaustive_category_ids": (present[rng.random(len(present)) < 0.1] + 1).tolist(),
                }
            )
            objects = [
                _Placed.draw(rng, shapes[height, width], height, width, category)
                for category in rng.choice(present, 1 + rng.poisson(OBJECTS_PER_PICTURE - 1)).tolist()
            ]
            annotations += [placed.annotation(image_id, len(annotations) + n) for n, placed in enumerate(objects, 1)]
            found = [placed.moved(rng) for placed in objects for _ in range(2)][:DETECTIONS_PER_PICTURE]
            num_others = DETECTIONS_PER_PICTURE - len(found)
            # a third of the others is of categories that the picture's annotations tell of
            told = rng.choice(np.concatenate([present, absent]), num_others)
            of_others = np.where(rng.random(num_others) < 1 / 3, told, _by_frequency(rng, num_others))
            others = [_Placed.draw(rng, shapes[height, width], height, width, c) for c in of_others.tolist()]
            scores = np.concatenate([rng.random(len(found)), rng.random(num_others) ** 3]).astype(np.float32).tolist()
            writer.write(
                [placed.detection(image_id, score) for placed, score in zip(found + others, scores, strict=True)]
            )
    content = {"categories": categories, "images": images, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(content))


def _by_frequency(rng: np.random.Generator, count: int) -> np.ndarray:
    """Categories, drawn with a long tail."""
    cumulated = (1 / np.arange(1, CATEGORIES + 1) ** 1.1).cumsum()
    return np.searchsorted(cumulated, rng.random(count) * cumulated[-1])


@dataclass(frozen=True)
class _Placed:
    """A shape of a category at a place in a picture."""

    shape: Shape
    picture: tuple[int, int]  # height, width
    category: int
    x: int
    y: int

    @classmethod
    def draw(cls, rng: np.random.Generator, shapes: list[Shape], height: int, width: int, category: int) -> _Placed:
        chosen, x, y = rng.random(3).tolist()
        shape = shapes[int(chosen * len(shapes))]
        return cls(shape, (height, width), category, int(x * shape.room[0]), int(y * shape.room[1]))

    def moved(self, rng: np.random.Generator) -> _Placed:
        """A little: an IoU with what it was of 0.5 to 1, mostly."""
        dx, dy = rng.normal(0, 0.07, 2).tolist()
        x = min(max(self.x + int(dx * self.shape.size[0]), 0), self.shape.room[0])
        y = min(max(self.y + int(dy * self.shape.size[1]), 0), self.shape.room[1])
        return replace(self, x=x, y=y)

    @property
    def box(self) -> list[float]:
        return [self.x + 2.0, self.y + 2.0, *self.shape.size]

    def annotation(self, image_id: int, number: int) -> dict[str, Any]:
        polygon = (self.shape.polygon + [self.x, self.y]).round(2).ravel().tolist()
        ids = {"id": number, "image_id": image_id, "category_id": self.category + 1}
        return ids | {"bbox": self.box, "area": self.shape.area, "segmentation": [polygon]}

    def detection(self, image_id: int, score: float) -> dict[str, Any]:
        mask = {"size": self.picture, "counts": self.shape.counts_at(self.x * self.picture[0] + self.y)}
        ids = {"image_id": image_id, "category_id": self.category + 1}
        return ids | {"bbox": self.box, "score": score, "segmentation": mask}


# ------------------------------------------------------------------------------------------------------ the evaluations


def with_rio_bench(folder: Path) -> dict[str, float]:
    from rio_bench.detection.evaluation import lvis_ap

    metrics = lvis_ap(folder / "annotations.json", folder / "detections.json.gz")
    return {kind: metrics[kind].AP or 0 for kind in ("box", "mask")}


def with_lvis(folder: Path) -> dict[str, float]:
    np.float = float  # type: ignore[attr-defined]  # the package was written for numpy < 1.24
    sys.modules["cv2"] = ModuleType("cv2")  # for drawing alone; needs libGL
    logging.getLogger("lvis").setLevel(logging.ERROR)
    from lvis import LVISEval

    with gzip.open(folder / "detections.json.gz") as file:
        detections = json.load(file)
    average = {}
    for kind, iou_type in ("box", "bbox"), ("mask", "segm"):
        evaluation = LVISEval(str(folder / "annotations.json"), detections, iou_type)
        evaluation.run()
        average[kind] = 100 * float(evaluation.results["AP"])
    return average


@dataclass(frozen=True)
class Measured:
    average: dict[str, float]  # AP of boxes and of masks
    cpu_seconds: float
    seconds: float
    peak_gib: float


def measure(evaluate: Callable[[Path], dict[str, float]], folder: Path) -> Measured:
    """Run one evaluation in a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(evaluate, folder, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit("the process that evaluates died: its error is above") from None
    finally:
        process.join()


def _measured(evaluate: Callable[[Path], dict[str, float]], folder: Path, pipe: Any) -> None:
    start, cpu_start = time.perf_counter(), time.process_time()
    average = evaluate(folder)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    pipe.send(Measured(average, cpu_seconds, seconds, peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[500, 1000, 2000, LVIS_V1_VAL])
    parser.add_argument("--lvis-up-to", type=int, default=2000, help="pictures, for the lvis package")
    parser.add_argument("--folder", type=Path, help="for the files; emptied afterwards [default: a temporary one]")
    arguments = parser.parse_args()
    print("| pictures | detections | lvis, CPU s | ours, CPU s | ours, wall s | ratio | lvis, GiB | ours, GiB |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for pictures in arguments.pictures:
        folder = Path(tempfile.mkdtemp(prefix="rio-bench-evaluation-", dir=arguments.folder))
        try:
            make(folder, pictures)
            ours = measure(with_rio_bench, folder)
            theirs = measure(with_lvis, folder) if pictures <= arguments.lvis_up_to else None
        finally:
            shutil.rmtree(folder)
        if theirs and any(abs(ours.average[kind] - theirs.average[kind]) > 1e-6 for kind in ours.average):
            raise SystemExit(f"the two do not agree: {ours.average} and {theirs.average}")
        cells = [
            f"{pictures:,}",
            f"{pictures * DETECTIONS_PER_PICTURE:,}",
            f"{theirs.cpu_seconds:.1f}" if theirs else "",
            f"{ours.cpu_seconds:.1f}",
            f"{ours.seconds:.1f}",
            f"{theirs.cpu_seconds / ours.cpu_seconds:.1f}" if theirs else "",
            f"{theirs.peak_gib:.2f}" if theirs else "",
            f"{ours.peak_gib:.2f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
