"""Codes of MetaImage and NRRD files."""

from __future__ import annotations

from prect.manifests.codes.model import Code, Effect

_COPY_AGAIN = "Copy or download the file again."
_SAVE_AGAIN = "Save it again as one compressed file."


def _shared(family: str, name: str) -> tuple[Code, ...]:
    """The codes that both formats have."""
    return (
        Code(
            f"{family}.unreadable",
            Effect.REJECT,
            f"The file is named {name} and its header is damaged or that of another format.",
            _COPY_AGAIN,
        ),
        Code(
            f"{family}.file_list",
            Effect.REJECT,
            "The header spreads the voxels over a list or a pattern of files.",
            _SAVE_AGAIN,
        ),
        Code(
            f"{family}.outside_folder",
            Effect.REJECT,
            "The data file lies outside the folder of the header.",
            "Put both into one folder, when the header can be trusted.",
        ),
        Code(
            f"{family}.missing_data",
            Effect.REJECT,
            "The data file that the header names is missing.",
            _COPY_AGAIN,
        ),
        Code(
            f"{family}.encoding",
            Effect.REJECT,
            "The voxels are written as text, by bzip2, or behind a header of their own.",
            _SAVE_AGAIN,
        ),
        Code(
            f"{family}.data_size",
            Effect.REJECT,
            "There are more bytes than the header's sizes ask for: a wrong size shifts every row "
            "of voxels against the next.",
            "Correct the header, or convert the volume again.",
        ),
        Code(
            f"{family}.units",
            Effect.WARN,
            "The header states a unit other than mm. Millimetres are taken all the same; "
            "`geometry.spacing` rejects what is no spacing of a CT.",
        ),
    )


def _stream(family: str) -> tuple[Code, ...]:
    return (
        Code(
            f"{family}.truncated",
            Effect.REJECT,
            "The data, or their compressed stream, end before the last voxel.",
            _COPY_AGAIN,
        ),
        Code(
            f"{family}.checksum",
            Effect.REJECT,
            "The compressed stream is damaged: it cannot be decoded, or its checksum does not "
            "match. Other readers return what they could decode.",
            _COPY_AGAIN,
        ),
    )


def _assumed(family: str) -> Code:
    return Code(
        f"{family}.assumed_orientation",
        Effect.WARN,
        "The header states no orientation; the directions are those that the card names.",
        limits=("unknown_orientation",),
    )


CODES = (
    *_shared("metaimage", "MetaImage"),
    Code(
        "metaimage.no_orientation",
        Effect.WARN,
        "The header has no TransformMatrix; the axes are taken for LPS, as every program does.",
        "When the publisher says how the voxels lie, name it in the card.",
        ("unknown_orientation",),
    ),
    _assumed("metaimage"),
    *_stream("metaimage"),
    *_shared("nrrd", "NRRD"),
    Code(
        "nrrd.no_orientation",
        Effect.REJECT,
        "The header lacks an anatomical space, or the directions of the axes in it: nothing says "
        "left from right.",
        "When the publisher says how the voxels lie, name it in the card.",
        ("unknown_orientation",),
    ),
    _assumed("nrrd"),
    *_stream("nrrd"),
)
