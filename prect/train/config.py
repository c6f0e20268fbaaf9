"""The settings of a training run: models, presets, overrides.

A configuration is resolved from three layers, each overriding the one before: a preset
(``prect/train/presets/<name>.toml``), a file, and ``section.key=value`` overrides. Unknown
keys are refused. Axis order is (x, y, z) throughout, as at the network.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from prect.errors import ConfigError
from prect.manifests.splits import HELDOUT_SHARE

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Ints3 = tuple[PositiveInt, PositiveInt, PositiveInt]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunConfig(_Section):
    """What the run is called and which random stream it follows."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str
    seed: NonNegativeInt = 0


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class DataConfig(_Section):
    """Which volumes are seen and how they reach the training process."""

    datasets: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    """Names of data sets in the workspace; all their stored volumes are used."""
    heldout_share: Annotated[float, Field(ge=0, lt=1)] = HELDOUT_SHARE
    """Share of patients kept away from training."""
    heldout_minimum: PositiveInt = 2
    """Patients kept away at least, however small the share."""
    batch_size: PositiveInt = 2
    """Volumes a process and step."""
    workers: NonNegativeInt = 2
    """Reading processes for each training process; 0 reads in the training process."""
    prefetch: PositiveInt = 2
    """Batches that each worker holds ready."""
    open_stores: PositiveInt = 64
    """Stores that each worker keeps open."""


class ViewConfig(_Section):
    """Which part of a volume is shown, and on which grid."""

    kind: Literal["whole", "box"] = "whole"
    """The whole stored volume, or a box of ``grid`` times ``spacing`` at a random place."""
    grid: Ints3 = (192, 192, 64)
    """Voxels (x, y, z) of the view at the network's side."""
    spacing: tuple[Positive, Positive, Positive] | None = None
    """Millimetres (x, y, z) a voxel; only for ``box``."""
    window: tuple[float, float] = (-175.0, 250.0)
    """HU mapped to 0 and 1; values outside are clipped."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "box") != (self.spacing is not None):
            raise ValueError(
                "spacing (mm, x y z) is needed for kind 'box' and has no meaning for 'whole'"
            )
        if self.window[0] >= self.window[1]:
            raise ValueError(f"window {self.window} must rise: (low HU, high HU)")
        return self


class CropConfig(_Section):
    """Base crops tile the view; random crops are placed among them."""

    base_grid: Ints3 = (3, 3, 1)
    """Number of base crops along (x, y, z)."""
    size: Ints3 = (64, 64, 64)
    """Voxels (x, y, z) of every crop."""
    random: PositiveInt = 2
    """Random crops a volume."""
    margin: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] = (0, 0, 0)
    """Voxels (x, y, z) that random crops keep away from the edge of the base grid."""

    @property
    def bases(self) -> int:
        """Base crops a volume."""
        return math.prod(self.base_grid)

    @property
    def per_volume(self) -> int:
        """Crops a volume, random and base together."""
        return self.random + self.bases


class AugmentConfig(_Section):
    """What is done to each crop on its own; labels are unaffected."""

    flip: Probability = 0.2
    """Probability of a flip, for each of the three axes."""
    rotate: Probability = 0.2
    """Probability of a rotation by 90, 180 or 270 degrees in the x-y plane."""
    shift: Probability = 0.5
    """Probability of an intensity shift."""
    shift_range: Annotated[float, Field(ge=0)] = 0.1
    """Largest shift, in units of the window."""


class NetworkConfig(_Section):
    """The encoder that is trained."""

    name: Literal["swin_unetr", "segresnet"] = "swin_unetr"
    feature_size: PositiveInt = 48
    """Channels of the first stage."""
    blocks: tuple[PositiveInt, ...] = (1, 2, 2, 4)
    """Residual blocks of each stage; SegResNet only."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory; SwinUNETR only."""


class ObjectiveConfig(_Section):
    """The pretext task and its heads."""

    name: Literal["voco-v2-intra"] = "voco-v2-intra"
    projector_width: PositiveInt = 1024
    """Width of the projector's hidden layers and of its output."""
    ema_momentum: Probability = 0.9
    """Share of the teacher that is kept at each step."""
    reg_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the term that keeps base crops apart."""


class OptimConfig(_Section):
    """AdamW with a linear warm-up and a cosine to zero."""

    lr: Positive = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    amsgrad: bool = True
    warmup_steps: NonNegativeInt = 5000
    max_steps: PositiveInt = 250_000
    clip_norm: Positive = 1.0
    """Largest global norm of the gradient."""


class LoopConfig(_Section):
    """When the trainer logs, evaluates and saves."""

    log_every: PositiveInt = 50
    eval_every: NonNegativeInt = 5000
    """Steps between held-out evaluations; 0 evaluates only untrained and at the end."""
    eval_views: PositiveInt = 64
    """Held-out views that an evaluation averages over."""
    eval_batch: PositiveInt = 2
    """Volumes that share their batch statistics in an evaluation, on any number of processes."""
    checkpoint_every: PositiveInt = 5000
    keep_checkpoints: PositiveInt = 3
    """Newest checkpoints that are kept."""
    threads: NonNegativeInt = 0
    """CPU threads a training process; 0 leaves torch's own choice."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; ``auto`` takes bfloat16 on GPUs that have it, else float32."""


class TrainConfig(_Section):
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
    def _check_network(self) -> Self:
        # Patch embedding and four mergings halve the grid five times; SegResNet once a stage.
        network = self.network
        halvings = 5 if network.name == "swin_unetr" else len(network.blocks) - 1
        step = 2**halvings
        if any(n % step for n in self.crops.size):
            raise ValueError(
                f"crops.size {self.crops.size} must be multiples of {step} for network.name "
                f"{network.name!r}"
            )
        if network.name == "swin_unetr" and math.prod(n // step for n in self.crops.size) < 2:
            raise ValueError(
                f"crops.size {self.crops.size} leaves one voxel at the coarsest scale of "
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
    folder = resources.files("prect.train") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith("toml"))


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
    settings: dict[str, Any] = {}
    if preset is not None:
        _merge(settings, _read_preset(preset))
    if file is not None:
        _merge(settings, _read_file(file))
    for override in overrides:
        _merge(settings, _parse_override(override))
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


def _read_preset(name: str) -> dict[str, Any]:
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"preset {name!r} does not exist; there are {', '.join(known)}{hint}")
    text = (resources.files("prect.train") / "presets" / f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


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


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        else:
            into[key] = value
