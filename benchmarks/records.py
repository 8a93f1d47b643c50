"""Speed and memory of tables over many records, side by side with plain json.loads of the same files.

    python benchmarks/records.py [--records 1000 10000] [--categories 30 1203] [--repeats 3]

Each figure is the least of some repeats of processor time, each in a process of its own, after imports; memory is what
the process grew by over its imports, at its largest. Made-up records: four methods, four backbones, several schedules,
five seeds each: a fifth of the records are rows, and three quarters of the rows are compared with a baseline.
- json.loads: read every record.json and parse it, nothing kept.
- leaderboard: read, check, leaderboard.csv.
- table: read, check, the comparison table with its 95 % intervals, as CSV.
- terminal: the same as text for a terminal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BACKBONES = ("R18-FPN", "R50-FPN", "R101-FPN", "X101-FPN")
SEEDS = 5
TASKS = ("json.loads", "leaderboard", "table", "terminal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--categories", type=int, nargs="+", default=[30, 1203])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    print(f"| records | categories | MB | {' | '.join(f'{task}, s (MB)' for task in TASKS)} |")
    print(f"|{' ---: |' * (3 + len(TASKS))}")
    for categories in options.categories:
        for records in options.records:
            print_row(records, categories, options.repeats)


def print_row(records: int, categories: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        size = make_records(Path(folder), records, categories)
        found: dict[str, list[tuple[float, float]]] = {task: [] for task in TASKS}
        for _ in range(repeats):  # interleaved: other work on the machine meets all of them
            for task in TASKS:
                found[task].append(measure_apart(task, folder))
    least = {task: (min(seconds for seconds, _ in of), max(memory for _, memory in of)) for task, of in found.items()}
    plain = least["json.loads"][0]
    cells = [f"{seconds:.2f} ({memory:.0f}), {seconds / plain:.1f} x" for seconds, memory in least.values()]
    print(f"| {records:,} | {categories:,} | {size / 1e6:,.0f} | {' | '.join(cells)} |", flush=True)


def measure_apart(task: str, folder: str) -> tuple[float, float]:
    """Processor seconds, and megabytes, of a process of its own."""
    command = [sys.executable, __file__, "--measure", task, folder]
    return tuple(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure(task: str, folder: Path) -> tuple[float, float]:
    import resource
    import time

    # what a table imports anyway
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import statsmodels.stats.multitest  # noqa: F401

    from rio_bench.records import ResultFolder
    from rio_bench.report import leaderboard, tables

    def megabytes() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    results = ResultFolder(folder)
    before, start = megabytes(), time.process_time()
    if task == "json.loads":
        for file in folder.glob("runs/*/record.json"):
            json.loads(file.read_bytes())
    elif task == "leaderboard":
        leaderboard.render([folder], "csv")
    elif task == "table":
        tables.render(results, "csv")
    else:
        tables.render(results, "terminal")
    return time.process_time() - start, megabytes() - before


def make_records(folder: Path, records: int, categories: int) -> int:
    """Write a result folder; returns the bytes of its records."""
    from rio_bench.files import to_json
    from rio_bench.records import ResultFolder, StoredPlan, StoredRun

    rng = np.random.default_rng(0)
    names = [f"category number {number}" for number in range(categories)]
    buckets = {name: "rcf"[3 * number // categories] for number, name in enumerate(names)}
    results = ResultFolder(folder)
    runs = []
    size = 0
    for number in range(records):
        cell, seed = divmod(number, SEEDS)
        block, place = divmod(cell, len(BACKBONES))
        # methods of four: a baseline and three others with the same number of iterations
        iterations, method = divmod(block, 4)
        strategy = {"name": "rio", "samples_per_class": method} if method else {"name": "none"}
        config = {
            "dataset": "glyphs-mini", "backbone": BACKBONES[place], "strategy": strategy,
            "iterations": 400 + iterations, "recipe": "small", "batch_size": 8,
        } | ({"seed": seed} if seed else {})  # fmt: skip
        name = f"{strategy['name']}-{BACKBONES[place]}-seed{seed}-{number:016x}"
        label = f"rio (samples_per_class={method})" if method else "none"
        run = StoredRun(
            name=name, identity=f"{number:016x}", experiment="many", method=f"{label}, iterations={400 + iterations}",
            is_base=False, after=None, config=config,
        )  # fmt: skip
        runs.append(run)
        content = {
            "format": 1, "identity": run.identity, "name": name, "method": run.method, "experiment": "many",
            "config": config, "seed": seed, "metrics": {kind: metrics(rng, names) for kind in ("box", "mask")},
            "buckets": buckets, "num_train_images": 320, "passes": 10.0, "base_passes": 0.0,
            "seconds": {"train": 200.0, "evaluate": 10.0, "total": 210.0}, "peak_memory_bytes": 10**9,
            "device": "Intel Xeon, 1 threads", "code": {"revision": "0" * 40, "dirty": False},
            "versions": {"python": "3.11.7", "torch": "2.14.1", "torchvision": "0.29.1", "numpy": "2.4.6"},
            "finished": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        of_run = results.run(name)
        of_run.path.mkdir(parents=True)
        of_run.config_file.write_text(to_json(run))
        size += of_run.record_file.write_text(json.dumps(content, indent=1) + "\n")
    results.write_plan(StoredPlan(experiment="many", baseline="none", runs=tuple(runs)))
    return size


def metrics(rng: np.random.Generator, names: list[str]) -> dict:
    """The names of a bucket are neighbours, and thirds of all."""
    values = 100 * rng.random(len(names))
    rare, common, frequent = (
        values[[3 * index // len(names) == third for index in range(len(names))]] for third in range(3)
    )
    means = {"AP": values, "AP50": values, "AP75": values, "APr": rare, "APc": common, "APf": frequent}
    per_category = dict(zip(names, values.tolist(), strict=True))
    return {key: float(of_key.mean()) for key, of_key in means.items()} | {"per_category": per_category}


if __name__ == "__main__":
    main()
