"""The figures of a report, as plotly's JSON: they fit a phone, and the page turns their colours in dark mode.

Names come from experiment files and data sets, and plotly reads markup in every text: `plain` makes them text again.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

Figure = dict[str, Any]  # plotly's data and layout

INK, QUIET, GRID = "#222222", "#595959", "#dddddd"
# After Okabe and Ito, told apart with every kind of colour vision; darker where theirs is pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b4508f", "#a87400", "#5b4bc4", "#2c8fa8", "#7a4b1e")
DASHES = ("solid", "dash", "dot")  # the next one each time that the colours are used up
# What the page takes instead on a dark ground.
DARK = {
    INK: "#eeeeee", QUIET: "#b0b0b0", GRID: "#3a3a3a",
    **dict(zip(COLOURS, ("#56b4e9", "#ff8a3d", "#2bcb9a", "#e59cc8", "#f0b840", "#a79bff", "#7fd4e6", "#d0a070"),
               strict=True)),
}  # fmt: skip
BUCKET_COLOURS = {"all": INK, "rare": COLOURS[1], "common": COLOURS[0], "frequent": COLOURS[2]}

LABEL_LENGTH = 44  # characters of a name in a figure; the whole one is shown where a point is touched
LABEL_PIXELS, MARK_PIXELS, GAP_PIXELS = 20, 13, 10  # of a row: its name, each of its marks, the space below
AXIS_PIXELS = 100  # of a figure of rows: the axis with its title, and the legend
CURVE_PIXELS = 360
MOST_GROUPS, GROUP_SIZE = 20, 5  # a line goes through the means of groups of about so many categories
SHOWN_AT_FIRST = 4  # methods in a figure with a point a category; the others at a touch of the legend


@dataclass(frozen=True)
class Mark:
    """A point in a row; low and high: the ends of its bar, or None; is_filled: an open circle where not."""

    value: float
    low: float | None = None
    high: float | None = None
    is_filled: bool = True
    told: str = ""


@dataclass(frozen=True)
class Row:
    """marks: name of a series (all, rare ...) -> its mark"""

    label: str
    marks: dict[str, Mark]


@dataclass(frozen=True)
class Lines:
    """The curves of a method's runs, which have one colour. runs: name of a run -> x -> y"""

    label: str
    runs: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Dots:
    """A point for each of N things: x, y float64 [N], names [N]; style: which colour and dash; extra: plotly's own."""

    label: str
    x: np.ndarray
    y: np.ndarray
    names: Sequence[str]
    style: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


def plain(text: str) -> str:
    """A text as plotly shows it word for word: it reads tags, entities (these and numbered ones) and %{...}."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("%{", "%&#123;")


def short(text: str, length: int = LABEL_LENGTH) -> str:
    """As `plain`, cut in the middle: what differs within an experiment is often at the end."""
    words = " ".join(str(text).split())
    if len(words) > length:
        words = f"{words[: length // 2]}…{words[-(length // 2) + 1 :]}"
    return plain(words)


def number(value: float) -> float:
    """Four significant digits more than whole numbers need: a page of 200 runs stays small."""
    return round(float(value), 4)


# ----------------------------------------------------------------------------------------------------------- rows


def forest(rows: Sequence[Row], title: str, is_difference: bool = False) -> Figure:
    """A mark with its bar for each series of each row, the row's name above: no margin that a phone lacks."""
    import plotly.graph_objects as go

    series = list(dict.fromkeys(name for row in rows for name in row.marks))
    figure = go.Figure()
    for place, name in enumerate(series):
        marks = [(index, row, row.marks[name]) for index, row in enumerate(rows) if name in row.marks]
        colour = BUCKET_COLOURS.get(name, COLOURS[place % len(COLOURS)])
        values = [number(mark.value) for _, _, mark in marks]
        figure.add_scatter(
            name=plain(name),
            mode="markers",
            x=values,
            y=[_place(index, place, len(series)) for index, _, _ in marks],
            error_x={
                "type": "data",
                "array": [_length(mark.high, mark.value) for _, _, mark in marks],
                "arrayminus": [_length(mark.value, mark.low) for _, _, mark in marks],
                "color": colour,
                "thickness": 1.5,
                "width": 0,
            },
            marker={
                "color": colour,
                "size": 9,
                "symbol": ["circle" if mark.is_filled else "circle-open" for _, _, mark in marks],
                "line": {"color": colour, "width": 1.5},
            },
            customdata=[[plain(row.label), plain(mark.told)] for _, row, mark in marks],
            hovertemplate="%{customdata[0]}<br>%{fullData.name}: %{customdata[1]}<extra></extra>",
        )
    if is_difference:
        figure.add_vline(x=0, line={"color": QUIET, "width": 1})
    return _of_rows(figure, [row.label for row in rows], len(series), title)


