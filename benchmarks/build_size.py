"""Bytes of a store against those of PersistentDataset's file, and of 160,000 of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import build_arms
from build_arms import INTENSITIES, RECIPES
from build_inputs import Collection
from measuring import Section, goal, task
from rich import box
from rich.console import Console
from rich.table import Table

GOALS = {"hu": 5.0, "window": 15.0}
"""Bytes of the reference over those of the store."""
MB, TB = 1e6, 1e12


@dataclass(frozen=True)
class Size:
    """One volume with one recipe."""

    file: str
    real: bool
    fits: bool
    """Whether its part of the body is that of the recipe."""
    recipe: str
    source_bytes: int
    reference_bytes: int
    """PersistentDataset's file."""
    cropped_bytes: int
    """The voxels inside the foreground as float32: what the file would hold without the rest."""
    tensor_bytes: int
    """The voxels that the file holds as float32."""
    stores: dict[str, dict[str, Any]]
    """By the names of `INTENSITIES`: bytes of all files and all levels, and more."""

    def ratio(self, intensity: str) -> float:
        """Bytes of the reference over those of the store."""
        return self.reference_bytes / int(self.stores[intensity]["bytes"])


def measure(collection: Collection, folder: Path, console: Console) -> list[Size]:
    """Write every scan's reference file and stores, under ``folder``."""
    sizes = []
    for scan in collection.scans:
        with console.status(f"size: {scan.name}"):
            place, recipes = folder / scan.name, list(RECIPES)
            theirs = task(
                build_arms.PROGRAM,
                "references",
                file=scan.reference,
                recipes=recipes,
                folder=place,
            )
            ours = task(
                build_arms.PROGRAM,
                "stores",
                workspace=collection.workspace,
                dataset="scans",
                case=scan.case,
                recipes=recipes,
                folder=place,
            )
        sizes += [
            Size(
                file=scan.name,
                real=scan.real,
                fits=recipe in scan.recipes,
                recipe=recipe,
                source_bytes=scan.source_bytes,
                reference_bytes=theirs[recipe]["bytes"],
                cropped_bytes=theirs[recipe]["cropped_bytes"],
                tensor_bytes=theirs[recipe]["tensor_bytes"],
                stores=ours[recipe],
            )
            for recipe in recipes
        ]
    return sizes


def total_ratio(sizes: Iterable[Size], intensity: str) -> float:
    """Bytes of all references over those of all stores."""
    sizes = list(sizes)
    return sum(size.reference_bytes for size in sizes) / sum(
        int(size.stores[intensity]["bytes"]) for size in sizes
    )


def section(sizes: Sequence[Size]) -> Section:
    """Table and goals: the totals of each recipe count, the worst volume is named."""
    goals = []
    for intensity, limit in GOALS.items():
        for recipe in RECIPES:
            mine = [size for size in sizes if size.recipe == recipe]
            worst = min(mine, key=lambda size: size.ratio(intensity))
            goals.append(
                goal(
                    f"PersistentDataset's bytes over the stores', {recipe}, {intensity}",
                    f"all volumes; worst {worst.file} {worst.ratio(intensity):.2f}",
                    total_ratio(mine, intensity),
                    limit,
                    most=False,
                )
            )
    return Section({"volumes": [asdict(size) for size in sizes]}, [_table(sizes)], goals)


