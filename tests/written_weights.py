"""Files of weights, as torch and as Detectron2 write them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def dumped(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path
