"""What is stored of the Hounsfield units, and how far it is from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05.image import Image
from pydantic import ValidationError

from prect.cache.format import DENSE_CODEC
from prect.cache.intensity import Intensity
from prect.cache.profile import Profile, load_profile, read_profile, write_profile
from prect.cache.reader import StoreReader
from prect.cache.writer import pool
from prect.errors import ConfigError
from prect.units import HU_MAX, HU_MIN
from tests.cache.stores import random_hu, write_store

EVERY_HU = np.arange(HU_MIN, HU_MAX + 1, dtype=np.int16)


@st.composite
def intensities(draw: st.DrawFn) -> Intensity:
    step = draw(st.integers(1, 64))
    if draw(st.booleans()):
        return Intensity(step=step)
    width = draw(st.integers(1, min(254 * step, HU_MAX - HU_MIN)))
    low = draw(st.integers(HU_MIN, HU_MAX - width))
    return Intensity(kind="window", low=low, high=low + width, step=step)


@given(intensities())
@settings(deadline=None)
def test_no_hu_is_off_by_more_than_half_a_step(intensity: Intensity) -> None:
    stored = intensity.encode(EVERY_HU)
    assert stored.dtype == intensity.dtype
    assert not (stored == intensity.fill).any()
    back = intensity.decode(stored)
    assert back.dtype == np.int16
    wanted = np.clip(EVERY_HU, intensity.low, intensity.high).astype(int)
    error = np.abs(back - wanted)
    assert error.max() <= intensity.max_error
    assert (np.diff(back.astype(int)) >= 0).all()
    into = np.empty_like(back)
    intensity.decode_into(stored, into)
    np.testing.assert_array_equal(into, back)
    # Storing what was read changes nothing more.
    np.testing.assert_array_equal(intensity.encode(back), stored)
    if intensity.kind == "window":
        assert stored.max() <= intensity.codes <= 255


@given(intensities())
@settings(deadline=None)
def test_the_stated_bound_is_reached_but_for_short_windows(intensity: Intensity) -> None:
    back = intensity.decode(intensity.encode(EVERY_HU))
    wanted = np.clip(EVERY_HU, intensity.low, intensity.high).astype(int)
    if intensity.high - intensity.low >= 2 * intensity.step:
        assert np.abs(back - wanted).max() == intensity.max_error


def test_hu_without_a_step_is_the_array_itself() -> None:
    assert Intensity().encode(EVERY_HU) is EVERY_HU
    assert Intensity().decode(EVERY_HU) is EVERY_HU


def test_codes_that_are_never_written_show_themselves() -> None:
    table = Intensity.window(-175, 250).table()
    assert table[0] == -32768
    assert table[1] == -175
    assert (table[Intensity.window(-175, 250).codes + 1 :] == -32768).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "window", "low": -175, "high": 250, "step": 1}, "step must be 2 or more"),
        ({"kind": "window", "low": 5, "high": 5}, "is empty"),
        ({"kind": "hu", "low": -1000, "high": 500}, "a narrower range is a window"),
        ({"step": 0}, "greater than or equal to 1"),
        ({"kind": "window", "low": -1025, "high": 0, "step": 8}, "greater than or equal to -1024"),
    ],
)
def test_what_cannot_be_stored_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Intensity.model_validate(values)


@pytest.mark.parametrize(
    "intensity",
    [Intensity(step=4), Intensity.window(-175, 250), Intensity.window(-1000, 500)],
    ids=str,
)
def test_a_store_reads_back_within_the_bound_on_every_level(
    tmp_path: Path, intensity: Intensity
) -> None:
    volume = random_hu((37, 30, 41))
    path = tmp_path / "case.ome.zarr"
    codec = None if intensity.kind == "hu" else DENSE_CODEC
    write_store(path, volume, intensity=intensity, codec=codec)
    Image.from_zarr(zarr.open_group(path, mode="r"))
    with StoreReader(path) as reader:
        for number, level in enumerate(reader.levels):
            hu = reader.read(number, (0, 0, 0), level.shape)
            assert hu.dtype == np.int16
            wanted = np.clip(volume, intensity.low, intensity.high).astype(int)
            assert np.abs(hu - wanted).max() <= intensity.max_error
            corner = reader.read(number, (-2, -2, -2), (4, 4, 4), pad=-999)
            assert (corner[:2] == -999).all()
            np.testing.assert_array_equal(corner[2:, 2:, 2:], hu[:2, :2, :2])
            spec = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(path / f"{number}")},
            }
            stored = tensorstore.open(spec).result().read().result()
            array = zarr.open_array(path / str(number), mode="r")
            assert array.fill_value == intensity.fill
            np.testing.assert_array_equal(array[:], stored)
            np.testing.assert_array_equal(intensity.decode(stored), hu)
            # Levels are pooled before they are rounded, so that errors do not add up.
            volume = pool(volume)


def test_profiles_that_ship_with_prect() -> None:
    abdomen, chest = load_profile("iso1.5"), load_profile("voco2")
    assert abdomen.harmonisation.spacing_mm == (1.5, 1.5, 1.5)
    assert chest.harmonisation.spacing_mm == (1.25, 1.25, 5.0)
    window = chest.stored_as("window")
    assert (window.intensity.low, window.intensity.high) == (-1000, 500)
    assert window.codec == window.coarse_codec == window.storage.dense_codec != chest.codec
    assert len({p.digest for p in (abdomen, chest, window, chest.stored_as(step=2))}) == 4
    assert chest.stored_as().digest == chest.stored_as("hu", 1, False).digest == chest.digest
    assert window.stored_as(low_pass=True).intensity == window.intensity
    assert window.stored_as("hu").digest == chest.digest
    with pytest.raises(ConfigError, match="step must be 6 or more"):
        chest.stored_as("window", 5)


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = load_profile("voco2").stored_as("window", 8, True)
    write_profile(tmp_path / "profile.json", profile)
    assert read_profile(tmp_path / "profile.json") == profile
    (tmp_path / "profile.json").write_text('{"name": "x"}')
    with pytest.raises(ConfigError, match="not valid"):
        read_profile(tmp_path / "profile.json")
    with pytest.raises(ConfigError, match="does not exist"):
        read_profile(tmp_path / "none.json")


def test_the_digest_of_a_profile_covers_every_setting() -> None:
    profile = load_profile("iso1.5")
    text = profile.model_dump()
    text["storage"]["chunk"] = (32, 32, 32)
    assert Profile.model_validate(text).digest != profile.digest
