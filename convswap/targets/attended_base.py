"""What the targets have in common whose layers attend to several kernels: how many each convolution gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

from ..errors import OptionError, PatternError
from ..sites import ConvSite, in_known_order
from ..where import matching
from .base import Fidelity, Target, axes_reason

Kernels: TypeAlias = int | tuple[int, ...] | Mapping[str, int]
"""One number for all convolutions; one for each that the rule converts, in the order of execution; or by name."""

DEFAULT_KERNELS = 4

_SHOWN = 12


def check_kernels(kernels: Kernels, least: int) -> None:
    """Raise a ValueError if a number is less than ``least``."""
    if isinstance(kernels, int):
        named = [("", kernels)]
    elif isinstance(kernels, Mapping):
        named = [(f" for {name!r}", number) for name, number in kernels.items()]
    else:
        named = [("", number) for number in kernels]
    for where, number in named:
        if number < least:
            raise ValueError(f"kernels must be at least {least}, got {number}{where}")


def check_noise(noise: float) -> None:
    """Raise a ValueError if kernels of this noise would be equal, or hide the convolution's own."""
    if not 0 < noise <= 1:
        raise ValueError(f"noise must be above 0 and at most 1, got {noise}")


def first_reason(site: ConvSite, convert_first: bool) -> str | None:
    """Why the network's first convolution is kept, or what is taken for it; None for any other, or if not kept."""
    if site.index > 0 or convert_first:
        return None
    if site.ordered:
        return "the network's first convolution is left alone, as in the paper (convert_first=True converts it)"
    return (
        "it is taken for the network's first convolution, which is left alone as in the paper; the order of execution "
        "is unknown (example_inputs would tell it, convert_first=True converts all)"
    )


def one_number(kernels: Kernels) -> int:
    """The number itself.

    Raises:
        ValueError: if they are several, as what builds a single layer cannot choose.
    """
    if not isinstance(kernels, int):
        raise ValueError(f"kernels must be one number where one convolution is converted, got {kernels!r}")
    return kernels


class AttendedTarget(Target):
    """Base of the targets with an option ``kernels``, a `Kernels`.

    Attributes:
        layers: the layer's class for each number of axes.
    """

    layers: ClassVar[Mapping[int, Any]]

    def lacks_order(self, sites: Sequence[ConvSite], options: Any) -> bool:
        ordered = [site.ordered for site in sites]
        first_unknown = not getattr(options, "convert_first", True) and not any(ordered)
        return first_unknown or (_in_order(options.kernels) and not all(ordered))

    def resolve_all(self, sites: Sequence[ConvSite], options: Sequence[Any]) -> Sequence[Any]:
        resolved = super().resolve_all(sites, options)
        kernels = _kernels_of_each([site.name for site in sites], options[0].kernels, sites, self.name)
        return [replace(own, kernels=number) for own, number in zip(resolved, kernels, strict=True)]

    def unsupported_reason(self, site: ConvSite, options: Any) -> str | None:
        reason = axes_reason(site, self.name, self.layers, "dynamic")
        return reason or self.layers[site.dims].unsupported_reason(site.plain)

    def fidelity(self, site: ConvSite, options: Any) -> Fidelity:
        return "exact"


def _kernels_of_each(names: list[str], kernels: Kernels, sites: Sequence[ConvSite], target: str) -> list[int]:
    """The number for each convolution.

    Raises:
        OptionError: if there are not as many numbers as convolutions, or a name is of none of them, or different
            numbers are for an order that is unknown.
    """
    if isinstance(kernels, int):
        return [kernels] * len(names)
    if isinstance(kernels, Mapping):
        return _by_name(names, kernels, sites, target)
    if len(kernels) != len(names):
        raise OptionError(
            f"kernels has {_counted(len(kernels), 'number')}, and {_counted(len(names), 'convolution')} would be "
            f"converted to {target}: {_listed(names)}. Give one for each in this order, one for all, or numbers by name"
        )
    if _in_order(kernels) and not in_known_order(sites):
        raise OptionError(
            f"kernels are in the order of execution, and that of the convolutions converted to {target} is unknown: "
            f"{_listed(names)}. Give example_inputs that reach them all, or numbers by name, {{{names[0]!r}: "
            f"{kernels[0]}, ...}}"
        )
    return list(kernels)


def _in_order(kernels: Kernels) -> bool:
    return not isinstance(kernels, int | Mapping) and len(set(kernels)) > 1


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _by_name(names: list[str], kernels: Mapping[str, int], sites: Sequence[ConvSite], target: str) -> list[int]:
    numbers: dict[str, int] = {}
    for pattern, number in kernels.items():
        try:
            found = matching(pattern, sites)
        except PatternError as error:
            raise OptionError(f"kernels, of the convolutions converted to {target}: {error}") from error
        for name in found:
            numbers.setdefault(name, number)
    return [numbers.get(name, DEFAULT_KERNELS) for name in names]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
