"""What convolutions can be converted to: one file per target."""

from .base import Fidelity, Target
from .dcls import Dcls
from .dynamic import Dynamic
from .guided import Guided, GuidedChannelWise, GuidedLocal, GuidedPointwise, GuidedSeparable
from .registry import all_targets, broken_targets, get_target, register

__all__ = ["Fidelity", "Target", "all_targets", "broken_targets", "get_target", "register"]

for _target in (
    Dynamic(),
    Dcls(),
    Guided(),
    GuidedLocal(),
    GuidedChannelWise(),
    GuidedSeparable(),
    GuidedPointwise(),
):
    register(_target)
