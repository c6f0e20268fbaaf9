"""Content of files: complete and verified, or refused."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import pytest

from prect.errors import VolumeError
from prect.ingest.readers.stream import Damage, is_compressed, read_content, read_head

DAMAGE = Damage(truncated="nifti.truncated", checksum="nifti.checksum")
NOISE = np.random.default_rng(0).integers(0, 256, 700_000).astype(np.uint8).tobytes()
CONTENT = bytes(3_000_000) + NOISE  # a part that shrinks a thousandfold, one that hardly does


def read(path: Path, size: int, *, start: int = 0, compressed: bool = True) -> tuple[bytes, int]:
    """The content kept and the number of bytes behind it; checks the digest on the way."""
    digest = hashlib.blake2b(digest_size=16)
    content = read_content(path, size, DAMAGE, digest, start=start, compressed=compressed)
    assert digest.digest() == hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    return content.data.tobytes(), content.excess


MEMBERS = b"".join(gzip.compress(CONTENT[i : i + 65000]) for i in range(0, len(CONTENT), 65000))


@pytest.mark.parametrize(
    "raw",
    [gzip.compress(CONTENT, 1), zlib.compress(CONTENT, 1), MEMBERS, MEMBERS + bytes(700)],
    ids=["gzip", "zlib", "members", "zeros"],
)
def test_a_stream_gives_its_content(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"head" + raw)
    assert read(path, len(CONTENT), start=4) == (CONTENT, 0)
    assert read(path, 5, start=4) == (CONTENT[:5], len(CONTENT) - 5)


def test_what_follows_a_stream_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(CONTENT, 1) + b"junk" * 200_000)
    assert read(path, len(CONTENT)) == (CONTENT, 800_000)


def test_a_plain_file_is_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert read(path, 1000, start=50, compressed=False) == (CONTENT[50:1050], len(CONTENT) - 1050)


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 1000, 600_000])
@pytest.mark.parametrize("kind", ["gzip", "zlib"])
def test_every_early_end_is_found(tmp_path: Path, cut: int, kind: str) -> None:
    """Also one inside the trailer, where all the content is there already."""
    path = tmp_path / "file"
    raw = gzip.compress(CONTENT, 1) if kind == "gzip" else zlib.compress(CONTENT, 1)
    path.write_bytes(raw[:-cut])
    with pytest.raises(VolumeError) as caught:
        read(path, len(CONTENT))
    assert caught.value.code == "nifti.truncated"


@pytest.mark.parametrize("place", [-1, -5, -8, -100, -400_000, -600_000])
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, place: int) -> None:
    path = tmp_path / "file"
    raw = bytearray(gzip.compress(CONTENT, 1))
    raw[place] ^= 0x10
    path.write_bytes(bytes(raw))
    with pytest.raises(VolumeError) as caught:
        read(path, len(CONTENT))
    assert caught.value.code == "nifti.checksum"


def test_a_claimed_size_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(b"small"))
    with pytest.raises(VolumeError, match="are needed"):
        read(path, 1 << 60)
    with pytest.raises(VolumeError, match="are needed"):
        read(path, 1 << 60, compressed=False)


def test_the_head_needs_no_more_than_the_first_kilobytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(CONTENT, 1)[:5000])
    assert read_head(path, 1024, DAMAGE) == CONTENT[:1024]
    assert is_compressed(path)
    path.write_bytes(CONTENT[:600])
    assert read_head(path, 1024, DAMAGE) == CONTENT[:600]
    assert not is_compressed(path)
    path.write_bytes(gzip.compress(CONTENT, 1)[:10] + b"\xff" * 100)
    with pytest.raises(VolumeError) as caught:
        read_head(path, 1024, DAMAGE)
    assert caught.value.code == "nifti.checksum"
