"""A run's detector: Detectron2's Mask R-CNN with the run's classifier and the strategy's object resampler."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling import build_model as build_detectron2_model
from torch import nn

from rio_bench.config import RunConfig
from rio_bench.datasets.frequency import Frequency
from rio_bench.detection import roi_heads  # noqa: F401  (registers ResamplingROIHeads)
from rio_bench.detection.classifier import use_classifier
from rio_bench.detection.weight_files import read_weights
from rio_bench.detection.weights import BACKBONE, named_as
from rio_bench.errors import UserError


def build_model(config: RunConfig, cfg: CfgNode, frequency: Frequency) -> nn.Module:
    """The detector on ``cfg.MODEL.DEVICE``; its initial weights depend on the seed alone, not on the strategy."""
    model = build_detector(config, cfg)
    heads = model.roi_heads
    heads.object_resampler = config.strategy.object_resampler(frequency, heads.box_head.output_shape.channels)
    model.to(cfg.MODEL.DEVICE)
    if config.weights is not None:
        load_backbone_weights(model, config.weights)
    return model


def build_detector(config: RunConfig, cfg: CfgNode) -> GeneralizedRCNN:
    """The detector without a strategy, from random weights: all that detecting needs but weights."""
    torch.manual_seed(config.seed)
    model = build_detectron2_model(cfg)
    heads = model.roi_heads
    use_classifier(heads.box_predictor, config.classifier, heads.box_head.output_shape.channels)
    return model.to(cfg.MODEL.DEVICE)


def load_backbone_weights(model: nn.Module, path: str) -> None:
    """Load ImageNet weights of the backbone. Names are matched by their ends, as for Detectron2's own .pkl files.

    Raises:
        UserError: the file cannot be read or would run code, a name of it is ambiguous, or a tensor of the backbone
            is missing or of another shape.
    """
    checkpoint = read_weights(Path(path)) | {"matching_heuristics": True}
    given = named_as(model.state_dict(), checkpoint, Path(path))
    problems = DetectionCheckpointer(model)._load_model({"model": given})
    unfit = [*problems.missing_keys, *(name for name, *_ in problems.incorrect_shapes)]
    unfit = [name for name in unfit if name.startswith(BACKBONE)]
    if unfit:
        raise UserError(
            f"weights: {path}: does not hold {unfit[0]} ({len(unfit)} tensors in all): is it of another backbone?"
        )
