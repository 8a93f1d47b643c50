"""The data sets: the embedded ones, made on first use; LVIS where Detectron2 expects its files; and one's own.

A data set is given as a name, or as a Dataset: one's own files, in the LVIS or in the COCO format.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rio_bench.datasets.inspection import BUCKETS, RIO_BANK_MAX_IMAGES, Inspection, inspect, missing_pictures
from rio_bench.datasets.lvis import Dataset, Split
from rio_bench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rio_bench.datasets.glyphs import Preset

DESCRIPTIONS = {
    "glyphs-lvis": "1,203 glyph categories with LVIS v1's image counts (at most 300), 20,000 training pictures of "
    "320 px; made on first use, for a GPU",
    "glyphs-mini": "30 glyph categories, 320 training pictures of 128 px; made on first use, for a CPU",
    "lvis_v0.5": "LVIS v0.5 on COCO's 2017 images, under $DETECTRON2_DATASETS (default: datasets)",
    "lvis_v1": "LVIS v1.0 on COCO's 2017 images, under $DETECTRON2_DATASETS (default: datasets)",
}
PICTURE_FOLDERS = ("train2017", "val2017")  # of COCO, below coco/
VAL_FOLDERS = {"lvis_v0.5": ("val2017",), "lvis_v1": PICTURE_FOLDERS}  # of the validation file


def names() -> list[str]:
    return sorted(DESCRIPTIONS)


def describe(name: str) -> str:
    """One line about a data set."""
    _check_name(name)
    return DESCRIPTIONS[name]


def label(dataset: str | Dataset | Mapping[str, Any]) -> str:
    """The short name in tables; a mapping is one's own data set as a stored configuration holds it."""
    if isinstance(dataset, Mapping):
        return dataset["name"]
    return dataset if isinstance(dataset, str) else dataset.name


def load(dataset: str | Dataset) -> Dataset:
    """The data set's files, in the LVIS format.

    An embedded one is made when it is missing (a progress bar in a terminal). What files in the COCO format lack is
    computed, and told in a line on stderr. Raises UserError for an unknown name, for files that are missing, and for
    annotation files that do not hold what they have to.
    """
    preset = _preset(dataset)
    if preset is not None:
        from rio_bench.datasets import glyphs

        return glyphs.make(preset)
    files = _existing_files(dataset)
    return files if isinstance(dataset, str) else _completed(files)


def _completed(files: Dataset) -> Dataset:
    """One's own files, with what those in the COCO format lack computed."""
    from rio_bench.datasets import coco

    train, val = _inspected(files)
    told = coco.what_is_computed(files, train, val)
    if told:
        print(f"{files.name}: {told}", file=sys.stderr, flush=True)
    return coco.as_lvis(files, _fingerprint(files), train, val)


def load_val(dataset: str | Dataset, pictures: bool = True) -> Split:
    """As `load`, the validation split alone: nothing of training need be there.

    But beside a file in the COCO format its training file, from which groups are counted.

    pictures: whether the folders of its pictures have to be there.
    """
    if isinstance(dataset, str):
        if _preset(dataset) is None:
            root, files = _files_of_lvis(dataset)
            _refuse_missing(dataset, root, [files.val.annotations], VAL_FOLDERS[dataset] if pictures else ())
            return files.val
    else:
        _refuse_missing_own(dataset.name, {"val": dataset.val}, pictures)
        if inspect(dataset.val).is_lvis:
            return dataset.val
        _refuse_missing_own(dataset.name, {"train": dataset.train}, pictures=False)
        return _completed(dataset).val
    return load(dataset).val


def check(dataset: str | Dataset) -> None:
    """Raise UserError, one line, where a run could not use the data set: before any training starts.

    Missing annotation files and pictures, broken annotations, categories that differ between training and validation.
    What the files hold is remembered by their content: a gigabyte is read once.
    """
    if _preset(dataset) is not None:
        return
    files = _existing_files(dataset)
    for split, found in zip((files.train, files.val), _inspected(files), strict=True):
        missing = missing_pictures(split, found.picture_names)
        if missing:
            raise UserError(
                f"{files.name}: {len(missing):,} of the {found.images:,} pictures of {split.annotations} are missing, "
                f"such as {missing[0]}"
            )


def fingerprint(dataset: str | Dataset) -> str:
    """16 hex digits that change with the data set's content, wherever its files lie; nothing is made.

    Of one's own and LVIS: the content of the annotation files.
    """
    preset = _preset(dataset)
    if preset is not None:
        from rio_bench.datasets import glyphs

        return glyphs.fingerprint(preset)
    return _fingerprint(_existing_files(dataset))


def _fingerprint(files: Dataset) -> str:
    from rio_bench.datasets.cache import file_hash

    digest = hashlib.sha256()
    for split in (files.train, files.val):
        digest.update(bytes.fromhex(file_hash(split.annotations)))
    return digest.hexdigest()[:16]


def statistics(dataset: str | Dataset) -> tuple[Inspection, Inspection] | None:
    """What the training and the validation file hold; None for an embedded data set that has not been made."""
    preset = _preset(dataset)
    if preset is not None:
        from rio_bench.datasets import glyphs

        made = glyphs.find(preset)
        return None if made is None else (inspect(made.train), inspect(made.val))
    return _inspected(_existing_files(dataset))


