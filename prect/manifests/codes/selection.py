"""Codes of what is left out on purpose: lists, cards, duplicates, benchmarks."""

from __future__ import annotations

from prect.manifests.codes.model import Code, Effect

CODES = (
    Code(
        "list.missing",
        Effect.REJECT,
        "The list names the volume, and it is not there.",
        "Complete the download, or mend the list, and ingest again.",
    ),
    Code(
        "card.excluded",
        Effect.EXCLUDE,
        "The card leaves the volume out, for the reason that it gives.",
        "To take it after all, ingest with a card of your own.",
    ),
    Code(
        "card.rescale_missing",
        Effect.REJECT,
        "The card's table of slopes and intercepts has no row for the file.",
        "Complete the table, or leave the file out in the card.",
    ),
    Code(
        "card.rescaled",
        Effect.WARN,
        "The values became HU by the slope and intercept that the card gives.",
    ),
    Code(
        "selection.scattered_series",
        Effect.REJECT,
        "The slices of one series lie in several folders, so that each holds a part of the volume.",
        "Gather the files of the series in one folder and ingest again.",
    ),
    Code(
        "leakage.benchmark",
        Effect.EXCLUDE,
        "The volume belongs to a test set that is kept out of pre-training.",
        "It is taken again when its benchmark is no longer excluded.",
    ),
    Code(
        "leakage.benchmark_copy",
        Effect.EXCLUDE,
        "A copy of a volume of a test set that is kept out of pre-training.",
        "It is taken again when that benchmark is no longer excluded.",
    ),
    Code(
        "leakage.benchmark_patient",
        Effect.EXCLUDE,
        "Another volume of a patient whose scan, or a copy of it, is in a test set kept out.",
        "It is taken again when that benchmark is no longer excluded.",
    ),
    Code(
        "selection.reformat",
        Effect.EXCLUDE,
        "A reformat, computed from an original series of the same study that is usable too.",
    ),
    Code(
        "selection.other_reconstruction",
        Effect.EXCLUDE,
        "Another volume of the same study is kept; the card asks for one a study.",
        "To keep them all, ingest with a card of your own that sets one_per_study to false.",
    ),
    Code(
        "duplicate.series",
        Effect.DUPLICATE,
        "The same DICOM series, in the same shape, is kept from elsewhere.",
    ),
    Code(
        "duplicate.voxels",
        Effect.DUPLICATE,
        "Another volume with the same voxels is kept, whatever its orientation and spacing say.",
    ),
    Code(
        "duplicate.overlap",
        Effect.DUPLICATE,
        "A crop or re-saved copy of a volume that is kept, or what that was made from: at least "
        "half of the smaller one is in both.",
    ),
)
