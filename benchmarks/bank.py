"""Speed of the feature bank's two ops, side by side with a loop over numpy arrays, plain torch and a copy.

    python benchmarks/bank.py [--repeats 15] [--pictures 1 2 4 8 16] [--threads 2]

One step is: sample, then push. A cell of the printed Markdown table is the median over interleaved repeats. As in a
training, where a step's pictures pass through the caches between two steps, there are more batches than caches hold.
- numpy: the bank as one numpy array a category, filled and read object by object, with a device-to-host copy for each.
- torch: the same in vectorised torch operations, on the batch's device; it does not look for NaN, as ours does.
- copy: the floor: the bytes that must move, row after row: replays to new memory, pushed rows to where they stay.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rio_bench import ops
from rio_bench.bank import FeatureBank, rows_of_categories


@dataclass(frozen=True)
class Setting:
    """One of RIO's settings (rio.md)."""

    name: str
    num_classes: int
    bank_categories: int
    samples_per_class: int
    capacity: int


SETTINGS = (
    Setting("v0.5", 1230, 706, 20, 60),
    Setting("v1.0", 1203, 553, 20, 60),
    Setting("v1.0 X101", 1203, 553, 5, 100),
)
FEATURE_DIM = 1024
ROIS_PER_PICTURE = 512
FOREGROUND_PER_PICTURE = 64
OBJECTS_PER_PICTURE = 8  # 8 RoIs each
NUM_BATCHES = 32  # of one picture each, they fill or read 31 MiB of the bank at v0.5


@dataclass(frozen=True)
class Batch:
    """RoIs of some pictures: 64 of 512 are foreground, all of them of bank categories: the dearest case."""

    features: Tensor
    proposal_boxes: Tensor
    gt_boxes: Tensor
    labels: Tensor


def make_batch(setting: Setting, pictures: int, device: str) -> Batch:
    size = pictures * ROIS_PER_PICTURE
    labels = torch.full((pictures, ROIS_PER_PICTURE), setting.num_classes)
    categories = torch.randint(setting.bank_categories, (pictures, OBJECTS_PER_PICTURE))
    labels[:, :FOREGROUND_PER_PICTURE] = categories.repeat(1, FOREGROUND_PER_PICTURE // OBJECTS_PER_PICTURE)
    features, proposal_boxes, gt_boxes = torch.randn(size, FEATURE_DIM), torch.rand(size, 4), torch.rand(size, 4)
    return Batch(features.to(device), proposal_boxes.to(device), gt_boxes.to(device), labels.flatten().to(device))


class ExtensionBank:
    """The compiled ops."""

    def __init__(self, setting: Setting, device: str) -> None:
        bank_categories = torch.arange(setting.num_classes) < setting.bank_categories
        self.bank = FeatureBank(rows_of_categories(bank_categories), setting.capacity, FEATURE_DIM).to(device)
        self.counts = torch.full((setting.bank_categories,), setting.samples_per_class, device=device)

    def step(self, batch: Batch) -> ops.Replays:
        replays = self.bank.sample(batch.labels, self.counts)
        self.bank.enqueue(batch.features, batch.proposal_boxes, batch.gt_boxes, batch.labels)
        return replays


class NumpyBank:
    """One numpy array a category on the CPU, object by object, with a copy from the device for each."""

    def __init__(self, setting: Setting, device: str) -> None:
        self.setting = setting
        self.features = [np.zeros((0, FEATURE_DIM), np.float32) for _ in range(setting.bank_categories)]
        self.boxes = [np.zeros((0, 8), np.float32) for _ in range(setting.bank_categories)]

    def step(self, batch: Batch) -> ops.Replays:
        device, banked = batch.labels.device, self.setting.bank_categories
        foreground = [n for n, label in enumerate(batch.labels.tolist()) if label < banked]
        features, labels, boxes = [], [], []
        for category in sorted({int(batch.labels[n]) for n in foreground}):
            newest = slice(None, -self.setting.samples_per_class - 1, -1)
            for feature, box in zip(self.features[category][newest], self.boxes[category][newest], strict=True):
                features.append(torch.from_numpy(feature).to(device))
                boxes.append(torch.from_numpy(box).to(device))
                labels.append(category)
        for n in foreground:
            category = int(batch.labels[n])
            feature = batch.features[n].cpu().numpy()[None]
            box = torch.cat([batch.proposal_boxes[n], batch.gt_boxes[n]]).cpu().numpy()[None]
            keep = slice(-self.setting.capacity, None)
            self.features[category] = np.concatenate([self.features[category], feature])[keep]
            self.boxes[category] = np.concatenate([self.boxes[category], box])[keep]
        if not labels:
            empty = batch.proposal_boxes[:0]
            return ops.Replays(batch.features[:0], batch.labels[:0], empty, empty)
        all_boxes = torch.stack(boxes)
        return ops.Replays(
            torch.stack(features), torch.tensor(labels, device=device), all_boxes[:, :4], all_boxes[:, 4:]
        )


class TorchBank:
    """The same in vectorised torch operations, on tensors as the extension's."""

    def __init__(self, setting: Setting, device: str) -> None:
        rows = setting.bank_categories
        self.setting = setting
        self.features = torch.zeros(rows, setting.capacity, FEATURE_DIM, device=device)
        self.proposal_boxes = torch.zeros(rows, setting.capacity, 4, device=device)
        self.gt_boxes = torch.zeros(rows, setting.capacity, 4, device=device)
        self.pushed = torch.zeros(rows, dtype=torch.int64, device=device)
        self.steps_back = torch.arange(1, setting.samples_per_class + 1, device=device)

    def step(self, batch: Batch) -> ops.Replays:
        capacity = self.setting.capacity
        index = (batch.labels < self.setting.bank_categories).nonzero().squeeze(1)
        rows = batch.labels[index]

        present = rows.unique()
        slots = self.pushed[present, None] - self.steps_back
        filled = (slots >= 0) & (self.steps_back <= capacity)
        replay_rows = present[:, None].expand_as(slots)[filled]
        entries = (replay_rows, slots[filled] % capacity)
        replays = ops.Replays(self.features[entries], replay_rows, self.proposal_boxes[entries], self.gt_boxes[entries])

        ordered, order = torch.sort(rows, stable=True)
        position = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ordered, ordered)
        counts = torch.bincount(ordered, minlength=self.setting.bank_categories)
        newest = position >= counts[ordered] - capacity
        ordered, position, source = ordered[newest], position[newest], index[order[newest]]
        entries = (ordered, (self.pushed[ordered] + position) % capacity)
        self.features[entries] = batch.features[source]
        self.proposal_boxes[entries] = batch.proposal_boxes[source]
        self.gt_boxes[entries] = batch.gt_boxes[source]
        self.pushed += counts
        return replays


