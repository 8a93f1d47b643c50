"""Where a study lies: Optuna's journal in the result folder, or a database that a team shares."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from rio_bench.errors import UserError
from rio_bench.files import FileLock, RecordError, take_lock

LOCK_POLL_SECONDS = 0.01
LOCK_PATIENCE_SECONDS = 60.0  # it is held for milliseconds
OPENING_ATTEMPTS = 3
# Attributes of a trial in the study
RUN = "run"  # the name of its run
FOLDER = "folder"  # which result folder that lies in, where several share a database
REFUSED = "refused"  # why no run can have its parameters


class StudyLock:
    """One harness of a result folder at a time; free when its holder dies. It may be taken again while it is held.

    It stands in for Optuna's file locks (acquire and release), which a killed holder keeps for 30 seconds.

    What a killed process began to write to the journal is cut when the lock is taken: the next line would be written
    onto it, and Optuna reads no further than a line that is not JSON.
    """

    def __init__(self, path: Path, journal: Path) -> None:
        self._path, self._journal = path, journal
        self._lock: FileLock | None = None
        self._depth = 0

    def acquire(self) -> bool:
        if self._lock is None:
            self._lock = self._wait()
            cut_torn_line(self._journal)
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0 and self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> StudyLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def content(self, default: str) -> str:
        """What the lock's file holds, which is the default from the first time on. Call with the lock held."""
        assert self._lock is not None
        text = self._path.read_text(encoding="utf-8")
        if not text:
            self._lock.write(default)
        return text or default

    def _wait(self) -> FileLock:
        give_up = time.monotonic() + LOCK_PATIENCE_SECONDS
        while (lock := take_lock(self._path)) is None:
            if time.monotonic() > give_up:
                raise UserError(f"{self._path}: another process has held it for {LOCK_PATIENCE_SECONDS:.0f} s")
            time.sleep(LOCK_POLL_SECONDS)
        return lock


def cut_torn_line(journal: Path) -> None:
    """Cut a last line without its end."""
    if not journal.exists():
        return
    with open(journal, "rb+") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def repair(journal: Path) -> Path | None:
    """Cut a torn last line; cut at the first line that is none of Optuna's, and keep a copy of the whole.

    Returns the place of that copy. Call with the lock held.
    """
    if not journal.exists():
        return None
    cut_torn_line(journal)
    good, bad = 0, False
    with open(journal, "rb") as file:
        for line in file:
            if not _is_operation(line):
                bad = True
                break
            good += len(line)
    if not bad:
        return None
    copy = _set_aside_name(journal)
    shutil.copyfile(journal, copy)
    os.truncate(journal, good)
    return copy


def _is_operation(line: bytes) -> bool:
    try:
        operation = json.loads(line)
    except ValueError:
        return False
    return isinstance(operation, dict) and "op_code" in operation


def _set_aside_name(journal: Path) -> Path:
    number = 1
    while (aside := journal.with_name(f"{journal.name}.set-aside-{number}")).exists():
        number += 1
    return aside


def open_journal(journal: Path, lock: StudyLock) -> tuple[JournalStorage, Path | None]:
    """The storage, and where a damaged journal was set aside. Call with the lock held."""
    aside = repair(journal)
    try:
        return _journal_storage(journal, lock), aside
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):  # lines that contradict each other
        aside = _set_aside_name(journal)
        os.replace(journal, aside)
        return _journal_storage(journal, lock), aside


def _journal_storage(journal: Path, lock: StudyLock) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))  # type: ignore[arg-type]


def open_database(url: str) -> BaseStorage:
    """Raises UserError, without the URL's password."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":  # before SQLAlchemy 2.1 this meant psycopg2
        parsed = parsed.set(drivername="postgresql+psycopg")
    text = parsed.render_as_string(hide_password=False)
    try:
        for attempt in range(OPENING_ATTEMPTS):
            try:
                return RDBStorage(text, engine_kwargs={"pool_pre_ping": True})
            except SQLAlchemyError:
                if attempt == OPENING_ATTEMPTS - 1:
                    raise
                time.sleep(1.0)  # another process makes the tables, too
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or "its driver"
        package = "'psycopg[binary]'" if missing == "psycopg" else missing
        raise UserError(f"{masked(url)}: {missing} is not installed: pip install {package}") from error
    except RuntimeError as error:  # tables of another version of Optuna
        raise UserError(f"{masked(url)}: {_one_line(error)}") from error
    raise AssertionError


def is_url(text: str) -> bool:
    """Whether it is the URL of a database of a kind that SQLAlchemy knows."""
    try:
        make_url(text).get_dialect()
    except (ArgumentError, ImportError, ValueError):
        return False
    return True


def masked(url: str) -> str:
    """A URL without its password."""
    parsed: URL = make_url(url)
    secrets = {key: "***" for key in parsed.query if "pass" in key.lower()}
    return parsed.update_query_dict(secrets).render_as_string(hide_password=True).replace("%2A", "*")


def dashboard_command(place: str) -> str:
    """The line that shows the studies of a storage; a database's password is to be filled in."""
    return f"optuna-dashboard {shlex.quote(place)}"


@contextmanager
def errors_told(place: str) -> Iterator[None]:
    """What a storage raises as a UserError of one line; `place` names the storage."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"{error.filename or place}: {error.strerror}") from error
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        raise UserError(f"{place}: {_one_line(getattr(cause, 'orig', None) or cause or error)}") from error
    except json.JSONDecodeError as error:
        raise RecordError(f"{place}: damaged; start again: it is rebuilt from the run folders") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
