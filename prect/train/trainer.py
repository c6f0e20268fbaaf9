"""The trainer: from a configuration to a trained encoder, one step after the other.

The state of a run is its weights and its step. Samples and learning rate are functions of the
step, so a resumed run goes on exactly where it was, bit for bit on a CPU.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Generator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from prect.errors import TrainingError
from prect.train.advice import Evidence, advise, collapsed
from prect.train.batch import CropBatch, assemble
from prect.train.callbacks import Callback, RunStart
from prect.train.checkpoint import Checkpoint, save_checkpoint, software_versions
from prect.train.collate import RawBatch
from prect.train.config import TrainConfig
from prect.train.damage import Quarantine
from prect.train.data import TrainingData
from prect.train.dataset import PoolFactory
from prect.train.evaluate import Heldout, evaluate, floor_of, heldout_from
from prect.train.learner import Learner, build_learner
from prect.train.loader import train_loader
from prect.train.metrics import Window
from prect.train.networks import parameter_count
from prect.train.objectives import ObjectiveOutput
from prect.train.precision import autocast
from prect.train.prefetch import plan_prefetch
from prect.train.run_folder import RunFolder, starting_point, write_json
from prect.train.schedule import learning_rate
from prect.train.verdict import has_learned, interim, verdict


@dataclass(frozen=True)
class Place:
    """Where this process computes, and its part in the run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            dist.barrier()


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
        pool: PoolFactory | None = None,
    ) -> None:
        """Build the network and find where to start; the folder is written by rank 0.

        Args:
            config: the settings.
            data: the volumes.
            place: device, rank and number of processes.
            callback: told what happens, on rank 0.
            resume: see :func:`prect.train.run_folder.starting_point`.
            pool: makes the pools to read stores through; the default opens stores on disk.

        Raises:
            TrainingError, CheckpointError: the run cannot start or go on as asked.
        """
        self.config, self.data, self.place, self.callback = config, data, place, callback
        self.leads = place.rank == 0
        self.global_batch = config.data.batch_size * place.world
        self.folder = RunFolder(data.workspace.run(config.run.name))
        self.train_views = data.views(config, "train", pool)
        self.heldout_views = data.views(config, "heldout", pool)
        self.reading = plan_prefetch(
            config, data.geometry, data.names, pin_memory=place.device.type == "cuda"
        )
        self.quarantine = Quarantine(self.train_views.allowed_damage, self.folder.path, place.rank)
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        start = starting_point(self.folder, resume, config, data.table.digest, self.global_batch)
        self.learner: Learner = build_learner(config, pretrained=start is None).to(place.device)
        self.parameters = [p for p in self.learner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            amsgrad=config.optim.amsgrad,
        )
        self.step = 0
        self.untrained: Heldout | None = None
        self.floor = floor_of(self.learner, config)
        self.newest: dict[str, float] = {}
        """The last training figures, as they were logged."""
        self._go_on_from(start)
        self.model = self._distribute()

    def run(self) -> dict[str, Any]:
        """Train to ``optim.max_steps``; returns the summary that is also written to the folder."""
        with self.folder.lock() if self.leads else nullcontext():
            return self._run()

    def _run(self) -> dict[str, Any]:
        self._begin()
        if self.untrained is None:
            self.untrained = self._evaluate()
            self._record_evaluation(self.untrained)
        last: Heldout | None = None
        window = Window(self.place.device)
        with closing(self._batches()) as batches:
            while self.step < self.config.optim.max_steps:
                asked = time.perf_counter()
                raw = next(batches)
                window.waited(time.perf_counter() - asked)
                output, grad_norm = self._optimise(raw)
                self.step += 1
                window.add(self.step, output, grad_norm, len(raw), raw.voxel_bytes)
                last = self._report(window)
        trained = last or self._evaluate()
        return self._finish(trained)

    def _optimise(self, raw: RawBatch) -> tuple[ObjectiveOutput, torch.Tensor]:
        config, device = self.config, self.place.device
        rate = learning_rate(self.step, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            batch: CropBatch = assemble(raw.to(device), config.view, config.crops)
        with autocast(config, device):
            output: ObjectiveOutput = self.model(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(output.loss)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.optim.clip_norm)
        self.optimizer.step()
        self.learner.objective.after_step((self.step + 1) / config.optim.max_steps)
        return output, grad_norm

    def _report(self, window: Window) -> Heldout | None:
        """Log, evaluate and save when it is time; the evaluation of the last step, if any."""
        pace, step = self.config.train, self.step
        ends = step == self.config.optim.max_steps
        logs = ends or step % pace.log_every == 0
        evaluates = ends or (pace.eval_every > 0 and step % pace.eval_every == 0)
        saves = ends or step % pace.checkpoint_every == 0
        if logs or evaluates or saves:
            window.check_finite()
        metrics: dict[str, float] | None = None
        if logs:
            metrics = window.summary() | {"lr": learning_rate(step - 1, self.config.optim)}
            self.newest = metrics
            if self.leads:
                self.folder.metrics.write(step, metrics)
        if self.leads:
            self.callback.on_step(step, metrics)
        if logs:
            window.reset()
        heldout = None
        with window.paused():
            if evaluates:
                heldout = self._evaluate()
                self._record_evaluation(heldout)
            if saves:
                self._save()
        return heldout

    def _batches(self) -> Generator[RawBatch]:
        return train_loader(
            self.train_views,
            self.config,
            range(self.step, self.config.optim.max_steps),
            rank=self.place.rank,
            world=self.place.world,
            pin_memory=self.place.device.type == "cuda",
            quarantine=self.quarantine,
            recycle=True,
        )

    def _go_on_from(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        self.learner.load(checkpoint.backbone, checkpoint.objective)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.step = checkpoint.step
        self.untrained = heldout_from(checkpoint.untrained)
        self.newest = self.folder.metrics.newest(checkpoint.step)

    def _distribute(self) -> torch.nn.Module:
        if self.place.world == 1:
            return self.learner
        devices = [self.place.device] if self.place.device.type == "cuda" else None
        # No buffer ever changes, so none needs sending at each step; torch 2.13 renamed the switch.
        known = inspect.signature(DistributedDataParallel).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {switch: False}
        return DistributedDataParallel(self.learner, device_ids=devices, **options)

    def _begin(self) -> None:
        # All ranks have looked into the folder by now; only then may it change.
        self._agree()
        self.quarantine.rewind(self.step if self.step else -1, self.place.world)
        self.place.barrier()
        self.quarantine.count()
        if not self.leads:
            return
        self.folder.begin(self.config, self.data.table.digest, self.global_batch, self.step)
        self.callback.on_start(
            RunStart(
                folder=self.folder.path,
                step=self.step,
                max_steps=self.config.optim.max_steps,
                global_batch=self.global_batch,
                train_volumes=len(self.data.rows["train"]),
                heldout_volumes=len(self.data.rows["heldout"]),
                parameters=parameter_count(self.learner),
                reading=self.reading.describe(),
            )
        )

    def _agree(self) -> None:
        """Wait for all ranks, and make sure that they start from the same place."""
        if self.place.world == 1:
            return
        mine = (self.step, self.data.table.digest)
        seen: list[Any] = [None] * self.place.world
        dist.all_gather_object(seen, mine)
        if any(other != mine for other in seen):
            raise TrainingError(
                f"ranks see different checkpoints or manifests (step, digest): {seen}; the "
                "workspace must be one folder that all of them share"
            )

    def _evaluate(self) -> Heldout:
        place = self.place
        return evaluate(
            self.learner,
            self.heldout_views,
            self.config,
            place.device,
            rank=place.rank,
            world=place.world,
            quarantine=self.quarantine,
            step=self.step,
        )

    def _record_evaluation(self, heldout: Heldout) -> None:
        if not self.leads:
            return
        figures = heldout.metrics() | {"heldout_floor": self.floor.value}
        self.folder.metrics.write(self.step, figures)
        self.callback.on_eval(self.step, heldout, self._sentence(heldout))

    def _sentence(self, heldout: Heldout) -> str:
        assert self.untrained is not None  # the first figures that are recorded are its own
        if self.step == 0:
            return (
                f"top-1 {heldout.top1:.2f} (chance {heldout.chance:.2f}) before the first step; "
                f"the best constant has {self.floor.value:.3f}"
            )
        return interim(heldout, self.untrained, self.floor, self._evidence(heldout))

    def _evidence(self, heldout: Heldout) -> Evidence:
        assert self.untrained is not None
        return Evidence(
            heldout, self.untrained, self.config, self.step, self.global_batch, self.newest
        )

    def _save(self) -> None:
        if not self.leads or self.untrained is None:
            return
        state = Checkpoint(
            step=self.step,
            backbone=self.learner.backbone.state_dict(),
            objective=self.learner.objective.state_dict(),
            optimizer=self.optimizer.state_dict(),
            config=self.config.model_dump(mode="json"),
            manifest_digest=self.data.table.digest,
            global_batch=self.global_batch,
            untrained=asdict(self.untrained),
            versions=software_versions(),
        )
        save_checkpoint(self.folder.checkpoints, state, self.config.train.keep_checkpoints)

    def _finish(self, trained: Heldout) -> dict[str, Any]:
        assert self.untrained is not None  # measured before the first step, kept by checkpoints
        untrained = self.untrained
        floor, evidence = self.floor, self._evidence(trained)
        learned = has_learned(trained, untrained, floor)
        self.place.barrier()  # what the other ranks met is written down by now
        self.quarantine.count()
        summary = {
            "run": self.config.run.name,
            "folder": str(self.folder.path),
            "step": self.step,
            "volumes_seen": self.step * self.global_batch,
            "weights": self.config.network.weights,
            "quarantined": sorted(map(list, self.quarantine.cases)),
            "worker_restarts": self.quarantine.restarts,
            "heldout": asdict(trained),
            "untrained": asdict(untrained),
            "floor": asdict(floor),
            "training": self.newest,
            "learned": learned,
            "collapsed": collapsed(trained),
            "advice": [] if learned else [asdict(each) for each in advise(evidence)],
            "verdict": verdict(trained, untrained, floor, evidence),
        }
        if self.leads:
            write_json(self.folder.summary, summary)
            self.callback.on_end(summary)
        self.place.barrier()
        return summary
