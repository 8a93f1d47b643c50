"""The classifiers of the box head: Detectron2's linear layer, or a cosine classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from rio_bench.config import ClassifierConfig


class CosineClassifier(nn.Module):
    """Scores ``temperature * g_c * cos(feature, w_c)`` with a learnable norm ``g_c`` a class and no bias (RIO).

    Args:
        feature_dim: width D of the features.
        num_classes: foreground categories; one more output is the background.
        temperature: factor of the cosine (48 in the publication).
    """

    def __init__(self, feature_dim: int, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        linear = nn.Linear(feature_dim, num_classes + 1, bias=False)
        nn.init.normal_(linear.weight, std=0.01)
        # The name is that of the released checkpoints (cls_score.L.weight_g, weight_v), which weight_norm still reads.
        self.L = weight_norm(linear, dim=0)

    def forward(self, features: Tensor) -> Tensor:
        """features [N, D] -> scores float32 [N, num_classes + 1]."""
        with torch.autocast(features.device.type, enabled=False):
            return self.temperature * self.L(F.normalize(features.float(), dim=1))


def use_classifier(box_predictor: FastRCNNOutputLayers, config: ClassifierConfig, feature_dim: int) -> None:
    """Give a Detectron2 ``FastRCNNOutputLayers`` the configured classifier (``linear`` is its own)."""
    if config.name == "cosine":
        num_classes = box_predictor.num_classes
        box_predictor.cls_score = CosineClassifier(feature_dim, num_classes, config.temperature)
