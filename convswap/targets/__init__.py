"""What convolutions can be converted to: one file per target."""

from .base import Fidelity, Target
from .condconv import CondConv
from .dcls import Dcls
from .dynamic import Dynamic
from .explicit_boundary import ExplicitBoundary
from .extrapolated import Extrapolated
from .guided import Guided, GuidedChannelWise, GuidedLocal, GuidedPointwise, GuidedSeparable
from .hybrid import Hybrid
from .odconv import ODConv
from .padding_free import PaddingFree
from .partial import Partial
from .random_pad import RandomPad
from .registry import all_targets, broken_targets, get_target, register

__all__ = ["Fidelity", "Target", "all_targets", "broken_targets", "get_target", "register"]

for _target in (
    Dynamic(),
    CondConv(),
    ODConv(),
    Dcls(),
    Guided(),
    GuidedLocal(),
    GuidedChannelWise(),
    GuidedSeparable(),
    GuidedPointwise(),
    Hybrid(),
    PaddingFree(),
    Extrapolated(),
    RandomPad(),
    Partial(),
    ExplicitBoundary(),
):
    register(_target)
