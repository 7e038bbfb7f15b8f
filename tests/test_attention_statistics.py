"""Attention statistics, against sums written out here, and what they are read in."""

from __future__ import annotations

import copy
import io
import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convswap
from convswap import attention_statistics
from convswap.attention_statistics import AttentionStatistics
from convswap.errors import ConvswapError
from convswap.layers import CondConv2d, DynamicConv1d, DynamicConv2d, ODConv2d
from convswap.report import Report

from .layers.helpers import few_examples, seeds
from .models import TwoConvs


def trained(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """With attentions that depend on the input."""
    with torch.no_grad():
        for parameter in convswap.new_parameters(model).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model


def dynamic(**options: Any) -> Any:
    return trained(convswap.convert(TwoConvs(), "dynamic", convert_first=True, **options))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 3, 8, 8)


@few_examples
@given(seeds, st.integers(2, 5), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_dynamic_formula(seed: int, kernels: int, sizes: list[int]) -> None:
    torch.manual_seed(seed)
    layer = DynamicConv2d(3, 4, 3, kernels=kernels, dtype=torch.float64)
    batches = [torch.randn(size, 3, 6, 5, dtype=torch.float64) for size in sizes]
    hidden = torch.relu(layer.attention.fc1(torch.cat(batches).mean((2, 3))))
    shares = torch.softmax(layer.attention.fc2(hidden), 1).detach()
    use = attention_statistics(layer, batches).layers[0].whole
    assert use.samples == sum(sizes)
    assert use.mean == pytest.approx(shares.mean(0).tolist(), rel=1e-12)
    assert use.spread == pytest.approx(shares.std(0, correction=0).tolist(), rel=1e-9, abs=1e-14)
    assert use.entropy == pytest.approx(-(shares * shares.log()).sum(1).mean().item(), rel=1e-12)
    assert use.relative_entropy == pytest.approx(use.entropy / math.log(kernels))


def test_condconv_entropy_is_of_the_shares() -> None:
    layer = trained(CondConv2d(3, 4, 3, kernels=3, dtype=torch.float64))
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    routing = torch.sigmoid(layer.attention.fc(x.mean((2, 3)))).detach()
    shares = routing / routing.sum(1, keepdim=True)
    found = attention_statistics(layer, x)
    assert found.layers[0].whole.mean == pytest.approx(routing.mean(0).tolist())
    assert found.layers[0].whole.entropy == pytest.approx(-(shares * shares.log()).sum(1).mean().item())
    assert "CondConv's sigmoids do not sum to 1" in str(found)
    assert "CondConv" not in str(attention_statistics(dynamic(), torch.randn(2, 3, 8, 8)))


def test_closed_sigmoids_count_as_equal_shares() -> None:
    layer = CondConv2d(3, 4, 3, kernels=3)
    nn.init.constant_(layer.attention.fc.bias, -1e4)
    nn.init.zeros_(layer.attention.fc.weight)
    use = attention_statistics(layer, torch.randn(2, 3, 6, 6)).layers[0].whole
    assert use.mean == (0, 0, 0)
    assert use.relative_entropy == pytest.approx(1)


def test_odconv_gates() -> None:
    layer = trained(ODConv2d(4, 6, 3, dtype=torch.float64))
    x = torch.randn(5, 4, 6, 6, dtype=torch.float64)
    expected = {name: value.detach() for name, value in layer.attentions(x).items()}
    found = attention_statistics(layer, [x[:2], x[2:]]).layers[0]
    assert found.whole.mean == pytest.approx(expected.pop("kernel").mean(0).tolist())
    assert {gate.gate for gate in found.gates} == set(expected) == {"channel", "filter", "position"}
    for gate in found.gates:
        value = expected[gate.gate]
        assert gate.mean == pytest.approx(value.mean().item())
        assert gate.spread == pytest.approx(value.std(correction=0).item())
        assert gate.across_samples == pytest.approx(value.var(0, correction=0).mean().sqrt().item())


def test_a_single_kernel_has_no_entropy() -> None:
    layer = ODConv2d(4, 6, 3, kernels=1)
    found = attention_statistics(layer, torch.randn(5, 4, 6, 6))
    use = found.layers[0].whole
    assert (use.mean, use.spread, use.entropy, use.relative_entropy) == ((1.0,), (0.0,), 0.0, None)
    assert found.by_resolution()[0].relative_entropy is None
    assert "ODConv2d" in found._repr_html_()


# What data may be -------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Calls one layer at two sizes, another at the second only."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = DynamicConv2d(3, 3, 3, padding=1)
        self.other = DynamicConv2d(3, 3, 3, padding=1)
        self.never = DynamicConv2d(3, 3, 3, padding=1)
        self.again = self.shared

    def forward(self, image: Tensor, scale: int = 2) -> Tensor:
        return self.other(self.again(self.shared(image)[..., ::scale, ::scale]))


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: [x[:2], x[2:]],
        lambda x: [(x[:2], 1), [x[2:], "label"]],
        lambda x: [{"image": x[:2]}, {"image": x[2:], "scale": 2}],
        lambda x: [((x[:2], 2), 1), ({"image": x[2:]}, 1)],
        lambda x: {"image": x},
        lambda x: (part for part in x.split(2)),
        lambda x: DataLoader(TensorDataset(x, torch.zeros(6)), batch_size=4, shuffle=True),
        lambda x: [x.double()],
    ],
    ids=["tensor", "tensors", "with labels", "keywords", "arguments", "dict", "generator", "DataLoader", "double"],
)
def test_forms_of_data(x: Tensor, form: Any) -> None:
    model = trained(Twice())
    expected, found = attention_statistics(model, [x]), attention_statistics(model, form(x))
    assert found.samples == 6
    for one, other in zip(expected.layers, found.layers, strict=True):
        assert one.whole.mean == pytest.approx(other.whole.mean, rel=1e-5)
        assert one.whole.spread == pytest.approx(other.whole.spread, rel=1e-3, abs=1e-6)


