"""One metric over any two axes: a line for each value of the one, a column for each of the other.

Configurations are never averaged: where a line and a column hold several, the line is parted by what else differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rio_bench.errors import UserError
from rio_bench.records import ResultFolder
from rio_bench.report import axes
from rio_bench.report.axes import Part
from rio_bench.report.cells import Cell, Comparison, compare
from rio_bench.report.formats import Entry, Format, Line, TextTable, as_text
from rio_bench.report.intervals import Interval, Key
from rio_bench.report.tables import (
    best_of,
    certainty_fields,
    check_metric,
    csv,
    entry_of,
    intervals_of,
    notes,
    rounded,
    subject,
    told_seeds,
    with_types,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Grid:
    """`columns`: labels; `lines`: (names, cell of each column or None); names are the row's, and what else differs."""

    row_axis: str
    column_axis: str
    columns: list[str]
    is_parted: bool
    lines: list[tuple[list[str], list[Cell | None]]]

    @property
    def cells(self) -> list[Cell]:
        return [cell for _, cells in self.lines for cell in cells if cell is not None]


def render(results: ResultFolder, format: Format, rows: str, columns: str, metric: str, baseline: str | None) -> str:
    """Raises UserError for an axis or a metric that is not there."""
    check_metric(metric)
    if rows == columns:
        raise UserError(f"--rows and --columns are both '{rows}': take two different axes")
    comparison = compare(results, baseline, by_seed="seed" in (rows, columns))
    for option, axis in (("--rows", rows), ("--columns", columns)):
        axes.check_axis(option, axis, [cell.config for cell in comparison.cells])
    grid = make_grid(comparison.cells, rows, columns)
    found = intervals_of(comparison, grid.cells, [metric])
    if format == "csv":
        return csv(comparison, frame(comparison, grid, metric, found))
    return as_text(_text_table(comparison, grid, metric, found), format)


def make_grid(cells: list[Cell], row_axis: str, column_axis: str) -> Grid:
    split = [axes.split(cell.config, row_axis, column_axis) for cell in cells]
    rows = _values(cells, [parts[0] for parts in split], row_axis)
    columns = _values(cells, [parts[1] for parts in split], column_axis)
    column_order = axes.in_order(columns)
    position = {axes.key(column): index for index, column in enumerate(column_order)}
    lines: dict[tuple[str, str], list[Cell | None]] = {}
    rests: dict[tuple[str, str], Part] = {}
    for cell, row, column, (_, _, rest) in zip(cells, rows, columns, split, strict=True):
        line = axes.key(row), axes.key(rest)
        rests[line] = rest
        lines.setdefault(line, [None] * len(column_order))[position[axes.key(column)]] = cell

    row_order = {axes.key(row): (index, axes.text(row)) for index, row in enumerate(axes.in_order(rows))}
    is_parted = len(lines) > len(row_order)
    others = dict(zip(rests, axes.labels(list(rests.values()), always=()), strict=True))
    named = [
        ([row_order[row][1], *([others[row, rest]] if is_parted else [])], lines[row, rest])
        for row, rest in sorted(lines, key=lambda line: row_order[line[0]][0])
    ]
    return Grid(row_axis, column_axis, [axes.text(column) for column in column_order], is_parted, named)


def _values(cells: list[Cell], parts: list[Part], axis: str) -> list[Any]:
    """The value of each cell on an axis: of a whole its label, of a field its value."""
    if not axes.is_whole(axis):
        return [axes.value(cell.config, axis) for cell in cells]
    labels = axes.labels(parts, always=("classifier.name",) if axis == "classifier" else ("strategy.name",))
    if axis != axes.METHOD:
        return labels
    # the names that the other tables have, where each stands for one label and each label for one name
    pairs = {(label, cell.method) for label, cell in zip(labels, cells, strict=True)}
    is_same = len(pairs) == len({label for label, _ in pairs}) == len({method for _, method in pairs})
    return [cell.method for cell in cells] if is_same else labels


def frame(comparison: Comparison, grid: Grid, metric: str, found: Mapping[Key, Interval]) -> pd.DataFrame:
    """A row for each cell: the axes' values, what else differs, the metric, and its difference (tables.py)."""
    import pandas as pd

    names = [grid.row_axis, *(["other"] if grid.is_parted else [])]
    rows = []
    for line_names, cells in grid.lines:
        for column, cell in zip(grid.columns, cells, strict=True):
            if cell is None:
                continue
            difference = cell.difference(comparison.baseline_of(cell), metric)
            row: dict[str, Any] = dict(zip(names, line_names, strict=True)) | {grid.column_axis: column}
            row |= {metric: rounded(cell.mean(metric), 4), f"{metric}.std": rounded(cell.spread(metric), 4)}
            certainty = certainty_fields(difference, found.get((cell, metric)))
            row |= {f"{metric}.{name}": value for name, value in certainty.items()}
            row |= {"N": len(cell.records), "Planned": cell.planned, "Failed": len(cell.failed), "State": cell.state}
            row |= {"Identities": " ".join(record.identity for record in cell.records)}
            rows.append(row)
    return with_types(pd.DataFrame(rows).astype({metric: "float64", f"{metric}.std": "float64"}))


def _text_table(comparison: Comparison, grid: Grid, metric: str, found: Mapping[Key, Interval]) -> TextTable:
    cells = grid.cells
    blocks: dict[tuple, list[Cell]] = {}
    for cell in cells:
        blocks.setdefault((cell.block, cell.config.get("seed")), []).append(cell)
    best = {block: best_of(of_block, metric) for block, of_block in blocks.items()}
    numbers = {told_seeds(cell) for cell in cells if cell.records}

    def entry(cell: Cell | None) -> Entry:
        if cell is None:
            return Entry("")
        of_block = best[cell.block, cell.config.get("seed")]
        made = entry_of(cell, metric, comparison.baseline_of(cell), found.get((cell, metric)), of_block)
        differs = bool(cell.records) and len(numbers) > 1
        return made if not differs else replace(made, seeds=f"n={told_seeds(cell)}")

    told = notes(comparison, cells, [metric], found)
    if any(cell is None for _, of_line in grid.lines for cell in of_line):
        told.append("Blank: the plan has no such run.")
    return TextTable(
        title=f"{comparison.experiment}: {metric}; {subject(comparison.cells)}",
        names=[grid.row_axis, *(["other settings"] if grid.is_parted else [])],
        columns=[axes.heading(grid.column_axis, column) for column in grid.columns],
        more=[],
        lines=[Line(names, [entry(cell) for cell in of_line], []) for names, of_line in grid.lines],
        notes=told,
    )
