"""Starting a run: in this process, in several on this machine or on many, or as torchrun placed us.

Processes are started by torch's elastic launcher and talk through gloo on CPUs and NCCL on
GPUs. When one of them dies, all are started again and go on from the newest checkpoint. Under
``torchrun`` the environment already says which rank this process is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import uuid
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from prect.errors import (
    CheckpointError,
    ConfigError,
    HopelessError,
    ManifestError,
    StoreError,
    TrainingError,
)
from prect.train.callbacks import Callback
from prect.train.config import TrainConfig
from prect.train.data import open_data
from prect.train.guards.stopping import STOP_SIGNALS, StopRequest
from prect.train.guards.watchdog import Watchdog
from prect.train.loader import start_server
from prect.train.parallel import Place, backend_of
from prect.train.prefetch import plan_prefetch
from prect.train.report.sinks import check_sinks
from prect.train.report.summary import summary_of_stop
from prect.train.run_folder import RunFolder
from prect.train.state.checkpoint import list_checkpoints
from prect.train.state.resume import origin_of, starting_point
from prect.train.trainer import Trainer
from prect.train.weights import check_start
from prect.workspace import Workspace

_GRACE = 2.0
"""Times ``train.timeout_s`` after which a collective gives up by itself: the watchdog is first,
and says more."""
_STOP, _HOPELESS = "stop", "hopeless"
_SWITCH = "signals_to_handle"
"""Newer launchers let one say which signals end them; older ones end of any, and after half a
minute."""


@dataclass(frozen=True)
class Launch:
    """Which processes a run has, and how it begins."""

    gpus: int = 0
    """On this machine, one process each; 0 trains on the CPU."""
    procs: int = 1
    """Processes on this machine's CPU; ignored when GPUs are used."""
    nodes: int = 1
    """Machines that take part, each with as many processes."""
    rendezvous: str = "localhost:0"
    """``host:port`` of the first machine, where they meet; its own choice when it is alone."""
    max_restarts: int = 0
    """Times that all processes are started again because one has died."""
    resume: str = "auto"
    """See :func:`prect.train.state.resume.starting_point`."""
    allow_changed: bool = False
    """Go on although data or settings are others than they were."""
    profile: tuple[int, int] | None = None
    """First and last step to write a profile of."""

    @property
    def local_world(self) -> int:
        """Processes on this machine."""
        return self.gpus or self.procs

    @property
    def world(self) -> int:
        """Processes of the run."""
        return self.local_world * self.nodes


@dataclass(frozen=True)
class Order:
    """All that a process needs to take part in a run; picklable."""

    config: TrainConfig
    workspace: Path
    callback: Callback
    how: Launch
    notes: Path | None = None
    """Folder for what must be known should the processes be started again: `_STOP` is there once a
    signal has asked to stop, `_HOPELESS` says what it would be in vain for."""


def launch(
    config: TrainConfig, workspace: Path, callback: Callback, how: Launch | None = None
) -> dict[str, Any]:
    """Run a training to its end, or to a signal, and return what its trainer says.

    Args:
        config: the settings.
        workspace: root of the workspace.
        callback: told what happens, in the process of rank 0.
        how: processes, and how they begin; one on the CPU when left out.

    Raises:
        TrainingError: more GPUs are asked for than there are, or a process failed for good.
        PrectError: the configuration, the data or the checkpoint cannot be used.
        KeyboardInterrupt: a second SIGINT came, or one before the processes could save.
    """
    how = how or Launch()
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if how.gpus > present:
        raise TrainingError(
            f"{how.gpus} GPUs are asked for, this machine has {present}; use --gpus {present}"
            + ("" if present else ", which trains on the CPU")
        )
    if how.nodes > 1 and how.rendezvous == "localhost:0":
        raise ConfigError(
            "several machines must meet somewhere: give --rendezvous HOST:PORT of the first one"
        )
    order = Order(config, workspace, callback, how)
    if "RANK" in os.environ:
        return _plainly(take_part(order))
    if how.world == 1:
        return _train(order, Place(_device(order, 0)), None)
    _check(order)
    return _plainly(_start_processes(order))


def take_part(order: Order) -> dict[str, Any]:
    """One rank's part; the environment holds RANK, LOCAL_RANK, WORLD_SIZE and the meeting point.

    What all ranks agree cannot be helped is returned, not raised: it is no reason to start them
    again.
    """
    if order.notes is not None and (order.notes / _STOP).exists():
        return _stopped(order, signal.SIGTERM)
    if order.notes is not None and (order.notes / _HOPELESS).exists():
        return {"hopeless": (order.notes / _HOPELESS).read_text("utf-8")}
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = int(os.environ["LOCAL_RANK"])
    place, config = Place(_device(order, local), rank, world), order.config
    if place.on_gpu:
        torch.cuda.set_device(place.device)
    elif not config.train.threads:
        # Every process taking all cores would make each of them wait for the others.
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    limit = timedelta(seconds=_GRACE * config.train.timeout_s)
    dist.init_process_group(
        backend_of(place),
        store=meeting_store("processes", rank, limit),
        rank=rank,
        world_size=world,
        timeout=limit,
    )
    try:
        watchdog = None
        if world > 1:
            # A connection of its own: the main thread may hold the other one.
            board = meeting_store("watch", rank, limit)
            watchdog = Watchdog(board, rank, world, config.train.timeout_s)
        return _train(order, place, watchdog)
    except HopelessError as error:
        return {"hopeless": str(error)}
    except (ConfigError, StoreError, ManifestError, CheckpointError) as error:
        if order.notes is not None:
            text = "\n  ".join([f"rank {rank} failed: {error}", *getattr(error, "__notes__", ())])
            (order.notes / _HOPELESS).write_text(text, "utf-8")
        raise
    finally:
        dist.destroy_process_group()


