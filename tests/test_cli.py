"""The command line: bad input of every kind is one line and exit status 2; listing needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rio_bench import cli, scheduler, tasks
from rio_bench.engines import Engine
from rio_bench.records import Metrics, Record, ResultFolder

GOOD = """\
run:
  dataset: glyphs-mini
  backbone: R18-FPN
  iterations: 10
grid:
  strategy:
    - none
    - {name: rio, samples_per_class: 5}
"""
Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Main:
    """Run the command line in this process, in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rio_bench", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return run


def run_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rio_bench", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


# A file's text, the line that the error names, and what it says.
BAD_FILES = {
    "empty file": ("", 1, "expected a mapping"),
    "a list": ("- a\n", 1, "expected a mapping"),
    "a text": ("rio\n", 1, "expected a mapping (key: value), got 'rio'"),
    "unclosed bracket": ("run: [1,\n", 2, "not valid YAML"),
    "wrong indentation": ("run:\n  a: 1\n    b: 2\n", 3, "not valid YAML"),
    "tab": ("run:\n\ta: 1\n", 2, "not valid YAML"),
    "undefined alias": ("run: *missing\n", 1, "undefined alias"),
    "two documents": (GOOD + "---\n" + GOOD, 9, "not valid YAML"),
    "tag": (GOOD + "name: !!python/name:os.system x\n", 9, "name: expected"),
    "date": (GOOD.replace("10", "2020-01-01"), 4, "run.iterations: expected"),
    "a number as key": (GOOD.replace("dataset", "7"), 1, "run: expected texts as keys, got 7"),
    "self-containing alias": (GOOD.replace("- none", "- &a [*a]"), 7, "grid.strategy[0]: expected a strategy's name"),
    "duplicate key": (GOOD.replace("iterations: 10", "dataset: glyphs-mini"), 4, 'duplicate key "dataset"'),
    "duplicate key in a flow mapping": (GOOD.replace("{name: rio", "{name: rio, name: rio"), 8, 'duplicate key "name"'),
    "unknown key": (GOOD + "rnu: {}\n", 9, "rnu: unknown key (did you mean 'run'?)"),
    "unknown key of run": (GOOD.replace("iterations", "iteration"), 4, "unknown key (did you mean 'iterations'?)"),
    "unknown axis": (GOOD + "  bakcbone: [R18-FPN]\n", 9, "grid.bakcbone[0]: unknown key (did you mean 'backbone'?)"),
    "unknown dotted key": (GOOD + "  clasifier.name: [linear]\n", 9, "unknown key (did you mean 'classifier'?)"),
    "unknown dotted part": (GOOD + "  classifier.temp: [1.0]\n", 9, "unknown key (choose from name, temperature)"),
    "no such part": (GOOD + "  iterations.x: [1]\n", 9, "'iterations' is 10, which has no 'x'"),
    "missing field": (GOOD.replace("  iterations: 10\n", ""), 1, "run.iterations: is required"),
    "no run at all": ("grid:\n  strategy: [none]\n", 1, "is required"),
    "run is a list": ("run: [1]\n", 1, "run: expected a mapping, got [1]"),
    "grid is a list": (GOOD.partition("grid")[0] + "grid: [none]\n", 5, "grid: expected a mapping"),
    "axis is no list": (GOOD + "  seed: 3\n", 9, "grid.seed: expected a valid list, got 3"),
    "empty axis": (GOOD + "  seed: []\n", 9, "grid.seed: expected at least one value, got an empty list"),
    "axis without a value": (GOOD + "  seed:\n", 9, "grid.seed: expected a valid list, got None"),
    "wrong type in run": (GOOD.replace("10", "ten"), 4, "run.iterations: expected a valid integer, got 'ten'"),
    "text for a number": (GOOD.replace("10", "'10'"), 4, "run.iterations: expected a valid integer, got '10'"),
    "true for a number": (GOOD.replace("10", "true"), 4, "run.iterations: expected a valid integer, got True"),
    "fraction for an integer": (GOOD.replace("10", "10.5"), 4, "run.iterations: expected a valid integer, got 10.5"),
    "number for a text": (GOOD.replace("R18-FPN", "18"), 3, "run.backbone: expected a valid string, got 18"),
    "wrong type in an axis": (GOOD + "  seed: [0, one]\n", 9, "grid.seed[1]: expected a valid integer, got 'one'"),
    "wrong type in a list entry": (
        GOOD + "  seed:\n    - 0\n    - one\n",
        11,
        "grid.seed[1]: expected a valid integer, got 'one'",
    ),
    "out of bounds": (GOOD.replace("10", "0"), 4, "run.iterations: expected greater than or equal to 1, got 0"),
    "not a number": (GOOD + "  learning_rate: [.nan]\n", 9, "grid.learning_rate[0]: expected a finite number"),
    "infinite": (GOOD + "  learning_rate: [.inf]\n", 9, "grid.learning_rate[0]: expected a finite number"),
    "unknown data set": (
        GOOD.replace("glyphs-mini", "glyph-mini"),
        2,
        "unknown dataset 'glyph-mini' (did you mean 'gl",
    ),
    "unknown backbone": (GOOD.replace("R18-FPN", "R18"), 3, "unknown backbone 'R18' (did you mean 'R18-FPN'?)"),
    "unknown recipe": (GOOD + "  recipe: [smal]\n", 9, "unknown recipe 'smal' (did you mean 'small'?)"),
    "unknown strategy": (
        GOOD.replace("- none", "- rioo"),
        7,
        "grid.strategy[0]: unknown strategy 'rioo' (did you mean",
    ),
    "unknown strategy by name": (
        GOOD.replace("name: rio", "name: imageonly"),
        8,
        "unknown strategy 'imageonly' (did you mean 'image_only'?)",
    ),
    "strategy of a wrong kind": (GOOD.replace("- none", "- [none]"), 7, "expected a strategy's name or"),
    "strategy without a name": (GOOD.replace("name: rio, ", ""), 8, "expected a strategy's name or"),
    "unknown hyperparameter": (
        GOOD.replace("samples_per_class", "sample_per_class"),
        8,
        "grid.strategy[1].sample_per_class: unknown key of strategy 'rio' (did you mean 'samples_per_class'?)",
    ),
    "hyperparameter of another strategy": (
        GOOD.replace("- none", "- {name: none, samples_per_class: 5}"),
        7,
        "unknown key of strategy 'none' (it has no hyperparameters)",
    ),
    "wrong hyperparameter": (GOOD.replace("5}", "five}"), 8, "samples_per_class: expected a valid integer, got 'five'"),
    "hyperparameter out of bounds": (GOOD.replace("5}", "0}"), 8, "expected greater than or equal to 1, got 0"),
    "unknown choice": (
        GOOD.replace("5}", "5, sampling: newst}"),
        8,
        "grid.strategy[1].sampling: expected 'newest' or 'random', got 'newst' (did you mean 'newest'?)",
    ),
    "hyperparameter without effect": (
        GOOD.replace("- none", "- {name: alternative_ratios, rarity_exponent: 1.0}"),
        7,
        "grid.strategy[0]: 'rarity_exponent' has no effect with replays: fixed",
    ),
    "unknown classifier": (GOOD + "  classifier: [cosin]\n", 9, "(did you mean 'cosine'?)"),
    "linear with a temperature": (
        GOOD + "  classifier:\n    - cosine\n    - {name: linear, temperature: 20}\n",
        11,
        "grid.classifier[1]: a linear classifier has no temperature",
    ),
    "missing weights": (GOOD + "  weights: [R18.pkl]\n", 9, "grid.weights[0]: no such file: R18.pkl"),
    "in run and in grid": (GOOD + "  iterations: [10]\n", 4, "run.iterations: is an axis of the grid, too"),
    "base run of another backbone": (
        GOOD + "warm_start:\n  iterations: 5\n  backbone: R50-FPN\n",
        11,
        "warm_start.backbone: is that of the runs which start from the base run",
    ),
    "warm start in run": (GOOD.replace("iterations: 10", "warm_start: {}"), 4, "belongs at the top of the file"),
    "bad warm start": (GOOD + "warm_start: {iterations: 0}\n", 9, "warm_start.iterations: expected greater than"),
    "unknown key of the warm start": (GOOD + "warm_start:\n  iter: 0\n", 10, "warm_start.iter: unknown key"),
    "unknown baseline": (GOOD + "baseline: image_only\n", 9, "baseline: no run of the experiment has the strategy"),
    "name that is no folder": (GOOD + "name: a/b\n", 9, "name: "),
}


