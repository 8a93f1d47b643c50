"""The cells of an experiment's tables, from a result folder's records, its plan and how its attempts ended.

A cell is a configuration without its seed; its numbers are means over the seeds that have a record. The difference of
a cell is taken to the baseline's cell of the same backbone, classifier and all other settings but the strategy, and is
the mean over the seeds that both have (so that a seed that one lacks never counts for the other).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rio_bench.attempts import last_telling
from rio_bench.errors import UserError, did_you_mean
from rio_bench.records import METRICS, Record, ResultFolder, RunFolder
from rio_bench.report.categories import Compactor

SHORT_SCHEDULE_PASSES = 5
_encode = json.JSONEncoder(sort_keys=True).encode  # made once: json.dumps would make one each time
WITHOUT_RESULT = ("failed", "pruned", "stopped", "missing")  # what a cell without a record is shown as: the first


@dataclass(eq=False)
class Cell:
    """One configuration over its seeds.

    `config` is canonical, without seeds; `records` hold one record a seed, with AP per category as CategoryValues;
    `without_record`: names of the other planned runs -> one of WITHOUT_RESULT.
    """

    method: str
    config: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    without_record: dict[str, str] = field(default_factory=dict)
    _values: dict[str, dict[int, float]] = field(default_factory=dict, repr=False)  # made when asked for

    @property
    def planned(self) -> int:
        """Number of seeds."""
        return len(self.records) + len(self.without_record)

    @property
    def failed(self) -> list[str]:
        """Names of runs."""
        return [name for name, state in self.without_record.items() if state == "failed"]

    @property
    def state(self) -> str:
        """ "finished" with a record, else one of WITHOUT_RESULT."""
        return "finished" if self.records else min(self.without_record.values(), key=WITHOUT_RESULT.index)

    @property
    def dataset(self) -> str:
        """Its name."""
        dataset = self.config["dataset"]
        return dataset["name"] if isinstance(dataset, dict) else dataset  # a dict: one's own files

    @cached_property
    def block(self) -> str:
        """Equal for cells that are compared with each other: of one data set and backbone."""
        return _key({"dataset": self.config["dataset"], "backbone": self.config["backbone"]})

    @cached_property
    def settings(self) -> str:
        """Equal for cells that differ in nothing but the strategy."""
        return _key(without(self.config, "strategy"))

    @property
    def is_short(self) -> bool:
        return any(record.passes < SHORT_SCHEDULE_PASSES for record in self.records)

    def values(self, column: str) -> dict[int, float]:
        """Seed -> percent, without the seeds that have no value."""
        if column not in self._values:
            kind, key = METRICS[column]
            values = {record.seed: getattr(record.metrics[kind], key) for record in self.records}
            self._values[column] = {seed: value for seed, value in values.items() if value is not None}
        return self._values[column]

    def mean(self, column: str) -> float | None:
        return mean_of(self.values(column).values())

    def spread(self, column: str) -> float | None:
        """The sample standard deviation over seeds; None with fewer than two."""
        values = self.values(column).values()
        mean = mean_of(values)
        if mean is None or len(values) < 2:
            return None
        # the standard library's and numpy's take 50 and 10 times as long for a few values
        return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))

    def difference(self, baseline: Cell | None, column: str) -> float | None:
        """The mean, over the seeds that both have, of this cell's value less the baseline's."""
        if baseline is None or baseline is self:
            return None
        own, theirs = self.values(column), baseline.values(column)
        return mean_of([own[seed] - theirs[seed] for seed in own.keys() & theirs.keys()])


@dataclass(frozen=True)
class Comparison:
    """What a result folder holds.

    `baseline`: a strategy's name, or a method's; `cells`: the plan's, in its order; `earlier`: of records that the
    plan holds no more; `baselines`: settings -> the baseline's cell; `baseline_notes`: why there is none, where there
    is none; `warnings`: a line for each record that had to be left out.
    """

    experiment: str
    baseline: str
    cells: list[Cell]
    earlier: list[Cell]
    baselines: dict[str, Cell]
    baseline_notes: list[str]
    warnings: list[str]

    def baseline_of(self, cell: Cell) -> Cell | None:
        return self.baselines.get(cell.settings)


def compare(results: ResultFolder, baseline: str | None = None, by_seed: bool = False) -> Comparison:
    """Read a result folder.

    `baseline`: a strategy's name or a method's label; None: the experiment's. `by_seed`: a cell for each seed.
    Raises UserError where the folder holds no plan, and where no run has the baseline asked for.
    """
    plan = results.read_plan()
    if plan is None:
        raise UserError(
            f"{results.root}: is not the result folder of an experiment: {results.plan_file.name} is missing"
        )
    warnings: list[str] = []
    compactor = Compactor()
    by_identity = {record.identity: compactor.compact(record) for record in results.iter_records(plan, warnings)}
    cells: dict[str, Cell] = {}
    for run in plan.runs:
        record = by_identity.pop(run.identity, None)
        if run.is_base:
            continue
        cell = _cell_of(cells, run.method, run.config, by_seed)
        if record is not None:
            cell.records.append(record)
        else:
            cell.without_record[run.name] = _state_without_record(results.run(run.name))

    earlier: dict[str, Cell] = {}
    for record in by_identity.values():  # those that the plan holds no more
        own_plan = results.run(record.name).read_run()
        if own_plan is None or not own_plan.is_base:
            _cell_of(earlier, record.method, record.config, by_seed).records.append(record)
    for cell in [*cells.values(), *earlier.values()]:
        cell.records.sort(key=lambda record: record.seed)
    baselines, baseline_notes = _baselines(
        baseline or plan.baseline, list(cells.values()), is_asked_for=baseline is not None
    )
    return Comparison(
        experiment=plan.experiment,
        baseline=baseline or plan.baseline,
        cells=list(cells.values()),
        earlier=list(earlier.values()),
        baselines=baselines,
        baseline_notes=baseline_notes,
        warnings=warnings,
    )


def _cell_of(cells: dict[str, Cell], method: str, config: dict[str, Any], by_seed: bool) -> Cell:
    config = {"seed": 0} | config if by_seed else without(config, "seed")
    key = _key(config)
    if key not in cells:
        cells[key] = Cell(method, config)
    return cells[key]


def _baselines(name: str, cells: list[Cell], is_asked_for: bool) -> tuple[dict[str, Cell], list[str]]:
    """Settings -> the baseline's cell: of a strategy the one with default hyperparameters, or else the only one.

    And why there is none for some settings.
    """
    notes = []
    of_settings: dict[str, list[Cell]] = {}
    for cell in cells:
        if name in (cell.config["strategy"]["name"], cell.method):
            of_settings.setdefault(cell.settings, []).append(cell)
    if cells and not of_settings:
        near = did_you_mean(name, {cell.config["strategy"]["name"] for cell in cells})
        if is_asked_for:
            raise UserError(f"--baseline: no run of the experiment has the strategy or method '{name}'{near}")
        notes.append(f"No run has the baseline '{name}': no differences; --baseline NAME takes another one{near}")

    baselines = {}
    ambiguous: set[str] = set()
    for settings, same in of_settings.items():
        candidates = [cell for cell in same if cell.config["strategy"] == {"name": name}] or same
        if len(candidates) == 1:
            baselines[settings] = candidates[0]
        else:
            ambiguous.update(cell.method for cell in candidates)
    if ambiguous:
        some = [*sorted(ambiguous)[:5], *(["..."] if len(ambiguous) > 5 else [])]
        notes.append(
            f"The baseline '{name}' is several methods, so differences to it are left out; --baseline NAME takes one:"
            f" {'; '.join(some)}"
        )
    return baselines, notes


def _key(config: dict[str, Any]) -> str:
    return _encode(config)


def without(config: dict[str, Any], path: str) -> dict[str, Any]:
    """A configuration without a field (dotted: strategy.name) of its own and of its base run's."""
    field_name, _, part = path.partition(".")
    rest = {name: value for name, value in config.items() if part or name != field_name}
    if part and isinstance(rest.get(field_name), dict):
        rest[field_name] = without(rest[field_name], part)
    if rest.get("warm_start"):
        rest["warm_start"] = without(rest["warm_start"], path)
    return rest


def _state_without_record(run: RunFolder) -> str:
    """One of WITHOUT_RESULT, by the last attempt.

    A run is missing, too, where its record is there but was left out: its warning tells why.
    """
    last = last_telling(run.read_attempts())
    if last is None or run.record_file.exists():
        return "missing"
    if last.cause == "pruned":
        return "pruned"
    if last.cause == "stopped" or (last.cause is None and last.signal in ("SIGINT", "SIGTERM")):
        return "stopped"
    return "failed"


def mean_of(values: Iterable[float]) -> float | None:
    values = list(values)
    return math.fsum(values) / len(values) if values else None
