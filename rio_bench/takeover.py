"""What a result folder holds of a search: its runs as trials that a study can take over."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from rio_bench.attempts import last_telling
from rio_bench.config import Experiment, RunConfig
from rio_bench.files import RecordError
from rio_bench.plan import identity
from rio_bench.records import EVALUATION, Record, ResultFolder, RunFolder, StoredRun
from rio_bench.search_config import Range
from rio_bench.strategy import name_of


@dataclass(frozen=True)
class FoundRun:
    """A run that a trial of the search can have, and how it ended; neither a record nor pruned: it did not.

    pruned: its intermediate values by iteration, where it was pruned. ended: when, as ISO time with its zone.
    """

    name: str
    params: dict[str, Any]
    record: Record | None = None
    pruned: dict[int, float] | None = None
    ended: str = ""


def study_name(experiment: Experiment) -> str:
    """The experiment's name and a digest of all that makes values comparable: a changed file has another study."""
    assert experiment.search is not None
    content = {
        "runs": [identity(point) for point in experiment.search_points],
        "objectives": experiment.search.objectives,
        "space": {key: axis.model_dump(mode="json") for key, axis in experiment.search.space.items()},
    }
    return f"{experiment.name}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]}"


def find_runs(experiment: Experiment, results: ResultFolder, known: Iterable[str]) -> list[FoundRun]:
    """The runs in a result folder that trials of the search can have, in the order they ended; not the known ones."""
    known = set(known)
    names = sorted(os.listdir(results.runs)) if results.runs.is_dir() else []
    found = (_found(experiment, results.run(name)) for name in names if name not in known)
    return sorted((run for run in found if run is not None), key=lambda run: run.ended)


def was_pruned(folder: RunFolder, experiment: Experiment) -> bool:
    """Whether a run's last attempt was ended by a pruner. To a search that prunes nothing it is one to go on with."""
    assert experiment.search is not None
    last = last_telling(folder.read_attempts())
    return experiment.search.pruner is not None and last is not None and last.cause == "pruned"


def params_of(experiment: Experiment, run: StoredRun) -> dict[str, Any] | None:
    """The parameters that give a run; None where no trial of the search can have it."""
    assert experiment.search is not None
    try:
        wanted = RunConfig.model_validate(run.config)
    except ValidationError:  # of a strategy that is not installed
        return None
    options: list[list[Any]] = []
    for key, axis in experiment.search.space.items():
        value = _value_at(wanted, key)
        if isinstance(axis, Range):
            options.append([param] if (param := axis.param_of(value)) is not None else [])
        else:  # a strategy or a classifier as a whole is compared below, with what other keys change in it
            is_whole = isinstance(value, BaseModel | list | tuple)
            labels = zip(axis.labels, axis.values, strict=True)
            options.append([label for label, choice in labels if is_whole or choice == value])
    for params in itertools.product(*options):
        found = dict(zip(experiment.search.space, params, strict=True))
        try:
            if identity(experiment.trial(found)) == run.identity:
                return found
        except ValidationError:
            continue
    return None


def evaluations(folder: RunFolder, column: str) -> dict[int, float]:
    """Iteration -> value of a run's intermediate evaluations; where an iteration is repeated, the later counts."""
    found: dict[int, float] = {}
    for line in folder.metrics_file.read_bytes().splitlines() if folder.metrics_file.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:  # torn
            continue
        if isinstance(values, dict) and values.get(EVALUATION + column) is not None:
            found[values["iteration"]] = values[EVALUATION + column]
    return found


def _found(experiment: Experiment, folder: RunFolder) -> FoundRun | None:
    assert experiment.search is not None
    try:
        stored = folder.read_run()
    except RecordError:
        return None
    if stored is None or (params := params_of(experiment, stored)) is None:
        return None
    try:
        record = folder.read_record(stored.identity)
    except RecordError:  # told, and set aside, where the run is done again
        record = None
    if record is not None:
        return FoundRun(folder.name, params, record=record, ended=record.finished)
    last = last_telling(folder.read_attempts())
    if last is not None and was_pruned(folder, experiment):
        values = evaluations(folder, experiment.search.objectives[0])
        return FoundRun(folder.name, params, pruned=values, ended=last.ended)
    return FoundRun(folder.name, params)


def _value_at(config: RunConfig, key: str) -> Any:
    """What a configuration holds at a dotted path; None where it has no such field."""
    field, _, part = key.partition(".")
    value = getattr(config, field)
    if not part:
        return value
    return name_of(value) if key == "strategy.name" else getattr(value, part, None)
