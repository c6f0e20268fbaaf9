"""The memory that a build takes, measured, and the limits of a machine."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from prect.cache import memory
from prect.cache.forecast.trial import Trial, trial_folder, try_out
from prect.cache.memory import available_cores, available_memory, machine_memory, memory_needed
from prect.cache.plan import make_plan
from prect.cache.profile import load_profile
from prect.ingest.survey import survey
from prect.manifests.stores import CacheRow
from prect.phantom import make_case
from prect.phantom.write import write_case
from prect.workspace import Workspace
from tests.conftest import SALT


def test_memory_stays_within_the_bound_for_a_clinical_volume(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_case(make_case(3, 1, "clinical"), tmp_path / "source" / "case", "mha")
    workspace = Workspace(tmp_path / "workspace")
    (row,) = survey("a", tmp_path / "source", workspace, salt=SALT).rows
    plan = make_plan("a", workspace, load_profile("iso1.5"))
    (job,) = plan.jobs()
    context = multiprocessing.get_context("spawn")
    with trial_folder(workspace.cache) as folder, ProcessPoolExecutor(1, context) as pool:
        measured = pool.submit(try_out, Trial(job, folder)).result()
    assert isinstance(measured.outcome, CacheRow)
    decoded = 2 * int(np.prod(row.shape))
    assert decoded > 50e6
    # It holds the decoded volume at least, so the measure is one.
    assert measured.base_bytes + decoded < measured.peak_bytes <= memory_needed(row.shape)
    assert measured.base_bytes < memory.BASE_BYTES


def test_the_bound_and_the_workers_that_it_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (512, 512, 1200)
    assert memory_needed(shape) == memory.BASE_BYTES + 4 * 2 * 512 * 512 * 1200
    assert memory_needed((10, 10, 10), (512, 512, 1200)) == memory_needed(shape)
    for free, cores, workers in [
        (16e9, 64, 5),
        (16e9, 3, 3),
        (1e9, 8, 1),
    ]:
        monkeypatch.setattr(memory, "available_memory", lambda free=free: int(free))
        monkeypatch.setattr(memory, "available_cores", lambda cores=cores: cores)
        assert memory.default_workers([(64, 64, 64), shape, (1, 2, 3)]) == workers
    assert memory.default_workers([]) >= 1


def write_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_limits_of_control_groups_count(tmp_path: Path) -> None:
    own = len(os.sched_getaffinity(0))
    assert 1 <= available_cores() <= own
    assert 0 < available_memory() <= machine_memory()
    assert available_cores(tmp_path) == own  # a system without control groups
    version2 = write_files(
        tmp_path / "v2",
        {
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
            "sys/fs/cgroup/job/step/memory.max": "max\n",
            "sys/fs/cgroup/job/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/job/memory.max": "1000000000\n",
            "sys/fs/cgroup/job/memory.current": "600000000\n",
            "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 200000000\n",
        },
    )
    assert available_cores(version2) == 1  # half a core
    assert (machine_memory(version2), available_memory(version2)) == (1_000_000_000, 600_000_000)
    version1 = write_files(
        tmp_path / "v1",
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/elsewhere\n4:memory:/elsewhere\n",
            "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   300000 kB\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "500000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000000\n",
        },
    )
    assert available_cores(version1) == own
    assert (machine_memory(version1), available_memory(version1)) == (500_000_000, 307_200_000)
    unlimited = tmp_path / "v1/sys/fs/cgroup/memory/memory.limit_in_bytes"
    unlimited.write_text("9223372036854771712\n")
    assert machine_memory(version1) == machine_memory(tmp_path)
