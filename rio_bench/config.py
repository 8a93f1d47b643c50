"""An experiment file as typed models: strict, each error a line that names file, line and key."""

from __future__ import annotations

import itertools
import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from rio_bench.datasets.own import DatasetChoice
from rio_bench.errors import UserError, did_you_mean
from rio_bench.scaling import scaled
from rio_bench.search_config import SearchConfig
from rio_bench.strategy import Strategy, load, name_of
from rio_bench.strict import Model, explain, located, refuse_unknown_keys
from rio_bench.yaml_source import Location, YamlSource

Setting = tuple[str, Any, Location]  # key, value, place in the experiment file
RECIPES = Path(__file__).parent / "detection" / "recipes"
BACKBONES = RECIPES / "backbones"
EXPERIMENTS = Path(__file__).parent.parent / "experiments"
TRIED_COMBINATIONS = 1000  # of a search space, before one of its values is said to go with none of the others
# Keys that decide which weights a model has: those of a base run fit only runs that share them.
SHAPES_WEIGHTS = (
    *("dataset", "dataset.name", "dataset.train", "dataset.val"),
    *("recipe", "backbone", "classifier", "classifier.name"),
)


def recipes() -> list[str]:
    """The names of the recipes: the scale of a model and its schedule."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def backbones() -> list[str]:
    return sorted(file.stem for file in BACKBONES.glob("*.yaml"))


def recipe_file(name: str) -> Path:
    return RECIPES / f"{name}.yaml"


def backbone_file(name: str) -> Path:
    return BACKBONES / f"{name}.yaml"


class ClassifierConfig(Model):
    """The classification layer over the RoI features. In a file, ``cosine`` stands for ``{name: cosine}``."""

    name: Literal["linear", "cosine"] = "cosine"
    temperature: float = Field(default=48.0, gt=0, description="cosine similarities are multiplied by it (RIO: 48)")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _linear_has_no_temperature(self) -> ClassifierConfig:
        if self.name == "linear" and "temperature" in self.model_fields_set:
            raise ValueError("a linear classifier has no temperature: leave it out")
        return self


def read_strategy(data: Any) -> Strategy:
    """A strategy from ``rio`` or ``{name: rio, samples_per_class: 20}``."""
    if isinstance(data, Strategy):
        return data
    if isinstance(data, str):
        data = {"name": data}
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ValueError(f"expected a strategy's name or {{name: ..., hyperparameter: ...}}, got {reprlib.repr(data)}")
    hyperparameters = {key: value for key, value in data.items() if key != "name"}
    try:
        strategy = load(data["name"])
    except UserError as error:
        raise ValueError(str(error)) from error
    refuse_unknown_keys(hyperparameters, strategy.model_fields, of=f" of strategy '{data['name']}'")
    # As JSON: a list is how a file writes a tuple or a set, which strict validation of Python's own types refuses.
    return strategy.model_validate_json(json.dumps(hyperparameters))


class RunConfig(Model):
    """One run, fully resolved."""

    dataset: DatasetChoice
    backbone: str
    strategy: Annotated[Strategy, BeforeValidator(read_strategy)]
    iterations: int = Field(ge=1)
    classifier: ClassifierConfig = ClassifierConfig()
    recipe: str = "standard"
    batch_size: int = Field(default=16, ge=1, description="images an iteration, all processes together")
    learning_rate: float | None = Field(default=None, gt=0, description="none: the recipe's")
    warmup_iterations: int | None = Field(default=None, ge=0, description="none: the recipe's, at most a tenth of all")
    weights: str | None = Field(default=None, description="a file of backbone weights; none: random weights")
    mixed_precision: bool = Field(default=True, description="on a GPU only")
    seed: int = Field(default=0, ge=0, lt=2**32)
    warm_start: RunConfig | None = Field(
        default=None, description="the base run whose final weights this run starts from"
    )

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, name: str) -> str:
        return _one_of("backbone", name, backbones())

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        return _one_of("recipe", name, recipes())

    @field_serializer("strategy")
    def _write_strategy(self, strategy: Strategy) -> dict[str, Any]:
        return {"name": name_of(strategy), **strategy.model_dump(mode="json", exclude_defaults=True)}


class Execution(Model):
    """How runs are carried out. None of it changes what a run is, so it is no part of its identity."""

    gpus_per_run: int = Field(default=1, ge=1, description="processes of a run, each on a GPU (or a core) of its own")
    nodes_per_run: int = Field(default=1, ge=1, description="machines that they are spread over: engine slurm only")
    runs_per_gpu: int = Field(default=1, ge=1, description="runs that share a GPU")
    time_limit_minutes: float | None = Field(default=None, gt=0, description="of an attempt; its checkpoint stays")
    retries: int = Field(default=2, ge=0, description="after a failure that a retry can mend, as a killed process")
    keep: Literal["last", "best", "all"] = Field(
        default="last",
        description="weights kept: the final ones; the best by intermediate AP.b too; every checkpoint's",
    )
    evaluate_every: int | None = Field(default=None, ge=1, description="iterations between evaluations while training")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Execution:
        if self.gpus_per_run > 1 and self.runs_per_gpu > 1:
            raise located(("runs_per_gpu",), f"a run has {self.gpus_per_run} GPUs of its own: take one of the two as 1")
        if self.gpus_per_run % self.nodes_per_run:
            raise located(("nodes_per_run",), f"does not divide gpus_per_run, {self.gpus_per_run}")
        if self.keep == "best" and self.evaluate_every is None:
            raise located(("keep",), "best needs intermediate evaluations: set execution.evaluate_every")
        return self


def canonical(config: RunConfig) -> dict[str, Any]:
    """JSON-ready, without what equals its default: `RunConfig.model_validate` of it gives the configuration back."""
    return config.model_dump(mode="json", exclude_defaults=True)


class Experiment(Model):
    """One experiment file: what every run shares, and the axes of a grid or the space of a search.

    A key of ``run``, ``warm_start``, ``grid`` or ``search.space`` is a field of RunConfig or a dotted path
    (``strategy.samples_per_class``).
    ``variants`` are runs with a name: each overlays ``run`` with fields of its own, and has every cell of the grid.
    ``warm_start`` overlays a cell's own configuration: the base run whose weights the cell starts from.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    baseline: str = Field(default="none", description="the strategy that the tables' differences are taken to")
    run: dict[str, Any] = {}
    warm_start: dict[str, Any] | None = None
    execution: Execution = Execution()
    reference_gpus: int | None = Field(default=None, ge=1, description="what batch sizes are for; on others, scaled")
    variants: dict[str, dict[str, Any]] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    search: SearchConfig | None = None
    _batch_size: int | None = PrivateAttr(default=None)

    def at_batch_size(self, batch_size: int | None) -> Experiment:
        """The experiment with batches of so many images (none: as written) on however many GPUs, its runs scaled."""
        result = self.model_copy(update={"reference_gpus": None})
        for name in ("cells", "cells_of_variants", "search_points"):  # computed anew
            result.__dict__.pop(name, None)
        result._batch_size = batch_size
        return result

    @cached_property
    def cells(self) -> tuple[RunConfig, ...]:
        """The configurations of the variants and the grid, the last axis varying fastest; none of a search."""
        if self.search is not None:
            return ()
        return tuple(cell for cells in self.cells_of_variants.values() for cell in cells)

    @cached_property
    def cells_of_variants(self) -> dict[str, tuple[RunConfig, ...]]:
        """Each variant's cells by its name; those of a file without variants under the name ""."""
        axes = [
            [(axis, value, ("grid", axis, i)) for i, value in enumerate(values)] for axis, values in self.grid.items()
        ]
        variants: dict[str, list[Setting]] = {
            name: [(key, value, ("variants", name, key)) for key, value in fields.items()]
            for name, fields in self.variants.items()
        }
        return {
            name: tuple(self._resolved([*own, *choice]) for choice in itertools.product(*axes))
            for name, own in (variants or {"": []}).items()
        }

    @cached_property
    def search_points(self) -> tuple[RunConfig, ...]:
        """Configurations in which each choice and each bound of the search space occurs; none of a grid."""
        axes = [] if self.search is None else self.search.candidates()
        return tuple(
            self._point(setting, [*axes[:i], *axes[i + 1 :]]) for i, axis in enumerate(axes) for setting in axis
        )

    def trial(self, params: Mapping[str, Any]) -> RunConfig:
        """The configuration of a search's trial. Raises ValidationError where no run can have it."""
        assert self.search is not None
        return self._resolved(self.search.settings(params))

    @model_validator(mode="after")
    def _every_cell_is_a_run(self) -> Experiment:
        variants: dict[Location, dict[str, Any]] = {("variants", name): own for name, own in self.variants.items()}
        sections = {("run",): self.run, ("grid",): self.grid, ("warm_start",): self.warm_start or {}, **variants}
        for section, keys in sections.items():
            for key in filter(_is_of_base_run, keys):
                raise located((*section, key), "belongs at the top of the file, beside run and grid")
        for key in self.warm_start or {}:
            if key in SHAPES_WEIGHTS:
                raise located(("warm_start", key), "is that of the runs which start from the base run: leave it out")
        for axis in self.grid:
            for section, keys in ((("run",), self.run), *variants.items()):
                if axis in keys:
                    raise located(
                        (*section, axis), f"is an axis of the grid, too: give it once (as an axis: grid.{axis}=[...])"
                    )
        for key in self.run if variants else ():
            if all(key in own for own in variants.values()):
                raise located(("run", key), "has no effect: every variant sets it")
        if self.search is not None:
            self._check_search(self.search)
        used = {name_of(config.strategy) for config in (*self.cells, *self.search_points)}
        if "baseline" in self.model_fields_set and self.baseline not in used:
            near = did_you_mean(self.baseline, used)
            raise located(("baseline",), f"no run of the experiment has the strategy '{self.baseline}'{near}")
        return self

    def _check_search(self, search: SearchConfig) -> None:
        for section, other in (("a grid", self.grid), ("variants", self.variants)):
            if other:
                raise located(("search",), f"a file has {section} or a search, not both: leave one of them out")
        for key in search.space:
            if key.partition(".")[0] not in RunConfig.model_fields:
                raise located(("search", "space", key), f"unknown key{did_you_mean(key, RunConfig.model_fields)}")
            if _is_of_base_run(key):
                raise located(("search", "space", key), "belongs at the top of the file, beside run and search")
            if key in self.run:
                raise located(("search", "space", key), "is set in run, too: give it once")
        if search.pruner is not None and self.execution.evaluate_every is None:
            raise located(("search", "pruner"), "prunes by intermediate evaluations: set execution.evaluate_every")

    def _point(self, setting: Setting, others: Sequence[Sequence[Setting]]) -> RunConfig:
        """A run that has the setting, with the first of the others' that go with it."""
        refusal: ValidationError | None = None
        for rest in itertools.islice(itertools.product(*others), TRIED_COMBINATIONS):
            try:
                return self._resolved([setting, *rest])
            except ValidationError as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _resolved(self, settings: Iterable[Setting]) -> RunConfig:
        """``run`` with settings over it, and its base run's configuration, both scaled."""
        config = self._as_written(settings)
        if config.warm_start is not None:
            base = scaled(config.warm_start, self._batch_size or self._share_of(config.warm_start.batch_size))
            config = config.model_copy(update={"warm_start": base})
        return scaled(config, self._batch_size or self._share_of(config.batch_size))

    def _share_of(self, batch_size: int) -> int:
        """As many images a GPU as on the reference GPUs, on all GPUs of a run together."""
        gpus, reference = self.execution.gpus_per_run, self.reference_gpus
        if reference is None or reference == gpus:
            return batch_size
        if batch_size % reference:
            raise located(("reference_gpus",), f"{reference} GPUs cannot share a batch of {batch_size} images evenly")
        return batch_size // reference * gpus

    def _as_written(self, settings: Iterable[Setting]) -> RunConfig:
        shared = [(key, value, ("run", key)) for key, value in self.run.items()]
        draft = Draft({}, {}).overlaid([*shared, *settings])
        if self.warm_start is not None:
            base = draft.overlaid([(key, value, ("warm_start", key)) for key, value in self.warm_start.items()])
            return draft.resolve(warm_start=base.resolve())
        return draft.resolve()


