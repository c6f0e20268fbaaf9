"""Command ``prect probe``: what frozen features know, beside two controls."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    JsonOption,
    WorkspaceOption,
    console,
    emit_json,
    interruptible,
    progress_bar,
)
from prect.cli.probe_text import say_what, sentences, table
from prect.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from prect.train.data import TrainingData
    from prect.train.probes.labels import LabelFiles
    from prect.train.probes.measure import ProbeSettings
    from prect.train.probes.subject import Chosen, Subject
    from prect.train.probes.volumes import ProbeVolumes


def probe(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_FILE", help="Run name or folder, a checkpoint, or a weight file."
        ),
    ],
    *,
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset", help="Data set to probe on, repeatable.", show_default="the run's"
        ),
    ] = None,
    split: Annotated[
        Literal["heldout", "train", "all"],
        typer.Option(
            help="Patients that the run did not train on, those that it did, or all. Weight "
            "files: all, unless --config tells the data sets of their run."
        ),
    ] = "heldout",
    cases: Annotated[
        int,
        typer.Option(
            min=2,
            help="Volumes at most; drawn at random when there are more, those with labels first.",
        ),
    ] = 32,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of NIfTI label maps named after the sources (case_0003_labels.nii.gz): "
            "adds organ kNN and linear segmentation.",
        ),
    ] = None,
    organs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='JSON object {"liver": 6, ...}; labels that are not in it count as background. '
            "phantom: the organs of `prect phantom`.",
            show_default="all labels",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Weight files: preset with their views and crops.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Weight files: TOML file, or config.json of their run."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Weight files: section.key=value (TOML), repeatable."),
    ] = None,
    queries: Annotated[
        int, typer.Option(min=1, help="Random places asked for in each volume.")
    ] = 32,
    gallery: Annotated[
        int, typer.Option(min=2, help="Places compared with in each volume, at most.")
    ] = 512,
    neighbours: Annotated[
        int, typer.Option(min=1, help="Most similar places that are averaged.")
    ] = 1,
    shift: Annotated[
        float, typer.Option(min=0, help="Largest intensity shift of a query, share of the window.")
    ] = 0.1,
    flip: Annotated[
        float, typer.Option(min=0, max=1, help="Probability of a query's flip, for each axis.")
    ] = 0.0,
    rotate: Annotated[
        float, typer.Option(min=0, max=1, help="Probability of a query's quarter turns in x-y.")
    ] = 0.0,
    organ_crops: Annotated[
        int, typer.Option(min=1, help="Crops of each organ of a case, for kNN.")
    ] = 6,
    random_seeds: Annotated[
        int, typer.Option(min=1, help="Networks with fresh weights that are averaged.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of places, voxels and intervals.")] = 0,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(show_default="<run>/probe", help="Folder to write to.")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    force: Annotated[bool, typer.Option("--force", help="Replace a report that exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be probed; read no voxel.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure frozen features: places across patients, and organs where label maps are known.

    Beside them stand the same network with fresh weights, and histograms of HU.
    """
    from prect.train.probes.measure import ProbeSettings
    from prect.train.probes.organs import OrganSettings
    from prect.train.probes.position import PositionSettings
    from prect.train.probes.segmentation import SegmentationSettings
    from prect.train.probes.subject import open_volumes
    from prect.workspace import Workspace

    place = Workspace(workspace)
    if organs is not None and labels is None:
        raise ConfigError("--organs names the values of label maps; give their folder by --labels")
    names = _organ_names(organs)
    subject = _subject(source, workspace, preset, config, settings)
    paths = _paths(out or subject.folder, subject.name, force)
    chosen = open_volumes(place, subject.config, datasets or [], split)
    volumes, files = _draw(chosen, subject, labels, cases, seed)
    wanted = ProbeSettings(
        PositionSettings(queries, gallery, neighbours=neighbours, shift=shift, flip=flip,
                         rotate=rotate, seed=seed),
        OrganSettings(organ_crops, seed=seed),
        SegmentationSettings(seed=seed),
        random_seeds=random_seeds,
        seed=seed,
    )  # fmt: skip
    document = _head(subject, volumes, files, names, wanted, split)
    document["manifest_changed"] = subject.trained_on_other(chosen.manifest_digest)
    document["files"] = {name: str(path) for name, path in paths.items()}
    say_what(document)
    if not dry_run:
        with interruptible("the report is written once all is measured, its pictures last"):
            _run(subject, volumes, files, names, wanted, _device(device), document, paths)
    if as_json:
        emit_json(document | {"dry_run": dry_run})


def _run(
    subject: Subject,
    volumes: ProbeVolumes,
    files: LabelFiles | None,
    names: Mapping[int, str],
    settings: ProbeSettings,
    device: torch.device,
    document: dict[str, Any],
    paths: Mapping[str, Path],
) -> None:
    """Measure, show and write; adds the figures to the document."""
    from prect.files import make_folder
    from prect.train.probes.measure import measure, passes
    from prect.train.probes.picture import draw_figures, draw_places
    from prect.train.report.lines import write_json

    labelled = 0 if files is None else len(files.files)
    with progress_bar("volume", quiet=not console.is_terminal) as progress:
        task = progress.add_task("probe", total=passes(len(volumes), labelled, settings))
        probed = measure(
            subject.encoder,
            volumes.config,
            volumes,
            files,
            names,
            settings,
            device=device,
            on_volume=lambda: progress.advance(task),
        )
    document |= probed.document
    make_folder(paths["report"].parent)
    write_json(paths["report"], document)
    title = f"{subject.config.run.name}, {subject.name}: {subject.title}"
    console.print(table(document, title))
    for line in sentences(document):
        console.print(line)
    draw_figures(document, title, paths["figures"])
    draw_places(probed.positions, volumes, volumes.config.crops, paths["places"])
    console.print("\n".join(str(path) for path in paths.values()))


