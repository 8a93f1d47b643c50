"""What is seen while runs go on: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rio_bench.records import EVALUATION

TAIL_BYTES = 16_384  # far more than two lines of a metrics file
PLAIN_PERIOD = 30.0  # seconds between two plain lines about a running run
STATES = ("finished", "reused", "pruned", "running", "held", "waiting", "failed", "stopped")
SHOWN_IN_FULL = 16  # a plan of so few runs is shown whole; of a longer one what runs, failed, and ended last


@dataclass(frozen=True)
class Progress:
    """Where a worker is. phase: starting, training, evaluating; done: iterations finished; loss: the last one told;
    evaluation: the last intermediate one, its iteration and its values by the tables' columns."""

    phase: str = "starting"
    done: int = 0
    loss: float | None = None
    evaluation: tuple[int, dict[str, float | None]] | None = None


@dataclass
class RunView:
    """What a display shows of a run. Times are seconds on time.monotonic()'s clock."""

    name: str
    iterations: int
    state: str = "waiting"  # one of STATES; held: another harness is doing it
    progress: Progress = Progress()
    seconds_left: float | None = None  # of training
    started: float | None = None
    ended: float | None = None
    where: str = ""  # the slot or the machine
    ap: float | None = None  # box AP
    reason: str = ""  # why it failed


class Sighting(NamedTuple):
    """When a number of iterations was first seen to be done."""

    time: float
    done: int


def read_progress(tail: bytes) -> Progress:
    """Read the end of a metrics file: JSON lines with `iteration` (0-based, finished) or `phase`; the last counts.

    A torn last line, a cut first one (neither is JSON) and lines of anything else are passed over.
    """
    phase, done, loss, evaluation = None, 0, None, None
    for line in reversed(tail.split(b"\n")):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if not isinstance(values, dict):
            continue
        if not done and values.get("phase") == "evaluate":
            phase = "evaluating"
        if not isinstance(values.get("iteration"), int):
            continue
        done = done or values["iteration"] + 1
        loss = values.get("total_loss") if loss is None else loss
        measured = {key.removeprefix(EVALUATION): value for key, value in values.items() if key.startswith(EVALUATION)}
        if measured and evaluation is None:
            evaluation = values["iteration"], measured
    return Progress(phase or ("training" if done else "starting"), done, loss, evaluation)


def read_tail(path: Path, first_byte: int = 0) -> bytes:
    """The last TAIL_BYTES of a file, but nothing before `first_byte`; empty where there is no file."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(first_byte, end - TAIL_BYTES))
            return file.read()
    except FileNotFoundError:
        return b""


def seconds_left(first: Sighting, latest: Sighting, total: int, now: float) -> float | None:
    """Seconds until `total` iterations at the pace between two sightings; None: not known yet."""
    if latest.done <= first.done:
        return None
    pace = (latest.time - first.time) / (latest.done - first.done)
    return max(0.0, (total - latest.done) * pace - (now - latest.time))


def clock(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def summary(views: Sequence[RunView], elapsed: float) -> str:
    """One line that counts the runs by their state."""
    counts = Counter(view.state for view in views)
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    return " · ".join([f"{len(views)} runs", *parts, f"{clock(elapsed)} elapsed"])


class PlainDisplay:
    """A line at each change of state, and one a running run every 30 seconds: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()
        self._states: dict[str, str] | None = None  # None: nothing was told yet
        self._told: dict[str, float] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def note(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(self, views: Sequence[RunView]) -> None:
        """Tell what changed since the last call."""
        now = time.monotonic()
        if self._states is None:
            self.note(summary(views, 0))
            self._states = {view.name: view.state for view in views}
        for view in views:
            changed = self._states.get(view.name) != view.state
            due = view.state == "running" and now - self._told.get(view.name, -PLAIN_PERIOD) >= PLAIN_PERIOD
            if not changed and not due:
                continue
            self._states[view.name], self._told[view.name] = view.state, now
            self.note(f"[{clock(now - self._start)}] {view.name}: {_sentence(view)}")


def _sentence(view: RunView) -> str:
    if view.state == "running" and view.progress.phase == "training":
        parts = [f"iteration {view.progress.done}/{view.iterations}"]
        if view.progress.loss is not None:
            parts.append(f"loss {view.progress.loss:.3f}")
        if view.seconds_left is not None:
            parts.append(f"{clock(view.seconds_left)} left")
        return ", ".join(parts)
    if view.state == "running":
        return view.progress.phase
    if view.state == "finished" and view.started is not None and view.ended is not None:
        ap = "" if view.ap is None else f", AP.b {view.ap:.1f}"
        return f"finished in {clock(view.ended - view.started)}{ap}"
    return f"{view.state}: {view.reason}" if view.reason else view.state


class TableDisplay:
    """A live table. It is drawn by update() alone, without a thread of its own: workers are started beside it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> TableDisplay:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def note(self, line: str) -> None:
        """Print a line above the table."""
        self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(self, views: Sequence[RunView]) -> None:
        """Draw the table anew."""
        now = time.monotonic()
        rows = self._console.height - 6  # the frame of the table and the summary
        shown = run_table(rows_to_show(views, rows), now)
        self._live.update(Group(shown, Text(summary(views, now - self._start))), refresh=True)


def rows_to_show(views: Sequence[RunView], rows: int) -> list[RunView]:
    """The runs that a table of so many rows shows, in the plan's order: all, or what runs, failed, and ended last."""
    if len(views) <= min(rows, SHOWN_IN_FULL):
        return list(views)
    running = [view for view in views if view.state == "running"]
    failed = [view for view in views if view.state == "failed"]
    ended = sorted((view for view in views if view.state == "finished"), key=lambda view: view.ended or 0)
    chosen = [*running, *reversed(failed), *reversed(ended[-5:])][: max(rows, 1)]
    names = {view.name for view in chosen}
    return [view for view in views if view.name in names]


def run_table(views: Sequence[RunView], now: float) -> Table:
    """The table of some runs."""
    table = Table(expand=False)
    table.add_column("run", no_wrap=True, overflow="ellipsis")
    table.add_column("state", no_wrap=True)
    for heading in ("iteration", "loss", "time", "left", "AP.b"):
        table.add_column(heading, justify="right", no_wrap=True)
    styles = {"failed": "red", "running": "bold", "waiting": "dim", "held": "dim"}
    for view in views:
        table.add_row(*_cells(view, now), style=styles.get(view.state, ""))
    return table


def _cells(view: RunView, now: float) -> list[Text]:
    running = view.state == "running"
    began = running and view.progress.phase != "starting"
    cells: list[Any] = [
        view.name,
        view.progress.phase if running else view.state,
        f"{view.progress.done}/{view.iterations}" if began else str(view.iterations),
        f"{view.progress.loss:.3f}" if began and view.progress.loss is not None else "",
        clock((view.ended or now) - view.started) if view.started is not None else "",
        clock(view.seconds_left) if running and view.seconds_left is not None else "",
        f"{view.ap:.1f}" if view.ap is not None else "",
    ]
    return [Text(cell) for cell in cells]


def make_display() -> PlainDisplay | TableDisplay:
    """A live table where standard output is a terminal, plain lines where it is not."""
    console = Console()
    return TableDisplay(console) if console.is_terminal else PlainDisplay(console)
