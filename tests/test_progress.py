"""What is seen while runs go on: read from files that may be torn, shown in a terminal and in plain lines."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
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
    run_table,
    seconds_left,
    shorten,
)

WHERE = ["where", "or", "when"]
PACED = Progress("training", 12, None, (11, {"AP.b": 7.5}), 0.5)


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
        (b'{"iteration": 9, "time": 0.5}\n{"iteration": 11, "evaluation/AP.b": 7.5}\n', PACED),
        (b'{"iteration": 4, "total_loss": NaN, "time": "long"}\n', Progress("training", 5, None)),
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


def a_sweep(running: int) -> list[RunView]:
    """200 runs with names as long as names get: 60 finished, 3 failed, so many running, the rest waiting."""
    strategies, backbones = ["none", "image_only", "alternative_ratios"], ["R18-FPN", "X101-FPN"]
    views = [
        RunView(f"{strategies[index % 3]}-{backbones[index % 2]}-seed{index}-{index:06x}0000000000", 90000)
        for index in range(200)
    ]
    for index, view in enumerate(views[: 63 + running]):
        if index < 63:
            view.state, view.started, view.ended = "finished" if index < 60 else "failed", 0.0, float(index)
            view.ap, view.reason = (12.0, "") if index < 60 else (None, "the loss is not finite")
        else:
            view.state, view.started, view.where = "running", 0.0, "node17.cluster.example.org"
            view.progress, view.seconds_left = Progress("training", 12345, 1.234), 36000.0
    return views


def drawn(views: list[RunView], width: int, height: int) -> list[str]:
    """What a terminal of that size shows of the table: a line each."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    table = run_table(rows_to_show(views, height - 4), 60.0, width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("running", [4, 60])
def test_200_runs_on_a_small_terminal(running: int) -> None:
    lines = drawn(a_sweep(running), 80, 24)
    assert len(lines) <= 21
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert lines[0].split() == ["run", "state", "iteration", "left", "AP.b", *WHERE]
    rows = [line.split() for line in lines[1:]]
    assert sum(row[1] == "failed" for row in rows) == 3  # however many run
    assert sum(row[1] == "training" for row in rows) == min(running, 15)
    assert all(row[2:4] == ["12345/90000", "10:00:00"] for row in rows if row[1] == "training")
    # Each run's own digits are left of its name, and what it is a run of.
    names = [row[0] for row in rows]
    assert len({name.rpartition("-")[2] for name in names}) == len(names)
    assert all("FPN-seed" in name for name in names)


def test_a_wide_terminal_shows_all() -> None:
    lines = drawn(a_sweep(60), 200, 50)
    assert len(lines) == 47
    assert lines[0].split() == ["run", "state", "iteration", "loss", "time", "left", "AP.b", *WHERE]
    name = a_sweep(60)[63].name
    row = next(line for line in lines if name in line)
    assert row.split()[1:] == ["training", "12345/90000", "1.234", "0:01:00", "10:00:00", "node17.cluster.example.org"]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 250), st.integers(1, 60), st.integers(0, 137))
def test_a_table_is_never_wider_than_its_terminal(width: int, height: int, running: int) -> None:
    lines = drawn(a_sweep(running), width, height)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= max(height - 3, 2)


def test_names_are_shortened_from_the_least_telling_part() -> None:
    names = ["alternative_ratios-R18-FPN-seed0-da33c315ecbcfd34", "rio-R18-FPN-seed0-0390c34a899f7b2d"]
    assert shorten(names, 49) == names
    assert shorten(names, 48) == ["alternative_ratios-R18-FPN-seed0-da33c3", "rio-R18-FPN-seed0-0390c3"]
    assert shorten(names, 28) == ["altern…-R18-FPN-seed0-da33c3", "rio-R18-FPN-seed0-0390c3"]
    assert shorten(names, 12) == ["alte…-da33c3", "rio-…-0390c3"]
    assert shorten(["a-run-of-another-name"], 11) == ["a-ru…r-name"]


def test_a_run_that_is_tried_again_is_timed_anew() -> None:
    view = RunView("a", 10, "running", Progress("training", 5), started=100.0, ended=90.0)
    assert "0:00:05" in "".join(drawn_at([view], 105.0))


def drawn_at(views: list[RunView], now: float) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    console.print(run_table(views, now))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_why_a_run_failed_stands_above_the_table_once() -> None:
    views = a_sweep(4)
    console = Console(file=io.StringIO(), width=120, height=30, force_terminal=True, color_system=None)
    with TableDisplay(console) as display:
        display.update(views)
        display.update(views)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for view in views[60:63]:
        assert text.count(f"{view.name}: failed: the loss is not finite") == 1


def test_days_of_running_do_not_fill_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("rio_bench.progress.time.monotonic", lambda: now[0])
    views = a_sweep(40)
    console = Console(file=io.StringIO(), width=80)
    display = PlainDisplay(console)
    told = []
    for hours in (0.1, 48):
        while now[0] < hours * 3600:
            now[0] += 15
            display.update(views)
        assert isinstance(console.file, io.StringIO)
        lines = console.file.getvalue().splitlines()
        told.append([sum(text in line for line in lines) for text in (views[63].name, "40 running")])
    (of_one, counts), (of_one_later, counts_later) = told
    assert (of_one, counts) == (12, 2)  # each 30 s and each 5 minutes at first
    assert of_one_later < 150 and counts_later < 100