def _is_of_base_run(key: str) -> bool:
    return key.partition(".")[0] == "warm_start"


class Draft:
    """A run's configuration while it is put together, with the place in the experiment file of each of its values."""

    def __init__(self, values: Mapping[str, Any], places: Mapping[Location, Location]) -> None:
        self.values = dict(values)
        self.places = dict(places)

    def overlaid(self, settings: Iterable[Setting]) -> Draft:
        """With (key, value, place) laid over it; whole fields first, so that a dotted key changes what they hold."""
        result = Draft(self.values, self.places)
        for key, value, place in sorted(settings, key=lambda setting: setting[0].count(".")):
            field, _, part = key.partition(".")
            if part:
                whole = result.values.get(field, {})
                if not isinstance(whole, str | dict):
                    raise located(place, f"'{field}' is {reprlib.repr(whole)}, which has no '{part}'")
                parts = {"name": whole} if isinstance(whole, str) else whole
                result.values[field] = {**parts, part: value}
                result.places[field, part] = place
            else:
                result.values[field] = value
                result.places = {path: old for path, old in result.places.items() if path[0] != field}
                result.places[(field,)] = place
        return result

    def resolve(self, warm_start: RunConfig | None = None) -> RunConfig:
        """The configuration. Raises ValidationError whose locations are places in the experiment file."""
        fields = {**self.values, "warm_start": warm_start}
        by_backbone = isinstance(fields.get("weights"), dict)
        if by_backbone:
            fields["weights"] = self._weights_of_backbone(fields["weights"])
        try:
            config = RunConfig.model_validate(fields)
        except ValidationError as error:
            details = error.errors()[0]
            raise located(self._place(details["loc"]), explain(details)) from error
        # By backbone, they are looked for when runs are planned: the shipped files name what is still to be downloaded.
        if config.weights is not None and not by_backbone and not Path(config.weights).is_file():
            raise located(self._place(("weights",)), f"no such file: {config.weights}")
        return config

    def _weights_of_backbone(self, files: dict[str, Any]) -> Any:
        for name in files:
            if name not in backbones():
                raise located(self._place(("weights", name)), f"unknown backbone{did_you_mean(name, backbones())}")
        backbone = self.values.get("backbone")
        if backbone in backbones() and backbone not in files:
            raise located(self._place(("weights",)), f"no file for {backbone}: give one, or null for random weights")
        return files.get(str(backbone))

    def _place(self, location: Location) -> Location:
        for length in range(len(location), 0, -1):
            if location[:length] in self.places:
                return (*self.places[location[:length]], *location[length:])
        inside = [place for path, place in self.places.items() if path[: len(location)] == location]
        return inside[0] if inside else ("run", *location)


def load_recipe(name: str) -> RunConfig:
    """The run that ``lvis_v0.5/r50_rio`` names: the variant r50_rio of a file in experiments/lvis_v0.5.

    Raises UserError where there is none.
    """
    runs = {}
    for file in sorted(EXPERIMENTS.glob("*/*.yaml")):
        experiment = load_experiment(file)
        for variant in experiment.variants:
            runs[f"{file.parent.name}/{variant}"] = experiment.cells_of_variants[variant][0]
    if name not in runs:
        raise UserError(f"no recipe is named '{name}'{did_you_mean(name, runs)}")
    return runs[name]


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    An override is ``run.iterations=20``, ``iterations=20`` (the same), or ``grid.seed=[0,1]``.
    Raises UserError, one line.
    """
    source = YamlSource(Path(path), overrides, root_keys=list(Experiment.model_fields))
    source.data.setdefault("name", Path(path).stem)
    try:
        return Experiment.model_validate(source.data)
    except ValidationError as error:
        details = error.errors()[0]
        raise source.error(details["loc"], explain(details)) from error


def _one_of(what: str, name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise ValueError(f"unknown {what} '{name}'{did_you_mean(name, names)}")
    return name
