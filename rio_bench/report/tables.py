"""The comparison tables of an experiment: the publication's own, and any axis against any other (pivot.py)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rio_bench.errors import UserError, did_you_mean
from rio_bench.records import METRICS, ResultFolder, write_atomically
from rio_bench.report.cells import SHORT_SCHEDULE_PASSES, WITHOUT_RESULT, Cell, Comparison, compare, mean_of
from rio_bench.report.formats import STANDS, Entry, Format, Line, TextTable, as_text
from rio_bench.report.intervals import MIN_CATEGORIES, Interval, Key, intervals

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

# The publication's columns; METRICS may hold more.
COLUMNS = ("AP.b", "AP.b.r", "AP.b.c", "AP.b.f", "AP.m", "AP.m.r", "AP.m.c", "AP.m.f")
SHORT_SCHEDULE_NOTE = f"fewer than {SHORT_SCHEDULE_PASSES} passes over the training images: too short to mean anything"
BUCKET_NAMES = {"AP": "all", "APr": "rare", "APc": "common", "APf": "frequent"}
NO_VALUE = "–"  # no category of the bucket has ground truth

SPREADS = tuple(f"{column}.std" for column in COLUMNS)
FIELDS = (
    "Backbone", "Method", *COLUMNS, "Dataset", "Iterations", "Passes", "Short", "Seeds", "N", *SPREADS, "Seconds",
    "Device", "Identities",
)  # fmt: skip
NUMBERS = (*COLUMNS, *SPREADS, "Passes", "Seconds")


def render(
    results: ResultFolder,
    format: Format,
    rows: str | None = None,
    columns: str | None = None,
    metric: str | None = None,
    baseline: str | None = None,
) -> str:
    """A comparison table of a result folder.

    The publication's own (a line for each backbone and method, a column for each metric), or with `rows`, `columns` or
    `metric` one axis against another (axes.py; default: method, backbone, AP.b). `baseline`: a strategy's name or a
    method's; None: the experiment's. Best value of a data set and backbone bold, unless its cells differ in their
    number of seeds. Raises UserError for a name that is not there.
    """
    if rows or columns or metric:
        from rio_bench.report import pivot

        rows = rows or ("method" if columns != "method" else "backbone")
        columns = columns or ("backbone" if rows != "backbone" else "method")
        return pivot.render(results, format, rows, columns, metric or "AP.b", baseline)
    comparison = compare(results, baseline)
    found = intervals_of(comparison, comparison.cells, COLUMNS)
    if format == "csv":
        return csv(comparison, comparison_frame(comparison, found))
    return as_text(publication(comparison, found), format)


def write_leaderboard(results: ResultFolder) -> None:
    """Write leaderboard.csv and leaderboard.md; called after every run that ends."""
    from rio_bench.report.leaderboard import leaderboard

    comparison = compare(results)
    found = intervals_of(comparison, comparison.cells, COLUMNS)
    write_atomically(results.leaderboard_csv, leaderboard(comparison).to_csv(index=False))
    write_atomically(results.leaderboard_markdown, as_text(publication(comparison, found), "md"))


def intervals_of(comparison: Comparison, cells: Iterable[Cell], columns: Sequence[str]) -> dict[Key, Interval]:
    """The intervals of the cells' differences to their baselines: a table's, one family for Holm's correction."""
    pairs = [(cell, baseline) for cell in cells if (baseline := comparison.baseline_of(cell)) and baseline is not cell]
    return intervals(pairs, columns)


# ------------------------------------------------------------------------------------------------------------- as data


def comparison_frame(comparison: Comparison, found: Mapping[Key, Interval]) -> pd.DataFrame:
    """A row for each cell of the plan, missing and failed ones too: the leaderboard's columns, and more.

    For each metric: AP.b.diff, the difference to the baseline; AP.b.low, .high, its 95 % interval; .p, before Holm's
    correction; .stands, after it; .categories, .seeds, what it is taken over. Planned, Failed: numbers of seeds;
    State: finished, failed, pruned, stopped or missing.
    """
    import pandas as pd

    rows = []
    for cell in comparison.cells:
        row = fields(cell) | {"Planned": cell.planned, "Failed": len(cell.failed), "State": cell.state}
        baseline = comparison.baseline_of(cell)
        for column in COLUMNS:
            of_column = certainty_fields(cell.difference(baseline, column), found.get((cell, column)))
            row |= {f"{column}.{name}": value for name, value in of_column.items()}
        rows.append(row)
    names = [f"{column}.{name}" for column in COLUMNS for name in certainty_fields(None, None)]
    frame = pd.DataFrame(rows, columns=[*FIELDS, *names, "Planned", "Failed", "State"])
    return with_types(frame.astype(dict.fromkeys(NUMBERS, float)))


