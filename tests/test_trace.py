from __future__ import annotations

import importlib
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

import convswap
from convswap.errors import ConvswapError, ModelError

from .models import TwoConvs

timm = importlib.import_module("timm")


def test_site_of_a_plain_model() -> None:
    trace = convswap.trace(TwoConvs(), (3, 16, 16))
    assert [site.name for site in trace] == ["conv1", "conv2"]
    second = trace["conv2"]
    assert (second.region, second.index, second.kind) == ("", 1, "Conv2d")
    assert second.calls[0].input_shape == (1, 8, 16, 16)
    assert second.calls[0].output_shape == (1, 8, 8, 8)
    assert second.multiply_adds == 8 * 8 * 8 * 8 * 9
    first = trace["conv1"]
    assert (first.next_norm, first.next_activation) == ("BatchNorm2d", "ReLU")


def test_multiply_adds_are_per_sample() -> None:
    one = convswap.trace(TwoConvs(), (3, 16, 16))
    seven = convswap.trace(TwoConvs(), torch.zeros(7, 3, 16, 16))
    assert [s.multiply_adds for s in one] == [s.multiply_adds for s in seven]
    assert seven["conv1"].calls[0].input_shape[0] == 7


@pytest.mark.parametrize(
    "inputs", [torch.zeros(2, 3, 9, 9), (torch.zeros(2, 3, 9, 9),), {"input": torch.zeros(2, 3, 9, 9)}]
)
def test_forms_of_example_inputs(inputs: object) -> None:
    assert convswap.trace(TwoConvs(), inputs)["conv1"].calls[0].output_shape == (2, 8, 9, 9)


def test_unfit_example_inputs() -> None:
    with pytest.raises(ConvswapError, match=r"example_inputs must be .* got str"):
        convswap.trace(TwoConvs(), "photo")


def test_shapes_are_unknown_without_inputs() -> None:
    trace = convswap.trace(TwoConvs())
    assert trace.unknown_shapes is not None
    assert trace["conv1"].calls == ()
    assert trace["conv1"].multiply_adds is None


def test_wrong_inputs_leave_shapes_unknown_but_sites_known() -> None:
    trace = convswap.trace(TwoConvs(), (4, 16, 16))
    assert len(trace) == 2
    assert "channels" in str(trace.unknown_shapes)


def test_input_size_comes_from_the_library() -> None:
    assert convswap.trace(timm.create_model("mobilenetv3_small_100")).input_shape == (1, 3, 224, 224)
    assert convswap.trace(torchvision.models.resnet18()).input_shape == (1, 3, 224, 224)
    assert convswap.trace(torchvision.models.video.r3d_18()).input_shape == (1, 3, 16, 112, 112)


def test_known_multiply_adds_of_resnet50() -> None:
    trace = convswap.trace(torchvision.models.resnet50())
    assert sum(site.multiply_adds or 0 for site in trace) == 4_087_136_256


@pytest.mark.parametrize("name", ["efficientvit_m0", "levit_conv_128s"])
def test_models_that_cache_tensors_are_not_poisoned(name: str) -> None:
    model = timm.create_model(name).eval()
    convswap.plan(model, to="dynamic")
    output = model(torch.randn(1, 3, 224, 224))
    assert type(output) is Tensor
    assert torch.isfinite(output).all()


def test_global_random_states_are_left_alone() -> None:
    model = torchvision.models.densenet121(drop_rate=0.2)
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(1), random.random()
    torch.manual_seed(3)
    random.seed(3)
    convswap.trace(model)
    assert (torch.rand(1), random.random()) == expected


