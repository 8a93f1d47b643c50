"""Certainty on made-up records with a known effect: intervals cover it at their rate, chance is not taken for one."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import Folder, metrics_of
from scipy import stats

from rio_bench.records import Record
from rio_bench.report.categories import Compactor
from rio_bench.report.cells import Cell, compare
from rio_bench.report.intervals import Interval, bootstrap, holm, intervals
from rio_bench.report.tables import COLUMNS, intervals_of

BUCKET_COLUMNS = [column for column in COLUMNS if column.count(".") == 2]
SIZES = {"r": 10, "c": 20, "f": 30}
BUCKETS = {f"{bucket}{number}": bucket for bucket, size in SIZES.items() for number in range(size)}
NO_EFFECT = {"r": 0.0, "c": 0.0, "f": 0.0}


class World:
    """Cells of records whose AP is known but for chance: of a category, of a category in a seed, and of a seed."""

    def __init__(self, seed: int, of_seed: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.of_seed = of_seed
        self.compactor = Compactor()
        self.identities = itertools.count()

    def pair(self, seeds: int, effect: Mapping[str, float]) -> tuple[Cell, Cell]:
        """A cell, and a baseline that only it has."""
        return self.cell(seeds, effect), self.cell(seeds, NO_EFFECT)

    def cell(self, seeds: int, effect: Mapping[str, float]) -> Cell:
        of_category = {kind: self.values(3.0) for kind in ("box", "mask")}
        records = []
        for seed in range(seeds):
            shift = self.of_seed * self.rng.standard_normal()
            metrics = {}
            for kind, values in of_category.items():
                chance = self.values(5.0)
                ap = {name: 40 + effect[b] + values[name] + chance[name] + shift for name, b in BUCKETS.items()}
                metrics[kind] = metrics_of(ap, BUCKETS)
            records.append(self.compactor.compact(self.record(seed, metrics)))
        return Cell("method", {}, records)

    def values(self, spread: float) -> dict[str, float]:
        return dict(zip(BUCKETS, spread * self.rng.standard_normal(len(BUCKETS)), strict=True))

    def record(self, seed: int, metrics: dict[str, Any], **fields: Any) -> Record:
        content: dict[str, Any] = {
            "identity": f"{next(self.identities):016x}",
            "name": "made-up",
            "method": "method",
            "experiment": "made-up",
            "config": {},
            "seed": seed,
            "metrics": metrics,
            "buckets": dict(BUCKETS),
            "num_train_images": 1,
            "passes": 10.0,
            "base_passes": 0.0,
            "seconds": {"train": 1.0, "evaluate": 1.0, "total": 2.0},
            "peak_memory_bytes": 1,
            "device": "cpu",
            "code": {"revision": None, "dirty": None},
            "versions": {},
            "finished": "2025-01-01T00:00:00+00:00",
        }
        return Record(**content | fields)


# --------------------------------------------------------------------------------------------------------------- rates

EFFECT = {"r": 4.0, "c": 0.0, "f": -2.0}


def covers(found: Mapping[tuple[Cell, str], Interval], column: str) -> list[bool]:
    truth = EFFECT[column[-1]]
    return [interval.low <= truth <= interval.high for (_, of), interval in found.items() if of == column]


def test_intervals_of_one_seed_cover_a_known_effect_at_their_rate() -> None:
    world = World(seed=1)
    pairs = [world.pair(1, EFFECT) for _ in range(250)]
    found = intervals(pairs, BUCKET_COLUMNS)
    assert len(found) == 250 * 6
    for column in BUCKET_COLUMNS:  # 250 intervals: at a rate of 95 %, 4 standard deviations are 5.5 %
        assert 0.895 < np.mean(covers(found, column)) <= 1
    # all 1,500 of them: 4 standard deviations are 2.3 %, and few categories may cost 1 %
    assert 0.915 < np.mean([covered for column in BUCKET_COLUMNS for covered in covers(found, column)]) < 0.975


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seed", [0.0, 0.7])
def test_intervals_of_several_seeds_cover_a_known_effect_at_least_at_their_rate(seeds: int, of_seed: float) -> None:
    """0.7: a shift of all categories by the seed, about as large as the categories' own chance in the rare bucket."""
    world = World(seed=2, of_seed=of_seed)
    pairs = [world.pair(seeds, EFFECT) for _ in range(120)]
    found = intervals(pairs, BUCKET_COLUMNS)
    covered = [covered for column in BUCKET_COLUMNS for covered in covers(found, column)]
    assert np.mean(covered) > 0.93
    # nor wider than they must be: twice what chance of categories and seeds makes it
    quantile = max(stats.t.isf(0.025, 10 - 1), stats.t.isf(0.025, seeds - 1))
    widths = [interval.high - interval.low for (_, column), interval in found.items() if column == "AP.b.r"]
    deviation = np.sqrt(2 * (3.0**2 / 10 + 5.0**2 / (10 * seeds) + of_seed**2 / seeds))
    assert np.mean(widths) < 2 * (2 * quantile * deviation)


