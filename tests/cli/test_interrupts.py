"""Ctrl-C and SIGTERM: what is in flight is finished and told; a second one ends at once."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prect.cli.console import graceful
from prect.manifests.status import dataset_status
from prect.manifests.stores import read_cache_rows
from prect.workspace import Workspace
from tests.cache.faults_tools import (
    DATASET,
    Collection,
    Gate,
    Process,
    assert_no_orphans,
    build_serially,
    make_collection,
    prect_command,
    running,
    wait_until,
)

VOLUMES = 6
IN_FLIGHT = 2
"""Volumes that one worker has: one at work, one waiting."""


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection(tmp_path_factory.mktemp("interrupts"), VOLUMES, (40, 36, 32))


def terminal(process: Process, number: int) -> None:
    """Send a signal as a terminal does with Ctrl-C, and SLURM with SIGTERM: to everyone."""
    os.killpg(process.pid, number)


def driver(process: Process, number: int) -> None:
    os.kill(process.pid, number)


def assert_interrupted(collection: Collection, workspace: Workspace, stored: int) -> None:
    """So many stores are there, whole and listed, and nothing else."""
    assert collection.assert_whole(workspace) == stored
    assert len(list(workspace.dataset_cache(DATASET).iterdir())) == stored
    rows = read_cache_rows(workspace.cache_manifest(DATASET))
    assert {row.case for row in rows} == workspace.stored_cases(DATASET)
    status = dataset_status(workspace, DATASET)
    assert (status.stored, status.pending) == (stored, VOLUMES - stored)


@pytest.mark.parametrize(
    ("number", "send", "options"),
    [
        (signal.SIGINT, terminal, ["--json"]),
        pytest.param(signal.SIGTERM, driver, ["--json"], marks=pytest.mark.slow),
        (signal.SIGTERM, terminal, []),
    ],
    ids=["ctrl-c", "sigterm", "sigterm-to-all"],
)
def test_what_is_in_flight_is_finished(
    collection: Collection,
    tmp_path: Path,
    number: int,
    send: Callable[[Process, int], None],
    options: list[str],
) -> None:
    workspace = collection.fresh(tmp_path / "workspace")
    gate = Gate(tmp_path / "gate", "*/cache/*/0/c.0.0.0")
    command = prect_command(workspace, "--workers", 1, *options)
    with running(command, tmp_path / "run", gate.environment) as process:
        first = gate.next()
        send(process, number)
        wait_until(lambda: "stopping: what is in flight is" in process.messages, "the answer")
        assert not process.ended
        assert [held.pid for held in gate.waiting()] == [first.pid]  # not hit by the signal
        gate.open()
        assert process.wait() == 130
        assert_no_orphans(process)
    if options:
        document: dict[str, Any] = json.loads(process.output)
        (counts,) = document["datasets"]
        assert document["interrupted"] is True
        assert (counts["stored"], counts["built"]) == (IN_FLIGHT, IN_FLIGHT)
        assert counts["pending"] == VOLUMES - IN_FLIGHT
    else:
        assert process.output == ""
        pending = rf"pending\s+│\s+{VOLUMES - IN_FLIGHT} │"
        assert re.search(pending, process.messages), process.messages
        assert "interrupted; what is stored stays, run it again" in process.messages
    assert "Traceback" not in process.messages
    assert_interrupted(collection, workspace, IN_FLIGHT)
    build_serially(workspace)
    collection.assert_undisturbed(workspace)


def test_a_second_one_ends_at_once(collection: Collection, tmp_path: Path) -> None:
    workspace = collection.fresh(tmp_path / "workspace")
    gate = Gate(tmp_path / "gate", "*/cache/*/1/c.0.0.0")
    command = prect_command(workspace, "--workers", 1, "--json")
    with running(command, tmp_path / "run", gate.environment) as process:
        gate.next().release()  # one volume is stored, the others wait for ever
        wait_until(lambda: workspace.stored_cases(DATASET), "a store")
        terminal(process, signal.SIGINT)
        wait_until(lambda: "stopping:" in process.messages, "the answer")
        time.sleep(0.6)  # else it would be taken for the first one
        terminal(process, signal.SIGINT)
        assert process.wait(60) == 130
        assert process.output == ""
        assert process.messages.rstrip().endswith("run it again to go on")
        assert "Traceback" not in process.messages
        assert_no_orphans(process)
    assert collection.assert_whole(workspace) == 1
    build_serially(workspace)
    collection.assert_undisturbed(workspace)


def test_a_signal_that_comes_twice_at_once_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a launcher passes on what the terminal has sent to everyone already."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with graceful("nothing") as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        monkeypatch.setattr(sys.modules["prect.cli.console"], "_ECHO_SECONDS", 3600)
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(sys.modules["prect.cli.console"], "_ECHO_SECONDS", -1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