def test_the_model_is_left_as_it_is() -> None:
    model = torchvision.models.resnet18()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = [sorted(module.__dict__) for module in model.modules()]
    convswap.trace(model)
    assert modes == [module.training for module in model.modules()]
    assert attributes == [sorted(module.__dict__) for module in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Branching(nn.Module):
    """Its own code branches on data; its children's does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = TwoConvs()
        self.late = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Conv1d(2, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if y.sum() > 1e9:
            return y
        return self.late(y.unsqueeze(1))


def test_regions_where_the_whole_does_not_trace() -> None:
    trace = convswap.trace(Branching(), (3, 16, 16))
    assert {region.name: region.convs for region in trace.regions} == {
        "stem": ("stem.conv1", "stem.conv2"),
        "late": ("late.0", "late.1"),
    }
    assert "stem" in {site.region for site in trace}
    assert trace.unknown_shapes is not None  # fake numbers cannot be branched on


def test_real_pass_for_models_that_branch_on_data() -> None:
    model = Branching()
    trace = convswap.trace(model, torch.randn(2, 3, 16, 16), real_pass=True)
    assert trace["late.1"].calls[0].output_shape == (2, 2, 1)
    assert all(parameter.grad is None for parameter in model.parameters())


class UntraceableInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 4, 1)
        self.odd = Branching2()
        self.after = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.odd(self.before(x)))


class Branching2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if x.sum() > 0 else -x


def test_untraceable_module_becomes_a_leaf_and_its_children_regions() -> None:
    trace = convswap.trace(UntraceableInside())
    whole, inner = trace.regions
    assert (whole.name, whole.convs) == ("", ("before", "after"))
    assert [name for name, _ in whole.failures] == ["odd"]
    assert (inner.name, inner.convs) == ("odd.conv", ("odd.conv",))


def test_training_only_heads_are_found() -> None:
    model = torchvision.models.googlenet(init_weights=False)
    trace = convswap.trace(model)
    heads = [site for site in trace if site.name.startswith("aux")]
    assert len(heads) == 2
    assert all(site.training_only and site.multiply_adds for site in heads)
    assert sum(site.training_only for site in trace) == 2


def test_detection_is_traced_in_regions() -> None:
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    trace = convswap.trace(model)
    assert len(trace) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert all(site.node is not None for site in trace)
    images = [torch.rand(3, 64, 64)]
    shaped = convswap.trace(model.eval(), (images,), real_pass=True)
    assert shaped.unknown_shapes is None
    assert shaped["backbone.body.0.0"].calls


def test_shared_module_is_one_site_with_aliases() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    trace = convswap.trace(nn.Sequential(conv, nn.ReLU(), conv), (3, 8, 8))
    (site,) = trace.sites
    assert (site.name, site.aliases, len(site.calls)) == ("0", ("2",), 2)
    assert trace["2"] is site


def test_several_shapes_of_one_conv() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.head(x), self.head(F.max_pool2d(x, 2))]

    (site,) = convswap.trace(Pyramid(), (3, 8, 8)).sites
    assert [call.output_shape[2:] for call in site.calls] == [(8, 8), (4, 4)]
    assert site.multiply_adds == (64 + 16) * 3 * 2 * 9


def test_tied_parameters_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[1].weight = model[0].weight
    trace = convswap.trace(model)
    assert trace["0"].tied == ("1.weight",)
    assert trace["1"].tied == ("0.weight",)


class Reader(nn.Module):
    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        if self.hidden and x.shape[0] > 5:  # keeps fx from tracing on
            return x
        x = x.to(self.conv.weight.dtype)
        return self.conv(x) + self.conv.weight.sum()


@pytest.mark.parametrize("hidden", [False, True])
def test_reads_from_outside_are_noticed(hidden: bool) -> None:
    (site,) = convswap.trace(Reader(hidden), (3, 8, 8)).sites
    assert site.read_outside is not None


def test_reads_in_traced_code_are_noticed_without_shapes() -> None:
    (site,) = convswap.trace(Reader(False)).sites
    assert site.read_outside is not None


def test_asking_for_the_dtype_is_no_read() -> None:
    class Casting(TwoConvs):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.to(self.conv1.weight.dtype, copy=True).to(self.conv1.weight.device))

    assert all(site.read_outside is None for site in convswap.trace(Casting(), (3, 8, 8)))


def test_hooks_parametrisations_and_replaced_forwards_are_noticed() -> None:
    model = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(5)))
    model[0].register_forward_hook(lambda *_: None)
    spectral_norm(model[1])
    parametrizations.weight_norm(model[2])
    model[3].weight.register_hook(lambda grad: grad)
    model[4].forward = model[4].forward  # type: ignore[method-assign]
    sites = convswap.trace(model, (2, 4, 4)).sites
    assert [site.parametrised for site in sites] == [False, False, True, False, False]
    assert sites[0].hooked == ("forward hook",)
    assert "forward pre-hook" in sites[1].hooked
    assert sites[3].hooked == ("tensor hook on weight",)
    assert sites[4].hooked == ("replaced forward",)
    assert convswap.trace(TwoConvs())["conv1"].hooked == ()


def test_users_hooks_do_not_run() -> None:
    model = TwoConvs()
    seen: list[object] = []
    model.norm.register_forward_hook(lambda *_: seen.append(1))
    convswap.trace(model, (3, 8, 8))
    assert seen == []


def test_other_convolutions_are_listed_with_a_reason() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.up = nn.ConvTranspose2d(3, 3, 2)
            self.blur = Blur()

        def forward(self, x: Tensor) -> Tensor:
            return self.blur(self.up(self.conv(x)))

    class Blur(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, torch.ones(3, 1, 3, 3, device=x.device) / 9, groups=3)

    trace = convswap.trace(Mixed(), (3, 8, 8))
    assert [site.name for site in trace] == ["conv"]
    assert {other.name: other.kind for other in trace.others} == {"up": "ConvTranspose2d", "blur": "Blur"}
    assert "conv2d" in trace.others[1].reason


def test_a_conv_that_is_never_called_is_a_site() -> None:
    model = TwoConvs()
    model.conv2.register_module("spare", nn.Conv2d(1, 1, 1))
    names = [site.name for site in convswap.trace(model, (3, 8, 8))]
    assert "conv2.spare" in names


def test_meta_models() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    trace = convswap.trace(model)
    assert trace.unknown_shapes is None
    assert trace["layer4.1.conv2"].calls[0].output_shape == (1, 512, 7, 7)


def test_fake_pass_takes_no_memory_for_weights() -> None:
    with torch.device("meta"):
        huge = nn.Sequential(nn.Conv2d(2**20, 2**20, 3))
    assert convswap.trace(huge, (2**20, 4, 4))["0"].multiply_adds == 2**40 * 9 * 4


def test_optional_arguments_keep_their_defaults() -> None:
    class Masked(TwoConvs):
        def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().forward(input if mask is None else input * mask)

    (region,) = convswap.trace(Masked()).regions
    assert region.failures == ()


def test_timm_subclasses_are_sites() -> None:
    kinds = {site.kind for site in convswap.trace(timm.create_model("dm_nfnet_f0"))}
    assert kinds == {"ScaledStdConv2dSame", "Conv2d"}


def test_a_model_that_cannot_be_copied() -> None:
    model = TwoConvs()
    model.generator = (item for item in ())  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"TwoConvs cannot be deep-copied .*generator"):
        convswap.trace(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.eye(4).to_sparse_csr(),
        lambda: torch.eye(4).to_mkldnn(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    ],
    ids=["sparse", "csr", "mkldnn", "nested"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_tensors_that_are_no_blocks_of_numbers(make: Callable[[], Tensor]) -> None:
    model, value = TwoConvs(), make()
    model.register_buffer("held", value)
    model.attribute = value
    trace = convswap.trace(model, (3, 8, 8))
    assert [len(site.calls) for site in trace] == [1, 1]
    assert model.held is model.attribute is value


class EachImage(nn.Module):
    """Takes images as detection models do, and sequences as others do."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        kind = nn.Conv2d if dims == 2 else nn.Conv1d
        self.dims, self.first, self.second = dims, kind(3, 4, 3), kind(3, 4, 3)

    def forward(self, images: list[Tensor]) -> Tensor:
        if self.dims == 2:
            return self.first(torch.stack(images)).mean() + self.second(torch.stack(images)).mean()
        return self.first(images[0]).mean() + self.second(images[1]).mean()


@pytest.mark.parametrize("by_name", [False, True])
def test_lists_of_images_and_of_sequences(by_name: bool) -> None:
    images = [torch.rand(3, 8, 8) for _ in range(5)]
    trace = convswap.trace(EachImage(2), {"images": images} if by_name else images)
    assert [site.batch for site in trace] == [5, 5]
    assert trace["first"].multiply_adds == 4 * 3 * 9 * 6 * 6
    for batch in (1, 4):
        sequences = [torch.rand(batch, 3, 10), torch.rand(batch, 3, 5)]
        trace = convswap.trace(EachImage(1), {"images": sequences} if by_name else sequences)
        assert [site.batch for site in trace] == [batch, batch]
        assert [site.multiply_adds for site in trace] == [4 * 3 * 3 * 8, 4 * 3 * 3 * 3]


def test_code_of_modules_that_are_not_registered() -> None:
    code = """
import functools, torch
@functools.lru_cache
def scale(size):
    return torch.ones(size)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return self.conv(x * scale(x.shape[-1]))
"""
    names = {"__name__": "nowhere.hubconf"}
    exec(code, names)
    model = names["Net"]()  # type: ignore[operator]
    assert convswap.trace(model, (3, 8, 8))["conv"].calls
    assert type(names["scale"](8)) is Tensor  # type: ignore[operator]
