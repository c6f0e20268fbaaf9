"""What a step saw: its samples as data, and as pictures.

Samples are pure functions, so nothing has to be recorded while training: the run's settings,
its manifest and the step are enough. Only what was replaced because it could not be read is
taken from the run's record: the store may have been mended since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from prect.cache.reader import StoreReader
from prect.errors import TrainingError
from prect.train.batch import assemble
from prect.train.collate import RawBatch, labels_of
from prect.train.config import TrainConfig
from prect.train.damage import Damage, read_incidents
from prect.train.data import TrainingData, open_data
from prect.train.run_folder import RunFolder
from prect.train.sampling import Sample, step_indices
from prect.train.views import Region
from prect.workspace import Workspace

_BASE_COLOUR = "#4cc9f0"
_RANDOM_COLOURS = ("#ff9f1c", "#e71d73", "#b8f35d", "#c77dff")
_VIEW_COLOUR = "#ffffff"
_PAPER = "#111111"
_PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))
_SHOWN_VOLUMES = 8
_PICTURE_LEVEL = 1


@dataclass(frozen=True)
class Replay:
    """The files that describe one step."""

    samples: Path
    picture: Path
    document: dict[str, Any]
    """Content of the samples file."""


def replay(
    workspace: Workspace, run: Path, step: int, out: Path, *, dry_run: bool = False
) -> Replay:
    """Write ``step-<step>.json`` and ``step-<step>.png`` for one step of a run.

    Args:
        workspace: where the stores lie.
        run: folder of the run.
        step: the step, counted from 1 as in ``metrics.jsonl``.
        out: folder to write to.
        dry_run: tell what the step saw, but read no voxel and write nothing.

    Raises:
        StoreError: what the step saw cannot be read any more.
        TrainingError: the folder is no run's, the step is out of range, or the manifest is not
            the one that the run was made with.
    """
    config, record = RunFolder(run).read()
    if not 1 <= step <= config.optim.max_steps:
        raise TrainingError(f"step {step} is not one of the run's, 1 to {config.optim.max_steps}")
    data = open_data(workspace, config)
    if data.table.digest != record["manifest_digest"]:
        raise TrainingError(
            "the cache manifest is not the one that the run was made with (digest "
            f"{record['manifest_digest'][:12]}, now {data.table.digest[:12]}); its samples "
            "cannot be told any more"
        )
    # What cannot be read now must be said, whatever the run did about it then.
    strict = config.data.model_copy(update={"on_damage": "raise"})
    views = data.views(config.model_copy(update={"data": strict}))
    replaced = _replaced(RunFolder(run), step)
    shown: list[int] = []
    causes: list[dict[str, Any] | None] = []
    for index in step_indices(step - 1, int(record["global_batch"]), 0, 1):
        damage = replaced.get(index)
        causes.append(None if damage is None else asdict(damage))
        # What was to stand in for it may have failed in its turn.
        while damage is not None:
            index = damage.replaced_by  # noqa: PLW2901
            damage = replaced.get(index)
        shown.append(index)
    document = {
        "run": config.run.name,
        "step": step,
        "samples": [
            _describe(views.planned(i), data, config, cause)
            for i, cause in zip(shown, causes, strict=True)
        ],
    }
    samples = out / f"step-{step:08d}.json"
    picture = out / f"step-{step:08d}.png"
    if not dry_run:
        batch = views.read_batch(shown)
        out.mkdir(parents=True, exist_ok=True)
        samples.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        draw(batch, data, config, f"{config.run.name}, step {step}", picture)
    return Replay(samples, picture, document)


def _replaced(run: RunFolder, step: int) -> dict[int, Damage]:
    """What the step could not read, by index."""
    return {
        incident.damage.index: incident.damage
        for incident in read_incidents(run.path)
        if (incident.step, incident.domain) == (step, "train")
    }


def _describe(
    sample: Sample, data: TrainingData, config: TrainConfig, replaces: dict[str, Any] | None
) -> dict[str, Any]:
    table, labels = data.table, labels_of(sample, config.crops)
    return {
        "dataset": table.dataset[sample.row],
        "case": table.case[sample.row],
        **sample.describe(),
        "labels": [[round(float(share), 6) for share in row] for row in labels],
        "replaces": replaces,
    }


def draw(
    batch: RawBatch, data: TrainingData, config: TrainConfig, title: str, target: Path
) -> None:
    """Draw the volumes of a batch, the first eight of them, to a PNG file."""
    samples = batch.samples
    shown = min(len(samples), _SHOWN_VOLUMES)
    figure = Figure(figsize=(12, 5.6 * shown + 0.5), facecolor=_PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    hidden = len(samples) - shown
    note = f" (the first {shown} of {shown + hidden} volumes)" if hidden else ""
    figure.suptitle(title + note, color="white", fontsize=14)
    crops = assemble(batch, config.view, config.crops).crops[:, 0].numpy()
    each = np.split(crops, len(samples))
    for i, part in enumerate(figure.subfigures(shown, 1, squeeze=False)[:, 0]):
        sample = samples[i]
        top, bottom = part.subfigures(2, 1, height_ratios=[2.6, 1])
        for area in (part, top, bottom):
            area.set_facecolor(_PAPER)
        top.suptitle(_caption(sample, batch.labels[i].numpy(), data), color="white", fontsize=11)
        _draw_volume(top, sample, data, config)
        _draw_crops(bottom, each[i], sample, config)
    figure.savefig(target, dpi=90)


def _caption(sample: Sample, labels: NDArray[np.float32], data: TrainingData) -> str:
    strongest = "; ".join(
        f"random crop {i}: {row.max():.0%} in base {row.argmax()}" for i, row in enumerate(labels)
    )
    return f"{data.table.dataset[sample.row]} / {data.table.case[sample.row]}   {strongest}"


def _draw_volume(part: SubFigure, sample: Sample, data: TrainingData, config: TrainConfig) -> None:
    """Three planes of the whole stored volume, through the middle of the first random crop."""
    with StoreReader(data.table.store(data.workspace, sample.row)) as reader:
        shown = min(_PICTURE_LEVEL, len(reader.levels) - 1)
        level = reader.levels[shown]
        volume = reader.read(shown, (0, 0, 0), level.shape).transpose(2, 1, 0)
    spacing = np.array(level.spacing[::-1])
    extent = np.array(volume.shape) * spacing
    region = sample.region
    boxes = boxes_in_mm(sample, region, config)
    middle = (boxes[0].mean(axis=0) / spacing).astype(int)
    middle = np.clip(middle, 0, np.array(volume.shape) - 1)
    corner = np.multiply(region.start, region.spacing)[::-1]
    view = np.stack([corner, corner + np.multiply(region.shape, region.spacing)[::-1]])
    axes = part.subplots(1, 3, width_ratios=[extent[0], extent[0], extent[1]])
    for axis, (plane, normal) in zip(axes, _PLANES, strict=True):
        across, up = (d for d in range(3) if d != normal)
        low, high = sample.window
        image = volume.take(middle[normal], axis=normal).T
        edges = (0, extent[across], 0, extent[up])
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=edges)
        position = (middle[normal] + 0.5) * spacing[normal]
        _outline(axis, view[:, [across, up]], _VIEW_COLOUR, "--")
        for crop, box in reversed(list(enumerate(boxes))):
            if box[0][normal] <= position <= box[1][normal]:
                colour = _crop_colour(crop, config)
                _outline(axis, box[:, [across, up]], colour, "-")
                if plane == "axial" and crop >= config.crops.random:
                    number = str(crop - config.crops.random)
                    axis.text(*(box[0, :2] + 8), number, color=colour, fontsize=9)
        _style(axis, f"{plane} ({'xyz'[normal]} = {position:.0f} mm)")


def boxes_in_mm(sample: Sample, region: Region, config: TrainConfig) -> NDArray[np.float64]:
    """(S + n, 2, 3) first and last corner of each crop, mm from the volume's corner, (x, y, z)."""
    origin = np.multiply(region.start, region.spacing)[::-1]
    voxel = np.multiply(region.shape, region.spacing)[::-1] / np.array(config.view.grid)
    first = origin + sample.starts * voxel
    last = origin + (sample.starts + np.array(config.crops.size)) * voxel
    return np.stack([first, last], axis=1)


