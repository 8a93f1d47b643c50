from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_utils

from rio_bench.datasets.lvis import Category, LVISSplit
from rio_bench.detection.inference import detect, encode_masks
from rio_bench.errors import UserError


class SameTwoObjects(torch.nn.Module):
    """A detector that finds the same two objects in every picture, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[dict] = []

    def forward(self, batch: list[dict]) -> list[dict]:
        assert not self.training and not torch.is_grad_enabled()
        self.inputs += batch
        outputs = []
        for entry in batch:
            height, width = entry["height"], entry["width"]
            masks = torch.zeros(2, height, width, dtype=torch.bool)
            masks[0, 2:5, 1:8] = True
            instances = Instances((height, width))
            instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 8.0, 5.0], [0.5, 0.5, 3.0, 4.0]]))
            instances.pred_classes = torch.tensor([2, 0])
            instances.scores = torch.tensor([0.75, 0.25])
            instances.pred_masks = masks
            outputs.append({"instances": instances})
        return outputs


@pytest.fixture
def split(tmp_path: Path) -> LVISSplit:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[..., 0] = 200  # red
    Image.fromarray(pixels).save(tmp_path / "red.png")
    record = {"file_name": str(tmp_path / "red.png"), "height": 20, "width": 30, "image_id": 41, "annotations": []}
    categories = [Category(5, "five", "r"), Category(8, "eight", "c"), Category(90, "ninety", "f")]
    return LVISSplit(records=[record, record | {"image_id": 7}], categories=categories)


def test_detect(split: LVISSplit, tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 40, 50
    model = SameTwoObjects().train()
    detect(model, cfg, split, "cpu", tmp_path / "detections.json.gz")
    results = json.loads(gzip.decompress((tmp_path / "detections.json.gz").read_bytes()))
    assert model.training  # left as it was

    image = model.inputs[0]["image"]
    assert image.shape == (3, 33, 50)  # the shorter side to 40, but the longer one to 50 at most
    assert image.dtype == torch.uint8 and image[:, 0, 0].tolist() == [0, 0, 200]  # BGR

    assert [result["image_id"] for result in results] == [41, 41, 7, 7]
    assert results[0] | {"segmentation": None} == {
        "image_id": 41, "category_id": 90, "bbox": [1.0, 2.0, 7.0, 3.0], "score": 0.75, "segmentation": None
    }  # fmt: skip
    assert results[1]["category_id"] == 5
    assert isinstance(results[0]["segmentation"]["counts"], str)
    assert mask_utils.toBbox(results[0]["segmentation"]).tolist() == [1, 2, 7, 3]
    assert mask_utils.area(results[1]["segmentation"]) == 0


def test_a_broken_picture_is_told_and_leaves_no_file(split: LVISSplit, tmp_path: Path) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes((tmp_path / "red.png").read_bytes()[:50])
    split.records[1]["file_name"] = str(torn)
    with pytest.raises(UserError, match=f"^{torn}: the picture cannot be read"):
        detect(SameTwoObjects(), get_cfg(), split, "cpu", tmp_path / "detections.json.gz")
    assert not list(tmp_path.glob("*detections*"))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_encode_masks(count: int) -> None:
    masks = torch.rand(count, 7, 11, generator=torch.Generator().manual_seed(count)) < 0.4
    encoded = encode_masks(masks)
    assert len(encoded) == count
    for rle, mask in zip(encoded, masks.numpy(), strict=True):
        assert rle["size"] == [7, 11]
        np.testing.assert_array_equal(mask_utils.decode(rle), mask)
