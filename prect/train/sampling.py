"""Samples as a pure function: what the i-th sample of a run shows.

``sampler.sample(i)`` depends on the manifest's digest, the settings of view, crops and
augmentation, the seed and i alone. Each sample has its own counter of a Philox generator
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so samples can be drawn in
any order and by any process. Only raw 64-bit words are taken from numpy: its derived
distributions may change between releases, the generator itself may not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prect.train.config import TrainConfig
from prect.train.crops import base_starts, random_start_range
from prect.train.views import GeometryTable, View, box_view, whole_view

Domain = Literal["train", "heldout"]

_SAMPLE_STREAM, _ORDER_STREAM = 0, 1
_DRAWS_PER_CROP = 7


@dataclass(frozen=True)
class Sample:
    """Everything that is random about one sample. S random crops come first, then n bases."""

    index: int
    """Global index in the stream."""
    epoch: int
    row: int
    """Row of the cache manifest."""
    view: View
    starts: NDArray[np.int64]
    """(S + n, 3) first voxel of each crop in the view's grid, (x, y, z)."""
    flips: NDArray[np.bool_]
    """(S + n, 3) whether the crop is mirrored along (x, y, z)."""
    turns: NDArray[np.int64]
    """(S + n,) quarter turns in the x-y plane, 0 to 3, after the flips."""
    shifts: NDArray[np.float32]
    """(S + n,) added to the windowed intensity."""

    def describe(self) -> dict[str, Any]:
        """The sample as plain types, for a JSON report."""
        return {
            "index": self.index,
            "epoch": self.epoch,
            "row": self.row,
            "view": asdict(self.view),
            "crop_starts": self.starts.tolist(),
            "flips": self.flips.tolist(),
            "quarter_turns": self.turns.tolist(),
            "shifts": [round(float(shift), 6) for shift in self.shifts],
        }


class Sampler:
    """The endless stream of samples of one run."""

    def __init__(
        self,
        config: TrainConfig,
        digest: str,
        rows: NDArray[np.int64],
        volumes: GeometryTable,
        domain: Domain = "train",
    ) -> None:
        """Prepare the stream; costs no more than a digest.

        Args:
            config: the run's settings; ``run.seed``, ``view``, ``crops``, ``augment`` matter.
            digest: the cache manifest's digest.
            rows: rows of the manifest that belong to this domain.
            volumes: geometry of every row of the manifest.
            domain: separates the streams of training and held-out volumes.
        """
        self._config = config
        self._rows = rows
        self.volumes = volumes
        self._key = _stream_key(config, digest, domain)
        self._bases = base_starts(config.crops, config.view.grid)

    def __len__(self) -> int:
        """Samples an epoch."""
        return len(self._rows)

    def sample(self, index: int) -> Sample:
        """The sample at a global index; index // len(self) is its epoch."""
        epoch, position = divmod(index, len(self._rows))
        row = int(self._rows[_epoch_order(self._key, len(self._rows), epoch)[position]])
        crops, augment = self._config.crops, self._config.augment
        count = crops.per_volume
        draws = _uniform(self._key, index, 3 + 3 * crops.random + _DRAWS_PER_CROP * count)
        place, centres, rest = np.split(draws, [3, 3 + 3 * crops.random])
        each = rest.reshape(count, _DRAWS_PER_CROP)
        first, last = random_start_range(crops, self._config.view.grid)
        random_starts = first + (centres.reshape(-1, 3) * (last - first + 1)).astype(np.int64)
        turned = each[:, 3] < augment.rotate
        shifted = each[:, 5] < augment.shift
        return Sample(
            index=index,
            epoch=epoch,
            row=row,
            view=self._view(row, place),
            starts=np.concatenate([random_starts, self._bases]),
            flips=each[:, :3] < augment.flip,
            turns=np.where(turned, 1 + (each[:, 4] * 3).astype(np.int64), 0),
            shifts=np.where(shifted, (2 * each[:, 6] - 1) * augment.shift_range, 0).astype(
                np.float32
            ),
        )

    def _view(self, row: int, place: NDArray[np.float64]) -> View:
        settings, volume = self._config.view, self.volumes.row(row)
        if settings.spacing is None:
            return whole_view(volume, settings.grid)
        where = (float(place[0]), float(place[1]), float(place[2]))
        return box_view(volume, settings.grid, settings.spacing, where)


def step_indices(step: int, local_batch: int, rank: int, world: int) -> Sequence[int]:
    """Global indices that one rank reads at one step; steps count from 0."""
    first = (step * world + rank) * local_batch
    return range(first, first + local_batch)


def _stream_key(config: TrainConfig, digest: str, domain: Domain) -> tuple[int, int]:
    parts = config.model_dump(mode="json", include={"view", "crops", "augment"})
    text = json.dumps([digest, parts, config.run.seed, domain], sort_keys=True)
    raw = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


def _words(key: tuple[int, int], stream: int, index: int, count: int) -> NDArray[np.uint64]:
    # The low word of the counter advances as words are drawn; index and stream sit above it.
    counter = np.array([0, 0, index, stream], dtype=np.uint64)
    generator = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter)
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def _uniform(key: tuple[int, int], index: int, count: int) -> NDArray[np.float64]:
    words = _words(key, _SAMPLE_STREAM, index, count)
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


@lru_cache(maxsize=4)
def _epoch_order(key: tuple[int, int], rows: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of all rows; two epochs are alive at their seam, for training and held-out."""
    words = _words(key, _ORDER_STREAM, epoch, rows)
    return np.argsort(words, kind="stable").astype(np.int64)
