"""A store holds what was written, any Zarr reader agrees, and damage is never read as air."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import textwrap
from io import BytesIO
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05.image import Image

from prect.cache.format import (
    MISSING,
    SHARD_KEY,
    Codec,
    chunk_grid,
    document_digest,
    file_digest,
    group_bytes,
    index_bytes,
    unpack_occupancy,
)
from prect.cache.intensity import Intensity
from prect.cache.reader import ReaderPool, StoreReader
from prect.cache.writer import StoreWriter, clear_leftovers, occupancy, pool, write_shard
from prect.errors import ChunkError, StoreError
from prect.units import Triple
from tests.cache.stores import ORIGIN, SPACING, random_hu, write_store

SHAPE = (37, 50, 61)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "case.ome.zarr"
    write_store(path, random_hu(SHAPE))
    return path


@pytest.fixture
def own_store(store: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(store, tmp_path / store.name)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_box_reads_what_was_written(store: Path, data: st.DataObject) -> None:
    level = data.draw(st.integers(0, 2))
    volume = random_hu(SHAPE)
    for _ in range(level):
        volume = pool(volume)
    start = tuple(data.draw(st.integers(-20, n + 5)) for n in volume.shape)
    shape = tuple(data.draw(st.integers(1, 40)) for _ in range(3))
    padded = np.pad(volume, 70, constant_values=-999)
    truth = padded[tuple(slice(s + 70, s + 70 + n) for s, n in zip(start, shape, strict=True))]
    with StoreReader(store) as reader:
        box = reader.read(level, start, shape, pad=-999)  # type: ignore[arg-type]
    np.testing.assert_array_equal(box, truth)


@pytest.mark.parametrize("cname", ["lz4", "lz4hc", "zstd"])
@pytest.mark.parametrize("shuffle", ["noshuffle", "shuffle", "bitshuffle"])
def test_every_codec_round_trips(tmp_path: Path, cname: str, shuffle: str) -> None:
    path = tmp_path / "case.ome.zarr"
    volume = random_hu((20, 33, 18))
    write_store(path, volume, codec=Codec.model_validate({"cname": cname, "shuffle": shuffle}))
    with StoreReader(path) as reader:
        np.testing.assert_array_equal(reader.read(0, (0, 0, 0), volume.shape), volume)


def test_read_fills_the_callers_buffer(store: Path) -> None:
    buffer = np.zeros((4, 5, 6), dtype=np.int16)
    with StoreReader(store) as reader:
        assert reader.read(0, (1, 2, 3), (4, 5, 6), out=buffer) is buffer
        with pytest.raises(StoreError, match="out must be int16"):
            reader.read(0, (1, 2, 3), (4, 5, 6), out=np.zeros((4, 5, 7), dtype=np.int16))
        with pytest.raises(StoreError, match="no level 3"):
            reader.read(3, (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(buffer, random_hu(SHAPE)[1:5, 2:7, 3:9])


def test_zarr_python_and_tensorstore_read_the_same(store: Path) -> None:
    group = zarr.open_group(str(store), mode="r")
    with StoreReader(store) as reader:
        for level, geometry in enumerate(reader.levels):
            ours = reader.read(level, (0, 0, 0), geometry.shape)
            array = group[str(level)]
            assert isinstance(array, zarr.Array)
            np.testing.assert_array_equal(np.asarray(array[:]), ours)
            spec = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(store / str(level))},
            }
            np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), ours)


def test_ome_zarr_metadata_is_valid_and_places_every_level(store: Path) -> None:
    image = Image.from_zarr(zarr.open_group(str(store), mode="r"))
    multiscale = image.attributes.ome.multiscales[0]
    assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
    for number, dataset in enumerate(multiscale.datasets):
        scale, translation = (t.model_dump() for t in dataset.coordinateTransformations)
        factor = 2**number
        assert tuple(scale["scale"]) == tuple(s * factor for s in SPACING)
        # The centre of a pooled voxel is the mean of the centres that it was pooled from.
        centre = [o + s * (factor - 1) / 2 for o, s in zip(ORIGIN[::-1], SPACING, strict=True)]
        assert translation["translation"] == pytest.approx(centre)


def test_pooling_is_the_mean_of_what_is_there() -> None:
    volume = random_hu((5, 6, 7))
    pooled = pool(volume)
    assert pooled.shape == (3, 3, 4)
    block = volume[2:4, 0:2, 4:6].astype(float)
    assert pooled[1, 0, 2] == np.floor(block.mean() + 0.5)
    edge = volume[4:5, 2:4, 6:7].astype(float)  # last plane of z and of x
    assert pooled[2, 1, 3] == np.floor(edge.mean() + 0.5)


def test_every_inner_chunk_is_written_even_where_all_is_air(tmp_path: Path) -> None:
    path = tmp_path / "air.ome.zarr"
    write_store(path, np.full((40, 40, 40), -1024, dtype=np.int16), levels=1)
    shard = (path / "0" / SHARD_KEY).read_bytes()
    table = np.frombuffer(shard[-index_bytes((3, 3, 3)) : -4], dtype="<u8").reshape(-1, 2)
    assert len(table) == 27
    assert (table[:, 0] != MISSING).all()
    assert (table[:, 1] > 0).all()


def test_encoding_does_not_depend_on_the_number_of_blosc_threads() -> None:
    from numcodecs import blosc

    volume = random_hu((64, 64, 64)) // 8
    before = blosc.set_nthreads(1)
    try:
        one, four = BytesIO(), BytesIO()
        write_shard(one, volume, (64, 64, 64), Codec(), Intensity())
        blosc.set_nthreads(4)
        write_shard(four, volume, (64, 64, 64), Codec(), Intensity())
        assert one.getvalue() == four.getvalue()
    finally:
        blosc.set_nthreads(before)


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    chunk=st.tuples(*[st.sampled_from((4, 8, 16, 24))] * 3),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_occupancy_is_the_share_of_body_in_each_chunk(
    shape: Triple, chunk: Triple, seed: int
) -> None:
    volume = random_hu(shape, seed) // 2
    volume[: shape[0] // 2] = -1000
    found = occupancy(volume, chunk, -500)
    assert found.shape == chunk_grid(shape, chunk)
    for place in np.ndindex(found.shape):
        box = tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, chunk, strict=True))
        assert found[place] == (volume[box] > -500).mean()


def test_a_store_tells_where_the_body_is(store: Path) -> None:
    with StoreReader(store) as reader:
        for number, level in enumerate(reader.attributes.levels):
            packed = unpack_occupancy(level)
            hu = reader.read(number, (0, 0, 0), level.shape)
            shares = occupancy(hu, level.chunk, -500)
            np.testing.assert_array_equal(packed, np.ceil(shares * 255))
            assert number or 0 < packed.min() < 255
        damaged = level.model_copy(update={"occupancy": level.occupancy[:-8]})
        with pytest.raises(StoreError, match="occupancy of level 2 is damaged"):
            unpack_occupancy(damaged)


def test_digests_cover_every_file(store: Path) -> None:
    group = (store / "zarr.json").read_bytes()
    with StoreReader(store) as reader:
        attributes = reader.attributes
    assert attributes.digest == document_digest(group)
    assert group_bytes(attributes) == group
    for place in range(0, len(group), 7):
        flipped = bytearray(group)
        flipped[place] ^= 1
        entry = f'"digest": "{attributes.digest}"'.encode()
        if entry in flipped:  # else the digest itself is not what was written
            assert document_digest(bytes(flipped)) != attributes.digest
    for level in attributes.levels:
        assert file_digest((store / level.path / "zarr.json").read_bytes()) == level.array_digest
        assert file_digest((store / level.path / SHARD_KEY).read_bytes()) == level.shard_digest


def rewrite_index(shard: Path, chunk: int, entry: tuple[int, int]) -> None:
    """Replace one entry of a shard's index and make its checksum right again."""
    data = bytearray(shard.read_bytes())
    length = index_bytes(chunk_grid(SHAPE, (16, 16, 16)))
    table = np.frombuffer(bytes(data[-length:-4]), dtype="<u8").reshape(-1, 2).copy()
    table[chunk] = entry
    body = table.tobytes()
    data[-length:] = body + struct.pack("<I", google_crc32c.value(body))
    shard.write_bytes(bytes(data))


