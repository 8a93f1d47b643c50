"""Detections files: LVIS's result format, written and read as a stream, so that they are never all held in memory.

A file is a JSON list of {"image_id", "category_id": the annotation file's, "bbox": [x, y, width, height] in pixels,
"score", "segmentation": a mask's RLE}, compressed by gzip or not. What is written here has detection N on line N.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec

from rio_bench.datasets.rle import Mask, Polygons
from rio_bench.errors import UserError

GZIP_LEVEL = 1  # a fifteenth of the default level's time, for a file a quarter larger (benchmarks/evaluation.py's)
BATCH_SIZE = 2_000
READ_BYTES = 2**20


class DetectionsWriter:
    """Appends detections to a file, compressed where its name ends in .gz.

        with DetectionsWriter(path) as writer:
            writer.write(detections)

    The file appears under its name when the block ends without an error, whole, or not at all. Raises UserError where
    it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # a run's other processes have theirs
        self._separator = b"["

    def __enter__(self) -> Self:
        with self._told():
            self._raw = open(self._partial, "wb")
        self._file: Any = self._raw
        if self._path.suffix == ".gz":
            self._file = gzip.GzipFile("", "wb", GZIP_LEVEL, self._raw, mtime=0)
        return self

    def write(self, detections: list[dict]) -> None:
        """Append; ValueError for a number that is not finite, as JSON has none."""
        lines = [json.dumps(detection, separators=(",", ":"), allow_nan=False).encode() for detection in detections]
        with self._told():
            for line in lines:
                self._file.write(self._separator + line)
                self._separator = b",\n"

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is None:
                with self._told():
                    self._finish()
        finally:
            with contextlib.suppress(OSError):
                self._raw.close()
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._file.write(b"[]\n" if self._separator == b"[" else b"]\n")
        if self._file is not self._raw:
            self._file.close()  # gzip's rest; raw stays open
        self._raw.flush()
        os.fsync(self._raw.fileno())
        os.replace(self._partial, self._path)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror}") from error


Id = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]


class Detection(msgspec.Struct, gc=False):
    """One element of a file. Other keys are passed over."""

    image_id: Id
    category_id: Id
    score: float
    bbox: tuple[float, float, float, float] | None = None  # a detector may give only masks
    segmentation: Mask | Polygons | None = None  # or only boxes


@dataclass(frozen=True)
class Batch:
    """Detections that follow each other in a file."""

    detections: list[Detection]
    path: Path
    first: int  # the number of the first one, counted from 1
    share_read: float  # of the file's bytes, 0..1

    def place(self, index: int) -> str:
        """How an error's line about a detection of this batch begins."""
        return f"{self.path}: detection {self.first + index}"


def read_batches(path: Path) -> Iterator[Batch]:
    """The detections of a file in batches, in order, whatever its layout.

    Raises UserError, with the number of the detection, where the file is missing, torn, not JSON (which has no NaN), or
    an element is not a detection.
    """
    first = 1
    try:
        try:
            for detections, share_read in _read_lines(path):
                yield Batch(detections, path, first, share_read)
                first += len(detections)
        except msgspec.DecodeError:  # another layout, or an error, that the slower way tells better
            for detections, share_read in _read_any_layout(path, first):
                yield Batch(detections, path, first, share_read)
                first += len(detections)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: torn after detection {first - 1} or soon after: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: the detections file cannot be read ({error.strerror})") from error


def _read_lines(path: Path) -> Iterator[tuple[list[Detection], float]]:
    """Detections of a file that has whole ones on each line, as those written here, and the share read.

    msgspec.DecodeError at the first block of lines of which that is not true.
    """
    decoder = msgspec.json.Decoder(list[Detection])
    with _opened(path) as (file, share_read):
        if b"\n" not in file.peek():
            raise msgspec.DecodeError("one long line")
        is_first = True
        while block := file.read(READ_BYTES):
            block = (block + file.readline()).rstrip()
            is_last = not file.peek()
            text = block if is_first else b"[" + block
            if not is_last:
                if not text.endswith(b","):
                    raise msgspec.DecodeError("a line that does not end with a detection")
                text = text[:-1] + b"]"
            if detections := decoder.decode(text):
                yield detections, share_read()
            is_first = False


def _read_any_layout(path: Path, first: int) -> Iterator[tuple[list[Detection], float]]:
    """Detections from the one with the number `first` on, and the share read."""
    import ijson

    number = 0
    batch: list[Detection] = []
    with _opened(path) as (file, share_read):
        if file.peek().lstrip()[:1] not in (b"[", b""):
            raise UserError(f"{path}: not a detections file: expected a JSON list, as LVIS results are")
        try:
            for number, element in enumerate(ijson.items(file, "item", use_float=True), start=1):
                if number < first:
                    continue
                batch.append(msgspec.convert(element, Detection))
                if len(batch) == BATCH_SIZE:
                    yield batch, share_read()
                    batch = []
        except msgspec.ValidationError as error:
            raise UserError(f"{path}: detection {number}: {error}") from error
        except ijson.JSONError as error:
            # what the parser says, and the text that it stopped at
            told = "; ".join(line.strip() for line in str(error).splitlines()[:2] if line.strip())
            raise UserError(f"{path}: detection {number + 1}: torn or not JSON: {told}") from error
    if batch:
        yield batch, 1.0


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedReader[Any], Callable[[], float]]]:
    """The file, unpacked where it is gzip, and a function that tells the share of its bytes read."""
    with io.BufferedReader(io.FileIO(path), READ_BYTES) as raw:
        size = os.fstat(raw.fileno()).st_size
        is_gzip = raw.peek()[:2] == b"\x1f\x8b"
        file = io.BufferedReader(gzip.GzipFile(fileobj=raw), READ_BYTES) if is_gzip else raw
        yield file, lambda: raw.tell() / size
