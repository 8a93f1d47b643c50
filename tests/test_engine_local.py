"""The local engine: slots, threads, and how the end of a worker is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rio_bench.attempts import exit_cause, may_be_mended
from rio_bench.config import Execution
from rio_bench.engines import make_engine, worker_command
from rio_bench.engines.local import LocalEngine, gpu_slots, visible_gpus
from rio_bench.errors import UserError
from rio_bench.records import RunFolder


@pytest.mark.parametrize(
    ("code", "log", "told"),
    [
        (2, "loading\nerror: weights: no such file\n", "exit status 2 after 0:01:05: weights: no such file"),
        (1, "Traceback:\ntorch.MyError: CUDA\nbye\n", "exit status 1 after 0:01:05: torch.MyError: CUDA"),
        (
            75,
            "error: the network is gone\nmodule.ChildFailedError: \n",
            "exit status 75 after 0:01:05: the network is gone",
        ),
        (3, "last words\n\n", "exit status 3 after 0:01:05: last words"),
        (1, "", "exit status 1 after 0:01:05"),
        (-9, "training\n", "killed by SIGKILL after 0:01:05: out of memory?"),
        (-11, "training\n", "killed by SIGSEGV after 0:01:05"),
        (-50, "", "killed by signal 50 after 0:01:05"),
        (0, "done\n", "ended without a record after 0:01:05: done"),
    ],
)
def test_the_cause_of_an_end_in_a_line(code: int, log: str, told: str) -> None:
    assert exit_cause(code, "0:01:05", log) == told


def test_a_retry_is_for_what_came_from_outside() -> None:
    assert [code for code in (-9, -15, 0, 1, 2, 3, 75, 255) if may_be_mended(code)] == [-9, -15, 75, 255]


def test_on_a_cpu_there_is_a_process_a_core_as_far_as_the_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    gibibytes = {"SC_PAGE_SIZE": 2**30}
    monkeypatch.setattr(os, "sysconf", (gibibytes | {"SC_PHYS_PAGES": 64}).__getitem__)
    assert LocalEngine(Execution(), "cpu").slots() == 8
    assert LocalEngine(Execution(), "cpu", jobs=3).slots() == 3
    assert LocalEngine(Execution(gpus_per_run=3), "cpu").slots() == 2
    monkeypatch.setattr(os, "sysconf", (gibibytes | {"SC_PHYS_PAGES": 17}).__getitem__)
    assert LocalEngine(Execution(), "cpu").slots() == 4
    assert LocalEngine(Execution(gpus_per_run=8), "cpu").slots() == 1


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb     Device  0: (UUID: MIG-1)\nGPU 1: NVIDIA H100\n"
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\nprintf '{listing}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_found_and_those_that_may_be_seen_are_used(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = LocalEngine(Execution())
    assert (found.device, found.slots()) == ("cuda", 2)
    assert LocalEngine(Execution(), "cuda", jobs=3).slots() == 3
    assert LocalEngine(Execution(gpus_per_run=2)).slots() == 1
    with pytest.raises(UserError, match="3 GPUs a run, but this machine shows 2"):
        LocalEngine(Execution(gpus_per_run=3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible_gpus() == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert LocalEngine(Execution()).device == "cpu"


def test_a_slot_is_a_gpu_a_share_of_one_or_several() -> None:
    gpus = ["0", "1", "2", "3", "4"]
    assert gpu_slots(gpus, Execution()) == gpus
    assert gpu_slots(gpus[:2], Execution(runs_per_gpu=2)) == ["0", "1", "0", "1"]
    assert gpu_slots(gpus, Execution(gpus_per_run=2)) == ["0,1", "2,3"]


def test_what_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert LocalEngine(Execution()).device == "cpu"
    with pytest.raises(UserError, match="no GPU found"):
        LocalEngine(Execution(), "cuda")
    with pytest.raises(UserError, match="2 machines need --engine slurm"):
        LocalEngine(Execution(gpus_per_run=2, nodes_per_run=2), "cpu")
    for arguments, told in (
        (("lokal",), "no such engine .did you mean 'local'"),
        (("local", Execution(), "tpu"), "expected auto, cpu or cuda"),
        (("local", Execution(), "cpu", 0), "--jobs 0: expected 1 or more"),
    ):
        name, *rest = arguments
        with pytest.raises(UserError, match=told):
            make_engine(name, *(rest or [Execution()]))


def test_an_engine_that_is_not_installed_is_told_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ray is not installed: pip install --no-build-isolation -e '\.\[ray\]'"):
        make_engine("ray", Execution())


def test_several_processes_go_through_torchs_launcher(tmp_path: Path) -> None:
    one = worker_command(RunFolder(tmp_path / "a"), "cpu", tmp_path / "base.pth")
    assert one[1:] == [
        *("-m", "rio_bench.worker", str(tmp_path / "a"), "--device", "cpu"),
        *("--initial-weights", str(tmp_path / "base.pth")),
    ]
    two = worker_command(RunFolder(tmp_path / "a"), "cpu", None, processes=2)
    assert two[1:5] == ["-m", "rio_bench.engines.launch", "--standalone", "--nproc-per-node=2"]
    assert two[5:] == ["-m", "rio_bench.worker", str(tmp_path / "a"), "--device", "cpu"]


RANK = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    {act}
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "code"), [("sys.exit(75)", 75), ("os.kill(os.getpid(), signal.SIGKILL)", -9), ("sys.exit(2)", 2)]
)
def test_several_processes_end_as_the_first_that_failed(tmp_path: Path, act: str, code: int) -> None:
    (tmp_path / "one_of_two.py").write_text(RANK.format(act=act))
    launcher = [sys.executable, "-m", "rio_bench.engines.launch", "--standalone", "--nproc-per-node=2"]
    answer = subprocess.run([*launcher, str(tmp_path / "one_of_two.py")], capture_output=True, text=True)
    assert answer.returncode == code
    assert "ChildFailedError" not in answer.stderr
