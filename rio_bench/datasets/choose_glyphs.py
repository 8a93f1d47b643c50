"""How glyphs_lvis.csv was made: `python -m rio_bench.datasets.choose_glyphs > rio_bench/datasets/glyphs_lvis.csv`.

The table is shipped, so that the categories depend on no library's version. Its counts are those of Detectron2's
lvis_v1_category_image_count.py (Apache-2.0), found without importing Detectron2.
"""

from __future__ import annotations

import runpy
import sys
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from rio_bench.datasets.glyph_images import font_path, turned_glyph
from rio_bench.datasets.glyphs import category_name

SHAPE = 96  # pixels: glyphs are compared with their longer side at this size, since objects vary in size
CELLS = 24  # coverage is compared on a grid of CELLS x CELLS, so that a shift by a pixel changes little
MAX_ASPECT = 2.5  # longer ones (dashes, bars) look alike when turned
TOO_FINE = ("BRAILLE", "HEXAGRAM", "TETRAGRAM", "BOX DRAWINGS", "VULGAR FRACTION")  # told apart by details of a pixel


def lvis_image_counts() -> list[int]:
    """Training images of LVIS v1's 1,203 categories, by category id."""
    spec = find_spec("detectron2")
    assert spec is not None and spec.submodule_search_locations, "this needs detectron2's files"
    table = Path(spec.submodule_search_locations[0], "data", "datasets", "lvis_v1_category_image_count.py")
    rows = runpy.run_path(str(table))["LVIS_CATEGORY_IMAGE_COUNT"]
    return [row["image_count"] for row in sorted(rows, key=lambda row: row["id"])]


def candidates() -> list[str]:
    """The font's letters, digits, punctuation marks and symbols with a Unicode name of their own."""
    from matplotlib.ft2font import FT2Font

    glyphs = [chr(code) for code in sorted(FT2Font(str(font_path())).get_charmap())]
    named: dict[str, str] = {}
    for glyph in glyphs:
        name = unicodedata.name(glyph, "")
        if unicodedata.category(glyph)[0] in "LNPS" and name and not name.startswith(TOO_FINE):
            named.setdefault(category_name(glyph), glyph)
    return list(named.values())


def shape(glyph: str) -> np.ndarray | None:
    """Coverage [CELLS, CELLS] of the glyph scaled to SHAPE and centred; None for one without ink or too long."""
    coverage = turned_glyph(glyph, SHAPE, 0)
    if not coverage.any() or max(coverage.shape) > MAX_ASPECT * min(coverage.shape):
        return None
    square = Image.new("L", (SHAPE, SHAPE))
    height, width = coverage.shape
    square.paste(Image.fromarray(coverage), ((SHAPE - width) // 2, (SHAPE - height) // 2))
    return np.asarray(square.reduce(SHAPE // CELLS), dtype=np.float64)


def most_distinct(shapes: np.ndarray, count: int) -> tuple[list[int], float]:
    """Farthest-first choice of `count` rows of [N, CELLS, CELLS] by cosine similarity, mirrored ones counted as the
    same (training flips pictures); and the similarity of the last one chosen to its nearest."""
    norms = np.linalg.norm(shapes, axis=(1, 2), keepdims=True)
    direct = (shapes / norms).reshape(len(shapes), -1)
    mirrored = (shapes / norms)[:, :, ::-1].reshape(len(shapes), -1)
    chosen, similarity = [0], 0.0
    nearest = np.zeros(len(shapes))
    while len(chosen) < count:
        latest = direct[chosen[-1]]
        nearest = np.maximum(nearest, np.maximum(direct @ latest, mirrored @ latest))
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
        similarity = float(nearest[chosen[-1]])
    return chosen, similarity


def main() -> None:
    counts = lvis_image_counts()
    shaped = [(glyph, picture) for glyph in candidates() if (picture := shape(glyph)) is not None]
    chosen, similarity = most_distinct(np.stack([picture for _, picture in shaped]), len(counts))
    print(f"{len(shaped)} candidates, similarity of the last choice {similarity:.3f}", file=sys.stderr)
    chosen = np.random.default_rng(0).permutation(chosen).tolist()  # no script is rarer than another
    print("# Made by choose_glyphs.py. lvis_image_count: LVIS v1 training images by category id, from Detectron2's")
    print("# lvis_v1_category_image_count.py (Copyright Facebook, Inc. and its affiliates; Apache-2.0).")
    print("codepoint,name,lvis_image_count")
    for index, count in zip(chosen, counts, strict=True):
        glyph = shaped[index][0]
        print(f"{ord(glyph):04X},{category_name(glyph)},{count}")


if __name__ == "__main__":
    main()
