"""Leaderboard and comparison tables, from a result folder's records and its plan alone.

A cell is a configuration without its seed; its numbers are means over the seeds that have a record. The difference of a
cell is taken to the baseline's cell of the same backbone, classifier and all other settings but the strategy, and is the
mean over the seeds that both have (so that a missing seed of one never counts for the other).
"""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from rio_bench.errors import UserError
from rio_bench.records import Record, ResultFolder, RunFolder, write_atomically

if TYPE_CHECKING:
    import pandas as pd

# column -> where a record holds its value
METRICS = {
    "AP.b": ("box", "AP"),
    "AP.b.r": ("box", "APr"),
    "AP.b.c": ("box", "APc"),
    "AP.b.f": ("box", "APf"),
    "AP.m": ("mask", "AP"),
    "AP.m.r": ("mask", "APr"),
    "AP.m.c": ("mask", "APc"),
    "AP.m.f": ("mask", "APf"),
}
SHORT_SCHEDULE_PASSES = 5
SHORT_SCHEDULE_NOTE = f"fewer than {SHORT_SCHEDULE_PASSES} passes over the training images: too short to mean anything"
NO_VALUE = "–"  # noqa: RUF001 (no category of the bucket has ground truth)


@dataclass
class Cell:
    """One configuration over its seeds. `config` is canonical, without seeds; `records` hold one record a seed."""

    method: str
    config: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    planned: int = 0
    failed: int = 0

    @property
    def state(self) -> str:
        if self.records:
            return "finished"
        return "failed" if self.failed else "missing"

    @property
    def block(self) -> tuple[str, str]:
        """Cells of one block are compared with each other."""
        return self.config["dataset"], self.config["backbone"]

    @property
    def is_short(self) -> bool:
        return any(record.passes < SHORT_SCHEDULE_PASSES for record in self.records)

    def values(self, column: str) -> dict[int, float]:
        """Seed -> percent, without the seeds that have no value."""
        kind, key = METRICS[column]
        values = {record.seed: getattr(record.metrics[kind], key) for record in self.records}
        return {seed: value for seed, value in values.items() if value is not None}

    def mean(self, column: str) -> float | None:
        return _mean(self.values(column).values())

    def spread(self, column: str) -> float | None:
        """The sample standard deviation over seeds; None with fewer than two."""
        values = list(self.values(column).values())
        return statistics.stdev(values) if len(values) > 1 else None

    def difference(self, baseline: Cell | None, column: str) -> float | None:
        """The mean, over the seeds that both have, of this cell's value less the baseline's."""
        if baseline is None or baseline is self:
            return None
        own, theirs = self.values(column), baseline.values(column)
        return _mean([own[seed] - theirs[seed] for seed in own.keys() & theirs.keys()])


@dataclass(frozen=True)
class Comparison:
    """What a result folder holds. `cells`: the plan's, in its order; `earlier`: of records that the plan holds no more."""

    experiment: str
    baseline: str
    cells: list[Cell]
    earlier: list[Cell]
    warnings: list[str]

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The baseline's cell of the same settings: the one with default hyperparameters, or else the only one."""
        same = [
            other
            for other in self.cells
            if other.config["strategy"]["name"] == self.baseline
            and _without(other.config, "strategy") == _without(cell.config, "strategy")
        ]
        default = [other for other in same if other.config["strategy"] == {"name": self.baseline}]
        candidates = default or same
        return candidates[0] if len(candidates) == 1 else None


