"""The section of a search: its trials, what mattered, the Pareto front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from rio_bench.records import ResultFolder, StoredSearch, StoredTrial
from rio_bench.report import figures
from rio_bench.report.html import Cell, Chart, Section, Table

Finished = list[tuple[StoredTrial, dict[str, float]]]  # trials with the values of their objectives


def search_sections(results: ResultFolder) -> list[Section]:
    """A section where there was a search."""
    search = results.read_search()
    if search is None:
        return []
    section = Section("search", "Search")
    states = Counter(trial.state for trial in search.trials)
    counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "none yet"
    told = f"{search.sampler}, for {', '.join(search.objectives)}; trials: {counts}"
    section.lead.append(f"{told}. {search.storage}, study {search.study}")
    finished = [(trial, trial.values) for trial in search.trials if trial.values]
    if finished:
        section.charts.append(_front(search, finished) if len(search.objectives) > 1 else _progress(search, finished))
    parameters = list(dict.fromkeys(name for shares in search.importance.values() for name in shares))
    for objective, shares in search.importance.items():
        values = [shares.get(name) for name in parameters]
        chart = figures.bars(parameters, {objective: values}, f"importance for {objective} [share of 1]", "")
        section.charts.append(Chart(f"What mattered for {objective}", chart))
    if finished and not search.importance:
        section.notes.append("Too few finished trials to tell what mattered.")
    section.tables.append(_trials_table(search))
    return [section]


def _front(search: StoredSearch, finished: Finished) -> Chart:
    """The first two objectives, with the Pareto front; a line joins it where there are no others."""
    x, y = list(search.objectives)[:2]
    front = sorted(
        ((trial, values) for trial, values in finished if trial.number in search.best), key=lambda entry: entry[1][x]
    )
    others = [(trial, values) for trial, values in finished if trial.number not in search.best]
    line = {"mode": "lines+markers"} if len(search.objectives) == 2 else {}
    groups = [
        figures.Dots(label, _values(chosen, x), _values(chosen, y), _names(chosen), place, extra)
        for place, (label, chosen, extra) in enumerate([("other trials", others, {}), ("Pareto front", front, line)])
    ]
    return Chart(f"Trials by {x} and {y}", figures.scatter(groups, x, y))


def _progress(search: StoredSearch, finished: Finished) -> Chart:
    """The values in the order of the trials, and the best one so far."""
    (objective, direction), *_ = search.objectives.items()
    in_order = sorted(finished, key=lambda entry: entry[0].number)
    numbers = np.array([trial.number for trial, _ in in_order], dtype=float)
    values = _values(in_order, objective)
    best = np.maximum.accumulate(values) if direction == "maximize" else np.minimum.accumulate(values)
    line = {"mode": "lines", "line": {"shape": "hv", "color": figures.COLOURS[1]}, "hoverinfo": "skip"}
    groups = [
        figures.Dots("trials", numbers, values, _names(in_order)),
        figures.Dots("best so far", numbers, best, [""] * len(best), extra=line),
    ]
    return Chart(f"{objective} by trial", figures.scatter(groups, "trial", objective))


def _values(trials: Finished, objective: str) -> np.ndarray:
    return np.array([values[objective] for _, values in trials], dtype=float)


def _names(trials: Finished) -> list[str]:
    return [f"trial {trial.number}: {_params(trial.params)}" for trial, _ in trials]


def _trials_table(search: StoredSearch) -> Table:
    trials, objectives, best = search.trials, list(search.objectives), set(search.best)
    parameters = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = []
    for trial in sorted(trials, key=lambda trial: (trial.number not in best, trial.number)):
        cells = [Cell(trial.state, sort=trial.state), Cell(trial.run or "", sort=trial.run)]
        for name in objectives:
            value = (trial.values or {}).get(name)
            cells.append(Cell("" if value is None else f"{value:.2f}", sort=value, best=trial.number in best))
        for name in parameters:
            value = trial.params.get(name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
            cells.append(Cell(text, sort=value if is_number else None))
        rows.append([*cells, Cell(str(trial.number), sort=trial.number)])
    headings = ["State", "Run", *objectives, *parameters, "Trial"]
    return Table("trials-table", "Trials; bold: the best, or the Pareto front", headings, 2, rows)


def _params(params: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.rpartition('.')[2]}={value:.4g}" if isinstance(value, float) else f"{name.rpartition('.')[2]}={value}"
        for name, value in params.items()
    )
