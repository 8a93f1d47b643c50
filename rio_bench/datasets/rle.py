"""Masks as compressed RLEs, COCO's: checked, in bulk, because the libraries that compare them end at broken ones.

An RLE is a mask's run lengths down its columns, beginning with zeros. Compressed, a run is stored as the difference to
the run two before it (from the fourth on), in characters of 5 bits from "0", the lowest bits first; a character's
sixth bit says that another follows, the fifth bit of the last one is the sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rio_bench.errors import UserError

MOST_DIGITS = 6  # of a run, of 5 bits, with a sign
MOST_PIXELS = 2**29 - 1  # of a picture: what so many digits hold
# How far from its picture's corner a polygon may reach, in longer sides of the picture and in pixels. LVIS's and COCO's
# end at the edges, those of a part cut out of a picture may not. Farther ones would end the process: pycocotools counts
# fifths of a pixel in 32 bits, and takes memory for each of them along the outline.
FARTHEST_SIDES = 10
FARTHEST = 2**20
MASKS_AT_A_TIME = 4096  # are checked: the arrays of their runs stay small


class Mask(msgspec.Struct, gc=False):
    """A run-length encoding; `size`: height, width; `counts` compressed, or a list of run lengths."""

    size: tuple[int, int]
    counts: str | list[int]


Polygons = list[list[float]]  # of each x0, y0, x1, y1 ...


def check_size(height: int, width: int) -> None:
    """ValueError for a picture's or a mask's size that no mask here can have."""
    if not (height > 0 and width > 0 and height * width <= MOST_PIXELS):
        raise ValueError(
            f"height {height} and width {width}: expected at least 1 each, and {MOST_PIXELS:,} pixels at most"
        )


def farthest(height: int, width: int) -> int:
    """How far from the corner of a picture what belongs to it may lie, in pixels."""
    return min(FARTHEST_SIDES * max(height, width), FARTHEST)


def _not_filled(height: int, width: int) -> str:
    """What is told of runs that are broken, or of another number of pixels."""
    return f"the runs of its mask do not fill {height} x {width} pixels"


def compressed(segmentation: Mask | Polygons, height: int, width: int) -> bytes:
    """The compressed counts of a mask of a picture whose size is checked (`check_size`).

    ValueError where the mask is of another size, or what it is made from is broken; whether counts that come compressed
    are sound is left to `areas`.
    """
    from pycocotools import mask as mask_utils  # not where plans are made of text and polygons alone

    if isinstance(segmentation, list):
        if not segmentation:
            raise ValueError("its mask has no polygon")
        for polygon in segmentation:
            check_polygon(polygon, height, width)
        masks = mask_utils.frPyObjects(segmentation, height, width)
        return (masks[0] if len(masks) == 1 else mask_utils.merge(masks))["counts"]
    if segmentation.size != (height, width):
        raise ValueError(f"its mask is of {segmentation.size} (height, width), its picture of {(height, width)}")
    counts = segmentation.counts
    if isinstance(counts, str):
        if not counts.isascii():
            raise ValueError(_not_filled(height, width))
        return counts.encode("ascii")
    if min(counts, default=-1) < 0 or sum(counts) != height * width:
        raise ValueError(_not_filled(height, width))
    return mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]


def as_compressed(mask: Mask) -> dict[str, Any]:
    """A mask as COCO's size and compressed text, which Detectron2 reads. ValueError where its runs are broken."""
    return {"size": list(mask.size), "counts": compressed(mask, *mask.size).decode()}


def check_polygon(polygon: list[float], height: int, width: int) -> None:
    """ValueError for a polygon that pycocotools cannot make a mask of."""
    if len(polygon) < 6:
        raise ValueError("a polygon of its mask has fewer than three points")
    if len(polygon) % 2:
        raise ValueError(f"a polygon of its mask has an odd number of coordinates ({len(polygon)})")
    limit = farthest(height, width)
    if not (-limit <= min(polygon) and max(polygon) <= limit and math.isfinite(sum(polygon))):  # they overlook NaN
        reach = np.abs(polygon).max()
        raise ValueError(f"a polygon of its mask reaches to {reach:g}, far beyond {height} x {width} pixels")


def checked_areas(
    counts: list[bytes], sizes: Sequence[Sequence[int]], place: Callable[[int], str]
) -> NDArray[np.int64]:
    """The area of each mask [N] of pictures of these sizes (height, width). UserError, with its place, where broken."""
    area = areas(counts, np.array(sizes, dtype=np.int64).reshape(-1, 2).prod(axis=1))
    for index in np.flatnonzero(area < 0).tolist():
        raise UserError(f"{place(index)}: {_not_filled(*sizes[index])}")
    return area


def areas(counts: list[bytes], pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The area of each mask [N]; -1 for what is not an RLE of as many pixels as `pixels` [N] says."""
    area = np.full(len(counts), -1)
    filled = [index for index, text in enumerate(counts) if text]
    for start in range(0, len(filled), MASKS_AT_A_TIME):
        some = filled[start : start + MASKS_AT_A_TIME]
        area[some] = _areas([counts[index] for index in some], pixels[some])
    return area


def _areas(counts: list[bytes], pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """As `areas`, where no text is empty. Runs are 32-bit numbers: those of a good text have at most 30 bits."""
    characters = np.frombuffer(b"".join(counts), dtype=np.uint8) - np.uint8(48)  # below "0": wraps to over 63
    lengths = np.array([len(text) for text in counts])
    ends = np.cumsum(lengths)
    bad = np.maximum.reduceat(characters, ends - lengths) > 63
    is_end = (characters & 32) == 0  # of a run
    bad |= ~is_end[ends - 1]
    is_end[ends - 1] = True  # so that a bad text does not run into the next one

    last = np.flatnonzero(is_end)  # characters of the runs
    digits = np.diff(last, prepend=-1)
    values = (characters[last] & 31).astype(np.int32)
    values -= (values & 16) << 1  # the sign
    for digit in range(1, min(int(digits.max()), MOST_DIGITS)):
        longer = np.flatnonzero(digits > digit)
        values[longer] = (values[longer] << 5) | (characters[last[longer] - digit] & 31)

    starts = np.searchsorted(last, ends - lengths)  # the first run of each text
    if digits.max() > MOST_DIGITS:
        bad |= np.maximum.reduceat(digits, starts) > MOST_DIGITS
    num_runs = np.diff(starts, append=len(values))
    index = np.arange(len(values), dtype=np.int32) - np.repeat(starts.astype(np.int32), num_runs)
    runs = np.empty_like(values)
    for parity in (0, 1):  # run i and run i - 2 of a text are neighbours among every other run of all texts
        differences = values[parity::2]
        sums = np.cumsum(differences, dtype=np.int32)
        whole = np.flatnonzero(index[parity::2] <= 2)  # those stored as they are: a sum begins with each
        before = sums[whole] - differences[whole]
        runs[parity::2] = sums - np.repeat(before, np.diff(whole, append=len(sums)))

    bad |= np.minimum.reduceat(runs, starts) < 0
    bad |= np.add.reduceat(runs, starts, dtype=np.int64) != pixels
    runs *= index & 1
    return np.where(bad, -1, np.add.reduceat(runs, starts, dtype=np.int64))
