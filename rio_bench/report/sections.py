"""What a report tells, section by section, from a result folder; a section without anything to tell says why."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from rio_bench.files import RecordError
from rio_bench.records import METRICS, Record, ResultFolder, StoredRun
from rio_bench.report import figures
from rio_bench.report.categories import CategoryValues
from rio_bench.report.cells import Cell as Result
from rio_bench.report.cells import Comparison, compare, mean_of
from rio_bench.report.curves import Curve, read_curves, thinned
from rio_bench.report.formats import STANDS, Entry
from rio_bench.report.html import Cell, Chart, Section, Table
from rio_bench.report.intervals import Interval, Key
from rio_bench.report.tables import BUCKET_NAMES, COLUMNS, intervals_of, publication

SHOWN = 12  # configurations in figures: more cannot be told apart
KINDS = {"box": "box AP", "mask": "mask AP"}
CURVES = {
    "total_loss": "training loss",
    "ap": "AP.b in intermediate evaluations [%]",
    "rare_ap": "AP.b.r in intermediate evaluations [%]",
}
BANK_CURVES = {"bank_fill": "share of the bank's slots in use [%]", "bank_replayed": "rows replayed in a step"}


class Material:
    """What several sections need of a result folder, read once."""

    def __init__(self, results: ResultFolder) -> None:
        self.results = results
        self.comparison: Comparison = compare(results)
        self.intervals: Mapping[Key, Interval] = intervals_of(self.comparison, self.comparison.cells, COLUMNS)
        self.shown = shown_cells(self.comparison)
        self.labels = dict(zip(self.shown, labels(self.comparison.cells, self.shown), strict=True))

    @property
    def shown_note(self) -> list[str]:
        """Which configurations the figures leave out."""
        total = len(self.comparison.cells)
        if total == len(self.shown):
            return []
        return [f"Figures show {len(self.shown)} of {total} configurations: the baselines, and the best by AP.b."]


def shown_cells(comparison: Comparison) -> list[Result]:
    """At most SHOWN, in the plan's order: baselines, then the best by box AP, then those without a result."""
    baselines = set(map(id, comparison.baselines.values()))

    def rank(cell: Result) -> tuple[bool, bool, float]:
        ap = cell.mean("AP.b")
        return id(cell) not in baselines, ap is None, -(ap or 0.0)

    chosen = set(map(id, sorted(comparison.cells, key=rank)[:SHOWN]))
    return [cell for cell in comparison.cells if id(cell) in chosen]


def labels(cells: Sequence[Result], shown: Sequence[Result]) -> list[str]:
    """The method, after the data set and the backbone where the experiment has several."""
    several_datasets = len({cell.dataset for cell in cells}) > 1
    several_backbones = len({cell.config["backbone"] for cell in cells}) > 1
    return [
        ", ".join([cell.dataset] * several_datasets + [cell.config["backbone"]] * several_backbones + [cell.method])
        for cell in shown
    ]


def sections(material: Material) -> list[Section]:
    from rio_bench.report.examples import examples_section
    from rio_bench.report.resampling import category_section, resampling_section
    from rio_bench.report.search_section import search_sections

    return [
        comparison_section(material),
        buckets_section(material),
        category_section(material),
        resampling_section(material),
        curves_section(material, Section("training", "Training curves"), CURVES, "No run has written a curve yet."),
        curves_section(
            material, Section("bank", "Feature bank"), BANK_CURVES, "No run has a strategy with a feature bank."
        ),
        cost_section(material),
        examples_section(material),
        *search_sections(material.results),
        provenance_section(material),
    ]


def lead(material: Material) -> list[str]:
    """How many runs there are, and in which state."""
    states: Counter[str] = Counter()
    for cell in material.comparison.cells:
        states.update(["finished"] * len(cell.records))
        states.update(cell.without_record.values())
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    return [f"{states.total()} runs: {counts}. AP: average precision in percent as LVIS defines it; .b boxes, .m masks;"
            " .r, .c, .f rare, common and frequent categories."]  # fmt: skip


def title(material: Material) -> str:
    return publication(material.comparison, material.intervals).title


# ------------------------------------------------------------------------------------------------------ the comparison


