"""The volumes of a run: manifest, split into training and held-out patients, streams of views."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prect.cache.reader import StoreReader
from prect.errors import ConfigError, StoreError, StoreVersionError, TrainingError
from prect.manifests.splits import heldout_mask
from prect.manifests.stores import CacheTable, load_cache_table
from prect.train.config import TrainConfig
from prect.train.damage import OnDamage, check_resources
from prect.train.dataset import PoolFactory, StoreNames, ViewDataset, reader_pool
from prect.train.sampling import Domain, Sampler, Sources
from prect.train.views import GeometryTable
from prect.units import HU_MAX, HU_MIN
from prect.workspace import Workspace

_CHECKED_STORES = 64
"""Stores compared with the manifest before a run starts, spread evenly over it."""


@dataclass(frozen=True)
class TrainingData:
    """The stored volumes of a run, split by patient."""

    workspace: Workspace
    table: CacheTable
    rows: dict[Domain, NDArray[np.int64]]
    """Rows of the manifest, for training and held out."""

    @property
    def geometry(self) -> GeometryTable:
        """Shape, spacing and levels of every row."""
        return GeometryTable(self.table.shape, self.table.spacing, self.table.levels)

    @cached_property
    def names(self) -> StoreNames:
        """Data set and case of every row."""
        code, datasets = self.table.dataset.codes()
        return StoreNames(self.workspace, Sources(datasets, code), self.table.case)

    def sampler(self, config: TrainConfig, domain: Domain = "train") -> Sampler:
        """The stream of samples of one domain."""
        rows, sources = self.rows[domain], self.names.sources
        return Sampler(config, self.table.digest, rows, self.geometry, domain, sources)

    def views(
        self, config: TrainConfig, domain: Domain = "train", pool: PoolFactory | None = None
    ) -> ViewDataset:
        """The samples of one domain with their voxels."""
        sampler = self.sampler(config, domain)
        return ViewDataset(self.names, sampler, pool or reader_pool(config), config)


def open_data(workspace: Workspace, config: TrainConfig) -> TrainingData:
    """Load the cache manifests of a run's data sets and split them.

    Raises:
        ConfigError: no data set is named.
        ManifestError: a data set has no cache manifest, or holds no volume.
        StoreError: a store is not the one that the manifest tells of; or it is missing or
            damaged, and the policy is ``raise``.
        TrainingError: too few patients to hold one out, or too little of a resource.
    """
    if not config.data.datasets:
        stored = [name for name in workspace.datasets() if workspace.cache_manifest(name).exists()]
        raise ConfigError(
            "data.datasets is empty; name the data sets to train on, for example "
            f"--set data.datasets='[\"{stored[0] if stored else 'name'}\"]' "
            f"({workspace.root} holds stores of: {', '.join(stored) or 'none'})"
        )
    table = load_cache_table(workspace, config.data.datasets)
    check_stores(workspace, table, config.data.on_damage)
    check_windows(table, config)
    return split_data(workspace, table, config)


def check_stores(workspace: Workspace, table: CacheTable, on_damage: OnDamage) -> None:
    """Refuse a manifest that does not match its stores, by a sample that costs milliseconds.

    Args:
        workspace: where the stores lie.
        table: the manifest.
        on_damage: under ``quarantine``, stores that cannot be opened are let pass: they are
            counted and replaced where they are read.

    Raises:
        StoreError: a store is not the one that the manifest tells of; or it is missing or
            damaged, and the policy is ``raise``.
        TrainingError: this process may not open another file, or has no memory.
    """
    for row in np.unique(np.linspace(0, len(table) - 1, _CHECKED_STORES).astype(int)):
        path = table.store(workspace, row)
        try:
            with StoreReader(path) as reader:
                attributes = reader.attributes
        except StoreVersionError:
            raise
        except StoreError as error:
            check_resources(error)
            if on_damage == "quarantine":
                continue
            raise
        found = attributes.profile_digest, attributes.source_digest, attributes.made_from
        listed = table.profile[row], table.source_digest[row], table.made_from[row]
        if (*found, attributes.digest) != (*listed, table.store_digest[row]):
            raise StoreError(
                f"{path} was built from another source, with another profile, or at another time, "
                f"than its manifest says; run: prect verify {table.dataset[row]}"
            )


def check_windows(table: CacheTable, config: TrainConfig) -> None:
    """Refuse a window of which the stores hold a part only.

    Raises:
        ConfigError: the window of a data set is not inside of what its stores tell apart.
    """
    codes, names = table.dataset.codes()
    kinds = np.column_stack([codes, table.hu_range])
    for row in np.unique(kinds, axis=0, return_index=True)[1]:
        dataset = names[codes[row]]
        window, (low, high) = config.view_of(dataset).window, table.hu_range[row]
        # Beyond what any store holds nothing is lost: there is no HU.
        if (low > max(window[0], HU_MIN)) or (high < min(window[1], HU_MAX)):
            recipe = config.data.recipes.get(dataset)
            setting = f"the window of recipe {recipe}" if recipe else "view.window"
            raise ConfigError(
                f"{setting} is {window[0]:g}..{window[1]:g} HU, but the stores of "
                f"{dataset} hold {low}..{high} HU only; choose a window inside, or "
                "build them again with --intensity hu and the --profile they have"
            )


def split_data(workspace: Workspace, table: CacheTable, config: TrainConfig) -> TrainingData:
    """Split loaded manifests into training and held-out patients; see :func:`open_data`."""
    data = config.data
    heldout = heldout_mask(list(table.patient), data.heldout_share, data.heldout_minimum)
    if not heldout.any() or heldout.all():
        raise TrainingError(
            f"{len(table)} volumes of {len(set(table.patient))} patients leave none to "
            f"{'train on' if heldout.any() else 'hold out'}; two patients at least are needed, "
            f"data.heldout_share is {config.data.heldout_share}"
        )
    rows: dict[Domain, NDArray[np.int64]] = {
        "train": np.flatnonzero(~heldout),
        "heldout": np.flatnonzero(heldout),
    }
    return TrainingData(workspace, table, rows)
