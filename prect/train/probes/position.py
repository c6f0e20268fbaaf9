"""Position retrieval: find the place of a crop of one patient in another patient.

A query is a crop at a random place of patient a, augmented on its own; the gallery is a regular
grid of crops of patient b. The predicted place is that of the gallery's crop with the most
similar features: by cosine, after each feature is brought to mean 0 and variance 1 over all
galleries. (An untrained network finds places much better so, a trained one hardly.)

No labels are needed: the true place is the same *relative* place. A stored volume is the box
around the body, so a place is the crop's centre as a share of the box along (x, y, z); times the
mean extent of the volumes it is a length in mm.

To measure a network that is in memory::

    data = open_data(workspace, config)
    volumes = probe_volumes(data, config)                      # the held-out patients
    features = NetworkFeatures(learner.backbone)
    result = position_retrieval(features.embed, volumes, config.crops)
    figures = estimates(result)                                # name -> Estimate(value, low, high)
    figures["error_mm"].value, figures["r2"].value

and likewise for ``untrained_features(config.network, seed).embed`` and, with
``PositionSettings(standardise=False)``, ``HistogramFeatures().embed``; `differences` of two
results gives the interval of what lies between them.

Shapes: V volumes, Q queries a volume, P places of a gallery, R resamples; axes (x, y, z).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prect.errors import ConfigError
from prect.train.config import CropConfig
from prect.train.probes.bootstrap import Floats, mean_of_known
from prect.train.probes.features import Embed
from prect.train.probes.volumes import (
    Places,
    ProbeVolume,
    check_patients,
    crops_a_pass,
    cut,
    plain_places,
)

AXES = "xyz"
_TIES = 1e-9
"""Largest random number that is added to a cosine, so that equal ones are no vote for the first."""
_VARIED = 1e-9
"""Least share of the sum of squares that must be spread about the mean: below is rounding."""


@dataclass(frozen=True)
class PositionSettings:
    """What is asked, and how queries are augmented."""

    queries: int = 32
    """Random places a volume."""
    gallery: int = 512
    """Most places of a gallery; its grid is made coarser until they are no more."""
    stride: float = 0.25
    """Step of the gallery's grid as a share of the crop's edge."""
    neighbours: int = 1
    """Best matches whose places are averaged."""
    standardise: bool = True
    """Bring each feature to mean 0 and variance 1 over the galleries. Only histograms of shifted
    queries are compared better as they are."""
    shift: float = 0.1
    """Largest intensity shift of a query, in units of the window."""
    flip: float = 0.0
    """Probability of a flip of a query, for each axis."""
    rotate: float = 0.0
    """Probability of a rotation of a query by 90, 180 or 270 degrees in the x-y plane."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class PositionResult:
    """Predicted and true places, relative to each volume, of all queries in all galleries."""

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    extent: Floats
    """(3,) mean extent of the volumes, mm."""
    truth: Floats
    """(V, Q, 3) place of each query in its own volume, share of the extent."""
    predicted: Floats
    """(V, V, Q, 3) place found for the queries of the first volume in the second."""
    galleries: tuple[Floats, ...]
    """V arrays (P, 3), the places of each gallery."""

    @property
    def compared(self) -> NDArray[np.bool_]:
        """(V, V) pairs of different patients."""
        patients = np.asarray(self.patients)
        return np.asarray(patients[:, None] != patients[None, :])

    @property
    def pairs(self) -> int:
        """Ordered pairs of volumes that were compared."""
        return int(self.compared.sum())

    def figures(self, weights: Floats) -> dict[str, Floats]:
        """``error_mm`` and R^2 along the axes and on average, for (R, V) counts of the cases.

        R^2 is 1 - sum of squared errors / sum of squares about the mean of the true places. It is
        not a number along an axis on which the places that count hardly vary; its mean is over
        the others, for each r.
        """
        truth = self.truth * self.extent
        off = (self.predicted - self.truth[:, None]) * self.extent
        queries = truth.shape[1]
        one = np.ones((len(self.cases), len(self.cases), 1))
        table = np.concatenate(
            [
                queries * one,
                np.linalg.norm(off, axis=-1).sum(axis=2)[..., None],
                (off**2).sum(axis=2),
                one * truth.sum(axis=1)[:, None],
                one * (truth**2).sum(axis=1)[:, None],
            ],
            axis=-1,
        )
        table[~self.compared] = 0
        sums = np.einsum("ra,ram->rm", weights, np.einsum("rb,abm->ram", weights, table))
        count, error, rest = sums[:, :1], sums[:, 1], sums[:, 2:]
        residual, total, squares = rest[:, :3], rest[:, 3:6], rest[:, 6:]
        spread = squares - total**2 / count
        missed = np.full(spread.shape, np.nan)
        np.divide(residual, spread, out=missed, where=spread > _VARIED * squares)
        r2 = 1 - missed
        each = {f"r2_{axis}": r2[:, k] for k, axis in enumerate(AXES)}
        return {"error_mm": error / count[:, 0], "r2": mean_of_known(r2), **each}

    def references(self) -> dict[str, float]:
        """Mean errors in mm that need no features, to read the others by.

        ``best_mm``: the gallery's place nearest to the truth; ``centre_mm``: always the middle
        of the volume; ``chance_mm``: a random place of the gallery.
        """
        best, chance, centre = [], [], []
        for a, b in np.argwhere(self.compared):
            off = (self.galleries[b][None] - self.truth[a][:, None]) * self.extent
            distance = np.linalg.norm(off, axis=-1)
            best.append(distance.min(axis=1).mean())
            chance.append(distance.mean())
            centre.append(np.linalg.norm((0.5 - self.truth[a]) * self.extent, axis=-1).mean())
        named = {"best_mm": best, "centre_mm": centre, "chance_mm": chance}
        return {name: float(np.mean(values)) for name, values in named.items()}


