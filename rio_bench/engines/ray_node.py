"""What a node of a Ray cluster does: it runs the worker, as a child of the actor that holds the run's GPUs or cores."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from rio_bench.engines.local import environment_of_workers


class WorkerActor:
    """On a node: the worker's process. Its methods are coroutines, so that `send` gets through while `wait` waits."""

    async def start(self, command: list[str], log: Path, settings: dict[str, str]) -> tuple[str, int]:
        """Returns the node's name and the number of the process. OSError where a path is not there on this node."""
        tied = [sys.executable, "-m", "rio_bench.engines.tied", str(os.getpid()), *command]
        with environment_of_workers(1), open(log, "ab") as output:
            environment = {**os.environ, **settings}
            self._process = subprocess.Popen(
                tied, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        return socket.gethostname(), self._process.pid

    async def wait(self) -> int:
        """Returns the exit status, or minus the signal."""
        while (code := self._process.poll()) is None:
            await asyncio.sleep(0.1)
        return code

    async def send(self, number: int) -> None:
        """SIGKILL goes to the worker and its children; any other signal to the worker, which ends them itself."""
        if self._process.poll() is None:
            (os.killpg if number == signal.SIGKILL else os.kill)(self._process.pid, number)
