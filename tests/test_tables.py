from __future__ import annotations

import csv
import io
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from rio_bench.errors import UserError
from rio_bench.records import Attempt, Metrics, Record, ResultFolder, StoredPlan, StoredRun
from rio_bench.report.cells import compare
from rio_bench.report.tables import leaderboard, render, write_leaderboard

COLUMNS = ["AP.b", "AP.b.r", "AP.b.c", "AP.b.f", "AP.m", "AP.m.r", "AP.m.c", "AP.m.f"]


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

    def attempt(self, run: StoredRun, exit_status: int | None, signal: str | None = None) -> None:
        self.results.run(run.name).create()
        time = "2025-01-01T00:00:00+00:00"
        ended = Attempt(started=time, ended=time, exit_status=exit_status, signal=signal, host="h", pid=1)
        self.results.run(run.name).add_attempt(ended)


def metrics(ap: float | None, rare: float | None, common: float | None, frequent: float | None) -> Metrics:
    return Metrics(AP=ap, AP50=None, AP75=None, APr=rare, APc=common, APf=frequent, per_category={})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "made-up")


@pytest.fixture
def golden(folder: Folder) -> Folder:
    """Two backbones; the first over two seeds."""
    none_0, none_1 = folder.plan("none"), folder.plan("none", seed=1)
    rio_0, rio_1 = folder.plan("rio"), folder.plan("rio", seed=1)
    folder.finish(none_0, [20, 4, 20, 30], [18, 3, 19, 28])
    folder.finish(none_1, [22, 6, 20, 32], [20, 5, 19, 30])
    folder.finish(rio_0, [23, 11, 21, 29], [21, 10, 20, 27])
    folder.finish(rio_1, [26, 15, 21, 29], [24, 14, 20, 27], seconds={"train": 1.0, "evaluate": 1.0, "total": 200.0})
    short = folder.plan("none", backbone="R18-FPN", iterations=100)
    folder.finish(short, [1.25, None, 0, 2.5], [1, None, 0, 2], passes=2.0)
    failed = folder.plan("image_only", backbone="R18-FPN", iterations=100)
    folder.attempt(failed, exit_status=1)
    folder.plan("rio", backbone="R18-FPN", iterations=100)
    folder.write_plan()
    return folder


# sample standard deviation of two values: their distance / sqrt(2): 1.4142 for 2, 2.1213 for 3, 2.8284 for 4
GOLDEN_CSV = """\
Backbone,Method,AP.b,AP.b.r,AP.b.c,AP.b.f,AP.m,AP.m.r,AP.m.c,AP.m.f,Dataset,Iterations,Passes,Short,Seeds,N,\
AP.b.std,AP.b.r.std,AP.b.c.std,AP.b.f.std,AP.m.std,AP.m.r.std,AP.m.c.std,AP.m.f.std,Seconds,Device,Identities
R50-FPN,none,21.0,5.0,20.0,31.0,19.0,4.0,19.0,29.0,glyphs-mini,400,8.0,False,0 1,2,\
1.4142,1.4142,0.0,1.4142,1.4142,1.4142,0.0,1.4142,100.0,cpu,0000000000000000 0000000000000001
R50-FPN,rio,24.5,13.0,21.0,29.0,22.5,12.0,20.0,27.0,glyphs-mini,400,8.0,False,0 1,2,\
2.1213,2.8284,0.0,0.0,2.1213,2.8284,0.0,0.0,150.0,cpu,0000000000000002 0000000000000003
R18-FPN,none,1.25,,0.0,2.5,1.0,,0.0,2.0,glyphs-mini,100,2.0,True,0,1,,,,,,,,,100.0,cpu,0000000000000004
"""

