"""What is measured while training, and the JSON lines it is written to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from prect.errors import TrainingError
from prect.train.objectives import ObjectiveOutput


class MetricsLog:
    """``metrics.jsonl``: one object a line, each with a ``step``; steps count from 1."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Append one line; a reader sees it at once."""
        line = json.dumps({"step": step, **figures}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def newest(self, step: int) -> dict[str, float]:
        """Training figures of the last line up to a step; empty when there is none."""
        if not self.path.exists():
            return {}
        lines = [line for line in self.path.read_text("utf-8").splitlines() if _step(line) <= step]
        trained = [line for line in map(json.loads, lines) if "loss" in line]
        return {k: v for k, v in trained[-1].items() if k != "step"} if trained else {}

    def rewind(self, step: int) -> None:
        """Drop lines after ``step``: a resumed run writes them again."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text("utf-8").splitlines() if _step(line) <= step]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # A line cut off by a crash belongs to no step.
        return float("inf")


class Window:
    """Sums over the steps since the last line, kept on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.reset()

    def reset(self) -> None:
        """Begin a new window now."""
        self._begin = time.perf_counter()
        self._idle = 0.0
        self._sums: dict[str, torch.Tensor] = {}
        self._waited = 0.0
        self._steps = self._volumes = self._bytes = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is done between steps, so that it does not count as a slow step."""
        begin = time.perf_counter()
        yield
        self._idle += time.perf_counter() - begin

    def waited(self, seconds: float) -> None:
        """Add time spent waiting for data."""
        self._waited += seconds

    def add(
        self, step: int, output: ObjectiveOutput, grad_norm: torch.Tensor, volumes: int, read: int
    ) -> None:
        """Add one step's result; ``read`` is in bytes of decoded voxels."""
        loss = output.loss.detach()
        for name, value in {"loss": loss, **output.terms, "grad_norm": grad_norm}.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        first = ~finite & (self.bad_step < 0)
        self.bad_step = torch.where(first, step, self.bad_step)
        self._steps += 1
        self._volumes += volumes
        self._bytes += read

    def check_finite(self) -> None:
        """Wait for the device and look for a step that went wrong.

        Raises:
            TrainingError: a loss or gradient was infinite or not a number; names the first step.
        """
        bad = int(self.bad_step)
        if bad >= 0:
            raise TrainingError(
                f"step {bad}: the loss or its gradient is not finite. Look at the data with "
                f"prect replay --run NAME --step {bad}, lower optim.lr, or resume from the last "
                "checkpoint"
            )

    def summary(self) -> dict[str, float]:
        """Means over the window and all ranks.

        Speeds are sums over ranks: ``volumes_per_s``, and ``read_mb_per_s`` of decoded voxels.
        ``wait_share`` is the share of time in which the training process waited for data.
        """
        means = torch.stack([value.double() for value in self._sums.values()]).cpu() / self._steps
        seconds = time.perf_counter() - self._begin - self._idle
        times = torch.tensor([seconds / self._steps, self._waited / seconds], dtype=torch.float64)
        speeds = torch.tensor(
            [self._volumes / seconds, self._bytes / 1e6 / seconds], dtype=torch.float64
        )
        figures = torch.cat([means, times, speeds])
        if dist.is_initialized() and dist.get_world_size() > 1:
            shared = figures.to(self.device)
            dist.all_reduce(shared)
            figures = shared.cpu()
            figures[: len(means) + len(times)] /= dist.get_world_size()
        names = [*self._sums, "step_s", "wait_share", "volumes_per_s", "read_mb_per_s"]
        return dict(zip(names, figures.tolist(), strict=True))