def comparison_section(material: Material) -> Section:
    table = publication(material.comparison, material.intervals)
    rows = [
        [
            *(Cell(name, sort=name) for name in line.names),
            *map(_entry, line.entries),
            *(Cell(text, sort=float(text.partition("/")[0])) for text in line.more),
        ]
        for line in table.lines
    ]
    headings = [*table.names, *table.columns, *table.more]
    section = Section("comparison", "Comparison", notes=list(table.notes))
    section.tables.append(Table("comparison-table", "AP in percent; a heading sorts", headings, len(table.names), rows))
    return section


def _entry(entry: Entry) -> Cell:
    try:
        sort = float(entry.value)
    except ValueError:  # missing, failed ...
        sort = None
    below = tuple(filter(None, [entry.told_difference, entry.interval]))
    return Cell(entry.value, sort, beside=entry.beside, below=below, best=entry.best)


def buckets_section(material: Material) -> Section:
    section = Section("buckets", "AP by bucket", notes=material.shown_note)
    for kind, name in KINDS.items():
        columns = {BUCKET_NAMES[key]: column for column, (of_kind, key) in METRICS.items() if of_kind == kind}
        values = [
            figures.Row(material.labels[cell], marks)
            for cell in material.shown
            if (marks := {bucket: mark for bucket, column in columns.items() if (mark := _value(cell, column))})
        ]
        if values:
            section.charts.append(
                Chart(f"{name}; bars: ± one standard deviation over seeds", figures.forest(values, f"{name} [%]"))
            )
        differing = [
            figures.Row(material.labels[cell], marks)
            for cell in material.shown
            if (
                marks := {
                    bucket: mark for bucket, column in columns.items() if (mark := _difference(material, cell, column))
                }
            )
        ]
        if differing:
            to = material.comparison.baseline
            caption = f"{name}: difference to {to}; bars: 95 % intervals; filled: it stands ({STANDS})"
            section.charts.append(
                Chart(caption, figures.forest(differing, "difference [points of AP]", is_difference=True))
            )
    if not section.charts:
        section.lead.append("No run has finished yet.")
    return section


def _value(cell: Result, column: str) -> figures.Mark | None:
    value, spread = cell.mean(column), cell.spread(column)
    if value is None:
        return None
    if spread is None:
        return figures.Mark(value, told=f"{value:.1f}")
    return figures.Mark(
        value, value - spread, value + spread, told=f"{value:.1f} ±{spread:.1f}, {len(cell.records)} seeds"
    )


def _difference(material: Material, cell: Result, column: str) -> figures.Mark | None:
    difference = cell.difference(material.comparison.baseline_of(cell), column)
    if difference is None:
        return None
    found = material.intervals.get((cell, column))
    if found is None:
        return figures.Mark(difference, is_filled=False, told=f"{difference:+.1f}, no interval")
    told = f"{difference:+.1f} [{found.low:.1f}, {found.high:.1f}], {found.categories} categories, {found.seeds} seeds"
    return figures.Mark(difference, found.low, found.high, found.stands, told + (f" {STANDS}" if found.stands else ""))


def differences_by_category(cell: Result, baseline: Result, kind: str = "box") -> dict[str, float]:
    """Category -> AP less the baseline's, in points, the mean over the seeds that both have."""
    own = {record.seed: record for record in cell.records}
    theirs = {record.seed: record for record in baseline.records}
    differences = []
    names: list[str] = []
    for seed in own.keys() & theirs.keys():
        ours = cast(CategoryValues, own[seed].metrics[kind].per_category)
        of_baseline = cast(CategoryValues, theirs[seed].metrics[kind].per_category)
        if ours.positions is not of_baseline.positions or (names and list(ours) != names):
            return {}  # not the same categories
        names = list(ours)
        differences.append(ours.array - of_baseline.array)
    if not differences:
        return {}
    mean = np.mean(differences, axis=0)
    return {name: float(value) for name, value in zip(names, mean, strict=True) if not np.isnan(value)}


# -------------------------------------------------------------------------------------------------------------- curves


def curves_section(material: Material, section: Section, names: Mapping[str, str], nothing: str) -> Section:
    read = {cell: _curves(material, cell) for cell in material.shown}
    for name, title in names.items():
        percent = 100 if name == "bank_fill" else 1
        lines = []
        for cell, of_runs in read.items():
            runs = {
                run: {done: value * percent for done, value in thinned(curves[name]).items()}
                for run, curves in of_runs.items()
                if name in curves
            }
            lines.append(figures.Lines(material.labels[cell], runs))
        if any(line.runs for line in lines):
            section.charts.append(Chart(title, figures.curves(lines, title)))
    if section.charts:
        section.notes += ["A line a run, the seeds of a method in one colour.", *material.shown_note]
    else:
        section.lead.append(nothing)
    return section


