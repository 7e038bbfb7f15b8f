"""What a conversion changed, what it did not, and why: as data, and in every form it is read in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import nn

from .attention_statistics import AttentionStatistics
from .border_errors import BorderErrors
from .costs import Cost, CostOnDemand, known
from .errors import ConvswapError
from .field_types import checked
from .freeze_report import Freezing, FrozenLayer
from .kernel_errors import KernelError
from .plan import Plan, Step
from .position_pictures import PositionPicture
from .recipe import Recipe
from .revert_report import Reversion, RevertedLayer
from .sites import OtherConv
from .targets.base import Fidelity
from .verification import Verification

REPORT_VERSION = 1


@dataclass(frozen=True)
class StepReport:
    """A `Step` without the model: names, words and numbers only.

    Attributes:
        name, aliases: the convolution's qualified names.
        kind: its class.
        geometry: its channels, kernel, stride and so on in short.
        action, reason, target, options, fidelity, before, cost_after, after, note, group: as in `Step`.
        picture: where the elements of a DCLS layer are, and were when it was made; None for other layers, and in plans.
        kernel_error: how far the kernel of a layer that approximates was from the convolution's when it was made; None
            for other layers, for those without a kernel to compare, and in plans.
    """

    name: str
    aliases: tuple[str, ...]
    kind: str
    geometry: str
    action: Literal["swap", "keep"]
    reason: str
    target: str | None
    options: Mapping[str, Any] | None
    fidelity: Fidelity | None
    before: Cost
    cost_after: Cost | CostOnDemand
    note: str | None
    group: str | None = None
    picture: PositionPicture | None = None
    kernel_error: KernelError | None = None

    @property
    def after(self) -> Cost:
        """What the new layer costs; as before if the convolution is kept."""
        return known(self.cost_after)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        data = asdict(replace(self, cost_after=self.after))
        data["after"] = data.pop("cost_after")
        return data


@dataclass(frozen=True)
class Report:
    """What became of every convolution of a model.

    Attributes:
        model: class name of the model.
        parameters: number of the whole model's parameters before.
        steps: one for each convolution; those of each conversion in order of execution.
        others: convolutions that cannot be converted, and why.
        input_shape: what shapes and multiply-adds are for, or None.
        unknown_shapes: why they are unknown, or None.
        recipe: what is needed to do it again.
        verification: the comparison with the original, if it was asked for.
        versions: of convswap and torch.
        freezings: what `freeze` did, call by call.
        reversions: what `revert` did, call by call.
        attention: what the attentions of the model do, if the report was asked for with that.
        borders: what ways to treat the border do to the photos that the conversion was verified on, if it was about
            borders and these were photos.
    """

    model: str
    parameters: int
    steps: tuple[StepReport, ...]
    others: tuple[OtherConv, ...]
    input_shape: tuple[int, ...] | None
    unknown_shapes: str | None
    recipe: Recipe
    verification: Verification | None = None
    versions: Mapping[str, str] | None = None
    freezings: tuple[Freezing, ...] = ()
    attention: AttentionStatistics | None = None
    borders: BorderErrors | None = None
    reversions: tuple[Reversion, ...] = ()

    @property
    def swaps(self) -> tuple[StepReport, ...]:
        """The steps that swap."""
        return tuple(step for step in self.steps if step.action == "swap")

    @property
    def keeps(self) -> tuple[StepReport, ...]:
        """The steps that keep."""
        return tuple(step for step in self.steps if step.action == "keep")

    def keeps_by_reason(self) -> dict[str, list[str]]:
        """Names of the convolutions that are kept, for each reason."""
        reasons: dict[str, list[str]] = {}
        for step in self.keeps:
            reasons.setdefault(step.reason, []).append(step.name)
        return reasons

    def frozen(self) -> dict[str, FrozenLayer]:
        """What is frozen at present, by name."""
        last = self.recipe.last()
        layers = {layer.name: layer for freezing in self.freezings for layer in freezing.layers}
        return {name: layer for name, layer in layers.items() if name in last and last[name].frozen}

    def reverted(self) -> dict[str, RevertedLayer]:
        """What is reverted at present, by name."""
        last = self.recipe.last()
        layers = {layer.name: layer for reversion in self.reversions for layer in reversion.layers}
        return {name: layer for name, layer in layers.items() if name in last and last[name].reverted}

    def plain(self) -> dict[str, FrozenLayer | RevertedLayer]:
        """What was a layer and is a plain convolution at present, frozen or reverted, by name."""
        return {name: layer for layers in self.made_plain().values() for name, layer in layers.items()}

    def made_plain(self) -> dict[str, dict[str, FrozenLayer] | dict[str, RevertedLayer]]:
        """What is a plain convolution at present, by ``"frozen"`` and ``"reverted"``, and by name."""
        return {"frozen": self.frozen(), "reverted": self.reverted()}

    def total(self, which: Literal["before", "after"]) -> Cost:
        """Cost of all convolutions, or of what is in their places; of what is unknown of some, that of the others.

        The others are the same before and after, so that the two can be compared.
        """
        costs = [getattr(step, which) for step in self.steps]

        def add(field: str) -> int | None:
            pairs = [(getattr(step.before, field), getattr(step.after, field)) for step in self.steps]
            known = [pair[which == "after"] for pair in pairs if None not in pair]
            return sum(known) if known else None

        return Cost(
            sum(c.parameters for c in costs),
            sum(c.parameter_bytes for c in costs),
            add("multiply_adds"),
            add("activation_bytes"),
            add("kernel_bytes"),
        )

    def with_verification(self, verification: Verification, borders: BorderErrors | None = None) -> Report:
        """The same report with the comparison added, and with errors at the border."""
        return replace(self, verification=verification, borders=borders)

    def with_pictures(self, pictures: Mapping[str, PositionPicture | None]) -> Report:
        """The same report with pictures for steps that swap, by name."""

        def pictured(step: StepReport) -> StepReport:
            found = pictures.get(step.name) if step.action == "swap" else None
            return step if found is None else replace(step, picture=found)

        return replace(self, steps=tuple(pictured(step) for step in self.steps))

    def with_kernel_errors(self, errors: Mapping[str, KernelError]) -> Report:
        """The same report with kernel errors for steps that swap, by name."""

        def measured(step: StepReport) -> StepReport:
            found = errors.get(step.name) if step.action == "swap" else None
            return step if found is None else replace(step, kernel_error=found)

        return replace(self, steps=tuple(map(measured, self.steps)))

    def with_groups_of(self, steps: Sequence[Step], stage: int) -> Report:
        """The same report where other groups than it tells of have been made by ``steps``, of a stage of its recipe."""
        last = self.recipe.last()
        made = {step.site.name: step for step in steps if step.action == "swap"}
        groups = {name: step.group for name, step in made.items()}

        def regrouped(step: StepReport) -> StepReport:
            if step.action == "keep" or groups.get(step.name, step.group) == step.group:
                return step
            if step.name not in last or last[step.name].stage != stage or last[step.name].plain:
                return step
            now = made[step.name].cost_after
            after = replace(step.after, parameters=now.parameters, parameter_bytes=now.parameter_bytes)
            return replace(step, group=groups[step.name], cost_after=after)

        return replace(self, steps=tuple(map(regrouped, self.steps)), recipe=self.recipe.with_groups(groups, stage))

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the version of their form under ``"version"``.

        Raises:
            ConvswapError: if an option is a function that cannot be imported by a name.
        """
        parts: dict[str, Any] = {"recipe": None, "verification": None, "attention": None, "borders": None}
        data = asdict(replace(self, steps=(), freezings=(), reversions=(), **parts))
        data["steps"] = [step.to_dict() for step in self.steps]
        data["recipe"] = self.recipe.to_dict()
        data["verification"] = None if self.verification is None else self.verification.to_dict()
        data["freezings"] = [freezing.to_dict() for freezing in self.freezings]
        data["reversions"] = [reversion.to_dict() for reversion in self.reversions]
        data["attention"] = None if self.attention is None else self.attention.to_dict()
        data["borders"] = None if self.borders is None else self.borders.to_dict()
        return {"version": REPORT_VERSION, **data}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Any) -> Report:
        """The inverse of `to_dict`, for data of any origin.

        Raises:
            ConvswapError: if the data is no report, or one of a version that is not known.
        """
        if not isinstance(data, Mapping) or data.get("version") != REPORT_VERSION:
            raise ConvswapError(f"this is no report of version {REPORT_VERSION}")
        try:
            made = cls(
                model=data["model"],
                parameters=data["parameters"],
                steps=tuple(_step_from(step) for step in data["steps"]),
                others=tuple(checked(OtherConv(**other)) for other in data["others"]),
                input_shape=data["input_shape"],
                unknown_shapes=data["unknown_shapes"],
                recipe=Recipe.from_dict(data["recipe"]),
                verification=None if data["verification"] is None else Verification.from_dict(data["verification"]),
                versions=dict(data["versions"] or {}),
                freezings=tuple(map(Freezing.from_dict, data.get("freezings", ()))),
                reversions=tuple(map(Reversion.from_dict, data.get("reversions", ()))),
                attention=None if data.get("attention") is None else AttentionStatistics.from_dict(data["attention"]),
                borders=None if data.get("borders") is None else BorderErrors.from_dict(data["borders"]),
            )
            return checked(made)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConvswapError(f"the report is damaged ({type(error).__name__}: {error})") from error

    def to_markdown(self) -> str:
        """A Markdown document."""
        from .report_markdown import to_markdown

        return to_markdown(self)

    def to_html(self) -> str:
        """A self-contained HTML page."""
        from .report_html import to_html

        return to_html(self)

    def _repr_html_(self) -> str:
        from .report_html import to_fragment

        return to_fragment(self)

    def __rich__(self) -> Any:
        from .report_rich import to_rich

        return to_rich(self)

    def __str__(self) -> str:
        from .report_rich import to_text

        return to_text(self)


