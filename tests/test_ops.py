"""The ops of the feature bank: a case computed by hand, the reference as oracle, bad input, sizes, threads."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rio_bench import ops
from rio_bench.errors import UserError
from rio_bench.ops import BankTensors

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]
needs_cuda_kernels = pytest.mark.skipif(
    not (torch.cuda.is_available() and ops.build_information()["cuda"]),
    reason="needs a CUDA device and an extension with CUDA kernels",
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_bank(
    category_to_row: list[int], capacity: int, feature_dim: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> BankTensors:
    rows = max(category_to_row) + 1
    return BankTensors(
        torch.zeros(rows, capacity, feature_dim, dtype=dtype, device=device),
        torch.zeros(rows, capacity, 4, device=device),
        torch.zeros(rows, capacity, 4, device=device),
        torch.zeros(rows, dtype=torch.int64, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
        torch.tensor(category_to_row, device=device),
    )


def clone(bank: BankTensors) -> BankTensors:
    return BankTensors(*(tensor.clone() for tensor in bank))


def make_rows(values: list[float], feature_dim: int = 2, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Rows that can be told apart: features v, proposal boxes v + 0.25, ground-truth boxes v + 0.5."""
    column = torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)
    return column.expand(-1, feature_dim).clone(), (column + 0.25).expand(-1, 4), (column + 0.5).expand(-1, 4)