def _table(sizes: Sequence[Size]) -> Table:
    table = Table(
        title="MB of a volume: PersistentDataset's file, stores (times smaller)",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("volume", no_wrap=True)
    for name in ("source", "reference", "cropped", *INTENSITIES):
        table.add_column(name, justify="right", no_wrap=True)
    for recipe in RECIPES.values():
        mine = [size for size in sizes if size.recipe == recipe.name]
        grid = " x ".join(f"{mm:g}" for mm in recipe.spacing_mm)
        table.add_row(f"[bold]{recipe.name}, {grid} mm[/bold]")
        for size in mine:
            table.add_row(f"  {size.file}", *_cells([size]))
        for name, some in (
            ("real", [size for size in mine if size.real]),
            ("phantoms", [size for size in mine if not size.real]),
            ("all", mine),
        ):
            if len(some) > 1:
                table.add_row(f"  [italic]{name}[/italic]", *_cells(some))
    table.caption = (
        "cropped: the float32 voxels inside the foreground, without those around them that the "
        "file holds too. A store holds all its levels and attributes."
    )
    return table


def _cells(sizes: Sequence[Size]) -> list[str]:
    cells = [
        f"{sum(getattr(size, name) for size in sizes) / MB:.1f}"
        for name in ("source_bytes", "reference_bytes", "cropped_bytes")
    ]
    for intensity in INTENSITIES:
        stored = sum(int(size.stores[intensity]["bytes"]) for size in sizes)
        cells.append(f"{stored / MB:.2f} ({total_ratio(sizes, intensity):.1f})")
    return cells


# The projection


@dataclass(frozen=True)
class Extent:
    """Mean field of view of the scans of one recipe, in mm; assumed, not read from headers."""

    in_plane_mm: float
    length_mm: float
    slices: int
    """Mean number of slices in the files."""
    why: str


EXTENTS = {
    "abdomen": Extent(
        400, 450, 180, "512 pixels of 0.78 mm; liver to pelvis, a part with the chest; 2.5 mm"
    ),
    "chest": Extent(
        355, 325, 160, "512 pixels of 0.69 mm; the lungs and a margin; 1 to 2.5 mm slices"
    ),
    "head-neck": Extent(
        450, 380, 150, "512 pixels of 0.88 mm; planning scans, colonography, trunks; 2.5 mm"
    ),
}
"""Assumptions: what protocols of these body regions usually scan."""
MEASURED_AS = {"abdomen": "abdomen", "chest": "chest", "head-neck": "abdomen"}
"""Recipe whose grid and window the volumes of a recipe have."""
PUBLISHED_BYTES = 30 * TB
"""The float32 cache of PreCT-160K as published."""


@dataclass(frozen=True)
class Projected:
    """All volumes of one recipe."""

    recipe: str
    volumes: int
    """Sum over the cards of the catalogue."""
    decoded_bytes: float
    """int16 voxels as the sources hold them."""
    reference_bytes: float
    """float32 voxels of the whole field of view on the recipe's grid."""
    stores: dict[str, tuple[float, float]]
    """Bytes by intensity: least and most, by the ratios of real scans and of phantoms."""


def projected(sizes: Sequence[Size]) -> list[Projected]:
    """Bytes of the whole collection from what was measured and `EXTENTS`."""
    from prect.manifests.cards import catalogue  # noqa: PLC0415

    cards = catalogue()
    rows = []
    for recipe, extent in EXTENTS.items():
        count = sum(card.expected or 0 for card in cards if card.recipe == recipe)
        grid = RECIPES[MEASURED_AS[recipe]]
        x, y, z = grid.spacing_mm
        voxels = extent.in_plane_mm**2 * extent.length_mm / (x * y * z)
        reference = 4 * voxels * count
        mine = [size for size in sizes if size.recipe == grid.name and size.fits]
        groups = [
            [size for size in mine if size.real],
            [size for size in mine if not size.real],
        ]
        stores = {}
        for intensity in INTENSITIES:
            ratios = [total_ratio(group, intensity) for group in groups if group]
            stores[intensity] = (reference / max(ratios), reference / min(ratios))
        decoded = 2 * 512 * 512 * extent.slices * count
        rows.append(Projected(recipe, count, decoded, reference, stores))
    return rows


def projection(sizes: Sequence[Size]) -> Section:
    """Table of the projection, with its assumptions."""
    rows = projected(sizes)
    table = Table(title="all volumes of PreCT-160K, TB", box=box.SIMPLE_HEAD)
    for name in ("recipe", "volumes", "int16", "float32", *INTENSITIES):
        table.add_column(name, justify="left" if name == "recipe" else "right", no_wrap=True)
    for row in rows:
        table.add_row(row.recipe, f"{row.volumes:,}", *_terabytes([row]))
    table.add_row("all", f"{sum(row.volumes for row in rows):,}", *_terabytes(rows))
    reference = sum(row.reference_bytes for row in rows)
    lines = [
        "Assumed, mean field of view in mm: "
        + "; ".join(
            f"{name} {e.in_plane_mm:g} x {e.in_plane_mm:g} x {e.length_mm:g} in {e.slices} "
            f"slices ({e.why})"
            for name, e in EXTENTS.items()
        ),
        "Volumes: the sum of the cards. float32: the field of view on the recipe's grid, without "
        "label maps. Stores: float32 over the ratios measured on real scans and on phantoms of "
        "the recipe's part of the body. Head-neck volumes are taken for abdominal ones.",
        f"Published for the float32 cache: about {PUBLISHED_BYTES / TB:.0f} TB, "
        f"{PUBLISHED_BYTES / reference:.1f} times the float32 voxels reckoned here.",
    ]
    table.caption = "\n".join(lines)
    figures = {
        "recipes": [asdict(row) for row in rows],
        "extents": {name: asdict(extent) for name, extent in EXTENTS.items()},
        "measured_as": MEASURED_AS,
        "published_bytes": PUBLISHED_BYTES,
    }
    return Section(figures, [table], [])


def _terabytes(rows: Sequence[Projected]) -> list[str]:
    cells = [
        f"{sum(getattr(row, name) for row in rows) / TB:.2f}"
        for name in ("decoded_bytes", "reference_bytes")
    ]
    for intensity in INTENSITIES:
        least, most = (sum(row.stores[intensity][end] for row in rows) / TB for end in (0, 1))
        same = f"{least:.2f}" == f"{most:.2f}"
        cells.append(f"{most:.2f}" if same else f"{least:.2f}-{most:.2f}")
    return cells