def meeting_store(purpose: str, rank: int, timeout: timedelta) -> Any:
    """A connection to the store at which the processes of a run meet.

    Processes that were started again find the same store, and with it the addresses of those that
    are gone; so every attempt has names of its own.

    Args:
        purpose: keeps what different users write apart.
        rank: of this process; 0 holds the store where no launcher does.
        timeout: for every word of it.
    """
    launched = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not launched and purpose == "processes",
        timeout=timeout,
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"prect/{purpose}/{attempt}", store)  # type: ignore[attr-defined]


def _train(order: Order, place: Place, watchdog: Watchdog | None) -> dict[str, Any]:
    if order.config.data.workers:
        start_server()
    data, how = open_data(Workspace(order.workspace), order.config), order.how
    resume = how.resume
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        resume = _after_restart(order)
    trainer = Trainer(
        order.config,
        data,
        place,
        order.callback,
        resume=resume,
        allow_changed=how.allow_changed,
        profile=how.profile,
        watchdog=watchdog,
    )
    return trainer.run()


def _after_restart(order: Order) -> str:
    """Processes that are started again go on from what this run has written, if anything."""
    own = RunFolder(Workspace(order.workspace).run(order.config.run.name))
    return (
        "auto"
        if order.how.resume == "never" or list_checkpoints(own.checkpoints)
        else order.how.resume
    )


def _plainly(answer: dict[str, Any]) -> dict[str, Any]:
    if "hopeless" in answer:
        raise HopelessError(answer["hopeless"])
    return answer


def _check(order: Order) -> None:
    """Find in this process what would else end as a traceback from another one."""
    workspace, config, how = Workspace(order.workspace), order.config, order.how
    check_sinks(config)
    data = open_data(workspace, config)
    plan_prefetch(config, data.geometry, data.names, pin_memory=how.gpus > 0)
    start = starting_point(
        RunFolder(workspace.run(config.run.name)),
        how.resume,
        config,
        origin_of(data, config, how.world),
        allow_changed=how.allow_changed,
        verify=False,
    )
    if start.checkpoint is None:
        check_start(config.network)


def _start_processes(order: Order) -> dict[str, Any]:
    how = order.how
    options: dict[str, Any] = {}
    if _SWITCH in LaunchConfig.__dataclass_fields__:
        options[_SWITCH] = "SIGHUP,SIGQUIT"
    settings = LaunchConfig(
        min_nodes=how.nodes,
        max_nodes=how.nodes,
        nproc_per_node=how.local_world,
        run_id=order.config.run.name if how.nodes > 1 else uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=how.rendezvous,
        max_restarts=how.max_restarts,
        **options,
    )
    with TemporaryDirectory(prefix="prect-") as folder:
        notes = Path(folder)
        with _Relay(notes / _STOP) as relay:
            try:
                start = elastic_launch(settings, take_part)
                results: dict[int, dict[str, Any]] = start(replace(order, notes=notes))
            except SignalException as error:  # older launchers do not leave signals to us
                return _stopped(order, error.sigval)
            except ChildFailedError as error:
                if relay.signal is not None:
                    return _stopped(order, relay.signal)
                if (notes / _HOPELESS).exists():
                    raise HopelessError((notes / _HOPELESS).read_text("utf-8")) from error
                raise TrainingError(_failure(error, how)) from error
    return results[min(results)]


def _failure(error: ChildFailedError, how: Launch) -> str:
    rank, failure = error.get_first_failure()
    message: Any = failure.message
    text = message["message"] if isinstance(message, dict) else message
    again = f" (after {how.max_restarts} restarts)" if how.max_restarts else ""
    return f"rank {rank} failed{again}: {text}"


class _Relay:
    """Passes signals on to the processes of a run and lets them end by themselves.

    The launcher would take a signal for the end of the run, and give them no time to return.
    """

    def __init__(self, flag: Path) -> None:
        self.signal: signal.Signals | None = None
        """The first that came."""
        self._flag = flag
        self._request = StopRequest()

    def __enter__(self) -> _Relay:
        self._before = {number: signal.signal(number, self._pass_on) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        # One that has not yet come to listen dies of it, and is not to be started again.
        self._flag.touch()
        for process in multiprocessing.active_children():
            if process.pid is not None:
                os.kill(process.pid, number)
        self._request.note(number)
        self.signal = self._request.signal


def _stopped(order: Order, number: signal.Signals) -> dict[str, Any]:
    """What is known here of processes that were sent a signal and are gone.

    Raises:
        KeyboardInterrupt: they were interrupted and have not said that they stopped.
    """
    folder = RunFolder(Workspace(order.workspace).run(order.config.run.name))
    state = folder.journal(order.config.optim.max_steps).read()
    if state.get("state") != "stopped" and number == signal.SIGINT:
        raise KeyboardInterrupt
    error = None
    if state.get("state") != "stopped":
        saved = list_checkpoints(folder.checkpoints)
        newest = saved[-1].name if saved else "none"
        error = f"the processes did not end in time; the newest checkpoint is {newest}"
    return summary_of_stop(folder.path, order.config, state.get("step", 0), number.name, error)


def _device(order: Order, local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if order.how.gpus else torch.device("cpu")
