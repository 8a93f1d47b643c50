"""Imported first by the fork server of the local engine: it ends when the harness does.

Every worker holds an end of the pipe that would tell it that the harness is gone, so the kernel has to.
"""

from __future__ import annotations

import signal
import warnings

from rio_bench.processes import ask_for_signal
from rio_bench.provenance import code_state, versions

ask_for_signal(signal.SIGKILL)
# Its standard error is the harness's terminal. Detectron2 scripts a function when it is imported.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)

code_state()  # of the code that the workers are forked with, whatever is edited while they run
versions()
