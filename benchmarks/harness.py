"""What a sweep costs beyond its runs: runs that do nothing but import what a training needs, against other harnesses.

    pip install 'ray[tune]' hydra-core hydra-joblib-launcher
    python benchmarks/harness.py [--runs 40] [--jobs 2]

All in one go on one machine, each harness in a process of its own, start-up included. A run imports torch and
Detectron2, then returns. rio_bench besides writes for each run what it always does: plan, locks, log, record, attempts
and, after every run, the leaderboard. The rivals keep their defaults but for the number of processes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORTS = "import torch, detectron2.engine, detectron2.modeling"

OURS = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import harness
if __name__ == "__main__":
    harness.sweep(Path("results"), {runs}, {jobs})
"""

PROCESSES = """
import subprocess, sys
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor({jobs}) as pool:
    command = [sys.executable, "-c", {imports!r}]
    list(pool.map(lambda number: subprocess.run(command, check=True, stderr=subprocess.DEVNULL), range({runs})))
"""

RAY_TUNE = """
import os
os.environ["RAY_DEDUP_LOGS"] = "0"
import ray
from ray import tune
def train(config):
    {imports}
    return {{"ap": 1.0}}
ray.init(num_cpus={jobs}, log_to_driver=False, include_dashboard=False)
results = tune.Tuner(
    tune.with_resources(train, {{"cpu": 1}}),
    param_space={{"seed": tune.grid_search(list(range({runs})))}},
    run_config=tune.RunConfig(verbose=0, storage_path=os.path.abspath("ray")),
).fit()
assert len(results) == {runs} and results.num_errors == 0
"""

HYDRA = """
import hydra
from omegaconf import DictConfig
@hydra.main(version_base=None)
def train(config: DictConfig) -> None:
    {imports}
train()
"""


def sweep(root: Path, runs: int, jobs: int) -> None:
    """rio_bench's own part: the real scheduler, engine, records and leaderboard."""
    from rio_bench.config import Execution, RunConfig
    from rio_bench.engines.local import LocalEngine
    from rio_bench.plan import Plan, PlannedRun
    from rio_bench.records import ResultFolder
    from rio_bench.report import tables
    from rio_bench.scheduler import run_experiment

    def planned(seed: int) -> PlannedRun:
        fields = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": "none", "iterations": 1, "seed": seed}
        return PlannedRun(RunConfig.model_validate(fields), f"{seed:016x}", f"none-{seed}", "none", None, False)

    results = ResultFolder(root)
    outcome = run_experiment(
        Plan("harness", "none", tuple(planned(seed) for seed in range(runs))),
        results,
        LocalEngine(Execution(), "cpu", jobs, main=no_op),
        on_finished=lambda: tables.write_leaderboard(results),
    )
    assert len(outcome.finished) == runs, outcome


def no_op(arguments: list[str]) -> int:
    """A worker that trains nothing and writes a record."""
    exec(IMPORTS)
    from rio_bench.provenance import code_state, versions
    from rio_bench.records import Metrics, Record, RunFolder

    folder = RunFolder(Path(arguments[0]))
    lock = folder.lock_as_worker()
    run = folder.read_run()
    assert lock is not None and run is not None
    metrics = Metrics(AP=1.0, AP50=1.0, AP75=1.0, APr=None, APc=1.0, APf=1.0, per_category={})
    record = Record(
        identity=run.identity,
        name=run.name,
        method=run.method,
        experiment=run.experiment,
        config=run.config,
        seed=run.config.get("seed", 0),
        metrics={"box": metrics, "mask": metrics},
        num_train_images=1,
        passes=1.0,
        base_passes=0.0,
        seconds={"train": 0.0, "evaluate": 0.0, "total": 0.0},
        peak_memory_bytes=0,
        device="cpu",
        code=code_state(),
        versions=versions(),
        finished="2026-01-01T00:00:00+00:00",
    )
    folder.write_record(record)
    return 0


def measure(name: str, script: str, arguments: list[str]) -> tuple[str, float] | None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.py"
        file.write_text(script)
        # Its own home: Ray leaves a token there.
        environment = {**os.environ, "HOME": folder, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        start = time.monotonic()
        answer = subprocess.run(
            [sys.executable, str(file), *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        seconds = time.monotonic() - start
    if answer.returncode:
        print(f"{name}: failed: {(answer.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        return None
    return name, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    values = {"runs": options.runs, "jobs": options.jobs, "imports": IMPORTS, "here": str(Path(__file__).parent)}
    sweep_arguments = [f"+seed={','.join(str(seed) for seed in range(options.runs))}"]
    joblib = ["--multirun", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={options.jobs}", *sweep_arguments]
    found = [
        measure("rio_bench", OURS.format(**values), []),
        measure("a process a run, nothing else", PROCESSES.format(**values), []),
        measure("Ray Tune", RAY_TUNE.format(**values), []) if importlib.util.find_spec("ray") else None,
        measure("Hydra, joblib launcher", HYDRA.format(**values), joblib)
        if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher")
        else None,
    ]
    measured = [result for result in found if result is not None]
    ours = measured[0][1]
    print(f"{options.runs} runs, {options.jobs} at a time\n")
    print("| harness | seconds in all | seconds a run | against rio_bench |\n|---|---:|---:|---:|")
    for name, seconds in measured:
        print(f"| {name} | {seconds:.1f} | {seconds / options.runs:.2f} | {seconds / ours:.1f} |")


if __name__ == "__main__":
    main()
