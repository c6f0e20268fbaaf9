"""What names a patient, in a header or in a file's name, must not reach what can be shared."""

from __future__ import annotations

import shutil
import stat
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset

from prect.cache.convert import Job, convert
from prect.cache.profile import load_profile
from prect.cache.reader import StoreReader
from prect.ingest.readers.nifti import NiftiReader
from prect.ingest.survey import survey
from prect.manifests.limits import Limits
from prect.manifests.sources import read_sources
from prect.manifests.stores import QuarantineRow, read_cache_rows, read_quarantine
from prect.phantom import make_case
from prect.phantom.case import PhantomCase
from prect.phantom.write import write_case
from prect.workspace import Workspace
from tests.conftest import SALT, run_json
from tests.precttree import write_scan

IN_HEADER = "ZZSECRETNAME"
IN_PATH = "ZZSECRETPATH"
BIRTH_DATE = "19230417"
PATH_COLUMNS = {"source", "root", "members", "item"}
"""Columns of the source manifest that may hold a path: files must be found again."""
TEXT_VRS = ("PN", "LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE")
# Text that decides how pixels are read, and so is no place for a name.
MEANINGFUL = {"RescaleType", "PixelDataProviderURL"}
GROUPS_OF_THE_FILE = (0x0000, 0x0002, 0x0004)
SLICES = 24


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One phantom in every format, sound and broken, with names wherever one fits."""
    folder = tmp_path_factory.mktemp("source") / f"{IN_PATH}_folder"
    folder.mkdir()
    for number, plant in enumerate((plant_nifti, plant_dicom, plant_metaimage, plant_nrrd)):
        for again, fault in enumerate(("sound", "broken at ingest", "broken later")):
            case = shortened(make_case(seed=9, index=3 * number + again))
            path = plant(case, folder / f"{IN_PATH}_{number}_{fault.replace(' ', '_')}")
            if fault == "broken at ingest":
                damage(path)
    write_odd_numbers(folder / f"{IN_PATH}_numbers")
    (folder / f"{IN_PATH}.zip").write_bytes(b"PK")
    (folder / f"{IN_PATH}_dangling").symlink_to(folder / f"{IN_PATH}_nowhere")
    return folder


@dataclass(frozen=True)
class Shared:
    """A workspace after ingest and build-cache, and what the commands printed."""

    workspace: Workspace
    printed: str
    quarantine: Path
    """The quarantine as it was before ingest judged the damaged files itself."""


@pytest.fixture(scope="module")
def shared(source: Path, scheduler: str, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    workspace = tmp_path_factory.mktemp("workspace")
    judged = run_json("ingest", "set", "--source", source, "-w", workspace, "--workers", 2)
    assert judged["verdicts"]["accepted"] + judged["verdicts"]["warned"] == 8
    assert judged["verdicts"]["rejected"] == judged["candidates"] - 8 >= 9
    for path in source.glob("*_broken_later*"):
        damage(path)
    built = run_json("build-cache", "set", "-w", workspace, "--workers", 2)["datasets"][0]
    assert (built["stored"], built["quarantined"]) == (4, 4)
    quarantine = tmp_path_factory.mktemp("copy") / "quarantine.parquet"
    shutil.copyfile(Workspace(workspace).quarantine("set"), quarantine)
    # A second ingest and build write history, and reasons for what changed.
    place = ("-w", workspace, "--scheduler", scheduler)
    run_json("ingest", "set", "--source", source, *place)
    again = run_json("build-cache", "set", *place)
    return Shared(Workspace(workspace), repr((built, again)), quarantine)


def shortened(case: PhantomCase) -> PhantomCase:
    """The first slices of a phantom, so that thousands of elements are soon written."""
    scan = case.parameters.scan
    shape = (*scan.grid.shape[:2], SLICES)
    scan = replace(scan, grid=replace(scan.grid, shape=shape))
    parameters = replace(case.parameters, scan=scan)
    return replace(case, parameters=parameters, hu=case.hu[:SLICES], labels=case.labels[:SLICES])


def plant_nifti(case: PhantomCase, stem: Path) -> Path:
    path = write_case(case, stem, "nifti")
    image = nib.Nifti1Image.from_filename(path)
    header = image.header
    header["descrip"] = f"{IN_HEADER} born {BIRTH_DATE}"
    for name in ("aux_file", "intent_name", "db_name"):
        header[name] = IN_HEADER
    for code in ("comment", "dicom", "xcede"):
        content = f"{IN_HEADER} {BIRTH_DATE}".encode()
        header.extensions.append(nib.nifti1.Nifti1Extension(code, content))
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, header), path)
    return path


def plant_metaimage(case: PhantomCase, stem: Path) -> Path:
    path = write_case(case, stem, "mha")
    lines = "".join(
        f"{key} = {IN_HEADER} {BIRTH_DATE}\n"
        for key in ("Comment", "Name", "AcquisitionDate", "PatientName", "0010|0010", "0010|0020")
    )
    return spliced(path, b"ElementDataFile", lines.encode())


def plant_nrrd(case: PhantomCase, stem: Path) -> Path:
    path = write_case(case, stem, "nrrd")
    lines = f"# {IN_HEADER} {BIRTH_DATE}\ncontent: {IN_HEADER}\n" + "".join(
        f"{key}:={IN_HEADER} {BIRTH_DATE}\n" for key in ("PatientName", "0010|0020", "born")
    )
    return spliced(path, b"encoding:", lines.encode())


def spliced(path: Path, before: bytes, lines: bytes) -> Path:
    """Put lines of text into a header, in front of the line that starts with ``before``."""
    data = path.read_bytes()
    place = data.index(before)
    path.write_bytes(data[:place] + lines + data[place:])
    return path


def plant_dicom(case: PhantomCase, stem: Path) -> Path:
    """A series with the name in every element of text that DICOM knows, and in private ones."""
    folder = write_case(case, stem, "dicom")
    planted = named_everywhere()
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.update(planted)
        dataset.file_meta.ImplementationVersionName = IN_HEADER
        dataset.file_meta.SourceApplicationEntityTitle = IN_HEADER
        dataset.preamble = IN_HEADER.encode().ljust(128, b"\0")
        dataset.save_as(path)
        path.rename(path.with_name(f"{IN_PATH}_{path.name}"))
    return folder


def named_everywhere() -> Dataset:
    """Every element of the dictionary with a representation of text, holding the name."""
    dataset = Dataset()
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        if retired or not keyword or keyword in MEANINGFUL or tag >> 16 in GROUPS_OF_THE_FILE:
            continue
        if vr in TEXT_VRS:
            dataset.add_new(tag, vr, IN_HEADER)
    assert len(dataset) > 600
    dataset.PatientName = f"{IN_HEADER}^Given^^Dr"
    dataset.PatientID = f"{IN_HEADER}-ID"
    dataset.PatientBirthDate = BIRTH_DATE
    inner = Dataset()
    inner.PatientName = inner.PatientID = inner.RequestedProcedureDescription = IN_HEADER
    for keyword in ("OtherPatientIDsSequence", "RequestAttributesSequence"):
        setattr(dataset, keyword, [inner])
    private = dataset.private_block(0x0029, IN_HEADER, create=True)
    for offset, vr in enumerate(("LO", "PN", "LT", "UT")):
        private.add_new(offset, vr, IN_HEADER)
    private.add_new(0x10, "OB", f"{IN_HEADER} {BIRTH_DATE}".encode())
    private.add_new(0x11, "SQ", [inner])
    return dataset


def write_odd_numbers(stem: Path) -> None:
    """Series whose numbers are names: what a decoder says of these must not be passed on."""
    for keyword in ("RescaleSlope", "PixelSpacing", "ImagePositionPatient"):
        case = shortened(make_case(seed=10, index=0))
        folder = write_case(case, stem.with_name(f"{stem.name}_{keyword}"), "dicom")
        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            known = dataset[keyword]
            values = [IN_HEADER] * known.VM
            tag, written = known.tag, "\\".join(values).encode()
            written += b" " * (len(written) % 2)
            raw = pydicom.dataelem.RawDataElement(tag, "DS", len(written), written, 0, False, True)
            dataset._dict[tag] = raw
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset.save_as(path)


def damage(path: Path) -> None:
    """Cut the file short, or one slice of the series, so that no decoder can read it."""
    file = sorted(path.iterdir())[SLICES // 2] if path.is_dir() else path
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * 0.8)])


def texts(value: Any) -> Iterator[str]:
    """All strings in a value of a table, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("latin-1")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (*texts(key), *texts(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner)


def columns_of(path: Path) -> Iterator[tuple[str, str]]:
    """Column and text of every cell of a table that holds text, and of its metadata."""
    table: pa.Table = pq.read_table(path)
    for name in table.column_names:
        for value in table[name].to_pylist():
            yield from ((name, text) for text in texts(value))
    yield from (("metadata", text) for text in texts(dict(table.schema.metadata or {})))


def secrets_of(source: Path) -> dict[str, set[str]]:
    """Everything that must stay inside: tokens, raw ids, names of files and folders."""
    uids: set[str] = set()
    for path in source.rglob("*.dcm"):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        elements = (element for element in dataset if element.VR == "UI")
        uids.update(str(e.value) for e in elements if e.keyword.endswith("InstanceUID"))
        uids.add(str(dataset.get("FrameOfReferenceUID", "")))
    return {
        "header": {IN_HEADER, BIRTH_DATE},
        "uid": uids - {""},
        "path": {IN_PATH, str(source.parent)},
    }


def files_under(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def assert_free(text: str, secrets: set[str], where: str) -> None:
    found = sorted(secret for secret in secrets if secret in text)
    assert not found, f"{where} holds {found[:3]}: {text[:300]}"


def test_the_names_were_planted(source: Path) -> None:
    """Else the other tests could not fail."""
    images = [path for path in files_under(source) if path.suffix != ".zip"]
    whole = [path for path in images if "_numbers_" not in path.parent.name]
    assert len(whole) == 9 + 3 * SLICES
    for path in whole:
        data = path.read_bytes()
        if path.name.endswith(".nii.gz"):
            data = zlib.decompressobj(wbits=31).decompress(data)
        assert IN_HEADER.encode() in data, path.name
        assert IN_PATH in str(path.relative_to(source))
    secrets = secrets_of(source)
    assert len(secrets["uid"]) > 3 * SLICES


def test_stores_and_cache_manifests_hold_nothing(source: Path, shared: Shared) -> None:
    secrets = set[str]().union(*secrets_of(source).values())
    workspace = shared.workspace
    tables = [workspace.cache_manifest("set"), shared.quarantine]
    assert len(read_cache_rows(tables[0])) == 4
    assert len(read_quarantine(tables[1])) == 4
    for table in tables:
        for column, text in columns_of(table):
            assert_free(text, secrets, f"{table.name}, column {column}")
    files = [*files_under(workspace.cache), workspace.quarantine("set"), *tables]
    assert len(files) >= 8 + 3
    for path in files:
        assert_free(f"{path.parent.name}/{path.name}", secrets, "the name of a file")
        assert_free(path.read_bytes().decode("latin-1"), secrets, path.name)


def test_voxels_hold_nothing(source: Path, shared: Shared) -> None:
    """Stores are compressed, so a text in their chunks would not show in the bytes."""
    secrets = set[str]().union(*secrets_of(source).values())
    for case in shared.workspace.stored_cases("set"):
        with StoreReader(shared.workspace.store("set", case)) as reader:
            for number, level in enumerate(reader.levels):
                voxels = reader.read(number, (0, 0, 0), level.shape)
                assert_free(voxels.tobytes().decode("latin-1"), secrets, f"{case}, {number}")


def test_the_source_manifest_holds_paths_and_no_header_text(source: Path, shared: Shared) -> None:
    secrets = secrets_of(source)
    manifest = shared.workspace.sources("set")
    rows = read_sources(manifest)
    assert {row.format for row in rows} >= {"nifti", "dicom", "metaimage", "nrrd"}
    assert sum("_numbers_" in row.source for row in rows) >= 3
    for column, text in columns_of(manifest):
        assert_free(text, secrets["header"] | secrets["uid"], f"column {column}")
        if column not in PATH_COLUMNS:
            assert_free(text, secrets["path"], f"column {column}")


def test_nothing_else_in_the_workspace_holds_header_text(source: Path, shared: Shared) -> None:
    """The history names the files of rows that were taken away, and the card names none."""
    secrets = secrets_of(source)
    workspace = shared.workspace
    assert '"taken away"' in workspace.history("set").read_text()
    for path in files_under(workspace.root):
        text = path.read_bytes().decode("latin-1")
        assert_free(text, secrets["header"] | secrets["uid"], path.name)
    assert_free(workspace.card("set").read_text(), secrets["path"], "card.yaml")


def test_build_cache_prints_nothing_of_it(source: Path, shared: Shared) -> None:
    secrets = set[str]().union(*secrets_of(source).values())
    assert_free(shared.printed, secrets, "what build-cache prints")


def test_ids_are_hashed_and_told_apart(shared: Shared) -> None:
    rows = [row for row in read_sources(shared.workspace.sources("set")) if row.series]
    assert rows
    for row in rows:
        for value in (row.case, row.patient, row.study, row.series):
            assert len(value) == 16
            assert set(value) <= set("0123456789abcdef")
    # One name in every header is one patient, in several series.
    assert len({row.patient for row in rows if "numbers" not in row.source}) == 1
    assert len({row.series for row in rows if "numbers" not in row.source}) == 3


def test_the_salt_is_for_its_owner_alone(shared: Shared) -> None:
    salt = shared.workspace.root / "salt"
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    secret = salt.read_text().strip()
    assert len(secret) >= 32
    for path in files_under(shared.workspace.manifests, shared.workspace.cache):
        assert secret.encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_what_a_decoder_says_is_not_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """Messages of libraries name the file and quote its header."""
    source = tmp_path / f"{IN_PATH}.nii.gz"
    write_scan(source, seed=1)
    place = Workspace(tmp_path / "workspace")
    (sound,) = survey("sound", tmp_path, place, salt=SALT).rows
    assert sound.verdict == "accepted"

    def fail(*_: object) -> None:
        raise kind(f"{source} cannot be decoded, its PatientName is {IN_HEADER}")

    monkeypatch.setattr(NiftiReader, "read", fail)
    job = Job(sound, load_profile("iso1.5"), place.store("sound", sound.case), Limits())
    outcome = convert(job)
    assert isinstance(outcome, QuarantineRow)
    (broken,) = survey("broken", tmp_path, place).rows
    assert broken.verdict == "rejected"
    for reason in (outcome.reason, broken.reason, broken.judged_reason):
        assert_free(reason, {IN_PATH, IN_HEADER, str(tmp_path)}, "a reason")
        assert kind.__name__ in reason or "read" in reason
