"""What is told of runs, from folders that are whole, half written, old or in use."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prect.errors import TrainingError
from prect.files import is_locked
from prect.train.report.curves import draw_curves
from prect.train.report.runs import Happening, find_run, list_runs, read_run
from prect.workspace import Workspace
from tests.train.conftest import MakeConfig
from tests.train.report.run_folders import (
    UPDATED,
    evaluation_line,
    training_line,
    write_lines,
    write_run,
)

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_a_run_tells_what_it_has_written(place: Workspace) -> None:
    incidents = [
        {"step": 2, "kind": "spike", "text": "loss 9.1"},
        {"step": 3, "kind": "skipped", "text": "not finite", "rank": 1},
        {"step": 4, "kind": "spike", "text": "loss 8.2"},
    ]
    folder = write_run(
        place.run("a"), totals={0: (0.8, 0.3), 4: (0.4, 0.7)}, incidents=incidents, ranks=2
    )
    record = read_run(folder)
    info = record.info
    assert (info.name, info.state, info.reason) == ("a", "stopped", "SIGTERM")
    assert (info.step, info.max_steps, info.checkpoints) == (4, 10, (4,))
    assert (info.loss, info.volumes_per_s, info.wait_share) == (0.25, 8.0, 0.01)
    assert (info.heldout["total"], info.heldout["floor"], info.heldout["step"]) == (0.4, 0.6, 4)
    assert info.learned is True
    assert info.incidents == {"spike": 2, "skipped": 1}
    assert info.updated == datetime.fromisoformat(UPDATED)
    assert info.seconds_left is None
    assert [line["step"] for line in record.training] == [1, 2, 3, 4]
    assert [line["step"] for line in record.evaluations] == [0, 4]
    assert record.incidents[1] == Happening(3, "skipped", "not finite")
    assert {rank: lines[-1]["wait_s"] for rank, lines in record.timings.items()} == {
        0: 0.02,
        1: 0.04,
    }


def test_a_line_cut_off_and_files_that_are_missing_are_no_harm(place: Workspace) -> None:
    folder = write_run(place.run("a"), steps=3)
    for name in ("metrics.jsonl", "timing-rank0.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step": 4, "loss": 0.')
    (folder / "incidents.jsonl").write_text('{"step": 1, "kind": "spike", "text": "x"}\n{"st')
    (folder / "summary.json").write_text('{"step": 3, "lear')
    info = read_run(folder).info
    assert info.step == 3
    assert info.loss == pytest.approx(1 / 3)
    assert info.incidents == {"spike": 1}

    empty = place.run("b")
    empty.mkdir()
    nothing = read_run(empty).info
    assert (nothing.state, nothing.step, nothing.max_steps) == ("never began", 0, None)
    assert (nothing.loss, nothing.learned, nothing.updated) == (None, None, None)


HOLD = """
import sys, time
from pathlib import Path
from prect.files import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("has_state", [True, False])
def test_a_run_runs_as_long_as_its_process_holds_the_lock(
    place: Workspace, has_state: bool
) -> None:
    folder = write_run(place.run("a"), state="running" if has_state else None)
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        running = read_run(folder).info
        process.kill()
    assert running.state == "running"
    assert running.seconds_left == pytest.approx(6 * 2.0)
    # The file was written later than the run says, so it is the better news.
    assert running.updated is not None
    assert running.updated > datetime(2026, 1, 2, 4, tzinfo=UTC)

    assert (folder / ".lock").read_text() != ""
    assert not is_locked(folder / ".lock")
    killed = read_run(folder).info
    assert killed.state == "killed"
    assert killed.seconds_left is None


def test_runs_of_a_release_without_states(place: Workspace) -> None:
    finished = write_run(place.run("finished"), steps=10, state=None)
    (finished / "summary.json").write_text(json.dumps({"step": 10, "learned": False}))
    (finished / "checkpoints" / "step-00000006.pt").touch()
    write_run(place.run("stopped"), state=None)
    killed = write_run(place.run("killed"), state=None)
    (killed / ".lock").write_text("node 123")
    states = {info.name: info.state for info in list_runs(place)}
    assert states == {"finished": "finished", "stopped": "stopped", "killed": "killed"}
    assert read_run(finished).info.checkpoints == (6, 10)


@pytest.mark.parametrize(
    ("totals", "learned"),
    [
        ({0: (0.8, 0.3), 4: (0.4, 0.7)}, True),
        ({0: (0.8, 0.3), 4: (0.7, 0.3)}, False),
        ({0: (0.8, 0.3)}, None),
        ({2: (0.8, 0.3), 4: (0.4, 0.7)}, None),
        ({}, None),
    ],
)
def test_whether_it_has_learned_is_judged_as_the_trainer_does(
    place: Workspace, totals: dict[int, tuple[float, float]], learned: bool | None
) -> None:
    assert read_run(write_run(place.run("a"), totals=totals)).info.learned is learned


