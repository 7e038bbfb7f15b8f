"""The census in training mode: outputs and gradients of converted models and their originals, in double precision."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convswap import Swap
from convswap.comparing import compare_outputs, compare_tensors, interior
from convswap.plan import Plan, plan_traced
from convswap.sites import Trace
from convswap.targets import all_targets
from convswap.throwaway import untouched_randomness

from .budget import LEFT_OUT, groups, keeping
from .carried_gradients import Gradients, carried_errors
from .magnitudes import greatest, greatest_of, rounded
from .numbers import ROOM, batch_of, carried_out, traced
from .prepared import SEED, in_double, without_randomness
from .smallest import SmallestInput, smallest_input
from .turns import by_turns, told

MEMORY_LIMIT = 3 * 2**29
"""Bytes that the layers of a converted model may take together, with what they keep for gradients."""


OUTPUT_LIMIT = 1e-10
"""Largest relative error of the outputs where all layers are exact."""

ASKED_LIMIT = 4 * 2**30
"""Bytes that the training steps of one model may ask for."""

TIME_LIMIT = 300
"""Seconds of a core after which no target is begun."""

NOT_RUN = "it does not run in training mode"
APPROXIMATE = "it is approximate"
OTHER_PROMISE = "it promises something else"

GRADIENT_LIMIT = 1e-8
"""Largest relative error of gradients: a difference of quotients has fewer digits than the numbers it is of."""


def training_models() -> list[str]:
    """The architectures that are compared in training mode: small ones of all kinds."""
    return [f"torchvision:{name}" for name in _TORCHVISION.split()] + [f"timm:{name}" for name in _TIMM.split()]


_TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 fasterrcnn_mobilenet_v3_large_320_fpn googlenet
    lraspp_mobilenet_v3_large mc3_18 mnasnet0_5 mobilenet_v2 mobilenet_v3_small quantized_googlenet
    quantized_shufflenet_v2_x0_5 regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_t
"""

_TIMM = """
    coat_tiny convit_tiny crossvit_tiny_240 cs3darknet_focus_s cspnext_tiny dla46x_c edgenext_xx_small
    efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8
    gcvit_xxtiny ghostnet_050 hgnetv2_b0 iformer_t inception_next_atto legacy_seresnet18 levit_128s
    mobilenetv3_small_050 mobilevit_xxs pit_ti_224 poolformerv2_s12 pvt_v2_b0 regnetx_002 repghostnet_050 resnest14d
    resnetv2_18 rexnet_100 shvit_s1 skresnet18 starnet_s050 test_byobnet test_coatnet test_convnext test_efficientnet
    test_mambaout test_nfnet test_resnet test_vit tf_efficientnetv2_b0 tiny_vit_5m_224 vit_tiny_r_s16_p8_224
    xcit_nano_12_p8_224
"""


def training(name: str, targets: Iterable[str] | None = None) -> dict[str, Any]:
    """Convert an architecture to each of ``targets``, by default all, and compare training steps.

    Both models are in training mode, with all rates of dropout at 0 and the same random numbers otherwise. Of layers
    that are exact the whole converted model is compared with the original: its outputs, the gradients of the parameters
    that both have, and those of the carried weights, see `carried_errors`. Layers that are exact in the interior are
    compared one by one, with a loss of the outputs in the interior alone. Approximate layers are only counted.

    Inputs have room for an interior. With smaller ones the last maps of many models are single pixels, and norms over
    the two of a batch magnify what is rounded off.

    Returns:
        JSON values: the input, and for every target what `_compare_whole` and `_compare_interiors` give, without what
        is None or empty.
    """
    start = time.process_time()
    given = smallest_input(name, least=ROOM)
    record: dict[str, Any] = {"input": str(given), "targets": {}}
    _on(name, given, targets or all_targets(), record["targets"], start)
    record["targets"] = {to: told(outcome) for to, outcome in record["targets"].items()}
    record["seconds"] = round(time.process_time() - start, 1)
    return record


@dataclass(frozen=True)
class Pass:
    """A training step of a model: its outputs, the gradients of its parameters and what its convolutions read."""

    outputs: Sequence[Tensor]
    gradients: Gradients
    reads: Mapping[int, Tensor]


