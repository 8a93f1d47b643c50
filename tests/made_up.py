"""Result folders with made-up records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rio_bench.records import Attempt, Metrics, Record, ResultFolder, StoredPlan, StoredRun


class Folder:
    """A made-up result folder: add runs, then `finish` some."""

    def __init__(self, root: Path) -> None:
        self.results = ResultFolder(root)
        self.planned: list[StoredRun] = []

    def plan(
        self,
        method: str,
        seed: int = 0,
        backbone: str = "R50-FPN",
        is_base: bool = False,
        strategy: dict[str, Any] | None = None,
        **config: Any,
    ) -> StoredRun:
        config = {"dataset": "glyphs-mini", "backbone": backbone, "strategy": strategy or {"name": method}} | config
        config = {"iterations": 400} | config | ({"seed": seed} if seed else {})  # defaults are left out
        number = len(self.planned)
        run = StoredRun(
            name=f"run-{number:02}",
            identity=f"{number:016x}",
            experiment="made-up",
            method=method,
            is_base=is_base,
            after=None,
            config=config,
        )
        self.planned.append(run)
        return run

    def write_plan(self, runs: list[StoredRun] | None = None) -> None:
        runs = self.planned if runs is None else runs
        self.results.write_plan(StoredPlan(experiment="made-up", baseline="none", runs=tuple(runs)))

    def finish(self, run: StoredRun, box: list[float | None], mask: list[float | None], **fields: Any) -> None:
        """box, mask: AP, APr, APc, APf"""
        self.results.run(run.name).create()
        self.results.run(run.name).write_run(run)
        content: dict[str, Any] = {
            "identity": run.identity,
            "name": run.name,
            "method": run.method,
            "experiment": run.experiment,
            "config": run.config,
            "seed": run.config.get("seed", 0),
            "metrics": {"box": metrics(*box), "mask": metrics(*mask)},
            "num_train_images": 400,
            "passes": 8.0,
            "base_passes": 0.0,
            "seconds": {"train": 90.0, "evaluate": 9.0, "total": 100.0},
            "peak_memory_bytes": 1,
            "device": "cpu",
            "code": {"revision": None, "dirty": None},
            "versions": {},
            "finished": "2025-01-01T00:00:00+00:00",
        }
        self.results.run(run.name).write_record(Record(**content | fields))

    def attempt(
        self, run: StoredRun, exit_status: int | None, signal: str | None = None, cause: str | None = None
    ) -> None:
        self.results.run(run.name).create()
        time = "2025-01-01T00:00:00+00:00"
        ended = Attempt(started=time, ended=time, exit_status=exit_status, signal=signal, host="h", pid=1, cause=cause)
        self.results.run(run.name).add_attempt(ended)


def metrics(ap: float | None, rare: float | None, common: float | None, frequent: float | None) -> Metrics:
    return Metrics(AP=ap, AP50=None, AP75=None, APr=rare, APc=common, APf=frequent, per_category={})


def metrics_of(values: dict[str, float | None], buckets: dict[str, str]) -> Metrics:
    """What an evaluation makes of the AP of each category."""
    of_bucket: dict[str, list[float]] = {"r": [], "c": [], "f": []}
    for name, value in values.items():
        if value is not None:
            of_bucket[buckets[name]].append(value)
    of_all = [value for of_one in of_bucket.values() for value in of_one]
    AP, APr, APc, APf = (sum(of_one) / len(of_one) if of_one else None for of_one in (of_all, *of_bucket.values()))
    return Metrics(AP=AP, AP50=None, AP75=None, APr=APr, APc=APc, APf=APf, per_category=values)
