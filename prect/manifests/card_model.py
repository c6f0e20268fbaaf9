"""What is known about one source of CT volumes: the model behind a card."""

from __future__ import annotations

import hashlib
import json
import re
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prect.errors import WorkspaceError
from prect.manifests.globs import check_glob, matches, matches_on_the_way
from prect.manifests.limits import Limits
from prect.workspace import check_name

PICKLES = "cache"
"""Folders of this name hold pickled tensors in the distributed tree; nothing in them is listed."""
USUAL_LABELS = ("label*", "mask*", "seg*", "*_label*", "*_mask*", "*_seg*")
"""What collections call their label maps, and (those without ``*`` in front) their folders."""
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")
"""Files of formats other than DICOM, whose files may have any name."""


class Sort(StrEnum):
    """What a card takes a file for."""

    IMAGE = "image"
    LABEL = "label"
    EXCLUDED = "excluded"
    """An image that the card leaves out, for a stated reason."""
    UNLISTED = "unlisted"
    """No pattern names it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _checked_folder(folder: str) -> str:
    parts = PurePosixPath(folder).parts
    if not parts or folder.startswith("/") or ".." in parts or "\\" in folder:
        raise ValueError(f"{folder!r} must be the path of a folder below --root, with '/'")
    if PICKLES in parts:
        raise ValueError(
            f"{folder!r}: folders named {PICKLES!r} hold pickles and are never entered"
        )
    return PurePosixPath(folder).as_posix()


def _checked_regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


Glob = Annotated[str, AfterValidator(check_glob)]
Folder = Annotated[str, AfterValidator(_checked_folder)]
Regex = Annotated[str, AfterValidator(_checked_regex)]
Count = Annotated[int, Field(ge=0)]


class Volumes(_Part):
    """How many volumes to expect."""

    paper: Count | None = None
    """Count in the paper of PreCT-160K."""
    listed: Count | None = None
    """Count of the files that the released lists name, all splits together."""
    note: str = ""


class Homepage(_Part):
    """Where the publisher presents the data."""

    url: str | None = None
    verified: bool = False
    """Whether the address was seen in a page or a repository; else it is from memory."""


class Licence(_Part):
    """Under which terms the data is given away."""

    name: str = "unknown"
    approval: bool = False
    """Whether the publisher must agree first, by a form, an agreement or an account."""
    verified: bool = False


class Layout(_Part):
    """How the files of a source lie in its folder.

    Patterns are those of `prect.manifests.globs`: they are matched against the last parts of a
    path, so that they hold wherever the search begins.
    """

    folders: tuple[Folder, ...] = ()
    """Names that the source's folder may have under ``--root``; the first that exists counts."""
    images: tuple[Glob, ...] = ()
    """Files that are volumes. None means all of a known format, or none when ``dicom`` is set."""
    dicom: bool = False
    """Whether DICOM files are taken, in any folder and of any name."""
    labels: tuple[Glob, ...] = USUAL_LABELS
    """Files and folders that hold label maps; upper and lower case are the same here. A pattern
    with ``*`` in front is for files only."""

    def takes(self, path: str) -> bool:
        """Whether a file, or a folder of DICOM files, holds an image, labels aside."""
        if self.images and matches(self.images, path):
            return True
        if self.dicom:
            return not path.lower().endswith(VOLUME_SUFFIXES)
        return not self.images


class Exclusion(_Part):
    """Images of the source that are left out."""

    match: Regex
    """Regular expression that is searched in the path under the source's folder."""
    reason: str


class FixedRescale(_Part):
    """HU = slope * value + intercept, the same for every file."""

    slope: float = 1.0
    intercept: float = 0.0
    reason: str

    @field_validator("slope")
    @classmethod
    def _not_zero(cls, slope: float) -> float:
        if slope == 0:
            raise ValueError("a slope of 0 makes every voxel equal")
        return slope


class RescaleTable(_Part):
    """HU = slope * value + intercept, with a line for each file in a CSV table."""

    table: str = Field(min_length=1)
    """Path of the table, relative to the source's folder; ``../`` may lead out of it."""
    key: str
    """Column that holds the file's name, its path or its name without suffix."""
    slope: str
    """Column of the slope."""
    intercept: str
    """Column of the intercept."""
    reason: str


def _kind_of_rescale(value: Any) -> str:
    by_file = isinstance(value, RescaleTable) or (isinstance(value, dict) and "table" in value)
    return RescaleTable.__name__ if by_file else FixedRescale.__name__


Rescale = Annotated[
    Annotated[FixedRescale, Tag("FixedRescale")] | Annotated[RescaleTable, Tag("RescaleTable")],
    Discriminator(_kind_of_rescale),
]


