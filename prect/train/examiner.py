"""When the held-out patients are asked, and what is made of their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prect.train.advice import Evidence
from prect.train.config import TrainConfig
from prect.train.damage import Quarantine
from prect.train.dataset import ViewDataset
from prect.train.evaluate import evaluate, floor_of
from prect.train.heldout import Heldout
from prect.train.learner import Learner
from prect.train.parallel import Place
from prect.train.report.reporter import Reporter
from prect.train.verdict import interim


class Examiner:
    """Evaluates a run's network, and holds it against the same network untrained."""

    def __init__(
        self,
        config: TrainConfig,
        place: Place,
        learner: Learner,
        views: ViewDataset,
        quarantine: Quarantine,
        reporter: Reporter,
        beat: Callable[[int], None],
    ) -> None:
        """Nothing is computed yet.

        Args:
            config: the run's settings.
            place: this process's part in the run.
            learner: what is evaluated.
            views: the held-out stream.
            quarantine: told what was replaced.
            reporter: told of evaluations.
            beat: called with the step after each batch, for who watches over progress.
        """
        self.config, self.place, self.learner, self.views = config, place, learner, views
        self.quarantine, self.reporter, self.beat = quarantine, reporter, beat
        self.floor = floor_of(learner, config)
        self.untrained: Heldout | None = None
        """Figures before the first step; a checkpoint keeps them."""

    def due(self, step: int) -> bool:
        """Whether this is a step to evaluate after."""
        every = self.config.train.eval_every
        return every > 0 and step % every == 0

    def owed(self, step: int) -> bool:
        """Whether a run that goes on was stopped before the evaluation of its last step."""
        if not 0 < step < self.config.optim.max_steps or not self.due(step):
            return False
        lines = self.reporter.folder.metrics.read(step)
        return not any(line["step"] == step and "heldout_total" in line for line in lines)

    def examine(self, step: int) -> Heldout:
        """Evaluate; all ranks together, the same result on each."""
        found = evaluate(
            self.learner,
            self.views,
            self.config,
            self.place.device,
            rank=self.place.rank,
            world=self.place.world,
            quarantine=self.quarantine,
            step=step,
            beat=lambda: self.beat(step),
        )
        self.untrained = self.untrained or found
        return found

    def report(self, step: int, found: Heldout, newest: Mapping[str, float]) -> None:
        """Write an evaluation down; ``newest`` are the last training figures."""
        self.reporter.evaluation(
            step, found, self.floor.value, lambda: self._sentence(step, found, newest)
        )

    def evidence(self, step: int, found: Heldout, newest: Mapping[str, float]) -> Evidence:
        """All that a verdict is built on."""
        assert self.untrained is not None  # measured before the first step, kept by checkpoints
        volumes = self.config.step_volumes(self.place.world)
        return Evidence(found, self.untrained, self.config, step, volumes, newest)

    def _sentence(self, step: int, found: Heldout, newest: Mapping[str, float]) -> str:
        evidence = self.evidence(step, found, newest)
        if step == 0:
            return (
                f"top-1 {found.top1:.2f} (chance {found.chance:.2f}) before the first step; "
                f"the best constant has {self.floor.value:.3f}"
            )
        return interim(found, evidence.untrained, self.floor, evidence)
