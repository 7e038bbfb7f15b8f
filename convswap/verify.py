"""Proof, after the fact, that a converted model computes what the original does: layer by layer and at the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .conv_classes import CONVS, plain_on_meta
from .errors import ConvswapError, VerificationError
from .field_types import checked
from .further_inputs import with_further_inputs, without_further_inputs
from .inputs import as_call, default_input_shape, is_shape, make_inputs
from .layers._geometry import effective_size, normalise_padding, pad_widths
from .layers.hypernet_conv import HypernetConv2d
from .modules import evaluation_mode
from .targets.base import Fidelity
from .throwaway import untouched_randomness

VerifyInputs: TypeAlias = Any
"""A tensor, a tuple of arguments, a dict of keyword arguments; the name of a file (image, ``.npy``, ``.pt``,
``.safetensors``); a shape ``(C, H, W)``; or a whole number, the seed of a random batch."""

EXACT_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest relative error of an ``exact`` layer. In half precisions weights that sum to the original's are themselves
rounded: there it is 4 units in the last place."""


OUTPUT_LIMITS = {"float64": 1e-6, "float32": 1e-2}
"""Largest relative error of a model's output where all converted layers are exact: far above what their rounding adds
up to, and far below what a wrong path gives."""


@dataclass(frozen=True)
class LayerCheck:
    """How a converted layer compares to its convolution, both fed with the original's input.

    Attributes:
        name: the layer's qualified name.
        fidelity: what it promises.
        relative_error: greatest difference, divided by the greatest magnitude of the convolution's output. Over the
            interior alone if the fidelity is ``interior``.
        limit: what is allowed, None for layers that promise no number.
        passed: whether the error is finite and within the limit.
    """

    name: str
    fidelity: Fidelity
    relative_error: float
    limit: float | None
    passed: bool


