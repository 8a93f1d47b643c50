"""The section ``search`` of an experiment file: which fields of a run are searched, how, and for what."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, InstanceOf, SecretStr, field_validator, model_validator

from rio_bench.errors import did_you_mean
from rio_bench.records import METRICS
from rio_bench.strict import Model, located, refuse_unknown_keys
from rio_bench.yaml_source import Location

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Scalar = bool | int | float | str | None


class Choices(Model):
    """Values to choose from, of any kind that a field can have."""

    values: list[Any]

    @model_validator(mode="after")
    def _are_some_and_distinct(self) -> Choices:
        if not self.values:
            raise ValueError("expected at least one choice, got an empty list")
        for index, label in enumerate(self.labels):
            if label in self.labels[:index]:
                raise located((index,), f"{reprlib.repr(label)} is there twice")
        return self

    def __str__(self) -> str:
        return " or ".join(str(label) for label in self.labels)

    @property
    def labels(self) -> list[Scalar]:
        """What stands for each value in a study, which holds no lists and no mappings."""
        return [v if isinstance(v, Scalar) else json.dumps(v, sort_keys=True) for v in self.values]

    @property
    def candidates(self) -> list[tuple[Any, Location]]:
        """The values that stand for all, and where each is in the file."""
        return [(value, (index,)) for index, value in enumerate(self.values)]

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.labels)

    def value_of(self, param: Any) -> Any:
        """The field's value that a study's parameter stands for."""
        return self.values[self.labels.index(param)]


def read_number(data: Any) -> Any:
    if isinstance(data, bool) or not isinstance(data, int | float) or not math.isfinite(data):
        raise ValueError(f"expected a number, got {reprlib.repr(data)}")
    return data


class Range(Model):
    """Numbers from low to high, both included; whole ones where both bounds are."""

    low: Annotated[int | float, BeforeValidator(read_number)]
    high: Annotated[int | float, BeforeValidator(read_number)]
    log: bool = False
    step: Annotated[int | float, BeforeValidator(read_number)] | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low > self.high:
            raise located(("low",), f"{self.low} is more than high, {self.high}")
        if self.log and self.low <= 0:
            raise located(("low",), f"expected more than 0 on a log scale, got {self.low}")
        if self.step is None:
            return self
        if self.log:
            raise located(("step",), "a log scale has no steps: leave out step or log")
        if self.step <= 0:
            raise located(("step",), f"expected more than 0, got {self.step}")
        if self.is_whole and not isinstance(self.step, int):
            raise located(("step",), f"expected a whole number, as low and high are, got {self.step}")
        return self

    def __str__(self) -> str:
        scale = ", log scale" if self.log else "" if self.step is None else f", steps of {self.step}"
        return f"{self.low} to {self.highest}{scale}"

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def highest(self) -> int | float:
        """The last of the steps from low that is not over high."""
        if self.step is None:
            return self.high
        # A hair more: (0.3 - 0.1) / 0.1 is 1.9999999999999998. Not over high: 0.1 + 2 * 0.1 is 0.30000000000000004.
        return min(self.high, self.low + math.floor((self.high - self.low) / self.step + 1e-9) * self.step)

    @property
    def candidates(self) -> list[tuple[Any, Location]]:
        return [(self.low, ("low",)), (self.highest, ("high",))]

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(int(self.low), int(self.highest), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.highest, log=self.log, step=self.step)

    def value_of(self, param: Any) -> Any:
        return param

    def param_of(self, value: Any) -> int | float | None:
        """The parameter that gives a field's value; None where the range does not hold it."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.highest:
            return None
        if self.is_whole and value != int(value):
            return None
        steps = 0 if self.step is None else (value - self.low) / self.step
        if abs(steps - round(steps)) > 1e-9:
            return None
        return int(value) if self.is_whole else value


Axis = Choices | Range


class Component(Model):
    """One of Optuna's samplers or pruners. In a file, ``TPESampler`` stands for ``{name: TPESampler}``."""

    name: str
    arguments: dict[str, Any] = {}

    def __str__(self) -> str:
        return self.name + (f"({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})" if self.arguments else "")


