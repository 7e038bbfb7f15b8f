"""A loop over patches and predictors, independent of how `PatchDynamicConv2d` computes."""

import torch
import torch.nn.functional as F
from torch import nn

from convswap.layers import HybridDense

from .helpers import plain_conv


def predictor_of(state, o, training):
    """The modules that published state dicts are of, for output ``o``."""
    own = {name.removeprefix(f"predictors.{o}."): v for name, v in state.items() if name.startswith(f"predictors.{o}.")}
    hidden, features = own["0.weight"].shape
    predictor = nn.Sequential(
        HybridDense(features, hidden),
        nn.BatchNorm1d(hidden),
        HybridDense(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.Linear(hidden, features),
    )
    predictor.to(own["0.weight"].dtype).load_state_dict(own)
    return predictor.train(training)


def widths_of(g, ahead):
    """Pixels to put around the image for the patches: left, right, top, bottom. An odd one behind, or ahead."""
    found = []
    for axis in (1, 0):
        if g.padding != "same":
            found += [0 if g.padding == "valid" else g.padding[axis]] * 2
            continue
        outputs = -(-g.size[axis] // g.stride[axis])
        span = (outputs - 1) * g.stride[axis] + g.dilation[axis] * (g.kernel_size[axis] - 1) + 1
        missing = max(span - g.size[axis], 0)
        less, more = missing // 2, missing - missing // 2
        found += [more, less] if ahead else [less, more]
    return found


def by_patches(layer, state, x, g, training):
    """The output, and the predictors after it, whose statistics may have changed."""
    published = layer.patch_order == "published"
    padded = F.pad(x, widths_of(g, published), "constant" if g.padding_mode == "zeros" else g.padding_mode)
    (kh, kw), (dy, dx), (sy, sx) = g.kernel_size, g.dilation, g.stride
    height = (padded.shape[2] - dy * (kh - 1) - 1) // sy + 1
    width = (padded.shape[3] - dx * (kw - 1) - 1) // sx + 1
    inputs, each = g.in_channels // g.groups, g.out_channels // g.groups
    outputs, predictors = [], []
    for o in range(g.out_channels):
        own = padded[:, o // each * inputs : (o // each + 1) * inputs]
        cut = [
            own[:, :, y * sy : y * sy + dy * (kh - 1) + 1 : dy, i * sx : i * sx + dx * (kw - 1) + 1 : dx]
            for y in range(height)
            for i in range(width)
        ]
        predictor = predictor_of(state, o, training)
        predictors.append(predictor)
        if published:
            patches = torch.stack(cut, 2).view(len(x), inputs, height, width, kh, kw).transpose(4, 5).contiguous()
            kernels = predictor(patches.view(-1, inputs * kh * kw)).view(patches.shape)
            outputs.append((patches * kernels).mean((1, 4, 5)))
        else:
            patches = torch.stack(cut, 1).view(len(x) * height * width, -1)
            outputs.append((patches * predictor(patches)).mean(1).view(len(x), height, width))
    y = torch.stack(outputs, 1)
    if "similar_conv.weight" in state:
        y = y + plain_conv(x, state["similar_conv.weight"], state.get("similar_conv.bias"), g)
    return y, predictors
