"""What torch has to tell Detectron2's authors, and nobody who runs Detectron2 can mend."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# message (a regular expression for its beginning), category, module that warns
WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    (r"`torch\.jit\.script` is ", FutureWarning, r"torch\.jit\._script"),  # functions scripted on import
    (r"torch\.meshgrid: in an upcoming release", UserWarning, r"torch\.functional"),  # anchors
)
TRACING = logging.getLogger("torch.fx._symbolic_trace")
TRACING_MESSAGE = "is_fx_tracing will return true for both fx.symbolic_trace and torch.export."  # its RoI pooler asks


@contextmanager
def left_out() -> Iterator[None]:
    """While the block lasts, exactly these are not shown; all others are."""
    with warnings.catch_warnings():
        for message, category, module in WARNINGS:
            warnings.filterwarnings("ignore", message, category, module)
        TRACING.addFilter(_is_not_known)
        try:
            yield
        finally:
            TRACING.removeFilter(_is_not_known)


def _is_not_known(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(TRACING_MESSAGE)
