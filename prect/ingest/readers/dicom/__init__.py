"""DICOM CT: series of single images, and enhanced multi-frame objects."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from prect.errors import VolumeError
from prect.ingest.findings import Finding, failed, passed
from prect.ingest.readers.base import Header, digest_files
from prect.ingest.readers.dicom.geometry import stack_slices
from prect.ingest.readers.dicom.headers import Slice, read_slices
from prect.ingest.readers.dicom.pixels import assemble, decode_slices
from prect.ingest.readers.dicom.series import (
    check_images,
    check_repeats,
    group_slices,
    kind_of,
    stack_id,
)
from prect.ingest.volume import Volume
from prect.manifests.limits import Limits

__all__ = ["DicomReader", "Slice", "group_slices", "read_slices"]


class DicomReader:
    """Reads one volume whose files have already been grouped."""

    def read_header(self, paths: Sequence[Path], limits: Limits) -> Header:
        """The header of the files of one volume.

        Raises:
            VolumeError: a file cannot be read, they belong to several volumes, or as `header_of`.
        """
        slices: list[Slice] = []
        try:
            for path in paths:
                found = read_slices(path)
                if not found:
                    raise VolumeError("dicom.unreadable", "a file of the series is not DICOM")
                slices += found
        except OSError as error:
            raise VolumeError("file.unreadable", f"cannot be read: {error.strerror}") from error
        volumes = group_slices(slices)
        if len(volumes) > 1:
            raise VolumeError(
                "dicom.mixed_series", f"the files belong to {len(volumes)} volumes, not to one"
            )
        return self.header_of(slices, limits)

    def header_of(self, slices: Sequence[Slice], limits: Limits) -> Header:
        """The header of slices already read.

        Args:
            slices: one of the groups of `group_slices`.
            limits: `Limits` in force.

        Returns:
            Header whose findings tell every check; some of them may reject.

        Raises:
            VolumeError: the slices cannot have a grid.
        """
        findings = (*check_images(slices), check_repeats(slices))
        stack = stack_slices(slices, limits)
        first = stack.placed[0].part
        return Header(
            shape=(first.columns, first.rows, stack.count),
            affine=stack.affine,
            paths=tuple(dict.fromkeys(placed.part.path for placed in stack.placed)),
            patient_id=first.patient_id,
            study_id=first.study_uid,
            series_id=first.series_uid,
            stack=stack_id(first),
            kind=kind_of(first),
            findings=(*findings, *stack.findings),
            slices=stack.placed,
        )

    def read(self, header: Header) -> Volume:
        """Decode every slice; uneven ones are interpolated onto the grid of the header.

        A slice that repeats the position and the pixels of another is left out.

        Raises:
            VolumeError: ``dicom.undecodable``, ``dicom.several_phases``, ``file.unreadable``.
        """
        digest = hashlib.blake2b(digest_size=16)
        interpolate = any(not placed.index.is_integer() for placed in header.slices)
        voxels, repeats, fractional = assemble(
            decode_slices(header.slices, digest), header.shape[2], interpolate
        )
        return Volume(
            voxels,
            header.affine,
            "dicom",
            digest.hexdigest(),
            fractional,
            (*header.findings, *_pixel_findings(len(header.slices), repeats)),
        )

    def digest(self, paths: Sequence[Path]) -> str:
        return digest_files(paths)


def _pixel_findings(slices: int, repeats: int) -> list[Finding]:
    findings = [passed("dicom.undecodable", f"{slices} slices decoded")]
    measured = f"{repeats} of {slices} slices"
    if not repeats:
        return [*findings, passed("dicom.duplicate_positions", measured)]
    reason = f"{measured} repeat the position and the pixels of another and were left out"
    return [
        *findings,
        passed("dicom.several_phases", "slices at one position have the same pixels"),
        failed("dicom.duplicate_positions", reason, measured),
    ]
