"""The object level of a training step: sample, push, append; its options; checkpoints; two processes."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rio_bench.bank import FeatureBank, ObjectReplay, first_of_each_object, rows_of_categories
from rio_bench.errors import UserError
from rio_bench.strategy import RoIBatch

# Of categories 0, 1, 2 the last two are banked, in rows 0 and 1; background is 3.
BANK_CATEGORIES = torch.tensor([False, True, True])


def make_batch(labels: list[int], first_value: float = 0.0, gt_index: list[int] | None = None) -> RoIBatch:
    """Rows that can be told apart: row n holds first_value + n everywhere, gt_boxes half more."""
    values = torch.arange(len(labels), dtype=torch.float32).add(first_value).unsqueeze(1)
    return RoIBatch(
        features=values.repeat(1, 2).requires_grad_(),
        labels=torch.tensor(labels, dtype=torch.int64),
        proposal_boxes=values.repeat(1, 4),
        gt_boxes=values.repeat(1, 4) + 0.5,
        gt_index=torch.arange(len(labels)) if gt_index is None else torch.tensor(gt_index),
    )


def replayed(before: RoIBatch, after: RoIBatch) -> list[float]:
    return after.features[len(before.labels) :, 0].tolist()


def test_hand_computed_steps() -> None:
    """Sample before push, first in first out, capacity 3, two samples a category."""
    replay = ObjectReplay(BANK_CATEGORIES, 2, counts=2, capacity=3)
    first = make_batch([1, 0, 1, 2, 3], first_value=10)
    assert replayed(first, replay(first)) == []  # a first sighting replays nothing

    second = make_batch([1, 1, 3], first_value=20)
    after = replay(second)
    assert replayed(second, after) == [12, 10]  # the newest first; category 2 is not in this batch
    assert after.labels.tolist() == [1, 1, 3, 1, 1]
    assert after.proposal_boxes[3:, 0].tolist() == [12, 10]
    assert after.gt_boxes[3:, 0].tolist() == [12.5, 10.5]
    assert after.gt_index.tolist() == [0, 1, 2, -1, -1]

    third = make_batch([2, 1], first_value=30)
    assert replayed(third, replay(third)) == [21, 20, 13]  # category 1: 12, 20, 21 are held, 10 was dropped
    assert sorted(replay.bank.features[0, :, 0].tolist()) == [20, 21, 31]


def test_replays_carry_no_gradient_and_the_batch_keeps_its_own() -> None:
    replay = ObjectReplay(BANK_CATEGORIES, 2, counts=5)
    first, second = make_batch([1]), make_batch([1])
    replay(first)
    replay(second).features.sum().backward()
    assert first.features.grad is None
    assert torch.equal(second.features.grad, torch.ones(1, 2))


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_replays_have_the_dtype_of_the_batch(storage: str) -> None:
    replay = ObjectReplay(BANK_CATEGORIES, 2, counts=5, storage=storage)
    batch = make_batch([1], first_value=1.0009765625)  # a neighbour of 1 in float16, 1 in bfloat16
    replay(batch)
    assert replay.bank.features.dtype is getattr(torch, storage)
    after = replay(batch)
    assert after.features.dtype is torch.float32
    assert replayed(batch, after) == [1.0 if storage == "bfloat16" else 1.0009765625]


def test_mixed_precision_batches_stay_in_their_dtype() -> None:
    replay = ObjectReplay(BANK_CATEGORIES, 2, counts=5, storage="float32")
    batch = make_batch([1])
    half = dataclasses.replace(batch, features=batch.features.half())
    replay(half)
    assert replay(half).features.dtype is torch.float16


def test_counts_may_depend_on_the_batch() -> None:
    """As many replays as the category has RoIs in the batch, by a module that moves with the bank."""

    class AsPresent(nn.Module):
        def forward(self, labels: Tensor) -> Tensor:
            return torch.bincount(labels, minlength=4)[1:3]

    replay = ObjectReplay(BANK_CATEGORIES, 2, counts=AsPresent())
    replay(make_batch([1, 1, 1, 2, 2]))
    batch = make_batch([2, 1, 1], first_value=10)
    assert replayed(batch, replay(batch)) == [2, 1, 4]


def test_random_sampling_draws_without_replacement_from_torchs_generator() -> None:
    replay = ObjectReplay(BANK_CATEGORIES, 2, counts=4, capacity=6, sampling="random")
    replay(make_batch([1] * 6))
    background = make_batch([3])
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        chosen = replay.bank.sample(torch.tensor([1]), 4, torch.rand(2, 6)).features[:, 0].tolist()
        assert len(set(chosen)) == 4
        torch.manual_seed(seed)
        batch = make_batch([1], first_value=0.0)
        replay_again = ObjectReplay(BANK_CATEGORIES, 2, counts=4, capacity=6, sampling="random")
        replay_again.load_state_dict(replay.state_dict())
        assert replayed(batch, replay_again(batch)) == chosen
        seen.update(chosen)
    assert seen == {0, 1, 2, 3, 4, 5}
    assert replayed(background, replay(background)) == []


def test_max_pushes_per_object_keeps_one_object_from_flushing_the_bank() -> None:
    replay = ObjectReplay(BANK_CATEGORIES, 2, counts=9, max_pushes_per_object=2)
    replay(make_batch([1, 1, 2, 1, 1, 1, 3], gt_index=[7, 4, 0, 7, 7, 4, -1]))
    assert replay.bank.pushed.tolist() == [4, 1]
    assert replay.bank.features[0, :4, 0].tolist() == [0, 1, 3, 5]  # 4, the third of object 7, stays out


@given(st.lists(st.integers(-1, 4), max_size=20), st.integers(1, 4))
def test_first_of_each_object_equals_counting(gt_index: list[int], most: int) -> None:
    expected = [gt_index[:n].count(value) < most for n, value in enumerate(gt_index)]
    assert first_of_each_object(torch.tensor(gt_index, dtype=torch.int64), most).tolist() == expected


def test_checkpoint_holds_the_bank(tmp_path: Path) -> None:
    replay = ObjectReplay(BANK_CATEGORIES, 2, counts=3, capacity=4, storage="bfloat16")
    replay(make_batch([1, 2, 1, 1, 1, 1]))
    torch.save(replay.state_dict(), tmp_path / "checkpoint.pth")
    resumed = ObjectReplay(BANK_CATEGORIES, 2, counts=3, capacity=4, storage="bfloat16")
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pth"))
    batch = make_batch([2, 1], first_value=10)
    assert replayed(batch, resumed(batch)) == replayed(batch, replay(batch)) == [5, 4, 3, 1]
    for name, buffer in replay.state_dict().items():
        assert torch.equal(buffer, resumed.state_dict()[name])


def test_checkpoint_of_another_capacity_is_refused() -> None:
    state = ObjectReplay(BANK_CATEGORIES, 2, counts=3, capacity=4).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for bank.features"):
        ObjectReplay(BANK_CATEGORIES, 2, counts=3, capacity=5).load_state_dict(state)


def test_memory_is_counted_and_told_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rio_bench.bank"):
        bank = ObjectReplay(torch.tensor([True] * 3 + [False]), 1024, counts=20, capacity=60, storage="float16").bank
    assert bank.num_bytes == 3 * 60 * (1024 * 2 + 2 * 4 * 4) + 3 * 8 + 8 + 5 * 8
    assert "3 categories x 60 RoIs x 1024 float16: 0.4 MiB" in caplog.text


def test_rows_that_are_not_finite_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    replay = ObjectReplay(BANK_CATEGORIES, 2, counts=3)
    bad = make_batch([1, 1], first_value=float("nan"))
    for _ in range(3):
        replay(bad)
    assert replay.bank.rejected.tolist() == [6]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [warning.getMessage().split(" were")[0] for warning in warnings] == ["2 RoIs"]


def test_categories_without_a_bank_are_never_replayed() -> None:
    replay = ObjectReplay(torch.tensor([False, False, False]), 2, counts=3)
    batch = make_batch([0, 1, 2, 3])
    replay(batch)
    assert replayed(batch, replay(batch)) == []


def test_rows_of_categories() -> None:
    assert rows_of_categories(torch.tensor([True, False, True])).tolist() == [0, -1, 1, -1]


BAD_SETTINGS = [
    ({"capacity": 0}, "bank capacity must be at least 1, not 0"),
    ({"counts": -1}, "number of replays must not be negative, but is -1"),
    ({"sampling": "newst"}, "unknown sampling 'newst' .did you mean 'newest'"),
    ({"storage": "float8"}, "unknown storage 'float8'"),
    ({"max_pushes_per_object": 0}, "max_pushes_per_object must be at least 1, not 0"),
]


@pytest.mark.parametrize("changes, message", BAD_SETTINGS)
def test_bad_settings_are_told(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ObjectReplay(BANK_CATEGORIES, 2, **{"counts": 3, **changes})


def test_bad_counts_and_storage_of_a_bank_are_told() -> None:
    bank = FeatureBank(rows_of_categories(BANK_CATEGORIES), 3, 2)
    with pytest.raises(UserError, match="number of replays must not be negative, but is -2"):
        bank.sample(torch.tensor([1]), -2)
    with pytest.raises(UserError, match="bank storage must be one of float32, float16, bfloat16, not torch.int8"):
        FeatureBank(rows_of_categories(BANK_CATEGORIES), 3, 2, torch.int8)


def test_padded_sampling_through_the_module() -> None:
    bank = FeatureBank(rows_of_categories(BANK_CATEGORIES), 3, 2)
    batch = make_batch([1, 2, 1])
    bank.enqueue(batch.features, batch.proposal_boxes, batch.gt_boxes, batch.labels)
    padded = bank.sample_padded(batch.labels, 1, rows=3)
    assert padded.valid.tolist() == [True, True, False]
    assert padded.features[:, 0].tolist() == [2, 1, 0]


# Labels of two processes in three steps; the second brings fewer rows, once none that is banked.
RANK_LABELS = [[[1, 3, 2, 1], [0, 1], [2, 2, 2]], [[2], [3, 0], [1, 1, 3]]]


PROCESS_CASES = [(True, "float32"), (True, "bfloat16"), (False, "float32")]


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for shared, storage in PROCESS_CASES:
        replay = ObjectReplay(BANK_CATEGORIES, 2, counts=9, capacity=4, storage=storage, shared=shared)
        for step, labels in enumerate(RANK_LABELS[rank]):
            replay(make_batch(labels, first_value=100.0 * rank + 10 * step))
        torch.save(replay.state_dict(), folder / f"{shared}-{storage}-{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def process_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes stored after three steps of each case."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(run_rank, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("shared, storage", PROCESS_CASES)
def test_two_processes(shared: bool, storage: str, process_folder: Path) -> None:
    states = [torch.load(process_folder / f"{shared}-{storage}-{rank}.pth") for rank in range(2)]
    for rank, state in enumerate(states):
        # What one process makes of the same rows: all of them in the order of the ranks, or its own alone.
        alone = ObjectReplay(BANK_CATEGORIES, 2, counts=9, capacity=4, storage=storage)
        for step in range(3):
            for source in (0, 1) if shared else (rank,):
                alone(make_batch(RANK_LABELS[source][step], first_value=100.0 * source + 10 * step))
        for name, buffer in alone.state_dict().items():
            assert torch.equal(buffer, state[name]), name
    same = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert same == shared
