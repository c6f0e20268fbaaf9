"""Samples as a pure function: what the i-th sample of a run shows.

``sampler.sample(i)`` depends on the manifest's digest, the settings of sources, view, crops and
augmentation, the seed and i alone. Each sample has its own counter of a Philox generator
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so samples can be drawn in
any order and by any process. Only raw 64-bit words are taken from numpy: its derived
distributions may change between releases, the generator itself may not.

Every data set walks through an endless row of permutations of its volumes. An epoch takes
``weight`` times its number of volumes from where the last epoch stopped, so a whole weight makes
whole passes and a fraction reaches every volume in turn; then the epoch is mixed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prect.errors import ConfigError, TrainingError
from prect.train.config import TrainConfig
from prect.train.crops import base_starts, random_start_range
from prect.train.placing import CANDIDATES, VolumeLayout, place_view
from prect.train.sections import AugmentConfig, ViewConfig
from prect.train.views import GeometryTable, Region, View

Domain = Literal["train", "heldout"]
Layouts = Callable[[int], VolumeLayout]
"""The layout of the volume of a row of the manifest."""

_SAMPLE_STREAM, _EPOCH_STREAM, _SOURCE_STREAM = 0, 1, 2
"""Streams of random words: of samples, of epochs, and of the first data set; others follow."""
_EXTRA_STREAM = 2**32
"""Words that only some runs draw, beyond those of any data set."""
_DRAWS_PER_CROP = 7
_AUGMENT_OF_CROPS = set(AugmentConfig.model_fields) - {"drop_instances", "shuffle_labels"}
_KEPT_EPOCHS = 2
_MOST_SLOTS = 2**31 - 1


@dataclass(frozen=True)
class Sources:
    """The data set of each of N rows of a manifest."""

    names: tuple[str, ...]
    code: NDArray[np.int32]
    """(N,) position in ``names``."""


@dataclass(frozen=True)
class Sample:
    """Everything that is random about one sample. S random crops come first, then n bases."""

    index: int
    """Global index in the stream."""
    epoch: int
    row: int
    """Row of the cache manifest."""
    view: View
    region: Region
    """The voxels to read for the view."""
    window: tuple[float, float]
    """HU mapped to 0 and 1."""
    starts: NDArray[np.int64]
    """(S + n, 3) first voxel of each crop in the view's grid, (x, y, z)."""
    flips: NDArray[np.bool_]
    """(S + n, 3) whether the crop is mirrored along (x, y, z)."""
    turns: NDArray[np.int64]
    """(S + n,) quarter turns in the x-y plane, 0 to 3, after the flips."""
    shifts: NDArray[np.float32]
    """(S + n,) added to the windowed intensity."""
    dropped: NDArray[np.bool_] | None = None
    """(S + n,) crops whose embedding is dropped; None if the run drops none."""
    label_order: NDArray[np.int64] | None = None
    """(S, n) base whose label stands in each place; None if labels are true."""

    def describe(self) -> dict[str, Any]:
        """The sample as plain types, for a JSON report."""
        extras = {"dropped": self.dropped, "label_order": self.label_order}
        return {
            "index": self.index,
            "epoch": self.epoch,
            "row": self.row,
            "view": asdict(self.view),
            "window": list(self.window),
            "level": self.region.level,
            "region_start_zyx": list(self.region.start),
            "region_shape_zyx": list(self.region.shape),
            "crop_starts": self.starts.tolist(),
            "flips": self.flips.tolist(),
            "quarter_turns": self.turns.tolist(),
            "shifts": [round(float(shift), 6) for shift in self.shifts],
            **{name: drawn.tolist() for name, drawn in extras.items() if drawn is not None},
        }


@dataclass(frozen=True)
class _Source:
    """One data set's part in the stream."""

    stream: int
    rows: NDArray[np.int32]
    """Rows of the manifest."""
    slots: int
    """Volumes taken from it in an epoch."""
    view: ViewConfig


