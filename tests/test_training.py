"""Real training on the embedded data set: every strategy, the same numbers twice, and exact resume after SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rio_bench import datasets
from rio_bench.config import RunConfig
from rio_bench.datasets.frequency import count_frequency
from rio_bench.datasets.lvis import read_split
from rio_bench.detection import checkpoints
from rio_bench.detection.model import build_model
from rio_bench.detection.recipe import build_cfg
from rio_bench.detection.trainer import PositionedSampler, check_repeat_factors, train
from rio_bench.errors import UserError
from rio_bench.records import RunFolder, StoredRun
from rio_bench.strategy import registered

# Two pictures seldom hold a rare category: with a bank for every category, each step feeds it.
EVERY_CATEGORY = {"name": "rio", "sampling": "random", "bank_max_images": 10000}


def configuration(**fields) -> RunConfig:
    small = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "recipe": "small", "iterations": 3, "batch_size": 2}
    return RunConfig.model_validate({"strategy": "none", **small, **fields})


def trained(config: RunConfig, folder: Path, initial_weights: Path | None = None) -> dict[str, torch.Tensor]:
    """The state of a model trained in this process."""
    folder.mkdir(exist_ok=True)
    split = read_split(datasets.load(config.dataset).train, skip_empty=True)
    frequency = count_frequency(split.records, split.categories)
    cfg = build_cfg(config, len(split.categories), "cpu")
    model = build_model(config, cfg, frequency)
    train(
        config,
        cfg,
        model,
        split.records,
        frequency,
        last_checkpoint=folder / "last.pth",
        final_weights=folder / "model_final.pth",
        metrics_file=folder / "metrics.jsonl",
        initial_weights=initial_weights,
    )
    return model.state_dict()


def pushed(state: dict[str, torch.Tensor]) -> int:
    """Rows ever pushed to the bank in a model's state."""
    [count] = [value for name, value in state.items() if name.endswith("pushed")]
    return int(count.sum())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(registered()))
def test_every_strategy_trains_and_its_state_is_in_the_checkpoint(name: str, tmp_path: Path) -> None:
    state = trained(configuration(strategy=name), tmp_path)
    saved = checkpoints.load(tmp_path / "model_final.pth")["model"]
    assert same(saved, state)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["iteration"] == 2
    assert lines[-1]["total_loss"] > 0


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    config = configuration(strategy=EVERY_CATEGORY, iterations=4)
    once, again = trained(config, tmp_path / "a"), trained(config, tmp_path / "b")
    assert same(once, again)
    assert pushed(once) > 0
    other = trained(configuration(strategy=EVERY_CATEGORY, iterations=4, seed=1), tmp_path / "c")
    assert not same(once, other)


def test_initial_weights_do_not_depend_on_the_strategy() -> None:
    split = read_split(datasets.load("glyphs-mini").train, skip_empty=True)
    frequency = count_frequency(split.records, split.categories)
    states = []
    for strategy in ("none", "rio"):
        config = configuration(strategy=strategy)
        model = build_model(config, build_cfg(config, len(split.categories), "cpu"), frequency)
        states.append({n: v for n, v in model.state_dict().items() if not n.startswith(checkpoints.RESAMPLER)})
    assert same(*states)


@pytest.mark.slow
def test_a_run_starts_from_its_base_runs_weights_with_an_empty_bank(tmp_path: Path) -> None:
    config = configuration(strategy=EVERY_CATEGORY, iterations=2)
    base = trained(config, tmp_path)
    split = read_split(datasets.load(config.dataset).train, skip_empty=True)
    frequency = count_frequency(split.records, split.categories)
    model = build_model(config, build_cfg(config, len(split.categories), "cpu"), frequency)
    checkpoints.load_initial_weights(model, tmp_path / "model_final.pth")
    own = model.state_dict()
    assert same(*({n: v for n, v in s.items() if not n.startswith(checkpoints.RESAMPLER)} for s in (base, own)))
    assert pushed(base) > 0
    assert pushed(own) == 0


def test_the_stream_of_pictures_goes_on_from_any_position() -> None:
    factors = torch.tensor([1.0, 2.5, 1.0, 3.3])

    def stream(start: int, length: int) -> list[tuple[int, int]]:
        iterator = iter(PositionedSampler(factors, seed=5, first_position=start))
        return [next(iterator) for _ in range(length)]

    whole = stream(0, 60)
    assert whole[17:] == stream(17, 43)
    assert [position for position, _ in whole] == list(range(60))
    shown = [sum(picture == index for _, picture in stream(0, 8000)) for index in range(4)]
    per_epoch = [count / 8000 * float(factors.sum()) for count in shown]
    assert per_epoch == pytest.approx(factors.tolist(), rel=0.05)


@pytest.mark.parametrize(
    ("factors", "got"),
    [
        (torch.ones(3), r"got torch.float32 \[3\]"),
        (torch.ones(4, dtype=torch.float64), "got torch.float64"),
        (torch.tensor([1.0, float("nan"), 0.5, 2.0]), "but 2 are not"),
    ],
)
def test_repeat_factors_against_the_contract_are_refused(factors: torch.Tensor, got: str) -> None:
    check_repeat_factors(torch.tensor([1.0, 2.5, 1.0, 3.0]), 4)
    with pytest.raises(UserError, match=r"image_repeat_factors: expected float32 \[4\], finite and at least 1.*" + got):
        check_repeat_factors(factors, 4)


def prepare(folder: RunFolder, config: RunConfig) -> None:
    folder.create()
    stored = config.model_dump(mode="json", exclude_defaults=True)
    run = {"name": folder.name, "identity": "0" * 16, "experiment": "test", "method": "rio", "config": stored}
    folder.write_run(StoredRun(**run, is_base=False, after=None))


def start_worker(folder: RunFolder) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rio_bench.worker", str(folder.path), "--device", "cpu"]
    return subprocess.Popen(command, env=environment, stdout=folder.log_file.open("ab"), stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bit_for_bit_as_an_undisturbed_one(tmp_path: Path) -> None:
    # 25 iterations make a checkpoint every 5.
    config = configuration(strategy=EVERY_CATEGORY, iterations=25)
    undisturbed, killed = RunFolder(tmp_path / "undisturbed"), RunFolder(tmp_path / "killed")
    for folder in (undisturbed, killed):
        prepare(folder, config)
    assert start_worker(undisturbed).wait() == 0, undisturbed.log_file.read_text()[-2000:]

    worker = start_worker(killed)
    deadline = time.monotonic() + 300
    while not killed.last_checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    assert killed.read_record() is None
    assert not killed.final_weights.exists()

    assert start_worker(killed).wait() == 0, killed.log_file.read_text()[-2000:]
    assert "going on from iteration" in killed.log_file.read_text()
    weights = [checkpoints.load(folder.final_weights)["model"] for folder in (undisturbed, killed)]
    assert same(*weights)
    records = [folder.read_record() for folder in (undisturbed, killed)]
    assert records[0] is not None and records[1] is not None
    assert records[0].metrics == records[1].metrics
