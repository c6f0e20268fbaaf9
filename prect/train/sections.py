"""The sections of a run's settings, each with the checks that it can make alone.

Axis order is (x, y, z) throughout, as at the network.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prect.manifests.splits import HELDOUT_SHARE

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Ints3 = tuple[PositiveInt, PositiveInt, PositiveInt]


class Section(BaseModel):
    """One table of a configuration: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunConfig(Section):
    """What the run is called and which random stream it follows."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str
    seed: NonNegativeInt = 0


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class DataConfig(Section):
    """Which volumes are seen and how they reach the training process."""

    datasets: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    """Names of data sets in the workspace; all their stored volumes are used."""
    weights: dict[str, Positive] = {}
    """Passes an epoch makes over the volumes of a data set; 1 where none is given."""
    recipes: dict[str, str] = {}
    """Recipe of a data set, whose kind, spacing, window, foreground and align it takes instead of
    those of ``[view]``."""
    heldout_share: Annotated[float, Field(ge=0, lt=1)] = HELDOUT_SHARE
    """Share of patients kept away from training."""
    heldout_minimum: PositiveInt = 2
    """Patients kept away at least, however small the share."""
    batch_size: PositiveInt = 2
    """Volumes that a process computes at once. Where its share of ``global_batch`` is larger, the
    encoder passes it in parts, each computed again in the backward pass: the step is the same
    as if it were computed whole."""
    global_batch: PositiveInt | None = None
    """Volumes a step on all processes together, shared out evenly; ``batch_size`` for each process
    when left out."""
    workers: NonNegativeInt = 2
    """Reading processes for each training process; 0 reads in the training process."""
    prefetch_mib: PositiveInt = 1024
    """MiB of regions that may lie ready or in use for a training process, page-locked copies
    included."""
    open_stores: PositiveInt = 64
    """Stores that each worker keeps open."""
    on_damage: Literal["raise", "quarantine"] = "raise"
    """Whether a damaged store stops the run, or is recorded and replaced by the next sample."""
    max_damaged: Probability = 0.01
    """Share of the run's volumes that may be quarantined before training stops; one volume at
    least, unless it is 0."""


class ViewConfig(Section):
    """Which part of a volume is shown, and on which grid."""

    kind: Literal["whole", "box"] = "whole"
    """The whole stored volume, or a box of ``grid`` times ``spacing`` at a random place."""
    grid: Ints3 = (192, 192, 64)
    """Voxels (x, y, z) of the view at the network's side."""
    spacing: tuple[Positive, Positive, Positive] | None = None
    """Millimetres (x, y, z) a voxel; only for ``box``."""
    window: tuple[float, float] = (-175.0, 250.0)
    """HU mapped to 0 and 1; values outside are clipped."""

    foreground: Probability = 0.0
    """Least share of the box that is body, where one of the places tried has it; else the best
    of them. Only for ``box``."""
    align: bool = False
    """Put the box on the grid of inner chunks of the level that is read, so that fewer are
    decoded; only for ``box``."""
    patches: PositiveInt = 1
    """Consecutive samples that show the same volume at different places; only for ``box``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "box") != (self.spacing is not None):
            raise ValueError(
                "spacing (mm, x y z) is needed for kind 'box' and has no meaning for 'whole'"
            )
        placed = {
            "foreground": self.foreground > 0,
            "align": self.align,
            "patches": self.patches > 1,
        }
        wrong = [name for name, on in placed.items() if on]
        if self.kind == "whole" and wrong:
            raise ValueError(
                f"no meaning for kind 'whole' has {' or '.join(wrong)}, which places a box; set "
                "view.kind='box' and view.spacing, or leave it out"
            )
        if self.window[0] >= self.window[1]:
            raise ValueError(f"window {self.window} must rise: (low HU, high HU)")
        return self


class CropConfig(Section):
    """Base crops tile the view; random crops are placed among them."""

    base_grid: Ints3 = (3, 3, 1)
    """Number of base crops along (x, y, z)."""
    size: Ints3 = (64, 64, 64)
    """Voxels (x, y, z) of every crop in the view's grid."""
    resize: Ints3 | None = None
    """Voxels (x, y, z) that each crop is resized to on the device; ``size`` when left out."""
    random: PositiveInt = 2
    """Random crops a volume."""
    margin: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] = (0, 0, 0)
    """Voxels (x, y, z) that random crops keep away from the edge of the base grid."""

    @property
    def shown(self) -> Ints3:
        """Voxels (x, y, z) of a crop as the network gets it."""
        return self.resize or self.size

    @property
    def bases(self) -> int:
        """Base crops a volume."""
        return math.prod(self.base_grid)

    @property
    def per_volume(self) -> int:
        """Crops a volume, random and base together."""
        return self.random + self.bases


class AugmentConfig(Section):
    """What is done to each crop on its own; labels are unaffected."""

    flip: Probability = 0.2
    """Probability of a flip, for each of the three axes."""
    rotate: Probability = 0.2
    """Probability of a rotation by 90, 180 or 270 degrees in the x-y plane."""
    shift: Probability = 0.5
    """Probability of an intensity shift."""
    shift_range: Annotated[float, Field(ge=0)] = 0.1
    """Largest shift, in units of the window."""
    drop_instances: Probability = 0.0
    """Share of crops whose embedding is dropped while training; the released code of VoCo
    version 2 has 0.2."""
    shuffle_labels: bool = False
    """Negative control: while training, the labels of each random crop are dealt out to the bases
    at random. Labels of held-out crops stay true."""


