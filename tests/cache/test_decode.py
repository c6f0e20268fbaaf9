"""Reading boxes: both decoders give the stored voxels or say what is wrong, in any process."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prect.cache.decode import Decoder, PythonDecoder
from prect.cache.format import Codec
from prect.cache.intensity import Intensity
from prect.cache.reader import ReaderPool, StoreReader, best_decoder
from prect.errors import ChunkError, StoreError
from prect.manifests.stores import read_cache_rows
from prect.units import Triple
from prect.workspace import Workspace
from tests.cache.stores import random_hu, write_store
from tests.cache.whole_stores import Shard, edit_shard

SHAPE = (41, 50, 77)
INTENSITIES = {
    "hu": Intensity(),
    "steps": Intensity(step=4),
    "window": Intensity.window(-175, 250),
    "chest": Intensity.window(-1000, 500),
}
CODECS = [
    Codec.model_validate({"cname": cname, "clevel": level, "shuffle": shuffle})
    for cname, level in (("lz4", 5), ("lz4hc", 6), ("zstd", 5))
    for shuffle in ("noshuffle", "shuffle", "bitshuffle")
] + [Codec(cname="lz4hc", clevel=0), Codec(cname="lz4", blocksize=4096), Codec(cname="lz4hc")]


def compiled() -> Callable[[], Decoder]:
    best = best_decoder()
    assert best is not PythonDecoder, "numba is among the dependencies; it must work here"
    return best


@pytest.fixture(params=["python", "compiled"])
def decoder(request: pytest.FixtureRequest) -> Callable[[], Decoder]:
    return PythonDecoder if request.param == "python" else compiled()


def smooth_hu(shape: Triple, seed: int) -> NDArray[np.int16]:
    """HU that compress, with noise in their low bytes."""
    z, y, x = np.indices(shape)
    noise = np.random.default_rng(seed).integers(-20, 20, shape)
    hu = np.clip(25 * z - 20 * y + 10 * x + noise, -1024, 3071)
    return np.asarray(hu, dtype=np.int16)


def boxes(shape: Triple) -> st.SearchStrategy[tuple[Triple, Triple]]:
    """Start and shape of boxes that may reach beyond the volume, or lie outside of it."""
    starts = st.tuples(*(st.integers(-20, n + 10) for n in shape))
    return st.tuples(starts, st.tuples(*(st.integers(1, n + 20) for n in shape)))


def expected(
    volume: NDArray[np.int16], start: Triple, shape: Triple, pad: int
) -> NDArray[np.int16]:
    out = np.full(shape, pad, dtype=np.int16)
    for place in np.ndindex(shape[:2]):
        z, y = place[0] + start[0], place[1] + start[1]
        if 0 <= z < volume.shape[0] and 0 <= y < volume.shape[1]:
            low, high = max(start[2], 0), min(start[2] + shape[2], volume.shape[2])
            if low < high:
                out[place][low - start[2] : high - start[2]] = volume[z, y, low:high]
    return out


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.data(),
    chunk=st.tuples(st.integers(3, 20), st.integers(3, 40), st.integers(1, 70)),
    codec=st.sampled_from(CODECS),
    intensity=st.sampled_from(sorted(INTENSITIES)),
    threads=st.integers(1, 4),
)
def test_any_box_of_any_store(
    tmp_path: Path,
    decoder: Callable[[], Decoder],
    data: st.DataObject,
    chunk: Triple,
    codec: Codec,
    intensity: str,
    threads: int,
) -> None:
    kind = INTENSITIES[intensity]
    volume = smooth_hu((23, 37, 61), seed=chunk[0])
    path = tmp_path / "case.ome.zarr"
    shutil.rmtree(path, ignore_errors=True)
    write_store(path, volume, chunk=chunk, codec=codec, levels=1, intensity=kind)
    stored = kind.decode(kind.encode(volume))
    with StoreReader(path, decoder=decoder) as reader:
        for _ in range(4):
            start, shape = data.draw(boxes((23, 37, 61)))
            pad = data.draw(st.sampled_from([-1024, 0, 7]))
            read = reader.read(0, start, shape, pad=pad, threads=threads)
            np.testing.assert_array_equal(read, expected(stored, start, shape, pad))


def test_the_decoders_agree_on_a_volume_in_the_default_layout(tmp_path: Path) -> None:
    path = tmp_path / "case.ome.zarr"
    volume = smooth_hu((70, 90, 130), seed=1)
    write_store(path, volume, chunk=(16, 32, 32), codec=Codec(cname="lz4hc", clevel=6))
    with (
        StoreReader(path, decoder=compiled()) as fast,
        StoreReader(path) as default,
        StoreReader(path, decoder=PythonDecoder) as plain,
    ):
        for level in range(3):
            shape = plain.levels[level].shape
            slow = plain.read(level, (0, 0, 0), shape)
            np.testing.assert_array_equal(fast.read(level, (0, 0, 0), shape), slow)
            np.testing.assert_array_equal(default.read(level, (0, 0, 0), shape, threads=3), slow)
    np.testing.assert_array_equal(volume, StoreReader(path).read(0, (0, 0, 0), (70, 90, 130)))


@pytest.mark.parametrize(
    "codec", CODECS, ids=lambda c: f"{c.cname}-{c.clevel}-{c.shuffle}-{c.blocksize}"
)
@pytest.mark.parametrize("intensity", ["hu", "window"])
def test_a_flipped_byte_in_any_chunk_raises_and_names_it(
    tmp_path: Path, decoder: Callable[[], Decoder], codec: Codec, intensity: str
) -> None:
    path = tmp_path / "case.ome.zarr"
    write_store(
        path,
        smooth_hu((20, 40, 40), seed=3),
        chunk=(8, 16, 16),
        codec=codec,
        levels=1,
        intensity=INTENSITIES[intensity],
    )
    shard_file = path / "0" / "c.0.0.0"
    sound = shard_file.read_bytes()
    grid = (3, 3, 3)
    random = np.random.default_rng(7)
    with StoreReader(path, decoder=decoder) as reader:
        for number, (offset, length) in enumerate(Shard(path, 0).entries()):
            damaged = bytearray(sound)
            damaged[offset + int(random.integers(length))] ^= 1 << int(random.integers(8))
            with shard_file.open("r+b") as file:
                file.write(damaged)
            with pytest.raises(ChunkError, match="checksum") as caught:
                reader.read(0, (0, 0, 0), (20, 40, 40))
            position = tuple(int(p) for p in np.unravel_index(number, grid))
            assert (caught.value.case, caught.value.level, caught.value.chunk) == (
                "case",
                0,
                position,
            )
        with shard_file.open("r+b") as file:
            file.write(sound)
        reader.read(0, (0, 0, 0), (20, 40, 40))


CANARY = 0x5A
GUARDS: list[NDArray[np.uint8]] = []
"""The bytes around the scratch memory of the decoder made last."""


def guarded_array(
    shape: tuple[int, ...], dtype: type[np.generic]
) -> tuple[NDArray[Any], tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """An array, and 64 KiB before and behind it that nobody may write to."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 2 * 65536, CANARY, dtype=np.uint8)
    inside = memory[65536:-65536]
    inside[:] = 0
    return inside.view(dtype).reshape(shape), (memory[:65536], memory[-65536:])


