"""Areas of compressed masks against pycocotools; what is no mask of its picture is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_utils

from rio_bench.datasets import rle

binary = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=90), elements=st.integers(0, 1))


def counts(mask: np.ndarray) -> bytes:
    return mask_utils.encode(np.asfortranarray(mask))["counts"]


def areas(texts: list[bytes], pixels: list[int]) -> list[int]:
    return rle.areas(texts, np.array(pixels, dtype=np.int64)).tolist()


@settings(max_examples=200, deadline=None)
@given(masks=st.lists(binary, max_size=6))
def test_areas(masks: list[np.ndarray]) -> None:
    texts = [counts(mask) for mask in masks]
    assert areas(texts, [mask.size for mask in masks]) == [mask.sum() for mask in masks]


def test_areas_of_large_pictures() -> None:
    checkered = np.indices((9, 700)).sum(0) % 2
    large = np.zeros((6000, 5000), dtype=np.uint8)
    large[17:5990, 4:4990] = 1
    small = np.ones((1, 1), dtype=np.uint8)
    masks = [large, checkered.astype(np.uint8), small, 1 - large]
    assert areas([counts(mask) for mask in masks], [mask.size for mask in masks]) == [mask.sum() for mask in masks]


@settings(max_examples=300, deadline=None)
@given(masks=st.lists(binary, min_size=1, max_size=4), data=st.data())
def test_a_broken_mask_is_found_and_the_others_are_not_touched(masks: list[np.ndarray], data: st.DataObject) -> None:
    texts, sizes = [counts(mask) for mask in masks], [mask.size for mask in masks]
    expected = [int(mask.sum()) for mask in masks]
    index = data.draw(st.integers(0, len(masks) - 1))
    text = bytearray(texts[index])
    kind = data.draw(st.sampled_from(["cut", "emptied", "longer", "another picture's", "no RLE", "random"]))
    if kind == "cut":
        del text[data.draw(st.integers(0, len(text) - 1)) :]
    elif kind == "emptied":
        text.clear()
    elif kind == "longer":
        text += b"3"
    elif kind == "another picture's":
        sizes[index] += data.draw(st.sampled_from([-1, 1, 64]))
    elif kind == "no RLE":
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from([0, 47, 112, 255]))
    else:
        text[:] = data.draw(st.binary(min_size=1, max_size=40).map(lambda raw: bytes(48 + byte % 64 for byte in raw)))
    texts[index] = bytes(text)
    found = areas(texts, sizes)
    assert found[:index] + found[index + 1 :] == expected[:index] + expected[index + 1 :]
    if kind in ("cut", "random"):  # what is left may be a mask by chance
        assert found[index] == area_by_hand(texts[index], sizes[index])
    else:
        assert found[index] == -1


def encoded(runs: list[int], spare_digits: int = 0) -> bytes:
    """The text of up to 3 runs, which are stored as they are, each of one digit (-16..15) and some that add nothing."""
    text = bytearray()
    for run in runs:
        text += bytes([48 + (run & 31 | (32 if spare_digits else 0))])
        text += bytes([48 + 32] * (spare_digits - 1) + [48]) if spare_digits else b""
    return bytes(text)


@pytest.mark.parametrize(
    ("text", "area"),
    [
        (encoded([3, 4, 5]), 4),
        (encoded([9, -2, 5]), -1),  # a negative run, in a sum that is right
        (encoded([3, 4, 5], spare_digits=5), 4),
        (encoded([5], spare_digits=6) + encoded([12]), -1),  # no run has 35 bits
        (encoded([3, 4]) + bytes([48 + (5 | 32)]), -1),  # says that the last run goes on
    ],
)
def test_sums_that_are_right_are_not_enough(text: bytes, area: int) -> None:
    assert areas([encoded([3, 9]), text, encoded([12])], [12, 12, 12]) == [9, area, 0]


def area_by_hand(text: bytes, pixels: int) -> int:
    """The format's own rule, run by run; -1 for what is no mask."""
    runs: list[int] = []
    position = 0
    while position < len(text):
        value, digits = 0, 0
        while True:
            if position == len(text):
                return -1
            bits = text[position] - 48
            position += 1
            value |= (bits & 31) << 5 * digits
            digits += 1
            if not bits & 32:
                break
        if bits & 16:
            value -= 1 << 5 * digits
        if digits > 6:
            return -1
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    if not runs or min(runs) < 0 or sum(runs) != pixels:
        return -1
    return sum(runs[1::2])


