"""The processes of one run, started by torch's launcher, made known to each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from detectron2.utils import comm


@contextlib.contextmanager
def processes_joined(device: str) -> Iterator[None]:
    """torch.distributed and Detectron2's `comm` know all processes of the run while the block lasts."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The others wait for the first one's evaluation, which takes longer than the default of ten minutes on LVIS.
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(hours=2))
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
