"""The networks whose real weights are among the samples."""

from __future__ import annotations

import timm
import torch
import torchvision
from torch import nn

from . import samples


def mobilenet_v2() -> nn.Module:
    """torchvision's MobileNetV2 with its ImageNet weights, in evaluation mode."""
    model: nn.Module = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(samples.mobilenet_v2_checkpoint(), weights_only=True))
    return model.eval()


def efficientnet_lite0() -> nn.Module:
    """timm's ``tf_efficientnet_lite0`` with ImageNet weights, in evaluation mode; five of its convolutions pad SAME."""
    model: nn.Module = timm.create_model("tf_efficientnet_lite0")
    stored = torch.load(samples.efficientnet_lite0_checkpoint(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    return model.eval()
