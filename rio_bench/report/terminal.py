"""A table for a terminal: as many columns beside each other as fit, the others below; nothing is cut."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Span, Text

from rio_bench.report.formats import STANDS, UNIT, Entry, TextTable

Layout = Callable[[Entry], list[str]]  # an entry's lines; the first begins with its value
Piece = tuple[str, str, int]  # a cell's line, a style, and how many of its characters have that style

HEADING_WIDTH = 14  # longer headings are wrapped between words
MORE_WIDTH = 16  # and longer texts after the entries: an identity's


def terminal(table: TextTable) -> str:
    """As wide as standard output's terminal, or $COLUMNS; in a pipe or a file as wide as needed.

    Coloured where standard output is a terminal.
    """
    is_bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, width=None if is_bounded else 10_000)
    layout, parts = _fit(table, console.width)
    body = _Body()
    for columns in parts:
        _write_part(body, table, layout, columns, console.width)
    with console.capture() as capture:
        console.print(Text(f"{table.title} {UNIT}", style="italic"))
        # not wrapped: it fits, but for a column wider than the whole terminal, which the terminal wraps
        styled = Text("\n".join(body.lines), spans=body.spans if console.color_system else None)
        console.print(styled, no_wrap=True, overflow="ignore", crop=False)
        for note in table.notes:
            console.print(Text(note))  # Text, never str: rich reads markup in a str
    return "\n".join(line.rstrip() for line in capture.get().split("\n"))


def _wide(entry: Entry) -> list[str]:
    stands = STANDS if entry.stands else ""
    return [_value(entry), " ".join(filter(None, [entry.difference, entry.interval, stands]))]


def _medium(entry: Entry) -> list[str]:
    return [_value(entry), entry.told_difference, entry.interval]


def _narrow(entry: Entry) -> list[str]:
    return [entry.value, entry.spread, entry.seeds, entry.told_difference, entry.interval]


def _value(entry: Entry) -> str:
    return f"{entry.value} {entry.beside}" if entry.beside else entry.value


# ------------------------------------------------------------------------------------------------------------- widths


def _fit(table: TextTable, width: int) -> tuple[Layout, list[Sequence[int]]]:
    """The first layout whose columns all fit, or else parts of the columns that do."""
    beside = sum(_names_widths(table, width)) + sum(_more_widths(table))
    everything = range(len(table.columns))
    for layout in (_wide, _medium, _narrow):
        if beside + sum(_widths(table, layout)) <= width:
            return layout, [everything]
    widths = _widths(table, _medium)
    for number in range(2, len(widths)):  # parts of equally many columns
        size = -(-len(widths) // number)
        parts: list[Sequence[int]] = [everything[start : start + size] for start in range(0, len(widths), size)]
        if all(beside + sum(widths[index] for index in part) <= width for part in parts):
            return _medium, parts
    return _medium, [[index] for index in everything]


def _widths(table: TextTable, layout: Layout) -> list[int]:
    """Of each column of entries, with the space before it."""
    widths = []
    for index, heading in enumerate(table.columns):
        texts = [text for line in table.lines for text in layout(line.entries[index])]
        widths.append(1 + _longest([*texts, *_heading_lines(heading)]))
    return widths


def _names_widths(table: TextTable, width: int) -> list[int]:
    """Of the columns of names, with the space after them: together at most a third of `width`, or 12 each.

    The first of several names is a heading over lines, without a column.
    """
    names = list(zip(table.names, *(line.names for line in table.lines), strict=True))[_is_grouped(table) :]
    widths = [1 + _longest(of_column) for of_column in names]
    while sum(widths) > width // 3 and max(widths) > 12:
        widths[widths.index(max(widths))] -= 1
    return widths


def _more_widths(table: TextTable) -> list[int]:
    columns = zip(table.more, *(line.more for line in table.lines), strict=True)
    return [1 + _longest(part for text in of_column for part in _wrapped(text, MORE_WIDTH)) for of_column in columns]


def _longest(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _heading_lines(heading: str) -> list[str]:
    return textwrap.wrap(heading, HEADING_WIDTH, break_long_words=False) or [""]


def _is_grouped(table: TextTable) -> bool:
    return len(table.names) > 1


# -------------------------------------------------------------------------------------------------------------- lines


class _Body:
    """Lines, and which characters of them have a style."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.spans: list[Span] = []
        self._length = 0  # of the lines so far, with a line break after each

    def add(self, pieces: Iterable[Piece] = (), widths: Iterable[int] = (), left: int = 0) -> None:
        """A line of pieces, each in its width, the first `left` of them left-justified."""
        line = ""
        for index, ((text, style, styled), width) in enumerate(zip(pieces, widths, strict=True)):
            space = " " * (width - cell_len(text))
            line += "" if index < left else space
            if style and styled:
                start = self._length + len(line)
                self.spans.append(Span(start, start + styled, style))
            line += text + (space if index < left else "")
        self.lines.append(line.rstrip())
        self._length += len(self.lines[-1]) + 1


def _write_part(body: _Body, table: TextTable, layout: Layout, columns: Sequence[int], width: int) -> None:
    """A part of the columns, with an empty line at the end."""
    names_widths, entry_widths = _names_widths(table, width), _widths(table, layout)
    widths = [*names_widths, *(entry_widths[index] for index in columns), *_more_widths(table)]
    is_grouped = _is_grouped(table)

    def write(names: Sequence[str], entries: Sequence[list[Piece]], more: Sequence[str]) -> None:
        left = [_plain(_wrapped(name, at - 1)) for name, at in zip(names, names_widths, strict=True)]
        cells = [*left, *entries, *(_plain(_wrapped(text, MORE_WIDTH)) for text in more)]
        for number in range(max(map(len, cells))):
            pieces = [cell[number] if number < len(cell) else ("", "", 0) for cell in cells]
            body.add(pieces, widths, len(left))

    write(table.names[is_grouped:], [_plain(_heading_lines(table.columns[index])) for index in columns], table.more)
    group = None
    for line in table.lines:
        if is_grouped and line.names[0] != group:
            group = line.names[0]
            text = " ".join(group.split())
            body.add()
            body.add([(text, "bold", len(text))], [0], left=1)
        entries = [_entry(line.entries[index], layout) for index in columns]
        write(line.names[is_grouped:], entries, line.more)
    body.add()


def _entry(entry: Entry, layout: Layout) -> list[Piece]:
    first, *others = layout(entry)
    best = (first, "bold green", len(entry.value)) if entry.best else (first, "", 0)
    return [best, *((line, "dim", len(line)) for line in others if line)]


def _plain(lines: Iterable[str]) -> list[Piece]:
    return [(line, "", 0) for line in lines]


def _wrapped(name: str, width: int) -> list[str]:
    name = " ".join(name.split())
    if cell_len(name) <= width:
        return [name]
    return [line.plain.rstrip() for line in Text(name).wrap(Console(), width)]  # between words where it can