def test_masks_are_compressed_from_any_form() -> None:
    mask = np.zeros((12, 30), dtype=np.uint8)
    mask[2:8, 5:20] = 1
    flat = mask.ravel(order="F")
    runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])).tolist()
    polygon = [5.0, 2.0, 20.0, 2.0, 20.0, 8.0, 5.0, 8.0]
    expected = counts(mask)
    assert rle.compressed(rle.Mask((12, 30), expected.decode()), 12, 30) == expected
    assert rle.compressed(rle.Mask((12, 30), runs), 12, 30) == expected
    assert rle.compressed([polygon], 12, 30) == expected


CORNER = [1.0, 2.0, 9.0, 2.0, 9.0, 8.0]


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (rle.Mask((30, 12), "1"), r"its mask is of \(30, 12\) \(height, width\), its picture of \(12, 30\)"),
        (rle.Mask((-12, -30), "1"), r"its mask is of \(-12, -30\)"),
        (rle.Mask((12, 30), "é"), "the runs of its mask do not fill 12 x 30 pixels"),
        (rle.Mask((12, 30), []), "do not fill"),
        (rle.Mask((12, 30), [100, 259]), "do not fill"),
        (rle.Mask((12, 30), [100, -40, 300]), "do not fill"),
        (rle.Mask((12, 30), [2**32, 360]), "do not fill"),
        (rle.Mask((12, 30), [10**30]), "do not fill"),
        ([], "its mask has no polygon"),
        ([[1.0, 2.0, 3.0, 4.0]], "a polygon of its mask has fewer than three points"),
        ([CORNER, []], "a polygon of its mask has fewer than three points"),
        ([[*CORNER, 5.0]], r"a polygon of its mask has an odd number of coordinates \(7\)"),
        ([CORNER, [*CORNER, float("nan")] * 2], "a polygon of its mask reaches to nan, far beyond 12 x 30 pixels"),
        ([[*CORNER, float("-inf"), 1.0]], "reaches to inf, far beyond"),
        ([[*CORNER, 301.0, 1.0]], "reaches to 301, far beyond"),
        ([[*CORNER, 1.0, -4e8]], r"reaches to 4e\+08, far beyond"),
        ([[*CORNER, 1e300, 1.0]], r"reaches to 1e\+300, far beyond"),
    ],
)
def test_what_is_no_mask_of_the_picture(mask: rle.Mask | list, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rle.compressed(mask, 12, 30)


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    polygons=st.lists(
        st.lists(st.floats(-450, 450) | st.floats() | st.sampled_from([2.0**31, -(2.0**32)]), max_size=9), max_size=2
    ),
)
def test_any_polygons_are_a_mask_or_refused(size: tuple[int, int], polygons: list[list[float]]) -> None:
    try:
        text = rle.compressed(polygons, *size)
    except ValueError:
        return
    assert 0 <= areas([text], [size[0] * size[1]])[0] <= size[0] * size[1]


@pytest.mark.parametrize(("height", "width"), [(8, 40), (23_000, 23_000), (1, rle.MOST_PIXELS)])
def test_a_polygon_may_reach_far_beyond_its_picture(height: int, width: int) -> None:
    rle.check_size(height, width)
    far = float(rle.farthest(height, width))
    text = rle.compressed([[-far, -far, far, -far, far, far, -far, far]], height, width)
    assert areas([text], [height * width]) == [height * min(width, rle.FARTHEST)]  # it covers the last one in part


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-3, -5), (2**15, 2**14), (1, 2**29), (10**30, 1)])
def test_sizes_that_no_mask_has(size: tuple[int, int]) -> None:
    told = f"height {size[0]} and width {size[1]}: expected at least 1 each, and 536,870,911 pixels at most"
    with pytest.raises(ValueError, match=told):
        rle.check_size(*size)
