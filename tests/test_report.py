"""The report: what it tells, that it needs no network, that names stay names, and that a real browser shows it."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import Folder, metrics_of
from PIL import Image
from typer.testing import CliRunner

from rio_bench.cli import app
from rio_bench.errors import UserError
from rio_bench.records import StoredPlan, StoredSearch, StoredTrial
from rio_bench.report import figures
from rio_bench.report.curves import read_curves, thinned
from rio_bench.report.html import write_report
from rio_bench.report.search_section import search_sections

HOSTILE = "</script><script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(2)> %{x} {{ 7*7 }} & <b>"
BUCKET_SIZES = {"r": 8, "c": 8, "f": 8}
IMAGES = {"r": 2, "c": 20, "f": 120}  # training images of the first category of a bucket; one more each


# ----------------------------------------------------------------------------------------------- made-up result folders


def category_names(prefix: str) -> dict[str, str]:
    """Name -> bucket."""
    return {f"{prefix}{bucket}{place}": bucket for bucket, size in BUCKET_SIZES.items() for place in range(size)}


def make_dataset(root: Path, prefix: str) -> dict[str, Any]:
    """One's own files in the LVIS format, with pictures; as a stored configuration names them."""
    names = category_names(prefix)
    categories = [
        {"id": place + 1, "name": name, "frequency": bucket} for place, (name, bucket) in enumerate(names.items())
    ]
    (root / "pictures").mkdir(parents=True)
    Image.new("RGB", (64, 48), (90, 120, 60)).save(root / "pictures" / "one.png")

    def objects_of(split: str) -> list[tuple[int, int]]:
        """(image, category)"""
        if split == "val":
            return [(category["id"], category["id"]) for category in categories]
        counts = [IMAGES[category["frequency"]] + place % 8 for place, category in enumerate(categories)]
        return [(image, place + 1) for place, count in enumerate(counts) for image in range(1, count + 1)]

    dataset: dict[str, Any] = {"name": f"own {prefix}"}
    for split in ("train", "val"):
        pairs = objects_of(split)
        square = [4, 4, 24, 4, 24, 24, 4, 24]
        content = {
            "categories": categories,
            "images": [
                {"id": image, "height": 48, "width": 64, "file_name": "one.png", "neg_category_ids": [],
                 "not_exhaustive_category_ids": []}
                for image in sorted({image for image, _ in pairs})
            ],
            "annotations": [
                {"id": number, "image_id": image, "category_id": category, "bbox": [4, 4, 20, 20], "area": 400,
                 "segmentation": [square]}
                for number, (image, category) in enumerate(pairs, start=1)
            ],
        }  # fmt: skip
        (root / f"{split}.json").write_text(json.dumps(content))
        dataset[split] = {"json": str(root / f"{split}.json"), "images": str(root / "pictures")}
    return dataset


def write_metrics(folder: Folder, name: str, points: int, has_bank: bool) -> None:
    lines = []
    for step in range(points):
        line = {"iteration": 10 * step + 9, "total_loss": 3 / (1 + step / 20), "lr": 0.1}
        if has_bank:
            line |= {"bank_fill": min(1.0, step / points * 1.5), "bank_replayed": 20.0}
        lines.append(json.dumps(line))
    folder.results.run(name).metrics_file.write_text("\n".join([*lines, '{"phase": "evaluate"}', '{"iterat']))


def finish(
    folder: Folder, run: Any, names: dict[str, str], gain: float, rng: np.random.Generator, **fields: Any
) -> None:
    """Records with AP by category, rare ones better by `gain`."""
    kinds = {}
    for kind in ("box", "mask"):
        values = {name: 20 + 5 * rng.random() + (gain if bucket == "r" else 0) for name, bucket in names.items()}
        kinds[kind] = metrics_of(values, names)
    folder.finish(run, [0] * 4, [0] * 4, **({"metrics": kinds, "buckets": names} | fields))


