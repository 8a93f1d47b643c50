"""Reading records fast must not take for a record what a slow reader refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import Folder
from pydantic import ValidationError

from rio_bench.files import RecordError, read_stored
from rio_bench.records import Record
from rio_bench.report.cells import compare


def refuse(constant: str) -> float:
    raise ValueError(constant)


def slowly(content: bytes) -> Record | None:
    try:
        return Record.model_validate(json.loads(content, parse_constant=refuse))
    except (ValueError, ValidationError):
        return None


def a_record(tmp_path: Path) -> bytes:
    folder = Folder(tmp_path / "made-up")
    run = folder.plan("rio", strategy={"name": "rio", "threshold": 0.5})
    folder.finish(run, [20, None, 20, 30.25], [18, 3, 19, 28], buckets={"a": "r", "b": "f"})
    return folder.results.run(run.name).record_file.read_bytes()


SNIPPETS = [b"", b"{", b"}", b'"', b",", b":", b"\\", b"\x00", b"\xff", b"NaN", b"Infinity", b"-Infinity", b"1e999"]
SNIPPETS += [
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"0",
    b"01",
    b"-",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"\n",
    b'"seed": 3,',
    b"'a'",
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "good.json").write_bytes(a_record(folder))
    return folder / "record.json"


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_damaged_record_is_refused_or_read_as_a_slow_reader_reads_it(data: st.DataObject, file: Path) -> None:
    content = file.with_name("good.json").read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, 8))
        content = content[:start] + data.draw(st.sampled_from(SNIPPETS)) + content[start + length :]
    file.write_bytes(content)
    try:
        found = read_stored(file, Record)
    except RecordError as error:
        assert slowly(content) is None
        assert str(file) in str(error) and "\n" not in str(error)
    else:
        assert found == slowly(content)


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_json_does_not_have_is_refused_in_a_configuration_too(file: Path, constant: bytes) -> None:
    content = file.with_name("good.json").read_bytes()
    file.write_bytes(content.replace(b'"threshold": 0.5', b'"threshold": ' + constant))
    with pytest.raises(RecordError, match=f"{constant.decode()} is not JSON"):
        read_stored(file, Record)


def test_a_record_from_before_buckets_reads_as_ever(tmp_path: Path) -> None:
    values = json.loads(a_record(tmp_path))
    del values["buckets"]
    file = tmp_path / "record.json"
    file.write_text(json.dumps(values))
    record = read_stored(file, Record)
    assert record is not None and record.buckets is None


def test_cells_hold_ap_per_category_as_records_do(tmp_path: Path) -> None:
    """Compactly: one object for the names of all records, and the same content."""
    folder = Folder(tmp_path / "made-up")
    per_category = {"a": 1.5, "b": None, "c": 0.0}
    for method in ("none", "rio"):
        run = folder.plan(method)
        folder.finish(run, [1, 2, 3, 4], [1, 2, 3, 4], buckets={"a": "r", "b": "r", "c": "f"})
        record = folder.results.run(run.name).read_record()
        assert record is not None
        metrics = {kind: of.model_copy(update={"per_category": per_category}) for kind, of in record.metrics.items()}
        folder.results.run(run.name).write_record(record.model_copy(update={"metrics": metrics}))
    folder.write_plan()
    records = [cell.records[0] for cell in compare(folder.results).cells]
    for record in records:
        values = record.metrics["box"].per_category
        assert dict(values) == per_category and len(values) == 3 and values.get("d") is None
        assert record.buckets is records[0].buckets
        assert values.positions is records[0].metrics["mask"].per_category.positions
