"""The arms of the step benchmark: one training step of prect, and of plain implementations.

All work on the same crops with the same weights and must come to the same loss and gradient. The
plain loss is written from the formulas as one would write it first: one cosine at a time, a Python
branch for pairs without overlap. The plain arm also encodes crop by crop; another one sends all
crops through the encoder in one call, as prect does, so that the loss alone tells them apart.

Run as a program it does one task in a process of its own; see `measuring.serve`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measuring import memory, serve
from torch import nn
from torch.nn.functional import cosine_similarity, interpolate

from prect.train.batch import CropBatch, assemble
from prect.train.collate import RawBatch, pack
from prect.train.config import TrainConfig, load_config
from prect.train.crops import base_starts, random_start_range
from prect.train.learner import Learner, build_learner
from prect.train.objectives.pairs import EPS
from prect.train.precision import autocast
from prect.train.sampling import Sample
from prect.train.views import Region, View

FINER = (1.25, 1.25, 1.7)
"""Voxels along (x, y, z) of the region that is read for a view, over those of the view."""
LITERAL, ONE_CALL, PRECT = "literal", "literal loss, encoder in one call", "prect"
CHUNKED = "prect, crop by crop"
ARMS = (LITERAL, ONE_CALL, PRECT, CHUNKED)
COARSE = 8
"""Random values along each axis of a volume; all others lie between them."""
NOISE_HU = 20.0

LossOf = Callable[[nn.Module, CropBatch], torch.Tensor]


class Stopwatch:
    """Seconds by name; on a GPU the clock waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._since = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def begin(self) -> None:
        self._since = self.now()

    def lap(self, name: str) -> None:
        """Put the seconds since the last lap under a name."""
        now = self.now()
        self.seconds[name] += now - self._since
        self._since = now


class CutEncoder(nn.Module):
    """An encoder whose embeddings are cut off the graph, so that its backward pass is its own."""

    def __init__(self, encoder: nn.Module, watch: Stopwatch) -> None:
        super().__init__()
        self.encoder, self.watch = encoder, watch

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        self.watch.lap("heads")
        self.embeddings: torch.Tensor = self.encoder(crops)
        self.watch.lap("backbone")
        cut: torch.Tensor = self.embeddings.detach().requires_grad_()
        self.cut = cut
        return cut

    def backward(self) -> None:
        torch.autograd.backward(self.embeddings, self.cut.grad)
        self.watch.lap("backbone")


def settings(network: str, objective: str, arm: str, batch: int) -> TrainConfig:
    """The published geometry with a network and an objective; that of the demo for its network.

    float32, so that the arms can be compared.
    """
    overrides = [
        f"network={network}",
        f"objective.name={objective}",
        f"data.batch_size={batch}",
        "train.precision=float32",
    ]
    if arm == CHUNKED:
        overrides.append("network.crops_at_once=1")
    return load_config("demo" if network == "demo" else "voco-b", overrides=overrides)


def made_up(config: TrainConfig, seed: int = 0) -> RawBatch:
    """Smooth random volumes in regions of a usual size, with crops drawn as training draws them."""
    rng = np.random.default_rng(seed)
    volumes, crops, grid = config.data.batch_size, config.crops, config.view.grid
    x, y, z = (round(n * finer) for n, finer in zip(grid, FINER, strict=True))
    bases = base_starts(crops, grid)
    first, last = random_start_range(crops, grid)
    samples = []
    for index in range(volumes):
        drawn = rng.integers(first, last + 1, (crops.random, 3))
        samples.append(
            Sample(
                index=index,
                epoch=0,
                row=index,
                view=View((0, 0, 0), (x, y, z), (1, 1, 1)),
                region=Region(0, (0, 0, 0), (z, y, x), (1, 1, 1)),
                window=config.view.window,
                starts=np.concatenate([drawn, bases]),
                flips=rng.random((crops.per_volume, 3)) < config.augment.flip,
                turns=rng.integers(0, 4, crops.per_volume),
                shifts=rng.uniform(-0.1, 0.1, crops.per_volume).astype(np.float32),
            )
        )
    return pack(samples, _smooth(rng, (volumes, z, y, x)), crops)


