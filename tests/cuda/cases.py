"""Arguments for every op that has CUDA kernels, and the plain PyTorch forms to compare with."""

import importlib

import torch

# Op: module and name of its plain form.
REFERENCES = {
    "large_depthwise_conv2d": ("ops.large_depthwise_conv2d", "large_depthwise_conv2d_ref"),
    "dcls_scatter": ("dcls_scatter", "scatter_ref"),
    "dcls_separable": ("dcls_separable", "separable_ref"),
    "dcls_sparse_depthwise_conv2d": ("ops.dcls_sparse_conv2d", "dcls_sparse_depthwise_conv2d_ref"),
    "guided_channelwise_conv2d": ("ops.guided_channelwise_conv2d", "guided_channelwise_conv2d_ref"),
    "guided_local_conv2d": ("ops.guided_local_conv2d", "guided_local_conv2d_ref"),
    "dynamic_conv2d": ("ops.dynamic_conv2d", "dynamic_conv2d_ref"),
    "hybrid_activation": ("ops.hybrid_activation", "hybrid_activation_ref"),
    "extrapolate_pad": ("ops.extrapolate_pad", "extrapolate_pad_ref"),
    "extrapolate_pad_backward": ("ops.extrapolate_pad", "extrapolate_pad_backward_ref"),
}
MODULES = {"dcls_sparse_depthwise_conv2d": "dcls_sparse_conv2d", "extrapolate_pad_backward": "extrapolate_pad"}
GUIDED = {"guided_channelwise_conv2d", "guided_local_conv2d"}
BATCHED = {**dict.fromkeys(GUIDED, (0, 1, 2)), "dynamic_conv2d": (0, 2, 3)}  # which arguments have the batch axis
MIXED = {"dynamic_conv2d"}  # in half precision, they multiply with sums that are rounded to it
EXTRAPOLATED = {"extrapolate_pad", "extrapolate_pad_backward"}
HALF = {"large_depthwise_conv2d", "dcls_sparse_depthwise_conv2d", *GUIDED, *MIXED, "hybrid_activation", *EXTRAPOLATED}
"""These take bfloat16 and float16."""


def op(name):
    importlib.import_module(f"convswap.layers.ops.{MODULES.get(name, name)}")
    return getattr(torch.ops.convswap, name).default


def reference(name):
    module, function = REFERENCES[name]
    return getattr(importlib.import_module(f"convswap.layers.{module}"), function)


def elements(dtype, *shape):
    """Weights, positions and sizes of DCLS elements on a grid of 7 to 9 cells an axis, some on whole cells.

    In double precision some lie off the grid as well. One that touches it with its rim alone is divided by next to
    nothing, which single precision cannot tell well.
    """
    dims = shape[0]
    P = 3 * torch.randn(shape, dtype=dtype)
    if dtype != torch.float64:
        P = P.clamp(-3, 3)
    P[:, :, :, ::3] = P[:, :, :, ::3].round()
    return torch.randn(shape[1:], dtype=dtype), P, torch.rand(dims, *shape[1:], dtype=dtype) + 0.3


