"""A run's detector: Detectron2's Mask R-CNN with the run's classifier and the strategy's object resampler."""

from __future__ import annotations

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_detectron2_model
from torch import nn

from rio_bench.config import RunConfig
from rio_bench.datasets.frequency import Frequency
from rio_bench.detection import roi_heads  # noqa: F401  (registers ResamplingROIHeads)
from rio_bench.detection.classifier import use_classifier


def build_model(config: RunConfig, cfg: CfgNode, frequency: Frequency) -> nn.Module:
    """The detector on ``cfg.MODEL.DEVICE``; its initial weights depend on the seed alone, not on the strategy."""
    torch.manual_seed(config.seed)
    model = build_detectron2_model(cfg)
    heads = model.roi_heads
    feature_dim = heads.box_head.output_shape.channels
    use_classifier(heads.box_predictor, config.classifier, feature_dim)
    heads.object_resampler = config.strategy.object_resampler(frequency, feature_dim)
    model.to(cfg.MODEL.DEVICE)
    if config.weights is not None:
        DetectionCheckpointer(model).load(config.weights)
    return model