def write_detections(folder: Folder, name: str, score: float) -> None:
    """One right detection in each validation picture but the last of each bucket."""
    counts = {"size": [48, 64], "counts": square_rle()}
    found = [
        {"image_id": place, "category_id": place, "bbox": [4, 4, 20, 20], "score": score, "segmentation": counts}
        for place in range(1, sum(BUCKET_SIZES.values()) + 1)
        if place % 8
    ]
    with gzip.open(folder.results.run(name).detections_file, "wt") as file:
        json.dump(found, file)


def square_rle() -> str:
    from pycocotools import mask

    square = np.zeros((48, 64), dtype=np.uint8, order="F")
    square[4:24, 4:24] = 1
    return mask.encode(square)["counts"].decode()


def make_experiment(root: Path, prefix: str = "kind ", name: str = "made-up", pictures: bool = True) -> Folder:
    """Two seeds of none and of RIO, one failed and one missing run, a search: something for each section."""
    folder = Folder(root / "results")
    dataset = make_dataset(root / "data", prefix)
    suffix = "" if prefix == "kind " else f" {prefix}"
    names = category_names(prefix)
    for strategy, gain in [("none", 0.0), ("rio", 6.0)]:
        for seed in range(2):
            rng = np.random.default_rng(len(strategy))  # two seeds stand for something only where they agree
            run = folder.plan(strategy + suffix, seed=seed, dataset=dataset, strategy={"name": strategy})
            finish(folder, run, names, gain, rng, device=f"cpu {prefix}", versions={"torch": f"2.14 {prefix}"},
                   code={"revision": "0123456789abcdef", "dirty": True})  # fmt: skip
            write_metrics(folder, run.name, 40, has_bank=strategy == "rio")
            if pictures:
                write_detections(folder, run.name, 0.5 + gain / 20)
    failed = folder.plan(f"image_only{suffix}", dataset=dataset, strategy={"name": "image_only"})
    folder.attempt(failed, exit_status=1)
    folder.plan(f"object_only{suffix}", dataset=dataset, strategy={"name": "object_only"})
    folder.results.write_plan(StoredPlan(experiment=name, baseline="none", runs=tuple(folder.planned)))
    trials = [
        StoredTrial(number=place, state="finished", run=folder.planned[0].name,
                    params={"strategy.bank_capacity": 10 * place, f"strategy.{prefix}": prefix},
                    values={"AP.b.r": float(place), "AP.b": float(20 - place)})
        for place in range(12)
    ]  # fmt: skip
    folder.results.write_search(
        StoredSearch(study=name, storage="x", sampler=f"TPESampler {prefix}", trials=tuple(trials), best=(10, 11),
                     objectives={"AP.b.r": "maximize", "AP.b": "maximize"},
                     importance={"AP.b.r": {"strategy.bank_capacity": 0.8, f"strategy.{prefix}": 0.2}})
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is read of annotation files is remembered here, not in the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIO_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Path:
    return write_report(make_experiment(tmp_path_factory.mktemp("report")).results)


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Path:
    folder = make_experiment(tmp_path_factory.mktemp("hostile"), prefix=HOSTILE, name=HOSTILE)
    return write_report(folder.results)


class Page(HTMLParser):
    """A page as a browser takes it: its elements with their attributes, its scripts, its text by section."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.sections: dict[str, str] = {}
        self._section, self._script = "", False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        if tag == "script":
            self._script = True
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self._script = False if tag == "script" else self._script

    def handle_data(self, data: str) -> None:
        if self._script:
            kind, text = self.scripts[-1]
            self.scripts[-1] = kind, text + data
        else:
            self.sections[self._section] = self.sections.get(self._section, "") + data

    @property
    def figures(self) -> list[Any]:
        blocks = [json.loads(text) for kind, text in self.scripts if kind == "application/json"]
        return [block for block in blocks if "layout" in block]


# -------------------------------------------------------------------------------------------------------- what it tells


def test_every_section_has_something_to_tell(report: Path) -> None:
    page = Page(report)
    charts: dict[str, int] = {}
    section = ""
    for tag, attributes in page.elements:
        section = attributes["id"] or "" if tag == "section" else section
        charts[section] = charts.get(section, 0) + (tag == "figure" and attributes.get("class") == "chart")
    assert charts == {
        "": 0, "comparison": 0, "buckets": 4, "categories": 1, "resampling": 3, "training": 1, "bank": 2, "cost": 2,
        "examples": 0, "search": 2, "provenance": 0,
    }  # fmt: skip
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 12  # of each bucket the best and the worst picture, by none and by rio
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in images)
    assert "6 runs: 4 finished, 1 failed, 1 missing." in page.sections[""]
    assert "Left out" not in "".join(page.sections.values())


def test_provenance_of_a_run(report: Path) -> None:
    text = Page(report).sections["provenance"]
    assert "Environment 1: revision 0123456789abcdef with changed files; cpu kind ; torch 2.14 kind" in text
    assert text.count('"strategy": {\n  "name": "rio"\n }') == 2  # the configuration of each seed
    assert text.count('"seed": 1') == 2
    assert "exit status 1" in text  # why a run failed


def test_intervals_are_those_of_the_table(report: Path) -> None:
    """The figure's bars end where the table's intervals do."""
    page = Page(report)
    difference = next(f for f in page.figures if "difference" in json.dumps(f["layout"]["xaxis"]["title"]))
    rare = next(trace for trace in difference["data"] if trace["name"] == "rare")
    low, high = rare["x"][0] - rare["error_x"]["arrayminus"][0], rare["x"][0] + rare["error_x"]["array"][0]
    assert f"+{rare['x'][0]:.1f} †[{low:.1f}, {high:.1f}]" in page.sections["comparison"]
    assert rare["marker"]["symbol"] == ["circle"]  # it stands; the common ones differ by chance alone
    assert next(trace for trace in difference["data"] if trace["name"] == "common")["marker"]["symbol"] == [
        "circle-open"
    ]


def test_differences_by_category_stand_above_their_training_images(report: Path) -> None:
    figure = next(f for f in Page(report).figures if "training images" in json.dumps(f["layout"]["xaxis"]["title"]))
    dots = figure["data"][0]
    images = dict(zip(dots["text"], dots["x"], strict=True))
    assert images["kind r0"] == 2 and images["kind c3"] == 23 and images["kind f7"] == 127
    by_name = dict(zip(dots["text"], dots["y"], strict=True))
    assert min(by_name[f"kind r{place}"] for place in range(8)) > 0.5 > -6 < min(by_name.values())


def test_a_data_set_that_is_not_there_is_told(tmp_path: Path, cache: None) -> None:
    folder = make_experiment(tmp_path)
    shutil.rmtree(tmp_path / "data")
    page = Page(write_report(folder.results))
    for section in ("categories", "resampling", "examples"):
        assert "Left out, as it needs the data set: dataset own kind : train.json" in page.sections[section]
    assert "+" in page.sections["comparison"]


def test_an_experiment_without_results_yet(tmp_path: Path, cache: None) -> None:
    folder = Folder(tmp_path / "results")
    folder.plan("none", dataset="glyphs-mini")
    folder.write_plan()
    page = Page(write_report(folder.results))
    assert "1 runs: 1 missing." in page.sections[""]
    assert "missing" in page.sections["comparison"]
    assert "No run has finished yet." in page.sections["buckets"]
    assert "search" not in page.sections


def test_command(tmp_path: Path, cache: None) -> None:
    folder = make_experiment(tmp_path, pictures=False)
    output = tmp_path / "out.html"
    result = CliRunner().invoke(app, ["report", str(folder.results.root), "--output", str(output)])
    assert result.exit_code == 0 and re.search(rf"report: {output} \(\d\.\d MB\)", result.output.replace("\n", ""))
    assert "No run has detections" in Page(output).sections["examples"]
    assert CliRunner().invoke(app, ["report", str(folder.results.root)]).exit_code == 0
    assert (folder.results.root / "report.html").exists()
    for wrong in (tmp_path, tmp_path / "nowhere" / "out.html"):
        with pytest.raises(UserError, match=f"--output {wrong}: .*: expected the name of an HTML file"):
            write_report(folder.results, wrong)


@pytest.mark.parametrize(("direction", "best"), [("maximize", [3, 3, 5, 5]), ("minimize", [3, 1, 1, 1])])
def test_search_for_one_objective(tmp_path: Path, direction: Any, best: list[float]) -> None:
    values = [3.0, 1.0, 5.0, None, 4.0]
    trials = [
        StoredTrial(number=place, state="finished" if value else "pruned", run=None, params={"a": place, "b": "x"},
                    values={"AP.b": value} if value else None)
        for place, value in enumerate(values)
    ]  # fmt: skip
    results = Folder(tmp_path).results
    results.write_search(
        StoredSearch(study="s", storage="j", sampler="TPE", objectives={"AP.b": direction}, trials=tuple(trials),
                     best=(2,), importance={})
    )  # fmt: skip
    (section,) = search_sections(results)
    points, so_far = section.charts[0].figure["data"]
    assert (points["x"], points["y"]) == ([0, 1, 2, 4], [3, 1, 5, 4])
    assert so_far["y"] == best
    assert section.lead == ["TPE, for AP.b; trials: 4 finished, 1 pruned. j, study s"]
    assert section.notes == ["Too few finished trials to tell what mattered."]
    assert [row[2].text for row in section.tables[0].rows] == ["5.00", "3.00", "1.00", "", "4.00"]  # the best first


# ---------------------------------------------------------------------------------------------------------- its curves


def read(tmp_path: Path, *lines: str) -> dict[str, dict[int, float]]:
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(lines))
    return read_curves(file)


def test_curves_of_a_resumed_run(tmp_path: Path) -> None:
    """Killed after iteration 40, resumed at 20: 30 counts as it came later, 40 belongs to the attempt that died."""
    losses = [(9, 5), (19, 4), (29, 3), (39, 2), (29, 3.5)]
    lines = [json.dumps({"iteration": at, "total_loss": loss, "time": 1}) for at, loss in losses]
    assert read(tmp_path, *lines) == {"total_loss": {10: 5, 20: 4, 30: 3.5}}


def test_curves_bear_torn_lines(tmp_path: Path) -> None:
    good = '{"iteration": 9, "total_loss": 1.5, "bank_fill": 0.25, "evaluation/AP.b": 12}'
    torn = ['{"iteration": 19, "total_l', "null", "[]", "", '{"phase": "evaluate"}', '{"iteration": "x"}', "\x00\x00"]
    expected = {"total_loss": {10: 1.5}, "bank_fill": {10: 0.25}, "ap": {10: 12}}
    assert read(tmp_path, *torn, good, *torn) == expected
    assert read_curves(tmp_path / "nothing.jsonl") == {}


def test_an_evaluation_told_after_a_later_loss_is_no_resumed_run(tmp_path: Path) -> None:
    lines = ['{"iteration": 29, "total_loss": 1}', '{"iteration": 24, "evaluation/AP.b": 7}']
    assert read(tmp_path, *lines) == {"total_loss": {30: 1}, "ap": {25: 7}}


@given(st.integers(0, 3000), st.integers(1, 300))
def test_thinned_curves_keep_their_ends(length: int, most: int) -> None:
    curve = {at: float(at) for at in range(length)}
    thin = thinned(curve, most)
    assert len(thin) <= most + 1
    assert thin.items() <= curve.items()
    if curve:
        assert {0, length - 1} <= thin.keys()


# -------------------------------------------------------------------------------------------------- names stay names


def test_hostile_names_are_no_markup(report: Path, hostile_report: Path) -> None:
    page, tame = Page(hostile_report), Page(report)
    assert HOSTILE in page.sections[""]
    assert HOSTILE in page.sections["comparison"]
    # the same elements as with tame names
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in tame.elements]
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
    for kind, text in page.scripts:
        if kind == "application/json":
            assert "<" not in text
    assert [text for kind, text in page.scripts if kind is None] == [
        text for kind, text in tame.scripts if kind is None
    ]


def test_hostile_names_are_no_plotly_markup(hostile_report: Path) -> None:
    """Plotly takes <b>, <a href> and others in any text, and %{...} in templates."""

    def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, part in value.items():
                yield from texts(part, name)
        elif isinstance(value, list):
            for part in value:
                yield from texts(part, key)
        elif isinstance(value, str):
            yield key, value

    found = [entry for figure in Page(hostile_report).figures for entry in texts(figure)]
    assert [text for _, text in found if "evil.example" in text]
    for key, text in found:
        if key == "hovertemplate":
            assert "evil" not in text
        else:
            assert "<" not in text
    assert figures.plain("a <b>\n& c %{x}") == "a &lt;b&gt; &amp; c %&#123;x}"
    assert figures.short("<" * 100, 10) == "&lt;" * 5 + "…" + "&lt;" * 4


# ------------------------------------------------------------------------------------------------------ in a browser


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install -e '.[test]'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def expect_of(locator: Any) -> Any:
    """An assertion that waits; wait_for_function evaluates text, which the page forbids."""
    from playwright.sync_api import expect

    return expect(locator)


class Visit:
    """A page in a browser, with all that it asked for and complained of."""

    def __init__(self, chromium: Any, file: Path, **context: Any) -> None:
        self.context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(file.as_uri())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def draw_all(self) -> None:
        """Scroll to each figure, and wait for it."""
        places = self.page.locator("figure.chart").all()
        for place in places:
            place.scroll_into_view_if_needed()
        expect_of(self.page.locator("figure.chart[data-drawn]")).to_have_count(len(places), timeout=60_000)

    def column(self, table: str, place: int) -> list[str]:
        return self.page.locator(f"#{table} tbody tr td:nth-child({place})").all_inner_texts()


@needs_chromium
def test_browser_shows_all_without_a_request_or_a_complaint(chromium: Any, report: Path) -> None:
    with Visit(chromium, report) as visit:
        visit.draw_all()
        assert visit.page.locator("figure.chart .main-svg").count() >= 15
        assert (visit.requests, visit.complaints) == ([report.as_uri()], [])


@needs_chromium
def test_browser_runs_and_fetches_nothing_that_might_get_in(chromium: Any, report: Path) -> None:
    """The page's policy, should the escaping ever fail."""
    with Visit(chromium, report) as visit:
        visit.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'x = 1'}))")
        assert visit.page.evaluate("typeof x") == "undefined"
        with visit.page.expect_event("requestfailed") as failed:
            visit.page.evaluate("new Image().src = 'https://evil.example/x.png'")
        assert failed.value.failure == "csp"