class Copy:
    """The floor: as many bytes as a step must move, each batch's lying elsewhere."""

    def __init__(self, replayed: int, pushed: int, device: str) -> None:
        self.replays = torch.randn(NUM_BATCHES, replayed, FEATURE_DIM + 8, device=device)
        self.pushes = torch.randn(NUM_BATCHES, pushed, FEATURE_DIM + 8, device=device)
        self.slots = torch.empty_like(self.pushes)
        self.steps = 0

    def step(self, batch: Batch) -> Tensor:
        i = self.steps % NUM_BATCHES
        self.steps += 1
        self.slots[i].copy_(self.pushes[i])
        return self.replays[i].clone()


def seconds_of_steps(step: Callable[[Batch], object], batches: list[Batch]) -> float:
    """Seconds of one step, the mean over the batches."""
    synchronize = torch.cuda.synchronize if batches[0].labels.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    synchronize()
    return (time.perf_counter() - start) / len(batches)


def replayed_alike(rivals: list[ExtensionBank | NumpyBank | TorchBank], batches: list[Batch]) -> float:
    """Rows that a step replays, the mean over the batches; stops the program where the rivals do not agree on them."""
    rows = []
    for batch in batches:
        first, *others = (rival.step(batch) for rival in rivals)
        for other in others:
            if not all(torch.equal(a, b) for a, b in zip(first, other, strict=True)):
                raise SystemExit("the rivals do not replay the same rows")
        rows.append(len(first.labels))
    return statistics.mean(rows)


def measure(setting: Setting, pictures: int, device: str, repeats: int) -> dict[str, float]:
    """Median seconds of a step of each rival, and the bytes that it must move."""
    torch.manual_seed(0)
    batches = [make_batch(setting, pictures, device) for _ in range(NUM_BATCHES)]
    rivals = [bank(setting, device) for bank in (NumpyBank, TorchBank, ExtensionBank)]
    for _ in range(setting.capacity // 8 + 1):  # 8 RoIs an object: until the banks are full
        replayed = round(replayed_alike(rivals, batches))
    pushed = pictures * FOREGROUND_PER_PICTURE
    timed = dict(zip(("numpy", "torch", "extension", "copy"), [*rivals, Copy(replayed, pushed, device)], strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, rival in timed.items():
            seconds[name].append(seconds_of_steps(rival.step, batches[:4] if name == "numpy" else batches))
    return {name: statistics.median(values) for name, values in seconds.items()} | {
        "bytes": (replayed + pushed) * (FEATURE_DIM + 8) * 4
    }


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo") as lines:
        model = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
        )
    return f"{model}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch and ours")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        print(f"\n{device_name(device)} (torch {torch.__version__}), microseconds a step:\n")
        print("| setting | pictures | numpy | torch | copy | ours | numpy / ours | torch / ours | ours / copy | GB/s |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
        for setting in SETTINGS:
            for pictures in arguments.pictures:
                cell = measure(setting, pictures, device, arguments.repeats)
                ours = cell["extension"]
                microseconds = [f"{cell[name] * 1e6:.0f}" for name in ("numpy", "torch", "copy", "extension")]
                ratios = [f"{cell['numpy'] / ours:.0f}", f"{cell['torch'] / ours:.1f}", f"{ours / cell['copy']:.2f}"]
                moved = f"{2 * cell['bytes'] / ours / 1e9:.1f}"  # read once, written once
                print(
                    "| " + " | ".join([setting.name, str(pictures), *microseconds, *ratios, moved]) + " |", flush=True
                )


if __name__ == "__main__":
    main()
