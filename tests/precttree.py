"""The distributed PreCT-160K tree in miniature: its folders, patterns and lists, tiny scans.

Every image is another scan that passes all checks, so what an ingest does not count was left
out by a name, a pattern or a list, and not by its content.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

Splits = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Source:
    """One source as it lies in the tree."""

    name: str
    """As the table of sources writes it."""
    folder: str
    """Below the root of the tree."""
    splits: Splits
    """Listed volumes relative to ``folder``, by split."""
    labels: tuple[str, ...] = ()
    """Label maps beside them."""
    excluded: tuple[str, ...] = ()
    """Images that no list names: another modality."""
    strays: tuple[str, ...] = ()
    """Files that are no images."""
    list_name: str = ""
    """List relative to the root of the tree; ``lists/<name>.json`` when empty."""
    key: str = ""
    """Key of a list that has one section for everything."""

    @property
    def images(self) -> tuple[str, ...]:
        """All listed volumes."""
        return tuple(path for paths in self.splits.values() for path in paths)

    @property
    def list_path(self) -> str:
        """The list, relative to the root of the tree."""
        return self.list_name or f"lists/{self.name}.json"


def _numbered(pattern: str, *numbers: int) -> tuple[str, ...]:
    return tuple(pattern.format(number) for number in numbers)


def _nnunet(name: str, folder: str, pattern: str, numbers: tuple[int, ...]) -> Source:
    """A data set in nnU-Net's layout: the first volumes to train, one to validate, one to test."""
    *first, second_last, last = numbers
    images = "imagesTr/" + pattern + "_0000.nii.gz"
    return Source(
        name,
        folder,
        {
            "training": _numbered(images, *first),
            "validation": _numbered(images, second_last),
            "test": _numbered("imagesTs/" + pattern + "_0000.nii.gz", last),
        },
        labels=_numbered("labelsTr/" + pattern + ".nii.gz", *first, second_last),
        strays=("dataset.json", "imagesTr/.DS_Store"),
    )


def _converted(name: str, folder: str, *numbers: int) -> Source:
    """DICOM re-packed as numbered files."""
    return Source(name, folder, {"training": _numbered("{:05d}.nii.gz", *numbers)})


def _uid(number: int) -> str:
    return f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{100000 + 7919 * number}"


