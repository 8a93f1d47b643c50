"""What is kept between two starts under the cache folder: hashes of big files. Losing it costs time alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from rio_bench.errors import UserError
from rio_bench.files import RecordError, Stored, StoredModel, read_stored, to_json, write_atomically

SETTLED_NANOSECONDS = 2_000_000_000  # a younger file may change again within one tick of its file system's clock


def cache_folder() -> Path:
    """$RIO_BENCH_CACHE, or ~/.cache/rio_bench."""
    return Path(os.environ.get("RIO_BENCH_CACHE") or Path.home() / ".cache" / "rio_bench").expanduser().absolute()


class KnownHash(Stored):
    """A file's hash, and what its folder entry said when it was taken."""

    path: str
    stamp: tuple[int, ...]
    sha256: str


def file_hash(path: Path) -> str:
    """SHA-256 of a file (64 hex digits), taken anew when its size, times or inode differ from when it was last taken.

    Raises UserError where it cannot be read, or is being written.
    """
    path = path.absolute()
    place = cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    try:
        with path.open("rb") as file:
            stamp = _stamp(file.fileno())
            known = read_cached(place, KnownHash)
            if known is not None and (known.path, known.stamp) == (str(path), stamp):
                return known.sha256
            began = time.time_ns()
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if _stamp(file.fileno()) != stamp:
                raise UserError(f"{path}: is being written: start again when it is whole")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if began - max(stamp[1:3]) > SETTLED_NANOSECONDS:
        write_cached(place, KnownHash(path=str(path), stamp=stamp, sha256=sha256))
    return sha256


def read_cached(place: Path, model: type[StoredModel]) -> StoredModel | None:
    """What was kept there; None for nothing, and for a file that is torn or of another version."""
    try:
        return read_stored(place, model)
    except RecordError:
        return None


def write_cached(place: Path, stored: Stored) -> None:
    """Keep it, where the cache folder can be written."""
    with contextlib.suppress(RecordError, OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, to_json(stored))


def _stamp(descriptor: int) -> tuple[int, ...]:
    """Size, both times of change (a copy that keeps the one cannot keep the other), inode."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
