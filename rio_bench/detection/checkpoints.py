"""Checkpoints: written whole or not at all, loaded without running code."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

RESAMPLER = "roi_heads.object_resampler."

logger = logging.getLogger(__name__)


def save(path: Path, model: nn.Module, **state: Any) -> None:
    """Write the model's state (the bank is part of it) and ``state`` through a temporary file in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"model": model.state_dict(), **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU (tensors and plain values only)."""
    return torch.load(path, map_location="cpu", weights_only=True)


def load_initial_weights(model: nn.Module, path: Path) -> None:
    """Start from a base run's weights. The bank starts empty: what to replay is the run's own strategy.

    Raises:
        RuntimeError: a parameter is missing, unknown or of another shape.
    """
    weights = {name: value for name, value in load(path)["model"].items() if not name.startswith(RESAMPLER)}
    own = {name: value for name, value in model.state_dict().items() if name.startswith(RESAMPLER)}
    model.load_state_dict({**weights, **own})
    logger.info("weights of the base run: %s", path)