def _on(name: str, given: SmallestInput, targets: Iterable[str], records: dict[str, Any], begun: float) -> None:
    model = given.model(name)
    found = traced(model, given)
    without_randomness(model).double().train()
    call = with_labels(given, given.call(batch_of(given), dtype=torch.float64))
    original = training_step(model, call, [site.module for site in found.sites])
    end = begun + TIME_LIMIT
    by_turns(targets, records, lambda to: _compare(model, original, found, to, call), end, ASKED_LIMIT)


def with_labels(given: SmallestInput, call: tuple[Any, ...]) -> tuple[Any, ...]:
    """``call`` with what detection models are to find in the images."""
    if given.kind != "list of images":
        return call
    height, width = given.shape[-2:]
    box = torch.tensor([[width / 8, height / 8, width / 2, height / 2]], dtype=torch.float64)
    return (*call, [{"boxes": box, "labels": torch.ones(1, dtype=torch.int64)} for _ in call[0]])


def training_step(model: nn.Module, call: tuple[Any, ...], watched: Iterable[nn.Module] = ()) -> Pass:
    """Forward and backward pass with a loss that weighs all outputs at random; buffers are as before afterwards."""
    reads: dict[int, Tensor] = {}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reads.setdefault(id(module), (args[0] if args else kwargs["input"]).detach().clone())

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in watched]
    try:
        with untouched_randomness(), in_double():
            torch.manual_seed(SEED)
            found = tree_leaves(model(*call))
            outputs = [value for value in found if isinstance(value, Tensor) and value.requires_grad]
            loss = sum(((value * _weights(value)).mean() for value in outputs), torch.zeros((), dtype=torch.float64))
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    by_parameter = {id(p): g for p, g in zip(parameters, gradients, strict=True) if g is not None}
    return Pass([value.detach() for value in outputs], by_parameter, reads)


def _weights(value: Tensor) -> Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(SEED), dtype=value.dtype)


def _compare(model: nn.Module, original: Pass, found: Trace, to: str, call: tuple[Any, ...]) -> dict[str, Any]:
    plan = plan_traced(found, model, [Swap("*", to)], call)
    result: dict[str, Any] = {"swapped": len(plan.swaps)}
    plan = keeping(plan, NOT_RUN, lambda step: id(step.site.module) not in original.reads)
    plan = keeping(plan, APPROXIMATE, lambda step: step.fidelity not in ("exact", "interior"))
    plan = groups(plan, MEMORY_LIMIT, 1, batch=len(call[0]), training=True)[0] if plan.swaps else plan
    reasons = [step.reason for step in plan if step.reason in (NOT_RUN, APPROXIMATE, LEFT_OUT)]
    result["not_compared"] = dict(Counter(reasons))
    exact = keeping(plan, OTHER_PROMISE, lambda step: step.fidelity != "exact")
    bordered = keeping(plan, OTHER_PROMISE, lambda step: step.fidelity != "interior")
    if exact.swaps:
        result["exact"] = _compare_whole(model, original, exact, call)
    if bordered.swaps:
        result["interior"] = _compare_interiors(model, original, bordered)
    wrong = [
        f"{what} of {fidelity} layers (relative error {error:.1e})"
        for fidelity in ("exact", "interior")
        for what, error in result.get(fidelity, {}).items()
        if isinstance(error, float) and error > (OUTPUT_LIMIT if what == "outputs" else GRADIENT_LIMIT)
    ]
    if wrong:
        result["error"] = f"not as before: {'; '.join(wrong)}"
    counted = sum(result["not_compared"].values()) + result.get("interior", {}).get("without_interior", 0)
    counted += sum(result.get(fidelity, {}).get("layers", 0) for fidelity in ("exact", "interior"))
    if counted != result["swapped"]:
        result.setdefault("error", "some layers were neither compared nor told not to be")
    return result


