"""Install Detectron2 into the running Python: `python rio_bench/detection/install_detectron2.py`. No other imports.

1. A `detectron2` that is already there is used as it is.
2. Where GitHub can be reached, upstream's own install line is run.
3. Else PyPI's `sal-detectron2`: upstream's code of April 2024 in a wheel tagged for Python 3.10. Its Python runs on
   newer ones; its compiled part (deformable convolutions, rotated boxes) does not load, and nothing here needs it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

UPSTREAM = "https://github.com/facebookresearch/detectron2.git"
WHEEL = "sal-detectron2==0.7.2 --hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# What Detectron2 imports; the wheel's own list asks for numpy < 2 and black, which it does not need.
REQUIREMENTS = [
    *("fvcore", "iopath", "omegaconf", "hydra-core", "yacs", "tabulate", "cloudpickle", "tqdm", "termcolor"),
    *("matplotlib", "tensorboard", "pycocotools"),
]


def pip(*arguments: str) -> bool:
    """Run pip in this Python; False where it failed."""
    return subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments]).returncode == 0


def reachable(url: str) -> bool:
    """Whether git answers for ``url`` within 15 seconds."""
    try:
        probe = ["git", "ls-remote", "--exit-code", url, "HEAD"]
        return subprocess.run(probe, capture_output=True, timeout=15, stdin=subprocess.DEVNULL).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def install_wheel() -> bool:
    """Unpack the wheel beside the other packages, its hash checked, whatever Python it is tagged for."""
    foreign = ["--no-deps", "--only-binary=:all:", "--python-version", "3.10", "--implementation", "cp"]
    foreign += ["--abi", "none", "--platform", "any"]
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "detectron2.txt"
        requirement.write_text(WHEEL)
        target = sysconfig.get_path("purelib")
        return pip(*foreign, "--target", target, "--require-hashes", "-r", str(requirement))


def main() -> int:
    found = importlib.util.find_spec("detectron2")
    if found is not None:
        print(f"Detectron2 is there, used as it is: {found.origin}")
        return 0
    if reachable(UPSTREAM):
        print(f"Detectron2: building upstream's ({UPSTREAM})")
        if pip("--no-build-isolation", f"git+{UPSTREAM}"):
            return 0
        print("Detectron2: upstream's build failed, taking PyPI's wheel")
    else:
        print("Detectron2: GitHub cannot be reached, taking PyPI's sal-detectron2 0.7.2 (upstream of April 2024)")
    if pip(*REQUIREMENTS) and install_wheel():
        return 0
    print("error: Detectron2 could not be installed: see pip's lines above", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
