"""An analysis to read: tables for the terminal, Markdown and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rio_bench.datasets.inspection import BUCKETS
from rio_bench.report.analysis import COUNTED_EPOCHS, Analysis, by_bucket, by_category

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["terminal", "md", "csv"]
Rows = Literal["bucket", "category"]

NO_VALUE = "–"  # noqa: RUF001 (a bucket without categories)
NOTES = (
    "rare, common, frequent: the mean over a bucket's categories. max/min: the category shown most over the one shown "
    "least. Gini: 0 where all categories are shown the same, towards 1 where one has all.",
    "Images and objects shown: expected numbers. Replays: counted while the object level runs over the training's "
    f"pictures, banks filled, mean of {COUNTED_EPOCHS} epochs. Each object is one RoI here; in training it brings "
    "several, and replays weigh less.",
)


@dataclass(frozen=True)
class Table:
    """Texts; the first `names` columns are names, the others numbers. A heading may have several lines."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    names: int = 1


def render(analyses: Sequence[Analysis], rows: Rows, format: Format) -> str:
    """What strategies make of their data sets: a row a method, with means by bucket, or a row a method and category.

    "terminal" is as wide as standard output's terminal; "csv" is by_bucket or by_category as it is.
    """
    if format == "csv":
        frame = by_bucket(analyses) if rows == "bucket" else by_category(analyses)
        return frame.to_csv(index=False).rstrip("\n")
    tables_of = _bucket_tables if rows == "bucket" else _category_tables
    as_text = _terminal if format == "terminal" else _markdown
    return as_text([(heading(analysis), tables_of(analysis)) for analysis in analyses])


def heading(analysis: Analysis) -> str:
    """The data set with its numbers of images, objects and categories, in a line."""
    buckets = ", ".join(f"{analysis.bucket.count(key):,} {name}" for key, name in BUCKETS.items())
    return (
        f"{analysis.dataset}: {analysis.num_images:,} training images, {int(analysis.object_count.sum()):,} objects, "
        f"{len(analysis.categories):,} categories ({buckets})"
    )


def _bucket_tables(analysis: Analysis) -> list[Table]:
    frame = by_bucket([analysis])

    def table(title: str, columns: dict[str, tuple[str, int]]) -> Table:
        """columns: heading -> column of the frame, digits after the point"""
        rows = [
            (str(row["Method"]), *(number(row[column], digits) for column, digits in columns.values()))
            for row in frame.to_dict("records")
        ]
        return Table(title, ("Method", *columns), rows)

    def counts(name: str) -> dict[str, tuple[str, int]]:
        means = {BUCKETS[key]: (f"{name}.{key}", 1) for key in BUCKETS}
        return means | {"max/min": (f"{name}.ratio", 1), "Gini": (f"{name}.Gini", 2)}

    shares = {f"% {BUCKETS[key]}": (f"Added.{key}", 1) for key in BUCKETS}
    return [
        table("Images of a category that an epoch shows", {"epoch": ("Epoch", 0)} | counts("Images")),
        table("Objects of a category that an epoch shows or replays", counts("Objects")),
        table(
            "Objects beyond the training set's own, and whose they are",
            {"added": ("Added", 0), "replays": ("Replays", 0)} | shares,
        ),
    ]


def _category_tables(analysis: Analysis) -> list[Table]:
    frame: pd.DataFrame = by_category([analysis]).drop(columns="Dataset")
    names, counts = ["Method", "Category", "Bucket"], ["Images", "Objects"]
    rows = [
        tuple(
            str(value) if column in names else number(value, 0 if column in counts else 1)
            for column, value in row.items()
        )
        for row in frame.to_dict("records")
    ]
    title = "Images and Objects: the training set's; the others: an epoch's"
    headings = tuple(str(column).replace(" ", "\n") for column in frame)  # narrow enough for 80 columns
    return [Table(title, headings, rows, names=len(names))]


def number(value: float, digits: int) -> str:
    return NO_VALUE if math.isnan(value) else f"{value:,.{digits}f}"


def _markdown(blocks: list[tuple[str, list[Table]]]) -> str:
    parts = []
    for name, tables in blocks:
        parts.append(f"**{_escaped(name)}**")
        for table in tables:
            alignment = ["---"] * table.names + ["---:"] * (len(table.headings) - table.names)
            lines = [map(_escaped, table.headings), alignment, *(map(_escaped, row) for row in table.rows)]
            parts.append(table.title)
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join([*parts, *NOTES])


def _escaped(text: str) -> str:
    """Markdown's own characters escaped; an underscore within a word is none."""
    return re.sub(r"([\\`*\[\]<>|~$]|\b_|_\b)", r"\\\1", " ".join(text.split()))


def _terminal(blocks: list[tuple[str, list[Table]]]) -> str:
    import rich.table
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    with console.capture() as capture:
        for name, tables in blocks:
            console.print(Text(name, style="bold"))
            for table in tables:
                grid = rich.table.Table(box=None, padding=(0, 1, 0, 0))
                for index, column in enumerate(table.headings):
                    if index < table.names:
                        grid.add_column(column, overflow="fold", min_width=8)
                    else:
                        grid.add_column(column, justify="right", no_wrap=True)
                for row in table.rows:
                    grid.add_row(*(Text(cell) for cell in row))  # Text: brackets are no markup
                console.print(Text(f"\n{table.title}", style="italic"))
                console.print(grid)
            console.print()
        for note in NOTES:
            console.print(Text(note, style="dim"))
    return capture.get().rstrip("\n")