_ABDOMEN = (
    Source(
        "BTCV",
        "BTCV",
        {
            "training": _numbered("imagesTr/img{:04d}.nii.gz", 1, 2, 3),
            "validation": _numbered("imagesTr/img{:04d}.nii.gz", 35, 36),
        },
        labels=_numbered("labelsTr/label{:04d}.nii.gz", 1, 2, 3, 35, 36),
        strays=("dataset.json", ".DS_Store"),
    ),
    Source(
        "FLARE22",
        "Flare22",
        {"training": _numbered("imagesTr/FLARE22_Tr_{:04d}_0000.nii.gz", 1, 2, 3, 4)},
        labels=_numbered("labelsTr/FLARE22_Tr_{:04d}.nii.gz", 1, 2, 3, 4),
        list_name="Flare22/dataset.json",
    ),
    Source(
        "FLARE23",
        "Flare23",
        {
            "training": (
                *_numbered("imagesTr2200/1-500/FLARE23_{:04d}_0000.nii.gz", 1, 2, 3),
                *_numbered("imagesTr2200/501-1000/FLARE23_{:04d}_0000.nii.gz", 501, 502),
            )
        },
        labels=_numbered("labelsTr2200/FLARE23_{:04d}.nii.gz", 1, 501),
    ),
    Source(
        "AMOS22",
        "Amos2022",
        {
            "training": _numbered("imagesTr/amos_{:04d}.nii.gz", 1, 4, 500),
            "validation": _numbered("imagesVa/amos_{:04d}.nii.gz", 8),
        },
        labels=(
            *_numbered("labelsTr/amos_{:04d}.nii.gz", 1, 4, 500, 507),
            "labelsVa/amos_0008.nii.gz",
        ),
        excluded=("imagesTr/amos_0507.nii.gz", "imagesVa/amos_0600.nii.gz"),
        list_name="Amos2022/dataset_CT.json",
    ),
    Source(
        "WORD",
        "WORD",
        {
            "training": _numbered("imagesTr/word_{:04d}.nii.gz", 2, 3, 4),
            "validation": _numbered("imagesVal/word_{:04d}.nii.gz", 1),
            "test": _numbered("imagesTs/word_{:04d}.nii.gz", 9),
        },
        labels=(
            *_numbered("labelsTr/word_{:04d}.nii.gz", 2, 3, 4),
            "labelsVal/word_0001.nii.gz",
            "labelsTs/word_0009.nii.gz",
        ),
    ),
    Source(
        "PANORAMA",
        "PANORAMA",
        {"training": _numbered("images/{:d}_00001_0000.nii.gz", 100000, 100001, 100002)},
        labels=_numbered("labels/{:d}_00001.nii.gz", 100000, 100001),
        strays=("clinical_information.xlsx",),
    ),
    Source(
        "AbdomenAtlas",
        "AbdomenAtlasMini1.0",
        {"training": _numbered("BDMAP_{:08d}/ct.nii.gz", 1, 2, 3, 17)},
        labels=(
            *_numbered("BDMAP_{:08d}/segmentations/liver.nii.gz", 1, 2, 3, 17),
            *_numbered("BDMAP_{:08d}/combined_labels.nii.gz", 1, 2, 3, 17),
        ),
        list_name="lists/AbdomenAtlas.txt",
    ),
    _nnunet("LiTS", "Dataset003_Liver", "liver_{:d}", (114, 3, 11, 20)),
    _nnunet("MSD Pancreas", "Dataset007_Pancreas", "pancreas_{:03d}", (290, 1, 12, 32)),
    _nnunet("KiTS23", "Dataset220_KiTS2023", "case_{:05d}", (0, 1, 2, 210)),
    Source(
        "HealthyCT",
        "HealthyCT/healthy_ct",
        {
            "training": (
                *_numbered("CT/kidney_ct/kidney_{:04d}.nii.gz", 1, 2),
                *_numbered("CT/04_LiTS/img/liver_{:d}.nii.gz", 32, 34),
                *_numbered("CT/02_TCIA_Pancreas-CT/img/img{:04d}.nii.gz", 1, 2),
            )
        },
        labels=(
            *_numbered("CT/04_LiTS/label/liver_{:d}.nii.gz", 32, 34),
            *_numbered("CT/02_TCIA_Pancreas-CT/label/label{:04d}.nii.gz", 1, 2),
        ),
        key="images",
    ),
)
_CHEST = (
    Source(
        "LUNA16",
        "Luna16-jx",
        {
            "training": tuple(f"subset_{n % 2}/{_uid(n)}.nii.gz" for n in range(4)),
            "validation": (f"subset_8/{_uid(8)}.nii.gz",),
        },
        strays=("annotations.csv",),
    ),
    Source(
        "TCIA-Covid19",
        "TCIAcovid19",
        {
            "training": _numbered("data/volume-covid19-A-{:04d}.nii.gz", 269, 11, 12),
            "validation": _numbered("data/volume-covid19-A-{:04d}.nii.gz", 700),
        },
    ),
    Source(
        "STOIC21",
        "stoic21",
        {"training": _numbered("nii_gz/{:d}.nii.gz", 9994, 0, 17, 3)},
        strays=("reference.csv",),
    ),
    _converted("LIDC-IDRI", "LIDC_convert_v1", 2, 3, 4),
    _converted("StonyBrook", "StonyBrookChestCT_v1", 1, 2, 3, 4),
    Source("MELA", "MELA", {"training": _numbered("mela_{:04d}.nii.gz", 1, 2, 3)}),
    Source(
        "CT-RATE",
        "CT-RATE/dataset/train",
        {
            "training": (
                *_numbered("train_1/train_1_a/train_1_a_{:d}.nii.gz", 1, 2),
                *_numbered("train_{0:d}/train_{0:d}_a/train_{0:d}_a_1.nii.gz", 2, 3),
            )
        },
    ),
    _converted("NLST", "NLST_convert_v1", 0, 1, 2, 3, 4, 5),
)
_OTHERS = (
    _converted("HNSCC", "HNSCC_convert_v1", 1, 2, 3),
    _converted("QIN-HEADNECK", "QIN_convert_v1", 0, 1, 2, 3),
    _converted("HeadNeckCT", "HNPC_convert_v1", 0, 1, 2),
    _converted("TCGA-HNSC", "TCGA-HNSC_convert_v1", 12, 13, 14),
    Source(
        "DeepLesion",
        "DeepLesion",
        {
            "training": _numbered(
                "ULS23_DeepLesion3D/images/{:06d}_02_02_100_lesion_01.nii.gz", 10, 11, 12, 13
            )
        },
        labels=_numbered(
            "ULS23_DeepLesion3D/labels/{:06d}_02_02_100_lesion_01.nii.gz", 10, 11, 12, 13
        ),
    ),
    Source(
        "TotalSegmentator",
        "Totalsegmentator_dataset",
        {"training": _numbered("s{:04d}/ct.nii.gz", 1405, 0, 1)},
        labels=tuple(
            f"s{number:04d}/segmentations/{organ}.nii.gz"
            for number in (1405, 0, 1)
            for organ in ("liver", "spleen")
        ),
        strays=("meta.csv",),
    ),
    _converted("CT Colonography", "CT_COLONOGRAPHY_converted_v1", 0, 1, 2, 3),
)
SOURCES = (*_ABDOMEN, *_CHEST, *_OTHERS)
"""Every source whose folder is known."""
ABSENT = "OPC-Radiomics"
"""The source whose folder is not known."""


