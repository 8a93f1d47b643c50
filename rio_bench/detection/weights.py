"""Files of weights from elsewhere: read without running code in them, refused in a line where they do not fit."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from rio_bench.errors import UserError

# What a file's tensors may be called, or the model's, without meaning anything for what is detected
HARMLESS = (
    (r"roi_heads\.object_resampler\.", "the feature bank, which training alone reads"),
    (r"proposal_generator\.anchor_generator\.", "anchors, which follow from the recipe"),
    (r"pixel_(mean|std)$", "pixel statistics, equal to the recipe's"),
    (r".*\.num_batches_tracked$", "a count of batches, which training alone reads"),
)
# What else a checkpoint may hold beside the model: of training
ENTRIES_OF_TRAINING = frozenset(
    ("optimizer", "scheduler", "iteration", "trainer", "hooks", "grad_scaler")  # Detectron2's
    + ("schedule", "seconds", "banks", "ap", "best_ap")  # ours
    + ("__author__", "matching_heuristics")
)
SCORES = "roi_heads.box_predictor.cls_score."
BACKBONE = "backbone.bottom_up."
NUMBERS = re.compile(r"[<>=|]?[biuf]\d+")  # numpy's codes of real numbers and truth values


def read_weights(path: Path) -> dict[str, Any]:
    """A checkpoint as Detectron2's checkpointer takes it: "model", a dict of tensors or arrays by name, and the rest.

    ``.pkl`` files hold numpy arrays, by Detectron2's names or Caffe2's ("__author__" is then "Caffe2"); others are
    torch's. Only tensors, arrays and plain values are read. Raises UserError, one line, where the file cannot be read,
    would run code, or is no checkpoint.
    """
    try:
        is_pickle = path.suffix == ".pkl" and not zipfile.is_zipfile(path)
        content = _read_arrays(path) if is_pickle else torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"weights: {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever torch or pickle make of a file that is no checkpoint
        called = re.search(r"GLOBAL (\S+)", str(error))
        if called:
            raise UserError(_refusal(path, called[1])) from error
        told = str(error).strip().partition("\n")[0]
        raise UserError(f"weights: {path}: not a file of weights: {type(error).__name__}: {told}") from error
    return _as_checkpoint(content, path, is_pickle)


def _as_checkpoint(content: Any, path: Path, is_pickle: bool) -> dict[str, Any]:
    """As Detectron2's checkpointer does: a .pkl file without an author, and names of its own, is Caffe2's."""
    if not isinstance(content, dict):
        raise UserError(f"weights: {path}: not a file of weights: expected a dict, got {type(content).__name__}")
    if is_pickle and not ("model" in content and "__author__" in content):
        blobs = content.get("blobs", content)
        if not isinstance(blobs, dict):
            raise UserError(f"weights: {path}: not a file of weights: its blobs are {type(blobs).__name__}")
        names = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
        content = {"model": names, "__author__": "Caffe2", "matching_heuristics": True}
    elif "model" not in content:
        content = {"model": content}
    tensors = content["model"]
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"weights: {path}: not a file of weights: expected tensors by name")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor | np.ndarray):
            raise UserError(
                f"weights: {path}: not a file of weights: expected tensors by name, {name!r} is {type(value).__name__}"
            )
    return content


class ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, texts, numbers and numpy arrays of numbers. All else, as any call, is refused (UserError)."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # those of the model zoo were written by Python 2
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module.replace("numpy._core.", "numpy.core."), name]
        except KeyError:
            raise UserError(_refusal(self._path, f"{module}.{name}")) from None


def _read_arrays(path: Path) -> Any:
    with path.open("rb") as file:
        return ArrayUnpickler(file, path).load()


def _refusal(path: Path, called: str) -> str:
    return f"weights: {path}: refused: reading it would call {called}: expected tensors, arrays and plain values alone"


def _number_type(code: str, *_: Any) -> np.dtype:
    if not NUMBERS.fullmatch(code):
        raise ValueError(f"an array of type {code!r}: expected numbers")
    return np.dtype(code)


def _bytes(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the older pickle protocols."""
    if encoding != "latin1":
        raise ValueError(f"bytes as {encoding!r}: expected latin1")
    return text.encode("latin1")


# What numpy arrays are pickled with, by numpy 1 and 2, Python 2 and 3
ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _number_type,
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): OrderedDict,
}


