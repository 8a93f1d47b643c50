"""Weights from elsewhere loaded into a detector, or refused in a line where they do not fit it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts, convert_c2_detectron_names
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from rio_bench.detection.weight_files import read_weights, reason_of, shown
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
    given = named_as(own, checkpoint, path)
    buffers = dict(model.named_buffers())
    misfits = {name: "is missing" for name in own.keys() - given.keys() - _without_statistics(model, checkpoint)}
    misfits |= {name: "is not of this model" for name in given.keys() - own.keys()}
    misfits = {name: told for name, told in misfits.items() if harmless(name) is None}
    for name in given.keys() & own.keys():
        if given[name].shape != own[name].shape and harmless(name) is None:
            misfits[name] = f"is {list(given[name].shape)}, expected {list(own[name].shape)}"
    if misfits:
        raise UserError(f"weights: {path}: {_why(misfits, given, own, backbone)}")
    for name in sorted(given.keys() & {"pixel_mean", "pixel_std"}):
        values, recipes = given[name], buffers[name].flatten().cpu()
        if values.numel() != recipes.numel():
            raise UserError(f"weights: {path}: {name} is {list(values.shape)}, expected {len(recipes)} numbers")
        if not torch.allclose(values.flatten().float(), recipes):
            raise UserError(
                f"weights: {path}: {name} is {values.flatten().tolist()}, the recipe's is {recipes.tolist()}"
            )
    loaded = {name: given[name] for name in given if harmless(name) is None}
    model.load_state_dict(loaded, strict=False)
    left_out = [told for pattern, told in HARMLESS if any(re.match(pattern, name) for name in given)]
    other = sorted(checkpoint.keys() - {"model"} - ENTRIES_OF_TRAINING)
    left_out += [shown(f"the entries {', '.join(other)}")] if other else []
    return f"{path}: {len(loaded)} tensors loaded" + (f"; left out: {'; '.join(left_out)}" if left_out else "")


def harmless(name: str) -> str | None:
    """Why it does not matter whether a file or a model has a tensor of this name; None where it does."""
    return next((told for pattern, told in HARMLESS if re.match(pattern, name)), None)


def named_as(own: dict[str, Tensor], checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by the model's names, as far as they are known. UserError where a name is ambiguous."""
    given = {name: torch.as_tensor(value) for name, value in checkpoint["model"].items()}
    if all(name.startswith("module.") for name in given):  # of a model within DistributedDataParallel
        given = {name.removeprefix("module."): value for name, value in given.items()}
    old_names = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
    for old, new in old_names.items():
        given = {(name.removesuffix(old) + new if name.endswith(old) else name): given[name] for name in given}
    if checkpoint.get("matching_heuristics") is not True:
        return given
    if checkpoint.get("__author__") == "Caffe2":
        given = _from_caffe2(given, path)
    return _aligned(own, given, path)


def _from_caffe2(given: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Caffe2's names and order of classes as Detectron2's; UserError names the tensor at which Detectron2 fails."""
    try:
        return convert_c2_detectron_names(given)[0]
    except Exception:
        renamed: dict[str, str] = {}
        for name, value in given.items():
            try:
                (new,) = convert_c2_detectron_names({name: value})[0]
            except Exception as error:
                told = f"{shown(name)}, of shape {list(value.shape)}, is no tensor of Caffe2's: {reason_of(error)}"
                raise UserError(f"weights: {path}: {told}") from error
            if renamed.setdefault(new, name) != name:
                told = f"{shown(renamed[new])} and {shown(name)} mean the same tensor"
                raise UserError(f"weights: {path}: {told}") from None
        raise


def _aligned(own: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors by those names of the model that end in theirs, as in Detectron2; UserError where one may be two."""
    means: dict[str, str] = {}
    for name in own:
        short = max((end for end in given if name == end or name.endswith(f".{end}")), key=len, default=None)
        if short and own[name].shape == given[short].shape and means.setdefault(short, name) != name:
            raise UserError(f"weights: {path}: {short} may be {means[short]} or {name}: expected a longer name")
    return align_and_update_state_dicts(own, given, c2_conversion=False)


def _without_statistics(model: nn.Module, checkpoint: dict[str, Any]) -> set[str]:
    """Statistics of frozen norms that Caffe2's files have in their scales already: they stay 0 and 1."""
    if checkpoint.get("__author__") != "Caffe2":
        return set()
    frozen = [name for name, module in model.named_modules() if isinstance(module, FrozenBatchNorm2d)]
    return {f"{name}.running_{statistic}" for name in frozen for statistic in ("mean", "var")}


def _why(misfits: dict[str, str], given: dict[str, Tensor], own: dict[str, Tensor], backbone: str) -> str:
    """What a user has to know of tensors that do not fit."""
    if not any(name.startswith("roi_heads.") for name in given):
        return f"holds no detector: has no roi_heads, but {shown(min(given))} and the like"
    shapes = [{name: value.shape for name, value in state.items() if name.startswith(SCORES)} for state in (given, own)]
    kinds = ["linear" if f"{SCORES}weight" in of_state else "cosine" for of_state in shapes]
    if all(shapes) and kinds[0] != kinds[1]:
        return f"has a {kinds[0]} classifier, the recipe a {kinds[1]} one"
    sizes = [{shape[0] for shape in of_state.values() if shape and shape[0]} for of_state in shapes]
    if sizes[0] != sizes[1] and len(sizes[0]) == 1:
        return f"has {sizes[0].pop() - 1} categories, the recipe's data set {sizes[1].pop() - 1}"
    of_backbone = sorted(name for name in misfits if name.startswith(BACKBONE))
    first = (of_backbone or sorted(misfits))[0]
    told = f"{shown(first)} {misfits[first]} ({len(misfits)} tensors in all)"
    return f"of another backbone than {backbone}: {told}" if of_backbone else f"does not fit the recipe: {told}"
