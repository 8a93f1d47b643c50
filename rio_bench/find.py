"""What the argument of a command means: the result folder of an experiment, the folder of a run."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rio_bench.errors import UserError, did_you_mean
from rio_bench.files import RecordError
from rio_bench.records import ResultFolder, RunFolder, StoredRun

if TYPE_CHECKING:
    from rio_bench.config import RunConfig
    from rio_bench.datasets.lvis import Dataset

CANDIDATES = 8  # named in an error


def experiment_folder(experiment: Path, results: Path) -> ResultFolder:
    """The result folder that an experiment file or the folder itself stands for. UserError where nothing was run."""
    if experiment.is_dir():
        folder = ResultFolder(experiment)
    else:
        from rio_bench.config import load_experiment

        folder = ResultFolder(results / load_experiment(experiment).name)
    if not folder.plan_file.exists():
        raise UserError(f"{folder.root}: no results there: run `rio_bench run EXPERIMENT.yaml` first")
    return folder


def find_run(text: str, results: Path) -> RunFolder:
    """The run that a name, a part of one, or a folder stands for; its folder may not be there yet.

    results: a folder of result folders, or one. Raises UserError where no run or several have the text in their names.
    """
    given = Path(text)
    if given.is_dir() and _holds_a_run(RunFolder(given)):
        return RunFolder(given.resolve())
    runs = [folder.run(name) for folder in result_folders(results) for name in run_names(folder)]
    if not runs:
        raise UserError(f"{results}: no runs there: run `rio_bench run EXPERIMENT.yaml` first")
    matches = [run for run in runs if run.name == text] or [run for run in runs if text in run.name]
    if not matches:
        raise UserError(f"{text}: no run below {results} has it in its name{_nearest(text, runs)}")
    if len(matches) > 1:
        several_of_one_name = len({run.name for run in matches}) < len(matches)
        candidates = [str(run.path) if several_of_one_name else run.name for run in matches]
        more = f" and {len(matches) - CANDIDATES} more" if len(matches) > CANDIDATES else ""
        raise UserError(
            f"{text}: {len(matches)} runs have it in their names: {', '.join(candidates[:CANDIDATES])}{more}"
        )
    return matches[0]


def run_in(folder: RunFolder) -> StoredRun:
    """The run whose folder it is. UserError where it is no run's."""
    run = folder.read_run()
    if run is None:
        raise UserError(f"{folder.path}: not the folder of a run (RESULTS/EXPERIMENT/runs/NAME): has no config.json")
    return run


def recipe_of(text: str) -> RunConfig:
    """The configuration that a recipe's name (lvis_v0.5/r50_rio) or a run's folder stands for. UserError: neither."""
    from rio_bench.config import load_recipe
    from rio_bench.worker import read_config

    if not _is_folder(text):
        return load_recipe(text)
    folder = RunFolder(Path(text))
    return read_config(run_in(folder), folder)[0]


def dataset_of(text: str) -> str | Dataset:
    """The data set that its name, a recipe's, or a run's folder stands for. UserError where it is none of them."""
    from rio_bench import datasets

    if text in datasets.names():
        return text
    if _is_folder(text):
        return dataset_of_run(RunFolder(Path(text)))
    if "/" in text:
        return recipe_of(text).dataset
    raise UserError(
        f"no data set is named '{text}'{did_you_mean(text, datasets.names())};"
        " a recipe (lvis_v0.5/r50_rio) or a run's folder stands for its own"
    )


def dataset_of_run(folder: RunFolder) -> str | Dataset:
    """Also of a run whose strategy is not installed. UserError where the folder is no run's."""
    from rio_bench.datasets.own import read_dataset

    try:
        return read_dataset(run_in(folder).config["dataset"])
    except ValueError as error:
        raise UserError(f"{folder.config_file}: dataset: {error}") from error


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except OSError:  # too long for a path
        return False


def check_file(option: str, file: Path) -> None:
    """UserError where there is no such file: told before what takes longer."""
    try:
        is_folder = stat.S_ISDIR(file.stat().st_mode)
    except OSError as error:
        raise UserError(f"{option} {file}: {error.strerror}") from error
    if is_folder:
        raise UserError(f"{option} {file}: is a folder, expected a file")


def result_folders(path: Path) -> list[ResultFolder]:
    """The result folders in a folder, by name; the folder itself where it is one."""
    if ResultFolder(path).plan_file.exists():
        return [ResultFolder(path)]
    below = sorted(path.iterdir()) if path.is_dir() else []
    return [folder for folder in map(ResultFolder, below) if folder.plan_file.exists() or folder.runs.is_dir()]


def run_names(results: ResultFolder) -> list[str]:
    """The runs of the plan, where it can be read, and those that have a folder."""
    planned: list[str] = []
    with suppress(RecordError):
        plan = results.read_plan()
        planned = [run.name for run in plan.runs] if plan else []
    return sorted({*planned, *results.folder_names()})


def _holds_a_run(folder: RunFolder) -> bool:
    return folder.config_file.exists() or folder.record_file.exists()


def _nearest(text: str, runs: list[RunFolder]) -> str:
    """The nearest name, or beginning of a name; all names where they are few."""
    names = {run.name for run in runs}
    parts = [name.split("-") for name in names]
    beginnings = {"-".join(words[:length]) for words in parts for length in range(1, len(words) + 1)}
    near = did_you_mean(text, beginnings)
    if "did you mean" in near:
        return near
    return did_you_mean(text, names) if len(names) <= CANDIDATES else ""
