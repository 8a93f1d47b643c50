"""Files of weights from elsewhere, read without running code in them.

Numpy arrays are pickled as calls of numpy's functions. Here these are placeholders that only note what the file says;
the arrays are built from that afterwards.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rio_bench.errors import UserError

NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")  # numpy's codes of the types that torch has too
TENSOR_TYPES = frozenset(
    (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32)
    + (torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)
)
EXPECTED = "numbers (truth values, whole ones, floats of 16 to 64 bits)"


def read_weights(path: Path) -> dict[str, Any]:
    """A checkpoint as Detectron2's checkpointer takes it: "model", a dict of tensors or arrays by name, and the rest.

    ``.pkl`` files hold numpy arrays, by Detectron2's names or Caffe2's ("__author__" is then "Caffe2"); others are
    torch's. Only tensors, arrays and plain values are read. Arrays come in the machine's byte order, tensors dense and
    on the CPU. Beside "model", what a ``.pkl`` file holds of arrays is left unread (`Pickled`).

    Raises UserError, one line, where the file cannot be read, would run code, or is no checkpoint.
    """
    try:
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)
            is_pickle = path.suffix == ".pkl" and not is_zip
            file.seek(0)
            start = file.read(4)
            if start == b"PK\3\4" and not is_zip:
                raise UserError(f"weights: {path}: not a file of weights: its end is missing: was it copied whole?")
            if not (is_zip or is_pickle or start.startswith(b"\x80")):
                raise UserError(f"weights: {path}: not a file of weights: expected what torch.save writes, or a .pkl")
            file.seek(0)
            content = (
                ArrayUnpickler(file, path).load()
                if is_pickle
                else torch.load(file, map_location="cpu", weights_only=True)
            )
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"weights: {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever torch or pickle make of a file that is no checkpoint
        called = re.search(r"\bGLOBAL (\S+)", str(error))  # not pickle's STACK_GLOBAL
        if called:
            raise UserError(_refusal(path, called[1])) from error
        raise UserError(f"weights: {path}: not a file of weights: {reason_of(error)}") from error
    return _as_checkpoint(content, path, is_pickle)


def _as_checkpoint(content: Any, path: Path, is_pickle: bool) -> dict[str, Any]:
    """As Detectron2's checkpointer does: a .pkl file without an author, and names of its own, is Caffe2's."""
    content = _by_name(content, path)
    if is_pickle and not ("model" in content and "__author__" in content):
        blobs = _by_name(content["blobs"], path, "blobs: ") if "blobs" in content else content
        names = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
        content = {"model": names, "__author__": "Caffe2", "matching_heuristics": True}
    elif "model" not in content:
        content = {"model": content}
    tensors = _by_name(content["model"], path, "model: ")
    if not tensors:
        raise UserError(f"weights: {path}: not a file of weights: expected tensors by name")
    content["model"] = {name: _dense(value, name, path) for name, value in tensors.items()}
    return content


def _by_name(content: Any, path: Path, where: str = "") -> dict[str, Any]:
    """A plain copy of a dict, whatever attributes the file gave it; UserError where its keys are no names."""
    refused = f"weights: {path}: not a file of weights: {where}expected"
    if not isinstance(content, dict):
        raise UserError(f"{refused} a dict, got {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{refused} texts as keys, got {type(key).__name__}")
        if not key.isprintable():
            raise UserError(f"{refused} names as keys, got {shown(key)}")
    return {key: content[key] for key in content}


def _dense(value: Any, name: str, path: Path) -> Tensor | np.ndarray:
    """A tensor or an array of plain numbers; UserError where the file has another thing by this name."""
    refused = f"weights: {path}: not a file of weights:"
    if isinstance(value, PickledArray):
        try:
            return value.array()
        except Exception as error:  # whatever the file says of an array that is none
            raise UserError(f"{refused} {shown(name)}: {reason_of(error)}") from error
    if type(value) not in (Tensor, nn.Parameter):
        raise UserError(f"{refused} expected tensors by name, {shown(name)!r} is {type(value).__name__}")
    value = torch.detach(value)  # a tensor without the attributes that the file may give it
    layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    if value.dtype not in TENSOR_TYPES or layout != "strided" or value.device.type != "cpu":
        told = f"{shown(name)} is a {layout} tensor of {value.dtype} on {value.device}: expected dense {EXPECTED}"
        raise UserError(f"{refused} {told}")
    return value


def reason_of(error: Exception) -> str:
    """What an error of a library says, in a line; of torch's, not the advice to read the file without care."""
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
    kind = [] if lines and isinstance(error, ValueError) else [type(error).__name__]
    return ": ".join([*kind, *(shown(line.partition(". ")[0]) for line in lines[:1])])


