"""Finding every convolution of a model: where it stands, what it is called with, what hangs on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .class_dependence import sites_asked_for_their_type
from .collection import paused_collection
from .further_inputs import with_further_inputs
from .inputs import ExampleInputs, as_call, default_inputs, is_shape, make_inputs
from .measure import Measurement, measure
from .refusals import refuse_wrapped
from .regions import TracedRegion, trace_regions
from .site_making import conv_like, make_sites, other_convs
from .sites import ConvCall, ConvSite, Region, Trace
from .throwaway import cleared_caches, throwaway_copy, untouched_randomness

NO_INPUTS = "no example_inputs were given, and the model's library names no input size"


def trace(model: nn.Module, example_inputs: ExampleInputs = None, *, real_pass: bool = False) -> Trace:
    """Find every convolution of ``model``, which is left as it is.

    The model's code runs on copies, with fake and symbolic tensors. What it caches outside of the model, in globals or
    on classes (but for ``functools.lru_cache``), stays there. torch.fx patches ``nn.Module`` while it traces: no other
    thread should run a model meanwhile.

    Args:
        model: any module; not wrapped, compiled or scripted.
        example_inputs: a tensor, a tuple of arguments, a dict of keyword arguments, or the shape ``(C, H, W)`` of one
            sample. By default what timm's or torchvision's configuration says; without either, shapes are unknown.
        real_pass: read shapes off a real forward pass of a copy instead of one over fake tensors, for models whose
            path depends on the data (detection). Needs memory for a copy of the model.

    Raises:
        ModelError: if the model is wrapped, compiled or scripted, or cannot be copied.
        ConvswapError: if ``example_inputs`` is none of these.
    """
    refuse_wrapped(model)
    watched = conv_like(model)
    with paused_collection(), untouched_randomness(), cleared_caches(model):
        if example_inputs is None:
            example_inputs = default_inputs(model)
        mode = None if real_pass else FakeTensorMode(allow_non_fake_inputs=True)
        copied = throwaway_copy(model, mode)
        if example_inputs is None:
            measurement = Measurement(failure=NO_INPUTS)
        else:
            measurement = _measure(copied, watched, example_inputs, mode, training=False)
        regions = trace_regions(copied)
        unseen = len(measurement.calls) < len(watched) or not _traced_whole(regions)
        if measurement.failure is None and unseen:
            another = throwaway_copy(model, mode)
            _add(measurement, _measure(another, watched, example_inputs, mode, training=True))
        type_dependent = sites_asked_for_their_type(copied, regions, lambda: throwaway_copy(model, mode))
    ordered = measurement.failure is None or _traced_whole(regions)
    sites = make_sites(model, regions, measurement, type_dependent, ordered)
    return Trace(
        model=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p)),
        sites=sites,
        others=other_convs(model, measurement),
        regions=tuple(_summary(region, sites) for region in regions),
        input_shape=measurement.input_shape,
        unknown_shapes=_unknown_shapes(measurement, regions),
    )


def _measure(
    copied: nn.Module, names: Iterable[str], example_inputs: ExampleInputs, mode: FakeTensorMode | None, training: bool
) -> Measurement:
    if is_shape(example_inputs):  # norms refuse single values per channel in training mode
        inputs: Any = make_inputs(copied, example_inputs, batch=2 if training else 1)
    else:
        inputs = example_inputs
    convs = {name: copied.get_submodule(name) for name in names}
    call = with_further_inputs(copied, as_call(inputs))
    return measure(copied.train(training), convs, call, mode)


def _traced_whole(regions: list[TracedRegion]) -> bool:
    return len(regions) == 1 and not regions[0].name and not regions[0].failures


def _unknown_shapes(measurement: Measurement, regions: list[TracedRegion]) -> str | None:
    if measurement.failure is None or _traced_whole(regions):
        return measurement.failure
    return f"{measurement.failure}; nor is it known whether code that could not be traced reads convolutions' weights"


def _add(measurement: Measurement, in_training: Measurement) -> None:
    """Add what happens in training mode only."""
    measurement.readers = {**in_training.readers, **measurement.readers}
    measurement.functional = {**in_training.functional, **measurement.functional}
    for name, calls in in_training.calls.items():
        scaled = [_scale(call, measurement.batch, in_training.batch) for call in calls]
        measurement.calls.setdefault(name, scaled)


def _scale(call: ConvCall, batch: int, measured_batch: int) -> ConvCall:
    """The call as it would have been with another batch size."""
    return ConvCall(
        input_shape=(call.input_shape[0] * batch // measured_batch, *call.input_shape[1:]),
        output_shape=(call.output_shape[0] * batch // measured_batch, *call.output_shape[1:]),
        multiply_adds=call.multiply_adds * batch // measured_batch,
    )


def _summary(region: TracedRegion, sites: tuple[ConvSite, ...]) -> Region:
    return Region(
        name=region.name,
        nodes=len(region.evaluation.nodes),
        convs=tuple(site.name for site in sites if site.region == region.name),
        differs_in_training=region.training is not None,
        failures=tuple(region.failures.items()),
    )
