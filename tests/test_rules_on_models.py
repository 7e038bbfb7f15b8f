"""Several targets in one model: all that there are, and rules as people write them for models of the libraries."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap import Swap
from convswap.errors import NothingToSwapError
from convswap.layers import ConvLayer, Dcls2d, DynamicConv2d
from convswap.targets import all_targets

from .models import as_if_trained, library_model, relative_error

OWN = [name for name, target in all_targets().items() if type(target).__module__.startswith("convswap.")]
SIZE = (3, 8, 8)


class OneOfEach(nn.Module):
    """A convolution for each target, called as the target is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        for name in OWN:
            kernel = 1 if name == "guided_pointwise" else 3
            groups = 4 if name in ("guided_channelwise", "guided_separable") else 1
            setattr(self, name, nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=groups))
        self.rest = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in OWN:
            x = x + torch.relu(getattr(self, name)(x))
        return self.rest(x)


OPTIONS: dict[str, dict[str, Any]] = {
    "dynamic": {"kernels": {"dynamic": 3}},
    "dcls": {"kernel_count": 12, "share_positions": "group"},
    "guided": {"guide": "stem", "hidden": 2},
    "guided_local": {"rank": 2},
    "padding_free": {"order": 0},
}
RULES = [Swap("stem", "keep"), *(Swap(name, name, **OPTIONS.get(name, {})) for name in OWN)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return as_if_trained(OneOfEach()).double().eval()


@pytest.fixture(scope="module")
def converted(model: nn.Module) -> nn.Module:
    return convswap.convert(model, RULES, example_inputs=SIZE, verify=SIZE)


def outputs(*models: nn.Module) -> list[Tensor]:
    """Of the same input, with the same numbers for the layer that draws some."""
    x = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for one in models:
        torch.manual_seed(3)
        found.append(one(x))
    return found


def kinds(model: nn.Module) -> dict[str, str]:
    return {name: type(model.get_submodule(name)).__name__ for name in ("stem", *OWN, "rest")}


def test_all_targets_in_one_model(model: nn.Module, converted: nn.Module) -> None:
    made = convswap.report(converted)
    assert {step.name: step.target for step in made.swaps} == {name: name for name in OWN}
    assert made.verification is not None
    assert made.verification.passed
    assert {check.name for check in made.verification.layers} == set(OWN)
    assert made.keeps_by_reason() == {
        "kept by rule 1: 'stem'": ["stem"],
        f"chosen by none of the {len(RULES)} rules": ["rest"],
    }
    assert [step.reason for step in made.swaps] == [
        f"chosen by rule {number}: '{name}' to {name}" for number, name in enumerate(OWN, start=2)
    ]
    assert len({kinds(converted)[name] for name in OWN}) >= 10
    before, after = (sum(parameter.numel() for parameter in m.parameters()) for m in (model, converted))
    assert made.total("after").parameters - made.total("before").parameters == after - before
    for text in (str(made), made.to_markdown(), made.to_html()):
        assert all(name in text.replace("\\", "") for name in OWN)
    assert type(made).from_dict(made.to_dict()) == made


def test_they_differ_only_where_targets_say(model: nn.Module) -> None:
    exact = {step.target for step in convswap.plan(model, RULES, example_inputs=SIZE).swaps if step.fidelity == "exact"}
    new = convswap.convert(model, [rule for rule in RULES if rule.to in exact | {"keep"}], example_inputs=SIZE)
    assert len(exact) >= 11
    assert relative_error(*outputs(new, model)) < 1e-10


def test_they_are_carried_out_in_every_way(model: nn.Module, converted: nn.Module, tmp_path: Path) -> None:
    convswap.save(converted, tmp_path / "net.safetensors")
    in_place = copy.deepcopy(model)
    ways = {
        "file": convswap.load(tmp_path / "net.safetensors", model=OneOfEach().double()).eval(),
        "recipe": convswap.apply(convswap.report(converted).recipe.to_dict(), model),
        "plan": convswap.apply(convswap.plan(model, RULES, example_inputs=SIZE), model),
        "in place": convswap.convert_(in_place, RULES, example_inputs=SIZE),
        "graph": convswap.convert(model, RULES, example_inputs=SIZE, as_graph=True),
        "deep copy": copy.deepcopy(converted),
    }
    assert ways["in place"] is in_place
    (expected,) = outputs(converted)
    for name, output in zip(ways, outputs(*ways.values()), strict=True):
        assert torch.equal(output, expected), name
    for way in ("file", "recipe", "plan", "in place"):
        assert kinds(ways[way]) == kinds(converted)
    changes = convswap.diff(model, converted)
    assert {layer.name.partition(".")[0] for layer in changes.layers} == set(OWN)


def test_whole_model_freeze_tells_what_stays_and_why(converted: nn.Module) -> None:
    frozen = convswap.freeze(converted)
    (freezing,) = convswap.report(frozen).freezings
    assert {layer.name for layer in freezing.layers} == {"dcls", "padding_free", "extrapolated"}
    kept = {layer.name: layer.reason for layer in freezing.kept}
    assert kept.keys() == set(OWN) - {layer.name for layer in freezing.layers}
    words = {
        **dict.fromkeys(("dynamic", "condconv", "odconv"), "the mode 'mean' freezes it at its mean attention"),
        "guided": "its kernels are generated from the guide 'stem'",
        "guided_local": "its kernels are generated from its input",
        "random_pad": "its padding is drawn anew in each call",
        "explicit_boundary": "it has a kernel for each distance to the border",
    }
    for name, word in words.items():
        assert word in kept[name]
    assert relative_error(*outputs(frozen, converted)) < 1e-10
    by_data = convswap.freeze(converted, torch.randn(4, *SIZE).double(), mode="mean")
    (freezing,) = convswap.report(by_data).freezings
    assert {layer.name for layer in freezing.layers} >= {"dynamic", "condconv", "odconv", "dcls"}


def test_converting_again_takes_what_is_left(model: nn.Module, converted: nn.Module) -> None:
    again = convswap.convert(converted, [Swap("rest", "dcls"), Swap("*", "dynamic", convert_first=True)])
    assert {name: kind for name, kind in kinds(again).items() if kind != kinds(converted)[name]} == {
        "stem": "DynamicConv2d",
        "rest": "Dcls2d",
    }
    assert relative_error(*outputs(again, converted)) < 1e-10
    made = convswap.report(again)
    assert [step.target for step in made.swaps] == [*OWN, "dynamic", "dcls"]
    assert made.keeps == ()
    assert made.total("before").parameters == sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(NothingToSwapError, match="it is a part of PatchDynamicConv2d, a layer that conversions put"):
        convswap.convert(again, "dcls")
    frozen_again = convswap.convert(convswap.freeze(again, where="rest"), "condconv", "rest")
    assert relative_error(*outputs(frozen_again, converted)) < 1e-10


def test_what_was_reverted_is_there_for_other_rules(model: nn.Module, converted: nn.Module, tmp_path: Path) -> None:
    assert relative_error(*outputs(convswap.revert(converted), model)) < 1e-10
    part = convswap.revert(converted, ["dynamic", "guided", "padding_free", "hybrid"])
    rules = [
        Swap("dynamic", "dcls"),
        Swap("guided", "guided_local", guide="stem"),
        Swap(["padding_free", "hybrid"], "condconv"),
        Swap("*", "keep"),
    ]
    again = convswap.convert(part, rules, example_inputs=SIZE)
    assert relative_error(*outputs(again, part)) < 1e-10
    made = convswap.report(again)
    changed = {"dynamic": "dcls", "guided": "guided_local", "padding_free": "condconv", "hybrid": "condconv"}
    assert {step.name: step.target for step in made.swaps} == {**{name: name for name in OWN}, **changed}
    assert made.keeps_by_reason() == {"kept by rule 4: '*'": ["stem", "rest"]}
    convswap.save(again, tmp_path / "again.safetensors")
    loaded = convswap.load(tmp_path / "again.safetensors", model=OneOfEach().double()).eval()
    assert torch.equal(*outputs(loaded, again))


# Models of the libraries ------------------------------------------------------------------------------------------


def layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ConvLayer)}