@pytest.mark.parametrize(("seeds", "tables"), [(1, 200), (3, 60)])
def test_where_nothing_differs_few_tables_tell_a_difference(
    seeds: int, tables: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holm's correction: in at most 5 % of the tables of 36 differences any of them stands."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # which statsmodels calls each time: most of this test's time
    world = World(seed=3)
    wrong, uncorrected = [], []
    for _ in range(tables):
        pairs = [
            (world.cell(seeds, NO_EFFECT), baseline)
            for baseline in (world.cell(seeds, NO_EFFECT), world.cell(seeds, NO_EFFECT))
            for _ in range(3)
        ]
        found = intervals(pairs, BUCKET_COLUMNS)
        assert len(found) == 36
        wrong.append(any(interval.stands for interval in found.values()))
        uncorrected.append(any(interval.p < 0.05 for interval in found.values()))
    assert np.mean(wrong) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / tables)
    assert np.mean(uncorrected) > 0.2  # which they would do without it


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("categories", "of_category", "of_both"), [(100, 1.0, 3.0), (1200, 3.0, 6.0)])
def test_a_shift_of_all_categories_by_the_seed_is_not_taken_for_an_effect(
    categories: int, of_category: float, of_both: float, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The means of hundreds of categories differ from seed to seed by little but the shift, of one point of AP."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # as above
    rng = np.random.default_rng([seeds, categories])
    cells, columns = 800, 8
    differences = of_both * rng.standard_normal((cells, seeds, categories))
    differences += of_category * rng.standard_normal((cells, 1, categories)) + rng.standard_normal((cells, seeds, 1))
    low, high, p = bootstrap(differences)
    assert np.mean((low <= 0) & (high >= 0)) > 0.95 - 3 * np.sqrt(0.05 * 0.95 / cells)
    assert np.mean(p < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / cells)
    wrong = [any(holm(of_table)) for of_table in p.reshape(-1, columns).tolist()]
    assert np.mean(wrong) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(wrong))


def test_an_effect_stands_where_there_is_one() -> None:
    world = World(seed=4)
    pairs = [world.pair(5, {"r": 20.0, "c": 0.0, "f": -10.0}) for _ in range(4)]
    found = intervals(pairs, BUCKET_COLUMNS)
    standing = {column for (_, column), interval in found.items() if interval.stands}
    assert standing == {"AP.b.r", "AP.b.f", "AP.m.r", "AP.m.f"}
    assert all(interval.low > 0 for (_, column), interval in found.items() if column == "AP.b.r")
    assert all(interval.high < 0 for (_, column), interval in found.items() if column == "AP.m.f")


# ------------------------------------------------------------------------------------------------------------- oracles


def test_with_one_seed_p_is_that_of_the_paired_t_test() -> None:
    differences = np.random.default_rng(5).normal(1.0, 4.0, (200, 1, 30))
    low, high, p = bootstrap(differences)
    oracle = stats.ttest_1samp(differences[:, 0], 0.0, axis=1)
    assert np.allclose(p, oracle.pvalue, rtol=0.25, atol=0.004)  # the standard error of 2,000 resamples
    ends = oracle.confidence_interval(0.95)
    assert np.allclose(low, ends.low, atol=0.35) and np.allclose(high, ends.high, atol=0.35)
    assert abs(np.mean(low - ends.low)) < 0.05 and abs(np.mean(high - ends.high)) < 0.05


