"""What a strategy's object resampler is given, and what the losses make of what it returns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from rio_bench.config import RunConfig
from rio_bench.detection.recipe import build_cfg
from rio_bench.detection.roi_heads import ResamplingROIHeads, as_instances, gather_rois
from rio_bench.strategy import RoIBatch

NUM_CLASSES = 3
BACKGROUND = NUM_CLASSES


def proposals(boxes: list[list[float]], labels: list[int], gt_boxes=None, gt_index=None) -> Instances:
    fields = {"proposal_boxes": Boxes(torch.tensor(boxes)), "gt_classes": torch.tensor(labels)}
    if gt_boxes is not None:
        fields |= {"gt_boxes": Boxes(torch.tensor(gt_boxes)), "gt_index": torch.tensor(gt_index)}
    return Instances((100, 100), **fields)


def test_rows_of_pictures_with_unequal_numbers_of_rois_stay_aligned() -> None:
    first = proposals([[0.0, 0, 1, 1]], [2], [[0.0, 0, 2, 2]], [0])
    second = proposals([[5.0, 5, 6, 6], [7.0, 7, 8, 8]], [1, BACKGROUND], [[5.0, 5, 9, 9], [5.0, 5, 9, 9]], [1, 1])
    without_objects = proposals([[3.0, 3, 4, 4]], [BACKGROUND])
    features = torch.arange(4.0)[:, None]

    batch = gather_rois(features, [first, second, without_objects], NUM_CLASSES)

    assert batch.features is features
    assert batch.labels.tolist() == [2, 1, BACKGROUND, BACKGROUND]
    assert batch.proposal_boxes[:, 0].tolist() == [0, 5, 7, 3]
    assert batch.gt_boxes[:2].tolist() == [[0, 0, 2, 2], [5, 5, 9, 9]]
    assert batch.gt_index.tolist() == [0, 1, -1, -1]


class AppendRows(nn.Module):
    """Appends the first row `times` times, and remembers what it was given."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.given: RoIBatch | None = None

    def forward(self, batch: RoIBatch) -> RoIBatch:
        self.given = batch
        rows = {name: getattr(batch, name) for name in ("features", "labels", "proposal_boxes", "gt_boxes", "gt_index")}
        return replace(batch, **{n: torch.cat([r] + [r[:1].detach()] * self.times) for n, r in rows.items()})


@pytest.fixture
def heads() -> ResamplingROIHeads:
    config = RunConfig(dataset="glyphs-mini", backbone="R18-FPN", strategy="none", recipe="small", iterations=1)
    cfg = build_cfg(config, NUM_CLASSES, "cpu")
    torch.manual_seed(0)
    shapes = {f"p{level}": ShapeSpec(channels=64, stride=2**level) for level in (2, 3, 4, 5)}
    return ResamplingROIHeads(cfg, shapes).train()


def inputs() -> tuple[dict[str, torch.Tensor], list[Instances], list[Instances]]:
    """Features, RPN proposals and targets of three pictures with 2, 1 and 0 objects."""
    generator = torch.Generator().manual_seed(1)
    features = {f"p{lv}": torch.randn(3, 64, 128 >> lv, 128 >> lv, generator=generator) for lv in (2, 3, 4, 5)}
    given, targets = [], []
    for count in (2, 1, 0):
        corner = torch.rand(20, 2, generator=generator) * 80
        boxes = torch.cat([corner, corner + 10 + torch.rand(20, 2, generator=generator) * 30], dim=1)
        given.append(Instances((128, 128), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(20)))
        masks = torch.zeros(count, 128, 128, dtype=torch.bool)
        gt = Instances(
            (128, 128), gt_boxes=Boxes(boxes[:count]), gt_classes=torch.arange(count), gt_masks=BitMasks(masks)
        )
        targets.append(gt)
    return features, given, targets


def losses_of(heads: ResamplingROIHeads) -> dict[str, torch.Tensor]:
    features, given, targets = inputs()
    torch.manual_seed(2)
    with EventStorage():
        return heads(None, features, given, targets)[1]


def test_without_a_resampler_these_are_detectron2s_own_heads(heads: ResamplingROIHeads) -> None:
    ours = losses_of(heads)
    features, given, targets = inputs()
    torch.manual_seed(2)
    with EventStorage():
        theirs = StandardROIHeads.forward(heads, None, features, given, targets)[1]
    heads.object_resampler = AppendRows(times=0)
    through_a_resampler = losses_of(heads)
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss, rtol=0, atol=0)
        torch.testing.assert_close(through_a_resampler[name], loss)


def test_the_resampler_sees_each_objects_index_over_the_batch(heads: ResamplingROIHeads) -> None:
    heads.object_resampler = resampler = AppendRows(times=0)
    losses_of(heads)
    assert resampler.given is not None
    foreground = resampler.given.labels < NUM_CLASSES
    # Objects 0 and 1 lie in the first picture (categories 0, 1), object 2 in the second (category 0).
    pairs = set(
        zip(resampler.given.gt_index[foreground].tolist(), resampler.given.labels[foreground].tolist(), strict=True)
    )
    assert pairs == {(0, 0), (1, 1), (2, 0)}
    assert (resampler.given.gt_index[~foreground] == -1).all()


def test_losses_run_over_all_rows_and_are_divided_by_their_new_number(heads: ResamplingROIHeads) -> None:
    resampler = AppendRows(times=5)
    plain = losses_of(heads)
    heads.object_resampler = resampler
    with_replays = losses_of(heads)
    assert resampler.given is not None
    rows = len(resampler.given.labels)
    with torch.no_grad(), EventStorage():
        first = RoIBatch(*(getattr(resampler.given, n)[:1] for n in RoIBatch.__dataclass_fields__))
        alone = heads.box_predictor.losses(heads.box_predictor(first.features), [as_instances(first)])
    for name in ("loss_cls", "loss_box_reg"):
        expected = (rows * plain[name] + 5 * alone[name]) / (rows + 5)
        torch.testing.assert_close(with_replays[name], expected)
    torch.testing.assert_close(with_replays["loss_mask"], plain["loss_mask"], rtol=0, atol=0)
