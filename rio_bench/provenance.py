"""What a result was made with: code revision, versions, device, memory.

Code and versions are looked at once a process, and by the fork server for the workers it forks: when they are imported.
"""

from __future__ import annotations

import functools
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path

from rio_bench.processes import number_of_processes
from rio_bench.records import Code

PACKAGES = ("rio_bench", "torch", "torchvision", "detectron2", "sal-detectron2", "numpy", "faster-coco-eval")


def peak_memory_bytes(device: str) -> int:
    """The most memory that tensors took on the GPU, or that the process took on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux tells kibibytes


def device_name(device: str) -> str:
    """What it ran on: "NVIDIA H100 80GB HBM3", or the processor with the number of threads."""
    import torch

    several = f"{number_of_processes()} x " if number_of_processes() > 1 else ""
    if device == "cuda":
        return several + torch.cuda.get_device_name()
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return f"{several}{processor}, {torch.get_num_threads()} threads"


@functools.cache
def code_state() -> Code:
    """The git revision of this package's files; no revision where they are not tracked by git."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(here.parent), *arguments]
        try:
            answer = subprocess.run(command, capture_output=True, text=True)
        except OSError:  # no git here
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    # Installed below somebody else's checkout, the revision would be theirs: ask whether this very file is tracked.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return {"revision": None, "dirty": None}
    revision, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # detectron2 comes under either of two names
    return found