def guarded_decoder(kind: Callable[[], Decoder]) -> Decoder:
    made: Any = kind()
    made._scratch, scratch = guarded_array((8, 16, 16), np.int16)
    made._planes, planes = guarded_array((2, 8 * 16 * 16), np.uint8)
    GUARDS[:] = [*scratch, *planes]
    return made  # type: ignore[no-any-return]


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_frame_that_lies_with_a_right_checksum_does_no_harm(
    tmp_path: Path, decoder: Callable[[], Decoder], data: st.DataObject
) -> None:
    path = tmp_path / "case.ome.zarr"
    if not path.exists():
        volume = smooth_hu((8, 16, 16), seed=4)
        write_store(path, volume, chunk=(8, 16, 16), codec=Codec(cname="lz4hc"), levels=1)
        shutil.copytree(path, tmp_path / "sound.ome.zarr")
    shard = Shard(tmp_path / "sound.ome.zarr", 0)
    frame = bytearray(shard.frames[0])
    # The places that say where streams lie and how long they are, and what they hold.
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(3, 40) | st.integers(3, len(frame) - 1))
        frame[at] = data.draw(st.integers(0, 255))
    shard.frames[0] = bytes(frame)
    edit_shard(path, 0, shard.data())
    guarded, around = guarded_array((8, 16, 16), np.int16)
    with (
        StoreReader(path, decoder=partial(guarded_decoder, decoder)) as reader,
        suppress(ChunkError),
    ):
        reader.read(0, (0, 0, 0), (8, 16, 16), out=guarded)
    assert all((edge == CANARY).all() for edge in (*around, *GUARDS))


