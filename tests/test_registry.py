from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap.cli import main
from convswap.conv_classes import Conv
from convswap.errors import OptionError, UnknownNameError
from convswap.sites import ConvSite
from convswap.targets import Fidelity, Target, all_targets, broken_targets, get_target

from .models import TwoConvs

registry = importlib.import_module("convswap.targets.registry")


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it, and installed packages have no targets during it."""
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    monkeypatch.setattr(registry, "_broken", {})
    monkeypatch.setattr(registry, "_searched", True)


class Scaled(nn.Module):
    """A convolution whose output is multiplied by a learned number."""

    def __init__(self, conv: Conv, start: float) -> None:
        super().__init__()
        self.conv = type(conv)(
            *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding),
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        self.conv.weight, self.conv.bias = conv.weight, conv.bias
        self.scale = nn.Parameter(torch.full((), start, device=conv.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


@dataclass(frozen=True)
class ScaledOptions:
    """Options of ``to="scaled"``."""

    start: float = 1.0


class ScaledTarget(Target):
    """A target of somebody else's."""

    name = "scaled"
    summary = "the same, scaled"
    options = ScaledOptions

    def unsupported_reason(self, site: ConvSite, options: ScaledOptions) -> str | None:
        return None if site.plain.bias is not None else "it has no bias, which this target needs"

    def fidelity(self, site: ConvSite, options: ScaledOptions) -> Fidelity:
        return "exact" if options.start == 1.0 else "approximate"

    def build(self, conv: Conv, options: ScaledOptions, generator: torch.Generator | None) -> nn.Module:
        return Scaled(conv, options.start)


class AnotherScaledTarget(ScaledTarget):
    """One of the same name."""


def test_registered_target_converts() -> None:
    convswap.register(ScaledTarget())
    model = TwoConvs().eval()
    plan = convswap.plan(model, "scaled", example_inputs=(3, 8, 8))
    assert [step.target for step in plan] == [None, "scaled"]
    assert plan.steps[0].reason == "it has no bias, which this target needs"
    new: Any = convswap.convert(model, "scaled", start=1, example_inputs=(3, 8, 8), verify=(3, 8, 8))
    assert isinstance(new.conv2, Scaled)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(new(x), model(x))
    assert convswap.report(new).swaps[0].after.parameters == convswap.report(new).swaps[0].before.parameters + 1


class SharedScaleTarget(ScaledTarget):
    """One number for all layers."""

    name = "scaled_alike"

    def unsupported_reason(self, site: ConvSite, options: ScaledOptions) -> str | None:
        return None

    def group(self, site: ConvSite, options: ScaledOptions) -> str:
        return "all"

    def build_group(
        self, convs: Sequence[Conv], options: ScaledOptions, generator: torch.Generator | None
    ) -> list[nn.Module]:
        layers = [Scaled(conv, options.start) for conv in convs]
        for layer in layers:
            layer.scale = layers[0].scale
        return list(layers)


def test_targets_may_share_parameters(tmp_path: Path) -> None:
    convswap.register(SharedScaleTarget())
    model = TwoConvs().eval()
    new: Any = convswap.convert(model, "scaled_alike", example_inputs=(3, 8, 8), verify=(3, 8, 8))
    assert new.conv1.scale is new.conv2.scale
    assert new.conv1.conv.weight is not model.conv1.weight
    assert [step.group for step in convswap.report(new).swaps] == ["conv1", "conv1"]
    total = convswap.report(new).total
    assert total("after").parameters == total("before").parameters + 1
    convswap.save(new, tmp_path / "net.safetensors")
    loaded: Any = convswap.load(tmp_path / "net.safetensors", model=TwoConvs())
    assert loaded.conv1.scale is loaded.conv2.scale


def test_registered_target_is_saved_and_loaded(tmp_path: Path) -> None:
    convswap.register(ScaledTarget())
    new = convswap.convert(TwoConvs(), "scaled", start=0.5)
    convswap.save(new, tmp_path / "net.safetensors")
    loaded: Any = convswap.load(tmp_path / "net.safetensors", model=TwoConvs())
    assert loaded.conv2.scale.item() == 0.5
    registry._targets.pop("scaled")
    with pytest.raises(UnknownNameError, match="there is no target 'scaled'"):
        convswap.load(tmp_path / "net.safetensors", model=TwoConvs())


