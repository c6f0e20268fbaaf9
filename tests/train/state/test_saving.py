"""Checkpoints are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prect.errors import CheckpointError
from prect.train.config import TrainConfig, load_config
from prect.train.run_folder import RunFolder
from prect.train.state.checkpoint import (
    RECORD,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    name_of,
    step_of,
)
from prect.train.state.resume import Origin, starting_point
from prect.train.state.saving import Saved, Saver, Team, own_share, owners, read_together
from tests.conftest import REPOSITORY
from tests.train.state.checkpoints import Tensors, read_whole, record, write_checkpoint

ORIGIN = Origin("d", {}, 2)


@pytest.fixture
def demo() -> TrainConfig:
    return load_config("demo")


def some_tensors(step: int, size: int = 1000) -> Tensors:
    return {
        "backbone.w": torch.full((size,), float(step)),
        "backbone.turned": torch.arange(6.0).view(2, 3).t() + step,
        "optimizer.w.step": torch.tensor(float(step)),
        "objective.count": torch.tensor([step], dtype=torch.int64),
    }


def save_steps(saver: Saver, config: TrainConfig, steps: Iterator[int] | range) -> None:
    for step in steps:
        saver.begin(some_tensors(step), record(config, step))
        saved = saver.wait()
        assert saved is not None
        assert saved.error is None


def test_a_checkpoint_holds_the_state_as_it_was_when_it_was_asked_for(
    tmp_path: Path, demo: TrainConfig
) -> None:
    saver = Saver(tmp_path, Team(), keep_last=9)
    tensors = some_tensors(3, size=2_000_000)
    saver.begin(tensors, record(demo, 3))
    for tensor in tensors.values():  # the next step, while the thread writes
        tensor.zero_()
    saved = saver.wait()
    assert saved is not None
    assert (saved.step, saved.error) == (3, None)
    assert saver.wait() is None
    found = load_checkpoint(tmp_path / name_of(3))
    for name, tensor in some_tensors(3, size=2_000_000).items():
        torch.testing.assert_close(found.tensors(name)[""], tensor, rtol=0, atol=0)


def test_tensors_are_read_in_place_whatever_their_order_in_memory(
    tmp_path: Path, demo: TrainConfig
) -> None:
    path = write_checkpoint(tmp_path, demo, 1, backbone={"w": torch.randn(2, 3, 4, 5, 6)})
    target = torch.zeros(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    strides, place = target.stride(), target.data_ptr()
    read_together(path, {"backbone.w": target}, Team())
    assert (target.stride(), target.data_ptr()) == (strides, place)
    torch.testing.assert_close(target, read_whole(path).backbone["w"], rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="does not fit the network"):
        read_together(path, {"backbone.w": torch.zeros(2, 3)}, Team())


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=30), world=st.integers(1, 9))
def test_every_tensor_has_one_writer_and_the_load_is_even(sizes: list[int], world: int) -> None:
    tensors = {f"t{i}": torch.empty(size) for i, size in enumerate(sizes)}
    shares = [own_share(tensors, Team(rank, world)) for rank in range(world)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    loads = [sum(t.nbytes for t in share.values()) for share in shares]
    assert max(loads) - min(loads) <= 4 * max(sizes)
    assert set(owners(tensors, world).values()) <= set(range(world))


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "left"),
    [(2, 0, [9, 10]), (1, 4, [4, 8, 10]), (3, 5, [5, 8, 9, 10]), (20, 0, list(range(1, 11)))],
)
def test_the_newest_are_kept_and_some_for_ever(
    tmp_path: Path, demo: TrainConfig, keep_last: int, keep_every: int, left: list[int]
) -> None:
    saver = Saver(tmp_path, Team(), keep_last=keep_last, keep_every=keep_every)
    save_steps(saver, demo, range(1, 11))
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == left
    assert all(not path.name.startswith(".") for path in tmp_path.iterdir())


def test_what_a_killed_process_left_is_cleared(tmp_path: Path, demo: TrainConfig) -> None:
    write_checkpoint(tmp_path, demo, 1)
    half = tmp_path / ".step-00000002.tmp"
    shutil.copytree(tmp_path / name_of(1), half)
    assert find_checkpoint(tmp_path).name == name_of(1)
    Saver(tmp_path, Team(), keep_last=1).clear()
    assert [path.name for path in tmp_path.iterdir()] == [name_of(1)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "flipped": (".safetensors", flip, "does not match its checksum"),
    "cut": (".safetensors", cut, "does not match its checksum"),
    "gone": (".safetensors", Path.unlink, "No such file"),
    "record cut": (RECORD, cut, RECORD),
    "record gone": (RECORD, Path.unlink, RECORD),
    "record of something else": (RECORD, lambda p: p.write_text("[1]"), RECORD),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_is_named_and_the_one_before_taken(
    tmp_path: Path, demo: TrainConfig, kind: str
) -> None:
    suffix, damage, said = DAMAGE[kind]
    folder = RunFolder(tmp_path)
    write_checkpoint(folder.checkpoints, demo, 1)
    path = write_checkpoint(folder.checkpoints, demo, 2)
    damage(next(file for file in path.iterdir() if file.name.endswith(suffix)))
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)
    start = starting_point(folder, "auto", demo, ORIGIN)
    assert start.step == 1
    (damaged, why), *rest = start.damaged
    assert (damaged, rest) == (path, [])
    assert said in why
    with pytest.raises(CheckpointError, match=said):  # asked for by name, nothing else will do
        starting_point(folder, str(path), demo, ORIGIN)


def test_when_none_is_whole_nothing_begins_anew(tmp_path: Path, demo: TrainConfig) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        flip(next(write_checkpoint(folder.checkpoints, demo, step).glob("*.safetensors")))
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        starting_point(folder, "auto", demo, ORIGIN)


def test_a_write_that_fails_leaves_the_old_one_and_the_next_succeeds(
    tmp_path: Path, demo: TrainConfig
) -> None:
    write_checkpoint(tmp_path, demo, 1)
    saver = Saver(tmp_path, Team(), keep_last=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        saver.begin(some_tensors(2, size=10**6), record(demo, 2))
        saved = saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved is not None
    assert saved.error is not None
    assert "File too large" in saved.error
    assert [path.name for path in tmp_path.iterdir()] == [name_of(1)]
    assert load_checkpoint(tmp_path / name_of(1)).step == 1
    save_steps(saver, demo, range(2, 3))
    assert [path.name for path in tmp_path.iterdir()] == [name_of(2)]


KILLED_WHILE_SAVING = """
import os, random, signal, sys, time
from pathlib import Path
from prect.train.config import load_config
from prect.train.run_folder import RunFolder
from prect.train.state.resume import starting_point
from prect.train.state.saving import Saver, Team
from tests.train.state.checkpoints import record
from tests.train.state.test_saving import ORIGIN, some_tensors