def test_a_shard_cut_short_while_it_is_open(tmp_path: Path, decoder: Callable[[], Decoder]) -> None:
    path = tmp_path / "case.ome.zarr"
    write_store(path, random_hu((32, 32, 32)), levels=1)
    with StoreReader(path, decoder=decoder) as reader:
        reader.read(0, (0, 0, 0), (1, 1, 1))
        os.truncate(path / "0" / "c.0.0.0", 1000)
        with pytest.raises(ChunkError, match="cannot be read whole"):
            reader.read(0, (16, 16, 16), (4, 4, 4))


def test_an_index_that_points_outside_of_the_chunks(tmp_path: Path) -> None:
    path = tmp_path / "case.ome.zarr"
    write_store(path, random_hu((32, 32, 32)), levels=1)
    shard = Shard(path, 0)
    for wrong in ((0, 1 << 40), (1 << 62, 1 << 62), (1 << 63, 100), (0, (1 << 64) - 1), (0, 4)):
        entries = shard.entries()
        entries[3] = wrong
        edit_shard(path, 0, shard.data(entries))
        with StoreReader(path) as reader, pytest.raises(ChunkError, match="points outside"):
            reader.read(0, (0, 0, 0), (1, 1, 1))


def test_chunks_in_another_order_with_gaps_read_the_same(
    tmp_path: Path, decoder: Callable[[], Decoder]
) -> None:
    path = tmp_path / "case.ome.zarr"
    volume = random_hu((32, 32, 32), seed=8)
    write_store(path, volume, levels=1)
    frames = Shard(path, 0).frames
    data, entries = b"", [(0, 0)] * len(frames)
    for number in reversed(range(len(frames))):
        data += b"gap" * number
        framed = frames[number] + struct.pack("<I", google_crc32c.value(frames[number]))
        entries[number] = (len(data), len(framed))
        data += framed
    table = np.array(entries, dtype="<u8").tobytes()
    edit_shard(path, 0, data + table + struct.pack("<I", google_crc32c.value(table)))
    with StoreReader(path, decoder=decoder) as reader:
        np.testing.assert_array_equal(reader.read(0, (0, 0, 0), (32, 32, 32)), volume)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((4, 4, 4), dtype=np.int32),
        np.empty((4, 4, 5), dtype=np.int16),
        np.empty((4, 4, 8), dtype=np.int16)[:, :, ::2],
        np.frombuffer(bytes(128), dtype=np.int16).reshape(4, 4, 4),
    ],
    ids=["dtype", "shape", "strides", "read-only"],
)
def test_a_buffer_that_cannot_be_filled_is_refused(tmp_path: Path, out: NDArray[np.int16]) -> None:
    path = tmp_path / "case.ome.zarr"
    write_store(path, random_hu((8, 8, 8)), levels=1)
    with StoreReader(path) as reader, pytest.raises(StoreError, match="out must be int16"):
        reader.read(0, (0, 0, 0), (4, 4, 4), out=out)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted there")
