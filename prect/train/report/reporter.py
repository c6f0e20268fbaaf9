"""What a run tells of itself: lines of figures, the time of each process, incidents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch

from prect.train.callbacks import Callback
from prect.train.config import TrainConfig
from prect.train.evaluate import Heldout
from prect.train.flops import peak_flops, step_flops
from prect.train.parallel import Place
from prect.train.precision import resolved_precision
from prect.train.report.journal import IncidentKind, State
from prect.train.report.metrics import Timing, Window, mean_over_ranks, shared_figures, stragglers
from prect.train.report.sinks import Sink, close_all, open_sinks, write_all
from prect.train.run_folder import RunFolder
from prect.train.state.saving import Team

_TOLD_AT = 2


class Reporter:
    """Writes what rank 0 has to say, and every rank's own times."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, place: Place, team: Team, callback: Callback
    ) -> None:
        """Nothing is written before `open`."""
        self.config, self.folder, self.place, self.team = config, folder, place, team
        self.callback = callback
        self.leads = place.rank == 0
        self.journal = folder.journal(config.optim.max_steps)
        self._sinks: list[Sink] = []
        self._slow: dict[int, int] = {}
        self._at = 0

    def open(self, step: int) -> None:
        """Begin, at the step that the run goes on from.

        Raises:
            ConfigError: a library that figures are to be sent to is missing.
        """
        if self.leads:
            self._at = step
            self.be("running", step)
            self._sinks = open_sinks(self.config, self.folder.path, step)

    def close(self) -> None:
        """Flush what is open."""
        for failure in close_all(self._sinks):
            self.callback.on_notice(self._at, str(failure))

    def be(self, state: State, step: int, reason: str | None = None) -> None:
        """Write the state of the run down, for rank 0."""
        if self.leads:
            self._write(step, lambda: self.journal.be(state, step, reason))

    def line(self, step: int, window: Window, more: dict[str, float]) -> dict[str, float]:
        """Write the figures of the steps since the last line; all ranks together.

        Args:
            step: the step, counted from 1.
            window: what this rank measured.
            more: further figures, the same on all ranks.

        Returns:
            The figures of all ranks.
        """
        means = mean_over_ranks(window.means(), self.place.device)
        own = window.timing()
        timings = self.team.gather(own)
        figures = shared_figures(means, timings) | more
        figures |= self._use_of_device(figures["volumes_per_s"])
        self._write(step, lambda: self.folder.timing(self.place.rank).write(step, asdict(own)))
        if self.leads:
            self.figures(step, figures)
            self._report_slow(step, timings)
            self.be("running", step)
        return figures

    def figures(self, step: int, figures: dict[str, Any]) -> None:
        """Write figures wherever they are wanted, for rank 0."""
        self._write(step, lambda: self.folder.metrics.write(step, figures))
        self._at = step
        for failure in write_all(self._sinks, step, figures):
            self.incident(step, "sink_failed", str(failure))

    def evaluation(
        self, step: int, heldout: Heldout, floor: float, sentence: Callable[[], str]
    ) -> None:
        """Write an evaluation down, for rank 0."""
        if self.leads:
            self.figures(step, heldout.metrics() | {"heldout_floor": floor})
            self.callback.on_eval(step, heldout, sentence())

    def incident(self, step: int, kind: IncidentKind, text: str, **more: Any) -> None:
        """Write an incident down and tell of it, for rank 0."""
        if self.leads:
            self._write(step, lambda: self.journal.record(step, kind, text, **more))
            self.callback.on_notice(step, text)

    def _write(self, step: int, write: Callable[[], None]) -> None:
        """A record that cannot be written is told of; it is no reason to end a run of weeks."""
        try:
            write()
        except OSError as error:
            if self.leads:
                self.callback.on_notice(step, f"a record cannot be written: {error}")

    def _report_slow(self, step: int, timings: list[Timing]) -> None:
        """Tell of ranks that are slow for a second line in a row, once: all are now and then."""
        slow = stragglers(timings, self.config.train.straggler_factor)
        lines = {rank: self._slow.get(rank, 0) + 1 for rank in slow}
        self._slow = lines
        for rank in sorted(rank for rank, count in lines.items() if count == _TOLD_AT):
            own = timings[rank]
            self.incident(
                step,
                "straggler",
                f"rank {rank} takes {slow[rank]:.1f} times as long as the others: {own.wait_s:.2f} "
                f"s a step waiting for data, {own.encoder_s:.2f} s in the encoder",
                rank=rank,
            )

    def _use_of_device(self, volumes_per_s: float) -> dict[str, float]:
        if not self.leads:
            return {}
        used = self._flops * volumes_per_s
        figures = {"tflops": used / 1e12}
        if self._peak:
            figures["mfu"] = used / (self._peak * self.place.world)
        return figures

    @cached_property
    def _flops(self) -> int:
        return step_flops(self.config)

    @cached_property
    def _peak(self) -> float | None:
        device = self.place.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        return peak_flops(name, resolved_precision(self.config, device), self.config)


def describe(config: TrainConfig, place: Place) -> str:
    """Who computes, in what, and in how many passes."""
    shared = f" ({config.train.parallel})" if place.world > 1 else ""
    passes = config.passes(place.world)
    return (
        f"{place.world} process{'es' if place.world > 1 else ''}{shared} on "
        f"{'GPU' if place.on_gpu else 'CPU'}, {resolved_precision(config, place.device)}"
        + (f", {passes} passes a step" if passes > 1 else "")
    )
