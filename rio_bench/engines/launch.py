"""torch's launcher, ending as the first of its processes that failed did: by its exit status, or by its signal.

    python -m rio_bench.engines.launch --standalone --nproc-per-node=2 -m rio_bench.worker RUN_FOLDER --device cuda

torch's own ends by 1 whatever happened, which would tell a lost device from a wrong configuration no more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def end_by(code: int) -> None:
    """End this process by an exit status, or by minus the signal."""
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ChildFailedError as error:
        end_by(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        end_by(-int(error.sigval))
