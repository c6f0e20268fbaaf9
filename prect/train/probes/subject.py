"""What is probed: the encoder of a run or of a weight file, and the volumes that it is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prect.errors import CheckpointError, ConfigError, ManifestError
from prect.manifests.stores import CacheTable, load_cache_table
from prect.train.architectures import network_title
from prect.train.config import TrainConfig, parse_config
from prect.train.data import TrainingData, check_stores, check_windows, split_data
from prect.train.networks import Encoder, build_encoder
from prect.train.sampling import Domain
from prect.train.sections import ViewConfig
from prect.train.state.checkpoint import find_checkpoint, load_checkpoint
from prect.train.weights import inspect_weights, load_pretrained
from prect.workspace import Workspace

Split = Literal["heldout", "train", "all"]


@dataclass(frozen=True)
class Subject:
    """A trained encoder with the settings that it is shown volumes by."""

    path: Path
    """The checkpoint or weight file."""
    config: TrainConfig
    encoder: Encoder
    title: str
    """What the network is called."""
    step: int | None = None
    """Steps it was trained for; None where the file does not say."""
    manifest_digest: str | None = None
    """Digest of the data that it was trained on, likewise."""

    @property
    def name(self) -> str:
        """Stem of the files that are written about it."""
        return self.path.stem

    @property
    def folder(self) -> Path:
        """Where they are written to unless another folder is given: beside the checkpoints."""
        parent = self.path.parent
        return (parent.parent if parent.name == "checkpoints" else parent) / "probe"

    def trained_on_other(self, manifest_digest: str | None) -> bool:
        """Whether data of this digest are known to be others than it was trained on."""
        known = self.manifest_digest is not None and manifest_digest is not None
        return known and self.manifest_digest != manifest_digest


def open_subject(place: Path, config: TrainConfig | None = None) -> Subject:
    """The encoder of a run's newest checkpoint, of a checkpoint file, or of a weight file.

    Args:
        place: run folder or file.
        config: views, crops and data for a weight file; its ``network`` gives way to what the
            file holds. None for a run, whose own settings count.

    Raises:
        CheckpointError: there is no such file, it is damaged or lacks weights; a run is given
            with ``config``, or a weight file without; or it tells of another view.
    """
    if config is not None:
        return _from_weights(place, config)
    try:
        path = find_checkpoint(place)
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        if place.is_file():
            error.add_note(
                "a weight file does not tell its views and crops: give them with --preset, or "
                "with --config and the config.json of its run"
            )
        raise
    settings = parse_config(checkpoint.config)
    encoder = build_encoder(settings.network)
    try:
        encoder.load_state_dict(checkpoint.tensors("backbone."))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own settings: {error}") from error
    title = network_title(settings.network)
    digest = checkpoint.record.manifest_digest
    return Subject(path, settings, encoder, title, checkpoint.step, digest)


def _from_weights(path: Path, config: TrainConfig) -> Subject:
    if path.is_dir():
        raise CheckpointError(
            f"{path} is the folder of a run, which has settings of its own; leave --preset, "
            "--config and --set out, or give a weight file"
        )
    network = inspect_weights(path).network
    settings = parse_config(config.model_dump() | {"network": network.model_dump()})
    encoder = build_encoder(network)
    loaded = load_pretrained(path, encoder)
    _check_view(path, settings, loaded.metadata)
    missing = [name for name in loaded.left if encoder.state_dict()[name].is_floating_point()]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the tensors of {loaded.title}, first {missing[0]}; "
            "an encoder in part would be measured as one in whole"
        )
    step = loaded.metadata.get("step", "")
    return Subject(
        path,
        settings,
        encoder,
        network_title(network),
        int(step) if step.isdigit() else None,
        loaded.metadata.get("manifest_digest"),
    )


def _check_view(path: Path, config: TrainConfig, metadata: Mapping[str, str]) -> None:
    """Refuse views that an export of prect was not trained on."""
    if "view" not in metadata:
        return
    trained = ViewConfig.model_validate(json.loads(metadata["view"]))
    if trained != config.view:
        raise CheckpointError(
            f"{path} was trained on the view {trained.model_dump(exclude_defaults=True)}, the "
            f"settings given have {config.view.model_dump(exclude_defaults=True)}; give the "
            "config.json of its run with --config"
        )


@dataclass(frozen=True)
class Chosen:
    """The volumes to probe on."""

    data: TrainingData
    """Stored volumes of the data sets that were asked for, split as the run split them."""
    rows: NDArray[np.int64]
    """Those of the patients that were asked for."""
    manifest_digest: str | None
    """Digest of the run's own data sets as they are now; None where no split was asked for."""


def open_volumes(
    workspace: Workspace,
    config: TrainConfig,
    datasets: Sequence[str] = (),
    split: Split = "heldout",
) -> Chosen:
    """The volumes to probe on.

    Whom the run trained on is told by all of its data sets together: the same rule over some of
    them can hold out others. So the split is made over ``config.data.datasets``, and a volume of
    any data set is held out when its patient is none of those that the run trained on.

    Args:
        workspace: where the stores lie.
        config: settings of the run, unchanged.
        datasets: names of data sets; those of the run when empty.
        split: patients that the run did not train on, those that it did, or all.

    Raises:
        ConfigError: no data set is named; or a split is asked for and the settings name none,
            as for a weight file without the settings of its run.
        As `prect.train.data.open_data`.
    """
    wanted, used = tuple(datasets) or config.data.datasets, config.data.datasets
    if not wanted:
        raise ConfigError("no data set is named to probe on; give --dataset")
    if split != "all" and not used:
        raise ConfigError(
            f"--split {split}: the settings name no data sets, so it is not known whom these "
            "weights were trained on; give --split all, or --config with the config.json of "
            "their run"
        )
    table = load_cache_table(workspace, wanted)
    check_stores(workspace, table, config.data.on_damage)
    check_windows(table, config)
    if split == "all":
        return Chosen(TrainingData(workspace, table, {}), np.arange(len(table)), None)
    own = split_data(workspace, _of_the_run(workspace, used), config)
    trained_on = {own.table.patient[row] for row in own.rows["train"]}
    seen = np.array([patient in trained_on for patient in table.patient], dtype=np.bool_)
    rows: dict[Domain, NDArray[np.int64]] = {
        "train": np.flatnonzero(seen),
        "heldout": np.flatnonzero(~seen),
    }
    return Chosen(TrainingData(workspace, table, rows), rows[split], own.table.digest)


def _of_the_run(workspace: Workspace, datasets: Sequence[str]) -> CacheTable:
    try:
        return load_cache_table(workspace, datasets)
    except ManifestError as error:
        error.add_note(
            "whom a run trained on is told by all of its data sets; --split all does without"
        )
        raise
