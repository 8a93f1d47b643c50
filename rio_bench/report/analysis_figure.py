"""The figure of an analysis: what each level of resampling does to rare, common and frequent categories."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rio_bench.datasets.inspection import BUCKETS
from rio_bench.errors import UserError
from rio_bench.report.analysis import Analysis, by_bucket
from rio_bench.report.analysis_tables import heading, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

ENDINGS = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, told apart with every kind of colour vision, without their yellow: too light for a line.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")
LINE_STYLES = ("-", "--", ":", "-.")  # one more each time that the colours are used up
BUCKET_GREYS = {"r": "#404040", "c": "#8c8c8c", "f": "#d9d9d9"}
QUIET = "#595959"
GROUPS = 40  # a line is drawn through the means of about so many groups of categories
NAME_WIDTH = 44  # characters of a strategy's name in a line

# Inches
WIDTH = 11.0
COUNTS_HEIGHT = 4.8
ROW_HEIGHT = 0.38
ADDED_MARGINS = (0.65, 0.55)  # above and below the rows


def check_output(file: Path) -> None:
    """Raise UserError where a figure cannot be written: asked before the analysis takes its time."""
    if file.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {file}: expected a file name that ends in {', '.join(ENDINGS)}")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--output {file}: there is no folder {file.absolute().parent}")


def write(analyses: Sequence[Analysis], file: Path) -> None:
    """Three panels for each data set, as PNG, SVG or PDF by the file's ending. Raises UserError."""
    from matplotlib.figure import Figure

    check_output(file)
    heights = [COUNTS_HEIGHT + _added_height(analysis) for analysis in analyses]
    figure = Figure(figsize=(WIDTH, sum(heights)))
    parts = figure.subfigures(len(analyses), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, analysis in zip(parts, analyses, strict=True):
        _draw(part, analysis)
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise UserError(f"--output {file}: cannot be written: {error.strerror}") from error


def _added_height(analysis: Analysis) -> float:
    return sum(ADDED_MARGINS) + ROW_HEIGHT * len(analysis.strategies)


def _draw(part: SubFigure, analysis: Analysis) -> None:
    height = COUNTS_HEIGHT + _added_height(analysis)

    def panel(left: float, bottom: float, width: float, inches: float) -> Axes:
        """left and width as shares, bottom and height in inches"""
        return part.add_axes((left, bottom / height, width, inches / height))

    part.text(0.01, 1 - 0.15 / height, heading(analysis), fontsize=12, va="top", parse_math=False)
    part.text(0.01, 1 - 0.42 / height, "Dots: categories; lines: means of groups of them. Flat is balanced.",
              fontsize=9, va="top", color=QUIET)  # fmt: skip
    strategies = analysis.strategies.values()
    bottom = _added_height(analysis) + 0.35
    for left, title, counts in (
        (0.06, "Image level: images of a category that an epoch shows", [one.images for one in strategies]),
        (0.565, "Both levels: objects that it shows or replays", [one.effective_objects for one in strategies]),
    ):
        axes = panel(left, bottom, 0.42, COUNTS_HEIGHT - 0.35 - 1.1)
        axes.set_title(title, loc="left", fontsize=10, pad=18)
        _draw_counts(axes, analysis, counts)
    _draw_added(panel(0.32, ADDED_MARGINS[1], 0.34, ROW_HEIGHT * len(strategies)), analysis)


def _draw_counts(axes: Axes, analysis: Analysis, counts: list[np.ndarray]) -> None:
    """Each strategy's counts [C] against the categories' training images."""
    seen = analysis.image_count > 0
    images = analysis.image_count[seen]
    for place, of_strategy in enumerate(counts):
        style = _style(place, len(counts))
        axes.scatter(images, of_strategy[seen], s=5, color=style["color"], alpha=0.18, linewidths=0, rasterized=True)
        axes.plot(*_group_means(images, of_strategy[seen]), **style)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("training images of the category", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=8)
    axes.grid(which="major", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_buckets(axes, analysis)


def _style(place: int, count: int) -> dict[str, Any]:
    """Later lines are thinner: where strategies do the same, each is still seen."""
    turn, colour = divmod(place, len(COLOURS))
    width = 1.3 + 2.7 * (count - 1 - place) / max(count - 1, 1)
    return {"color": COLOURS[colour], "linestyle": LINE_STYLES[turn % len(LINE_STYLES)], "linewidth": width}


def _group_means(images: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometric means of both, over groups of categories; those with as many images are in one group."""
    values, rank = np.unique(np.sort(images), return_index=True)
    group = (rank * GROUPS // len(images))[np.searchsorted(values, images)]
    members = np.bincount(group)

    def means(of: np.ndarray) -> np.ndarray:
        return np.exp(np.bincount(group, np.log(of))[members > 0] / members[members > 0])

    return means(images), means(counts)


def _draw_buckets(axes: Axes, analysis: Analysis) -> None:
    """Name the buckets above, and part them, where they follow each other by their number of images."""
    bucket, images = np.array(analysis.bucket), analysis.image_count
    of_bucket = {name: images[(bucket == key) & (images > 0)] for key, name in BUCKETS.items()}
    ranges = [(name, found.min(), found.max()) for name, found in of_bucket.items() if found.size]
    steps = [(left[2], right[1]) for left, right in zip(ranges, ranges[1:], strict=False)]
    if any(most >= least for most, least in steps):
        return
    for most, least in steps:
        axes.axvline(np.sqrt(most * least), color="#8c8c8c", linewidth=0.8, linestyle=(0, (4, 4)))
    for name, least, most in ranges:
        axes.text(np.sqrt(least * most), 1.015, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=8,
                  color=QUIET)  # fmt: skip


def _draw_added(axes: Axes, analysis: Analysis) -> None:
    """A row a strategy, the legend of the lines: whose objects it adds to an epoch, and how balanced all are then."""
    rows = by_bucket([analysis]).to_dict("records")
    beside = axes.get_yaxis_transform()  # x as a share of the panel's width, y in rows
    for place, row in enumerate(rows):
        axes.plot([-0.11, -0.02], [place, place], transform=beside, clip_on=False, **_style(place, len(rows)))
        _draw_shares(axes, place, [row[f"Added.{key}"] for key in BUCKETS])
    columns = {
        "objects\nadded": ("Added", 0),
        "Gini,\nimages": ("Images.Gini", 2),
        "Gini,\nobjects": ("Objects.Gini", 2),
        "max/min,\nimages": ("Images.ratio", 0),
        "max/min,\nobjects": ("Objects.ratio", 0),
    }
    for index, (name, (column, digits)) in enumerate(columns.items()):
        right = 1.22 + 0.185 * index
        axes.text(right, -0.65, name, transform=beside, ha="right", fontsize=8, color=QUIET)
        for place, row in enumerate(rows):
            axes.text(right, place, number(row[column], digits), transform=beside, ha="right", va="center", fontsize=9)

    names = [textwrap.fill(str(row["Method"]), NAME_WIDTH) for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8 if any("\n" in name for name in names) else 9)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.tick_params(axis="y", length=0, pad=38)
    axes.tick_params(axis="x", labelsize=8)
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
    axes.set_title("Added objects: rare (dark), common, frequent (light)", loc="left", fontsize=10, pad=8)
    axes.set_xlabel("% of the objects that an epoch has beyond the training set's own", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_shares(axes: Axes, place: int, shares: list[float]) -> None:
    """Percentages one after the other; NaN where nothing is added."""
    if np.isnan(shares).any():
        axes.text(1, place, "adds none", va="center", fontsize=8, color=QUIET)
        return
    for share, start, (key, name) in zip(shares, np.cumsum([0, *shares[:-1]]), BUCKETS.items(), strict=True):
        axes.barh(place, share, left=start, height=0.7, color=BUCKET_GREYS[key])
        if share >= 8:  # narrower than its number
            text = f"{name} {share:.0f}" if share >= 20 else f"{share:.0f}"
            axes.text(start + share / 2, place, text, ha="center", va="center", fontsize=8,
                      color="white" if key == "r" else "black")  # fmt: skip
