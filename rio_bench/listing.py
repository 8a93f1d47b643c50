"""What the commands `list` and `run --dry-run` print."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rio_bench import config, datasets, strategy
from rio_bench.errors import UserError
from rio_bench.plan import Plan, PlannedRun
from rio_bench.records import RecordError, ResultFolder


def print_strategies() -> None:
    console = _console()
    for name in strategy.registered():
        try:
            found = strategy.load(name)
        except UserError as error:
            console.print(Text(f"{name}: broken: {error}\n"))
            continue
        console.print(Text(f"{name}: {first_line(found)}"))
        rows = [
            (field_name, type_name(field.annotation), value_text(field.default), field.description or "")
            for field_name, field in found.model_fields.items()
        ]
        if rows:
            console.print(
                Padding(_table(("hyperparameter", "type", "default", "meaning"), rows), (0, 0, 0, 2), expand=False)
            )
        console.print()


def print_backbones() -> None:
    console = _console()
    backbones = [(name, first_comment(config.backbone_file(name))) for name in config.backbones()]
    console.print(_table(("backbone", ""), backbones))
    recipes = [(name, first_comment(config.recipe_file(name))) for name in config.recipes()]
    console.print(_table(("recipe", ""), recipes))


def print_datasets() -> None:
    """Each data set's description, and what its files hold or what of them is missing."""
    rows = []
    for name in datasets.names():
        try:
            state = datasets.summary(name)
        except UserError as error:
            state = str(error).removeprefix(f"{name}: ")
        rows += [(name, datasets.describe(name)), ("", state)]
    console = _console()
    console.print(_table(("data set", ""), rows))
    console.print(Text("your own: dataset: {train: {json, images}, val: {json, images}}, as docs/datasets.md says"))


def print_plan(plan: Plan, results: ResultFolder) -> None:
    """The runs in their order; which have a result already; what the data sets hold."""
    done = {run.name for run in plan.runs if _has_result(run, results)}
    with_variants = any(run.variant for run in plan.runs)
    rows = [
        (
            run.name,
            run.method,
            *([run.variant] if with_variants else []),
            datasets.label(run.config.dataset),
            str(run.config.iterations),
            run.after or "",
            "yes" if run.name in done else "no",
        )
        for run in plan.runs
    ]
    console = _console()
    headings = ("run", "method", *(["variant"] if with_variants else []), "data set", "iterations", "after")
    console.print(_table((*headings, "has a result"), rows))
    for dataset in dict.fromkeys(run.config.dataset for run in plan.runs):
        console.print(Text(f"{datasets.label(dataset)}: {datasets.summary(dataset)}"))
    console.print(
        Text(f"{plan.experiment}: {len(plan.runs)} runs, {len(plan.runs) - len(done)} without a result: {results.root}")
    )
    if plan.search is not None:
        console.print(Text(f"and a search: {plan.search}"))
        for key, axis in plan.search.space.items():
            console.print(Text(f"  {key}: {axis}"))


def _has_result(run: PlannedRun, results: ResultFolder) -> bool:
    """A record of another configuration, or one that cannot be read, is none."""
    try:
        return results.run(run.name).read_record(run.identity) is not None
    except RecordError:
        return False


def first_line(documented: type) -> str:
    """The first line of a class's own docstring."""
    return (inspect.cleandoc(documented.__dict__.get("__doc__") or "")).partition("\n")[0]


def first_comment(file: Path) -> str:
    """The comment in the first line of a YAML file."""
    with file.open(encoding="utf-8") as lines:
        first = lines.readline().strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def type_name(annotation: Any) -> str:
    """``int``, ``newest or random``, ``int or none``"""
    if typing.get_origin(annotation) is Literal:
        return " or ".join(str(choice) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in typing.get_args(annotation))
    if annotation is types.NoneType:
        return "none"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def value_text(value: object) -> str:
    return "none" if value is None else str(value)


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: brackets are no markup
    return table


def _console() -> Console:
    """In a file or a pipe lines are as long as they need to be."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