def _smooth(rng: np.random.Generator, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Soft shapes between -300 and 400 HU with a scanner's noise, flat int16."""
    coarse = rng.uniform(-300, 400, (shape[0], 1, COARSE, COARSE, COARSE)).astype(np.float32)
    noise = NOISE_HU * rng.standard_normal((shape[0], 1, *shape[1:]), dtype=np.float32)
    shapes = interpolate(torch.from_numpy(coarse), size=shape[1:], mode="trilinear")
    return (shapes + torch.from_numpy(noise)).flatten().to(torch.int16)


# The plain implementation


def literal_loss(
    objective: Any, encoder: nn.Module, batch: CropBatch, *, one_call: bool
) -> torch.Tensor:
    """The loss of an objective on a batch, pair by pair.

    Args:
        objective: gives the projectors, the teacher and the name of the loss.
        encoder: of the student.
        batch: crops and their labels.
        one_call: send all crops through the encoder at once; else one by one.
    """

    def encode(network: nn.Module) -> torch.Tensor:
        if one_call:
            return torch.as_tensor(network(batch.crops))
        return torch.cat([network(crop[None]) for crop in batch.crops])

    embeddings = encode(encoder)
    student = objective.student(embeddings)
    teacher = None
    if objective.teacher is not None:
        with torch.no_grad():
            own = objective.teacher.backbone
            seen = embeddings if own is None else encode(own)
            teacher = objective.teacher.projector(seen)
    crops = len(batch.crops) // batch.volumes
    total = torch.zeros((), device=student.device)
    for i in range(batch.volumes):
        j = (i + 1) % batch.volumes
        mine = slice(i * crops, (i + 1) * crops)
        theirs = slice(j * crops, (j + 1) * crops)
        taught = student.detach() if teacher is None else teacher
        name = objective.settings.name
        volume = {"voco-v1": literal_v1, "voco-v2": literal_v2, "voco-paper": literal_paper}[name]
        total = total + volume(student[mine], taught[mine], batch.labels[i])
        if name == "voco-v2" and teacher is not None and batch.volumes > 1:
            total = total + literal_inter(student, teacher, mine, theirs, batch.random)
    return total / batch.volumes


def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return cosine_similarity(a.float(), b.float(), dim=0).relu()


def cross_entropy(
    labels: torch.Tensor, similarities: list[list[torch.Tensor]], square: bool
) -> torch.Tensor:
    """L_pos and L_neg of one volume: log (v2) or square (v1) of pairs without overlap."""
    near = far = weight = torch.zeros((), device=labels.device)
    empty = 0
    for a, row in enumerate(similarities):
        for b, s in enumerate(row):
            y = labels[a, b]
            near = near - y * torch.log(1 - (y - s).abs() + EPS)
            weight = weight + y
            if y.item() == 0:
                far = far + (s**2 if square else -torch.log(1 - s + EPS))
                empty += 1
    return near / (weight + EPS) + far / (empty + EPS)


def regularisation(bases: torch.Tensor, *, paper: bool) -> torch.Tensor:
    total, n = torch.zeros((), device=bases.device), len(bases)
    for a in range(n):
        for b in range(a + 1, n):
            if paper:
                total = total + cosine_similarity(bases[a].float(), bases[b].float(), dim=0).abs()
            else:
                total = total + similarity(bases[a], bases[b].detach()) ** 2
    return total * 2 / (n * (n - 1))


def literal_v1(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    s, n = labels.shape
    pairs = [
        [
            (similarity(student[a], teacher[s + b]) + similarity(teacher[a], student[s + b])) / 2
            for b in range(n)
        ]
        for a in range(s)
    ]
    return cross_entropy(labels, pairs, square=True) + regularisation(student[s:], paper=False)


def literal_v2(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    s, n = labels.shape
    pairs = [[similarity(student[a], teacher[s + b]) for b in range(n)] for a in range(s)]
    return cross_entropy(labels, pairs, square=False) + regularisation(student[s:], paper=False)


def literal_inter(
    student: torch.Tensor, teacher: torch.Tensor, mine: slice, theirs: slice, s: int
) -> torch.Tensor:
    k, q = student[mine][:s], student[theirs][s:]
    target_k, target_q = teacher[mine][:s], teacher[theirs][s:]
    target = torch.stack([torch.stack([similarity(a, b) for b in target_q]) for a in target_k])
    pairs = [[similarity(a, b) for b in q] for a in k]
    return cross_entropy(target, pairs, square=False)


def literal_paper(
    student: torch.Tensor, _teacher: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    s, n = labels.shape
    total = torch.zeros((), device=student.device)
    for a in range(s):
        for b in range(n):
            distance = (labels[a, b] - similarity(student[a], student[s + b])).abs()
            total = total - torch.log(1 - distance + EPS)
    return total / n + regularisation(student[s:], paper=True)


# What a process measures


def whole_step(
    learner: Learner, config: TrainConfig, raw: RawBatch, watch: Stopwatch, loss_of: LossOf
) -> torch.Tensor:
    """Cropping, forward and backward pass, timed together; the loss."""
    watch.begin()
    with torch.no_grad():
        batch = assemble(raw, config.view, config.crops)
    with autocast(config, watch.device):
        loss = loss_of(learner.backbone, batch)
    torch.autograd.backward(loss)
    watch.lap("step")
    return loss.detach()


def step_in_parts(
    learner: Learner, config: TrainConfig, raw: RawBatch, watch: Stopwatch, loss_of: LossOf
) -> torch.Tensor:
    """The same with the seconds of crops, backbone and heads apart; the loss."""
    objective: Any = learner.objective
    encoder = CutEncoder(learner.backbone, watch)
    handles = []
    if objective.teacher is not None and objective.teacher.backbone is not None:
        own = objective.teacher.backbone
        handles.append(own.register_forward_pre_hook(lambda *_: watch.lap("heads")))
        handles.append(own.register_forward_hook(lambda *_: watch.lap("backbone")))
    watch.begin()
    with torch.no_grad():
        batch = assemble(raw, config.view, config.crops)
    watch.lap("crops")
    with autocast(config, watch.device):
        loss = loss_of(encoder, batch)
    torch.autograd.backward(loss)
    watch.lap("heads")
    encoder.backward()
    for handle in handles:
        handle.remove()
    return loss.detach()


def loss_of_arm(arm: str, learner: Learner) -> LossOf:
    """How an arm comes from crops to the loss."""
    objective: Any = learner.objective

    def vectorised(encoder: nn.Module, batch: CropBatch) -> torch.Tensor:
        return torch.as_tensor(objective(encoder, batch).loss)

    def literal(encoder: nn.Module, batch: CropBatch) -> torch.Tensor:
        return literal_loss(objective, encoder, batch, one_call=arm == ONE_CALL)

    return literal if arm in (LITERAL, ONE_CALL) else vectorised


def measure(
    *,
    arm: str,
    network: str,
    objective: str,
    steps: int,
    warmup: int,
    threads: int,
    device: str,
    batch: int,
) -> dict[str, Any]:
    """Steps of an arm in this process, after a pass of one crop and steps that are not timed.

    Peak memory is that of forward and backward pass beyond what the process held before: weights
    and libraries. The optimiser step that follows is timed apart.
    """
    torch.set_num_threads(threads)
    only_float32()
    place = torch.device(device)
    config = settings(network, objective, arm, batch)
    learner = build_learner(config).to(place)
    raw = made_up(config).to(place)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    with torch.no_grad():
        one = assemble(raw, config.view, config.crops).crops[:1]
    torch.autograd.backward(learner.backbone(one).sum())
    step = whole_step if arm == LITERAL else step_in_parts
    loss_of = loss_of_arm(arm, learner)
    before, _ = _memory(place)
    runs, loss = [], torch.zeros(())
    for _ in range(warmup + steps):
        learner.zero_grad(set_to_none=True)
        watch = Stopwatch(place)
        loss = step(learner, config, raw, watch, loss_of)
        runs.append(dict(watch.seconds))
    _, peak = _memory(place)
    gradients = [p.grad for p in parameters if p.grad is not None]
    first = next(p.grad for p in learner.backbone.parameters() if p.grad is not None)
    found = {
        "parts": runs[warmup:],
        "peak_bytes": peak - before,
        "loss": float(loss),
        "gradient": float(torch.nn.utils.get_total_norm(gradients)),
        "first_gradient": first.flatten().tolist(),
    }
    return found | {"optimiser_s": _optimise(learner, config, parameters, place)}


def only_float32() -> None:
    """No TF32: on a GPU convolutions would else round their factors to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _optimise(
    learner: Learner, config: TrainConfig, parameters: list[nn.Parameter], place: torch.device
) -> dict[str, float]:
    """Seconds of what follows the backward pass, the second time: AdamW's state exists by then."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-9, amsgrad=config.optim.amsgrad)
    for _ in range(2):
        watch = Stopwatch(place)
        watch.begin()
        torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
        optimizer.step()
        watch.lap("AdamW")
        learner.objective.after_step(0.5)
        watch.lap("teacher")
    return dict(watch.seconds)


def _memory(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return memory()
    now = torch.cuda.memory_allocated(device)
    return now, torch.cuda.max_memory_allocated(device)


if __name__ == "__main__":
    serve({"measure": measure})
