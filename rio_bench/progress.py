"""What is seen while runs go on: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rio_bench.records import EVALUATION

TAIL_BYTES = 16_384  # far more than two lines of a metrics file
PLAIN_PERIOD = 30.0  # seconds between two plain lines about a running run
SUMMARY_PERIOD = 300.0  # seconds between two plain lines that count the runs
THINNING = 20  # plain lines come at a twentieth of the time so far, so that days of running do not fill a log
STATES = ("finished", "reused", "pruned", "running", "queued", "held", "waiting", "failed", "stopped", "unreadable")
SHOWN_IN_FULL = 16  # a plan of so few runs is shown whole; of a longer one what runs, failed, and ended last
ENDED_SHOWN = 5
IDENTITY = re.compile(r"(?<=-)([0-9a-f]{6})[0-9a-f]{10}$")  # at the end of a run's name, and what is kept of it
NAME_WIDTH = 30  # columns that a name gets where columns can be left out for it
PLACE_WIDTH = 14  # that where a run is, or when it ended, gets at least
LEFT_OUT_FIRST = ("loss", "time")  # in a narrow terminal


@dataclass(frozen=True)
class Progress:
    """Where a worker is. phase: starting, training, evaluating; done: iterations finished; loss: the last one told;
    evaluation: the last intermediate one, its iteration and its values by the tables' columns; pace: seconds an
    iteration as the worker measured them."""

    phase: str = "starting"
    done: int = 0
    loss: float | None = None
    evaluation: tuple[int, dict[str, float | None]] | None = None
    pace: float | None = None


@dataclass
class RunView:
    """What a display shows of a run. Times are seconds on one clock, which is the caller's choice."""

    name: str
    iterations: int
    state: str = "waiting"  # one of STATES; held: another harness is doing it; queued: no worker has begun yet
    progress: Progress = Progress()
    seconds_left: float | None = None  # of training
    started: float | None = None
    ended: float | None = None
    where: str = ""  # the slot or the machine
    when: str = ""  # when it ended, for people
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
    phase, done, loss, evaluation, pace = None, 0, None, None, None
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
        loss = _number(values.get("total_loss")) if loss is None else loss
        pace = _number(values.get("time")) if pace is None else pace
        measured = {key.removeprefix(EVALUATION): value for key, value in values.items() if key.startswith(EVALUATION)}
        if measured and evaluation is None:
            evaluation = values["iteration"], measured
    return Progress(phase or ("training" if done else "starting"), done, loss, evaluation, pace)


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def read_tail(path: Path, first_byte: int = 0) -> bytes:
    """The last TAIL_BYTES of a file, but nothing before `first_byte`; empty where none can be read."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(first_byte, end - TAIL_BYTES))
            return file.read()
    except OSError:
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


def summary(views: Sequence[RunView], elapsed: float | None = None) -> str:
    """One line that counts the runs by their state."""
    counts = Counter(view.state for view in views)
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    took = [] if elapsed is None else [f"{clock(elapsed)} elapsed"]
    return " · ".join([f"{len(views)} runs", *parts, *took])


class PlainDisplay:
    """For logs and pipes: a line at each change of state, now and then one a running run, and one that counts them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()
        self._states: dict[str, str] | None = None  # None: nothing was told yet
        self._told: dict[str, float] = {}
        self._counted = self._start  # when the runs were counted last

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
            if not changed and not self._is_due(view, now):
                continue
            self._states[view.name], self._told[view.name] = view.state, now
            self.note(f"[{clock(now - self._start)}] {view.name}: {sentence(view)}")
        if now - self._counted >= max(SUMMARY_PERIOD, (now - self._start) / THINNING):
            self._counted = now
            self.note(f"[{clock(now - self._start)}] {summary(views)}")

    def _is_due(self, view: RunView, now: float) -> bool:
        if view.state != "running":
            return False
        told = self._told.get(view.name)
        so_far = 0.0 if view.started is None else now - view.started
        return told is None or now - told >= max(PLAIN_PERIOD, so_far / THINNING)


def sentence(view: RunView) -> str:
    """How a run is, in words."""
    if view.state == "running" and view.progress.phase == "training":
        parts = [f"iteration {view.progress.done}/{view.iterations}"]
        if view.progress.loss is not None:
            parts.append(f"loss {view.progress.loss:.3f}")
        if view.seconds_left is not None:
            parts.append(f"{clock(view.seconds_left)} left")
        return ", ".join(parts)
    if view.state == "running":
        return f"{view.progress.phase} on {view.where}" if view.where else view.progress.phase
    if view.state == "finished":
        took = "" if view.started is None or view.ended is None else f" in {clock(view.ended - view.started)}"
        return f"finished{took}" + ("" if view.ap is None else f", AP.b {view.ap:.1f}")
    return f"{view.state}: {view.reason}" if view.reason else view.state