@pytest.mark.parametrize(("seeds", "categories"), [(1, 40), (40, 40), (40, 8)])
def test_seeds_and_categories_are_drawn_and_both_methods_alike(seeds: int, categories: int) -> None:
    """Against the bootstrap written out; with as many seeds it is wider than the t test over their means."""
    rng = np.random.default_rng(6)
    differences = 2.0 + rng.normal(0, 3, (1, seeds, 1)) + rng.normal(0, 3, (1, 1, categories))
    differences = differences + rng.normal(0, 2, (1, seeds, categories))
    low, high, _ = bootstrap(differences)
    few = np.sqrt(categories / (categories - 1))
    tail = stats.norm.sf(few * stats.t.isf(0.025, categories - 1))
    means = [
        differences[0][np.ix_(rng.integers(0, seeds, seeds), rng.integers(0, categories, categories))].mean()
        for _ in range(20_000)
    ]
    expected = np.quantile(means, [tail, 1 - tail])
    assert [low[0], high[0]] == pytest.approx(expected, abs=0.15 * np.std(means) * 2)


def test_where_seeds_differ_most_it_is_the_t_test_over_their_means() -> None:
    rng = np.random.default_rng(9)
    differences = 1.0 + rng.normal(0, 2, (200, 3, 1)) + rng.normal(0, 0.01, (200, 3, 30))
    low, high, p = bootstrap(differences)
    oracle = stats.ttest_1samp(differences.mean(axis=2), 0.0, axis=1)
    ends = oracle.confidence_interval(0.95)
    assert np.allclose(low, ends.low) and np.allclose(high, ends.high)
    assert np.allclose(p, oracle.pvalue)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_with_several_seeds_nothing_is_surer_than_the_t_test_over_their_means(seeds: int) -> None:
    rng = np.random.default_rng(10)
    differences = 1.0 + rng.normal(0, 1, (200, seeds, 1)) + rng.normal(0, 4, (200, seeds, 30))
    differences += rng.normal(0, 4, (200, 1, 30))
    low, high, p = bootstrap(differences)
    oracle = stats.ttest_1samp(differences.mean(axis=2), 0.0, axis=1)
    ends = oracle.confidence_interval(0.95)
    assert np.all(low <= ends.low + 1e-9) and np.all(high >= ends.high - 1e-9)
    assert np.all(p >= oracle.pvalue - 1e-9)


def test_holm_by_hand() -> None:
    # 0.005 <= 0.05 / 4, 0.01 <= 0.05 / 3, but 0.03 > 0.05 / 2: it and all larger ones are not rejected
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([]) == []


