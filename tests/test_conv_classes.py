from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convswap
from convswap.conv_classes import plain_conv, unknown_class_reason

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
