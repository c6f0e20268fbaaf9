"""The trainer: from a configuration to a trained encoder, one step after the other.

Samples and learning rate are functions of the step, so the state of a run is its weights, its
optimiser and its step: a resumed run goes on exactly where it was, bit for bit on a CPU.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from prect.errors import HopelessError, PrectError
from prect.train.batch import CropBatch, assemble, join
from prect.train.callbacks import Callback, RunStart
from prect.train.collate import RawBatch
from prect.train.config import TrainConfig
from prect.train.damage import Quarantine
from prect.train.data import TrainingData
from prect.train.dataset import PoolFactory
from prect.train.examiner import Examiner
from prect.train.guards.guard import Agreement, Guard, agree
from prect.train.guards.stopping import StopRequest
from prect.train.guards.watchdog import Phase, Unwatched, Watchdog
from prect.train.heldout import Heldout, heldout_from
from prect.train.learner import Learner, build_learner
from prect.train.loader import train_loader
from prect.train.networks import parameter_count
from prect.train.objectives import ObjectiveOutput
from prect.train.optimizer import build_optimizer
from prect.train.parallel import Place, clip_gradients, compile_encoder, distribute
from prect.train.precision import autocast, scaler_of, set_tf32
from prect.train.prefetch import plan_prefetch
from prect.train.report.lines import write_json
from prect.train.report.metrics import EncoderClock, Window
from prect.train.report.profiling import StepProfiler
from prect.train.report.reporter import Reporter, describe
from prect.train.report.summary import summary_of_end, summary_of_stop
from prect.train.run_folder import RunFolder
from prect.train.schedule import learning_rate
from prect.train.state.resume import origin_of
from prect.train.state.run_state import RunState, common_start
from prect.train.state.saving import Saved, Saver, Team


class Trainer:
    """One process's part of a run."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        place: Place,
        callback: Callback,
        *,
        resume: str = "auto",
        allow_changed: bool = False,
        pool: PoolFactory | None = None,
        profile: tuple[int, int] | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        """Build the network and find where to start; the folder is written by rank 0.

        Args:
            config: the settings.
            data: the volumes.
            place: device, rank and number of processes.
            callback: told what happens, on rank 0.
            resume: see :func:`prect.train.state.resume.starting_point`.
            allow_changed: go on although data or settings are others than they were.
            pool: makes the pools to read stores through; the default opens stores on disk.
            profile: first and last step, counted from 1, to write a profile of.
            watchdog: ends the run when it no longer moves.

        Raises:
            ConfigError, TrainingError, CheckpointError: the run cannot start or go on as asked.
        """
        self.config, self.data, self.place = config, data, place
        self.team = Team(place.rank, place.world, dist.group.WORLD if place.world > 1 else None)
        self.folder = RunFolder(data.workspace.run(config.run.name))
        self.origin = origin_of(data, config, place.world)
        self.passes = config.passes(place.world)
        self.train_views = data.views(config, "train", pool)
        self.reading = plan_prefetch(config, data.geometry, data.names, pin_memory=place.on_gpu)
        self.quarantine = Quarantine(self.train_views.allowed_damage, self.folder.path, place.rank)
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        set_tf32(config.train.tf32)
        self.start = common_start(
            self.folder, resume, config, self.origin, self.team, allow_changed=allow_changed
        )
        self.step = self.start.step
        self._build()
        self.watchdog = watchdog or Unwatched()
        self.reporter = Reporter(config, self.folder, place, self.team, callback)
        self.examiner = Examiner(
            config,
            place,
            self.learner,
            data.views(config, "heldout", pool),
            self.quarantine,
            self.reporter,
            lambda step: self.watchdog.beat(step, Phase.REPORTING),
        )
        self.newest: dict[str, float] = {}
        """The last training figures, as they were logged."""
        if self.start.checkpoint is not None:
            self.state.restore(self.start.checkpoint)
            self.examiner.untrained = heldout_from(self.start.checkpoint.record.untrained)
            self.newest = self.folder.metrics.newest("loss", self.step)
        self.saver = Saver(
            self.folder.checkpoints,
            self.team.second(),
            keep_last=config.train.keep_last,
            keep_every=config.train.keep_every,
            pinned=place.on_gpu,
        )
        self.saved = self.step
        """The step of the last checkpoint that was begun."""
        self.profiler = (
            StepProfiler(self.folder.profile, *profile, place.rank, place.device)
            if profile is not None
            else None
        )

    def _build(self) -> None:
        """Network, optimiser, and what counts and measures; the order is that of torch."""
        config, place = self.config, self.place
        fresh = self.start.checkpoint is None
        self.learner: Learner = build_learner(config, pretrained=fresh).to(place.device)
        if self.passes > 1:
            self.learner.pass_at_once(config.data.batch_size * config.crops.per_volume)
        if config.train.compile:
            compile_encoder(self.learner)
        self.model = distribute(self.learner, config, place)
        self.parameters = [p for p in self.learner.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config, self.learner, place.device)
        self.scaler = scaler_of(config, place.device)
        self.guard = Guard(config.train.spike_deviations)
        self.state = RunState(
            self.learner, self.optimizer, self.scaler, self.guard, self.team, place.device
        )
        clock = EncoderClock(place.device)
        self.learner.around_encoder = clock.running
        self.window = Window(place.device, clock)

    def run(self) -> dict[str, Any]:
        """Train to ``optim.max_steps``, or until a signal asks to stop.

        Returns:
            The summary that is also written to the folder; after a stop what `_stop` tells.

        Raises:
            HopelessError: loss or gradient stay not finite, or a checkpoint that must be written
                cannot be; on all ranks at the same step.
        """
        # The lock is taken first: who does not have it must not say what state the run is in.
        with self.folder.lock() if self.reporter.leads else nullcontext():
            try:
                with StopRequest() as request:
                    return self._run(request)
            except BaseException as error:
                reason = f"{type(error).__name__}: {error}"
                self.reporter.be("failed", self.step, reason)
                if isinstance(error, HopelessError):  # on all ranks, so what is begun can end
                    self.saver.wait()
                raise
            finally:
                self.watchdog.stop()
                self.reporter.close()
                if self.profiler is not None:
                    self.profiler.close()

    def _run(self, request: StopRequest) -> dict[str, Any]:
        self._begin()
        last: Heldout | None = None
        owed = self.team.from_first(self.examiner.owed(self.step))
        if self.examiner.untrained is None or owed:
            last = self._examine()
        with closing(self._batches()) as batches:
            self.window.reset()
            while self.step < self.config.optim.max_steps:
                agreement = self._advance(batches, request)
                last = self._report(agreement)
                if agreement.stop is not None and self.step < self.config.optim.max_steps:
                    return self._stop(agreement.stop)
        return self._finish(last or self.examiner.examine(self.step))

    def _advance(self, batches: Iterator[RawBatch], request: StopRequest) -> Agreement:
        """One step, from its samples to the weights after it."""
        number = self.step + 1
        if self.profiler is not None:
            self.profiler.before_step(number)
        self.watchdog.beat(number, Phase.WAITING)
        batch = self._next(batches)
        self.watchdog.beat(number, Phase.COMPUTING)
        output, grad_norm, agreement = self._optimise(batch, request)
        self.watchdog.beat(number, Phase.REPORTING)
        self.step = number
        self.window.add(None if agreement.bad_ranks else output, grad_norm)
        if self.profiler is not None:
            self.profiler.after_step(number)
        return agreement

    def _next(self, batches: Iterator[RawBatch]) -> CropBatch:
        """This rank's share of a step on the device, read in parts."""
        parts = []
        for _ in range(self.passes):
            with self.window.waiting():
                raw = next(batches)
            self.window.read(len(raw), raw.voxel_bytes)
            with torch.no_grad():
                part = assemble(raw.to(self.place.device), self.config.view, self.config.crops)
            parts.append(part)
        return join(parts)

    def _optimise(
        self, batch: CropBatch, request: StopRequest
    ) -> tuple[ObjectiveOutput, torch.Tensor, Agreement]:
        config, place = self.config, self.place
        rate = learning_rate(self.step, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with autocast(config, place.device):
            output: ObjectiveOutput = self.model(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(output.loss))
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.parameters, config.optim.clip_norm)
        agreement = agree(
            output.loss, grad_norm, request.signal, self.saver.done, place.rank, place.world
        )
        if not agreement.bad_ranks:
            self.scaler.step(self.optimizer)
            self.learner.objective.after_step((self.step + 1) / config.optim.max_steps)
        self.scaler.update()
        return output, grad_norm, agreement

    def _report(self, agreement: Agreement) -> Heldout | None:
        """Judge, log, save and evaluate when it is time; the evaluation of this step, if any."""
        pace, step = self.config.train, self.step
        ends = step == self.config.optim.max_steps
        stops = agreement.stop is not None
        self._judge(agreement)
        if agreement.saved:
            self._after_save(self.saver.wait())
        metrics: dict[str, float] | None = None
        if ends or stops or step % pace.log_every == 0:
            metrics = self.newest = self.reporter.line(step, self.window, self._own_figures())
            self.window.reset()
        if self.reporter.leads:
            self.reporter.callback.on_step(step, metrics)
        heldout = None
        with self.window.paused():
            if ends or (step % pace.checkpoint_every == 0 and not self.guard.in_a_row):
                self._save()
            # Whoever asks to stop will not wait for an evaluation; the run makes up for it.
            if ends or (self.examiner.due(step) and not stops):
                heldout = self._examine()
        return heldout

    def _examine(self) -> Heldout:
        found = self.examiner.examine(self.step)
        self.examiner.report(self.step, found, self.newest)
        return found

    def _own_figures(self) -> dict[str, float]:
        figures = {
            "lr": learning_rate(self.step - 1, self.config.optim),
            "skipped": float(self.guard.skipped),
        }
        if self.scaler.is_enabled():
            figures["loss_scale"] = self.scaler.get_scale()
        return figures

    def _judge(self, agreement: Agreement) -> None:
        """Take the step into account: good, skipped, or one too many.

        Raises:
            HopelessError: too many steps in a row were skipped.
        """
        if not agreement.bad_ranks:
            odd = self.guard.follow(agreement.loss)
            if odd is not None:
                self.reporter.incident(self.step, "spike", f"step {self.step}: {odd}")
            return
        if self.scaler.is_enabled() and not agreement.bad_loss and self.scaler.get_scale() >= 1:
            return  # float16 overflows now and then; the scale has been lowered
        self.guard.skip()
        what = "loss" if agreement.bad_loss else "gradient"
        self.reporter.incident(
            self.step,
            "skipped",
            f"step {self.step}: the {what} is not finite on rank "
            f"{', '.join(map(str, agreement.bad_ranks))}; no rank takes the step. What it saw: "
            f"prect replay --run {self.config.run.name} --step {self.step}",
            ranks=list(agreement.bad_ranks),
        )
        if self.guard.in_a_row >= self.config.train.max_skipped:
            raise HopelessError(
                f"step {self.step}: {self.guard.in_a_row} steps in a row had a loss or gradient "
                "that is not finite (train.max_skipped). Look at the data with prect replay --run "
                f"{self.config.run.name} --step {self.step}, lower optim.lr, or go on from an "
                "earlier checkpoint with --resume PATH"
            )

    def _batches(self) -> Generator[RawBatch]:
        return train_loader(
            self.train_views,
            self.config,
            range(self.step, self.config.optim.max_steps),
            rank=self.place.rank,
            world=self.place.world,
            pin_memory=self.place.on_gpu,
            quarantine=self.quarantine,
            recycle=True,
        )

    def _begin(self) -> None:
        """Make the folder ready: all ranks have looked into it by now, so it may change."""
        step, start, reporter = self.step, self.start, self.reporter
        self.place.barrier()
        self.quarantine.rewind(step if step else -1, self.place.world)
        if reporter.leads:
            damaged = [path for path, _ in start.damaged]
            self.folder.begin(
                self.config, self.origin.manifest_digest, self.origin.global_batch, step, damaged
            )
            self.saver.clear()
        self.place.barrier()
        self.quarantine.count()
        self._open_reporter()
        self.watchdog.start()
        if not reporter.leads:
            return
        reporter.callback.on_start(
            RunStart(
                folder=self.folder.path,
                step=step,
                max_steps=self.config.optim.max_steps,
                global_batch=self.origin.global_batch,
                train_volumes=len(self.data.rows["train"]),
                heldout_volumes=len(self.data.rows["heldout"]),
                parameters=parameter_count(self.learner),
                reading=self.reading.describe(),
                computing=describe(self.config, self.place),
            )
        )
        for path, why in start.damaged:
            text = f"{why}; taking the one before"
            reporter.incident(step, "damaged_checkpoint", text, path=str(path))
        if start.changed:
            reporter.incident(step, "changed", "going on although " + "; ".join(start.changed))

    def _open_reporter(self) -> None:
        """Begin to report, or end on all ranks: rank 0 alone would be waited for."""
        problem = None
        try:
            self.reporter.open(self.step)
        except PrectError as error:
            problem = str(error)
        problem = self.team.from_first(problem)
        if problem is not None:
            raise HopelessError(problem)

    def _save(self) -> None:
        """Begin to write a checkpoint of this step, unless there is one."""
        if self.saved == self.step:
            return
        assert self.examiner.untrained is not None
        record = self.state.record(self.step, self.config, self.origin, self.examiner.untrained)
        with self.window.saving():
            before = self.saver.begin(self.state.tensors(), record)
        self.saved = self.step
        self._after_save(before)

    def _after_save(self, saved: Saved | None) -> None:
        """Look at how the writing of a checkpoint ended.

        Raises:
            HopelessError: it failed, and ``train.on_save_error`` is ``stop``.
        """
        if saved is None or saved.error is None:
            return
        text = (
            f"the checkpoint of step {saved.step} could not be written ({saved.error}); those "
            "that are there are untouched"
        )
        self.reporter.incident(self.step, "save_failed", text)
        if self.config.train.on_save_error == "stop":
            raise HopelessError(f"{text}. The run stops, as train.on_save_error says")

    def _stop(self, number: signal.Signals) -> dict[str, Any]:
        """Save and leave; what the caller is told."""
        self.watchdog.stop()  # a disk may be slow
        error = None
        if self.guard.in_a_row:
            error = f"the last {self.guard.in_a_row} steps were skipped as not finite"
        else:
            self._save()
        saved = self.saver.wait()
        if saved is not None and saved.error is not None:
            error = saved.error
        if error is not None:
            text = f"no checkpoint was written of step {self.step} ({error})"
            self.reporter.incident(self.step, "save_failed", text)
        self.reporter.be("stopped", self.step, number.name)
        self.place.barrier()
        return summary_of_stop(self.folder.path, self.config, self.step, number.name, error)

    def _finish(self, trained: Heldout) -> dict[str, Any]:
        self.watchdog.stop()
        saved = self.saver.wait()
        if saved is not None and saved.error is not None:
            text = f"all steps are done, but the last checkpoint was not written ({saved.error})"
            self.reporter.incident(self.step, "save_failed", text)
            raise HopelessError(
                f"{text}; make room, and the same command goes on from the newest that there is"
            )
        self.place.barrier()  # what the other ranks met is written down by now
        self.quarantine.count()
        evidence = self.examiner.evidence(self.step, trained, self.newest)
        summary = summary_of_end(
            self.folder.path,
            self.config,
            evidence,
            self.examiner.floor,
            self.quarantine,
            self.guard,
        )
        if self.reporter.leads:
            write_json(self.folder.summary, summary)
            self.reporter.be("finished", self.step)
            self.reporter.callback.on_end(summary)
        self.place.barrier()
        return summary