def _curves(material: Material, cell: Result) -> dict[str, dict[str, Curve]]:
    """Run -> its curves, of all runs that have some: failed ones too."""
    names = [*(record.name for record in cell.records), *cell.without_record]
    found = {name: read_curves(material.results.run(name).metrics_file) for name in names}
    return {name: curves for name, curves in found.items() if curves}


# ----------------------------------------------------------------------------------------------------- time and memory


def cost_section(material: Material) -> Section:
    section = Section("cost", "Wall time and memory", notes=material.shown_note)
    finished = [cell for cell in material.shown if cell.records]
    if not finished:
        section.lead.append("No run has finished yet.")
        return section
    names = [material.labels[cell] for cell in finished]

    parts = {
        part: [mean_of(record.seconds[part] / 60 for record in cell.records) or 0.0 for cell in finished]  # type: ignore[literal-required]
        for part in ("train", "evaluate")
    }
    memory = [mean_of(record.peak_memory_bytes / 2**30 for record in cell.records) or 0.0 for cell in finished]
    section.charts = [
        Chart("Wall time of a run, mean over seeds", figures.bars(names, parts, "minutes", "minutes")),
        Chart("Peak memory of a run, mean over seeds", figures.bars(names, {"memory": memory}, "GiB", "GiB")),
    ]
    devices = sorted({record.device for cell in finished for record in cell.records})
    section.notes.insert(0, f"Memory: of the GPU, or of the process on a CPU. Devices: {'; '.join(devices)}")
    if len(devices) > 1:
        section.notes.insert(1, "Times of different devices do not compare.")
    return section


# ---------------------------------------------------------------------------------------------------------- provenance


def provenance_section(material: Material) -> Section:
    """Each run of the plan; what runs share (code, versions, device) is told once, as an environment."""
    from rio_bench.status import look_at

    plan = material.results.read_plan()
    assert plan is not None  # compare has read it
    by_name = {record.name: record for cell in material.comparison.cells for record in cell.records}
    environments: dict[str, int] = {}
    rows, now = [], time.time()
    for run in plan.runs:
        folder = material.results.run(run.name)
        record = by_name.get(run.name) or _record_of_base(material.results, run)
        view = look_at(folder, run, now)
        state = Cell(view.state, sort=view.state, below=(view.reason,) if view.reason else ())
        name = Cell(run.name, sort=run.name, details=json.dumps(run.config, indent=1, ensure_ascii=False))
        method = Cell(run.method, sort=run.method)
        seed = run.config.get("seed", 0)
        numbers: list[Cell] = [Cell(str(seed), sort=seed)]
        if record is None:
            rows.append([name, method, state, Cell(""), *numbers, *[Cell("") for _ in range(4)]])
            continue
        environment = environments.setdefault(_environment(record), len(environments) + 1)
        memory = record.peak_memory_bytes / 2**30
        total = record.seconds["total"] / 60
        numbers += [
            Cell(str(environment), sort=environment),
            Cell(f"{record.passes:.1f}", sort=record.passes),
            Cell(f"{total:.1f}", sort=total),
            Cell(f"{memory:.2f}", sort=memory),
        ]
        rows.append([name, method, state, Cell(record.finished, sort=record.finished), *numbers])
    section = Section("provenance", "Provenance")
    section.lead = [f"Environment {place}: {text}" for text, place in environments.items()]
    headings = [
        "Run and its configuration",
        "Method",
        "State",
        "Finished",
        "Seed",
        "Environment",
        "Passes",
        "Minutes",
        "GiB",
    ]
    section.tables.append(Table("runs-table", "Runs; a run's name opens its configuration", headings, 4, rows))
    section.notes.append(f"Result folder: {material.results.root.absolute()}")
    if any(record.code["dirty"] for record in by_name.values()):
        section.notes.append("Changed files: the code that ran differed from its revision.")
    return section


def _record_of_base(results: ResultFolder, run: StoredRun) -> Record | None:
    """compare leaves base runs out."""
    try:
        return results.run(run.name).read_record(run.identity) if run.is_base else None
    except RecordError:
        return None


def _environment(record: Record) -> str:
    revision = record.code["revision"] or "not in a checkout"
    dirty = " with changed files" if record.code["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"revision {revision}{dirty}; {record.device}; {versions}"