def bars(labels: Sequence[str], parts: Mapping[str, Sequence[float | None]], title: str, unit: str) -> Figure:
    """A bar for each label, stacked of parts: name -> values [labels]."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for (name, values), colour in zip(parts.items(), COLOURS, strict=False):
        figure.add_bar(
            name=plain(name),
            orientation="h",
            x=[None if value is None or math.isnan(value) else number(value) for value in values],
            y=[_place(index, 0, 1) for index in range(len(labels))],
            width=_share(MARK_PIXELS, 1),
            marker={"color": BUCKET_COLOURS.get(name, colour)},
            customdata=[[plain(label)] for label in labels],
            hovertemplate="%{customdata[0]}<br>%{fullData.name}: %{x:,.4~g} " + unit + "<extra></extra>",
        )
    figure.update_layout(barmode="stack", showlegend=len(parts) > 1)
    figure.update_xaxes(rangemode="tozero")
    return _of_rows(figure, labels, 1, title)


def _of_rows(figure: go.Figure, labels: Sequence[str], marks: int, title: str) -> Figure:
    for index, label in enumerate(labels):
        figure.add_annotation(
            text=short(label), xref="paper", x=0, xanchor="left", y=index, yanchor="top", yshift=-1,
            showarrow=False, font={"size": 12, "color": INK}, align="left",
        )  # fmt: skip
        if index:
            figure.add_hline(y=index, line={"color": GRID, "width": 1})
    ticks: dict[str, Any] = {"visible": False, "range": [max(len(labels), 1), 0], "fixedrange": True}
    figure.update_layout(
        height=AXIS_PIXELS + _row_pixels(marks) * max(len(labels), 1),
        yaxis=ticks,
        xaxis={"title": {"text": plain(title)}, "zeroline": False},
    )
    return _finished(figure)


def _row_pixels(marks: int) -> int:
    return LABEL_PIXELS + MARK_PIXELS * marks + GAP_PIXELS


def _share(pixels: float, marks: int) -> float:
    return pixels / _row_pixels(marks)


def _place(index: int, mark: int, marks: int) -> float:
    """Where a mark of a row is: row `index` is from `index` to `index` + 1, its name at the top."""
    return round(index + _share(LABEL_PIXELS + MARK_PIXELS * (mark + 0.5), marks), 4)


def _length(high: float | None, low: float | None) -> float | None:
    return None if high is None or low is None else max(0.0, number(high - low))


# ---------------------------------------------------------------------------------------------------- lines and dots


def curves(lines: Sequence[Lines], title: str, x_title: str = "iteration") -> Figure:
    """A line a run; the runs of a method have its colour and one entry in the legend."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for index, of_method in enumerate(lines):
        for number_of_run, (run, curve) in enumerate(of_method.runs.items()):
            figure.add_scatter(
                name=short(of_method.label),
                legendgroup=str(index),
                showlegend=number_of_run == 0,
                mode="lines" if len(curve) > 1 else "markers",
                x=list(curve),
                y=[float(f"{value:.4g}") for value in curve.values()],
                line=_style(index),
                marker={"color": _style(index)["color"]},
                opacity=1 if len(of_method.runs) == 1 else 0.7,
                meta=[plain(of_method.label), plain(run)],
                hovertemplate="%{meta[0]}<br>%{meta[1]}<br>" + plain(x_title) + " %{x}: %{y}<extra></extra>",
            )
    figure.update_layout(height=CURVE_PIXELS, xaxis={"title": {"text": plain(x_title)}}, showlegend=True)
    figure.update_yaxes(title={"text": plain(title)})
    return _finished(figure)


