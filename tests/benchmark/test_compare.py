"""Arms in one run: equal voxels, times, and what is said of those that fail."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numcodecs import blosc

from prect.benchmark import processes
from prect.benchmark.arms import CompiledDecodeLimit, Memmap, arms, scaled
from prect.benchmark.boxes import ALIGNED, VIEWS, Volume, draw_turns
from prect.benchmark.compare import Runner, difference
from prect.benchmark.measuring import BenchmarkError, Timing
from prect.benchmark.processes import Process
from tests.benchmark.conftest import Compared, compare_arms

BROKEN = "tests.benchmark.broken"


@pytest.mark.parametrize("name", list(arms()))
def test_every_arm_is_measured_or_says_what_is_missing(compared: Compared, name: str) -> None:
    runner = compared.runners[name]
    missing = [each for each in runner.kind.libraries if find_spec(each) is None]
    if missing:
        assert runner.status == "not installed: pip install 'prect[bench]'"
        return
    assert runner.status == "measured"
    told = runner.to_json()
    assert set(told["reads"]["warm"]) == {*VIEWS, ALIGNED}
    for view in told["reads"]["warm"].values():
        assert view["reads"] == 2
        assert 0 < view["p50_ms"] <= view["p95_ms"] <= view["p99_ms"] <= view["high_ms"]
        assert set(view["p50_ms_by_volume"]) == {"volume0", "volume1"}
    assert told["peak_bytes"] is None or told["peak_bytes"] > 0


@pytest.mark.parametrize("name", list(arms()))
def test_cold_reads_come_from_the_device_or_it_says_why_not(compared: Compared, name: str) -> None:
    runner = compared.runners[name]
    if not runner.alive:
        pytest.skip(runner.status)
    cold = runner.to_json()["reads"].get("cold")
    if cold is None:
        assert runner.not_measured["cold"]
        assert runner.kind.in_memory or "cold" not in compared.runners["prect"].timings
        return
    for view in cold.values():
        assert view["device_bytes"] > 0


class Answers:
    """Stands for a process whose cold reads take these bytes from a device."""

    def __init__(self, device_bytes: list[int]) -> None:
        self.device_bytes = iter(device_bytes)

    def ask(self, *_: object) -> Timing:
        return Timing(0.001, 0.001, next(self.device_bytes))


@pytest.mark.parametrize(("warm", "measured"), [(2, True), (3, False)])
def test_a_read_that_was_not_cold_is_dropped_and_too_many_give_it_up(
    volumes: list[Volume], warm: int, measured: bool
) -> None:
    turns = draw_turns(volumes, 3)[:20]
    answers = Answers([0] * warm + [4096] * (20 - warm))
    runner = Runner("memmap", Memmap, cast(Process, answers), Path(), state="cold")
    for turn in turns:
        runner.read_cold(turn)
    runner.judge_cold(len(turns))
    told = runner.to_json()
    assert told["reads_not_cold"] == warm
    if measured:
        reads = told["reads"]["cold"].values()
        assert sum(view["reads"] for view in reads) == 20 - warm
        assert {view["device_bytes"] for view in reads} == {4096}
        assert told["not_measured"] == {}
    else:
        assert "cold" not in told["reads"]
        assert told["not_measured"]["cold"].startswith("3 of 20 reads")


def test_the_compiled_limit_decodes_every_chunk_that_the_box_touches(
    volumes: list[Volume], tmp_path: Path
) -> None:
    arm = CompiledDecodeLimit(volumes[0], tmp_path)
    arm.load()
    arm.open()
    box = draw_turns(volumes, 1)[0].box
    arm.prepare(box)
    out = np.empty(box.shape, dtype=np.int16)
    arm.read(box, out)
    assert len(arm.offsets) == len(arm.bodies) > 1
    last = np.empty(volumes[0].chunk, dtype=np.int16)
    blosc.decompress(arm.bodies[-1], last)
    assert np.array_equal(arm.scratch, last)
    arm.frames = arm.frames.copy()
    arm.frames[arm.offsets[1] : arm.offsets[1] + 16] = 0
    with pytest.raises(BenchmarkError, match="1 chunks were not decompressed"):
        arm.read(box, out)


def test_an_arm_that_this_machine_cannot_have_says_so(
    volumes: list[Volume], tmp_path: Path
) -> None:
    arm = compare_arms([f"{BROKEN}:Unavailable"], volumes, tmp_path).runners
    assert arm[f"{BROKEN}:Unavailable"].status == "not available: libc exports no such thing"


def test_bytes_are_those_of_the_files(compared: Compared, volumes: list[Volume]) -> None:
    volume = volumes[0]
    memmap = compared.runners["memmap"].facts["bytes"]["volume0"]
    assert memmap == 2 * np.prod(volume.shape)
    store = sum(path.stat().st_size for path in volume.hu.rglob("*") if path.is_file())
    assert compared.runners["prect"].facts["bytes"]["volume0"] == store
    pickled = compared.runners["monai-persistent"].facts["bytes"]["volume0"]
    assert 1 <= pickled / (4 * np.prod(volume.full_shape)) < 1.1


def test_an_arm_that_returns_a_wrong_voxel_is_found_and_not_timed(
    volumes: list[Volume], tmp_path: Path
) -> None:
    found = compare_arms(["memmap", f"{BROKEN}:OneVoxelOff"], volumes, tmp_path).runners
    wrong = found[f"{BROKEN}:OneVoxelOff"]
    assert wrong.status.startswith("wrong voxels: 64^3 at (0, 0, 0) of volume0 differs by 1 HU")
    assert wrong.to_json()["reads"] == {}
    assert found["memmap"].to_json()["reads"]["warm"]


def test_an_arm_whose_library_is_missing_says_so(volumes: list[Volume], tmp_path: Path) -> None:
    found = compare_arms([f"{BROKEN}:NotThere"], volumes, tmp_path).runners
    assert found[f"{BROKEN}:NotThere"].status == "not installed: pip install 'prect[bench]'"


@pytest.mark.parametrize(
    ("name", "said"),
    [("Dies", "the process ended with 3"), ("Raises", "ValueError: the box is not to my taste")],
)
def test_an_arm_that_fails_is_in_the_table_with_its_reason(
    volumes: list[Volume], tmp_path: Path, name: str, said: str
) -> None:
    found = compare_arms([f"{BROKEN}:{name}", "memmap"], volumes, tmp_path).runners
    assert found[f"{BROKEN}:{name}"].status.startswith(f"failed: {said}")
    assert found["memmap"].alive


def test_what_was_measured_warm_outlives_a_failure_of_cold_reads(
    volumes: list[Volume], tmp_path: Path
) -> None:
    arm = compare_arms([f"{BROKEN}:OpensOnce"], volumes, tmp_path).runners[f"{BROKEN}:OpensOnce"]
    assert arm.not_measured["cold"]
    told = arm.to_json()
    assert set(told["reads"]) == {"warm"}
    assert told["status"] == "measured"


def test_a_process_that_hangs_is_ended(
    volumes: list[Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = draw_turns(volumes, 1)[0]
    with Process() as process:
        process.ask("load", f"{BROKEN}:Hangs", volumes, tmp_path, True)
        monkeypatch.setattr(processes, "_ANSWER_SECONDS", 0.5)
        monkeypatch.setattr(processes, "_END_SECONDS", 0.1)
        with pytest.raises(BenchmarkError, match="hangs"):
            process.ask("warm", turn.volume, [turn.box])
        pid = process.pid
    assert not Path(f"/proc/{pid}").exists()


def test_files_that_stay_mapped_are_not_called_cold(volumes: list[Volume], tmp_path: Path) -> None:
    with Process() as process:
        process.ask("load", f"{BROKEN}:KeepsMapped", volumes, tmp_path, True)
        turn = draw_turns(volumes, 1)[0]
        process.ask("warm", turn.volume, [turn.box])
        assert process.ask("why_not_cold", turn.volume)


def test_difference_tells_shape_and_size() -> None:
    hu = np.array([[[-1000, 40, 3000]]], dtype=np.int16)
    assert difference(hu, hu, "hu", 0) is None
    assert difference(hu[:, :, 1:], hu, "hu", 0) == "has shape (1, 1, 2), not (1, 1, 3)"
    assert difference(hu + 1, hu, "hu", 0) == "differs by 1 HU"
    assert difference(scaled(hu), hu, "scaled", 0) is None
    wrong = difference(scaled(hu) + np.float32(2e-6), hu, "scaled", 0)
    assert wrong is not None
    assert "of the window" in wrong
    window = np.array([[[-175, 41, 250]]], dtype=np.int16)
    assert difference(window, hu, "window", 2) is None
    assert difference(window + 3, hu, "window", 2) == "differs by 4 HU"
