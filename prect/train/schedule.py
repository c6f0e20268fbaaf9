"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math

from prect.train.config import OptimConfig


def learning_rate(step: int, optim: OptimConfig) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then a cosine to zero."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    length = max(1, optim.max_steps - optim.warmup_steps)
    progress = min(1.0, (step - optim.warmup_steps) / length)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * progress))
