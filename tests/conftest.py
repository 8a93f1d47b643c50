"""Fixtures that several test files share."""

from __future__ import annotations

import logging
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def lvis_package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The authors' own LVIS evaluation; it was written for numpy < 1.24, which still had np.float."""
    monkeypatch.setattr(np, "float", float, raising=False)
    logging.getLogger("lvis").setLevel(logging.ERROR)
    import lvis

    return lvis
