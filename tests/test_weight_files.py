"""Files of weights from elsewhere: what is read of them, and that nothing in them is run."""

from __future__ import annotations

import itertools
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from written_weights import dumped, saved

from rio_bench.detection.weight_files import ADMITTED, read_weights
from rio_bench.errors import UserError


class Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple:
        return Path.touch, (self.made,)


@pytest.mark.parametrize("name", ["R-50.pkl", "R-50.pth"])
def test_a_file_that_would_run_code_is_refused(name: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    content = {"model": {"conv1_w": np.zeros(2), "conv1_b": Exploit(made)}, "__author__": "Caffe2"}
    pickle.loads(pickle.dumps(content))
    assert made.exists()  # it does what it says
    made.unlink()
    file = tmp_path / name
    if file.suffix == ".pkl":
        dumped(file, content)
    else:
        saved(file, content)
    with pytest.raises(
        UserError, match=rf"{name}: refused: reading it would call [\w.]+: expected tensors, arr"
    ) as told:
        read_weights(file)
    assert "\n" not in str(told.value)
    assert not made.exists()


def test_a_pickle_cannot_set_an_attribute_of_what_it_names(tmp_path: Path) -> None:
    before = [dir(named) for named in ADMITTED.values()]
    for module, name in ADMITTED:
        for state in (b"}\x8c\x07changedK\x01s", b"N}\x8c\x07changedK\x01s\x86"):  # into its __dict__; by setattr
            (tmp_path / "x.pkl").write_bytes(b"\x80\x04}\x8c\x01a" + f"c{module}\n{name}\n".encode() + state + b"bs.")
            with pytest.raises(UserError, match=r"x\.pkl: not a file of weights: "):
                read_weights(tmp_path / "x.pkl")
    assert [dir(named) for named in ADMITTED.values()] == before


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_array_of_numbers_comes_back_equal(data: st.DataObject, tmp_path: Path) -> None:
    code = data.draw(st.sampled_from(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]))
    dtype = np.dtype(data.draw(st.sampled_from("<>")) + code)
    array = data.draw(arrays(dtype, array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
    array = np.asarray(array, order=data.draw(st.sampled_from("CF")))
    array = array.transpose(data.draw(st.permutations(range(array.ndim))))
    protocol = data.draw(st.integers(0, pickle.HIGHEST_PROTOCOL))
    pickled = pickle.dumps({"blobs": {"a": array, "b": np.ones(1, dtype)[0], "a_momentum": array}}, protocol)
    if protocol < 4 and data.draw(st.booleans()):  # as of numpy 1
        pickled = pickled.replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "x.pkl").write_bytes(pickled)
    found = read_weights(tmp_path / "x.pkl")
    assert (found["__author__"], list(found["model"])) == ("Caffe2", ["a", "b"])
    for value, expected in zip(found["model"].values(), (array, np.ones((), dtype)), strict=True):
        np.testing.assert_array_equal(value, expected)
        assert value.dtype == dtype.newbyteorder("=")
        assert torch.as_tensor(value).shape == expected.shape


def test_arrays_as_python_2_and_numpy_1_pickled_them(tmp_path: Path) -> None:
    # protocol 2, texts as byte strings (SHORT_BINSTRING), numpy.core.multiarray: as in the model zoo's ImageNet files
    data = np.array([1.5, -2.0], dtype="<f4").tobytes()

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\n" + text(b"f4") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(data) + b"tb"
    )
    (tmp_path / "R-50.pkl").write_bytes(b"\x80\x02}" + text(b"conv1_w") + array + b"s.")
    found = read_weights(tmp_path / "R-50.pkl")["model"]
    np.testing.assert_array_equal(found["conv1_w"], np.array([1.5, -2.0], dtype=np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": np.array([{}], dtype=object)}, "an array of type 'O8': expected numbers"),
        ({"a": "text"}, "expected tensors by name, 'a' is str"),
        ([1, 2], "expected a dict, got list"),
        ({"blobs": 3}, "blobs: expected a dict, got int"),
        ({}, "expected tensors by name"),
        ({"model": {("a",): np.zeros(1)}, "__author__": "x"}, "model: expected texts as keys, got tuple"),
        ({"a": np.zeros(1, dtype="c8")}, "a: an array of type 'c8': expected numbers"),
        ({"a": np.zeros(1, dtype="g")}, "a: an array of type 'f16': expected numbers"),
    ],
)
def test_pickles_of_other_things_are_refused_in_a_line(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"x\.pkl: not a file of weights: .*{message}") as told:
        read_weights(dumped(tmp_path / "x.pkl", content))
    assert "\n" not in str(told.value)


def test_an_array_whose_size_is_not_its_datas_is_refused(tmp_path: Path) -> None:
    pickled = pickle.dumps({"a": np.zeros(24, dtype=np.int8)}, 4)
    (tmp_path / "x.pkl").write_bytes(pickled.replace(b"K\x18\x85", b"K\x19\x85"))
    with pytest.raises(UserError, match=r"x\.pkl: .* a: 24 bytes for an array of \[25\]: expected 25 \(int8\)$"):
        read_weights(tmp_path / "x.pkl")


@pytest.mark.filterwarnings("ignore")  # torch's: deprecated, beta
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse_coo tensor of torch.float32 on cpu"),
        (lambda: torch.quantize_per_tensor(torch.eye(3), 1, 0, torch.qint8), "strided tensor of torch.qint8 on cpu"),
        (lambda: torch.zeros(3, device="meta"), "strided tensor of torch.float32 on meta"),
        (lambda: torch.zeros(3, dtype=torch.complex64), "strided tensor of torch.complex64 on cpu"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2)]), "nested tensor of torch.float32 on cpu"),
    ],
)
def test_tensors_without_plain_numbers_are_refused_in_a_line(made: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"x\.pth: not a file of weights: a is a {message}: expected dense numbers \("):
        read_weights(saved(tmp_path / "x.pth", {"a": made()}))


def test_attributes_that_a_file_gives_what_it_holds_are_dropped(tmp_path: Path) -> None:
    tensor = torch.tensor([1.0, float("nan")])
    content = OrderedDict(model={"a": tensor})
    tensor.flatten = content.get = 3
    found = read_weights(saved(tmp_path / "x.pth", content))
    assert type(found) is dict
    torch.testing.assert_close(found["model"]["a"].flatten(), tensor, equal_nan=True)  # NaN is a number like others


def test_a_part_of_a_file_is_refused_in_a_line(tmp_path: Path) -> None:
    zipped = saved(tmp_path / "x.pth", {"a": torch.zeros(9)}).read_bytes()
    pickles = [pickle.dumps({"a": np.zeros((2, 2), order="F")}, protocol) for protocol in range(5)]
    for name, whole, told in [("part.pth", zipped, "its end is"), *(("part.pkl", each, "") for each in pickles)]:
        for length in range(4, len(whole), 7):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(UserError, match=rf"{name}: not a file of weights: {told}[ -~]+$"):
                read_weights(tmp_path / name)


def test_files_that_are_no_checkpoints_are_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.pth: No such file"):
        read_weights(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match=rf"^weights: {tmp_path}: Is a directory$"):
        read_weights(tmp_path)
    for name, content in itertools.product(("x.pkl", "x.pth"), (b"no checkpoint at all", b"\x80\x02K\x01K\x01\x93.")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: not a file of weights: \w+.* .") as told:
            read_weights(tmp_path / name)
        assert "\n" not in str(told.value)
