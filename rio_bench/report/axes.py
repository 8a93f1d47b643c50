"""The axes of a table: which fields of a run's configuration are its rows and its columns, and what they are called.

An axis is "method" (the strategy and whatever else differs within the experiment), a field of a configuration (seed,
backbone, classifier ...) or a dotted path into one (strategy.samples_per_class).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rio_bench.errors import UserError, did_you_mean
from rio_bench.plan import NOT_IN_LABEL

Part = dict[str, Any]  # dotted path -> value, defaults left out

METHOD = "method"
NOT_IN_METHOD = set(NOT_IN_LABEL) - {"strategy", "classifier"}  # fields that tables show beside the method
PLAIN = (
    "strategy.name",
    "classifier.name",
    "backbone",
    "dataset",
    "recipe",
)  # values that tell their field by themselves
ABSENT = "–"  # a strategy without the hyperparameter


def check_axis(option: str, name: str, configs: Sequence[dict[str, Any]]) -> None:
    """Raises UserError where no configuration has, or could have, such a field."""
    from rio_bench.config import ClassifierConfig, RunConfig

    known = {METHOD, *RunConfig.model_fields, *(f"classifier.{field}" for field in ClassifierConfig.model_fields)}
    for config in configs:
        known.update(flat(config))
    if name in known:
        return
    for strategy in {config["strategy"]["name"] for config in configs}:
        known.update(f"strategy.{field}" for field in _hyperparameters(strategy) or ())
    if name not in known:
        raise UserError(f"{option}: no run has the field '{name}'{did_you_mean(name, known)}")


def flat(config: dict[str, Any], prefix: str = "") -> Part:
    """Dotted path -> value. A data set of one's own files stays one value."""
    part = {}
    for name, value in config.items():
        if isinstance(value, dict) and name != "dataset":
            part.update(flat(value, f"{prefix}{name}."))
        else:
            part[prefix + name] = value
    return part


def split(config: dict[str, Any], first: str, second: str) -> tuple[Part, Part, Part]:
    """The fields of two axes and the rest; a field of both belongs to the narrower axis: strategy.name of strategy."""
    parts: tuple[Part, Part, Part] = {}, {}, {}
    narrow_first = sorted([(first, parts[0]), (second, parts[1])], key=lambda axis: _width(axis[0]))
    for path, value in flat(config).items():
        of_axis = [part for axis, part in narrow_first if _covers(axis, path)]
        (of_axis[0] if of_axis else parts[2])[path] = value
    return parts


def _width(axis: str) -> int:
    """The narrower of two axes that share fields has the smaller one."""
    return 1 if axis == METHOD else -axis.count(".")


def _covers(axis: str, path: str) -> bool:
    """A base run's field goes with the run's own."""
    own = path
    while own.startswith("warm_start.") and not axis.startswith("warm_start"):
        own = own.removeprefix("warm_start.")
    if axis == METHOD:
        return path.partition(".")[0] not in NOT_IN_METHOD
    return own == axis or own.startswith(f"{axis}.")


def value(config: dict[str, Any], path: str) -> Any:
    """A field's value, its default where it is left out; ABSENT where the configuration cannot have it."""
    part = flat(config)
    if path in part:
        return part[path]
    from rio_bench.config import ClassifierConfig, RunConfig

    owner, _, field = path.rpartition(".")
    if owner == "strategy":
        hyperparameters = _hyperparameters(config["strategy"]["name"])
        return "default" if hyperparameters is None else hyperparameters.get(field, ABSENT)
    fields = {"": RunConfig.model_fields, "classifier": ClassifierConfig.model_fields}.get(owner, {})
    return fields[field].default if field in fields else ABSENT


def _hyperparameters(strategy: str) -> dict[str, Any] | None:
    """Name -> default; None where the strategy is not installed here."""
    from rio_bench.strategy import load

    try:
        return {
            name: field.get_default(call_default_factory=True) for name, field in load(strategy).model_fields.items()
        }
    except UserError:
        return None


def is_whole(axis: str) -> bool:
    """Whether an axis is several fields, named together."""
    return axis in (METHOD, "strategy", "classifier", "warm_start")


def labels(parts: Sequence[Part], always: Iterable[str] = ("strategy.name",)) -> list[str]:
    """Names for parts, by what differs among them: "rio (samples_per_class=8), linear".

    Hyperparameters are told where they differ within a strategy; the paths of `always` also where nothing differs.
    """
    by_strategy: dict[Any, list[Part]] = {}
    for part in parts:
        by_strategy.setdefault(part.get("strategy.name"), []).append(part)
    differing = set(_differing(parts))
    differing_within = {name: set(_differing(group)) for name, group in by_strategy.items()}
    return [_label(part, differing | set(always), differing_within[part.get("strategy.name")]) for part in parts]


def _differing(parts: Sequence[Part]) -> list[str]:
    paths = dict.fromkeys(path for part in parts for path in part)
    return [path for path in paths if len({key(part.get(path, ABSENT)) for part in parts}) > 1]


def _label(part: Part, told: set[str], told_hyperparameters: set[str]) -> str:
    def setting(path: str) -> str:
        return f"{path if path.startswith('warm_start') else path.rpartition('.')[2]}={text(part[path])}"

    of_strategy = [path for path in part if path.startswith("strategy.") and path != "strategy.name"]
    hyperparameters = [setting(path) for path in of_strategy if path in told_hyperparameters]
    name = text(part["strategy.name"]) if "strategy.name" in part and "strategy.name" in told else ""
    if hyperparameters:
        name = f"{name} ({', '.join(hyperparameters)})" if name else ", ".join(hyperparameters)
    config = {"strategy": {"name": part.get("strategy.name", "")}}
    plain = [text(part.get(path, value(config, path))) for path in PLAIN[1:] if path in told]
    others = [setting(path) for path in part if path in told and path not in PLAIN and path not in of_strategy]
    return ", ".join(filter(None, [name, *plain, *others])) or "default"


def text(of_value: Any) -> str:
    if isinstance(of_value, dict):
        return str(of_value.get("name", of_value))
    return "none" if of_value is None else str(of_value)


def heading(axis: str, of_value: str) -> str:
    """A value that does not tell its axis by itself is told with it: "seed 0"."""
    return of_value if is_whole(axis) or axis in PLAIN else f"{axis.removeprefix('strategy.')} {of_value}"


def key(of_value: Any) -> str:
    """Equal for equal values."""
    return json.dumps(of_value, sort_keys=True)


def in_order(values: Iterable[Any]) -> list[Any]:
    """Distinct values: numbers ascending, with what is no number after them; else in the order of appearance."""
    distinct = list({key(one): one for one in values}.values())
    numbers = [one for one in distinct if isinstance(one, int | float) and not isinstance(one, bool)]
    others = [one for one in distinct if key(one) not in set(map(key, numbers))]
    return sorted(numbers) + others if numbers and all(one in (ABSENT, "default", None) for one in others) else distinct
