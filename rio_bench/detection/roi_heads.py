"""RoI heads that hand the batch's rows to a strategy's object resampler before the box predictor."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from rio_bench.strategy import RoIBatch


@ROI_HEADS_REGISTRY.register()
class ResamplingROIHeads(StandardROIHeads):
    """Mask R-CNN's heads. In training, the rows of the box head pass through ``object_resampler`` (RIO, section 3).

    Both box losses run over all rows that come back and are divided by their number; the mask head sees only the
    pictures' own. With ``object_resampler = None`` these are Detectron2's standard heads.
    """

    object_resampler: nn.Module | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.object_resampler = None

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """As Detectron2's, and each proposal also knows the object it is matched to (``gt_index``, over the batch)."""
        first = 0
        for target in targets:
            # Fields named gt_* of the targets are carried over to the proposals matched to them.
            target.gt_index = torch.arange(first, first + len(target), device=target.gt_classes.device)
            first += len(target)
        return super().label_and_sample_proposals(proposals, targets)

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if not self.training or self.object_resampler is None:
            return super()._forward_box(features, proposals)
        pooled = self.box_pooler(
            [features[name] for name in self.box_in_features], [p.proposal_boxes for p in proposals]
        )
        rois = gather_rois(self.box_head(pooled), proposals, self.num_classes)
        batch = self.object_resampler(rois)
        get_event_storage().put_scalar("bank_replayed", len(batch.labels) - len(rois.labels))
        return self.box_predictor.losses(self.box_predictor(batch.features), [as_instances(batch)])


def gather_rois(features: Tensor, proposals: list[Instances], num_classes: int) -> RoIBatch:
    """The rows of all pictures as one batch, whatever number of RoIs each picture has.

    Args:
        features: [N, D], the rows of the pictures one after another.
        proposals: sampled proposals a picture; one without ground truth has background rows only and no ``gt_*`` fields
            but ``gt_classes``: its own boxes stand in for the ground truth, which no loss reads.
    """
    labels = torch.cat([p.gt_classes for p in proposals])
    gt_boxes = [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
    gt_index = torch.cat([p.gt_index if p.has("gt_index") else torch.full_like(p.gt_classes, -1) for p in proposals])
    return RoIBatch(
        features=features,
        labels=labels,
        proposal_boxes=torch.cat([p.proposal_boxes.tensor for p in proposals]),
        gt_boxes=torch.cat(gt_boxes),
        gt_index=gt_index.masked_fill(labels == num_classes, -1),
    )


def as_instances(batch: RoIBatch) -> Instances:
    """The fields that ``FastRCNNOutputLayers.losses`` reads; the picture's size is not one of them."""
    return Instances(
        (0, 0),
        proposal_boxes=Boxes(batch.proposal_boxes),
        gt_boxes=Boxes(batch.gt_boxes),
        gt_classes=batch.labels,
    )