def test_calls_and_resolutions(x: Tensor) -> None:
    model = trained(Twice())
    found = attention_statistics(model, [x, x[:2, :, :6]])
    assert [layer.name for layer in found.layers] == ["shared", "other"]
    assert found.not_run == ("never",)
    assert (found.batches, found.samples) == (2, 8)
    shared, other = found.layers
    assert shared.whole.samples == 16
    assert {use.size: use.samples for use in shared.sizes} == {(8, 8): 6, (6, 8): 2, (4, 4): 6, (3, 4): 2}
    assert [use.size for use in shared.sizes] == [(8, 8), (6, 8), (4, 4), (3, 4)]
    weighted = sum(torch.tensor(use.mean) * use.samples for use in shared.sizes) / 16
    assert shared.whole.mean == pytest.approx(weighted.tolist(), rel=1e-5)
    groups = found.by_resolution()
    assert [group.size for group in groups] == [(8, 8), (6, 8), (4, 4), (3, 4)]
    assert groups[2].layers == ("shared", "other")
    both = [use.relative_entropy for layer in (shared, other) for use in layer.sizes if use.size == (4, 4)]
    assert groups[2].relative_entropy == pytest.approx(sum(map(float, both)) / 2)


def test_inputs_without_a_batch() -> None:
    layer = trained(DynamicConv1d(3, 4, 3))
    x = torch.randn(3, 9)
    assert attention_statistics(layer, [x]).layers == attention_statistics(layer, x[None]).layers


@pytest.mark.parametrize("wrap", ["compiled", "in place", "a part", "parallel"])
def test_wrapped_models(x: Tensor, wrap: str) -> None:
    model = dynamic().eval()
    expected = attention_statistics(model, x)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    wrapped: Any = copy.deepcopy(model)
    if wrap == "in place":
        wrapped.compile(backend=backend)
    elif wrap == "a part":
        wrapped.conv2.compile(backend=backend)
    else:
        wrapped = nn.DataParallel(wrapped) if wrap == "parallel" else torch.compile(wrapped, backend=backend)
    with torch.no_grad():
        wrapped(x)
    compiled = len(graphs)
    assert (compiled > 0) == (wrap != "parallel")
    assert attention_statistics(wrapped, x) == expected
    assert len(graphs) == compiled  # looking at a compiled model compiles nothing
    with torch.no_grad():
        wrapped(x)
    assert len(graphs) == compiled


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions(x: Tensor, dtype: torch.dtype) -> None:
    layer = trained(DynamicConv2d(3, 4, 3))
    single, half = attention_statistics(layer, x), attention_statistics(layer.to(dtype), x)
    assert half.layers[0].whole.mean == pytest.approx(single.layers[0].whole.mean, abs=0.05)