GOLDEN_MARKDOWN = r"""**made-up: glyphs-mini, 400, 100 iterations** (AP in percent)

| Backbone | Method | AP.b | AP.b.r | AP.b.c | AP.b.f | AP.m | AP.m.r | AP.m.c | AP.m.f | N |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| R50-FPN | none | 21.0 ±1.4 | 5.0 ±1.4 | 20.0 ±0.0 | **31.0** ±1.4 \
| 19.0 ±1.4 | 4.0 ±1.4 | 19.0 ±0.0 | **29.0** ±1.4 | 2 |
| R50-FPN | rio | **24.5** ±2.1 (+3.5) | **13.0** ±2.8 (+8.0) | **21.0** ±0.0 (+1.0) | 29.0 ±0.0 (-2.0) \
| **22.5** ±2.1 (+3.5) | **12.0** ±2.8 (+8.0) | **20.0** ±0.0 (+1.0) | 27.0 ±0.0 (-2.0) | 2 |
| R18-FPN | none \* | 1.2 | – | 0.0 | 2.5 | 1.0 | – | 0.0 | 2.0 | 1 |
| R18-FPN | image_only | failed | failed | failed | failed | failed | failed | failed | failed | 0/1 |
| R18-FPN | rio | missing | missing | missing | missing | missing | missing | missing | missing | 0/1 |

Signed: the difference to none with the same backbone and settings, over the seeds that both have.

±: sample standard deviation over seeds.

Failed, see log.txt in the run's folder: run-05

\* fewer than 5 passes over the training images: too short to mean anything
""".replace("\\\n", "")


def test_golden_folder(golden: Folder) -> None:
    write_leaderboard(golden.results)
    assert golden.results.leaderboard_csv.read_text() == GOLDEN_CSV
    assert golden.results.leaderboard_markdown.read_text() == GOLDEN_MARKDOWN
    assert render(golden.results, "md") == GOLDEN_MARKDOWN


def test_leaderboard_is_numeric(golden: Folder) -> None:
    frame = leaderboard(golden.results)
    assert list(frame.columns[:10]) == ["Backbone", "Method", *COLUMNS]
    assert all(dtype.kind == "f" for dtype in frame[COLUMNS].dtypes)
    assert frame["Short"].tolist() == [False, False, True]
    assert math.isnan(frame["AP.b.r"].iloc[2])


def test_csv_holds_missing_and_failed_cells_and_differences(golden: Folder) -> None:
    rows = list(csv.DictReader(io.StringIO(render(golden.results, "csv"))))
    assert [(row["Backbone"], row["Method"], row["State"], row["N"], row["Failed"]) for row in rows] == [
        ("R50-FPN", "none", "finished", "2", "0"),
        ("R50-FPN", "rio", "finished", "2", "0"),
        ("R18-FPN", "none", "finished", "1", "0"),
        ("R18-FPN", "image_only", "failed", "0", "1"),
        ("R18-FPN", "rio", "missing", "0", "0"),
    ]
    assert [row["AP.b.diff"] for row in rows] == ["", "3.5", "", "", ""]
    assert rows[3]["AP.b"] == ""