def compare(results: ResultFolder) -> Comparison:
    """Read a result folder. Raises UserError where it holds no plan."""
    plan = results.read_plan()
    if plan is None:
        raise UserError(f"{results.plan_file}: does not exist: {results.root} is not the result folder of an experiment")
    records, warnings = results.records()
    by_identity = {record.identity: record for record in records}
    cells: dict[str, Cell] = {}
    for run in plan.runs:
        if run.is_base:
            continue
        cell = _cell_of(cells, run.method, run.config)
        cell.planned += 1
        if run.identity in by_identity:
            cell.records.append(by_identity[run.identity])
        elif _has_failed(results.run(run.name)):
            cell.failed += 1

    earlier: dict[str, Cell] = {}
    planned = {run.identity for run in plan.runs}
    for record in records:
        if record.identity not in planned:
            own_plan = results.run(record.name).read_run()
            if own_plan is None or not own_plan.is_base:
                cell = _cell_of(earlier, record.method, record.config)
                cell.planned += 1
                cell.records.append(record)
    for cell in [*cells.values(), *earlier.values()]:
        cell.records.sort(key=lambda record: record.seed)
    return Comparison(plan.experiment, plan.baseline, list(cells.values()), list(earlier.values()), warnings)


def _cell_of(cells: dict[str, Cell], method: str, config: dict[str, Any]) -> Cell:
    config = _without(config, "seed")
    return cells.setdefault(json.dumps(config, sort_keys=True), Cell(method, config))


