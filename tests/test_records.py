"""The result folder: whole records or none, locks that outlive the harness, files of others named and left out."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rio_bench.records import (
    Attempt,
    Holder,
    Metrics,
    Record,
    RecordError,
    ResultFolder,
    RunFolder,
    StoredPlan,
    StoredRun,
    append_json_line,
    to_json,
    write_atomically,
)


def metrics(ap: float | None = 12.5) -> Metrics:
    return Metrics(AP=ap, AP50=ap, AP75=ap, APr=None, APc=ap, APf=ap, per_category={"glyph a": ap, "glyph b": None})


def record(name: str = "rio-R18-FPN-seed0-00ff", identity: str = "00ff", method: str = "rio") -> Record:
    return Record(
        identity=identity,
        name=name,
        method=method,
        experiment="quickstart",
        config={"strategy": {"name": "rio"}, "iterations": 4},
        seed=0,
        metrics={"box": metrics(), "mask": metrics(11.0)},
        num_train_images=320,
        passes=2.5,
        base_passes=0,
        seconds={"train": 1.0, "evaluate": 0.5, "total": 1.75},
        peak_memory_bytes=10**9,
        device="cpu",
        code={"revision": None, "dirty": None},
        versions={"torch": "2.14.1"},
        finished="2026-01-01T00:00:00+00:00",
    )


def stored_run(name: str = "rio-R18-FPN-seed0-00ff", identity: str = "00ff", method: str = "rio") -> StoredRun:
    config = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": {"name": "rio"}, "iterations": 10}
    return StoredRun(
        name=name, identity=identity, experiment="quickstart", method=method, is_base=False, after=None, config=config
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = ResultFolder(tmp_path).run(record().name)
    run.create()
    return run


def test_a_record_comes_back_as_it_was_written(folder: RunFolder) -> None:
    assert folder.read_record() is None
    folder.write_record(record())
    assert folder.read_record("00ff") == record()
    assert [path.name for path in folder.path.iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_record_holds_finite_numbers_only(number: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        metrics(number)


def test_a_record_needs_box_and_mask() -> None:
    values = record().model_dump()
    del values["metrics"]["mask"]
    with pytest.raises(ValidationError, match="box and mask"):
        Record.model_validate(values)


def test_not_a_number_in_a_configuration_is_not_written(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="JSON"):
        folder.write_record(record().model_copy(update={"config": {"learning_rate": math.nan}}))
    assert not folder.record_file.exists()


GOOD = json.dumps(record().model_dump(mode="json"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "torn"),
        (GOOD[: len(GOOD) // 2], "torn"),
        ("[]", "not a file of this version"),
        (GOOD.replace("12.5", "NaN"), "NaN"),
        (GOOD.replace('"format": 1', '"format": 2'), "format"),
        (GOOD.replace('"seed": 0', '"seeds": 0'), "seed"),
        (GOOD.replace('"rio-R18-FPN-seed0-00ff"', '"rio-R18-FPN-seed1-0a0a"'), "another run"),
        (GOOD.replace('"identity": "00ff"', '"identity": "ff00"'), "another configuration"),
        ("\udcff\udcfe", "torn"),
    ],
)
def test_a_torn_or_foreign_record_is_named_and_left_out_of_tables(folder: RunFolder, content: str, reason: str) -> None:
    folder.write_run(stored_run())
    folder.record_file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RecordError) as caught:
        folder.read_record()
    assert str(folder.record_file) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)

    results = ResultFolder(folder.path.parent.parent)
    other = results.run("none-R18-FPN-seed0-0001")
    other.create()
    other.write_record(record(other.name, "0001"))
    (results.runs / "notes.txt").write_text("a stray file")
    records, warnings = results.records()
    assert [one.name for one in records] == [other.name]
    assert len(warnings) == 1
    assert str(folder.record_file) in warnings[0]


def test_a_record_asked_for_by_another_identity_is_foreign(folder: RunFolder) -> None:
    folder.write_record(record())
    with pytest.raises(RecordError, match="another configuration"):
        folder.read_record("ffff")


def test_setting_aside_loses_nothing(folder: RunFolder) -> None:
    for content in ("one", "two"):
        folder.record_file.write_text(content)
        folder.set_aside_record()
    assert not folder.record_file.exists()
    assert [path.read_text() for path in sorted(folder.path.glob("record.set-aside-*"))] == ["one", "two"]


def test_a_full_disk_leaves_the_old_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(folder.record_file, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"record\.json: cannot be written: No space left"):
        write_atomically(folder.record_file, "new")
    assert folder.record_file.read_text() == "old"
    assert [path.name for path in folder.path.iterdir() if path.name.endswith(".tmp")] == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(RecordError, match=str(tmp_path)):
        ResultFolder(tmp_path).run("a").create()
    with pytest.raises(RecordError, match=str(tmp_path)):
        ResultFolder(tmp_path).write_plan(StoredPlan(experiment="a", baseline="none", runs=()))


WRITER = """
import sys
from pathlib import Path
from typing import Any
sys.path.insert(0, sys.argv[2])
from rio_bench.records import RunFolder
from test_records import record
folder = RunFolder(Path(sys.argv[1]))
short, long = record(), record().model_copy(update={"versions": {str(i): "x" * 100 for i in range(2000)}})
print("ready", flush=True)
while True:
    folder.write_record(long)
    folder.write_record(short)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_record(folder: RunFolder) -> None:
    random_delay = random.Random(0)
    sizes = set()
    for _ in range(8):
        command = [sys.executable, "-c", WRITER, str(folder.path), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            deadline = time.monotonic() + 0.02 + 0.1 * random_delay.random()
            while time.monotonic() < deadline:  # a reader meanwhile never sees a part, either
                found = folder.read_record("00ff")
                sizes.add(len(found.versions) if found else 0)
            writer.kill()
        if folder.record_file.exists():
            assert folder.read_record("00ff") is not None
    assert {1, 2000} <= sizes  # both kinds were seen: it was read while it was written


def test_a_lock_is_held_by_one(folder: RunFolder) -> None:
    lock = folder.lock()
    assert lock is not None
    assert folder.lock() is None
    lock.release()
    again = folder.lock()
    assert again is not None
    again.release()


HOLD = """
import sys, time
from rio_bench.records import RunFolder
from pathlib import Path
from typing import Any
lock = RunFolder(Path(sys.argv[1])).lock_as_worker()
print("held" if lock else "taken", flush=True)
time.sleep(60)
"""


def test_a_run_is_taken_as_long_as_its_worker_lives(folder: RunFolder) -> None:
    assert not folder.is_worked_on()
    worker = subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "held\n"
        assert folder.is_worked_on()
        assert folder.lock() is None
        assert folder.lock_as_worker() is None
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        free = folder.lock()
        assert free is not None
        free.release()
    finally:
        worker.kill()
        worker.wait()


def test_who_does_a_run_is_told_while_it_is_done(folder: RunFolder) -> None:
    holder = Holder(host="node7", pid=12, device="cuda", started="2026-01-01T00:00:00+00:00")
    lock = folder.lock_as_worker()
    assert lock is not None
    assert folder.read_holder() is None  # taken a moment ago
    lock.write(to_json(holder))
    assert folder.read_holder() == holder
    lock.write(to_json(holder.model_copy(update={"host": "n"})))
    lock.release()
    assert folder.read_holder() is None


def test_the_plan_comes_back_and_another_experiment_is_refused(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path / "new")
    assert results.read_plan() is None
    assert results.records() == ([], [])
    plan = StoredPlan(experiment="quickstart", baseline="none", runs=(stored_run(),))
    results.write_plan(plan)
    assert results.read_plan() == plan
    with pytest.raises(RecordError, match="belongs to the experiment 'quickstart', not 'backbones'"):
        results.write_plan(StoredPlan(experiment="backbones", baseline="none", runs=()))
    assert results.read_plan() == plan


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "../x"}, "runs.0.name: "),
        ({"name": ".."}, "runs.0.name: "),
        ({"name": ""}, "runs.0.name: "),
        ({"after": "/base"}, "runs.0.after: "),
        ({"config": {"dataset": "glyphs-mini", "iterations": 10}}, "runs.0.config: .*backbone, strategy: missing"),
        ({"config": {**stored_run().config, "strategy": "rio"}}, "runs.0.config: .*one with a name, got 'rio'"),
        ({"config": {**stored_run().config, "strategy": {}}}, "runs.0.config: .*one with a name, got {}"),
    ],
)
def test_a_plan_whose_runs_no_table_could_show_is_told(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    results.write_plan(StoredPlan(experiment="quickstart", baseline="none", runs=(stored_run(),)))
    content = json.loads(results.plan_file.read_text())
    content["runs"][0].update(changes)
    results.plan_file.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=f"experiment.json: not a file of this version.*: {told}") as caught:
        results.read_plan()
    assert "\n" not in str(caught.value)


