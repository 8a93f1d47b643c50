"""What is installed, what is missing, and the line that installs it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re

import rio_bench
from rio_bench import strategy
from rio_bench.errors import UserError

INSTALL_DETECTRON2 = "python rio_bench/detection/install_detectron2.py"
INSTALL_PACKAGE = "pip install --no-build-isolation -e ."


def report() -> int:
    """Print a line a part; returns 0, or 1 where something is missing."""
    print(f"rio_bench {rio_bench.__version__}, Python {platform.python_version()}")
    checks = (_torch, _detectron2, _extension, _strategies, _packages)
    return max([check() for check in checks])


def _torch() -> int:
    try:
        import torch
    except ImportError as error:
        return _missing("torch", error, "pip install torch torchvision")
    print(f"torch: {torch.__version__}")
    if torch.cuda.is_available():
        print(f"CUDA device: {torch.cuda.get_device_name()} (CUDA {torch.version.cuda})")
    else:
        print("CUDA device: none, runs take the CPU")
    return 0


def _detectron2() -> int:
    """Found, not imported: only rio_bench/detection/ does that."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:  # no origin: a folder that happens to have its name
        return _missing("detectron2", "no such package", INSTALL_DETECTRON2)
    print(f"detectron2: {_detectron2_version()}")
    return 0


def _detectron2_version() -> str:
    for distribution in ("detectron2", "sal-detectron2"):
        try:
            return f"{importlib.metadata.version(distribution)} ({distribution})"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "version unknown"


def _extension() -> int:
    try:
        import torch

        from rio_bench import ops

        information = ops.build_information()
    except (ImportError, OSError, UserError) as error:
        return _missing("extension", error, INSTALL_PACKAGE)
    print("extension: " + ", ".join(f"{key} {value}" for key, value in information.items()))
    if torch.cuda.is_available() and not information["cuda"]:
        print(f"extension: {ops.missing_cuda_kernels()}")
    return 0


def _strategies() -> int:
    broken = 0
    for name in strategy.registered():
        try:
            strategy.load(name)
        except UserError as error:
            print(f"strategies: broken: {error}")
            broken = 1
    names = ", ".join(strategy.registered())
    if not names:
        return _missing("strategies", "none is installed", INSTALL_PACKAGE)
    print(f"strategies: {names}")
    return broken


def _packages() -> int:
    """The package's own requirements, without those of its extras."""
    try:
        requirements = importlib.metadata.requires("rio_bench") or []
    except importlib.metadata.PackageNotFoundError as error:
        return _missing("rio_bench", error, INSTALL_PACKAGE)
    missing = []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if "extra ==" not in requirement:
                missing.append(name)
    if missing:
        return _missing("packages", ", ".join(missing), f"pip install {' '.join(missing)}")
    print("packages: all there")
    return 0


def _missing(what: str, reason: object, install: str) -> int:
    print(f"{what}: missing ({reason}); install it: {install}")
    return 1
