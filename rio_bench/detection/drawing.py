"""Ground truth and detections of a picture drawn side by side, and many of them on a contact sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

BUCKET_NAMES = {"r": "rare", "c": "common", "f": "frequent"}
COLOURS = {"r": (255, 72, 48), "c": (255, 200, 0), "f": (40, 150, 255)}  # told apart by the colour-blind, too
BACKGROUND, TEXT, FAINT_TEXT = (250, 250, 250), (20, 20, 20), (110, 110, 110)
FILL = 0.28  # opacity of a mask: what is below stays visible
PANEL = 560  # pixels of a picture's longer side
MARGIN = 26  # around a picture: room for the tags of objects at its edge
MOST_LISTED = 24  # of a panel
FONTS = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"

Verdict = Literal["found", "missed", "right", "false", "not judged"]
SOLID: tuple[Verdict, ...] = ("found", "right")
ERRORS: tuple[Verdict, ...] = ("missed", "false")


@dataclass(frozen=True)
class Shape:
    """An object, or a detection (then with a score), as it is drawn."""

    name: str
    bucket: str
    mask: NDArray[np.uint8]  # [height, width] of the picture
    verdict: Verdict
    score: float | None = None


@dataclass(frozen=True)
class Drawn:
    """A picture with what was annotated and what was detected in it; `others`: annotated, but not of the choice."""

    image: Image.Image
    title: str
    objects: list[Shape]
    others: list[Shape]
    detections: list[Shape]


def side_by_side(drawn: Drawn, threshold: float) -> Image.Image:
    """Two panels with numbered shapes, the list of them below each, and a legend. Small pictures are enlarged."""
    objects = sorted(drawn.objects, key=lambda shape: (shape.verdict == "found", -int(shape.mask.sum())))
    detections = sorted(drawn.detections, key=lambda shape: -(shape.score or 0))
    panels = [
        (f"annotated: {len(objects)}", draw_panel(drawn.image, objects, drawn.others, PANEL, tags=True), objects),
        (
            f"detected: {len(detections)}, score from {threshold:.2f}",
            draw_panel(drawn.image, detections, [], PANEL, tags=True),
            detections,
        ),
    ]
    width = PANEL + 2 * MARGIN
    blocks = [
        _stack([_line(heading, width, bold=True), panel, _list(shapes, width)]) for heading, panel, shapes in panels
    ]
    body = in_a_row(blocks)
    return _stack([_line(drawn.title, body.width, size=18, bold=True), body, _legend(body.width)], border=12)


def contact_sheet(groups: Sequence[tuple[str, Sequence[Drawn]]]) -> Image.Image:
    """Small pairs of panels with their titles, in groups with a heading."""
    size, gap = 260, 16
    columns = min(3, max(len(pictures) for _, pictures in groups))
    width = columns * (2 * size + 4) + (columns - 1) * gap
    rows: list[Image.Image] = []
    for heading, pictures in groups:
        cells = []
        for drawn in pictures:
            objects = draw_panel(drawn.image, drawn.objects, drawn.others, size)
            pair = in_a_row([objects, draw_panel(drawn.image, drawn.detections, [], size)], gap=4)
            cells.append(_stack([_line(drawn.title, pair.width, size=13), pair], gap=2))
        rows.append(_line(heading, width, size=18, bold=True))
        rows += [in_a_row(cells[start : start + columns], gap=gap) for start in range(0, len(cells), columns)]
    return _stack([*rows, _legend(max(width, 700))], border=12, gap=10)


# ------------------------------------------------------------------------------------------------------------ a panel


def draw_panel(
    image: Image.Image, shapes: list[Shape], others: list[Shape], size: int, tags: bool = False
) -> Image.Image:
    """The picture with its longer side `size` pixels, in the middle of a square, with shapes on it."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    picture = image.convert("RGB").resize(
        (width, height), Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    )
    pixels = np.asarray(picture).astype(np.float32)
    masks = [_enlarged(shape.mask, width, height) for shape in shapes]
    line = max(1, size // 250)
    for shape in others:
        _outline(pixels, _enlarged(shape.mask, width, height), COLOURS[shape.bucket], 1, is_error=False)
    # large shapes first, so that small ones lie on top
    for index in sorted(range(len(shapes)), key=lambda index: -int(masks[index].sum())):
        shape, mask = shapes[index], masks[index]
        colour = COLOURS[shape.bucket]
        if shape.verdict in SOLID:
            pixels[mask] = (1 - FILL) * pixels[mask] + FILL * np.array(colour)
        is_large = mask.sum() > (size / 14) ** 2
        width_of_line = 1 if shape.verdict == "not judged" else line + is_large
        _outline(pixels, mask, colour, width_of_line, is_error=shape.verdict in ERRORS)

    margin = MARGIN if tags else 0
    panel = Image.new("RGB", (size + 2 * margin, size + 2 * margin if tags else size), BACKGROUND)
    corner = margin + (size - width) // 2, margin if tags else (size - height) // 2
    panel.paste(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), corner)
    if tags:
        panel = panel.crop((0, 0, panel.width, height + 2 * margin))
        _tag(panel, shapes, masks, corner)
    return panel


