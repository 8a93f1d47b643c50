"""One metric over any two axes."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from made_up import Folder, metrics_of

from rio_bench.errors import UserError
from rio_bench.report.tables import render


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "made-up")


def finish(folder: Folder, method: str, ap: float, seed: int = 0, **config: Any) -> None:
    folder.finish(folder.plan(method, seed=seed, **config), [ap, ap / 2, ap, ap], [0, 1, 2, 3])


def grid(folder: Folder, **options: str | None) -> list[list[str]]:
    """The cells of the Markdown table, headings first."""
    folder.write_plan()
    lines = [line for line in render(folder.results, "md", **options).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def test_a_metric_alone_is_told_by_method_and_backbone(folder: Folder) -> None:
    for backbone, none, rio in (("R50-FPN", 20, 24), ("R101-FPN", 30, 32)):
        finish(folder, "none", none, backbone=backbone)
        finish(folder, "rio", rio, backbone=backbone)
    assert grid(folder, metric="AP.b.r") == [
        ["method", "R50-FPN", "R101-FPN"],
        ["none", "10.0", "15.0"],
        ["rio", "**12.0** (+2.0)", "**16.0** (+1.0)"],
    ]
    assert grid(folder, rows="backbone")[0] == ["backbone", "none", "rio"]
    assert grid(folder, columns="method") == grid(folder, rows="backbone")
    assert grid(folder, rows="backbone", metric="AP.m.f")[1] == ["R50-FPN", "**3.0**", "**3.0** (+0.0)"]


def test_two_hyperparameters(folder: Folder) -> None:
    """Numbers ascending, a default told by its value, the strategy without them apart, blank what nobody planned."""
    finish(folder, "none", 10)
    for samples, capacity, ap in ((40, 100, 13), (8, 100, 11), (None, None, 12)):
        strategy: dict[str, Any] = {"name": "rio", "samples_per_class": samples, "bank_capacity": capacity}
        finish(folder, "rio", ap, strategy={key: value for key, value in strategy.items() if value is not None})
    assert grid(folder, rows="strategy.samples_per_class", columns="strategy.bank_capacity") == [
        ["strategy.samples_per_class", "bank_capacity 60", "bank_capacity 100", "bank_capacity –"],
        ["8", "", "11.0 (+1.0)", ""],
        ["20", "12.0 (+2.0)", "", ""],
        ["40", "", "**13.0** (+3.0)", ""],
        ["–", "", "", "10.0"],
    ]
    folder.write_plan()
    text = render(folder.results, "md", rows="strategy.samples_per_class", columns="strategy.bank_capacity")
    assert "Blank: the plan has no such run." in text


def test_configurations_are_never_averaged(folder: Folder) -> None:
    """A row that would hold several is parted by what else differs, each told as the plan tells methods."""
    for classifier in ({}, {"classifier": {"name": "linear"}}):
        for threshold in (0.3, 0.5):
            strategy = {"name": "image_only", "repeat_threshold": threshold}
            finish(folder, "x", 10 * threshold + len(classifier), strategy=strategy, **classifier)
        finish(folder, "none", 1 + len(classifier), strategy={"name": "none"}, **classifier)
    assert grid(folder, rows="classifier", columns="dataset", baseline="none") == [
        ["classifier", "other settings", "glyphs-mini"],
        ["cosine", "image_only (repeat_threshold=0.3)", "3.0 (+2.0)"],
        ["cosine", "image_only (repeat_threshold=0.5)", "5.0 (+4.0)"],
        ["cosine", "none", "1.0"],
        ["linear", "image_only (repeat_threshold=0.3)", "4.0 (+2.0)"],
        ["linear", "image_only (repeat_threshold=0.5)", "**6.0** (+4.0)"],
        ["linear", "none", "2.0"],
    ]
    assert grid(folder, rows="strategy", columns="classifier")[1:] == [
        ["image_only (repeat_threshold=0.3)", "3.0 (+2.0)", "4.0 (+2.0)"],
        ["image_only (repeat_threshold=0.5)", "5.0 (+4.0)", "**6.0** (+4.0)"],
        ["none", "1.0", "2.0"],
    ]
    assert [row[0] for row in grid(folder, rows="strategy.repeat_threshold", columns="classifier")[1:]] == [
        "0.3",
        "0.5",
        "–",
    ]
    # the narrower axis keeps its field: a method is told without it
    narrow = grid(folder, rows="method", columns="strategy.repeat_threshold")
    assert narrow[0][1:] == ["repeat_threshold 0.3", "repeat_threshold 0.5", "repeat_threshold –"]
    assert [row[0] for row in narrow[1:]] == [
        "image_only, cosine",
        "none, cosine",
        "image_only, linear",
        "none, linear",
    ]


def test_seeds_as_an_axis(folder: Folder) -> None:
    for seed in range(3):
        finish(folder, "none", 10 + seed, seed)
        if seed < 2:
            finish(folder, "rio", 14 + 3 * seed, seed)
    folder.attempt(folder.plan("rio", seed=2), exit_status=1)
    assert grid(folder, rows="method", columns="seed") == [
        ["method", "seed 0", "seed 1", "seed 2"],
        ["none", "10.0", "11.0", "12.0"],
        ["rio", "**14.0** (+4.0)", "**17.0** (+6.0)", "failed"],
    ]
    assert grid(folder, metric="AP.b") == [
        ["method", "R50-FPN"],
        ["none", "11.0 ±1.0 n=3"],
        ["rio", "15.5 ±2.1 n=2/3 (+5.0)"],  # not bold: it has fewer seeds; 5.0 over those that both have
    ]


def test_a_base_run_s_settings_go_with_the_run_s_own(folder: Folder) -> None:
    for backbone in ("R50-FPN", "R18-FPN"):
        for iterations in (100, 200):
            base = {
                "dataset": "glyphs-mini",
                "backbone": backbone,
                "strategy": {"name": "none"},
                "iterations": iterations,
            }
            finish(folder, "rio", iterations / 10, backbone=backbone, warm_start=base)
    assert grid(folder, rows="warm_start.iterations", columns="backbone") == [
        ["warm_start.iterations", "R50-FPN", "R18-FPN"],
        ["100", "10.0", "10.0"],
        ["200", "**20.0**", "**20.0**"],
    ]
    assert grid(folder, rows="backbone", columns="dataset")[1:] == [
        ["R50-FPN", "warm_start.iterations=100", "10.0"],
        ["R50-FPN", "warm_start.iterations=200", "**20.0**"],
        ["R18-FPN", "warm_start.iterations=100", "10.0"],
        ["R18-FPN", "warm_start.iterations=200", "**20.0**"],
    ]


def test_one_s_own_data_set_is_told_by_its_name(folder: Folder) -> None:
    own = {"name": "birds", "train": {"json": "a", "images": "b"}, "val": {"json": "c", "images": "d"}}
    finish(folder, "none", 10)
    finish(folder, "none", 20, dataset=own)
    assert grid(folder, columns="dataset", rows="method") == [
        ["method", "glyphs-mini", "birds"],
        ["none", "10.0", "20.0"],
    ]
    assert "| R50-FPN, birds | none | 20.0 |" in render(folder.results, "md")


def test_a_strategy_that_is_not_installed_here(folder: Folder) -> None:
    finish(folder, "elsewhere", 10, strategy={"name": "elsewhere"})
    finish(folder, "elsewhere", 11, strategy={"name": "elsewhere", "strength": 2})
    assert grid(folder, rows="strategy.strength", columns="strategy.name")[1:] == [
        ["2", "**11.0**"],
        ["default", "10.0"],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "clasifier"}, "--rows: no run has the field 'clasifier' (did you mean 'classifier'?)"),
        ({"columns": "strategy.samples_per_clas"}, "did you mean 'strategy.samples_per_class'"),
        ({"rows": "strategy.threshold"}, "--rows: no run has the field 'strategy.threshold'"),
        ({"metric": "AP.b.x"}, "--metric: no metric is named 'AP.b.x' (did you mean 'AP.b"),
        ({"rows": "seed", "columns": "seed"}, "--rows and --columns are both 'seed'"),
        ({"rows": "seed", "baseline": "roi"}, "did you mean 'rio'"),
    ],
)
def test_bad_names_are_told_in_one_line(folder: Folder, options: dict[str, str], message: str) -> None:
    finish(folder, "rio", 10)
    folder.write_plan()
    with pytest.raises(UserError) as caught:
        render(folder.results, "md", **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_csv_is_a_row_a_cell(folder: Folder) -> None:
    buckets = {f"{bucket}{number}": bucket for bucket in "rcf" for number in range(10)}
    for method, shift in (("none", 0.0), ("rio", 9.0)):
        for seed in range(2):
            values = {name: 10 + shift + (hash_of(name) + seed) % 5 for name in buckets}
            run = folder.plan(method, seed)
            metrics = {kind: metrics_of(dict(values), buckets) for kind in ("box", "mask")}
            folder.finish(run, [0] * 4, [0] * 4, metrics=metrics, buckets=buckets)
    folder.plan("image_only")
    folder.write_plan()
    rows = list(csv.DictReader(io.StringIO(render(folder.results, "csv", metric="AP.b.r"))))
    assert [(row["method"], row["backbone"], row["State"], row["N"], row["Planned"]) for row in rows] == [
        ("none", "R50-FPN", "finished", "2", "2"),
        ("rio", "R50-FPN", "finished", "2", "2"),
        ("image_only", "R50-FPN", "missing", "0", "1"),
    ]
    assert [row["AP.b.r.diff"] for row in rows] == ["", "9.0", ""]
    rio = rows[1]
    assert float(rio["AP.b.r.low"]) <= 9.0 <= float(rio["AP.b.r.high"])
    assert (rio["AP.b.r.stands"], rio["AP.b.r.categories"], rio["AP.b.r.seeds"]) == ("True", "10", "2")
    assert float(rio["AP.b.r.p"]) < 0.001
    assert rio["Identities"].split() == [run.identity for run in folder.planned[2:4]]
    text = render(folder.results, "md", metric="AP.b.r")
    assert "(+9.0 [9.0, 9.0] †)" in text
    assert "(rare 10) and the seeds (2), widened to a t test's over the seeds' means. †: it stands after Holm's" in text


def hash_of(name: str) -> int:
    return sum(map(ord, name))
