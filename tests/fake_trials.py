"""Searches whose runs are not trained: their records are made by hand from their parameters."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rio_bench.config import Experiment, canonical
from rio_bench.plan import Plan, PlannedRun, make_plan, stored_run
from rio_bench.records import Attempt, Metrics, Record, ResultFolder
from rio_bench.search import Search

RUN = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": "rio", "iterations": 300}
SPACE = {
    "strategy.bank_capacity": {"low": 10, "high": 100},
    "strategy.repeat_threshold": {"low": 0.01, "high": 1.0, "log": True},
}
Values = dict[str, float | None]


def experiment(trials: int = 4, space: dict[str, Any] | None = None, **search: Any) -> Experiment:
    """A search for AP.b.r unless told otherwise; `execution`, `warm_start` and `name` are the file's."""
    top = {key: search.pop(key) for key in ("run", "execution", "warm_start", "name") if key in search}
    section = {"trials": trials, "objectives": ["AP.b.r"], "space": space or SPACE, **search}
    if "pruner" in search:
        top["execution"] = {"evaluate_every": 100}
    return Experiment.model_validate({"name": "banks", "run": RUN, "search": section, **top})


def values_of(run: PlannedRun) -> Values:
    """AP.b.r is best at the smallest threshold, AP.b at the largest bank."""
    strategy: Any = run.config.strategy
    return {"AP.b": 20 + strategy.bank_capacity / 10, "AP.b.r": 10 - strategy.repeat_threshold}


def record_of(run: PlannedRun, values: Values, finished: str = "2026-01-01T00:00:00+00:00") -> Record:
    def metrics(kind: str) -> Metrics:
        ap = {key: values.get(f"AP.{kind}{suffix}", 0.0) for key, suffix in
              {"AP": "", "APr": ".r", "APc": ".c", "APf": ".f"}.items()}  # fmt: skip
        return Metrics(AP50=0, AP75=0, per_category={}, **ap)

    return Record(
        identity=run.identity, name=run.name, method=run.method, experiment="banks", config=canonical(run.config),
        seed=run.config.seed, metrics={"box": metrics("b"), "mask": metrics("m")}, num_train_images=10, passes=1,
        base_passes=0, seconds={"train": 0.1, "evaluate": 0.1, "total": 0.2}, peak_memory_bytes=1, device="cpu",
        code={"revision": None, "dirty": None}, versions={}, finished=finished,
    )  # fmt: skip


def start(run: PlannedRun, results: ResultFolder, plan: Plan) -> None:
    """What a scheduler writes before it starts a worker."""
    folder = results.run(run.name)
    folder.create()
    folder.write_run(stored_run(run, plan))


def finish(
    run: PlannedRun, results: ResultFolder, of: Experiment, values: Values | None = None, at: str = ""
) -> Record:
    """Do a run: leave the folder of a finished one."""
    start(run, results, make_plan(of))
    times = {"finished": at} if at else {}
    record = record_of(run, values_of(run) if values is None else values, **times)
    results.run(run.name).write_record(record)
    return record


def leave_pruned(run: PlannedRun, results: ResultFolder, of: Experiment, curve: dict[int, float]) -> None:
    """Leave the folder of a run that was pruned."""
    start(run, results, make_plan(of))
    folder = results.run(run.name)
    lines = [json.dumps({"iteration": iteration, "evaluation/AP.b.r": value}) for iteration, value in curve.items()]
    folder.metrics_file.write_text("\n".join(lines) + "\n")
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:00+00:00"}
    folder.add_attempt(Attempt(**times, exit_status=None, signal="SIGTERM", host="here", pid=1, cause="pruned"))


def do_all(
    search: Search, results: ResultFolder, of: Experiment, values: Callable[[PlannedRun], Values] = values_of
) -> list[PlannedRun]:
    """Do all that a search asks for, one run after another; returns the runs that were trained."""
    done = []
    while (run := search.ask()) is not None:
        done.append(run)
        minute, second = divmod(len(done), 60)
        search.tell(
            run.name, "finished", finish(run, results, of, values(run), f"2026-01-01T00:{minute:02}:{second:02}+00:00")
        )
    assert search.is_exhausted()
    return done


def harness(root: Path, of: Experiment) -> None:
    """A harness in a process of its own: a run under its lock, as a scheduler does it; each a line of ROOT/starts."""
    results = ResultFolder(root)
    search = Search(of, results)
    held: list[PlannedRun] = []  # by another harness
    while not search.is_exhausted():
        run = search.ask() or (held.pop(0) if held else None)
        lock = None if run is None else results.run(run.name).lock()
        if run is None or lock is None:
            held += [run] if run is not None else []
            time.sleep(0.01)
            continue
        record = results.run(run.name).read_record(run.identity)
        if record is None:
            with open(root / "starts", "a") as file:
                file.write(run.name + "\n")
            time.sleep(0.05)
            record = finish(run, results, of)
        lock.release()
        search.tell(run.name, "finished", record)
    search.write()
