"""How the runs of an experiment are, read from its folder alone: from any terminal, on any machine that sees it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console

from rio_bench.attempts import exit_cause, last_line, last_telling
from rio_bench.files import RecordError
from rio_bench.progress import (
    RunView,
    clock,
    read_progress,
    read_tail,
    rows_to_show,
    run_table,
    sentence,
    summary,
)
from rio_bench.records import Attempt, Holder, Record, ResultFolder, RunFolder, StoredRun

ROWS_IN_A_FILE = 40  # where there is no terminal whose height could tell
REASONS_SHOWN = 5  # of failed runs, the last ones


def print_status(results: ResultFolder, everything: bool) -> None:
    """Print the runs of the plan and a line that counts them; of more than a screen what runs, failed, ended last.

    Raises RecordError where the plan cannot be read.
    """
    plan = results.read_plan()
    views = look_at_all(results, plan.runs if plan else ())
    console = Console(highlight=False)
    in_terminal = console.is_terminal
    if not in_terminal:
        console = Console(highlight=False, width=1000)  # lines are as long as they need to be
    rows = console.height - 5 if in_terminal else ROWS_IN_A_FILE  # the headings, three lines below, the next prompt
    shown = views if everything else rows_to_show(views, rows)
    reasons = [view for view in shown if view.reason]
    for view in reasons if everything else reasons[-REASONS_SHOWN:]:
        console.print(f"{view.name}: {sentence(view)}", markup=False, soft_wrap=True)
    if shown:
        console.print(run_table(shown, time.time(), console.width if in_terminal else None))
    if len(shown) < len(views):
        console.print(f"{len(views) - len(shown)} more: rio_bench status {results.root} --all", soft_wrap=True)
    console.print(f"{plan.experiment if plan else ''}: {summary(views)}", markup=False, soft_wrap=True)


def look_at_all(results: ResultFolder, runs: Sequence[StoredRun]) -> list[RunView]:
    """How runs are now. Times are seconds since 1970."""
    now = time.time()
    views = {run.name: look_at(results.run(run.name), run, now) for run in runs}
    for run in runs:
        base = views.get(run.after) if run.after else None
        if views[run.name].state == "waiting" and base is not None and base.state == "failed":
            views[run.name].state, views[run.name].reason = "failed", f"skipped: its base run {base.name} failed"
    return list(views.values())


def look_at(folder: RunFolder, run: StoredRun, now: float) -> RunView:
    """How a run is. A file that cannot be read is told as the reason."""
    view = RunView(run.name, run.config.get("iterations", 0))
    try:
        record = folder.read_record(run.identity)
        if record is not None:
            _finished(view, record, now)
        elif folder.is_worked_on():
            _running(view, folder)
        elif folder.is_given_out():
            view.state = "queued"
        else:
            _not_going_on(view, folder, now)
    except RecordError as error:
        view.state, view.reason = "unreadable", str(error)
    except OSError as error:
        view.state, view.reason = "unreadable", f"{error.filename}: {error.strerror}"
    return view


def _finished(view: RunView, record: Record, now: float) -> None:
    view.state, view.ap = "finished", record.metrics["box"].AP
    _ended(view, record.finished, now)
    if view.ended is not None:
        view.started = view.ended - record.seconds["total"]


def _running(view: RunView, folder: RunFolder) -> None:
    view.state = "running"
    holder = folder.read_holder()
    if holder is None:  # begun, or ended, a moment ago
        return
    view.where = f"{holder.host} {holder.device}, pid {holder.pid}"
    view.started = _seconds(holder.started)
    if not folder.metrics_file.exists():
        return
    if view.started is not None and folder.metrics_file.stat().st_mtime < view.started:  # told by an attempt before
        return
    view.progress = read_progress(read_tail(folder.metrics_file))
    if view.progress.phase == "training" and view.progress.pace is not None:
        view.seconds_left = max(0, view.iterations - view.progress.done) * view.progress.pace


def _not_going_on(view: RunView, folder: RunFolder, now: float) -> None:
    """A run that nobody has: its last attempt tells why."""
    last = last_telling(folder.read_attempts())
    if _was_cut_off(folder.read_last_holder(), last):
        view.state, view.reason = "stopped", "its worker was killed, and its harness too"
        return
    if last is None:
        return
    _ended(view, last.ended, now)
    view.started = _seconds(last.started)
    if last.cause in ("pruned", "stopped"):
        view.state = last.cause
    else:
        view.state, view.reason = "failed", _cause(last, folder)


def _was_cut_off(holder: Holder | None, last: Attempt | None) -> bool:
    """Whether a worker began after the last attempt whose end is told: no harness lived to tell its end."""
    began = _seconds(holder.started) if holder else None
    told = _seconds(last.ended) if last else None
    return began is not None and (told is None or began > told)


def _cause(attempt: Attempt, folder: RunFolder) -> str:
    """Why an attempt failed, with the last line of its log."""
    log = read_tail(folder.log_file).decode(errors="replace")
    ends = f"; its log ends with: {last_line(log)}" if last_line(log) else ""
    if attempt.cause is not None:
        return attempt.cause + ends
    began, ended = _seconds(attempt.started), _seconds(attempt.ended)
    took = clock(ended - began) if began is not None and ended is not None else "an unknown time"
    if attempt.signal is None:
        return exit_cause(attempt.exit_status or 0, took, log)
    out_of_memory = ": out of memory?" if attempt.signal == "SIGKILL" else ""
    return f"killed by {attempt.signal} after {took}{out_of_memory}{ends}"


def _ended(view: RunView, when: str, now: float) -> None:
    view.ended = _seconds(when)
    if view.ended is None:
        return
    ended, today = datetime.fromtimestamp(view.ended), datetime.fromtimestamp(now).date()
    view.when = f"{ended:%H:%M}" if ended.date() == today else f"{ended:%d %b %H:%M}"


def _seconds(time_with_zone: str) -> float | None:
    """Seconds since 1970; None where the text is no time."""
    try:
        return datetime.fromisoformat(time_with_zone).timestamp()
    except ValueError:
        return None
