"""The key ``dataset`` of an experiment file: a data set's name, or one's own files."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, InstanceOf, PlainSerializer, field_validator

from rio_bench import datasets
from rio_bench.datasets.lvis import Dataset, Split
from rio_bench.errors import did_you_mean
from rio_bench.strict import Model


class OwnSplit(Model):
    annotations: str = Field(alias="json", description="in the LVIS or the COCO format")
    images: str = Field(description="the folder that the names of the pictures are relative to")


class OwnDataset(Model):
    """One's own files. In a file: ``{name: birds, train: {json: ..., images: ...}, val: {json: ..., images: ...}}``."""

    name: str | None = Field(default=None, description="in tables; none: the training file's")
    train: OwnSplit
    val: OwnSplit

    @field_validator("name")
    @classmethod
    def _is_no_other(cls, name: str | None) -> str | None:
        if name in datasets.names():
            raise ValueError(f"'{name}' is another data set's name")
        if name is not None and not name.strip():
            raise ValueError("expected a name, got an empty text")
        return name


def read_dataset(data: Any) -> str | Dataset:
    """A data set's name, or one's own files with absolute paths: a worker may be started in another folder."""
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str):
        if data not in datasets.names():
            raise ValueError(f"unknown dataset '{data}'{did_you_mean(data, datasets.names())}")
        return data
    if not isinstance(data, dict):
        expected = "a data set's name or {train: {json: FILE, images: FOLDER}, val: {json: FILE, images: FOLDER}}"
        raise ValueError(f"expected {expected}, got {reprlib.repr(data)}")
    own = OwnDataset.model_validate(data)
    train, val = (
        Split(Path(split.annotations).expanduser().absolute(), Path(split.images).expanduser().absolute())
        for split in (own.train, own.val)
    )
    return Dataset(own.name or train.annotations.stem, train, val)


def _plain(dataset: str | Dataset) -> str | dict[str, Any]:
    """What read_dataset gives the data set back from."""
    if isinstance(dataset, str):
        return dataset
    train, val = (
        {"json": str(split.annotations), "images": str(split.images)} for split in (dataset.train, dataset.val)
    )
    return {"name": dataset.name, "train": train, "val": val}


DatasetChoice = Annotated[str | InstanceOf[Dataset], BeforeValidator(read_dataset), PlainSerializer(_plain)]
