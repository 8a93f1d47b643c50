"""One run on several processes: the same training as one process that averages; and batches of another size."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from typer.testing import CliRunner

from rio_bench import cli, datasets
from rio_bench.config import Experiment, RunConfig
from rio_bench.datasets.frequency import Frequency, count_frequency
from rio_bench.datasets.lvis import read_split
from rio_bench.detection import checkpoints
from rio_bench.detection.model import build_model
from rio_bench.detection.pictures import PositionedSampler, build_loader, mix
from rio_bench.detection.recipe import build_cfg
from rio_bench.detection.trainer import build_optimizer_of, train
from rio_bench.errors import UserError
from rio_bench.plan import make_plan
from rio_bench.records import RunFolder
from rio_bench.scaling import scaled

PROCESSES, ITERATIONS, BATCH = 2, 2, 4
RUN: dict[str, Any] = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": "none", "recipe": "small"}
CONFIG = RunConfig.model_validate(RUN | {"iterations": ITERATIONS, "batch_size": BATCH})


def parts() -> tuple[list[dict], Frequency, CfgNode]:
    split = read_split(datasets.load(CONFIG.dataset).train, skip_empty=True)
    cfg = build_cfg(CONFIG, len(split.categories), "cpu").clone()
    cfg.defrost()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = "SGD", 0.01  # AdamW makes steps of gradients that are rounding errors
    return split.records, count_frequency(split.records, split.categories), cfg


def train_as_one_of_two(rank: int, folder: Path) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    comm.create_local_process_group(PROCESSES)
    records, frequency, cfg = parts()
    model = build_model(CONFIG, cfg, frequency)
    train(CONFIG, cfg, model, records, frequency, RunFolder(folder))
    torch.save(dict(model.named_parameters()), folder / f"parameters{rank}.pth")
    dist.destroy_process_group()


def averaged_over_halves() -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The state after training, and the losses of each iteration, of a plain loop in this process.

    Each half of a batch has a model of its own, for its batch norm's statistics, with the same parameters.
    """
    records, frequency, cfg = parts()
    models = [build_model(CONFIG, cfg, frequency) for _ in range(PROCESSES)]
    optimizer = build_optimizer_of(cfg, models[0])
    schedule = build_lr_scheduler(cfg, optimizer)
    pictures = build_loader(cfg, records, None, CONFIG.seed, 0).dataset
    stream = iter(PositionedSampler(torch.ones(len(records)), CONFIG.seed, 0))
    losses = []
    with EventStorage():
        for iteration in range(ITERATIONS):
            batch = [next(stream) for _ in range(BATCH)]
            for half, model in enumerate(models):
                inputs = [pictures[item] for item in batch[half::PROCESSES]]
                torch.manual_seed(mix(CONFIG.seed, iteration, half))
                model.zero_grad()
                found = model(inputs)
                sum(found.values()).backward()
                losses.append({name: value.item() for name, value in found.items()})
            for own, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
                own.grad = (own.grad + other.grad) / PROCESSES
            nn.utils.clip_grad_norm_(models[0].parameters(), cfg.SOLVER.GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for own, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
                    other.copy_(own)
    halves = zip(losses[::2], losses[1::2], strict=True)
    return models[0].state_dict(), [{name: (a[name] + b[name]) / 2 for name in a} for a, b in halves]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads, and the choice of proposals on the last bit of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_train_as_one_that_averages_the_gradients_of_the_halves(tmp_path: Path) -> None:
    datasets.load(CONFIG.dataset)
    RunFolder(tmp_path).create()
    torch.multiprocessing.spawn(train_as_one_of_two, (tmp_path,), PROCESSES)
    expected, losses = averaged_over_halves()
    state = checkpoints.load(RunFolder(tmp_path).final_weights)["model"]
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-6)
    # the metrics file has the median over the last iterations
    line = json.loads(RunFolder(tmp_path).metrics_file.read_text().splitlines()[-1])
    for name in losses[0]:
        assert line[name] == pytest.approx(statistics.median(loss[name] for loss in losses), rel=1e-5), name
    assert line["total_loss"] == pytest.approx(statistics.median(sum(loss.values()) for loss in losses), rel=1e-5)
    one, other = (torch.load(tmp_path / f"parameters{rank}.pth", weights_only=True) for rank in range(PROCESSES))
    assert all(torch.equal(one[name], other[name]) for name in one)
    records, frequency, cfg = parts()
    start = build_model(CONFIG, cfg, frequency).state_dict()
    assert max(float((state[name] - start[name]).abs().max()) for name in one) > 1e-3  # it has trained


