"""What strategies make of a data set, without training: how often an epoch shows each category's images and objects.

The image level is exact: expected numbers, from the repeat factors. The object level is run: a strategy's own resampler
gets the pictures in the order of the training, batch by batch, each annotated object as one foreground RoI.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from rio_bench.config import RunConfig, canonical
from rio_bench.datasets.inspection import BUCKETS
from rio_bench.datasets.lvis import (
    Category,
    Dataset,
    FileCategory,
    Split,
    read_annotations,
    unknown_id,
    without_garbage_collection,
)
from rio_bench.errors import UserError
from rio_bench.plan import method_labels
from rio_bench.strategy import Strategy

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from rio_bench.datasets.frequency import Frequency

# Before replays are counted, an epoch fills the banks. In it an object brings many RoIs, as in training the proposals
# matched to it do: one sighting fills RIO's bank of 60.
FILLING_ROIS_PER_OBJECT = 64
COUNTED_EPOCHS = 3  # their mean: stochastic rounding shows a rare category's image now once, now twice


# What is read of an annotation file.


class _Label(Struct, gc=False):
    id: int
    image_id: int
    category_id: int


class _Image(Struct, gc=False):
    id: int


class _LabelsFile(Struct):
    categories: list[FileCategory]
    images: list[_Image]
    annotations: list[_Label]


@dataclass(frozen=True)
class Resampling:
    """What a strategy makes of an epoch, for each of C categories: arrays float64 [C].

    images: how often images with the category are shown; objects: how often its objects are shown in them (expected
    numbers, both); replays: how many of its RoIs the object level replays (measured). epoch: images shown in all.
    """

    epoch: float
    images: np.ndarray
    objects: np.ndarray
    replays: np.ndarray

    @property
    def effective_objects(self) -> np.ndarray:
        return self.objects + self.replays


@dataclass(frozen=True)
class Analysis:
    """The strategies of an experiment on one training set of C categories.

    bucket: "r", "c" or "f" of each category; image_count, object_count: int64 [C], what the training set holds;
    strategies: by their label in tables.
    """

    dataset: str
    num_images: int
    categories: tuple[str, ...]
    bucket: tuple[str, ...]
    image_count: np.ndarray
    object_count: np.ndarray
    strategies: dict[str, Resampling]


def analyze(configs: Sequence[RunConfig]) -> list[Analysis]:
    """One analysis for each data set of the configurations; an embedded data set is made where it is missing.

    Configurations are told apart by strategy, hyperparameters and batch size; the seed is the first one's.
    Raises UserError for a data set that is not there, and for a strategy that breaks its contract.
    """
    distinct = _distinct(configs)
    label = method_labels(distinct)
    by_dataset: dict[str | Dataset, dict[str, RunConfig]] = {}
    for config in distinct:
        by_dataset.setdefault(config.dataset, {})[label(config)] = config
    return [_analysis(dataset, methods) for dataset, methods in by_dataset.items()]


def _analysis(dataset: str | Dataset, methods: dict[str, RunConfig]) -> Analysis:
    from rio_bench import datasets

    names, frequency = _count(datasets.load(dataset).train)
    strategies = {}
    for method, config in methods.items():
        try:
            strategies[method] = resample(config.strategy, frequency, config.batch_size, config.seed)
        except UserError as error:
            raise UserError(f"strategy {method}: {error}") from error
    return Analysis(
        dataset=datasets.label(dataset),
        num_images=frequency.num_images,
        categories=names,
        bucket=frequency.bucket,
        image_count=frequency.image_count.numpy(),
        object_count=frequency.instance_count.numpy(),
        strategies=strategies,
    )


def _count(split: Split) -> tuple[tuple[str, ...], Frequency]:
    """The names of the categories, and counts over the very images that are trained on: those with annotations, by id.

    As over lvis.read_split's records, which hold the masks, too: on LVIS four times the time and the memory.
    """
    from rio_bench.datasets.frequency import count_frequency

    with without_garbage_collection():
        file = read_annotations(split.annotations, _LabelsFile)
        categories = sorted((Category(c.id, c.name, c.frequency) for c in file.categories), key=lambda c: c.id)
        position = {category.id: index for index, category in enumerate(categories)}
        labels: dict[int, list[dict[str, int]]] = {image.id: [] for image in file.images}
        for entry in file.annotations:
            if entry.image_id not in labels or entry.category_id not in position:
                raise UserError(f"{split.annotations}: {unknown_id(entry, position)}")
            labels[entry.image_id].append({"category_id": position[entry.category_id]})
        records = [{"annotations": labels[image]} for image in sorted(labels) if labels[image]]
        if not records:
            raise UserError(f"{split.annotations}: no image has an annotation")
        return tuple(category.name for category in categories), count_frequency(records, categories)


def _distinct(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The configurations without whatever changes nothing here, each once."""
    same_rest = (
        configs[0].model_copy(
            update={"dataset": config.dataset, "strategy": config.strategy, "batch_size": config.batch_size}
        )
        for config in configs
    )
    return list({json.dumps(canonical(config), sort_keys=True): config for config in same_rest}.values())