class TableDisplay:
    """A live table. It is drawn by update() alone, without a thread of its own: workers are started beside it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()
        self._live = Live(console=console, auto_refresh=False)
        self._told: set[str] = set()  # failed runs whose reason stands above the table

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
        """Draw the table anew; why a run failed is told above it, once."""
        now = time.monotonic()
        for view in views:
            if view.state == "failed" and view.name not in self._told:
                self._told.add(view.name)
                self.note(f"{view.name}: {sentence(view)}")
        rows = self._console.height - 5  # the headings, the summary in up to two lines, one above and the cursor's
        shown = run_table(rows_to_show(views, rows), now, self._console.width)
        self._live.update(Group(shown, Text(summary(views, now - self._start))), refresh=True)


def rows_to_show(views: Sequence[RunView], rows: int) -> list[RunView]:
    """The runs that a table of so many rows shows, in the plan's order: all, or what runs, failed, and ended last."""
    rows = max(rows, 1)
    if len(views) <= min(rows, SHOWN_IN_FULL):
        return list(views)
    running = [view for view in views if view.state == "running"]
    failed = _last_ended_first(views, ("failed", "unreadable"))
    ended = _last_ended_first(views, ("finished", "pruned", "stopped"))[:ENDED_SHOWN]
    begun = [view for view in views if view.state in ("held", "queued")]
    kept_for_failed, kept_for_ended = min(len(failed), rows // 4), min(len(ended), rows // 8)  # however many run
    chosen = running[: rows - kept_for_failed - kept_for_ended]
    chosen += failed[: rows - kept_for_ended - len(chosen)]
    for group in (ended, begun):
        chosen += group[: rows - len(chosen)]
    names = {view.name for view in chosen}
    return [view for view in views if view.name in names]


def _last_ended_first(views: Sequence[RunView], states: tuple[str, ...]) -> list[RunView]:
    return sorted((view for view in views if view.state in states), key=lambda view: view.ended or 0, reverse=True)


def run_table(views: Sequence[RunView], now: float, width: int | None = None) -> Table:
    """The table of some runs, for a terminal of `width` columns; None: as wide as it needs to be.

    What is empty throughout is left out. Where names do not fit, the least needed columns are left out, then parts of
    the names and of the places.
    """
    columns = {heading: cells for heading, cells in _columns(views, now).items() if any(cells)}
    names = [view.name for view in views]
    places = columns.pop("where or when", [])
    place_width = None
    if width is not None:
        kept = PLACE_WIDTH + 2 if places else 0
        for heading in LEFT_OUT_FIRST:
            if _room(width - kept, columns) < min(NAME_WIDTH, _longest(names)):
                columns.pop(heading, None)
        names = shorten(names, max(_room(width - kept, columns), 1))
        place_width = max(PLACE_WIDTH, _room(width - 2, columns) - _longest(names))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("run", no_wrap=True, overflow="ellipsis")
    for heading in columns:
        justify: Literal["left", "right"] = "left" if heading == "state" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    if places:
        table.add_column("where or when", no_wrap=True, overflow="ellipsis", max_width=place_width)
    styles = {"failed": "red", "unreadable": "red", "running": "bold", "waiting": "dim", "held": "dim", "queued": "dim"}
    for view, *cells in zip(views, names, *columns.values(), *([places] if places else []), strict=True):
        table.add_row(*map(Text, cells), style=styles.get(view.state, ""))
    return table


def _room(width: int, columns: dict[str, list[str]]) -> int:
    """What columns leave of a terminal's width."""
    return width - sum(_longest([heading, *cells]) + 2 for heading, cells in columns.items())


def _longest(texts: Sequence[str]) -> int:
    return max(map(len, texts), default=0)


def shorten(names: Sequence[str], width: int) -> list[str]:
    """Names of runs in so many columns: of identities the first six digits, then less of the strategy.

    An identity's digits stay: they alone tell the runs of a search apart, and `rio_bench logs` takes them for a name.
    """
    if _longest(names) <= width:
        return list(names)
    return [_cut(IDENTITY.sub(r"\1", name), width) for name in names]


def _cut(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    kept = width - 1
    end = max(kept // 2, min(len(name) - len(name.partition("-")[0]), kept - 4))  # all but the strategy, if it fits
    return f"{name[: kept - end]}…{name[len(name) - end :]}"


def _columns(views: Sequence[RunView], now: float) -> dict[str, list[str]]:
    """The cells of a table by their headings, without the names."""
    rows = [_cells(view, now) for view in views]
    return {heading: [row[heading] for row in rows] for heading in (rows[0] if rows else ())}


def _cells(view: RunView, now: float) -> dict[str, str]:
    running = view.state == "running"
    began = running and view.progress.phase != "starting"
    until = now if running or view.ended is None else view.ended
    return {
        "state": view.progress.phase if running else view.state,
        "iteration": f"{view.progress.done}/{view.iterations}" if began else str(view.iterations),
        "loss": f"{view.progress.loss:.3f}" if began and view.progress.loss is not None else "",
        "time": clock(until - view.started) if view.started is not None else "",
        "left": clock(view.seconds_left) if running and view.seconds_left is not None else "",
        "AP.b": f"{view.ap:.1f}" if view.ap is not None else "",
        "where or when": view.where if running else view.when,
    }


def make_display() -> PlainDisplay | TableDisplay:
    """A live table where standard output is a terminal, plain lines where it is not."""
    console = Console()
    return TableDisplay(console) if console.is_terminal else PlainDisplay(console)
