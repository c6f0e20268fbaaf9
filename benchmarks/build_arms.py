"""The two ways from a scan to what training reads, for build.py; each task in its own process.

The reference is the chain of VoCo v2's release up to its first random transform, cached by
MONAI's PersistentDataset; prect's is `prect.cache.convert.convert`, what a worker of
build-cache runs for a volume. Imports and a small first volume come before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import BenchmarkError, Clock, memory, serve

if TYPE_CHECKING:
    from prect.cache.convert import Job
    from prect.cache.profile import Profile
    from prect.manifests.stores import CacheRow

PROGRAM = Path(__file__)


@dataclass(frozen=True)
class Recipe:
    """What the release does to a volume of one body region."""

    name: str
    spacing_mm: tuple[float, float, float]
    """(x, y, z)."""
    window_hu: tuple[int, int]
    profile: str
    """The profile of prect with the same grid and window."""


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("abdomen", (1.5, 1.5, 1.5), (-175, 250), "iso1.5"),
        Recipe("chest", (1.25, 1.25, 5.0), (-1000, 500), "voco2"),
    )
}
INTENSITIES: dict[str, tuple[str, int | None]] = {
    "hu": ("hu", None),
    "hu, step 2": ("hu", 2),
    "hu, step 4": ("hu", 4),
    "window": ("window", None),
}
"""What is stored of the HU: kind, and HU from one value to the next."""


def profile_of(recipe: str, intensity: str, low_pass: bool = False) -> Profile:
    """prect's profile for a recipe, with one of `INTENSITIES`."""
    from prect.cache.profile import load_profile  # noqa: PLC0415

    kind, step = INTENSITIES[intensity]
    return load_profile(RECIPES[recipe].profile).stored_as(kind, step, low_pass)


# The reference


def reference_chain(recipe: Recipe) -> Callable[[Any], Any]:
    """The deterministic transforms of a recipe, on dictionaries with an ``image``."""
    from monai.transforms.compose import Compose  # noqa: PLC0415
    from monai.transforms.croppad.dictionary import CropForegroundd  # noqa: PLC0415
    from monai.transforms.intensity.dictionary import ScaleIntensityRanged  # noqa: PLC0415
    from monai.transforms.io.dictionary import LoadImaged  # noqa: PLC0415
    from monai.transforms.spatial.dictionary import Orientationd, Spacingd  # noqa: PLC0415
    from monai.transforms.utility.dictionary import EnsureChannelFirstd  # noqa: PLC0415

    low, high = recipe.window_hu
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    return Compose(
        [
            LoadImaged("image", image_only=True),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=labels),
            Spacingd("image", pixdim=recipe.spacing_mm, mode="bilinear"),
            ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            CropForegroundd("image", source_key="image"),
        ]
    )


def reference(file: str, recipe: str, cache: str, first: str) -> dict[str, Any]:
    """Let PersistentDataset write its file of one volume into the folder ``cache``.

    Args:
        file: NIfTI file, or folder of a DICOM series.
        recipe: one of `RECIPES`.
        cache: new folder.
        first: a small NIfTI file that goes through the chain before the clock starts.
    """
    import torch  # noqa: PLC0415
    from monai.data.dataset import PersistentDataset  # noqa: PLC0415

    torch.set_num_threads(1)
    chain: Any = reference_chain(RECIPES[recipe])
    PersistentDataset([{"image": first}], chain, f"{cache}-first")[0]
    _warm(Path(file))
    dataset = PersistentDataset([{"image": file}], chain, cache)
    before, _ = memory()
    cpu, wall = time.process_time(), time.perf_counter()
    image = dataset[0]["image"]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    _, peak = memory()
    return {
        "seconds": wall,
        "cpu_s": cpu,
        "peak_bytes": peak - before,
        **_written(Path(cache), image),
    }


def references(file: str, recipes: list[str], folder: str) -> dict[str, Any]:
    """Let PersistentDataset write its file of one volume for each recipe."""
    from monai.data.dataset import PersistentDataset  # noqa: PLC0415

    sizes = {}
    for recipe in recipes:
        cache, chain = Path(folder) / recipe / "persistent", reference_chain(RECIPES[recipe])
        image = PersistentDataset([{"image": file}], chain, cache)[0]["image"]
        sizes[recipe] = _written(cache, image)
    return sizes


def _written(cache: Path, image: Any) -> dict[str, int]:
    """Bytes of the file in ``cache``, and what they hold of an image."""
    import torch  # noqa: PLC0415

    (written,) = cache.glob("*.pt")
    stored = torch.load(written)["image"]
    return {
        "bytes": written.stat().st_size,
        "cropped_bytes": image.element_size() * image.numel(),
        "tensor_bytes": stored.untyped_storage().nbytes(),
    }


