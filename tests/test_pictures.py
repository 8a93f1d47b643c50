"""Pictures from files, broken ones too, and the stream of training pictures."""

from __future__ import annotations

import errno
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from PIL import Image

from rio_bench.config import RunConfig
from rio_bench.detection.pictures import PositionedSampler, build_loader, check_repeat_factors, read_picture
from rio_bench.detection.recipe import build_cfg
from rio_bench.errors import UserError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Of 30 x 20 pixels, noise: half of its file is not enough."""
    path = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)).save(path)
    return path


def spoiled(path: Path, how: str) -> Path:
    """A copy of a picture of 30 x 20 pixels that is broken in some way."""
    content, copy = path.read_bytes(), path.with_name("spoiled.png")
    if how == "torn":
        copy.write_bytes(content[: len(content) // 2])
    elif how == "a text":
        copy.write_text("not a picture")
    elif how == "a broken chunk":  # of 8 bytes, and what follows is none: Pillow raises a SyntaxError
        at = content.index(b"IDAT")
        copy.write_bytes(content[: at - 4] + struct.pack(">I", 8) + content[at:])
    elif how == "billions of pixels":
        header = content[12:16] + struct.pack(">II", 2**17, 2**17) + content[24:29]
        copy.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    elif how == "turned":
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(copy)
    elif how == "turned by its EXIF tag":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).save(copy, exif=exif)
    return copy  # or "missing"


BROKEN = {
    "missing": r"the picture cannot be read \(No such file or directory\)",
    "torn": r"the picture cannot be read \(image file is truncated.*\)",
    "a text": r"the picture cannot be read \(cannot identify image file .*\)",
    "a broken chunk": r"the picture cannot be read \(broken PNG file .*\)",
    "billions of pixels": r"the picture cannot be read \(.*17179869184 pixels.*\)",
    "turned": "is 20 x 30 pixels, its annotation says 30 x 20",
    "turned by its EXIF tag": "is 20 x 30 pixels, its annotation says 30 x 20",
}


def record_of(path: Path) -> dict[str, Any]:
    box = {"bbox": [2.0, 2.0, 9.0, 9.0], "bbox_mode": 1, "category_id": 0}
    box["segmentation"] = [[2.0, 2.0, 11.0, 2.0, 11.0, 11.0]]
    return {"file_name": str(path), "height": 20, "width": 30, "image_id": 1, "annotations": [box]}


@pytest.mark.parametrize(("how", "told"), BROKEN.items(), ids=BROKEN)
def test_a_broken_picture_is_told_with_its_path(picture: Path, how: str, told: str) -> None:
    path = spoiled(picture, how)
    with pytest.raises(UserError, match=f"^{path}: {told}$"):
        read_picture(record_of(path), "RGB")


def test_trouble_of_the_file_system_is_none_of_the_pictures(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(detection_utils, "read_image", read)
    with pytest.raises(OSError, match="Input/output"):
        read_picture(record_of(picture), "RGB")


@pytest.mark.parametrize("processes", [0, 2])
def test_training_tells_a_broken_picture_in_one_line(picture: Path, processes: int) -> None:
    config = RunConfig.model_validate(
        {"dataset": "glyphs-mini", "backbone": "R18-FPN", "recipe": "small", "iterations": 3, "batch_size": 2}
        | {"strategy": "none"}
    )
    cfg = build_cfg(config, 1, "cpu").clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = processes
    torn = spoiled(picture, "torn")
    whole = next(iter(build_loader(cfg, [record_of(picture)], None, 0, 0)))
    assert [len(shown["instances"]) for shown in whole] == [1, 1]
    with pytest.raises(UserError, match=rf"^{torn}: {BROKEN['torn']}$"):
        next(iter(build_loader(cfg, [record_of(torn)], None, 0, 0)))


def test_the_stream_of_pictures_goes_on_from_any_position() -> None:
    factors = torch.tensor([1.0, 2.5, 1.0, 3.3])

    def stream(start: int, length: int) -> list[tuple[int, int]]:
        iterator = iter(PositionedSampler(factors, seed=5, first_position=start))
        return [next(iterator) for _ in range(length)]

    whole = stream(0, 60)
    assert whole[17:] == stream(17, 43)
    assert [position for position, _ in whole] == list(range(60))
    shown = [sum(picture == index for _, picture in stream(0, 8000)) for index in range(4)]
    per_epoch = [count / 8000 * float(factors.sum()) for count in shown]
    assert per_epoch == pytest.approx(factors.tolist(), rel=0.05)


@pytest.mark.parametrize(
    ("factors", "got"),
    [
        (torch.ones(3), r"got torch.float32 \[3\]"),
        (torch.ones(4, dtype=torch.float64), "got torch.float64"),
        (torch.tensor([1.0, float("nan"), 0.5, 2.0]), "but 2 are not"),
    ],
)
def test_repeat_factors_against_the_contract_are_refused(factors: torch.Tensor, got: str) -> None:
    check_repeat_factors(torch.tensor([1.0, 2.5, 1.0, 3.0]), 4)
    with pytest.raises(UserError, match=r"image_repeat_factors: expected float32 \[4\], finite and at least 1.*" + got):
        check_repeat_factors(factors, 4)
