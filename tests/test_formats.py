"""Tables for terminals, LaTeX and HTML: nothing cut, names escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import Folder, metrics_of
from rich.cells import cell_len

from rio_bench.report.formats import Entry, Line, TextTable, html_page, latex
from rio_bench.report.tables import render
from rio_bench.report.terminal import terminal

NASTY = 'R&D 50% $x_1$ {a} #1 ~^\\ <script>alert(1)</script> [red]b[/red] *|* "q" \'é'


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Two methods with intervals, a failed one, all over two seeds."""
    folder = Folder(tmp_path / "made-up")
    buckets = {f"{bucket}{number}": bucket for bucket in "rcf" for number in range(10)}
    for method, shift in (("none", 0.0), ("rio", 9.5)):
        for seed in range(2):
            values = {name: 10 + shift * (number % 3) + seed + number % 5 for number, name in enumerate(buckets)}
            metrics = {kind: metrics_of(dict(values), buckets) for kind in ("box", "mask")}
            folder.finish(folder.plan(method, seed), [0] * 4, [0] * 4, metrics=metrics, buckets=buckets)
    for seed in range(2):
        folder.attempt(folder.plan("image_only", seed), exit_status=1)
    folder.write_plan()
    return folder


def table_of(name: str, columns: int = 8, **parts: str) -> TextTable:
    entry = Entry(**{"value": "24.5", "spread": "±1.4", "difference": "-3.5", "interval": "[-8.5, -1.0]", **parts})
    entries = [entry] * columns
    headings = [f"heading {number}" for number in range(columns)]
    return TextTable(name, ["Backbone", "Method"], headings, ["N"], [Line([name, name], entries, ["2/3"])], [name])


# ------------------------------------------------------------------------------------------------------------ terminal


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, 200])
def test_a_narrow_terminal_gets_parts_of_the_columns_and_nothing_is_cut(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = render(folder.results, "terminal")
    assert max(cell_len(line) for line in text.splitlines()) <= width
    in_markdown = render(folder.results, "md")
    numbers = re.compile(r"-?\d+\.\d")
    of_table = [line for line in in_markdown.splitlines() if line.startswith("| R50")]
    assert sorted(numbers.findall(text)) == sorted(numbers.findall(" ".join(of_table)))
    assert text.count("failed") == 8


def test_a_pipe_is_as_wide_as_needed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = render(folder.results, "terminal").splitlines()
    heading = next(line for line in lines if line.startswith("Method"))
    assert heading.split() == [
        "Method",
        "AP.b",
        "AP.b.r",
        "AP.b.c",
        "AP.b.f",
        "AP.m",
        "AP.m.r",
        "AP.m.c",
        "AP.m.f",
        "N",
    ]
    rio = lines.index(next(line for line in lines if line.startswith("rio")))
    assert re.fullmatch(r" *(\+\d+\.\d \[\d+\.\d, \d+\.\d\] †? *){8}", lines[rio + 1])
    assert not any(line != line.rstrip() for line in lines)
    assert "\x1b" not in "".join(lines)
    wide = terminal(table_of("a long name of a method " * 20, columns=40))
    assert sum("24.5" in line for line in wide.splitlines()) == 1  # on one line


def test_wide_characters_and_markup_in_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    lines = terminal(table_of("日本語の方法 [bold]x[/bold]", columns=2)).splitlines()
    assert any("日本語の方法 [bold]x[/bold]" in line for line in lines)
    ends = {cell_len(line) for line in lines if line.endswith(("2/3", "N"))}
    assert len(ends) == 1  # the columns are aligned


def test_one_column_wider_than_the_terminal_is_still_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = terminal(table_of("m", columns=3, interval="[-1000.0, 1000000.0]"))
    assert text.count("[-1000.0, 1000000.0]") == 3


# ------------------------------------------------------------------------------------------------------ LaTeX and HTML


def test_latex(folder: Folder) -> None:
    text = render(folder.results, "latex")
    assert text.startswith("\\begin{table*}\n\\centering\n")
    assert r"\begin{tabular}{llrrrrrrrrr}" in text
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{table*}"):
        assert text.count(command) == 1
    line = next(line for line in text.splitlines() if line.startswith("R50-FPN & rio"))
    assert r"\textbf{21." in line and r"$\pm$0.7" in line and r"$\dagger$" in line
    assert re.search(r"\+9\.\d( \$\\dagger\$)? \\\\ \{\[\}\d", line)  # \\[ would be LaTeX's own
    assert r"image\_only & failed & failed" in text
    assert "95 \\% interval" in text
    one_metric = render(folder.results, "latex", metric="AP.b.r")
    assert one_metric.startswith("\\begin{table}\n") and "\\end{table}\n" in one_metric


def test_names_in_latex_are_escaped() -> None:
    text = latex(table_of(NASTY))
    escaped = (
        r"R\&D 50\% \$x\_1\$ \{a\} \#1 \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} {[}red]b{[}/red] *\textbar{}* "
        r"\textquotedbl{}q\textquotedbl{} 'é"
    )
    assert text.count(escaped) == 4  # title, two names, note
    assert r"$-$3.5" in text and r"{[}$-$8.5, $-$1.0]" in text
    assert text.count("{") == text.count("}")


class Cells(HTMLParser):
    """The text of each table cell, headings too, and the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.text = ""
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True
        if tag == "br":
            self.handle_data("|")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._inside:
            self.rows[-1][-1] += data


def test_html(folder: Folder) -> None:
    text = render(folder.results, "html")
    page = Cells(text)
    assert page.rows[0] == [
        "Backbone",
        "Method",
        "AP.b",
        "AP.b.r",
        "AP.b.c",
        "AP.b.f",
        "AP.m",
        "AP.m.r",
        "AP.m.c",
        "AP.m.f",
        "N",
    ]
    assert page.rows[1][:3] == ["R50-FPN", "none", "12.5 ±0.7"]
    assert page.rows[2][1] == "rio" and re.match(r"22\.0 ±0\.7\|\+9\.5 †\|\[\d", page.rows[2][2])
    assert page.rows[3] == ["R50-FPN", "image_only", *["failed"] * 8, "0/2"]
    assert "<strong>22" in text and '<meta charset="utf-8">' in text
    assert "Failed, see log.txt in the run's folder: run-04, run-05" in page.text
    assert not re.search(r"(src|href)=|@import|url\(", text)  # nothing is fetched


def test_names_in_html_are_escaped() -> None:
    text = html_page(table_of(NASTY, difference="<b>"))
    page = Cells(text)
    assert page.rows[1][:2] == [NASTY, NASTY]
    assert "script" not in page.tags and "b" not in page.tags
    assert page.text.count(NASTY) == 5  # title, heading, two names, note
