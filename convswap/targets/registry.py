"""The targets that are known by name: our own, registered ones, and those of installed packages."""

from __future__ import annotations

from importlib.metadata import entry_points

from ..errors import OptionError, UnknownNameError, did_you_mean
from .base import Target

ENTRY_POINT_GROUP = "convswap.targets"

KEEP = "keep"
"""What a rule says in place of a target's name where convolutions are to stay as they are."""

_targets: dict[str, Target] = {}
_broken: dict[str, str] = {}
_searched = False


def register(target: Target) -> None:
    """Make ``target`` available under its name, to ``convert``, ``plan`` and the command line of this process.

    Raises:
        TypeError: if it is no instance of `Target`.
        OptionError: if another target has this name, or it is what rules have for keeping a convolution.
    """
    if not isinstance(target, Target):
        hint = ": pass an instance, not the class" if isinstance(target, type) else ""
        raise TypeError(f"register takes an instance of convswap.targets.Target, got {target!r}{hint}")
    if target.name == KEEP:
        raise OptionError(f"no target can be called {KEEP!r}: in a rule, that is to keep what the rule chooses")
    known = _targets.get(target.name)
    if known is not None and type(known) is not type(target):
        raise OptionError(f"there is a target {target.name!r} already ({type(known).__module__})")
    _targets[target.name] = target


def get_target(name: str) -> Target:
    """The target of this name.

    Raises:
        UnknownNameError: naming the nearest ones.
    """
    known = all_targets()
    if name not in known:
        broken = f" The target {name!r} could not be loaded: {_broken[name]}." if name in _broken else ""
        raise UnknownNameError(
            f"there is no target {name!r}.{did_you_mean(name, known)}{broken} Targets: {', '.join(known)}."
        )
    return known[name]


def all_targets() -> dict[str, Target]:
    """All targets by name, those of installed packages included."""
    global _searched
    if not _searched:
        _searched = True
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            try:
                register(entry.load()())
            except Exception as error:  # somebody else's package must not break ours
                _broken[entry.name] = f"{type(error).__name__}: {error}"
    return dict(_targets)


def broken_targets() -> dict[str, str]:
    """Entry points that could not be loaded, and why."""
    all_targets()
    return dict(_broken)
