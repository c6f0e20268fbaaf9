"""Stored volumes as a plain torch data set, for training loops other than prect's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from prect.manifests.splits import HELDOUT_SHARE
from prect.manifests.stores import load_cache_table
from prect.train.batch import resize as resized
from prect.train.collate import BatchMemory
from prect.train.config import TrainConfig, ViewConfig, parse_config
from prect.train.damage import Quarantine
from prect.train.data import TrainingData, check_stores, check_windows, split_data
from prect.train.dataset import ViewDataset
from prect.train.recipes import recipe
from prect.train.sampling import Sample
from prect.workspace import Workspace

Transform = Callable[[dict[str, Any]], Any]


class VolumeDataset(Dataset[Any]):
    """A map-style data set: position 0 to ``len`` - 1 of an epoch, shuffled already.

    Stores are opened by each process for itself, so it works in loaders that fork, and with
    ``forkserver`` and ``spawn``; it can be pickled at any time.
    """

    def __init__(
        self, views: ViewDataset, *, hu: bool, resize: bool, transform: Transform | None
    ) -> None:
        """Wrap a stream of samples; use `open_dataset`."""
        self._views, self._hu, self._resize, self._transform = views, hu, resize, transform
        self._quarantine = Quarantine(views.allowed_damage)
        # Shared, so that workers which outlive an epoch see the next one begin.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        """Samples an epoch."""
        return len(self._views)

    def set_epoch(self, epoch: int) -> None:
        """Show the samples of an epoch, counted from 0; call it before each pass."""
        if epoch < 0:
            raise ValueError(f"epochs are counted from 0, not {epoch}")
        self._epoch.fill_(epoch)

    def __getitem__(self, position: int) -> Any:
        """The sample at a position of the epoch, as `open_dataset` says, or what ``transform``
        makes of it.

        Raises:
            IndexError: there are not so many samples in an epoch.
            StoreError: a store is missing or damaged.
            TrainingError: more stores are damaged than ``max_damaged`` allows.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"sample {position} of an epoch of {len(self)}")
        index = int(self._epoch) * len(self) + position
        (sample,), voxels, damages = self._views.read_samples([index], BatchMemory())
        for damage in damages:
            warnings.warn(
                f"sample {damage.index} was replaced by {damage.replaced_by}: {damage.dataset}, "
                f"case {damage.case}, {damage.reason}",
                stacklevel=2,
            )
        self._quarantine.record(index, damages)
        item = self._item(sample, voxels.view(sample.region.shape))
        return item if self._transform is None else self._transform(item)

    def _item(self, sample: Sample, region: torch.Tensor) -> dict[str, Any]:
        names = self._views.names
        grid = sample.view.grid if self._resize else sample.region.shape[::-1]
        return {
            "image": self._image(sample, region, grid),
            "dataset": names.dataset(sample.row),
            "case": names.case(sample.row),
            "index": sample.index,
            "affine": torch.from_numpy(
                self._views.open(sample.row).affine @ grid_to_level0(sample, grid)
            ),
        }

    def _image(
        self, sample: Sample, region: torch.Tensor, grid: tuple[int, int, int]
    ) -> torch.Tensor:
        """(1, x, y, z) int16 HU, or float32 in the window."""
        shape = grid[::-1]
        if self._hu and tuple(region.shape) == shape:
            image = region
        else:
            image = region.float()
            if not self._hu:
                low, high = sample.window
                image = image.sub_(low).div_(high - low).clamp_(0, 1)
            image = resized(image[None, None], shape)[0, 0]
            if self._hu:
                image = image.round_().to(torch.int16)
        return image.permute(2, 1, 0)[None].contiguous()


def grid_to_level0(sample: Sample, grid: tuple[int, int, int]) -> NDArray[np.float64]:
    """(4, 4) index on a grid (x, y, z) over a sample's region to the index on level 0.

    Voxel centres of level ``l`` lie at ``(i + 0.5) * 2**l - 0.5`` of level 0.
    """
    region = sample.region
    step = np.array(region.shape[::-1]) / np.array(grid)
    factor = 2.0**region.level
    matrix = np.diag([*(step * factor), 1.0])
    matrix[:3, 3] = (0.5 * step + np.array(region.start[::-1])) * factor - 0.5
    return matrix


