"""What all ranks agree on before the optimiser steps: is the step good, and shall the run go on.

One sum over the ranks a step carries it all: the mean loss, which ranks have a loss or gradient
that is not finite, which signals came, and whether a checkpoint could not be written.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from prect.train.guards.stopping import STOP_SIGNALS

_MEMORY = 0.98
"""Share of the running mean and variance of the loss that a step keeps: some fifty steps count."""
_HEAD = 2 + len(STOP_SIGNALS)
"""Numbers before those of each rank."""
_BAD_LOSS = 2
"""What a rank says of itself: 0 that it is well, 1 that its gradient is not, 2 its loss."""
_SETTLED = 50
"""Steps before a loss can be called a spike."""


@dataclass(frozen=True)
class Agreement:
    """What the ranks found out together; the same on all of them."""

    loss: float
    """Mean over ranks; not a number where it is of any."""
    bad_ranks: tuple[int, ...]
    """Ranks whose loss is not finite; where all are, ranks whose gradient is not."""
    bad_loss: bool
    """Whether a loss was, and not a gradient alone. One bad loss spoils the gradient of all."""
    stop: signal.Signals | None
    """A signal that a rank was sent."""
    saved: bool
    """Whether the writing of a checkpoint has ended on all ranks."""


def agree(
    loss: torch.Tensor,
    grad_norm: torch.Tensor,
    stop: signal.Signals | None,
    saved: bool,
    rank: int,
    world: int,
) -> Agreement:
    """Exchange the state of a step; waits for the device and for the other ranks.

    Args:
        loss: this rank's, a scalar.
        grad_norm: of all gradients, a scalar; the same on all ranks.
        stop: the signal that this rank was sent.
        saved: whether the writing of a checkpoint has ended on this rank.
        rank: number of this process among ``world``.
        world: processes of the run.
    """
    loss = loss.detach().double()
    finite = torch.isfinite(loss)
    signals = [float(stop == number) for number in STOP_SIGNALS]
    said = torch.zeros(_HEAD + world, dtype=torch.float64, device=loss.device)
    said[1:_HEAD] = torch.tensor([saved, *signals])
    said[0] = torch.where(finite, loss, 0.0)
    bad_gradient = (~torch.isfinite(grad_norm)).double()
    said[_HEAD + rank] = torch.where(finite, bad_gradient, float(_BAD_LOSS))
    if world > 1:
        dist.all_reduce(said)
    total, ended, *rest = said.tolist()
    asked = [number for number, count in zip(STOP_SIGNALS, rest, strict=False) if count]
    states = rest[len(STOP_SIGNALS) :]
    worst = max(states)
    return Agreement(
        loss=math.nan if worst == _BAD_LOSS else total / world,
        bad_ranks=tuple(number for number, state in enumerate(states) if state == worst > 0),
        bad_loss=worst == _BAD_LOSS,
        stop=asked[0] if asked else None,
        saved=ended == world,
    )


@dataclass
class Guard:
    """Counts steps that were skipped, and follows the loss; the same on all ranks."""

    spike_deviations: float
    skipped: int = 0
    """In the whole run."""
    in_a_row: int = 0
    """Since the last good step."""
    spikes: int = 0
    steps: int = 0
    """Good steps that mean and variance have seen."""
    mean: float = 0.0
    variance: float = 0.0

    def skip(self) -> None:
        """Count a step that was not taken."""
        self.skipped += 1
        self.in_a_row += 1

    def follow(self, loss: float) -> str | None:
        """Take a good step's loss in; says what is odd about it, if it is a spike."""
        self.in_a_row = 0
        deviation, spread = loss - self.mean, math.sqrt(self.variance)
        text = None
        looks = self.spike_deviations > 0 and self.steps >= _SETTLED
        if looks and deviation > self.spike_deviations * spread > 0:
            self.spikes += 1
            text = (
                f"loss {loss:.4g} is {deviation / spread:.1f} standard deviations above its "
                f"recent mean {self.mean:.4g}"
            )
        kept = min(_MEMORY, self.steps / (self.steps + 1))
        self.mean += (1 - kept) * deviation
        self.variance = kept * (self.variance + (1 - kept) * deviation * deviation)
        self.steps += 1
        return text

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            name: getattr(self, name) for name in ("skipped", "spikes", "steps", "mean", "variance")
        }

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)
