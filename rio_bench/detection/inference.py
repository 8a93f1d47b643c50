"""A Detectron2 model run over the pictures of a split, to a file of LVIS results."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools import mask as mask_utils
from torch import Tensor

from rio_bench.detection.detections import DetectionsWriter, read_batches
from rio_bench.detection.pictures import read_picture

if TYPE_CHECKING:
    from pathlib import Path

    from detectron2.config import CfgNode

    from rio_bench.datasets.lvis import LVISSplit

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOG_LINES = 10


@torch.no_grad()
def detect(model: torch.nn.Module, cfg: CfgNode, split: LVISSplit, device: str, path: Path) -> None:
    """Detect in every picture of the split; writes LVIS results to `path`, in the order of the split's records.

    Each result holds image_id, category_id (the file's), bbox [x, y, width, height] in the picture's pixels, score, and
    segmentation, a compressed RLE whose counts are a str. They are written picture by picture; the file appears when
    all are done. Pictures are read and resized as Detectron2's DatasetMapper does for tests, and go through the model
    one by one, so that none depends on the padding of others. The model is left in the mode, training or evaluation,
    that it was in. Raises UserError where the file cannot be written, and where a picture cannot be read or is not of
    the size that its record says.
    """
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    category_ids = [category.id for category in split.categories]
    was_training = model.training
    model.to(device).eval()
    last_line = time.monotonic()
    with DetectionsWriter(path) as writer:
        for number, record in enumerate(split.records, start=1):
            instances = model([_read(record, resize, cfg.INPUT.FORMAT)])[0]["instances"]
            writer.write(_to_results(instances, record["image_id"], category_ids))
            if time.monotonic() - last_line > SECONDS_BETWEEN_LOG_LINES:
                logger.info("evaluated %d/%d pictures", number, len(split.records))
                last_line = time.monotonic()
    model.train(was_training)


def detect_together(model: torch.nn.Module, cfg: CfgNode, split: LVISSplit, device: str, path: Path) -> None:
    """As `detect`, each of a run's processes on its share of the pictures; `path` is written by the first one."""
    number, rank = comm.get_world_size(), comm.get_rank()
    if number == 1:
        detect(model, cfg, split, device, path)
        return
    bounds = [len(split.records) * part // number for part in range(number + 1)]
    parts = [path.with_name(f"part{part}.{path.name}") for part in range(number)]
    share = dataclasses.replace(split, records=split.records[bounds[rank] : bounds[rank + 1]])
    detect(model, cfg, share, device, parts[rank])
    comm.synchronize()
    if rank > 0:
        return
    with DetectionsWriter(path) as writer:
        for part in parts:
            for batch in read_batches(part):
                writer.write(msgspec.to_builtins(batch.detections))
            part.unlink()


def _read(record: dict[str, Any], resize: T.Augmentation, image_format: str) -> dict[str, Any]:
    """The picture of a record as a model's input."""
    image = read_picture(record, image_format)
    resized = resize.get_transform(image).apply_image(image)
    return {
        "image": torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1))),
        "height": record["height"],
        "width": record["width"],
    }


def _to_results(instances: Instances, image_id: int, category_ids: list[int]) -> list[dict]:
    boxes = instances.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"image_id": image_id, "category_id": category_ids[index], "bbox": box, "score": score, "segmentation": mask}
        for index, box, score, mask in zip(
            instances.pred_classes.tolist(),
            boxes.tolist(),
            instances.scores.tolist(),
            encode_masks(instances.pred_masks),
            strict=True,
        )
    ]


def encode_masks(masks: Tensor) -> list[dict]:
    """Compressed RLEs of binary masks [N, height, width] (bool)."""
    # pycocotools wants [height, width, N] with the height innermost in memory; turned on the device, where it is quick
    columns_first = masks.transpose(1, 2).contiguous().to(torch.uint8).cpu().numpy()
    encoded = mask_utils.encode(columns_first.transpose(2, 1, 0))
    return [{"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")} for rle in encoded]