def open_dataset(
    workspace: str | Path | Workspace,
    datasets: str | Sequence[str],
    view: str | ViewConfig = "patch",
    *,
    seed: int = 0,
    split: Literal["train", "heldout", "all"] = "train",
    weights: Mapping[str, float] | None = None,
    transform: Transform | None = None,
    hu: bool = True,
    resize: bool = True,
    on_damage: Literal["raise", "quarantine"] = "raise",
    max_damaged: float = 0.01,
    heldout_share: float = HELDOUT_SHARE,
    open_stores: int = 64,
) -> VolumeDataset:
    """Open stored volumes as a torch data set.

    An item is a dict:

    - ``image``: (1, x, y, z) tensor, the axes in RAS+ as MONAI's readers give them; int16 HU, or
      float32 in [0, 1] of the view's window;
    - ``affine``: (4, 4) float64, index of the image (x, y, z) to RAS millimetres;
    - ``dataset``, ``case``: what is shown;
    - ``index``: position in the endless stream, ``epoch * len + position``; that of another
      sample where that one could not be read.

    Order and places of boxes depend on the manifests, the view, ``seed`` and the index alone. An
    epoch is in random order already: leave ``shuffle`` of the loader at False.

    Args:
        workspace: the workspace, or its folder.
        datasets: names of data sets in it.
        view: name of a recipe, such as ``patch`` or ``v2-abdomen``, or settings of your own.
        seed: of order and places.
        split: volumes of the patients to train on, of those held out, or of all.
        weights: passes an epoch makes over the volumes of a data set; 1 where none is given.
        transform: called with the item; MONAI's dictionary transforms can be.
        hu: give HU as stored; else the view's window, mapped to 0 and 1.
        resize: bring the region that was read to the view's grid; else items differ in size.
        on_damage: stop at a store that cannot be read, or warn and show the next sample.
        max_damaged: share of the volumes that may be replaced so in one process; one volume at
            least, unless it is 0.
        heldout_share: share of patients that are held out.
        open_stores: stores that each process keeps open.

    Raises:
        ConfigError: there is no such recipe, or a setting is out of range.
        ManifestError: a data set has no stores.
        StoreError: a store is not the one that the manifest tells of; or it is missing or
            damaged, and ``on_damage`` is ``raise``.
        TrainingError: too few patients to hold one out.
    """
    place = workspace if isinstance(workspace, Workspace) else Workspace(workspace)
    names = (datasets,) if isinstance(datasets, str) else tuple(datasets)
    shown = recipe(view).view if isinstance(view, str) else view
    data = {
        "datasets": names,
        "weights": dict(weights or {}),
        "heldout_share": heldout_share,
        "on_damage": on_damage,
        "max_damaged": max_damaged,
        "open_stores": open_stores,
    }
    config = _stream_config(shown, seed, data)
    table = load_cache_table(place, names)
    check_stores(place, table, on_damage)
    if not hu:
        check_windows(table, config)
    if split == "all":
        opened = TrainingData(place, table, {"train": np.arange(len(table))})
    else:
        opened = split_data(place, table, config)
    views = opened.views(config, "heldout" if split == "heldout" else "train")
    return VolumeDataset(views, hu=hu, resize=resize, transform=transform)


def _stream_config(view: ViewConfig, seed: int, data: Mapping[str, Any]) -> TrainConfig:
    """Settings of a stream of views; its crops are drawn and not looked at."""
    x, y, z = view.grid
    return parse_config(
        {
            "run": {"name": "open-dataset", "seed": seed},
            "data": data,
            "view": view.model_dump(),
            "crops": {"base_grid": (2, 1, 1), "size": (max(1, x // 2), y, z), "random": 1},
            "augment": {"flip": 0, "rotate": 0, "shift": 0},
            "network": {"name": "segresnet", "feature_size": 8, "blocks": (1,)},
        }
    )