@dataclass(frozen=True)
class Tree:
    """A tree on disk."""

    root: Path
    sources: tuple[Source, ...] = field(default=SOURCES)

    def source(self, name: str) -> Source:
        """The source of that name."""
        return next(source for source in self.sources if source.name == name)

    def folder(self, name: str) -> Path:
        """Folder of a source."""
        return self.root / self.source(name).folder

    def list_file(self, name: str) -> Path:
        """List of a source."""
        return self.root / self.source(name).list_path


def build_tree(root: Path) -> Tree:
    """Write the tree; takes a few seconds."""
    seeds = iter(range(10_000))
    for source in SOURCES:
        folder = root / source.folder
        for path in (*source.images, *source.excluded):
            write_scan(folder / path, next(seeds))
        for path in source.labels:
            write_labels(folder / path, next(seeds))
        for path in source.strays:
            _write(folder / path, b"{}\n")
        _write(root / source.list_path, _list(source).encode())
    # Pickles of another pipeline, and images that must not be taken for data: beside the
    # sources, and inside one.
    for cache in ("cache", "cache/BTCV/imagesTr", "BTCV/imagesTr/cache", "NLST_convert_v1/cache"):
        _write(root / cache / f"{next(seeds):08x}.pt", b"\x80\x02pickle")
        write_scan(root / cache / f"img{next(seeds):04d}.nii.gz", next(seeds))
    _write(root / "README.txt", b"a collection\n")
    return Tree(root)


def write_scan(path: Path, seed: int) -> Path:
    """Write a scan that passes every check and is like no other: seed decides the anatomy."""
    rng = np.random.default_rng([160, seed])
    spacing = np.round(rng.uniform(2.0, 3.0, 3), 3)
    return _write_nifti(path, _scan(rng), spacing)


def write_labels(path: Path, seed: int) -> Path:
    """Write a label map of a few organs."""
    rng = np.random.default_rng([161, seed])
    labels = (zoom(rng.uniform(0, 1, (5, 6, 6)), 4, order=0) * 5).astype(np.uint8)
    return _write_nifti(path, labels, np.array([2.5, 2.5, 2.5]))


def _scan(rng: np.random.Generator) -> NDArray[np.int16]:
    """(20, 24, 24) HU (k, j, i): a body of soft tissue with lungs and bones, in air."""
    shape = (20, 24, 24)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    centre, radii = rng.uniform(-0.12, 0.12, 3), rng.uniform(0.65, 0.85, 3)
    distance = (((grid.T - centre) / radii) ** 2).sum(axis=-1).T
    structure = zoom(rng.normal(0, 1, (5, 6, 6)), 4, order=1)
    tissue = 40 + 25 * structure
    tissue[structure > 1.3] = 500
    tissue[structure < -1.3] = -820
    hu = np.where(distance < 1, tissue, -1000) + rng.normal(0, 12, shape)
    return np.rint(hu).astype(np.int16)


def _write_nifti(path: Path, voxels: NDArray[np.generic], spacing: NDArray[np.float64]) -> Path:
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    return _write(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _list(source: Source) -> str:
    """The list of a source: Decathlon-style, or a name a line."""
    if source.list_path.endswith(".txt"):
        return "".join(f"{path.partition('/')[0]}\n" for path in source.images)
    if source.key:
        return json.dumps({source.key: list(source.images)})
    labels = dict(zip(source.images, source.labels, strict=False))
    return json.dumps(
        {
            split: [{"image": path, "label": labels.get(path, "")} for path in paths]
            for split, paths in source.splits.items()
        }
    )
