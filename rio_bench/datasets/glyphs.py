"""The embedded data sets: glyphs of DejaVu Sans (the font matplotlib ships) on textures, long-tailed and federated
as LVIS is, in the LVIS v1 file format, made from a seed with no download.

A making has two steps. `plan_split` decides which categories each picture shows, so that the image counts hold
exactly; `draw_image` (glyph_images.py) draws a picture from its plan and its own random stream, so that the bytes
do not depend on the number of processes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from rio_bench.datasets.cache import cache_folder
from rio_bench.datasets.glyph_images import PlannedImage
from rio_bench.datasets.inspection import bucket
from rio_bench.datasets.lvis import Dataset, Split
from rio_bench.errors import UserError

GENERATOR_VERSION = 2  # raise it with every change that changes the bytes: it is part of the fingerprint

SPLITS = ("train", "val")
SECOND_INSTANCE = 0.12  # chance that a picture shows one more object of a category, and again one more
NOT_EXHAUSTIVE = 0.03  # chance that a category of a picture has one more object, which is not annotated
UNANNOTATED = 0.15  # chance that a picture shows an object of a category that nobody looked for


@dataclass(frozen=True)
class Preset:
    """What a glyph data set is made of. `glyphs[i]` has `image_counts[i]` training images."""

    name: str
    glyphs: str
    image_counts: tuple[int, ...]
    val_image_counts: tuple[int, int, int]  # validation images of each rare, common, frequent category
    num_images: tuple[int, int]  # training, validation
    image_size: int  # pixels, pictures are square
    object_size: tuple[int, int]  # pixels, the longer side of an object, log-uniform
    max_categories: int  # annotated in one picture
    negatives: int  # categories verified absent, in each picture
    image_format: str  # "png" or "jpg"
    seed: int = 0


def category_name(glyph: str) -> str:
    """The character's Unicode name as LVIS spells names: `greek_capital_letter_omega`."""
    return unicodedata.name(glyph).lower().replace(" ", "_").replace("-", "_")


# Zipf-like within LVIS's bounds; the glyphs are told apart at any size, within 30 degrees, and mirrored.
GLYPHS_MINI = Preset(
    name="glyphs-mini",
    glyphs="♥5KΨ☂AЩ★Δ@&Ж☎MΩ?4♞λR#✈ξQ€⚓ΣG♫7",
    image_counts=(
        *(160, 148, 138, 130, 123, 117, 112, 108, 105, 102),
        *(95, 76, 61, 49, 39, 31, 25, 20, 15, 12),
        *(10, 9, 8, 7, 6, 5, 4, 3, 2, 1),
    ),
    val_image_counts=(8, 14, 34),
    num_images=(320, 120),
    image_size=128,
    object_size=(18, 64),
    max_categories=9,
    negatives=6,
    image_format="png",
)


