"""What recipe files set, and runs at another batch size than theirs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rio_bench.yaml_source import YamlSource

if TYPE_CHECKING:
    from rio_bench.config import Experiment, RunConfig


def recipe_settings(recipe: Path, backbone: Path) -> dict[str, Any]:
    """What the files set, the backbone's over the recipe's, as Detectron2 reads them."""
    return _overlaid(file_settings(recipe), file_settings(backbone))


def file_settings(file: Path) -> dict[str, Any]:
    """A file's settings over those of the file that its `_BASE_` names, as Detectron2 reads them."""
    settings = YamlSource(file).data
    base = settings.pop("_BASE_", None)
    return settings if base is None else _overlaid(file_settings(file.parent / base), settings)


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = {
        key: _overlaid(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict) else value
        for key, value in above.items()
    }
    return {**below, **merged}


def scaled(config: RunConfig, batch_size: int) -> RunConfig:
    """The run, and its base run, with other batches: the learning rate in proportion, the iterations inversely.

    The linear scaling rule of Goyal et al., arXiv 1706.02677. As many images are seen; the steps of the learning rate
    are shares of the schedule, so they move with it. The warm-up stays as many iterations as the recipe has.
    """
    if config.warm_start is not None:
        config = config.model_copy(update={"warm_start": scaled(config.warm_start, batch_size)})
    if batch_size == config.batch_size:
        return config
    return config.model_copy(
        update={
            "batch_size": batch_size,
            "learning_rate": learning_rate(config) * batch_size / config.batch_size,
            "iterations": max(1, round(config.iterations * config.batch_size / batch_size)),
        }
    )


def learning_rate(config: RunConfig) -> float:
    """The run's own, or its recipe's."""
    if config.learning_rate is not None:
        return config.learning_rate
    from rio_bench.config import backbone_file, recipe_file

    return recipe_settings(recipe_file(config.recipe), backbone_file(config.backbone))["SOLVER"]["BASE_LR"]


def told(experiment: Experiment, batch_size: int) -> list[str]:
    """Lines that tell what `scaled` does to the runs of an experiment: one for each of their batch sizes."""
    runs: Iterable[RunConfig] = (*experiment.cells, *experiment.search_points)
    first_of_size = {run.batch_size: run for run in reversed(list(runs)) if run.batch_size != batch_size}
    lines = []
    for size, run in sorted(first_of_size.items()):
        new = scaled(run, batch_size)
        lines.append(
            f"batches of {batch_size} instead of {size}: learning rates times {batch_size / size:g}, iterations times"
            f" {size / batch_size:g} (linear scaling), as {learning_rate(run):g} -> {learning_rate(new):g}"
            f" and {run.iterations:,} -> {new.iterations:,}"
        )
    return lines