def test_registered_target_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    convswap.register(ScaledTarget())
    assert main(["targets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scaled"] == {"summary": "the same, scaled", "options": {"start": 1.0}}
    assert main(["plan", "tests.models:TwoConvs", "--to", "scaled", "--option", "start=2"]) == 0
    assert "1 to scaled" in capsys.readouterr().out


@pytest.mark.parametrize("thing", ["scaled", None, object()])
def test_what_is_no_target_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"register takes an instance of convswap.targets.Target, got"):
        convswap.register(thing)


def test_classes_are_refused() -> None:
    with pytest.raises(TypeError, match="pass an instance, not the class"):
        convswap.register(ScaledTarget)  # type: ignore[arg-type]
    assert "scaled" not in all_targets()


def test_names_are_given_once() -> None:
    convswap.register(ScaledTarget())
    convswap.register(ScaledTarget())  # again: as when a notebook's cell is run twice
    with pytest.raises(OptionError, match=r"there is a target 'scaled' already \(tests.test_registry\)"):
        convswap.register(AnotherScaledTarget())
    assert type(get_target("scaled")) is ScaledTarget


def test_own_targets_are_not_replaced() -> None:
    class Impostor(ScaledTarget):
        name = "dynamic"

    with pytest.raises(OptionError, match="there is a target 'dynamic' already"):
        convswap.register(Impostor())


def test_unknown_names() -> None:
    with pytest.raises(
        UnknownNameError, match=r"no target 'dclss'. Did you mean 'dcls'\? Targets: dynamic, condconv, "
    ):
        get_target("dclss")


# Installed packages -----------------------------------------------------------------------------------------------


class EntryPoint:
    """What ``importlib.metadata`` gives for a line of an installed package."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name = name
        self.load = load


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(*entries: EntryPoint) -> None:
        def entry_points(*, group: str) -> list[EntryPoint]:
            assert group == "convswap.targets"
            return list(entries)

        monkeypatch.setattr(registry, "entry_points", entry_points)
        monkeypatch.setattr(registry, "_searched", False)

    return install


def fail() -> Any:
    raise ImportError("no module named theirs")


def test_entry_point(install: Callable[..., None]) -> None:
    install(EntryPoint("scaled", lambda: ScaledTarget))
    assert isinstance(get_target("scaled"), ScaledTarget)
    assert broken_targets() == {}
    new: Any = convswap.convert(TwoConvs(), "scaled")
    assert isinstance(new.conv2, Scaled)


def test_entry_points_are_looked_for_once(install: Callable[..., None]) -> None:
    loaded = []
    install(EntryPoint("scaled", lambda: loaded.append(1) or ScaledTarget))
    all_targets()
    all_targets()
    assert loaded == [1]


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (fail, "ImportError: no module named theirs"),
        (lambda: dict, "TypeError: register takes an instance of convswap.targets.Target"),
        (lambda: 3, "TypeError: 'int' object is not callable"),
        (lambda: type("Impostor", (ScaledTarget,), {"name": "dcls"}), "OptionError: there is a target 'dcls' already"),
    ],
)
def test_broken_entry_points_break_nothing_else(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str], load: Callable[[], Any], reason: str
) -> None:
    install(EntryPoint("theirs", load), EntryPoint("scaled", lambda: ScaledTarget))
    assert {"dynamic", "dcls", "scaled"} <= set(all_targets())
    assert "theirs" not in all_targets()
    assert broken_targets()["theirs"].startswith(reason)
    assert main(["plan", "tests.models:TwoConvs", "--to", "dcls"]) == 0
    assert main(["targets"]) == 0
    capsys.readouterr()
    assert main(["doctor"]) == 1
    assert "broken target" in capsys.readouterr().out


def test_asking_for_a_broken_target_tells_why(install: Callable[..., None]) -> None:
    install(EntryPoint("theirs", fail))
    with pytest.raises(UnknownNameError, match="The target 'theirs' could not be loaded: ImportError: no module named"):
        get_target("theirs")