class Sampler:
    """The endless stream of samples of one run."""

    def __init__(
        self,
        config: TrainConfig,
        digest: str,
        rows: NDArray[np.int64],
        volumes: GeometryTable,
        domain: Domain = "train",
        sources: Sources | None = None,
    ) -> None:
        """Prepare the stream; costs no more than a digest and a look at each row.

        Args:
            config: the run's settings; ``run.seed``, ``data.weights``, ``data.recipes``, ``view``,
                ``crops`` and ``augment`` matter.
            digest: the cache manifest's digest.
            rows: rows of the manifest that belong to this domain.
            volumes: geometry of every row of the manifest.
            domain: separates the streams of training and held-out volumes.
            sources: data set of every row; not needed without ``weights`` and ``recipes``.

        Raises:
            ConfigError: ``sources`` is needed and missing, or an epoch has too many samples.
        """
        if sources is None and (config.data.weights or config.data.recipes):
            raise ConfigError(
                "data.weights and data.recipes speak of data sets by name; give the sampler the "
                "data set of each row"
            )
        self._config = config
        self.volumes = volumes
        self._trains = domain == "train"
        self._key = _stream_key(config, digest, domain)
        self._bases = base_starts(config.crops, config.view.grid)
        self._sources = _split(config, rows, sources)
        self._slots = sum(source.slots for source in self._sources)
        if self._slots > _MOST_SLOTS:
            raise ConfigError(f"data.weights make {self._slots} volumes an epoch; lower them")
        self._view_of = np.zeros(len(volumes.levels), dtype=np.int16)
        for position, source in enumerate(self._sources):
            self._view_of[source.rows] = position
        self._epochs: dict[int, NDArray[np.int32]] = {}

    def __len__(self) -> int:
        """Samples an epoch."""
        return self._slots * self._config.view.patches

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the epochs, which are cheaper drawn again than sent to a worker."""
        return self.__dict__ | {"_epochs": {}}

    def view_settings(self, row: int) -> ViewConfig:
        """What is shown of a row: that of its data set."""
        return self._sources[int(self._view_of[row])].view

    def sample(self, index: int, layout: Layouts | None = None) -> Sample:
        """The sample at a global index; index // len(self) is its epoch.

        Args:
            index: 0 or more; consecutive ``view.patches`` of them show one volume.
            layout: chunks and occupancy of a row's store; asked for views that are aligned or
                must hold body, and only then.

        Raises:
            TrainingError: such a view is asked for without ``layout``.
        """
        if index < 0:
            raise IndexError(f"samples are counted from 0, not {index}")
        crops, augment = self._config.crops, self._config.augment
        epoch, row = self._volume(index // self._config.view.patches)
        count = crops.per_volume
        draws = _uniform(
            self._key, index, 3 * (CANDIDATES + crops.random) + _DRAWS_PER_CROP * count
        )
        places, centres, rest = np.split(draws, [3 * CANDIDATES, 3 * (CANDIDATES + crops.random)])
        each = rest.reshape(count, _DRAWS_PER_CROP)
        first, last = random_start_range(crops, self._config.view.grid)
        random_starts = first + (centres.reshape(-1, 3) * (last - first + 1)).astype(np.int64)
        turned = each[:, 3] < augment.rotate
        shifted = each[:, 5] < augment.shift
        settings = self.view_settings(row)
        view, region = place_view(
            settings, self.volumes.row(row), places.reshape(-1, 3), _layout(settings, row, layout)
        )
        dropped, label_order = self._extras(index)
        return Sample(
            index=index,
            epoch=epoch,
            row=row,
            view=view,
            region=region,
            window=settings.window,
            starts=np.concatenate([random_starts, self._bases]),
            flips=each[:, :3] < augment.flip,
            turns=np.where(turned, 1 + (each[:, 4] * 3).astype(np.int64), 0),
            shifts=np.where(shifted, (2 * each[:, 6] - 1) * augment.shift_range, 0).astype(
                np.float32
            ),
            dropped=dropped,
            label_order=label_order,
        )

    def _extras(self, index: int) -> tuple[NDArray[np.bool_] | None, NDArray[np.int64] | None]:
        """What is dropped and how labels are shuffled; held-out samples know neither."""
        crops, augment = self._config.crops, self._config.augment
        if not self._trains or not (augment.drop_instances or augment.shuffle_labels):
            return None, None
        labels = (crops.random, crops.bases)
        draws = _uniform(self._key, index, crops.per_volume + math.prod(labels), _EXTRA_STREAM)
        drops, orders = np.split(draws, [crops.per_volume])
        shuffled = orders.reshape(labels).argsort(axis=-1, kind="stable")
        return (
            drops < augment.drop_instances if augment.drop_instances else None,
            shuffled if augment.shuffle_labels else None,
        )

    def _volume(self, slot: int) -> tuple[int, int]:
        """Epoch and row of a volume slot."""
        epoch, position = divmod(slot, self._slots)
        rows = self._epochs.get(epoch)
        if rows is None:
            rows = self._draw_epoch(epoch)
            # Two epochs are alive at their seam. One assignment, as threads may draw at once.
            kept = list(self._epochs.items())[1 - _KEPT_EPOCHS :]
            self._epochs = {**dict(kept), epoch: rows}
        return epoch, int(rows[position])

    def _draw_epoch(self, epoch: int) -> NDArray[np.int32]:
        """(slots,) rows of one epoch in order."""
        taken = [
            source.rows[part]
            for source in self._sources
            for part in _walk(self._key, source, epoch * source.slots, source.slots)
        ]
        mixed = _permutation(self._key, _EPOCH_STREAM, epoch, self._slots)
        return np.asarray(np.concatenate(taken)[mixed], dtype=np.int32)


def step_indices(step: int, local_batch: int, rank: int, world: int) -> Sequence[int]:
    """Global indices that one rank reads at one step; steps count from 0."""
    first = (step * world + rank) * local_batch
    return range(first, first + local_batch)


def _split(config: TrainConfig, rows: NDArray[np.int64], sources: Sources | None) -> list[_Source]:
    """The rows of a domain by data set, in the order of the data sets' names."""
    if sources is None:
        sources = Sources(("",), np.zeros(int(rows.max(initial=-1)) + 1, dtype=np.int32))
    result = []
    for stream, name in enumerate(sorted(sources.names), start=_SOURCE_STREAM):
        own = rows[sources.code[rows] == sources.names.index(name)].astype(np.int32)
        if len(own):
            slots = max(1, round(config.data.weights.get(name, 1.0) * len(own)))
            result.append(_Source(stream, own, slots, config.view_of(name)))
    return result


