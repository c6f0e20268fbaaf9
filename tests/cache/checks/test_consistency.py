"""What a faulty writer could say of a store: everything is signed, and wrong all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prect.cache.checks.validate import check_store, read_attributes
from prect.cache.format import file_digest
from prect.cache.profile import profile_digest
from tests.cache.whole_stores import (
    Attributes,
    both,
    codes,
    edit_attributes,
    edit_group,
    edit_level,
    files_of,
    restore,
)

CONTRADICTIONS: dict[str, Callable[[Attributes], object]] = {
    "there are no levels": lambda a: a.update(levels=[]),
    "level 1 has the path": lambda a: a["levels"][1].update(path="one"),
    "level 2 has the shape": lambda a: a["levels"][2].update(shape=[10, 5, 8]),
    "level 0 has the shape": lambda a: a["levels"][0].update(shape=[0, 20, 33]),
    "level 0 has the shape (30": lambda a: a["levels"][0].update(shape=[3 * 10**9, 20, 33]),
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
    "'99.5': 3072": lambda a: a["hu_percentiles"].update({"99.5": 3072}),
    "'7': 0": lambda a: a["hu_percentiles"].update({"7": 0}),
    "its index has": lambda a: a["levels"][0].update(shard_bytes=12),
    "the occupancy of level 1": lambda a: a["levels"][1].update(occupancy="AAAA"),
    "profile_digest is": lambda a: a["profile"].update(name="another"),
    "asks for intensity": lambda a: _profile(a, "intensity", "step", 2),
    "asks for storage.codec": lambda a: _profile(a, "storage", "codec", "none"),
    "asks for storage.dense_codec": lambda a: _profile(a, "storage", "dense_codec", "none"),
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
    assert check_store(store, deep=True) == []
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