class Card(_Part):
    """One source of CT volumes.

    Precedence decides which of two copies stays; the lower one does. The catalogue's steps:

    ====  =======================================================================
    10    DICOM as it left the scanner
    20    volumes that their publisher released first, in another format
    25    a release that takes in a share of older sets
    30    a re-packed part of one other source
    40-   collections made of other public sets, the larger and later ones higher
    50    crops around a finding
    100   a card that says nothing
    ====  =======================================================================
    """

    name: str
    """Name of the data set in a workspace."""
    title: str = ""
    aliases: tuple[str, ...] = ()
    """Other spellings under which the card is found."""
    region: str = "mixed"
    """Body region."""
    modality: Literal["CT"] = "CT"
    recipe: Literal["abdomen", "chest", "head-neck"] | None = None
    """Recipe of VoCo v2 that trained on it; head-neck shows the whole volume (a global grid)."""
    format: str = "any"
    """Usual format of the files, for people."""
    version: str | None = None
    """Release that the rest of the card speaks of."""
    volumes: Volumes = Volumes()
    homepage: Homepage = Homepage()
    licence: Licence = Licence()
    download: str = ""
    """Steps to get the data."""
    original: Layout = Layout(images=("*",), dicom=True)
    """As the publisher distributes it."""
    prect160k: Layout | None = None
    """As the distributed PreCT-160K tree holds it."""
    excluded: tuple[Exclusion, ...] = ()
    patient: Regex | None = None
    """Regular expression with a group ``patient``, searched in the path."""
    series: Regex | None = None
    """Regular expression with a group ``series``: the path states the series UID."""
    rescale: Rescale | None = None
    """Correction of values that are not HU."""
    limits: Limits = Limits()
    precedence: int = Field(default=100, ge=0)
    one_per_study: bool = False
    """Whether of several reconstructions of one exam one is enough."""
    overlaps: tuple[str, ...] = ()
    """Names of the cards that share volumes with this one."""
    benchmark: bool = False
    """Whether pre-trained models are tested on it downstream: a danger of leakage."""
    notes: str = ""

    @field_validator("name")
    @classmethod
    def _usable_name(cls, name: str) -> str:
        try:
            return check_name(name, "name")
        except WorkspaceError as error:
            raise ValueError(str(error)) from None

    @field_validator("patient", "series")
    @classmethod
    def _has_its_group(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is not None and info.field_name not in re.compile(text).groupindex:
            raise ValueError(f"{text!r} lacks the group (?P<{info.field_name}>...)")
        return text

    @model_validator(mode="after")
    def _not_its_own_copy(self) -> Self:
        if self.name in self.overlaps:
            raise ValueError(f"overlaps: {self.name!r} cannot overlap itself")
        return self

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts that are known, originals first."""
        return (self.original,) if self.prect160k is None else (self.original, self.prect160k)

    @property
    def takes_dicom(self) -> bool:
        """Whether DICOM files are candidates."""
        return any(layout.dicom for layout in self.layouts)

    @property
    def expected(self) -> int | None:
        """Volumes to expect: what the lists name, else what the paper says."""
        return self.volumes.paper if self.volumes.listed is None else self.volumes.listed

    def is_expected(self, count: int) -> bool:
        """Whether a count is the paper's or the lists', or nothing is known.

        Lists leave out volumes of some originals, so both are right.
        """
        known = {self.volumes.paper, self.volumes.listed} - {None}
        return not known or count in known

    @property
    def digest_of_rules(self) -> str:
        """BLAKE2b-64, 16 hexadecimal digits, of all in the card that can change a judgement."""
        rules = self.model_dump(
            mode="json",
            include={"original", "prect160k", "excluded", "patient", "series", "rescale", "limits"},
        )
        for layout in (rules["original"], rules["prect160k"]):
            if layout is not None:
                del layout["folders"]
        text = json.dumps(rules, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def folder_under(self, root: Path) -> Path | None:
        """The source's folder under the folder of all sources; ``None`` when it is not there."""
        names = (name for layout in self.layouts for name in layout.folders)
        return next((root / name for name in names if (root / name).is_dir()), None)

    def sort_of(self, path: str) -> Sort:
        """What a file is taken for.

        Args:
            path: posix path under the source's folder; a folder of DICOM files ends in ``/``.
        """
        path = path.rstrip("/")
        if PICKLES in path.split("/")[:-1]:
            return Sort.UNLISTED
        if any(matches_on_the_way(layout.labels, path) for layout in self.layouts):
            return Sort.LABEL
        if not any(layout.takes(path) for layout in self.layouts):
            return Sort.UNLISTED
        return Sort.IMAGE if self.exclusion(path) is None else Sort.EXCLUDED

    def exclusion(self, path: str) -> Exclusion | None:
        """Why the card leaves a file out; ``None`` when it does not."""
        return next((rule for rule in self.excluded if re.search(rule.match, path)), None)

    def patient_of(self, path: str) -> str:
        """The patient's id as the path states it; empty when it does not."""
        return _group(self.patient, "patient", path)

    def series_of(self, path: str) -> str:
        """The series UID as the path states it; empty when it does not."""
        return _group(self.series, "series", path)


def _group(regex: str | None, name: str, path: str) -> str:
    found = None if regex is None else re.search(regex, path)
    return (found[name] or "") if found else ""
