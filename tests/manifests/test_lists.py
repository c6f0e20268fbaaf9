"""Lists of volumes: both kinds, what they may not say, and the files that they lead to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prect.errors import ManifestError
from prect.manifests.cards import Card, find_card, generic_card
from prect.manifests.lists import ListEntry, locate, read_list


def card_of(name: str) -> Card:
    card = find_card(name)
    assert card is not None
    return card


def written(folder: Path, document: Any, name: str = "list.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_decathlon_list_keeps_its_splits_and_its_order(tmp_path: Path) -> None:
    document = {
        "name": "Pancreas",
        "labels": {"0": "background", "1": "pancreas"},
        "modality": {"0": "CT"},
        "numTraining": 2,
        "tensorImageSize": "3D",
        "training": [
            {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"},
            {"image": "imagesTr/a.nii.gz"},
        ],
        "validation": [{"image": ["imagesTr/c.nii.gz"]}],
        "test": ["imagesTs//d.nii.gz", "imagesTr/a.nii.gz"],
    }
    assert read_list(written(tmp_path, document)) == [
        ListEntry("imagesTr/b.nii.gz", "training"),
        ListEntry("imagesTr/a.nii.gz", "training"),
        ListEntry("imagesTr/c.nii.gz", "validation"),
        ListEntry("imagesTs/d.nii.gz", "test"),
        ListEntry("imagesTr/a.nii.gz", "test"),
    ]


def test_the_key_images_and_other_keys_with_images_count(tmp_path: Path) -> None:
    document = {
        "labels": ["background", "liver"],
        "images": ["x/a.nii.gz"],
        "train": [{"image": "b.mha"}],
        "extra": ["c.nii.gz"],
        "reference": ["a paper", "another"],
    }
    entries = read_list(written(tmp_path, document))
    assert [(entry.path, entry.split) for entry in entries] == [
        ("x/a.nii.gz", "images"),
        ("b.mha", "train"),
        ("c.nii.gz", "extra"),
    ]


def test_a_text_list_holds_a_name_a_line(tmp_path: Path) -> None:
    text = "\ufeff# cases\r\nBDMAP_00000001\r\n\r\n  BDMAP_00000002  \nsub folder\\c.nii.gz"
    assert read_list(written(tmp_path, text, "cases.txt")) == [
        ListEntry("BDMAP_00000001", ""),
        ListEntry("BDMAP_00000002", ""),
        ListEntry("sub folder/c.nii.gz", ""),
    ]


def test_json_is_known_without_its_suffix(tmp_path: Path) -> None:
    path = written(tmp_path, {"images": ["a.nii"]}, "volumes.lst")
    assert read_list(path) == [ListEntry("a.nii", "images")]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../secret.nii.gz",
        "imagesTr/../../secret.nii.gz",
        "imagesTr/..",
        "..\\secret.nii.gz",
        "C:\\data\\a.nii.gz",
        "C:/data/a.nii.gz",
        "\\\\server\\share\\a.nii.gz",
    ],
)
def test_a_path_that_leads_away_is_refused(path: str, tmp_path: Path) -> None:
    documents: list[Any] = [{"training": [{"image": "a.nii"}, {"image": path}]}, {"test": [path]}]
    for document in documents:
        with pytest.raises(ManifestError, match=r"(training\[1\]|test\[0\]).*leads out"):
            read_list(written(tmp_path, document))
    with pytest.raises(ManifestError, match=r"line 2: .*leads out"):
        read_list(written(tmp_path, f"a.nii\n{path}\n", "list.txt"))


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([{"image": "a.nii"}], "must hold an object"),
        ({"name": "x", "labels": {}}, "none of the keys training.*it has name, labels"),
        ({}, "it has no keys"),
        ({"training": {"image": "a.nii"}}, "training: must be a list"),
        ({"training": [{"label": "a.nii"}]}, r"training\[0\]: must be a path"),
        ({"training": ["a.nii", 3]}, r"training\[1\]: must be a path"),
        ({"training": [{"image": ["a.nii", "b.nii"]}]}, r"training\[0\]: 2 images"),
        ({"training": [""]}, "no path"),
        ({"training": ["a\u0000.nii"]}, "no path"),
        ({"training": []}, "names no volume"),
        ('{"training": ["a.nii"], "training": ["b.nii"]}', "'training' stands twice"),
    ],
)
def test_a_malformed_list_is_refused(document: Any, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path, document)
    with pytest.raises(ManifestError, match=sentence) as caught:
        read_list(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read: No such file"):
        read_list(tmp_path / "none.json")
    (tmp_path / "volume.nii.gz").write_bytes(b"\x1f\x8b\x08\xff\xfe")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_list(tmp_path / "volume.nii.gz")
    with pytest.raises(ManifestError, match="names no volume"):
        read_list(written(tmp_path, "\n# nothing\n", "empty.txt"))


def test_paths_are_looked_for_below_the_source_then_beside_the_list(tmp_path: Path) -> None:
    root, lists = tmp_path / "source", tmp_path / "lists"
    beside = touched(lists / "imagesTr" / "a.nii.gz")
    entry = ListEntry("imagesTr/a.nii.gz", "training")
    card = generic_card("x")
    assert locate(entry, root, lists, card) == beside
    below = touched(root / "imagesTr" / "a.nii.gz")
    assert locate(entry, root, lists, card) == below
    assert locate(ListEntry("imagesTr/b.nii.gz", ""), root, lists, card) is None


@pytest.mark.parametrize(
    ("name", "case", "file"),
    [
        ("AbdomenAtlas", "BDMAP_00000001", "BDMAP_00000001/ct.nii.gz"),
        ("TotalSegmentator", "s1405", "s1405/ct.nii.gz"),
        ("KiTS23", "case_00000", "case_00000/imaging.nii.gz"),
        ("KiTS23", "case_00000_0000", "imagesTr/case_00000_0000.nii.gz"),
        ("LIDC-IDRI", "00002", "00002.nii.gz"),
        ("MELA", "mela_0001", "mela_0001.nii.gz"),
        ("MELA", "mela_0001.nii.gz", "mela_0001.nii.gz"),
    ],
)
def test_a_bare_case_name_leads_to_its_file(
    name: str, case: str, file: str, tmp_path: Path
) -> None:
    path = touched(tmp_path / file)
    (tmp_path / "lists").mkdir()
    assert locate(ListEntry(case, ""), tmp_path, tmp_path / "lists", card_of(name)) == path


def test_a_case_name_leads_to_no_other_file(tmp_path: Path) -> None:
    touched(tmp_path / "BDMAP_00000001" / "segmentations" / "liver.nii.gz")
    touched(tmp_path / "other" / "ct.nii.gz")
    card = card_of("AbdomenAtlas")
    for name in ("BDMAP_00000001", "other", "ct", "*", "BDMAP_*"):
        assert locate(ListEntry(name, ""), tmp_path, tmp_path, card) is None


def test_a_folder_of_dicom_files_can_be_listed(tmp_path: Path) -> None:
    file = touched(tmp_path / "LIDC-IDRI-0001" / "1-001.dcm")
    entry = ListEntry("LIDC-IDRI-0001", "training")
    assert locate(entry, tmp_path, tmp_path, card_of("LIDC-IDRI")) == file.parent
    assert locate(entry, tmp_path, tmp_path, card_of("MELA")) is None
