"""Starting a run: in this process, in several on this machine, or as torchrun placed us.

Processes are started by torch's elastic launcher and talk through gloo on CPUs and NCCL on
GPUs. Under ``torchrun`` the environment already says which rank this process is.
"""

from __future__ import annotations

import os
import signal
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from prect.errors import TrainingError
from prect.train.callbacks import Callback
from prect.train.config import TrainConfig
from prect.train.data import open_data
from prect.train.loader import start_server
from prect.train.prefetch import plan_prefetch
from prect.train.run_folder import RunFolder, starting_point
from prect.train.trainer import Place, Trainer
from prect.train.weights import check_start
from prect.workspace import Workspace


@dataclass(frozen=True)
class Order:
    """All that a process needs to take part in a run; picklable."""

    config: TrainConfig
    workspace: Path
    resume: str
    on_gpu: bool
    callback: Callback


def launch(
    config: TrainConfig,
    workspace: Path,
    callback: Callback,
    *,
    gpus: int = 0,
    procs: int = 1,
    resume: str = "auto",
) -> dict[str, Any]:
    """Run a training to its end and return its summary.

    Args:
        config: the settings.
        workspace: root of the workspace.
        callback: told what happens, in the process of rank 0.
        gpus: GPUs to use, one process each; 0 trains on the CPU.
        procs: processes on the CPU; ignored when GPUs are used.
        resume: see :func:`prect.train.run_folder.starting_point`.

    Raises:
        TrainingError: more GPUs are asked for than there are, or a process failed.
        PrectError: the configuration, the data or the checkpoint cannot be used.
    """
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus > present:
        raise TrainingError(
            f"{gpus} GPUs are asked for, this machine has {present}; use --gpus {present}"
            + ("" if present else ", which trains on the CPU")
        )
    order = Order(config, workspace, resume, gpus > 0, callback)
    if "RANK" in os.environ:
        return take_part(order)
    world = gpus or procs
    if world == 1:
        return _train(order, Place(_device(order, 0)))
    _check(order, world)
    return _start_processes(order, world)


def take_part(order: Order) -> dict[str, Any]:
    """One rank's part; the environment holds RANK, LOCAL_RANK, WORLD_SIZE and the meeting point."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = _device(order, int(os.environ["LOCAL_RANK"]))
    if order.on_gpu:
        torch.cuda.set_device(device)
    elif not order.config.train.threads:
        # Every process taking all cores would make each of them wait for the others.
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    dist.init_process_group("nccl" if order.on_gpu else "gloo", rank=rank, world_size=world)
    try:
        return _train(order, Place(device, rank, world))
    finally:
        dist.destroy_process_group()


def _train(order: Order, place: Place) -> dict[str, Any]:
    if order.config.data.workers:
        start_server()
    data = open_data(Workspace(order.workspace), order.config)
    return Trainer(order.config, data, place, order.callback, resume=order.resume).run()


def _check(order: Order, world: int) -> None:
    """Find in this process what would else end as a traceback from another one."""
    workspace = Workspace(order.workspace)
    data = open_data(workspace, order.config)
    plan_prefetch(order.config, data.geometry, data.names, pin_memory=order.on_gpu)
    start = starting_point(
        RunFolder(workspace.run(order.config.run.name)),
        order.resume,
        order.config,
        data.table.digest,
        order.config.data.batch_size * world,
    )
    if start is None:
        check_start(order.config.network)


def _start_processes(order: Order, world: int) -> dict[str, Any]:
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        results: dict[int, dict[str, Any]] = elastic_launch(settings, take_part)(order)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise TrainingError(f"stopped by signal {error.sigval.name}") from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message: Any = failure.message
        text = message["message"] if isinstance(message, dict) else message
        raise TrainingError(f"rank {rank} failed: {text}") from error
    return results[0]


def _device(order: Order, local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if order.on_gpu else torch.device("cpu")
