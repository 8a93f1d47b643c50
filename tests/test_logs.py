"""Which run a text stands for, and its log: whole, or as it grows over several attempts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_worker
import pytest

from rio_bench import logs
from rio_bench.errors import UserError
from rio_bench.find import find_run
from rio_bench.records import ResultFolder, RunFolder, StoredPlan, StoredRun

NAMES = ["none-R18-FPN-seed0-00aa", "rio-R18-FPN-seed0-00bb", "rio-R18-FPN-seed1-00cc"]


def stored(name: str) -> StoredRun:
    identity = name.rpartition("-")[2]
    config = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": {"name": "rio"}, "iterations": 10}
    return StoredRun(
        name=name, identity=identity, experiment="sweep", method="rio", is_base=False, after=None, config=config
    )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two experiments with one run in common; the last run of the plan has no folder yet."""
    for experiment, names in (("sweep", NAMES), ("other", NAMES[:1])):
        folder = ResultFolder(tmp_path / "results" / experiment)
        runs = tuple(stored(name) for name in names)
        folder.write_plan(StoredPlan(experiment=experiment, baseline="none", runs=runs))
        for run in runs[:2]:
            folder.run(run.name).create()
            folder.run(run.name).write_run(run)
    return tmp_path / "results"


@pytest.fixture
def folder(results: Path) -> RunFolder:
    return ResultFolder(results / "sweep").run(NAMES[1])


# Which run is meant


