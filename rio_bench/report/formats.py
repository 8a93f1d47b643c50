"""A table as text: Markdown, LaTeX (booktabs), HTML; for a terminal: terminal.py."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["terminal", "md", "csv", "latex", "html"]
ENDINGS: dict[str, Format] = {".txt": "terminal", ".md": "md", ".tex": "latex", ".html": "html"}
STANDS = "†"
UNIT = "(AP in percent)"


@dataclass(frozen=True)
class Entry:
    """A value as text: "27.3", "missing", or "" where the plan has no such cell; the other parts may be ""."""

    value: str
    spread: str = ""  # "±0.4"
    seeds: str = ""  # "n=2/3"
    difference: str = ""  # "+1.2"
    interval: str = ""  # "[-0.3, 2.7]"
    stands: bool = False
    best: bool = False

    @property
    def beside(self) -> str:
        return " ".join(filter(None, [self.spread, self.seeds]))

    @property
    def told_difference(self) -> str:
        return self.difference + (f" {STANDS}" if self.stands else "")


@dataclass(frozen=True)
class Line:
    names: list[str]
    entries: list[Entry]
    more: list[str]


@dataclass(frozen=True)
class TextTable:
    """Headings of what a line holds: its names (left), its entries (right), and what comes after them (right)."""

    title: str
    names: list[str]
    columns: list[str]
    more: list[str]
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def format_of(output: Path | None) -> Format:
    """By the file's ending, csv by any other one; of standard output terminal where it is one, else csv."""
    if output is None:
        return "terminal" if sys.stdout.isatty() else "csv"
    return ENDINGS.get(output.suffix.lower(), "csv")


def as_text(table: TextTable, format: Format) -> str:
    """`format` is any but csv, which is data."""
    from rio_bench.report.terminal import terminal

    return {"terminal": terminal, "md": markdown, "latex": latex, "html": html_page}[format](table)


# ----------------------------------------------------------------------------------------------------------- Markdown


def markdown(table: TextTable) -> str:
    left = [_markdown_escaped(name) for name in table.names]
    right = [_markdown_escaped(name) for name in [*table.columns, *table.more]]
    rows = [[*left, *right], ["---" for _ in left] + ["---:" for _ in right]]
    for line in table.lines:
        names = [_markdown_escaped(name) for name in line.names]
        rows.append([*names, *map(_markdown_entry, line.entries), *map(_markdown_escaped, line.more)])
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = "".join(f"\n{_markdown_escaped(note)}\n" for note in table.notes)
    return f"**{_markdown_escaped(table.title)}** {UNIT}\n\n{lines}\n{notes}"


def _markdown_entry(entry: Entry) -> str:
    value = f"**{entry.value}**" if entry.best else entry.value
    parts = [entry.difference, entry.interval, STANDS if entry.stands else ""]
    difference = f"({' '.join(filter(None, parts))})" if entry.difference else ""
    return " ".join(filter(None, [value, entry.beside, difference]))


def _markdown_escaped(text: str) -> str:
    """Markdown's own characters escaped; an underscore within a word is none."""
    return re.sub(r"([\\`*\[\]<>|~]|\b_|_\b)", r"\\\1", " ".join(text.split()))


# ------------------------------------------------------------------------------------------------------ LaTeX and HTML


def latex(table: TextTable) -> str:
    """A table environment, one of both columns of a page where the table is wide; needs \\usepackage{booktabs}."""
    is_wide = len(table.columns) > 4
    styler = _styler(table, _latex_escaped, _latex_entry)
    text = styler.to_latex(
        hrules=True,
        convert_css=True,
        column_format="l" * len(table.names) + "r" * (len(table.columns) + len(table.more)),
        caption=_latex_escaped(f"{table.title} {UNIT}"),
        position_float="centering",
        environment="table*" if is_wide else "table",
    )
    if is_wide:
        text = text.replace("\\centering\n", "\\centering\n\\scriptsize\n\\setlength{\\tabcolsep}{3pt}\n")
    notes = " \\\\\n".join(_latex_escaped(note) for note in table.notes)
    below = f"\\par\\smallskip\\footnotesize\n{notes}\n" if notes else ""
    return text.replace("\\end{tabular}\n\\end{table", f"\\end{{tabular}}\n{below}\\end{{table")


def html_page(table: TextTable) -> str:
    """A page of its own, without scripts."""
    styler = _styler(table, html.escape, _html_entry)
    body = styler.to_html(exclude_styles=True)
    numbers = f":is(th, td):nth-child(n + {len(table.names) + 1}) {{ text-align: right; }}\n"
    notes = "".join(f"<p>{html.escape(note)}</p>\n" for note in table.notes)
    title = html.escape(f"{table.title} {UNIT}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>\n{_STYLE}{numbers}</style>\n</head>\n<body>\n'
        f"<h1>{title}</h1>\n{body}{notes}</body>\n</html>\n"
    )


_STYLE = """\
:root { color-scheme: light dark; font-family: sans-serif; }
h1 { font-size: 1.1rem; }
body { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; white-space: nowrap; }
thead th { border-bottom: 1px solid; }
p { max-width: 60rem; }
"""


def _styler(
    table: TextTable, escaped: Callable[[str], str], entry: Callable[[Entry], str]
) -> pd.io.formats.style.Styler:
    """Columns and rows are numbers, as names need not differ; the headings come in when it is written."""
    import pandas as pd

    headings = [*table.names, *table.columns, *table.more]
    rows = [[*map(escaped, line.names), *map(entry, line.entries), *map(escaped, line.more)] for line in table.lines]
    frame = pd.DataFrame(rows, columns=range(len(headings)), dtype=object)
    return frame.style.hide(axis="index").format_index(lambda number: escaped(headings[number]), axis="columns")


def _html_entry(entry: Entry) -> str:
    value = html.escape(entry.value)
    value = f"<strong>{value}</strong>" if entry.best else value
    first = " ".join(filter(None, [value, html.escape(entry.beside)]))
    others = [html.escape(line) for line in (entry.told_difference, entry.interval) if line]
    return "<br>".join([first, *others])


def _latex_entry(entry: Entry) -> str:
    value = _latex_escaped(entry.value)
    value = rf"\textbf{{{value}}}" if entry.best else value
    lines = [" ".join(filter(None, [value, _latex_escaped(entry.beside)]))]
    lines += [_latex_escaped(line).replace("-", "$-$") for line in (entry.told_difference, entry.interval) if line]
    stacked = r"\begin{tabular}[t]{@{}r@{}}" + r" \\ ".join(lines) + r"\end{tabular}"
    return lines[0] if len(lines) == 1 else stacked


_LATEX = str.maketrans(
    {
        **{character: "\\" + character for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "[": "{[}",  # after \\ it would begin an option
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "±": r"$\pm$",
        "–": "--",
        STANDS: r"$\dagger$",
        "\n": " ",
    }
)


def _latex_escaped(text: str) -> str:
    return text.translate(_LATEX)
