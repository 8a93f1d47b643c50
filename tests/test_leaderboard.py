"""The leaderboard of one experiment and of several, beside what has been published."""

from __future__ import annotations

import csv
import io
import math
import sys
from pathlib import Path

import pytest
from made_up import Folder

from rio_bench import cli
from rio_bench.errors import UserError
from rio_bench.records import StoredPlan
from rio_bench.report.cells import compare
from rio_bench.report.leaderboard import leaderboard, published, render
from rio_bench.report.tables import COLUMNS, write_leaderboard
from rio_bench.rerun import place_of_rerun


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "results" / "made-up")


def rows_of(folders: list[Path]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render(folders, "csv"))))


def another(folder: Folder, name: str) -> Folder:
    """A result folder of another experiment beside it."""
    made = Folder(folder.results.root.parent / name)

    def write_plan() -> None:
        made.results.write_plan(StoredPlan(experiment=name, baseline="none", runs=tuple(made.planned)))

    made.write_plan = write_plan  # type: ignore[method-assign]
    return made


# ------------------------------------------------------------------------------------------------------ one experiment


def test_numbers_are_numbers_and_the_best_is_first(folder: Folder) -> None:
    folder.finish(folder.plan("none"), [20, None, 20, 30], [18, 3, 19, 28], passes=2.0)
    folder.finish(folder.plan("rio"), [24, 12, 21, 29], [21, 10, 20, 27])
    folder.finish(folder.plan("image_only"), [None] * 4, [30, 10, 20, 27])
    folder.finish(folder.plan("object_only"), [None] * 4, [31, 10, 20, 27])
    folder.write_plan()
    frame = leaderboard(compare(folder.results))
    assert list(frame.columns[:10]) == ["Backbone", "Method", *COLUMNS]
    assert all(dtype.kind == "f" for dtype in frame[list(COLUMNS)].dtypes)
    assert frame["Method"].tolist() == ["rio", "none", "object_only", "image_only"]  # without AP.b last, by AP.m
    assert frame["Short"].tolist() == [False, True, False, False]
    assert math.isnan(frame["AP.b.r"].iloc[1])
    assert frame["Identities"].iloc[0] == folder.planned[1].identity


def test_seeds_of_base_runs_do_not_part_a_cell(folder: Folder) -> None:
    for seed in range(2):
        base = folder.plan("none, base run", seed=seed, is_base=True, strategy={"name": "none"}, iterations=200)
        folder.finish(folder.plan("rio", seed=seed, warm_start=base.config), [10 + seed] * 4, [0] * 4)
    folder.write_plan()
    assert leaderboard(compare(folder.results))[["Method", "AP.b", "N"]].values.tolist() == [["rio", 10.5, 2]]


def test_records_that_the_plan_holds_no_more_stay(folder: Folder) -> None:
    old = folder.plan("rio", iterations=100)
    folder.finish(old, [10] * 4, [10] * 4)
    new = folder.plan("rio")
    folder.finish(new, [20] * 4, [20] * 4)
    folder.write_plan([new])
    assert leaderboard(compare(folder.results))[["AP.b", "Iterations"]].values.tolist() == [[20, 400], [10, 100]]
    assert [cell.config["iterations"] for cell in compare(folder.results).cells] == [400]


# ----------------------------------------------------------------------------------------------------- several of them


def test_several_experiments_are_ranked_within_a_data_set(folder: Folder) -> None:
    other = another(folder, "other")
    folder.finish(folder.plan("none"), [20] * 4, [18] * 4)
    folder.finish(folder.plan("rio"), [24] * 4, [21] * 4)
    other.finish(other.plan("none"), [22] * 4, [18] * 4)  # the same configuration as the other folder's: apart
    other.finish(other.plan("rio", dataset="glyphs-lvis"), [10] * 4, [11] * 4)
    folder.write_plan()
    other.write_plan()
    rows = rows_of([folder.results.root, other.results.root])
    assert [(row["Dataset"], row["Experiment"], row["Method"], row["AP.b"], row["N"]) for row in rows] == [
        ("glyphs-lvis", "other", "rio", "10.0", "1"),
        ("glyphs-mini", "made-up", "rio", "24.0", "1"),
        ("glyphs-mini", "other", "none", "22.0", "1"),
        ("glyphs-mini", "made-up", "none", "20.0", "1"),
    ]
    assert all(row["Source"] == "" and row["Identities"] for row in rows)
    assert (
        rows_of([folder.results.root, folder.results.root / ".." / folder.results.root.name, other.results.root])
        == rows
    )  # once each


