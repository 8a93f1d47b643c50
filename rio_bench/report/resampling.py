"""The sections of a report that need the data set: left out with a line where it is not there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from rio_bench.datasets.inspection import BUCKETS
from rio_bench.errors import UserError
from rio_bench.report import figures
from rio_bench.report.cells import Cell as Result
from rio_bench.report.html import Cell, Chart, Section, Table
from rio_bench.report.sections import Material, differences_by_category

if TYPE_CHECKING:
    from rio_bench.config import RunConfig
    from rio_bench.report.analysis import Analysis


def category_section(material: Material) -> Section:
    """Difference to the baseline by category, against its number of training images."""
    section = Section("categories", "Difference by category")
    by_dataset: dict[str, list[tuple[Result, dict[str, float]]]] = {}
    for cell in material.shown:
        baseline = material.comparison.baseline_of(cell)
        if baseline is None or baseline is cell:
            continue
        if found := differences_by_category(cell, baseline):
            by_dataset.setdefault(cell.dataset, []).append((cell, found))
    if not by_dataset:
        section.lead.append("No run and its baseline have AP by category yet.")
    for dataset, members in by_dataset.items():
        images = image_counts(members[0][0], section)
        if images is None:
            continue
        dots = []
        for cell, found in members:
            names = [name for name in found if images.get(name)]
            if names:
                x = np.array([images[name] for name in names], dtype=float)
                y = np.array([found[name] for name in names])
                dots.append(figures.Dots(material.labels[cell], x, y, names, style=material.shown.index(cell)))
        to = material.comparison.baseline
        caption = f"{dataset}: box AP less that of {to}; dots: categories, lines: means of groups of them"
        if dots:
            figure = figures.differences(dots, "difference [points of AP]", "training images of the category")
            section.charts.append(Chart(caption, figure))
    if section.charts:
        section.notes += material.shown_note
    return section


def image_counts(cell: Result, section: Section) -> dict[str, int] | None:
    """Category -> number of training images; None, and a line in the notes, where the data set is not here."""
    from rio_bench import datasets

    try:
        config = read_config(cell)
        found = datasets.statistics(config.dataset)
        if found is None:
            raise UserError(f"{cell.dataset} has not been made on this machine")
    except UserError as error:
        section.notes.append(f"Left out, as it needs the data set: {error}")
        return None
    return {category["name"]: category["image_count"] for category in found[0].categories}


def read_config(cell: Result) -> RunConfig:
    """UserError where it is not valid here, as where a strategy is not installed."""
    from rio_bench.config import RunConfig

    try:
        return RunConfig.model_validate(cell.config)
    except ValidationError as error:
        raise UserError(f"{cell.method}: {error.errors()[0]['msg']}") from error


def resampling_section(material: Material) -> Section:
    """What `analyze` finds, for the configurations that figures show."""
    from rio_bench.report.analysis import analyze
    from rio_bench.report.analysis_tables import NOTES

    section = Section("resampling", "What the strategies show of the data set")
    by_dataset: dict[str, list[Result]] = {}
    for cell in material.shown:
        by_dataset.setdefault(cell.dataset, []).append(cell)
    for cells in by_dataset.values():
        if image_counts(cells[0], section) is None:
            continue
        configs = []
        for cell in cells:
            try:
                configs.append(read_config(cell))
            except UserError as error:
                section.notes.append(f"Left out: {error}")
        try:
            analyses = analyze(configs) if configs else []
        except UserError as error:
            section.notes.append(f"Left out: {error}")
            continue
        for analysis in analyses:
            _add(section, analysis)
    if section.charts:
        section.notes += [*NOTES, *material.shown_note]
    return section


def _add(section: Section, analysis: Analysis) -> None:
    from rio_bench.report.analysis import by_bucket
    from rio_bench.report.analysis_tables import heading, number

    section.lead.append(heading(analysis))
    seen = analysis.image_count > 0
    images = analysis.image_count[seen].astype(float)
    for what, counts in (
        ("images of a category that an epoch shows", {name: of.images for name, of in analysis.strategies.items()}),
        (
            "objects of a category that an epoch shows or replays",
            {name: of.effective_objects for name, of in analysis.strategies.items()},
        ),
    ):
        positive = {name: np.maximum(values[seen], 1e-9) for name, values in counts.items()}
        caption = f"{analysis.dataset}: {what}; flat is balanced"
        section.charts.append(Chart(caption, figures.balance(images, positive, what.partition(" that")[0])))
    rows = by_bucket([analysis]).to_dict("records")
    shares = {name: [float(row[f"Added.{key}"]) for row in rows] for key, name in BUCKETS.items()}
    added = figures.bars(
        [f"{row['Method']}: {number(row['Added'], 0)} added" for row in rows], shares, "% of the added objects", "%"
    )
    section.charts.append(Chart(f"{analysis.dataset}: whose objects an epoch has beyond the training set's own", added))
    columns = {
        "epoch, images": ("Epoch", 0),
        **{f"images, {name}": (f"Images.{key}", 1) for key, name in BUCKETS.items()},
        "Gini, images": ("Images.Gini", 2),
        "max/min, images": ("Images.ratio", 1),
        **{f"objects, {name}": (f"Objects.{key}", 1) for key, name in BUCKETS.items()},
        "Gini, objects": ("Objects.Gini", 2),
        "max/min, objects": ("Objects.ratio", 1),
        "replays": ("Replays", 0),
    }
    table_rows = []
    for row in rows:
        cells = [Cell(str(row["Method"]), sort=str(row["Method"]))]
        for column, digits in columns.values():
            value = float(row[column])
            cells.append(Cell(number(value, digits), sort=None if math.isnan(value) else value))
        table_rows.append(cells)
    place = f"resampling-table-{len(section.tables) + 1}"
    caption = f"{analysis.dataset}: a category's images and objects in an epoch, mean over the bucket"
    section.tables.append(Table(place, caption, ["Method", *columns], 1, table_rows))