@pytest.mark.parametrize(("text", "line", "says"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_line_with_its_place(main: Main, text: str, line: int, says: str) -> None:
    Path("bad.yaml").write_text(text)
    status, out, err = main("run", "bad.yaml", "--dry-run")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"error: bad.yaml:{line}: ")
    assert says in err


def test_the_good_file_is_good(main: Main) -> None:
    Path("good.yaml").write_text(GOOD)
    status, out, err = main("run", "good.yaml", "--dry-run")
    assert (status, err) == (0, "")
    assert "none-R18-FPN-seed0-" in out and "rio-R18-FPN-seed0-" in out
    assert "good: 2 runs, 2 without a result" in out
    assert not Path("results").exists()


@pytest.mark.parametrize("command", ["run", "table"])
def test_a_missing_file(main: Main, command: str) -> None:
    Path("good.yaml").write_text(GOOD)
    assert main(command, "god.yaml") == (2, "", "error: god.yaml: no such file (did you mean 'good.yaml'?)\n")


def test_a_file_that_cannot_be_read(main: Main) -> None:
    Path("folder.yaml").mkdir()
    assert main("run", "folder.yaml") == (2, "", "error: folder.yaml: cannot be read: Is a directory\n")
    Path("bytes.yaml").write_bytes(b"run: \xff\n")
    assert main("run", "bytes.yaml")[2].startswith("error: bytes.yaml: expected UTF-8 text")
    Path("deep.yaml").write_text("run: " + "[" * 1000)
    assert main("run", "deep.yaml")[2] == "error: deep.yaml: not valid YAML: nested too deeply\n"
    Path("control.yaml").write_bytes(b"run: \x00\n")
    assert main("run", "control.yaml")[2].startswith("error: control.yaml: not valid YAML")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("iterations", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("iterations=ten", "run.iterations: expected a valid integer, got 'ten'"),
        ("run.iterations=[1", "not valid YAML"),
        ("iteration=3", "run.iteration: unknown key (did you mean 'iterations'?)"),
        ("grid.seed=3", "grid.seed: expected a valid list, got 3"),
        ("grid.seed=[0,one]", "grid.seed[1]: expected a valid integer, got 'one'"),
        ("seed=2020-01-01", "run.seed: expected a number"),
        ("strategy.bank_capacity=3", "unknown key of strategy 'none'"),
        ("run=3", "run: expected a mapping, got 3"),
    ],
)
def test_a_bad_override_is_one_line_with_its_text(main: Main, override: str, says: str) -> None:
    Path("good.yaml").write_text(GOOD)
    status, out, err = main("run", "good.yaml", "--dry-run", "--set", override)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"error: --set {override}: ")
    assert says in err


