"""The contract of a resampling strategy, and the registry that finds strategies by name.

A strategy is a frozen set of hyperparameters with two hooks, one a level of resampling. Its name is that of its entry
point in the group ``rio_bench.strategies``; any installed package can add one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import pydantic

from rio_bench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rio_bench.datasets.frequency import Frequency

GROUP = "rio_bench.strategies"


@dataclass(frozen=True)
class RoIBatch:
    """The sampled RoIs of one training step on one process: N rows, plain tensors on one device.

    features [N, D] after the box head · labels int64 [N], the number of categories standing for background ·
    proposal_boxes and gt_boxes float32 [N, 4], x1 y1 x2 y2 in pixels · gt_index int64 [N], which ground-truth object of
    the batch a row was matched to, -1 for background.
    """

    features: Tensor
    labels: Tensor
    proposal_boxes: Tensor
    gt_boxes: Tensor
    gt_index: Tensor


class Strategy(pydantic.BaseModel):
    """Hyperparameters as typed fields, and two hooks that do nothing unless a class overrides them.

    Describe a field's meaning, unit and source by ``pydantic.Field(description=...)``: ``rio_bench list strategies``
    prints it. A strategy is stateless: what must be remembered between steps lies in the buffers of the module that
    ``object_resampler`` returns.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )

    def image_repeat_factors(self, frequency: Frequency) -> Tensor | None:
        """How often each training image is shown in an epoch: float32 [num_images], finite and at least 1.

        Entry i belongs to the data set's i-th record. A fractional factor is rounded stochastically each epoch.
        None: every image once.
        """
        return None

    def object_resampler(self, frequency: Frequency, feature_dim: int) -> nn.Module | None:
        """A module RoIBatch -> RoIBatch, called once a training step on the rows of width ``feature_dim``.

        It returns the given rows first and untouched, and may append rows after them. Its state is its buffers, so that
        a checkpoint holds it. None: the rows stay as they are.
        """
        return None


@functools.cache
def registered() -> dict[str, EntryPoint]:
    """Every installed strategy's entry point by name, sorted; nothing is imported.

    Raises UserError where two packages claim one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry_point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry_point.name in found:
            raise UserError(
                f"two strategies are named '{entry_point.name}': {_origin(found[entry_point.name])} and "
                f"{_origin(entry_point)}; rename or uninstall one"
            )
        found[entry_point.name] = entry_point
    return found


def load(name: str) -> type[Strategy]:
    """The class of a registered strategy. Raises UserError for an unknown name or a plug-in that does not import."""
    entry_points = registered()
    if not entry_points:
        raise UserError("no strategy is installed: run `pip install --no-build-isolation -e .` in the repository")
    if name not in entry_points:
        raise UserError(f"unknown strategy '{name}'{did_you_mean(name, entry_points)}")
    where = f"strategy '{name}' ({_origin(entry_points[name])})"
    try:
        strategy = entry_points[name].load()
    except Exception as error:  # a plug-in's import can raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"{where} cannot be loaded: {type(error).__name__}: {reason}") from error
    if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
        raise UserError(f"{where} is not a subclass of rio_bench.strategy.Strategy")
    if "name" in strategy.model_fields:
        raise UserError(f"{where} has a hyperparameter 'name', which stands for the strategy itself: rename it")
    return strategy


def name_of(strategy: Strategy) -> str:
    """The entry point name of a strategy's class. Raises UserError where no entry point names it."""
    for name, entry_point in registered().items():
        if entry_point.module not in sys.modules:  # its class cannot have been made yet: leave it unimported
            continue
        with contextlib.suppress(UserError):
            if load(name) is type(strategy):
                return name
    raise UserError(f"{type(strategy).__qualname__} has no entry point in the group {GROUP}")


def _origin(entry_point: EntryPoint) -> str:
    package = f" of {entry_point.dist.name}" if entry_point.dist else ""
    return f"{entry_point.value}{package}"
