"""Draws one picture of a glyph data set from its plan: texture, objects that may overlap, exact visible masks."""

from __future__ import annotations

import json
import pickle
import signal
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rio_bench.errors import UserError

MASTER_SIZE = 128  # pixels: font size of a glyph before it is turned and scaled
MASTER_STROKE = 3  # pixels: thickens the font's thin strokes, so that the smallest objects keep theirs
MAX_ROTATION = 30.0  # degrees: upright enough to tell p from d and 6 from 9
MIN_VISIBLE = 0.65  # the share of an object that later ones leave visible
TRIES = 30  # positions and sizes tried for an object before the picture starts over with smaller ones
MIN_CONTRAST = 90.0  # Euclidean RGB distance of an object to what it covers


@dataclass(frozen=True)
class PlannedImage:
    """What a picture shows. `objects` are (category index, is annotated), from the back to the front."""

    split: str
    index: int
    seed: tuple[int, int, int]
    file_name: str
    objects: tuple[tuple[int, bool], ...]
    negatives: tuple[int, ...]  # category indices, verified absent
    not_exhaustive: tuple[int, ...]  # category indices with objects that are not annotated


@dataclass(frozen=True)
class PlacedObject:
    category: int
    annotated: bool
    left: int
    top: int
    alpha: np.ndarray  # uint8 [h, w]: coverage; the object's mask is where at least half of a pixel is covered


def draw_jobs() -> None:
    """A worker: reads pickled jobs from stdin, writes the annotations of each as a JSON line to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends its workers
    for job in pickle.load(sys.stdin.buffer):
        print(json.dumps(draw_image(job)), flush=True)


def draw_image(job: tuple[str, int, tuple[int, int], PlannedImage, str]) -> list[dict[str, Any]]:
    """Draw a picture and write its file: (glyphs, image size, object sizes, plan, folder) -> its annotations."""
    glyphs, size, object_size, plan, folder = job
    random = np.random.default_rng(plan.seed)
    placed = place_objects(glyphs, size, object_size, plan, random)
    canvas = textured_background(size, random)
    for entry in placed:
        paint(canvas, entry, random)
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    path = Path(folder, plan.file_name)
    Image.fromarray(pixels).save(path, quality=90)  # JPEG's; PNG has none
    return annotate(placed, size)


def place_objects(
    glyphs: str, size: int, object_size: tuple[int, int], plan: PlannedImage, random: np.random.Generator
) -> list[PlacedObject]:
    """Place every planned object inside the picture so that each stays visible; too full a picture is begun again
    with smaller objects, so none is ever dropped and the planned counts hold."""
    scale = 1.0
    while (placed := _try_to_place(glyphs, size, object_size, scale, plan, random)) is None:
        scale *= 0.85
    return placed


def _try_to_place(
    glyphs: str, size: int, object_size: tuple[int, int], scale: float, plan: PlannedImage, random: np.random.Generator
) -> list[PlacedObject] | None:
    placed: list[PlacedObject] = []
    owner = np.full((size, size), -1)  # which object is seen at each pixel
    areas, visible = np.zeros(0, dtype=int), np.zeros(0, dtype=int)  # pixels of each object: all, and still seen
    smallest, largest = object_size
    for category, annotated in plan.objects:
        for _ in range(TRIES):
            side = scale * smallest * (largest / smallest) ** random.random()
            alpha = turned_glyph(glyphs[category], side, random.uniform(-MAX_ROTATION, MAX_ROTATION))
            height, width = alpha.shape
            top, left = (int(random.integers(0, size - extent + 1)) for extent in (height, width))
            mask = alpha >= 128
            window = owner[top : top + height, left : left + width]
            hidden = np.bincount(window[mask & (window >= 0)], minlength=len(placed))
            if mask.any() and (visible - hidden >= MIN_VISIBLE * areas).all():
                window[mask] = len(placed)
                placed.append(PlacedObject(category, annotated, left, top, alpha))
                areas = np.append(areas, mask.sum())
                visible = np.append(visible - hidden, mask.sum())
                break
        else:
            return None
    return placed


def font_path() -> Path:
    """DejaVu Sans as matplotlib ships it; located without importing matplotlib, which would take a second."""
    spec = find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the glyph data sets need the font that matplotlib ships: pip install matplotlib")
    return Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")


@cache
def master_glyph(glyph: str) -> Image.Image:
    """The glyph's coverage at MASTER_SIZE, cropped to its ink."""
    font = ImageFont.truetype(str(font_path()), MASTER_SIZE, layout_engine=ImageFont.Layout.BASIC)
    picture = Image.new("L", (4 * MASTER_SIZE, 4 * MASTER_SIZE))
    ImageDraw.Draw(picture).text(
        (MASTER_SIZE, MASTER_SIZE), glyph, fill=255, font=font, stroke_width=MASTER_STROKE, stroke_fill=255
    )
    return picture.crop(picture.getbbox())


