"""The command `eval`: a run, a detector's weights, or a detections file of any detector, to a table of its AP."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rio_bench import datasets, find
from rio_bench.detection import known_warnings
from rio_bench.errors import UserError
from rio_bench.records import Metrics, RunFolder

if TYPE_CHECKING:
    from rio_bench.datasets.lvis import Split

CATEGORIES_FILE = "categories.csv"
COLUMNS = ("AP", "APr", "APc", "APf", "AP50", "AP75", "AP_fixed", "APr_fixed", "APc_fixed", "APf_fixed")

logger = logging.getLogger(__name__)


def evaluate(
    run: Path | None,
    weights: Path | None,
    recipe: str | None,
    detections: Path | None,
    dataset: str | None,
    output: Path | None,
    device: str,
    tta: bool,
) -> str:
    """Evaluate a run, weights with a recipe, or a detections file on a data set's validation pictures.

    Returns the table as text.

    output: a folder that gets the AP of each category (categories.csv) and, of weights, the detections file.
    """
    options = {"run": run, "weights": weights, "recipe": recipe, "detections": detections, "dataset": dataset}
    given = {name: value for name, value in options.items() if value is not None}
    if run is not None and given.keys() == {"run"}:
        return evaluate_weights(weights_of(RunFolder(run)), str(run), output, device, tta)
    if weights is not None and recipe is not None and given.keys() == {"weights", "recipe"}:
        return evaluate_weights(weights, recipe, output, device, tta)
    if detections is not None and dataset is not None and given.keys() == {"detections", "dataset"} and not tta:
        return evaluate_detections(detections, dataset, output)
    raise UserError(
        "give the folder of a run, --weights FILE with --recipe NAME, or --detections FILE with --dataset NAME"
        " (without --tta)"
    )


def weights_of(folder: RunFolder) -> Path:
    """A run's final weights, or its newest checkpoint. UserError where the folder has none, or is no run's."""
    find.run_in(folder)
    weights = folder.newest_weights()
    if weights is None:
        raise UserError(
            f"{folder.checkpoints}: no weights there: the run has not come to its first checkpoint, or was pruned"
        )
    return weights


def evaluate_weights(weights: Path, recipe: str, output: Path | None, device: str, tta: bool) -> str:
    """Detect in the validation pictures of the recipe's data set, and evaluate.

    Args:
        weights: a released RIO model, another Detectron2 checkpoint, or a run's model_final.pth.
        recipe: a recipe's name (lvis_v0.5/r50_rio), or the folder of a run.
        device: "auto" (a GPU where there is one), "cpu", "cuda".
        tta: with Detectron2's test-time augmentation.

    Raises UserError where something cannot be read or written, or the weights do not fit the recipe.
    """
    config = find.recipe_of(recipe)
    find.check_file("--weights", weights)
    with folder_for(output) as folder, known_warnings.left_out():
        device = chosen_device(device)
        val = datasets.load_val(config.dataset)
        from rio_bench.datasets.lvis import read_split
        from rio_bench.detection.augmented import with_augmentation
        from rio_bench.detection.inference import detect
        from rio_bench.detection.model import build_detector
        from rio_bench.detection.recipe import build_cfg
        from rio_bench.detection.weights import load_detector

        name = datasets.label(config.dataset)
        split = read_split(val, skip_empty=False)
        missing = [record["file_name"] for record in split.records if not Path(record["file_name"]).is_file()]
        if missing:
            raise UserError(f"{name}: {len(missing):,} validation pictures are missing, such as {missing[0]}")
        cfg = build_cfg(config, len(split.categories), device)
        model = build_detector(config, cfg)
        logger.info(load_detector(model, weights, config.backbone))
        file = folder / RunFolder(folder).detections_file.name
        detect(with_augmentation(model, cfg) if tta else model, cfg, split, device, file)
        title = f"{name} val: {weights.name}{' with test-time augmentation' if tta else ''}"
        return _measured(val, file, output, title)


def evaluate_detections(detections: Path, dataset: str, output: Path | None) -> str:
    """As `evaluate_weights`, of a file in LVIS's result format. Raises UserError as detection.evaluation does.

    dataset: its name, or that of a recipe or the folder of a run, whose data set it is.
    """
    of = find.dataset_of(dataset)
    find.check_file("--detections", detections)
    with folder_for(output):
        val = datasets.load_val(of, pictures=False)
        return _measured(val, detections, output, f"{datasets.label(of)} val: {detections.name}")


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
