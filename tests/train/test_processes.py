"""Reading processes over time: what they hold, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from prect.train.data import open_data
from prect.train.loader import train_loader
from prect.workspace import Workspace

MakeConfig = Any
SHARED = Path("/dev/shm")
MIB = 2**20

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="shared memory is looked for there")


def workers() -> set[psutil.Process]:
    """The reading processes of this process, whoever started them."""
    children = psutil.Process().children(recursive=True)
    return {process for process in children if process.name() == "pt_data_worker"}


def shared_files(family: Iterable[psutil.Process]) -> set[Path]:
    """Files in shared memory, with a name, that some processes have mapped.

    Other tests run at the same time, so what else lies there tells nothing.
    """
    mapped = {mapping.path for process in family for mapping in process.memory_maps()}
    return {Path(path) for path in mapped if path.startswith(f"{SHARED}/") and Path(path).exists()}


def held(others: set[psutil.Process]) -> tuple[int, dict[int, int], int]:
    """Unique memory, bytes, and open files of this process and its new workers; shared files."""
    family = [psutil.Process(), *(workers() - others)]
    memory = sum(process.memory_full_info().uss for process in family)
    return memory, {p.pid: p.num_fds() for p in family}, len(shared_files(family))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more than cores
@pytest.mark.parametrize("recycle", [pytest.param(False, marks=pytest.mark.slow), True])
def test_2000_batches_leave_neither_memory_nor_files_behind(
    stores: Workspace, make_config: MakeConfig, recycle: bool
) -> None:
    batches = 2000
    config = make_config(data={"workers": 4, "batch_size": 4, "open_stores": 4})
    views = open_data(stores, config).views(config)
    others = workers()  # of tests before this one, which are on their way out
    seen: dict[int, tuple[int, dict[int, int], int]] = {}
    loader = train_loader(views, config, range(batches), recycle=recycle)
    for step, batch in enumerate(loader, start=1):
        assert len(batch) == 4
        if step in (batches // 4, batches - 40):  # while the workers are still at work
            seen[step] = held(others)
    (memory, files, shared), (memory_then, files_then, shared_then) = seen.values()
    assert len(files) == 5
    assert files.keys() == files_then.keys()
    # A batch on its way is two files, of which a queue may hold more or less at a time.
    assert sum(files_then.values()) - sum(files.values()) <= 4 * 8 * 2
    assert memory_then - memory < 16 * MIB
    assert abs(shared_then - shared) < 8


LOADS_FOR_EVER = """
import sys
from prect.train.config import load_config
from prect.train.data import open_data
from prect.train.loader import train_loader
from prect.workspace import Workspace

if __name__ == "__main__":
    settings = ["data.datasets=['toy']", "data.workers=2", "data.batch_size=2"]
    config = load_config("tiny", overrides=[*settings, "data.heldout_minimum=2"])
    views = open_data(Workspace(sys.argv[1]), config).views(config)
    for step, batch in enumerate(train_loader(views, config, range(10**9))):
        if step == 20:
            print("reading", flush=True)
"""


@pytest.mark.parametrize("whom", ["process", "group"])
def test_ctrl_c_leaves_no_process_and_no_shared_memory(
    stores: Workspace, tmp_path: Path, whom: str
) -> None:
    """The group is what a terminal interrupts; a scheduler interrupts the process."""
    script = tmp_path / "loads.py"
    script.write_text(LOADS_FOR_EVER)
    with subprocess.Popen(
        [sys.executable, str(script), str(stores.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        family = psutil.Process(process.pid).children(recursive=True)
        assert sum(p.name() == "pt_data_worker" for p in family) == 2
        shared = shared_files([psutil.Process(process.pid), *family])
        assert shared  # locks of the queues at least
        if whom == "group":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (-signal.SIGINT, 1)
    alive = psutil.wait_procs(family, timeout=20)[1]
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    deadline = time.monotonic() + 5
    while (left := {path for path in shared if path.exists()}) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
