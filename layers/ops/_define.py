"""How an op is made known to torch: schema, shapes, derivative, cost, and the plain PyTorch form behind it.

The plain form is what runs until a compiled library registers a kernel for the CPU or for CUDA.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "convswap"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")

_flop_formulas: dict[Any, Callable[..., int]] = {}


def define(
    schema: str,
    reference: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    flops: Callable[..., int],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """Define an op and return its overload, to be called.

    Args:
        schema: as in ``"name(Tensor x, int[] size) -> Tensor"``.
        reference: the plain PyTorch form, positional arguments as in the schema.
        fake: gives empty tensors of the right shapes, dtypes and strides.
        flops: number of floating-point operations, from the shapes of tensor arguments, with ``out_shape=``.
        setup_context, backward: as in ``torch.library.register_autograd``. Without them the op is differentiated
            through its plain form, any number of times.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    if backward is None:
        setup_context, backward = _through(reference)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)
    packet = getattr(torch.ops.convswap, name)
    _flop_formulas[packet] = flops
    if "torch.utils.flop_counter" in sys.modules:
        register_flop_formulas()
    return packet.default


def register_flop_formulas() -> None:
    """Tell torch's ``FlopCounterMode`` what the ops cost. Importing it takes longer than all else, so not at once."""
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    for packet, formula in _flop_formulas.items():
        if packet not in flop_registry:
            register_flop_formula(packet)(formula)


def _through(reference: Callable[..., Any]) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Context and backward of an op that is differentiated by differentiating its plain form."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tensors = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.tensors))

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()
        saved = list(ctx.saved_tensors)
        arguments = list(ctx.others)
        wanted = []
        for i, value in zip(ctx.tensors, saved, strict=True):
            if not ctx.needs_input_grad[i]:
                arguments[i] = value
                continue
            arguments[i] = value if again else value.detach().requires_grad_()
            wanted.append(i)
        with torch.enable_grad():
            # Views, so that an input that is given twice, or made from another, is told apart.
            inputs = [arguments[i].view_as(arguments[i]) for i in wanted]
            for i, value in zip(wanted, inputs, strict=True):
                arguments[i] = value
            outputs = reference(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
        found: list[Tensor | None] = [None] * len(arguments)
        if pairs and inputs:
            ys, gs = zip(*pairs, strict=True)
            gradients = torch.autograd.grad(ys, inputs, gs, create_graph=again, allow_unused=True)
            for i, gradient in zip(wanted, gradients, strict=True):
                found[i] = gradient
        return tuple(found)

    return setup_context, backward