def guided_arguments(name, dtype):
    """With windows and without, in vectors and pixel by pixel; the last ones are enough for several outputs a thread.

    Kernels are drawn in single precision: there are many.
    """
    found = []
    for batch, channels, outputs, groups, size, kernel, stride, dilation, padding in [
        (4, 64, 64, 64, (56, 56), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        (3, 40, 80, 40, (14, 14), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        (5, 32, 32, 32, (7, 7), (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)),
        (2, 6, 12, 6, (30, 31), (4, 3), (2, 3), (2, 1), (3, 4, 0, 1)),
        (2, 8, 8, 1, (56, 56), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        (2, 6, 10, 2, (21, 22), (7, 5), (2, 1), (1, 2), (3, 3, 4, 3)),
        (3, 5, 3, 1, (9, 9), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
        (4, 5, 9, 1, (224, 224), (1, 2), (1, 1), (1, 1), (0, 0, 0, 1)),
        (11, 2, 2, 1, (224, 224), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ]:
        channelwise = name == "guided_channelwise_conv2d"
        if channelwise and groups != channels:
            continue
        out = [
            (size[i] + padding[2 * i] + padding[2 * i + 1] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1
            for i in range(2)
        ]
        taps = kernel[0] * kernel[1]
        shape = (outputs, taps) if channelwise else (channels // groups, taps, outputs)
        x, w, b = (torch.randn(batch, *s).to(dtype) for s in [(channels, *size), (*shape, *out), (outputs,)])
        geometry = list(kernel), list(stride), list(padding), list(dilation)
        found.append([x, w, b, *geometry] + ([] if channelwise else [groups]))
    return found


def dynamic_arguments(dtype):
    """Tiles with pixels of one sample and of several, reductions in parts, groups of few channels."""
    found = []
    for batch, kernels, channels, outputs, groups, size, kernel, stride, dilation, padding in [
        (4, 4, 64, 64, 1, (56, 56), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        (9, 4, 256, 96, 1, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        (3, 2, 40, 24, 1, (14, 14), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
        (4, 4, 144, 144, 144, (56, 56), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
        (2, 3, 12, 20, 4, (21, 22), (5, 3), (2, 1), (1, 2), (3, 2, 4, 3)),
        (3, 5, 16, 48, 1, (30, 31), (3, 4), (3, 2), (2, 3), (2, 1, 3, 4)),
        (5, 1, 70, 35, 1, (6, 5), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
        (2, 4, 3, 64, 1, (64, 64), (7, 7), (2, 2), (1, 1), (3, 3, 3, 3)),
    ]:
        x, w, b, a = (
            torch.randn(shape).to(dtype)
            for shape in [
                (batch, channels, *size),
                (kernels * outputs, channels // groups, *kernel),
                (batch, outputs),
                (batch, kernels),
            ]
        )
        found.append([x, w, b, a, list(stride), list(padding), list(dilation), groups])
    return found


def hybrid_arguments(dtype):
    """Images and rows. Powers are such that no number of half precision is too large or too small."""
    shapes = [(5, 37, 28, 28), (300, 70), (3, 5, 33)]
    return [
        [torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype), (torch.rand(shape[1]) + 0.5).to(dtype)]
        for shape in shapes
    ]


def extrapolated_arguments(name, dtype):
    """In 1 to 3 dimensions. Weights are such that no number of half precision is too large, and in two cases many."""
    found = []
    for batch, channels, axes in [  # of which each is size, padding and order, before and after
        (4, 64, [(56, 1, 1, 2, 2), (56, 1, 1, 2, 2)]),
        (2, 37, [(30, 2, 1, 1, 2), (31, 0, 3, 3, 1)]),
        (3, 8, [(7, 1, 2, 0, 3), (6, 2, 0, 1, 1), (9, 1, 1, 2, 1)]),
        (5, 16, [(301, 3, 3, 4, 4)]),
        (1, 3, [(40, 200, 3, 1, 1), (5, 0, 0, 0, 0)]),
        (1, 8, [(20, 1, 1, 8, 8), (300, 150, 3, 1, 1)]),
    ]:
        outside = name == "extrapolate_pad_backward"
        size = [axis[0] + (axis[1] + axis[2] if outside else 0) for axis in axes]
        padding, order = [p for axis in axes for p in axis[1:3]], [o for axis in axes for o in axis[3:]]
        found.append([torch.randn(batch, channels, *size).to(dtype), padding, order])
    return found


def arguments(name, dtype):
    """Lists of arguments, tensors in ``dtype`` and on the CPU; those to differentiate by require grad."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = []
    if name == "large_depthwise_conv2d":
        for batch, channels, m, size, kernel, stride, padding in [
            (2, 96, 1, 56, 17, 1, 8),
            (16, 40, 1, 14, 17, 1, 8),
            (33, 24, 1, 7, 7, 1, 3),
            (2, 8, 2, 30, 13, 2, 6),
            (1, 3, 1, 9, 31, 1, 15),
            (1, 2, 1, 224, 7, 1, 3),
        ]:
            x = torch.randn(batch, channels, size, size + 1, dtype=dtype)
            w = torch.randn(channels * m, 1, kernel, kernel, dtype=dtype) / kernel
            b = torch.randn(channels * m, dtype=dtype)
            found.append([x, w, b, [stride, stride], [padding, padding - 1, padding, padding]])
    elif name == "dcls_sparse_depthwise_conv2d":
        for batch, channels, m, size, stride, normalise in [(2, 40, 1, 28, 1, True), (3, 4, 3, 13, 2, False)]:
            weight, P, _ = elements(wide, 2, channels * m, 1, 7)
            x = torch.randn(batch, channels, size, size + 2, dtype=dtype)
            found.append([x, weight, P, [9, 9], [1, 0], normalise, True, [stride, stride], [4, 4, 3, 4]])
    elif name in GUIDED:
        found = guided_arguments(name, dtype)
    elif name == "dynamic_conv2d":
        found = dynamic_arguments(dtype)
    elif name == "hybrid_activation":
        found = hybrid_arguments(dtype)
    elif name in EXTRAPOLATED:
        found = extrapolated_arguments(name, dtype)
    else:
        for dims, axes in [(1, [0]), (2, [1, 0]), (2, [0, 1]), (3, [2, 0, 1])]:
            for outs, ins, count in [(5, 3, 4), (64, 1, 34)]:
                weight, P, SIG = elements(dtype, dims, outs, ins, count)
                size = [9, 8, 7][:dims]
                if name == "dcls_scatter":
                    found += [[weight, P, size, axes, n, r] for n in (True, False) for r in (True, False)]
                else:
                    found += [[weight, P, SIG, size, axes, gaussian, 0.27] for gaussian in (True, False)]
    return [[a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args] for args in found]