folder, kills = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
demo = load_config("demo", overrides=["optim.max_steps=100000"])
chance = random.Random(5)

def save_for_ever(step):
    saver = Saver(folder.checkpoints, Team(), keep_last=2)
    saver.clear()
    while True:
        step += 1
        saver.begin(some_tensors(step, size=20_000), record(demo, step))
        saver.wait()

reached, moments = 0, []
for _ in range(kills):
    child = os.fork()
    if child == 0:
        save_for_ever(reached)
    time.sleep(chance.uniform(0.002, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    moments.append(sorted(p.name for p in folder.checkpoints.glob(".step-*")))
    start = starting_point(folder, "auto", demo, ORIGIN)
    assert not start.damaged, start.damaged
    assert start.step >= reached, (start.step, reached)
    if start.checkpoint:
        assert start.checkpoint.tensors("backbone.w")[""][0] == start.step
    reached = start.step
print(reached, sum(map(bool, moments)))
"""


def test_a_run_can_go_on_whenever_its_writer_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED_WHILE_SAVING)
    root = REPOSITORY
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run"), "50"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=root,
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    reached, in_the_middle = map(int, done.stdout.split())
    # Writers got somewhere, and some were killed while there was half a checkpoint.
    assert reached > 20
    assert in_the_middle > 5


def test_records_are_plain_json(tmp_path: Path, demo: TrainConfig) -> None:
    path = write_checkpoint(tmp_path, demo, 4)
    document = json.loads((path / RECORD).read_text("utf-8"))
    assert document["format"] == 2
    assert document["step"] == 4
    assert document["files"].keys() == {file.name for file in path.glob("*.safetensors")}


def test_saving_beside_the_training_takes_no_time_from_it(
    tmp_path: Path, demo: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Saver._write

    def slowly(*args: Any) -> Saved:
        time.sleep(0.5)
        return write(*args)

    monkeypatch.setattr(Saver, "_write", slowly)
    saver = Saver(tmp_path, Team(), keep_last=1)
    saver.begin(some_tensors(1), record(demo, 1))
    assert not saver.done
    began = time.perf_counter()
    before = saver.begin(some_tensors(2), record(demo, 2))  # one at a time
    assert time.perf_counter() - began > 0.3
    assert before is not None
    assert before.step == 1
    saver.wait()
    assert not saver.done
    assert [path.name for path in list_checkpoints(tmp_path)] == [name_of(2)]
