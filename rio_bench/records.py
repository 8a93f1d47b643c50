"""The result folder: where files lie, and what they hold. The only module that knows the layout.

ROOT is RESULTS/EXPERIMENT, or RESULTS/reruns/RUN of a run made again (rerun.py)
ROOT/experiment.json      the plan as last run: what a table needs to show missing and failed cells
ROOT/leaderboard.csv      derived from the records, rewritten after every run (report/tables.py)
ROOT/leaderboard.md
ROOT/report.html          derived, by the command `report`
ROOT/search.json          derived from the study: the trials of a search, the best, the importance of each parameter
ROOT/study.journal        the study of a search (Optuna's journal), with study.lock beside it
ROOT/runs/NAME/config.json       the run as planned: what the worker reads
              /log.txt           what the worker printed, all attempts
              /metrics.jsonl     one JSON object an iteration or a phase
              /checkpoints/      last.pth and previous.pth while training goes on, model_final.pth when it ended
              /tensorboard/      the same curves as metrics.jsonl for TensorBoard
              /detections.json.gz  LVIS results of the validation pictures
              /attempts.jsonl    one line an attempt that ended: times, exit status, signal, host, process
              /submissions/      what submitit writes of SLURM jobs (engine slurm)
              /lock              held (flock) by the harness that has given out the run
              /worker.lock       held (flock) by the worker that does it: where it runs
              /record.json       written last and whole: the done marker
"""

from __future__ import annotations

import contextlib
import os
import reprlib
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from rio_bench.files import (
    FileLock,
    RecordError,
    Stored,
    append_json_line,
    is_locked,
    read_stored,
    take_lock,
    to_json,
    write_atomically,
)


class Metrics(Stored):
    """LVIS average precision in percent (0..100); None where no category has ground truth.

    APr, APc, APf: the mean over the rare, common and frequent categories. per_category: category name -> AP.
    AP_fixed and its buckets: with the 10,000 best detections of a category and no limit an image (arXiv 2102.01066);
    None too in records from before it was measured.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    APr: float | None
    APc: float | None
    APf: float | None
    AP_fixed: float | None = None
    APr_fixed: float | None = None
    APc_fixed: float | None = None
    APf_fixed: float | None = None
    per_category: dict[str, float | None]


# A table's column -> where a record holds its value
METRICS = {
    "AP.b": ("box", "AP"),
    "AP.b.r": ("box", "APr"),
    "AP.b.c": ("box", "APc"),
    "AP.b.f": ("box", "APf"),
    "AP.m": ("mask", "AP"),
    "AP.m.r": ("mask", "APr"),
    "AP.m.c": ("mask", "APc"),
    "AP.m.f": ("mask", "APf"),
}

LOCK_TRIALS, LOCK_PAUSE = 5, 0.02  # of a worker; seconds between them
RERUNS = "reruns"  # the folder beside result folders that holds those of reruns
EVALUATION = "evaluation/"  # how an intermediate evaluation is named in a metrics file: evaluation/AP.b ...


def columns(metrics: dict[str, Metrics]) -> dict[str, float | None]:
    """The values of the tables' columns, in percent."""
    return {column: getattr(metrics[kind], key) for column, (kind, key) in METRICS.items()}


class Seconds(TypedDict):
    """Wall time of a run without its base run. train: over all attempts; total: training and evaluation."""

    train: float
    evaluate: float
    total: float


class Code(TypedDict):
    """The git revision that ran, and whether files differed from it; None where the package is not in a checkout."""

    revision: str | None
    dirty: bool | None


class Record(Stored):
    """The result of one run."""

    format: Literal[1] = 1
    identity: str
    name: str
    method: str
    experiment: str
    config: dict[str, Any]  # canonical(RunConfig)
    seed: int
    metrics: dict[str, Metrics]  # "box", "mask"
    # category name -> "r", "c" or "f", as the validation file says; None in records from before
    buckets: dict[str, Annotated[str, Field(pattern="^[rcf]$")]] | None = None
    num_train_images: int
    passes: float  # over the training images
    base_passes: float  # those of the base run that it started from, 0 without one
    seconds: Seconds
    peak_memory_bytes: int  # of the GPU's memory on a GPU, of the process's on a CPU
    device: str
    code: Code
    versions: dict[str, str]
    finished: str  # ISO time with its zone

    @field_validator("metrics")
    @classmethod
    def _box_and_mask(cls, metrics: dict[str, Metrics]) -> dict[str, Metrics]:
        if set(metrics) != {"box", "mask"}:
            raise ValueError(f"expected the keys box and mask, got {', '.join(sorted(metrics)) or 'none'}")
        return metrics


FolderName = Annotated[str, Field(pattern=r"^[^/.][^/]*$")]