@pytest.mark.parametrize("seeds", [1, 2])
def test_differences_without_any_spread(seeds: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high, p = bootstrap(np.array([[[2.0] * 8] * seeds, [[0.0] * 8] * seeds, [[-1.0] * 8] * seeds]))
    assert low == pytest.approx([2, 0, -1]) and high == pytest.approx([2, 0, -1])
    assert p == pytest.approx([0, 1, 0])


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.integers(1, 4),
    categories=st.integers(6, 40),
    shift=st.floats(-3, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_interval_and_p_agree(seeds: int, categories: int, shift: float, seed: int) -> None:
    """p is far below 5 % only where zero is outside, and far above only where it is inside; the mean is inside."""
    differences = shift + np.random.default_rng(seed).normal(0, 3, (20, seeds, categories))
    low, high, p = bootstrap(differences)
    mean = differences.mean(axis=(1, 2))
    assert np.all(low <= mean) and np.all(mean <= high)
    is_outside = (low > 0) | (high < 0)
    assert np.all(is_outside[p < 0.005])
    assert not np.any(is_outside[p > 0.25])


# -------------------------------------------------------------------------------------------------------- from records


@pytest.fixture
def world() -> Iterator[World]:
    yield World(seed=7)


def test_what_is_behind_an_interval(world: World) -> None:
    cell, baseline = world.pair(3, EFFECT)
    del cell.records[0]  # the difference is over the seeds that both have
    found = intervals([(cell, baseline)], COLUMNS)
    assert {column: interval.categories for (_, column), interval in found.items()} == {
        **dict.fromkeys(["AP.b", "AP.m"], 60),
        **dict.fromkeys(["AP.b.r", "AP.m.r"], 10),
        **dict.fromkeys(["AP.b.c", "AP.m.c"], 20),
        **dict.fromkeys(["AP.b.f", "AP.m.f"], 30),
    }
    assert {interval.seeds for interval in found.values()} == {2}
    for (_, column), interval in found.items():
        assert interval.low < cell.difference(baseline, column) < interval.high


def test_the_same_records_give_the_same_intervals_whatever_else_is_in_the_table(world: World) -> None:
    pairs = [world.pair(2, EFFECT) for _ in range(5)]
    alone = intervals(pairs[2:3], ["AP.b.r"])[pairs[2][0], "AP.b.r"]
    together = intervals(pairs, COLUMNS)[pairs[2][0], "AP.b.r"]
    assert (alone.low, alone.high, alone.p) == pytest.approx((together.low, together.high, together.p), abs=1e-9)


def changed(cell: Cell, **fields: Any) -> Cell:
    return Cell(cell.method, cell.config, [record.model_copy(update=fields) for record in cell.records])


def test_records_from_before_buckets_have_intervals_of_all_categories_alone(world: World) -> None:
    cell, baseline = world.pair(1, EFFECT)
    old = changed(cell, buckets=None), changed(baseline, buckets=None)
    assert {column for _, column in intervals([old], COLUMNS)} == {"AP.b", "AP.m"}
    # one of the two is enough: the data set is the same
    assert {column for _, column in intervals([(cell, old[1])], COLUMNS)} == set(COLUMNS)
    other = changed(baseline, buckets=dict.fromkeys(BUCKETS, "f"))
    assert {column for _, column in intervals([(cell, other)], COLUMNS)} == {"AP.b", "AP.m"}


def test_categories_without_ground_truth_do_not_count(world: World) -> None:
    values = {name: None if name in ("r0", "r1", "c0") else 20.0 + number for number, name in enumerate(BUCKETS)}
    metrics = metrics_of(values, BUCKETS)
    cells = [
        Cell("m", {}, [world.compactor.compact(world.record(0, {"box": metrics_of(of, BUCKETS), "mask": metrics}))])
        for of in (values, {name: value and value + 1 for name, value in values.items()})
    ]
    found = intervals([(cells[1], cells[0])], COLUMNS)
    assert {column: found[cells[1], column].categories for column in COLUMNS[:4]} == dict(
        zip(COLUMNS[:4], [57, 8, 19, 30], strict=True)
    )


def test_no_interval_of_too_few_categories_or_of_other_means_or_names(world: World) -> None:
    def cell(values: dict[str, float | None], buckets: dict[str, str] = BUCKETS, **update: Any) -> Cell:
        metrics = metrics_of(values, buckets).model_copy(update=update)
        record = world.record(0, {"box": metrics, "mask": metrics_of(values, buckets)}, buckets=buckets)
        return Cell("m", {}, [world.compactor.compact(record)])

    values: dict[str, float | None] = {name: float(number) for number, name in enumerate(BUCKETS)}
    five_rare = {name: None if name in ("r0", "r1", "r2", "r3", "r4") else value for name, value in values.items()}
    found = intervals([(cell(five_rare), cell(five_rare))], COLUMNS)
    assert {column for _, column in found} == {column for column in COLUMNS if not column.endswith(".r")}
    found = intervals([(cell(values, APr=3.0), cell(values, APr=1.0))], COLUMNS)  # the mean is another one
    assert {column for _, column in found} == set(COLUMNS) - {"AP.b.r"}
    renamed = {f"new {name}": value for name, value in values.items()}
    renamed_buckets = {f"new {name}": bucket for name, bucket in BUCKETS.items()}
    assert intervals([(cell(renamed, renamed_buckets), cell(values))], COLUMNS) == {}
    assert intervals([], COLUMNS) == {}


def test_from_a_result_folder(tmp_path: Path) -> None:
    """Baselines have no interval; the missing, and the failed, neither."""
    folder = Folder(tmp_path / "made-up")
    rng = np.random.default_rng(8)
    for method, effect in (("none", 0.0), ("image_only", 0.0), ("rio", 12.0)):
        for seed in range(3):
            values = {name: 30 + effect + 3 * float(rng.standard_normal()) for name in BUCKETS}
            metrics = {"box": metrics_of(values, BUCKETS), "mask": metrics_of(values, BUCKETS)}
            folder.finish(folder.plan(method, seed), [0] * 4, [0] * 4, metrics=metrics, buckets=BUCKETS)
    folder.plan("object_only")
    folder.attempt(folder.plan("other"), exit_status=1)
    folder.write_plan()
    comparison = compare(folder.results)
    found = intervals_of(comparison, comparison.cells, COLUMNS)
    assert [cell.method for cell, column in found if column == "AP.b"] == ["image_only", "rio"]
    assert {cell.method for (cell, _), interval in found.items() if interval.stands} == {"rio"}
