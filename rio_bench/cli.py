"""The command line: thin. What is heavy to import is imported by the command that needs it."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rio_bench.errors import UserError

if TYPE_CHECKING:
    from rio_bench.records import ResultFolder
    from rio_bench.scheduler import Outcome

app = typer.Typer(
    help="Ablations of image-level and object-level resampling for long-tailed detection.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
list_app = typer.Typer(help="What an experiment file can name.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(list_app, name="list")

Results = Annotated[Path, typer.Option("--results", help="The folder that holds a result folder for each experiment.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: iterations=20, grid.seed=[0,1]. Repeatable."),
]


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Format(StrEnum):
    terminal = "terminal"
    md = "md"
    csv = "csv"
    latex = "latex"
    html = "html"


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="An experiment file (YAML).")],
    results: Results = Path("results"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="TEXT", help="Only runs whose name or method contains it. Repeatable."),
    ] = None,
    device: Annotated[Device, typer.Option(help="auto: a GPU where there is one.")] = Device.auto,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="GPUs of each run, as execution.gpus_per_run. Where the file has reference_gpus, batches, learning"
            " rate and schedule follow.",
            show_default="the file's",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images an iteration; learning rate and schedule are scaled linearly.",
            show_default="the file's",
        ),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time. [default: one a GPU, or by cores]")] = None,
    engine: Annotated[str, typer.Option(help="Where runs go: local (this machine), ray or slurm.")] = "local",
) -> None:
    """Run what an experiment file has that has no result yet, then print the comparison table."""
    from rio_bench import scaling
    from rio_bench.config import load_experiment
    from rio_bench.plan import make_plan, select
    from rio_bench.records import ResultFolder

    shortened = [] if gpus is None else [f"execution.gpus_per_run={gpus}"]
    # --batch-size goes before what the file says of GPUs, also where that could not be followed.
    shortened += [] if batch_size is None else ["reference_gpus=null"]
    experiment = load_experiment(file, [*(overrides or []), *shortened])
    if batch_size is not None:
        experiment = experiment.at_batch_size(batch_size)
    plan = make_plan(experiment)
    chosen = select(plan, only) if only else plan
    for line in scaling.told(experiment):
        print(line)
    folder = ResultFolder(results / experiment.name)
    if dry_run:
        from rio_bench import listing

        listing.print_plan(chosen, folder)
        return
    from rio_bench import engines, scheduler
    from rio_bench.report import tables

    where = engines.make_engine(engine, experiment.execution, device, jobs)
    gpus_per_run = experiment.execution.gpus_per_run
    if where.device == "cpu" and gpus_per_run > 1:
        print(f"on the CPU: each run is {gpus_per_run} processes there instead of {gpus_per_run} GPUs")
    search = None
    if experiment.search is not None:
        from rio_bench.search import Search

        search = Search(experiment, folder)
    outcome = scheduler.run_experiment(
        plan,
        folder,
        where,
        chosen=chosen,
        search=search,
        on_finished=lambda: tables.write_leaderboard(folder),
    )
    if outcome.finished or outcome.reused:
        tables.write_leaderboard(folder)
        print(tables.render(folder, "terminal"))
    if search is not None:
        print("\n".join(search.summary()))
    raise typer.Exit(_tell(outcome, folder))


def _tell(outcome: Outcome, folder: ResultFolder) -> int:
    """Say how the runs ended; returns the exit status."""
    print(
        f"{len(outcome.finished)} runs finished, {len(outcome.reused)} had a result, {len(outcome.failed)} failed, "
        + (f"{len(outcome.pruned)} pruned, " if outcome.pruned else "")
        + f"{len(outcome.stopped)} stopped: {folder.root}"
    )
    for failure in outcome.failed:
        print(f"failed: {failure.name}: {failure.reason}; log: {failure.log}", file=sys.stderr)
    if outcome.failed or outcome.stopped:
        print("the same command goes on: finished runs stay, the others start from their last checkpoint")
    if outcome.failed:
        return 1
    return 130 if outcome.stopped else 0


@app.command()
def table(
    experiment: Annotated[Path, typer.Argument(help="An experiment file or a result folder.")],
    results: Results = Path("results"),
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.terminal,
    rows: Annotated[
        str | None, typer.Option(metavar="AXIS", help="method, or a field of a run, as classifier. [default: method]")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="AXIS", help="strategy.samples_per_class, for one. [default: backbone]")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What the cells hold: AP.b.r, AP.m ... [default: AP.b]")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Differences are to this strategy or method. [default: the file's]"),
    ] = None,
) -> None:
    """Print the comparison table of the results that are there: all metrics, or one over two axes."""
    from rio_bench.find import experiment_folder
    from rio_bench.report import tables

    folder = experiment_folder(experiment, results)
    print(tables.render(folder, format.value, rows=rows, columns=columns, metric=metric, baseline=baseline), end="")


@app.command("leaderboard")
def print_leaderboard(
    folders: Annotated[list[Path], typer.Argument(help="Result folders: results/*")],
    format: Annotated[
        Format | None,
        typer.Option(help="How to print it. [default: by the ending of --output; terminal in a terminal, else csv]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there: .csv, .md, .tex, .html, .txt.")
    ] = None,
) -> None:
    """Rank the results of several experiments, beside published ones on the same data sets."""
    from rio_bench.report import leaderboard
    from rio_bench.report.formats import format_of

    leaderboard.write(folders, format_of(output) if format is None else format.value, output)


@app.command()
def report(
    experiment: Annotated[Path, typer.Argument(help="An experiment file or a result folder.")],
    results: Results = Path("results"),
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Where to write it.", show_default="report.html in the result folder"),
    ] = None,
) -> None:
    """Write all that is known of an experiment as one HTML file, which needs no network."""
    from rio_bench.find import experiment_folder
    from rio_bench.report.html import write_report

    written = write_report(experiment_folder(experiment, results), output)
    print(f"report: {written} ({written.stat().st_size / 1e6:.1f} MB)")


@app.command()
def status(
    experiment: Annotated[Path, typer.Argument(help="An experiment file or a result folder.")],
    results: Results = Path("results"),
    everything: Annotated[bool, typer.Option("--all", help="Every run, however many there are.")] = False,
) -> None:
    """Print which runs are done, running (where, how far, time left), waiting or failed (why)."""
    from rio_bench.find import experiment_folder
    from rio_bench.status import print_status

    print_status(experiment_folder(experiment, results), everything)


@app.command()
def logs(
    run: Annotated[str, typer.Argument(help="A run's name, a part of it that no other has, or its folder.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    results: Results = Path("results"),
) -> None:
    """Print the log of a run."""
    from rio_bench.find import find_run
    from rio_bench.logs import follow_log, print_log

    (follow_log if follow else print_log)(find_run(run, results))


class AnalysisFormat(StrEnum):
    terminal = "terminal"
    md = "md"
    csv = "csv"


class AnalysisRows(StrEnum):
    bucket = "bucket"
    category = "category"


@app.command()
def analyze(
    file: Annotated[Path, typer.Argument(help="An experiment file (YAML).")],
    overrides: Overrides = None,
    by: Annotated[AnalysisRows, typer.Option(help="Means over buckets, or each category.")] = AnalysisRows.bucket,
    format: Annotated[AnalysisFormat, typer.Option(help="How to print it.")] = AnalysisFormat.terminal,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the figure, too: a PNG, SVG or PDF file.", show_default="no figure"),
    ] = None,
) -> None:
    """Print what each strategy of an experiment makes of its data set, without training."""
    from rio_bench.config import load_experiment
    from rio_bench.report import analysis, analysis_figure, analysis_tables

    if output is not None:
        analysis_figure.check_output(output)
    experiment = load_experiment(file, overrides or [])
    analyses = analysis.analyze([*experiment.cells, *experiment.search_points])
    print(analysis_tables.render(analyses, by.value, format.value))
    if output is not None:
        analysis_figure.write(analyses, output)
        print(f"figure: {output}", file=sys.stderr)


@app.command()
def rerun(
    run: Annotated[str, typer.Argument(help="A run's name, a part of it that no other has, or its folder.")],
    results: Results = Path("results"),
) -> None:
    """Make a run again, below RESULTS/reruns, and tell whether its numbers agree (exit status 0) or not (1)."""
    from rio_bench.find import find_run
    from rio_bench.rerun import rerun

    raise typer.Exit(rerun(find_run(run, results), results))


@app.command()
def visualize(
    output: Annotated[Path, typer.Option(metavar="DIR", help="A folder that is empty or not there yet.")],
    run_folder: Annotated[Path | None, typer.Argument(help="A run's: RESULTS/EXPERIMENT/runs/NAME.")] = None,
    detections: Annotated[
        Path | None, typer.Option(metavar="FILE", help="In LVIS's result format, from any detector.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose validation pictures it is of; or a recipe's, a run's folder."),
    ] = None,
    rare: Annotated[bool, typer.Option("--rare", help="Rare categories.")] = False,
    common: Annotated[bool, typer.Option("--common", help="Common categories.")] = False,
    frequent: Annotated[bool, typer.Option("--frequent", help="Frequent categories.")] = False,
    category: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="This category. Repeatable. [default: all]")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many of the worst, and of the best.")] = 6,
) -> None:
    """Draw the pictures that a detector does worst and best on, by F1: annotations and detections side by side."""
    import logging

    from rio_bench.detection import visualize

    logging.basicConfig(format="%(message)s")
    logging.getLogger("rio_bench").setLevel(logging.INFO)  # LVIS takes minutes
    split, file = visualize.sources(run_folder, detections, dataset)
    chosen = {"r": rare, "c": common, "f": frequent}
    choice = visualize.Choice([bucket for bucket, is_chosen in chosen.items() if is_chosen], category or [])
    print(visualize.visualize(split, file, output, choice, count))


@app.command("eval")
def evaluate(
    run_folder: Annotated[
        Path | None, typer.Argument(help="A run's: RESULTS/EXPERIMENT/runs/NAME; its newest weights.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A Detectron2 checkpoint (.pth, .pkl), or a run's weights.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the weights: lvis_v0.5/r50_rio, or a run's folder.")
    ] = None,
    detections: Annotated[
        Path | None, typer.Option(metavar="FILE", help="In LVIS's result format, from any detector.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose validation pictures it is of; or a recipe's, a run's folder."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Gets the AP of each category (CSV) and the detections.")
    ] = None,
    device: Annotated[Device, typer.Option(help="auto: a GPU where there is one.")] = Device.auto,
    tta: Annotated[bool, typer.Option("--tta", help="With test-time augmentation: 18 versions of a picture.")] = False,
) -> None:
    """Print the AP of a run, of a detector's weights, or of a detections file, on validation pictures."""
    import logging

    from rio_bench import evaluate

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(evaluate.evaluate(run_folder, weights, recipe, detections, dataset, output, device.value, tta))


@app.command()
def doctor() -> None:
    """Print what is installed, what is missing, and the line that installs it."""
    from rio_bench import doctor

    raise typer.Exit(doctor.report())


@list_app.command("strategies")
def list_strategies() -> None:
    """Every installed strategy with its hyperparameters."""
    from rio_bench import listing

    listing.print_strategies()


@list_app.command("backbones")
def list_backbones() -> None:
    """The backbones, and the recipes that set a model's scale."""
    from rio_bench import listing

    listing.print_backbones()


@list_app.command("datasets")
def list_datasets() -> None:
    """The data sets."""
    from rio_bench import listing

    listing.print_datasets()


def main() -> None:
    """Exit status: 0 all well, 1 a run failed, 2 bad input, 130 interrupted."""
    try:
        app()
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