def _compare_whole(model: nn.Module, original: Pass, plan: Plan, call: tuple[Any, ...]) -> dict[str, Any]:
    """A converted model's training step compared with the original's.

    Returns:
        ``layers``; greatest relative errors of ``outputs`` and of the gradients of the ``others``, the parameters that
        were not converted (relative to the greatest of each, or a ten-thousandth of the greatest of all); and of the
        ``carried`` weights' slopes, with the layer where that is. ``outputs`` is None if they have no finite numbers,
        infinite if they have other shapes;
        ``not_smooth`` the number of layers whose slopes could not be found.
    """
    converted = carried_out(plan, model)
    step = training_step(converted, call)
    outputs = compare_outputs(original.outputs, step.outputs)
    apart = outputs.relative_error if outputs.same_shapes else math.inf
    layers = {swap.site.name: converted.get_submodule(swap.site.name) for swap in plan.swaps}
    carried = carried_errors(plan.swaps, layers, original.gradients, step.gradients)
    slopes = {name: error for name, error in carried.items() if error is not None}
    worst = max(slopes, key=lambda name: slopes[name], default=None)
    inside = {id(parameter) for swap in plan.swaps for parameter in swap.site.module.parameters()}
    theirs = dict(converted.named_parameters())
    others = [
        (original.gradients.get(id(parameter)), step.gradients.get(id(theirs[name])))
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside
    ]
    return {
        "layers": len(plan.swaps),
        "outputs": None if apart is None else rounded(apart),
        "others": rounded(_greatest_difference(others)),
        "carried": rounded(greatest(slopes.values())),
        "worst": worst,
        "not_smooth": len(carried) - len(slopes),
    }


def _greatest_difference(pairs: Sequence[tuple[Tensor | None, Tensor | None]]) -> float:
    steepest = greatest(greatest_of(old) for old, _ in pairs if old is not None)
    errors = [0.0]
    for old, new in pairs:
        if old is None and new is None:
            continue
        if old is None or new is None:
            return float("inf")
        scale = max(greatest_of(old), 1e-4 * steepest)
        errors.append(greatest_of(new - old) / scale if scale else greatest_of(new))
    return greatest(errors)


def _compare_interiors(model: nn.Module, original: Pass, plan: Plan) -> dict[str, Any]:
    """Each layer's training step compared with its convolution's, where the loss is of the interior alone.

    Returns:
        ``layers`` compared; greatest relative errors of ``outputs``, of the gradients of what they ``read`` and of the
        slopes of the ``carried`` weights; ``not_smooth``, the number of those whose slopes could not be found;
        ``without_interior``, the number of those that have none.
    """
    converted = carried_out(plan, model)
    errors: dict[str, float] = {"outputs": 0.0, "read": 0.0, "carried": 0.0}
    compared = without = not_smooth = 0
    for swap in plan.swaps:
        conv, layer = swap.site.module, converted.get_submodule(swap.site.name)
        x = original.reads[id(conv)]
        (y, old_x, old), (z, new_x, new) = (_interior_step(conv, module, x) for module in (conv, layer))
        if not y.numel():
            without += 1
            continue
        compared += 1
        carried = carried_errors([swap], {swap.site.name: layer}, old, new)
        not_smooth += None in carried.values()
        slopes = (error for error in carried.values() if error is not None)
        if not y.isfinite().all():
            raise ValueError(f"{swap.site.name} gives numbers that are not finite in the original")
        found = (compare_tensors(y, z)[1], _greatest_difference([(old_x, new_x)]), greatest(slopes))
        errors = {key: greatest((errors[key], error)) for key, error in zip(errors, found, strict=True)}
    return {
        "layers": compared,
        **{key: rounded(error) for key, error in errors.items()},
        "not_smooth": not_smooth,
        "without_interior": without,
    }


def _interior_step(conv: nn.Module, module: nn.Module, read: Tensor) -> tuple[Tensor, Tensor, Gradients]:
    x = read.clone().requires_grad_()
    y = interior(conv, x, module(x))
    parameters = list(module.parameters())
    given, *gradients = torch.autograd.grad((y * _weights(y)).sum(), [x, *parameters], allow_unused=True)
    by_parameter = {id(p): g for p, g in zip(parameters, gradients, strict=True) if g is not None}
    return y.detach(), torch.zeros_like(x) if given is None else given, by_parameter
