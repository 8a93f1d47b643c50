"""A run made again from its record alone, and whether its numbers come out again."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rio_bench import datasets, engines, plan, scheduler
from rio_bench.config import Execution, RunConfig
from rio_bench.errors import UserError
from rio_bench.plan import Plan, PlannedRun
from rio_bench.records import RERUNS, Record, ResultFolder, RunFolder, columns
from rio_bench.strict import explain

TOLERANCE = 0.1  # AP in percent: the last digit that tables show


def rerun(folder: RunFolder, results: Path) -> int:
    """Make a run again below ``results/reruns``, base run first, and tell whether its numbers agree.

    Returns the exit status: 0 they do, 1 they do not or the run failed, 130 stopped by Ctrl-C. Raises UserError where
    the run has no result, or cannot be made again here: a strategy, a data set or a recipe is not as it was.
    """
    recorded = folder.read_record()
    if recorded is None:
        raise UserError(f"{folder.path}: has no result that a second one could be compared with")
    config = read_config(folder, recorded)
    stored = folder.read_run() if folder.config_file.exists() else None
    # What else `execution` holds changes no number.
    execution = Execution(gpus_per_run=stored.execution.get("gpus_per_run", 1) if stored else 1)
    again = Plan(recorded.experiment, "none", tuple(planned_runs(config, recorded.name, recorded.method)), execution)
    place = place_of_rerun(results, recorded.name)
    print(f"{recorded.name}: made again in {place.root}", flush=True)
    engine = engines.make_engine("local", execution, "cpu" if was_on_cpu(recorded) else "auto")
    outcome = scheduler.run_experiment(again, place, engine)
    for failure in outcome.failed:
        print(f"failed: {failure.name}: {failure.reason}; log: {failure.log}", file=sys.stderr)
    if outcome.failed:
        return 1
    result = place.run(recorded.name).read_record()
    if result is None:
        print("stopped: the same command goes on from the last checkpoint")
        return 130
    print_comparison(recorded, result)
    return 0 if agrees(recorded, result) else 1


def read_config(folder: RunFolder, record: Record) -> RunConfig:
    """The configuration of a record. UserError where it is not one here, or stands for something else here."""
    try:
        config = RunConfig.model_validate(record.config)
    except ValidationError as error:
        details = error.errors()[0]
        key = ".".join(map(str, ("config", *details["loc"])))
        raise UserError(f"{folder.record_file}: {key}: {explain(details)}") from error
    here = plan.identity(config)
    if here != record.identity:
        names = [f"the data set {datasets.label(config.dataset)}", f"the recipe {config.recipe}"]
        names += [f"the backbone {config.backbone}", *([f"the weights {config.weights}"] if config.weights else [])]
        raise UserError(
            f"{folder.record_file}: cannot be made again here: {', '.join(names[:-1])} or {names[-1]} is not the one "
            f"that it was made with (identity {record.identity}, here {here})"
        )
    return config


def planned_runs(config: RunConfig, name: str, method: str) -> list[PlannedRun]:
    """A run, and before it its base run: the old one's weights are not taken, they are part of what is made again."""
    before = []
    if config.warm_start is not None:
        base = f"base-{plan.identity(config.warm_start)}"
        before = planned_runs(config.warm_start, base, f"{method}, base run")
    after = before[-1].name if before else None
    run = PlannedRun(config, plan.identity(config), name, method, after, is_base=False)
    return [*before, run]


def place_of_rerun(results: Path, name: str) -> ResultFolder:
    """A folder where the run has no result: a new one, or that of a rerun that did not end."""
    place, number = ResultFolder(results / RERUNS / name), 1
    while place.run(name).record_file.exists():
        number += 1
        place = ResultFolder(results / RERUNS / f"{name}-{number}")
    return place


def was_on_cpu(record: Record) -> bool:
    return record.device.endswith(" threads")  # of provenance.device_name


# ---------------------------------------------------------------------------------------------------------- comparison


def values(record: Record) -> dict[str, float | None]:
    """All that is compared: the tables' columns, and the AP of every category."""
    categories = {
        f"{kind} {name}": ap for kind, measured in record.metrics.items() for name, ap in measured.per_category.items()
    }
    return columns(record.metrics) | categories


def differing(recorded: Record, again: Record) -> dict[str, float]:
    """The tables' columns whose values differ, and by how much; infinite where only one of the two has a value."""
    before, after = columns(recorded.metrics), columns(again.metrics)
    found = {}
    for column in before:
        old, new = before[column], after[column]
        if old != new:
            found[column] = float("inf") if old is None or new is None else new - old
    return found


def agrees(recorded: Record, again: Record) -> bool:
    """Whether no column differs by more than TOLERANCE."""
    return all(abs(difference) <= TOLERANCE for difference in differing(recorded, again).values())


def verdict(recorded: Record, again: Record) -> str:
    """Whether the numbers agree, in a line."""
    if values(recorded) == values(again):
        return "equal: every number is exactly the recorded one, category by category"
    found = differing(recorded, again)
    if agrees(recorded, again):
        largest = max(found, key=lambda column: abs(found[column]), default=None)
        told = "only single categories differ" if largest is None else f"at most {found[largest]:+.2g}, in {largest}"
        return f"equal within {TOLERANCE} AP: {told}"
    beyond = [column for column in found if abs(found[column]) > TOLERANCE]
    return f"differ by more than {TOLERANCE} AP: " + ", ".join(_difference(column, found[column]) for column in beyond)


def _difference(column: str, by: float) -> str:
    return f"{column} (a value in one of the two only)" if by == float("inf") else f"{column} by {by:+.2f}"


def provenance(recorded: Record, again: Record) -> list[str]:
    """What differs in how the two were made, a line each; one line where nothing does."""
    pairs = {
        "code revision": (recorded.code["revision"], again.code["revision"]),
        "uncommitted changes": (recorded.code["dirty"], again.code["dirty"]),
        "device": (recorded.device, again.device),
        "seed": (recorded.seed, again.seed),
    }
    for package in sorted({*recorded.versions, *again.versions}):
        pairs[package] = (recorded.versions.get(package), again.versions.get(package))
    lines = [f"{what}: {_told(old)} -> {_told(new)}" for what, (old, new) in pairs.items() if old != new]
    if recorded.code["dirty"] and again.code["dirty"]:
        lines.append("uncommitted changes: both times; whether they are the same is not known")
    return lines or ["made with the same code revision, versions, device and seed"]


def _told(value: str | int | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)


def print_comparison(recorded: Record, again: Record) -> None:
    before, after = columns(recorded.metrics), columns(again.metrics)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "recorded", "again", "difference"):
        table.add_column(heading, justify="right" if heading else "left")
    for column, old in before.items():
        new = after[column]
        by = "" if old is None or new is None else f"{new - old:+.2g}"
        table.add_row(*map(Text, (column, _ap(old), _ap(new), by)))
    console = Console(highlight=False)
    console.print(table)
    for line in (verdict(recorded, again), *provenance(recorded, again)):
        console.print(line, markup=False, soft_wrap=True)


def _ap(value: float | None) -> str:
    return "no value" if value is None else f"{value:.2f}"
