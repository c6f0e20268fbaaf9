"""What a training step takes of a device, found without computing it.

The encoder runs on the meta device, where tensors have shapes and no contents, and every operation
is looked at: which memory it asks for, when that is given back, and how much it reads and writes.
Unlike a sum of what autograd keeps, this sees what lives between two operations only, and what
checkpointing makes again in the backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

from prect.train.config import TrainConfig
from prect.train.networks import build_encoder
from prect.train.networks import without_storage as on_meta
from prect.train.precision import Precision

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class PassCost:
    """Of the forward and backward passes of one process in one step."""

    peak_bytes: int
    """Most that is held at a time beyond weights, gradients and the crops themselves."""
    moved_bytes: int
    """What all operations read and write, each on its own as eager torch runs them."""
    flops: int
    """Operations that are carried out, what checkpointing repeats included."""


def crops_in_a_pass(config: TrainConfig, world: int) -> int:
    """Crops that the encoder of one of ``world`` processes has before it at a time.

    Raises:
        ConfigError: see :meth:`TrainConfig.local_batch`.
    """
    share = config.local_batch(world) * config.crops.per_volume
    limits = [config.network.crops_at_once] if config.network.crops_at_once else []
    if config.passes(world) > 1:
        limits.append(config.data.batch_size * config.crops.per_volume)
    return min([share, *limits])


def step_cost(config: TrainConfig, world: int, precision: Precision, kind: DeviceKind) -> PassCost:
    """What the encoders' passes take of each of ``world`` processes in a step.

    Heads and loss are left out: they are less than a hundredth of any published network.

    Args:
        config: the run's settings.
        world: processes of the run.
        precision: that it computes in, without ``auto``.
        kind: of device; what autocast leaves in float32 differs.

    Raises:
        ConfigError: see :meth:`TrainConfig.local_batch`.
    """
    share = config.local_batch(world) * config.crops.per_volume
    at_once = crops_in_a_pass(config, world)
    # All chunks but the last are alike, and two hold as much at a time as any number.
    crops = share if at_once == share else 2 * at_once
    found = _pass_cost(config, crops, at_once, precision, kind)
    return PassCost(
        found.peak_bytes, found.moved_bytes * share // crops, found.flops * share // crops
    )


def _pass_cost(
    config: TrainConfig, crops: int, at_once: int, precision: Precision, kind: DeviceKind
) -> PassCost:
    network = config.network.model_copy(update={"crops_at_once": at_once % crops})
    with on_meta():
        encoder = build_encoder(network)
        images = torch.empty(crops, 1, *config.crops.shown)
    lower = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    if lower is not None:
        _run_within(encoder, partial(_LikeAutocast, lower, kind))
    watch = _Watch([*encoder.parameters(), images])
    with watch:
        if config.objective.teacher_kind == "network":
            with torch.no_grad():
                encoder(images)
        torch.autograd.backward(encoder(images).sum())
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    return PassCost(watch.peak(without=gradients), watch.moved, watch.flops)


class _Watch(TorchDispatchMode):
    """Follows the life of every piece of memory that operations ask for."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        """Begin to watch.

        Args:
            known: tensors that were there before.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = self.flops = 0
        self._events: list[tuple[int, int]] = []
        """Which piece, and bytes that it asks for or gives back."""
        self._numbers: dict[int, int] = {}
        """Number of each living storage; its address alone may be used again by another."""
        for tensor in known:
            self._note(tensor, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            # FlopCounterMode would follow modules, too, with hooks that hold on to tensors.
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        made = [each for each in tree_iter(result) if isinstance(each, torch.Tensor)]
        fresh = [self._note(tensor, tensor.untyped_storage().nbytes()) for tensor in made]
        # A view moves nothing, and memory that is only asked for neither.
        if (any(fresh) or func._schema.is_mutable) and "empty" not in func._schema.name:
            given = [each for each in tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)]
            self.moved += sum(tensor.nbytes for tensor in (*given, *made))
        return result

    def peak(self, without: list[torch.Tensor]) -> int:
        """Most bytes at a time, some tensors left out that are still there."""
        left_out = {self._numbers[tensor.untyped_storage()._cdata] for tensor in without}
        held = most = 0
        for number, change in self._events:
            held += 0 if number in left_out else change
            most = max(most, held)
        return most

    def _note(self, tensor: torch.Tensor, size: int) -> bool:
        """Follow a tensor's memory; whether it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._numbers:
            return False
        number = self._numbers[key] = len(self._events)
        self._events.append((number, size))
        weakref.finalize(storage, self._gone, key, number, size)
        return True

    def _gone(self, key: int, number: int, size: int) -> None:
        del self._numbers[key]
        self._events.append((number, -size))


class _LikeAutocast(TorchFunctionMode):
    """Casts as torch.autocast does, which knows no meta device.

    Of its rules those that the encoders meet: docs.pytorch.org, "Automatic Mixed Precision", op
    reference. Sums of unlike types are wider by themselves.
    """

    _LOWERED = (
        *(torch.conv3d, functional.linear, torch.bmm),
        *(torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__),
    )
    _KEPT_ON_GPUS = (
        *(functional.softmax, torch.softmax, torch.Tensor.softmax),
        *(functional.layer_norm, functional.group_norm),
    )

    def __init__(self, lower: torch.dtype, kind: DeviceKind) -> None:
        super().__init__()
        self._types = dict.fromkeys(self._LOWERED, lower)
        if kind == "cuda":
            self._types |= dict.fromkeys(self._KEPT_ON_GPUS, torch.float32)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        wanted = self._types.get(func)
        if wanted is None:
            return func(*args, **(kwargs or {}))

        def cast(value: Any) -> Any:
            floating = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.to(wanted) if floating else value

        args, kwargs = tree_map(cast, (args, kwargs or {}))
        return func(*args, **kwargs)


def _run_within(encoder: nn.Module, mode: Callable[[], TorchFunctionMode]) -> None:
    """Have every part of an encoder run in a mode.

    Around the whole it would not do: what is computed again in the backward pass is begun by the
    engine of autograd, which knows nothing of the mode.
    """
    inside = False

    def guarded(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return forward(*args, **kwargs)
        with ExitStack() as stack:
            stack.enter_context(mode())
            inside = True
            try:
                return forward(*args, **kwargs)
            finally:
                inside = False

    for module in encoder.modules():
        if module is not encoder:
            module.forward = partial(guarded, module.forward)
