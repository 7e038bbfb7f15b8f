"""What a target is: something that convolutions can be converted to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..conv_classes import Conv
from ..sites import ConvSite

Fidelity = Literal["exact", "interior", "approximate", "reinitialised"]
"""What a converted layer promises, fed with the same input as the convolution.

``exact``: relative error at most 1e-10 in double and 1e-5 in single precision; ``interior``: that, except where the
window crosses the border; ``approximate``: close, measured and reported; ``reinitialised``: weights are not carried.
"""


class Target(ABC):
    """The only place that knows both a convolution's site and a layer.

    To add one, subclass this and hand an instance to `convswap.register`, or name the class in an entry point of the
    group ``convswap.targets``.

    Attributes:
        name: what users write in ``to=``.
        summary: one line for lists of targets.
        options: a frozen dataclass whose fields are the options, with their defaults. It may raise ``ValueError``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[type[Any]]

    def resolve(self, site: ConvSite, options: Any) -> Any:
        """``options`` with defaults that depend on the site filled in. Called only where nothing speaks against it."""
        return options

    def resolve_all(self, sites: Sequence[ConvSite], options: Sequence[Any]) -> Sequence[Any]:
        """The resolved options of all convolutions that one rule converts, in the order of execution.

        To be overridden where the options say what each of several convolutions gets. What is returned, and written
        into plans, recipes and files, is for each alone.

        Args:
            sites: the convolutions.
            options: the rule's options for each of them: the same, but for what depends on a guide.

        Raises:
            ConvswapError: if the options do not fit these convolutions.
        """
        return [self.resolve(site, own) for site, own in zip(sites, options, strict=True)]

    def lacks_order(self, sites: Sequence[ConvSite], options: Any) -> bool:
        """Whether more of the order of execution must be known than is: then the model is run, if there are inputs.

        To be overridden where what becomes of a convolution depends on its place in that order.

        Args:
            sites: all convolutions of the model.
            options: the rule's.
        """
        return False

    @abstractmethod
    def unsupported_reason(self, site: ConvSite, options: Any) -> str | None:
        """Why this convolution is kept, in words that say what to do, or None if it can be converted.

        ``site.plain`` is the plain convolution that the site's module amounts to.
        """

    @abstractmethod
    def fidelity(self, site: ConvSite, options: Any) -> Fidelity:
        """What the layer made from this site promises."""

    def note(self, site: ConvSite, options: Any) -> str | None:
        """What else there is to say about the conversion, with resolved options, or None.

        Reports group notes by their text and name the layers of each: so what is said should be the same for all
        layers that are alike, and not name one.
        """
        return None

    @abstractmethod
    def build(self, conv: Conv, options: Any, generator: torch.Generator | None) -> nn.Module:
        """Make the layer from a plain convolution, which may be on the meta device.

        Args:
            conv: has ``padding="same"`` with any stride where the model pads as TensorFlow does.
            options: resolved ones.
            generator: the source of random starts, on the CPU.

        A layer that keeps tensors of ``conv`` itself is copied, so that the original model stays as it is.

        `convswap.revert` turns a layer back that has a method ``revert()``, without arguments: it returns a convolution
        of torch's with the geometry of ``conv``, and raises a ``ValueError`` with the reason where there is none. It
        must do so on the meta device too, and after changes of the parameters. A method ``lost_by_reverting()`` may
        return a `convswap.layers.reverted.Lost`, for the report.
        """

    def compared_kernels(self, conv: Conv, layer: nn.Module) -> tuple[Tensor, Tensor] | None:
        """The kernel of a convolution and, in the same shape, that of the layer made from it; None if it has none.

        For layers that are ``approximate``: how far the kernels are apart is a part of the report.

        Args:
            conv: as `build` was given it; not on the meta device.
            layer: what was built, as it started.
        """
        return None

    def group(self, site: ConvSite, options: Any) -> Hashable:
        """A label that the sites whose layers share parameters have in common; None for a layer that shares nothing.

        Called only where nothing speaks against the conversion, with options as they were given. Layers are grouped if
        one rule makes them, with weights of one dtype on one device.
        """
        return None

    def build_group(
        self, convs: Sequence[Conv], options: Any, generator: torch.Generator | None
    ) -> Sequence[nn.Module]:
        """Make the layers of a group, in the order of the convolutions; arguments as for `build`.

        To be overridden along with `group`. Parameters that several layers hold stay one in copies and files.
        """
        return [self.build(conv, options, generator) for conv in convs]


def axes_reason(site: ConvSite, layers: str, axes: Collection[int], instead: str) -> str | None:
    """Why ``layers``, which have these numbers of spatial axes, cannot take the place of a convolution, or None.

    Args:
        site: the convolution.
        layers: what to call them.
        axes: the numbers that they have.
        instead: the target to use where they cannot.
    """
    if site.dims in axes:
        return None
    own = f"{site.dims} spatial {'axis' if site.dims == 1 else 'axes'}"
    return f'it has {own}, and {layers} layers have {" or ".join(map(str, axes))}: use to="{instead}"'