def _layout(settings: ViewConfig, row: int, layout: Layouts | None) -> VolumeLayout | None:
    if settings.foreground == 0 and not settings.align:
        return None
    if layout is None:
        raise TrainingError(
            "views with foreground or align depend on the chunks and the occupancy of the store; "
            "give sample() a layout, such as a pool's open readers"
        )
    return layout(row)


def _stream_key(config: TrainConfig, digest: str, domain: Domain) -> tuple[int, int]:
    # Without what is at its default, so that a new setting leaves older runs their samples.
    # What drops embeddings or shuffles labels is drawn on top: the control sees the same crops.
    parts = config.model_dump(
        mode="json",
        include={"view": True, "crops": True, "augment": _AUGMENT_OF_CROPS},
        exclude_defaults=True,
    )
    parts = {section: values for section, values in parts.items() if values}
    named = {
        name: [
            config.data.weights.get(name, 1.0),
            view.model_dump(mode="json", exclude_defaults=True),
        ]
        for name in sorted({*config.data.weights, *config.data.recipes})
        if (view := config.view_of(name)) != config.view or config.data.weights.get(name, 1.0) != 1
    }
    text = json.dumps([digest, parts, named, config.run.seed, domain], sort_keys=True)
    raw = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


def _words(key: tuple[int, int], stream: int, index: int, count: int) -> NDArray[np.uint64]:
    # The low words of the counter advance as words are drawn; index and stream sit above them.
    counter = np.array([0, 0, index, stream], dtype=np.uint64)
    generator = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter)
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def _uniform(
    key: tuple[int, int], index: int, count: int, stream: int = _SAMPLE_STREAM
) -> NDArray[np.float64]:
    words = _words(key, stream, index, count)
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _permutation(key: tuple[int, int], stream: int, number: int, count: int) -> NDArray[np.int32]:
    """The order of ``count`` random words.

    Each word carries its position in its lowest bits: no two are equal then, so any way to sort
    gives the same order, and sorting values is several times faster than sorting positions.
    """
    keys = _words(key, stream, number, count)
    low = np.uint64((1 << max(1, (count - 1).bit_length())) - 1)
    keys &= ~low
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    keys &= low
    return keys.astype(np.int32)


def _walk(key: tuple[int, int], source: _Source, first: int, count: int) -> list[NDArray[np.int32]]:
    """Positions ``first`` to ``first + count`` of a data set's endless row of permutations."""
    volumes, stop = len(source.rows), first + count
    parts = []
    for lap in range(first // volumes, -(-stop // volumes)):
        order = _permutation(key, source.stream, lap, volumes)
        parts.append(order[max(first - lap * volumes, 0) : stop - lap * volumes])
    return parts
