from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap.errors import ConvswapError, VerificationError
from convswap.targets import Fidelity, Target, registry
from convswap.verify import Verification

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
    with pytest.raises(VerificationError, match=r"relative error inf"):
        convswap.convert(TwoConvs(), to="off", verify=(3, 16, 16))


def test_where_the_original_overflows_there_is_nothing_to_compare() -> None:
    model = TwoConvs().eval()
    nn.init.constant_(model.conv1.weight, float("inf"))
    convswap.register(Off("approximate"))
    assert convswap.report(convswap.convert(model, to="off", verify=(3, 16, 16))).verification is not None


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


def test_layers_that_do_not_run_are_named() -> None:
    model = library_model("torchvision:googlenet", num_classes=10).eval()
    new = convswap.convert(model, to="dynamic", where=["aux1.*", "conv2.*"])
    verification = convswap.verify(model, new, 0)
    assert verification.not_run == ("aux1.conv.conv",)
    assert verification.inputs == "random, seed 0, 2×(3, 224, 224)"


def test_inputs_that_cannot_be_made() -> None:
    model = TwoConvs()
    with pytest.raises(ConvswapError, match=r"the input size of TwoConvs is unknown"):
        convswap.convert(model, to="dcls", verify=0)
    with pytest.raises(ConvswapError, match=r"there is no file nowhere.png"):
        convswap.convert(model, to="dcls", verify="nowhere.png")


def test_another_seed_is_another_batch() -> None:
    model = library_model("torchvision:squeezenet1_1", num_classes=10)
    new = convswap.convert(model, to="dcls", version="gauss", where="features.3.*")
    first, again, second = (convswap.verify(model, new, seed).output_difference for seed in (0, 0, 1))
    assert first == again != second


def test_json_round_trip(tmp_path: Path) -> None:
    model = TwoConvs()
    verification = convswap.verify(model, convswap.convert(model, to="dcls"), (3, 16, 16))
    assert Verification.from_dict(verification.to_dict()) == verification
