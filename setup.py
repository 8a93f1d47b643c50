"""Builds the bank extension: with CUDA wherever nvcc is found, else with the CPU kernels alone.

FORCE_CUDA=1 makes a missing CUDA toolkit an error, FORCE_CUDA=0 leaves CUDA out. A GPU is not needed to build.
TORCH_CUDA_ARCH_LIST chooses the architectures. Everything else of the package is in pyproject.toml.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import find_packages, setup

# PTX of the last one serves every newer GPU; all of these are known to every nvcc from 11.8 to 13.
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;9.0+PTX"
CUDA_HEADERS = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h")


def cuda_home_candidates() -> list[Path]:
    """Folders that may hold the CUDA toolkit, best first."""
    candidates = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    if nvcc:
        # The nvcc on PATH may be a script that calls the real one, which alone knows where it lies.
        dry_run = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
        top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
        if top:
            candidates.append(Path(top[1].strip()).resolve())
        candidates.append(Path(nvcc).resolve().parent.parent)
    candidates += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    return candidates


def reason_against(home: Path) -> str | None:
    """Why the CUDA toolkit in this folder cannot build for the installed torch; None if it can."""
    nvcc = home / "bin" / "nvcc"
    if not nvcc.exists():
        return "no bin/nvcc"
    missing = [header for header in CUDA_HEADERS if not (home / "include" / header).exists()]
    if missing:
        return f"include/{missing[0]} is missing"
    if not any((home / folder / "libcudart.so").exists() for folder in ("lib64", "lib")):
        return "lib64/libcudart.so is missing"
    if torch.version.cuda is None:
        return "the installed torch is built without CUDA"
    release = re.search(r"release (\d+)\.", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {release[1] if release else '?'}, torch of CUDA {torch.version.cuda}"
    return None


def find_cuda_home() -> Path | None:
    """The CUDA toolkit to build with; None: CPU only. Says which, and why others were passed over."""
    if os.environ.get("FORCE_CUDA") == "0":
        print("rio_bench: building the CPU kernels only, as FORCE_CUDA=0 asks")
        return None
    reasons = {}
    for home in dict.fromkeys(cuda_home_candidates()):
        reason = reason_against(home)
        if reason is None:
            print(f"rio_bench: building the CPU and CUDA kernels with the CUDA toolkit in {home}")
            return home
        reasons[home] = reason
    found = "; ".join(f"{home}: {reason}" for home, reason in reasons.items() if home.exists()) or "no nvcc found"
    if os.environ.get("FORCE_CUDA") == "1":
        raise SystemExit(f"rio_bench: FORCE_CUDA=1, but no CUDA toolkit can be used ({found})")
    print(f"rio_bench: building the CPU kernels only, without CUDA ({found})")
    return None


cuda_home = find_cuda_home()
if cuda_home is not None:
    os.environ["CUDA_HOME"] = str(cuda_home)  # before cpp_extension is imported: it looks once, on import
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402


class BuildWithNinja(BuildExtension):
    """Names the object of a .cu file .cu.o: feature_bank.cpp and feature_bank.cu would both be feature_bank.o."""

    def build_extensions(self) -> None:
        plain_names = self.compiler.object_filenames

        def object_filenames(sources: list[str], *args: object, **kwargs: object) -> list[str]:
            names = plain_names(sources, *args, **kwargs)
            pairs = zip(sources, names, strict=True)
            return [name[:-2] + ".cu.o" if source.endswith(".cu") else name for source, name in pairs]

        self.compiler.object_filenames = object_filenames
        super().build_extensions()


sources = ["csrc/bindings.cpp", "csrc/feature_bank.cpp"]
# at::parallel_for runs on one thread without -fopenmp.
compile_flags = {"cxx": ["-O3", "-fopenmp", "-Wall", "-Wextra", "-Wno-unused-parameter"], "nvcc": ["-O3"]}
define_macros: list[tuple[str, str | None]] = []
if cuda_home is not None:
    sources.append("csrc/feature_bank.cu")
    define_macros += [("RIO_BENCH_CUDA", None)]
    define_macros += [("RIO_BENCH_ARCHITECTURES", '"' + os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";") + '"')]

extension = (CppExtension if cuda_home is None else CUDAExtension)(
    "rio_bench._C",
    sources,
    define_macros=define_macros,
    extra_compile_args=compile_flags,
    extra_link_args=["-fopenmp"],
)

setup(
    packages=[*find_packages(include=["rio_bench", "rio_bench.*"]), "rio_strategies"],
    package_dir={"rio_strategies": "strategies"},
    ext_modules=[extension],
    cmdclass={"build_ext": BuildWithNinja},
)
