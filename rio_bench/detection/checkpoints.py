"""Checkpoints: written whole or not at all, loaded without running code."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from rio_bench.errors import UserError
from rio_bench.records import previous

RESAMPLER = "roi_heads.object_resampler."

logger = logging.getLogger(__name__)


def save(path: Path, model: nn.Module, **state: Any) -> None:
    """Write the model's state (the bank is part of it) and ``state`` through a temporary file in the same folder.

    Raises UserError where it cannot be written (a full disk): what was there before stays.
    """
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"model": model.state_dict(), **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns what the file system said into a RuntimeError
        temporary.unlink(missing_ok=True)
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(f"{path}: cannot be written: {getattr(reason, 'strerror', None) or reason}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU (tensors and plain values only)."""
    return torch.load(path, map_location="cpu", weights_only=True)


def load_if_whole(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint; None where there is none, or, with a warning, where it is cut short or not one."""
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:  # of its content, not of the file system
        logger.warning("%s: cannot be read and is passed over: %s", path, str(error).partition("\n")[0])
        return None


def save_last(path: Path, model: nn.Module, **state: Any) -> None:
    """Write the last checkpoint; the one before it is kept, for the case that this one cannot be read."""
    if path.exists():
        os.replace(path, previous(path))
    save(path, model, **state)


def load_last(path: Path) -> dict[str, Any] | None:
    """The last checkpoint, or the one before it where that cannot be read; None where there is neither."""
    state = load_if_whole(path)
    if state is None and comm.is_main_process():
        path.unlink(missing_ok=True)  # so that the next one does not push out the one before
    return state or load_if_whole(previous(path))


def remove_last(path: Path) -> None:
    for file in (path, previous(path)):
        file.unlink(missing_ok=True)


def resampler_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model's object resampler, on the CPU: with a bank a process, each has its own."""
    return {name: value.cpu() for name, value in model.state_dict().items() if name.startswith(RESAMPLER)}


def load_resampler_state(model: nn.Module, of_processes: list[dict[str, Tensor]]) -> None:
    """Give this process its own, by rank. Where their number has changed, all keep the model's, the first one's."""
    if len(of_processes) == comm.get_world_size():
        model.load_state_dict(of_processes[comm.get_rank()], strict=False)
    elif comm.get_world_size() > 1 or of_processes:
        logger.warning("saved by another number of processes: each goes on with the first one's bank")


def load_initial_weights(model: nn.Module, path: Path) -> None:
    """Start from a base run's weights. The bank starts empty: what to replay is the run's own strategy.

    Raises:
        RuntimeError: a parameter is missing, unknown or of another shape.
    """
    weights = {name: value for name, value in load(path)["model"].items() if not name.startswith(RESAMPLER)}
    own = {name: value for name, value in model.state_dict().items() if name.startswith(RESAMPLER)}
    model.load_state_dict({**weights, **own})
    logger.info("weights of the base run: %s", path)