def _draw_crops(
    part: SubFigure, crops: NDArray[np.float32], sample: Sample, config: TrainConfig
) -> None:
    """The middle axial plane of each crop, as the network got it."""
    axes: Sequence[Axes] = part.subplots(1, len(crops))
    for k, (axis, crop) in enumerate(zip(axes, crops, strict=True)):
        axis.imshow(crop[:, :, crop.shape[2] // 2].T, cmap="gray", vmin=0, vmax=1, origin="lower")
        colour = _crop_colour(k, config)
        name = f"random {k}" if k < config.crops.random else f"base {k - config.crops.random}"
        _style(axis, f"{name}\n{_changes(sample, k)}", colour)
        for spine in axis.spines.values():
            spine.set(visible=True, color=colour, linewidth=2)


def _changes(sample: Sample, crop: int) -> str:
    flips = "".join(name for name, on in zip("xyz", sample.flips[crop], strict=True) if on)
    parts = [f"flip {flips}"] if flips else []
    if sample.turns[crop]:
        parts.append(f"{90 * int(sample.turns[crop])}°")
    if sample.shifts[crop]:
        parts.append(f"{sample.shifts[crop]:+.2f}")
    return " ".join(parts) or "as is"


def _crop_colour(crop: int, config: TrainConfig) -> str:
    if crop >= config.crops.random:
        return _BASE_COLOUR
    return _RANDOM_COLOURS[crop % len(_RANDOM_COLOURS)]


def _outline(axis: Axes, box: NDArray[np.float64], colour: str, style: str) -> None:
    (left, bottom), (width, height) = box[0], box[1] - box[0]
    axis.add_patch(
        Rectangle(
            (left, bottom), width, height, fill=False, color=colour, linestyle=style, linewidth=1.6
        )
    )


def _style(axis: Axes, title: str, colour: str = "white") -> None:
    axis.set_title(title, color=colour, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