# What must not change ---------------------------------------------------------------------------------------------


class Drawing(nn.Module):
    """Draws random numbers, and fails if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = DynamicConv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3).eval()
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        random.random()
        if self.fails:
            raise KeyError("nothing there")
        return self.norm(self.conv(x + torch.rand(x.shape)))


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_generators_are_as_before(x: Tensor, fails: bool) -> None:
    model = Drawing()
    model.fails = fails
    before, state, python = (
        {n: t.clone() for n, t in model.state_dict().items()},
        torch.get_rng_state(),
        random.getstate(),
    )
    if fails:
        with pytest.raises(
            ConvswapError, match=r"Drawing does not run on batch 0 of the data \(\(6, 3, 8, 8\)\): KeyE"
        ):
            attention_statistics(model, x)
    else:
        attention_statistics(model, x)
    assert model.training
    assert not model.norm.training
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (TwoConvs, torch.randn(1, 3, 8, 8), "TwoConvs has no layer that attends to kernels: convert it to dynamic"),
        (dynamic, [], "the data has no samples: there were no batches, or only empty ones"),
        (dynamic, torch.randn(0, 3, 8, 8), "the data has no samples"),
        (dynamic, 3, "an iterable of batches, such as a DataLoader, got int"),
        (dynamic, "photo.jpg", "got str"),
        (dynamic, [1], "batch 0 of the data is a int: it must be a tensor"),
        (dynamic, [torch.randn(1, 3, 8, 8), ("cat", 1)], "batch 1 of the data is a tuple that starts with a str"),
        (dynamic, [torch.randn(1, 5, 8, 8)], r"TwoConvs does not run on batch 0 of the data \(\(1, 5, 8, 8\)\)"),
        (lambda: dynamic().to("meta"), torch.randn(1, 3, 8, 8), "is on the meta device, where there are no numbers"),
        (dynamic, torch.full((1, 3, 8, 8), float("nan")), "the kernel attention of 'conv1' is not finite"),
    ],
)
def test_what_cannot_be(model: Any, data: Any, message: str) -> None:
    with pytest.raises(ConvswapError, match=message):
        attention_statistics(model(), data)


def test_nothing_reached(x: Tensor) -> None:
    model = nn.ModuleDict({"used": nn.Identity(), "unused": DynamicConv2d(3, 3, 3)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    with pytest.raises(ConvswapError, match="no layer that attends to kernels was reached by the data: unused"):
        attention_statistics(model, x)


# What it is read in -----------------------------------------------------------------------------------------------


def forms(shown: Any) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=200).print(shown)
    return [str(shown), shown._repr_html_(), stream.getvalue()]


def test_forms(x: Tensor) -> None:
    found = attention_statistics(dynamic(), x)
    entropy = f"{found.layers[1].whole.entropy:.3f}"
    for shown in forms(found):
        assert "TwoConvs: attention of 2 layers over 6 samples in 1 batch" in shown
        assert entropy in shown
        assert "8×8" in shown
    again = AttentionStatistics.from_dict(json.loads(found.to_json()))
    assert again == found
    assert found.to_dict()["version"] == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"layers": 3},
        {"layers": [{}]},
        {"model": 1},
        {"samples": "six"},
        {"surplus": 1},
    ],
)
def test_damaged_statistics_are_refused(x: Tensor, damage: dict[str, Any]) -> None:
    data = attention_statistics(dynamic(), x).to_dict()
    with pytest.raises(ConvswapError, match="attention statistics"):
        AttentionStatistics.from_dict({**data, **damage})
    data["layers"][0]["whole"]["spread"] = []
    with pytest.raises(ConvswapError, match="the attention statistics are damaged"):
        AttentionStatistics.from_dict(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(layers=[]), "there are no layers"),
        (lambda data: data["layers"][0].update(sizes=[]), "there are no sizes"),
        (lambda data: data["layers"][0]["whole"].update(entropy=math.nan), "a number that is not finite"),
    ],
)
def test_statistics_that_no_pictures_can_be_made_of(x: Tensor, change: Any, message: str) -> None:
    data = json.loads(attention_statistics(dynamic(), x).to_json())
    change(data)
    with pytest.raises(ConvswapError, match=message):
        AttentionStatistics.from_dict(data)


def test_many_kernels_and_no_name(x: Tensor) -> None:
    found = attention_statistics(CondConv2d(3, 1, 1, kernels=200), x)
    page = found._repr_html_()
    assert page.count("kernel 63:") == 1
    assert "kernel 64:" not in page
    assert "8×8, 64 of 200 kernels" in page
    from convswap.attention_words import resolution_rows

    assert [row[1] for row in resolution_rows(found)] == ["(the model)"]


def test_in_reports(x: Tensor) -> None:
    model = dynamic()
    found = attention_statistics(model, [x, x[..., :6]])
    made = convswap.report(model, attention=found)
    assert made.attention == found
    assert Report.from_dict(json.loads(made.to_json())) == made
    plain = convswap.report(model)
    for shown in (str(made), made.to_markdown(), made.to_html(), made._repr_html_()):
        assert "attention of 2 layers over 12 samples" in shown
        assert "all" in shown
    assert "samples" not in str(plain)
    page = made.to_html()
    assert page.count('aria-label="mean attention of each kernel"') == 4
    assert page.count('aria-label="entropy over depth"') == 1
    assert page.count("<circle") == 4
    assert "<svg" not in plain.to_html()


def test_bars_are_as_high_as_the_attention(x: Tensor) -> None:
    from convswap.attention_pictures import HEIGHT, pictures

    found = attention_statistics(dynamic(), x)
    drawn = pictures(found)
    top = max(m + s for layer in found.layers for m, s in zip(layer.whole.mean, layer.whole.spread, strict=True))
    for chart, layer in zip(drawn.charts, found.layers, strict=True):
        assert chart.height == HEIGHT
        for bar, mean, spread in zip(chart.bars, layer.whole.mean, layer.whole.spread, strict=True):
            assert bar.height == pytest.approx(mean / top, abs=1e-4)
            assert bar.y + bar.height == pytest.approx(1, abs=1e-4)
            assert bar.low - bar.high == pytest.approx((mean - max(0, mean - spread) + spread) / top, abs=2e-4)
    assert drawn.plot is not None
    (line,) = drawn.plot.lines
    for point, layer in zip(line.points, found.layers, strict=True):
        assert point.y == pytest.approx(drawn.plot.height * (1 - (layer.whole.relative_entropy or 0)), abs=0.01)


def test_names_are_escaped(x: Tensor) -> None:
    found = attention_statistics(dynamic(), x)
    hostile = replace(found, model="<i>", layers=(replace(found.layers[0], name="<script>x", kind="<b>"),) * 2)
    page = hostile._repr_html_()
    assert "<script>" not in page
    assert "<i>" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;x" in page
    assert "\x1b" not in str(replace(found, model="a\x1b[2J"))


def test_statistics_of_something_else(x: Tensor) -> None:
    model = dynamic()
    with pytest.raises(ConvswapError, match="attention must be what attention_statistics gives, got Tensor"):
        convswap.report(model, attention=x)  # type: ignore[arg-type]
    foreign = attention_statistics(DynamicConv2d(3, 3, 3), x)
    other = replace(foreign, layers=(replace(foreign.layers[0], name="conv9"),))
    with pytest.raises(ConvswapError, match="of another model: there is no 'conv9' here"):
        convswap.report(model, attention=other)
    with pytest.raises(ConvswapError, match="a plan has no layers yet"):
        convswap.report(convswap.plan(TwoConvs(), "dynamic"), attention=foreign)
