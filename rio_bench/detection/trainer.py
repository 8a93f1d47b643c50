"""Training of one run: Detectron2's training loop over our own stream of pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer, hooks
from detectron2.solver import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rio_bench.config import Execution, RunConfig
from rio_bench.datasets.frequency import Frequency
from rio_bench.detection import checkpoints
from rio_bench.detection.hooks import (
    METRICS_PERIOD,
    BankFill,
    Checkpoint,
    ClipGradients,
    Evaluate,
    EvaluateNowAndThen,
    SeedEachIteration,
    Stopwatch,
)
from rio_bench.detection.pictures import build_loader, check_repeat_factors
from rio_bench.records import RunFolder

CHECKPOINT_PERIOD = 1000  # iterations; a short run makes five checkpoints

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    cfg: CfgNode,
    model: nn.Module,
    records: list[dict],
    frequency: Frequency,
    folder: RunFolder,
    *,
    execution: Execution | None = None,
    initial_weights: Path | None = None,
    evaluate: Evaluate | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> float:
    """Train ``model`` in place for ``config.iterations`` iterations; the seconds it took, over all attempts.

    What is drawn at random in an iteration depends on the seed and the iteration alone, so a run that goes on from a
    checkpoint makes the same draws as one that was never interrupted. With several processes (torch.distributed is
    initialised), each takes its part of every batch.

    Args:
        records: training pictures, Detectron2's standard records.
        frequency: counts over the same records, in the same order.
        folder: holds the checkpoints, gone on from where there is one; the final weights, written at the end and read
            instead of training where they exist; the metrics file, which gets a line every ten iterations.
        execution: when to evaluate and which weights to keep.
        initial_weights: the final weights of the base run.
        evaluate: called every ``execution.evaluate_every`` iterations; the values of the tables' columns.
        stop: asked after each iteration whether to write a checkpoint and stop.

    Raises:
        FloatingPointError: the loss is not finite.
        Stopped: because ``stop`` said so.
    """
    execution = execution or Execution()
    finished = checkpoints.load_if_whole(folder.final_weights)
    if finished is not None:
        model.load_state_dict(finished["model"])
        return finished["seconds"]
    if initial_weights is not None:
        checkpoints.load_initial_weights(model, initial_weights)
    optimizer = build_optimizer_of(cfg, model)
    schedule = build_lr_scheduler(cfg, optimizer)
    mixed_precision = config.mixed_precision and cfg.MODEL.DEVICE.startswith("cuda")
    trainer = (AMPTrainer if mixed_precision else SimpleTrainer)(over_processes(model, cfg), None, optimizer)
    stopwatch = Stopwatch()
    evaluation = None
    if evaluate is not None and execution.evaluate_every is not None:
        best = folder.best_weights if execution.keep == "best" else None
        evaluation = EvaluateNowAndThen(model, evaluate, execution.evaluate_every, best)
    start = resume(trainer, model, schedule, stopwatch, evaluation, folder.last_checkpoint)
    factors = config.strategy.image_repeat_factors(frequency)
    if factors is not None:
        check_repeat_factors(factors, len(records))
    trainer.data_loader = build_loader(cfg, records, factors, config.seed, start)
    checkpoint = Checkpoint(
        model,
        folder.last_checkpoint,
        schedule,
        stopwatch,
        max(1, min(CHECKPOINT_PERIOD, config.iterations // 5)),
        evaluation,
        stop,
        folder.checkpoints if execution.keep == "all" else None,
    )
    trainer.register_hooks(
        [
            SeedEachIteration(config.seed),
            ClipGradients(cfg.SOLVER.GRADIENT_NORM),
            hooks.IterationTimer(),
            hooks.LRScheduler(optimizer, schedule),
            BankFill(),
            *([evaluation] if evaluation else []),
            *([hooks.PeriodicWriter(metrics_writers(folder, start), METRICS_PERIOD)] if comm.is_main_process() else []),
            checkpoint,  # last: what the others measured of its iteration is written
        ]
    )
    trainer.train(start, config.iterations)
    seconds = stopwatch.seconds()
    if comm.is_main_process():
        checkpoints.save(folder.final_weights, model, seconds=seconds)
        checkpoints.remove_last(folder.last_checkpoint)
    comm.synchronize()
    return seconds


def over_processes(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """The model itself, or with several processes the one that averages their gradients."""
    if comm.get_world_size() == 1:
        return model
    devices = [torch.cuda.current_device()] if cfg.MODEL.DEVICE.startswith("cuda") else None
    # Broadcast buffers would replace the banks of the other processes by rank 0's.
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def metrics_writers(folder: RunFolder, start: int) -> list[EventWriter]:
    """The metrics file, and the same curves as TensorBoard events."""
    events = TensorboardXWriter(str(folder.tensorboard), purge_step=start)
    return [JSONWriter(str(folder.metrics_file)), events]


def resume(
    trainer: SimpleTrainer,
    model: nn.Module,
    schedule: Any,
    stopwatch: Stopwatch,
    evaluation: EvaluateNowAndThen | None,
    path: Path,
) -> int:
    """Restore what ``Checkpoint`` saved, where it did; the iteration to go on with."""
    state = checkpoints.load_last(path)
    if state is None:
        return 0
    model.load_state_dict(state["model"])
    checkpoints.load_resampler_state(model, state["banks"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if "grad_scaler" in state:
        trainer.grad_scaler.load_state_dict(state["grad_scaler"])
    if evaluation is not None and "best_ap" in state:
        evaluation.best_ap = state["best_ap"]
    stopwatch.before = state["seconds"]
    logger.info("going on from iteration %d (%s)", state["iteration"], path)
    return state["iteration"]


def build_optimizer_of(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD, or AdamW over the same parameter groups, as the recipe says."""
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_optimizer(cfg, model)
    parameters = get_default_optimizer_params(
        model, base_lr=cfg.SOLVER.BASE_LR, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM
    )
    return torch.optim.AdamW(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
