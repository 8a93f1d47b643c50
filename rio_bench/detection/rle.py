"""Masks as compressed RLEs, COCO's: checked in bulk, because the libraries that compare them check nothing.

An RLE is a mask's run lengths down its columns, beginning with zeros. Compressed, a run is stored as the difference to
the run two before it (from the fourth on), in characters of 5 bits from "0", the lowest bits first; a character's
sixth bit says that another follows, the fifth bit of the last one is the sign.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

MOST_DIGITS = 6  # of a run: 2^30 pixels


class Mask(msgspec.Struct, gc=False):
    """A run-length encoding; `size`: height, width; `counts` compressed, or a list of run lengths."""

    size: tuple[int, int]
    counts: str | list[int]


Polygons = list[list[float]]  # of each x0, y0, x1, y1 ...


def compressed(segmentation: Mask | Polygons, height: int, width: int) -> bytes:
    """The compressed counts of a mask of a picture. ValueError where it is of another size, or not ASCII."""
    if isinstance(segmentation, list):
        if not segmentation:
            raise ValueError("its mask has no polygon")
        if not all(len(polygon) >= 6 for polygon in segmentation):
            raise ValueError("a polygon of its mask has fewer than three points")
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))["counts"]
    if segmentation.size != (height, width):
        raise ValueError(f"its mask is of {segmentation.size} (height, width), its picture of {(height, width)}")
    if isinstance(segmentation.counts, str):
        return segmentation.counts.encode("ascii")
    return mask_utils.frPyObjects({"size": [height, width], "counts": segmentation.counts}, height, width)["counts"]


def areas(counts: list[bytes], pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The area of each mask [N]; -1 for what is not an RLE of as many pixels as `pixels` [N] says."""
    area = np.full(len(counts), -1)
    if filled := [index for index, text in enumerate(counts) if text]:
        area[filled] = _areas([counts[index] for index in filled], pixels[filled])
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
