"""What recipe files set, and runs at another batch size than their experiment file's."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
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
    """The run with other batches: the learning rate in proportion, the iterations and the warm-up inversely.

    The linear scaling rule of Goyal et al., arXiv 1706.02677. As many images are seen; the steps of the learning rate
    are shares of the schedule, so they move with it. Its base run is a run of its own, and stays.
    """
    before = config.batch_size
    if batch_size == before:
        return config
    result = config.model_copy(
        update={
            "batch_size": batch_size,
            "learning_rate": learning_rate(config) * batch_size / before,
            "iterations": max(1, round(config.iterations * before / batch_size)),
        }
    )
    warmup = round(warmup_iterations(config) * before / batch_size)
    # A run that has it anyhow is the run that it always was.
    return result if warmup_iterations(result) == warmup else result.model_copy(update={"warmup_iterations": warmup})


def learning_rate(config: RunConfig) -> float:
    """The run's own, or its recipe's."""
    return _solver(config.recipe, config.backbone)["BASE_LR"] if config.learning_rate is None else config.learning_rate


def warmup_iterations(config: RunConfig) -> int:
    """The run's own, or its recipe's: of a short schedule at most a tenth, as it would be most of it else."""
    if config.warmup_iterations is not None:
        return config.warmup_iterations
    return min(_solver(config.recipe, config.backbone)["WARMUP_ITERS"], config.iterations // 10)


@cache
def _solver(recipe: str, backbone: str) -> dict[str, Any]:
    from rio_bench.config import backbone_file, recipe_file

    return recipe_settings(recipe_file(recipe), backbone_file(backbone))["SOLVER"]


def told(experiment: Experiment) -> list[str]:
    """Lines that tell how the runs of an experiment differ from its file's: one for each of its batch sizes."""
    written = experiment.at_batch_size(None)
    pairs: dict[int, tuple[RunConfig, RunConfig]] = {}
    for before, after in zip(_runs(written), _runs(experiment), strict=True):
        if after.batch_size != before.batch_size:
            pairs.setdefault(before.batch_size, (before, after))
    gpus, reference = experiment.execution.gpus_per_run, experiment.reference_gpus
    because = "" if reference is None else f"{gpus} GPU{'' if gpus == 1 else 's'} a run instead of {reference}, "
    lines = []
    for size, (before, after) in sorted(pairs.items()):
        factor = after.batch_size / size
        can_be_kept = reference is not None and size % gpus == 0
        keeping = f"; --batch-size {size} keeps the file's own" if can_be_kept else ""
        lines.append(
            f"{because}batches of {after.batch_size} instead of {size}: learning rates times {factor:g}, iterations and"
            f" warm-up times {1 / factor:g} (linear scaling), as {learning_rate(before):g} -> {learning_rate(after):g}"
            f" and {before.iterations:,} -> {after.iterations:,}{keeping}"
        )
    return lines


def _runs(experiment: Experiment) -> Iterable[RunConfig]:
    """All, base runs too."""
    for config in (*experiment.cells, *experiment.search_points):
        yield config
        if config.warm_start is not None:
            yield config.warm_start