def shown(text: str) -> str:
    """A file's text, on one line whatever is in it."""
    shown = text if len(text) <= 300 else f"{text[:300]}..."
    return shown if shown.isprintable() else ascii(shown)


def _refusal(path: Path, called: str) -> str:
    return (
        f"weights: {path}: refused: reading it would call {shown(called)}: "
        "expected tensors, arrays and plain values alone"
    )


class Pickled:
    """Stands for what numpy's pickles name: keeps what the file calls it with and sets, and does nothing.

    That __setstate__ is here is what keeps a pickle from setting attributes, of instances or of the classes.
    """

    __slots__ = ("args", "state")
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Pickled:
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class PickledDict(dict):
    """An OrderedDict without attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Torch's state dicts have versions of modules here, which nothing reads."""


class PickledBytes(Pickled):
    """How Python 3 writes bytes in the older protocols: bytes(), or _codecs.encode(text, "latin1")."""

    __slots__ = ()

    def encoded(self) -> bytes:
        text, encoding = self.args or ("", "latin1")
        if encoding != "latin1":
            raise ValueError(f"data encoded as {encoding!r}: expected latin1")
        return text.encode("latin1")


class PickledType(Pickled):
    """numpy.dtype(code, align, copy); its state is (version, byte order, ...)."""

    __slots__ = ()

    def dtype(self) -> np.dtype:
        code = self.args[0]
        if not isinstance(code, str) or not NUMBERS.fullmatch(code):
            raise ValueError(f"an array of type {code!r}: expected {EXPECTED}")
        order = self.state[1] if self.state else "="
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"a byte order {order!r}: expected '<' or '>'")
        return np.dtype(order + code)


class PickledArray(Pickled):
    """numpy's _reconstruct(ndarray, ...); its state is (version, shape, dtype, Fortran order?, data)."""

    __slots__ = ("_array",)

    def array(self) -> np.ndarray:
        """In the machine's byte order, writable, and one however often it is named. Any error: it is no array."""
        if not hasattr(self, "_array"):
            self._array = self._built()
        return self._array

    def _built(self) -> np.ndarray:
        *_, shape, kind, is_fortran, data = self.state
        return _filled(shape, kind, data, "F" if is_fortran else "C")


class PickledBuffer(PickledArray):
    """numpy's _frombuffer(data, dtype, shape, order, axes), of protocol 5; order K: C, and then the axes change."""

    __slots__ = ()

    def _built(self) -> np.ndarray:
        data, kind, shape, order, axes = (*self.args, None)[:5]
        if order == "K" and axes is not None:
            return _filled(shape, kind, data, "C").transpose(axes)
        return _filled(shape, kind, data, order)


class PickledScalar(PickledArray):
    """numpy's scalar(dtype, data): an array without dimensions."""

    __slots__ = ()

    def _built(self) -> np.ndarray:
        kind, data = self.args
        return _filled((), kind, data, "C")


def _filled(shape: Any, kind: Any, data: Any, order: Any) -> np.ndarray:
    """An array of a file's numbers, a copy in the machine's byte order. Any error: the file does not tell an array."""
    if not isinstance(kind, PickledType):
        raise ValueError(f"an array of type {type(kind).__name__}: expected {EXPECTED}")
    dtype = kind.dtype()
    if isinstance(data, PickledBytes):
        data = data.encoded()
    elif isinstance(data, str):  # as Python 2 writes bytes
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"data of type {type(data).__name__}: expected bytes")
    if not isinstance(shape, tuple) or len(shape) > 64 or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError("a shape that is none: expected up to 64 sizes")
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes for an array of {list(shape)}: expected {size} ({dtype.name})")
    return np.frombuffer(data, dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="))


# What numpy arrays are pickled with, by numpy 1 and 2, Python 2 and 3
ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy.core.multiarray", "scalar"): PickledScalar,
    ("numpy.core.numeric", "_frombuffer"): PickledBuffer,
    ("numpy", "ndarray"): Pickled,
    ("numpy", "dtype"): PickledType,
    ("_codecs", "encode"): PickledBytes,
    ("__builtin__", "bytes"): PickledBytes,
    ("builtins", "bytes"): PickledBytes,
    ("collections", "OrderedDict"): PickledDict,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, texts, numbers and numpy arrays, these as `PickledArray`. All else is refused (UserError)."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # those of the model zoo were written by Python 2
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module.replace("numpy._core.", "numpy.core."), name]
        except KeyError:
            raise UserError(_refusal(self._path, f"{module}.{name}")) from None