def read_axis(data: Any) -> Axis:
    if isinstance(data, Choices | Range):
        return data
    if isinstance(data, list):
        return Choices(values=data)
    if isinstance(data, dict):
        refuse_unknown_keys(data, Range.model_fields)
        return Range.model_validate(data)
    raise ValueError(f"expected a list of choices or {{low: ..., high: ...}}, got {reprlib.repr(data)}")


def read_sampler(data: Any) -> Component:
    return _read_component("sampler", "TPESampler", data)


def read_pruner(data: Any) -> Component:
    return _read_component("pruner", "MedianPruner", data)


def _read_component(kind: Any, example: str, data: Any) -> Component:
    from rio_bench import samplers

    if isinstance(data, Component):
        return data
    if isinstance(data, str):
        data = {"name": data}
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ValueError(
            f"expected the name of one of Optuna's {kind}s ({example}) or {{name: ..., argument: ...}},"
            f" got {reprlib.repr(data)}"
        )
    arguments = {key: value for key, value in data.items() if key != "name"}
    samplers.check(kind, data["name"], arguments)
    return Component(name=data["name"], arguments=arguments)


class SearchConfig(Model):
    """What is searched: a key of ``space`` is a field of a run or a dotted path, as in a grid."""

    sampler: Annotated[Component, BeforeValidator(read_sampler)] = Component(name="TPESampler")
    trials: int = Field(ge=1, description="that end, in all")
    objectives: list[str] = Field(min_length=1, description="columns of the tables, all maximised")
    space: dict[str, Annotated[InstanceOf[Choices] | InstanceOf[Range], BeforeValidator(read_axis)]] = Field(
        min_length=1
    )
    pruner: Annotated[Component, BeforeValidator(read_pruner)] | None = None
    storage: SecretStr | None = Field(
        default=None, description="an Optuna storage URL, for a team; none: the study lies in the result folder"
    )

    @field_validator("objectives", mode="before")
    @classmethod
    def _one_or_several(cls, data: Any) -> Any:
        return [data] if isinstance(data, str) else data

    @field_validator("objectives")
    @classmethod
    def _are_reported(cls, objectives: list[str]) -> list[str]:
        for index, objective in enumerate(objectives):
            if objective not in METRICS:
                raise located((index,), f"no run reports '{objective}'{did_you_mean(objective, METRICS)}")
            if objective in objectives[:index]:
                raise located((index,), f"'{objective}' is there twice")
        return objectives

    @field_validator("space", mode="before")
    @classmethod
    def _is_not_empty(cls, data: Any) -> Any:
        if data == {}:
            raise ValueError("expected at least one field of a run to search")
        return data

    @field_validator("storage", mode="before")
    @classmethod
    def _is_a_database(cls, data: Any) -> Any:
        """The value is never shown: it may hold a password."""
        from rio_bench import study_storage

        if data is None or isinstance(data, SecretStr):
            return data
        if not isinstance(data, str) or not study_storage.is_url(data):
            raise ValueError("expected the URL of a database, as in postgresql://USER@HOST/DATABASE")
        return SecretStr(data)

    @model_validator(mode="after")
    def _goes_together(self) -> SearchConfig:
        from rio_bench import samplers

        if self.pruner is not None and len(self.objectives) > 1:
            raise located(("pruner",), "Optuna prunes for one objective only: leave it out, or take one objective")
        samplers.rehearse(self.sampler, self.pruner, self.distributions(), len(self.objectives))
        return self

    def __str__(self) -> str:
        pruned = f", pruned by {self.pruner}" if self.pruner else ""
        return f"{self.trials} trials by {self.sampler} for {' and '.join(self.objectives)}{pruned}"

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space in Optuna's terms."""
        return {key: axis.distribution() for key, axis in self.space.items()}

    def candidates(self) -> list[list[tuple[str, Any, Location]]]:
        """For each key its choices or its bounds: key, value, place in the experiment file."""
        return [
            [(key, value, ("search", "space", key, *part)) for value, part in axis.candidates]
            for key, axis in self.space.items()
        ]

    def settings(self, params: Mapping[str, Any]) -> list[tuple[str, Any, Location]]:
        """A trial's parameters as key, value, place in the experiment file."""
        return [(key, axis.value_of(params[key]), ("search", "space", key)) for key, axis in self.space.items()]
