from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from torch import Tensor, nn

import convswap
from convswap.comparing import greatest_growth, interior, magnitude, of_all_calls
from convswap.errors import ConvswapError, GrowthWarning, VerificationError
from convswap.report import Report
from convswap.targets import Fidelity, Target, registry
from convswap.verification import GROWTH_LIMIT, LayerCheck, Verification, require_passed
from convswap.verification_words import verdict

from .layers.helpers import CONV_FUNCTIONS, Geometry, few_examples, geometries
from .models import TwoConvs, library_model


@dataclass(frozen=True)
class NoOptions:
    """None."""


class Shifted(nn.Module):
    """A convolution that is off by a little, everywhere or at the border alone."""

    def __init__(self, conv: nn.Conv2d, by: float, border: bool) -> None:
        super().__init__()
        self.conv, self.by, self.border = conv, by, border

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        off = torch.full_like(y, self.by)
        if self.border:
            off[..., 1:-1, 1:-1] = 0
        return y + off


class Off(Target):
    """Promises what its layer does not keep, or keeps in the interior alone."""

    name = "off"
    summary = "off by a little"
    options = NoOptions

    def __init__(self, fidelity: Fidelity = "exact", by: float = 1e-3, border: bool = False) -> None:
        self.promise, self.by, self.border = fidelity, by, border

    def unsupported_reason(self, site: Any, options: Any) -> str | None:
        return None

    def fidelity(self, site: Any, options: Any) -> Fidelity:
        return self.promise

    def build(self, conv: Any, options: Any, generator: Any) -> nn.Module:
        return Shifted(conv, self.by, self.border)


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))


def test_exact_layers_pass() -> None:
    model = TwoConvs().double()
    new = convswap.convert(model, to="dcls")
    verification = convswap.verify(model, new, torch.randn(2, 3, 16, 16).double())
    assert verification.passed
    assert [(check.name, check.limit) for check in verification.layers] == [("conv1", 1e-10), ("conv2", 1e-10)]
    assert verification.output_relative_error < 1e-10
    assert (verification.dtype, verification.inputs, verification.not_run) == ("float64", "given", ())


def test_a_broken_promise_is_an_error_and_named() -> None:
    convswap.register(Off())
    with pytest.raises(
        VerificationError, match=r"2 of 2 converted layers .*\n  conv\d: relative error .*, allowed 1e-05"
    ):
        convswap.convert(TwoConvs(), to="off", verify=(3, 16, 16))


def test_not_a_number_never_passes() -> None:
    convswap.register(Off("approximate", by=float("nan")))
    with (
        pytest.raises(VerificationError, match=r"relative error inf"),
        pytest.warns(GrowthWarning, match=r"in 2 of 2 .*: conv1 \(overflow\), conv2 \(overflow\)\."),
    ):
        convswap.convert(TwoConvs(), to="off", verify=(3, 16, 16))


def test_where_the_original_overflows_there_is_nothing_to_compare() -> None:
    model = TwoConvs().eval()
    nn.init.constant_(model.conv1.weight[:2], float("inf"))
    convswap.register(Off("interior", border=True))
    verification = convswap.report(convswap.convert(model, to="off", verify=(3, 16, 16))).verification
    assert verification is not None
    assert [check.compared for check in verification.layers] == [6 / 8 * (14 / 16) ** 2, 0]
    assert verification.not_compared == ("conv2",)
    nn.init.constant_(model.conv1.weight, float("inf"))
    for fidelity in ("interior", "exact"):
        registry._targets["off"] = Off(fidelity, border=True)
        with pytest.raises(VerificationError, match="or the original's outputs are not finite, so nothing is proved"):
            convswap.convert(model, to="off", verify=(3, 16, 16))


def test_approximate_layers_promise_no_number() -> None:
    convswap.register(Off("approximate"))
    new = convswap.convert(TwoConvs(), to="off", verify=(3, 16, 16))
    verification = convswap.report(new).verification
    assert verification is not None
    assert {check.limit for check in verification.layers} == {None}
    assert min(check.relative_error for check in verification.layers) > 1e-4


def test_interior_layers_are_compared_in_the_interior_alone() -> None:
    convswap.register(Off("interior", border=True))
    verification = convswap.report(
        convswap.convert(TwoConvs(), to="off", where="conv1", verify=(3, 16, 16))
    ).verification
    assert verification is not None
    assert verification.layers[0].relative_error == 0
    assert verification.output_difference > 1e-6
    registry._targets["off"] = Off("interior", border=False)
    with pytest.raises(VerificationError):
        convswap.convert(TwoConvs(), to="off", where="conv1", verify=(3, 16, 16))


