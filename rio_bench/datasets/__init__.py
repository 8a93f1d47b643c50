"""The data sets by name: the embedded ones, made on first use, and LVIS where Detectron2 expects its files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rio_bench.datasets.lvis import Dataset, Split
from rio_bench.errors import UserError, did_you_mean

DESCRIPTIONS = {
    "glyphs-lvis": "1,203 glyph categories with LVIS v1's image counts (at most 300), 20,000 training pictures of "
    "320 px; made on first use, for a GPU",
    "glyphs-mini": "30 glyph categories, 320 training pictures of 128 px; made on first use, for a CPU",
    "lvis_v0.5": "LVIS v0.5 on COCO's 2017 images, under $DETECTRON2_DATASETS (default: datasets)",
    "lvis_v1": "LVIS v1.0 on COCO's 2017 images, under $DETECTRON2_DATASETS (default: datasets)",
}


def names() -> list[str]:
    return sorted(DESCRIPTIONS)


def describe(name: str) -> str:
    """One line about a data set."""
    _check(name)
    return DESCRIPTIONS[name]


def load(name: str) -> Dataset:
    """The data set's files; an embedded one is made when it is missing (a progress bar in a terminal).

    Raises UserError for an unknown name, and for files of LVIS that are not where Detectron2 expects them.
    """
    _check(name)
    if name.startswith("glyphs-"):
        from rio_bench.datasets import glyphs

        return glyphs.make(glyphs.PRESETS[name])
    train, val = _lvis_splits(name)
    return Dataset(name, train, val)


def fingerprint(name: str) -> str:
    """16 hex digits that change with the data set's content; nothing is made."""
    _check(name)
    if name.startswith("glyphs-"):
        from rio_bench.datasets import glyphs

        return glyphs.fingerprint(glyphs.PRESETS[name])
    digest = hashlib.sha256()
    for split in _lvis_splits(name):
        with split.annotations.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _check(name: str) -> None:
    if name not in DESCRIPTIONS:
        raise UserError(f"no data set is named '{name}'{did_you_mean(name, DESCRIPTIONS)}")


def _lvis_splits(name: str) -> tuple[Split, Split]:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    train, val = (Split(root / "lvis" / f"{name}_{split}.json", root / "coco") for split in ("train", "val"))
    for path in (train.annotations, val.annotations, train.images):
        if not path.exists():
            raise UserError(
                f"{name}: {path.absolute()} is missing; set DETECTRON2_DATASETS to the folder that holds "
                "lvis/ and coco/"
            )
    return train, val