def test_published_rows_stand_beside_ours_of_the_same_data_set_alone(folder: Folder) -> None:
    for seed, ap in enumerate((24, 26)):
        folder.finish(folder.plan("rio", seed, dataset="lvis_v0.5"), [ap] * 4, [ap] * 4)
    folder.finish(folder.plan("rio"), [99] * 4, [99] * 4)
    folder.write_plan()
    rows = [row for row in rows_of([folder.results.root]) if row["Dataset"] == "lvis_v0.5"]
    assert {row["Dataset"] for row in rows_of([folder.results.root])} == {"lvis_v0.5", "glyphs-mini"}
    ours = [row for row in rows if not row["Source"]]
    assert [(row["AP.b"], row["N"], row["AP.b.std"]) for row in ours] == [("25.0", "2", "1.4142")]
    theirs = [row for row in rows if row["Source"]]
    assert len(theirs) == 13 and all(not row["Identities"] and not row["N"] for row in theirs)
    assert [float(row["AP.b"]) for row in rows] == sorted((float(row["AP.b"]) for row in rows), reverse=True)
    rio = next(row for row in theirs if "RIO" in row["Method"] and row["Backbone"] == "R50-FPN")
    assert [float(rio[column]) for column in COLUMNS] == [25.7, 17.2, 25.1, 29.8, 26.0, 18.9, 26.2, 28.5]
    text = render([folder.results.root], "md")
    assert "| lvis\\_v0.5 | R50-FPN | rio | made-up | 25.0 ±1.4 |".replace("\\_", "_") in text
    assert "| published: Chang et al., ICML 2021, arXiv 2104.05702 | 25.7 |" in text
    assert "published: by others" in text
    # theirs are in no table of an experiment
    write_leaderboard(folder.results)
    assert (
        "published" not in folder.results.leaderboard_csv.read_text() + folder.results.leaderboard_markdown.read_text()
    )


def test_lvis_v1_has_published_masks_alone(folder: Folder) -> None:
    folder.finish(folder.plan("rio", dataset="lvis_v1"), [20] * 4, [23] * 4)
    folder.write_plan()
    rows = rows_of([folder.results.root])
    assert [row["Method"] for row in rows] == [
        "rio",
        "Mask R-CNN, EQLv2",
        "Mask R-CNN, RFS",
        "Mask R-CNN, no resampling",
    ]
    assert [row["AP.b"] for row in rows] == ["20.0", "", "", ""]
    assert [row["AP.m"] for row in rows] == ["23.0", "23.7", "22.2", "16.1"]


def test_published_rows_are_sound() -> None:
    assert {row["Dataset"] for row in published()} == {"lvis_v0.5", "lvis_v1"}
    for row in published():
        assert row["Source"] and row["Method"] and row["Backbone"] in ("R50-FPN", "R101-FPN", "X101-FPN")
        values = [row[column] for column in COLUMNS if row[column] is not None]
        assert values and all(0 <= value <= 50 for value in values)
        for kind in ("b", "m"):  # the mean of all is within the means of the buckets
            buckets = [row[f"AP.{kind}.{bucket}"] for bucket in "rcf"]
            if None not in buckets:
                assert min(buckets) <= row[f"AP.{kind}"] <= max(buckets)


# --------------------------------------------------------------------------------------------------------- the command


def test_a_folder_that_is_none_is_told_and_files_are_passed_over(folder: Folder, tmp_path: Path) -> None:
    folder.finish(folder.plan("rio"), [20] * 4, [23] * 4)
    folder.write_plan()
    file = folder.results.root.parent / "leaderboard.csv"
    file.write_text("")
    assert len(rows_of([folder.results.root, file])) == 1
    for wrong in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=f"{wrong}: is not the result folder of an experiment"):
            render([folder.results.root, wrong], "csv")
    with pytest.raises(UserError, match="leaderboard.csv: no result folder"):
        render([file], "csv")


def test_reruns_are_passed_over(folder: Folder) -> None:
    """They lie where a shell's `results/*` finds them; an experiment may have that name."""
    record = folder.plan("rio")
    folder.finish(record, [20] * 4, [23] * 4)
    folder.write_plan()
    results = folder.results.root.parent
    place_of_rerun(results, record.name).run(record.name).create()
    everything = sorted(results.iterdir())
    assert [path.name for path in everything] == ["made-up", "reruns"]
    assert len(rows_of(everything)) == 1
    with pytest.raises(UserError, match="reruns: no result folder"):
        render([results / "reruns"], "csv")
    of_that_name = another(folder, "reruns")
    of_that_name.finish(of_that_name.plan("none"), [10] * 4, [13] * 4)
    of_that_name.write_plan()
    assert [row["Experiment"] for row in rows_of(everything)] == ["made-up", "reruns"]


def test_command(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder.finish(folder.plan("rio"), [20] * 4, [23] * 4)
    folder.write_plan()
    root = folder.results.root

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rio_bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    assert run("leaderboard", str(root)) == (0, render([root], "csv"), "")  # a pipe
    assert run("leaderboard", str(root), "--format", "md") == (0, render([root], "md"), "")
    file = tmp_path / "leaderboard.csv"
    assert run("leaderboard", str(root), "--output", str(file)) == (0, "", "")
    assert file.read_text() == render([root], "csv")
    assert run("leaderboard", str(root), str(file), "--output", str(file), "--format", "html")[0] == 0
    assert file.read_text().startswith("<!doctype html>")
    status, _, err = run("leaderboard", str(tmp_path))
    assert status == 2 and err.count("\n") == 1 and "experiment.json is missing" in err
    status, _, err = run("leaderboard", str(root), "--output", str(tmp_path / "no" / "where.csv"))
    assert status == 2 and err.count("\n") == 1 and "cannot be written" in err
    assert run("table", str(root), "--rows", "seed", "--metric", "AP.m", "--format", "csv")[1].startswith(
        "seed,backbone"
    )
    status, _, err = run("table", str(root), "--rows", "sed")
    assert (status, err) == (2, "error: --rows: no run has the field 'sed' (did you mean 'seed'?)\n")