def test_each_layer_gets_the_originals_input() -> None:
    convswap.register(Off("approximate", by=10.0))
    model = TwoConvs().double()
    first_off = convswap.convert(model, to="off", where="conv1")
    both = convswap.convert(first_off, to="dcls", where="conv2")
    checks = {c.name: c for c in convswap.verify(model, both, torch.randn(2, 3, 16, 16).double()).layers}
    assert checks["conv1"].relative_error > 1
    assert checks["conv2"].relative_error < 1e-10


def test_the_worst_call_of_a_shared_layer_counts() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    (check,) = convswap.verify(model, convswap.convert(model, to="dcls"), torch.randn(1, 3, 8, 8)).layers
    assert check.name == "0"


def test_modes_and_hooks_are_as_before() -> None:
    model = TwoConvs()
    model.norm.eval()
    new = convswap.convert(model, to="dcls", verify=(3, 16, 16))
    assert [module.training for module in model.modules()] == [module.training for module in new.modules()]
    assert not model.norm.training
    assert model.training
    assert not model.conv1._forward_hooks
    assert int(model.norm.num_batches_tracked) == 0


class WithAuxiliary(nn.Module):
    """A part of it runs in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aux = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        return (x, self.aux(x)) if self.training else x


def test_layers_that_do_not_run_are_named() -> None:
    model = WithAuxiliary()
    verification = convswap.verify(model, convswap.convert(model, to="dcls"), (3, 16, 16))
    assert [check.name for check in verification.layers] == ["conv"]
    assert verification.not_run == ("aux",)
    assert verification.inputs == "random, seed 0, 2×(3, 16, 16)"


def test_inputs_that_cannot_be_made() -> None:
    model = TwoConvs()
    with pytest.raises(ConvswapError, match=r"the input size of TwoConvs is unknown"):
        convswap.convert(model, to="dcls", verify=0)
    with pytest.raises(ConvswapError, match=r"there is no file nowhere.png"):
        convswap.convert(model, to="dcls", verify="nowhere.png")


def test_another_seed_is_another_batch() -> None:
    model = library_model("torchvision:squeezenet1_1", num_classes=10)
    new = convswap.convert(model, to="dcls", version="gauss", where="features.3.*")
    first, again, second = (convswap.verify(model, new, seed) for seed in (0, 0, 1))
    assert first == again
    assert first.output_difference != second.output_difference
    assert second.inputs == "random, seed 1, 2×(3, 224, 224)"


def test_json_round_trip() -> None:
    model = TwoConvs()
    verification = convswap.verify(model, convswap.convert(model, to="dcls"), (3, 16, 16))
    assert Verification.from_dict(json.loads(json.dumps(verification.to_dict()))) == verification


class Chosen(nn.Module):
    """Gives as many numbers as are large, as detection models give boxes."""

    def __init__(self, least: float = 0.5) -> None:
        super().__init__()
        self.conv, self.least = nn.Conv2d(3, 4, 3, padding=1), least

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y[y > self.least]


def test_outputs_whose_shapes_depend_on_the_data() -> None:
    torch.manual_seed(0)
    model, x = Chosen(), torch.randn(2, 3, 12, 12)
    convswap.register(Off("interior", by=1.0, border=True))
    new = convswap.convert(model, to="off", verify=x)
    verification = convswap.report(new).verification
    assert verification is not None
    assert (verification.output_relative_error, verification.same_shapes) == (None, False)
    assert Verification.from_dict(json.loads(json.dumps(verification.to_dict()))) == verification
    assert any("nothing to compare, as the shapes differ" in line for line in verdict(convswap.report(new)))
    exact = replace(verification, layers=tuple(replace(c, fidelity="exact") for c in verification.layers))
    with pytest.raises(VerificationError, match="the model's output has another shape: the code around"):
        require_passed(exact)
    assert convswap.verify(model, convswap.convert(model, to="dcls"), x).output_relative_error is not None


def test_outputs_without_numbers_are_not_compared() -> None:
    model, x = Chosen(least=1e9), torch.randn(2, 3, 12, 12)
    new = convswap.convert(model, to="dcls", verify=x)
    verification = convswap.report(new).verification
    assert verification is not None
    assert (verification.output_difference, verification.same_shapes) == (None, True)
    assert any("at the output: nothing to compare, as the original" in line for line in verdict(convswap.report(new)))


def test_verifications_of_before_there_was_growth() -> None:
    data = {
        "layers": [{"name": "a", "fidelity": "exact", "relative_error": 1e-7, "limit": 1e-5, "passed": True}],
        **{"not_run": [], "output_relative_error": 1e-7, "output_difference": 1e-7, "dtype": "float32", "inputs": "x"},
    }
    (check,) = Verification.from_dict(data).layers
    assert (check.growth, check.compared) == (None, 1.0)
    assert Verification.from_dict(data).passed


# The interior -----------------------------------------------------------------------------------------------------


@few_examples
@given(geometries(min_size=1))
def test_the_interior_is_where_no_window_crosses_the_border(case: Geometry) -> None:
    """Beyond the border there is no number."""
    widths: list[int] = []
    for axis in reversed(range(case.dims)):
        span, step = case.dilation[axis] * (case.kernel_size[axis] - 1) + 1, case.stride[axis]
        if case.padding == "same":
            total = max((-(-case.size[axis] // step) - 1) * step + span - case.size[axis], 0)
            widths += [total // 2, total - total // 2]
        else:
            widths += [0 if case.padding == "valid" else case.padding[axis]] * 2
        assume(case.size[axis] + sum(widths[-2:]) >= span)
    x = torch.zeros(1, 1, *case.size)
    kernel = torch.ones(1, 1, *case.kernel_size)
    padded = F.pad(x, widths, value=torch.nan)
    output = CONV_FUNCTIONS[case.dims - 1](padded, kernel, None, case.stride, 0, case.dilation)
    kept = interior(case.conv(), x, output)
    assert kept.isfinite().all()
    assert kept.numel() == output.isfinite().sum()


def test_how_much_is_compared() -> None:
    convswap.register(Off("interior", border=True))
    model = TwoConvs()
    made = convswap.report(convswap.convert(model, to="off", where="conv1", verify=(3, 16, 16)))
    assert made.verification is not None
    assert made.verification.layers[0].compared == (14 / 16) ** 2
    for shown in (str(made), made.to_markdown(), made.to_html()):
        assert "identical (0.0e+00)" in shown
        assert "23%" in shown
        assert "identical in the interior, where no window crosses the border: conv1, with" in " ".join(shown.split())


def test_layers_that_are_all_border() -> None:
    convswap.register(Off("interior", by=1.0, border=True))
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.AdaptiveAvgPool2d(2), nn.Conv2d(3, 3, 5, padding=5))
    made = convswap.report(convswap.convert(model, to="off", verify=(3, 16, 16)))
    assert made.verification is not None
    assert made.verification.passed
    assert [check.compared > 0 for check in made.verification.layers] == [True, False]
    assert made.verification.not_compared == ("2",)
    for shown in (str(made), made.to_markdown(), made.to_html()):
        assert (
            "nothing to compare, as every window crosses the border or the original gives no finite numbers: 2"
            in " ".join(shown.split())
        )
    with pytest.raises(VerificationError, match="each window of each converted layer crosses the border"):
        convswap.convert(model, to="off", where="2", verify=(3, 16, 16))
    alone = replace(made.verification, layers=made.verification.layers[1:])
    assert not alone.passed
    assert alone.worst is None
    shown = " ".join(str(made.with_verification(alone)).split())
    assert "1 converted layers compared in float32 (random, seed 0, 2×(3, 16, 16)): nothing to compare" in shown
    assert "identical" not in shown
    assert "greatest relative error" not in shown


@pytest.mark.parametrize("size", [2, 5])
def test_the_outputs_of_all_calls_count(size: int) -> None:
    convswap.register(Off("interior", by=1.0, border=True))
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(size), conv)
    (check,) = convswap.verify(model, convswap.convert(model, to="off"), (3, 16, 16)).layers
    assert check.compared == (14**2 + (size - 2) ** 2) / (16**2 + size**2)


def test_the_error_is_that_of_the_worst_call() -> None:
    checks = [LayerCheck("a", "interior", error, 1e-5, error < 1e-5, 0.5) for error in (1e-7, 1e-3, 0.0)]
    assert of_all_calls(checks, [4, 4, 8]) == checks[1]
    assert of_all_calls(checks[:1], [0]).compared == 0


# Growth -----------------------------------------------------------------------------------------------------------


class Times(nn.Module):
    def __init__(self, conv: nn.Conv2d, by: float) -> None:
        super().__init__()
        self.conv, self.by = conv, by

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.by


class Louder(Off):
    """What a layer gives is so many times what the convolution gave."""

    name = "louder"

    def build(self, conv: Any, options: Any, generator: Any) -> nn.Module:
        return Times(conv, self.by)


def chain(*layers: nn.Module) -> nn.Module:
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    return model


def test_growth_is_of_each_models_own_run() -> None:
    convswap.register(Louder("approximate", by=20.0))
    model = chain(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    x = torch.tensor([-4.0, 1.0]).reshape(2, 1, 1, 1)
    new = convswap.convert(model, to="louder", where=["0", "2"])
    with pytest.warns(
        GrowthWarning, match=r"in 1 of 2 converted layers activations grow by more than 100, .*: 2 \(135×\)\. Where"
    ):
        verification = convswap.verify(model, new, x)
    # -4 → -1.5 → -0.25 → 0.375 and 1 → 1 → 1 → 1; louder: -30, then -14.5, then -135, and 20, then 10.5, then 115.
    assert [check.growth for check in verification.layers] == pytest.approx([30 / 1.5, 135 / 1])
    assert [check.name for check in verification.grown] == ["2"]


def test_the_greatest_growth_of_several_calls() -> None:
    convswap.register(Louder("approximate", by=5.0))
    conv = nn.Conv2d(1, 1, 1)
    model = chain(conv, conv)
    (check,) = convswap.verify(model, convswap.convert(model, to="louder"), torch.ones(1, 1, 1, 1)).layers
    assert check.growth == pytest.approx(15.0)  # 1 → 1 → 1; louder: 5, then 15


@pytest.mark.parametrize("factor", [GROWTH_LIMIT, GROWTH_LIMIT * 1.01])
def test_more_than_the_limit_is_warned_of_and_shown(factor: float) -> None:
    convswap.register(Louder("approximate", by=factor))
    model = chain(nn.Conv2d(1, 1, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = convswap.report(convswap.convert(model, to="louder", verify=torch.ones(1, 1, 1, 1)))
    assert [warning.category for warning in caught] == ([] if factor == GROWTH_LIMIT else [GrowthWarning])
    assert issubclass(GrowthWarning, UserWarning)
    if caught:
        assert "a lower order magnifies" in str(caught[0].message)
    assert made.verification is not None
    assert made.verification.passed
    assert len(made.verification.grown) == len(caught)
    again = Report.from_dict(json.loads(made.to_json()))
    assert again == made
    for shown in (str(again), again.to_markdown(), again.to_html()):
        assert ("activations grow by more than 100" in " ".join(shown.split())) == bool(caught)
        assert ("101×" in shown) == bool(caught)


def test_growth_that_is_not_known() -> None:
    big = torch.tensor([1e200, -torch.inf], dtype=torch.float64)
    assert [magnitude(v) for v in (big[:1], big, -big * torch.nan, big[:0], "x")] == [
        1e200,
        *[torch.inf] * 2,
        None,
        None,
    ]
    assert greatest_growth([0.0, torch.inf, None], [1.0, 1.0, 1.0]) is None
    assert greatest_growth([1.0, 2.0, 0.0], [3.0, 1.0, 5.0]) == 3.0
    assert (
        greatest_growth([1e-300], [1e300]) == greatest_growth([1.0], [torch.inf]) == pytest.approx(1.797e308, rel=1e-3)
    )
    for dtype in (torch.float16, torch.bfloat16):
        assert magnitude(torch.tensor([-3.0, 2.0], dtype=dtype)) == 3.0
    check = LayerCheck("a", "interior", 0.0, None, True, growth=None)
    assert Verification((check,), (), 0.0, 0.0, "float32", "x").grown == ()


def test_silent_models_do_not_grow() -> None:
    convswap.register(Louder("approximate"))
    model = chain(nn.Conv2d(1, 1, 1))
    new = convswap.convert(model, to="louder")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    (check,) = convswap.verify(model, new, torch.ones(1, 1, 1, 1)).layers
    assert check.growth is None


class Detector(nn.Module):
    """Takes a list of images, as torchvision's detection models do."""

    def __init__(self) -> None:
        super().__init__()
        self.transform, self.conv = nn.Identity(), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"scores": scores} for scores in self.conv(torch.stack(images)).mean((2, 3))]


class RAFT(nn.Module):
    """Takes two frames, as torchvision's model of this name does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return self.conv(one) - self.conv(two)


@pytest.mark.parametrize(
    ("kind", "family", "told"),
    [(Detector, "detection", "(3, 320, 320)"), (RAFT, "optical_flow", "(1, 3, 128, 128) and (1, 3, 128, 128)")],
)
def test_seeds_for_models_that_take_no_batch_of_images(
    kind: type[nn.Module], family: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "__module__", f"torchvision.models.{family}.tiny")
    model = kind()
    state = torch.get_rng_state()
    new = convswap.convert(model, "dynamic", convert_first=True, kernels=(3,), verify=1)  # by the order of execution
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (convswap.verify(model, new, seed) for seed in (1, 1, 2))
    assert first == again == convswap.report(new).verification
    assert (first.inputs, first.passed, len(first.layers)) == (f"random, seed 1, {told}", True, 1)
    assert other.output_relative_error != first.output_relative_error
