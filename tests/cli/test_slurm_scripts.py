"""The SLURM scripts of the documentation, run with stand-ins for SLURM and prect."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from prect.cli import app
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "docs" / "slurm"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
STANDS_IN = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> "$CALLS"; fi',
    "prect": (
        'case "$*" in "runs show"*) echo "{\\"state\\": \\"$STATE\\"}" ;; '
        '"build-cache "*) until [ -e "$CALLS.worker" ]; do sleep 0.05; done ;& '
        '*) echo "prect $*" >> "$CALLS"; exit "$STATUS" ;; esac'
    ),
    "torchrun": 'echo "torchrun $*" >> "$CALLS"; exit "$STATUS"',
    "dask": 'echo "dask $*" >> "$CALLS"; touch "$CALLS.$1"; exec sleep 30',
}


def run(script: str, folder: Path, status: int, state: str = "finished") -> tuple[int, list[str]]:
    """Exit status of a script, and what it called."""
    for name, body in STANDS_IN.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        "STATUS": str(status),
        "STATE": state,
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "77",
        "SLURM_CPUS_PER_TASK": "4",
    }
    done = subprocess.run(["bash", str(FOLDER / script)], env=environment, check=False, timeout=60)
    return done.returncode, (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize(("status", "again"), [(75, True), (0, False), (1, False), (130, False)])
def test_a_run_that_was_stopped_is_put_back_into_the_queue(
    tmp_path: Path, status: int, again: bool
) -> None:
    code, calls = run("train.sbatch", tmp_path, status)
    assert code == status
    assert calls[0].startswith("prect train --preset voco-b --gpus 8 --nodes 2 --rendezvous node1:")
    assert calls[1:] == (["requeue 77"] if again else [])


@pytest.mark.parametrize(("state", "again"), [("stopped", True), ("finished", False)])
def test_under_torchrun_the_run_itself_is_asked(tmp_path: Path, state: str, again: bool) -> None:
    code, calls = run("torchrun.sbatch", tmp_path, 1, state)
    assert code == 1
    assert "--nnodes 2 --nproc-per-node 8" in calls[0]
    assert calls[1:] == (["requeue 77"] if again else [])


def test_stores_are_built_on_the_workers_of_the_job(tmp_path: Path) -> None:
    code, calls = run("build-cache.sbatch", tmp_path, 0)
    assert code == 0
    address = re.escape(f"tcp://{os.uname().nodename}:8786")
    assert any(re.match(rf"dask worker {address} --nworkers 4 ", call) for call in calls)
    assert any(re.match(rf"prect build-cache --scheduler {address}$", call) for call in calls)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_option_that_a_script_gives_exists(script: Path) -> None:
    text = script.read_text().replace("\\\n", " ")
    group = typer.main.get_command(app)
    lines = [line for line in text.splitlines() if re.search(r"(^|-m |srun )prect ", line)]
    assert lines
    for line in lines:
        name, *words = shlex.split(re.split(r"(?:^|-m |srun )prect ", line)[1])
        command = group.commands[name]  # type: ignore[attr-defined]
        known = {option for param in command.params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= known