def test_overrides_and_only_choose_what_is_planned(main: Main) -> None:
    Path("good.yaml").write_text(GOOD)
    status, out, _ = main("run", "good.yaml", "--dry-run", "--set", "iterations=77", "--only", "rio")
    assert status == 0
    assert "77" in out and "rio-R18-FPN" in out and "none-R18-FPN" not in out
    status, _, err = main("run", "good.yaml", "--dry-run", "--only", "rioo")
    assert status == 2 and err.startswith("error: --only rioo: ") and err.count("\n") == 1


def test_dry_run_tells_which_runs_have_a_result(main: Main) -> None:
    Path("good.yaml").write_text(GOOD)
    name = next(word for word in main("run", "good.yaml", "--dry-run")[1].split() if word.startswith("rio-"))
    folder = ResultFolder("results/good").run(name)
    folder.create()

    def has_a_result() -> str:
        out = main("run", "good.yaml", "--dry-run")[1]
        answer = next(line for line in out.splitlines() if line.startswith("rio-")).split()[-1]
        assert f"2 runs, {1 if answer == 'yes' else 2} without a result" in out
        return answer

    metrics = Metrics(AP=1.0, AP50=1.0, AP75=1.0, APr=None, APc=None, APf=1.0, per_category={})
    record = Record(
        identity=name.rpartition("-")[2],
        name=name,
        method="rio",
        experiment="good",
        config={},
        seed=0,
        metrics={"box": metrics, "mask": metrics},
        num_train_images=1,
        passes=1.0,
        base_passes=0.0,
        seconds={"train": 1.0, "evaluate": 1.0, "total": 2.0},
        peak_memory_bytes=1,
        device="cpu",
        code={"revision": None, "dirty": None},
        versions={},
        finished="2026-01-01T00:00:00+00:00",
    )
    folder.write_record(record)
    assert has_a_result() == "yes"
    # What `run` would not reuse is no result.
    folder.write_record(record.model_copy(update={"identity": "of another configuration"}))
    assert has_a_result() == "no"
    folder.record_file.write_text("{}")
    assert has_a_result() == "no"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (tasks.Outcome(finished=["a"]), 0),
        (tasks.Outcome(reused=["a"]), 0),
        (tasks.Outcome(failed=[tasks.Failure("a", "exit status 1", Path("runs/a/log.txt"))]), 1),
        (tasks.Outcome(stopped=["a"]), 130),
        (tasks.Outcome(finished=["a"], pruned=["b"]), 0),
    ],
    ids=["finished", "reused", "failed", "stopped", "pruned"],
)
def test_exit_status_and_failures(
    main: Main, monkeypatch: pytest.MonkeyPatch, outcome: tasks.Outcome, status: int
) -> None:
    seen: dict[str, Any] = {}

    def run_experiment(plan: Any, results: ResultFolder, engine: Engine, **options: Any) -> tasks.Outcome:
        seen.update(runs=len(plan.runs), root=results.root, device=engine.device, slots=engine.slots(), **options)
        return outcome

    monkeypatch.setattr(scheduler, "run_experiment", run_experiment)
    monkeypatch.setattr("rio_bench.report.tables.write_leaderboard", lambda results: None)
    monkeypatch.setattr("rio_bench.report.tables.render", lambda results, format: "THE TABLE")
    Path("good.yaml").write_text(GOOD)
    code, out, err = main("run", "good.yaml", "--results", "there", "--device", "cpu", "--jobs", "3")
    assert code == status
    assert (seen["runs"], seen["root"], seen["device"], seen["slots"]) == (2, Path("there/good"), "cpu", 3)
    assert ("THE TABLE" in out) == bool(outcome.finished or outcome.reused)
    assert ("failed: a: exit status 1; log: runs/a/log.txt" in err) == bool(outcome.failed)


