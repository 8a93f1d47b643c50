"""What strategies make of a data set: against hand-computed cases, Detectron2's own rule, and the training's stream."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from rio_bench import cli
from rio_bench.config import RunConfig, load_experiment
from rio_bench.datasets.frequency import Frequency, count_frequency
from rio_bench.datasets.lvis import Category, Split, read_split
from rio_bench.errors import UserError
from rio_bench.report import analysis, analysis_figure, analysis_tables
from rio_bench.report.analysis import Analysis, Resampling, resample
from rio_bench.strategy import RoIBatch, Strategy, load

# Three categories (f, c, r) in five images: objects of each image.
IMAGES = [[0, 0, 1], [0], [0, 1], [2, 0, 0, 2], [0]]


def frequency_of(images: list[list[int]], buckets: str) -> Frequency:
    records = [{"annotations": [{"category_id": label} for label in labels]} for labels in images]
    return count_frequency(records, [Category(n + 1, f"c{n}", bucket) for n, bucket in enumerate(buckets)])


def counted(images: list[list[int]], strategy: Strategy, batch_size: int, buckets: str = "fcr") -> Resampling:
    return resample(strategy, frequency_of(images, buckets), batch_size)


class Repeat(Strategy):
    """Given repeat factors."""

    factors: list[float]

    def image_repeat_factors(self, frequency: Frequency) -> Tensor:
        return torch.tensor(self.factors)


class Spy(nn.Module):
    """Keeps the batches it is called with; appends one row of each of `labels` to each."""

    def __init__(self, labels: list[int]) -> None:
        super().__init__()
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.batches: list[RoIBatch] = []

    def forward(self, batch: RoIBatch) -> RoIBatch:
        self.batches.append(batch)
        boxes = torch.zeros(len(self.labels), 4)
        return RoIBatch(
            features=torch.cat([batch.features, torch.zeros(len(self.labels), batch.features.shape[1])]),
            labels=torch.cat([batch.labels, self.labels]),
            proposal_boxes=torch.cat([batch.proposal_boxes, boxes]),
            gt_boxes=torch.cat([batch.gt_boxes, boxes]),
            gt_index=torch.cat([batch.gt_index, torch.full_like(self.labels, -1)]),
        )


class Replay(Repeat):
    """A plug-in with an object level of its own."""

    _module: Any = None

    def object_resampler(self, frequency: Frequency, feature_dim: int) -> nn.Module:
        return self._module


def replay(module: nn.Module, factors: list[float]) -> Replay:
    strategy = Replay(factors=factors)
    strategy._module = module
    return strategy


# ------------------------------------------------------------------------------------------------------ the image level


def test_expected_images_and_objects_by_hand() -> None:
    found = counted(IMAGES, Repeat(factors=[1.5, 1.0, 1.0, 2.5, 1.0]), batch_size=2)
    assert found.epoch == 7.0
    assert found.images.tolist() == [7.0, 2.5, 2.5]
    # 0: two in the first (3), one each in the second, third and last, two in the fourth (5)
    assert found.objects.tolist() == [11.0, 2.5, 5.0]
    assert found.replays.tolist() == [0.0, 0.0, 0.0]
    assert found.effective_objects.tolist() == [11.0, 2.5, 5.0]


def test_without_resampling_an_epoch_is_the_training_set() -> None:
    found = counted(IMAGES, load("none")(), batch_size=2)
    assert (found.epoch, found.images.tolist()) == (5.0, [5.0, 2.0, 1.0])
    assert found.effective_objects.tolist() == [7.0, 2.0, 2.0]


def random_images(num_images: int, num_categories: int, seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [
        (num_categories * random.random(random.integers(1, 8)) ** 3).astype(int).tolist() for _ in range(num_images)
    ]


def test_the_image_level_follows_detectron2s_own_repeat_factors() -> None:
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    images = random_images(200, 20, seed=0)
    records = [{"annotations": [{"category_id": label} for label in labels]} for labels in images]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.2).tolist()
    found = resample(load("image_only")(repeat_threshold=0.2), frequency_of(images, "f" * 20), batch_size=4)
    assert max(factors) > 1.5
    for category in range(20):
        wanted = sum(factor for factor, labels in zip(factors, images, strict=True) if category in labels)
        assert found.images[category] == pytest.approx(wanted, rel=1e-6)
        wanted = sum(factor * labels.count(category) for factor, labels in zip(factors, images, strict=True))
        assert found.objects[category] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("factors", [[1.0], [1.0, 1.0, 1.0, 1.0, 0.5]], ids=str)
def test_repeat_factors_that_break_the_contract_are_told(factors: list[float]) -> None:
    with pytest.raises(UserError, match="image_repeat_factors: expected float32"):
        counted(IMAGES, Repeat(factors=factors), batch_size=2)


# ----------------------------------------------------------------------------------------------------- the object level


def test_replays_of_a_filled_bank_by_hand() -> None:
    # One image a batch: 20 replays for each image that holds a category; more than 30 images have no bank.
    images = [[0], [0], [0, 1, 1], *[[2]] * 31]
    bank = load("object_only")
    assert counted(images, bank(samples_per_class=20), batch_size=1).replays.tolist() == [60.0, 20.0, 0.0]
    # All of them in one batch: 20 a category, however many of its objects are there.
    assert counted(images, bank(samples_per_class=20), batch_size=34).replays.tolist() == [20.0, 20.0, 0.0]
    # At most what a bank holds, which is full.
    few = bank(samples_per_class=100, bank_capacity=60)
    assert counted(images, few, batch_size=1).replays.tolist() == [180.0, 60.0, 0.0]


def test_pushes_of_one_object_can_be_limited() -> None:
    # Filled with 2 RoIs of the only object; each epoch replays what is there, then pushes one: 2, 3 and 4.
    one = load("object_only")(samples_per_class=20, max_pushes_per_object=2)
    assert counted([[0], *[[1]] * 40], one, batch_size=1, buckets="rf").replays.tolist() == [3.0, 0.0]


def test_images_shown_more_often_replay_more_often() -> None:
    rio = load("rio")(repeat_threshold=1.0, samples_per_class=5)
    images = [[0], *[[1]] * 15]  # r(0) = sqrt(1 / (1/16)) = 4
    found = counted(images, rio, batch_size=1, buckets="rc")
    assert found.objects[0] == pytest.approx(4.0)
    assert found.replays[0] == pytest.approx(20.0)


def test_batches_are_the_trainings_own_stream_of_pictures() -> None:
    from rio_bench.detection.pictures import PositionedSampler

    images, factors = random_images(37, 9, seed=1), [1.0 + (n % 4) / 3 for n in range(37)]
    epoch, batch_size = round(sum(torch.tensor(factors).double().tolist())), 5
    spy = Spy([])
    resample(replay(spy, factors), frequency_of(images, "f" * 9), batch_size, seed=3)

    stream = (picture for _, picture in PositionedSampler(torch.tensor(factors), 3, 0))
    wanted = []
    for _ in range(1 + analysis.COUNTED_EPOCHS):
        pictures = list(itertools.islice(stream, epoch))
        wanted += [pictures[first : first + batch_size] for first in range(0, epoch, batch_size)]
    assert len(spy.batches) == len(wanted)
    filling = len(wanted) // (1 + analysis.COUNTED_EPOCHS)
    for step, (batch, pictures) in enumerate(zip(spy.batches, wanted, strict=True)):
        rois = analysis.FILLING_ROIS_PER_OBJECT if step < filling else 1
        objects = [label for picture in pictures for label in sorted(images[picture])]
        assert batch.labels.tolist() == [label for label in objects for _ in range(rois)]
        assert batch.gt_index.tolist() == [index for index in range(len(objects)) for _ in range(rois)]
        rows = len(objects) * rois
        assert batch.features.shape == (rows, 1) and batch.features.dtype == torch.float32
        assert batch.proposal_boxes.shape == batch.gt_boxes.shape == (rows, 4)


def test_a_plug_ins_rows_are_counted_without_background() -> None:
    # Three batches of two images (the last has one): the two categories in each, background (3) and padding (-1) not.
    found = resample(replay(Spy([2, 0, 2, 3, -1]), [1.0] * 5), frequency_of(IMAGES, "fcr"), batch_size=2)
    assert found.replays.tolist() == [3.0, 0.0, 6.0]
    assert found.effective_objects.tolist() == [10.0, 2.0, 8.0]


class Drops(nn.Module):
    def forward(self, batch: RoIBatch) -> RoIBatch:
        return RoIBatch(*(getattr(batch, name)[1:] for name in RoIBatch.__dataclass_fields__))


class Reverses(nn.Module):
    def forward(self, batch: RoIBatch) -> RoIBatch:
        return RoIBatch(*(getattr(batch, name).flip(0) for name in RoIBatch.__dataclass_fields__))


@pytest.mark.parametrize("module", [Drops(), Reverses()], ids=["drops", "reverses"])
def test_rows_that_are_not_given_back_are_told(module: nn.Module) -> None:
    with pytest.raises(UserError, match="object_resampler: expected the 128 given rows first"):
        resample(replay(module, [1.0] * 2), frequency_of([[0], [1]], "fr"), batch_size=2)


def test_the_same_every_time_and_torchs_generator_is_left_alone() -> None:
    images = random_images(60, 12, seed=2)
    strategy = load("rio")(repeat_threshold=0.5, sampling="random")
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first = resample(strategy, frequency_of(images, "c" * 12), batch_size=4, seed=1)
    assert torch.equal(torch.rand(1), wanted)
    again = resample(strategy, frequency_of(images, "c" * 12), batch_size=4, seed=1)
    assert again.replays.tolist() == first.replays.tolist()
    other = resample(strategy, frequency_of(images, "c" * 12), batch_size=4, seed=2)
    assert other.replays.tolist() != first.replays.tolist()  # another order of the pictures
    assert other.objects.tolist() == first.objects.tolist()


# --------------------------------------------------------------------------------------------------------- the measures


def test_gini_and_imbalance_by_hand() -> None:
    assert analysis.gini(np.array([1.0, 3.0])) == 0.25  # mean difference 1 of four pairs, over twice the mean of 2
    assert analysis.gini(np.array([2, 10, 5, 6, 12])) == pytest.approx(10 / 35)
    assert analysis.gini(np.array([7, 7, 7])) == 0
    assert analysis.imbalance_ratio(np.array([4.0, 1.0, 2.0])) == 4
    assert math.isnan(analysis.gini(np.array([]))) and math.isnan(analysis.imbalance_ratio(np.array([])))


@given(arrays(float, st.integers(1, 30), elements=st.floats(0.5, 1e6)), st.floats(0.1, 10))
def test_gini_is_half_the_relative_mean_difference(counts: np.ndarray, scale: float) -> None:
    wanted = np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())
    assert analysis.gini(counts) == pytest.approx(wanted, abs=1e-9)
    assert analysis.gini(counts * scale) == pytest.approx(wanted, abs=1e-9)
    assert -1e-12 <= analysis.gini(counts) < 1


def made_up(**strategies: Resampling) -> Analysis:
    """Two rare categories, one without an image, and one frequent."""
    return Analysis(
        dataset="made_up",
        num_images=12,
        categories=("[red]a[/red]", "b|b", "unseen"),
        bucket=("r", "f", "r"),
        image_count=np.array([2, 12, 0]),
        object_count=np.array([3, 20, 0]),
        strategies=strategies,
    )


def of(epoch: float, images: list[float], objects: list[float], replays: list[float]) -> Resampling:
    return Resampling(epoch, *(np.array(values, dtype=float) for values in (images, objects, replays)))


NONE = of(12, [2, 12, 0], [3, 20, 0], [0, 0, 0])
BOTH = of(16, [4, 14, 0], [6, 24, 0], [5, 0, 0])


def test_by_bucket_by_hand() -> None:
    frame = analysis.by_bucket([made_up(none=NONE, both=BOTH)])
    none, both = frame.to_dict("records")
    assert (none["Method"], both["Method"], both["Dataset"]) == ("none", "both", "made_up")
    # The category without an image counts nowhere: its mean of 2 and 0 would be 1.
    assert (none["Images.r"], none["Images.f"], none["Images.ratio"]) == (2, 12, 6)
    assert math.isnan(none["Images.c"]) and math.isnan(none["Added.r"])
    assert (none["Added"], none["Replays"]) == (0, 0)
    assert (both["Epoch"], both["Images.r"], both["Images.ratio"]) == (16, 4, 3.5)
    assert (both["Objects.r"], both["Objects.f"]) == (11, 24)
    assert both["Objects.Gini"] == pytest.approx(13 / (2 * 35))  # |24 - 11| / (2 x 35) for two
    assert (both["Added"], both["Replays"]) == (12, 5)  # 11 - 3 and 24 - 20
    assert both["Added.r"] == pytest.approx(100 * 8 / 12) and both["Added.f"] == pytest.approx(100 * 4 / 12)
    assert both["Added.c"] == 0


def test_by_category_holds_every_category_of_every_method() -> None:
    frame = analysis.by_category([made_up(none=NONE, both=BOTH)])
    assert len(frame) == 6 and frame.index.tolist() == list(range(6))
    row = frame[(frame.Method == "both") & (frame.Category == "[red]a[/red]")].iloc[0]
    assert (row.Bucket, row.Images, row.Objects) == ("rare", 2, 3)
    assert (row["Images shown"], row["Objects shown"], row.Replays, row.Effective) == (4, 6, 5, 11)


# ------------------------------------------------------------------------------------------------------- of experiments


def write_data_set(folder: Path, images: list[list[int]], buckets: str = "fcr") -> dict[str, Any]:
    """An own data set in the LVIS format whose image ids run against the file's order; as a run's key `dataset`."""
    entries: list[dict] = [
        {"id": 100 + n, "height": 8, "width": 8, "file_name": f"{n}.png"} for n in range(len(images))
    ]
    objects = [(100 + n, label) for n, labels in enumerate(images) for label in labels]
    content = {
        "categories": [{"id": 7 * n + 5, "name": f"c{n}", "frequency": b} for n, b in enumerate(buckets)][::-1],
        "images": [e | {"neg_category_ids": [], "not_exhaustive_category_ids": []} for e in entries][::-1],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": 7 * label + 5,
                "bbox": [1, 1, 4, 4],
                "area": 16,
                "iscrowd": 0,
                "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]],
            }
            for number, (image, label) in enumerate(objects, start=1)
        ],
    }
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    own = {split: {"json": str(folder / f"{split}.json"), "images": str(folder)} for split in ("train", "val")}
    return {"name": "own", **own}


def config(dataset: Any, strategy: Any, **fields: Any) -> RunConfig:
    values = {"backbone": "R18-FPN", "iterations": 10, "batch_size": 2, "dataset": dataset, "strategy": strategy}
    return RunConfig.model_validate(values | fields)


def test_images_without_annotations_do_not_shift_the_factors(tmp_path: Path) -> None:
    # Only the last image holds category 2: with the empty ones counted, its factor would go to another image.
    dataset = write_data_set(tmp_path, [[], [0], [], [0], [0], [0, 1], [2, 2, 1]])
    (found,) = analysis.analyze([config(dataset, {"name": "image_only", "repeat_threshold": 0.8})])
    assert (found.dataset, found.num_images, found.categories) == ("own", 5, ("c0", "c1", "c2"))
    assert found.image_count.tolist() == [4, 2, 1] and found.object_count.tolist() == [4, 2, 2]
    only = found.strategies["image_only"]
    # f = 4/5, 2/5, 1/5: r = 1, sqrt(2), 2; images: 1, 1, 1, sqrt(2), 2
    assert only.images == pytest.approx([3 + 2**0.5, 2**0.5 + 2, 2])
    assert only.objects == pytest.approx([3 + 2**0.5, 2**0.5 + 2, 4])


def test_counts_are_those_of_the_records_that_are_trained_on(tmp_path: Path) -> None:
    images = [labels if n % 7 else [] for n, labels in enumerate(random_images(80, 6, seed=3))]
    write_data_set(tmp_path, images, "ffccrr")
    split = Split(tmp_path / "train.json", tmp_path)
    trained_on = read_split(split, skip_empty=True)
    wanted = count_frequency(trained_on.records, trained_on.categories)
    names, found = analysis._count(split)
    assert names == tuple(category.name for category in trained_on.categories)
    for field in Frequency.__dataclass_fields__:
        one, other = getattr(found, field), getattr(wanted, field)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, field


def test_files_that_cannot_be_counted(tmp_path: Path) -> None:
    write_data_set(tmp_path, [[], []])
    with pytest.raises(UserError, match=r"train.json: no image has an annotation"):
        analysis._count(Split(tmp_path / "train.json", tmp_path))
    content = json.loads((tmp_path / "train.json").read_text())
    content["annotations"] = [{"id": 1, "image_id": 100, "category_id": 99}]
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="train.json: annotation 1 is of category 99, which the file does not have"):
        analysis._count(Split(tmp_path / "train.json", tmp_path))


def test_only_what_changes_the_data_is_told_apart(tmp_path: Path) -> None:
    dataset = write_data_set(tmp_path, IMAGES)
    rows: list[Any] = ["none", {"name": "object_only", "samples_per_class": 3}, "object_only"]
    configs = [
        config(dataset, strategy, seed=seed, classifier=classifier, iterations=iterations)
        for strategy, seed, classifier, iterations in itertools.product(rows, [4, 5], ["linear", "cosine"], [10, 20])
    ]
    (found,) = analysis.analyze(configs)
    assert list(found.strategies) == ["none", "object_only (samples_per_class=3)", "object_only"]

    (found,) = analysis.analyze([config(dataset, "object_only", batch_size=size) for size in (1, 5)])
    assert list(found.strategies) == ["object_only, batch_size=1", "object_only, batch_size=5"]
    assert [one.replays[2] for one in found.strategies.values()] == [20, 20]
    assert [one.replays[1] for one in found.strategies.values()] == [40, 20]


def test_an_analysis_for_each_data_set(tmp_path: Path) -> None:
    datasets = []
    for name, images in (("one", IMAGES), ("two", IMAGES[:2])):
        (tmp_path / name).mkdir()
        datasets.append(write_data_set(tmp_path / name, images) | {"name": name})
    found = analysis.analyze([config(dataset, name) for name in ("none", "rio") for dataset in datasets])
    assert [(one.dataset, one.num_images) for one in found] == [("one", 5), ("two", 2)]
    assert [list(one.strategies) for one in found] == [["none", "rio"]] * 2
    assert set(analysis.by_bucket(found).Dataset) == {"one", "two"}


def test_an_error_names_the_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load("image_only"), "image_repeat_factors", lambda self, frequency: torch.zeros(5))
    with pytest.raises(UserError, match="^strategy image_only: image_repeat_factors: expected float32"):
        analysis.analyze([config(write_data_set(tmp_path, IMAGES), "image_only")])


# ------------------------------------------------------------------------------------------------------------- to read

STRANGE = r"[bold]x[/bold] $\frac$ _z|"


def test_names_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    analyses = [made_up(**{STRANGE: BOTH, "_hidden": NONE})]
    monkeypatch.setenv("COLUMNS", "200")
    for rows in ("bucket", "category"):
        assert STRANGE in analysis_tables.render(analyses, rows, "terminal")
        markdown = analysis_tables.render(analyses, rows, "md")
        assert r"\[bold\]x\[/bold\] \$\\frac\$ \_z\|" in markdown
        for line in markdown.splitlines():
            if line.startswith("|"):  # no cell more than the headings have
                assert line.replace(r"\|", "").count("|") in (7, 8, 10)
    assert "[red]a[/red]" in analysis_tables.render(analyses, "category", "terminal")


def test_terminal_and_markdown_show_the_numbers() -> None:
    analyses = [made_up(none=NONE, both=BOTH)]
    terminal = analysis_tables.render(analyses, "bucket", "terminal")
    assert "made_up: 12 training images, 23 objects, 3 categories (2 rare, 0 common, 1 frequent)" in " ".join(
        terminal.split()
    )
    rows = [line.split() for line in terminal.splitlines() if line.startswith("both")]
    assert rows == [
        ["both", "16", "4.0", "–", "14.0", "3.5", "0.28"],
        ["both", "11.0", "–", "24.0", "2.2", "0.19"],
        ["both", "12", "5", "66.7", "0.0", "33.3"],
    ]
    assert "| both | 11.0 | – | 24.0 | 2.2 | 0.19 |" in analysis_tables.render(analyses, "bucket", "md")


@pytest.mark.parametrize("rows", ["bucket", "category"])
def test_csv_is_the_frame(rows: Any) -> None:
    analyses = [made_up(**{STRANGE: BOTH, "none": NONE})]
    frame = analysis.by_bucket(analyses) if rows == "bucket" else analysis.by_category(analyses)
    read = pd.read_csv(io.StringIO(analysis_tables.render(analyses, rows, "csv")))
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)


@pytest.mark.parametrize(
    ("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")], ids=["png", "svg", "pdf"]
)
def test_the_figure_is_written_whatever_the_names(tmp_path: Path, name: str, begins: bytes) -> None:
    long_name = "alternative_ratios (repeat_threshold=0.3, samples_per_class=8, replays=rarity)"
    methods = {STRANGE: BOTH, "_hidden $": NONE, long_name: BOTH} | {f"s{n}": BOTH for n in range(5)}
    analyses = [dataclasses.replace(made_up(**methods), dataset=STRANGE), made_up(none=NONE)]
    analysis_figure.write(analyses, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def drawn(one: Analysis) -> Any:
    from matplotlib.figure import Figure

    figure = Figure()
    part = figure.subfigures(1, 1)
    analysis_figure._draw(part, one)
    return part


def test_the_figure_shows_both_levels_and_whose_the_added_objects_are() -> None:
    images, objects, added = drawn(made_up(none=NONE, both=BOTH)).axes
    # A line through the categories with images, by their number of training images.
    assert images.lines[1].get_xydata() == pytest.approx(np.array([[2, 4], [12, 14]]))
    assert objects.lines[1].get_xydata() == pytest.approx(np.array([[2, 11], [12, 24]]))
    assert (
        {axes.get_xscale() for axes in (images, objects)}
        == {axes.get_yscale() for axes in (images, objects)}
        == {"log"}
    )
    assert images.lines[0].get_color() != images.lines[1].get_color()
    bars = [
        (bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in added.patches if bar.get_width()
    ]
    assert np.array(bars) == pytest.approx(np.array([(1, 0, 100 * 8 / 12), (1, 100 * 8 / 12, 100 * 4 / 12)]))
    assert [text.get_text() for text in added.get_yticklabels()] == ["none", "both"]
    assert {"adds none", "12", "0.28", "0.19"} <= {text.get_text() for text in added.texts}


def test_lines_pass_through_means_of_categories_with_about_as_many_images() -> None:
    images, counts = analysis_figure._group_means(np.array([1, 1, 1, 5, 9]), np.array([1.0, 4.0, 16.0, 5.0, 9.0]))
    assert images == pytest.approx([1, 5, 9]) and counts == pytest.approx([4, 5, 9])
    many = np.arange(1, 1001)
    images, counts = analysis_figure._group_means(many, many * 2.0)
    assert len(images) == analysis_figure.GROUPS and counts == pytest.approx(2 * images)


# ---------------------------------------------------------------------------------------------------- the command line

Main = Callable[..., tuple[int, str, str]]
EXPERIMENT = """\
run: {{dataset: {dataset}, backbone: R18-FPN, iterations: 10, batch_size: 2}}
grid: {{strategy: [none, {{name: rio, repeat_threshold: 0.5}}]}}
"""


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Main:
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text(EXPERIMENT.format(dataset=json.dumps(write_data_set(tmp_path, IMAGES))))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rio_bench", *arguments])
        status: Any = 0
        try:
            cli.main()
        except SystemExit as exit:
            status = exit.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_command_prints_the_table_and_draws_the_figure(main: Main) -> None:
    status, out, err = main("analyze", "two.yaml", "--output", "figure.svg")
    assert (status, err) == (0, "figure: figure.svg\n")
    assert "own: 5 training images, 11 objects, 3 categories (1 rare, 1 common, 1 frequent)" in " ".join(out.split())
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("none", "rio"))] == ["none", "rio"] * 3
    assert Path("figure.svg").exists()

    status, out, _ = main("analyze", "two.yaml", "--format", "csv", "--by", "category", "--set", "grid.strategy=[none]")
    frame = pd.read_csv(io.StringIO(out))
    assert status == 0
    assert frame.Category.tolist() == ["c0", "c1", "c2"] and frame.Effective.tolist() == [7, 2, 2]


def test_a_search_is_analyzed_at_the_ends_of_its_space(main: Main) -> None:
    run = EXPERIMENT.format(dataset=json.dumps(write_data_set(Path.cwd(), IMAGES))).splitlines()[0]
    space = "{strategy: [object_only], strategy.samples_per_class: {low: 1, high: 8}}"
    Path("search.yaml").write_text(f"{run}\nsearch: {{trials: 3, objectives: AP.b, space: {space}}}\n")
    experiment = load_experiment("search.yaml")
    status, out, _ = main("analyze", "search.yaml", "--format", "csv")
    assert status == 0
    replays = pd.read_csv(io.StringIO(out)).set_index("Method").Replays
    assert len(replays) == 2 == len({point.strategy for point in experiment.search_points})
    assert replays.max() == 8 * replays.min()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "dataset=lvis_v1"], "error: lvis_v1: missing "),
        (["--set", "dataset=lvis_v2"], "error: --set dataset=lvis_v2: run.dataset: unknown dataset 'lvis_v2'"),
        (["--output", "a.jpeg"], "error: --output a.jpeg: expected a file name that ends in .png, .svg, .pdf"),
        (["--output", "nowhere/a.png"], "error: --output nowhere/a.png: there is no folder "),
        (["--output", "folder.png"], "error: --output folder.png: cannot be written: Is a directory"),
    ],
    ids=["missing data set", "unknown data set", "wrong ending", "no folder", "a folder"],
)
def test_bad_input_is_one_line(main: Main, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "nowhere")
    Path("folder.png").mkdir()
    status, _, err = main("analyze", "two.yaml", *arguments)
    assert status == 2 and err.startswith(says) and err.count("\n") == 1
