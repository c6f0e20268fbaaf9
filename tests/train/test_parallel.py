"""However the network is shared out, a step is that of one process with the global batch."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from prect.errors import ConfigError
from prect.train.batch import CropBatch
from prect.train.config import TrainConfig
from prect.train.learner import Learner, build_learner
from prect.train.networks import describe_encoder, parameter_count
from prect.train.objectives import ObjectiveOutput
from prect.train.objectives.voco import Voco
from prect.train.parallel import Place, backend_of, clip_gradients, compile_encoder, distribute
from tests.train.ranks import CPU, global_batch, segresnet, share_of, swin_unetr, together

STEPS = 4
Figures = dict[str, Any]
PARALLEL = ["ddp", "fsdp"]
CASES: dict[str, dict[str, Any]] = {
    "projector": {"objective": {"name": "voco-v2"}},
    # Chunks of five crops do not divide a rank's twelve.
    "network": {"objective": {"name": "voco-v1"}, "crops_at_once": 5},
}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def trainable(learner: Learner) -> list[nn.Parameter]:
    return [parameter for parameter in learner.parameters() if parameter.requires_grad]


def seen_by_autograd(output: ObjectiveOutput) -> set[str]:
    """Fields of a result with a tensor that is part of the graph."""
    found = set()
    for field in fields(output):
        value = getattr(output, field.name)
        tensors = value.values() if isinstance(value, dict) else [value]
        if any(tensor is not None and tensor.requires_grad for tensor in tensors):
            found.add(field.name)
    return found


def learn(config: TrainConfig, place: Place, steps: int = STEPS, volumes: int = 4) -> Figures:
    """Train with plain gradient descent, which does not blow up what is only rounding.

    Parts of weights are not in channels-last order, and the order of memory changes the last digit
    of a convolution; so what is compared with them is not in that order either.
    """
    # What other ranks begin with must not matter.
    seeded = {"run": config.run.model_copy(update={"seed": place.rank})}
    learner = build_learner(config.model_copy(update=seeded))
    if config.train.parallel == "fsdp":
        learner.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model = distribute(learner, config, place)
    parameters = trainable(learner)
    optimizer = torch.optim.SGD(parameters, lr=0.02)
    losses, norms, graph = [], [], []
    for step in range(steps):
        batch = share_of(global_batch(config, step, volumes), place)
        output = model(batch)
        optimizer.zero_grad()
        torch.autograd.backward(output.loss)
        norms.append(clip_gradients(parameters, 1.0))
        optimizer.step()
        learner.objective.after_step((step + 1) / steps)
        losses.append(output.loss.detach())
        graph.append(seen_by_autograd(output))
        if step == 1:
            evaluated = evaluation(learner, batch)
            then = {name: whole(tensor) for name, tensor in learner.state_dict().items()}
    return {
        "losses": torch.stack(losses),
        "norms": torch.stack(norms),
        "evaluated": evaluated,
        "weights then": then,
        "graph": graph,
        "weights": {name: whole(tensor) for name, tensor in learner.state_dict().items()},
    }


@torch.no_grad()
def evaluation(learner: Learner, batch: CropBatch) -> torch.Tensor:
    learner.eval()
    loss: torch.Tensor = learner(batch).loss
    learner.train()
    return loss


def one_rank(place: Place) -> Figures:
    learned = {
        f"{case} {parallel}": learn(segresnet(parallel, **settings), place)
        for case, settings in CASES.items()
        for parallel in PARALLEL
    }
    return learned | {
        "parts": look_into_parts(place),
        "damaged": norm_of_damaged(place),
        "read": losses_of_what_is_read(place),
    }


def look_into_parts(place: Place) -> Figures:
    """What a rank holds of a network that is shared out, and for how long."""
    config = segresnet("fsdp", objective={"name": "voco-v1"})
    learner = build_learner(config)
    sizes = [parameter.numel() for parameter in learner.parameters()]
    model = distribute(learner, config, place)
    gathered: list[torch.Tensor] = []

    def note(module: nn.Module, *_: object) -> None:
        gathered.extend(module.parameters(recurse=False))

    for module in learner.modules():
        module.register_forward_hook(note)
    left = []
    output = model(share_of(global_batch(config, 0), place))
    left.append(sum(weight.untyped_storage().nbytes() for weight in gathered))
    torch.autograd.backward(output.loss)
    left.append(sum(weight.untyped_storage().nbytes() for weight in gathered))
    parts = list(learner.parameters())
    gradients = [parameter.grad for parameter in trainable(learner)]
    return {
        "sizes": sizes,
        "gathered": sum(w.numel() for w in gathered if not isinstance(w, DTensor)),
        "left": left,
        "parts": [part.to_local().numel() for part in parts if isinstance(part, DTensor)],
        "sharded": all(isinstance(each, DTensor) for each in (*parts, *gradients)),
    }


def norm_of_damaged(place: Place) -> torch.Tensor:
    """The norm where one number on one rank is not finite."""
    config = segresnet("fsdp")
    learner = build_learner(config)
    torch.autograd.backward(distribute(learner, config, place)(global_batch(config, 0)).loss)
    parameters = trainable(learner)
    if place.rank == 1:
        assert isinstance(parameters[0].grad, DTensor)
        parameters[0].grad.to_local().view(-1)[0] = torch.nan
    return clip_gradients(parameters, 1.0)


def losses_of_what_is_read(place: Place) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of weights, and of others into whose place they were read."""
    config = segresnet("fsdp")
    seeded = config.model_copy(update={"run": config.run.model_copy(update={"seed": 1})})
    first, second = build_learner(config), build_learner(seeded)
    for learner in (first, second):
        distribute(learner, config, place)
    kept = first.state_dict()
    with torch.no_grad():
        for name, tensor in second.state_dict().items():
            tensor.copy_(kept[name])
    batch = share_of(global_batch(config, 0), place)
    return evaluation(first, batch), evaluation(second, batch)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Figures]:
    return together(one_rank, tmp_path_factory.mktemp("ranks"))


