"""The object level of RIO as modules: a bank of past RoI features of rare categories, and the step that replays them.

Source: Chang et al., "Image-Level or Object-Level? A Tale of Two Resampling Strategies for Long-Tailed Detection",
ICML 2021, arXiv 2104.05702.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rio_bench import ops
from rio_bench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rio_bench.strategy import RoIBatch

logger = logging.getLogger(__name__)

STORAGE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SAMPLING = ("newest", "random")

# On CUDA, reading the number of rejected rows waits for the device: once in so many steps costs nothing.
STEPS_BETWEEN_CHECKS = 1000


class FeatureBank(nn.Module):
    """A ring buffer of features and boxes for each banked category. All state is buffers, so checkpoints hold it.

    category_to_row int64 [num_classes + 1]: the bank row of each label, negative where it is not banked; the last entry
    is background's. Rows are numbered from 0 without gaps.
    """

    features: Tensor
    proposal_boxes: Tensor
    gt_boxes: Tensor
    pushed: Tensor
    rejected: Tensor
    category_to_row: Tensor

    def __init__(
        self, category_to_row: Tensor, capacity: int, feature_dim: int, storage: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if capacity < 1:
            raise UserError(f"bank capacity must be at least 1, not {capacity}")
        if storage not in STORAGE.values():
            raise UserError(f"bank storage must be one of {', '.join(STORAGE)}, not {storage}")
        rows = int(category_to_row.max()) + 1 if category_to_row.numel() else 0
        self.register_buffer("features", torch.zeros(rows, capacity, feature_dim, dtype=storage))
        self.register_buffer("proposal_boxes", torch.zeros(rows, capacity, 4))
        self.register_buffer("gt_boxes", torch.zeros(rows, capacity, 4))
        self.register_buffer("pushed", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("rejected", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("category_to_row", category_to_row.to(torch.int64, copy=True))

    @property
    def tensors(self) -> ops.BankTensors:
        # Not self.features and so on: nn.Module's attribute look-up would take longer than the op's own overhead.
        buffers = cast(dict[str, Tensor], self._buffers)
        return ops.BankTensors(*(buffers[name] for name in ops.BankTensors._fields))

    @property
    def num_rows(self) -> int:
        return self.features.shape[0]

    @property
    def capacity(self) -> int:
        return self.features.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of the whole bank, in bytes."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def fill(self) -> float:
        """The share of the entries that are in use, 0..1; of a bank without rows 0. Waits for the device."""
        return float(self.pushed.clamp(max=self.capacity).sum()) / max(1, self.num_rows * self.capacity)

    def enqueue(
        self, features: Tensor, proposal_boxes: Tensor, gt_boxes: Tensor, labels: Tensor, keep: Tensor | None = None
    ) -> None:
        """Push N rows, first in first out: see ``rio_bench.ops.enqueue``."""
        ops.enqueue(self.tensors, features, proposal_boxes, gt_boxes, labels, keep)

    def sample(self, labels: Tensor, counts: int | Tensor, random: Tensor | None = None) -> ops.Replays:
        """Entries of the bank categories among the labels: see ``rio_bench.ops.sample``. counts: one number for all
        categories, or int64 [R]."""
        return ops.sample(self.tensors, labels, self._counts_tensor(counts), random)

    def sample_padded(
        self, labels: Tensor, counts: int | Tensor, rows: int, random: Tensor | None = None
    ) -> ops.PaddedReplays:
        """As ``sample`` with a fixed number of rows: see ``rio_bench.ops.sample_padded``."""
        return ops.sample_padded(self.tensors, labels, self._counts_tensor(counts), rows, random)

    def _counts_tensor(self, counts: int | Tensor) -> Tensor:
        if isinstance(counts, Tensor):
            return counts
        if counts < 0:
            raise UserError(f"the number of replays must not be negative, but is {counts}")
        return self.pushed.new_full((self.num_rows,), counts)


def rows_of_categories(bank_categories: Tensor) -> Tensor:
    """The map of a FeatureBank, int64 [num_classes + 1]: bank_categories, bool [num_classes], get rows in order."""
    banked = torch.cat([bank_categories.bool(), bank_categories.new_zeros(1, dtype=torch.bool)])
    return torch.where(banked, banked.cumsum(0) - 1, -1)


class ObjectReplay(nn.Module):
    """The object level of one training step: sample from the bank, push the batch's rows, append the replays.

    bank_categories: bool [num_classes].
    feature_dim: width D of the features after the box head.
    counts: replays of each bank category present in the batch: a number, or labels int64 [N] -> int64 [R], a count for
        each row of the bank (row r is the r-th bank category), on the same device. At most what the bank holds.
    capacity: RoIs held of each category.
    sampling: "newest" entries, or "random" ones without replacement, drawn from torch's generator.
    storage: number format of the stored features: "float32", "float16" or "bfloat16".
    shared: push the rows of all processes, in the order of their ranks, so that all banks are the same; else each
        process has its own. Wrap the model in DistributedDataParallel with ``broadcast_buffers=False``: otherwise
        rank 0's bank replaces the others at every step.
    max_pushes_per_object: rows of one ground-truth object pushed in a step, the first in batch order; None: all.
    """

    counts: Tensor | Callable[[Tensor], Tensor]

    def __init__(
        self,
        bank_categories: Tensor,
        feature_dim: int,
        *,
        counts: int | Callable[[Tensor], Tensor],
        capacity: int = 60,
        sampling: Literal["newest", "random"] = "newest",
        storage: Literal["float32", "float16", "bfloat16"] = "float32",
        shared: bool = False,
        max_pushes_per_object: int | None = None,
    ) -> None:
        super().__init__()
        if sampling not in SAMPLING:
            raise UserError(f"unknown sampling '{sampling}'{did_you_mean(sampling, SAMPLING)}")
        if storage not in STORAGE:
            raise UserError(f"unknown storage '{storage}'{did_you_mean(storage, STORAGE)}")
        if max_pushes_per_object is not None and max_pushes_per_object < 1:
            raise UserError(f"max_pushes_per_object must be at least 1, not {max_pushes_per_object}")
        self.bank = FeatureBank(rows_of_categories(bank_categories), capacity, feature_dim, STORAGE[storage])
        if isinstance(counts, int):
            if counts < 0:
                raise UserError(f"the number of replays must not be negative, but is {counts}")
            self.register_buffer("counts", torch.full((self.bank.num_rows,), counts), persistent=False)
        else:
            self.counts = counts
        self.sampling = sampling
        self.shared = shared
        self.max_pushes_per_object = max_pushes_per_object
        self._steps = 0
        self._rejected_told = False
        logger.info(
            "feature bank: %d categories x %d RoIs x %d %s: %.1f MiB",
            self.bank.num_rows,
            capacity,
            feature_dim,
            storage,
            self.bank.num_bytes / 2**20,
        )

    def forward(self, batch: RoIBatch) -> RoIBatch:
        """Append the replays to a batch of N rows, and push the batch's own rows: N + M rows.

        Replays have the features' dtype, no gradient, and gt_index -1. Sampling comes before pushing, so what a batch
        brings is replayed from the next one on.
        """
        with torch.no_grad():
            counts = self.counts if isinstance(self.counts, Tensor) else self.counts(batch.labels)
            random = None
            if self.sampling == "random":
                random = torch.rand(self.bank.num_rows, self.bank.capacity, device=batch.labels.device)
            replays = self.bank.sample(batch.labels, counts, random)
            self._push(batch)
        self._tell_rejected()
        return dataclasses.replace(
            batch,
            features=torch.cat([batch.features, replays.features.to(batch.features.dtype)]),
            labels=torch.cat([batch.labels, replays.labels]),
            proposal_boxes=torch.cat([batch.proposal_boxes, replays.proposal_boxes]),
            gt_boxes=torch.cat([batch.gt_boxes, replays.gt_boxes]),
            gt_index=torch.cat([batch.gt_index, torch.full_like(replays.labels, -1)]),
        )

    def _push(self, batch: RoIBatch) -> None:
        keep = None
        if self.max_pushes_per_object is not None:
            keep = first_of_each_object(batch.gt_index, self.max_pushes_per_object)
        rows = (batch.features, batch.proposal_boxes, batch.gt_boxes, batch.labels)
        if self.shared and dist.is_initialized() and dist.get_world_size() > 1:
            banked = self.bank.category_to_row[batch.labels] >= 0
            index = (banked if keep is None else banked & keep).nonzero().squeeze(1)
            # In the stored format: float16 halves what is sent, and the result is the same.
            stored = batch.features[index].to(self.bank.features.dtype)
            rows = gather_rows(stored, batch.proposal_boxes[index], batch.gt_boxes[index], batch.labels[index])
            keep = None
        self.bank.enqueue(*rows, keep)

    def _tell_rejected(self) -> None:
        """Warn once when rows had to be kept out of the bank because they were not finite."""
        self._steps += 1
        waits = self.bank.rejected.is_cuda
        if self._rejected_told or (waits and self._steps % STEPS_BETWEEN_CHECKS):
            return
        rejected = int(self.bank.rejected)
        if rejected:
            self._rejected_told = True
            logger.warning(
                "%d RoIs were kept out of the feature bank: their features or boxes are not finite", rejected
            )


def first_of_each_object(gt_index: Tensor, most: int) -> Tensor:
    """bool [N]: True for the first ``most`` rows of each value of gt_index, int64 [N]."""
    objects, order = torch.sort(gt_index, stable=True)
    position = torch.arange(len(objects), device=gt_index.device) - torch.searchsorted(objects, objects)
    return torch.empty_like(order, dtype=torch.bool).scatter_(0, order, position < most)


def gather_rows(
    features: Tensor, proposal_boxes: Tensor, gt_boxes: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows of all processes, in the order of their ranks. Each process may bring another number of rows."""
    length = torch.tensor([len(labels)], device=labels.device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    sizes = [int(size) for size in lengths]

    def gather(rows: Tensor) -> Tensor:
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))  # all_gather wants equal shapes
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    boxes = gather(torch.cat([proposal_boxes, gt_boxes], dim=1))
    return gather(features), boxes[:, :4], boxes[:, 4:], gather(labels)