def _without(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A configuration without a field of its own and of its base run's."""
    rest = {name: value for name, value in config.items() if name != key}
    if rest.get("warm_start"):
        rest["warm_start"] = _without(rest["warm_start"], key)
    return rest


def _has_failed(run: RunFolder) -> bool:
    """Whether the last attempt ended by itself and left no record; one that was stopped is only missing."""
    attempts = run.read_attempts()
    return bool(attempts) and attempts[-1].signal not in ("SIGINT", "SIGTERM")


# ------------------------------------------------------------------------------------------------------------- as data


def leaderboard(results: ResultFolder) -> pd.DataFrame:
    """A row for each cell with a record, also for those that the plan holds no more; AP in percent, times in seconds.

    Passes: over the training images, base run included; Short: fewer than SHORT_SCHEDULE_PASSES; N: the number of seeds;
    AP.b.std ...: sample standard deviation over seeds, empty with one; Seconds: mean wall time of a run.
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
    """A row for each cell of the plan, missing and failed ones too: the leaderboard's columns, and

    AP.b.diff ...: the difference to the baseline; Planned, Failed: numbers of seeds; State: finished, missing or failed.
    """
    import pandas as pd

    differences = [f"{column}.diff" for column in METRICS]
    rows = []
    for cell in comparison.cells:
        baseline = comparison.baseline_of(cell)
        row = _row(cell) | {"Planned": cell.planned, "Failed": cell.failed, "State": cell.state}
        row |= {f"{column}.diff": _rounded(cell.difference(baseline, column), 4) for column in METRICS}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=[*_COLUMNS, *differences, "Planned", "Failed", "State"])
    return frame.astype(dict.fromkeys([*_NUMBERS, *differences], float))


_SPREADS = [f"{column}.std" for column in METRICS]
_COLUMNS = [
    "Backbone", "Method", *METRICS, "Dataset", "Iterations", "Passes", "Short", "Seeds", "N", *_SPREADS, "Seconds",
    "Identities",
]  # fmt: skip
_NUMBERS = [*METRICS, *_SPREADS, "Passes", "Seconds"]


def _row(cell: Cell) -> dict[str, Any]:
    return {
        "Backbone": cell.config["backbone"],
        "Method": cell.method,
        **{column: _rounded(cell.mean(column), 4) for column in METRICS},
        "Dataset": cell.config["dataset"],
        "Iterations": cell.config["iterations"],
        "Passes": _rounded(_mean([record.passes for record in cell.records]), 2),
        "Short": cell.is_short if cell.records else None,
        "Seeds": " ".join(str(record.seed) for record in cell.records),
        "N": len(cell.records),
        **{f"{column}.std": _rounded(cell.spread(column), 4) for column in METRICS},
        "Seconds": _rounded(_mean([record.seconds["total"] for record in cell.records]), 1),
        "Identities": " ".join(record.identity for record in cell.records),
    }


def _mean(values: Any) -> float | None:
    values = list(values)
    return math.fsum(values) / len(values) if values else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


# ------------------------------------------------------------------------------------------------------------ to read


@dataclass(frozen=True)
class Entry:
    """A value of the comparison table as text: "27.3 ±0.4", "missing" ...; the difference is "" where there is none."""

    value: str
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
        return comparison_frame(comparison).to_csv(index=False)
    several_datasets = len({cell.config["dataset"] for cell in comparison.cells}) > 1
    blocks = []
    by_block = sorted(comparison.cells, key=_order_of_first([cell.block for cell in comparison.cells]))
    for (dataset, backbone), cells in groupby(by_block, key=lambda cell: cell.block):
        heading = f"{backbone}, {dataset}" if several_datasets else backbone
        blocks.append((heading, _lines(comparison, list(cells))))
    as_text = _terminal if format == "terminal" else _markdown
    return as_text(_title(comparison), blocks, _notes(comparison))


def _order_of_first(blocks: list[tuple[str, str]]) -> Any:
    first = {block: position for position, block in reversed(list(enumerate(blocks)))}
    return lambda cell: first[cell.block]


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
                    value if spread is None else f"{value} ±{spread:.1f}",
                    "" if difference is None else f"{round(difference, 1) + 0.0:+.1f}",  # + 0.0: never -0.0
                    best=value == best[column],
                )
            )
        seeds = str(cell.planned) if len(cell.records) == cell.planned else f"{len(cell.records)} of {cell.planned}"
        if cell.failed and cell.records:
            seeds += f", {cell.failed} failed"
        lines.append(Line(cell.method + (" *" if cell.is_short else ""), entries, seeds))
    return lines


def _shown(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.1f}"


def _title(comparison: Comparison) -> str:
    datasets = list(dict.fromkeys(cell.config["dataset"] for cell in comparison.cells))
    iterations = list(dict.fromkeys(str(cell.config["iterations"]) for cell in comparison.cells))
    return f"{comparison.experiment}: {', '.join(datasets)}, {', '.join(iterations)} iterations"


def _notes(comparison: Comparison) -> list[str]:
    notes = []
    if any(comparison.baseline_of(cell) not in (None, cell) for cell in comparison.cells):
        notes.append(
            f"Signed: the difference to {comparison.baseline} with the same backbone and settings,"
            " over the seeds that both have."
        )
    numbers = {len(cell.records) for cell in comparison.cells if cell.records}
    if max(numbers, default=0) > 1:
        notes.append("±: sample standard deviation over seeds.")
    elif numbers:
        notes.append("One seed a row: how much of a difference is chance is not known.")
    if len(numbers) > 1:
        notes.append("No best value is marked where rows differ in their number of seeds (N).")
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
    return f"{value} ({entry.difference})" if entry.difference else value


def _escaped(text: str) -> str:
    """Markdown's own characters escaped; an underscore within a word is none."""
    return re.sub(r"([\\`*\[\]<>|~]|\b_|_\b)", r"\\\1", " ".join(text.split()))


def _terminal(title: str, blocks: list[tuple[str, list[Line]]], notes: list[str]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, never str: rich reads markup in a str
    table = Table(title=Text(f"{title} (AP in percent)"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Method")
    for column in METRICS:
        table.add_column(column, justify="right", min_width=7)
    table.add_column("N", justify="right")
    for heading, lines in blocks:
        table.add_section()
        table.add_row(Text(heading, style="bold"))
        for line in lines:
            entries = [
                Text.assemble(
                    (entry.value, "bold green" if entry.best else ""),
                    ("\n" + entry.difference if entry.difference else "", "dim"),
                )
                for entry in line.entries
            ]
            table.add_row(Text(line.method), *entries, Text(line.seeds))
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(table)
        for note in notes:
            console.print(Text(note))
    return capture.get()
