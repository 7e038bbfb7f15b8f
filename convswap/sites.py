"""What is known of each convolution of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from .conv_classes import Conv, plain_on_meta


@dataclass(frozen=True)
class ConvCall:
    """One call of a convolution during a forward pass: shapes with the batch, multiply-adds of the whole call."""

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    multiply_adds: int


@dataclass(frozen=True)
class ConvSite:
    """A convolution and where it stands in its model.

    Attributes:
        name: qualified name, the first one if it has several.
        module: the convolution itself.
        index: place in the order of execution, as far as known: of the pass in evaluation mode, then come those that
            run in training mode only, then those that never run.
        region: name of the region it was traced in, ``""`` for the whole model.
        node: its node in the region's graph, or None if no traced path leads to it.
        calls: one entry for each call of a forward pass; empty if it is never called or shapes are unknown.
        batch: samples in that forward pass.
        next_norm, next_activation: class or function names of what follows it in the graph.
        aliases: its further qualified names.
        tied: names of parameters elsewhere that are the same tensors as its own.
        read_outside: where its parameters are used other than in its own forward, or None.
        hooked: kinds of hooks on it or its parameters.
        parametrised: whether ``torch.nn.utils.parametrize`` computes its parameters.
        training_only: whether it runs in training mode only.
        type_dependent: whether the code around it takes another path for another kind of module.
        inside: class of the layer of ours that it is a part of, or None.
        ordered: whether ``index`` is known to be its place.
    """

    name: str
    module: Conv = field(compare=False, repr=False)
    index: int
    region: str = ""
    node: str | None = None
    calls: tuple[ConvCall, ...] = ()
    batch: int = 1
    next_norm: str | None = None
    next_activation: str | None = None
    aliases: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    read_outside: str | None = None
    hooked: tuple[str, ...] = ()
    parametrised: bool = False
    training_only: bool = False
    type_dependent: bool = False
    inside: str | None = None
    ordered: bool = True

    @cached_property
    def plain(self) -> Conv:
        """The plain convolution that it amounts to, on the meta device: with torch's SAME padding where it pads so."""
        return plain_on_meta(self.module)

    @property
    def kind(self) -> str:
        """Name of the convolution's class."""
        return type(self.module).__name__

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.module.kernel_size)

    @property
    def shared(self) -> bool:
        """Whether it has several names in the model."""
        return bool(self.aliases)

    @property
    def depthwise(self) -> bool:
        """Whether every group is a single input channel."""
        return self.module.groups == self.module.in_channels > 1

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds of all its calls for one sample, or None if shapes are unknown."""
        return sum(call.multiply_adds for call in self.calls) // self.batch if self.calls else None

    def names(self) -> tuple[str, ...]:
        """All qualified names."""
        return (self.name, *self.aliases)


def in_known_order(sites: Sequence[ConvSite]) -> bool:
    """Whether these, by ``index``, are known to be in the order of execution, by a pass or by a graph with all."""
    of_one_graph = len({(site.region, site.training_only) for site in sites}) == 1
    traced = of_one_graph and all(site.node is not None for site in sites)
    return len(sites) < 2 or traced or all(site.ordered for site in sites)


@dataclass(frozen=True)
class OtherConv:
    """A convolution that is no site: transposed, functional, or of a class that mixes its own kernels."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Region:
    """A maximal part of a model that was traced as one graph.

    Attributes:
        name: qualified name of its module, ``""`` for the whole model.
        nodes: number of nodes of its graph in evaluation mode.
        convs: qualified names of the convolutions in it.
        differs_in_training: whether training mode takes another path.
        failures: modules that became leaves of its graph because they could not be traced, and why.
    """

    name: str
    nodes: int
    convs: tuple[str, ...]
    differs_in_training: bool
    failures: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Trace:
    """All convolutions of a model.

    Attributes:
        model: the model's class name.
        parameters: number of its parameters.
        sites: its convolutions, in order of execution.
        others: convolutions that cannot be sites, and why.
        regions: the parts it was traced in.
        input_shape: shape of the (first) input of the pass that shapes were read off, or None.
        unknown_shapes: why shapes are unknown, or None if they are known.
    """

    model: str
    parameters: int
    sites: tuple[ConvSite, ...]
    others: tuple[OtherConv, ...]
    regions: tuple[Region, ...]
    input_shape: tuple[int, ...] | None
    unknown_shapes: str | None

    def __iter__(self) -> Iterator[ConvSite]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, name: str) -> ConvSite:
        """The site of this qualified name."""
        for site in self.sites:
            if name in site.names():
                return site
        raise KeyError(name)


def hooks_of(conv: nn.Module) -> tuple[str, ...]:
    """Kinds of hooks that would be lost if the module were replaced."""
    kinds = []
    for attribute, kind in _HOOK_DICTS.items():
        if getattr(conv, attribute, None):
            kinds.append(kind)
    for name, parameter in conv.named_parameters(recurse=False):
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            kinds.append(f"tensor hook on {name}")
    if "forward" in conv.__dict__:
        kinds.append("replaced forward")
    return tuple(kinds)


_HOOK_DICTS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
    "_state_dict_hooks": "state-dict hook",
    "_state_dict_pre_hooks": "state-dict pre-hook",
    "_load_state_dict_pre_hooks": "load-state-dict pre-hook",
    "_load_state_dict_post_hooks": "load-state-dict post-hook",
}