def _warm(path: Path) -> None:
    """Read a file, or a folder's files, so that the page cache holds it."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            file.read_bytes()


# prect's


def job_of(workspace: str, dataset: str, profile: Profile, case: str, store: Path) -> Job:
    """The job of one case, with its store elsewhere."""
    from prect.cache.plan import usable_jobs  # noqa: PLC0415
    from prect.workspace import Workspace  # noqa: PLC0415

    (job,) = usable_jobs(dataset, Workspace(workspace), profile, {case})
    return replace(job, store=store)


def built(job: Job) -> CacheRow:
    """The row of a store that `convert` has built.

    Raises:
        BenchmarkError: the volume was quarantined.
    """
    from prect.cache.convert import convert  # noqa: PLC0415
    from prect.manifests.stores import CacheRow  # noqa: PLC0415

    row = convert(job)
    if not isinstance(row, CacheRow):
        raise BenchmarkError(f"{job.source.source} was quarantined: {row.reason}")
    return row


def stores(
    workspace: str, dataset: str, case: str, recipes: list[str], folder: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """Store one volume for each recipe in each of `INTENSITIES`."""
    return {
        recipe: {
            intensity: _stored(
                job_of(
                    workspace,
                    dataset,
                    profile_of(recipe, intensity),
                    case,
                    Path(folder) / recipe / f"{intensity.replace(', step ', '-')}.ome.zarr",
                )
            )
            for intensity in INTENSITIES
        }
        for recipe in recipes
    }


def _stored(job: Job) -> dict[str, Any]:
    from prect.cache.reader import StoreReader  # noqa: PLC0415

    row = built(job)
    with StoreReader(job.store) as reader:
        levels = [level.shard_bytes for level in reader.attributes.levels]
    return {
        "bytes": row.bytes,
        "level_bytes": levels,
        "shape": row.shape,
        "stored_as": row.intensity,
        "max_error_hu": job.profile.intensity.max_error,
    }


def timed(
    workspace: str,
    dataset: str,
    case: str,
    first: str,
    recipe: str,
    folder: str,
    intensity: str = "hu",
    low_pass: bool = False,
    stages: bool = False,
) -> dict[str, Any]:
    """Build one store, and measure that.

    Args:
        workspace: with the ingested volumes.
        dataset: that of the case; the data set ``first`` holds the case ``first``.
        case: to build.
        first: a small case that is built before the clock starts.
        recipe: one of `RECIPES`.
        folder: where the stores go.
        intensity: one of `INTENSITIES`.
        low_pass: smooth along the axes that shrink.
        stages: also time the stages one by one, in a second pass.
    """
    profile = profile_of(recipe, intensity, low_pass)
    built(job_of(workspace, "first", profile, first, Path(folder) / "first.ome.zarr"))
    job = job_of(workspace, dataset, profile, case, Path(folder) / f"{case}.ome.zarr")
    _warm(Path(job.source.root) / job.source.source)
    before, _ = memory()
    cpu, wall = time.process_time(), time.perf_counter()
    row = built(job)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    _, peak = memory()
    i, j, k = job.source.shape
    return {
        "seconds": wall,
        "cpu_s": cpu,
        "peak_bytes": peak - before,
        "resident_bytes": peak,
        "bytes": row.bytes,
        "volume_bytes": 2 * i * j * k,
        "stages": _stages(job) if stages else {},
    }


def _stages(job: Job) -> dict[str, float]:
    """Seconds of what `convert` does with one volume, one part after the other.

    The parts are called as `convert` calls them. What it does besides, such as the
    histogram of the percentiles, is what its own time has in excess of their sum.
    """
    from prect.cache.reader import StoreReader  # noqa: PLC0415
    from prect.cache.writer import StoreWriter  # noqa: PLC0415
    from prect.ingest.checks import voxel_findings  # noqa: PLC0415
    from prect.ingest.harmonise import harmonise  # noqa: PLC0415
    from prect.ingest.readers import READERS  # noqa: PLC0415

    source, profile, storage = job.source, job.profile, job.profile.storage
    base = Path(source.root) / source.source
    paths = tuple(base / member for member in source.members) or (base,)
    reader, clock = READERS[source.format], Clock()
    with StoreReader(job.store) as store:
        attributes = store.attributes
    with clock.stage("decode"):
        volume = reader.read(reader.read_header(paths, job.limits))
    with clock.stage("checks"):
        voxel_findings(volume, job.limits)
    with clock.stage("harmonise"):
        harmonised = harmonise(volume, profile.harmonisation)
    with StoreWriter(job.store.with_name("stages.ome.zarr")) as writer:
        with clock.stage("encode and write"):
            writer.write_levels(
                harmonised.voxels,
                harmonised.spacing,
                storage.chunk,
                profile.codec,
                storage.levels,
                profile.intensity,
                coarse_codec=profile.coarse_codec,
            )
        with clock.stage("commit"):
            writer.commit(attributes)
    return dict(clock.seconds)


def bare(workspace: str, dataset: str, first: str, folder: str, part: list[str]) -> dict[str, Any]:
    """Build the cases of ``part`` one after the other; seconds from the first to the last."""
    profile = profile_of("abdomen", "hu")
    built(job_of(workspace, "first", profile, first, Path(folder) / f"{part[0]}-first.ome.zarr"))
    began = time.perf_counter()
    for case in part:
        built(job_of(workspace, dataset, profile, case, Path(folder) / f"{case}.ome.zarr"))
    return {"seconds": time.perf_counter() - began}


if __name__ == "__main__":
    tasks = (reference, references, stores, timed, bare)
    serve({each.__name__: each for each in tasks})