def test_terminal(golden: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = render(golden.results, "terminal")
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in ("R50-FPN", "none *", "24.5", "±2.1", "+3.5", "missing", "failed", "0/1", "* fewer than 5 passes"):
        assert word in text
    assert "\x1b" not in text  # no colours where standard output is not a terminal


def test_terminal_marks_the_best(golden: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    text = render(golden.results, "terminal")
    assert "\x1b[1;32m24.5\x1b[0m ±2.1" in text
    assert "21.0 ±1.4" in text


# ----------------------------------------------------------------------------------------------------- cells and seeds


def box_line(folder: Folder, method: str) -> list[str]:
    """AP.b, AP.b.r, AP.b.c, AP.b.f and N of a method's Markdown row."""
    row = next(line for line in render(folder.results, "md").splitlines() if f"| {method} |" in line)
    values = [value.strip() for value in row.strip("|").split("|")]
    return [*values[2:6], values[10]]


def test_seeds_that_failed_or_are_missing(folder: Folder) -> None:
    for seed in range(3):
        folder.finish(folder.plan("none", seed=seed), [10 + seed] * 4, [0] * 4)
    runs = [folder.plan("rio", seed=seed) for seed in range(3)]
    folder.finish(runs[2], [14] * 4, [0] * 4)
    folder.attempt(runs[0], exit_status=1)
    folder.write_plan()
    assert "Failed, see log.txt in the run's folder: run-03\n" in render(folder.results, "md")
    assert "No best value is marked where rows differ in their number of seeds" in render(folder.results, "md")
    # the difference is taken over seed 2 alone: 14 - 12, not 14 less the mean of all, 11; nothing is bold
    assert box_line(folder, "rio") == ["14.0 (+2.0)"] * 4 + ["1/3"]
    assert box_line(folder, "none") == ["11.0 ±1.0"] * 4 + ["3"]


@pytest.mark.parametrize(
    ("exit_status", "signal", "state"),
    [(1, None, "failed"), (None, "SIGKILL", "failed"), (0, None, "failed"), (None, "SIGTERM", "missing")],
)
def test_attempts_without_a_record(folder: Folder, exit_status: int | None, signal: str | None, state: str) -> None:
    run = folder.plan("rio")
    folder.attempt(run, exit_status=1)
    folder.attempt(run, exit_status, signal)
    folder.write_plan()
    assert box_line(folder, "rio") == [state] * 4 + ["0/1"]


def test_a_record_counts_although_an_attempt_before_it_failed(folder: Folder) -> None:
    run = folder.plan("rio")
    folder.attempt(run, exit_status=1)
    folder.finish(run, [10] * 4, [0] * 4)
    folder.write_plan()
    assert box_line(folder, "rio") == ["10.0"] * 4 + ["1"]


def test_equal_best_values_are_all_bold_and_zero_has_no_sign(folder: Folder) -> None:
    folder.finish(folder.plan("none"), [10.04, 5, 5, 5], [0] * 4)
    folder.finish(folder.plan("rio"), [10.0, 6, 5, 5], [0] * 4)
    folder.write_plan()
    assert box_line(folder, "none")[:2] == ["**10.0**", "5.0"]
    assert box_line(folder, "rio")[:2] == ["**10.0** (+0.0)", "**6.0** (+1.0)"]


def test_base_runs_stay_out(folder: Folder) -> None:
    base = folder.plan("none, base run", is_base=True, strategy={"name": "none"}, iterations=200)
    folder.finish(base, [50] * 4, [50] * 4)
    warm = {"warm_start": base.config}
    folder.finish(folder.plan("none", **warm), [10] * 4, [10] * 4)
    folder.finish(folder.plan("rio", **warm), [11] * 4, [11] * 4)
    folder.write_plan()
    assert leaderboard(folder.results)["Method"].tolist() == ["none", "rio"]
    assert "base run |" not in render(folder.results, "md")
    folder.write_plan(folder.planned[1:])  # nor when the plan holds it no more
    assert leaderboard(folder.results)["Method"].tolist() == ["none", "rio"]


def test_seeds_of_base_runs_do_not_part_a_cell(folder: Folder) -> None:
    for seed in range(2):
        base = folder.plan("none, base run", seed=seed, is_base=True, strategy={"name": "none"}, iterations=200)
        folder.finish(folder.plan("rio", seed=seed, warm_start=base.config), [10 + seed] * 4, [0] * 4)
    folder.write_plan()
    assert leaderboard(folder.results)[["Method", "AP.b", "N"]].values.tolist() == [["rio", 10.5, 2]]


def test_records_that_the_plan_holds_no_more_stay_in_the_leaderboard(folder: Folder) -> None:
    old = folder.plan("rio", iterations=100)
    folder.finish(old, [10] * 4, [10] * 4)
    new = folder.plan("rio")
    folder.finish(new, [20] * 4, [20] * 4)
    folder.write_plan([new])
    assert leaderboard(folder.results)[["AP.b", "Iterations"]].values.tolist() == [[20, 400], [10, 100]]
    assert [cell.config["iterations"] for cell in compare(folder.results).cells] == [400]


# -------------------------------------------------------------------------------------------------------- the baseline


def differences(folder: Folder) -> dict[str, str]:
    folder.write_plan()
    return {row["Method"]: row["AP.b.diff"] for row in csv.DictReader(io.StringIO(render(folder.results, "csv")))}


def test_baseline_of_the_same_classifier(folder: Folder) -> None:
    for method, strategy, classifier, ap in [
        ("none, cosine", "none", {}, 23),
        ("none, linear", "none", {"classifier": {"name": "linear"}}, 20),
        ("rio, cosine", "rio", {}, 26),
        ("rio, linear", "rio", {"classifier": {"name": "linear"}}, 24),
    ]:
        folder.finish(folder.plan(method, strategy={"name": strategy}, **classifier), [ap] * 4, [0] * 4)
    assert differences(folder) == {"none, cosine": "", "none, linear": "", "rio, cosine": "3.0", "rio, linear": "4.0"}


def test_baseline_with_default_hyperparameters(folder: Folder) -> None:
    folder.finish(folder.plan("none (t=1)", strategy={"name": "none", "t": 1}), [10] * 4, [0] * 4)
    folder.finish(folder.plan("rio"), [15] * 4, [0] * 4)
    assert differences(folder) == {"none (t=1)": "", "rio": "5.0"}  # the only one
    folder.finish(folder.plan("none (t=2)", strategy={"name": "none", "t": 2}), [11] * 4, [0] * 4)
    assert differences(folder) == {"none (t=1)": "", "none (t=2)": "", "rio": ""}  # which one?
    folder.finish(folder.plan("none (t=0)", strategy={"name": "none"}), [12] * 4, [0] * 4)
    assert differences(folder) == {"none (t=1)": "-2.0", "rio": "3.0", "none (t=2)": "-1.0", "none (t=0)": ""}


def test_missing_baseline_or_value(folder: Folder) -> None:
    folder.plan("none")
    folder.finish(folder.plan("rio"), [15] * 4, [0] * 4)
    folder.finish(folder.plan("none", backbone="R18-FPN"), [None] * 4, [0] * 4)
    assert differences(folder) == {"none": "", "rio": ""}


def test_datasets_are_not_compared(folder: Folder) -> None:
    folder.finish(folder.plan("none"), [10] * 4, [0] * 4)
    folder.finish(folder.plan("rio", dataset="glyphs-lvis"), [15] * 4, [0] * 4)
    folder.write_plan()
    text = render(folder.results, "md")
    assert "| R50-FPN, glyphs-mini | none | 10.0 |" in text
    assert "| R50-FPN, glyphs-lvis | rio | 15.0 |" in text  # neither bold nor with a difference


# ------------------------------------------------------------------------------------------------- odd names, odd files


def test_names_are_escaped(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    folder.finish(folder.plan("a|b [red]*x*[/red] _y_ k_v\n<i>"), [10] * 4, [10] * 4)
    folder.write_plan()
    assert r"| a\|b \[red\]\*x\*\[/red\] \_y\_ k_v \<i\> | 10.0 |" in render(folder.results, "md")
    assert "a|b [red]*x*[/red] _y_ k_v" in render(folder.results, "terminal")
    assert next(csv.DictReader(io.StringIO(render(folder.results, "csv"))))["Method"] == folder.planned[0].method


def test_torn_record_is_named_and_counts_as_missing(golden: Folder, caplog: pytest.LogCaptureFixture) -> None:
    golden.attempt(golden.planned[3], exit_status=0)
    torn = golden.results.run("run-03").record_file
    torn.write_text(torn.read_text()[:200])
    assert "run-03/record.json" in render(golden.results, "md").splitlines()[-1]
    with caplog.at_level(logging.WARNING):
        frame = render(golden.results, "csv")
    assert "run-03/record.json" in caplog.text
    row = list(csv.DictReader(io.StringIO(frame)))[1]
    assert (row["Seeds"], row["Failed"]) == ("0", "0")
    assert leaderboard(golden.results)["N"].tolist() == [2, 1, 1]


def test_no_record_yet(folder: Folder) -> None:
    folder.plan("none")
    folder.write_plan()
    write_leaderboard(folder.results)
    assert folder.results.leaderboard_csv.read_text() == GOLDEN_CSV.splitlines()[0] + "\n"
    assert box_line(folder, "none") == ["missing"] * 4 + ["0/1"]


def test_a_folder_without_a_plan_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing: is not the result folder of an experiment"):
        render(ResultFolder(tmp_path / "nothing"), "md")


def test_a_base_run_is_told_and_does_not_make_a_short_schedule_longer(folder: Folder) -> None:
    base = {"dataset": "glyphs-mini", "backbone": "R50-FPN", "strategy": {"name": "none"}, "iterations": 800}
    folder.finish(folder.plan("rio", warm_start=base), [10] * 4, [0] * 4, passes=0.1, base_passes=20.0)
    folder.write_plan()
    text = render(folder.results, "md")
    assert "400 iterations after a base run of 800**" in text
    assert "| rio \\* |" in text
