from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from torch import Tensor, nn

import convswap
from convswap import Swap
from convswap.errors import ConvswapError, ModelError
from convswap.layers import Dcls1d, Dcls2d, Dcls3d, DynamicConv1d, DynamicConv2d, DynamicConv3d

from .models import TwoConvs, as_if_trained, relative_error


def test_the_original_is_left_as_it_is() -> None:
    model = TwoConvs()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    new = convswap.convert(model, to="dcls")
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1)
    assert type(model.conv1) is nn.Conv2d
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_class_and_other_keys_are_kept() -> None:
    model = torchvision.models.resnet18()
    new = convswap.convert(model, to="dcls", where="layer3.*")
    assert type(new) is type(model)
    assert isinstance(new.layer3[0].conv1, Dcls2d)
    keys = {key for key in model.state_dict() if not key.startswith("layer3.") or "conv" not in key}
    assert keys <= set(new.state_dict())


def test_in_place() -> None:
    model = TwoConvs().eval()
    x = torch.randn(2, 3, 16, 16)
    expected, norm = model(x), model.norm
    assert convswap.convert_(model, to="dynamic", convert_first=True) is model
    assert isinstance(model.conv1, DynamicConv2d)
    assert model.norm is norm
    assert relative_error(model(x), expected) < 1e-5
    assert len(convswap.report(model).swaps) == 2


def test_in_place_changes_nothing_when_something_is_wrong() -> None:
    model = TwoConvs()
    with pytest.raises(ConvswapError):
        convswap.convert_(model, [Swap("conv1", "dcls"), Swap("nothing", "dcls")])
    assert type(model.conv1) is nn.Conv2d


def test_in_place_follows_references_outside_the_module_tree() -> None:
    class Referring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)
            self.order = [self.conv]
            self.table = {"a": (self.conv, 1)}

        def forward(self, x: Tensor) -> Tensor:
            return self.order[0](x)

    for new in (convswap.convert(Referring(), to="dcls"), convswap.convert_(Referring(), to="dcls")):
        assert new.order[0] is new.conv
        assert new.table["a"][0] is new.conv
        assert isinstance(new.conv, Dcls2d)


def test_a_model_that_is_a_conv() -> None:
    conv = nn.Conv2d(3, 4, 3)
    x = torch.randn(1, 3, 8, 8)
    layer = convswap.convert(conv, to="dcls")
    assert isinstance(layer, Dcls2d)
    assert relative_error(layer(x), conv(x)) < 1e-5
    with pytest.raises(ModelError, match=r"cannot replace itself: use new = convert"):
        convswap.convert_(conv, to="dcls")


def test_dtype_mode_and_requires_grad() -> None:
    model = TwoConvs().double()
    model.conv1.eval()
    model.conv2.weight.requires_grad_(False)
    new = convswap.convert(model, to="dynamic", convert_first=True)
    assert {p.dtype for p in new.parameters()} == {torch.float64}
    assert not new.conv1.training
    assert not new.conv1.attention.training
    assert new.conv2.training
    assert not new.conv2.weight.requires_grad
    assert new.conv2.bias.requires_grad
    assert new.conv2.attention.fc1.weight.requires_grad


def test_memory_format() -> None:
    model = TwoConvs().to(memory_format=torch.channels_last)
    new = convswap.convert(model, to="dynamic", convert_first=True)
    assert new.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    assert relative_error(new.eval()(x), model.eval()(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    model = TwoConvs().to(dtype).eval()
    x = torch.randn(2, 3, 16, 16).to(dtype)
    for to in ("dynamic", "dcls"):
        new = convswap.convert(model, to=to)
        assert {p.dtype for p in new.parameters()} == {dtype}
        assert relative_error(new(x).float(), model(x).float()) < 8 * torch.finfo(dtype).eps


def test_meta_models_stay_on_meta() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    for to in ("dynamic", "dcls"):
        assert {p.device.type for p in convswap.convert(model, to=to).parameters()} == {"meta"}


def test_shared_modules_stay_shared() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv).double()
    x = torch.randn(2, 3, 8, 8).double()
    for new in (convswap.convert(model, to="dcls"), convswap.convert_(copy.deepcopy(model), to="dcls")):
        assert new[0] is new[2]
        assert relative_error(new(x), model(x)) < 1e-10


@pytest.mark.parametrize("to", ["dynamic", "dcls"])
def test_tied_parameters_stay_tied(to: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)).double()
    model[2].weight = model[0].weight
    options = {"convert_first": True} if to == "dynamic" else {}
    new = convswap.convert(model, to=to, **options)
    assert new[2].weight is new[0].weight
    assert new[2].bias is not new[0].bias
    x = torch.randn(2, 3, 8, 8).double()
    assert relative_error(new(x), model(x)) < 1e-10


def test_seed_decides_and_the_global_generator_is_left_alone() -> None:
    model = torchvision.models.resnet18()
    state = torch.get_rng_state()
    one = convswap.convert(model, to="dynamic", seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = convswap.convert(model, to="dynamic", seed=1).state_dict()
    other = convswap.convert(model, to="dynamic", seed=2).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["layer1.0.conv1.weight"], other["layer1.0.conv1.weight"])


def test_a_layers_start_does_not_depend_on_the_other_swaps() -> None:
    model = torchvision.models.resnet18()
    all_of_them = convswap.convert(model, to="dynamic").state_dict()
    one = convswap.convert(model, to="dynamic", where="layer4.1.conv2").state_dict()
    assert torch.equal(all_of_them["layer4.1.conv2.weight"], one["layer4.1.conv2.weight"])


