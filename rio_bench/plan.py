"""An experiment as the list of its runs: what to train, under which name, and after which base run."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rio_bench import datasets
from rio_bench.config import Execution, Experiment, RunConfig, backbone_file, canonical, recipe_file
from rio_bench.datasets.lvis import Dataset
from rio_bench.errors import UserError, did_you_mean
from rio_bench.records import StoredPlan, StoredRun
from rio_bench.scaling import recipe_settings
from rio_bench.search_config import SearchConfig
from rio_bench.strategy import name_of

MODEL_ZOO = {  # ImageNet weights of the publication's backbones, in Caffe2's colour order and scale as the recipes have
    "R-50.pkl": "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl",
    "R-101.pkl": "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-101.pkl",
    "X-101-32x8d.pkl": "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/FAIR/X-101-32x8d.pkl",
}
LABEL_DIGITS = 4  # of a number that a search drew: 0.01234567890123 tells nobody more
# Shown by the label's own parts, by the tables' columns, or following from the other fields.
NOT_IN_LABEL = ("strategy", "classifier", "dataset", "backbone", "seed", "warm_start")


@dataclass(frozen=True)
class PlannedRun:
    """``name`` is the folder's, ``method`` the label in tables, ``after`` the name of the base run it waits for.

    ``variant`` is what the experiment file calls it, if it does.
    """

    config: RunConfig
    identity: str
    name: str
    method: str
    after: str | None
    is_base: bool
    variant: str = ""


@dataclass(frozen=True)
class Plan:
    """The runs of an experiment without duplicates, base runs first. ``baseline`` is a strategy's name.

    Those of a search's trials are not known beforehand: its plan holds the base run that they share, if they do.
    """

    experiment: str
    baseline: str
    runs: tuple[PlannedRun, ...]
    execution: Execution = Execution()
    search: SearchConfig | None = None


def make_plan(experiment: Experiment) -> Plan:
    """The runs of an experiment.

    Raises UserError where a data set or a weights file cannot be read, two data sets have one name, or the processes of
    a run cannot share its batch.
    """
    configs = (*experiment.cells, *experiment.search_points)
    _refuse_one_name_for_two(config.dataset for config in configs)
    _refuse_uneven_batches(configs, experiment.execution.gpus_per_run)
    _refuse_missing_weights({run.weights for run in configs if run.weights is not None})
    if experiment.search is not None:
        plan_trial = trial_planner(experiment)
        shared = {run.name: run for point in experiment.search_points for run in plan_trial(point) if run.is_base}
        runs = list(shared.values()) if len(shared) == 1 else []
    else:
        variant_of = {
            identity(cell): name for name in experiment.variants for cell in experiment.cells_of_variants[name]
        }
        runs = _planned_runs(experiment.cells, method_labels(experiment.cells), variant_of)
    return Plan(experiment.name, experiment.baseline, tuple(runs), experiment.execution, experiment.search)


def trial_planner(experiment: Experiment) -> Callable[[RunConfig], list[PlannedRun]]:
    """What gives the run of a search's trial by its configuration, with its base run first if it has one."""
    method_label = method_labels(experiment.search_points, LABEL_DIGITS)
    return lambda config: _planned_runs([config], method_label, {})


def _planned_runs(
    configs: Iterable[RunConfig], method_label: Callable[[RunConfig], str], variant_of: Mapping[str, str]
) -> list[PlannedRun]:
    """The runs without duplicates, base runs first."""
    # By identity: a strategy's hyperparameters may be lists, which have no hash.
    cells = {identity(config): config for config in configs}
    bases = {identity(cell.warm_start): cell.warm_start for cell in cells.values() if cell.warm_start is not None}
    return [
        PlannedRun(
            config=config,
            identity=key,
            name=_run_name(config),
            method=method_label(config) + ("" if key in cells else ", base run"),
            after=None if config.warm_start is None else _run_name(config.warm_start),
            is_base=key not in cells,
            variant=variant_of.get(key, ""),
        )
        for key, config in {**bases, **cells}.items()
    ]