def test_no_thread_starts_unless_asked(tmp_path: Path, decoder: Callable[[], Decoder]) -> None:
    path = tmp_path / "case.ome.zarr"
    # Chunks of many blocks, which c-blosc would share out among threads of its own.
    write_store(path, random_hu((64, 64, 64)), chunk=(64, 64, 64), codec=Codec(blocksize=4096))

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    with StoreReader(path, decoder=decoder) as reader:
        before = threads()
        reader.read(0, (0, 0, 0), (64, 64, 64))
        assert threads() == before
        reader.read(0, (0, 0, 0), (64, 64, 64), threads=2)
        assert threads() >= before


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "case.ome.zarr"
    volume = random_hu((20, 20, 20))
    write_store(path, volume, levels=1)
    start: Any = tuple(np.array([1, -2, 3], dtype=np.int32))
    shape: Any = tuple(np.array([4, 5, 6]))
    with StoreReader(path) as reader:
        read = reader.read(0, start, shape)
        np.testing.assert_array_equal(read, expected(volume, (1, -2, 3), (4, 5, 6), -1024))
        with pytest.raises(TypeError, match="float"):
            reader.read(0, (0.5, 0, 0), (4, 4, 4))  # type: ignore[arg-type]


def test_a_pool_opens_anew_what_could_not_be_read(tmp_path: Path) -> None:
    path, kept = tmp_path / "case.ome.zarr", tmp_path / "kept"
    volume = random_hu((32, 32, 32))
    write_store(path, volume, levels=1)
    shutil.copytree(path, kept)
    with (path / "0" / "c.0.0.0").open("r+b") as file:
        file.write(b"damaged")
    pool = ReaderPool()
    with pytest.raises(ChunkError, match="checksum"):
        pool.get(path).read(0, (0, 0, 0), (32, 32, 32))
    path.rename(tmp_path / "broken")
    kept.rename(path)  # as a repair does
    np.testing.assert_array_equal(pool.get(path).read(0, (0, 0, 0), (32, 32, 32)), volume)
    pool.close()


def read_sum(path: Path, threads: int) -> int:
    with StoreReader(path) as reader:
        return int(reader.read(0, (0, 0, 0), (48, 48, 48), threads=threads).astype(np.int64).sum())


def report_sum(path: Path, threads: int, reader: StoreReader | None, results: object) -> None:
    if reader is None:
        total = read_sum(path, threads)
    else:
        total = int(reader.read(0, (0, 0, 0), (48, 48, 48), threads=threads).astype("i8").sum())
    results.put(total)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_child_process_reads_after_its_parent_has_read(
    tmp_path: Path, method: Literal["fork", "forkserver", "spawn"]
) -> None:
    path = tmp_path / "case.ome.zarr"
    volume = smooth_hu((48, 48, 48), seed=5)
    write_store(path, volume, chunk=(16, 16, 16), levels=1)
    truth = int(volume.astype(np.int64).sum())
    context: Any = multiprocessing.get_context(method)
    with StoreReader(path) as reader:
        # The parent holds open files, scratch memory and threads when the child begins.
        assert int(reader.read(0, (0, 0, 0), (48, 48, 48), threads=3).astype("i8").sum()) == truth
        for threads in (1, 2):
            results = context.Queue()
            inherited = reader if method == "fork" else None
            child = context.Process(target=report_sum, args=(path, threads, inherited, results))
            child.start()
            assert results.get(timeout=60) == truth
            child.join(60)
            assert child.exitcode == 0
        assert read_sum(path, 3) == truth


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Path, Path]:
    """Two stores whose files have the same sizes and other voxels."""
    paths = tmp_path / "case.ome.zarr", tmp_path / "other" / "case.ome.zarr"
    for seed, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        write_store(path, random_hu((32, 32, 32), seed=seed), codec=Codec(cname="lz4", clevel=0))
    sizes = [
        sorted(file.stat().st_size for file in path.rglob("c.*") if file.is_file())
        for path in paths
    ]
    assert sizes[0] == sizes[1]
    return paths