def test_a_deleted_inner_chunk_raises_and_is_not_read_as_air(own_store: Path) -> None:
    rewrite_index(own_store / "0" / SHARD_KEY, 5, (MISSING, MISSING))
    array = zarr.open_group(str(own_store), mode="r")["0"]
    assert isinstance(array, zarr.Array)
    filled = np.asarray(array[0:16, 16:32, 16:32])
    assert (filled == -32768).all()  # the trap: zarr-python fills, and says nothing
    with StoreReader(own_store) as reader, pytest.raises(ChunkError, match="is missing") as caught:
        reader.read(0, (0, 0, 0), SHAPE)
    assert (caught.value.case, caught.value.level, caught.value.chunk) == ("case", 0, (0, 1, 1))


def test_a_chunk_erased_through_zarr_python_raises(own_store: Path) -> None:
    array = zarr.open_group(str(own_store), mode="r+")["0"]
    assert isinstance(array, zarr.Array)
    array[16:32, 16:32, 16:32] = -32768  # zarr-python drops a chunk that is all fill value
    with StoreReader(own_store) as reader, pytest.raises(ChunkError):
        reader.read(0, (16, 16, 16), (16, 16, 16))


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_shard_is_found(own_store: Path, position: float, bit: int) -> None:
    shard = own_store / "0" / SHARD_KEY
    sound = shard.read_bytes()
    damaged = bytearray(sound)
    damaged[int(position * len(damaged))] ^= 1 << bit
    shard.write_bytes(bytes(damaged))
    try:
        with StoreReader(own_store) as reader, pytest.raises(ChunkError):
            reader.read(0, (0, 0, 0), SHAPE)
    finally:
        shard.write_bytes(sound)


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_shard_is_found(own_store: Path, keep: float) -> None:
    shard = own_store / "1" / SHARD_KEY
    data = shard.read_bytes()
    shard.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with StoreReader(own_store) as reader:
        reader.read(0, (0, 0, 0), SHAPE)  # the other levels are sound
        with pytest.raises(ChunkError, match="bytes long"):
            reader.read(1, (0, 0, 0), (1, 1, 1))


