"""Detections files: what is written is read again, whole or not at all; any layout is read, and broken ones told."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rio_bench.detection import detections as module
from rio_bench.detection.detections import DetectionsWriter, read_batches
from rio_bench.errors import UserError


def detection(number: int, **fields: Any) -> dict[str, Any]:
    mask = {"size": [20, 100], "counts": "1234"}
    box = [0.5, 1.0, number / 3, 2.0]
    return {"image_id": 7, "category_id": number, "bbox": box, "score": 0.1, "segmentation": mask} | fields


def write(path: Path, detections: list[dict]) -> Path:
    with DetectionsWriter(path) as writer:
        for entry in detections:
            writer.write([entry])
    return path


def read(path: Path) -> list[dict]:
    return [msgspec.to_builtins(entry) for batch in read_batches(path) for entry in batch.detections]


def as_read(entries: list[dict]) -> list[dict]:
    """Tuples as msgspec gives them back."""
    return [msgspec.to_builtins(msgspec.convert(entry, module.Detection)) for entry in entries]


@pytest.mark.parametrize("name", ["detections.json", "detections.json.gz"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_is_written_is_read_again(tmp_path: Path, name: str, count: int) -> None:
    entries = [detection(number) for number in range(count)]
    path = write(tmp_path / name, entries)
    assert read(path) == as_read(entries)
    content = path.read_bytes()
    text = gzip.decompress(content) if name.endswith(".gz") else content
    assert json.loads(text) == entries  # any JSON parser reads it
    assert len(text.splitlines()) == max(count, 1)  # detection N on line N
    assert write(tmp_path / name, entries).read_bytes() == content  # no time in it
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write(tmp_path / "detections.json.gz", [detection(1)])
    with pytest.raises(RuntimeError, match="in the middle"), DetectionsWriter(path) as writer:
        writer.write([detection(2)])
        assert [entry["category_id"] for entry in read(path)] == [1]
        raise RuntimeError("in the middle")
    with pytest.raises(ValueError, match="not JSON compliant"), DetectionsWriter(path) as writer:
        writer.write([detection(2, score=float("nan"))])
    assert [entry["category_id"] for entry in read(path)] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["detections.json.gz"]


def test_two_processes_that_write_a_file_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "detections.json"
    with DetectionsWriter(path) as writer:
        writer.write([detection(1)])
        monkeypatch.setattr("os.getpid", lambda: 10**9)
        write(path, [detection(2), detection(3)])
        assert [entry["category_id"] for entry in read(path)] == [2, 3]
        writer.write([detection(4)])
    assert [entry["category_id"] for entry in read(path)] == [1, 4]


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none/d.json: cannot be written: No such file"):
        write(tmp_path / "none" / "d.json", [])
    with (
        pytest.raises(UserError, match=r"d.json: cannot be written: No space left on device"),
        DetectionsWriter(tmp_path / "d.json") as writer,
        open("/dev/full", "wb", buffering=0) as full,
    ):
        writer._file = full
        writer.write([detection(1)])
    # an error of the block is its own
    with pytest.raises(OSError, match="a picture"), DetectionsWriter(tmp_path / "d.json"):
        raise OSError("a picture")
    assert not list(tmp_path.iterdir())


LAYOUTS = {
    "one a line": lambda entries: "[" + ",\n".join(map(json.dumps, entries)) + "]\n",
    "brackets on lines of their own": lambda entries: "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n",
    "Windows lines": lambda entries: "[" + ",\r\n".join(map(json.dumps, entries)) + "]\r\n",
    "several a line": lambda entries: json.dumps(entries).replace("}}, ", "}},\n", 3),
    "one long line": json.dumps,
    "indented": lambda entries: json.dumps(entries, indent=1),
    "indented by nothing": lambda entries: json.dumps(entries, indent=0),
    "comma first": lambda entries: "\n [" + "\n,".join(map(json.dumps, entries)) + "]",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [0, 1, 2, 50])
@pytest.mark.parametrize("block", [64, 1000, 2**20])
def test_every_layout_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, count: int, block: int
) -> None:
    monkeypatch.setattr(module, "READ_BYTES", block)
    monkeypatch.setattr(module, "BATCH_SIZE", 7)
    entries = [detection(number, area=3, id=number, iscrowd=0) for number in range(count)]
    path = tmp_path / "detections.json"
    path.write_bytes(LAYOUTS[layout](entries).encode())
    assert read(path) == as_read(entries)
    numbers = [
        (batch.first + index, entry.category_id)
        for batch in read_batches(path)
        for index, entry in enumerate(batch.detections)
    ]
    assert numbers == [(number + 1, number) for number in range(count)]
    assert all(0 <= batch.share_read <= 1 for batch in read_batches(path))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_torn_file_is_never_read_as_whole(tmp_path: Path, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    text = LAYOUTS[layout]([detection(number) for number in range(3)]).rstrip().encode()
    path = tmp_path / "detections.json"
    content = data.draw(st.sampled_from([text, gzip.compress(text)]))
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(UserError, match="detections.json: "):
        read(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"annotations": []}', "not a detections file: expected a JSON list"),
        ('[{"image_id": 1}]', "detection 1: Object missing required field `category_id`"),
        ("[1, 2]", "detection 1: Expected `object`, got `int`"),
        (LAYOUTS["one a line"]([detection(1), detection(2)]).replace("0.1", "NaN", 2), "detection 1: torn or not JSON"),
        (LAYOUTS["one long line"]([detection(1), detection(2, score=-9)]).replace("-9", "NaN"), "detection 2: .*NaN"),
        (LAYOUTS["one a line"]([detection(1), detection(2, score=-9)]).replace("-9", "-Infinity"), "detection 2: "),
        (LAYOUTS["one a line"]([detection(1), detection(2, score=-9)]).replace("-9", "1e999"), "detection 2: "),
        (
            LAYOUTS["one a line"]([detection(1), detection(2)]) + "]",
            "detection 3: torn or not JSON: .*trailing garbage",
        ),
        (
            json.dumps([detection(n, score="x" if n == 41 else 0.1) for n in range(60)]),
            "detection 42: Expected `float`",
        ),
    ],
)
@pytest.mark.parametrize("block", [64, 2**20])
def test_what_is_no_detection_is_refused_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str, block: int
) -> None:
    monkeypatch.setattr(module, "READ_BYTES", block)
    path = tmp_path / "detections.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"detections.json: {told}"):
        read(path)


def test_a_missing_file_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.json: the detections file cannot be read \(No such file"):
        read(tmp_path / "none.json")
    content = bytearray(write(tmp_path / "d.json.gz", [detection(number) for number in range(500)]).read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "d.json.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"d.json.gz: "):
        read(tmp_path / "d.json.gz")


@pytest.mark.parametrize("layout", ["one a line", "one long line"])
def test_a_file_is_never_held_whole(tmp_path: Path, layout: str) -> None:
    entries = [detection(number, segmentation={"size": [9, 9], "counts": "x" * 1000}) for number in range(20_000)]
    path = tmp_path / "detections.json"
    path.write_text(LAYOUTS[layout](entries))
    del entries
    tracemalloc.start()
    count = sum(len(batch.detections) for batch in read_batches(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < path.stat().st_size / 2
