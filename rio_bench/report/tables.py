"""Leaderboard (CSV) and comparison tables (terminal, Markdown, CSV) of an experiment's cells."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rio_bench.records import ResultFolder, write_atomically
from rio_bench.report.cells import METRICS, SHORT_SCHEDULE_PASSES, Cell, Comparison, compare, mean_of

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

SHORT_SCHEDULE_NOTE = f"fewer than {SHORT_SCHEDULE_PASSES} passes over the training images: too short to mean anything"
NO_VALUE = "–"  # noqa: RUF001 (no category of the bucket has ground truth)

_SPREADS = [f"{column}.std" for column in METRICS]
_COLUMNS = [
    "Backbone", "Method", *METRICS, "Dataset", "Iterations", "Passes", "Short", "Seeds", "N", *_SPREADS, "Seconds",
    "Device", "Identities",
]  # fmt: skip
_NUMBERS = [*METRICS, *_SPREADS, "Passes", "Seconds"]


# ------------------------------------------------------------------------------------------------------------- as data


def leaderboard(results: ResultFolder) -> pd.DataFrame:
    """A row for each cell with a record, also for those that the plan holds no more; AP in percent.

    Passes: over the training images, without the base run's; Short: fewer than SHORT_SCHEDULE_PASSES; N: number of
    seeds; AP.b.std ...: sample standard deviation over seeds, empty with one; Seconds: mean wall time of a run.
    """
    import pandas as pd

    comparison = compare(results)
    finished = [cell for cell in [*comparison.cells, *comparison.earlier] if cell.records]
    frame = pd.DataFrame([_row(cell) for cell in finished], columns=_COLUMNS)
    return frame.astype(dict.fromkeys(_NUMBERS, float)).astype({"Iterations": int, "N": int, "Short": bool})


def write_leaderboard(results: ResultFolder) -> None:
    """Write leaderboard.csv and leaderboard.md; called after every run that ends."""
    write_atomically(results.leaderboard_csv, leaderboard(results).to_csv(index=False))
    write_atomically(results.leaderboard_markdown, render(results, "md"))


def comparison_frame(comparison: Comparison) -> pd.DataFrame:
    """A row for each cell of the plan, missing and failed ones too: the leaderboard's columns, and more.

    AP.b.diff ...: the difference to the baseline; Planned, Failed: numbers of seeds; State: finished, missing, failed.
    """
    import pandas as pd

    differences = [f"{column}.diff" for column in METRICS]
    rows = []
    for cell in comparison.cells:
        baseline = comparison.baseline_of(cell)
        row = _row(cell) | {"Planned": cell.planned, "Failed": len(cell.failed), "State": cell.state}
        row |= {f"{column}.diff": _rounded(cell.difference(baseline, column), 4) for column in METRICS}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=[*_COLUMNS, *differences, "Planned", "Failed", "State"])
    return frame.astype(dict.fromkeys([*_NUMBERS, *differences], float))


def _row(cell: Cell) -> dict[str, Any]:
    return {
        "Backbone": cell.config["backbone"],
        "Method": cell.method,
        **{column: _rounded(cell.mean(column), 4) for column in METRICS},
        "Dataset": cell.config["dataset"],
        "Iterations": cell.config["iterations"],
        "Passes": _rounded(mean_of([record.passes for record in cell.records]), 2),
        "Short": cell.is_short if cell.records else None,
        "Seeds": " ".join(str(record.seed) for record in cell.records),
        "N": len(cell.records),
        **{f"{column}.std": _rounded(cell.spread(column), 4) for column in METRICS},
        "Seconds": _rounded(mean_of([record.seconds["total"] for record in cell.records]), 1),
        "Device": "; ".join(sorted({record.device for record in cell.records})),
        "Identities": " ".join(record.identity for record in cell.records),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


# ------------------------------------------------------------------------------------------------------------ to read


@dataclass(frozen=True)
class Entry:
    """A value of the comparison table as text: "27.3" or "missing", "±0.4", "+1.2"; "" where there is none."""

    value: str
    spread: str = ""
    difference: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    method: str
    entries: list[Entry]  # one a column of METRICS
    seeds: str


Format = Literal["terminal", "md", "csv"]


def render(results: ResultFolder, format: Format) -> str:
    """The comparison table of a result folder: blocks of a backbone, methods as rows.

    Best value of a column and block bold, unless the cells of the block differ in their number of seeds. "terminal" is
    as wide as standard output's terminal, and coloured where that is one.
    """
    comparison = compare(results)
    if format == "csv":
        for warning in comparison.warnings:
            logger.warning("%s", warning)
        return comparison_frame(comparison).to_csv(index=False)
    several_datasets = len({cell.config["dataset"] for cell in comparison.cells}) > 1
    by_block: dict[tuple[str, str], list[Cell]] = {}
    for cell in comparison.cells:
        by_block.setdefault(cell.block, []).append(cell)
    blocks = [
        (f"{backbone}, {dataset}" if several_datasets else backbone, _lines(comparison, cells))
        for (dataset, backbone), cells in by_block.items()
    ]
    as_text = _terminal if format == "terminal" else _markdown
    return as_text(_title(comparison), blocks, _notes(comparison))


def _lines(comparison: Comparison, cells: list[Cell]) -> list[Line]:
    finished = [cell for cell in cells if cell.records]
    comparable = len(finished) > 1 and len({len(cell.records) for cell in finished}) == 1
    best = {}
    for column in METRICS:
        shown = [_shown(cell.mean(column)) for cell in finished if cell.mean(column) is not None]
        best[column] = max(shown, key=float) if comparable and shown else None

    lines = []
    for cell in cells:
        baseline = comparison.baseline_of(cell)
        entries = []
        for column in METRICS:
            if not cell.records:
                entries.append(Entry(cell.state))
                continue
            value, spread = _shown(cell.mean(column)), cell.spread(column)
            difference = cell.difference(baseline, column)
            entries.append(
                Entry(
                    value,
                    "" if spread is None else f"±{spread:.1f}",
                    "" if difference is None else f"{round(difference, 1) + 0.0:+.1f}",  # + 0.0: never -0.0
                    best=value == best[column],
                )
            )
        seeds = str(cell.planned) if len(cell.records) == cell.planned else f"{len(cell.records)}/{cell.planned}"
        lines.append(Line(cell.method + (" *" if cell.is_short else ""), entries, seeds))
    return lines


def _shown(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.1f}"


def _title(comparison: Comparison) -> str:
    datasets = list(dict.fromkeys(cell.config["dataset"] for cell in comparison.cells))
    iterations = list(dict.fromkeys(str(cell.config["iterations"]) for cell in comparison.cells))
    bases = [cell.config["warm_start"]["iterations"] for cell in comparison.cells if "warm_start" in cell.config]
    after = f" after a base run of {', '.join(str(number) for number in dict.fromkeys(bases))}" if bases else ""
    return f"{comparison.experiment}: {', '.join(datasets)}, {', '.join(iterations)} iterations{after}"


def _notes(comparison: Comparison) -> list[str]:
    notes = []
    if any(cell.difference(comparison.baseline_of(cell), "AP.b") is not None for cell in comparison.cells):
        notes.append(
            f"Signed: the difference to {comparison.baseline} with the same backbone and settings,"
            " over the seeds that both have."
        )
    numbers: dict[tuple[str, str], set[int]] = {}  # block -> numbers of seeds
    for cell in comparison.cells:
        if cell.records:
            numbers.setdefault(cell.block, set()).add(len(cell.records))
    if any(max(of_block) > 1 for of_block in numbers.values()):
        notes.append("±: sample standard deviation over seeds.")
    elif numbers:
        notes.append("One seed a row: how much of a difference is chance is not known.")
    if any(len(of_block) > 1 for of_block in numbers.values()):
        notes.append("No best value is marked where rows differ in their number of seeds (N).")
    failed = [name for cell in comparison.cells for name in cell.failed]
    if failed:
        notes.append(f"Failed, see log.txt in the run's folder: {', '.join(failed)}")
    if any(cell.is_short for cell in comparison.cells):
        notes.append(f"* {SHORT_SCHEDULE_NOTE}")
    return notes + comparison.warnings


def _markdown(title: str, blocks: list[tuple[str, list[Line]]], notes: list[str]) -> str:
    header = ["Backbone", "Method", *METRICS, "N"]
    rows = [header, ["---", "---", *["---:" for _ in METRICS], "---:"]]
    for heading, lines in blocks:
        for line in lines:
            rows.append([_escaped(heading), _escaped(line.method), *map(_markdown_entry, line.entries), line.seeds])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"**{_escaped(title)}** (AP in percent)\n\n{table}\n" + "".join(f"\n{_escaped(note)}\n" for note in notes)


def _markdown_entry(entry: Entry) -> str:
    value = f"**{entry.value}**" if entry.best else entry.value
    difference = f"({entry.difference})" if entry.difference else ""
    return " ".join(part for part in (value, entry.spread, difference) if part)


def _escaped(text: str) -> str:
    """Markdown's own characters escaped; an underscore within a word is none."""
    return re.sub(r"([\\`*\[\]<>|~]|\b_|_\b)", r"\\\1", " ".join(text.split()))


def _terminal(title: str, blocks: list[tuple[str, list[Line]]], notes: list[str]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    spread_after = " " if console.width >= 110 else "\n"  # then the table fits in 80 columns
    # Text, never str: rich reads markup in a str
    heading_line = Text(f"{title} (AP in percent)")
    table = Table(title=heading_line, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("Method", min_width=11, overflow="fold")
    for column in METRICS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("N", justify="right", no_wrap=True)
    for heading, lines in blocks:
        table.add_row()
        table.add_row(Text(heading, style="bold"))
        for line in lines:
            entries = [
                Text.assemble(
                    (entry.value, "bold green" if entry.best else ""),
                    spread_after + entry.spread if entry.spread else "",
                    ("\n" + entry.difference if entry.difference else "", "dim"),
                )
                for entry in line.entries
            ]
            table.add_row(Text(line.method), *entries, Text(line.seeds))
    table.add_row()
    with console.capture() as capture:
        console.print(table)
        for note in notes:
            console.print(Text(note))
    return capture.get()