def test_rules_for_a_convnext() -> None:
    model = library_model("timm:convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)).double().eval()
    rules = [
        Swap("stem.*", "keep"),
        Swap("stages.3.*conv_dw", "dcls", dilated_kernel_size=17, kernel_count=50),
        Swap(["*conv_dw", "!stages.0.*"], "dcls", version="v0"),
        Swap("*downsample*", "dynamic", kernels={"stages.2.*": 2}),
    ]
    new = convswap.convert(model, rules, example_inputs=(3, 64, 64), verify=(3, 64, 64))
    found = layers(new)
    assert {name: type(layer).__name__ for name, layer in found.items()} == {
        **{f"stages.{i}.blocks.0.conv_dw": "Dcls2d" for i in (1, 2, 3)},
        **{f"stages.{i}.downsample.1": "DynamicConv2d" for i in (1, 2, 3)},
    }
    assert [found[f"stages.{i}.downsample.1"].kernels for i in (1, 2, 3)] == [4, 2, 4]
    assert found["stages.3.blocks.0.conv_dw"].dilated_kernel_size == (17, 17)
    assert [found[f"stages.{i}.blocks.0.conv_dw"].version for i in (1, 2, 3)] == ["v0", "v0", "v1"]


def test_rules_for_a_mobilenet() -> None:
    model = library_model("timm:mobilenetv3_small_050").double().eval()
    rules = [
        Swap("re:.*pwl", "dynamic", kernels=2),
        Swap(lambda site: site.depthwise and site.module.stride == (1, 1), "dcls", share_positions="stage"),
        Swap(["blocks.*", "!*.se.*"], "condconv", kernels=2),
        Swap("*", "keep"),
    ]
    plan = convswap.plan(model, rules, example_inputs=(3, 64, 64))
    by_target = {step.site.name: step.target for step in plan}
    for name, target in by_target.items():
        module = model.get_submodule(name)
        depthwise = module.groups == module.in_channels > 1 and module.stride == (1, 1)
        rest = "condconv" if name.startswith("blocks.") and ".se." not in name else None
        assert target == ("dynamic" if name.endswith("pwl") else "dcls" if depthwise else rest), name
    groups = {step.group for step in plan.swaps if step.target == "dcls"}
    assert len(groups) > 1
    new = convswap.apply(plan, model)
    x = torch.randn(2, 3, 64, 64).double()
    assert relative_error(new(x), model(x)) < 1e-10
    assert {type(layer) for layer in layers(new).values()} >= {Dcls2d, DynamicConv2d}


def test_layers_of_two_rules_share_positions_within_their_rules() -> None:
    model = importlib.import_module("timm").create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    rules = [
        Swap("stages.[01].*conv_dw", "dcls", share_positions="group", version="gauss"),
        Swap("stages.[23].*conv_dw", "dcls", share_positions="group", version="gauss"),
    ]
    new: Any = convswap.convert(model, rules, example_inputs=(3, 32, 32))
    positions = [id(new.stages[i].blocks[0].conv_dw.P) for i in range(4)]
    assert [positions.index(one) for one in positions] == [0, 0, 2, 2]
    text = " ".join(str(convswap.report(new)).split())
    for i in (0, 2):
        assert f"the group of stages.{i}.blocks.0.conv_dw shares its new parameters: stages.{i}.blocks.0" in text
