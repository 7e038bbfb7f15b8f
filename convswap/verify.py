"""Proof, after the fact, that a converted model computes what the original does: layer by layer and at the output."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .comparing import check_layer, compare_outputs, greatest_growth, magnitude, of_all_calls
from .conv_classes import CONVS
from .errors import ConvswapError, GrowthWarning
from .further_inputs import with_further_inputs, without_further_inputs
from .inputs import as_call, default_inputs, is_shape, make_inputs
from .layers.hypernet_conv import HypernetConv2d
from .modules import evaluation_mode
from .targets.base import Fidelity
from .throwaway import untouched_randomness
from .verification import LayerCheck, Verification
from .verification_words import growth_sentence

VerifyInputs: TypeAlias = Any
"""A tensor, a tuple of arguments, a dict of keyword arguments; the name of a file (image, ``.npy``, ``.pt``,
``.safetensors``); a shape ``(C, H, W)``; or a whole number, the seed of a random batch."""


class ReadInputs(NamedTuple):
    """What `VerifyInputs` stand for."""

    given: Any
    """A tensor, a tuple of arguments, or a dict of keyword arguments."""
    described: str
    """Where they are from, in words."""
    random: bool
    """Whether they were drawn."""


def verify(original: nn.Module, converted: nn.Module, inputs: VerifyInputs = 0) -> Verification:
    """Run both models on the same batch, in evaluation mode, and compare.

    Every converted layer is fed with the input that the original's convolution got, so that errors do not add up; the
    outputs of the whole models are compared too.

    Args:
        original: the model that was converted.
        converted: the result.
        inputs: see `VerifyInputs`. A seed or an image needs a model whose input size is known.

    Warns:
        GrowthWarning: if activations of the converted model are much larger than the original's; see
            `Verification.grown`.

    Raises:
        ConvswapError: if the inputs cannot be read or made, or the models do not fit together.
    """
    return verify_on(original, converted, read_inputs(original, inputs))


def verify_on(original: nn.Module, converted: nn.Module, inputs: ReadInputs) -> Verification:
    """`verify` on inputs that have been read."""
    from .carried_report import earlier_report

    given, described, _ = inputs
    call = with_further_inputs(converted, as_call(given), torch.Generator().manual_seed(0))
    original_call = without_further_inputs(converted, call, original)
    report = earlier_report(converted)
    plain = {} if report is None else report.plain()
    pairs = _pairs(original, converted, plain)
    fidelities: dict[str, Fidelity] = {}
    if report is not None:
        fidelities = {step.name: step.fidelity for step in report.swaps if step.fidelity is not None}
        fidelities |= {name: layer.fidelity for name, layer in plain.items() if layer.fidelity != "exact"}
    calls: dict[str, list[LayerCheck]] = {}
    outputs: dict[str, list[int]] = {}
    guides: dict[str, list[Tensor]] = {}
    before: dict[str, list[float | None]] = {}
    after: dict[str, list[float | None]] = {}

    def compare(name: str, conv: Any, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        before.setdefault(name, []).append(magnitude(output))
        guided_from_elsewhere = isinstance(layer, HypernetConv2d) and layer.guide is not None
        if guided_from_elsewhere and not guides.get(name):
            return
        guide = (guides[name].pop(0),) if guided_from_elsewhere else ()
        actual = _run(f"the new layer {name!r}", described, lambda: layer(x, *guide))
        calls.setdefault(name, []).append(check_layer(name, conv, fidelities.get(name, "exact"), x, output, actual))
        outputs.setdefault(name, []).append(output.numel())

    with evaluation_mode(original), evaluation_mode(converted), torch.no_grad(), untouched_randomness():
        state = torch.get_rng_state()  # both see the same random numbers, if they draw any
        try:
            layers = {name: layer for name, (_, layer) in pairs.items()}
            with _noting_guides(layers, guides), _noting_magnitudes(layers, after):
                actual = _run("the converted model", described, lambda: converted(*call[0], **call[1]))
        except ConvswapError:
            _run(type(original).__name__, described, lambda: original(*original_call[0], **original_call[1]))
            raise  # the original runs on this input
        torch.set_rng_state(state)
        handles = [
            conv.register_forward_hook(
                lambda _, args, kwargs, output, n=name, c=conv, new=layer: compare(
                    n, c, new, args[0] if args else kwargs["input"], output
                ),
                with_kwargs=True,
            )
            for name, (conv, layer) in pairs.items()
        ]
        try:
            expected = _run(type(original).__name__, described, lambda: original(*original_call[0], **original_call[1]))
        finally:
            for handle in handles:
                handle.remove()
    output = compare_outputs(expected, actual)
    checks = {name: of_all_calls(found, outputs[name]) for name, found in calls.items()}
    grown = {name: greatest_growth(before[name], after.get(name, [])) for name in checks}
    verification = Verification(
        layers=tuple(replace(check, growth=grown[name]) for name, check in checks.items()),
        not_run=tuple(name for name in pairs if name not in checks),
        output_relative_error=output.relative_error,
        output_difference=output.difference,
        dtype=str(_dtype(original)).removeprefix("torch."),
        inputs=described,
        same_shapes=output.same_shapes,
    )
    sentence = growth_sentence(verification)
    if sentence is not None:
        warnings.warn(sentence, GrowthWarning, stacklevel=3)
    return verification


@contextmanager
def _noting_magnitudes(layers: Mapping[str, nn.Module], magnitudes: dict[str, list[float | None]]) -> Iterator[None]:
    """Note how large the outputs of ``layers`` are, call by call."""
    handles = [
        layer.register_forward_hook(
            lambda _, __, output, n=name: magnitudes.setdefault(n, []).append(magnitude(output))
        )
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _noting_guides(layers: Mapping[str, nn.Module], guides: dict[str, list[Tensor]]) -> Iterator[None]:
    """Note what the hypernets that are guided from elsewhere are handed, call by call."""

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        guides.setdefault(name, []).append(args[0] if args else kwargs["guide"])

    handles = [
        layer.hypernet.register_forward_pre_hook(
            lambda _, args, kwargs, n=name: note(n, args, kwargs), with_kwargs=True
        )
        for name, layer in layers.items()
        if isinstance(layer, HypernetConv2d) and layer.guide is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(what: str, described: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ConvswapError(f"{what} does not run on this input ({described}): {error}") from error


def read_inputs(model: nn.Module, inputs: VerifyInputs) -> ReadInputs:
    """Arguments for the model from what they are given as.

    Raises:
        ConvswapError: if a file cannot be read, or no batch can be drawn as the model's input size is unknown.
    """
    if isinstance(inputs, str | Path):
        from .input_files import read_input

        return ReadInputs(read_input(model, Path(inputs)), Path(inputs).name, random=False)
    if type(inputs) is int:
        default = default_inputs(model, inputs)
        if default is None:
            raise ConvswapError(
                f"the input size of {type(model).__name__} is unknown, so no random batch can be made: give an input"
            )
        if not is_shape(default):
            shapes = " and ".join(str(tuple(drawn.shape)) for drawn in default)
            return ReadInputs(default, f"random, seed {inputs}, {shapes}", random=True)
        generator = torch.Generator().manual_seed(inputs)
        batch = make_inputs(model, default, batch=2, generator=generator)
        return ReadInputs(batch, f"random, seed {inputs}, 2×{tuple(default)}", random=True)
    if is_shape(inputs):
        generator = torch.Generator().manual_seed(0)
        batch = make_inputs(model, inputs, batch=2, generator=generator)
        return ReadInputs(batch, f"random, seed 0, 2×{tuple(inputs)}", random=True)
    return ReadInputs(inputs, "given", random=False)


def _pairs(
    original: nn.Module, converted: nn.Module, in_between: Container[str]
) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Convolutions of the original that are something else in the converted model, or were ``in_between``, by name."""
    other = dict(converted.named_modules())
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {}
    for name, module in original.named_modules():
        there = other.get(name)
        changed = there is not None and (type(there) is not type(module) or name in in_between)
        if isinstance(module, CONVS) and changed:
            pairs[name] = (module, other[name])
    return pairs


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
