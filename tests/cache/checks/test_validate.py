"""Whatever happens to a store is found, named, and never raised."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.cache.checks.validate import check_store, read_attributes
from prect.cache.format import array_document, group_bytes
from prect.cache.reader import StoreReader
from prect.manifests.codes import CODES
from tests.cache.stores import random_hu
from tests.cache.whole_stores import (
    INTENSITIES,
    PLAIN,
    SHAPE,
    Shard,
    both,
    codes,
    drop_chunk,
    files_of,
    only_deep,
    restore,
    sign,
    write_whole,
)

LEVELS = 3


@pytest.mark.parametrize("name", INTENSITIES)
@pytest.mark.parametrize("chunk", [(16, 16, 16), (7, 9, 64), (5, 20, 1)])
def test_a_whole_store_has_no_fault(tmp_path: Path, name: str, chunk: tuple[int, int, int]) -> None:
    path = tmp_path / "case.ome.zarr"
    written = write_whole(path, random_hu(SHAPE), chunk=chunk, intensity=INTENSITIES[name])
    assert check_store(path, deep=True) == check_store(path, deep=False) == []
    assert read_attributes(path) == written


def test_one_voxel_and_one_level(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.ome.zarr", random_hu((1, 1, 1)), levels=5)
    write_whole(tmp_path / "b.ome.zarr", random_hu((3, 40, 5)), levels=1, chunk=(1, 64, 2))
    for name in "ab":
        assert check_store(tmp_path / f"{name}.ome.zarr", deep=True) == []


# What happens to files


@PLAIN
@given(file=st.integers(0, 6), position=st.floats(0, 1, exclude_max=True), by=st.integers(1, 255))
def test_any_flipped_byte_is_found_and_its_file_named(
    store: Path, file: int, position: float, by: int
) -> None:
    files = files_of(store)
    name = sorted(files)[file]
    data = bytearray(files[name])
    data[int(position * len(data))] ^= by
    (store / name).write_bytes(bytes(data))
    try:
        faults = check_store(store, deep=True)
        assert faults
        assert {fault.file for fault in faults} == {name}
        if name.endswith("zarr.json"):
            assert check_store(store, deep=False) == faults
    finally:
        restore(store, files)


def test_a_flipped_byte_of_the_index_is_found_by_the_quick_check(store: Path) -> None:
    files = files_of(store)
    for level in range(LEVELS):
        name = f"{level}/c.0.0.0"
        for place in (1, 2, 4, 5, 9, 12, 13, 20):
            data = bytearray(files[name])
            data[-place] ^= 64
            (store / name).write_bytes(bytes(data))
            (fault,) = check_store(store, deep=False)
            assert (fault.code, fault.file, fault.level) == ("store.shard_index", name, level)
            restore(store, files)


@pytest.mark.parametrize("level", range(LEVELS))
@pytest.mark.parametrize("part", ["data", "checksum"])
def test_a_flipped_byte_of_a_chunk_names_the_chunk(store: Path, level: int, part: str) -> None:
    shard = Shard(store, level)
    offset, length = shard.entries()[-1]
    data = bytearray(shard.data())
    data[offset + length - (1 if part == "checksum" else 9)] ^= 1
    (store / str(level) / "c.0.0.0").write_bytes(bytes(data))
    with StoreReader(store) as reader:
        last = tuple((n - 1) // 16 for n in reader.levels[level].shape)
    chunk, digest = only_deep(store)
    assert (chunk.code, chunk.level, chunk.chunk) == ("store.chunk_checksum", level, last)
    assert (digest.code, digest.level, digest.chunk) == ("store.shard_digest", level, None)
    assert chunk.place == f"{level}/c.0.0.0, chunk {last}"


@PLAIN
@given(file=st.integers(0, 6), keep=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_found_by_the_quick_check(store: Path, file: int, keep: float) -> None:
    files = files_of(store)
    name = sorted(files)[file]
    (store / name).write_bytes(files[name][: int(keep * len(files[name]))])
    try:
        faults = both(store)
        assert faults
        assert {fault.file for fault in faults} == {name}
    finally:
        restore(store, files)


@pytest.mark.parametrize("file", range(7))
def test_bytes_at_the_end_are_found_by_the_quick_check(store: Path, file: int) -> None:
    name = sorted(files_of(store))[file]
    with (store / name).open("ab") as end:
        end.write(b" ")
    faults = both(store)
    assert {fault.file for fault in faults} == {name}
    expected = {"c.0.0.0": "store.shard_size", "zarr.json": "store.level"}
    code = "store.group_digest" if name == "zarr.json" else expected[Path(name).name]
    assert faults[0].code == code


@pytest.mark.parametrize("file", range(7))
def test_a_removed_file_is_found_by_the_quick_check(store: Path, file: int) -> None:
    name = sorted(files_of(store))[file]
    (store / name).unlink()
    (fault,) = both(store)
    assert (fault.code, fault.file) == ("store.file_missing", name)


def test_a_removed_level_is_found_by_the_quick_check(store: Path) -> None:
    shutil.rmtree(store / "1")
    faults = both(store)
    assert [(f.code, f.file) for f in faults] == [
        ("store.file_missing", "1/zarr.json"),
        ("store.file_missing", "1/c.0.0.0"),
    ]


@pytest.mark.parametrize("level", range(LEVELS))
def test_any_chunk_taken_out_of_an_index_is_found_by_the_quick_check(
    store: Path, level: int
) -> None:
    files = files_of(store)
    with StoreReader(store) as reader:
        grid = [-(-n // 16) for n in reader.levels[level].shape]
    for number, position in enumerate(np.ndindex(*grid)):
        drop_chunk(store, level, number)
        (fault,) = check_store(store, deep=False)
        assert (fault.code, fault.chunk) == ("store.chunk_missing", position)
        deep = check_store(store, deep=True)
        assert codes(deep) == {"store.chunk_missing", "store.shard_digest"}
        assert {each.file for each in deep} == {f"{level}/c.0.0.0"}
        restore(store, files)


@pytest.mark.parametrize("name", [".DS_Store", "c.0.0.0", "3", "0/c.0.0.1", "2/.zattrs", "labels/"])
def test_an_added_file_or_folder_is_found_by_the_quick_check(store: Path, name: str) -> None:
    path = store / name
    path.mkdir() if name.endswith("/") else path.write_text("")
    (fault,) = both(store)
    assert (fault.code, fault.file) == ("store.unexpected_file", name.rstrip("/"))


def test_a_name_that_no_text_can_hold_is_told_all_the_same(store: Path) -> None:
    (Path(os.fsdecode(os.fsencode(store) + b"/od\xffd"))).write_text("")
    (fault,) = both(store)
    assert fault.code == "store.unexpected_file"
    assert (
        str(fault).encode()
        == rb"store.unexpected_file (od\udcffd): 'od\udcffd' does not belong here"
    )


def test_what_is_no_store_at_all(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.ome.zarr"
    file.write_text("")
    empty = tmp_path / "empty.ome.zarr"
    empty.mkdir()
    found = {
        name: [(fault.code, fault.file) for fault in both(tmp_path / f"{name}.ome.zarr")]
        for name in ("gone", "file", "empty")
    }
    assert found == {
        "gone": [("store.missing", "")],
        "file": [("store.group", "")],
        "empty": [("store.file_missing", "zarr.json")],
    }
    moved = store.rename(tmp_path / "other.ome.zarr")
    assert [(f.code, f.file) for f in both(moved)] == [("store.name", "")]


@pytest.mark.parametrize("name", ["zarr.json", "1/zarr.json", "1/c.0.0.0"])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_not_waited_for(store: Path, name: str) -> None:
    path = store / name
    path.unlink()
    os.mkfifo(path)
    (fault,) = both(store)
    assert (fault.code, fault.file) == ("store.file_missing", name)
    path.unlink()
    path.mkdir()
    (fault,) = both(store)
    assert (fault.code, fault.file) == ("store.file_missing", name)


@pytest.mark.parametrize("name", ["zarr.json", "1/zarr.json", "1/c.0.0.0", "", "1"])
def test_a_fault_of_the_disk_is_told_as_such(
    store: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    broken = store / name
    methods: dict[str, Any] = {m: getattr(Path, m) for m in ("open", "iterdir", "stat")}

    def failing(method: str) -> Callable[..., Any]:
        def act(path: Path, *args: Any, **options: Any) -> Any:
            if path == broken and (method != "stat" or name == ""):
                raise OSError(5, "Input/output error")
            return methods[method](path, *args, **options)

        return act

    for method in methods:
        monkeypatch.setattr(Path, method, failing(method))
    faults = both(store)
    file = "" if name == "1" else name
    assert [(f.code, f.file) for f in faults] == [("store.unreadable", file)]
    assert "Input/output error" in faults[0].detail


def test_several_faults_are_all_told(store: Path) -> None:
    (store / "0" / "zarr.json").unlink()
    (store / "1" / "c.0.0.0").write_bytes(b"")
    (store / "extra").write_text("")
    drop_chunk(store, 2, 0)
    assert [fault.code for fault in check_store(store, deep=False)] == [
        "store.unexpected_file",
        "store.file_missing",
        "store.shard_size",
        "store.chunk_missing",
    ]


# Never an error


@PLAIN
@given(file=st.integers(0, 6), data=st.binary(max_size=300))
def test_random_bytes_in_place_of_any_file(store: Path, file: int, data: bytes) -> None:
    files = files_of(store)
    name = sorted(files)[file]
    (store / name).write_bytes(data)
    try:
        assert {fault.file for fault in both(store)} == {name}
    finally:
        restore(store, files)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1.5, 2**31, 2**63, 2**64, 10**400, float("inf"), float("nan")]),
    st.sampled_from(["", "a/b", "..", "\ud800", "0" * 32, [], {}, [[]], {"a": {"b": []}}]),
    st.integers(),
    st.text(max_size=3),
)


def _leaves(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document))
    found = [path] if path else []
    return found + [leaf for key, value in items for leaf in _leaves(value, (*path, key))]


@settings(PLAIN, max_examples=150)
@given(data=st.data())
def test_odd_values_in_a_signed_document_never_raise(store: Path, data: st.DataObject) -> None:
    files = files_of(store)
    document = json.loads(files["zarr.json"])
    for _ in range(data.draw(st.integers(1, 2))):
        target = document
        leaves = _leaves(document)
        *parents, last = leaves[data.draw(st.integers(0, len(leaves) - 1))]
        for key in parents:
            target = target[key]
        target[last] = copy.deepcopy(data.draw(ODD))
    text = sign(document)
    try:
        (store / "zarr.json").write_bytes(text)
        faults = both(store)
        if text != files["zarr.json"]:
            assert all(fault.code in CODES and fault.detail for fault in faults)
    finally:
        restore(store, files)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"attributes": {"prect": ' + b'{"a":' * 100_000,
        b'{"attributes": {"prect": {"format_version": ' + b"9" * 10_000 + b"}}}",
        b'{"attributes": {"prect": "format_version"}}',
        b'{"attributes": null}',
        b"\xff\xfe" * 10,
        b"null",
    ],
    ids=range(7),
)
def test_documents_made_to_hurt(store: Path, text: bytes) -> None:
    (store / "zarr.json").write_bytes(text)
    (fault,) = both(store)
    assert (fault.code, fault.file) == ("store.group", "zarr.json")


def test_a_document_without_end_is_not_read_to_its_end(store: Path) -> None:
    text = (store / "zarr.json").read_bytes()
    (store / "zarr.json").write_bytes(b" " * 2**24 + text)
    assert codes(both(store)) == {"store.group"}  # not that of the digest, which comes later


def test_a_deeply_nested_profile_never_raises(store: Path) -> None:
    text = (store / "zarr.json").read_bytes()
    for depth in (100, 240, 300, 900):
        nested = b'"profile": {"deep": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b", "
        (store / "zarr.json").write_bytes(text.replace(b'"profile": {', nested, 1))
        assert codes(both(store)) <= {"store.group", "store.group_digest"}
        assert both(store)


def test_the_documents_are_those_that_are_written(store: Path) -> None:
    """The tests above sign documents themselves; here that this is how the writer does."""
    with StoreReader(store) as reader:
        attributes = reader.attributes
    assert group_bytes(attributes) == (store / "zarr.json").read_bytes()
    level = attributes.levels[1]
    document = array_document(level.shape, level.chunk, level.codec, attributes.intensity)
    assert document == json.loads((store / "1" / "zarr.json").read_bytes())
    assert google_crc32c.value(b"123456789") == 0xE3069283  # the checksum is crc32c