def assert_same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
    """Bit for bit, dtype and shape included."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a.cpu(), b.cpu())


# Categories 0..3, background 4; 1 and 3 are banked, in rows 0 and 1.
HAND_MAP = [-1, 0, -1, 1, -1]


@pytest.mark.parametrize("device", DEVICES)
def test_hand_computed_case(device: str) -> None:
    bank = make_bank(HAND_MAP, capacity=2, feature_dim=2, device=device)
    labels = torch.tensor([3, 0, 1, 3, 4, 3], device=device)
    counts = torch.tensor([2, 2], device=device)

    assert len(ops.sample(bank, labels, counts).labels) == 0

    ops.enqueue(bank, *make_rows([10, 11, 12, 13, 14, 15], device=device), labels)
    # Row 1 was given 10, 13, 15: capacity 2 keeps 13 and 15, in the slots of the second and third push.
    assert bank.pushed.tolist() == [1, 3]
    assert bank.features[:, :, 0].tolist() == [[12, 0], [15, 13]]
    assert bank.proposal_boxes[1, :, 3].tolist() == [15.25, 13.25]
    assert bank.gt_boxes[1, :, 3].tolist() == [15.5, 13.5]

    replays = ops.sample(bank, labels, counts)
    assert replays.labels.tolist() == [1, 3, 3]
    assert replays.features[:, 1].tolist() == [12, 15, 13]
    assert replays.proposal_boxes[:, 0].tolist() == [12.25, 15.25, 13.25]
    assert replays.gt_boxes[:, 0].tolist() == [12.5, 15.5, 13.5]

    ops.enqueue(bank, *make_rows([20], device=device), torch.tensor([3], device=device))
    assert bank.features[1, :, 0].tolist() == [15, 20]  # 13 was the oldest
    only_one = ops.sample(bank, torch.tensor([3, 3, 2], device=device), torch.tensor([2, 1], device=device))
    assert only_one.features[:, 0].tolist() == [20]


@pytest.mark.parametrize("device", DEVICES)
def test_random_entries_are_those_of_the_smallest_values(device: str) -> None:
    bank = make_bank([0, -1], capacity=5, feature_dim=2, device=device)
    ops.enqueue(bank, *make_rows([0, 1, 2, 3], device=device), torch.zeros(4, dtype=torch.int64, device=device))
    labels = torch.tensor([0], device=device)

    def drawn(random: list[float], count: int) -> list[float]:
        replays = ops.sample(bank, labels, torch.tensor([count], device=device), torch.tensor([random], device=device))
        return replays.features[:, 0].tolist()

    assert drawn([0.5, 0.1, 0.9, 0.3, 0.0], 2) == [1, 3]  # slot 4 is empty: its 0.0 does not count
    assert drawn([0.2, 0.1, 0.2, 0.2, 0.0], 4) == [1, 0, 2, 3]  # ties by slot
    assert drawn([float("nan"), float("inf"), -1.0, -0.0, 0.0], 4) == [2, 3, 1, 0]  # NaN last
    assert drawn([0.0, -0.0, 0.0, -0.0, 0.0], 4) == [0, 1, 2, 3]  # the sign of zero is no order


@st.composite
def sequences(draw: st.DrawFn) -> dict:
    num_classes = draw(st.integers(1, 6))
    banked = draw(st.lists(st.booleans(), min_size=num_classes, max_size=num_classes).filter(any))
    rows = iter(range(num_classes))
    return {
        "map": [next(rows) if is_banked else -1 for is_banked in banked] + [-1],
        "capacity": draw(st.integers(1, 5)),
        "feature_dim": draw(st.sampled_from([1, 2, 3, 8, 16])),
        "storage": draw(st.sampled_from(DTYPES)),
        "batch_dtype": draw(st.sampled_from(DTYPES)),
        "seed": draw(st.integers(0, 2**31)),
        "batches": draw(st.lists(st.integers(0, 30), min_size=1, max_size=5)),
    }


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=120, deadline=None)
@given(case=sequences())
def test_sequences_equal_the_reference(device: str, case: dict) -> None:
    generator = torch.Generator().manual_seed(case["seed"])
    twin = make_bank(case["map"], case["capacity"], case["feature_dim"], case["storage"])
    bank = BankTensors(*(tensor.to(device, copy=True) for tensor in twin))
    rows, num_labels = len(twin.pushed), len(case["map"])
    for size in case["batches"]:
        labels = torch.randint(num_labels, (size,), generator=generator)
        features = torch.randn(size, case["feature_dim"], generator=generator) * 10
        features[torch.rand(size, generator=generator) < 0.1] = torch.tensor([float("nan"), float("inf"), 1e30])[
            torch.randint(3, (1,), generator=generator)
        ]
        features = features.to(case["batch_dtype"])
        proposal_boxes, gt_boxes = torch.rand(2, size, 4, generator=generator)
        keep = torch.rand(size, generator=generator) < 0.8 if size % 2 else None
        counts = torch.randint(case["capacity"] + 2, (rows,), generator=generator)
        random = torch.randint(4, (rows, case["capacity"]), generator=generator) / 4 if size % 3 else None
        padded_rows = int(torch.randint(rows * case["capacity"] + 2, (1,), generator=generator))

        sampled = (labels, counts, random)
        on_device = tuple(None if tensor is None else tensor.to(device) for tensor in sampled)
        assert_same(ops.sample(bank, *on_device), ops.reference_sample(twin, *sampled))
        assert_same(
            ops.sample_padded(bank, on_device[0], on_device[1], padded_rows, on_device[2]),
            ops.reference_sample_padded(twin, labels, counts, padded_rows, random),
        )
        pushed = (features, proposal_boxes, gt_boxes, labels, keep)
        ops.enqueue(bank, *(None if tensor is None else tensor.to(device) for tensor in pushed))
        ops.reference_enqueue(twin, *pushed)
        assert_same(bank, twin)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_of_many_tasks_equal_the_reference(device: str) -> None:
    """Large enough for several CPU threads, with many more pushes of a category than its bank holds."""
    generator = torch.Generator().manual_seed(0)
    twin = make_bank([0, 1, 2, -1], capacity=5, feature_dim=2048)
    bank = BankTensors(*(tensor.to(device, copy=True) for tensor in twin))
    counts = torch.full((3,), 5)
    for _ in range(10):
        labels = torch.randint(4, (400,), generator=generator)
        rows = (torch.rand(400, 2048, generator=generator), *torch.rand(2, 400, 4, generator=generator), labels)
        ops.enqueue(bank, *(tensor.to(device) for tensor in rows))
        ops.reference_enqueue(twin, *rows)
        assert_same(bank, twin)
        sampled = ops.sample(bank, labels.to(device), counts.to(device))
        assert_same(sampled, ops.reference_sample(twin, labels, counts))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("storage", DTYPES)
@pytest.mark.parametrize("batch_dtype", DTYPES)
def test_storage_rounds_as_torch_does(device: str, storage: torch.dtype, batch_dtype: torch.dtype) -> None:
    """All 2^16 bit patterns of 16-bit formats, and float32 values around every rounding boundary of theirs."""
    if batch_dtype is torch.float32:
        patterns = torch.arange(2**16, dtype=torch.int64) << 16
        neighbours = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFF, 0x1000, 0x1001])
        bits = (patterns[:, None] + neighbours).flatten()
        values = (bits - ((bits >> 31) << 32)).to(torch.int32).view(torch.float32)
    else:
        values = torch.arange(-(2**15), 2**15, dtype=torch.int64).to(torch.int16).view(batch_dtype)
    values = values.masked_fill(~values.to(storage).isfinite(), 0).view(-1, 256)
    bank = make_bank([0, -1], len(values), 256, storage, device)
    labels = torch.zeros(len(values), dtype=torch.int64, device=device)
    boxes = torch.zeros(len(values), 4, device=device)
    ops.enqueue(bank, values.to(device), boxes, boxes, labels)
    integers = torch.int32 if storage is torch.float32 else torch.int16
    assert torch.equal(bank.features[0].cpu().view(integers), values.to(storage).view(integers))


@pytest.mark.parametrize("device", DEVICES)
def test_what_overflows_in_storage_is_kept_out(device: str) -> None:
    """65519 rounds to float16's largest, 65504; 65520 would be infinite."""
    bank = make_bank([0, -1], 4, 1, torch.float16, device)
    rows = make_rows([65519, 65520, -65520, 1], feature_dim=1, device=device)
    ops.enqueue(bank, *rows, torch.zeros(4, dtype=torch.int64, device=device))
    assert bank.features[0, :, 0].tolist() == [65504, 1, 0, 0]
    assert bank.rejected.tolist() == [2]


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_are_not_finite_are_kept_out_and_counted(device: str) -> None:
    bank = make_bank([0, -1], capacity=8, feature_dim=3, device=device)
    features, proposal_boxes, gt_boxes = make_rows([0, 1, 2, 3, 4, 5], feature_dim=3, device=device)
    proposal_boxes, gt_boxes = proposal_boxes.clone(), gt_boxes.clone()
    features[1, 2] = float("nan")
    features[2, 0] = float("-inf")
    proposal_boxes[3, 1] = float("nan")
    gt_boxes[4, 3] = float("inf")
    features[5] = float("nan")  # background: of no concern
    ops.enqueue(bank, features, proposal_boxes, gt_boxes, torch.tensor([0, 0, 0, 0, 0, 1], device=device))
    assert bank.pushed.tolist() == [1]
    assert bank.rejected.tolist() == [4]
    assert bank.features[0, :, 0].tolist() == [0] * 8