def test_a_name_a_part_of_it_or_a_folder_stands_for_a_run(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = ResultFolder(results / "sweep")
    for text in (NAMES[1], "00bb", "rio-R18-FPN-seed0", str(sweep.run(NAMES[1]).path)):
        assert find_run(text, results).path == sweep.run(NAMES[1]).path
    assert find_run("none", results / "sweep").path == sweep.run(NAMES[0]).path  # one result folder
    assert find_run("seed1", results).path == sweep.run(NAMES[2]).path  # planned, without a folder
    sweep.run(f"{NAMES[1]}-longer").create()
    assert find_run(NAMES[1], results).name == NAMES[1]  # the whole name, though another one contains it
    monkeypatch.chdir(sweep.run(NAMES[1]).path)
    assert find_run(".", results).name == NAMES[1]
    monkeypatch.chdir(results.parent)
    (results.parent / "00aa").mkdir()  # a folder that holds no run is none
    assert find_run("00aa", results / "sweep").name == NAMES[0]


def test_a_text_that_stands_for_several_or_none_is_told_in_a_line(results: Path) -> None:
    def told(text: str) -> str:
        with pytest.raises(UserError) as caught:
            find_run(text, results)
        return str(caught.value)

    assert told("rio") == f"rio: 2 runs have it in their names: {NAMES[1]}, {NAMES[2]}"
    both = [str(ResultFolder(results / name).run(NAMES[0]).path) for name in ("other", "sweep")]
    assert told("none-R18-FPN-seed0-00aa") == f"{NAMES[0]}: 2 runs have it in their names: {', '.join(both)}"
    assert told("nome") == f"nome: no run below {results} has it in its name (did you mean 'none'?)"
    assert told("rio-R18-FPN-sed1").endswith("(did you mean 'rio-R18-FPN-seed1'?)")
    assert told("xyz").endswith(f"(choose from {', '.join(sorted(NAMES))})")

    runs = tuple(stored(f"rio-R18-FPN-seed{index}-{index:04x}") for index in range(200))
    ResultFolder(results / "sweep").write_plan(StoredPlan(experiment="sweep", baseline="none", runs=runs))
    assert told("rio").startswith("rio: 201 runs have it in their names: rio-R18-FPN-seed0-0000, ")
    assert told("rio").endswith(" and 193 more")
    assert told("xyz") == f"xyz: no run below {results} has it in its name"
    with pytest.raises(UserError, match="nowhere: no runs there: run `rio_bench run"):
        find_run("rio", results / "nowhere")


def test_a_torn_plan_is_not_in_the_way(results: Path) -> None:
    ResultFolder(results / "sweep").plan_file.write_text("{")
    assert find_run("00bb", results).name == NAMES[1]


# The log


def test_the_whole_log_as_it_is(folder: RunFolder, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(UserError, match="rio-R18-FPN-seed0-00bb: has no log: it has not begun"):
        logs.print_log(folder)
    folder.log_file.write_bytes(b"one\n\xff\xfe torn \xc3")
    logs.print_log(folder)
    assert capfdbinary.readouterr().out == b"one\n\xff\xfe torn \xc3"


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def heed_ctrl_c() -> None:
    """A shell's background jobs ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def following(folder: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
    """`logs -f` of a run that has not begun, in a process of its own."""
    command = [sys.executable, "-m", "rio_bench", "logs", "-f", NAMES[1], "--results", str(folder.path.parents[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == f"{NAMES[1]}: has not begun: waiting for it\n".encode()
            yield process
        finally:
            process.kill()


def test_a_log_is_followed_over_attempts_to_the_end(folder: RunFolder, following: subprocess.Popen[bytes]) -> None:
    assert following.stdout is not None
    for line in (b"first attempt\n", b"second attempt\n"):
        harness = folder.lock()
        worker = folder.lock_as_worker()
        assert harness is not None and worker is not None
        with open(folder.log_file, "ab") as log:
            log.write(line)
        assert following.stdout.readline() == line
        worker.release()
        harness.release()
        time.sleep(0.5)  # a retry is given out within a second
        assert following.poll() is None
    with open(folder.log_file, "ab") as log:
        log.write(b"last words")
    folder.write_record(fake_worker.record_of(stored(NAMES[1]), 12.5))
    out, err = following.communicate(timeout=20)
    assert (following.returncode, out) == (0, b"last words")
    assert err.decode() == f"{NAMES[1]}: finished in 0:00:00, AP.b 12.5\n"


def test_following_ends_when_nobody_has_the_run_any_more(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "PATIENCE", 0.3)
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.02)
    worker = folder.lock_as_worker()
    assert worker is not None
    folder.log_file.write_text("a\n")
    follower = threading.Thread(target=logs.follow_log, args=(folder,), daemon=True)
    follower.start()
    time.sleep(0.6)
    assert follower.is_alive()
    folder.log_file.write_text("")  # begun anew
    time.sleep(0.2)
    folder.log_file.write_text("b\nerror: the loss is not finite\n")
    worker.release()
    follower.join(timeout=20)
    assert not follower.is_alive()
    assert capfd.readouterr().out == "a\nb\nerror: the loss is not finite\n"


def test_a_run_that_is_over_is_not_waited_for(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PATIENCE", 1000)
    folder.log_file.write_text("a\n")
    folder.write_record(fake_worker.record_of(stored(NAMES[1]), 12.5))
    follower = threading.Thread(target=logs.follow_log, args=(folder,), daemon=True)
    follower.start()
    follower.join(timeout=20)
    assert not follower.is_alive()


def test_ctrl_c_ends_it_quietly(folder: RunFolder, following: subprocess.Popen[bytes]) -> None:
    lock = folder.lock_as_worker()
    folder.log_file.write_text("a line\n")
    assert following.stdout is not None
    assert following.stdout.readline() == b"a line\n"
    following.send_signal(signal.SIGINT)
    out, err = following.communicate(timeout=20)
    assert (following.returncode, out, err) == (130, b"", b"")
    assert lock is not None
    lock.release()


def test_a_reader_that_goes_ends_it_quietly(folder: RunFolder) -> None:
    folder.log_file.write_text("a line\n" * 100_000)
    command = f"{sys.executable} -m rio_bench logs {folder.path} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=dict(os.environ), timeout=60)
    assert (done.stdout, done.stderr) == ("a line\n", "")