@needs_chromium
def test_browser_shows_hostile_names_as_they_are(chromium: Any, hostile_report: Path) -> None:
    with Visit(chromium, hostile_report) as visit:
        visit.draw_all()
        name = visit.page.locator("#training .legendtext").first.text_content()
        assert name.startswith("none </script><script>") and name.endswith("%{x} {{ 7*7 }} & <b>")
        assert visit.page.locator("svg a").count() == 0
        assert visit.page.locator("figure.chart .main-svg").count() >= 15
        assert (visit.requests, visit.complaints) == ([hostile_report.as_uri()], [])


@needs_chromium
def test_browser_sorts_by_click_and_by_key(chromium: Any, report: Path) -> None:
    with Visit(chromium, report) as visit:
        assert visit.column("comparison-table", 2) == ["none", "rio", "image_only", "object_only"]
        heading = visit.page.locator("#comparison-table th", has_text=re.compile(r"^AP\.b\.r"))
        button = heading.locator("button")
        button.click()
        assert visit.column("comparison-table", 2)[:2] == ["rio", "none"]  # the best first
        assert heading.get_attribute("aria-sort") == "descending"
        button.press("Enter")
        assert heading.get_attribute("aria-sort") == "ascending"
        assert visit.column("comparison-table", 2)[:2] == ["none", "rio"]
        assert set(visit.column("comparison-table", 2)[2:]) == {"image_only", "object_only"}  # without a value: last
        visit.page.locator("#comparison-table th", has_text="Method").locator("button").press("Space")
        assert visit.column("comparison-table", 2) == ["image_only", "none", "object_only", "rio"]
        assert heading.get_attribute("aria-sort") is None
        trial = visit.page.locator("#trials-table th", has_text=re.compile("^Trial")).locator("button")
        trial.click()
        assert visit.column("trials-table", 7)[:3] == ["11", "10", "9"]  # as numbers, not as text


