"""The command `eval`: a detector's weights, or a detections file of any detector, to a table of average precision."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rio_bench import datasets
from rio_bench.config import RunConfig, load_recipe
from rio_bench.errors import UserError
from rio_bench.records import Metrics, RunFolder

if TYPE_CHECKING:
    from rio_bench.datasets.lvis import Split

CATEGORIES_FILE = "categories.csv"
COLUMNS = ("AP", "APr", "APc", "APf", "AP50", "AP75", "AP_fixed", "APr_fixed", "APc_fixed", "APf_fixed")

logger = logging.getLogger(__name__)


def evaluate(
    weights: Path | None,
    recipe: str | None,
    detections: Path | None,
    dataset: str | None,
    output: Path | None,
    device: str,
    tta: bool,
) -> str:
    """Evaluate weights with a recipe, or a detections file on a data set's validation pictures; the table as text.

    output: a folder that gets the AP of each category (categories.csv) and, of weights, the detections file.
    """
    if weights is not None and recipe is not None and detections is None and dataset is None:
        return evaluate_weights(weights, recipe, output, device, tta)
    if weights is None and recipe is None and detections is not None and dataset is not None and not tta:
        return evaluate_detections(detections, dataset, output)
    raise UserError("give --weights FILE with --recipe NAME, or --detections FILE with --dataset NAME (without --tta)")


def evaluate_weights(weights: Path, recipe: str, output: Path | None, device: str, tta: bool) -> str:
    """Detect in the validation pictures of the recipe's data set, and evaluate.

    Args:
        weights: a released RIO model, another Detectron2 checkpoint, or a run's model_final.pth.
        recipe: a recipe's name (lvis_v0.5/r50_rio), or the folder of a run.
        device: "auto" (a GPU where there is one), "cpu", "cuda".
        tta: with Detectron2's test-time augmentation.

    Raises UserError where something cannot be read or written, or the weights do not fit the recipe.
    """
    config = config_of(recipe)
    device = chosen_device(device)
    from rio_bench.datasets.lvis import read_split
    from rio_bench.detection.augmented import with_augmentation
    from rio_bench.detection.inference import detect
    from rio_bench.detection.model import build_detector
    from rio_bench.detection.recipe import build_cfg
    from rio_bench.detection.weights import load_detector

    val = datasets.load_val(config.dataset)
    split = read_split(val, skip_empty=False)
    missing = [record["file_name"] for record in split.records if not Path(record["file_name"]).is_file()]
    if missing:
        raise UserError(
            f"{datasets.label(config.dataset)}: {len(missing):,} validation pictures are missing, such as {missing[0]}"
        )
    cfg = build_cfg(config, len(split.categories), device)
    model = build_detector(config, cfg)
    logger.info(load_detector(model, weights, config.backbone))
    with folder_for(output) as folder:
        file = folder / RunFolder(folder).detections_file.name
        detect(with_augmentation(model, cfg) if tta else model, cfg, split, device, file)
        title = f"{datasets.label(config.dataset)} val: {weights.name}{' with test-time augmentation' if tta else ''}"
        return _measured(val, file, output, title)


def evaluate_detections(detections: Path, dataset: str, output: Path | None) -> str:
    """As `evaluate_weights`, of a file in LVIS's result format. Raises UserError as detection.evaluation does."""
    val = datasets.load_val(dataset)
    with folder_for(output):
        return _measured(val, detections, output, f"{dataset} val: {detections.name}")


def config_of(recipe: str) -> RunConfig:
    """A recipe's configuration, or a run's by its folder. UserError where there is neither."""
    folder = RunFolder(Path(recipe))
    run = folder.read_run() if folder.path.is_dir() else None
    if run is None:
        return load_recipe(recipe)
    from rio_bench.worker import read_config

    return read_config(run, folder)[0]


def chosen_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU found: take --device cpu")
    return device


@contextmanager
def folder_for(output: Path | None) -> Iterator[Path]:
    """The output folder, made before hours of work; a temporary one where none is asked for."""
    if output is None:
        with tempfile.TemporaryDirectory(prefix="rio_bench_eval_") as folder:
            yield Path(folder)
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be made: {error.strerror}") from error
    yield output


def _measured(val: Split, detections: Path, output: Path | None, title: str) -> str:
    from rio_bench.detection import evaluation

    found = evaluation.evaluate(val.annotations, detections)
    if output is not None:
        found.write_csv(output / CATEGORIES_FILE)
        logger.info("the AP of each category: %s", output / CATEGORIES_FILE)
    return table(found.metrics(), title)


def table(metrics: dict[str, Metrics], title: str) -> str:
    """A line for boxes and one for masks."""
    from rio_bench.report.formats import Entry, Line, TextTable
    from rio_bench.report.tables import shown_value
    from rio_bench.report.terminal import terminal

    lines = [
        Line([kind], [Entry(shown_value(getattr(values, column))) for column in COLUMNS], [])
        for kind, values in metrics.items()
    ]
    notes = ["AP_fixed: 10,000 detections of a category, with no limit an image (arXiv 2102.01066)"]
    return terminal(TextTable(title, [""], list(COLUMNS), [], lines, notes))