@pytest.mark.parametrize("device", DEVICES)
def test_views_with_any_strides_are_read_right(device: str) -> None:
    bank = make_bank([0, 1, -1], capacity=4, feature_dim=3, device=device)
    twin = clone(bank)
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(3, 6, generator=generator).to(device).t()
    boxes = torch.rand(6, 8, generator=generator).to(device)
    labels = torch.tensor([0, 9, 1, 9, 2, 9, 0, 9, 1, 9, 0, 9], device=device)[::2]
    keep = torch.tensor([True, False] * 5 + [False, True], device=device)[::2]
    pushed = (features, boxes[:, ::2], boxes[:, 4:], labels, keep)
    ops.enqueue(bank, *pushed)
    ops.reference_enqueue(twin, *pushed)
    assert_same(bank, twin)
    counts = torch.tensor([3, 0, 1, 0], device=device)[::2]
    random = torch.rand(4, 2, generator=generator).to(device).t()
    assert_same(ops.sample(bank, labels, counts, random), ops.reference_sample(twin, labels, counts, random))


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch_and_empty_bank(device: str) -> None:
    bank = make_bank([-1, -1], capacity=2, feature_dim=3, device=device)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    labels = torch.tensor([0, 1], device=device)
    ops.enqueue(bank, *make_rows([1, 2], feature_dim=3, device=device), labels)
    ops.enqueue(bank, torch.zeros(0, 3, device=device), *torch.zeros(2, 0, 4, device=device), nothing)
    assert ops.sample(bank, labels, nothing).features.shape == (0, 3)
    assert ops.sample(bank, nothing, nothing).labels.dtype == torch.int64
    padded = ops.sample_padded(bank, labels, nothing, 2)
    assert padded.labels.tolist() == [-1, -1] and not padded.valid.any() and not padded.features.any()


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    bank = make_bank([0, -1, 1, -1], capacity=3, feature_dim=4, device=device)
    labels = torch.tensor([0, 2, 2, 3, 1], device=device)
    rows = make_rows([1, 2, 3, 4, 5], feature_dim=4, device=device)
    keep = torch.tensor([True, True, False, True, True], device=device)
    ops.enqueue(bank, *rows, labels)
    read_only = (*bank[:4], labels, bank.category_to_row, torch.tensor([2, 1], device=device))
    random = torch.rand(2, 3, device=device)
    for keep_or_none in (None, keep):
        arguments = (*bank[:5], *rows, labels, bank.category_to_row, keep_or_none)
        torch.library.opcheck(torch.ops.rio_bench.enqueue.default, arguments)
    for random_or_none in (None, random):
        torch.library.opcheck(torch.ops.rio_bench.sample.default, (*read_only, random_or_none))
        torch.library.opcheck(torch.ops.rio_bench.sample_padded.default, (*read_only, 5, random_or_none))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_step_equals_the_eager_one(device: str) -> None:
    """The padded step in one graph, at two batch sizes."""
    bank = make_bank([0, -1, 1, -1], capacity=3, feature_dim=4, device=device)
    twin = clone(bank)
    counts = torch.tensor([2, 2], device=device)

    def step(
        bank: BankTensors, features: Tensor, proposal_boxes: Tensor, gt_boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, ...]:
        replays = ops.sample_padded(bank, labels, counts, 4)
        ops.enqueue(bank, features, proposal_boxes, gt_boxes, labels)
        return tuple(replays)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (5, 7):
        labels = torch.arange(size, device=device) % 4
        rows = make_rows([float(size + i) for i in range(size)], feature_dim=4, device=device)
        assert_same(compiled(bank, *rows, labels), step(twin, *rows, labels))
        assert_same(bank, twin)


