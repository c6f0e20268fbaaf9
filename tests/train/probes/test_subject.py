"""Which volumes count as held out, when some of a run's data sets are probed, or others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prect.errors import ConfigError, ManifestError
from prect.manifests.stores import read_cache_rows, write_cache_rows
from prect.train.config import TrainConfig
from prect.train.data import open_data
from prect.train.probes.subject import Split, open_volumes
from prect.workspace import Workspace
from tests.train.conftest import DATASET, MakeConfig

PARTS = {"low": range(5), "high": range(5, 9), "other": range(2, 4)}


@pytest.fixture
def parted(stores: Workspace, tmp_path: Path) -> Workspace:
    """Stores of eight patients as two data sets, and a third with other patients."""
    own = Workspace(tmp_path / "workspace")
    rows = read_cache_rows(stores.cache_manifest(DATASET))
    for name, cases in PARTS.items():
        chosen = [replace(rows[i], dataset=name) for i in cases]
        if name == "other":
            chosen[0] = replace(chosen[0], patient="patient-new")
        write_cache_rows(own.cache_manifest(name), chosen)
        for row in chosen:
            place = own.store(name, row.case)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(stores.store(DATASET, row.case))
    return own


@pytest.fixture
def config(make_config: MakeConfig) -> TrainConfig:
    return make_config(data={"datasets": ["low", "high"], "heldout_minimum": 2})


def patients(workspace: Workspace, config: TrainConfig, names: list[str], split: Split) -> set[str]:
    chosen = open_volumes(workspace, config, names, split)
    assert set(chosen.data.table.dataset) == set(names or config.data.datasets)
    return {chosen.data.table.patient[row] for row in chosen.rows}


def test_a_part_of_the_data_sets_holds_out_what_the_run_did(
    parted: Workspace, config: TrainConfig
) -> None:
    whole = open_data(parted, config)
    run = {
        split: {whole.table.patient[row] for row in whole.rows[split]}
        for split in ("train", "heldout")
    }
    assert len(run["heldout"]) == 2
    alone = open_data(parted, replace_datasets(config, "low"))
    # A split of this data set alone would call a training patient held out.
    assert {alone.table.patient[row] for row in alone.rows["heldout"]} & run["train"]
    for split in ("train", "heldout"):
        assert patients(parted, config, [], split) == run[split]
        parts = [patients(parted, config, [name], split) for name in ("low", "high")]
        assert set.union(*parts) == run[split]


def replace_datasets(config: TrainConfig, *names: str) -> TrainConfig:
    data = config.data.model_copy(update={"datasets": names})
    return config.model_copy(update={"data": data})


def test_patients_of_another_data_set_are_unseen_unless_the_run_trained_on_them(
    parted: Workspace, config: TrainConfig
) -> None:
    known = patients(parted, config, [], "train")
    assert "patient-3" in known
    assert patients(parted, config, ["other"], "heldout") == {"patient-new"}
    assert patients(parted, config, ["other"], "train") == {"patient-3"}
    assert patients(parted, config, ["other"], "all") == {"patient-new", "patient-3"}


def test_the_digest_is_that_of_the_runs_data(parted: Workspace, config: TrainConfig) -> None:
    expected = open_data(parted, config).table.digest
    assert open_volumes(parted, config, ["other"]).manifest_digest == expected
    assert open_volumes(parted, config, ["other"], "all").manifest_digest is None


def test_without_a_known_split_only_all_can_be_asked_for(
    parted: Workspace, config: TrainConfig
) -> None:
    unknown = replace_datasets(config)
    for split in ("heldout", "train"):
        with pytest.raises(ConfigError, match=f"--split {split}: .* give --split all"):
            open_volumes(parted, unknown, ["low"], split)
    assert len(open_volumes(parted, unknown, ["low"], "all").rows) == 5
    with pytest.raises(ConfigError, match="give --dataset"):
        open_volumes(parted, unknown, [], "all")
    gone = replace_datasets(config, "gone")
    with pytest.raises(ManifestError) as refused:
        open_volumes(parted, gone, ["low"])
    assert any("--split all" in note for note in refused.value.__notes__)
    assert len(open_volumes(parted, gone, ["low"], "all").rows) == 5
