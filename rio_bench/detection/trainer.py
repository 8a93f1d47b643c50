"""Training of one run: Detectron2's training loop over our own stream of pictures."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, hooks
from detectron2.solver import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from rio_bench.config import RunConfig
from rio_bench.datasets.frequency import Frequency
from rio_bench.detection import checkpoints
from rio_bench.errors import UserError

METRICS_PERIOD = 10  # iterations between two lines of the metrics file
CHECKPOINT_PERIOD = 1000  # iterations; a short run makes five checkpoints

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    cfg: CfgNode,
    model: nn.Module,
    records: list[dict],
    frequency: Frequency,
    *,
    last_checkpoint: Path,
    final_weights: Path,
    metrics_file: Path,
    initial_weights: Path | None = None,
) -> float:
    """Train ``model`` in place for ``config.iterations`` iterations; the seconds it took, over all attempts.

    What is drawn at random in an iteration depends on the seed and the iteration alone, so a run that goes on from a
    checkpoint makes the same draws as one that was never interrupted.

    Args:
        records: training pictures, Detectron2's standard records.
        frequency: counts over the same records, in the same order.
        last_checkpoint: written now and then while training goes on, and gone on from where it exists.
        final_weights: written at the end; where it exists, the model is read from it and not trained.
        metrics_file: gets a JSON line every ten iterations.
        initial_weights: the final weights of the base run.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    if final_weights.exists():
        state = checkpoints.load(final_weights)
        model.load_state_dict(state["model"])
        return state["seconds"]
    if initial_weights is not None:
        checkpoints.load_initial_weights(model, initial_weights)
    optimizer = build_optimizer_of(cfg, model)
    schedule = build_lr_scheduler(cfg, optimizer)
    mixed_precision = config.mixed_precision and cfg.MODEL.DEVICE.startswith("cuda")
    trainer = (AMPTrainer if mixed_precision else SimpleTrainer)(model, None, optimizer)
    stopwatch = Stopwatch()
    start = resume(trainer, model, schedule, stopwatch, last_checkpoint) if last_checkpoint.exists() else 0
    factors = config.strategy.image_repeat_factors(frequency)
    if factors is not None:
        check_repeat_factors(factors, len(records))
    trainer.data_loader = build_loader(cfg, records, factors, config.seed, start)
    trainer.register_hooks(
        [
            SeedEachIteration(config.seed),
            ClipGradients(cfg.SOLVER.GRADIENT_NORM),
            hooks.IterationTimer(),
            hooks.LRScheduler(optimizer, schedule),
            Checkpoint(last_checkpoint, schedule, stopwatch, max(1, min(CHECKPOINT_PERIOD, config.iterations // 5))),
            hooks.PeriodicWriter([JSONWriter(str(metrics_file))], period=METRICS_PERIOD),
        ]
    )
    trainer.train(start, config.iterations)
    seconds = stopwatch.seconds()
    checkpoints.save(final_weights, model, seconds=seconds)
    last_checkpoint.unlink(missing_ok=True)
    return seconds


def check_repeat_factors(factors: Tensor, num_images: int) -> None:
    """Raise UserError where a strategy's repeat factors are not what its contract says: training would still run."""
    wanted = f"expected float32 [{num_images}], finite and at least 1"
    if factors.dtype != torch.float32 or factors.shape != (num_images,):
        raise UserError(f"image_repeat_factors: {wanted}, got {factors.dtype} {list(factors.shape)}")
    wrong = int((~(factors.isfinite() & (factors >= 1))).sum())
    if wrong:
        raise UserError(f"image_repeat_factors: {wanted}, but {wrong} are not")


class Stopwatch:
    """Seconds of training, those of earlier attempts included."""

    def __init__(self) -> None:
        self.before, self.started = 0.0, time.monotonic()

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started


def resume(trainer: SimpleTrainer, model: nn.Module, schedule: Any, stopwatch: Stopwatch, path: Path) -> int:
    """Restore what ``Checkpoint`` saved; the iteration to go on with."""
    state = checkpoints.load(path)
    model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if "grad_scaler" in state:
        trainer.grad_scaler.load_state_dict(state["grad_scaler"])
    stopwatch.before = state["seconds"]
    logger.info("going on from iteration %d (%s)", state["iteration"], path)
    return state["iteration"]


class SeedEachIteration(HookBase):
    """Seed torch with (seed, iteration) before each step: proposals and replays are drawn from it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        torch.manual_seed(mix(self.seed, self.trainer.iter, comm.get_rank()))


class ClipGradients(HookBase):
    """Scale the gradients of the whole model down to ``norm`` where theirs is larger; None: leave them."""

    def __init__(self, norm: float | None) -> None:
        self.norm = norm

    def after_backward(self) -> None:
        if self.norm is None:
            return
        if isinstance(self.trainer, AMPTrainer):
            self.trainer.grad_scaler.unscale_(self.trainer.optimizer)
        nn.utils.clip_grad_norm_(self.trainer.model.parameters(), self.norm)


class Checkpoint(HookBase):
    """Save all that the rest of the run depends on, every ``period`` iterations."""

    def __init__(self, path: Path, schedule: Any, stopwatch: Stopwatch, period: int) -> None:
        self.path, self.schedule, self.stopwatch, self.period = path, schedule, stopwatch, period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 and done < self.trainer.max_iter and comm.is_main_process():
            trainer = self.trainer
            state = {"optimizer": trainer.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
            if isinstance(trainer, AMPTrainer):
                state["grad_scaler"] = trainer.grad_scaler.state_dict()
            checkpoints.save(self.path, trainer.model, iteration=done, seconds=self.stopwatch.seconds(), **state)


def build_optimizer_of(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD, or AdamW over the same parameter groups, as the recipe says."""
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_optimizer(cfg, model)
    parameters = get_default_optimizer_params(
        model, base_lr=cfg.SOLVER.BASE_LR, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM
    )
    return torch.optim.AdamW(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


class PositionedSampler(Sampler):
    """The stream of pictures from a position on, as (position, picture) pairs: a resumed run goes on where it stopped.

    Pictures follow Detectron2's repeat factor sampler (stochastic rounding anew each epoch; LVIS, appendix B.2), with
    factors of one where the strategy gives none. Position p is the p-th picture of the run, all processes together.
    """

    def __init__(self, repeat_factors: Tensor, seed: int, first_position: int) -> None:
        self.sampler = RepeatFactorTrainingSampler(repeat_factors, seed=seed)
        self.first_position = first_position

    def __iter__(self) -> Iterator[tuple[int, int]]:
        stream = enumerate(self.sampler._infinite_indices())
        return itertools.islice(stream, self.first_position + comm.get_rank(), None, comm.get_world_size())


class AugmentedPictures(Dataset):
    """Pictures read and augmented by Detectron2's mapper, a function of the seed and the position alone."""

    def __init__(self, records: list[dict], mapper: DatasetMapper, seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        position, picture = item
        draw = mix(self.seed, position)
        np.random.seed(draw % 2**32)
        random.seed(draw)
        return self.mapper(self.records[picture])


def build_loader(cfg: CfgNode, records: list[dict], factors: Tensor | None, seed: int, start: int) -> DataLoader:
    """Batches (lists of Detectron2's input dicts) from iteration ``start`` on, without end."""
    if factors is None:
        factors = torch.ones(len(records))
    settings = DatasetMapper.from_config(cfg, is_train=True) | {"instance_mask_format": mask_format(records)}
    pictures = AugmentedPictures(records, DatasetMapper(**settings), seed)
    return DataLoader(
        pictures,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        sampler=PositionedSampler(factors, seed, start * cfg.SOLVER.IMS_PER_BATCH),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        # Its own: starting to read draws a number, which would shift the draws of a resumed run's first iteration.
        generator=torch.Generator(),
    )


def mask_format(records: list[dict]) -> str:
    """Polygons (LVIS) stay polygons, which take less memory; run lengths need bitmaps."""
    annotations = itertools.chain.from_iterable(record["annotations"] for record in records)
    return "bitmask" if any(isinstance(a["segmentation"], dict) for a in annotations) else "polygon"


def mix(*numbers: int) -> int:
    """One 64-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