def differences(methods: Sequence[Dots], title: str, x_title: str) -> Figure:
    """A point a category against its number of training images, and a line through means of groups of categories."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for index, dots in enumerate(methods):
        shared: dict[str, Any] = {
            "legendgroup": str(index),
            "visible": True if index < SHOWN_AT_FIRST else "legendonly",
        }
        figure.add_scatter(
            name=short(dots.label), mode="markers", showlegend=False, x=dots.x.tolist(), y=list(map(number, dots.y)),
            marker={"color": _style(dots.style)["color"], "size": 5, "opacity": 0.35},
            text=list(map(plain, dots.names)), meta=[plain(dots.label)],
            hovertemplate="%{text}: %{y:+.1f}, %{x} training images<br>%{meta[0]}<extra></extra>", **shared,
        )  # fmt: skip
        x, y = _group_means(dots.x, dots.y)
        figure.add_scatter(
            name=short(dots.label), mode="lines", x=list(map(number, x)), y=list(map(number, y)),
            line=_style(dots.style) | {"width": 2.5}, hoverinfo="skip", **shared,
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": QUIET, "width": 1})
    figure.update_layout(height=CURVE_PIXELS + 60, showlegend=True)
    figure.update_xaxes(type="log", title={"text": plain(x_title)}, dtick=1)
    figure.update_yaxes(title={"text": plain(title)})
    return _finished(figure)


def _group_means(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometric means of x and means of y over groups of neighbours in x; points of the same x are in one group."""
    values, rank = np.unique(np.sort(x), return_index=True)
    groups = max(1, min(MOST_GROUPS, len(x) // GROUP_SIZE))
    group = (rank * groups // len(x))[np.searchsorted(values, x)]
    members = np.bincount(group)
    found = members > 0
    return (
        np.exp(np.bincount(group, np.log(x))[found] / members[found]),
        np.bincount(group, y)[found] / members[found],
    )


def balance(images: np.ndarray, methods: Mapping[str, np.ndarray], title: str) -> Figure:
    """Lines on logarithmic axes through means of groups of categories; images, methods' counts: [C], all positive."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for index, (label, counts) in enumerate(methods.items()):
        x, y = _group_means(images, np.log(counts))
        # later lines are thinner: where strategies do the same, each is still seen
        width = 1.5 + 3 * (len(methods) - 1 - index) / max(len(methods) - 1, 1)
        figure.add_scatter(
            name=short(label), mode="lines", x=list(map(number, x)), y=list(map(number, np.exp(y))),
            line=_style(index) | {"width": width}, meta=[plain(label)],
            hovertemplate="%{meta[0]}<br>%{x:,.0f} training images: %{y:,.1f}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(height=CURVE_PIXELS, showlegend=True)
    figure.update_xaxes(type="log", title={"text": "training images of the category"}, dtick=1)
    figure.update_yaxes(type="log", title={"text": plain(title)}, dtick=1)
    return _finished(figure)


def scatter(groups: Sequence[Dots], x_title: str, y_title: str) -> Figure:
    """Points in groups, as the trials of a search."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for dots in groups:
        marker = {"color": COLOURS[dots.style], "size": 9}
        settings: dict[str, Any] = {"mode": "markers", "marker": marker} | dots.extra
        figure.add_scatter(
            name=plain(dots.label), x=list(map(number, dots.x)), y=list(map(number, dots.y)),
            text=list(map(plain, dots.names)), hovertemplate="%{text}<br>%{x}, %{y}<extra></extra>", **settings,
        )  # fmt: skip
    figure.update_layout(height=CURVE_PIXELS, showlegend=True)
    figure.update_xaxes(title={"text": plain(x_title)})
    figure.update_yaxes(title={"text": plain(y_title)})
    return _finished(figure)


def _style(index: int) -> dict[str, Any]:
    turn, colour = divmod(index, len(COLOURS))
    return {"color": COLOURS[colour], "dash": DASHES[turn % len(DASHES)], "width": 1.5}


def _finished(figure: go.Figure) -> Figure:
    figure.update_layout(
        template=None,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        hoverlabel={"align": "left", "namelength": -1},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0, "xanchor": "left"}
        | {"traceorder": "normal"},
        hovermode="closest",
    )
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(gridcolor=GRID, linecolor=GRID, automargin=True, zerolinecolor=GRID)
    return json.loads(figure.to_json())
