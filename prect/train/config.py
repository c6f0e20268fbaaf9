"""The settings of a training run: how they are resolved and checked as a whole.

A configuration is resolved from three layers, each overriding the one before: a preset
(``prect/train/presets/<name>.toml``), a file, and ``section.key=value`` overrides. A layer may
name a ``preset``, a ``recipe`` and a ``network`` that its own settings begin from. Unknown keys
are refused.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError, model_validator

from prect.errors import ConfigError
from prect.train.architectures import is_architecture, settings_of
from prect.train.recipes import recipe
from prect.train.sections import (
    AugmentConfig,
    CropConfig,
    DataConfig,
    LoopConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    Section,
    ViewConfig,
)
from prect.train.shipped import read_shipped, shipped

__all__ = [
    "AugmentConfig",
    "CropConfig",
    "DataConfig",
    "LoopConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "ViewConfig",
    "load_config",
    "parse_config",
    "presets",
    "setting_paths",
]


class TrainConfig(Section):
    """All settings of a run; saved with it as ``config.json``."""

    run: RunConfig
    data: DataConfig = DataConfig()
    view: ViewConfig = ViewConfig()
    crops: CropConfig = CropConfig()
    augment: AugmentConfig = AugmentConfig()
    network: NetworkConfig = NetworkConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: LoopConfig = LoopConfig()

    def view_of(self, dataset: str) -> ViewConfig:
        """What is shown of a data set's volumes: ``[view]``, or its recipe in place of it."""
        if dataset not in self.data.recipes:
            return self.view
        shown = recipe(self.data.recipes[dataset]).view
        return shown.model_copy(update={"patches": self.view.patches})

    def step_volumes(self, world: int) -> int:
        """Volumes a step of ``world`` processes together."""
        return self.data.global_batch or self.data.batch_size * world

    def local_batch(self, world: int) -> int:
        """Volumes that each of ``world`` processes adds to a step.

        Raises:
            ConfigError: ``data.global_batch`` cannot be shared out evenly.
        """
        share, rest = divmod(self.step_volumes(world), world)
        if rest or not share:
            raise ConfigError(
                f"data.global_batch is {self.data.global_batch} volumes, which {world} processes "
                f"cannot share evenly; set a multiple of {world}, or use another number of them"
            )
        return share

    def passes(self, world: int) -> int:
        """Batches of ``data.batch_size`` volumes at most that make a process's part of a step.

        Raises:
            ConfigError: see `local_batch`.
        """
        return -(-self.local_batch(world) // self.data.batch_size)

    @model_validator(mode="after")
    def _check_geometry(self) -> Self:
        crops, grid = self.crops, self.view.grid
        if crops.bases < 2:
            raise ValueError("crops.base_grid must hold two bases at least, to tell them apart")
        for axis, name in enumerate("xyz"):
            tiled = crops.base_grid[axis] * crops.size[axis]
            if tiled > grid[axis]:
                raise ValueError(
                    f"crops do not fit: {crops.base_grid[axis]} bases of {crops.size[axis]} voxels "
                    f"need {tiled} along {name}, view.grid has {grid[axis]}"
                )
            if 2 * crops.margin[axis] > tiled - crops.size[axis]:
                raise ValueError(
                    f"crops.margin {crops.margin[axis]} leaves no room along {name}: "
                    f"{tiled - crops.size[axis]} voxels are free"
                )
        if self.augment.rotate > 0 and crops.size[0] != crops.size[1]:
            raise ValueError(
                f"augment.rotate turns crops in the x-y plane, so crops.size must be equal in x "
                f"and y, not {crops.size[:2]}; set augment.rotate=0"
            )
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        used = self.data.datasets
        for key, names in (("weights", self.data.weights), ("recipes", self.data.recipes)):
            unknown = sorted(set(names) - set(used)) if used else []
            if unknown:
                near = difflib.get_close_matches(unknown[0], used, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(
                    f"data.{key} names {', '.join(unknown)}, which data.datasets does not{hint}"
                )
        for dataset, name in self.data.recipes.items():
            shown, view = recipe(name).view, self.view
            if shown.grid != view.grid:
                raise ValueError(
                    f"data.recipes.{dataset}: the grid of {name} is {shown.grid}, view.grid is "
                    f"{view.grid}; one batch needs one grid"
                )
            if shown.patches not in {1, view.patches}:
                raise ValueError(
                    f"data.recipes.{dataset}: {name} has view.patches {shown.patches}, the run has "
                    f"{view.patches}; all data sets have as many"
                )
            if shown.kind == "whole" and view.patches > 1:
                raise ValueError(
                    f"data.recipes.{dataset}: {name} shows whole volumes, which have one place "
                    f"only, and view.patches is {view.patches}"
                )
        return self

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        # Patch embedding and four mergings halve the grid five times; SegResNet once a stage.
        network, shown = self.network, self.crops.shown
        halvings = 5 if network.name == "swin_unetr" else len(network.blocks) - 1
        step = 2**halvings
        if any(n % step for n in shown):
            raise ValueError(
                f"crops of {shown} voxels (crops.resize, or else crops.size) must be multiples of "
                f"{step} for network.name {network.name!r}"
            )
        if network.name == "swin_unetr" and math.prod(n // step for n in shown) < 2:
            raise ValueError(
                f"crops of {shown} voxels leave one voxel at the coarsest scale of "
                "network.name 'swin_unetr', which cannot be normalised; 64 along one axis at least"
            )
        if network.name == "swin_unetr" and network.feature_size % 12:
            raise ValueError(
                f"network.feature_size {network.feature_size} must be a multiple of 12"
            )
        if network.name == "segresnet" and network.feature_size % 8:
            raise ValueError(f"network.feature_size {network.feature_size} must be a multiple of 8")
        return self


def presets() -> list[str]:
    """Names of the presets that come with prect."""
    return shipped("preset")


def load_config(
    preset: str | None = None,
    file: Path | None = None,
    overrides: Iterable[str] = (),
) -> TrainConfig:
    """Resolve a preset, a file and overrides into one configuration.

    Args:
        preset: name of a preset; its name is also the run's name unless one is given.
        file: a TOML file, or the ``config.json`` of an earlier run.
        overrides: ``section.key=value``; the value is TOML, or a bare string when it is not.

    Raises:
        ConfigError: a setting is unknown, ill-typed or out of range; names its dotted path.
    """
    template = read_shipped("preset", preset) if preset is not None else {}
    from_file = _read_file(file) if file is not None else {}
    given: dict[str, Any] = {}
    for override in overrides:
        _merge(given, _network_as_table(_parse_override(override)))
    settings: dict[str, Any] = {}
    for layer in (template, from_file, given):
        _add_layer(settings, layer)
    _drop_unused_sources(settings, keep=(from_file, given))
    default_name = preset or (file.stem if file is not None else "run")
    run = settings.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("name", default_name)
    return parse_config(settings)


def parse_config(settings: Mapping[str, Any]) -> TrainConfig:
    """Check settings and return the configuration.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        problems = [_explain(item["loc"], item["type"], item["msg"]) for item in error.errors()]
        raise ConfigError("; ".join(problems)) from None


def setting_paths(model: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted path that a configuration may hold."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_paths(field.annotation, f"{path}.")


def _explain(location: tuple[int | str, ...], kind: str, message: str) -> str:
    path = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"{path}: unknown setting{_did_you_mean(path)}"
    message = message.removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _did_you_mean(path: str) -> str:
    known = list(setting_paths())
    # The right key in the wrong section is a likelier slip than a key that looks alike.
    same_key = [p for p in known if p.rpartition(".")[2] == path.rpartition(".")[2]]
    near = difflib.get_close_matches(path, same_key, n=1, cutoff=0.0)
    near = near or difflib.get_close_matches(path, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        loaded = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"configuration file {path} is not valid: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"configuration file {path} must hold a table of sections")
    return loaded


def _parse_override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f"override {text!r} must have the form section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    nested: Any = parsed
    for key in reversed(keys):
        nested = {key: nested}
    result: dict[str, Any] = nested
    return result


def _add_layer(settings: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put a layer over the settings so far: the preset it names, its recipe, then its own.

    A recipe and a named network replace the sections that they have; everything else is merged
    key by key.
    """
    own = _network_as_table(layer)
    if "preset" in own:
        _add_layer(settings, read_shipped("preset", _name(own, "preset")))
    if "recipe" in own:
        shown = recipe(_name(own, "recipe"))
        settings.update(shown.model_dump(mode="json", include={"view", "crops", "augment"}))
    network = _table(own, "network")
    if "name" in network and not is_architecture(network["name"]):
        settings["network"] = settings_of(str(network["name"]))
        own["network"] = {key: value for key, value in network.items() if key != "name"}
    _merge(settings, own)


def _network_as_table(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer whose network is a table; ``network = "voco-l"`` is short for its name."""
    own = dict(layer)
    if isinstance(own.get("network"), str):
        settings_of(own["network"])  # an architecture alone, without its size, is refused
        own["network"] = {"name": own["network"]}
    return own


def _name(layer: dict[str, Any], key: str) -> str:
    name = layer.pop(key)
    if not isinstance(name, str):
        raise ConfigError(f"{key}: must be the name of a {key}, not {name!r}")
    return name


def _drop_unused_sources(settings: dict[str, Any], keep: Iterable[Mapping[str, Any]]) -> None:
    """Leave out what a preset says of data sets that the run does not use.

    A preset speaks of many data sets, of which a run takes some; what a user says of a data set
    that is not used stays, and is refused.
    """
    data = settings.get("data")
    if not isinstance(data, dict) or not data.get("datasets"):
        return
    used = data["datasets"]
    for key in ("weights", "recipes"):
        if isinstance(data.get(key), dict):
            said = {name for layer in keep for name in _table(_table(layer, "data"), key)}
            data[key] = {name: v for name, v in data[key].items() if name in used or name in said}


def _table(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = settings.get(key)
    return value if isinstance(value, Mapping) else {}


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        elif isinstance(value, Mapping):
            into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value