class NetworkConfig(Section):
    """The encoder that is trained."""

    name: Literal["swin_unetr", "segresnet"] = "swin_unetr"
    feature_size: PositiveInt = 48
    """Channels of the first stage."""
    blocks: tuple[PositiveInt, ...] = (1, 2, 2, 4)
    """Residual blocks of each stage; SegResNet only."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory; SwinUNETR only."""
    crops_at_once: NonNegativeInt = 0
    """Crops in one pass of the encoder; 0 takes all. Fewer save memory, as each chunk is computed
    again in the backward pass; the result is the same."""
    weights: str | None = None
    """File of weights that a new run's encoder begins with, as ``prect.load_pretrained`` reads
    them; a run that goes on has its own."""


TeacherKind = Literal["network", "projector", "none"]


class ObjectiveConfig(Section):
    """The pretext task and its heads."""

    name: Literal["voco-v1", "voco-v2", "voco-paper"] = "voco-v2"
    projector_width: PositiveInt | None = None
    """Width of the projector's hidden layers and of its output; 2048 for voco-v1 and 1024 for the
    others when left out."""
    norm: Literal["batch", "layer"] = "batch"
    """Norm of the projector's hidden layers: statistics of all crops of all processes, or of each
    crop alone."""
    teacher: Literal["auto", "network", "projector", "none"] = "auto"
    """What follows the student: encoder and projector, the projector alone on the student's
    encoder, or nothing. ``auto`` is as published: voco-v1 the network, voco-v2 the projector,
    voco-paper nothing."""
    teacher_init: Literal["student", "random"] = "student"
    """Whether the teacher starts as a copy of the student or with weights of its own."""
    ema_momentum: Probability = 0.9
    """Share of the teacher that is kept at each step."""
    ema_momentum_end: Probability | None = None
    """Share at ``optim.max_steps``, reached along a cosine; constant when left out."""
    reg_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the term that keeps base crops apart."""
    inter_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the term between volumes, which voco-v2 and voco-paper have with a teacher."""

    @property
    def width(self) -> int:
        """Width of the projector."""
        return self.projector_width or (2048 if self.name == "voco-v1" else 1024)

    @property
    def teacher_kind(self) -> TeacherKind:
        """What follows the student, without ``auto``."""
        if self.teacher != "auto":
            return self.teacher
        published: dict[str, TeacherKind] = {"voco-v1": "network", "voco-v2": "projector"}
        return published.get(self.name, "none")


class OptimConfig(Section):
    """AdamW with a linear warm-up and a cosine to zero."""

    lr: Positive = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    amsgrad: bool = True
    warmup_steps: NonNegativeInt = 5000
    max_steps: PositiveInt = 250_000
    clip_norm: Positive = 1.0
    """Largest global norm of the gradient."""


class LoopConfig(Section):
    """When the trainer logs, evaluates and saves."""

    log_every: PositiveInt = 50
    eval_every: NonNegativeInt = 5000
    """Steps between held-out evaluations; 0 evaluates only untrained and at the end."""
    eval_views: PositiveInt = 64
    """Held-out views that an evaluation averages over."""
    eval_batch: PositiveInt = 2
    """Volumes that share their batch statistics in an evaluation, on any number of processes."""
    checkpoint_every: PositiveInt = 5000
    keep_last: PositiveInt = 3
    """Newest checkpoints that are kept."""
    keep_every: NonNegativeInt = 0
    """Checkpoints of steps that this divides are kept for ever; 0 keeps none of them."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """Whether a run whose checkpoint cannot be written goes on with the one it has, or stops."""
    threads: NonNegativeInt = 0
    """CPU threads a training process; 0 leaves torch's own choice."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Whether every process holds the whole network, or parameters, gradients and the state of
    the optimiser are shared out (FSDP2)."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type; ``auto`` takes bfloat16 on GPUs that have it, float16 with a scaled loss on
    others, and float32 on the CPU."""
    tf32: bool = True
    """Let GPUs round the factors of float32 products to 10 bits, several times as fast."""
    compile: bool = False
    """Compile the encoder with torch.compile: minutes at the start, faster steps afterwards."""
    max_skipped: PositiveInt = 5
    """Steps in a row that may be skipped because loss or gradient is not finite."""
    spike_deviations: Annotated[float, Field(ge=0)] = 6.0
    """Standard deviations above its recent mean at which a loss is recorded as a spike; 0 records
    none."""
    straggler_factor: Annotated[float, Field(ge=1)] = 1.5
    """A process is reported when waiting for data and its encoder take it so many times as long
    as the median of the others."""
    timeout_s: Positive = 900.0
    """Seconds without progress after which a run ends and names the process that it waits for."""
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where figures are written beside ``metrics.jsonl``."""
    peak_tflops: Annotated[float, Field(ge=0)] = 0.0
    """Peak of a GPU in its precision, for the share of it that is used (MFU); 0 takes it from a
    table of known GPUs."""
