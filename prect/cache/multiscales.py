"""What OME-Zarr metadata (0.4 and 0.5) says of an image: its levels, axes and spacing.

The document is https://ngff.openmicroscopy.org/0.5/. Only what is needed to find one CT volume
in it is read: three spatial axes, before them axes of one entry (time, channel), and scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prect.errors import StoreError
from prect.units import Triple, Vector

_SPATIAL = ("z", "y", "x")
_MILLIMETRES = {
    "angstrom": 1e-7,
    "nanometer": 1e-6,
    "micrometer": 1e-3,
    "millimeter": 1.0,
    "centimeter": 10.0,
    "decimeter": 100.0,
    "meter": 1000.0,
    "inch": 25.4,
}


@dataclass(frozen=True)
class ImageLevel:
    """One array of an image."""

    path: str
    """Of the array inside the group."""
    spacing: Vector
    """Millimetres, (z, y, x)."""
    origin: Vector = (0.0, 0.0, 0.0)
    """Position of the centre of the first voxel, mm along (z, y, x)."""


@dataclass(frozen=True)
class Image:
    """An image of three spatial axes at several resolutions, finest first."""

    levels: tuple[ImageLevel, ...]
    order: Triple
    """Axes of the arrays that are z, y and x, in this order."""
    axes: int
    """Axes of the arrays; those that are not spatial hold one entry."""


def read_multiscales(attributes: Mapping[str, Any], where: str) -> Image:
    """The first image that a group's attributes describe.

    Raises:
        StoreError: there is none, or it is not an image of three spatial axes.
    """
    document = attributes.get("ome", attributes)
    try:
        image = document["multiscales"][0]
        axes, datasets = image["axes"], image["datasets"]
        names = [str(axis["name"]).lower() for axis in axes]
        shared = image.get("coordinateTransformations", ())
        places = [_place([*d["coordinateTransformations"], *shared], len(axes)) for d in datasets]
        paths = [str(d["path"]) for d in datasets]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise StoreError(
            f"{where} is no image that prect can read: it is neither an array nor an OME-Zarr 0.4 "
            f"or 0.5 image with axes and scales ({type(error).__name__}: {error})"
        ) from error
    order = spatial_order(names, where)
    units = [axes[axis].get("unit", "millimeter") for axis in order]
    if not all(unit in _MILLIMETRES for unit in units):
        raise StoreError(f"{where} has lengths in {units}, which are no units that prect knows")
    edges = [_MILLIMETRES[unit] for unit in units]
    levels = []
    for path, (scale, translation) in zip(paths, places, strict=True):
        spacing = _in_millimetres(scale, order, edges)
        if min(spacing) <= 0:
            raise StoreError(f"{where} has a spacing of {spacing} mm; lengths must be positive")
        levels.append(ImageLevel(path, spacing, _in_millimetres(translation, order, edges)))
    if not levels:
        raise StoreError(f"{where} is an OME-Zarr image without a level")
    return Image(tuple(levels), order, len(axes))


def spatial_order(names: Sequence[str | None], where: str) -> Triple:
    """Which axes are z, y and x.

    Args:
        names: of the axes of an array; three axes without names are z, y, x.
        where: the store, for messages.

    Raises:
        StoreError: there are not three spatial axes.
    """
    if len(names) == len(_SPATIAL) and not any(names):
        return 0, 1, 2
    found = [str(name).lower() for name in names]
    if any(found.count(name) != 1 for name in _SPATIAL):
        raise StoreError(
            f"{where} has the axes {list(names)}; a volume has one each of z, y and x, and beside "
            "them only axes of one entry"
        )
    return found.index("z"), found.index("y"), found.index("x")


def _place(
    transformations: Sequence[Mapping[str, Any]], axes: int
) -> tuple[list[float], list[float]]:
    """Scale and translation, one number an axis, of transformations that follow each other."""
    scale, translation = [1.0] * axes, [0.0] * axes
    for transformation in transformations:
        kind = transformation["type"]
        if kind == "scale":
            factors = [float(factor) for factor in transformation["scale"]]
            scale = [a * b for a, b in zip(scale, factors, strict=True)]
            translation = [a * b for a, b in zip(translation, factors, strict=True)]
        elif kind == "translation":
            steps = [float(step) for step in transformation["translation"]]
            translation = [a + b for a, b in zip(translation, steps, strict=True)]
        elif kind != "identity":
            raise ValueError(f"transformation {kind!r} is not known")
    return scale, translation


def _in_millimetres(values: Sequence[float], order: Triple, edges: Sequence[float]) -> Vector:
    z, y, x = (values[axis] * edge for axis, edge in zip(order, edges, strict=True))
    return z, y, x
