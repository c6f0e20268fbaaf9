"""Exports hold what MONAI expects or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from safetensors import safe_open
from safetensors.torch import load_file

import prect
from prect.errors import CheckpointError
from prect.train.config import TrainConfig, load_config, parse_config
from prect.train.export import export_weights
from prect.train.learner import build_learner
from prect.train.networks import build_encoder
from prect.train.state.resume import differing_settings
from tests.train.state.checkpoints import encoder_weights, write_checkpoint


@pytest.fixture
def tiny() -> TrainConfig:
    return load_config("tiny")


@pytest.fixture
def demo() -> TrainConfig:
    return load_config("demo")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"foreign\.pt is not a checkpoint"):
        export_weights(path, tmp_path / "out.safetensors")


@pytest.mark.parametrize("content", [{"backbone.x": torch.ones(1)}, [1, 2], {"format": 1}])
def test_foreign_state_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "foreign.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"foreign\.pt is not a"):
        export_weights(path, tmp_path / "out.safetensors")


def test_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        export_weights(tmp_path / "nothing", tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        export_weights(tmp_path, tmp_path / "out.safetensors")


def test_export_loads_into_monai(tmp_path: Path, tiny: TrainConfig) -> None:
    write_checkpoint(tmp_path / "checkpoints", tiny)
    result = export_weights(tmp_path, tmp_path / "out.safetensors")
    weights = load_file(result.path)
    network = SwinUNETR(in_channels=1, out_channels=5, feature_size=12, use_v2=True)
    outcome = network.load_state_dict(weights, strict=False)
    assert outcome.unexpected_keys == []
    assert {k.split(".")[0][:7] for k in outcome.missing_keys} == {"decoder", "out"}
    assert result.tensors == len(weights) == 145
    with safe_open(result.path, "pt") as file:
        assert file.metadata()["step"] == "7"
        assert file.metadata()["network"] == "swin_unetr"


@pytest.mark.parametrize("damage", ["missing", "surplus", "reshaped"])
def test_incomplete_backbone_is_refused(tmp_path: Path, tiny: TrainConfig, damage: str) -> None:
    weights = encoder_weights(tiny)
    name = "encoder10.layer.conv1.conv.weight"
    weight = weights.pop(name)
    if damage == "surplus":
        weights |= {name: weight, "module.extra": torch.ones(1)}
    elif damage == "reshaped":
        weights[name] = weight[:1]
    path = write_checkpoint(tmp_path, tiny, backbone=weights)
    with pytest.raises(CheckpointError, match=f"first: ({name}|module.extra)"):
        export_weights(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_export_computes_the_same_encoder_in_monai(tmp_path: Path, tiny: TrainConfig) -> None:
    write_checkpoint(tmp_path / "checkpoints", tiny)
    export_weights(tmp_path, tmp_path / "out.safetensors")
    theirs = SwinUNETR(in_channels=1, out_channels=5, feature_size=12, use_v2=True).eval()
    loaded = prect.load_pretrained(tmp_path / "out.safetensors", theirs)
    assert (len(loaded.taken), len(loaded.left), len(loaded.unexpected)) == (145, 22, 0)
    assert loaded.metadata["run"] == "tiny"
    own = build_encoder(tiny.network).eval()
    own.load_state_dict(encoder_weights(tiny))
    maps: list[torch.Tensor] = []
    for part in (theirs.encoder1, theirs.encoder2, theirs.encoder3, theirs.encoder4):
        part.register_forward_hook(lambda _m, _i, out: maps.append(out.mean((2, 3, 4))))
    theirs.encoder10.register_forward_hook(lambda _m, _i, out: maps.append(out.mean((2, 3, 4))))
    crop = torch.rand(1, 1, 64, 32, 32)
    with torch.no_grad():
        theirs(crop)
        torch.testing.assert_close(own(crop), torch.cat(maps, dim=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["voco-v1", "voco-v2", "voco-paper"])
def test_everything_loads_back(tmp_path: Path, name: str) -> None:
    config = load_config("demo", overrides=[f"objective.name={name}"])
    learner = build_learner(config)
    torch.nn.init.normal_(next(learner.objective.parameters()))
    path = write_checkpoint(
        tmp_path,
        config,
        backbone=learner.backbone.state_dict(),
        objective=learner.objective.state_dict(),
    )
    result = export_weights(path, tmp_path / "all.safetensors", everything=True)
    assert result.tensors == len(learner.state_dict())
    file = prect.load_pretrained(tmp_path / "all.safetensors")
    assert (file.match.prefix, len(file.left)) == ("backbone.", 0)
    assert all(n.startswith("objective.") for n in file.unexpected)

    same = parse_config(json.loads(file.metadata["config"]))
    for source in (tmp_path / "all.safetensors", path):
        again = build_learner(same)
        loaded = prect.load_pretrained(source, again)
        assert (len(loaded.taken), loaded.left, loaded.unexpected) == (result.tensors, (), ())
        for key, tensor in learner.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor), key


def test_incomplete_objective_is_refused(tmp_path: Path, demo: TrainConfig) -> None:
    path = write_checkpoint(tmp_path, demo)
    with pytest.raises(CheckpointError, match=r"first: objective\."):
        export_weights(path, tmp_path / "out.safetensors", everything=True)


def test_existing_export_is_kept_without_force(tmp_path: Path, demo: TrainConfig) -> None:
    path = write_checkpoint(tmp_path, demo)
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="--force"):
        export_weights(path, target)
    assert export_weights(path, target, force=True, dry_run=True).tensors > 0
    assert target.read_bytes() == b"precious"
    export_weights(path, target, force=True)
    assert load_file(target).keys() == encoder_weights(demo).keys()


def test_checkpoint_is_a_weight_file(tmp_path: Path, tiny: TrainConfig) -> None:
    path = write_checkpoint(tmp_path, tiny)
    loaded = prect.load_pretrained(path)
    assert (loaded.match.prefix, len(loaded.taken), loaded.left) == ("backbone.", 145, ())
    said = {"run": "tiny", "step": "7", "network": "swin_unetr", "feature_size": "12"}
    assert said.items() <= loaded.metadata.items()


def test_how_memory_is_saved_may_change(demo: TrainConfig) -> None:
    before = demo.model_dump(mode="json")
    changes = ["network.crops_at_once=3", "network.checkpointing=true"]
    after = load_config("demo", overrides=changes).model_dump(mode="json")
    assert differing_settings(before, after) == []
    other = load_config("demo", overrides=["network.weights=x.pt"]).model_dump(mode="json")
    assert differing_settings(before, other) == ["network.weights (None -> x.pt)"]


def test_only_pace_and_length_may_change(demo: TrainConfig) -> None:
    before = demo.model_dump(mode="json")
    after = load_config(
        "demo",
        overrides=["train.log_every=3", "optim.max_steps=9", "optim.lr=0.5", "data.workers=7"],
    ).model_dump(mode="json")
    assert differing_settings(before, after) == [f"optim.lr ({before['optim']['lr']} -> 0.5)"]