def _paths(folder: Path, name: str, force: bool) -> dict[str, Path]:
    """What is written; refused where it cannot be, or would replace a report."""
    paths = {
        "report": folder / f"{name}.json",
        "figures": folder / f"{name}.png",
        "places": folder / f"{name}-places.png",
    }
    if paths["report"].exists() and not force:
        raise ConfigError(
            f"{paths['report']} exists; give --force to replace it, or --out another folder"
        )
    above = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        problem = "may not be written to" if above.is_dir() else "is no folder"
        raise ConfigError(f"no report can be written to {folder}: {above} {problem}; give --out")
    return paths


def _subject(
    source: str,
    workspace: str,
    preset: str | None,
    config: Path | None,
    settings: list[str] | None,
) -> Subject:
    from prect.cli.training import run_path
    from prect.train.config import load_config
    from prect.train.probes.subject import open_subject

    if preset is None and config is None:
        if settings:
            raise ConfigError(
                "--set changes the views and crops that a weight file is probed with, beside "
                "--preset or --config; a run is probed with its own settings"
            )
        return open_subject(run_path(source, workspace))
    return open_subject(run_path(source, workspace), load_config(preset, config, settings or []))


def _draw(
    chosen: Chosen, subject: Subject, labels: Path | None, cases: int, seed: int
) -> tuple[ProbeVolumes, LabelFiles | None]:
    """The volumes to probe, those with labels before the others; refused when they are too few."""
    from prect.train.probes.volumes import check_patients, probe_volumes

    table, rows = chosen.data.table, chosen.rows.tolist()
    first: list[int] = []
    if labels is not None:
        files = _label_files(chosen.data, labels, rows)
        first = [row for row in rows if f"{table.dataset[row]}/{table.case[row]}" in files.files]
    volumes = probe_volumes(chosen.data, subject.config, rows, cases=cases, first=first, seed=seed)
    check_patients([table.patient[row] for row in volumes.rows])
    if labels is None:
        return volumes, None
    if len({table.patient[row] for row in volumes.rows if row in first}) < 2:
        raise ConfigError(
            f"{labels} holds label maps of one patient only, of the {len(volumes)} volumes; organs "
            "are told by those of other patients, so those of two at least are needed"
        )
    return volumes, _label_files(chosen.data, labels, volumes.rows)


def _label_files(data: TrainingData, folder: Path, rows: Sequence[int]) -> LabelFiles:
    from prect.train.probes.labels import find_labels

    cases = [(data.table.dataset[row], data.table.case[row]) for row in rows]
    found = find_labels(folder, data.workspace, cases)
    if cases and not found.files:
        raise ConfigError(
            f"{folder} holds no label map of the {len(cases)} cases, for example of "
            f"{found.unmapped[0]}; name them after the sources, such as case_0003_labels.nii.gz"
        )
    return found


def _organ_names(organs: str | None) -> dict[int, str]:
    """Names by label; empty where all labels count."""
    if organs is None:
        return {}
    if organs == "phantom":
        from prect.phantom import ORGANS

        return {value: name for name, value in ORGANS.items() if name not in {"background", "body"}}
    try:
        loaded = json.loads(Path(organs).read_text("utf-8"))
        names = {int(value): str(name) for name, value in loaded.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'organs {organs} cannot be read: {error}; expected JSON such as {{"liver": 6}}'
        ) from error
    if not names or min(names) < 1:
        raise ConfigError(f"organs {organs} must name one label at least, all of them 1 or more")
    return names


def _device(name: str) -> torch.device:
    import torch

    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise ConfigError("--device cuda: torch sees no GPU here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and present else "cpu")


def _head(
    subject: Subject,
    volumes: ProbeVolumes,
    files: LabelFiles | None,
    names: Mapping[int, str],
    settings: ProbeSettings,
    split: str,
) -> dict[str, Any]:
    """What is probed, on what, and how."""
    from dataclasses import asdict

    table = volumes.data.table
    used = sorted({table.dataset[row] for row in volumes.rows})
    return {
        "source": str(subject.path),
        "run": subject.config.run.name,
        "network": subject.title,
        "step": subject.step,
        "datasets": used,
        "split": split,
        "cases": [f"{table.dataset[row]}/{table.case[row]}" for row in volumes.rows],
        "patients": len({table.patient[row] for row in volumes.rows}),
        "labels": None
        if files is None
        else {
            "folder": str(files.folder),
            "cases": len(files.files),
            "unmapped": list(files.unmapped),
            "organs": {name: value for value, name in names.items()},
        },
        "settings": asdict(settings),
    }
