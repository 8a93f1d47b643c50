"""Test-time augmentation: Detectron2's, at sizes in proportion to the recipe's."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn

PUBLISHED_SIZE = 800  # pixels: the test size that Detectron2's sizes for augmentation (400 ... 1200) go with


def with_augmentation(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """The model, called as before, on each picture at nine sizes, each mirrored too; what it finds is merged.

    Boxes of all versions go through one non-maximum suppression, masks of a box are averaged (GeneralizedRCNNWithTTA).
    Sizes are 1/2 to 3/2 of ``cfg.INPUT.MIN_SIZE_TEST``: Detectron2's own 400, 500 ... 1200 for 800.
    """
    cfg = cfg.clone()
    cfg.defrost()
    scale = cfg.INPUT.MIN_SIZE_TEST / PUBLISHED_SIZE
    cfg.TEST.AUG.MIN_SIZES = [round(size * scale) for size in cfg.TEST.AUG.MIN_SIZES]
    cfg.TEST.AUG.MAX_SIZE = round(cfg.TEST.AUG.MAX_SIZE * scale)
    return GeneralizedRCNNWithTTA(cfg, model)
