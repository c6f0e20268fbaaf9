"""One volume: decode, judge again, harmonise, store. What a worker of the build engine runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prect import __version__
from prect.cache.format import BodyBox, SourceAttributes, StoreAttributes
from prect.cache.profile import Profile
from prect.cache.reader import StoreReader
from prect.cache.writer import StoreWriter, store_bytes
from prect.errors import StoreError, VolumeError
from prect.ingest.checks import voxel_findings
from prect.ingest.findings import first_rejection
from prect.ingest.harmonise import Harmonised, harmonise
from prect.ingest.readers import READERS
from prect.ingest.rescale import rescaled
from prect.ingest.volume import Volume, orientation_of, spacing_of
from prect.manifests.limits import Limits
from prect.manifests.sources import SourceRow
from prect.manifests.stores import CacheRow, QuarantineRow, made_from
from prect.units import HU_MAX, HU_MIN

_PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)


@dataclass(frozen=True)
class Job:
    """One volume to build."""

    source: SourceRow
    profile: Profile
    store: Path
    limits: Limits
    """Those that ingest judged the volume by."""


def convert(job: Job) -> CacheRow | QuarantineRow:
    """Build one store, or say why it cannot be built.

    Raises:
        OSError: the store cannot be written (disk full, no permission); that is no fault of
            the volume, so it is not quarantined.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            volume = _decode(job.source, job.limits)
            finding = first_rejection(voxel_findings(volume, job.limits))
            if finding is not None:
                raise VolumeError(finding.code, finding.reason)
            harmonised = harmonise(volume, job.profile.harmonisation)
    except Exception as error:  # one odd file must not end the build of 160,000
        return _failure(job, error, "it fails")
    try:
        _write(job, volume, harmonised)
    except (OSError, StoreError):
        raise
    except Exception as error:
        return _failure(job, error, "storing it fails")
    return stored_row(job.store)


def _failure(job: Job, error: Exception, what: str) -> QuarantineRow:
    """The row of a volume that could not be built, from the error."""
    if isinstance(error, VolumeError):
        return quarantine(job, error.code, error.reason)
    if isinstance(error, OSError):  # a fault of the disk, which the next build tries again
        reason = f"cannot be read: {error.strerror or type(error).__name__}"
        return quarantine(job, "file.unreadable", reason)
    if isinstance(error, MemoryError):
        return quarantine(job, "build.out_of_memory", "the worker has too little memory for it")
    # A library's message may quote the header or a path, so only its kind is told.
    return quarantine(job, "build.unexpected", f"{what} with {type(error).__name__}")


def quarantine(job: Job, code: str, reason: str) -> QuarantineRow:
    """The row of a volume that could not be built."""
    source = job.source
    return QuarantineRow(
        dataset=source.dataset,
        case=source.case,
        source_digest=source.source_digest,
        profile=job.profile.digest,
        code=code,
        reason=reason,
        made_from=identity(source),
    )


def stored_row(store: Path) -> CacheRow:
    """The manifest row of a committed store, from its own attributes.

    Raises:
        StoreError: there is no readable store.
    """
    attributes = StoreReader(store).attributes
    finest, intensity = attributes.levels[0], attributes.intensity
    return CacheRow(
        dataset=attributes.dataset,
        case=attributes.case,
        patient=attributes.patient,
        series=attributes.series,
        source_digest=attributes.source_digest,
        profile=attributes.profile_digest,
        shape=finest.shape,
        spacing=finest.spacing,
        levels=len(attributes.levels),
        bytes=store_bytes(store),
        source_bytes=attributes.source.bytes,
        made_from=attributes.made_from,
        intensity=str(intensity),
        hu_low=intensity.low,
        hu_high=intensity.high,
        hu_step=intensity.step,
        digest=attributes.digest,
    )


def identity(source: SourceRow) -> str:
    """What `made_from` is for a row of the source manifest."""
    return made_from(
        source.source_digest,
        source.patient,
        source.series,
        (source.slope, source.intercept),
        source.shape,
        source.spacing,
        source.orientation,
    )


def _decode(source: SourceRow, limits: Limits) -> Volume:
    base = Path(source.root) / source.source
    paths = tuple(base / member for member in source.members) or (base,)
    for path in paths:
        if not path.is_file():
            raise VolumeError("file.missing", "a file that ingest saw is no longer there")
    reader = READERS[source.format]
    volume = reader.read(reader.read_header(paths, limits))
    if volume.source_digest != source.source_digest:
        raise VolumeError("file.changed", "the content is not what ingest saw; ingest again")
    return rescaled(volume, source.slope, source.intercept)


def _write(job: Job, volume: Volume, harmonised: Harmonised) -> None:
    profile, source = job.profile, job.source
    storage, grid = profile.storage, profile.harmonisation
    with StoreWriter(job.store) as writer:
        levels = writer.write_levels(
            harmonised.voxels,
            harmonised.spacing,
            storage.chunk,
            profile.codec,
            storage.levels,
            profile.intensity,
            grid.body_threshold_hu,
            profile.coarse_codec,
        )
        i, j, k = (round(float(s), 6) for s in spacing_of(volume.affine))
        attributes = StoreAttributes(
            format_version=1,
            dataset=source.dataset,
            case=source.case,
            patient=source.patient,
            series=source.series,
            source_digest=source.source_digest,
            made_from=identity(source),
            profile=profile.model_dump(mode="json"),
            profile_digest=profile.digest,
            affine=harmonised.affine.tolist(),
            source=SourceAttributes(
                format=source.format,
                bytes=source.bytes,
                shape=volume.shape,
                spacing=(i, j, k),
                orientation=orientation_of(volume.affine),
                slope=source.slope,
                intercept=source.intercept,
            ),
            body_box=BodyBox(offset=harmonised.box_offset, full_shape=harmonised.full_shape),
            hu_percentiles=_percentiles(harmonised.voxels),
            intensity=profile.intensity,
            levels=levels,
            software={
                "prect": __version__,
                "SimpleITK": version("SimpleITK"),
                "numcodecs": version("numcodecs"),
            },
        )
        writer.commit(attributes)


def _percentiles(hu: NDArray[np.int16]) -> dict[str, int]:
    """HU that at least so many per cent of the voxels do not exceed, from a histogram."""
    counts = np.zeros(HU_MAX - HU_MIN + 1, dtype=np.int64)
    for plane in hu:  # a plane at a time: counting needs eight bytes a voxel
        counts += np.bincount(plane.ravel() - np.int16(HU_MIN), minlength=len(counts))
    total = np.cumsum(counts)
    ranks = [percent / 100 * total[-1] for percent in _PERCENTILES]
    found = np.searchsorted(total, ranks)
    return {f"{p:g}": int(n) + HU_MIN for p, n in zip(_PERCENTILES, found, strict=True)}
