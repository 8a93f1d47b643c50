"""Pictures of what a detector finds: the worst and the best of a data set, and a contact sheet of them."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pycocotools import mask as mask_utils

from rio_bench import datasets, find
from rio_bench.datasets import rle
from rio_bench.datasets.lvis import FileImage, Split, image_name, read_annotations
from rio_bench.detection import drawing
from rio_bench.detection.compact import read_detections
from rio_bench.detection.detections import Detection, read_batches
from rio_bench.detection.drawing import BUCKET_NAMES, Drawn, Shape, Verdict
from rio_bench.detection.ground_truth import GroundTruth, Object, read_ground_truth
from rio_bench.detection.ranking import PictureScore, match, rank_pictures, shapes_of
from rio_bench.errors import UserError, did_you_mean
from rio_bench.records import RunFolder

CONTACT_SHEET = "contact_sheet.png"


@dataclass(frozen=True)
class Choice:
    """The categories that matter: those of the buckets ("r", "c", "f") and those named; all where nothing is chosen."""

    buckets: Collection[str] = ()
    names: Sequence[str] = ()

    def positions(self, truth: GroundTruth) -> list[int]:
        """Their positions. UserError for an unknown name, and where none of them has an object."""
        known = {category.name for category in truth.categories}
        for name in self.names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=5, cutoff=0.3)  # of LVIS's 1,203
                raise UserError(f"{truth.path}: no category is named '{name}'{did_you_mean(name, near)}")
        chosen = [
            position
            for position, category in enumerate(truth.categories)
            if category.frequency in self.buckets or category.name in self.names or not (self.buckets or self.names)
        ]
        if not any(truth.objects[position] for position in chosen):
            raise UserError(f"{truth.path}: has no object of {self}")
        return chosen

    def __str__(self) -> str:
        chosen = [name for bucket, name in BUCKET_NAMES.items() if bucket in self.buckets]
        chosen = [f"{' and '.join(chosen)} categories"] if chosen else []
        return " and ".join([*chosen, *self.names]) or "all categories"


def visualize(split: Split, detections_file: Path, output: Path, choice: Choice, count: int) -> str:
    """Draw the `count` worst and the `count` best pictures of a split; returns a line that tells what was drawn.

    How pictures are ranked, and which detections count: ranking.py. Writes a PNG file a picture and contact_sheet.png
    to the folder `output`. Raises UserError where that folder is not empty, and for files that cannot be read, do not
    fit each other, or cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists and is not an empty folder: pictures of two choices would be mixed up")
    truth = read_ground_truth(split.annotations)
    chosen = choice.positions(truth)
    ranking = rank_pictures(truth, read_detections(detections_file, truth), chosen)
    worst = sorted(ranking.pictures, key=lambda score: score.is_worse)[:count]
    others = [score for score in ranking.pictures if score not in worst]
    groups = {"worst": worst, "best": sorted(others, key=lambda score: score.is_better)[:count]}
    drawn_pictures = [score.picture for scores in groups.values() for score in scores]
    pictures = Pictures(truth, split, chosen)
    pictures.read_detections(detections_file, drawn_pictures, ranking.threshold)

    try:
        output.mkdir(parents=True, exist_ok=True)
        sheet = []
        for group, scores in groups.items():
            cells = []
            for number, score in enumerate(scores, start=1):
                drawn = pictures.drawn(score, f"{group} {number} of {len(scores)}: ")
                name = f"{group}_{number:02d}_image_{truth.image_ids[score.picture]}_f1_{score.f1:.2f}.png"
                drawing.side_by_side(drawn, ranking.threshold).save(output / name)
                cells.append(drawn)
            if cells:
                sheet.append((f"{group} by {choice}", cells))
        drawing.contact_sheet(sheet).save(output / CONTACT_SHEET)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from error
    return (
        f"{output}: {len(drawn_pictures)} of {len(ranking.pictures):,} pictures and {CONTACT_SHEET}, by {choice};"
        f" detections with a score from {ranking.threshold:.3f} count, which gives the highest F1 ({ranking.f1:.2f})"
    )


def sources(run_folder: Path | None, detections_file: Path | None, dataset: str | None) -> tuple[Split, Path]:
    """The split and the detections file of a run, or those given. UserError where they are not one or the other.

    dataset: as `find.dataset_of` takes it.
    """
    if run_folder is not None and detections_file is None and dataset is None:
        folder = RunFolder(run_folder)
        of_run = find.dataset_of_run(folder)
        if not folder.detections_file.exists():
            raise UserError(f"{folder.detections_file}: missing: the run has not been evaluated")
        return datasets.load_val(of_run), folder.detections_file
    if run_folder is None and detections_file is not None and dataset is not None:
        given = find.dataset_of(dataset)
        find.check_file("--detections", detections_file)
        return datasets.load_val(given), detections_file
    raise UserError("give the folder of a run, or --detections FILE with --dataset NAME")


class _File(Struct, gc=False):
    images: list[FileImage]


