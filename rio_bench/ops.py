"""The feature bank's ops: typed wrappers of the compiled ones, their fake kernels, and reference twins in torch.

A bank is six tensors (``BankTensors``). ``enqueue`` pushes rows into it, ``sample`` and ``sample_padded`` read them.
CPU, CUDA and reference give the same bits. See csrc/feature_bank.h for the layout.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rio_bench.errors import UserError

# Must equal kOpsVersion in csrc/feature_bank.h: raised with every change of a schema or of what an op means.
OPS_VERSION = 1

BUILD_COMMAND = "pip install --no-build-isolation --no-deps -e ."

# The label of the rows that pad sample_padded's results.
PADDING_LABEL = -1

_extension: Any = None
_loading = threading.Lock()


class BankTensors(NamedTuple):
    """A bank of R rows (one for each banked category) of ``capacity`` entries, oldest overwritten first.

    features float32, float16 or bfloat16 [R, capacity, D] · proposal_boxes and gt_boxes float32 [R, capacity, 4] ·
    pushed int64 [R], entries ever pushed to a row: entry p lies in slot p % capacity · rejected int64 [1], entries kept
    out because they were not finite · category_to_row int64 [num_classes + 1], the row of a label, negative where it is
    not banked; background is the last label. All contiguous, on one device.
    """

    features: Tensor
    proposal_boxes: Tensor
    gt_boxes: Tensor
    pushed: Tensor
    rejected: Tensor
    category_to_row: Tensor


class Replays(NamedTuple):
    """M entries of the bank: features [M, D] (the bank's dtype), labels int64 [M], both boxes float32 [M, 4]."""

    features: Tensor
    labels: Tensor
    proposal_boxes: Tensor
    gt_boxes: Tensor


class PaddedReplays(NamedTuple):
    """As Replays, with a fixed number of rows; valid bool [rows] is False for padding: label -1, all else 0."""

    features: Tensor
    labels: Tensor
    proposal_boxes: Tensor
    gt_boxes: Tensor
    valid: Tensor


def load_extension() -> Any:
    """Load the compiled extension, once. Raises UserError with the build command if it is missing or does not fit."""
    global _extension
    with _loading:
        if _extension is None:
            try:
                extension = importlib.import_module("rio_bench._C")
            except ImportError as error:
                raise UserError(
                    f"the compiled extension rio_bench._C cannot be loaded ({error}); "
                    f"build it for torch {torch.__version__} by '{BUILD_COMMAND}' in the rio_bench repository"
                ) from error
            built = extension.build_information()["ops_version"]
            if built != OPS_VERSION:
                raise UserError(
                    f"the compiled extension rio_bench._C has ops version {built}, but this code needs {OPS_VERSION}; "
                    f"build it again by '{BUILD_COMMAND}' in the rio_bench repository"
                )
            _register_fake_kernels()
            _extension = extension
    return _extension


def build_information() -> dict[str, Any]:
    """How the extension was built: ops_version, torch_version, compiler, cuda (bool), cuda_version, architectures."""
    return load_extension().build_information()


def enqueue(
    bank: BankTensors,
    features: Tensor,
    proposal_boxes: Tensor,
    gt_boxes: Tensor,
    labels: Tensor,
    keep: Tensor | None = None,
) -> None:
    """Push rows into the bank in place, in batch order, first in first out.

    features [N, D] float32, float16 or bfloat16, stored in the bank's dtype (rounded to nearest even); proposal_boxes,
    gt_boxes float32 [N, 4]; labels int64 [N]; keep bool [N]: False rows are left out. Rows of labels that are not
    banked are left out too; of more pushes than the capacity the newest stay. A row whose feature (as stored) or boxes
    are not all finite is kept out and counted in ``bank.rejected``. On CUDA nothing waits for the device.
    RuntimeError for a wrong shape, dtype or device; for a label out of range on CPU (on CUDA such a row is left out and
    counted in ``bank.rejected``).
    """
    if _extension is None:
        load_extension()
    torch.ops.rio_bench.enqueue(
        bank.features,
        bank.proposal_boxes,
        bank.gt_boxes,
        bank.pushed,
        bank.rejected,
        features.detach(),
        proposal_boxes.detach(),
        gt_boxes.detach(),
        labels,
        bank.category_to_row,
        keep,
    )


def sample(bank: BankTensors, labels: Tensor, counts: Tensor, random: Tensor | None = None) -> Replays:
    """For each distinct bank category among the labels, ascending: min(counts[row], size) entries of its row.

    labels int64 [N]; counts int64 [R], the entries asked of each row. The newest, newest first; or, with ``random``
    float32 [R, capacity], those with the smallest random values among the filled slots, in that order (ties by slot,
    NaN last). On CUDA this waits for the device once, for the size of the result.
    RuntimeError as in ``enqueue``, and for a negative count on CPU (on CUDA it counts as 0).
    """
    if _extension is None:
        load_extension()
    return Replays(*torch.ops.rio_bench.sample(*_read_only(bank), labels, bank.category_to_row, counts, random))


def sample_padded(
    bank: BankTensors, labels: Tensor, counts: Tensor, rows: int, random: Tensor | None = None
) -> PaddedReplays:
    """As ``sample``, but always ``rows`` rows: padded at the end, or cut off there. Never waits for the device."""
    if _extension is None:
        load_extension()
    return PaddedReplays(
        *torch.ops.rio_bench.sample_padded(*_read_only(bank), labels, bank.category_to_row, counts, rows, random)
    )


def _read_only(bank: BankTensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return bank.features, bank.proposal_boxes, bank.gt_boxes, bank.pushed


def _register_fake_kernels() -> None:
    """Tell torch.compile and FakeTensor the shapes of the results."""

    def fake_enqueue(*arguments: Tensor | None) -> None:
        return None

    def fake_rows(features_bank: Tensor, rows: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            features_bank.new_empty((rows, features_bank.shape[2])),
            features_bank.new_empty((rows,), dtype=torch.int64),
            features_bank.new_empty((rows, 4), dtype=torch.float32),
            features_bank.new_empty((rows, 4), dtype=torch.float32),
        )

    def fake_sample(features_bank: Tensor, *arguments: Tensor | None) -> tuple[Tensor, ...]:
        return fake_rows(features_bank, torch.library.get_ctx().new_dynamic_size())

    def fake_sample_padded(
        features_bank: Tensor,
        proposal_boxes_bank: Tensor,
        gt_boxes_bank: Tensor,
        pushed: Tensor,
        labels: Tensor,
        category_to_row: Tensor,
        counts: Tensor,
        rows: int,
        random: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        return (*fake_rows(features_bank, rows), features_bank.new_empty((rows,), dtype=torch.bool))

    torch.library.register_fake("rio_bench::enqueue", fake_enqueue)
    torch.library.register_fake("rio_bench::sample", fake_sample)
    torch.library.register_fake("rio_bench::sample_padded", fake_sample_padded)


def reference_enqueue(
    bank: BankTensors,
    features: Tensor,
    proposal_boxes: Tensor,
    gt_boxes: Tensor,
    labels: Tensor,
    keep: Tensor | None = None,
) -> None:
    """What ``enqueue`` means, one row after the other: the oracle of its tests."""
    capacity = bank.features.shape[1]
    for n, label in enumerate(labels.tolist()):
        row = int(bank.category_to_row[label])
        if row < 0 or (keep is not None and not keep[n]):
            continue
        feature = features[n].detach().to(bank.features.dtype)
        if not all(values.isfinite().all() for values in (feature, proposal_boxes[n], gt_boxes[n])):
            bank.rejected.add_(1)
            continue
        slot = int(bank.pushed[row]) % capacity
        bank.features[row, slot] = feature
        bank.proposal_boxes[row, slot] = proposal_boxes[n]
        bank.gt_boxes[row, slot] = gt_boxes[n]
        bank.pushed[row] += 1


def reference_sample(bank: BankTensors, labels: Tensor, counts: Tensor, random: Tensor | None = None) -> Replays:
    """What ``sample`` means: the oracle of its tests."""
    capacity = bank.features.shape[1]
    categories: list[int] = []
    rows: list[int] = []
    slots: list[int] = []
    for category in sorted(set(labels.tolist())):
        row = int(bank.category_to_row[category])
        if row < 0:
            continue
        pushed = int(bank.pushed[row])
        filled = min(pushed, capacity)
        if random is None:
            order = [(pushed - 1 - i) % capacity for i in range(filled)]
        else:
            order = torch.sort(random[row, :filled], stable=True).indices.tolist()
        chosen = order[: int(counts[row])]
        categories += [category] * len(chosen)
        rows += [row] * len(chosen)
        slots += chosen
    return Replays(
        bank.features[rows, slots],
        torch.tensor(categories, dtype=torch.int64, device=labels.device),
        bank.proposal_boxes[rows, slots],
        bank.gt_boxes[rows, slots],
    )


def reference_sample_padded(
    bank: BankTensors, labels: Tensor, counts: Tensor, rows: int, random: Tensor | None = None
) -> PaddedReplays:
    """What ``sample_padded`` means: the oracle of its tests."""
    replays = reference_sample(bank, labels, counts, random)
    filled = min(rows, len(replays.labels))

    def pad(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[:filled], tensor.new_zeros((rows - filled, *tensor.shape[1:]))])

    valid = torch.arange(rows, device=labels.device) < filled
    features, categories, proposal_boxes, gt_boxes = (pad(tensor) for tensor in replays)
    return PaddedReplays(features, categories.masked_fill(~valid, PADDING_LABEL), proposal_boxes, gt_boxes, valid)