def summary(dataset: str | Dataset) -> str:
    """The statistics in a line, with what is computed where files are in the COCO format."""
    from rio_bench.datasets import coco

    found = statistics(dataset)
    if found is None:
        return "made on first use"
    train, val = found
    buckets = ", ".join(f"{count:,} {BUCKETS[key]}" for key, count in coco.bucket_sizes(train).items())
    text = (
        f"{train.images:,} + {val.images:,} pictures, {train.objects:,} + {val.objects:,} objects, "
        f"{len(train.categories):,} categories ({buckets}), "
        f"{train.bank_categories():,} in at most {RIO_BANK_MAX_IMAGES} training pictures"
    )
    computed = "" if isinstance(dataset, str) else coco.what_is_computed(dataset, train, val)
    return f"{text}; {computed}" if computed else text


def _check_name(name: str) -> None:
    if name not in DESCRIPTIONS:
        raise UserError(f"no data set is named '{name}'{did_you_mean(name, DESCRIPTIONS)}")


def _preset(dataset: str | Dataset) -> Preset | None:
    """What an embedded data set is made from; None for LVIS and one's own."""
    if isinstance(dataset, Dataset):
        return None
    _check_name(dataset)
    if not dataset.startswith("glyphs-"):
        return None
    from rio_bench.datasets import glyphs

    return glyphs.PRESETS[dataset]


def _existing_files(dataset: str | Dataset) -> Dataset:
    """The data set's annotation files and picture folders. Raises UserError that tells all that is missing."""
    if isinstance(dataset, Dataset):
        _refuse_missing_own(dataset.name, {"train": dataset.train, "val": dataset.val})
        return dataset
    root, files = _files_of_lvis(dataset)
    _refuse_missing(dataset, root, [files.train.annotations, files.val.annotations], PICTURE_FOLDERS)
    return files


def _refuse_missing_own(name: str, splits: Mapping[str, Split], pictures: bool = True) -> None:
    missing = [
        f"{role}.{key} ({path.absolute()})"
        for role, split in splits.items()
        for key, path, is_there in (
            ("json", split.annotations, split.annotations.is_file()),
            ("images", split.images, split.images.is_dir() or not pictures),
        )
        if not is_there
    ]
    if missing:
        raise UserError(f"dataset {name}: {', '.join(missing)} missing: expected a file and a folder each")


def _refuse_missing(name: str, root: Path, annotations: Iterable[Path], picture_folders: Iterable[str]) -> None:
    """UserError that tells which of LVIS's files and COCO's folders are not there, and what to download."""
    coco = root / "coco"
    missing = [path.name for path in annotations if not path.is_file()]
    folders = [folder for folder in picture_folders if not (coco / folder).is_dir()]
    if missing or folders:
        places = [f"{root}/lvis/{file}" for file in missing] + [f"{coco}/{folder}" for folder in folders]
        downloads = [f"{file}.zip (lvisdataset.org)" for file in missing]
        downloads += [f"{folder}.zip (cocodataset.org)" for folder in folders]
        raise UserError(
            f"{name}: missing {', '.join(places)}: unpack {', '.join(downloads)} there, or set DETECTRON2_DATASETS "
            "to the folder that holds lvis/ and coco/"
        )


def _files_of_lvis(name: str) -> tuple[Path, Dataset]:
    """The root folder, and where a version's files have to be below it."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser().absolute()
    train, val = (Split(root / "lvis" / f"{name}_{split}.json", root / "coco") for split in ("train", "val"))
    return root, Dataset(name, train, val)


def _inspected(files: Dataset) -> tuple[Inspection, Inspection]:
    """What both files hold. Raises UserError where a run could not use them."""
    train, val = inspect(files.train), inspect(files.val)
    for split, found in ((files.train, train), (files.val, val)):
        path = split.annotations
        if files.name in DESCRIPTIONS and not found.is_lvis:
            raise UserError(f"{path}: not in the LVIS format: is it the file of another data set?")
        if found.is_lvis and found.first_without_mask is not None:
            raise UserError(
                f"{path}: annotation {found.first_without_mask} has no mask ({found.without_mask} of them): expected "
                "polygons of 3 points or more, or run lengths"
            )
        if not found.objects:
            raise UserError(f"{path}: has no objects with a mask")
    if val.first_without_area is not None:
        raise UserError(
            f"{files.val.annotations}: annotation {val.first_without_area} has no area: evaluation needs it"
        )
    of_train, of_val = ({entry["id"]: entry["name"] for entry in found.categories} for found in (train, val))
    for category in sorted({*of_train, *of_val}):
        if of_train.get(category) != of_val.get(category):
            raise UserError(
                f"{files.name}: category {category} is {_named(of_train.get(category))} in {files.train.annotations} "
                f"and {_named(of_val.get(category))} in {files.val.annotations}: expected the same categories in both"
            )
    return train, val


def _named(name: str | None) -> str:
    return "missing" if name is None else f"'{name}'"