def test_an_older_summary_is_not_taken_for_the_newest_figures(place: Workspace) -> None:
    folder = write_run(place.run("a"), totals={0: (0.8, 0.3), 2: (0.7, 0.3), 4: (0.4, 0.7)})
    (folder / "summary.json").write_text(json.dumps({"step": 2, "learned": False}))
    assert read_run(folder).info.learned is True
    (folder / "summary.json").write_text(json.dumps({"step": 4, "learned": False}))
    assert read_run(folder).info.learned is False


def test_what_could_not_be_read_is_an_incident(place: Workspace) -> None:
    folder = write_run(place.run("a"), incidents=[{"step": 3, "kind": "spike", "text": "x"}])
    damage = {"index": 7, "dataset": "toy", "case": "c", "level": None, "chunk": None}
    lines = [
        {"step": 1, "domain": "train", **damage, "reason": "gone", "replaced_by": 8},
        {"step": 4, "restart": "killed by signal 9"},
    ]
    write_lines(folder / "quarantine-rank0.jsonl", lines)
    record = read_run(folder)
    assert [(each.step, each.kind) for each in record.incidents] == [
        (1, "unreadable"),
        (3, "spike"),
        (4, "reader_died"),
    ]
    assert "toy/c: gone" in record.incidents[0].text


def test_the_run_that_wrote_last_comes_first(place: Workspace) -> None:
    for name, hour in (("old", 1), ("new", 9), ("between", 5)):
        folder = write_run(place.run(name))
        told = json.loads((folder / "state.json").read_text())
        told["updated"] = f"2026-01-02T{hour:02d}:00:00+00:00"
        (folder / "state.json").write_text(json.dumps(told))
    place.run("never").mkdir()
    (place.runs / "mlflow.db").touch()
    assert [info.name for info in list_runs(place)] == ["new", "between", "old", "never"]
    assert list_runs(Workspace(place.root / "none")) == []


def test_an_unknown_run_is_told_with_the_nearest_first(place: Workspace, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no run 'x', and no other in .*runs"):
        find_run(place, "x")
    for name in ("alpha", "voco-b-one", "voco-b-two"):
        write_run(place.run(name))
    with pytest.raises(TrainingError, match="there are voco-b-two, voco-b-one, alpha"):
        find_run(place, "voco-b-tw")
    assert find_run(place, "alpha") == place.run("alpha")
    assert find_run(Workspace(tmp_path / "other"), str(place.run("alpha"))) == place.run("alpha")


@pytest.mark.parametrize("lines", [1, 400])
def test_curves_are_drawn_of_a_run_of_any_length(place: Workspace, lines: int) -> None:
    folder = write_run(place.run("a"), steps=max(lines, 1), ranks=0)
    written = [training_line(step, 1 / step) for step in range(1, lines + 1)]
    write_lines(folder / "metrics.jsonl", [*written, evaluation_line(lines, 0.5, 0.4)][:lines])
    target = folder / "curves.png"
    assert draw_curves(read_run(folder), target) == target
    assert target.read_bytes().startswith(PNG)
    assert [path.name for path in folder.glob(".*")] == []


def test_many_incidents_of_all_kinds_are_drawn(place: Workspace) -> None:
    kinds = ["spike"] * 2000 + ["skipped", "straggler", "something_new"]
    incidents = [{"step": 1 + i % 4, "kind": kind, "text": ""} for i, kind in enumerate(kinds)]
    record = read_run(write_run(place.run("a"), incidents=incidents))
    assert record.info.incidents["spike"] == 2000
    target = place.root / "out.png"
    draw_curves(record, target)
    assert target.read_bytes().startswith(PNG)


def test_a_real_run_is_told_as_it_was(workspace: Workspace, make_config: MakeConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from prect.train.callbacks import Silent
    from prect.train.launch import Launch, launch

    config = make_config(train={"log_to": ["tensorboard"]})
    summary = launch(config, workspace.root, Silent(), Launch())
    record = read_run(find_run(workspace, "toy"))
    info = record.info
    assert (info.state, info.step, info.max_steps) == ("finished", 4, 4)
    assert info.loss == summary["training"]["loss"]
    assert info.learned is summary["learned"]
    assert info.heldout["total"] == summary["heldout"]["total"]
    assert info.heldout["floor"] == summary["floor"]["value"]
    assert info.checkpoints == (2, 4)
    assert info.updated is not None
    assert [line["step"] for line in record.timings[0]] == [1, 2, 3, 4]
    assert draw_curves(record, info.folder / "curves.png").exists()
    # Without the summary the verdict follows from the figures alone, and is the same.
    (info.folder / "summary.json").unlink()
    assert read_run(info.folder).info.learned is summary["learned"]

    events = EventAccumulator(str(info.folder / "tensorboard"))
    events.Reload()
    for name, figure in (("train/loss", "loss"), ("speed/volumes_per_s", "volumes_per_s")):
        seen = {event.step: event.value for event in events.Scalars(name)}
        assert seen == {
            line["step"]: pytest.approx(line[figure], rel=1e-5) for line in record.training
        }
    assert [event.step for event in events.Scalars("heldout/top1")] == [0, 4]
