"""Optuna's samplers and pruners by their names, checked while an experiment file is read."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter, ValidationError

from rio_bench.errors import did_you_mean
from rio_bench.strict import explain, located, refuse_unknown_keys

if TYPE_CHECKING:
    from optuna.study import Study

    from rio_bench.search_config import Component

Kind = Literal["sampler", "pruner"]
GRID_SAMPLERS = ("GridSampler", "BruteForceSampler")
REHEARSED_TRIALS = 3


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's log lines and warnings kept off the terminal; usable as a decorator."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        optuna.logging.set_verbosity(before)


def classes(kind: Kind) -> dict[str, type]:
    """Those of Optuna that plain values can build, by name."""
    module, base = (optuna.samplers, BaseSampler) if kind == "sampler" else (optuna.pruners, BasePruner)
    public = {name: getattr(module, name) for name in module.__all__ if not name.startswith("Base")}
    found = {name: cls for name, cls in public.items() if inspect.isclass(cls) and issubclass(cls, base)}
    return {name: cls for name, cls in found.items() if name not in GRID_SAMPLERS and not _needs_objects(cls)}


def check(kind: Kind, name: str, arguments: Mapping[str, Any]) -> None:
    """Raises ValueError or a located ValidationError where there is no such sampler or pruner, or not with these."""
    if name in GRID_SAMPLERS:
        raise ValueError(f"{name}: every combination once is what grid: is for; take it instead of search:")
    known = classes(kind)
    if name not in known:
        raise ValueError(f"unknown {kind} '{name}'{did_you_mean(name, known)}")
    parameters = inspect.signature(known[name]).parameters
    plain = {key: _plain_type(parameter.annotation) for key, parameter in parameters.items()}
    types = {key: type_ for key, type_ in plain.items() if type_ is not None}
    refuse_unknown_keys(arguments, types, of=f" of {name}")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in arguments:
            raise located((key,), f"is required by {name}")
    for key, value in arguments.items():
        try:
            TypeAdapter(types[key]).validate_python(value, strict=True)
        except ValidationError as error:
            raise located((key,), explain(error.errors()[0])) from error


def make_sampler(component: Component, seed: int) -> BaseSampler:
    """Each trial's draws follow from the seed, the trial's number and the trials before it.

    So a search that goes on where it stopped, or that several processes share, does not draw the same again.
    """
    arguments = dict(component.arguments)
    stated = arguments.pop("seed", None)
    seed = seed if stated is None else stated
    cls = classes("sampler")[component.name]
    if cls is optuna.samplers.QMCSampler:  # one sequence, whose position is in the study
        return SamplerOfTrial(
            lambda own: cls(**arguments, seed=seed, independent_sampler=optuna.samplers.RandomSampler(own)), seed
        )
    return SamplerOfTrial(lambda own: cls(**arguments, seed=own), seed)


def make_pruner(component: Component | None) -> BasePruner:
    return optuna.pruners.NopPruner() if component is None else classes("pruner")[component.name](**component.arguments)


class SamplerOfTrial(BaseSampler):
    """A sampler built anew for each trial, with a seed of the trial's own."""

    def __init__(self, build: Callable[[int], BaseSampler], seed: int) -> None:
        self._build, self._seed = build, seed
        self._sampler = build(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        own = np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0]
        self._sampler = self._build(int(own))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler.after_trial(study, trial, state, values)


@quiet()
def rehearse(
    sampler: Component, pruner: Component | None, space: Mapping[str, BaseDistribution], num_objectives: int
) -> None:
    """A few trials in memory: what does not go together (one objective only, a missing package) shows before any run.

    Raises a located ValidationError.
    """
    try:
        study = optuna.create_study(
            directions=["maximize"] * num_objectives,
            sampler=make_sampler(sampler, seed=0),
            pruner=optuna.pruners.NopPruner(),
        )
        for _ in range(REHEARSED_TRIALS):
            study.tell(study.ask(dict(space)), [0.0] * num_objectives)
    except ModuleNotFoundError as error:
        raise located(("sampler",), f"{sampler.name} needs {error.name}: pip install {error.name}") from error
    except (ValueError, TypeError, NotImplementedError) as error:
        raise located(("sampler",), _first_line(sampler.name, error)) from error
    if pruner is None:
        return
    try:
        study.pruner = make_pruner(pruner)
        trial = study.ask(dict(space))
        trial.report(0.0, step=1)
        trial.should_prune()
    except (ValueError, TypeError) as error:
        raise located(("pruner",), _first_line(pruner.name, error)) from error


def _first_line(name: str, error: Exception) -> str:
    return f"{name}: {' '.join(str(error).split())}"


def _needs_objects(cls: type) -> bool:
    """Whether it cannot be built from what a file can hold."""
    parameters = inspect.signature(cls).parameters.values()
    return any(p.default is inspect.Parameter.empty and _plain_type(p.annotation) is None for p in parameters)


def _plain_type(annotation: Any) -> Any | None:
    """The type behind an annotation; None where it is one of Python objects, which a file cannot hold."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {"Any": Any})
    except NameError:
        return None
