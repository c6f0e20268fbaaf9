"""Collections on disk: reproducible, documented, and never over somebody's data."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from prect.errors import ConfigError, WorkspaceError
from prect.phantom import CaseRecord, generate, make_case


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes_in_every_format(tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []
    for name in ("first", "second"):
        # A time stamp in whole seconds would differ in the second run.
        time.sleep(1.1 if seen else 0)
        masks = tmp_path / f"{name}-masks"
        generate(tmp_path / name, cases=4, seed=7, format="mixed", masks=masks)
        seen.append({**digests(tmp_path / name), **digests(masks)})
    assert seen[0] == seen[1]
    names = {name.split("/")[0] for name in seen[0]}
    assert names == {
        "case_0000.nii.gz",
        "case_0001",
        "case_0002.mha",
        "case_0003.nrrd",
        "phantom.json",
        *(f"case_{i:04d}_labels.nii.gz" for i in range(4)),
    }


def test_a_case_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    generate(tmp_path / "one", cases=1, seed=8)
    generate(tmp_path / "two", cases=2, seed=8)
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert one["case_0000.nii.gz"] == two["case_0000.nii.gz"]
    assert two["case_0000.nii.gz"] != two["case_0001.nii.gz"]


def test_the_table_tells_the_truth(tmp_path: Path) -> None:
    records: list[CaseRecord] = []
    masks = tmp_path / "masks"
    table = generate(tmp_path / "ct", cases=2, seed=3, masks=masks, on_case=records.append)
    content = json.loads(table.read_text())
    assert table == tmp_path / "ct" / "phantom.json"
    assert {k: content[k] for k in ("seed", "size", "format", "complete")} == {
        "seed": 3,
        "size": "small",
        "format": "nifti",
        "complete": True,
    }
    assert [r.name for r in records] == ["case_0000", "case_0001"]
    for index, row in enumerate(content["cases"]):
        case = make_case(3, index)
        assert row == json.loads(json.dumps(records[index].to_json()))
        image: Any = nib.load(tmp_path / "ct" / row["file"])
        labels: Any = nib.load(masks / row["labels"])
        assert list(image.shape) == row["shape_ijk"] == list(labels.shape)
        assert np.abs(image.affine - np.array(row["affine_ras"])).max() < 1e-4
        assert row["spacing_ijk_mm"] == list(case.grid.spacing)
        assert row["organs"]["spine"]["centroid"] == list(case.landmarks["spine"].centroid)
        assert row["parameters"]["scan"]["region"] == case.parameters.scan.region


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WorkspaceError, match="not empty"):
        generate(tmp_path, cases=1)
    with pytest.raises(WorkspaceError, match=r"no readable phantom\.json"):
        generate(tmp_path, cases=1, overwrite=True)
    with pytest.raises(WorkspaceError, match="not a folder"):
        generate(tmp_path / "notes.txt", cases=1)
    with pytest.raises(WorkspaceError, match="not empty"):
        generate(tmp_path / "new", cases=1, masks=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_overwrite_replaces_a_collection_and_nothing_else(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    generate(tmp_path / "ct", cases=2, seed=1, format="mixed", masks=masks)
    (tmp_path / "ct" / "notes.txt").write_text("mine")
    (tmp_path / "ct" / "case_0007.mha").write_text("mine too")
    table = json.loads((tmp_path / "ct" / "phantom.json").read_text())
    table["cases"].append({"file": "../outside", "labels": None})
    (tmp_path / "ct" / "phantom.json").write_text(json.dumps(table))
    (tmp_path / "outside").write_text("not ours")
    generate(tmp_path / "ct", cases=1, seed=2, format="nrrd", masks=masks, overwrite=True)
    assert {p.name for p in (tmp_path / "ct").iterdir()} == {
        "case_0000.nrrd",
        "case_0007.mha",
        "notes.txt",
        "phantom.json",
    }
    assert [p.name for p in masks.iterdir()] == ["case_0000_labels.nii.gz"]
    assert (tmp_path / "outside").read_text() == "not ours"


def test_an_interrupted_collection_says_so_and_can_be_replaced(tmp_path: Path) -> None:
    def stop(_: CaseRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "ct", cases=3, on_case=stop)
    table = json.loads((tmp_path / "ct" / "phantom.json").read_text())
    assert table["complete"] is False
    assert len(table["cases"]) == 3
    generate(tmp_path / "ct", cases=1, format="mha", overwrite=True)
    assert {p.name for p in (tmp_path / "ct").iterdir()} == {"case_0000.mha", "phantom.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": 0}, "at least 1"),
        ({"cases": 1, "seed": -1}, "expected 0 to"),
        ({"cases": 1, "size": "huge"}, "small, clinical"),
        ({"cases": 1, "format": "png"}, "mixed"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(tmp_path / "ct", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "ct").exists()


def test_masks_inside_the_collection_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inside"):
        generate(tmp_path / "ct", cases=1, masks=tmp_path / "ct" / "masks")
    assert not (tmp_path / "ct").exists()


def test_importing_the_package_loads_no_image_library() -> None:
    code = (
        "import sys, prect.phantom; "
        "print([m for m in ('torch', 'SimpleITK', 'nibabel', 'pydicom') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