def assert_same_learning(ranks: list[Figures], one: Figures) -> None:
    losses = torch.stack([rank["losses"] for rank in ranks])
    torch.testing.assert_close(losses.mean(dim=0), one["losses"], rtol=5e-4, atol=0)
    for rank in ranks:
        assert torch.equal(rank["norms"], ranks[0]["norms"])
        torch.testing.assert_close(rank["norms"], one["norms"], rtol=2e-2, atol=0)
        # The names are those of the learner as it was built.
        assert list(rank["weights"]) == list(one["weights"])
        for name, weight in one["weights"].items():
            ours = rank["weights"][name]
            assert torch.equal(ours, ranks[0]["weights"][name])
            torch.testing.assert_close(ours, weight, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("case", CASES)
def test_processes_learn_what_one_does(results: list[Figures], case: str, parallel: str) -> None:
    one = learn(segresnet(parallel, **CASES[case]), Place(CPU))
    assert one["norms"].min() > 1  # so that every step is clipped
    assert_same_learning([rank[f"{case} {parallel}"] for rank in results], one)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_only_the_loss_is_part_of_the_graph(results: list[Figures], parallel: str) -> None:
    for rank in results:
        assert rank[f"network {parallel}"]["graph"] == [{"loss"}] * STEPS


def test_evaluation_between_steps_is_of_the_weights_then(results: list[Figures]) -> None:
    for parallel in PARALLEL:
        ours = [rank[f"projector {parallel}"]["evaluated"] for rank in results]
        assert ours[0] != ours[1]  # each of its own volumes
        one = segresnet(parallel, **CASES["projector"])
        learner = build_learner(one)
        weights = results[0][f"projector {parallel}"]["weights then"]
        learner.load_state_dict(weights)
        for rank, found in enumerate(ours):
            batch = share_of(global_batch(one, 1), Place(CPU, rank, 2))
            torch.testing.assert_close(found, evaluation(learner, batch), rtol=1e-3, atol=0)


def test_a_rank_holds_its_part_and_no_whole_weight_for_long(results: list[Figures]) -> None:
    first, second = (rank["parts"] for rank in results)
    for seen in (first, second):
        assert seen["sharded"]
        assert seen["gathered"] == sum(seen["sizes"])
        assert seen["left"] == [0, 0]
    halves = zip(first["sizes"], first["parts"], second["parts"], strict=True)
    for size, one, other in halves:
        assert one + other == size
    assert sum(first["parts"]) < 0.51 * sum(first["sizes"])


def test_norm_is_the_same_where_one_part_is_not_finite(results: list[Figures]) -> None:
    assert all(rank["damaged"].isnan() for rank in results)


def test_parts_can_be_read_in_place(results: list[Figures]) -> None:
    assert all(torch.equal(*rank["read"]) for rank in results)


@pytest.mark.parametrize("config", [segresnet(), swin_unetr()])
def test_blocks_of_an_encoder_share_nothing_and_hold_nearly_all(config: TrainConfig) -> None:
    encoder = describe_encoder(config.network)
    weights = [weight for block in encoder.blocks() for weight in block.parameters()]
    assert len({id(weight) for weight in weights}) == len(weights)
    assert sum(weight.numel() for weight in weights) > 0.98 * parameter_count(encoder)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_one_process_computes_with_the_learner_itself(parallel: str) -> None:
    config = segresnet(parallel)
    learner = build_learner(config)
    assert distribute(learner, config, Place(CPU)) is learner
    assert not any(isinstance(weight, DTensor) for weight in learner.parameters())


def test_clipping_tells_the_norm_before() -> None:
    weights = [
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.zeros(1)),
        nn.Parameter(torch.ones(1)),
    ]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(weights, 10.0) == 5
    assert clip_gradients(iter(weights), 1.0) == 5
    assert weights[0].grad.tolist() == pytest.approx([0.6, 0])
    assert clip_gradients(weights, 1.0) == pytest.approx(1)