@dataclass(frozen=True)
class Verification:
    """What a comparison of an original with a converted model on one batch showed.

    Attributes:
        layers: a check for every converted layer that ran.
        not_run: converted layers that this input does not reach.
        output_relative_error: greatest difference at the model's output, divided by its greatest magnitude.
        output_difference: greatest difference at the model's output.
        dtype: of the models' parameters.
        inputs: what the batch was, in words.
    """

    layers: tuple[LayerCheck, ...]
    not_run: tuple[str, ...]
    output_relative_error: float
    output_difference: float
    dtype: str
    inputs: str

    @property
    def passed(self) -> bool:
        """Whether there is a converted layer, every one keeps what it promises, and so does the output.

        The output may lose some digits more than the layers; only where all of them are exact is there a limit for it.
        """
        return bool(self.layers) and all(check.passed for check in self.layers) and self.output_passed

    @property
    def output_passed(self) -> bool:
        """Whether the outputs have the same shapes, and differ by little where all layers are exact."""
        limit = OUTPUT_LIMITS.get(self.dtype) if {c.fidelity for c in self.layers} <= {"exact"} else None
        return self.output_relative_error < (float("inf") if limit is None else limit)

    @property
    def worst(self) -> LayerCheck | None:
        """The layer with the greatest error."""
        return max(self.layers, key=lambda check: check.relative_error, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Verification:
        """The inverse of `to_dict`.

        Raises:
            TypeError, KeyError: if the data is no verification.
        """
        layers = tuple(checked(LayerCheck(**check)) for check in data["layers"])
        return checked(cls(**{**data, "layers": layers, "not_run": tuple(data["not_run"])}))


def verify(original: nn.Module, converted: nn.Module, inputs: VerifyInputs = 0) -> Verification:
    """Run both models on the same batch, in evaluation mode, and compare.

    Every converted layer is fed with the input that the original's convolution got, so that errors do not add up; the
    outputs of the whole models are compared too.

    Args:
        original: the model that was converted.
        converted: the result.
        inputs: see `VerifyInputs`. A seed or an image needs a model whose input size is known.

    Raises:
        ConvswapError: if the inputs cannot be read or made, or the models do not fit together.
    """
    given, described = _read_inputs(original, inputs)
    call = with_further_inputs(converted, as_call(given), torch.Generator().manual_seed(0))
    original_call = without_further_inputs(converted, call, original)
    pairs = _pairs(original, converted)
    fidelities = _fidelities(converted)
    checks: dict[str, LayerCheck] = {}
    guides: dict[str, list[Tensor]] = {}

    def compare(name: str, conv: Any, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        guided_from_elsewhere = isinstance(layer, HypernetConv2d) and layer.guide is not None
        if guided_from_elsewhere and not guides.get(name):
            return
        guide = (guides[name].pop(0),) if guided_from_elsewhere else ()
        actual = _run(f"the new layer {name!r}", described, lambda: layer(x, *guide))
        check = _check(name, conv, fidelities.get(name, "exact"), x, output, actual)
        if name not in checks or check.relative_error > checks[name].relative_error:
            checks[name] = check

    with evaluation_mode(original), evaluation_mode(converted), torch.no_grad(), untouched_randomness():
        state = torch.get_rng_state()  # both see the same random numbers, if they draw any
        try:
            with _noting_guides({name: layer for name, (_, layer) in pairs.items()}, guides):
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
    difference, relative = _compare_outputs(expected, actual)
    return Verification(
        layers=tuple(checks.values()),
        not_run=tuple(name for name in pairs if name not in checks),
        output_relative_error=relative,
        output_difference=difference,
        dtype=str(_dtype(original)).removeprefix("torch."),
        inputs=described,
    )


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


def require_passed(verification: Verification) -> None:
    """Raise if a layer does not keep its promise.

    Raises:
        VerificationError: naming the worst layers and by how much.
    """
    failed = sorted((c for c in verification.layers if not c.passed), key=lambda c: -c.relative_error)
    if failed:
        lines = [f"  {c.name}: relative error {c.relative_error:.2e}{_allowed(c)}" for c in failed[:5]]
        more = f"\n  … and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise VerificationError(
            f"{len(failed)} of {len(verification.layers)} converted layers do not compute what their convolutions "
            "computed:\n" + "\n".join(lines) + more
        )
    if not verification.layers:
        raise VerificationError(
            "no converted layer was reached by this input, so nothing is proved: give another input"
        )
    if not verification.output_passed:
        raise VerificationError(
            "every converted layer computes what its convolution computed, but the model's output differs (relative "
            f"error {verification.output_relative_error:.2e}): the code around the layers treats them in another way"
        )


def _run(what: str, described: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ConvswapError(f"{what} does not run on this input ({described}): {error}") from error


def _allowed(check: LayerCheck) -> str:
    return "" if check.limit is None else f", allowed {check.limit:.0e}"


def _read_inputs(model: nn.Module, inputs: VerifyInputs) -> tuple[Any, str]:
    """Arguments for the model, and what they are in words."""
    if isinstance(inputs, str | Path):
        from .input_files import read_input

        return read_input(model, Path(inputs)), Path(inputs).name
    if type(inputs) is int:
        shape = default_input_shape(model)
        if shape is None:
            raise ConvswapError(
                f"the input size of {type(model).__name__} is unknown, so no random batch can be made: give an input"
            )
        generator = torch.Generator().manual_seed(inputs)
        return make_inputs(model, shape, batch=2, generator=generator), f"random, seed {inputs}, 2×{shape}"
    if is_shape(inputs):
        generator = torch.Generator().manual_seed(0)
        return make_inputs(model, inputs, batch=2, generator=generator), f"random, seed 0, 2×{tuple(inputs)}"
    return inputs, "given"


def _pairs(original: nn.Module, converted: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Convolutions of the original that are something else in the converted model, or have been in between."""
    other = dict(converted.named_modules())
    frozen = _frozen(converted)
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {}
    for name, module in original.named_modules():
        there = other.get(name)
        changed = there is not None and (type(there) is not type(module) or name in frozen)
        if isinstance(module, CONVS) and changed:
            pairs[name] = (module, other[name])
    return pairs


def _frozen(converted: nn.Module) -> dict[str, Fidelity]:
    """What became a layer and then a convolution again, and what that promises."""
    from .carried_report import earlier_report

    report = earlier_report(converted)
    return {} if report is None else {name: layer.fidelity for name, layer in report.frozen().items()}


def _fidelities(converted: nn.Module) -> dict[str, Fidelity]:
    from .carried_report import earlier_report

    report = earlier_report(converted)
    if report is None:
        return {}
    fidelities = {s.name: s.fidelity for s in report.swaps if s.fidelity is not None}
    frozen = {name: layer.fidelity for name, layer in report.frozen().items() if layer.fidelity != "exact"}
    return {**fidelities, **frozen}


def _check(name: str, conv: Any, fidelity: Fidelity, x: Tensor, expected: Tensor, actual: Tensor) -> LayerCheck:
    if expected.shape != actual.shape:
        raise VerificationError(
            f"{name}: the convolution gives shape {tuple(expected.shape)}, the new layer {tuple(actual.shape)}"
        )
    if fidelity == "interior":
        expected, actual = _interior(conv, x, expected), _interior(conv, x, actual)
    _, error = _compare_tensors(expected, actual)
    limit = None
    if fidelity in ("exact", "interior"):
        limit = EXACT_LIMITS.get(expected.dtype, 4 * torch.finfo(expected.dtype).eps)
    passed = error < float("inf") and (limit is None or error <= limit)
    return LayerCheck(name, fidelity, error, limit, passed)


def _interior(conv: Any, x: Tensor, output: Tensor) -> Tensor:
    """The part of ``output`` whose windows lie wholly in ``x``."""
    plain = plain_on_meta(conv)
    dims = len(plain.kernel_size)
    window = effective_size(plain.kernel_size, plain.dilation)
    widths = pad_widths(normalise_padding(plain.padding, dims), window, tuple(plain.stride), x.shape[-dims:])
    for axis, ((before, _), extent, step) in enumerate(zip(widths, window, plain.stride, strict=True)):
        size = x.shape[axis - dims]
        first = -(-before // step)
        end = (size - extent + before) // step + 1
        output = output.narrow(axis - dims, first, max(0, end - first))
    return output


def _compare_outputs(expected: Any, actual: Any) -> tuple[float, float]:
    ours, theirs = tree_leaves(actual), tree_leaves(expected)
    if len(ours) != len(theirs):
        raise VerificationError(f"the original gives {len(theirs)} outputs, the converted model {len(ours)}")
    pairs = [(e, a) for e, a in zip(theirs, ours, strict=True) if isinstance(e, Tensor) and e.is_floating_point()]
    compared = [_compare_tensors(e, a) if e.shape == a.shape else (float("inf"), float("inf")) for e, a in pairs]
    return max((d for d, _ in compared), default=0.0), max((r for _, r in compared), default=0.0)


def _compare_tensors(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """Greatest difference, infinite for NaN, and that divided by the greatest magnitude of ``expected``."""
    finite = expected.isfinite()  # where the original overflows there is nothing to compare with
    if not finite.any():
        return 0.0, 0.0
    wide = torch.promote_types(expected.dtype, torch.float32)
    kept = expected[finite].to(wide)
    difference = (actual[finite].to(wide) - kept).abs().nan_to_num(nan=float("inf")).max().item()
    magnitude = kept.abs().max().item()
    return difference, difference / magnitude if magnitude > 0 else difference


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
