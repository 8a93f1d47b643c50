"""The section with example pictures: what the baseline and the best method detect of each bucket's objects.

A fixed small number of pictures, however many runs there are; which ones, and what counts: detection/ranking.py.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rio_bench.datasets.inspection import BUCKETS
from rio_bench.errors import UserError
from rio_bench.report.cells import Cell as Result
from rio_bench.report.html import Picture, Section
from rio_bench.report.resampling import image_counts, read_config
from rio_bench.report.sections import Material

if TYPE_CHECKING:
    from pathlib import Path

    from rio_bench.datasets.lvis import Split
    from rio_bench.detection.compact import CompactDetections
    from rio_bench.detection.drawing import Drawn
    from rio_bench.detection.ground_truth import GroundTruth
    from rio_bench.detection.ranking import Ranking

PANEL = 320  # pixels of a picture's longer side
QUALITY = 80  # of JPEG
MOST_TOLD = 6  # detections, or missed objects, in a caption
LEGEND = (
    "Left: what is annotated; right: what is detected, with scores from the one on that gives the highest F1. "
    "Red rare, yellow common, blue frequent. A full line: found, or right; a dashed one: missed, or false; without a "
    "fill: not known to be false; thin lines: objects of other buckets. Of each bucket the picture with the best and "
    "the one with the worst F1 of the method with the highest AP in that bucket."
)


@dataclass
class _Method:
    """A run's detections, with their ranking for one bucket."""

    label: str
    file: Path
    ranking: Ranking


def examples_section(material: Material) -> Section:
    section = Section("examples", "Example pictures")
    files = {cell: file for cell in material.shown if (file := _detections_file(material, cell))}
    if not files:
        section.lead.append("No run has detections of the validation pictures yet.")
        return section
    dataset = next(iter(files)).dataset
    cells = [cell for cell in files if cell.dataset == dataset]
    if image_counts(cells[0], section) is None:
        return section
    try:
        _add_examples(material, section, cells, files)
    except UserError as error:
        section.notes.append(f"Left out: {error}")
    if section.pictures:
        section.lead.append(LEGEND)
    return section


def _detections_file(material: Material, cell: Result) -> Path | None:
    """Of its first seed that has them."""
    files = (material.results.run(record.name).detections_file for record in cell.records)
    return next((file for file in files if file.exists()), None)


def _add_examples(material: Material, section: Section, cells: list[Result], files: dict[Result, Path]) -> None:
    from rio_bench import datasets
    from rio_bench.detection.compact import read_detections
    from rio_bench.detection.ground_truth import read_ground_truth
    from rio_bench.detection.ranking import rank_pictures

    split = datasets.load_val(read_config(cells[0]).dataset)
    truth = read_ground_truth(split.annotations)
    read: dict[Result, CompactDetections] = {}  # at most two methods a bucket: mostly the same two
    for bucket, name in BUCKETS.items():
        categories = [place for place, category in enumerate(truth.categories) if category.frequency == bucket]
        if not any(truth.objects[place] for place in categories):
            section.notes.append(f"The validation pictures have no object of a {name} category.")
            continue
        compared = _compared(material, cells, files, f"AP.b.{bucket}")
        methods = []
        for cell in compared:
            if cell not in read:
                read[cell] = read_detections(files[cell], truth)
            ranking = rank_pictures(truth, read[cell], categories)
            methods.append(_Method(material.labels[cell], files[cell], ranking))
        section.pictures += _pictures(split, truth, categories, name, methods)


def _compared(material: Material, cells: list[Result], files: dict[Result, Path], column: str) -> list[Result]:
    """The best method of a bucket, its baseline before it; the best of all where none has a baseline."""

    def value(cell: Result) -> float:
        return cell.mean(column) or 0.0

    pairs = [(cell, material.comparison.baseline_of(cell)) for cell in cells]
    with_baseline = {cell: baseline for cell, baseline in pairs if baseline in files and baseline is not cell}
    if not with_baseline:
        return [max(cells, key=value)]
    best = max(with_baseline, key=value)
    baseline = with_baseline[best]
    assert baseline is not None
    return [baseline, best]


def _pictures(
    split: Split, truth: GroundTruth, categories: Sequence[int], bucket: str, methods: list[_Method]
) -> list[Picture]:
    """The best and the worst picture of the last method, each by all methods."""
    from rio_bench.detection.visualize import Pictures

    scores = [score for score in methods[-1].ranking.pictures if score.found + score.missed]
    best, worst = min(scores, key=lambda score: score.is_better), min(scores, key=lambda score: score.is_worse)
    chosen = {"best": best.picture} | ({"worst": worst.picture} if worst.picture != best.picture else {})
    drawn: dict[tuple[str, str], Picture] = {}
    for method in methods:
        pictures = Pictures(truth, split, categories)
        pictures.read_detections(method.file, chosen.values(), method.ranking.threshold)
        of_picture = {score.picture: score for score in method.ranking.pictures}
        for which, picture in chosen.items():
            one = pictures.drawn(of_picture[picture], f"{bucket}, {which}: {method.label}; ")
            drawn[which, method.label] = _encoded(one)
    return [drawn[which, method.label] for which in chosen for method in methods]


def _encoded(drawn: Drawn) -> Picture:
    from rio_bench.detection.drawing import draw_panel, in_a_row

    height = round(drawn.image.height * PANEL / max(drawn.image.size))
    width = round(drawn.image.width * PANEL / max(drawn.image.size))
    left, upper = (PANEL - width) // 2, (PANEL - height) // 2  # a panel is a square with the picture in its middle
    panels = [
        draw_panel(drawn.image, shapes, others, PANEL).crop((left, upper, left + width, upper + height))
        for shapes, others in ((drawn.objects, drawn.others), (drawn.detections, []))
    ]
    image = in_a_row(panels, gap=4)
    found = sorted(drawn.detections, key=lambda shape: -(shape.score or 0.0))
    told = [f"{shape.name} {shape.score or 0.0:.2f} ({shape.verdict})" for shape in found[:MOST_TOLD]]
    if len(found) > MOST_TOLD:
        told.append(f"{len(found) - MOST_TOLD} more")
    missed = [shape.name for shape in drawn.objects if shape.verdict == "missed"]
    lines = [f"Detected: {', '.join(told) or 'none'}"]
    if missed:
        more = [f"{len(missed) - MOST_TOLD} more"] if len(missed) > MOST_TOLD else []
        lines.append(f"Missed: {', '.join([*missed[:MOST_TOLD], *more])}")
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY, optimize=True)
    jpeg = base64.b64encode(buffer.getvalue()).decode()
    return Picture(drawn.title, lines, jpeg, image.width, image.height)
