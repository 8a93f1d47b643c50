"""The report: one HTML file that needs nothing else, no network either.

What a name, a file or a data set says is never markup: the template escapes by itself, figures.plain takes plotly's
markup away, and the page's content security policy lets run only the scripts put in here, known by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from rio_bench import __version__
from rio_bench.errors import UserError
from rio_bench.files import write_atomically
from rio_bench.records import ResultFolder
from rio_bench.report.figures import DARK, Figure


@dataclass(frozen=True)
class Cell:
    """A table's cell. sort: what it is sorted by; None: last. details: a long text behind `text`."""

    text: str
    sort: str | float | None = None
    beside: str = ""
    below: tuple[str, ...] = ()
    best: bool = False
    details: str = ""

    @property
    def sort_key(self) -> str:
        return "" if self.sort is None else str(self.sort)


@dataclass(frozen=True)
class Table:
    """The first `names` columns are names, sorted as text; the others numbers."""

    id: str
    caption: str
    headings: Sequence[str]
    names: int
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Chart:
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Picture:
    """jpeg: base64; width, height: pixels; lines: below the title"""

    title: str
    lines: Sequence[str]
    jpeg: str
    width: int
    height: int


@dataclass
class Section:
    """lead: lines above tables, charts and pictures; notes: lines below."""

    id: str
    title: str
    lead: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_report(results: ResultFolder, output: Path | None = None) -> Path:
    """Write the report of a result folder; returns its place, by default report.html in the folder.

    Raises UserError where the file cannot be written, which is asked first: before an analysis takes its time.
    """
    from rio_bench.report.sections import Material, lead, sections, title

    output = results.report_file if output is None else output
    if output.is_dir() or not output.absolute().parent.is_dir():
        wrong = "is a folder" if output.is_dir() else f"there is no folder {output.absolute().parent}"
        raise UserError(f"--output {output}: {wrong}: expected the name of an HTML file")
    material = Material(results)
    write_atomically(output, page(title(material), lead(material), sections(material)))
    return output


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The HTML of a report."""
    import jinja2
    import plotly.offline
    from markupsafe import Markup

    own = (resources.files("rio_bench.report") / "report.js").read_text(encoding="utf-8")
    scripts = [plotly.offline.get_plotlyjs(), own] if any(section.charts for section in sections) else [own]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rio_bench.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        lead=lead,
        sections=sections,
        version=__version__,
        dark_colours=DARK,
        script_hashes=" ".join(map(_hash, scripts)),
        trusted_scripts=list(map(Markup, scripts)),
    )


def _hash(script: str) -> str:
    """As a content security policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
