from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convswap
from convswap.conv_classes import plain_conv, unknown_class_reason
from convswap.layers import Dcls1d, Dcls2d, DclsLayer
from convswap.layers.frozen import StridedSameConv1d, StridedSameConv2d, StridedSameConv3d
from convswap.replacing import put_in_place

from .models import library_model, relative_error

timm_layers: Any = importlib.import_module("timm.layers")

SUBCLASSES = {
    "Conv2dSame": {},
    "StdConv2d": {},
    "StdConv2dSame": {"padding": "SAME"},
    "ScaledStdConv2d": {"gamma": 1.7, "gain_init": 0.8},
    "ScaledStdConv2dSame": {"padding": "SAME", "gamma": 1.7},
}


@pytest.mark.parametrize("to", ["dynamic", "dcls"])
@pytest.mark.parametrize("name", SUBCLASSES)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_subclasses_of_timm_keep_their_function(name: str, to: str, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    kernel = (data.draw(st.integers(1, 5)), data.draw(st.integers(2, 5)))
    stride, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    conv = getattr(timm_layers, name)(
        4, 8, kernel, stride=stride, dilation=dilation, groups=groups, bias=True, **SUBCLASSES[name]
    ).double()
    x = torch.randn(2, 4, data.draw(st.integers(10, 15)), data.draw(st.integers(10, 15))).double()
    options = {"convert_first": True} if to == "dynamic" else {}
    layer = convswap.convert(conv, to=to, **options)
    assert relative_error(layer(x), conv(x)) < 1e-10


def test_a_folded_weight_is_the_one_that_is_used() -> None:
    conv = timm_layers.ScaledStdConv2d(4, 8, 3, bias=False).double()
    nn.init.normal_(conv.gain)
    plain = plain_conv(conv)
    x = torch.randn(1, 4, 8, 8).double()
    assert type(plain) is nn.Conv2d
    assert relative_error(plain(x), conv(x)) < 1e-12


def test_plain_convolutions_are_taken_as_they_are() -> None:
    conv = nn.Conv2d(3, 3, 3)
    assert plain_conv(conv) is conv
    assert unknown_class_reason(conv) is None


def test_same_padding_with_further_padding_is_kept() -> None:
    conv = timm_layers.Conv2dSame(3, 3, 3)
    conv.padding = (1, 1)
    assert "pads its input to SAME and then by (1, 1) again" in str(unknown_class_reason(conv))


@pytest.mark.parametrize("to", ["dynamic", "dcls", "guided", "padding_free"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "padding",
            (1,),
            r"its padding is \(1,\), not a word that torch knows or a tuple with one number for each axis",
        ),
        ("padding", (-1, 0), r"its padding of \(-1, 0\) is negative and crops the image"),
        ("padding", "some", "its padding is 'some', not a word that torch knows or a tuple"),
        ("stride", (1,), r"its stride is \(1,\), not a tuple with one number for each axis"),
    ],
)
def test_unusual_attributes_keep_one_convolution(to: str, mode: Any, name: str, value: Any, reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode), nn.Conv2d(3, 3, 3, padding=1))
    setattr(model[0], name, value)
    plan = convswap.plan(model, to)
    assert [step.site.name for step in plan.swaps] == ["1"]
    assert re.match(reason, str(plan.keeps[0].reason))


def test_a_subclass_with_tensors_of_its_own_is_unknown() -> None:
    class Scaled(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 3, 3)
            self.scale = nn.Parameter(torch.ones(1))

    assert "more than a weight and a bias, which a new layer would lose: scale" in str(unknown_class_reason(Scaled()))


def test_whole_model_with_same_padding() -> None:
    model = library_model("timm:tf_efficientnet_lite0", num_classes=10).double().eval()
    x = torch.randn(1, 3, 75, 75).double()
    for to in ("dynamic", "dcls"):
        assert relative_error(convswap.convert(model, to=to)(x), model(x)) < 1e-10


# What layers freeze to ----------------------------------------------------------------------------------------------


def test_what_a_whole_model_was_frozen_to_is_converted_again() -> None:
    model = library_model("timm:tf_efficientnet_lite0", num_classes=10).double().eval()
    frozen = convswap.convert(model, to="dcls")
    layers = {id(layer): layer.freeze() for layer in frozen.modules() if isinstance(layer, DclsLayer)}
    put_in_place(frozen, dict(layers))
    x = torch.randn(1, 3, 75, 75).double()
    for to in ("dynamic", "dcls"):
        plan = convswap.plan(frozen, to=to, **({"convert_first": True} if to == "dynamic" else {}))
        assert [step.site.kind for step in plan.swaps].count("StridedSameConv2d") == 5
        assert relative_error(convswap.apply(plan, frozen)(x), model(x)) < 1e-10


STRIDED_SAME: Any = (StridedSameConv1d, StridedSameConv2d, StridedSameConv3d)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_frozen_layers_keep_their_function_or_tell_why_not(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    dims = data.draw(st.integers(1, 3))
    mode = data.draw(st.sampled_from(["zeros", "replicate"]))
    stride = tuple(data.draw(st.integers(1, 4)) for _ in range(dims))
    window = tuple(data.draw(st.integers(1, 4)) for _ in range(dims))
    grown = tuple(extent + 2 * data.draw(st.integers(0, 2)) for extent in window)
    frozen = STRIDED_SAME[dims - 1](2, 3, grown, stride, padding_mode=mode).double()
    frozen.padding, frozen.window = "same", window
    reason = unknown_class_reason(frozen)
    skips = any(g > w and w < s for g, w, s in zip(grown, window, stride, strict=True))
    assert (reason is not None) == skips
    if skips:
        assert "has grown" in str(reason)
        return
    layer = convswap.convert(frozen, to="dynamic", convert_first=True)
    for _ in range(3):
        x = torch.randn(2, 2, *(data.draw(st.integers(5, 12)) for _ in range(dims))).double()
        assert relative_error(layer(x), frozen(x)) < 1e-10


def test_frozen_paddings_that_no_layer_has() -> None:
    frozen: Any = Dcls2d(2, 2, 3, stride=4, padding="same", kernel_size=3).freeze()
    reason = "it pads for a window of 3 pixels, from which its kernel of 7 has grown, and with a stride of 4"
    assert str(unknown_class_reason(frozen)).startswith(reason)
    frozen.padding = (1, 1)
    assert unknown_class_reason(frozen) == "its padding was changed after construction, from 'same' to (1, 1)"
    odd: Any = Dcls1d(2, 2, 3, stride=2, padding="same", kernel_size=3).freeze()
    odd.window = (4,)
    assert str(unknown_class_reason(odd)).startswith("it pads for a window of 4 pixels")
