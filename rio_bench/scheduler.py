"""Runs -> workers, on the slots of an engine. A run with a record is reused; a failed one does not stop the others."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from rio_bench import datasets
from rio_bench.config import canonical
from rio_bench.engines.local import LocalEngine, LocalJob
from rio_bench.errors import UserError
from rio_bench.plan import Plan, PlannedRun
from rio_bench.progress import (
    PlainDisplay,
    RunView,
    Sighting,
    TableDisplay,
    clock,
    make_display,
    read_progress,
    read_tail,
    seconds_left,
)
from rio_bench.records import Attempt, RecordError, ResultFolder, RunFolder, RunLock, StoredPlan, StoredRun

POLL_SECONDS = 0.1  # between two looks whether a worker ended
LOOK_SECONDS = 1.0  # between two looks at progress files, and at runs that another harness holds
DONE = ("finished", "reused")
ERROR_LINE = re.compile(r"(error: |[\w.]*(Error|Exception)\b)")


class Failure(NamedTuple):
    """A run without a result: why, in a line, and where its log is."""

    name: str
    reason: str
    log: Path


@dataclass
class Outcome:
    """Names of runs by how they ended. stopped: by Ctrl-C, they go on with the next harness."""

    finished: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)


def run_experiment(
    plan: Plan,
    results: ResultFolder,
    *,
    chosen: Plan | None = None,
    device: str = "auto",
    jobs: int | None = None,
    on_finished: Callable[[], None] | None = None,
) -> Outcome:
    """Do what a plan has to do on this machine; returns how each run ended. `on_finished` is called after each result.

    chosen: the part of the plan to do now; the result folder knows the whole of it, for its tables.
    Raises UserError before anything runs: no such device, a result folder of another experiment, a data set that
    cannot be made.
    """
    engine = LocalEngine(device, jobs)
    results.write_plan(stored_plan(plan))
    scheduler = Scheduler(chosen or plan, results, engine, on_finished)
    for name in scheduler.datasets_needed():
        datasets.load(name)  # made here, once, before workers would each find it missing
    with make_display() as display:
        return scheduler.run(display)


def stored_plan(plan: Plan) -> StoredPlan:
    """A plan as plain data."""
    runs = tuple(stored_run(run, plan.experiment) for run in plan.runs)
    return StoredPlan(experiment=plan.experiment, baseline=plan.baseline, runs=runs)


def stored_run(run: PlannedRun, experiment: str) -> StoredRun:
    """A planned run as plain data."""
    return StoredRun(
        name=run.name,
        identity=run.identity,
        experiment=experiment,
        method=run.method,
        is_base=run.is_base,
        after=run.after,
        config=canonical(run.config),
    )


@dataclass
class Running:
    """What goes with a worker while it runs."""

    job: LocalJob
    slot: int
    lock: RunLock
    started: datetime
    log_start: int  # sizes before this attempt: what lies before is another attempt's
    metrics_start: int
    first: Sighting | None = None  # of progress
    latest: Sighting | None = None


@dataclass
class Task:
    """A run of the plan and how far it is; the view holds its state."""

    run: PlannedRun
    folder: RunFolder
    view: RunView
    running: Running | None = None


class Scheduler:
    """One pass over a plan, in the main thread (the kernel ties a worker's life to the thread that started it)."""

    def __init__(
        self, plan: Plan, results: ResultFolder, engine: LocalEngine, on_finished: Callable[[], None] | None = None
    ) -> None:
        self._plan, self._results, self._engine, self._on_finished = plan, results, engine, on_finished
        self._tasks = [Task(run, results.run(run.name), RunView(run.name, run.config.iterations)) for run in plan.runs]
        self._by_name = {task.run.name: task for task in self._tasks}
        self._free = list(range(engine.slots()))
        self._interrupts = 0
        self._notes: list[str] = []
        # Bases come first in a plan, so backwards: whether a base's weights are wanted is known when it is reached.
        self._wanted_bases: set[str] = set()
        for task in reversed(self._tasks):
            if not self._reuse(task) and task.run.after is not None:
                self._wanted_bases.add(task.run.after)

    def datasets_needed(self) -> list[str]:
        """Names of the data sets of the runs that have something to do."""
        return sorted({task.run.config.dataset for task in self._tasks if task.view.state == "waiting"})

    def run(self, display: PlainDisplay | TableDisplay) -> Outcome:
        """Run what has no result yet. Ctrl-C once: SIGTERM to the workers, and wait for them; twice: SIGKILL."""
        last_look = time.monotonic()
        told_interrupts = 0
        with self._interrupts_counted():
            try:
                display.update([task.view for task in self._tasks])
                while True:
                    looking = time.monotonic() - last_look >= LOOK_SECONDS
                    if looking:
                        last_look = time.monotonic()
                    if self._interrupts > told_interrupts:
                        told_interrupts = self._interrupts
                        self._stop()
                    changed = self._collect()
                    if not self._interrupts:
                        changed = self._give_out(try_held=looking) or changed
                    if looking:
                        self._look()
                    for note in self._notes:
                        display.note(note)
                    self._notes.clear()
                    if changed or looking:
                        display.update([task.view for task in self._tasks])
                    if self._is_over():
                        return self._outcome()
                    time.sleep(POLL_SECONDS)
            finally:
                self._abandon()

    @contextmanager
    def _interrupts_counted(self) -> Iterator[None]:
        """Count Ctrl-C and SIGTERM instead of raising in the middle of something."""

        def count(number: int, frame: object) -> None:
            self._interrupts += 1

        before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        running = [task.running.job for task in self._tasks if task.running]
        if self._interrupts == 1:
            self._notes.append(f"stopping: waiting for {len(running)} runs to end (Ctrl-C again: at once)")
            for job in running:
                job.terminate()
        else:
            for job in running:
                job.kill()

    def _abandon(self) -> None:
        """Leave no worker behind where something unforeseen was raised; else there is none."""
        left = [task.running for task in self._tasks if task.running]
        for running in left:
            running.job.kill()
        for running in left:
            while running.job.poll() is None:
                time.sleep(POLL_SECONDS)
            running.lock.release()

    def _is_over(self) -> bool:
        states = {task.view.state for task in self._tasks}
        return "running" not in states and (self._interrupts > 0 or not states & {"waiting", "held"})

    def _outcome(self) -> Outcome:
        outcome = Outcome()
        for task in self._tasks:
            if task.view.state == "failed":
                outcome.failed.append(Failure(task.run.name, task.view.reason, task.folder.log_file))
            elif task.view.state == "finished":
                outcome.finished.append(task.run.name)
            elif task.view.state == "reused":
                outcome.reused.append(task.run.name)
            else:
                outcome.stopped.append(task.run.name)
        return outcome

    # Giving out

    def _give_out(self, try_held: bool) -> bool:
        """Fill the free slots; whether any run changed its state."""
        changed = False
        for task in self._tasks:
            if task.view.state == "waiting" or (task.view.state == "held" and try_held):
                before = task.view.state
                self._try(task)
                changed = changed or task.view.state != before
        return changed

    def _try(self, task: Task) -> None:
        """Start a run if its base is there, a slot is free and nobody else is doing it."""
        obstacle = self._obstacle(task)
        if obstacle == "wait" or not self._free:
            if task.view.state == "held":
                self._reuse(task)
            return
        if obstacle:
            self._fail(task, obstacle)
            return
        try:
            lock = task.folder.lock()
            if lock is None:
                if not self._reuse(task):
                    task.view.state = "held"
                return
            try:
                started = not self._reuse(task) and self._start(task, lock)
            except BaseException:
                lock.release()
                raise
            if not started:
                lock.release()
        except RecordError as error:
            self._fail(task, str(error))

    def _obstacle(self, task: Task) -> str:
        """Empty where a run may start; "wait" while its base goes on; else why it never can."""
        if task.run.after is None:
            return ""
        base = self._by_name[task.run.after]
        if base.view.state == "failed":
            return f"skipped: its base run {base.run.name} failed"
        if base.view.state not in DONE:
            return "wait"
        if not base.folder.final_weights.exists():
            return f"skipped: its base run left no {base.folder.final_weights}"
        return ""

    def _start(self, task: Task, lock: RunLock) -> bool:
        folder = task.folder
        if folder.record_file.exists():  # _reuse() did not take it: left there, it would pass for this attempt's
            try:
                folder.read_record(task.run.identity)
                reason = f"{folder.record_file}: has lost its weights, which other runs start from"
            except RecordError as error:
                reason = str(error)
            self._notes.append(f"{reason}: set aside as {folder.set_aside_record().name}")
        folder.write_run(stored_run(task.run, self._plan.experiment))
        log_start, metrics_start = _size(folder.log_file), _size(folder.metrics_file)
        weights = self._results.run(task.run.after).final_weights if task.run.after else None
        slot = self._free[0]
        job = self._engine.start(folder, slot, lock, weights)
        self._free.remove(slot)
        task.running = Running(job, slot, lock, datetime.now().astimezone(), log_start, metrics_start)
        task.view.state, task.view.started = "running", time.monotonic()
        return True

    def _reuse(self, task: Task) -> bool:
        """Take the result of a run that has one."""
        try:
            record = task.folder.read_record(task.run.identity)
        except RecordError:  # told when the file is set aside, under the lock
            return False
        if record is None or (task.run.name in self._wanted_bases and not task.folder.final_weights.exists()):
            return False
        task.view.state, task.view.ap = "reused", record.metrics["box"].AP
        return True

    # Following and ending

    def _look(self) -> None:
        """Read how far the running workers are."""
        now = time.monotonic()
        for task in self._tasks:
            if task.running is None:
                continue
            running, view = task.running, task.view
            progress = read_progress(read_tail(task.folder.metrics_file, running.metrics_start))
            if progress.done and progress.done != view.progress.done:
                running.latest = Sighting(now, progress.done)
                running.first = running.first or running.latest
            view.progress, view.seconds_left = progress, None
            if progress.phase == "training" and running.first and running.latest:
                view.seconds_left = seconds_left(running.first, running.latest, task.run.config.iterations, now)

    def _collect(self) -> bool:
        """Settle the runs whose worker ended; whether there were any."""
        ended = False
        for task in self._tasks:
            code = task.running.job.poll() if task.running else None
            if code is not None:
                self._settle(task, code)
                ended = True
        return ended

    def _settle(self, task: Task, code: int) -> None:
        running, view = task.running, task.view
        assert running is not None
        task.running = None
        self._free.append(running.slot)
        self._free.sort()
        view.ended = time.monotonic()
        try:
            task.folder.add_attempt(_attempt(running, code))
        except OSError as error:
            self._notes.append(f"warning: {task.folder.attempts_file}: cannot be written: {error.strerror}")
        try:
            record = task.folder.read_record(task.run.identity)
        except RecordError as error:
            self._fail(task, str(error))
            return
        finally:
            running.lock.release()
        if record is not None:  # the record alone tells: a worker may be killed after it wrote it
            view.state, view.ap = "finished", record.metrics["box"].AP
            self._tell_finished()
        elif self._interrupts:
            view.state = "stopped"
        else:
            took = clock((view.ended or 0) - (view.started or 0))
            log = read_tail(task.folder.log_file, running.log_start).decode(errors="replace")
            self._fail(task, exit_cause(code, took, log))

    def _tell_finished(self) -> None:
        if self._on_finished is None:
            return
        try:
            self._on_finished()
        except (UserError, OSError) as error:  # a table that cannot be written costs no run
            self._notes.append(f"warning: {error}")

    def _fail(self, task: Task, reason: str) -> None:
        task.view.state, task.view.reason = "failed", reason


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(running: Running, code: int) -> Attempt:
    return Attempt(
        started=running.started.isoformat(timespec="milliseconds"),
        ended=datetime.now().astimezone().isoformat(timespec="milliseconds"),
        exit_status=code if code >= 0 else None,
        signal=signal_name(-code) if code < 0 else None,
        host=socket.gethostname(),
        pid=running.job.pid,
    )


def signal_name(number: int) -> str:
    """9 -> SIGKILL; real-time signals have no name of their own."""
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


def exit_cause(code: int, took: str, log: str) -> str:
    """Why a worker ended without a record, in a line. code: exit status, or minus the signal; took: 0:01:05."""
    if code < 0:
        name = signal_name(-code)
        cause = f"killed by {name} after {took}" + (": out of memory?" if name == "SIGKILL" else "")
    elif code == 0:
        cause = f"ended without a record after {took}"
    else:
        cause = f"exit status {code} after {took}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    last = errors[-1:] if errors or code < 0 else lines[-1:]  # a killed worker's last line is no cause
    return ": ".join([cause, *(line.removeprefix("error: ") for line in last)])
