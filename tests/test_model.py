"""The detectors that recipes and backbones give: what they are made of, and what they start from."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from rio_bench.config import RunConfig, backbones
from rio_bench.datasets.frequency import Frequency
from rio_bench.detection.model import build_model
from rio_bench.detection.recipe import build_cfg
from rio_bench.errors import UserError

NUM_CLASSES = 4


def frequency() -> Frequency:
    """Four categories with one image each."""
    each = torch.ones(NUM_CLASSES, dtype=torch.int64)
    index = torch.arange(NUM_CLASSES)
    return Frequency(each, each, ("r",) * NUM_CLASSES, NUM_CLASSES, index, index, each)


def built(**fields) -> tuple[nn.Module, RunConfig]:
    defaults = {
        "dataset": "glyphs-mini",
        "backbone": "R18-FPN",
        "strategy": "none",
        "recipe": "small",
        "iterations": 90,
    }
    config = RunConfig.model_validate(defaults | fields)
    return build_model(config, build_cfg(config, NUM_CLASSES, "cpu"), frequency()), config


@pytest.mark.parametrize("backbone", backbones())
def test_from_random_weights_every_layer_of_every_backbone_trains(backbone: str) -> None:
    model, _ = built(backbone=backbone, recipe="standard" if backbone == "R50-FPN" else "small")
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    blocks = sum(len(stage) for stage in model.backbone.bottom_up.stages)
    assert blocks == {"R18-FPN": 8, "R50-FPN": 16, "R101-FPN": 33, "X101-FPN": 33}[backbone]
    # ResNeXt-101-32x8d: 32 groups of width 8 in the first stage's 3x3 convolutions
    if backbone == "X101-FPN":
        convolution = model.backbone.bottom_up.res2[0].conv2
        assert (convolution.groups, convolution.in_channels) == (32, 256)


def test_backbone_weights_are_read_from_a_file_and_their_norm_stays_frozen(tmp_path: Path) -> None:
    donor, _ = built(seed=7)
    weights = tmp_path / "backbone.pth"
    torch.save({"model": donor.backbone.bottom_up.state_dict()}, weights)
    model, _ = built(recipe="standard", weights=str(weights))
    own, given = model.backbone.bottom_up.state_dict(), donor.backbone.bottom_up.state_dict()
    kept = [name for name in own if name in given]
    assert len(kept) > 90
    assert all(torch.equal(own[name], given[name]) for name in kept)
    assert not any(parameter.requires_grad for parameter in model.backbone.bottom_up.stem.parameters())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())


def test_weights_of_another_backbone_are_refused_in_a_line(tmp_path: Path) -> None:
    donor, _ = built()
    weights = tmp_path / "r18.pth"
    torch.save({"model": donor.backbone.bottom_up.state_dict()}, weights)
    with pytest.raises(UserError, match=r"r18\.pth: does not hold backbone\.bottom_up\.res2\.0\."):
        built(backbone="R50-FPN", weights=str(weights))


def test_a_file_that_holds_no_weights_is_refused_in_a_line(tmp_path: Path) -> None:
    weights = tmp_path / "R-50.pkl"
    weights.touch()
    with pytest.raises(UserError, match=r"R-50\.pkl: not a file of weights: EOFError"):
        built(weights=str(weights))


@pytest.mark.parametrize(("classifier", "bias"), [("linear", True), ("cosine", False)])
def test_the_classifier_is_an_axis_of_its_own(classifier: str, bias: bool) -> None:
    model, _ = built(classifier=classifier)
    scores = model.roi_heads.box_predictor.cls_score
    assert isinstance(scores, nn.Linear) is bias
    assert scores(torch.zeros(2, 256)).shape == (2, NUM_CLASSES + 1)


def test_the_steps_of_the_learning_rate_keep_their_share_of_a_schedule() -> None:
    config = RunConfig(dataset="lvis_v0.5", backbone="R50-FPN", strategy="rio", iterations=90_000)
    cfg = build_cfg(config, NUM_CLASSES, "cpu")
    assert cfg.SOLVER.STEPS == (60_000, 80_000)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.IMS_PER_BATCH) == (0.02, 1000, 16)
    assert (cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (1e-4, 300)
    longer = RunConfig(dataset="lvis_v1", backbone="R50-FPN", strategy="rio", iterations=180_000)
    assert build_cfg(longer, NUM_CLASSES, "cpu").SOLVER.STEPS == (120_000, 160_000)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"cls_score_w": np.zeros(())}, "cls_score_w, of shape [], is no tensor of Caffe2's"),
        ({"conv1_w": np.zeros(2), "conv1.w": np.zeros(2)}, "conv1_w and conv1.w mean the same tensor"),
    ],
)
def test_names_that_detectron2_cannot_place_are_refused_in_a_line(
    names: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    weights = tmp_path / "R-50.pkl"
    weights.write_bytes(pickle.dumps({"blobs": names}))
    with pytest.raises(UserError) as told:
        built(weights=str(weights))
    assert f"weights: {weights}: {message}" in str(told.value) and "\n" not in str(told.value)