def test_gpus_can_talk_from_the_memory_of_the_host_too() -> None:
    assert backend_of(Place(CPU)) == "gloo"
    assert backend_of(Place(torch.device("cuda", 1), 1, 2)) == "cpu:gloo,cuda:nccl"


def test_missing_compiler_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda _: fails)
    needs = r"train\.compile: .* cpu, .* \(g\+\+\): No working C\+\+ compiler found\. Install"
    with pytest.raises(ConfigError, match=needs):
        compile_encoder(build_learner(segresnet()))


def test_every_encoder_is_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def note(function: Any) -> Any:
        seen.append(getattr(function, "__self__", None))
        return function

    monkeypatch.setattr(torch, "compile", note)
    learner = build_learner(segresnet(objective={"name": "voco-v1"}))
    compile_encoder(learner)
    assert isinstance(learner.objective, Voco)
    assert learner.objective.teacher is not None
    assert seen[1:] == [learner.backbone, learner.objective.teacher.backbone]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("crops_at_once", [0, 5])
def test_compiled_encoder_is_the_same_function_under_the_same_names(crops_at_once: int) -> None:
    config = segresnet(crops_at_once=crops_at_once, objective={"name": "voco-v1"})
    plain, compiled = build_learner(config), build_learner(config)
    compile_encoder(compiled)
    batch = global_batch(config, 0, 2)
    losses = [learner(batch).loss for learner in (plain, compiled)]
    for loss in losses:
        torch.autograd.backward(loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    norms = [clip_gradients(trainable(learner), 1.0) for learner in (plain, compiled)]
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-3, atol=0)


def one_rank_of_swin(place: Place) -> Figures:
    return {
        parallel: learn(swin_unetr(parallel, checkpointing=True), place, steps=2, volumes=2)
        for parallel in PARALLEL
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_with_swin_learn_what_one_does(tmp_path: Path) -> None:
    one = learn(swin_unetr(checkpointing=True), Place(CPU), steps=2, volumes=2)
    ranks = together(one_rank_of_swin, tmp_path)
    for parallel in PARALLEL:
        assert_same_learning([rank[parallel] for rank in ranks], one)
