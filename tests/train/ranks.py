"""Processes that compute together, as the ranks of a run do, and small things to compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional

from prect.train.batch import CropBatch
from prect.train.config import TrainConfig, parse_config
from prect.train.parallel import Place

Work = Callable[..., Any]
CPU = torch.device("cpu")


def together(work: Work, folder: Path, *arguments: Any, world: int = 2) -> list[Any]:
    """What ``work(place, *arguments)`` gives on each rank of a gloo group; a warning is an error.

    Args:
        work: a function of a module, which every process imports.
        folder: empty; its own for each call.
        arguments: picklable.
        world: processes.
    """
    options = (work, world, str(folder), arguments)
    # Forked from a server that has imported what takes seconds.
    start_processes(_take_part, options, nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _take_part(rank: int, work: Work, world: int, folder: str, arguments: Any) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    address = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    result = work(Place(CPU, rank, world), *arguments)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def segresnet(
    parallel: str = "ddp",
    *,
    objective: Any = None,
    train: Any = None,
    size: int = 16,
    **network: Any,
) -> TrainConfig:
    """Settings of a small network on cubes of ``size`` voxels a side: milliseconds a step."""
    return parse_config(
        {
            "run": {"name": "toy"},
            "view": {"grid": [2 * size, 2 * size, size]},
            "crops": {"base_grid": [2, 2, 1], "size": [size] * 3, "random": 2},
            "network": {"name": "segresnet", "feature_size": 8, "blocks": [1, 1], **network},
            "objective": {"projector_width": 7, **(objective or {})},
            "train": {"parallel": parallel, **(train or {})},
        }
    )


def swin_unetr(parallel: str = "ddp", **network: Any) -> TrainConfig:
    """Settings of the smallest SwinUNETR on the smallest crops, which takes seconds a crop."""
    return parse_config(
        {
            "run": {"name": "toy"},
            "view": {"grid": [128, 32, 32]},
            "crops": {"base_grid": [2, 1, 1], "size": [64, 32, 32], "random": 1},
            "augment": {"rotate": 0.0},
            "network": {"feature_size": 12, **network},
            "objective": {"projector_width": 7},
            "train": {"parallel": parallel},
        }
    )


def global_batch(config: TrainConfig, step: int, volumes: int = 4) -> CropBatch:
    """Crops that differ in shape and in brightness; of alike ones a batch norm shows rounding."""
    crops = config.crops
    generator = torch.Generator().manual_seed(step)
    coarse = torch.rand(volumes * crops.per_volume, 1, 3, 3, 3, generator=generator)
    coarse += 4 * torch.rand(len(coarse), 1, 1, 1, 1, generator=generator)
    labels = torch.rand(volumes, crops.random, crops.bases, generator=generator)
    labels[labels < 0.5] = 0
    labels[..., 0] += 0.1
    shown = functional.interpolate(coarse, size=list(crops.shown), mode="trilinear")
    return CropBatch(shown, labels / labels.sum(-1, keepdim=True))


def share_of(batch: CropBatch, place: Place) -> CropBatch:
    """The volumes of one rank."""
    crops, labels = (each.chunk(place.world)[place.rank] for each in (batch.crops, batch.labels))
    return CropBatch(crops, labels)
