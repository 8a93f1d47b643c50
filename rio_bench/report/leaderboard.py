"""The leaderboard: every configuration with a record, of one experiment or several, beside what has been published."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rio_bench.errors import UserError
from rio_bench.records import RERUNS, ResultFolder, write_atomically
from rio_bench.report.cells import Cell, Comparison, compare
from rio_bench.report.formats import Entry, Format, Line, TextTable, as_text
from rio_bench.report.tables import (
    COLUMNS,
    FIELDS,
    NUMBERS,
    SHORT_SCHEDULE_NOTE,
    fields,
    shown_value,
    told_method,
    told_seeds,
)

if TYPE_CHECKING:
    import pandas as pd


def leaderboard(*comparisons: Comparison) -> pd.DataFrame:
    """A row for each cell with a record, also for those that the plan holds no more, best AP.b of a data set first.

    Columns: tables.fields, and Experiment.
    """
    import pandas as pd

    rows = [fields(cell) | {"Experiment": experiment} for experiment, cell in _ranked(comparisons)]
    frame = pd.DataFrame(rows, columns=[*FIELDS, "Experiment"])
    return frame.astype(dict.fromkeys(NUMBERS, float)).astype({"Iterations": int, "N": int, "Short": bool})


def write(folders: Sequence[Path], format: Format, output: Path | None) -> None:
    """Write the leaderboard of several result folders to a file, or print it. Raises UserError, as render does."""
    text = render(folders, format)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)


def render(folders: Sequence[Path], format: Format) -> str:
    """The leaderboard of several result folders, with the published results on their data sets, which have a source.

    A file among the folders is passed over, and so is the folder of reruns: a shell's `results/*` names them, too.
    Raises UserError for anything else that is no result folder.
    """
    distinct = {folder.resolve(): folder for folder in folders if not _is_passed_over(folder)}
    if not distinct:
        raise UserError(f"{', '.join(map(str, folders))}: no result folder")
    comparisons = [compare(ResultFolder(folder)) for folder in distinct.values()]
    if format == "csv":
        return with_published(leaderboard(*comparisons)).to_csv(index=False)
    return as_text(_text_table(comparisons), format)


def with_published(ours: pd.DataFrame) -> pd.DataFrame:
    """Ours and the published rows of the same data sets, ranked together; Source: where a row was published, or empty.

    What is not published is empty.
    """
    import pandas as pd

    known = set(ours["Dataset"])
    theirs = pd.DataFrame([row for row in published() if row["Dataset"] in known], columns=[*ours.columns, "Source"])
    theirs = theirs.astype(dict.fromkeys(NUMBERS, float)).astype(
        {"Iterations": "Int64", "N": "Int64", "Short": "boolean"}
    )
    ours = ours.assign(Source=None).astype({"Iterations": "Int64", "N": "Int64", "Short": "boolean"})
    both = pd.concat([ours, theirs], ignore_index=True) if len(theirs) else ours
    return both.sort_values(["Dataset", "AP.b", "AP.m"], ascending=[True, False, False], kind="stable")


@cache
def published() -> tuple[dict[str, Any], ...]:
    """The rows of published.csv: AP as numbers, None where it is not published."""
    text = (resources.files("rio_bench.report") / "published.csv").read_text(encoding="utf-8")
    return tuple(
        {name: (float(value) if value else None) if name in COLUMNS else value for name, value in row.items()}
        for row in csv.DictReader(text.splitlines())
    )


def _is_passed_over(folder: Path) -> bool:
    holds_reruns = folder.resolve().name == RERUNS and not ResultFolder(folder).plan_file.exists()
    return folder.is_file() or holds_reruns


def _ranked(comparisons: Sequence[Comparison]) -> list[tuple[str, Cell]]:
    finished = [
        (comparison.experiment, cell)
        for comparison in comparisons
        for cell in [*comparison.cells, *comparison.earlier]
        if cell.records
    ]
    return sorted(finished, key=lambda entry: _rank_of(entry[1]))


def _rank(dataset: str, box: float | None, mask: float | None) -> tuple:
    """Sorts by data set, best AP.b first, none last; then by AP.m."""
    return dataset, box is None, -(box or 0), mask is None, -(mask or 0)


def _text_table(comparisons: Sequence[Comparison]) -> TextTable:
    ranked = _ranked(comparisons)
    lines = [(_rank_of(cell), _line(experiment, cell)) for experiment, cell in ranked]
    datasets = {cell.dataset for _, cell in ranked}
    theirs = [row for row in published() if row["Dataset"] in datasets]
    lines += [(_rank(row["Dataset"], row["AP.b"], row["AP.m"]), _published_line(row)) for row in theirs]
    notes = [warning for comparison in comparisons for warning in comparison.warnings]
    if theirs:
        notes.insert(0, "published: by others, as their source tells; in no mean and no difference.")
    if any(cell.is_short for _, cell in ranked):
        notes.insert(0, f"* {SHORT_SCHEDULE_NOTE}")
    return TextTable(
        title="Leaderboard: " + ", ".join(dict.fromkeys(comparison.experiment for comparison in comparisons)),
        names=["Data set", "Backbone", "Method", "Experiment"],
        columns=list(COLUMNS),
        more=["N", "Identities"],
        lines=[line for _, line in sorted(lines, key=lambda ranked_line: ranked_line[0])],
        notes=notes,
    )


def _rank_of(cell: Cell) -> tuple:
    return _rank(cell.dataset, cell.mean("AP.b"), cell.mean("AP.m"))


def _line(experiment: str, cell: Cell) -> Line:
    entries = [
        Entry(shown_value(cell.mean(column)), spread="" if (std := cell.spread(column)) is None else f"±{std:.1f}")
        for column in COLUMNS
    ]
    identities = " ".join(record.identity for record in cell.records)
    names = [cell.dataset, cell.config["backbone"], told_method(cell), experiment]
    return Line(names, entries, [told_seeds(cell), identities])


def _published_line(row: dict[str, Any]) -> Line:
    entries = [Entry("" if row[column] is None else f"{row[column]:.1f}") for column in COLUMNS]
    return Line([row["Dataset"], row["Backbone"], row["Method"], f"published: {row['Source']}"], entries, ["", ""])
