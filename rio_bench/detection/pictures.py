"""Pictures from files, and the stream of training pictures.

The stream is repeated by a strategy's factors, augmented, split among processes, and goes on from any position.
"""

from __future__ import annotations

import gc
import itertools
import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, DatasetMapper, detection_utils
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rio_bench.errors import UserError

# What Pillow raises of a broken picture, by where it is broken.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
OUT_OF_REACH = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


def read_picture(record: dict[str, Any], image_format: str) -> NDArray[np.uint8]:
    """The pixels of a record's picture [height, width, 3]; UserError where it cannot be read, or is of another size."""
    path = record["file_name"]
    try:
        image = detection_utils.read_image(path, format=image_format)
    except UNREADABLE as error:
        if getattr(error, "errno", None) and not isinstance(error, OUT_OF_REACH):
            raise  # the file system's trouble, not the picture's: it may pass
        raise UserError(f"{path}: the picture cannot be read ({getattr(error, 'strerror', None) or error})") from error
    (height, width), (told_height, told_width) = image.shape[:2], (record["height"], record["width"])
    if (height, width) != (told_height, told_width):
        raise UserError(f"{path}: is {width} x {height} pixels, its annotation says {told_width} x {told_height}")
    return image


def check_repeat_factors(factors: Tensor, num_images: int) -> None:
    """Raise UserError where a strategy's repeat factors are not what its contract says: training would still run."""
    wanted = f"expected float32 [{num_images}], finite and at least 1"
    if factors.dtype != torch.float32 or factors.shape != (num_images,):
        raise UserError(f"image_repeat_factors: {wanted}, got {factors.dtype} {list(factors.shape)}")
    wrong = int((~(factors.isfinite() & (factors >= 1))).sum())
    if wrong:
        raise UserError(f"image_repeat_factors: {wanted}, but {wrong} are not")


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
    """Pictures read and augmented by Detectron2's mapper, a function of the seed and the position alone.

    records: as bytes of one array (DatasetFromList): a process that reads a list's dicts counts its references to them,
    and so gets a copy of each page: with LVIS gigabytes a process.
    """

    def __init__(self, records: DatasetFromList, mapper: DatasetMapper, seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> dict | UserError:
        """A picture; for a broken one the error, for `Loader` to raise: torch would put a traceback into its line."""
        position, picture = item
        draw = mix(self.seed, position)
        np.random.seed(draw % 2**32)
        random.seed(draw)
        record = self.records[picture]
        try:
            return self.mapper(record)
        except Exception:
            try:
                read_picture(record, self.mapper.image_format)
            except UserError as error:
                return error
            raise


class Loader(DataLoader):
    """Raises in the training process what `AugmentedPictures` found broken."""

    def __iter__(self) -> Iterator[list[dict]]:  # type: ignore[override]
        for batch in super().__iter__():
            for picture in batch:
                if isinstance(picture, UserError):
                    raise picture
            yield batch


def build_loader(cfg: CfgNode, records: list[dict], factors: Tensor | None, seed: int, start: int) -> DataLoader:
    """Batches (lists of Detectron2's input dicts) from iteration ``start`` on, without end."""
    if factors is None:
        factors = torch.ones(len(records))
    settings = DatasetMapper.from_config(cfg, is_train=True) | {"instance_mask_format": mask_format(records)}
    pictures = AugmentedPictures(DatasetFromList(records), DatasetMapper(**settings), seed)
    return Loader(
        pictures,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        sampler=PositionedSampler(factors, seed, start * cfg.SOLVER.IMS_PER_BATCH),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        worker_init_fn=prepare_process,
        # Its own: starting to read draws a number, which would shift the draws of a resumed run's first iteration.
        generator=torch.Generator(),
    )


def mask_format(records: list[dict]) -> str:
    """Polygons (LVIS) stay polygons, which take less memory; run lengths need bitmaps."""
    annotations = itertools.chain.from_iterable(record["annotations"] for record in records)
    return "bitmask" if any(isinstance(a["segmentation"], dict) for a in annotations) else "polygon"


def prepare_process(worker: int) -> None:
    """In a process of the loader: it does not share the training process's way to take a SIGTERM, nor its garbage."""
    gc.freeze()  # a collection would write to all objects of the training process, and so copy them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def mix(*numbers: int) -> int:
    """One 64-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
