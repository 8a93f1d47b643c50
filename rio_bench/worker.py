"""One run in one process: train, evaluate, write the record last.

    python -m rio_bench.worker RUN_FOLDER --device cpu

Exit status: 0 with a record written, 2 for what a user can mend, 1 for the rest; then the last line printed starts with
`error:`. Started again after an end without a record, it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from rio_bench.config import RunConfig
from rio_bench.engines.local import end_with_parent
from rio_bench.errors import UserError
from rio_bench.records import Code, Metrics, Record, RunFolder, Seconds, StoredRun, append_json_line

PACKAGES = ("rio_bench", "torch", "torchvision", "detectron2", "sal-detectron2", "numpy", "faster-coco-eval")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rio_bench.worker", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a run's folder with its config.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--initial-weights", type=Path, help="model_final.pth of the base run")
    parser.add_argument("--parent", type=int, help="process id of the harness: the worker ends when it dies")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        end_with_parent(options.parent)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(name)s: %(message)s")
    try:
        do_run(RunFolder(options.folder), options.device, options.initial_weights)
    except UserError as error:
        print(f"error: {error}", flush=True)
        return 2
    except Exception as error:  # whatever it is, the log's last line tells it
        traceback.print_exc(file=sys.stdout)
        print(f"error: {describe(error)}", flush=True)
        return 1
    return 0


def do_run(folder: RunFolder, device: str, initial_weights: Path | None) -> Record:
    """Train and evaluate the run of a folder; returns the record that it wrote there."""
    run = folder.read_run()
    if run is None:
        raise UserError(f"{folder.config_file}: no such file: the harness writes it before it starts a worker")
    config = read_config(run, folder)
    metrics, num_train_images, train_seconds, evaluate_seconds = train_and_evaluate(
        config, folder, device, initial_weights
    )
    seconds: Seconds = {
        "train": train_seconds,
        "evaluate": evaluate_seconds,
        "total": train_seconds + evaluate_seconds,
    }
    record = Record(
        identity=run.identity,
        name=run.name,
        method=run.method,
        experiment=run.experiment,
        config=run.config,
        seed=config.seed,
        metrics=metrics,
        num_train_images=num_train_images,
        passes=config.iterations * config.batch_size / num_train_images,
        base_passes=images_seen(config.warm_start) / num_train_images,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(device),
        device=device_name(device),
        code=code_state(),
        versions=versions(),
        finished=datetime.now().astimezone().isoformat(timespec="seconds"),
    )
    folder.write_record(record)
    return record


def read_config(run: StoredRun, folder: RunFolder) -> RunConfig:
    """The run's configuration. UserError where it is not valid here, as where a strategy is not installed."""
    try:
        return RunConfig.model_validate(run.config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{folder.config_file}: {key}: {first['msg']}") from error


def train_and_evaluate(
    config: RunConfig, folder: RunFolder, device: str, initial_weights: Path | None
) -> tuple[dict[str, Metrics], int, float, float]:
    """Returns the metrics, the number of training images, and the seconds of training and of evaluation."""
    from rio_bench import datasets
    from rio_bench.datasets.frequency import count_frequency
    from rio_bench.datasets.lvis import read_split
    from rio_bench.detection.evaluation import lvis_ap
    from rio_bench.detection.inference import detect
    from rio_bench.detection.model import build_model
    from rio_bench.detection.recipe import build_cfg
    from rio_bench.detection.trainer import train

    dataset = datasets.load(config.dataset)
    split = read_split(dataset.train, skip_empty=True)
    frequency = count_frequency(split.records, split.categories)  # of the very records trained on
    cfg = build_cfg(config, len(split.categories), device)
    model = build_model(config, cfg, frequency)

    train_seconds = train(
        config,
        cfg,
        model,
        split.records,
        frequency,
        last_checkpoint=folder.last_checkpoint,
        final_weights=folder.final_weights,
        metrics_file=folder.metrics_file,
        initial_weights=initial_weights,
    )

    append_json_line(folder.metrics_file, {"phase": "evaluate"})
    start = time.monotonic()
    detections = detect(model, cfg, read_split(dataset.val, skip_empty=False), device)
    metrics = lvis_ap(dataset.val.annotations, detections)
    return metrics, len(split.records), train_seconds, time.monotonic() - start


def images_seen(config: RunConfig | None) -> int:
    """Training images, repeats counted, that a run and the base run before it saw; 0 for no run."""
    return 0 if config is None else config.iterations * config.batch_size + images_seen(config.warm_start)


def peak_memory_bytes(device: str) -> int:
    """The most memory that tensors took on the GPU, or that the process took on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux tells kibibytes


def device_name(device: str) -> str:
    """What it ran on: "NVIDIA H100 80GB HBM3", or the processor with the number of threads."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return f"{processor}, {torch.get_num_threads()} threads"


def code_state() -> Code:
    """The git revision of this package's files; no revision where they are not tracked by git."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(here.parent), *arguments]
        try:
            answer = subprocess.run(command, capture_output=True, text=True)
        except OSError:  # no git here
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    # Installed below somebody else's checkout, the revision would be theirs: ask whether this very file is tracked.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return {"revision": None, "dirty": None}
    revision, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # detectron2 comes under either of two names
    return found


def describe(error: Exception) -> str:
    """An unexpected error in one line; an out-of-memory is told as such."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[:2] if lines and lines[0].endswith(":") else lines[:1]  # a heading alone tells nothing
    text = ": ".join(filter(None, [type(error).__name__, " ".join(told)]))
    # torch's own class on a GPU, a RuntimeError of its allocator or a MemoryError on a CPU
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in text:
        return f"out of memory ({text}): take a smaller batch_size or fewer runs at a time (--jobs)"
    return text


if __name__ == "__main__":
    sys.exit(main())
