"""Files that survive a crash: JSON written whole or not at all and checked when read, appended lines, locks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rio_bench.errors import UserError


class RecordError(UserError):
    """A file of a result folder that cannot be read or written, or is not what its place says: names the file."""


class UnreadableError(RecordError):
    """The file system does not give the file's content: what it holds is not known."""


class Stored(BaseModel):
    """JSON that lies in a result folder: strict about keys, finite numbers or null only."""

    # "constants": NaN in an open dict reaches json.dumps, which refuses it, rather than turning into null
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")


StoredModel = TypeVar("StoredModel", bound=Stored)


def read_stored(path: Path, model: type[StoredModel]) -> StoredModel | None:
    """Read a JSON file as `model`; None where it does not exist, RecordError where it is torn or of another shape."""
    try:
        content = path.read_bytes()
        if b"NaN" not in content and b"Infinity" not in content:  # which this parser takes in an open dict
            with contextlib.suppress(ValidationError):  # told below
                return model.model_validate_json(content)  # a third of the time
        return model.model_validate(json.loads(content, parse_constant=_refuse_constant))
    except (FileNotFoundError, NotADirectoryError):  # a stray file in runs/ is no run
        return None
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: not a file of this version of rio_bench: {key}: {first['msg']}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise RecordError(f"{path}: torn or not JSON ({error})") from error


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def to_json(stored: Stored) -> str:
    """The text of a file; ValueError on NaN or infinity, which JSON does not have."""
    return json.dumps(stored.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, and a crash at any moment, finds the old content or the new, never a part.

    Raises RecordError where it cannot be written (a full disk, a read-only folder); the old content then stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the new name too must survive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):  # a read-only file system
            temporary.unlink(missing_ok=True)
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error


def append_json_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one line in one write. A torn line before it (a crash) is closed first, so that only it is lost."""
    with open(path, "ab+") as file:
        torn = False
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(values, allow_nan=False).encode() + b"\n")


class FileLock:
    """A held flock: free as soon as it is released or its process is dead, however that ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> None:
        """Replace what the locked file holds."""
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)


def take_lock(path: Path) -> FileLock | None:
    """Take the flock of a file, which is made where there is none; None where another process holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise RecordError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise RecordError(f"{path}: cannot be locked: {error.strerror}") from error
    return FileLock(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the flock of a file; a reader may not be allowed to write.

    Asked for as a shared one, so that two who look at the same time do not take each other for its holder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise RecordError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
