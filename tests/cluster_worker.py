"""A worker without torch, for the engines of clusters: python cluster_worker.py RUN_FOLDER --device cpu

It trains while ROOT/hold exists, then writes its record; on SIGTERM it writes a checkpoint and ends by that signal.
ROOT/events tells what it does, a line each: start, checkpoint, done.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fake_worker import record_of

from rio_bench.files import append_json_line
from rio_bench.processes import HELD, rank
from rio_bench.records import RunFolder

# What is told of the environment
SETTINGS = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE")
SETTINGS += ("RAY_RAYLET_PID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--initial-weights")
    folder = RunFolder(parser.parse_args().folder)
    root = folder.path.parent.parent
    if rank() == 0 and folder.lock_as_worker() is None:
        return HELD
    loader = subprocess.Popen(["sleep", "600"])

    def tell(event: str) -> None:
        told = {"event": event, "name": folder.name, "pid": os.getpid(), "loader": loader.pid}
        append_json_line(root / "events", told | {name: os.environ.get(name) for name in SETTINGS})

    def stop(number: int, frame: object) -> None:
        time.sleep(0.2)
        folder.last_checkpoint.write_text("a checkpoint")
        loader.kill()
        tell("checkpoint")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    tell("start")
    print("training", flush=True)
    while (root / "hold").exists():
        time.sleep(0.05)
    loader.kill()
    if rank() > 0:
        return 0
    run = folder.read_run()
    assert run is not None
    folder.write_record(record_of(run, 20.0))
    tell("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
