"""A run made again from its record: whether the numbers agree, what differs in how they were made."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_worker
import pytest
from pydantic import ValidationError

from rio_bench import cli, datasets, engines, provenance, rerun
from rio_bench.config import Execution, RunConfig, canonical
from rio_bench.datasets.lvis import Split
from rio_bench.engines.local import TIED, LocalEngine
from rio_bench.plan import identity
from rio_bench.processes import TRY_AGAIN
from rio_bench.records import Record, ResultFolder, RunFolder, StoredRun
from rio_bench.tasks import Outcome

BASE = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": "none", "iterations": 10}
Changes = dict[str, Any]


def a_record(config: RunConfig, ap: float = 20.0, **changes: Any) -> Record:
    stored = StoredRun(
        name=f"{config.strategy.__class__.__name__}-{identity(config)}",
        identity=identity(config),
        experiment="quickstart",
        method="none",
        is_base=False,
        after=None,
        config=canonical(config),
    )
    return fake_worker.record_of(stored, ap).model_copy(update=changes)


def recorded_run(results: Path, record: Record) -> RunFolder:
    """A run that is over: its record alone is left of it."""
    folder = ResultFolder(results / "quickstart").run(record.name)
    folder.create()
    folder.write_record(record)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Execution, str]]:
    """Workers are fake ones, which measure an AP of 20; what the engine was asked for."""
    asked: list[tuple[Execution, str]] = []

    def make_engine(name: str, execution: Execution, device: str) -> LocalEngine:
        asked.append((execution, device))
        return LocalEngine(Execution(), "cpu", 1, main=fake_worker.main, preload=(TIED,))

    monkeypatch.setattr(engines, "make_engine", make_engine)
    return asked


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["rio_bench", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        captured = capfd.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return run


def test_a_run_whose_numbers_come_out_again(tmp_path: Path, main: Callable, asked: list) -> None:
    record = a_record(RunConfig.model_validate(BASE), device="AMD EPYC, 1 threads", versions={"torch": "2.14.1"})
    folder = recorded_run(tmp_path / "results", record)
    before = {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}
    status, out, err = main("rerun", record.name[:20])
    assert (status, err) == (0, "")
    assert f"{record.name}: made again in results/reruns/{record.name}" in out
    assert "equal: every number is exactly the recorded one, category by category" in out
    assert "torch: 2.14.1 -> unknown" in out
    assert "device: AMD EPYC, 1 threads -> cpu" in out
    assert asked == [(Execution(), "cpu")]  # it was on a CPU; on a GPU, what there is
    again = ResultFolder(tmp_path / "results" / "reruns" / record.name).run(record.name).read_record(record.identity)
    assert again is not None and again.config == record.config
    assert {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()} == before

    assert main("rerun", str(folder.path))[0] == 0  # each rerun is one of its own
    assert (tmp_path / "results" / "reruns" / f"{record.name}-2").is_dir()


def test_a_run_whose_numbers_do_not(tmp_path: Path, main: Callable, asked: list) -> None:
    record = a_record(RunConfig.model_validate(BASE), ap=21.5, device="NVIDIA H100")
    recorded_run(tmp_path / "results", record)
    status, out, _ = main("rerun", record.name)
    assert status == 1
    assert "differ by more than 0.1 AP: AP.b by -1.50, AP.b.c by -1.50, AP.b.f by -1.50, AP.m by -1.50" in out
    assert any(line.split() == ["AP.b", "21.50", "20.00", "-1.5"] for line in out.splitlines())
    assert any(line.split() == ["AP.b.r", "no", "value", "no", "value"] for line in out.splitlines())
    assert asked[0][1] == "auto"


def test_the_base_run_is_made_again_too(tmp_path: Path, main: Callable, asked: list) -> None:
    """Nothing of the old base run is left, or would be looked at."""
    record = a_record(RunConfig.model_validate({**BASE, "warm_start": {**BASE, "iterations": 5}}))
    recorded_run(tmp_path / "results", record)
    assert main("rerun", record.name)[0] == 0
    root = tmp_path / "results" / "reruns" / record.name
    first, second = [json.loads(line) for line in (root / "starts").read_text().splitlines()]
    assert (first["weights"], second["name"]) == (None, record.name)
    assert second["weights"] == str(ResultFolder(root).run(first["name"]).final_weights)
    base = ResultFolder(root).run(first["name"]).read_run()
    assert base is not None and base.config["iterations"] == 5


def test_a_run_of_several_processes_is_one_again(tmp_path: Path, main: Callable, asked: list) -> None:
    config = RunConfig.model_validate(BASE)
    record = a_record(config)
    folder = recorded_run(tmp_path / "results", record)
    stored = StoredRun(
        name=record.name,
        identity=record.identity,
        experiment="quickstart",
        method="none",
        is_base=False,
        after=None,
        config=record.config,
        execution={"gpus_per_run": 2, "nodes_per_run": 2, "evaluate_every": 3, "keep": "best"},
    )
    folder.write_run(stored)
    assert main("rerun", record.name)[0] == 0
    assert asked[0][0] == Execution(gpus_per_run=2)


def test_a_rerun_that_fails_and_one_that_goes_on(
    tmp_path: Path, main: Callable, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = a_record(RunConfig.model_validate(BASE))
    recorded_run(tmp_path / "results", record)
    root = tmp_path / "results" / "reruns" / record.name
    (root / "behaviour").mkdir(parents=True)
    (root / "behaviour" / record.name).write_text("raise,1")
    status, out, err = main("rerun", record.name)
    assert status == 1
    assert f"failed: {record.name}: exit status 1" in err and "the loss is not finite" in err
    assert "equal" not in out
    assert main("rerun", record.name)[0] == 0  # in the same folder
    assert [path.name for path in root.parent.iterdir()] == [record.name]
    assert TRY_AGAIN not in {attempt.exit_status for attempt in ResultFolder(root).run(record.name).read_attempts()}


def test_a_rerun_that_is_stopped_compares_nothing(
    tmp_path: Path, main: Callable, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = a_record(RunConfig.model_validate(BASE))
    recorded_run(tmp_path / "results", record)
    monkeypatch.setattr("rio_bench.scheduler.run_experiment", lambda *_: Outcome(stopped=[record.name]))
    status, out, _ = main("rerun", record.name)
    assert status == 130
    assert out.endswith("stopped: the same command goes on from the last checkpoint\n")


def test_a_run_that_cannot_be_made_again_is_one_line(
    tmp_path: Path, main: Callable, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_line(record: Record) -> str:
        recorded_run(tmp_path / "results", record)
        status, out, err = main("rerun", record.name)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    record = a_record(RunConfig.model_validate(BASE))
    missing = record.model_copy(update={"name": "a", "config": {**record.config, "strategy": {"name": "theirs"}}})
    assert "a/record.json: config.strategy: unknown strategy 'theirs'" in one_line(missing)
    older = record.model_copy(update={"name": "b", "config": {**record.config, "batchsize": 3}})
    assert "b/record.json: config.batchsize: unknown key (did you mean 'batch_size'?)" in one_line(older)
    files = {**record.config, "weights": str(tmp_path / "gone.pkl")}
    assert "gone.pkl: No such file" in one_line(record.model_copy(update={"name": "c", "config": files}))

    monkeypatch.setattr("rio_bench.datasets.fingerprint", lambda dataset: "another")
    monkeypatch.setattr("rio_bench.plan._dataset_fingerprint", lambda dataset: "another")
    told = one_line(record.model_copy(update={"name": "d"}))
    assert "cannot be made again here: the data set glyphs-mini, the recipe standard or the backbone R18-FPN" in told
    assert not (tmp_path / "results" / "reruns").exists()

    folder = ResultFolder(tmp_path / "results" / "quickstart").run("e")
    folder.create()
    folder.write_run(
        StoredRun(name="e", identity="e", experiment="", method="", is_base=False, after=None, config=record.config)
    )
    assert main("rerun", str(folder.path))[2].endswith("has no result that a second one could be compared with\n")


# What is compared


def with_metrics(record: Record, **changes: Any) -> Record:
    box = record.metrics["box"].model_copy(update=changes)
    return record.model_copy(update={"metrics": {**record.metrics, "box": box}})


@pytest.mark.parametrize(
    ("changes", "agree", "told"),
    [
        ({}, True, "equal: every number is exactly"),
        ({"AP": 20.02, "APc": 19.95}, True, "equal within 0.1 AP: at most -0.05, in AP.b.c"),
        ({"per_category": {"a": 3.0}}, True, "equal within 0.1 AP: only single categories differ"),
        ({"AP": 20.05, "APc": 20.2}, False, "differ by more than 0.1 AP: AP.b.c by +0.20"),
        ({"APr": 3.0}, False, "differ by more than 0.1 AP: AP.b.r (a value in one of the two only)"),
        ({"APf": None}, False, "differ by more than 0.1 AP: AP.b.f (a value in one of the two only)"),
        ({"AP_fixed": 12.0}, True, "equal: every number is exactly"),  # not measured yet when it was recorded
    ],
)
def test_whether_numbers_agree(changes: Changes, agree: bool, told: str) -> None:
    record = a_record(RunConfig.model_validate(BASE))
    again = with_metrics(record, **changes)
    assert rerun.agrees(record, again) == agree
    assert rerun.verdict(record, again).startswith(told)


def test_what_differs_in_how_it_was_made() -> None:
    made = {"code": {"revision": "ab", "dirty": False}, "versions": {"torch": "2.10", "numpy": "2"}, "device": "GPU"}
    record = a_record(RunConfig.model_validate(BASE), **made)
    assert rerun.provenance(record, record) == ["made with the same code revision, versions, device and seed"]
    other = {"code": {"revision": None, "dirty": True}, "versions": {"torch": "2.14"}, "device": "cpu", "seed": 1}
    assert rerun.provenance(record, record.model_copy(update=other)) == [
        "code revision: ab -> unknown",
        "uncommitted changes: no -> yes",
        "device: GPU -> cpu",
        "seed: 0 -> 1",
        "numpy: 2 -> unknown",
        "torch: 2.10 -> 2.14",
    ]
    dirty = record.model_copy(update={"code": {"revision": "ab", "dirty": True}})
    assert rerun.provenance(dirty, dirty) == ["uncommitted changes: both times; whether they are the same is not known"]


# What a record says of how it was made


@pytest.mark.parametrize("field", ["code", "versions", "device", "seed"])
def test_a_record_cannot_leave_out_how_it_was_made(field: str) -> None:
    fields = a_record(RunConfig.model_validate(BASE)).model_dump()
    Record.model_validate(fields)
    del fields[field]
    with pytest.raises(ValidationError, match=field):
        Record.model_validate(fields)


def test_a_cpu_is_known_by_the_name_that_provenance_gives_it() -> None:
    record = a_record(RunConfig.model_validate(BASE), device=provenance.device_name("cpu"))
    assert rerun.was_on_cpu(record)
    assert not rerun.was_on_cpu(record.model_copy(update={"device": "2 x NVIDIA H100 80GB HBM3"}))


def few_pictures(split: Split, number: int, file: Path) -> dict[str, str]:
    """A part of a data set as an experiment file names one's own: evaluating all of it takes most of a test's time."""
    content = json.loads(split.annotations.read_text())
    content["images"] = content["images"][:number]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    file.write_text(json.dumps(content))
    return {"json": str(file), "images": str(split.images)}


@pytest.mark.slow
def test_a_real_run_comes_out_again_bit_for_bit(tmp_path: Path, main: Callable) -> None:
    """The record says how it was made; the second one, elsewhere and without the first one's folder, is equal."""
    glyphs = datasets.load("glyphs-mini")
    few = {
        "train": few_pictures(glyphs.train, 20, tmp_path / "train.json"),
        "val": few_pictures(glyphs.val, 4, tmp_path / "val.json"),
    }
    run = {"dataset": few, "recipe": "small", "backbone": "R18-FPN", "iterations": 3, "batch_size": 2, "seed": 4}
    experiment = {"run": run, "grid": {"strategy": [{"name": "rio", "samples_per_class": 4}]}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(experiment))
    status, _, err = main("run", "tiny.yaml", "--device", "cpu")
    assert status == 0, err
    results = ResultFolder(tmp_path / "results" / "tiny")
    (record,) = results.records()[0]
    assert set(record.code) == {"revision", "dirty"}
    assert record.code["revision"] == provenance.code_state()["revision"]
    assert record.code["dirty"] in (True, False)
    assert record.versions == provenance.versions()
    assert {"python", "rio_bench", "torch", "torchvision", "numpy"} <= set(record.versions)
    assert record.seed == 4
    assert record.device.endswith(", 1 threads")

    elsewhere = tmp_path / "elsewhere" / record.name
    elsewhere.mkdir(parents=True)
    shutil.copy(results.run(record.name).record_file, elsewhere)
    shutil.rmtree(results.root)
    (tmp_path / "tiny.yaml").unlink()
    status, out, err = main("rerun", str(elsewhere))
    assert status == 0, err
    assert "equal: every number is exactly the recorded one" in out
