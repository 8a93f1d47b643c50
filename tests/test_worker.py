"""The worker's own part: what it hands to the detector, what it records, how it tells that it failed."""

from __future__ import annotations

import errno
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rio_bench import processes, worker
from rio_bench.config import Execution, RunConfig, canonical
from rio_bench.datasets.lvis import Category, Dataset, LVISSplit, Split
from rio_bench.errors import UserError
from rio_bench.records import Metrics, RunFolder, StoredRun

MEASURED = Metrics(AP=12.0, AP50=20.0, AP75=None, APr=None, APc=10.0, APf=14.0, per_category={"a": 12.0})


def config(**changes: Any) -> RunConfig:
    fields = {"dataset": "glyphs-mini", "backbone": "R18-FPN", "strategy": "none", "iterations": 10, "batch_size": 4}
    return RunConfig.model_validate({**fields, **changes})


def folder_of(path: Path, run: RunConfig) -> RunFolder:
    folder = RunFolder(path / "none-R18-FPN-seed3-00ff")
    folder.create()
    stored = StoredRun(
        name=folder.name,
        identity="00ff",
        experiment="quickstart",
        method="none",
        is_base=False,
        after=None,
        config=canonical(run),
        execution={"keep": "all"},
    )
    folder.write_run(stored)
    return folder


