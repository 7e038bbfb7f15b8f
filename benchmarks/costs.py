"""Whether plans tell the right costs: ``python -m benchmarks.costs``.

What a plan says before anything is built, against what converted models do: their parameters, the FLOPs that torch's
own ``FlopCounterMode`` counts in them, and the tensors that autograd keeps in each layer's calls. On the meta device,
where models of any size take no time.

Activation bytes differ where a convolution reads a part of a tensor, as of the halves that ShuffleNet splits maps in:
the plan counts that part, and autograd holds on to the whole of it. Under odconv one layer of EdgeNeXt, the pointwise
``stages.1.blocks.1.pos_embd.token_projection``, keeps 256 bytes less than the 58,580 that are planned; why has not been
found out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import convswap
from convswap.costs import conv_cost
from convswap.plan import Plan, plan_traced
from convswap.sources import build_model, parse_source
from convswap.targets import all_targets

from .timing import table_row

MODELS = {
    "torchvision:resnet18": (3, 64, 64),
    "torchvision:squeezenet1_1": (3, 64, 64),
    "torchvision:shufflenet_v2_x0_5": (3, 64, 64),
    "torchvision:mobilenet_v3_small": (3, 64, 64),
    "torchvision:vgg11": (3, 64, 64),
    "torchvision:googlenet": (3, 64, 64),
    "torchvision:lraspp_mobilenet_v3_large": (3, 64, 64),
    "torchvision:r3d_18": (3, 8, 32, 32),
    "torchvision:swin_t": (3, 64, 64),
    "timm:convnext_atto": (3, 64, 64),
    "timm:tf_mobilenetv3_small_minimal_100": (3, 64, 64),
    "timm:tf_efficientnet_lite0": (3, 64, 64),
    "timm:resnetv2_50x1_bit": (3, 64, 64),
    "timm:nf_regnet_b0": (3, 64, 64),
    "timm:test_vit": (3, 160, 160),
    "timm:mobilevitv2_050": (3, 64, 64),
    "timm:ghostnet_050": (3, 64, 64),
    "timm:edgenext_xx_small": (3, 64, 64),
    "timm:repvgg_a0": (3, 64, 64),
    "timm:darknet17": (3, 64, 64),
}
"""Twenty models of many kinds, and the size of an input of theirs."""


@dataclass
class Counted:
    """What a model did in one forward pass of one sample.

    Attributes:
        parameters: their number.
        flops: as ``FlopCounterMode`` counts.
        kept: for some of its modules, by name, bytes that their calls keep for the backward pass and are no parameters.
    """

    parameters: int
    flops: int
    kept: dict[str, int] = field(default_factory=dict)


@dataclass
class Comparison:
    """A plan's costs next to what was counted. Differences are counted less planned.

    Attributes:
        swaps: number of layers.
        parameters, multiply_adds: differences, of the whole model.
        activation_bytes: difference for each layer that has one.
        unknown: names of layers of which the plan does not know all.
    """

    swaps: int
    parameters: int
    multiply_adds: float
    activation_bytes: dict[str, int]
    unknown: list[str]


def count(model: nn.Module, inputs: Tensor, names: Iterable[str] = ()) -> Counted:
    """Run ``model`` in the mode it is in.

    Args:
        model: on the device of the inputs.
        inputs: one sample.
        names: of the modules whose kept bytes are told.
    """
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    result = Counted(sum(p.numel() for p in model.parameters()), 0)
    running: list[dict[int, int]] = []
    handles: list[Any] = []

    def enter(*_: object) -> None:
        running.append({})

    def leave(name: str) -> Any:
        def hook(*_: object) -> None:
            result.kept[name] = result.kept.get(name, 0) + sum(running.pop().values())

        return hook

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if running and storage._cdata not in own:
            running[-1][storage._cdata] = storage.nbytes()
            alive.append(tensor)  # lest another tensor be where this one was
        return tensor

    alive: list[Tensor] = []
    for name in names:
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave(name))]
    try:
        with (
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    result.flops = counter.get_total_flops()
    return result


def compare(model: nn.Module, inputs: Tensor, plan: Plan, before: Counted) -> Comparison:
    """Carry ``plan`` out and count, in evaluation mode: without what only training runs.

    Args:
        model: the model that is planned for, as traced.
        inputs: one sample.
        plan: of it.
        before: what ``model`` itself does.
    """
    new = convswap.apply(plan, model)
    after = count(new, inputs, [step.site.name for step in plan.swaps])
    run = [step for step in plan.swaps if not step.site.training_only]  # which evaluation mode runs
    planned = {step.site.name: step.after for step in run}
    macs = sum((s.after.multiply_adds or 0) - (s.before.multiply_adds or 0) for s in run)
    return Comparison(
        swaps=len(plan.swaps),
        parameters=after.parameters
        - before.parameters
        - sum(s.after.parameters - s.before.parameters for s in plan.swaps),
        multiply_adds=(after.flops - before.flops) / 2 - macs,
        activation_bytes={
            name: after.kept.get(name, 0) - (cost.activation_bytes or 0)
            for name, cost in planned.items()
            if after.kept.get(name, 0) != (cost.activation_bytes or 0)
        },
        unknown=[name for name, cost in planned.items() if None in (cost.multiply_adds, cost.activation_bytes)],
    )


def build(name: str, device: str) -> nn.Module:
    """A model by its library and name, with random weights, in evaluation mode."""
    with torch.device(device):
        return build_model(parse_source(name)).eval()


def rows(models: Iterable[str] = tuple(MODELS)) -> Iterator[str]:
    """For each target the models and layers that were compared, and those that differ."""
    totals: dict[str, list[int]] = {}
    kept = [0, 0]
    for name in models:
        model, inputs = build(name, "meta"), torch.empty(1, *MODELS[name], device="meta", requires_grad=True)
        trace = convswap.trace(model, MODELS[name])
        before = count(model, inputs, [site.name for site in trace.sites])
        for site in (site for site in trace.sites if not site.training_only):
            kept[0] += 1
            kept[1] += before.kept.get(site.name, 0) != (conv_cost(site).activation_bytes or 0)
        for to in all_targets():
            try:
                plan = plan_traced(trace, model, [convswap.Swap("*", to)])
            except convswap.ConvswapError:  # nothing to swap in this model
                continue
            found = compare(model, inputs, plan, before)
            differing = found.parameters != 0, found.multiply_adds != 0, len(found.activation_bytes), len(found.unknown)
            total = totals.setdefault(to, [0] * 6)
            for index, number in enumerate((1, found.swaps, *differing)):
                total[index] += int(number)
    headings = "models", "layers", "models: parameters differ", "models: multiply-adds differ"
    yield table_row(["target", *headings, "layers: activation bytes differ", "layers: unknown"])
    yield table_row(["---", *["---:"] * 6])
    yield table_row(["(convolutions as they are)", str(len(tuple(models))), str(kept[0]), "", "", str(kept[1]), ""])
    for to, total in totals.items():
        yield table_row([to, *map(str, total)])


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