def load_detector(model: nn.Module, path: Path, backbone: str) -> str:
    """Load a whole detector's weights: a Detectron2 checkpoint's, a released RIO model's, or a run's own.

    The old names of a weight norm (weight_g, weight_v) are read. Names in the file or the model that the other lacks
    are borne where they are HARMLESS.

    Args:
        model: a run's detector. Its object resampler, if any, keeps its state.
        backbone: its name, for errors.

    Returns:
        A line that tells what was loaded and what was left out.

    Raises:
        UserError: the file cannot be read, or does not fit the model.
    """
    checkpoint = read_weights(path)
    own = model.state_dict()
    given = _named_as(own, checkpoint)
    buffers = dict(model.named_buffers())
    misfits = {name: "is missing" for name in own.keys() - given.keys() - _without_statistics(model, checkpoint)}
    misfits |= {name: "is not of this model" for name in given.keys() - own.keys()}
    misfits = {name: told for name, told in misfits.items() if harmless(name) is None}
    for name in given.keys() & own.keys():
        if given[name].shape != own[name].shape and harmless(name) is None:
            misfits[name] = f"is {list(given[name].shape)}, expected {list(own[name].shape)}"
    if misfits:
        raise UserError(f"weights: {path}: {_why(misfits, given, own, backbone)}")
    for name in ("pixel_mean", "pixel_std"):
        if name in given and not torch.allclose(given[name].flatten().float().cpu(), buffers[name].flatten().cpu()):
            raise UserError(
                f"weights: {path}: {name} is {given[name].flatten().tolist()}, the recipe's is "
                f"{buffers[name].flatten().tolist()}"
            )
    loaded = {name: given[name] for name in given if harmless(name) is None}
    model.load_state_dict(loaded, strict=False)
    left_out = [told for pattern, told in HARMLESS if any(re.match(pattern, name) for name in given)]
    other = sorted(checkpoint.keys() - {"model"} - ENTRIES_OF_TRAINING)
    left_out += [f"the entries {', '.join(other)}"] if other else []
    return f"{path}: {len(loaded)} tensors loaded" + (f"; left out: {'; '.join(left_out)}" if left_out else "")


def harmless(name: str) -> str | None:
    """Why it does not matter whether a file or a model has a tensor of this name; None where it does."""
    return next((told for pattern, told in HARMLESS if re.match(pattern, name)), None)


def _named_as(own: dict[str, Tensor], checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's tensors by the model's names, as far as they are known."""
    given = {name: torch.as_tensor(value) for name, value in checkpoint["model"].items()}
    if all(name.startswith("module.") for name in given):  # of a model within DistributedDataParallel
        given = {name.removeprefix("module."): value for name, value in given.items()}
    old_names = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
    for old, new in old_names.items():
        given = {(name.removesuffix(old) + new if name.endswith(old) else name): given[name] for name in given}
    if checkpoint.get("matching_heuristics"):
        given = align_and_update_state_dicts(own, given, c2_conversion=checkpoint.get("__author__") == "Caffe2")
    return given


def _without_statistics(model: nn.Module, checkpoint: dict[str, Any]) -> set[str]:
    """Statistics of frozen norms that Caffe2's files have in their scales already: they stay 0 and 1."""
    if checkpoint.get("__author__") != "Caffe2":
        return set()
    frozen = [name for name, module in model.named_modules() if isinstance(module, FrozenBatchNorm2d)]
    return {f"{name}.running_{statistic}" for name in frozen for statistic in ("mean", "var")}


def _why(misfits: dict[str, str], given: dict[str, Tensor], own: dict[str, Tensor], backbone: str) -> str:
    """What a user has to know of tensors that do not fit."""
    if not any(name.startswith("roi_heads.") for name in given):
        return f"holds no detector: has no roi_heads, but {min(given)} and the like"
    kinds = ["linear" if f"{SCORES}weight" in state else "cosine" for state in (given, own)]
    if kinds[0] != kinds[1]:
        return f"has a {kinds[0]} classifier, the recipe a {kinds[1]} one"
    sizes = [{len(value) for name, value in state.items() if name.startswith(SCORES)} for state in (given, own)]
    if sizes[0] != sizes[1] and len(sizes[0]) == 1:
        return f"has {sizes[0].pop() - 1} categories, the recipe's data set {sizes[1].pop() - 1}"
    of_backbone = sorted(name for name in misfits if name.startswith(BACKBONE))
    first = (of_backbone or sorted(misfits))[0]
    told = f"{first} {misfits[first]} ({len(misfits)} tensors in all)"
    return f"of another backbone than {backbone}: {told}" if of_backbone else f"does not fit the recipe: {told}"
