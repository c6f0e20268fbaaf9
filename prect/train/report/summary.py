"""What a run says at its end, as ``summary.json`` and ``--json`` have it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prect.train.advice import Evidence, advise, collapsed
from prect.train.config import TrainConfig
from prect.train.damage import Quarantine
from prect.train.guards.guard import Guard
from prect.train.heldout import Floor
from prect.train.verdict import has_learned, verdict


def summary_of_end(
    folder: Path,
    config: TrainConfig,
    evidence: Evidence,
    floor: Floor,
    quarantine: Quarantine,
    guard: Guard,
) -> dict[str, Any]:
    """Of a run that has done all its steps."""
    trained, untrained = evidence.trained, evidence.untrained
    learned = has_learned(trained, untrained, floor)
    return {
        "run": config.run.name,
        "folder": str(folder),
        "step": evidence.step,
        "volumes_seen": evidence.step * evidence.global_batch,
        "weights": config.network.weights,
        "quarantined": sorted(map(list, quarantine.cases)),
        "worker_restarts": quarantine.restarts,
        "skipped": guard.skipped,
        "spikes": guard.spikes,
        "heldout": asdict(trained),
        "untrained": asdict(untrained),
        "floor": asdict(floor),
        "training": dict(evidence.metrics),
        "learned": learned,
        "collapsed": collapsed(trained),
        "advice": [] if learned else [asdict(each) for each in advise(evidence)],
        "verdict": verdict(trained, untrained, floor, evidence),
    }


def summary_of_stop(
    folder: Path, config: TrainConfig, step: int, signal: str, save_error: str | None
) -> dict[str, Any]:
    """Of a run that a signal has stopped.

    Args:
        folder: of the run.
        config: its settings.
        step: steps done.
        signal: its name, such as SIGTERM.
        save_error: why the last step was not saved, where it was not.
    """
    return {
        "run": config.run.name,
        "folder": str(folder),
        "step": step,
        "max_steps": config.optim.max_steps,
        "stopped": signal,
        "save_error": save_error,
    }
