"""Codes of files and folders, before any format is known, and of the build."""

from __future__ import annotations

from prect.manifests.codes.model import Code, Effect

CODES = (
    Code("file.archive", Effect.REJECT, "An archive.", "Unpack it and ingest again."),
    Code(
        "file.unreadable_folder",
        Effect.REJECT,
        "The folder cannot be listed.",
        "Mend its permissions or the disk and ingest again.",
    ),
    Code(
        "file.broken_link",
        Effect.REJECT,
        "A symbolic link that leads nowhere, or to itself.",
        "Restore what it points to and ingest again.",
    ),
    Code(
        "file.unreadable",
        Effect.REJECT,
        "The file cannot be read from the disk.",
        "Mend its permissions or the disk and ingest again.",
    ),
    Code(
        "file.name",
        Effect.REJECT,
        "The file's name is not valid UTF-8, so no manifest can hold it.",
        "Rename it.",
    ),
    Code(
        "file.missing",
        Effect.QUARANTINE,
        "A file that ingest saw is no longer there.",
        "Restore it, or ingest again.",
    ),
    Code(
        "file.changed",
        Effect.QUARANTINE,
        "The content is not what ingest saw.",
        "Ingest again, then build again.",
    ),
    Code(
        "file.unexpected",
        Effect.REJECT,
        "Reading the file failed in a way that no check foresees.",
        "Report it, with the sentence of the row.",
    ),
    Code(
        "file.worker_died",
        Effect.REJECT,
        "The process that read the file died, for example for lack of memory.",
        "Give workers more memory and ingest again; the row is always judged anew.",
    ),
    Code(
        "build.worker_died",
        Effect.QUARANTINE,
        "The process that built the store died twice, for example for lack of memory.",
        "Give workers more memory and build again.",
    ),
    Code(
        "build.out_of_memory",
        Effect.QUARANTINE,
        "The worker could not get the memory that the volume needs.",
        "Give workers more memory, or use fewer of them; the next build tries it again.",
    ),
    Code(
        "build.unexpected",
        Effect.QUARANTINE,
        "Building the store failed in a way that no check foresees.",
        "Report it, with the sentence of the row.",
    ),
)