def select(plan: Plan, texts: Sequence[str]) -> Plan:
    """The runs whose name, method or variant contains one of the texts, and the base runs they wait for.

    Raises UserError for a text that no run contains, and for a search.
    """

    def contains(run: PlannedRun, text: str) -> bool:
        return any(text in part for part in (run.name, run.method, run.variant))

    if plan.search is not None:
        raise UserError("--only picks runs that are known beforehand; a search gives out its own: leave it out")
    for text in texts:
        if not any(contains(run, text) for run in plan.runs):
            names = list(dict.fromkeys(run.variant or run.method for run in plan.runs))
            near = did_you_mean(text, names) or f": {', '.join(names)}"
            raise UserError(f"--only {text}: no run's name, method or variant contains it{near}")
    chosen = [run for run in plan.runs if any(contains(run, text) for text in texts)]
    wanted = {run.name for run in chosen} | {run.after for run in chosen}
    return replace(plan, runs=tuple(run for run in plan.runs if run.name in wanted))


def with_trials(plan: Plan, trials: list[PlannedRun]) -> Plan:
    """A plan that holds the runs of a search's trials, too."""
    return replace(plan, runs=tuple({run.name: run for run in (*plan.runs, *trials)}.values()))


def stored_plan(plan: Plan) -> StoredPlan:
    """A plan as plain data."""
    runs = tuple(stored_run(run, plan) for run in plan.runs)
    return StoredPlan(experiment=plan.experiment, baseline=plan.baseline, runs=runs)


def stored_run(run: PlannedRun, plan: Plan) -> StoredRun:
    """A planned run as plain data."""
    return StoredRun(
        name=run.name,
        identity=run.identity,
        experiment=plan.experiment,
        method=run.method,
        is_base=run.is_base,
        after=run.after,
        config=canonical(run.config),
        execution=plan.execution.model_dump(mode="json", exclude_defaults=True),
    )


def identity(config: RunConfig) -> str:
    """16 hex digits of a hash of all that decides a run's result: where files lie and on what it runs does not count.

    Defaults are left out, so that a new field keeps old identities.
    """
    content: dict[str, Any] = canonical(config)
    if not isinstance(config.dataset, str):
        del content["dataset"]  # one's own files: neither their place nor their name counts
    content["dataset_fingerprint"] = _dataset_fingerprint(config.dataset)
    content["recipe_fingerprint"] = _recipe_fingerprint(recipe_file(config.recipe), backbone_file(config.backbone))
    if config.weights is not None:
        content["weights"] = _file_hash(config.weights)
    if config.warm_start is not None:
        content["warm_start"] = identity(config.warm_start)
    return hashlib.sha256(_json(content).encode()).hexdigest()[:16]


def _run_name(config: RunConfig) -> str:
    return f"{name_of(config.strategy)}-{config.backbone}-seed{config.seed}-{identity(config)}"


def method_labels(configs: Sequence[RunConfig], digits: int | None = None) -> Callable[[RunConfig], str]:
    """The label of a configuration: its strategy, and whatever differs within these configurations but columns.

    digits: of fractional numbers, significant ones; None: all.
    """
    by_strategy: dict[str, list[RunConfig]] = {}
    for config in configs:
        by_strategy.setdefault(name_of(config.strategy), []).append(config)
    varying_hyperparameters = {
        name: _varying([config.strategy for config in group]) for name, group in by_strategy.items()
    }
    varying_fields = [field for field in _varying(configs) if field not in NOT_IN_LABEL]
    if len({(config.backbone, config.weights) for config in configs}) == len({config.backbone for config in configs}):
        varying_fields = [field for field in varying_fields if field != "weights"]  # they follow from the backbone
    classifiers = {config.classifier.name for config in configs}
    varying_temperature = len({c.classifier.temperature for c in configs if c.classifier.name == "cosine"}) > 1

    def label(config: RunConfig) -> str:
        name = name_of(config.strategy)
        # What a run leaves at its default is left out: two runs that differ still have different labels.
        stated = _stated(config.strategy, varying_hyperparameters.get(name, []))
        text = name + _in_brackets(config.strategy, stated, digits)
        if len(classifiers) > 1 or varying_temperature:
            text += f", {config.classifier.name}"
            if config.classifier.name == "cosine" and varying_temperature:
                text += _in_brackets(config.classifier, ["temperature"], digits)
        return ", ".join([text, *_settings(config, varying_fields, digits)])

    return label


