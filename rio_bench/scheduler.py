"""Runs -> workers, on the slots of an engine. A run with a record is reused; a failed one does not stop the others."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rio_bench import datasets
from rio_bench.attempts import exit_cause, is_held, may_be_mended, was_told_to_end
from rio_bench.engines import Engine, Job
from rio_bench.errors import UserError
from rio_bench.files import FileLock, RecordError, UnreadableError
from rio_bench.plan import Plan, PlannedRun, stored_plan, stored_run, with_trials
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
from rio_bench.records import Record, ResultFolder
from rio_bench.tasks import Outcome, Running, Task, outcome_of
from rio_bench.trials import Trials

if TYPE_CHECKING:
    from rio_bench.datasets.lvis import Dataset
    from rio_bench.search import Search

POLL_SECONDS = 0.05  # between two looks whether a worker ended
LOOK_SECONDS = 1.0  # between two looks at progress files, and at runs that another harness holds
GRACE_SECONDS = 600.0  # for a run that was told to end: its evaluation may go on, then it writes a checkpoint
ABANDON_SECONDS = 60.0  # for workers to be gone after SIGKILL
DONE = ("finished", "reused")


def run_experiment(
    plan: Plan,
    results: ResultFolder,
    engine: Engine,
    *,
    chosen: Plan | None = None,
    search: Search | None = None,
    on_finished: Callable[[], None] | None = None,
) -> Outcome:
    """Do what a plan and a search have to do; returns how each run ended. `on_finished` is called after each result.

    chosen: the part of the plan to do now; the result folder knows the whole of it, for its tables.
    Raises UserError before anything runs: a result folder of another experiment, a data set that cannot be made.
    """
    trials = search.planned() if search is not None else []
    results.write_plan(stored_plan(with_trials(plan, trials)))
    scheduler = Scheduler(chosen or plan, results, engine, on_finished, search)
    for dataset in scheduler.datasets_needed():
        datasets.load(dataset)  # made here, once, before workers would each find it missing
    try:
        with make_display() as display:
            return scheduler.run(display)
    finally:
        engine.close()


class Scheduler:
    """One pass over a plan, in the main thread (the kernel ties a worker's life to the thread that started it)."""

    def __init__(
        self,
        plan: Plan,
        results: ResultFolder,
        engine: Engine,
        on_finished: Callable[[], None] | None = None,
        search: Search | None = None,
    ) -> None:
        self._plan, self._results, self._engine, self._on_finished = plan, results, engine, on_finished
        self._trials = Trials(search)
        self._trials_flow = True
        self._tasks: list[Task] = []
        self._by_name: dict[str, Task] = {}
        for run in plan.runs:
            self._add(run)
        for run in self._trials.planned():  # the others are the search's to give out
            if run.name not in self._by_name and self._record_of(run) is not None:
                self._add(run)
        self._free = list(range(engine.slots()))
        self._interrupts = 0
        self._notes: list[str] = []
        # Bases come first in a plan, so backwards: whether a base's weights are wanted is known when it is reached.
        self._wanted_bases: set[str] = set()
        for task in reversed(self._tasks):
            if not self._reuse(task) and task.run.after is not None:
                self._wanted_bases.add(task.run.after)

    def _add(self, run: PlannedRun) -> Task:
        task = Task(run, self._results.run(run.name), RunView(run.name, run.config.iterations))
        self._tasks.append(task)
        self._by_name[run.name] = task
        return task

    def datasets_needed(self) -> list[str | Dataset]:
        """The data sets of the runs that have something to do."""
        wanted = [task.run.config.dataset for task in self._tasks if task.view.state == "waiting"]
        return list({str(dataset): dataset for dataset in wanted}.values())

    def run(self, display: PlainDisplay | TableDisplay) -> Outcome:
        """Run what has no result yet. Ctrl-C once: the runs may checkpoint and end; twice: at once."""
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
                        changed = self._give_out(looking) or changed
                    if looking:
                        self._look()
                        self._end_overdue()
                    for note in self._notes:
                        display.note(note)
                    self._notes.clear()
                    if changed or looking:
                        display.update([task.view for task in self._tasks])
                    if self._is_over():
                        self._trials.write()
                        return outcome_of(self._tasks, self._trials.failure, self._results)
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
        running = [task.running for task in self._tasks if task.running]
        if self._interrupts == 1:
            self._notes.append(f"stopping: waiting for {len(running)} runs to checkpoint (Ctrl-C again: at once)")
            for one in running:
                self._tell_to_end(one, "stopped")
        else:
            for one in running:
                one.job.kill()

    def _tell_to_end(self, running: Running, cause: str) -> None:
        if running.cause is None:
            running.cause = cause
            if cause != "stopped":  # there a second Ctrl-C is the user's choice
                running.kill_at = time.monotonic() + GRACE_SECONDS
            running.job.terminate()

    def _end_overdue(self) -> None:
        """Time limits, and runs that do not end although they were told to."""
        limit = self._plan.execution.time_limit_minutes
        now = time.monotonic()
        for task in self._tasks:
            if task.running is None:
                continue
            if limit is not None and now - (task.view.started or now) > limit * 60:
                self._tell_to_end(task.running, "time limit")
            if task.running.kill_at is not None and now > task.running.kill_at:
                task.running.job.kill()

    def _abandon(self) -> None:
        """Leave no worker behind where something unforeseen was raised; else there is none."""
        left = [task.running for task in self._tasks if task.running]
        deadline = time.monotonic() + ABANDON_SECONDS
        for running in left:
            with suppress(Exception):  # an engine that is gone, too, keeps no other worker alive
                running.job.kill()
        for running in left:
            with suppress(Exception):
                while running.job.poll() is None and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
            running.lock.release()

    def _is_over(self) -> bool:
        states = {task.view.state for task in self._tasks}
        if states & {"running", "queued"}:
            return False
        return self._interrupts > 0 or (not states & {"waiting", "held"} and self._trials.is_over())

    # Giving out

    def _give_out(self, looking: bool) -> bool:
        """Fill the free slots; whether any run changed its state."""
        changed = False
        if looking:  # the nodes of a cluster come and go
            taken = {task.running.slot for task in self._tasks if task.running}
            self._free = [slot for slot in range(self._engine.slots()) if slot not in taken]
        for task in self._tasks:
            if task.view.state == "waiting" or (task.view.state == "held" and looking):
                before = task.view.state
                self._try(task)
                changed = changed or task.view.state != before
        return self._give_out_trials(looking) or changed

    def _give_out_trials(self, looking: bool) -> bool:
        """Ask the search for runs while slots are free; whether there were any."""
        if not (looking or self._trials_flow):
            return False
        asked = False
        while self._free and not any(task.view.state == "waiting" for task in self._tasks):
            run = self._trials.ask()
            self._trials_flow = run is not None  # none now: not asked again before the next look
            if run is None:
                break
            asked = True
            self._take_in(run)
        return asked

    def _take_in(self, trial: PlannedRun) -> None:
        """Do a trial's run, its base run before it where that is not there."""
        try:
            datasets.load(trial.config.dataset)
            planned = self._trials.planned()
            self._results.write_plan(stored_plan(with_trials(self._plan, planned)))
        except (UserError, OSError) as error:
            self._trials.give_up(error)
            return
        for run in planned:
            if run.name == trial.after:
                self._wanted_bases.add(run.name)
                base = self._by_name.get(run.name) or self._add(run)
                if base.view.state in DONE and not base.folder.final_weights.exists():
                    base.view.state = "waiting"
                if base.view.state == "waiting":
                    self._try(base)
        task = self._by_name.get(trial.name) or self._add(trial)
        task.view.state = "waiting"
        self._try(task)

    def _try(self, task: Task) -> None:
        """Start a run if its base is there, a slot is free and nobody else is doing it."""
        obstacle = self._obstacle(task) if self._free else "wait"
        if obstacle == "wait":
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

    def _start(self, task: Task, lock: FileLock) -> bool:
        folder = task.folder
        if folder.record_file.exists():  # _reuse() did not take it: left there, it would pass for this attempt's
            try:
                folder.read_record(task.run.identity)
                reason = f"{folder.record_file}: has lost its weights, which other runs start from"
            except UnreadableError:  # trouble of the file system, not of the record
                raise
            except RecordError as error:
                reason = str(error)
            self._notes.append(f"{reason}: set aside as {folder.set_aside_record().name}")
        folder.write_run(stored_run(task.run, self._plan))
        log_start, metrics_start = _size(folder.log_file), _size(folder.metrics_file)
        weights = self._results.run(task.run.after).final_weights if task.run.after else None
        slot = self._free[0]
        job = self._engine.start(folder, slot, weights)
        self._free.remove(slot)
        task.running = Running(job, slot, lock, datetime.now().astimezone(), log_start, metrics_start)
        task.view.started = time.monotonic()
        self._place(task.view, job)
        return True

    def _place(self, view: RunView, job: Job) -> None:
        """Tell where a run is; one that waits in a cluster's queue has not begun: no time limit counts yet."""
        view.state, view.where = "queued" if job.queued else "running", job.where
        if job.queued:
            view.started = time.monotonic()

    def _reuse(self, task: Task) -> bool:
        """Take the result of a run that has one."""
        record = self._record_of(task.run)
        if record is None or (task.run.name in self._wanted_bases and not task.folder.final_weights.exists()):
            return False
        task.view.state, task.view.ap = "reused", record.metrics["box"].AP
        self._tell_search(task, "finished", record)
        return True

    def _record_of(self, run: PlannedRun) -> Record | None:
        try:
            return self._results.run(run.name).read_record(run.identity)
        except RecordError:  # told when the file is set aside, under the lock
            return None

    # Following and ending

    def _look(self) -> None:
        """Read how far the running workers are."""
        now = time.monotonic()
        for task in self._tasks:
            if task.running is None:
                continue
            running, view = task.running, task.view
            self._place(view, running.job)
            progress = read_progress(read_tail(task.folder.metrics_file, running.metrics_start))
            if progress.done and progress.done != view.progress.done:
                running.latest = Sighting(now, progress.done)
                running.first = running.first or running.latest
            view.progress, view.seconds_left = progress, None
            if progress.phase == "training" and running.first and running.latest:
                view.seconds_left = seconds_left(running.first, running.latest, task.run.config.iterations, now)
            iteration, values = progress.evaluation or (-1, {})
            if iteration > task.reported and running.cause is None:
                task.reported = iteration
                if self._trials.is_to_be_pruned(task.run, iteration, values):
                    self._tell_to_end(running, "pruned")

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
            task.folder.add_attempt(running.attempt(code))
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
            self._tell_search(task, "finished", record)
            self._tell_finished()
        elif running.cause == "pruned" and was_told_to_end(code):
            view.state = "pruned"
            task.folder.discard_checkpoints()  # nobody goes on from them, and a search may prune hundreds
            self._tell_search(task, "pruned")
        elif self._interrupts and was_told_to_end(code):
            view.state = "stopped"
        elif is_held(code):
            view.state = "held"
        else:
            self._fail_or_retry(task, running, code)

    def _fail_or_retry(self, task: Task, running: Running, code: int) -> None:
        took = clock((task.view.ended or 0) - (task.view.started or 0))
        if running.cause == "time limit":
            limit = self._plan.execution.time_limit_minutes
            done = f"iteration {task.view.progress.done} of {task.run.config.iterations}"
            self._fail(task, f"time limit: {limit:g} minutes are over at {done}; its checkpoint stays")
            return
        log = read_tail(task.folder.log_file, running.log_start).decode(errors="replace")
        reason = exit_cause(code, took, log)
        retries = self._plan.execution.retries
        if may_be_mended(code) and task.retries < retries and not self._interrupts:
            task.retries += 1
            self._notes.append(f"{task.run.name}: {reason}: starting it again ({task.retries} of {retries} retries)")
            task.view.state = "waiting"
        else:
            self._fail(task, reason + (f" ({task.retries + 1} attempts)" if task.retries else ""))

    def _tell_search(
        self, task: Task, how: Literal["finished", "failed", "pruned"], record: Record | None = None
    ) -> None:
        line = self._trials.tell(task.run, how, record)
        if line:
            self._notes.append(line)

    def _tell_finished(self) -> None:
        if self._on_finished is None:
            return
        try:
            self._on_finished()
        except (UserError, OSError) as error:  # a table that cannot be written costs no run
            self._notes.append(f"warning: {error}")

    def _fail(self, task: Task, reason: str) -> None:
        task.view.state, task.view.reason = "failed", reason
        self._tell_search(task, "failed")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