def test_all_dimensions() -> None:
    model = nn.ModuleList([nn.Conv1d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv3d(2, 2, 3)])
    assert [type(m) for m in convswap.convert(model, to="dcls")] == [Dcls1d, Dcls2d, Dcls3d]
    dynamic = convswap.convert(model, to="dynamic", convert_first=True)
    assert [type(m) for m in dynamic] == [DynamicConv1d, DynamicConv2d, DynamicConv3d]


def test_converting_again_takes_what_is_left() -> None:
    model = TwoConvs().double().eval()
    once = convswap.convert(model, to="dcls", where="conv1")
    twice = convswap.convert(once, to="dynamic", where="conv2")
    assert (type(twice.conv1), type(twice.conv2)) == (Dcls2d, DynamicConv2d)
    assert [(s.name, s.target) for s in convswap.report(twice).swaps] == [("conv1", "dcls"), ("conv2", "dynamic")]
    x = torch.randn(2, 3, 16, 16).double()
    assert relative_error(twice(x), model(x)) < 1e-10


def test_apply_a_plan_to_another_model_of_the_kind() -> None:
    plan = convswap.plan(TwoConvs(), to="dcls")
    other = as_if_trained(TwoConvs()).eval()
    new = convswap.apply(plan, other)
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(new(x), other(x)) < 1e-5
    with pytest.raises(ConvswapError, match=r"made for another model: 'conv1' is not the same there"):
        convswap.apply(plan, TwoConvs(channels=4))


def test_apply_a_recipe() -> None:
    model = TwoConvs()
    new = convswap.convert(model, to="dynamic", kernels=3, convert_first=True, seed=7)
    recipe = convswap.report(new).recipe
    for form in (recipe, recipe.to_dict()):
        again = convswap.apply(form, model)
        assert all(torch.equal(a, b) for a, b in zip(new.parameters(), again.parameters(), strict=True))
    with pytest.raises(
        ConvswapError, match=r"the recipe converts 'conv1', and Sequential has no convolution of that name"
    ):
        convswap.apply(recipe, torchvision.models.segmentation.fcn_resnet50(weights_backbone=None).backbone.layer1)


def test_apply_takes_over_what_was_done_before() -> None:
    model = TwoConvs().double().eval()
    other = convswap.report(convswap.convert(model, to="dynamic", where="conv2", kernels=3, seed=7)).recipe
    once = convswap.convert(model, to="dcls", where="conv1")
    wanted = convswap.convert(once, to="dynamic", where="conv2", kernels=3, seed=7)
    x = torch.randn(2, 3, 16, 16).double()
    for twice in (
        convswap.apply(other, once),
        convswap.apply(convswap.plan(once, to="dynamic", where="conv2", kernels=3), once, seed=7),
    ):
        made = convswap.report(twice)
        assert [(s.name, s.target) for s in made.swaps] == [("conv1", "dcls"), ("conv2", "dynamic")]
        assert made.recipe == convswap.report(wanted).recipe
        assert made.parameters == sum(p.numel() for p in model.parameters())
        assert torch.equal(twice(x), wanted(x))
    assert len(convswap.report(once).swaps) == 1


def test_new_parameters() -> None:
    model = TwoConvs()
    assert convswap.new_parameters(model) == {}
    assert set(convswap.new_parameters(convswap.convert(model, to="dcls", version="gauss", where="conv1"))) == {
        "conv1.P",
        "conv1.SIG",
    }
    dynamic = convswap.new_parameters(convswap.convert(model, to="dynamic", where="conv2"))
    assert set(dynamic) == {f"conv2.attention.fc{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}


def test_converted_models_copy_and_pickle() -> None:
    new = convswap.convert(TwoConvs(), to="dynamic").eval()
    x = torch.randn(2, 3, 16, 16)
    for copied in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert torch.equal(copied(x), new(x))
        assert convswap.report(copied).to_dict() == convswap.report(new).to_dict()


def test_converted_models_compile_and_export() -> None:
    new = convswap.convert(TwoConvs(), to="dynamic", convert_first=True).eval()
    x = torch.randn(3, 3, 16, 16)
    compiled = torch.compile(new, backend="aot_eager", fullgraph=True)
    assert relative_error(compiled(x), new(x)) < 1e-5
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(new, (x,), dynamic_shapes=({0: batch},)).module()
    more = torch.randn(5, 3, 16, 16)
    assert relative_error(exported(more), new(more)) < 1e-5


def test_old_weight_norm_does_not_hinder_the_rest() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 3, 3)), nn.Conv2d(3, 3, 3))
    x = torch.randn(1, 3, 9, 9)
    expected = model(x)
    new = convswap.convert(model, to="dcls")
    assert [type(module).__name__ for module in new] == ["Conv2d", "Dcls2d"]
    assert relative_error(new(x), expected) < 1e-5


def test_a_target_that_refuses_while_building_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("odd weights")

    plan = convswap.plan(TwoConvs(), to="dcls")
    monkeypatch.setattr(Dcls2d, "from_conv", fail)
    with pytest.raises(ConvswapError, match=r"conv1 cannot be converted to dcls: odd weights"):
        convswap.apply(plan, TwoConvs())


def test_convolutions_that_are_called_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(input=x)

    for to in ("dcls", "dynamic"):
        new = convswap.convert(
            Keyword(), Swap("*", to, **({"convert_first": True} if to == "dynamic" else {})), verify=(3, 8, 8)
        )
        verification = convswap.report(new).verification
        assert verification is not None
        assert [check.name for check in verification.layers] == ["conv"]
        assert convswap.trace(new, (3, 8, 8)).unknown_shapes is None
    assert convswap.trace(Keyword(), (3, 8, 8))["conv"].multiply_adds == 36 * 81
