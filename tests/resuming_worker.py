"""A worker whose result depends on every iteration, checkpointed and resumed as a real one, without torch.

Its "training" hashes its state once an iteration; its AP follows from the last state.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

import fake_worker

from rio_bench.files import append_json_line, to_json, write_atomically
from rio_bench.processes import HELD
from rio_bench.records import Holder, RunFolder

ITERATIONS = 30
SECONDS_AN_ITERATION = 0.01


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    folder = RunFolder(parser.parse_args(arguments).folder)
    lock = folder.lock_as_worker()
    if lock is None:
        return HELD
    lock.write(to_json(Holder(host="here", pid=os.getpid(), device="cpu", started="now")))
    run = folder.read_run()
    assert run is not None
    iteration, state = 0, run.identity
    if folder.last_checkpoint.exists():
        iteration, state = json.loads(folder.last_checkpoint.read_text())
    while iteration < ITERATIONS:
        state = hashlib.sha256(f"{state} {iteration}".encode()).hexdigest()
        time.sleep(SECONDS_AN_ITERATION)
        append_json_line(folder.metrics_file, {"iteration": iteration, "total_loss": 1.0})
        iteration += 1
        if iteration % 4 == 0:
            write_atomically(folder.last_checkpoint, json.dumps([iteration, state]))
    folder.final_weights.write_text(state)
    folder.write_record(fake_worker.record_of(run, int(state[:8], 16) / 2**32 * 100))
    return 0
