"""Volumes of other writers are read voxel by voxel, and what is wrong with them is said."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from prect.cache.foreign import ForeignReader, open_store
from prect.cache.reader import StoreReader
from prect.errors import ChunkError, StoreError
from tests.cache.stores import random_hu, write_store

SHAPE = (20, 26, 31)
BOXES = [
    ((0, 0, 0), SHAPE),
    ((3, 5, 7), (9, 9, 9)),
    ((-4, 20, -2), (10, 12, 40)),
    ((30, 0, 0), (4, 4, 4)),
]
CODECS: dict[str, Any] = {
    "none": None,
    "gzip": GzipCodec(level=3),
    "zstd": ZstdCodec(level=3),
    "blosc": BloscCodec(cname="lz4", typesize=2),
    "crc32c": [ZstdCodec(level=1), Crc32cCodec()],
}


def volume_of(dtype: str, shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    rng = np.random.default_rng(1)
    if dtype.startswith("float"):
        return rng.uniform(-1024, 3071, shape).astype(dtype)
    low, high = (0, 256) if dtype == "uint8" else (-1024, 3072)
    return rng.integers(low, high, shape).astype(dtype)


def write_array(path: Path, voxels: NDArray[Any], **options: Any) -> zarr.Array[Any]:
    options = {"chunks": (8, 8, 8)} | options
    array = zarr.create_array(path, shape=voxels.shape, dtype=voxels.dtype, **options)
    array[...] = voxels
    return array


def expected(
    voxels: NDArray[Any], start: tuple[int, int, int], shape: tuple[int, int, int], pad: int
) -> NDArray[np.int16]:
    """The box by plain numpy: pad far enough on all sides, then cut."""
    far = 64
    padded = np.pad(np.rint(voxels).astype(np.int16), far, constant_values=pad)
    return padded[tuple(slice(s + far, s + far + n) for s, n in zip(start, shape, strict=True))]


@pytest.mark.parametrize("shards", [None, (16, 16, 16)])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_voxels_of_any_codec(
    tmp_path: Path, dtype: str, codec: str, shards: tuple[int, int, int] | None
) -> None:
    voxels = volume_of(dtype)
    write_array(tmp_path / "v.zarr", voxels, compressors=CODECS[codec], shards=shards)
    with open_store(tmp_path / "v.zarr", spacing=(5.0, 1.0, 0.5)) as reader:
        assert isinstance(reader, ForeignReader)
        (level,) = reader.levels
        assert (level.shape, level.spacing, level.chunk) == (SHAPE, (5.0, 1.0, 0.5), (8, 8, 8))
        assert reader.case == "v"
        for start, shape in BOXES:
            found = reader.read(0, start, shape, pad=-7)
            assert found.dtype == np.int16
            np.testing.assert_array_equal(found, expected(voxels, start, shape, -7))


PLACE = st.tuples(*[st.integers(-10, 40)] * 3)
SIZE = st.tuples(*[st.integers(1, 30)] * 3)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[ForeignReader, NDArray[np.int16]]:
    path = tmp_path_factory.mktemp("sharded") / "a.zarr"
    voxels = volume_of("int16")
    write_array(path, voxels, chunks=(4, 8, 8), shards=(8, 16, 16))
    return ForeignReader(path), voxels


@given(PLACE, SIZE)
@settings(max_examples=25, deadline=None)
def test_any_box(
    sharded: tuple[ForeignReader, NDArray[np.int16]],
    start: tuple[int, int, int],
    shape: tuple[int, int, int],
) -> None:
    reader, voxels = sharded
    out = np.empty(shape, dtype=np.int16)
    assert reader.read(0, start, shape, out=out) is out
    np.testing.assert_array_equal(out, expected(voxels, start, shape, -1024))


def test_store_of_prect_is_read_by_its_own_reader_and_by_zarr_alike(tmp_path: Path) -> None:
    volume = random_hu((30, 40, 50))
    write_store(tmp_path / "c.ome.zarr", volume)
    own, foreign = open_store(tmp_path / "c.ome.zarr"), ForeignReader(tmp_path / "c.ome.zarr")
    assert isinstance(own, StoreReader)
    assert foreign.levels == own.levels
    assert foreign.case == own.case == "c"
    np.testing.assert_array_equal(foreign.affine, own.affine)
    for level in range(3):
        box = (level, (-3, 2, 1), (20, 9, 40))
        np.testing.assert_array_equal(foreign.read(*box), own.read(*box))


def ome_image(path: Path, version: str, names: str, unit: str | None) -> NDArray[np.int16]:
    """Two levels whose axes are ``names``; returns the first as (z, y, x)."""
    voxels = volume_of("int16")
    order = [n for n in names if n in "zyx"]
    zarr_format: Any = 2 if version == "0.4" else 3
    group = zarr.create_group(path, zarr_format=zarr_format)
    datasets = []
    for number, step in enumerate((1, 2)):
        data = voxels[::step, ::step, ::step].transpose(["zyx".index(n) for n in order])
        shape = [data.shape[order.index(n)] if n in order else 1 for n in names]
        chunks = tuple(min(8, n) for n in shape)
        array = group.create_array(str(number), shape=shape, chunks=chunks, dtype="int16")
        array[...] = data.reshape(shape)
        edges = {"z": 2.0, "y": 0.5, "x": 0.25}
        scale = [edges.get(n, 1.0) * step for n in names]
        transform = [{"type": "scale", "scale": scale}]
        datasets.append({"path": str(number), "coordinateTransformations": transform})
    kind = {"t": "time", "c": "channel"}
    axes: list[dict[str, str]] = [{"name": n, "type": kind.get(n, "space")} for n in names]
    for axis in axes:
        if unit and axis["type"] == "space":
            axis["unit"] = unit
    document: dict[str, Any] = {
        "version": version,
        "multiscales": [{"axes": axes, "datasets": datasets}],
    }
    group.attrs.update(document if version == "0.4" else {"ome": document})
    return voxels


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("names", ["zyx", "czyx", "tczyx", "xyz"])
def test_ome_zarr_of_other_writers(tmp_path: Path, version: str, names: str) -> None:
    voxels = ome_image(tmp_path / "i.ome.zarr", version, names, "millimeter")
    reader = open_store(tmp_path / "i.ome.zarr")
    assert [level.spacing for level in reader.levels] == [(2.0, 0.5, 0.25), (4.0, 1.0, 0.5)]
    assert [level.shape for level in reader.levels] == [SHAPE, (10, 13, 16)]
    for start, shape in BOXES:
        found = reader.read(0, start, shape)
        np.testing.assert_array_equal(found, expected(voxels, start, shape, -1024))
    np.testing.assert_array_equal(reader.read(1, (0, 0, 0), (10, 13, 16)), voxels[::2, ::2, ::2])


@pytest.mark.parametrize(("unit", "factor"), [("micrometer", 1e-3), ("meter", 1e3), (None, 1.0)])
def test_spacing_is_in_millimetres(tmp_path: Path, unit: str | None, factor: float) -> None:
    ome_image(tmp_path / "i.zarr", "0.5", "zyx", unit)
    np.testing.assert_allclose(
        open_store(tmp_path / "i.zarr").levels[0].spacing, np.array([2, 0.5, 0.25]) * factor
    )


def test_transformations_follow_each_other(tmp_path: Path) -> None:
    ome_image(tmp_path / "i.zarr", "0.5", "zyx", "centimeter")

    def change(image: Any) -> None:
        own = image["datasets"][0]["coordinateTransformations"]
        own.append({"type": "translation", "translation": [1, 2, 3]})
        image["coordinateTransformations"] = [
            {"type": "scale", "scale": [2, 1, 4]},
            {"type": "translation", "translation": [0, 0, 0.5]},
        ]

    edit(tmp_path / "i.zarr", change)
    reader = open_store(tmp_path / "i.zarr")
    assert reader.levels[0].spacing == (40.0, 5.0, 10.0)
    np.testing.assert_allclose(reader.affine[:3, 3], [125.0, 20.0, 20.0])


def edit(path: Path, change: Any) -> None:
    document = json.loads((path / "zarr.json").read_text())
    change(document["attributes"]["ome"]["multiscales"][0])
    (path / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["axes"][0].update(name="q"), "one each of z, y and x"),
        (lambda m: m["axes"][1].update(unit="parsec"), "parsec"),
        (lambda m: m["datasets"][0].update(path="7"), "'7', which is not an array"),
        (lambda m: m.pop("datasets"), "no image that prect can read"),
        (lambda m: m["datasets"][0].pop("coordinateTransformations"), "no image that prect"),
        (
            lambda m: m["datasets"][0]["coordinateTransformations"][0].update(scale=[1, 1]),
            "no image that prect",
        ),
        (
            lambda m: m["datasets"][0]["coordinateTransformations"][0].update(scale=[1, 0, 1]),
            "must be positive",
        ),
        (
            lambda m: m["datasets"][0]["coordinateTransformations"][0].update(type="affine"),
            "'affine' is not known",
        ),
        (lambda m: m.update(datasets=[]), "without a level"),
    ],
)
def test_images_that_make_no_sense_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    ome_image(tmp_path / "i.zarr", "0.5", "zyx", "millimeter")
    edit(tmp_path / "i.zarr", change)
    with pytest.raises(StoreError, match=message):
        open_store(tmp_path / "i.zarr")


def test_what_is_no_single_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store at"):
        open_store(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="not a Zarr array or image"):
        open_store(tmp_path / "empty")
    zarr.create_group(tmp_path / "group")
    with pytest.raises(StoreError, match="neither an array nor an OME-Zarr"):
        open_store(tmp_path / "group")
    channels = volume_of("int16", (2, 8, 8, 8))
    write_array(tmp_path / "c", channels, chunks=(1, 8, 8, 8), dimension_names=["c", "z", "y", "x"])
    with pytest.raises(StoreError, match=r"shape \(2, 8, 8, 8\).*one entry"):
        open_store(tmp_path / "c")
    write_array(tmp_path / "flat", volume_of("int16", (8, 8)), chunks=(8, 8))
    with pytest.raises(StoreError, match="axes"):
        open_store(tmp_path / "flat")
    write_array(tmp_path / "flags", volume_of("int16") > 0)
    with pytest.raises(StoreError, match="holds bool"):
        open_store(tmp_path / "flags")


@pytest.mark.parametrize("dtype", ["int32", "uint16", "float32", "float64"])
@pytest.mark.parametrize("value", [40000, -40000, np.nan, np.inf])
def test_values_that_are_no_hu_are_refused(tmp_path: Path, dtype: str, value: float) -> None:
    if np.dtype(dtype).kind != "f" and not np.isfinite(value):
        value = 32768
    voxels = volume_of("int16").astype(dtype).clip(0, 3000)
    voxels[11, 12, 13] = abs(value) if dtype == "uint16" else value
    write_array(tmp_path / "v", voxels)
    reader = open_store(tmp_path / "v")
    box = (0, (0, 0, 0), (8, 8, 8))
    np.testing.assert_array_equal(reader.read(*box), expected(voxels[:8, :8, :8], *box[1:], 0))
    with pytest.raises(StoreError, match="which are no HU"):
        reader.read(0, (8, 8, 8), (8, 8, 8))


def test_fractions_are_rounded(tmp_path: Path) -> None:
    voxels = np.array([-0.5, 0.49, 1.5, -1023.51], dtype=np.float32).reshape(1, 1, 4)
    write_array(tmp_path / "v", voxels)
    assert open_store(tmp_path / "v").read(0, (0, 0, 0), (1, 1, 4)).tolist() == [[[0, 0, 2, -1024]]]


def test_missing_chunk_is_named(tmp_path: Path) -> None:
    voxels = volume_of("int16")
    write_array(tmp_path / "v", voxels, fill_value=-1000)
    (tmp_path / "v" / "c" / "1" / "2" / "0").unlink()
    reader = open_store(tmp_path / "v")
    with pytest.raises(ChunkError, match=r"fill value -1000.*missing='fill'") as caught:
        reader.read(0, (0, 0, 0), SHAPE)
    assert (caught.value.chunk, caught.value.level, caught.value.case) == ((1, 2, 0), 0, "v")
    beside = (0, (0, 0, 0), (8, 26, 31))
    np.testing.assert_array_equal(reader.read(*beside), expected(voxels, *beside[1:], 0))
    filled = open_store(tmp_path / "v", missing="fill").read(0, (0, 0, 0), SHAPE)
    assert (filled[8:16, 16:24, 0:8] == -1000).all()


@pytest.mark.parametrize("location", ["start", "end"])
def test_missing_inner_chunk_of_a_shard_is_named(tmp_path: Path, location: str) -> None:
    voxels = volume_of("int16")
    voxels[16:20, 8:16, 0:8] = 0
    codec = zarr.codecs.ShardingCodec(chunk_shape=(4, 8, 8), index_location=location)
    options = {"chunks": (8, 16, 16), "serializer": codec, "compressors": None, "filters": None}
    write_array(tmp_path / "v", voxels, **options)
    reader = open_store(tmp_path / "v")
    assert reader.levels[0].chunk == (4, 8, 8)
    with pytest.raises(ChunkError, match="missing") as caught:
        reader.read(0, (0, 0, 0), SHAPE)
    assert caught.value.chunk == (4, 1, 0)
    beside = (0, (0, 0, 0), (16, 26, 31))
    np.testing.assert_array_equal(reader.read(*beside), voxels[:16])
    whole = open_store(tmp_path / "v", missing="fill").read(0, (0, 0, 0), SHAPE)
    np.testing.assert_array_equal(whole, voxels)


@pytest.mark.parametrize("shards", [None, (16, 16, 16)])
def test_damaged_chunk_is_an_error(tmp_path: Path, shards: tuple[int, int, int] | None) -> None:
    write_array(tmp_path / "v", volume_of("int16"), compressors=CODECS["crc32c"], shards=shards)
    file = tmp_path / "v" / "c" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    with pytest.raises(ChunkError, match="cannot be decoded"):
        open_store(tmp_path / "v").read(0, (0, 0, 0), SHAPE)
    file.write_bytes(data[:10])
    with pytest.raises(ChunkError, match="cannot be decoded"):
        open_store(tmp_path / "v").read(0, (0, 0, 0), SHAPE)


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    write_array(tmp_path / "v", volume_of("int16"))
    reader = open_store(tmp_path / "v")
    with pytest.raises(StoreError, match="no level 1"):
        reader.read(1, (0, 0, 0), (1, 1, 1))
    with pytest.raises(StoreError, match="out must be int16"):
        reader.read(0, (0, 0, 0), (2, 2, 2), out=np.empty((2, 2, 3), dtype=np.int16))
    with pytest.raises(StoreError, match="where the body is"):
        reader.occupancy(0)


def test_reader_goes_to_another_process_and_opens_again(tmp_path: Path) -> None:
    voxels = volume_of("int16")
    write_array(tmp_path / "v", voxels)
    reader = open_store(tmp_path / "v")
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    for one in (reader, copy):
        np.testing.assert_array_equal(one.read(0, (0, 0, 0), SHAPE), voxels)


# From Python 3.12 a fork of a process with threads is warned of: that it works is the point.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_reads_in_a_forked_child_of_a_process_that_has_read(tmp_path: Path) -> None:
    voxels = volume_of("int16")
    write_array(tmp_path / "v", voxels)
    reader = open_store(tmp_path / "v")
    reader.read(0, (0, 0, 0), SHAPE)
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    child = context.Process(target=lambda: results.put(reader.read(0, (0, 0, 0), SHAPE).sum()))
    child.start()
    child.join(30)
    finished = child.exitcode == 0
    if not finished:
        child.kill()
    assert finished, "the child hangs or failed"
    assert results.get() == voxels.sum(dtype=np.int64)


def test_zarr_is_imported_only_for_foreign_stores(tmp_path: Path) -> None:
    write_store(tmp_path / "own.ome.zarr", random_hu((8, 8, 8)))
    code = (
        "import sys; from prect.cache.foreign import open_store; "
        f"open_store({str(tmp_path / 'own.ome.zarr')!r}).read(0, (0, 0, 0), (8, 8, 8)); "
        "sys.exit('zarr' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
