"""How sure a difference to the baseline is: 95 % intervals, p values, and which of a table's differences stand.

A difference is the mean over categories (and over the seeds that both have) of AP less the baseline's, category by
category and seed by seed. Seeds and categories are drawn with replacement, the same draw for both methods: the
pigeonhole bootstrap (Owen, Annals of Applied Statistics 1, 2007), by scipy.stats.bootstrap. The percentiles are
expanded so that few categories cover at the rate, too (Hesterberg, "What Teachers Should Know About the Bootstrap",
arXiv 1411.5279). p: two-sided Student's t test of the difference with the bootstrap's standard error; with one seed
that is the paired t test over categories.

Of a shift that a seed brings to all categories alike, the bootstrap sees too little where seeds are few. With several
seeds the paired t test over their means is therefore asked, too (degrees of freedom: seeds less one; the categories are
taken as they are): an interval spans both, and p is the larger one. With one seed such a shift is not seen at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from rio_bench.records import METRICS
from rio_bench.report.categories import CategoryValues
from rio_bench.report.cells import Cell

if TYPE_CHECKING:
    from scipy.stats._resampling import BootstrapResult

LEVEL = 0.95
MIN_CATEGORIES = 6  # fewer cannot reach 95 %: all of 5 are on the same side of the truth in 1 of 16 cases
RESAMPLES = 2000
MAX_DEVIATION = 0.01  # points of AP: a record's mean is that of its categories, but for rounding
BUCKET_OF_KEY = {"AP": None, "APr": "r", "APc": "c", "APf": "f"}  # None: the categories of all buckets
_CELLS_AT_ONCE = 400  # both bound memory: 6 MB of means of resamples,
_WEIGHTS_AT_ONCE = 2**21  # 16 MB of weights of seeds and categories


@dataclass(frozen=True)
class Interval:
    """Of one difference, in points of AP.

    p: two-sided, before the correction; stands: after Holm's correction over the differences asked for together, with
    zero outside the interval.
    """

    low: float
    high: float
    p: float
    categories: int
    seeds: int
    stands: bool


Key = tuple[Cell, str]  # the cell compared, and the column


def intervals(pairs: Sequence[tuple[Cell, Cell]], columns: Sequence[str]) -> dict[Key, Interval]:
    """The interval of each cell's difference to its baseline's, in each column; one family for Holm's correction.

    pairs: (cell, its baseline). Without an entry: fewer than MIN_CATEGORIES categories in the bucket, records that do
    not hold AP per category or the buckets, or hold another mean than that of their categories. The same records give
    the same intervals.
    """
    groups: dict[tuple[int, int], list[tuple[Key, np.ndarray]]] = defaultdict(list)
    buckets = _Buckets()
    for cell, baseline in pairs:
        for column, values in _differences(cell, baseline, columns, buckets).items():
            groups[values.shape].append(((cell, column), values))

    keys: list[Key] = []
    found: list[tuple[float, float, float, int, int]] = []  # an Interval's fields but the last
    for (seeds, categories), members in groups.items():
        for start in range(0, len(members), _CELLS_AT_ONCE):
            part = members[start : start + _CELLS_AT_ONCE]
            stacked = np.stack([values for _, values in part])
            ends_and_p = [values.tolist() for values in bootstrap(stacked)]
            keys += [key for key, _ in part]
            found += [(*of_one, categories, seeds) for of_one in zip(*ends_and_p, strict=True)]
    rejected = holm([p for _, _, p, _, _ in found])
    return {
        key: Interval(*fields, stands=reject and not fields[0] <= 0 <= fields[1])
        for key, fields, reject in zip(keys, found, rejected, strict=True)
    }


def bootstrap(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low ends and high ends of the 95 % intervals, and p values: float64 [cells] each.

    differences: float64 [cells, seeds, categories], at least two categories. With several seeds the bootstrap's and the
    t test's over the seeds' means: the interval that spans both, the larger p.
    """
    from scipy import stats

    cells, seeds, categories = differences.shape
    flat = differences.reshape(cells, seeds * categories)

    def mean(*draws: np.ndarray, axis: int) -> np.ndarray:
        """Means over drawn seeds (where there are several) and categories; a draw is int [resamples, its number]."""
        weights = _shares(draws[-1], categories)
        if seeds > 1:
            weights = (_shares(draws[0], seeds)[:, :, None] * weights[:, None, :]).reshape(len(weights), -1)
        return flat @ weights.T

    indices = [np.arange(categories)] if seeds == 1 else [np.arange(seeds), np.arange(categories)]
    t_quantile = stats.t.isf((1 - LEVEL) / 2, categories - 1)
    few = np.sqrt(categories / (categories - 1))  # the bootstrap's standard error is too small by this factor
    result: BootstrapResult = stats.bootstrap(
        indices,
        mean,
        n_resamples=RESAMPLES,
        batch=min(RESAMPLES, max(1, _WEIGHTS_AT_ONCE // (seeds * categories))),
        vectorized=True,
        confidence_level=1 - 2 * stats.norm.sf(few * t_quantile),
        method="percentile",
        rng=np.random.default_rng(0),
    )
    observed = differences.mean(axis=(1, 2))
    error = few * result.standard_error
    low, high = result.confidence_interval.low, result.confidence_interval.high
    p = _p(observed, error, categories - 1)
    if seeds > 1:
        error = stats.sem(differences.mean(axis=2), axis=1)
        half = stats.t.isf((1 - LEVEL) / 2, seeds - 1) * error
        low, high = np.minimum(low, observed - half), np.maximum(high, observed + half)
        p = np.maximum(p, _p(observed, error, seeds - 1))
    return low, high, p


def _p(observed: np.ndarray, error: np.ndarray, freedom: int) -> np.ndarray:
    """Two-sided, of Student's t test. Without any spread: certain, unless nothing differs at all."""
    from scipy import stats

    t = np.divide(observed, error, out=np.where(observed == 0, 0.0, np.inf), where=error > 0)
    return 2 * stats.t.sf(np.abs(t), freedom)


def holm(p: Sequence[float]) -> list[bool]:
    """Which hypotheses are rejected with a family-wise error of at most 5 %."""
    if not p:
        return []
    from statsmodels.stats.multitest import multipletests

    return multipletests(p, alpha=1 - LEVEL, method="holm")[0].tolist()


def _shares(draws: np.ndarray, number: int) -> np.ndarray:
    """How often each of `number` is in a draw, as a share of the draw: float64 [draws, number]."""
    offsets = number * np.arange(len(draws))[:, None]
    counts = np.bincount((draws + offsets).ravel(), minlength=len(draws) * number)
    return counts.reshape(len(draws), number) / draws.shape[1]


# --------------------------------------------------------------------------------------------------- from the records


class _Buckets:
    """Which categories are in a bucket, as masks: made once for all records of the same categories."""

    def __init__(self) -> None:
        self._masks: dict[tuple[int, int, str], np.ndarray] = {}

    def mask(self, positions: dict[str, int], bucket_of: Mapping[str, str], bucket: str) -> np.ndarray:
        key = (id(positions), id(bucket_of), bucket)
        if key not in self._masks:
            self._masks[key] = np.array([bucket_of.get(name) == bucket for name in positions], dtype=bool)
        return self._masks[key]


def _differences(cell: Cell, baseline: Cell, columns: Sequence[str], buckets: _Buckets) -> dict[str, np.ndarray]:
    """Column -> float64 [seeds, categories], over the seeds that both have; only columns that can have an interval."""
    own = {record.seed: record for record in cell.records}
    theirs = {record.seed: record for record in baseline.records}
    seeds = sorted(own.keys() & theirs.keys())
    if not seeds:
        return {}
    records = [*(own[seed] for seed in seeds), *(theirs[seed] for seed in seeds)]
    stated = {id(record.buckets): record.buckets for record in records if record.buckets}
    bucket_of = next(iter(stated.values())) if len(stated) == 1 else None

    found = {}
    for kind in dict.fromkeys(METRICS[column][0] for column in columns):
        values = [cast(CategoryValues, record.metrics[kind].per_category) for record in records]
        positions = values[0].positions
        if any(one.positions is not positions for one in values):
            continue  # not the same categories
        arrays = np.stack([one.array for one in values])
        of_kind = arrays[: len(seeds)] - arrays[len(seeds) :]
        with_truth = ~np.isnan(of_kind).any(axis=0)
        for column in columns:
            bucket = BUCKET_OF_KEY[METRICS[column][1]]
            shown = cell.difference(baseline, column)
            if METRICS[column][0] != kind or shown is None or (bucket and bucket_of is None):
                continue
            chosen = with_truth & buckets.mask(positions, bucket_of, bucket) if bucket and bucket_of else with_truth
            differences = of_kind[:, chosen]
            if differences.shape[1] >= MIN_CATEGORIES and abs(differences.mean() - shown) < MAX_DEVIATION:
                found[column] = differences
    return found