def _stated(model: Any, fields: Iterable[str]) -> list[str]:
    return [field for field in fields if field in model.model_fields_set]


def _varying(models: Sequence[Any]) -> list[str]:
    """The fields in which models of one class differ."""
    plain = [model.model_dump(mode="json") for model in models]
    return [field for field in type(models[0]).model_fields if len({_json(values[field]) for values in plain}) > 1]


def _settings(model: Any, fields: Iterable[str], digits: int | None) -> list[str]:
    return [f"{field}={_value_text(getattr(model, field), digits)}" for field in fields]


def _in_brackets(model: Any, fields: Iterable[str], digits: int | None) -> str:
    settings = _settings(model, fields, digits)
    return f" ({', '.join(settings)})" if settings else ""


def _value_text(value: Any, digits: int | None) -> str:
    if isinstance(value, float) and digits is not None:
        return f"{value:.{digits}g}"
    return "none" if value is None else str(value)


def _json(value: Any) -> str:
    """One text whatever the order of the keys."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


@functools.cache
def _recipe_fingerprint(recipe: Path, backbone: Path) -> str:
    """Of what the files set, however they are written."""
    return hashlib.sha256(_json(recipe_settings(recipe, backbone)).encode()).hexdigest()


@functools.cache
def _dataset_fingerprint(dataset: str | Dataset) -> str:
    """Once a process: a hundred thousand pictures are looked for. Raises UserError where a run could not use it."""
    datasets.check(dataset)
    return datasets.fingerprint(dataset)


def _refuse_one_name_for_two(used: Iterable[str | Dataset]) -> None:
    """Tables would show two data sets as one."""
    fingerprints: dict[str, str] = {}
    for dataset in used:
        name = datasets.label(dataset)
        if fingerprints.setdefault(name, _dataset_fingerprint(dataset)) != _dataset_fingerprint(dataset):
            raise UserError(f"two data sets are called '{name}': give each a name of its own (dataset.name)")


def _refuse_uneven_batches(configs: Iterable[RunConfig], processes: int) -> None:
    """Each process of a run takes as many images: a rest would be left out."""
    for config in configs:
        for run in (config, config.warm_start):
            if run is not None and run.batch_size % processes:
                raise UserError(
                    f"execution.gpus_per_run: {processes} GPUs cannot share a batch of {run.batch_size} images evenly:"
                    " take another number (--gpus), or another batch size (--batch-size)"
                )


def _refuse_missing_weights(files: Iterable[str]) -> None:
    """All of them in one line, each with its place in Detectron2's model zoo, where it has one."""
    missing = sorted(file for file in files if not os.path.exists(file))
    if missing:
        places = [MODEL_ZOO[Path(file).name] for file in missing if Path(file).name in MODEL_ZOO]
        download = f"; Detectron2's model zoo has {', '.join(places)}" if places else ""
        raise UserError(f"weights: no such file: {', '.join(missing)}{download}")


def _file_hash(path: str) -> str:
    try:
        status = os.stat(path)
        return _content_hash(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"weights: {path}: {error.strerror}") from error


@functools.cache
def _content_hash(path: str, size: int, modified: int) -> str:
    """The size and the time of change are there to hash a changed file anew."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
