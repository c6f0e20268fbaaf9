"""The state of a run in one place: what a checkpoint holds, and how it is put back."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from prect.errors import CheckpointError, PrectError, TrainingError
from prect.train.config import TrainConfig
from prect.train.damage import bare
from prect.train.evaluate import Heldout
from prect.train.guards.guard import Guard
from prect.train.learner import Learner
from prect.train.optimizer import optimizer_tensors
from prect.train.run_folder import RunFolder
from prect.train.state.checkpoint import Checkpoint, Record, software_versions
from prect.train.state.random_state import random_states, restore_random_states
from prect.train.state.resume import Origin, Start, starting_point
from prect.train.state.saving import Team, read_together


@dataclass
class RunState:
    """Everything that changes while a run goes on; samples and learning rate follow the step."""

    learner: Learner
    """Student, heads and teacher."""
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    guard: Guard
    team: Team
    device: torch.device

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name; those of networks and optimiser are the ones in use, not copies."""
        rank = self.team.rank
        return {
            **self._trained(),
            **{f"rng.{rank}.{name}": t for name, t in random_states(self.device).items()},
        }

    def record(self, step: int, config: TrainConfig, origin: Origin, untrained: Heldout) -> Record:
        """What a checkpoint of this step says beside its tensors."""
        return Record(
            step=step,
            config=config.model_dump(mode="json"),
            manifest_digest=origin.manifest_digest,
            sources=origin.sources,
            global_batch=origin.global_batch,
            world=self.team.world,
            untrained=asdict(untrained),
            guard=self.guard.state(),
            scaler=self.scaler.state_dict(),
            versions=software_versions(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint's state in place of this one; all ranks together.

        Raises:
            CheckpointError: names or shapes of tensors differ.
        """
        trained, present = self._trained(), checkpoint.names()
        kept = {name for name in present if not name.startswith("rng.")}
        if unlike := sorted(trained.keys() ^ kept):
            raise CheckpointError(
                f"the checkpoint {checkpoint.path} does not fit the network: {len(unlike)} tensors "
                f"are on one side only; first: {unlike[0]}"
            )
        states = random_states(self.device)
        prefix = f"rng.{self.team.rank}."
        own = {prefix + name: t for name, t in states.items() if prefix + name in present}
        read_together(checkpoint.path, trained | own, self.team)
        if own:  # a rank that is new has none
            restore_random_states(states, self.device)
        self.guard.go_on_from(checkpoint.record.guard)
        if checkpoint.record.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.record.scaler)

    def _trained(self) -> dict[str, torch.Tensor]:
        moments = optimizer_tensors(self.learner, self.optimizer)
        return {
            **self.learner.state_dict(),
            **{f"optimizer.{name}": tensor for name, tensor in moments.items()},
        }


def common_start(
    folder: RunFolder,
    resume: str,
    config: TrainConfig,
    origin: Origin,
    team: Team,
    *,
    allow_changed: bool = False,
) -> Start:
    """Where all ranks begin, as rank 0 finds it; see `starting_point`.

    Raises:
        TrainingError: ranks see different manifests, or do not see the checkpoint.
        CheckpointError, TrainingError: as `starting_point`.
    """
    found: Start | PrectError | None = None
    if team.rank == 0:
        try:
            found = starting_point(folder, resume, config, origin, allow_changed=allow_changed)
        except PrectError as error:
            found = error if team.world == 1 else bare(error)
    start = team.from_first(found)
    if not isinstance(start, Start):
        assert start is not None  # rank 0 has said something
        raise start
    sees = start.checkpoint is None or start.checkpoint.path.exists()
    seen = team.gather((origin.manifest_digest[:12], sees))
    if any(other != (seen[0][0], True) for other in seen):
        raise TrainingError(
            f"ranks see different checkpoints or manifests (digest, checkpoint is there): {seen}; "
            "the workspace must be one folder that all of them share"
        )
    return start
