"""A worker whose AP follows from the bank's capacity: an intermediate evaluation, then the record. Without torch."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import fake_worker

from rio_bench.files import append_json_line
from rio_bench.processes import HELD
from rio_bench.records import RunFolder

LOW = 50  # capacities below give a low curve


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    folder = RunFolder(parser.parse_args(arguments).folder)
    lock = folder.lock_as_worker()
    if lock is None:
        return HELD
    run = folder.read_run()
    assert run is not None
    append_json_line(folder.path.parent.parent / "starts", {"name": run.name})
    capacity = run.config["strategy"].get("bank_capacity", 60)
    append_json_line(folder.metrics_file, {"iteration": 4, "evaluation/AP.b": capacity / 10})
    time.sleep(30 if capacity < LOW else 1.5)  # a low one would hold its slot until it is pruned
    folder.write_record(fake_worker.record_of(run, capacity / 10))
    return 0