class Pictures:
    """What is drawn of the pictures of a split."""

    def __init__(self, truth: GroundTruth, split: Split, chosen: Collection[int]) -> None:
        self._truth = truth
        self._split = split
        self._chosen = frozenset(chosen)
        images = sorted(read_annotations(split.annotations, _File).images, key=lambda image: image.id)
        self._names = [image_name(image, split.annotations) for image in images]
        self._objects: defaultdict[int, list[tuple[int, Object]]] = defaultdict(list)  # picture -> category, object
        for category, objects in enumerate(truth.objects):
            for entry in objects:
                self._objects[entry.picture].append((category, entry))
        self._found: defaultdict[int, defaultdict[int, list[Detection]]] = defaultdict(lambda: defaultdict(list))

    def read_detections(self, path: Path, pictures: Collection[int], threshold: float) -> None:
        """Keep the detections of some pictures and of the chosen categories with a score from `threshold` on."""
        picture_of = {int(self._truth.image_ids[picture]): picture for picture in pictures}
        category_of = {self._truth.categories[position].id: position for position in self._chosen}
        for batch in read_batches(path):
            for entry in batch.detections:
                if entry.score >= threshold and entry.image_id in picture_of and entry.category_id in category_of:
                    self._found[picture_of[entry.image_id]][category_of[entry.category_id]].append(entry)

    def drawn(self, score: PictureScore, title: str) -> Drawn:
        """A picture as `drawing` wants it."""
        picture = score.picture
        path = self._split.images / self._names[picture]
        height, width = self._truth.image_sizes[picture].tolist()
        objects, detections, others = [], [], []
        of_category: defaultdict[int, list[Object]] = defaultdict(list)
        for category, entry in self._objects[picture]:
            if category in self._chosen:
                of_category[category].append(entry)
            else:
                others.append(self._shape(category, _mask(entry.mask, height, width), "not judged"))
        for category in sorted({*of_category, *self._found[picture]}):
            found = sorted(self._found[picture][category], key=lambda entry: entry.score, reverse=True)
            shapes = [_rle_or_box(entry, height, width) for entry in found]
            has_masks = all(isinstance(shape, dict) for shape in shapes)
            met = match(shapes, shapes_of(of_category[category], [height, width], has_masks))
            verdict: Verdict
            for index, annotated in enumerate(of_category[category]):
                verdict = "found" if index in met else "missed"
                objects.append(self._shape(category, _mask(annotated.mask, height, width), verdict))
            wrong: Verdict = "false" if self._is_judged(picture, category) else "not judged"
            for detection, shape, partner in zip(found, shapes, met, strict=True):
                mask = _mask(shape["counts"], height, width) if isinstance(shape, dict) else _box(shape, height, width)
                note = ""
                if not mask.any() and detection.bbox is not None:  # as of a detector that has hardly been trained
                    mask, note = _box(detection.bbox, height, width), " (empty mask)"
                verdict = wrong if partner is None else "right"
                detections.append(self._shape(category, mask, verdict, detection.score, note))
        told = f"F1 {score.f1:.2f}: {score.found} found, {score.missed} missed, {score.false} false"
        title = f"{title}image {self._truth.image_ids[picture]}, {told}"
        return Drawn(_read_picture(path, width, height), title, objects, others, detections)

    def _shape(
        self, category: int, mask: NDArray[np.uint8], verdict: Verdict, score: float | None = None, note: str = ""
    ) -> Shape:
        entry = self._truth.categories[category]
        return Shape(entry.name + note, entry.frequency, mask, verdict, score)

    def _is_judged(self, picture: int, category: int) -> bool:
        """Whether a detection of a category that meets no object is known to be false."""
        pair = self._truth.pair(picture, category)
        is_known = pair in self._truth.present or pair in self._truth.absent
        return is_known and pair not in self._truth.not_exhaustive


def _rle_or_box(detection: Detection, height: int, width: int) -> Any:
    """A detection's mask, or its box, as `match` takes it."""
    if detection.segmentation is None:
        return list(detection.bbox or ())
    try:
        counts = rle.compressed(detection.segmentation, height, width)
    except ValueError as error:
        raise UserError(f"image {detection.image_id}: a detection: {error}") from error
    if rle.areas([counts], np.array([height * width]))[0] < 0:
        raise UserError(
            f"image {detection.image_id}: the runs of a detection's mask do not fill {height} x {width} pixels"
        )
    return {"size": [height, width], "counts": counts}


def _mask(counts: bytes, height: int, width: int) -> NDArray[np.uint8]:
    return mask_utils.decode({"size": [height, width], "counts": counts})


def _box(box: Sequence[float], height: int, width: int) -> NDArray[np.uint8]:
    x, right = (round(min(max(edge, 0), width)) for edge in (box[0], box[0] + box[2]))  # as a sum, maybe infinite
    y, lower = (round(min(max(edge, 0), height)) for edge in (box[1], box[1] + box[3]))
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[y:lower, x:right] = 1
    return mask


def _read_picture(path: Path, width: int, height: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # by where it is broken
        raise UserError(f"{path}: the picture cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if picture.size != (width, height):
        raise UserError(f"{path}: is {picture.width} x {picture.height} pixels, its annotation says {width} x {height}")
    return picture
