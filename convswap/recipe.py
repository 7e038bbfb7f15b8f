"""What a conversion did, as plain data: enough to do it again to a fresh model of the same architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .errors import ConvswapError
from .factories import described, require_name
from .field_types import checked
from .options import options_to_dict, without_code
from .plan import Step

RECIPE_VERSION = 1


@dataclass(frozen=True)
class RecipeStep:
    """One swap: the convolution's name, the target, its resolved options, and the seed of the random start.

    Attributes:
        name, target, options, seed: of the swap. Without a target, it is a layer that the architecture has itself, and
            that was frozen or reverted.
        group: steps of one group make layers that share parameters; it is called by the name of its first convolution.
        frozen: whether the layer was then turned into a plain convolution, by `freeze`.
        stage: what is plain can be converted again: steps of a later stage are for what an earlier one has left.
        reverted: whether the layer was then turned back into the convolution that it was made from, by `revert`.
    """

    name: str
    target: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    group: str | None = None
    frozen: bool = False
    stage: int = 0
    reverted: bool = False

    @property
    def plain(self) -> bool:
        """Whether the layer was then turned into a plain convolution, in one way or the other."""
        return self.frozen or self.reverted

    def __getstate__(self) -> dict[str, Any]:
        # Models carry this, and are to be pickled even if an option is a function that cannot be.
        return {**self.__dict__, "options": {n: described(v) if callable(v) else v for n, v in self.options.items()}}

    def __deepcopy__(self, memo: dict[int, Any]) -> RecipeStep:
        return self  # with its functions


@dataclass(frozen=True)
class Recipe:
    """All swaps that were made of a model, in order."""

    steps: tuple[RecipeStep, ...]

    def with_groups(self, groups: Mapping[str, str | None], stage: int) -> Recipe:
        """The same recipe with other groups for these steps of a stage, by name."""
        return Recipe(
            tuple(
                replace(step, group=groups.get(step.name, step.group)) if step.stage == stage else step
                for step in self.steps
            )
        )

    def stages(self) -> tuple[tuple[int, Recipe], ...]:
        """The steps of each stage, in order. A stage has each name once."""
        numbers = sorted({step.stage for step in self.steps})
        return tuple((n, Recipe(tuple(step for step in self.steps if step.stage == n))) for n in numbers)

    def followed_by(self, later: Recipe) -> Recipe:
        """One recipe that does both: in a further stage, if ``later`` converts what is plain in this one."""
        if not self.steps:
            return later
        known = {step.name for step in self.steps}
        first = max(step.stage for step in self.steps) + any(step.name in known for step in later.steps)
        first -= min((step.stage for step in later.steps), default=0)
        return Recipe((*self.steps, *(replace(step, stage=step.stage + first) for step in later.steps)))

    def first(self) -> dict[str, RecipeStep]:
        """For each name the step that was made of what the architecture has."""
        return {step.name: step for step in sorted(self.steps, key=lambda step: -step.stage)}

    def last(self) -> dict[str, RecipeStep]:
        """For each name the step that made what is there."""
        return {step.name: step for step in sorted(self.steps, key=lambda step: step.stage)}

    def with_frozen(self, names: Collection[str]) -> Recipe:
        """The same recipe where the layers of these names are frozen in the end.

        Functions of the user's that made parts of them are left out: a plain convolution has no such part.
        """
        return self._with_plain(names, {"frozen": True})

    def with_reverted(self, names: Collection[str]) -> Recipe:
        """The same recipe where the layers of these names are reverted in the end; otherwise as `with_frozen`."""
        return self._with_plain(names, {"reverted": True})

    def _with_plain(self, names: Collection[str], how: Mapping[str, Any]) -> Recipe:
        last = self.last()

        def marked(step: RecipeStep) -> RecipeStep:
            if step is not last.get(step.name) or step.name not in names:
                return step
            return replace(step, options={} if step.target is None else without_code(step.target, step.options), **how)

        own = [RecipeStep(name, None, **how) for name in names if name not in last]
        return Recipe(tuple(map(marked, self.steps))).followed_by(Recipe(tuple(own)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values.

        Raises:
            ConvswapError: if an option is a function that cannot be imported by a name.
        """
        return {"version": RECIPE_VERSION, "steps": [_step_to(step) for step in self.steps]}

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """The inverse of `to_dict`, for data of any origin.

        Raises:
            ConvswapError: if the data is no recipe, or one of a version that is not known.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("steps"), list):
            raise ConvswapError("this is no recipe: it has no list of steps")
        if data.get("version") != RECIPE_VERSION:
            raise ConvswapError(
                f"the recipe is of version {data.get('version')!r}, and this convswap reads version {RECIPE_VERSION}"
            )
        return cls(tuple(_step_from(entry) for entry in data["steps"]))


def make_recipe(steps: Sequence[Step], seed: int) -> Recipe:
    """The recipe of a plan's steps."""
    return Recipe(
        tuple(
            RecipeStep(step.site.name, str(step.target), options_to_dict(step.options), seed, step.group)
            for step in steps
            if step.action == "swap"
        )
    )


def _step_to(step: RecipeStep) -> dict[str, Any]:
    options = {name: require_name(f"the {name} of {step.name!r}", value) for name, value in step.options.items()}
    return asdict(replace(step, options=options))


def _step_from(entry: Any) -> RecipeStep:
    if isinstance(entry, Mapping):
        known = {field.name: entry[field.name] for field in fields(RecipeStep) if field.name in entry}
        with suppress(TypeError):
            step = checked(RecipeStep(**known))
            if (step.target is not None or step.plain) and not (step.frozen and step.reverted):
                return step
    raise ConvswapError(f"a step of the recipe must have a name, a target, options and a seed, got {str(entry)[:80]!r}")
