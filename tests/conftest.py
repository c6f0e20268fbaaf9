"""Fixtures shared by all tests: real files, a small built workspace, made-up volumes."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from prect.cache.build import Report, build, make_plan
from prect.cache.profile import load_profile
from prect.cluster import cluster
from prect.ingest.survey import Survey, survey
from prect.manifests.sources import SourceRow, read_sources
from prect.phantom import generate
from prect.workspace import Workspace

REPOSITORY = Path(__file__).resolve().parents[1]
SALT = "tests"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real CT files that lies beside the repository where the project is developed."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not (folder / "INDEX.md").is_file():
        pytest.skip("no real CT files: ../shared/data is absent, the repository does not ship it")
    return folder


@dataclass(frozen=True)
class Built:
    """A workspace with one data set, ingested and stored."""

    workspace: Workspace
    dataset: str
    source: Path
    survey: Survey
    report: Report

    def rows(self) -> dict[str, SourceRow]:
        """Source rows by their path under the source folder."""
        return {row.source: row for row in read_sources(self.workspace.sources(self.dataset))}


def ingest_and_build(folder: Path, source: Path, dataset: str, workers: int = 1) -> Built:
    """Ingest and store everything under ``source``, in a workspace in ``folder``."""
    workspace = Workspace(folder)
    found = survey(dataset, source, workspace, salt=SALT)
    plan = make_plan(dataset, workspace, load_profile("iso1.5"))
    with workspace.lock("build-cache"), cluster(workers) as client:
        report = build(plan, client)
    return Built(workspace, dataset, source, found, report)


@pytest.fixture(scope="session")
def phantom_built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Eight small phantoms in mixed formats, stored; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("phantoms")
    generate(folder / "source", cases=8, seed=1, size="small", format="mixed")
    return ingest_and_build(folder / "workspace", folder / "source", "phantoms")


@pytest.fixture(scope="session")
def phantom_workspace(phantom_built: Built) -> Workspace:
    """Workspace with eight stored phantoms under the name ``phantoms``."""
    return phantom_built.workspace


@pytest.fixture(scope="session")
def real_built(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Built:
    """The real files, ingested and stored; not to be changed by a test."""
    return ingest_and_build(tmp_path_factory.mktemp("real"), shared_data, "real")


@pytest.fixture(scope="session", autouse=True)
def forkserver_with_libraries() -> None:
    """Children of all tests are forked from one process that has the libraries already.

    There is one such server in a process, and what it loads is settled by who starts it.
    """
    preloaded = ["prect.train.loader", "prect.train.preload", "prect.train.parallel"]
    preloaded.append("tests.cache.faults_tools")
    multiprocessing.get_context("forkserver").set_forkserver_preload(preloaded)
    forkserver.ensure_running()


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """Address of a Dask scheduler with one worker, for commands whose own would take seconds."""
    with cluster(1) as client:
        yield str(client.scheduler_info()["address"])


def run_prect(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own and check its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "prect", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run_json(*arguments: object, expect: int = 0) -> dict[str, Any]:
    """Run a command with ``--json``; standard output must be one JSON object."""
    document: dict[str, Any] = json.loads(run_prect(*arguments, "--json", expect=expect).stdout)
    return document