def test_a_missing_shard_or_store_is_said(own_store: Path, tmp_path: Path) -> None:
    (own_store / "2" / SHARD_KEY).unlink()
    with StoreReader(own_store) as reader, pytest.raises(ChunkError, match="cannot be opened"):
        reader.read(2, (0, 0, 0), (1, 1, 1))
    with pytest.raises(StoreError, match="no store at"):
        StoreReader(tmp_path / "nothing.ome.zarr")


def test_other_versions_profiles_and_documents_are_refused(own_store: Path) -> None:
    with pytest.raises(StoreError, match="is wanted"):
        StoreReader(own_store, expected_profile="other")
    group = own_store / "zarr.json"
    document = json.loads(group.read_text())
    document["attributes"]["prect"]["format_version"] = 2
    group.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="format version 2"):
        StoreReader(own_store)
    group.write_text("{}")
    with pytest.raises(StoreError, match="not a prect store"):
        StoreReader(own_store)


def test_the_pool_keeps_few_files_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"case{number}.ome.zarr" for number in range(6)]
    for number, path in enumerate(paths):
        write_store(path, random_hu((8, 8, 8), seed=number), levels=1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    readers = ReaderPool(capacity=2)
    for _ in range(3):
        for number, path in enumerate(paths):
            read = readers.get(path).read(0, (0, 0, 0), (8, 8, 8))
            np.testing.assert_array_equal(read, random_hu((8, 8, 8), seed=number))
            assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    readers.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "case.ome.zarr"

    def fail() -> None:
        with StoreWriter(path) as writer:
            writer.write_levels(random_hu((8, 8, 8)), SPACING, (8, 8, 8), Codec(), 1)
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_store_and_is_cleared(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from prect.cache.format import Codec
        from prect.cache.writer import StoreWriter
        from tests.cache.stores import SPACING, random_hu
        with StoreWriter(Path(sys.argv[1])) as writer:
            writer.write_levels(random_hu((8, 8, 8)), SPACING, (8, 8, 8), Codec(), 1)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    path = tmp_path / "case.ome.zarr"
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=60)
    assert done.returncode == -9
    assert not path.exists()
    assert len(clear_leftovers(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_writer_at_work_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "case.ome.zarr") as writer:
        writer.write_levels(random_hu((8, 8, 8)), SPACING, (8, 8, 8), Codec(), 1)
        assert clear_leftovers(tmp_path) == []
    write_store(tmp_path / "case.ome.zarr", random_hu((8, 8, 8)))
    write_store(tmp_path / "case.ome.zarr", random_hu((9, 8, 8)))  # replaces the older one
    with StoreReader(tmp_path / "case.ome.zarr") as reader:
        assert reader.levels[0].shape == (9, 8, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["case.ome.zarr"]
