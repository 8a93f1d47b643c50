"""Weights from elsewhere: the released models' names, Caffe2's, files that would run code, files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model as build_detectron2_model
from torch import Tensor, nn
from written_weights import dumped, saved

from rio_bench.config import RunConfig
from rio_bench.datasets.frequency import Frequency
from rio_bench.detection import checkpoints
from rio_bench.detection.model import build_model
from rio_bench.detection.recipe import build_cfg
from rio_bench.detection.weights import load_detector
from rio_bench.errors import UserError

SMALL: dict[str, Any] = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": "none", "iterations": 9}
SMALL |= {"recipe": "small"}
PREDICTOR = "roi_heads.box_predictor."


def built(num_classes: int = 4, **fields: Any) -> nn.Module:
    each, index = torch.ones(num_classes, dtype=torch.int64), torch.arange(num_classes)
    frequency = Frequency(each, each, ("r",) * num_classes, num_classes, index, index, each)
    config = RunConfig.model_validate(SMALL | fields)
    return build_model(config, build_cfg(config, num_classes, "cpu"), frequency)


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """A state dict with the names and shapes of RIO's R50 model for LVIS v0.5, from Detectron2's own Mask R-CNN."""
    cfg = get_cfg()  # Detectron2's defaults and what its LVIS configuration sets: Base-RCNN-FPN, mask_rcnn_R_50_FPN_1x
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1230
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    torch.manual_seed(3)
    state = build_detectron2_model(cfg).state_dict()
    del state[f"{PREDICTOR}cls_score.weight"], state[f"{PREDICTOR}cls_score.bias"]
    state[f"{PREDICTOR}cls_score.L.weight_g"] = torch.rand(1231, 1)
    state[f"{PREDICTOR}cls_score.L.weight_v"] = torch.randn(1231, 1024)
    # what Detectron2 0.3 still stored
    state["pixel_mean"] = torch.tensor([103.530, 116.280, 123.675]).view(3, 1, 1)
    state["pixel_std"] = torch.ones(3, 1, 1)
    for level in range(5):
        state[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = torch.rand(3, 4)
    return dict(state)


def released_recipe() -> nn.Module:
    return built(1230, recipe="standard", backbone="R50-FPN", dataset="lvis_v0.5")


def test_a_released_model_scores_by_the_cosine_formula(released: dict[str, Tensor], tmp_path: Path) -> None:
    entries = {"optimizer": {}, "scheduler": {"last_epoch": 9}, "iteration": 89999}
    model = released_recipe().eval()
    told = load_detector(model, saved(tmp_path / "model_final.pth", {"model": released, **entries}), "R50-FPN")
    assert told.endswith(
        "tensors loaded; left out: anchors, which follow from the recipe; pixel statistics, equal to the recipe's"
    )
    features = torch.randn(5, 1024)
    g, v = (released[f"{PREDICTOR}cls_score.L.weight_{part}"] for part in "gv")
    cosine = (features / features.norm(dim=1, keepdim=True)) @ (v / v.norm(dim=1, keepdim=True)).T
    scores, deltas = model.roi_heads.box_predictor(features)
    torch.testing.assert_close(scores, 48 * cosine * g.T)
    torch.testing.assert_close(
        deltas,
        F.linear(features, released[f"{PREDICTOR}bbox_pred.weight"], released[f"{PREDICTOR}bbox_pred.bias"]),
    )
    state = model.state_dict()
    same = [name for name in released if name in state]
    assert len(same) == len(released) - 9  # two of the weight norm, two pixel statistics, five anchors
    assert all(torch.equal(state[name], released[name]) for name in same)


def test_a_released_model_of_a_data_parallel_wrapper(released: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in released.items()}
    model = released_recipe()
    load_detector(model, saved(tmp_path / "wrapped.pth", wrapped), "R50-FPN")
    assert torch.equal(
        model.state_dict()[f"{PREDICTOR}cls_score.L.parametrizations.weight.original1"],
        released[f"{PREDICTOR}cls_score.L.weight_v"],
    )


def test_the_model_zoos_detectors_are_read_from_arrays(tmp_path: Path) -> None:
    donor, model = built(classifier="linear", seed=1), built(classifier="linear")
    arrays = {name: value.numpy() for name, value in donor.state_dict().items()}
    file = dumped(tmp_path / "model_final_571f7c.pkl", {"model": arrays, "__author__": "Detectron2 Model Zoo"})
    load_detector(model, file, "R18-FPN")
    assert all(torch.equal(value, donor.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pixel_mean": torch.zeros(4)}, r"pixel_mean is \[4\], expected 3 numbers$"),
        ({"pixel_mean": torch.zeros(1).expand(10**15)}, r"pixel_mean is \[10+\], expected 3 numbers$"),
        (
            {f"{PREDICTOR}cls_score.weight": torch.tensor(1.0), f"{PREDICTOR}cls_score.bias": torch.tensor(1.0)},
            r"recipe: roi_heads\.box_predictor\.cls_score\.bias is \[\], expected \[5\] \(2 tensors in all\)$",
        ),
        ({"a\x1b[2J\nb": torch.zeros(1)}, r"expected names as keys, got 'a\\x1b\[2J\\nb'$"),
    ],
)
def test_each_key_that_does_not_fit_is_named(changed: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "given.pth", built(classifier="linear").state_dict() | changed)
    with pytest.raises(UserError, match=rf"given\.pth: .*{message}"):
        load_detector(built(classifier="linear"), file, "R18-FPN")


@pytest.mark.parametrize(
    ("names", "value", "message"),
    [
        (["conv1_w", "conv1.w"], 0, r"conv1_w and conv1\.w mean the same tensor$"),
        (["conv1_w", "cls_score_w"], 0, r"cls_score_w, of shape \[\], is no tensor of Caffe2's: IndexError: .+"),
        (["fpn_inner_x"], 0, r"fpn_inner_x, of shape \[\], is no tensor of Caffe2's: invalid literal for int.+"),
        (["conv2_bn_s"], np.zeros(64), r"conv2\.norm\.weight may be backbone\.\S+ or backbone\.\S+: expected a longer"),
    ],
)
def test_each_of_caffe2s_names_that_does_not_fit_is_told(names: list, value: Any, message: str, tmp_path: Path) -> None:
    file = dumped(tmp_path / "x.pkl", {name: np.asarray(value) for name in names})
    with pytest.raises(UserError, match=rf"x\.pkl: {message}"):
        load_detector(built(), file, "R18-FPN")


def test_a_runs_own_weights_are_read_and_its_bank_is_left_out(tmp_path: Path) -> None:
    donor = built(strategy={"name": "rio", "bank_max_images": 1000}, seed=1)
    file = tmp_path / "model_final.pth"
    checkpoints.save(file, donor, seconds=1.0)
    model = built()
    told = load_detector(model, file, "R18-FPN")
    assert "left out: the feature bank, which training alone reads" in told
    state = donor.state_dict()
    learned = [name for name, _ in model.named_parameters()]
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in learned)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 6}, r"given\.pth: has 6 categories, the recipe's data set 4$"),
        ({"classifier": "linear"}, r"given\.pth: has a linear classifier, the recipe a cosine one$"),
        (
            {"backbone": "R50-FPN"},
            r"given\.pth: of another backbone than R18-FPN: backbone\.bottom_up\.res2\.0\.conv1\.weight is "
            r"\[64, 64, 1, 1\], expected \[64, 64, 3, 3\] \(\d+ tensors in all\)$",
        ),
    ],
)
def test_a_detector_that_does_not_fit_is_refused_in_a_line(fields: dict, message: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "given.pth", {"model": built(**fields).state_dict()})
    model = built()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_detector(model, file, "R18-FPN")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_each_tensor_too_many_or_too_few_is_refused(tmp_path: Path) -> None:
    state = built().state_dict()
    few = {name: value for name, value in state.items() if name != f"{PREDICTOR}bbox_pred.bias"}
    with pytest.raises(UserError, match=r"does not fit the recipe: roi_heads\.box_predictor\.bbox_pred\.bias is miss"):
        load_detector(built(), saved(tmp_path / "few.pth", few), "R18-FPN")
    none = {name: value for name, value in state.items() if not name.startswith(f"{PREDICTOR}cls_score")}
    with pytest.raises(UserError, match=r"fit the recipe: roi_heads\.box_predictor\.cls_score\.bias is missing"):
        load_detector(built(classifier="linear"), saved(tmp_path / "none.pth", none), "R18-FPN")
    many = state | {"roi_heads.mask_iou.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"roi_heads\.mask_iou\.weight is not of this model \(1 tensors in all\)"):
        load_detector(built(), saved(tmp_path / "many.pth", many), "R18-FPN")
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    with pytest.raises(UserError, match=r"backbone\.pth: holds no detector: has no roi_heads, but backbone\."):
        load_detector(built(), saved(tmp_path / "backbone.pth", backbone), "R18-FPN")


def test_other_pixel_statistics_than_the_recipes_are_refused(tmp_path: Path) -> None:
    state = built().state_dict() | {"pixel_std": torch.ones(3, 1, 1)}
    with pytest.raises(UserError, match=r"pixel_std is \[1\.0, 1\.0, 1\.0\], the recipe's is \[57\.375"):
        load_detector(built(), saved(tmp_path / "given.pth", state), "R18-FPN")


def caffe2_names(backbone: nn.Module) -> dict[str, np.ndarray]:
    """A ResNet's weights as Caffe2 names them: without statistics, which it has in scale and bias."""
    arrays = {}
    branches = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    ends = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}
    for name, value in backbone.state_dict().items():
        stage, *rest = name.split(".")
        if stage == "stem":
            end = ends.get(".".join(rest[1:]))
            new = {"w": "conv1_w", "bn_s": "res_conv1_bn_s", "bn_b": "res_conv1_bn_b"}.get(end or "")
        else:
            end = ends.get(".".join(rest[2:]))
            new = end and f"{stage}_{rest[0]}_{branches[rest[1]]}_{end}"
        if new:
            arrays[new] = value.numpy()
    return arrays | {"fc1000_w": np.zeros((10, 4), dtype=np.float32), "conv1_w_momentum": np.zeros(1)}


@pytest.mark.parametrize("names", ["caffe2", "plain"])
def test_imagenet_weights_of_a_r50_by_caffe2s_names_and_by_plain_ones(names: str, tmp_path: Path) -> None:
    donor = built(recipe="standard", backbone="R50-FPN", seed=5).backbone.bottom_up
    if names == "caffe2":
        file = dumped(tmp_path / "R-50.pkl", caffe2_names(donor))
    else:
        arrays = {name: value.numpy() for name, value in donor.state_dict().items()}
        file = dumped(tmp_path / "R-50.pkl", {"model": arrays, "__author__": "someone"})
    model = built(recipe="standard", backbone="R50-FPN", weights=str(file)).backbone.bottom_up  # seed 0
    given = donor.state_dict()
    assert len(model.state_dict()) == 265  # 53 convolutions with frozen norms of four tensors
    for name, value in model.state_dict().items():
        assert torch.equal(value, given[name]), name
    with pytest.raises(UserError, match=r"R-50\.pkl: does not hold backbone\.bottom_up\.res4\.\d+\..*another backbone"):
        built(recipe="standard", backbone="R101-FPN", weights=str(file))
