"""What happens between training steps: draws, gradients, checkpoints, evaluations, measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import AMPTrainer, HookBase
from detectron2.utils import comm
from torch import nn

from rio_bench.bank import FeatureBank
from rio_bench.detection import checkpoints
from rio_bench.detection.pictures import mix
from rio_bench.records import EVALUATION

METRICS_PERIOD = 10  # iterations between two lines of the metrics file

Evaluate = Callable[[], Mapping[str, float | None]]  # the values of the tables' columns: AP.b ...


class Stopped(Exception):
    """Training ended early, as it was asked to; its checkpoint is written."""


class Stopwatch:
    """Seconds of training, those of earlier attempts included."""

    def __init__(self) -> None:
        self.before, self.started = 0.0, time.monotonic()

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started


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


class BankFill(HookBase):
    """Measure the share of the feature bank's entries that are in use."""

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % METRICS_PERIOD == 0:
            for module in self.trainer.model.modules():
                if isinstance(module, FeatureBank) and module.num_rows > 0:
                    self.trainer.storage.put_scalar("bank_fill", module.fill(), smoothing_hint=False)


class EvaluateNowAndThen(HookBase):
    """Evaluate every ``period`` iterations but the last, and keep the best weights by AP.b where ``best`` is a file.

    Nothing that is drawn in training depends on it.
    """

    def __init__(self, model: nn.Module, evaluate: Evaluate, period: int, best: Path | None) -> None:
        self.model, self.evaluate, self.period, self.best = model, evaluate, period, best
        self.best_ap = float("-inf")

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period or done == self.trainer.max_iter:
            return
        values = self.evaluate()
        for column, value in values.items():
            if value is not None:
                self.trainer.storage.put_scalar(EVALUATION + column, value, smoothing_hint=False)
        ap = values.get("AP.b")
        if self.best is not None and ap is not None and ap > self.best_ap and comm.is_main_process():
            self.best_ap = ap
            checkpoints.save(self.best, self.model, iteration=done, ap=ap)


class Checkpoint(HookBase):
    """Save all that the rest of the run depends on, every ``period`` iterations and when training is to stop.

    every: a folder that gets the model's weights at each of these, too.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        schedule: Any,
        stopwatch: Stopwatch,
        period: int,
        evaluation: EvaluateNowAndThen | None,
        stop: Callable[[], bool],
        every: Path | None,
    ) -> None:
        self.model, self.path, self.schedule, self.stopwatch, self.period = model, path, schedule, stopwatch, period
        self.evaluation, self.stop, self.every = evaluation, stop, every

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            return
        stopping = any_process(self.stop())
        if stopping or done % self.period == 0:
            self.save(done)
        if stopping:
            raise Stopped

    def save(self, done: int) -> None:
        trainer = self.trainer
        banks = comm.gather(checkpoints.resampler_state(self.model)) if comm.get_world_size() > 1 else []
        if not comm.is_main_process():
            return
        state = {"optimizer": trainer.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "banks": banks}
        if isinstance(trainer, AMPTrainer):
            state["grad_scaler"] = trainer.grad_scaler.state_dict()
        if self.evaluation is not None:
            state["best_ap"] = self.evaluation.best_ap
        checkpoints.save_last(self.path, self.model, iteration=done, seconds=self.stopwatch.seconds(), **state)
        if self.every is not None:
            checkpoints.save(self.every / f"model_{done:07}.pth", self.model, iteration=done)


def any_process(yes: bool) -> bool:
    """Whether any of the run's processes says so: all have to stop after the same iteration."""
    if comm.get_world_size() == 1:
        return yes
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(yes), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)