@pytest.mark.parametrize(("gpus", "told"), [("1", False), ("2", True)])
def test_processes_on_the_cpu_in_place_of_gpus_are_told(
    main: Main, monkeypatch: pytest.MonkeyPatch, gpus: str, told: bool
) -> None:
    monkeypatch.setattr("rio_bench.engines.local.visible_gpus", lambda: [])
    monkeypatch.setattr(scheduler, "run_experiment", lambda *_, **__: tasks.Outcome())
    Path("good.yaml").write_text(GOOD)
    status, out, _ = main("run", "good.yaml", "--gpus", gpus)
    assert status == 0
    assert ("on the CPU: each run is 2 processes there instead of 2 GPUs\n" in out) is told


@pytest.mark.parametrize(
    ("output", "format"),
    [("x.md", "md"), ("x.CSV", "csv"), ("x.tex", "latex"), ("x.html", "html"), ("x.txt", "terminal"), ("x", "csv")],
)
def test_the_ending_of_a_leaderboards_file_is_its_format(
    main: Main, monkeypatch: pytest.MonkeyPatch, output: str, format: str
) -> None:
    seen = []
    monkeypatch.setattr("rio_bench.report.leaderboard.write", lambda *arguments: seen.append(arguments))
    main("leaderboard", "results", "--output", output)
    main("leaderboard", "results", "--output", output, "--format", "html")
    assert seen == [([Path("results")], chosen, Path(output)) for chosen in (format, "html")]


