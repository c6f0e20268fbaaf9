"""A small built workspace that a test may damage, and what it must be when it is mended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from distributed import Client

from prect.cache.build import build, make_plan
from prect.cache.checks.inventory import list_stores
from prect.cache.checks.repair import Repair, rebuild_manifest, repair
from prect.cache.checks.verify import Verification, verify
from prect.cache.profile import load_profile
from prect.ingest.survey import survey
from prect.manifests.parquet import write_arrow
from prect.workspace import Workspace
from tests.cache.test_build import store_files
from tests.conftest import SALT
from tests.ingest.volumes import body_volume, write_nifti

PROFILE = load_profile("iso1.5")
NAMES = ("a", "b", "c")


def build_three(folder: Path, client: Client) -> Path:
    """Make ``source`` and ``workspace`` in a folder; three volumes are stored as ``d``."""
    (folder / "source").mkdir()
    for seed, name in enumerate(NAMES):
        write_nifti(folder / "source" / f"{name}.nii.gz", body_volume(seed=seed))
    workspace = Workspace(folder / "workspace")
    survey("d", folder / "source", workspace, salt=SALT)
    build(make_plan("d", workspace, PROFILE), client)
    return folder


class Place:
    """A copy of the built workspace, and of its source, that a test may damage."""

    def __init__(self, built: Path, folder: Path, client: Client) -> None:
        self.client = client
        self.source = folder / "source"
        shutil.copytree(built / "source", self.source)  # with the times that ingest saw
        self.workspace = Workspace(folder / "workspace")
        shutil.copytree(built / "workspace", self.workspace.root)
        rows = pq.read_table(self.workspace.sources("d")).to_pylist()
        self.set_column("root", [str(self.source)] * len(rows))
        self.cases = {row["source"].removesuffix(".nii.gz"): row["case"] for row in rows}
        self.before = store_files(self.workspace.cache)
        self.manifest = self.workspace.cache_manifest("d").read_bytes()

    def store(self, name: str) -> Path:
        return self.workspace.store("d", self.cases[name])

    def set_column(self, name: str, values: list[str]) -> None:
        """Change a column of the source manifest."""
        path = self.workspace.sources("d")
        table = pq.read_table(path)
        write_arrow(path, table.set_column(table.schema.get_field_index(name), name, [values]))

    def reject(self, name: str) -> None:
        """Make a volume unusable."""
        cases = pq.read_table(self.workspace.sources("d"))["case"].to_pylist()
        unusable = self.cases[name]
        self.set_column("verdict", ["rejected" if c == unusable else "accepted" for c in cases])

    def survey(self) -> None:
        survey("d", self.source, self.workspace)

    def forbid(self) -> str:
        """Raise a limit so that no volume can be built any more; returns the card before."""
        path = self.workspace.card("d")
        before = path.read_text()
        card = yaml.safe_load(before)
        path.write_text(yaml.safe_dump(card | {"limits": {"min_tissue_share": 0.999}}))
        return before

    def verify(self, *, deep: bool = True, collect: bool = False) -> Verification:
        (found,) = verify(list_stores(self.workspace), self.client, deep=deep, collect=collect)
        assert found.checked == found.whole + len(found.broken)
        assert sum(found.kinds.values()) == len(found.broken)
        return found

    def repair(self, *, deep: bool = True) -> Repair:
        done = repair(self.verify(deep=deep, collect=True), self.workspace, self.client)
        assert sum(done.counts.values()) == len(done.found.broken)
        return done

    def rebuild_manifest(self) -> Repair:
        return rebuild_manifest(self.verify(collect=True), self.workspace)

    def assert_as_before(self) -> None:
        """Every store, and the manifest of them, is byte for byte what build-cache wrote."""
        shown = {k: v for k, v in store_files(self.workspace.cache).items() if "/." not in k}
        assert shown == self.before
        assert self.workspace.cache_manifest("d").read_bytes() == self.manifest
        found = self.verify()
        assert found.sound
        assert found.half_written == 0


def flip(path: Path, position: int) -> None:
    """Invert one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 255
    path.write_bytes(bytes(data))


def kinds(found: Verification) -> dict[str, str]:
    """Kind of each broken store, by case."""
    return {broken.case: broken.kind.value for broken in found.broken}
