"""What the tests of the engines for clusters share: their workers are cluster_worker.py, a script without torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from test_scheduler import a_plan

from rio_bench.engines import worker_arguments
from rio_bench.plan import stored_run
from rio_bench.records import ResultFolder, RunFolder


def command(
    folder: RunFolder, device: str, weights: Path | None, processes: int = 1, launcher: tuple[str, ...] = ()
) -> list[str]:
    """In place of engines.worker_command."""
    worker = [str(Path(__file__).with_name("cluster_worker.py")), *worker_arguments(folder, device, weights)]
    if not launcher:
        return [sys.executable, *worker]
    return [sys.executable, "-m", "rio_bench.engines.launch", *launcher, f"--nproc-per-node={processes}", *worker]


def events(root: Path, event: str) -> list[dict]:
    """What workers told, of one kind: start, checkpoint or done."""
    lines = (root / "events").read_text().splitlines() if (root / "events").exists() else []
    return [told for told in map(json.loads, lines) if told["event"] == event]


def hold(root: Path) -> Path:
    """Workers go on as long as this file is there."""
    root.mkdir(exist_ok=True)
    (root / "hold").touch()
    return root / "hold"


def a_run(root: Path, seed: int = 0) -> RunFolder:
    """A run of a_plan(), as the scheduler leaves it to an engine."""
    plan = a_plan(seed + 1)
    folder = ResultFolder(root).run(plan.runs[seed].name)
    folder.create()
    folder.write_run(stored_run(plan.runs[seed], plan))
    return folder


@contextlib.contextmanager
def beside(action: Callable[[], object]) -> Iterator[None]:
    """Do something while the block goes on; where it fails, or the block goes on for long, the scheduler is stopped."""
    over = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            action()
            assert over.wait(60), "it does not come to an end"
        except BaseException as error:
            errors.append(error)
            if not over.is_set():
                os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if errors:
            raise errors[0]
