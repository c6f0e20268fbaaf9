"""One volume: decode, judge again, harmonise, store. What a worker of the build engine runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from prect import __version__
from prect.cache.format import BodyBox, SourceAttributes, StoreAttributes
from prect.cache.histogram import HuHistogram
from prect.cache.profile import Profile
from prect.cache.rows import origin_of, stored_row
from prect.cache.writer import StoreWriter
from prect.errors import StoreError, VolumeError
from prect.ingest.checks import voxel_findings
from prect.ingest.findings import first_rejection
from prect.ingest.harmonise import Harmonised, harmonise
from prect.ingest.readers import READERS
from prect.ingest.rescale import rescaled
from prect.ingest.volume import Volume, orientation_of, spacing_of
from prect.manifests.limits import Limits
from prect.manifests.sources import SourceRow
from prect.manifests.stores import CacheRow, QuarantineRow


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
        made_from=origin_of(vars(source)),
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
    histogram = HuHistogram()
    histogram.add(harmonised.voxels)
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
            made_from=origin_of(vars(source)),
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
            hu_percentiles=histogram.percentiles(),
            intensity=profile.intensity,
            levels=levels,
            software={
                "prect": __version__,
                "SimpleITK": version("SimpleITK"),
                "numcodecs": version("numcodecs"),
            },
        )
        writer.commit(attributes)
