"""One volume: decode, judge again, harmonise, store. What a worker of the build engine runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from prect import __version__
from prect.cache.format import SHARD_KEY, BodyBox, SourceAttributes, StoreAttributes
from prect.cache.profile import Profile
from prect.cache.reader import StoreReader
from prect.cache.writer import StoreWriter, store_bytes
from prect.errors import StoreError, StoreVersionError, VolumeError
from prect.ingest.checks import voxel_findings
from prect.ingest.findings import first_rejection
from prect.ingest.harmonise import Harmonised, harmonise
from prect.ingest.readers import READERS
from prect.ingest.rescale import rescaled
from prect.ingest.volume import Volume, orientation_of, spacing_of
from prect.manifests.limits import Limits
from prect.manifests.sources import SourceRow
from prect.manifests.stores import CacheRow, QuarantineRow

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
    source = job.source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            volume = _decode(source, job.limits)
            finding = first_rejection(voxel_findings(volume, job.limits))
            if finding is not None:
                raise VolumeError(finding.code, finding.reason)
            harmonised = harmonise(volume, job.profile.harmonisation)
    except VolumeError as error:
        return quarantine(job, error.code, error.reason)
    except OSError as error:  # a fault of the disk, which the next build tries again
        reason = f"cannot be read: {error.strerror or type(error).__name__}"
        return quarantine(job, "file.unreadable", reason)
    except Exception as error:  # one odd file must not end the build of 160,000
        # A library's message may quote the header or a path, so only its kind is told.
        return quarantine(job, "build.unexpected", f"it fails with {type(error).__name__}")
    try:
        _write(job, volume, harmonised)
    except (OSError, StoreError):
        raise
    except Exception as error:
        return quarantine(job, "build.unexpected", f"storing it fails with {type(error).__name__}")
    return stored_row(job.store)


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
    )


def stored_row(store: Path) -> CacheRow:
    """The manifest row of a committed store, from its own attributes.

    Raises:
        StoreError: there is no readable store.
    """
    attributes = StoreReader(store).attributes
    finest = attributes.levels[0]
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
    )


def is_current(job: Job) -> bool:
    """Whether the store is there, whole in size, and built from this source with this profile.

    The source is the same when its bytes are, and what ingest made of them: ids, geometry, HU.

    Raises:
        StoreVersionError: another release wrote it; it must not be overwritten unasked.
    """
    try:
        attributes = StoreReader(job.store).attributes
        shards = [job.store / level.path / SHARD_KEY for level in attributes.levels]
        sizes = [shard.stat().st_size for shard in shards]
    except StoreVersionError:
        raise
    except (StoreError, OSError):
        return False
    if sizes != [level.shard_bytes for level in attributes.levels]:
        return False
    source = job.source
    origin = attributes.source
    return (
        attributes.profile_digest == job.profile.digest
        and attributes.source_digest == source.source_digest
        # What the card says of the same bytes may have changed since.
        and (attributes.patient, attributes.series) == (source.patient, source.series)
        and (origin.slope, origin.intercept) == (source.slope, source.intercept)
        and (origin.shape, origin.orientation) == (source.shape, source.orientation)
        and np.allclose(origin.spacing, source.spacing, rtol=0, atol=1e-6)
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
    storage = job.profile.storage
    with StoreWriter(job.store) as writer:
        levels = writer.write_levels(
            harmonised.voxels, harmonised.spacing, storage.chunk, storage.codec, storage.levels
        )
        source = job.source
        i, j, k = (round(float(s), 6) for s in spacing_of(volume.affine))
        percentiles = np.percentile(harmonised.voxels, _PERCENTILES, method="nearest")
        attributes = StoreAttributes(
            format_version=1,
            dataset=source.dataset,
            case=source.case,
            patient=source.patient,
            series=source.series,
            source_digest=source.source_digest,
            profile=job.profile.model_dump(mode="json"),
            profile_digest=job.profile.digest,
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
            hu_percentiles={
                f"{p:g}": int(hu) for p, hu in zip(_PERCENTILES, percentiles, strict=True)
            },
            codec=storage.codec,
            levels=levels,
            software={
                "prect": __version__,
                "SimpleITK": version("SimpleITK"),
                "numcodecs": version("numcodecs"),
            },
        )
        writer.commit(attributes)