def turned_glyph(glyph: str, side: float, angle: float) -> np.ndarray:
    """Coverage uint8 [h, w] of a glyph turned by `angle` degrees, its longer side then about `side` pixels."""
    turned = master_glyph(glyph).rotate(angle, resample=Image.Resampling.BICUBIC, expand=True)
    turned = turned.crop(turned.getbbox())
    ratio = side / max(turned.size)
    width, height = (max(1, round(extent * ratio)) for extent in turned.size)
    return np.asarray(turned.resize((width, height), Image.Resampling.BOX))


def paint(canvas: np.ndarray, entry: PlacedObject, random: np.random.Generator) -> None:
    """Blend an object into the canvas, float32 [S, S, 3], in a colour that contrasts with what it covers."""
    height, width = entry.alpha.shape
    window = canvas[entry.top : entry.top + height, entry.left : entry.left + width]
    covered = window[entry.alpha >= 128].mean(0)
    candidates = random.uniform(0, 255, (16, 3))
    distance = np.linalg.norm(candidates - covered, axis=1)
    enough = np.flatnonzero(distance >= MIN_CONTRAST)
    colour = candidates[enough[0] if enough.size else distance.argmax()]
    ramp = _plane(height, width, random)[..., None] * random.uniform(-35, 35, 3)
    coverage = (entry.alpha / 255.0)[..., None]
    window[:] = window * (1 - coverage) + (colour + ramp) * coverage


def textured_background(size: int, random: np.random.Generator) -> np.ndarray:
    """A texture, float32 [S, S, 3] in 0..255: clouds, marble, stripes or checks between two colours, with grain."""
    clouds = _clouds(size, random)
    kind = random.choice(["clouds", "marble", "stripes", "checks"])
    waves = random.uniform(2, 9)
    if kind == "clouds":
        field = clouds
    elif kind == "marble":
        field = 0.5 + 0.5 * np.sin(2 * np.pi * waves * clouds)
    elif kind == "stripes":
        field = 0.5 + 0.5 * np.sin(2 * np.pi * (waves * _plane(size, size, random) + 0.6 * clouds))
    else:
        across, down = _plane(size, size, random), _plane(size, size, random)
        field = 0.7 * ((np.floor(waves * across) + np.floor(waves * down)) % 2) + 0.3 * clouds
    first = random.uniform(20, 235, 3)
    second = np.clip(first + random.uniform(-90, 90, 3), 0, 255)  # near: the texture must not drown the objects
    grain = random.normal(0, random.uniform(1, 7), (size, size, 1))
    return (first + (second - first) * field[..., None] + grain).astype(np.float32)


def _clouds(size: int, random: np.random.Generator) -> np.ndarray:
    """Smooth noise of several octaves, [S, S] in 0..1."""
    field = np.zeros((size, size))
    for cells, weight in ((2, 1.0), (4, 0.6), (8, 0.4), (16, 0.25), (32, 0.15)):
        noise = Image.fromarray(random.random((cells, cells), dtype=np.float32))
        field += weight * np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))
    return (field - field.min()) / np.ptp(field)


def _plane(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A ramp from -1 to 1 in a random direction, [height, width]."""
    angle = random.uniform(0, 2 * np.pi)
    down, across = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    return (np.cos(angle) * across + np.sin(angle) * down) / (abs(np.cos(angle)) + abs(np.sin(angle)))


def annotate(placed: list[PlacedObject], size: int) -> list[dict[str, Any]]:
    """Box [x, y, w, h], area and RLE of the visible part of each annotated object."""
    from pycocotools import mask as rle

    owner = np.full((size, size), -1)
    for index, entry in enumerate(placed):
        height, width = entry.alpha.shape
        owner[entry.top : entry.top + height, entry.left : entry.left + width][entry.alpha >= 128] = index
    annotations = []
    for index, entry in enumerate(placed):
        if not entry.annotated:
            continue
        mask = owner == index
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
        annotations.append(
            {
                "category": entry.category,
                "bbox": [
                    float(columns[0]),
                    float(rows[0]),
                    float(columns[-1] - columns[0] + 1),
                    float(rows[-1] - rows[0] + 1),
                ],
                "area": float(mask.sum()),
                "segmentation": {"size": [size, size], "counts": encoded["counts"].decode("ascii")},
            }
        )
    return annotations
