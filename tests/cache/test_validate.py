"""Whatever happens to a store is found, named, and never raised."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from prect.cache.format import Codec, array_document, file_digest, group_bytes
from prect.cache.intensity import Intensity
from prect.cache.profile import profile_digest
from prect.cache.reader import StoreReader
from prect.cache.validate import Fault, check_store, read_attributes
from prect.manifests.codes import CODES
from tests.cache.stores import random_hu
from tests.cache.whole_stores import (
    Shard,
    drop_chunk,
    edit_attributes,
    edit_group,
    edit_level,
    edit_shard,
    files_of,
    restore,
    scan,
    sign,
    write_whole,
)

SHAPE = (37, 20, 33)
LEVELS = 3
INTENSITIES = {
    "hu": Intensity(),
    "hu10": Intensity(step=10),
    "window": Intensity.window(-175, 250),
}
PLAIN = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80
)
Attributes = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "case.ome.zarr"
    write_whole(path, scan(SHAPE))
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / whole.name)


def codes(faults: list[Fault]) -> set[str]:
    return {fault.code for fault in faults}


def both(store: Path) -> list[Fault]:
    """Faults that the quick check finds; the deep one must find them too."""
    quick, deep = check_store(store, deep=False), check_store(store, deep=True)
    assert set(quick) <= set(deep)
    return quick


def only_deep(store: Path) -> list[Fault]:
    """Faults that only the deep check finds."""
    assert check_store(store, deep=False) == []
    return check_store(store, deep=True)


@pytest.mark.parametrize("name", INTENSITIES)
@pytest.mark.parametrize("chunk", [(16, 16, 16), (7, 9, 64), (5, 20, 1)])
def test_a_whole_store_has_no_fault(tmp_path: Path, name: str, chunk: tuple[int, int, int]) -> None:
    path = tmp_path / "case.ome.zarr"
    written = write_whole(path, random_hu(SHAPE), chunk=chunk, intensity=INTENSITIES[name])
    assert both(path) == []
    assert read_attributes(path) == written


def test_one_voxel_and_one_level(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.ome.zarr", random_hu((1, 1, 1)), levels=5)
    write_whole(tmp_path / "b.ome.zarr", random_hu((3, 40, 5)), levels=1, chunk=(1, 64, 2))
    assert both(tmp_path / "a.ome.zarr") == both(tmp_path / "b.ome.zarr") == []


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


# What a faulty writer could do: everything is signed, and wrong all the same


CONTRADICTIONS: dict[str, Callable[[Attributes], object]] = {
    "there are no levels": lambda a: a.update(levels=[]),
    "level 1 has the path": lambda a: a["levels"][1].update(path="one"),
    "level 2 has the shape": lambda a: a["levels"][2].update(shape=[10, 5, 8]),
    "level 0 has the shape": lambda a: a["levels"][0].update(shape=[0, 20, 33]),
    "level 1 has the spacing": lambda a: a["levels"][1].update(spacing=[6.0, 3.0, 1.6]),
    "level 0 has the spacing": lambda a: a["levels"][0].update(spacing=[-3.0, 1.5, 0.75]),
    "inner chunks of": lambda a: a["levels"][0].update(chunk=[0, 16, 16]),
    "inner chunks of (65536": lambda a: a["levels"][0].update(chunk=[65536, 65536, 1]),
    "case 'a b' cannot be used": lambda a: a.update(case="a b"),
    "data set '' cannot be used": lambda a: a.update(dataset=""),
    "source_digest is": lambda a: a.update(source_digest="12"),
    "made_from is": lambda a: a.update(made_from="0123456789ABCDEF"),
    "shard_digest of level 2 is": lambda a: a["levels"][2].update(shard_digest="z" * 32),
    "array_digest of level 1 is": lambda a: a["levels"][1].update(array_digest=""),
    "software does not name SimpleITK": lambda a: a["software"].pop("SimpleITK"),
    "is not the diagonal": lambda a: a["affine"][0].__setitem__(1, 0.01),
    "diagonal of the spacing (0.75": lambda a: a["affine"][2].__setitem__(2, 2.9),
    "not finite": lambda a: a["affine"][1].__setitem__(3, float("nan")),
    "last row of the affine": lambda a: a["affine"][3].__setitem__(3, 2.0),
    "the body box at": lambda a: a["body_box"].update(offset=[970, 1, 2]),
    "the body box at (-1": lambda a: a["body_box"].update(offset=[-1, 1, 2]),
    "source has the shape": lambda a: a["source"].update(shape=[0, 1, 1]),
    "and the spacing (1.0, 0.0": lambda a: a["source"].update(spacing=[1.0, 0.0, 1.0]),
    "slope 0.0": lambda a: a["source"].update(slope=0.0),
    "source has 0 bytes": lambda a: a["source"].update(bytes=0),
    "orientation 'LRS'": lambda a: a["source"].update(orientation="LRS"),
    "HU percentiles are": lambda a: a["hu_percentiles"].pop("5"),
    "HU percentiles are {'0.5': 9": lambda a: a["hu_percentiles"].update({"0.5": 9, "5": 8}),
    "HU percentiles are {'0.5': -10": lambda a: a["hu_percentiles"].update({"0.5": -1025}),
    "its index has": lambda a: a["levels"][0].update(shard_bytes=12),
    "the occupancy of level 1": lambda a: a["levels"][1].update(occupancy="AAAA"),
    "profile_digest is": lambda a: a["profile"].update(name="another"),
    "asks for intensity": lambda a: _profile(a, "intensity", "step", 2),
    "asks for storage.codec": lambda a: _profile(a, "storage", "codec", "none"),
    "asks for storage.levels": lambda a: _profile(a, "storage", "levels", 4),
    "asks for harmonisation.spacing_mm": lambda a: _profile(
        a, "harmonisation", "spacing_mm", [3.0, 1.5, 0.75]
    ),
    "asks for inner chunks of": lambda a: _profile(a, "storage", "chunk", [[16], 16, 16]),
}


def _profile(attributes: Attributes, room: str, key: str, value: object) -> None:
    attributes["profile"][room][key] = value
    attributes["profile_digest"] = profile_digest(attributes["profile"])


@pytest.mark.parametrize("sentence", CONTRADICTIONS)
def test_attributes_that_cannot_all_be_true(store: Path, sentence: str) -> None:
    edit_attributes(store, CONTRADICTIONS[sentence])
    faults = both(store)
    assert {(fault.code, fault.file) for fault in faults} == {("store.inconsistent", "zarr.json")}
    assert any(sentence in fault.detail for fault in faults), faults
    assert read_attributes(store) is None


def test_a_group_that_says_more_or_less_than_its_attributes(store: Path) -> None:
    sound = files_of(store)

    def scale(document: Attributes) -> None:
        (multiscale,) = document["attributes"]["ome"]["multiscales"]
        multiscale["datasets"][1]["coordinateTransformations"][0]["scale"][0] = 6.1

    changes: list[tuple[str, Callable[[Attributes], object]]] = [
        ("store.ome", scale),
        ("store.ome", lambda d: d["attributes"]["ome"].update(version="0.4")),
        ("store.ome", lambda d: d["attributes"].update(more=1)),
        ("store.ome", lambda d: d.update(zarr_format=2)),
        ("store.group", lambda d: d["attributes"]["prect"]["source"].pop("slope")),
        ("store.group", lambda d: d["attributes"]["prect"]["source"].update(bytes="1")),
        ("store.group", lambda d: d["attributes"]["prect"].update(name="me")),
        ("store.group", lambda d: d["attributes"]["prect"].pop("patient")),
        ("store.group", lambda d: d["attributes"].pop("prect")),
    ]
    for code, change in changes:
        edit_group(store, change)
        assert [(fault.code, fault.file) for fault in both(store)] == [(code, "zarr.json")]
        restore(store, sound)


def test_another_version_is_told_from_a_damaged_number(store: Path) -> None:
    edit_attributes(store, lambda attributes: attributes.update(format_version=2))
    (fault,) = both(store)
    assert (fault.code, fault.file) == ("store.version", "zarr.json")
    edit_attributes(store, lambda attributes: attributes.update(format_version=1))
    assert both(store) == []
    text = (store / "zarr.json").read_bytes()
    (store / "zarr.json").write_bytes(text.replace(b'"format_version": 1', b'"format_version": 3'))
    (fault,) = both(store)
    assert fault.code == "store.group_digest"
    later = json.loads(text)
    later["attributes"]["prect"] = {"format_version": [2], "all": "new"}
    (store / "zarr.json").write_text(json.dumps(later))
    assert codes(both(store)) == {"store.version"}


LEVEL_CHANGES: list[Callable[[Attributes], object]] = [
    lambda d: d.update(shape=[19, 10, 18]),
    lambda d: d.update(fill_value=-1024),
    lambda d: d.update(data_type="uint16"),
    lambda d: d.update(dimension_names=["x", "y", "z"]),
    lambda d: d["chunk_key_encoding"]["configuration"].update(separator="/"),
    lambda d: d["codecs"][0]["configuration"]["codecs"].pop(),
    lambda d: d["codecs"][0]["configuration"].update(index_location="start"),
    lambda d: d["attributes"].update(name="me"),
]


@pytest.mark.parametrize("number", range(len(LEVEL_CHANGES)))
def test_a_level_that_is_not_described_as_it_is(store: Path, number: int) -> None:
    edit_level(store, 1, LEVEL_CHANGES[number])
    (fault,) = both(store)
    assert (fault.code, fault.file, fault.level) == ("store.level", "1/zarr.json", 1)


def test_a_level_whose_document_is_no_json(store: Path) -> None:
    (store / "1" / "zarr.json").write_bytes(b"[" * 100_000)
    digest = file_digest(b"[" * 100_000)
    edit_attributes(store, lambda a: a["levels"][1].update(array_digest=digest))
    (fault,) = both(store)
    assert (fault.code, fault.file) == ("store.level", "1/zarr.json")


def test_an_index_that_is_not_one_of_whole_chunks_in_order(store: Path) -> None:
    sound = files_of(store)
    shard = Shard(store, 1)
    entries = shard.entries()
    (a, m), (b, n) = entries[:2]
    wrong = {
        "swapped": [(b, n), (a, m), *entries[2:]],
        "gap": [(a, m - 1), *entries[1:]],
        "overlap": [(a, m), (b - 1, n + 1), *entries[2:]],
        "empty": [(a, 0), *entries[1:]],
        "beyond": [*entries[:-1], (entries[-1][0], 2**63)],
        "huge": [(a, 2**64 - 1), *entries[1:]],
        "half missing": [(2**64 - 1, m), *entries[1:]],
        "short": [*entries[:-1], (entries[-1][0], entries[-1][1] - 1)],
    }
    for name, table in wrong.items():
        edit_shard(store, 1, shard.data(table))
        found = both(store)
        assert codes(found) == {"store.shard_index"}, name
        assert {fault.level for fault in found} == {1}
        restore(store, sound)
    frame = shard.frames[0]
    for other in (bytes(16), frame + bytes(16 * 16 * 16 * 2)):  # too short, too long for a chunk
        shard.frames[0] = other
        edit_shard(store, 1, shard.data())
        assert codes(both(store)) == {"store.shard_index"}
        restore(store, sound)


def _frame(values: np.ndarray[Any, Any], codec: Codec | None = None) -> bytes:
    codec = codec or Codec(cname="lz4hc")
    data: bytes = blosc.compress(
        np.ascontiguousarray(values), codec.cname.encode(), codec.clevel, blosc.SHUFFLE, 0
    )
    return data


@PLAIN
@given(data=st.data())
def test_a_frame_that_lies_is_found_and_does_no_harm(store: Path, data: st.DataObject) -> None:
    """A damaged frame whose checksum is right: what a writer with bad memory leaves."""
    files = files_of(store)
    shard = Shard(store, 0)
    frame = bytearray(shard.frames[2])
    places = st.integers(0, 31) | st.integers(0, len(frame) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        frame[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        frame = frame[: max(17, data.draw(st.integers(17, len(frame))))]
    shard.frames[2] = bytes(frame)
    try:
        edit_shard(store, 0, shard.data())
        faults = check_store(store, deep=True)
        same = bytes(frame) == Shard(store, 1).frames[0]
        assert same or codes(faults) <= {
            "store.chunk_codec",
            "store.shard_index",
            "store.value",
            "store.padding",
            "store.statistics",
            "store.pooling",
        }
    finally:
        restore(store, files)


def test_a_chunk_of_another_codec_size_or_type(store: Path) -> None:
    sound = files_of(store)
    values = np.zeros((16, 16, 16), dtype=np.int16)
    wrong = {
        "decodes to": _frame(values[1:]),
        "blosc format 4": _frame(values, Codec(cname="zstd")),
        "elements of 1": _frame(values.view(np.uint8)),
        "its frame says": _frame(values) + b"\0",
        "does not decode": _frame(random_hu((16, 16, 16)) // 64)[:16] + bytes(4000),
    }
    cut = wrong["does not decode"]
    wrong["does not decode"] = cut[:12] + struct.pack("<I", len(cut)) + cut[16:]
    for detail, frame in wrong.items():
        shard = Shard(store, 0)
        shard.frames[3] = frame
        edit_shard(store, 0, shard.data())
        (fault,) = only_deep(store)
        assert (fault.code, fault.chunk) == ("store.chunk_codec", (0, 1, 0))
        assert detail in fault.detail
        restore(store, sound)


ILLEGAL = {
    "hu": [-1025, 3072, -32768, 32767],
    "hu10": [-1023, -1025, 3072, 7, -32768],
    "window": [0, 108, 255],
}
LEGAL = {"hu": [-1024, 3071, 0], "hu10": [-1024, 3071, 6], "window": [1, 107]}


@pytest.mark.parametrize("name", INTENSITIES)
def test_values_that_the_intensity_cannot_have_made(tmp_path: Path, name: str) -> None:
    store = tmp_path / "case.ome.zarr"
    intensity = INTENSITIES[name]
    write_whole(store, np.zeros(SHAPE, np.int16), intensity=intensity)
    with StoreReader(store) as reader:
        codec = reader.attributes.levels[0].codec
    sound = files_of(store)
    for value in (*ILLEGAL[name], *LEGAL[name]):
        shard = Shard(store, 0)
        voxels = np.frombuffer(blosc.decompress(shard.frames[0]), intensity.dtype).copy()
        voxels[5] = value
        shard.frames[0] = _frame(voxels, codec)
        edit_shard(store, 0, shard.data())
        found = [f for f in only_deep(store) if f.code == "store.value"]
        assert [f.chunk for f in found] == ([(0, 0, 0)] if value in ILLEGAL[name] else []), value
        restore(store, sound)


@pytest.mark.parametrize("name", INTENSITIES)
def test_voxels_beyond_the_level(tmp_path: Path, name: str) -> None:
    store = tmp_path / "case.ome.zarr"
    intensity = INTENSITIES[name]
    write_whole(store, np.zeros(SHAPE, np.int16), intensity=intensity)
    with StoreReader(store) as reader:
        codec = reader.attributes.levels[1].codec
    shard = Shard(store, 1)  # 19 x 10 x 17 voxels
    last = np.frombuffer(blosc.decompress(shard.frames[-1]), intensity.dtype).copy()
    assert last[-1] == intensity.fill
    last[-1] = last[0]
    shard.frames[-1] = _frame(last, codec)
    edit_shard(store, 1, shard.data())
    (fault,) = only_deep(store)
    assert (fault.code, fault.level, fault.chunk) == ("store.padding", 1, (1, 0, 1))
    assert fault.detail.startswith(f"1 of {16**3 - 3 * 10} voxels")


@pytest.mark.parametrize("name", INTENSITIES)
@pytest.mark.parametrize("chunk", [(16, 16, 16), (7, 9, 64)])
@pytest.mark.parametrize("voxel", [(0, 0, 0), (18, 9, 16), (15, 3, 2), (14, 8, 15)])
def test_a_level_that_is_not_the_mean_of_the_one_before(
    tmp_path: Path, chunk: tuple[int, int, int], voxel: tuple[int, int, int], name: str
) -> None:
    """The coarser level of another volume, which differs in the mean of one voxel."""
    intensity = INTENSITIES[name]
    volume = random_hu(SHAPE) % 300 - 100
    z, y, x = (2 * n for n in voxel)
    other = volume.copy()
    # Too much for what a step may lose; without one, a single HU.
    other[z : z + 2, y : y + 2, x : x + 2] += 2 * intensity.step if intensity.max_error else 1
    store = tmp_path / "case.ome.zarr"
    foreign = tmp_path / "foreign" / "case.ome.zarr"
    write_whole(store, volume, chunk=chunk, levels=2, intensity=intensity)
    write_whole(foreign, other, chunk=chunk, levels=2, intensity=intensity)
    edit_shard(store, 1, (foreign / "1" / "c.0.0.0").read_bytes())
    found = [fault for fault in only_deep(store) if fault.code != "store.statistics"]
    place = tuple(n // c for n, c in zip(voxel, chunk, strict=True))
    assert [(f.code, f.level, f.chunk) for f in found] == [("store.pooling", 1, place)]
    assert f"voxel {voxel}" in found[0].detail


@PLAIN
@given(data=st.data())
def test_what_a_step_or_a_window_loses_is_no_fault(tmp_path: Path, data: st.DataObject) -> None:
    low = data.draw(st.integers(-1024, 0))
    high = data.draw(st.integers(low + 1, 3071))
    step = data.draw(st.integers(1, 64))
    intensity = Intensity(step=step)
    if data.draw(st.booleans()):
        intensity = Intensity.window(low, high, max(step, -(-(high - low) // 253)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    middle, width = data.draw(st.integers(low, high)), data.draw(st.integers(1, 400))
    volume = np.clip(rng.normal(middle, width, (9, 8, 11)), -1024, 3071).astype(np.int16)
    store = tmp_path / "case.ome.zarr"
    write_whole(store, volume, intensity=intensity)
    assert both(store) == []


def test_statistics_of_other_voxels(store: Path, tmp_path: Path) -> None:
    sound = files_of(store)
    with StoreReader(store) as reader:
        median = reader.attributes.hu_percentiles["50"]
    edit_attributes(store, lambda a: a["hu_percentiles"].update({"50": median + 1}))
    (fault,) = only_deep(store)
    assert (fault.code, fault.file) == ("store.statistics", "zarr.json")
    restore(store, sound)
    other = write_whole(tmp_path / "b" / "case.ome.zarr", scan(SHAPE, seed=200))
    occupancy = other.levels[2].occupancy
    edit_attributes(store, lambda a: a["levels"][2].update(occupancy=occupancy))
    (fault,) = only_deep(store)
    assert (fault.code, fault.level) == ("store.statistics", 2)


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


@settings(PLAIN, max_examples=250)
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