def _glyphs_lvis() -> Preset:
    """LVIS v1's categories and image counts with the head capped; every bucket is as in LVIS: 337 r, 461 c, 405 f."""
    table = Path(__file__).with_name("glyphs_lvis.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in table if not line.startswith("#")))
    return Preset(
        name="glyphs-lvis",
        glyphs="".join(chr(int(row["codepoint"], 16)) for row in rows),
        image_counts=tuple(min(int(row["lvis_image_count"]), 300) for row in rows),
        val_image_counts=(5, 8, 16),
        num_images=(20_000, 2_400),
        image_size=320,
        object_size=(24, 128),
        max_categories=14,
        negatives=10,
        image_format="jpg",
    )


GLYPHS_LVIS = _glyphs_lvis()
PRESETS = {preset.name: preset for preset in (GLYPHS_MINI, GLYPHS_LVIS)}


def fingerprint(preset: Preset) -> str:
    """16 hex digits of everything the data set is made from; nothing is made."""
    text = json.dumps([GENERATOR_VERSION, asdict(preset)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make(preset: Preset, workers: int | None = None) -> Dataset:
    """The data set, made on first use under the cache folder by `workers` processes (default: one a core).

    It appears under its name at once and whole, or not at all. Raises UserError where the cache cannot be written.
    """
    folder = _folder(preset)
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.is_dir():  # another process may have made it meanwhile
                    _make_folder(preset, folder, workers or len(os.sched_getaffinity(0)))
        except OSError as error:
            raise UserError(
                f"{folder}: the data set {preset.name} cannot be written here ({error.strerror}); "
                "set RIO_BENCH_CACHE to a folder with room"
            ) from error
    return _files(preset, folder)


def find(preset: Preset) -> Dataset | None:
    """The data set where it has been made; nothing is made."""
    folder = _folder(preset)
    return _files(preset, folder) if folder.is_dir() else None


def _folder(preset: Preset) -> Path:
    return cache_folder() / f"{preset.name}-{fingerprint(preset)}"


def _files(preset: Preset, folder: Path) -> Dataset:
    train, val = (Split(folder / f"{split}.json", folder) for split in SPLITS)
    return Dataset(preset.name, train, val)


def _make_folder(preset: Preset, folder: Path, workers: int) -> None:
    for left_over in folder.parent.glob(f"{folder.name}.partial-*"):  # of a making that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        plans = {split: plan_split(preset, split) for split in SPLITS}
        for split in SPLITS:
            (partial / split).mkdir(parents=True)
        drawn = _draw_all(preset, partial, [image for split in SPLITS for image in plans[split]], workers)
        objects = {"train": drawn[: len(plans["train"])], "val": drawn[len(plans["train"]) :]}
        categories = _categories(preset, objects["train"])
        for split in SPLITS:
            content = _lvis_content(preset, split, categories, plans[split], objects[split])
            (partial / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
        os.sync()  # a power cut must not leave a renamed folder with empty files
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def plan_split(preset: Preset, split: str) -> list[PlannedImage]:
    """Which categories each picture of a split shows, so that every category has its exact number of images.

    Rare objects share pictures with frequent ones, as in LVIS: each category takes its images independently.
    """
    # Image i draws from [seed, split, i + 1]: entropy is padded with zeros, so the plan needs a last number too.
    random = np.random.default_rng([preset.seed, SPLITS.index(split), 0])
    num_images, num_categories = preset.num_images[SPLITS.index(split)], len(preset.glyphs)
    buckets = [bucket(count) for count in preset.image_counts]
    counts = preset.image_counts
    if split == "val":
        counts = tuple(preset.val_image_counts["rcf".index(name)] for name in buckets)

    shown = np.zeros((num_images, num_categories), dtype=bool)
    taken = np.zeros(num_images, dtype=int)
    crowdedness = np.log(random.uniform(0.3, 1.7, num_images))
    for category in np.argsort(counts, kind="stable")[::-1]:
        free = taken < preset.max_categories
        if free.sum() < counts[category]:
            raise ValueError(f"{preset.name}: {num_images} {split} images are too few for the image counts")
        key = crowdedness + random.gumbel(size=num_images)  # weighted draw without replacement (Gumbel top-k)
        chosen = np.argsort(np.where(free, -key, np.inf), kind="stable")[: counts[category]]
        shown[chosen, category] = True
        taken[chosen] += 1

    frequent = np.array([name == "f" for name in buckets])
    return [
        _plan_image(preset, split, index, np.flatnonzero(shown[index]), frequent, random) for index in range(num_images)
    ]


def _plan_image(
    preset: Preset, split: str, index: int, annotated: np.ndarray, frequent: np.ndarray, random: np.random.Generator
) -> PlannedImage:
    objects: list[tuple[int, bool]] = []
    not_exhaustive: list[int] = []
    for category in annotated.tolist():
        objects.append((category, True))
        while random.random() < SECOND_INSTANCE:
            objects.append((category, True))
        if random.random() < NOT_EXHAUSTIVE:
            objects.append((category, False))
            not_exhaustive.append(category)
    absent = np.setdiff1d(np.arange(len(preset.glyphs)), annotated)
    unlooked = absent[frequent[absent]]
    if unlooked.size and random.random() < UNANNOTATED:
        extra = int(random.choice(unlooked))
        objects.append((extra, False))
        absent = absent[absent != extra]
    negatives = random.choice(absent, size=min(preset.negatives, absent.size), replace=False)
    return PlannedImage(
        split=split,
        index=index,
        seed=(preset.seed, SPLITS.index(split), index + 1),
        file_name=f"{split}/{index + 1:06d}.{preset.image_format}",
        objects=tuple(objects[i] for i in random.permutation(len(objects))),
        negatives=tuple(sorted(negatives.tolist())),
        not_exhaustive=tuple(not_exhaustive),
    )


def _draw_all(preset: Preset, folder: Path, plans: Sequence[PlannedImage], workers: int) -> list[list[dict]]:
    """Draw and write every picture; the annotations of each, in order."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"making the data set {preset.name}: {len(plans)} pictures", file=sys.stderr, flush=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    jobs = [(preset.glyphs, preset.image_size, preset.object_size, plan, str(folder)) for plan in plans]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        drawn = _run_workers(jobs, min(workers, len(jobs)))
        objects = list(progress.track(drawn, total=len(jobs), description=f"making {preset.name}"))
    if not console.is_terminal:
        print(f"made the data set {preset.name} in {folder.parent}", file=sys.stderr, flush=True)
    return objects


def _run_workers(jobs: Sequence[tuple], workers: int) -> Iterator[list[dict]]:
    """Worker w draws jobs w, w + workers, ...; yields each job's annotations, in the order of the jobs.

    Plain child processes and not multiprocessing: that would run the caller's script again (spawn) or copy its
    threads' locks (fork). A worker whose parent dies ends at its next write to the closed pipe.
    """
    command = [sys.executable, "-c", "from rio_bench.datasets.glyph_images import draw_jobs; draw_jobs()"]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with ExitStack() as stack:
        processes = []
        for worker in range(workers):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            stack.enter_context(process)
            stack.callback(process.kill)  # runs before the wait of the line above
            processes.append(process)
            assert process.stdin is not None
            try:
                with process.stdin as pipe:  # closed here: the process's own exit would try again to write the rest
                    pipe.write(pickle.dumps(jobs[worker::workers]))
            except BrokenPipeError as error:  # an OSError, but not of the cache folder
                raise UserError(
                    f"a process that draws the pictures ended before it took its work (exit status {process.wait()}): "
                    "if it told an error, that is above"
                ) from error
        for index in range(len(jobs)):
            output = processes[index % workers].stdout
            assert output is not None
            line = output.readline()
            if not line.endswith(b"\n"):
                raise UserError("a process that draws the pictures ended early: its error is above")
            yield json.loads(line)


def _categories(preset: Preset, train_objects: list[list[dict]]) -> list[dict[str, Any]]:
    """The file's categories. Counts and frequency are those of the training images in both files, as in LVIS."""
    instances = np.zeros(len(preset.glyphs), dtype=int)
    for objects in train_objects:
        for entry in objects:
            instances[entry["category"]] += 1
    return [
        {
            "id": index + 1,
            "name": category_name(glyph),
            "synset": f"{category_name(glyph)}.n.01",
            "synonyms": [category_name(glyph)],
            "def": f"the glyph {glyph} (U+{ord(glyph):04X}) of DejaVu Sans",
            "frequency": bucket(preset.image_counts[index]),
            "image_count": preset.image_counts[index],
            "instance_count": int(instances[index]),
        }
        for index, glyph in enumerate(preset.glyphs)
    ]


def _lvis_content(
    preset: Preset, split: str, categories: list[dict], plans: list[PlannedImage], objects: list[list[dict]]
) -> dict[str, Any]:
    size = preset.image_size
    images = [
        {
            "id": plan.index + 1,
            "file_name": plan.file_name,
            "coco_url": f"rio-bench://{preset.name}/{plan.file_name}",
            "flickr_url": "",
            "date_captured": "",
            "license": 1,
            "height": size,
            "width": size,
            "neg_category_ids": [category + 1 for category in plan.negatives],
            "not_exhaustive_category_ids": [category + 1 for category in plan.not_exhaustive],
        }
        for plan in plans
    ]
    annotations = [
        {
            "image_id": plan.index + 1,
            "category_id": entry["category"] + 1,
            "bbox": entry["bbox"],
            "area": entry["area"],
            "segmentation": entry["segmentation"],
        }
        for plan, entries in zip(plans, objects, strict=True)
        for entry in entries
    ]
    return {
        "info": {
            "description": f"{preset.name}, {split}",
            "version": str(GENERATOR_VERSION),
            "year": "",
            "contributor": "",
            "url": "",
            "date_created": "",
        },
        "licenses": [
            {
                "id": 1,
                "name": "Bitstream Vera licence, the font's",
                "url": "https://dejavu-fonts.github.io/License.html",
            }
        ],
        "categories": categories,
        "images": images,
        "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)],
    }
