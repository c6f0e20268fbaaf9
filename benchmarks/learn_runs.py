"""The runs of learn.py, and what one of them does in a process of its own: train, then retrieve."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from measuring import serve

DATASET = "phantoms"
PROGRAM = Path(__file__)
SHUFFLED = "shuffled labels"
DEFAULT = "default"

_COMMON = {
    "data.workers": 0,
    "train.threads": 1,
    "train.eval_batch": 4,
    "train.keep_last": 100,
    "optim.lr": 5e-4,
    "optim.warmup_steps": 20,
}
GEOMETRIES: Mapping[str, Mapping[str, Any]] = {
    # Version 1: four by four bases over the whole depth, crops larger than what is shown of them.
    "voco-v1": {
        "view.grid": [96, 96, 24],
        "crops.base_grid": [4, 4, 1],
        "crops.size": [24, 24, 24],
        "crops.resize": [16, 16, 16],
        "data.batch_size": 4,
        "optim.lr": 4e-4,
    },
    # Version 2: three by three, shown as they are; this is the preset demo.
    "voco-v2": {},
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "no teacher": {"objective.teacher": "none"},
    "teacher starts at random": {"objective.teacher_init": "random"},
    "momentum 0.99": {"objective.ema_momentum": 0.99},
    "momentum 0.9 to 0.999": {"objective.ema_momentum_end": 0.999},
}


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    cases: int
    """Phantoms."""
    heldout: int
    """Of them, those that are not trained on."""
    steps: int
    eval_every: int
    probe_every: int
    """Steps between checkpoints, at each of which places are retrieved."""
    views: int
    """Held-out views of an evaluation."""
    queries: int
    """Crops of each volume whose place is looked for."""
    gallery: int
    """Most places that it is looked for at in each other volume."""
    seeds: int
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training run."""

    objective: str
    variant: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By dotted path, over the preset ``demo``."""

    @property
    def name(self) -> str:
        return f"{self.objective}, {self.variant}, seed {self.seed}"

    @property
    def folder(self) -> str:
        return self.name.replace(", ", "-").replace(" ", "_")


def runs(extent: Extent, objectives: tuple[str, ...]) -> list[Run]:
    """All runs; those that the goals are set for come first."""
    return [*_main_runs(extent, objectives), *_variant_runs(extent, objectives)]


def _main_runs(extent: Extent, objectives: tuple[str, ...]) -> Iterator[Run]:
    for objective in objectives:
        first = Run(objective, DEFAULT, 0, _settings(extent, objective))
        for seed in range(extent.seeds):
            yield replace(first, seed=seed)
        yield replace(
            first,
            variant=SHUFFLED,
            settings={**first.settings, "augment.shuffle_labels": True},
        )


def _variant_runs(extent: Extent, objectives: tuple[str, ...]) -> Iterator[Run]:
    # No curve is drawn of them, and an evaluation takes as long as dozens of steps.
    ends = replace(extent, eval_every=extent.steps, probe_every=extent.steps)
    for variant in extent.variants:
        for objective in objectives:
            settings = {**_settings(ends, objective), **VARIANTS[variant]}
            yield Run(objective, variant, 0, settings)


def _settings(extent: Extent, objective: str) -> dict[str, Any]:
    return {
        **_COMMON,
        **GEOMETRIES[objective],
        "objective.name": objective,
        "data.heldout_share": 0.01,
        "data.heldout_minimum": extent.heldout,
        "optim.max_steps": extent.steps,
        "train.log_every": min(10, extent.steps),
        "train.eval_every": extent.eval_every,
        "train.eval_views": extent.views,
        "train.checkpoint_every": extent.probe_every,
    }


def train_and_probe(
    *, workspace: str, dataset: str, run: dict[str, Any], queries: int, gallery: int
) -> dict[str, Any]:
    """Train one run and look for places in held-out patients, beside both controls.

    Args:
        workspace: holds the stores, and receives the run.
        dataset: what to train on.
        run: a `Run` as plain types.
        queries: crops of each volume whose place is looked for.
        gallery: most places that it is looked for at in each other volume.
    """
    from prect.train.callbacks import Silent  # noqa: PLC0415
    from prect.train.config import load_config  # noqa: PLC0415
    from prect.train.launch import launch  # noqa: PLC0415

    wanted = Run(**run)
    overrides = [f"{path}={json.dumps(value)}" for path, value in wanted.settings.items()]
    named = (f"run.name={wanted.folder}", f"run.seed={wanted.seed}", f"data.datasets={dataset}")
    config = load_config("demo", None, [*overrides, *named])
    began = perf_counter()
    summary = launch(config, Path(workspace), Silent())
    trained = perf_counter()
    lines = _lines(Path(summary["folder"]) / "metrics.jsonl")
    retrieval = _retrieve(Path(workspace), config, queries, gallery)
    return {
        "name": wanted.name,
        **{k: v for k, v in run.items() if k != "settings"},
        "summary": {k: v for k, v in summary.items() if k != "folder"},
        "evaluations": [line for line in lines if "heldout_total" in line],
        "training": [line for line in lines if "loss" in line],
        **retrieval,
        "seconds": {"training": trained - began, "retrieval": perf_counter() - trained},
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _retrieve(workspace: Path, config: Any, queries: int, gallery: int) -> dict[str, Any]:
    """Error in mm of the trained network and of the controls, and its course over checkpoints."""
    import torch  # noqa: PLC0415

    from prect.train import probes  # noqa: PLC0415
    from prect.train.data import open_data  # noqa: PLC0415
    from prect.train.learner import build_learner  # noqa: PLC0415
    from prect.train.state.checkpoint import list_checkpoints, load_checkpoint  # noqa: PLC0415
    from prect.workspace import Workspace  # noqa: PLC0415

    place = Workspace(workspace)
    volumes = list(probes.probe_volumes(open_data(place, config), config))
    asked = probes.PositionSettings(queries=queries, gallery=gallery)
    learner = build_learner(config)

    def result(features: probes.Features) -> probes.PositionResult:
        # Each control at its best: histograms are compared better as they are.
        raw = isinstance(features, probes.HistogramFeatures)
        settings = replace(asked, standardise=not raw)
        with torch.no_grad():
            return probes.position_retrieval(features.embed, volumes, config.crops, settings)

    untrained = probes.untrained_features(config.network, config.run.seed)
    controls = {"untrained": result(untrained), "histogram": result(probes.HistogramFeatures())}
    course = [{"step": 0, **_error(controls["untrained"])}]
    for path in list_checkpoints(place.run(config.run.name) / "checkpoints"):
        checkpoint = load_checkpoint(path)
        learner.backbone.load_state_dict(checkpoint.tensors("backbone."))
        found = _error(result(probes.NetworkFeatures(learner.backbone)))
        course.append({"step": checkpoint.step, **found})
    last = {name: value for name, value in course[-1].items() if name != "step"}
    return {
        "retrieval": {"trained": last, **{n: _error(r) for n, r in controls.items()}},
        "retrieval_course": course,
        "retrieval_references": controls["histogram"].references(),
    }


def _error(result: Any) -> dict[str, Any]:
    from prect.train.probes import estimates  # noqa: PLC0415

    return asdict(estimates(result)["error_mm"])


if __name__ == "__main__":
    serve({"train_and_probe": train_and_probe})
