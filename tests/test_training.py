"""Real training on the embedded data set: every strategy, the same numbers twice, and exact resume after SIGKILL."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rio_bench import datasets
from rio_bench.config import Execution, RunConfig
from rio_bench.datasets.frequency import count_frequency
from rio_bench.datasets.lvis import read_split
from rio_bench.detection import checkpoints
from rio_bench.detection.detections import read_batches
from rio_bench.detection.hooks import Stopped
from rio_bench.detection.model import build_model
from rio_bench.detection.recipe import build_cfg
from rio_bench.detection.trainer import train
from rio_bench.engines import worker_command
from rio_bench.errors import UserError
from rio_bench.records import RunFolder, StoredRun
from rio_bench.strategy import registered

# Two pictures seldom hold a rare category: with a bank for every category, each step feeds it.
EVERY_CATEGORY = {"name": "rio", "sampling": "random", "bank_max_images": 10000}


def configuration(**fields) -> RunConfig:
    small = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "recipe": "small", "iterations": 3, "batch_size": 2}
    return RunConfig.model_validate({"strategy": "none", **small, **fields})


def trained(
    config: RunConfig, path: Path, execution: Execution | None = None, **options: Any
) -> dict[str, torch.Tensor]:
    """The state of a model trained in this process."""
    folder = RunFolder(path)
    folder.create()
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
        folder,
        execution=execution,
        **options,
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
    saved = checkpoints.load(RunFolder(tmp_path).final_weights)["model"]
    assert same(saved, state)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["iteration"] == 2
    assert lines[-1]["total_loss"] > 0
    assert list(RunFolder(tmp_path).tensorboard.iterdir())


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
    checkpoints.load_initial_weights(model, RunFolder(tmp_path).final_weights)
    own = model.state_dict()
    assert same(*({n: v for n, v in s.items() if not n.startswith(checkpoints.RESAMPLER)} for s in (base, own)))
    assert pushed(base) > 0
    assert pushed(own) == 0


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_goes_on_from_that_iteration(tmp_path: Path) -> None:
    config = configuration(strategy=EVERY_CATEGORY, iterations=4)
    undisturbed = trained(config, tmp_path / "a")
    answers = iter([False, True])
    with pytest.raises(Stopped):
        trained(config, tmp_path / "b", stop=lambda: next(answers))
    folder = RunFolder(tmp_path / "b")
    assert checkpoints.load(folder.last_checkpoint)["iteration"] == 2
    assert not folder.final_weights.exists()
    assert same(trained(config, tmp_path / "b"), undisturbed)
    assert not folder.last_checkpoint.exists()


@pytest.mark.slow
def test_a_checkpoint_cut_short_costs_no_more_than_its_own_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configuration(strategy=EVERY_CATEGORY, iterations=5)  # a checkpoint every iteration
    undisturbed = trained(config, tmp_path / "a")
    answers = iter([False, False, True])
    with pytest.raises(Stopped):
        trained(config, tmp_path / "b", stop=lambda: next(answers))
    folder = RunFolder(tmp_path / "b")
    whole = folder.last_checkpoint.read_bytes()
    folder.last_checkpoint.write_bytes(whole[: len(whole) // 2])
    with caplog.at_level("INFO"):
        assert same(trained(config, tmp_path / "b"), undisturbed)
    assert f"{folder.last_checkpoint}: cannot be read and is passed over" in caplog.text
    assert "going on from iteration 2" in caplog.text

    folder.final_weights.write_bytes(b"")
    assert same(trained(config, tmp_path / "b"), undisturbed)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    model = torch.nn.Linear(100, 100)
    path = tmp_path / "last.pth"
    checkpoints.save_last(path, model, iteration=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # a write past it fails, as on a full disk
    try:
        with pytest.raises(UserError, match="last.pth: cannot be written: File too large"):
            checkpoints.save_last(path, model, iteration=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    state = checkpoints.load_last(path)
    assert state is not None
    assert state["iteration"] == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_a_torn_checkpoint_never_pushes_out_the_whole_one_before(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    path = tmp_path / "last.pth"
    for iteration in (1, 2):
        checkpoints.save_last(path, model, iteration=iteration)
    path.write_bytes(path.read_bytes()[:100])
    for _ in range(2):  # killed before it could save again
        state = checkpoints.load_last(path)
        assert state is not None
        assert state["iteration"] == 1
    checkpoints.save_last(path, model, iteration=3)
    path.write_bytes(b"")
    state = checkpoints.load_last(path)
    assert state is not None
    assert state["iteration"] == 1


@pytest.mark.slow
def test_evaluations_on_the_way_change_nothing_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    config = configuration(strategy=EVERY_CATEGORY, iterations=7)
    values = iter([{"AP.b": 3.0, "AP.b.r": None}, {"AP.b": 5.0, "AP.b.r": 1.0}, {"AP.b": 4.0, "AP.b.r": 1.0}])
    execution = Execution(evaluate_every=2, keep="best")
    watched = trained(config, tmp_path / "watched", execution, evaluate=lambda: next(values))
    assert same(watched, trained(config, tmp_path / "plain"))
    folder = RunFolder(tmp_path / "watched")
    best = checkpoints.load(folder.best_weights)
    assert (best["iteration"], best["ap"]) == (4, 5.0)
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    measured = {line["iteration"]: line["evaluation/AP.b"] for line in lines if "evaluation/AP.b" in line}
    assert measured[5] == 4.0
    assert not any("evaluation/AP.b.r" in line for line in lines if line["iteration"] == 1)


@pytest.mark.slow
def test_every_checkpoint_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    trained(configuration(iterations=3), tmp_path, Execution(keep="all"))
    names = sorted(file.name for file in RunFolder(tmp_path).checkpoints.iterdir())
    assert names == ["model_0000001.pth", "model_0000002.pth", "model_final.pth"]


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


@pytest.mark.slow
def test_sigterm_makes_a_worker_write_a_checkpoint_and_end(tmp_path: Path) -> None:
    config = configuration(strategy=EVERY_CATEGORY, iterations=1000)
    folder = RunFolder(tmp_path / "stopped")
    prepare(folder, config)
    worker = start_worker(folder)
    deadline = time.monotonic() + 300
    while not folder.metrics_file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == -signal.SIGTERM, folder.log_file.read_text()[-2000:]
    assert checkpoints.load(folder.last_checkpoint)["iteration"] < 200
    assert folder.log_file.read_text().endswith("stopped: its checkpoint is written\n")


@pytest.mark.slow
def test_two_processes_train_and_evaluate_one_run(tmp_path: Path) -> None:
    """Through torch's launcher, with gloo."""
    config = configuration(strategy=EVERY_CATEGORY, iterations=4, batch_size=4)
    folder = RunFolder(tmp_path / "two")
    prepare(folder, config)
    command = worker_command(folder, "cpu", None, processes=2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    worker = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert worker.returncode == 0, worker.stdout[-3000:] + worker.stderr[-3000:]
    record = folder.read_record()
    assert record is not None
    assert record.device.startswith("2 x ")
    detected = [result.image_id for batch in read_batches(folder.detections_file) for result in batch.detections]
    pictures = [
        record["image_id"] for record in read_split(datasets.load(config.dataset).val, skip_empty=False).records
    ]
    assert list(dict.fromkeys(detected)) == [picture for picture in pictures if picture in set(detected)]
    assert set(detected) & set(pictures[: len(pictures) // 2]) and set(detected) & set(pictures[len(pictures) // 2 :])
    assert [file.name for file in folder.path.glob("*detections*")] == [folder.detections_file.name]