def test_ctrl_c_is_130(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler, "run_experiment", interrupted)
    Path("good.yaml").write_text(GOOD)
    assert main("run", "good.yaml")[0] == 130


def test_table_without_results(main: Main) -> None:
    Path("good.yaml").write_text(GOOD)
    status, _, err = main("table", "good.yaml")
    assert status == 2 and err.startswith("error: results/good: no results there") and err.count("\n") == 1
    Path("folder").mkdir()
    assert main("table", "folder")[2].startswith("error: folder: no results there")


def test_list_strategies_shows_hyperparameters(main: Main) -> None:
    status, out, _ = main("list", "strategies")
    assert status == 0
    lines = out.splitlines()
    assert any(line.startswith("rio: Resampling at both") for line in lines)
    assert any("[images]" in line for line in lines)  # a unit in brackets is no markup
    assert any(line.split()[:3] == ["repeat_threshold", "float", "0.001"] for line in lines)
    assert any(line.split()[:5] == ["max_pushes_per_object", "int", "or", "none", "none"] for line in lines)
    assert any(line.split()[:5] == ["sampling", "newest", "or", "random", "newest"] for line in lines)


def test_list_backbones_and_datasets(main: Main) -> None:
    out = main("list", "backbones")[1]
    for name in ("R18-FPN", "R50-FPN", "R101-FPN", "X101-FPN", "small", "standard"):
        assert any(line.split()[:1] == [name] and len(line.split()) > 1 for line in out.splitlines())
    assert any(line.startswith("glyphs-mini ") for line in main("list", "datasets")[1].splitlines())


def test_doctor_names_what_is_missing_and_the_line_that_installs_it(
    main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)  # an import of it fails
    status, out, _ = main("doctor")
    assert status == 1
    assert any(line.startswith("torch: 2.") for line in out.splitlines())
    line = next(line for line in out.splitlines() if line.startswith("detectron2: missing"))
    assert line.endswith("install it: python rio_bench/detection/install_detectron2.py")


# In a process of its own


def test_bad_files_in_a_real_process(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(GOOD.replace("samples_per_class", "sample_per_class"))
    bad = run_process(tmp_path, "run", "bad.yaml")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == (
        "error: bad.yaml:8: grid.strategy[1].sample_per_class: unknown key of strategy 'rio' "
        "(did you mean 'samples_per_class'?)\n"
    )
    missing = run_process(tmp_path, "run", "none.yaml")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("arguments", [["--help"], ["list", "strategies"], ["run", "good.yaml", "--dry-run"]], ids=str)
def test_nothing_heavy_is_imported(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    script = (
        "import json, sys, rio_bench.cli\n"
        f"sys.argv = ['rio_bench', *{arguments!r}]\n"
        "try:\n    rio_bench.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'detectron2', 'pandas', 'optuna'} & set(sys.modules)\n"
        "print(json.dumps(sorted(heavy)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
