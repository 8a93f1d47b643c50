"""Fixtures that several test files share."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def lvis_package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The authors' own LVIS evaluation; it was written for numpy < 1.24, which still had np.float.

    Every test that uses the package takes it from here. It imports cv2 for drawing alone, and cv2 needs system
    libraries (libGL) that a machine without a screen may lack: an empty module stands for it.
    """
    monkeypatch.setattr(np, "float", float, raising=False)
    monkeypatch.setitem(sys.modules, "cv2", ModuleType("cv2"))
    logging.getLogger("lvis").setLevel(logging.ERROR)
    import lvis

    return lvis