class StoredRun(Stored):
    """One run as planned (plan.PlannedRun as plain data)."""

    name: FolderName
    identity: str
    experiment: str
    method: str
    is_base: bool
    after: FolderName | None
    config: dict[str, Any]  # canonical(RunConfig)
    execution: dict[str, Any] = {}  # config.Execution without its defaults

    @field_validator("config")
    @classmethod
    def _has_what_tables_need(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The strategy may be one that is not installed, so it is no RunConfig here."""
        missing = [key for key in ("dataset", "backbone", "strategy", "iterations") if key not in config]
        if missing:
            raise ValueError(f"{', '.join(missing)}: missing")
        if not isinstance(config["strategy"], dict) or not isinstance(config["strategy"].get("name"), str):
            raise ValueError(f"strategy: expected one with a name, got {reprlib.repr(config['strategy'])}")
        return config


class StoredPlan(Stored):
    """A plan as plain data: readable although a strategy it names is no longer installed."""

    format: Literal[1] = 1
    experiment: str
    baseline: str
    runs: tuple[StoredRun, ...]


class Attempt(Stored):
    """How one attempt at a run ended. exit_status is None where a signal ended it, signal is None where none did."""

    started: str  # ISO time with its zone
    ended: str
    exit_status: int | None
    signal: str | None  # "SIGKILL"
    host: str
    pid: int
    cause: str | None = None  # why the harness ended it: "stopped" (Ctrl-C), "pruned", "time limit"


class StoredTrial(Stored):
    """One trial of a search. values: objective -> value, None where it has none (yet)."""

    number: int
    state: Literal["running", "finished", "pruned", "failed"]
    run: str | None  # the name of its run
    params: dict[str, Any]
    values: dict[str, float] | None


class StoredSearch(Stored):
    """A search as plain data: readable without Optuna."""

    format: Literal[1] = 1
    study: str
    storage: str  # an Optuna storage URL, or the journal's file; no password
    sampler: str
    objectives: dict[str, Literal["maximize", "minimize"]]
    trials: tuple[StoredTrial, ...]
    best: tuple[int, ...]  # numbers of trials: the best one, or the Pareto front of several objectives
    importance: dict[str, dict[str, float]]  # objective -> parameter -> share of 1; empty with too few trials


class Holder(Stored):
    """Where a worker does its run."""

    host: str
    pid: int
    device: str
    started: str  # ISO time with its zone


def _below(name: str) -> cached_property[Path]:
    """A path of a run's folder, made when asked for: a table of 10,000 runs needs one path of each."""
    return cached_property(lambda folder: folder.path / name)


def previous(last_checkpoint: Path) -> Path:
    """Where the checkpoint before the last one lies."""
    return last_checkpoint.with_name("previous.pth")


class RunFolder:
    """The folder of one run."""

    config_file = _below("config.json")
    log_file = _below("log.txt")
    metrics_file = _below("metrics.jsonl")
    checkpoints = _below("checkpoints")
    last_checkpoint = _below("checkpoints/last.pth")
    final_weights = _below("checkpoints/model_final.pth")
    best_weights = _below("checkpoints/model_best.pth")
    tensorboard = _below("tensorboard")
    detections_file = _below("detections.json.gz")
    attempts_file = _below("attempts.jsonl")
    submissions = _below("submissions")
    lock_file = _below("lock")
    worker_lock_file = _below("worker.lock")
    record_file = _below("record.json")

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.name = self.path.name

    def create(self) -> None:
        """Make the folder and its parents; RecordError where that cannot be done."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be made: {error.strerror}") from error

    def lock(self) -> FileLock | None:
        """Take the run for a harness; None where another harness has it, or a worker still does it.

        A worker has a lock of its own, on whatever machine it runs, because it may outlive its harness. The lock files
        are never removed.
        """
        self.create()
        lock = take_lock(self.lock_file)
        if lock is not None and self.is_worked_on():
            lock.release()
            return None
        return lock

    def lock_as_worker(self) -> FileLock | None:
        """Take the run for the worker that does it; None where another one does."""
        for _ in range(LOCK_TRIALS):
            lock = take_lock(self.worker_lock_file)
            if lock is not None:
                return lock
            time.sleep(LOCK_PAUSE)  # who looks whether a run is worked on holds its lock for a moment
        return None

    def is_worked_on(self) -> bool:
        """Whether a worker does the run now, on this machine or another."""
        return is_locked(self.worker_lock_file)

    def is_given_out(self) -> bool:
        """Whether a harness has the run: a worker does it, or is to begin."""
        return is_locked(self.lock_file)

    def read_holder(self) -> Holder | None:
        """Who does the run now; None where nobody does."""
        return self.read_last_holder() if self.is_worked_on() else None

    def read_last_holder(self) -> Holder | None:
        """Who does the run now, or did it last; None where that is not known."""
        try:
            return read_stored(self.worker_lock_file, Holder)
        except RecordError:  # taken a moment ago: nothing is written yet
            return None

    def write_run(self, run: StoredRun) -> None:
        """Write config.json."""
        write_atomically(self.config_file, to_json(run))

    def read_run(self) -> StoredRun | None:
        """Read config.json; None where there is none."""
        return read_stored(self.config_file, StoredRun)

    def write_record(self, record: Record) -> None:
        """Write record.json, whole or not at all."""
        write_atomically(self.record_file, to_json(record))

    def read_record(self, identity: str | None = None) -> Record | None:
        """Read record.json; None where there is none.

        Raises RecordError where the file is torn, of another format, or of another run: of another name than the
        folder's, or of another identity than asked for (by default the one in config.json, where there is one).
        """
        record = read_stored(self.record_file, Record)
        if record is None:
            return None
        if record.name != self.name:
            raise RecordError(f"{self.record_file}: is the record of another run ({record.name})")
        if identity is None:
            run = self.read_run()
            identity = run.identity if run else record.identity
        if record.identity != identity:
            raise RecordError(
                f"{self.record_file}: is the record of another configuration"
                f" (identity {record.identity}, expected {identity})"
            )
        return record

    def set_aside_record(self) -> Path:
        """Rename a record.json that is not to be trusted; returns its new place. Call with the lock held."""
        number = 1
        while (aside := self.path / f"record.set-aside-{number}.json").exists():
            number += 1
        try:
            os.replace(self.record_file, aside)
        except OSError as error:
            raise RecordError(f"{self.record_file}: cannot be set aside: {error.strerror}") from error
        return aside

    def newest_weights(self) -> Path | None:
        """The final weights, or the newest checkpoint there is, or the best one; None where there is none."""
        numbered = sorted(self.checkpoints.glob("model_[0-9]*.pth"), reverse=True)  # by iteration
        newest_first = (self.final_weights, self.last_checkpoint, previous(self.last_checkpoint), *numbered)
        return next((file for file in (*newest_first, self.best_weights) if file.is_file()), None)

    def discard_checkpoints(self) -> None:
        """Free the disk of what only this run would go on from."""
        for file in self.checkpoints.glob("*.pth"):
            with contextlib.suppress(OSError):
                file.unlink()

    def add_attempt(self, attempt: Attempt) -> None:
        """Append a line to attempts.jsonl."""
        append_json_line(self.attempts_file, attempt.model_dump(mode="json"))

    def read_attempts(self) -> list[Attempt]:
        """The attempts that ended, oldest first; torn lines (a full disk, a crash) are left out."""
        if not self.attempts_file.exists():
            return []
        attempts = []
        for line in self.attempts_file.read_bytes().splitlines():
            with contextlib.suppress(ValidationError):
                attempts.append(Attempt.model_validate_json(line))
        return attempts


class ResultFolder:
    """The folder of one experiment: RESULTS/EXPERIMENT."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.plan_file = self.root / "experiment.json"
        self.leaderboard_csv = self.root / "leaderboard.csv"
        self.leaderboard_markdown = self.root / "leaderboard.md"
        self.report_file = self.root / "report.html"
        self.search_file = self.root / "search.json"
        self.study_journal = self.root / "study.journal"
        self.study_lock = self.root / "study.lock"
        self.runs = self.root / "runs"

    def run(self, name: str) -> RunFolder:
        """The folder of a run; nothing is made."""
        return RunFolder(self.runs / name)

    def write_plan(self, plan: StoredPlan) -> None:
        """Write experiment.json. RecordError where the folder is another experiment's: its cells would be mixed up."""
        before = self.read_plan()
        if before is not None and before.experiment != plan.experiment:
            raise RecordError(
                f"{self.plan_file}: belongs to the experiment '{before.experiment}', not '{plan.experiment}':"
                " take another result folder"
            )
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"{self.root}: cannot be made: {error.strerror}") from error
        write_atomically(self.plan_file, to_json(plan))

    def read_plan(self) -> StoredPlan | None:
        """Read experiment.json; None where there is none."""
        return read_stored(self.plan_file, StoredPlan)

    def folder_names(self) -> list[str]:
        """The runs that have a folder, sorted."""
        return sorted(os.listdir(self.runs)) if self.runs.is_dir() else []

    def write_search(self, search: StoredSearch) -> None:
        """Write search.json."""
        write_atomically(self.search_file, to_json(search))

    def read_search(self) -> StoredSearch | None:
        """Read search.json; None where there is none."""
        return read_stored(self.search_file, StoredSearch)

    def records(self) -> tuple[list[Record], list[str]]:
        """All records, and a warning line for each that had to be left out."""
        warnings: list[str] = []
        return list(self.iter_records(self.read_plan(), warnings)), warnings

    def iter_records(self, plan: StoredPlan | None, warnings: list[str]) -> Iterator[Record]:
        """The records one after another, by the name of their run; `warnings` gains a line for each that is left out.

        A run that the plan still holds gets the plan's method label: the label tells what differs within the
        experiment, so it changes when the file gains an axis, and the record's own is from before.
        """
        runs = plan.runs if plan else ()
        labels = {run.identity: run.method for run in runs}
        identities = {run.name: run.identity for run in runs}
        for name in self.folder_names():
            try:
                record = self.run(name).read_record(identities.get(name))
            except RecordError as error:
                warnings.append(f"{error}: left out")
                continue
            if record is not None:
                label = labels.get(record.identity, record.method)
                yield record if label == record.method else record.model_copy(update={"method": label})