def test_a_store_that_was_replaced_is_not_mixed_with_the_old_one(
    twins: tuple[Path, Path], tmp_path: Path
) -> None:
    store, other = twins
    with StoreReader(store) as reader:
        before = reader.read(0, (0, 0, 0), (32, 32, 32))
        store.rename(tmp_path / "old")
        other.rename(store)
        # What is open stays readable; what is not is refused, not taken from the new store.
        np.testing.assert_array_equal(reader.read(0, (0, 0, 0), (32, 32, 32)), before)
        with pytest.raises(StoreError, match="has been replaced"):
            reader.read(1, (0, 0, 0), (16, 16, 16))
    pool = ReaderPool()
    anew = pool.get(store).read(0, (0, 0, 0), (32, 32, 32))
    np.testing.assert_array_equal(anew, random_hu((32, 32, 32), seed=1))
    pool.close()


def test_a_store_that_was_repaired_is_read_on(tmp_path: Path) -> None:
    store, again = tmp_path / "case.ome.zarr", tmp_path / "again" / "case.ome.zarr"
    again.parent.mkdir()
    volume = random_hu((32, 32, 32), seed=2)
    for path in (store, again):
        write_store(path, volume)
    with StoreReader(store) as reader:
        reader.read(0, (0, 0, 0), (4, 4, 4))
        coarse = StoreReader(again).read(1, (0, 0, 0), (16, 16, 16))
        store.rename(tmp_path / "old")
        again.rename(store)
        np.testing.assert_array_equal(reader.read(1, (0, 0, 0), (16, 16, 16)), coarse)
        store.rename(tmp_path / "gone")
        with pytest.raises(StoreError, match="no store at"):
            reader.read(2, (0, 0, 0), (8, 8, 8))


def test_a_reader_that_is_dropped_closes_its_files(tmp_path: Path) -> None:
    path = tmp_path / "case.ome.zarr"
    write_store(path, random_hu((16, 16, 16)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    pool = ReaderPool()
    pool.get(path).read(0, (0, 0, 0), (4, 4, 4))
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    del pool
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def report_of(path: Path, before: str, **environment: str) -> list[object]:
    """The decoder's name and the sum of a small store, from a process of its own."""
    code = (
        f"import sys, json; {before}\n"
        "from prect.cache.reader import StoreReader, best_decoder\n"
        f"read = StoreReader({str(path)!r}).read(0, (0, 0, 0), (20, 20, 20))\n"
        "print(json.dumps([best_decoder().__name__, int(read.astype('i8').sum())]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | environment,
    )
    report: list[object] = json.loads(done.stdout)
    return report


def test_where_numba_is_missing_or_cannot_keep_its_code(tmp_path: Path) -> None:
    path = tmp_path / "case.ome.zarr"
    volume = smooth_hu((20, 20, 20), seed=6)
    write_store(path, volume, levels=1)
    total = int(volume.astype(np.int64).sum())
    assert report_of(path, "sys.modules['numba'] = None") == ["PythonDecoder", total]
    # A disk that takes no more: what was compiled cannot be written down.
    full = (
        "import errno; from numba.core import caching; "
        "caching.Cache.save_overload = caching.FunctionCache.save_overload = "
        "lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'full'))"
    )
    elsewhere = {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    assert report_of(path, full, **elsewhere) == ["CompiledDecoder", total]
    # The only place that may be asked for has no folder: nothing can be kept.
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": ""}
    assert report_of(path, "pass", **nowhere) == ["CompiledDecoder", total]


def test_a_row_of_the_manifest_opens_its_store_and_no_other(phantom_workspace: Workspace) -> None:
    rows = read_cache_rows(phantom_workspace.cache_manifest("phantoms"))
    for row in rows[:2]:
        with StoreReader.of(phantom_workspace, row) as reader:
            assert (reader.case, reader.levels[0].shape) == (row.case, row.shape)
    with pytest.raises(StoreError, match="not the store that its manifest tells of"):
        StoreReader.of(phantom_workspace, replace(rows[0], digest=rows[1].digest))