def test_records_take_the_labels_of_the_plan(folder: RunFolder) -> None:
    folder.write_record(record(method="rio"))
    results = ResultFolder(folder.path.parent.parent)
    run = stored_run(method="rio (samples_per_class=20)")
    results.write_plan(StoredPlan(experiment="quickstart", baseline="none", runs=(run,)))
    assert [one.method for one in results.records()[0]] == ["rio (samples_per_class=20)"]


def test_a_torn_line_costs_that_line_only(folder: RunFolder) -> None:
    attempt = Attempt(started="a", ended="b", exit_status=None, signal="SIGKILL", host="here", pid=1)
    folder.add_attempt(attempt)
    with folder.attempts_file.open("a") as file:
        file.write('{"started": "c", "en')
    folder.add_attempt(attempt)
    assert folder.read_attempts() == [attempt, attempt]
    assert folder.attempts_file.read_text().endswith("}\n")


def test_an_appended_line_starts_a_file(tmp_path: Path) -> None:
    append_json_line(tmp_path / "metrics.jsonl", {"phase": "evaluate"})
    append_json_line(tmp_path / "metrics.jsonl", {"iteration": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"phase": "evaluate"}\n{"iteration": 1}\n'


def test_a_read_only_file_system_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    target = tmp_path / "record.json"
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RecordError, match="record.json: cannot be written: Read-only file system"):
        write_atomically(target, "{}")
