"""What is seen while runs go on: read from files that may be torn, shown in a terminal and in plain lines."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rio_bench.progress import (
    PlainDisplay,
    Progress,
    RunView,
    Sighting,
    TableDisplay,
    clock,
    read_progress,
    read_tail,
    rows_to_show,
    seconds_left,
)


@pytest.mark.parametrize(
    ("tail", "progress"),
    [
        (b"", Progress("starting", 0, None)),
        (b'{"iteration": 9, "total_loss": 1.5}\n', Progress("training", 10, 1.5)),
        (b'{"iteration": 9, "total_loss": 1.5}\n{"iteration": 19, "tot', Progress("training", 10, 1.5)),
        (b'oss": 2.5}\n{"iteration": 9}\n', Progress("training", 10, None)),
        (
            b'{"iteration": 9, "total_loss": 1.5}\n{"iteration": 11, "evaluation/AP.b": 7.5}\n',
            Progress("training", 12, 1.5, (11, {"AP.b": 7.5})),
        ),
        (b'{"iteration": 9, "total_loss": 1.5}\n{"phase": "evaluate"}\n', Progress("evaluating", 10, 1.5)),
        (b'{"phase": "evaluate"}\n{"iteration": 0, "total_loss": 3.0}\n', Progress("training", 1, 3.0)),
        (b'{"iteration": 4, "total_loss": 1.5}\n7\n{"lr": 0.1}\n\xff\xfe\n', Progress("training", 5, 1.5)),
    ],
)
def test_progress_is_the_last_whole_line(tail: bytes, progress: Progress) -> None:
    assert read_progress(tail) == progress


@given(st.integers(1, 30), st.integers(0, 2000))
def test_progress_never_runs_ahead_of_a_torn_file(lines: int, cut: int) -> None:
    whole = b"".join(b'{"iteration": %d, "total_loss": 1.0}\n' % index for index in range(lines))
    assert read_progress(whole[:cut]).done == whole[:cut].count(b"}")


def test_a_tail_begins_where_the_attempt_began(tmp_path: Path) -> None:
    assert read_tail(tmp_path / "none") == b""
    (tmp_path / "log").write_bytes(b"x" * 100_000 + b"end")
    tail = read_tail(tmp_path / "log")
    assert tail.endswith(b"end")
    assert len(tail) < 100_000
    assert read_tail(tmp_path / "log", first_byte=100_000) == b"end"


def test_time_left_follows_the_pace_since_first_seen() -> None:
    first, later = Sighting(100.0, 20), Sighting(105.0, 30)  # 0.5 s an iteration
    assert seconds_left(first, first, total=100, now=101.0) is None
    assert seconds_left(first, later, total=100, now=105.0) == 35
    assert seconds_left(first, later, total=100, now=108.0) == 32
    assert seconds_left(first, later, total=100, now=200.0) == 0
    assert clock(3725.4) == "1:02:05"


def many_views() -> list[RunView]:
    views = [RunView(f"run-{index:03}", 100) for index in range(200)]
    for index in range(100):
        views[index].state, views[index].started, views[index].ended, views[index].ap = "finished", 0.0, index, 12.0
    views[7].state, views[7].reason = "failed", "killed by SIGKILL [out of memory?]"
    views[100].state, views[100].started = "running", 0.0
    views[100].progress, views[100].seconds_left = Progress("training", 40, 1.2345), 65.0
    return views


def test_a_table_of_200_runs_shows_what_matters() -> None:
    views = many_views()
    shown = [view.name for view in rows_to_show(views, rows=20)]
    assert shown == ["run-007", "run-095", "run-096", "run-097", "run-098", "run-099", "run-100"]
    assert [view.name for view in rows_to_show(views, rows=2)] == ["run-007", "run-100"]
    assert rows_to_show(views[:10], rows=20) == views[:10]

    console = Console(file=io.StringIO(), width=120, height=30, force_terminal=True, color_system=None)
    with TableDisplay(console) as display:
        display.update(views)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "200 runs · 99 finished · 1 running · 99 waiting · 1 failed" in text
    row = next(line for line in text.splitlines() if "run-100" in line)
    assert all(part in row for part in ("training", "40/100", "1.234", "0:01:05"))


def test_plain_lines_tell_changes_once() -> None:
    views = many_views()
    console = Console(file=io.StringIO(), width=40)
    display = PlainDisplay(console)
    display.update(views)
    views[100].state, views[100].ended, views[100].ap = "finished", 70.0, 31.26
    views[101].state, views[101].reason = "failed", "killed by SIGKILL [out of memory?]"
    display.update(views)
    display.update(views)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].endswith("run-100: iteration 40/100, loss 1.234, 0:01:05 left")
    assert lines[2].endswith("run-100: finished in 0:01:10, AP.b 31.3")
    assert lines[3].endswith("run-101: failed: killed by SIGKILL [out of memory?]")
