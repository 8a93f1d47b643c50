"""What the object level adds to a whole training step: `rio` beside `none`, the same pictures in the same batch.

    python benchmarks/step.py [--pictures 2] [--short-side 800] [--repeats 20]

Mask R-CNN R50-FPN with LVIS v0.5's 1,230 categories from random weights, trained by the trainer and in the precision
that a run has. Every picture (noise) has 64 objects of 8 bank categories, all of which become foreground RoIs, and the
banks are full: a dear step. The rivals' steps take turns, so that each has the machine as the others do.
- none: no object level.
- rows: as many rows as RIO replays, but each batch's always the same, without a bank: what more rows in the predictors
  and their losses cost.
- rio: the object level as it is. Beyond `rows` it holds the bank's two ops and the reading of its counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time

import torch
from bank import device_name
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from rio_bench.bank import FeatureBank
from rio_bench.config import load_recipe
from rio_bench.datasets.frequency import Frequency
from rio_bench.detection.model import build_detector
from rio_bench.detection.recipe import build_cfg
from rio_bench.detection.trainer import build_optimizer_of
from rio_bench.strategy import RoIBatch

NUM_CLASSES = 1230
BANK_CATEGORIES = 706
CATEGORIES_PER_PICTURE = 8
OBJECTS_PER_CATEGORY = 8
NUM_BATCHES = 4


class SameRows(nn.Module):
    """Appends rows, the same ones to each batch in turn."""

    def __init__(self, rows: list[RoIBatch]) -> None:
        super().__init__()
        self.rows = itertools.cycle(rows)

    def forward(self, batch: RoIBatch) -> RoIBatch:
        fields = [field.name for field in dataclasses.fields(RoIBatch)]
        rows = next(self.rows)
        return RoIBatch(**{name: torch.cat([getattr(batch, name), getattr(rows, name)]) for name in fields})


def frequency_of_lvis() -> Frequency:
    """As many bank categories as LVIS v0.5 has; nothing else of it matters here."""
    image_count = torch.where(torch.arange(NUM_CLASSES) < BANK_CATEGORIES, 10, 1000)
    nothing = torch.empty(0, dtype=torch.int64)
    return Frequency(image_count, image_count, ("r",) * NUM_CLASSES, 56740, nothing, nothing, nothing)


def make_picture(short_side: int) -> dict:
    """Detectron2's input of one training picture."""
    height, width = short_side, short_side * 4 // 3
    categories = torch.randperm(BANK_CATEGORIES)[:CATEGORIES_PER_PICTURE].repeat_interleave(OBJECTS_PER_CATEGORY)
    corner = torch.rand(len(categories), 2) * torch.tensor([width, height]) * 0.75
    size = torch.rand(len(categories), 2) * torch.tensor([width, height]) * 0.15 + 8
    boxes = torch.cat([corner, corner + size], dim=1)
    instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=categories)
    instances.gt_masks = PolygonMasks([[polygon(box)] for box in boxes.tolist()])
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def polygon(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def make_trainer(object_resampler: str, batches: list[list[dict]], device: str) -> SimpleTrainer:
    """A trainer whose weights stay as they are: the learning rate is 0, the optimizer's work the same."""
    config = load_recipe("lvis_v0.5/r50_rio").model_copy(update={"batch_size": len(batches[0])})
    cfg = build_cfg(config, NUM_CLASSES, device)
    model = build_detector(config, cfg).train()
    if object_resampler == "rio":
        width = model.roi_heads.box_head.output_shape.channels
        replay = config.strategy.object_resampler(frequency_of_lvis(), width)
        assert replay is not None
        model.roi_heads.object_resampler = replay.to(device)
    optimizer = build_optimizer_of(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    trainer_class = AMPTrainer if config.mixed_precision and device == "cuda" else SimpleTrainer
    trainer = trainer_class(model, Cycle(batches), optimizer)
    trainer.storage = EventStorage()
    return trainer


class Cycle:
    """Batches without end; a trainer makes the iterator itself."""

    def __init__(self, batches: list[list[dict]]) -> None:
        self.batches = batches

    def __iter__(self):
        while True:
            yield from self.batches


def timed_step(trainer: SimpleTrainer, device: str) -> float:
    """Seconds of one training step."""
    synchronize(device)
    start = time.perf_counter()
    with trainer.storage:
        trainer.run_step()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def fill(bank: FeatureBank) -> None:
    """As many noise features of each category as the bank holds."""
    labels = torch.arange(bank.num_rows, device=bank.pushed.device).repeat(bank.capacity)
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0]], device=labels.device).repeat(len(labels), 1)
    bank.enqueue(torch.rand(len(labels), bank.features.shape[2], device=labels.device), boxes, boxes, labels)


def replayed_rows(trainer: SimpleTrainer, device: str) -> RoIBatch:
    """The rows that the bank replays in one step."""
    given: list[tuple[RoIBatch, RoIBatch]] = []
    resampler = trainer.model.roi_heads.object_resampler
    handle = resampler.register_forward_hook(lambda module, inputs, output: given.append((inputs[0], output)))
    timed_step(trainer, device)
    handle.remove()
    before, after = given[0]
    own = len(before.labels)
    rows = {field.name: getattr(after, field.name)[own:].detach() for field in dataclasses.fields(RoIBatch)}
    return RoIBatch(**rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2, help="of a batch")
    parser.add_argument("--short-side", type=int, default=800, help="of a picture, in pixels")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("--repeats: at least 2, for quartiles")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    pictures = [make_picture(arguments.short_side) for _ in range(NUM_BATCHES * arguments.pictures)]
    batches = [pictures[i::NUM_BATCHES] for i in range(NUM_BATCHES)]
    trainers = {name: make_trainer(name, batches, device) for name in ("none", "rows", "rio")}
    fill(trainers["rio"].model.roi_heads.object_resampler.bank)
    rows = [replayed_rows(trainers["rio"], device) for _ in batches]
    trainers["rows"].model.roi_heads.object_resampler = SameRows(rows)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for repeat in range(arguments.repeats + 2):
        for name, trainer in trainers.items():
            second = timed_step(trainer, device)
            if repeat >= 2:
                seconds[name].append(second)
    replayed = round(statistics.mean(len(of_batch.labels) for of_batch in rows))
    report(seconds, replayed, arguments, device)


def report(seconds: dict[str, list[float]], replayed: int, arguments: argparse.Namespace, device: str) -> None:
    width = arguments.short_side * 4 // 3
    print(
        f"{device_name(device)} (torch {torch.__version__}): {arguments.pictures} pictures of {width} x "
        f"{arguments.short_side}, {replayed} rows replayed, median of {arguments.repeats} steps\n"
    )
    print("| step | milliseconds | against none | quartiles |")
    print("|---|---:|---:|---:|")
    none = seconds["none"]
    for name, values in seconds.items():
        # Steps that follow each other meet the same machine: the ratio of each pair, then their median.
        ratios = [value / base for value, base in zip(values, none, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {name} | {statistics.median(values) * 1e3:.1f} | {statistics.median(ratios) - 1:+.1%} "
            f"| {low - 1:+.1%} to {high - 1:+.1%} |"
        )


if __name__ == "__main__":
    main()