def resample(strategy: Strategy, frequency: Frequency, batch_size: int, seed: int = 0) -> Resampling:
    """What a strategy makes of an epoch of one process. Raises UserError where it breaks its contract."""
    import torch

    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # Detectron2's torch.jit.script
        from rio_bench.detection.pictures import check_repeat_factors

    factors = strategy.image_repeat_factors(frequency)
    if factors is None:
        factors = torch.ones(frequency.num_images)
    check_repeat_factors(factors, frequency.num_images)
    shown = factors.double()[frequency.pair_image]

    def per_category(weights: Tensor) -> np.ndarray:
        return torch.bincount(frequency.pair_category, weights, minlength=len(frequency.bucket)).numpy()

    resampler = strategy.object_resampler(frequency, feature_dim=1)
    return Resampling(
        epoch=float(factors.double().sum()),
        images=per_category(shown),
        objects=per_category(shown * frequency.pair_instances),
        replays=np.zeros(len(frequency.bucket))
        if resampler is None
        else _count_replays(resampler, frequency, factors, batch_size, seed),
    )


def _count_replays(
    resampler: nn.Module, frequency: Frequency, factors: Tensor, batch_size: int, seed: int
) -> np.ndarray:
    """Replays of each category in an epoch, float64 [C]: the mean of COUNTED_EPOCHS, with banks filled before."""
    import torch

    from rio_bench.detection.pictures import PositionedSampler

    num_categories = len(frequency.bucket)
    pictures = (picture for _, picture in PositionedSampler(factors, seed, first_position=0))
    epoch = round(float(factors.double().sum()))
    replays = torch.zeros(num_categories, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for batch in _batches(frequency, list(itertools.islice(pictures, epoch)), batch_size):
            _replayed(resampler, batch, FILLING_ROIS_PER_OBJECT)
        for _ in range(COUNTED_EPOCHS):
            batches = _batches(frequency, list(itertools.islice(pictures, epoch)), batch_size)
            labels = torch.cat([_replayed(resampler, batch, 1) for batch in batches])
            of_category = labels[(labels >= 0) & (labels < num_categories)]
            replays += torch.bincount(of_category, minlength=num_categories)
    return replays.double().numpy() / COUNTED_EPOCHS


def _batches(frequency: Frequency, pictures: list[int], batch_size: int) -> Iterator[Tensor]:
    """The labels int64 [N] of each batch's objects; the last batch may have fewer pictures."""
    import torch

    objects = frequency.pair_category.repeat_interleave(frequency.pair_instances)  # sorted by image
    counts = torch.bincount(frequency.pair_image, frequency.pair_instances, minlength=frequency.num_images).long()
    first = counts.cumsum(0) - counts
    shown = torch.tensor(pictures)
    lengths = counts[shown]
    ends = lengths.cumsum(0)
    # An object's place in `objects`: its picture's first one, and how far it is from where its picture begins here.
    places = (first[shown] - (ends - lengths)).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
    yield from objects[places].tensor_split(ends[batch_size - 1 : -1 : batch_size])


def _replayed(resampler: nn.Module, labels: Tensor, rois_per_object: int) -> Tensor:
    """The labels of the rows that the resampler appends to a batch of objects."""
    import torch

    from rio_bench.strategy import RoIBatch

    rows = len(labels) * rois_per_object
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(rows, 1)
    batch = RoIBatch(
        features=torch.ones(rows, 1),
        labels=labels.repeat_interleave(rois_per_object),
        proposal_boxes=boxes,
        gt_boxes=boxes.clone(),
        gt_index=torch.arange(len(labels)).repeat_interleave(rois_per_object),
    )
    returned = resampler(batch).labels
    if len(returned) < rows or not torch.equal(returned[:rows], batch.labels):
        raise UserError(f"object_resampler: expected the {rows} given rows first and untouched, then what it adds")
    return returned[rows:]


# ----------------------------------------------------------------------------------------------------------- as tables


def imbalance_ratio(counts: np.ndarray) -> float:
    """The largest of positive counts [C] over the smallest; NaN for none (Cui et al., CVPR 2019, arXiv 1901.05555)."""
    return float(counts.max() / counts.min()) if counts.size else math.nan


def gini(counts: np.ndarray) -> float:
    """The Gini coefficient of positive counts [C]: 0 where all are the same, towards 1 where one has all; NaN for none.

    Half the relative mean difference over all pairs, by ranks (Sen, On Economic Inequality, 1973, chapter 2).
    """
    if not counts.size:
        return math.nan
    ranks = np.arange(1, counts.size + 1)
    return float(((2 * ranks - counts.size - 1) * np.sort(counts)).sum() / (counts.size * counts.sum()))


def by_category(analyses: Sequence[Analysis]) -> pd.DataFrame:
    """A row for each data set, method and category.

    Images, Objects: what the training set holds. Images shown, Objects shown, Replays: what an epoch has of them;
    Effective: objects shown and replayed.
    """
    import pandas as pd

    return pd.concat(
        [
            pd.DataFrame(
                {
                    "Dataset": analysis.dataset,
                    "Method": method,
                    "Category": analysis.categories,
                    "Bucket": [BUCKETS[bucket] for bucket in analysis.bucket],
                    "Images": analysis.image_count,
                    "Objects": analysis.object_count,
                    "Images shown": strategy.images,
                    "Objects shown": strategy.objects,
                    "Replays": strategy.replays,
                    "Effective": strategy.effective_objects,
                }
            )
            for analysis in analyses
            for method, strategy in analysis.strategies.items()
        ],
        ignore_index=True,
    )


def by_bucket(analyses: Sequence[Analysis]) -> pd.DataFrame:
    """A row for each data set and method; categories without a training image are left out.

    Epoch: images shown in all. Images.r ..: how often an epoch shows images of a category, the mean over the bucket;
    Images.ratio: largest over smallest; Images.Gini. Objects.*: the same of effective objects. Added: effective objects
    of an epoch beyond the training set's own; Replays: those of them that are replayed; Added.r ..: each bucket's share
    of Added, in percent. NaN: a bucket without categories, shares of nothing added.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {"Dataset": analysis.dataset, "Method": method} | _summary(analysis, strategy)
            for analysis in analyses
            for method, strategy in analysis.strategies.items()
        ]
    )


def _summary(analysis: Analysis, strategy: Resampling) -> dict[str, float]:
    seen = analysis.image_count > 0
    in_bucket = {bucket: seen & (np.array(analysis.bucket) == bucket) for bucket in BUCKETS}
    row = {"Epoch": strategy.epoch}
    for name, counts in (("Images", strategy.images), ("Objects", strategy.effective_objects)):
        row |= {f"{name}.{bucket}": _mean(counts[chosen]) for bucket, chosen in in_bucket.items()}
        row |= {f"{name}.ratio": imbalance_ratio(counts[seen]), f"{name}.Gini": gini(counts[seen])}
    added = strategy.effective_objects - analysis.object_count
    total = added.sum()
    row |= {"Added": total, "Replays": strategy.replays.sum()}
    return row | {
        f"Added.{bucket}": 100 * added[chosen].sum() / total if total else math.nan
        for bucket, chosen in in_bucket.items()
    }


def _mean(counts: np.ndarray) -> float:
    return float(counts.mean()) if counts.size else math.nan