@needs_chromium
def test_browser_follows_dark_mode(chromium: Any, report: Path) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    with Visit(chromium, report) as visit:
        visit.page.locator("#training").scroll_into_view_if_needed()
        legend = visit.page.locator("#training .legendtext").first
        expect_of(legend).to_have_css("fill", "rgb(34, 34, 34)", timeout=60_000)
        assert visit.page.evaluate(ground) == "rgb(255, 255, 255)"
        visit.page.emulate_media(color_scheme="dark")
        expect_of(legend).to_have_css("fill", "rgb(238, 238, 238)", timeout=60_000)
        assert visit.page.evaluate(ground) == "rgb(22, 22, 22)"


@needs_chromium
def test_browser_on_a_phone(chromium: Any, hostile_report: Path) -> None:
    """Nothing is wider than the screen: tables scroll in their own box."""
    with Visit(
        chromium, hostile_report, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True
    ) as visit:
        visit.draw_all()
        assert visit.page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
        widths = visit.page.evaluate("[...document.querySelectorAll('.plot .main-svg')].map((e) => e.clientWidth)")
        assert max(widths) <= 360
        assert visit.page.evaluate("(e => e.scrollWidth > e.clientWidth)(document.querySelector('.scroll'))")


@pytest.fixture(scope="module")
def large_report(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Path:
    """200 runs: 50 configurations by 4 seeds, LVIS's 1,203 categories, 2,000 lines of metrics each."""
    folder = Folder(tmp_path_factory.mktemp("large") / "results")
    names = {f"category {place}": "rcf"[place % 3] for place in range(1203)}
    rng = np.random.default_rng(0)
    for place in range(50):
        name = "none" if place == 0 else "rio"
        strategy = {"name": name} | ({"samples_per_class": place} if place else {})
        for seed in range(4):
            run = folder.plan(f"{name} (samples_per_class={place}, and more)", seed=seed, strategy=strategy)
            finish(folder, run, names, place / 10, rng)
            write_metrics(folder, run.name, 2000, has_bank=place > 0)
    folder.write_plan()
    return write_report(folder.results)


def test_200_runs_stay_small(large_report: Path) -> None:
    assert large_report.stat().st_size < 15e6
    page = Page(large_report)
    assert page.sections["provenance"].count("finished") == 200
    assert page.sections["comparison"].count("samples_per_class") == 50
    assert "Figures show 12 of 50 configurations" in page.sections["training"]
    assert max(len(trace["x"]) for figure in page.figures for trace in figure["data"]) <= 201


@needs_chromium
def test_200_runs_open_at_once(chromium: Any, large_report: Path) -> None:
    """What is not seen is not drawn; what is seen is there before a reader has read the heading."""
    with Visit(chromium, large_report) as visit:
        total = visit.page.locator("figure.chart").count()
        assert visit.page.locator("figure.chart[data-drawn]").count() <= total / 2
        seconds = visit.page.evaluate("performance.getEntriesByType('navigation')[0].domComplete / 1000")
        assert seconds < 20  # 1 to 3 on two busy cores
        assert visit.complaints == []