def certainty_fields(difference: float | None, interval: Interval | None) -> dict[str, Any]:
    """A difference as data; None for what is not known."""
    return {
        "diff": rounded(difference, 4),
        "low": interval and rounded(interval.low, 4),
        "high": interval and rounded(interval.high, 4),
        "p": interval and float(f"{interval.p:.4g}"),
        "stands": interval and interval.stands,
        "categories": interval and interval.categories,
        "seeds": interval and interval.seeds,
    }


def with_types(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers and truth values with gaps, not objects."""
    types = dict.fromkeys(("diff", "low", "high", "p"), "float64")
    types |= {"stands": "boolean", "categories": "Int64", "seeds": "Int64"}
    by_end = {name: types[end] for name in frame.columns if (end := name.rpartition(".")[2]) in types}
    return frame.astype(by_end)


def csv(comparison: Comparison, frame: pd.DataFrame) -> str:
    for warning in comparison.baseline_notes + comparison.warnings:
        logger.warning("%s", warning)
    return frame.to_csv(index=False)


def fields(cell: Cell) -> dict[str, Any]:
    """A cell as data, AP in percent.

    Passes: over the training images, without the base run's; Short: fewer than SHORT_SCHEDULE_PASSES; N: number of
    seeds; AP.b.std ...: sample standard deviation over seeds, None with one; Seconds: mean wall time of a run.
    """
    return {
        "Backbone": cell.config["backbone"],
        "Method": cell.method,
        **{column: rounded(cell.mean(column), 4) for column in COLUMNS},
        "Dataset": cell.dataset,
        "Iterations": cell.config["iterations"],
        "Passes": rounded(mean_of([record.passes for record in cell.records]), 2),
        "Short": cell.is_short if cell.records else None,
        "Seeds": " ".join(str(record.seed) for record in cell.records),
        "N": len(cell.records),
        **{f"{column}.std": rounded(cell.spread(column), 4) for column in COLUMNS},
        "Seconds": rounded(mean_of([record.seconds["total"] for record in cell.records]), 1),
        "Device": "; ".join(sorted({record.device for record in cell.records})),
        "Identities": " ".join(record.identity for record in cell.records),
    }


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


# ------------------------------------------------------------------------------------------------------------ to read


def publication(comparison: Comparison, found: Mapping[Key, Interval]) -> TextTable:
    """The publication's table: blocks of a backbone, methods as lines; `found`: the intervals of its differences."""
    several_datasets = len({cell.dataset for cell in comparison.cells}) > 1
    blocks: dict[str, list[Cell]] = {}
    for cell in comparison.cells:
        blocks.setdefault(cell.block, []).append(cell)
    lines = []
    for cells in blocks.values():
        best = {column: best_of(cells, column) for column in COLUMNS}
        for cell in cells:
            backbone = cell.config["backbone"]
            names = [f"{backbone}, {cell.dataset}" if several_datasets else backbone, told_method(cell)]
            entries = [
                entry_of(cell, column, comparison.baseline_of(cell), found.get((cell, column)), best[column])
                for column in COLUMNS
            ]
            lines.append(Line(names, entries, [told_seeds(cell)]))
    return TextTable(
        title=f"{comparison.experiment}: {subject(comparison.cells)}",
        names=["Backbone", "Method"],
        columns=list(COLUMNS),
        more=["N"],
        lines=lines,
        notes=notes(comparison, comparison.cells, COLUMNS, found),
    )


def best_of(cells: Iterable[Cell], column: str) -> str | None:
    """The best value as shown; None with fewer than two values, or where cells differ in their number of seeds."""
    finished = [cell for cell in cells if cell.records]
    shown = [shown_value(mean) for cell in finished if (mean := cell.mean(column)) is not None]
    is_fair = len(finished) > 1 and len({len(cell.records) for cell in finished}) == 1
    return max(shown, key=float) if is_fair and shown else None


def entry_of(cell: Cell, column: str, baseline: Cell | None, interval: Interval | None, best: str | None) -> Entry:
    if not cell.records:
        return Entry(cell.state)
    value, spread, difference = shown_value(cell.mean(column)), cell.spread(column), cell.difference(baseline, column)
    return Entry(
        value,
        spread="" if spread is None else f"±{spread:.1f}",
        difference="" if difference is None else f"{_tenths(difference):+.1f}",
        interval="" if interval is None else f"[{_tenths(interval.low)}, {_tenths(interval.high)}]",
        stands=interval is not None and interval.stands,
        best=value == best,
    )


def shown_value(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.1f}"


def _tenths(value: float) -> float:
    return round(value, 1) + 0.0  # never -0.0


def told_method(cell: Cell) -> str:
    return cell.method + (" *" if cell.is_short else "")


def told_seeds(cell: Cell) -> str:
    """ "3", or "2/3" where one of three has no record."""
    return str(cell.planned) if len(cell.records) == cell.planned else f"{len(cell.records)}/{cell.planned}"


def subject(cells: Sequence[Cell]) -> str:
    """Which data sets, and how many iterations."""
    datasets = dict.fromkeys(cell.dataset for cell in cells)
    iterations = dict.fromkeys(str(cell.config["iterations"]) for cell in cells)
    bases = dict.fromkeys(str(cell.config["warm_start"]["iterations"]) for cell in cells if "warm_start" in cell.config)
    after = f" after a base run of {', '.join(bases)}" if bases else ""
    return f"{', '.join(datasets)}, {', '.join(iterations)} iterations{after}"


def notes(
    comparison: Comparison, cells: Sequence[Cell], columns: Sequence[str], found: Mapping[Key, Interval]
) -> list[str]:
    """What a reader of a table of these cells must know, a line each."""
    told = _about_differences(comparison, cells, columns, found)
    numbers: dict[str, set[int]] = {}  # block -> numbers of seeds
    for cell in cells:
        if cell.records:
            numbers.setdefault(cell.block, set()).add(len(cell.records))
    if any(max(of_block) > 1 for of_block in numbers.values()):
        told.append("±: sample standard deviation over seeds.")
    elif numbers and found:
        told.append("One seed a cell: chance that moves all categories alike is in no interval.")
    elif numbers:
        told.append("One seed a cell: how much of a difference is chance is not known.")
    if any(len(of_block) > 1 for of_block in numbers.values()):
        told.append("No best value is marked where cells to compare differ in their number of seeds.")
    for state in WITHOUT_RESULT[:-1]:
        names = [name for cell in cells for name, of_run in cell.without_record.items() if of_run == state]
        if names:
            where = ", see log.txt in the run's folder" if state == "failed" else ""
            others = f" and {len(names) - 10} more" if len(names) > 10 else ""
            told.append(f"{state.capitalize()}{where}: {', '.join(names[:10])}{others}")
    if any(cell.is_short for cell in cells):
        told.append(f"* {SHORT_SCHEDULE_NOTE}")
    return told + comparison.baseline_notes + comparison.warnings


def _about_differences(
    comparison: Comparison, cells: Sequence[Cell], columns: Sequence[str], found: Mapping[Key, Interval]
) -> list[str]:
    differing = [
        (cell, column)
        for cell in cells
        for column in columns
        if cell.difference(comparison.baseline_of(cell), column) is not None
    ]
    if not differing:
        return []
    told = [
        f"Signed: the difference to {comparison.baseline} with the same backbone and settings,"
        " over the seeds that both have."
    ]
    if found:
        numbers: dict[str, list[int]] = {}
        for (_, column), interval in found.items():
            numbers.setdefault(BUCKET_NAMES[METRICS[column][1]], []).append(interval.categories)
        over = ", ".join(f"{bucket} {_range(of_bucket)}" for bucket, of_bucket in numbers.items())
        seeds = [interval.seeds for interval in found.values()]
        t_test = ", widened to a t test's over the seeds' means" if max(seeds) > 1 else ""
        told.append(
            f"In brackets: its 95 % interval, by bootstrap over the bucket's categories ({over}) and the seeds"
            f" ({_range(seeds)}){t_test}. {STANDS}: it stands after Holm's correction"
            f" over the table's {len(found)} intervals."
        )
    if len(found) < len(differing):
        told.append(
            f"No interval where a bucket has fewer than {MIN_CATEGORIES} categories, or a record does not hold their AP"
            " and buckets."
        )
    return told


def _range(numbers: Iterable[int]) -> str:
    distinct = sorted(set(numbers))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"


def check_metric(name: str) -> None:
    if name not in METRICS:
        raise UserError(f"--metric: no metric is named '{name}'{did_you_mean(name, METRICS)}")