def report(converted: nn.Module | Plan, *, attention: AttentionStatistics | None = None) -> Report:
    """What was done to a converted model, or what a plan would do.

    Args:
        converted: a model, or a plan.
        attention: of the model, to be a part of the report; see `attention_statistics`.

    Raises:
        ConvswapError: if the model was not converted, or has not the layers that ``attention`` is of.
    """
    from .report_making import make_report

    if attention is not None and not isinstance(attention, AttentionStatistics):
        raise ConvswapError(f"attention must be what attention_statistics gives, got {type(attention).__name__}")
    if isinstance(converted, Plan):
        if attention is not None:
            raise ConvswapError("a plan has no layers yet whose attention could be told of: give the converted model")
        return make_report(converted, Recipe(()), None)
    from .carried_report import earlier_report, with_present_pictures

    found = earlier_report(converted)
    if found is None:
        raise ConvswapError(f"this {type(converted).__name__} has not been converted: there is nothing to report")
    if attention is not None:
        names = dict(converted.named_modules(remove_duplicate=False))
        foreign = [layer.name for layer in attention.layers if layer.name not in names]
        if foreign:
            raise ConvswapError(f"these attention statistics are of another model: there is no {foreign[0]!r} here")
    return replace(with_present_pictures(found, converted), attention=attention)


def _step_from(data: Mapping[str, Any]) -> StepReport:
    values = {name: value for name, value in data.items() if name != "after"}
    if values.get("picture") is not None:
        values["picture"] = PositionPicture.from_dict(values["picture"])
    if values.get("kernel_error") is not None:
        values["kernel_error"] = checked(KernelError(**values["kernel_error"]))
    values["before"] = checked(Cost(**data["before"]))
    values["cost_after"] = checked(Cost(**data["after"]))
    return checked(StepReport(**values))