@needs_cuda_kernels
def test_waits_for_the_device_at_most_once() -> None:
    bank = make_bank([0, -1, 1, -1], capacity=3, feature_dim=4, device="cuda")
    labels = torch.tensor([0, 2, 2, 3], device="cuda")
    rows = make_rows([1, 2, 3, 4], feature_dim=4, device="cuda")
    counts = torch.tensor([2, 2], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.enqueue(bank, *rows, labels)
        ops.sample_padded(bank, labels, counts, 4)
        with pytest.raises(RuntimeError, match="synchronizing"):
            ops.sample(bank, labels, counts)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda_kernels
def test_captured_graph_replays_the_step() -> None:
    bank = make_bank([0, -1, 1, -1], capacity=3, feature_dim=4, device="cuda")
    twin = clone(bank)
    labels = torch.tensor([0, 2, 2, 3], device="cuda")
    rows = make_rows([1, 2, 3, 4], feature_dim=4, device="cuda")
    counts = torch.tensor([2, 2], device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.sample_padded(bank, labels, counts, 4)
        ops.enqueue(bank, *rows, labels)
    for _ in range(3):
        expected = ops.reference_sample_padded(twin, labels, counts, 4)
        ops.reference_enqueue(twin, *rows, labels)
        graph.replay()
        assert_same(captured, expected)
        assert_same(bank, twin)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_leaves_out_what_is_out_of_range() -> None:
    check_what_is_out_of_range_is_left_out("cuda")


def check_what_is_out_of_range_is_left_out(device: str) -> None:
    bank = make_bank([0, 1, 2, -1], capacity=3, feature_dim=2, device=device)
    bank.category_to_row[1] = 99
    labels = torch.tensor([0, 4, -5, 1, 3, 4, 2, 2], device=device)
    keep = torch.tensor([True] * 5 + [False, True, True], device=device)
    ops.enqueue(bank, *make_rows([1, 2, 3, 4, 5, 6, 7, 8], device=device), labels, keep)
    assert bank.pushed.tolist() == [1, 0, 2] and bank.rejected.tolist() == [3]
    assert ops.sample(bank, labels, torch.tensor([3, 3, -1], device=device)).features[:, 0].tolist() == [1]


BAD_ENQUEUES = {
    "dtype of labels": (
        {"labels": torch.tensor([1, 3, 4], dtype=torch.int32)},
        "enqueue: labels must be Long, not Int",
    ),
    "dtype of features": ({"features": torch.zeros(3, 2).double()}, "features must be float32, .* not Double"),
    "dtype of boxes": ({"gt_boxes": torch.zeros(3, 4).half()}, "gt_boxes must be Float, not Half"),
    "width of features": ({"features": torch.zeros(3, 5)}, r"features must have shape \[3, 2\], not \[3, 5\]"),
    "rows of features": ({"features": torch.zeros(2, 2)}, r"features must have shape \[3, 2\], not \[2, 2\]"),
    "shape of boxes": ({"proposal_boxes": torch.zeros(3, 5)}, r"proposal_boxes must have shape \[3, 4\]"),
    "dimensions of labels": (
        {"labels": torch.zeros(3, 1).long()},
        r"labels must have one dimension, not shape \[3, 1\]",
    ),
    "label above": ({"labels": torch.tensor([1, 3, 5])}, r"labels\[2\] is 5, but category_to_row has 5 entries"),
    "label below": ({"labels": torch.tensor([1, -1, 3])}, r"labels\[1\] is -1"),
    "dtype of keep": ({"keep": torch.ones(3)}, "keep must be Bool, not Float"),
    "shape of keep": ({"keep": torch.ones(2).bool()}, r"keep must have shape \[3\], not \[2\]"),
}


@pytest.mark.parametrize("changes, message", BAD_ENQUEUES.values(), ids=BAD_ENQUEUES)
def test_bad_rows_are_told_and_nothing_is_written(changes: dict, message: str) -> None:
    bank = make_bank(HAND_MAP, capacity=3, feature_dim=2)
    before = clone(bank)
    features, proposal_boxes, gt_boxes = make_rows([1, 2, 3])
    rows = {"features": features, "proposal_boxes": proposal_boxes, "gt_boxes": gt_boxes}
    with pytest.raises(RuntimeError, match=message):
        ops.enqueue(bank, **{**rows, "labels": torch.tensor([1, 3, 4]), **changes})
    assert_same(bank, before)


BAD_BANKS = {
    "capacity 0": ({"features": torch.zeros(2, 0, 2)}, "capacity of the bank must be at least 1, not 0"),
    "dimensions": ({"features": torch.zeros(2, 3)}, r"features_bank must be \[rows, capacity, feature_dim\]"),
    "dtype": ({"features": torch.zeros(2, 3, 2).double()}, "features_bank must be float32, float16 or bfloat16"),
    "not contiguous": ({"features": torch.zeros(2, 2, 3).transpose(1, 2)}, "features_bank must be contiguous"),
    "boxes": ({"gt_boxes": torch.zeros(2, 2, 4)}, r"gt_boxes_bank must have shape \[2, 3, 4\], not \[2, 2, 4\]"),
    "pushed": ({"pushed": torch.zeros(3).long()}, r"pushed must have shape \[2\], not \[3\]"),
    "negative pushed": ({"pushed": torch.tensor([-4, 0])}, r"pushed\[0\] must not be negative, but is -4"),
    "row": (
        {"category_to_row": torch.tensor([-1, 2, -1, 1, -1])},
        r"category_to_row\[1\] is 2, but the bank has 2 rows",
    ),
}


@pytest.mark.parametrize("changes, message", BAD_BANKS.values(), ids=BAD_BANKS)
def test_bad_banks_are_told(changes: dict, message: str) -> None:
    bank = make_bank(HAND_MAP, capacity=3, feature_dim=2)._replace(**changes)
    labels = torch.tensor([1, 3, 4])
    with pytest.raises(RuntimeError, match=message):
        ops.enqueue(bank, *make_rows([1, 2, 3]), labels)
    with pytest.raises(RuntimeError, match=message):
        ops.sample(bank, labels, torch.tensor([1, 1]))


def test_bad_sampling_arguments_are_told() -> None:
    bank = make_bank(HAND_MAP, capacity=3, feature_dim=2)
    labels = torch.tensor([1, 3, 4])
    with pytest.raises(RuntimeError, match=r"counts\[1\] must not be negative, but is -1"):
        ops.sample(bank, labels, torch.tensor([1, -1]))
    with pytest.raises(RuntimeError, match=r"sample: counts must have shape \[2\], not \[3\]"):
        ops.sample(bank, labels, torch.tensor([1, 1, 1]))
    with pytest.raises(RuntimeError, match=r"random must have shape \[2, 3\], not \[2, 2\]"):
        ops.sample(bank, labels, torch.tensor([1, 1]), torch.rand(2, 2))
    with pytest.raises(RuntimeError, match="sample_padded: rows must not be negative, but is -1"):
        ops.sample_padded(bank, labels, torch.tensor([1, 1]), -1)


@needs_cuda_kernels
def test_tensors_on_two_devices_are_told() -> None:
    bank = make_bank(HAND_MAP, capacity=3, feature_dim=2)
    labels = torch.tensor([1, 3, 4])
    with pytest.raises(RuntimeError, match="enqueue: features is on cuda:0, but features_bank is on cpu"):
        features, proposal_boxes, gt_boxes = make_rows([1, 2, 3])
        ops.enqueue(bank, features.cuda(), proposal_boxes, gt_boxes, labels)
    with pytest.raises(RuntimeError, match="sample: labels is on cuda:0, but features_bank is on cpu"):
        ops.sample(bank, labels.cuda(), torch.tensor([1, 1]))


def test_views_of_the_bank_cannot_be_pushed_into_it() -> None:
    bank = make_bank([0, -1], capacity=3, feature_dim=2)
    _, proposal_boxes, gt_boxes = make_rows([1, 2, 3])
    with pytest.raises(RuntimeError, match="must not be views of the bank"):
        ops.enqueue(bank, bank.features[0], proposal_boxes, gt_boxes, torch.zeros(3, dtype=torch.int64))


def test_missing_or_old_extension_says_how_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("no such file")

    old = types.SimpleNamespace(build_information=lambda: {"ops_version": ops.OPS_VERSION - 1})
    monkeypatch.setattr(ops, "_extension", None)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match="no such file.*pip install --no-build-isolation"):
        ops.build_information()
    monkeypatch.setattr(importlib, "import_module", lambda name: old)
    with pytest.raises(UserError, match="ops version 0, but this code needs 1.*pip install"):
        ops.build_information()


WITHOUT_CUDA_KERNELS = """
import json, sys, types
import torch

schemas, cuda = json.loads(sys.argv[1])
for schema, tags in schemas:
    name, arguments = schema.split("(", 1)
    torch.library.define(name, "(" + arguments, tags=tuple(getattr(torch.Tag, tag) for tag in tags))
extension = types.ModuleType("rio_bench._C")
extension.build_information = lambda: {"ops_version": ops.OPS_VERSION, "cuda": cuda}
sys.modules["rio_bench._C"] = extension

from rio_bench import ops

ops.load_extension()
names = [schema.split("(")[0] for schema, _ in schemas]
print([torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA") for name in names])
if not cuda:
    ops._register_plain_kernels("cpu")
    import test_ops

    for test in (
        test_ops.test_hand_computed_case,
        test_ops.test_random_entries_are_those_of_the_smallest_values,
        test_ops.test_rows_that_are_not_finite_are_kept_out_and_counted,
        test_ops.test_empty_batch_and_empty_bank,
        test_ops.check_what_is_out_of_range_is_left_out,
        test_ops.test_opcheck,
        test_ops.test_compiled_step_equals_the_eager_one,
    ):
        test("cpu")
        print(test.__name__)
"""


def run_with_stub_extension(cuda: bool) -> subprocess.CompletedProcess[str]:
    """A process whose extension defines the real schemas but has no kernels, and says whether it has CUDA ones."""
    ops.load_extension()
    overloads = [getattr(torch.ops.rio_bench, name).default for name in ("enqueue", "sample", "sample_padded")]
    schemas = [(str(op._schema), [tag.name for tag in op.tags]) for op in overloads]
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_CUDA_KERNELS, json.dumps([schemas, cuda])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])},
        capture_output=True,
        text=True,
    )


