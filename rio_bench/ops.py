"""The feature bank's ops: typed wrappers of the compiled ones, their fake kernels, and reference twins in torch.

A bank is six tensors (``BankTensors``). ``enqueue`` pushes rows into it, ``sample`` and ``sample_padded`` read them.
CPU, CUDA and reference give the same bits. See csrc/feature_bank.h for the layout. Where the extension was built
without CUDA kernels, the reference twins run on CUDA tensors: slower, and without the checks of shapes and dtypes.
"""

from __future__ import annotations

import functools
import importlib
import logging
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

logger = logging.getLogger(__name__)

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
            information = extension.build_information()
            if information["ops_version"] != OPS_VERSION:
                raise UserError(
                    f"the compiled extension rio_bench._C has ops version {information['ops_version']}, but this code "
                    f"needs {OPS_VERSION}; build it again by '{BUILD_COMMAND}' in the rio_bench repository"
                )
            _register_fake_kernels()
            if not information["cuda"]:
                _register_plain_kernels("cuda")
            _extension = extension
    return _extension


def build_information() -> dict[str, Any]:
    """How the extension was built: ops_version, torch_version, compiler, cuda (bool), cuda_version, architectures."""
    return load_extension().build_information()


def missing_cuda_kernels() -> str:
    """One line: that the extension was built without CUDA kernels, what runs instead, and how to build them."""
    major = (torch.version.cuda or "").partition(".")[0]
    return (
        "the extension was built without CUDA kernels: on a GPU the plain torch ones are used, which are slower; to "
        f"build them, install a CUDA toolkit of torch's major version ({major or 'this torch has no CUDA'}), then "
        "'make clean setup' or 'pip install --no-build-isolation -e .' in the rio_bench repository"
    )


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


def _register_plain_kernels(device_type: str) -> None:
    """Make the reference twins the ops' kernels for tensors of a device type that the extension has none for."""

    def enqueue_kernel(
        features_bank: Tensor,
        proposal_boxes_bank: Tensor,
        gt_boxes_bank: Tensor,
        pushed: Tensor,
        rejected: Tensor,
        features: Tensor,
        proposal_boxes: Tensor,
        gt_boxes: Tensor,
        labels: Tensor,
        category_to_row: Tensor,
        keep: Tensor | None = None,
    ) -> None:
        _warn_of_plain_kernels()
        bank = BankTensors(features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, rejected, category_to_row)
        reference_enqueue(bank, features, proposal_boxes, gt_boxes, labels, keep)

    def bank_to_read(
        features_bank: Tensor,
        proposal_boxes_bank: Tensor,
        gt_boxes_bank: Tensor,
        pushed: Tensor,
        category_to_row: Tensor,
    ) -> BankTensors:
        _warn_of_plain_kernels()
        nothing_rejected = pushed.new_zeros(1)  # sampling does not read it
        return BankTensors(features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, nothing_rejected, category_to_row)

    def sample_kernel(
        features_bank: Tensor,
        proposal_boxes_bank: Tensor,
        gt_boxes_bank: Tensor,
        pushed: Tensor,
        labels: Tensor,
        category_to_row: Tensor,
        counts: Tensor,
        random: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        bank = bank_to_read(features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, category_to_row)
        return tuple(reference_sample(bank, labels, counts, random))

    def sample_padded_kernel(
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
        bank = bank_to_read(features_bank, proposal_boxes_bank, gt_boxes_bank, pushed, category_to_row)
        return tuple(reference_sample_padded(bank, labels, counts, rows, random))

    torch.library.impl("rio_bench::enqueue", device_type, enqueue_kernel)
    torch.library.impl("rio_bench::sample", device_type, sample_kernel)
    torch.library.impl("rio_bench::sample_padded", device_type, sample_padded_kernel)


@functools.cache
def _warn_of_plain_kernels() -> None:
    """Once in a process."""
    logger.warning(missing_cuda_kernels())


def reference_enqueue(
    bank: BankTensors,
    features: Tensor,
    proposal_boxes: Tensor,
    gt_boxes: Tensor,
    labels: Tensor,
    keep: Tensor | None = None,
) -> None:
    """What ``enqueue`` means on CUDA, one row after the other: the oracle of its tests."""
    num_rows, capacity, _ = bank.features.shape
    # Read as lists once: reading one number of a CUDA tensor waits for the device.
    row_of_label, pushed = bank.category_to_row.tolist(), bank.pushed.tolist()
    stored = features.detach().to(bank.features.dtype)
    finite = torch.stack([values.isfinite().all(dim=1) for values in (stored, proposal_boxes, gt_boxes)]).all(dim=0)
    is_finite, is_kept = finite.tolist(), None if keep is None else keep.tolist()
    for n, label in enumerate(labels.tolist()):
        if is_kept is not None and not is_kept[n]:
            continue
        in_range = 0 <= label < len(row_of_label) and row_of_label[label] < num_rows
        if in_range and row_of_label[label] < 0:
            continue
        if not in_range or not is_finite[n]:
            bank.rejected.add_(1)
            continue
        row = row_of_label[label]
        slot = pushed[row] % capacity
        bank.features[row, slot] = stored[n]
        bank.proposal_boxes[row, slot] = proposal_boxes[n]
        bank.gt_boxes[row, slot] = gt_boxes[n]
        pushed[row] += 1
    bank.pushed.copy_(torch.tensor(pushed, dtype=torch.int64, device=bank.pushed.device))


def reference_sample(bank: BankTensors, labels: Tensor, counts: Tensor, random: Tensor | None = None) -> Replays:
    """What ``sample`` means on CUDA: the oracle of its tests."""
    num_rows, capacity, _ = bank.features.shape
    row_of_label, pushed_to, count_of = bank.category_to_row.tolist(), bank.pushed.tolist(), counts.tolist()
    random = None if random is None else random.cpu()  # its order there is the one that is meant
    categories: list[int] = []
    rows: list[int] = []
    slots: list[int] = []
    for category in sorted(set(labels.tolist())):
        row = row_of_label[category] if 0 <= category < len(row_of_label) else -1
        if not 0 <= row < num_rows:
            continue
        pushed = pushed_to[row]
        filled = min(pushed, capacity)
        if random is None:
            order = [(pushed - 1 - i) % capacity for i in range(filled)]
        else:
            order = torch.sort(random[row, :filled], stable=True).indices.tolist()
        chosen = order[: max(0, count_of[row])]
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