def _enlarged(mask: NDArray[np.uint8], width: int, height: int) -> NDArray[np.bool_]:
    """Smooth edges: the mask as a picture, resized, cut at half."""
    resized = Image.fromarray(mask * np.uint8(255)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 127


def _outline(
    pixels: NDArray[np.float32], mask: NDArray[np.bool_], colour: tuple[int, int, int], width: int, is_error: bool
) -> None:
    """A line around a mask, which hides nothing of it, and a black one around that: it is seen on any ground.

    Of an error the line is white in parts.
    """
    if not mask.any():
        return
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    reach = width + 1
    around = (
        slice(max(rows[0] - reach, 0), rows[-1] + reach + 1),
        slice(max(columns[0] - reach, 0), columns[-1] + reach + 1),
    )
    mask = mask[around]
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    grown = np.asarray(image.filter(ImageFilter.MaxFilter(2 * width + 1))) > 0
    halo = (np.asarray(image.filter(ImageFilter.MaxFilter(2 * width + 3))) > 0) & ~grown
    line = grown & ~mask
    pixels[around][halo] = 0
    pixels[around][line] = colour
    if is_error:
        down, right = np.indices(mask.shape)
        pixels[around][line & ((down // 6 + right // 6) % 2 == 0)] = 255


def _tag(panel: Image.Image, shapes: list[Shape], masks: list[NDArray[np.bool_]], corner: tuple[int, int]) -> None:
    """Number the shapes, each beside its own, where the least of any shape and of other tags is hidden."""
    draw = ImageDraw.Draw(panel)
    hidden = np.zeros((panel.height, panel.width), dtype=np.int32)  # what a pixel of a tag costs
    for mask in masks:
        hidden[corner[1] : corner[1] + mask.shape[0], corner[0] : corner[0] + mask.shape[1]] += mask
    for number, (shape, mask) in enumerate(zip(shapes, masks, strict=True), start=1):
        if number > MOST_LISTED or not mask.any():
            continue
        width, height = _tag_size(number)

        def cost(place: tuple[int, int], width: int = width, height: int = height) -> int:
            return int(hidden[place[1] : place[1] + height, place[0] : place[0] + width].sum())

        places = [
            (min(max(x, 0), panel.width - width), min(max(y, 0), panel.height - height))
            for x, y in _places(mask, corner, width, height)
        ]
        x, y = min(places, key=cost)
        hidden[y : y + height, x : x + width] += 10  # rather hide a shape than another tag
        _draw_tag(draw, (x, y), number, shape)


def _places(mask: NDArray[np.bool_], corner: tuple[int, int], width: int, height: int) -> Iterator[tuple[int, int]]:
    """Where a tag can touch a mask from outside: at its ends in eight directions."""
    rows, columns = np.nonzero(mask)
    gap = 5  # for the line around the mask
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)):
        end = (down * rows + right * columns).argmax()
        x = corner[0] + columns[end] + right * (width / 2 + gap) - width / 2
        y = corner[1] + rows[end] + down * (height / 2 + gap) - height / 2
        yield int(x), int(y)


def _tag_size(number: int) -> tuple[int, int]:
    return 10 + 9 * len(str(number)), 19


def _draw_tag(draw: ImageDraw.ImageDraw, place: tuple[int, int], number: int, shape: Shape) -> None:
    """Filled where the shape is found or right, else only with a border."""
    width, height = _tag_size(number)
    box = (*place, place[0] + width - 1, place[1] + height - 1)
    colour = COLOURS[shape.bucket]
    is_solid = shape.verdict in SOLID
    draw.rounded_rectangle(
        box,
        4,
        fill=colour if is_solid else "white",
        outline="black" if is_solid else colour,
        width=1 if is_solid else 2,
    )
    draw.text((place[0] + width / 2, place[1] + height / 2), str(number), "black", _font(13, True), anchor="mm")


# ----------------------------------------------------------------------------------------------------------- its words


def _list(shapes: list[Shape], width: int) -> Image.Image:
    """A line for each shape: its number, name, score and verdict; in two columns where they are many."""
    listed = shapes[:MOST_LISTED]
    columns = 1 if len(listed) <= 6 else 2
    per_column = -(-len(listed) // columns)
    height, column_width = 24, width // columns
    more = len(shapes) - len(listed)
    block = Image.new("RGB", (width, height * (per_column + (more > 0)) + 4), BACKGROUND)
    draw = ImageDraw.Draw(block)
    for number, shape in enumerate(listed, start=1):
        x, y = (number - 1) // per_column * column_width, (number - 1) % per_column * height
        _draw_tag(draw, (x + 2, y + 2), number, shape)
        score = "" if shape.score is None else f"{shape.score:.2f} "
        is_error = shape.verdict in ERRORS
        end, end_font = score + shape.verdict, _font(13, is_error)
        room = column_width - 40 - 8 - end_font.getlength(end) - 8
        name = _shortened(shape.name.replace("_", " "), _font(13), room)
        draw.text((x + 40, y + 11), name, TEXT, _font(13), anchor="lm")
        draw.text(
            (x + 40 + _font(13).getlength(name) + 8, y + 11),
            end,
            TEXT if is_error else FAINT_TEXT,
            end_font,
            anchor="lm",
        )
    if more:
        draw.text((2, height * per_column + 11), f"and {more} more", FAINT_TEXT, _font(13), anchor="lm")
    return block


def _legend(width: int) -> Image.Image:
    """What colours and lines mean."""
    block = Image.new("RGB", (width, 54), BACKGROUND)
    draw = ImageDraw.Draw(block)
    x = 4
    for bucket, name in BUCKET_NAMES.items():
        draw.rectangle((x, 6, x + 16, 22), fill=COLOURS[bucket], outline="black")
        draw.text((x + 24, 14), name, TEXT, _font(13), anchor="lm")
        x += int(24 + _font(13).getlength(name) + 20)
    x = 4
    for text, line, is_error in (
        ("found, right", 2, False),
        ("missed, false", 2, True),
        ("not judged by the annotations; on the left: of other categories than chosen", 1, False),
    ):
        pixels = np.full((20, 30, 3), 190, dtype=np.float32)
        mask = np.zeros((20, 30), dtype=bool)
        mask[4:16, 4:26] = True
        if line == 2 and not is_error:
            pixels[mask] = (1 - FILL) * pixels[mask] + FILL * np.array(COLOURS["f"])
        _outline(pixels, mask, COLOURS["f"], line, is_error)
        block.paste(Image.fromarray(pixels.astype(np.uint8)), (x, 30))
        draw.text((x + 38, 40), text, TEXT, _font(13), anchor="lm")
        x += int(38 + _font(13).getlength(text) + 24)
    return block


def _line(text: str, width: int, size: int = 15, bold: bool = False) -> Image.Image:
    block = Image.new("RGB", (width, size + 11), BACKGROUND)
    font = _font(size, bold)
    ImageDraw.Draw(block).text((4, block.height / 2), _shortened(text, font, width - 8), TEXT, font, anchor="lm")
    return block


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONTS[bold], size)


def in_a_row(images: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """Side by side, their upper edges in a line."""
    return _joined(images, gap, 0, down=False)


def _stack(images: Sequence[Image.Image], gap: int = 4, border: int = 0) -> Image.Image:
    """One below the other, their left edges in a line."""
    return _joined(images, gap, border, down=True)


def _joined(images: Sequence[Image.Image], gap: int, border: int, down: bool) -> Image.Image:
    widths, heights = [image.width for image in images], [image.height for image in images]
    between = gap * (len(images) - 1)
    size = (max(widths), sum(heights) + between) if down else (sum(widths) + between, max(heights))
    sheet = Image.new("RGB", (size[0] + 2 * border, size[1] + 2 * border), BACKGROUND)
    x = y = border
    for image in images:
        sheet.paste(image, (x, y))
        x, y = (x, y + image.height + gap) if down else (x + image.width + gap, y)
    return sheet