def test_without_cuda_kernels_the_plain_ones_take_their_place() -> None:
    """The plain kernels are tried on CPU tensors, in a process that has no other kernels for them."""
    done = run_with_stub_extension(cuda=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "[True, True, True]" and len(lines) == 8
    warnings = [line for line in done.stderr.splitlines() if "without CUDA kernels" in line]
    assert len(warnings) == 1
    assert "plain torch ones are used" in warnings[0] and "'make clean setup'" in warnings[0]


def test_the_reference_makes_its_tensors_where_the_bank_is() -> None:
    """It runs on CUDA tensors too: with another default device, a tensor made without saying where would lie there."""
    bank = make_bank(HAND_MAP, capacity=3, feature_dim=2, device="cpu")
    labels, counts = torch.tensor([3, 1, 3]), torch.tensor([1, 2])
    rows, random = make_rows([1, 2, 3], device="cpu"), torch.rand(2, 3)
    with torch.device("meta"):
        ops.reference_enqueue(bank, *rows, labels)
        for order in (None, random):
            replays = ops.reference_sample_padded(bank, labels, counts, 3, order)
            assert {tensor.device.type for tensor in (*bank, *replays)} == {"cpu"}
            assert replays.valid.tolist() == [True, True, True]


def test_with_cuda_kernels_nothing_is_put_in_their_place() -> None:
    done = run_with_stub_extension(cuda=True)
    assert (done.returncode, done.stdout) == (0, "[False, False, False]\n"), done.stderr


def test_build_information_fits_this_torch() -> None:
    information = ops.build_information()
    assert information["ops_version"] == ops.OPS_VERSION
    assert information["torch_version"].split("+")[0] == torch.__version__.split("+")[0]
    assert bool(information["architectures"]) == information["cuda"]


@pytest.mark.parametrize("device", DEVICES)
def test_threads_with_banks_of_their_own_and_one_read_by_all(device: str) -> None:
    shared = make_bank([0, -1], capacity=16, feature_dim=64, device=device)
    zeros = torch.zeros(16, dtype=torch.int64, device=device)
    ops.enqueue(shared, *make_rows([float(i) for i in range(16)], feature_dim=64, device=device), zeros)
    expected = ops.reference_sample(shared, zeros, torch.tensor([16], device=device))
    wrong: list[str] = []

    def work(number: int) -> None:
        own = make_bank([0, -1], capacity=16, feature_dim=64, device=device)
        twin = clone(own)
        for step in range(30):
            rows = make_rows([float(number * 1000 + step * 16 + i) for i in range(16)], feature_dim=64, device=device)
            ops.enqueue(own, *rows, zeros)
            ops.reference_enqueue(twin, *rows, zeros)
            read = ops.sample(shared, zeros, torch.tensor([16], device=device))
            if not torch.equal(read.features, expected.features):
                wrong.append(f"thread {number} read wrong features in step {step}")
        if not torch.equal(own.features, twin.features):
            wrong.append(f"thread {number} has a wrong bank")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("device", DEVICES)
def test_more_than_two_to_the_31_elements(device: str) -> None:
    rows, capacity, feature_dim = 4, 1100, 2**19
    bank = make_bank([0, 1, 2, 3, -1], capacity, 1, torch.bfloat16, device)
    # Memory that is never written is never taken on a CPU: of these 4.3 GiB only the slots used below.
    bank = bank._replace(features=torch.empty(rows, capacity, feature_dim, dtype=torch.bfloat16, device=device))
    assert bank.features.numel() > 2**31
    bank.pushed[3] = capacity - 1  # the next push goes to the last slot of all
    bank.features[3, -2:] = 0
    bank.features[2, :2] = 0
    pattern = torch.arange(feature_dim, device=device).remainder(97).to(torch.bfloat16)
    boxes = torch.ones(2, 4, device=device)
    ops.enqueue(bank, torch.stack([pattern, pattern + 1]), boxes, boxes, torch.tensor([3, 2], device=device))
    assert torch.equal(bank.features[3, -1], pattern) and not bank.features[3, -2].any()
    assert torch.equal(bank.features[2, 0], pattern + 1) and not bank.features[2, 1].any()
    replays = ops.sample(bank, torch.tensor([3], device=device), torch.ones(rows, dtype=torch.int64, device=device))
    assert torch.equal(replays.features, pattern.unsqueeze(0))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_soak_of_100_000_steps(device: str) -> None:
    """Every step pushes the step's number: what is sampled must be the last ones, and memory must not grow."""
    bank = make_bank([0, 1, -1], capacity=7, feature_dim=8, device=device)
    counts = torch.tensor([7, 7], device=device)
    boxes = torch.zeros(3, 4, device=device)
    labels = torch.tensor([0, 1, 2], device=device)
    features = torch.zeros(3, 8, device=device)
    memory = []
    for step in range(100_000):
        features.fill_(step % 1024)
        ops.enqueue(bank, features, boxes, boxes, labels)
        if step % 10_000 == 9_999:
            expected = [float((step - i) % 1024) for i in range(7)] * 2
            assert ops.sample(bank, labels, counts).features[:, 0].tolist() == expected
            memory.append(torch.cuda.memory_allocated() if device == "cuda" else resident_memory())
        else:
            ops.sample(bank, labels, counts)
    assert bank.pushed.tolist() == [100_000, 100_000]
    assert memory[-1] - memory[0] < 2**20


def resident_memory() -> int:
    with open("/proc/self/statm") as line:
        return int(line.read().split()[1]) * 4096
