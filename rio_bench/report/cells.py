"""The cells of an experiment's tables, from a result folder's records and its plan alone.

A cell is a configuration without its seed; its numbers are means over the seeds that have a record. The difference of
a cell is taken to the baseline's cell of the same backbone, classifier and all other settings but the strategy, and is
the mean over the seeds that both have (so that a seed that one lacks never counts for the other).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rio_bench.errors import UserError
from rio_bench.records import METRICS, Record, ResultFolder, RunFolder

SHORT_SCHEDULE_PASSES = 5


@dataclass
class Cell:
    """One configuration over its seeds. `config` is canonical, without seeds; `records` hold one record a seed."""

    method: str
    config: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    planned: int = 0
    failed: list[str] = field(default_factory=list)  # names of runs

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
        return mean_of(self.values(column).values())

    def spread(self, column: str) -> float | None:
        """The sample standard deviation over seeds; None with fewer than two."""
        values = list(self.values(column).values())
        return statistics.stdev(values) if len(values) > 1 else None

    def difference(self, baseline: Cell | None, column: str) -> float | None:
        """The mean, over the seeds that both have, of this cell's value less the baseline's."""
        if baseline is None or baseline is self:
            return None
        own, theirs = self.values(column), baseline.values(column)
        return mean_of([own[seed] - theirs[seed] for seed in own.keys() & theirs.keys()])


@dataclass(frozen=True)
class Comparison:
    """What a result folder holds.

    `cells`: the plan's, in its order; `earlier`: of records that the plan holds no more; `baselines`: settings -> the
    baseline's cell; `warnings`: a line for each record that had to be left out.
    """

    experiment: str
    baseline: str
    cells: list[Cell]
    earlier: list[Cell]
    baselines: dict[str, Cell]
    warnings: list[str]

    def baseline_of(self, cell: Cell) -> Cell | None:
        return self.baselines.get(_settings(cell))


def compare(results: ResultFolder) -> Comparison:
    """Read a result folder. Raises UserError where it holds no plan."""
    plan = results.read_plan()
    if plan is None:
        raise UserError(
            f"{results.root}: is not the result folder of an experiment: {results.plan_file.name} is missing"
        )
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
            cell.failed.append(run.name)

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
    baselines = _baselines(plan.baseline, cells.values())
    return Comparison(plan.experiment, plan.baseline, list(cells.values()), list(earlier.values()), baselines, warnings)


def _cell_of(cells: dict[str, Cell], method: str, config: dict[str, Any]) -> Cell:
    config = _without(config, "seed")
    return cells.setdefault(_key(config), Cell(method, config))


def _baselines(strategy: str, cells: Iterable[Cell]) -> dict[str, Cell]:
    """Settings -> the strategy's cell: the one with default hyperparameters, or else the only one."""
    of_settings: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.config["strategy"]["name"] == strategy:
            of_settings.setdefault(_settings(cell), []).append(cell)
    baselines = {}
    for settings, same in of_settings.items():
        candidates = [cell for cell in same if cell.config["strategy"] == {"name": strategy}] or same
        if len(candidates) == 1:
            baselines[settings] = candidates[0]
    return baselines


def _settings(cell: Cell) -> str:
    """All but the strategy and the seed."""
    return _key(_without(cell.config, "strategy"))


def _key(config: dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def _without(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A configuration without a field of its own and of its base run's."""
    rest = {name: value for name, value in config.items() if name != key}
    if rest.get("warm_start"):
        rest["warm_start"] = _without(rest["warm_start"], key)
    return rest


def _has_failed(run: RunFolder) -> bool:
    """Whether the last attempt ended by itself and left no record; one that was stopped is only missing.

    So is one whose record is there but was left out: its warning tells why.
    """
    attempts = run.read_attempts()
    return bool(attempts) and attempts[-1].signal not in ("SIGINT", "SIGTERM") and not run.record_file.exists()


def mean_of(values: Iterable[float]) -> float | None:
    values = list(values)
    return math.fsum(values) / len(values) if values else None
