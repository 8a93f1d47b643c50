"""Does what a worker does with its folder, in 0.2 s and without torch.

What it shall do otherwise is in ROOT/behaviour/NAME: "crash" ... "stubborn"; after a comma, in how many of its first
attempts. Each start is a line of ROOT/starts.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from rio_bench.processes import BAD_INPUT, HELD, TRY_AGAIN
from rio_bench.records import Metrics, Record, RunFolder, append_json_line


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--initial-weights")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.folder)
    root = folder.path.parent.parent
    lock = folder.lock_as_worker()
    if lock is None:
        return HELD
    run = folder.read_run()
    assert run is not None
    behaviour = behaviour_of(root, run.name)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour == "full disk":
        signal.signal(signal.SIGTERM, cannot_write)
    start = {"name": run.name, "pid": os.getpid(), "weights": options.initial_weights}
    append_json_line(root / "starts", start | {"threads": os.environ["OMP_NUM_THREADS"]})
    append_json_line(folder.metrics_file, {"iteration": 0, "total_loss": 2.5})
    time.sleep(0.2)
    if behaviour == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "raise":
        raise ValueError("the loss is not finite")
    if behaviour == "no record":
        return 0
    if behaviour == "try again":
        print("error: the network is gone")
        return TRY_AGAIN
    if behaviour in ("long", "full disk"):
        time.sleep(60)
    if behaviour == "stubborn":
        time.sleep(3)
    if behaviour.endswith("curve"):
        ap = 1.0 if behaviour == "low curve" else 2.0
        folder.last_checkpoint.write_bytes(b"half way")
        append_json_line(folder.metrics_file, {"iteration": 4, "evaluation/AP.b": ap})
        time.sleep(60 if behaviour == "low curve" else 1.5)
    folder.final_weights.write_bytes(b"weights")
    folder.write_record(record_of(run, 20.0))
    if behaviour == "crash after the record":
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def cannot_write(number: int, frame: object) -> None:
    print("error: last.pth: cannot be written: No space left on device", flush=True)
    sys.exit(BAD_INPUT)


def behaviour_of(root: Path, name: str) -> str:
    file = root / "behaviour" / name
    behaviour, _, attempts = file.read_text().partition(",") if file.exists() else ("", "", "")
    starts = root / "starts"
    before = starts.read_text().count(f'"{name}"') if starts.exists() else 0
    return "" if attempts and before >= int(attempts) else behaviour


def record_of(run, ap: float) -> Record:
    metrics = Metrics(AP=ap, AP50=ap, AP75=ap, APr=None, APc=ap, APf=ap, per_category={})
    return Record(
        identity=run.identity,
        name=run.name,
        method=run.method,
        experiment=run.experiment,
        config=run.config,
        seed=0,
        metrics={"box": metrics, "mask": metrics},
        num_train_images=10,
        passes=1,
        base_passes=0,
        seconds={"train": 0.1, "evaluate": 0.1, "total": 0.2},
        peak_memory_bytes=1,
        device="cpu",
        code={"revision": None, "dirty": None},
        versions={},
        finished="2026-01-01T00:00:00+00:00",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
