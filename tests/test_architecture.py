"""The house: which room may import which, and how large a room may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prect

PACKAGE = Path(__file__).resolve().parents[1] / "prect"
BASE = {"prect", "prect.errors", "prect.files", "prect.units", "prect.workspace"}
# Room -> what it may import besides the base and itself. The first matching prefix counts.
ALLOWED: dict[str, set[str]] = {
    "prect.cli": {"prect"},
    "prect.__main__": {"prect.cli"},
    "prect.phantom": set(),
    "prect.manifests": set(),
    "prect.cluster": set(),
    "prect.retries": {"prect.cluster"},
    "prect.ingest": {"prect.manifests", "prect.cluster", "prect.retries"},
    "prect.cache.intensity": set(),
    "prect.cache.format": {"prect.cache.intensity"},
    "prect.cache.decode": {"prect.cache.format", "prect.cache.intensity"},
    "prect.cache.compiled": set(),
    "prect.cache.native": {"prect.cache.compiled", "prect.cache.decode"},
    "prect.cache.reader": {
        "prect.manifests",
        "prect.cache.native",
        "prect.cache.decode",
        "prect.cache.format",
        "prect.cache.intensity",
    },
    "prect.cache.multiscales": set(),
    "prect.cache.foreign": {"prect.cache.reader", "prect.cache.format", "prect.cache.multiscales"},
    "prect.cache.hidden": set(),
    "prect.cache.writer": {
        "prect.manifests",
        "prect.cache.format",
        "prect.cache.intensity",
        "prect.cache.hidden",
    },
    "prect.cache.histogram": set(),
    "prect.cache.rows": {"prect.manifests", "prect.cache.reader"},
    "prect.cache.checks": {
        "prect.manifests",
        "prect.retries",
        "prect.cache.format",
        "prect.cache.hidden",
        "prect.cache.histogram",
        "prect.cache.intensity",
        "prect.cache.profile",
        "prect.cache.rows",
        "prect.cache.writer",
    },
    "prect.cache.checks.repair": {"prect.manifests", "prect.cache"},
    "prect.cache.upkeep": {
        "prect.manifests",
        "prect.cache.forecast.trial",
        "prect.cache.hidden",
        "prect.cache.reader",
        "prect.cache.writer",
    },
    "prect.cache": {"prect.manifests", "prect.ingest", "prect.retries"},
    "prect.train": {
        "prect.manifests",
        "prect.cache.reader",
        "prect.cache.format",
        "prect.cache.foreign",
    },
    "prect.benchmark": {
        "prect.phantom",
        "prect.manifests",
        "prect.cluster",
        "prect.ingest",
        "prect.cache",
        "prect.train",
    },
}
# What ``import prect`` offers; loaded when first asked for, named for type checkers before.
OFFERED = {"prect.train.open_dataset", "prect.train.weights"}
HEAVY = {"torch", "monai", "dask", "distributed", "SimpleITK", "zarr", "matplotlib", "pyarrow"}


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append((name, path))
    return found


def imports(path: Path) -> set[str]:
    """Every prect module that a file names in an import, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            for alias in node.names:
                dotted = f"{base}.{alias.name}"
                file = PACKAGE.parent / Path(*dotted.split("."))
                is_module = file.with_suffix(".py").exists() or file.is_dir()
                names.add(dotted if is_module else base)
    return names


def room_of(module: str) -> str | None:
    inside = [room for room in ALLOWED if module == room or module.startswith(room + ".")]
    return max(inside, key=len, default=None)


def may_import(module: str, target: str) -> bool:
    if module == "prect":
        return target in OFFERED
    room = room_of(module)
    if target in BASE or room is None:
        return target in BASE
    allowed = ALLOWED[room] | {room}
    return any(target == name or target.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value)[-40:])
def test_imports_run_one_way(module: str, path: Path) -> None:
    targets = {name for name in imports(path) if name.split(".")[0] == "prect"}
    wrong = sorted(name for name in targets if not may_import(module, name))
    assert not wrong, f"{module} imports {wrong}"


def test_the_walk_sees_a_forbidden_arrow() -> None:
    assert not may_import("prect.train.trainer", "prect.ingest.survey")
    assert not may_import("prect.cache.reader", "prect.ingest.settings")
    assert not may_import("prect.ingest.survey", "prect.cache.reader")
    assert not may_import("prect.manifests.sources", "prect.ingest")
    assert not may_import("prect.cache.checks.verify", "prect.cache.convert")
    assert may_import("prect.cache.build", "prect.ingest.harmonise")


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value)[-40:])
def test_no_module_is_over_500_lines(module: str, path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 500, f"{module} has {lines} lines: it holds two ideas"


@pytest.mark.parametrize("name", ["ingest", "cache", "train", "manifests"])
def test_the_root_shows_the_road(name: str) -> None:
    link = PACKAGE.parent / name
    assert link.is_symlink()
    assert link.readlink() == Path("prect") / name


def loaded_by(statement: str) -> set[str]:
    """Top-level modules and their parts that a fresh interpreter holds after ``statement``."""
    names = "{name for m in sys.modules for name in (m.split('.')[0], '.'.join(m.split('.')[:2]))}"
    code = f"{statement}; import sys; print(*sorted({names}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_reader_needs_no_heavy_library() -> None:
    assert not loaded_by("import prect.cache.reader") & HEAVY


def test_the_command_line_needs_no_heavy_library() -> None:
    assert not loaded_by("import prect.cli") & HEAVY


def test_the_package_alone_needs_no_heavy_library() -> None:
    assert not loaded_by("import prect; dir(prect)") & HEAVY


def test_what_the_package_offers_can_be_had() -> None:
    assert {getattr(prect, name).__module__ for name in prect.__all__[1:]} == OFFERED


def test_training_needs_neither_dask_nor_prects_ingest() -> None:
    loaded = loaded_by("import prect.train.trainer, prect.train.launch, prect.train.export")
    assert not loaded & {"dask", "distributed"}
    assert "prect.ingest" not in loaded
