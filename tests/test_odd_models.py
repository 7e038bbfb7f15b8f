"""Models whose code does what a rewriting tool could miss: converted right, or kept or refused with a reason."""

from __future__ import annotations

import functools
import importlib
import random
from collections import OrderedDict, deque, namedtuple
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

import convswap
from convswap.errors import ConvswapError, ModelError, NothingToSwapError, VerificationError
from convswap.layers import Dcls2d

from .models import TwoConvs, library_model, relative_error

timm: Any = importlib.import_module("timm")
timm_layers: Any = importlib.import_module("timm.layers")


class Padding(nn.Module):
    """Pads and cuts by what the convolution says of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 3, padding=4, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.conv.dilation[0] * (self.conv.kernel_size[0] - 1), 0))
        return self.conv(x)[:, :, : -self.conv.padding[0]] * self.conv.stride[0]


@pytest.mark.parametrize("to", ["dynamic", "dcls"])
def test_code_that_reads_the_geometry(to: str) -> None:
    model = Padding().double()
    options = {"convert_first": True} if to == "dynamic" else {}
    new = convswap.convert(model, to, verify=(3, 16), **options)
    x = torch.randn(2, 3, 32).double()
    assert relative_error(new(x), model(x)) < 1e-10


def test_davit_reads_the_geometry() -> None:
    model = library_model("timm:davit_tiny", num_classes=10).double().eval()
    x = torch.randn(1, 3, 64, 64).double()
    assert relative_error(convswap.convert(model, "dcls")(x), model(x)) < 1e-10


class AsksForTheClass(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        for layer in self:
            input = layer(input)
            if isinstance(layer, nn.Conv2d):
                input = input * 2
        return input


def test_code_that_asks_for_the_class() -> None:
    model = nn.Sequential(AsksForTheClass(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3)), nn.Conv2d(3, 3, 3))
    plan = convswap.plan(model, "dcls")
    assert [step.action for step in plan] == ["keep", "keep", "swap"]
    assert "asks for its class" in plan.steps[0].reason


@pytest.mark.parametrize("to", ["dynamic", "dcls"])
def test_tied_weights_that_are_folded_differently_are_kept(to: str) -> None:
    a, b = (timm_layers.ScaledStdConv2d(8, 8, 3, padding=1, gain_init=gain) for gain in (1.0, 2.0))
    b.weight = a.weight
    model = nn.Sequential(nn.Conv2d(3, 8, 3), a, b)
    plan = convswap.plan(model, convswap.Swap("*", to, **({"convert_first": True} if to == "dynamic" else {})))
    assert [step.action for step in plan] == ["swap", "keep", "keep"]


@pytest.mark.parametrize("inputs", [None, (3, 16, 16)])
def test_tied_weights_stay_tied_with_and_without_shapes(inputs: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    new = convswap.convert(model, "dcls", example_inputs=inputs)
    assert new[1].weight is new[0].weight


def odd_convs() -> dict[str, nn.Conv2d]:
    edited_padding = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
    edited_padding.padding = (2, 2)
    other_weight = nn.Conv2d(3, 3, 3)
    other_weight.weight = nn.Parameter(torch.randn(3, 1, 3, 3))
    pruned = nn.Conv2d(3, 8, 3)
    pruned.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    whole_stride = nn.Conv2d(3, 3, 3)
    whole_stride.stride = 2  # type: ignore[assignment]
    buffered = nn.Conv2d(3, 3, 3)
    buffered.register_buffer("mask", torch.ones(3))
    adapted = nn.Conv2d(3, 3, 3)
    adapted.lora = nn.Linear(3, 3)
    return {
        "was changed after construction": edited_padding,
        "its weight has shape": other_weight,
        "and its attributes say": pruned,
        "its stride is 2": whole_stride,
        "would lose: mask": buffered,
        "would lose: lora": adapted,
        "complex": nn.Conv2d(3, 3, 3, dtype=torch.complex64),
    }


@pytest.mark.parametrize("reason", odd_convs())
def test_odd_convolutions_are_kept_with_the_reason(reason: str) -> None:
    with pytest.raises(NothingToSwapError, match=reason):
        convswap.plan(odd_convs()[reason], "dcls")


def test_edited_geometry_that_torch_follows() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1, stride=2).double()
    conv.stride, conv.dilation, conv.padding = (1, 1), (2, 2), (2, 2)
    x = torch.randn(1, 3, 9, 9).double()
    assert relative_error(convswap.convert(conv, "dcls")(x), conv(x)) < 1e-10


def test_notes_on_a_convolution_are_taken_over() -> None:
    model = TwoConvs()
    model.conv1.note = "stem"
    assert convswap.convert(model, "dcls").conv1.note == "stem"


def test_reads_in_training_mode_only() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if x.shape[0] > 0 and self.training:
                y = y + self.conv.weight.square().mean()
            return y

    with pytest.raises(NothingToSwapError, match=r"its parameters are used by"):
        convswap.plan(Penalised(), "dcls", example_inputs=(3, 8, 8))


def test_a_part_that_copies_itself_in_its_own_way() -> None:
    class Rebuilding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            new = Rebuilding()
            new.load_state_dict(self.state_dict())
            return new

    with pytest.raises(ModelError, match=r"'0.conv' is still a convolution in the copy"):
        convswap.convert(nn.Sequential(Rebuilding()), "dcls")


def test_a_function_that_closes_over_a_module() -> None:
    class Closing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)
            self.run = lambda x: self.conv(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.run(x)

    with pytest.raises(ModelError, match=r"attribute 'run' that refers to a module of the model by closure"):
        convswap.convert(Closing(), "dcls")


Pair = namedtuple("Pair", ["one", "other"])


def test_references_in_containers_follow_in_place() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    conv = model[0]
    loop: list[Any] = [conv]
    loop.append(loop)
    model.held = {  # type: ignore[assignment]
        "ordered": OrderedDict(a=conv),
        "partial": functools.partial(conv),
        "set": {conv},
        "pair": Pair(conv, 1),
        "loop": loop,
    }
    held: Any = convswap.convert_(model, "dcls").held
    found = (held["ordered"]["a"], held["partial"].func, *held["set"], held["pair"].one, held["loop"][0])
    assert all(module is model[0] for module in found)
    assert isinstance(model[0], Dcls2d)


def test_graph_modules_keep_their_mode() -> None:
    model = create_feature_extractor(resnet18().eval(), ["layer3"]).eval()
    new = convswap.convert(model, "dcls")
    assert not any(module.training for module in new.modules())
    x = torch.randn(1, 3, 64, 64)
    assert relative_error(new(x)["layer3"], model(x)["layer3"]) < 1e-5


@functools.lru_cache
def cached_grid(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float32)


def test_caches_of_functions_are_not_poisoned() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + cached_grid(x.shape[-1] if type(x) is Tensor else 16)

    model = Cached()
    convswap.plan(model, "dcls", example_inputs=(3, 16, 16))
    assert type(model(torch.randn(1, 3, 16, 16))) is Tensor


def test_a_converted_part_of_a_larger_model() -> None:
    backbone = convswap.convert(TwoConvs(), "dcls")
    model = nn.Sequential(OrderedDict(body=backbone, head=nn.Conv1d(1, 2, 3)))
    new = convswap.convert(model, "dcls", where="head")
    names = ["body.conv1", "body.conv2", "head"]
    assert [step.name for step in convswap.report(new).swaps] == names
    assert [step.name for step in convswap.report(new).recipe.steps] == names
    fresh = nn.Sequential(OrderedDict(body=TwoConvs(), head=nn.Conv1d(1, 2, 3)))
    assert set(convswap.apply(convswap.report(new).recipe, fresh).state_dict()) == set(new.state_dict())
    report = convswap.report(model)
    assert [step.name for step in report.swaps] == names[:2]
    assert report.parameters == sum(p.numel() for p in fresh.parameters())


@pytest.mark.parametrize("to", ["dynamic", "dcls"])
def test_default_devices_and_modes(to: str) -> None:
    model = TwoConvs()
    x = torch.randn(2, 3, 16, 16)
    expected = model.eval()(x)
    with torch.device("meta"):
        on_cpu = convswap.convert(model, to, example_inputs=(3, 16, 16))
    with torch.inference_mode():
        trainable = convswap.convert(model, to, verify=(3, 16, 16))
    with torch.autocast("cpu"):
        precise = convswap.convert(model, to)
    for new in (on_cpu, trainable, precise):
        assert relative_error(new(x), expected) < 1e-5
    trainable.train()(x).sum().backward()


def test_unbatched_inputs() -> None:
    plan = convswap.plan(nn.Conv2d(3, 4, 3), "dynamic", example_inputs=torch.randn(3, 9, 9), convert_first=True)
    assert plan.steps[0].before.multiply_adds == 49 * 3 * 4 * 9


def test_verify_looks_at_the_output_too() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y if x.shape[0] == 0 or hasattr(self.conv, "output_padding") else 2 * y

    with pytest.raises(VerificationError, match=r"but the model's output differs"):
        convswap.convert(Chooses(), "dcls", verify=(3, 8, 8))


def test_nothing_compared_is_no_proof() -> None:
    assert not convswap.verify(TwoConvs(), TwoConvs(), (3, 16, 16)).passed


def test_random_models_are_compared_on_the_same_numbers() -> None:
    class Noisy(TwoConvs):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input + torch.randn_like(input))

    state = torch.get_rng_state()
    convswap.convert(Noisy(), "dcls", verify=(3, 16, 16))
    model = Noisy()
    torch.set_rng_state(state)
    verification = convswap.verify(model, convswap.convert(model, "dcls"), (3, 16, 16))
    assert verification.output_relative_error < 1e-5
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "arguments", [{"to": None}, {"to": 5}, {"to": "dcls", "where": None}, {"to": "dcls", "seed": 1.5}]
)
def test_arguments_of_the_wrong_type(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConvswapError):
        convswap.convert(TwoConvs(), **arguments)


def test_noise_is_bounded() -> None:
    with pytest.raises(ConvswapError, match=r"noise must be above 0 and at most 1, got 1.5"):
        convswap.plan(TwoConvs(), "dynamic", noise=1.5)


@pytest.mark.parametrize("draw", [lambda: random.random(), lambda: numpy.random.rand(), lambda: torch.rand(()).item()])
def test_random_paths_are_not_taken_for_questions_of_class(draw: Any) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                if not self.training or draw() < 0.5:
                    x = x + block(x)
            return x

    assert convswap.plan(Dropping(), "dcls", example_inputs=(3, 16, 16)).keeps == ()


def test_state_that_grows_is_not_taken_for_a_question_of_class() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
            self.log: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            self.log.append(x)
            for seen in self.log[-3:]:
                x = x + seen
            return self.b(x)

    assert convswap.plan(Growing(), "dcls", example_inputs=(3, 16, 16)).keeps == ()


def test_containers_without_convolutions_are_not_written_to() -> None:
    class Frozen(dict[str, int]):
        def __setitem__(self, key: str, value: int) -> None:
            raise TypeError("immutable")

        def __deepcopy__(self, memo: Any) -> Frozen:
            return Frozen(self)

    model = TwoConvs()
    model.config = Frozen(a=1)  # type: ignore[assignment]
    model.history = deque(range(10**6))  # type: ignore[assignment]
    part = model.part = functools.partial(int, 3)  # type: ignore[assignment]
    assert convswap.convert_(model, "dcls").part is part


def test_private_notes_on_a_convolution() -> None:
    class Noted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)
            self.conv._act = True  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y.relu() if self.conv._act else y

    convswap.convert(Noted(), "dcls", verify=(3, 8, 8))


@pytest.mark.parametrize("name", ["torchvision:efficientnet_b0", "torchvision:mobilenet_v3_small", "timm:lcnet_050"])
def test_untrained_networks_whose_activations_die_out_verify(name: str) -> None:
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    built = torchvision.models.get_model(model) if library == "torchvision" else timm.create_model(model)
    assert convswap.report(convswap.convert(built, "dynamic", verify=0)).verification is not None
