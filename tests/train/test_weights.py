"""Weight files of every kind: what fits is taken and told, what does not is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from safetensors.torch import save_file

import prect
from prect.errors import CheckpointError
from prect.train.architectures import NETWORKS
from prect.train.config import NetworkConfig
from prect.train.networks import (
    SegResNetEncoder,
    SwinUnetrEncoder,
    build_encoder,
    without_storage,
)
from prect.train.weights import check_start, inspect_weights, load_pretrained

Tensors = dict[str, torch.Tensor]
ENCODER_PARTS = {"swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10"}


def released(feature_size: int, seed: int = 0) -> Tensors:
    """The layout of the released files: MONAI's names and shapes, random numbers.

    Indices of window attention are those that MONAI computes; they are no weights.
    """
    generator = torch.Generator().manual_seed(seed)
    with without_storage():
        shapes = SwinUNETR(1, 1, feature_size=feature_size, use_v2=True).state_dict()
    small = SwinUnetrEncoder(12).state_dict()
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.02
        if tensor.is_floating_point()
        else small[name].clone()
        for name, tensor in shapes.items()
        if name.split(".")[0] in ENCODER_PARTS
    }


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return released(12)


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def assert_holds(module: torch.nn.Module, tensors: Tensors) -> None:
    own = module.state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(own[name], tensor), name


@pytest.mark.parametrize("feature_size", [12, 48])
def test_released_layout_loads_whole(tmp_path: Path, feature_size: int) -> None:
    path = tmp_path / "VoCo_SSL_head.pt"
    theirs = released(feature_size)
    assert len(theirs) == 145
    torch.save(theirs, path)
    loaded = prect.load_pretrained(path)
    assert (len(loaded.taken), len(loaded.left), len(loaded.unexpected)) == (145, 0, 0)
    assert isinstance(loaded.network, SwinUnetrEncoder)
    assert loaded.network.embedding == 24 * feature_size
    assert_holds(loaded.network, theirs)
    assert loaded.describe() == (
        f"{path}: 145 of 145 tensors of {'tiny' if feature_size == 12 else 'voco-b'} (swin_unetr, "
        f"feature size {feature_size}) taken, 0 left as they were, 0 of the file unexpected"
    )


def test_released_layout_loads_into_monai(tmp_path: Path, tensors: Tensors) -> None:
    torch.save(tensors, tmp_path / "head.pt")
    network = SwinUNETR(1, 5, feature_size=12, use_v2=True)
    decoder = {n: t.clone() for n, t in network.state_dict().items() if n not in tensors}
    loaded = load_pretrained(tmp_path / "head.pt", network)
    assert loaded.network is network
    assert (len(loaded.taken), len(loaded.left)) == (145, 22)
    assert set(loaded.left) == set(decoder)
    assert {name.split(".")[0][:7] for name in loaded.left} == {"decoder", "out"}
    assert_holds(network, tensors | decoder)


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda t: under("module.", t), "module."),
        (lambda t: under("backbone.", t), "backbone."),
        (lambda t: under("module.student.backbone.", t), "module.student.backbone."),
        (lambda t: {"state_dict": under("module.", t)}, "state_dict.module."),
        (lambda t: {"model": t, "optimizer": {"state": {0: t}}}, "model."),
        (lambda t: {"net": t, "epoch": 3}, "net."),
    ],
)
def test_encoder_is_found_under_any_prefix(
    tmp_path: Path, tensors: Tensors, wrap: Callable[[Tensors], Any], prefix: str
) -> None:
    torch.save(wrap(tensors), tmp_path / "training.pt")
    loaded = load_pretrained(tmp_path / "training.pt")
    assert loaded.match.prefix == prefix
    assert (len(loaded.taken), len(loaded.left), len(loaded.unexpected)) == (145, 0, 0)
    assert_holds(loaded.network, tensors)


@pytest.mark.parametrize("turned", [False, True])
def test_student_is_preferred_to_its_teacher(
    tmp_path: Path, tensors: Tensors, turned: bool
) -> None:
    student, teacher = under("student.", tensors), under("teacher.", released(12, seed=9))
    heads = {"projector.0.weight": torch.ones(3)}
    torch.save(teacher | student | heads if turned else student | teacher | heads, tmp_path / "x")
    loaded = load_pretrained(tmp_path / "x")
    assert (loaded.match.prefix, loaded.match.others) == ("student.", ("teacher.",))
    assert "taken under 'student.' (also there: 'teacher.')" in loaded.describe()
    assert set(loaded.unexpected) == {*teacher, *heads}
    assert_holds(loaded.network, tensors)


def test_segresnet_is_built_from_its_shapes(tmp_path: Path) -> None:
    encoder = SegResNetEncoder(8, (1, 2, 3))
    weights = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    loaded = load_pretrained(tmp_path / "w.safetensors")
    crops = torch.rand(2, 1, 16, 16, 16)
    assert torch.equal(loaded.network.eval()(crops), encoder.eval()(crops))


def test_tensors_that_are_missing_stay_as_they_were(tmp_path: Path, tensors: Tensors) -> None:
    part = {name: tensor for name, tensor in tensors.items() if name.startswith("swinViT.")}
    torch.save(part, tmp_path / "part.pt")
    encoder = build_encoder(NETWORKS["tiny"])
    before = {n: t.clone() for n, t in encoder.state_dict().items() if n not in part}
    loaded = load_pretrained(tmp_path / "part.pt", encoder)
    assert set(loaded.left) == tensors.keys() - part.keys()
    assert_holds(encoder, part | before)
    with pytest.raises(CheckpointError, match=r"lacks 11 of the 145 tensors of tiny .*encoder1\."):
        check_start(NetworkConfig(feature_size=12, weights=str(tmp_path / "part.pt")))


def test_half_precision_is_converted(tmp_path: Path, tensors: Tensors) -> None:
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}
    save_file(half, tmp_path / "half.safetensors")
    network = load_pretrained(tmp_path / "half.safetensors").network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert_holds(network, {n: t.to(tensors[n].dtype) for n, t in half.items()})


class Harmful:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_does_not_run(tmp_path: Path, tensors: Tensors, zipped: bool) -> None:
    trap = tmp_path / "was-here"
    path = tmp_path / "trap.pt"
    torch.save({"harmful": Harmful(trap), **tensors}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="could run code, and prect does not"):
        load_pretrained(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert trap.is_dir()


def torch_file(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def bytes_file(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def cut(write: Callable[[Path], None], keep: float) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])

    return written


def flipped(path: Path) -> None:
    """A torch file with one bit of one weight turned."""
    torch.save({"encoder1.weight": torch.full((50_000,), 1.0)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


SAFE = {"conv.weight": torch.ones(4, 4)}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: save_file(SAFE, path), r"no encoder that prect knows: 1 tensors, first conv"),
        (torch_file(SAFE), "no encoder that prect knows"),
        (cut(lambda path: save_file(SAFE, path), 0.9), "is damaged or no safetensors file"),
        (cut(torch_file(SAFE), 0.5), "is damaged or no weight file"),
        (flipped, "does not match its checksum"),
        (torch_file({}), "holds no tensors"),
        (torch_file({"epoch": 3}), "holds no tensors"),
        (torch_file([torch.ones(1)]), "holds a list, not a table of named tensors"),
        (bytes_file(b""), "is damaged or no weight file"),
        (bytes_file(b"not weights"), "is damaged or no weight file"),
        (bytes_file(b"PK\x03\x04 broken"), "is damaged or no weight file"),
        (lambda path: path.mkdir(), "is a folder; give a weight file"),
        (lambda path: path.unlink(missing_ok=True), "does not exist"),
        (torch_file({"w": torch.ones(3).to_sparse()}), "w is sparse"),
        (torch_file({"swinViT.patch_embed.proj.weight": torch.ones(7, 1, 2, 2, 2)}), "of 12"),
    ],
)
def test_wrong_files_are_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "wrong.pt"
    write(path)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(path)
    with pytest.raises(CheckpointError, match=message):
        inspect_weights(path)


def test_weights_of_another_network_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    torch.save(tensors, tmp_path / "w.pt")
    larger = build_encoder(NetworkConfig(feature_size=24))
    before = {name: tensor.clone() for name, tensor in larger.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"tensors differ in shape, first .* network has"):
        load_pretrained(tmp_path / "w.pt", larger)
    assert_holds(larger, before)
    other = torch.nn.ModuleDict({"other": torch.nn.Linear(2, 2)})
    with pytest.raises(CheckpointError, match="none of the network's tensors, under any prefix"):
        load_pretrained(tmp_path / "w.pt", other)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder1.layer.conv1.conv.weight", float("nan"), "holds infinite values or NaN"),
        ("swinViT.layers1.0.blocks.0.attn.relative_position_index", 99, "is not that of the"),
    ],
)
def test_values_that_cannot_be_are_refused(
    tmp_path: Path, tensors: Tensors, name: str, value: float, message: str
) -> None:
    damaged = tensors[name].clone()
    damaged.view(-1)[5] = value
    torch.save(tensors | {name: damaged}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=f"{name} {message}"):
        load_pretrained(tmp_path / "w.pt")


def test_index_of_the_wrong_kind_is_no_weight(tmp_path: Path, tensors: Tensors) -> None:
    name = "encoder1.layer.conv1.conv.weight"
    torch.save(tensors | {name: tensors[name].int()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=f"{name} holds torch.int32"):
        load_pretrained(tmp_path / "w.pt")


def test_metadata_of_other_programs_is_shown(tmp_path: Path, tensors: Tensors) -> None:
    torch.save({"state_dict": tensors, "epoch": 12, "arch": "swin"}, tmp_path / "w.pt")
    contents = inspect_weights(tmp_path / "w.pt")
    assert contents.network == NetworkConfig(feature_size=12)
    assert contents.file.metadata == {"epoch": "12", "arch": "swin"}
    assert json.dumps(contents.describe())
