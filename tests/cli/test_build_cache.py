"""The options of build-cache: a profile that stays, and mistakes that change nothing."""

from __future__ import annotations

from pathlib import Path

from prect.phantom import generate
from tests.conftest import SALT, run_json, run_prect


def test_a_build_goes_on_with_the_profile_of_the_last_one(tmp_path: Path, scheduler: str) -> None:
    generate(tmp_path / "source", cases=1, seed=3, size="small", format="nifti")
    workspace = tmp_path / "workspace"
    place = ("-w", workspace, "--scheduler", scheduler)
    run_json("ingest", "one", "--source", tmp_path / "source", *place, "--salt", SALT)
    options = ["--profile", "voco2", "--intensity", "window"]
    (first,) = run_json("build-cache", "one", *options, *place)["datasets"]
    assert (first["built"], first["profile"]) == (1, "voco2, window -1000..500, steps of 6")
    (again,) = run_json("build-cache", "-w", workspace)["datasets"]
    assert (again["kept"], again["built"], again["profile"]) == (1, 0, first["profile"])
    (other,) = run_json("build-cache", "--intensity", "hu", "--dry-run", "-w", workspace)[
        "datasets"
    ]
    assert (other["stale"], other["profile"]) == (1, "voco2, hu")
    (plain,) = run_json("build-cache", "--profile", "iso1.5", "--dry-run", "-w", workspace)[
        "datasets"
    ]
    assert (plain["stale"], plain["profile"]) == (1, "iso1.5, hu")


def test_a_sample_without_a_plan_is_wrong_usage(tmp_path: Path) -> None:
    done = run_prect("build-cache", "--sample", 3, "-w", tmp_path, expect=2)
    assert "--sample goes with --plan" in done.stderr
