from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

import pytest
from made_up import Folder

from rio_bench.errors import UserError
from rio_bench.processes import HELD
from rio_bench.records import ResultFolder
from rio_bench.report.cells import compare
from rio_bench.report.leaderboard import leaderboard
from rio_bench.report.tables import render, write_leaderboard

COLUMNS = ["AP.b", "AP.b.r", "AP.b.c", "AP.b.f", "AP.m", "AP.m.r", "AP.m.c", "AP.m.f"]


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
AP.b.std,AP.b.r.std,AP.b.c.std,AP.b.f.std,AP.m.std,AP.m.r.std,AP.m.c.std,AP.m.f.std,Seconds,Device,Identities,Experiment
R50-FPN,rio,24.5,13.0,21.0,29.0,22.5,12.0,20.0,27.0,glyphs-mini,400,8.0,False,0 1,2,\
2.1213,2.8284,0.0,0.0,2.1213,2.8284,0.0,0.0,150.0,cpu,0000000000000002 0000000000000003,made-up
R50-FPN,none,21.0,5.0,20.0,31.0,19.0,4.0,19.0,29.0,glyphs-mini,400,8.0,False,0 1,2,\
1.4142,1.4142,0.0,1.4142,1.4142,1.4142,0.0,1.4142,100.0,cpu,0000000000000000 0000000000000001,made-up
R18-FPN,none,1.25,,0.0,2.5,1.0,,0.0,2.0,glyphs-mini,100,2.0,True,0,1,,,,,,,,,100.0,cpu,0000000000000004,made-up
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

No interval where a bucket has fewer than 6 categories, or a record does not hold their AP and buckets.

±: sample standard deviation over seeds.

Failed, see log.txt in the run's folder: run-05

\* fewer than 5 passes over the training images: too short to mean anything
""".replace("\\\n", "")


def test_golden_folder(golden: Folder) -> None:
    write_leaderboard(golden.results)
    assert golden.results.leaderboard_csv.read_text() == GOLDEN_CSV
    assert golden.results.leaderboard_markdown.read_text() == GOLDEN_MARKDOWN
    assert render(golden.results, "md") == GOLDEN_MARKDOWN


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
    assert "No best value is marked where cells to compare differ in their number of seeds" in render(
        folder.results, "md"
    )
    # the difference is taken over seed 2 alone: 14 - 12, not 14 less the mean of all, 11; nothing is bold
    assert box_line(folder, "rio") == ["14.0 (+2.0)"] * 4 + ["1/3"]
    assert box_line(folder, "none") == ["11.0 ±1.0"] * 4 + ["3"]


@pytest.mark.parametrize(
    ("exit_status", "signal", "cause", "state"),
    [
        (1, None, None, "failed"),
        (None, "SIGKILL", None, "failed"),
        (0, None, None, "failed"),
        (None, "SIGKILL", "time limit", "failed"),
        (None, "SIGTERM", None, "stopped"),
        (0, None, "stopped", "stopped"),
        (None, "SIGKILL", "stopped", "stopped"),
        (0, None, "pruned", "pruned"),
        (None, "SIGTERM", "pruned", "pruned"),
    ],
)
def test_attempts_without_a_record(
    folder: Folder, exit_status: int | None, signal: str | None, cause: str | None, state: str
) -> None:
    run = folder.plan("rio")
    folder.attempt(run, exit_status=1)
    folder.attempt(run, exit_status, signal, cause)
    folder.attempt(run, HELD)  # it found another worker: it tells nothing
    folder.write_plan()
    assert box_line(folder, "rio") == [state] * 4 + ["0/1"]
    assert f"\n{state.capitalize()}" in render(folder.results, "md")
    row = next(csv.DictReader(io.StringIO(render(folder.results, "csv"))))
    assert (row["State"], row["Failed"]) == (state, "1" if state == "failed" else "0")


def test_an_attempt_that_found_another_worker_is_no_failure(folder: Folder) -> None:
    folder.attempt(folder.plan("rio"), HELD)
    folder.write_plan()
    assert box_line(folder, "rio") == ["missing"] * 4 + ["0/1"]


def test_of_several_reasons_for_no_record_the_worst_is_shown(folder: Folder) -> None:
    for seed, cause in enumerate([None, "stopped", "pruned", "time limit"]):
        run = folder.plan("rio", seed=seed)
        if cause is not None:
            folder.attempt(run, 0, cause=cause)
    folder.write_plan()
    assert box_line(folder, "rio") == ["failed"] * 4 + ["0/4"]


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
    assert leaderboard(compare(folder.results))["Method"].tolist() == ["rio", "none"]
    assert "base run |" not in render(folder.results, "md")
    folder.write_plan(folder.planned[1:])  # nor when the plan holds it no more
    assert leaderboard(compare(folder.results))["Method"].tolist() == ["rio", "none"]


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


def test_a_default_baseline_that_no_run_has_is_told(folder: Folder) -> None:
    folder.finish(folder.plan("rio"), [15] * 4, [0] * 4)
    assert differences(folder) == {"rio": ""}
    note = "No run has the baseline 'none': no differences; --baseline NAME takes another one (choose from rio)"
    assert note in render(folder.results, "md").splitlines()


def test_a_baseline_of_several_methods_is_told(folder: Folder) -> None:
    for threshold in range(7):
        strategy = {"name": "none", "t": threshold + 1}
        folder.finish(folder.plan(f"none (t={threshold + 1})", strategy=strategy), [15] * 4, [0] * 4)
    folder.write_plan()
    text = render(folder.results, "md")
    assert "several methods" in text
    assert "none (t=1); none (t=2); none (t=3); none (t=4); none (t=5); ..." in text


def test_a_baseline_asked_for(folder: Folder) -> None:
    for method, strategy, ap in [
        ("none", {"name": "none"}, 10),
        ("image_only (t=1)", {"name": "image_only", "t": 1}, 12),
        ("image_only (t=2)", {"name": "image_only", "t": 2}, 13),
        ("rio", {"name": "rio"}, 17),
    ]:
        folder.finish(folder.plan(method, strategy=strategy), [ap] * 4, [0] * 4)
    folder.write_plan()

    def differences_to(baseline: str) -> list[str]:
        rows = csv.DictReader(io.StringIO(render(folder.results, "csv", baseline=baseline)))
        return [row["AP.b.diff"] for row in rows]

    assert differences_to("rio") == ["-7.0", "-5.0", "-4.0", ""]
    assert differences_to("image_only") == [""] * 4  # which one?
    assert differences_to("image_only (t=2)") == ["-3.0", "-1.0", "", "4.0"]
    assert "the difference to image_only (t=2) with" in render(folder.results, "md", baseline="image_only (t=2)")
    with pytest.raises(UserError, match=r"no run .* 'roi' \(did you mean 'rio'\?\)"):
        differences_to("roi")


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
    assert [len(cell.records) for cell in compare(golden.results).cells] == [2, 1, 1, 0, 0]


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