class Detector:
    """Stands for the rooms that train and evaluate; notes what it was handed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.error: Exception | None = None
        train = LVISSplit([{"image_id": index} for index in range(8)], [Category(1, "a", "f")])
        val = LVISSplit([{"image_id": 100}], train.categories)
        dataset = Dataset("glyphs-mini", Split(Path("train.json"), Path()), Split(Path("val.json"), Path()))
        self._splits = {(dataset.train, True): train, (dataset.val, False): val}
        rooms: dict[str, dict[str, Callable]] = {
            "datasets.frequency": {"count_frequency": lambda records, categories: ("counts", len(records))},
            "detection.recipe": {"build_cfg": lambda config, num_classes, device: ("cfg", num_classes, device)},
            "detection.model": {"build_model": lambda config, cfg, frequency: ("model", cfg, frequency)},
            "detection.trainer": {"train": self._train},
            "detection.inference": {"detect_together": self._detect},
            "detection.evaluation": {"lvis_ap": self._lvis_ap},
        }
        for name, functions in rooms.items():
            room = types.ModuleType(name)
            vars(room).update(functions)
            monkeypatch.setitem(sys.modules, f"rio_bench.{name}", room)
        monkeypatch.setattr("rio_bench.datasets.load", lambda name: dataset)
        monkeypatch.setattr(
            "rio_bench.datasets.lvis.read_split", lambda split, skip_empty: self._splits[split, skip_empty]
        )

    def _train(
        self, config: RunConfig, cfg: Any, model: Any, records: Any, frequency: Any, folder: RunFolder, **rest: Any
    ) -> float:
        self.calls.append(("train", (config, cfg, model, len(records), frequency, folder.path, rest)))
        folder.metrics_file.write_text('{"iteration": 9, "total_loss": 1.0}\n')
        if self.error is not None:
            raise self.error
        return 4.5

    def _detect(self, model: Any, cfg: Any, split: LVISSplit, device: str, path: Path) -> None:
        self.calls.append(("detect", ([record["image_id"] for record in split.records], device)))
        path.write_text("what was detected")

    def _lvis_ap(self, annotations: Path, detections: Path) -> dict[str, Metrics]:
        self.calls.append(("lvis_ap", (annotations, detections.read_text())))
        return {"box": MEASURED, "mask": MEASURED.model_copy(update={"AP": 11.0})}


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    return Detector(monkeypatch)


def test_a_run_is_trained_evaluated_and_recorded(tmp_path: Path, detector: Detector) -> None:
    run = config(seed=3, warm_start={**canonical(config()), "iterations": 100, "batch_size": 2})
    folder = folder_of(tmp_path, run)
    weights = tmp_path / "base.pth"
    assert worker.main([str(folder.path), "--device", "cpu", "--initial-weights", str(weights)]) == 0

    (_, trained), detected, measured = detector.calls
    cfg, frequency = ("cfg", 1, "cpu"), ("counts", 8)
    *given, options = trained
    assert given == [run, cfg, ("model", cfg, frequency), 8, frequency, folder.path]
    assert (options["initial_weights"], options["execution"]) == (weights, Execution(keep="all"))
    assert not options["stop"]()
    assert detected == ("detect", ([100], "cpu"))
    assert measured == ("lvis_ap", (Path("val.json"), "what was detected"))
    assert folder.detections_file.exists()
    assert folder.metrics_file.read_text().splitlines()[-1] == '{"phase": "evaluate"}'

    record = folder.read_record("00ff")
    assert record is not None
    assert (record.metrics["box"].AP, record.metrics["mask"].AP) == (12.0, 11.0)
    assert (record.name, record.method, record.experiment, record.seed) == (folder.name, "none", "quickstart", 3)
    assert record.num_train_images == 8
    assert record.buckets == {"a": "f"}
    assert (record.passes, record.base_passes) == (10 * 4 / 8, 100 * 2 / 8)
    assert RunConfig.model_validate(record.config) == run
    assert record.seconds["train"] == 4.5  # what training tells: attempts before this one count
    assert record.seconds["total"] == 4.5 + record.seconds["evaluate"]
    assert record.peak_memory_bytes > 10 * 2**20
    assert record.device.endswith("threads")
    assert {"python", "torch", "numpy"} <= set(record.versions)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("weights: no such file"), 2, "error: weights: no such file"),
        (FloatingPointError("the loss is nan\nat iteration 7"), 1, "error: FloatingPointError: the loss is nan"),
        (AssertionError(), 1, "error: AssertionError"),
        (MemoryError("1 GB"), 1, f"error: {worker.describe(MemoryError('1 GB'))}"),
    ],
)
def test_a_failed_run_leaves_no_record_and_a_last_line(
    tmp_path: Path, detector: Detector, capsys: pytest.CaptureFixture[str], error: Exception, status: int, line: str
) -> None:
    folder = folder_of(tmp_path, config())
    detector.error = error
    assert worker.main([str(folder.path), "--device", "cpu"]) == status
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == line
    assert ("Traceback" in printed) == (status == 1)
    assert not folder.record_file.exists()


def test_running_out_of_memory_in_torch_is_told_as_such() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert worker.describe(caught.value).startswith("out of memory (RuntimeError:")
    two_lines = RuntimeError(
        "Error(s) in loading state_dict for GeneralizedRCNN:\n\tsize mismatch for res2\n\tand more"
    )
    assert worker.describe(two_lines).endswith("GeneralizedRCNN: size mismatch for res2")
    assert worker.describe(MemoryError()).startswith("out of memory (MemoryError): take a smaller batch_size")
    assert worker.describe(torch.OutOfMemoryError("CUDA out of memory.")).startswith("out of memory (OutOfMemoryError:")


def test_a_folder_without_a_valid_configuration_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.main([str(tmp_path / "none"), "--device", "cpu"]) == 2
    assert capsys.readouterr().out.startswith(f"error: {tmp_path / 'none' / 'config.json'}: no such file")

    folder = folder_of(tmp_path, config())
    values = json.loads(folder.config_file.read_text())
    values["config"]["strategy"] = {"name": "not_installed"}
    folder.config_file.write_text(json.dumps(values))
    assert worker.main([str(folder.path), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"error: {folder.config_file}: strategy: ")
    assert "not_installed" in line


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), processes.BAD_INPUT),
        (OSError(errno.EIO, "Input/output error"), processes.TRY_AGAIN),
        (ConnectionResetError("by peer"), processes.TRY_AGAIN),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), processes.TRY_AGAIN),
        (RuntimeError("shapes differ"), 1),
    ],
)
def test_the_exit_status_tells_whether_a_retry_may_help(
    tmp_path: Path, detector: Detector, error: Exception, status: int
) -> None:
    folder = folder_of(tmp_path, config())
    detector.error = error
    assert worker.main([str(folder.path), "--device", "cpu"]) == status


def test_two_workers_never_do_a_run_twice(
    tmp_path: Path, detector: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, config())
    lock = folder.lock_as_worker()
    assert lock is not None
    assert worker.main([str(folder.path), "--device", "cpu"]) == processes.HELD
    assert capsys.readouterr().out == "error: another worker does this run\n"
    lock.release()
    assert worker.main([str(folder.path), "--device", "cpu"]) == 0
    calls = len(detector.calls)
    assert worker.main([str(folder.path), "--device", "cpu"]) == 0  # from a queue, after the other has finished
    assert len(detector.calls) == calls
