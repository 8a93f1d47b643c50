"""One run in one process: train, evaluate, write the record last.

    python -m rio_bench.worker RUN_FOLDER --device cpu

Exit status: 0 with a record written, 2 for what a user can mend, 3 where another worker does the run, 75 for what may
go well a second time, 1 for the rest; then the last line printed starts with `error:`. Started again after an end
without a record, it goes on from its last checkpoint. On SIGTERM it writes a checkpoint and ends by that signal.
With several processes torch's launcher starts it once for each: `python -m torch.distributed.run --standalone
--nproc-per-node 2 -m rio_bench.worker ...`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from rio_bench.config import Execution, RunConfig
from rio_bench.errors import UserError
from rio_bench.files import FileLock, append_json_line, to_json
from rio_bench.processes import BAD_INPUT, HELD, TRY_AGAIN, ask_for_signal, number_of_processes, rank
from rio_bench.provenance import code_state, device_name, peak_memory_bytes, versions
from rio_bench.records import Holder, Metrics, Record, RunFolder, Seconds, StoredRun, columns

# What a user has to mend: no space, no rights. Other trouble of a file system or a network may pass.
NOT_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# Errors of a device or between processes, by their class: torch is not imported here.
PASSING = ("AcceleratorError", "DistBackendError", "DistNetworkError", "DistStoreError")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rio_bench.worker", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a run's folder with its config.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--initial-weights", type=Path, help="model_final.pth of the base run")
    options = parser.parse_args(arguments)
    if number_of_processes() > 1:
        ask_for_signal(signal.SIGKILL)  # when torch's launcher is killed
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(name)s: %(message)s", force=True)
    stop = StopRequest()
    try:
        with lock_of(RunFolder(options.folder), options.device) as held:
            if held is None:
                print("error: another worker does this run", flush=True)
                return HELD
            with processes_joined(options.device):
                do_run(RunFolder(options.folder), options.device, options.initial_weights, stop)
    except UserError as error:
        return tell(BAD_INPUT, str(error))
    except Exception as error:  # whatever it is, the log's last line tells it
        if stop.was_obeyed(error):
            print("stopped: its checkpoint is written", flush=True)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        with contextlib.suppress(OSError):  # the log's disk may be what is full
            traceback.print_exc(file=sys.stdout)
        return tell(exit_status(error), describe(error))
    return 0


def tell(status: int, reason: str) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {reason}", flush=True)
    return status


class StopRequest:
    """SIGTERM during training, to be obeyed at the end of an iteration; at other times it ends the process at once."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self) -> bool:
        return self.received

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        def receive(number: int, frame: object) -> None:
            self.received = True

        before = signal.signal(signal.SIGTERM, receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def was_obeyed(self, error: Exception) -> bool:
        return type(error).__name__ == "Stopped"  # of detection.hooks, which imports torch


@contextlib.contextmanager
def lock_of(folder: RunFolder, device: str) -> Iterator[FileLock | bool | None]:
    """Hold the run while the block lasts (the first process does it for all); None where another worker has it."""
    if rank() > 0:
        yield True
        return
    lock = folder.lock_as_worker() if folder.path.is_dir() else True
    if isinstance(lock, FileLock):
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        lock.write(to_json(Holder(host=socket.gethostname(), pid=os.getpid(), device=device, started=now)))
    try:
        yield lock
    finally:
        if isinstance(lock, FileLock):
            lock.release()


def processes_joined(device: str) -> contextlib.AbstractContextManager[None]:
    """The processes of a run that torch's launcher started know each other while the block lasts."""
    if number_of_processes() == 1:
        return contextlib.nullcontext()
    from rio_bench.detection import distributed

    return distributed.processes_joined(device)


def do_run(folder: RunFolder, device: str, initial_weights: Path | None, stop: StopRequest) -> None:
    """Train and evaluate the run of a folder; the first process writes the record there."""
    run = folder.read_run()
    if run is None:
        raise UserError(f"{folder.config_file}: no such file: the harness writes it before it starts a worker")
    if folder.read_record(run.identity) is not None:
        return  # a worker that was waiting in a queue while another did the run
    config, execution = read_config(run, folder)
    code, packages = code_state(), versions()  # before hours in which they may change
    result = train_and_evaluate(config, execution, folder, device, initial_weights, stop)
    if rank() > 0:
        return
    record = Record(
        identity=run.identity,
        name=run.name,
        method=run.method,
        experiment=run.experiment,
        config=run.config,
        seed=config.seed,
        metrics=result.metrics,
        buckets=result.buckets,
        num_train_images=result.num_train_images,
        passes=config.iterations * config.batch_size / result.num_train_images,
        base_passes=images_seen(config.warm_start) / result.num_train_images,
        seconds=result.seconds,
        peak_memory_bytes=peak_memory_bytes(device),
        device=device_name(device),
        code=code,
        versions=packages,
        finished=datetime.now().astimezone().isoformat(timespec="seconds"),
    )
    folder.write_record(record)


def read_config(run: StoredRun, folder: RunFolder) -> tuple[RunConfig, Execution]:
    """The run's configuration. UserError where it is not valid here, as where a strategy is not installed."""
    try:
        return RunConfig.model_validate(run.config), Execution.model_validate(run.execution)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{folder.config_file}: {key}: {first['msg']}") from error


class Result(NamedTuple):
    """What training and evaluation came to. buckets: category name -> "r", "c" or "f"."""

    metrics: dict[str, Metrics]
    buckets: dict[str, str]
    num_train_images: int
    seconds: Seconds


def train_and_evaluate(
    config: RunConfig,
    execution: Execution,
    folder: RunFolder,
    device: str,
    initial_weights: Path | None,
    stop: StopRequest,
) -> Result:
    from rio_bench import datasets
    from rio_bench.datasets.frequency import count_frequency
    from rio_bench.datasets.lvis import read_split
    from rio_bench.detection.evaluation import lvis_ap
    from rio_bench.detection.hooks import Stopped
    from rio_bench.detection.inference import detect_together
    from rio_bench.detection.model import build_model
    from rio_bench.detection.recipe import build_cfg
    from rio_bench.detection.trainer import train

    dataset = datasets.load(config.dataset)
    split = read_split(dataset.train, skip_empty=True)
    frequency = count_frequency(split.records, split.categories)  # of the very records trained on
    cfg = build_cfg(config, len(split.categories), device)
    model = build_model(config, cfg, frequency)
    val = read_split(dataset.val, skip_empty=False)

    def measure() -> dict[str, Metrics]:
        """Box and mask AP; of several processes only the first one has them."""
        detect_together(model, cfg, val, device, folder.detections_file)
        return lvis_ap(dataset.val.annotations, folder.detections_file) if rank() == 0 else {}

    with stop.awaited():
        train_seconds = train(
            config,
            cfg,
            model,
            split.records,
            frequency,
            folder,
            execution=execution,
            initial_weights=initial_weights,
            evaluate=lambda: columns(measured) if (measured := measure()) else {},
            stop=stop,
        )

    if stop():  # in the last iteration: the weights are written, the evaluation is left for the next time
        raise Stopped
    if rank() == 0:
        append_json_line(folder.metrics_file, {"phase": "evaluate"})
    start = time.monotonic()
    metrics = measure()
    if execution.keep == "best" and rank() == 0:
        keep_best(folder, metrics["box"].AP)
    evaluate_seconds = time.monotonic() - start
    return Result(
        metrics,
        {category.name: category.frequency for category in val.categories},
        len(split.records),
        {"train": train_seconds, "evaluate": evaluate_seconds, "total": train_seconds + evaluate_seconds},
    )


def keep_best(folder: RunFolder, final_ap: float | None) -> None:
    """Make the final weights the best ones where no intermediate ones had a higher AP.b."""
    from rio_bench.detection.checkpoints import load_if_whole

    best = load_if_whole(folder.best_weights)
    if best is None or (final_ap is not None and final_ap >= best["ap"]):
        shutil.copyfile(folder.final_weights, folder.best_weights)


def images_seen(config: RunConfig | None) -> int:
    """Training images, repeats counted, that a run and the base run before it saw; 0 for no run."""
    return 0 if config is None else config.iterations * config.batch_size + images_seen(config.warm_start)


def exit_status(error: Exception) -> int:
    """Whether a retry may mend an unexpected error, or the user has to."""
    if isinstance(error, OSError):
        return BAD_INPUT if error.errno in NOT_PASSING else TRY_AGAIN
    # torch tells of a data loader's process that was killed by a plain RuntimeError
    if type(error).__name__ in PASSING or "DataLoader worker" in str(error):
        return TRY_AGAIN
    return 1


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
