"""Codes of what is wrong with a stored volume, or with its row of the cache manifest."""

from __future__ import annotations

from prect.manifests.codes.model import Code, Effect

_REBUILD = "`prect verify --repair` builds the store again from its source."
_ROW = "`prect verify --repair` or `--rebuild-manifest` writes the row from the store."


CODES = (
    Code(
        "store.missing",
        Effect.QUARANTINE,
        "The cache manifest has a row, and there is no store.",
        _REBUILD,
    ),
    Code(
        "store.unreadable",
        Effect.QUARANTINE,
        "The disk does not give what the store holds.",
        "Mend the disk or the permissions; `prect verify --repair` builds the store again.",
    ),
    Code(
        "store.name",
        Effect.QUARANTINE,
        "The folder does not have the name that its attributes ask for.",
        _REBUILD,
    ),
    Code(
        "store.version",
        Effect.REPORT,
        "The store is of a format version that this release does not know.",
        "Use the release that wrote it; such a store is never changed.",
    ),
    Code(
        "store.group",
        Effect.QUARANTINE,
        "The group's `zarr.json` is not that of a prect store.",
        _REBUILD,
    ),
    Code(
        "store.group_digest",
        Effect.QUARANTINE,
        "The group's `zarr.json` does not match its own digest.",
        _REBUILD,
    ),
    Code(
        "store.inconsistent",
        Effect.QUARANTINE,
        "The attributes contradict one another.",
        _REBUILD,
    ),
    Code(
        "store.ome",
        Effect.QUARANTINE,
        "The group's OME-Zarr part is not what the attributes say.",
        _REBUILD,
    ),
    Code(
        "store.level",
        Effect.QUARANTINE,
        "The `zarr.json` of a level is not what the attributes say.",
        _REBUILD,
    ),
    Code(
        "store.file_missing",
        Effect.QUARANTINE,
        "A file of the store is not there.",
        _REBUILD,
    ),
    Code(
        "store.link",
        Effect.QUARANTINE,
        "A level or a file of the store is a symbolic link; what it leads to is never touched.",
        _REBUILD,
    ),
    Code(
        "store.unexpected_file",
        Effect.REPORT,
        "There is a file or folder that does not belong to a store.",
        "`prect verify --repair` takes it out of the store and sets it aside.",
    ),
    Code(
        "store.shard_size",
        Effect.QUARANTINE,
        "A shard is not as long as it was written.",
        _REBUILD,
    ),
    Code(
        "store.shard_index",
        Effect.QUARANTINE,
        "The index of a shard does not match its checksum, or is not one of whole chunks in order.",
        _REBUILD,
    ),
    Code(
        "store.chunk_missing",
        Effect.QUARANTINE,
        "The index of a shard holds no entry for an inner chunk.",
        _REBUILD,
    ),
    Code(
        "store.shard_digest",
        Effect.QUARANTINE,
        "A shard does not match its digest.",
        _REBUILD,
    ),
    Code(
        "store.chunk_checksum",
        Effect.QUARANTINE,
        "An inner chunk does not match its checksum.",
        _REBUILD,
    ),
    Code(
        "store.chunk_codec",
        Effect.QUARANTINE,
        "An inner chunk does not decode to the voxels of one chunk.",
        _REBUILD,
    ),
    Code(
        "store.value",
        Effect.QUARANTINE,
        "A voxel holds a value that the intensity does not allow.",
        _REBUILD,
    ),
    Code(
        "store.padding",
        Effect.QUARANTINE,
        "An inner chunk holds voxels beyond the end of its level.",
        _REBUILD,
    ),
    Code(
        "store.pooling",
        Effect.QUARANTINE,
        "A level is not the one before averaged over 2 x 2 x 2 voxels.",
        _REBUILD,
    ),
    Code(
        "store.statistics",
        Effect.QUARANTINE,
        "The percentiles or the occupancy are not those of the stored voxels.",
        _REBUILD,
    ),
    Code(
        "store.no_row",
        Effect.REPORT,
        "The cache manifest has no row for the store.",
        _ROW,
    ),
    Code(
        "store.row_differs",
        Effect.REPORT,
        "The row of the cache manifest is not what the store says.",
        _ROW,
    ),
    Code(
        "store.worker_died",
        Effect.REPORT,
        "The process that checked the store died twice, for example for lack of memory.",
        "Give workers more memory and verify again; the store is left as it is.",
    ),
)