def test_a_loaders_processes_share_the_records_as_bytes() -> None:
    records, _, cfg = parts()
    pictures = build_loader(cfg, records, None, 0, 0).dataset
    assert isinstance(pictures.records, DatasetFromList)
    assert isinstance(pictures.records._lst._lst, torch.Tensor)  # one buffer, without references to count
    assert pictures.records[5] == records[5]


def test_another_batch_size_scales_learning_rate_and_iterations_linearly() -> None:
    published = RunConfig.model_validate(
        {"dataset": "lvis_v0.5", "backbone": "R50-FPN", "strategy": "rio", "iterations": 90_000}
    )
    on_one_gpu = scaled(published, 2)
    assert (on_one_gpu.batch_size, on_one_gpu.learning_rate, on_one_gpu.iterations) == (2, 0.0025, 720_000)
    cfg = build_cfg(on_one_gpu, 5, "cpu")
    assert cfg.SOLVER.STEPS == (480_000, 640_000)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (0.0025, 2)
    assert scaled(published, 16) is published
    back = scaled(on_one_gpu, 16)
    assert (back.batch_size, back.learning_rate, back.iterations) == (16, 0.02, 90_000)


def test_all_runs_of_an_experiment_are_scaled_each_from_its_own() -> None:
    run = RUN | {"iterations": 400, "batch_size": 8}
    experiment = Experiment(
        name="x", run=run, grid={"learning_rate": [0.004, None]}, warm_start={"iterations": 100, "learning_rate": 0.008}
    )
    assert [cell.batch_size for cell in experiment.cells] == [8, 8]  # remembered by the experiment
    cells = experiment.at_batch_size(2).cells
    assert [(cell.batch_size, cell.learning_rate, cell.iterations) for cell in cells] == [
        (2, 0.001, 1600),
        (2, 0.00025, 1600),  # the recipe's 0.001
    ]
    bases = [cell.warm_start for cell in cells if cell.warm_start]
    assert [(base.batch_size, base.learning_rate, base.iterations) for base in bases] == [(2, 0.002, 400)] * 2
    assert len({run.identity for run in make_plan(experiment.at_batch_size(2)).runs}) == 3
    assert not {run.identity for run in make_plan(experiment.at_batch_size(2)).runs} & {
        run.identity for run in make_plan(experiment).runs
    }


def test_a_searchs_trials_are_scaled_too() -> None:
    space = {"learning_rate": {"low": 0.001, "high": 0.01}}
    experiment = Experiment.model_validate(
        {
            "name": "x",
            "run": RUN | {"iterations": 400, "batch_size": 8},
            "search": {"trials": 2, "objectives": ["AP.b"], "space": space},
        }
    )
    trial = experiment.at_batch_size(4).trial({"learning_rate": 0.004})
    assert (trial.batch_size, trial.learning_rate, trial.iterations) == (4, 0.002, 800)


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    experiment = Experiment.model_validate(
        {"name": "x", "run": RUN | {"iterations": 4, "batch_size": 8}, "execution": {"gpus_per_run": 3}}
    )
    with pytest.raises(UserError, match="execution.gpus_per_run: 3 GPUs cannot share a batch of 8 images evenly"):
        make_plan(experiment)
    assert make_plan(experiment.at_batch_size(6)).runs


def test_the_command_line_says_what_it_scales(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps({"run": RUN | {"iterations": 400, "batch_size": 8}}))
    arguments = ["run", str(file), "--dry-run", "--results", str(tmp_path)]
    result = CliRunner().invoke(cli.app, [*arguments, "--batch-size", "2", "--gpus", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(
        "batches of 2 instead of 8: learning rates times 0.25, iterations and warm-up times 4 (linear scaling), as"
        " 0.001 -> 0.00025 and 400 -> 1,600\n"
    )
    assert "batches" not in CliRunner().invoke(cli.app, [*arguments, "--batch-size", "8"]).output
    uneven = CliRunner().invoke(cli.app, [*arguments, "--gpus", "3"])
    assert isinstance(uneven.exception, UserError)