def position_retrieval(
    embed: Embed,
    volumes: Sequence[ProbeVolume],
    crops: CropConfig,
    settings: PositionSettings = PositionSettings(),
    *,
    on_volume: Callable[[], None] | None = None,
) -> PositionResult:
    """Look for the places of each volume's queries in every volume of another patient.

    Queries depend on the settings' seed and the position of the volume alone, so features that
    are compared see the same crops.

    Args:
        embed: (N, 1, x, y, z) crops to (N, D) features.
        volumes: two patients at least; each is asked for once.
        crops: the size of crops.
        settings: queries, gallery and augmentation.
        on_volume: called after each volume.

    Raises:
        ConfigError: queries are to be turned and crops are not as long in x as in y.
        TrainingError: there are fewer than two patients.
    """
    if settings.rotate > 0 and crops.size[0] != crops.size[1]:
        raise ConfigError(f"crops of {crops.size} cannot be turned in the x-y plane; set rotate 0")
    names, patients, extents, truths, galleries = [], [], [], [], []
    query_features, gallery_features = [], []
    for number, volume in enumerate(volumes):
        grid = np.array(volume.image.shape)
        queries = draw_queries(volume, crops, settings, number)
        places = plain_places(gallery_starts(volume.image.shape, crops, settings))
        query_features.append(embedded(embed, volume, queries, crops))
        gallery_features.append(embedded(embed, volume, places, crops))
        truths.append(relative_places(queries.starts.numpy(), crops, grid))
        galleries.append(relative_places(places.starts.numpy(), crops, grid))
        names.append(volume.name)
        patients.append(volume.patient)
        extents.append(volume.extent)
        if on_volume is not None:
            on_volume()
    check_patients(patients)
    predicted = _predict(query_features, gallery_features, galleries, settings)
    return PositionResult(
        tuple(names),
        tuple(patients),
        np.mean(extents, axis=0),
        np.stack(truths),
        predicted,
        tuple(galleries),
    )


def relative_places(
    starts: NDArray[np.int64], crops: CropConfig, grid: NDArray[np.int64]
) -> Floats:
    """(C, 3) centres of crops as shares of the volume, from (C, 3) first voxels."""
    return np.asarray((starts + np.array(crops.size) / 2) / grid, dtype=np.float64)


def gallery_starts(
    grid: Sequence[int], crops: CropConfig, settings: PositionSettings
) -> NDArray[np.int64]:
    """(P, 3) first voxels of a regular grid of crops that reaches both ends of each axis."""
    free = [n - edge for n, edge in zip(grid, crops.size, strict=True)]
    step = settings.stride
    while True:
        counts = [
            1 + int(np.ceil(room / max(1.0, step * edge))) if room else 1
            for room, edge in zip(free, crops.size, strict=True)
        ]
        if np.prod(counts) <= settings.gallery or max(counts) <= 2:
            break
        step *= 1.1
    lines = [np.linspace(0, room, n).round() for room, n in zip(free, counts, strict=True)]
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)


def draw_queries(
    volume: ProbeVolume, crops: CropConfig, settings: PositionSettings, number: int
) -> Places:
    """Random crops of a volume, each augmented on its own."""
    generator = np.random.default_rng([settings.seed, number])
    count = settings.queries
    free = np.array(volume.image.shape) - np.array(crops.size)
    turned = generator.random(count) < settings.rotate
    return Places(
        torch.from_numpy(generator.integers(0, free + 1, (count, 3))),
        torch.from_numpy(generator.random((count, 3)) < settings.flip),
        torch.from_numpy(np.where(turned, generator.integers(1, 4, count), 0)),
        torch.from_numpy(generator.uniform(-1, 1, count).astype(np.float32)) * settings.shift,
    )


def embedded(embed: Embed, volume: ProbeVolume, places: Places, crops: CropConfig) -> torch.Tensor:
    """(C, D) float64 features."""
    most = crops_a_pass(crops)
    parts = [
        embed(cut(volume.image, places[i : i + most], crops)) for i in range(0, len(places), most)
    ]
    return torch.cat(parts).double()


def standardised(features: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Features (C, D) less their mean (D,), in units of ``scale`` (D,) where that is not 0."""
    return (features - mean) / torch.where(scale > 0, scale, torch.ones_like(scale))


def _predict(
    queries: list[torch.Tensor],
    galleries: list[torch.Tensor],
    places: list[Floats],
    settings: PositionSettings,
) -> Floats:
    """(V, V, Q, 3) mean place of the best matches."""
    if settings.standardise:
        seen = torch.cat(galleries)
        mean, scale = seen.mean(dim=0), seen.std(dim=0, unbiased=False)
        queries, galleries = (
            [standardised(one, mean, scale) for one in many] for many in (queries, galleries)
        )
    queries, galleries = (
        [torch.nn.functional.normalize(one, dim=1) for one in many] for many in (queries, galleries)
    )
    generator = torch.Generator().manual_seed(settings.seed)
    count = len(queries)
    found = np.empty((count, count, len(queries[0]), 3))
    for b, (gallery, where) in enumerate(zip(galleries, places, strict=True)):
        kept = min(settings.neighbours, len(gallery))
        for a, query in enumerate(queries):
            cosine = query @ gallery.T
            cosine += _TIES * torch.rand(cosine.shape, generator=generator, dtype=torch.float64)
            best = cosine.topk(kept, dim=1).indices.numpy()
            found[a, b] = where[best].mean(axis=1)
    return found
