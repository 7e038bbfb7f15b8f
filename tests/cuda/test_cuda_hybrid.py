"""Layers that predict kernels for each patch under autocast on a GPU, which sums in single precision there."""

import copy

import pytest
import torch

from convswap.layers import PatchDynamicConv2d

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("order", ["channels", "published"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_dtype_is_that_of_autocast_with_and_without_gradients(dtype, training, order):
    torch.manual_seed(0)
    layer = PatchDynamicConv2d(4, 6, 3, padding=1, hidden=5, patch_order=order, device="cuda").train(training)
    x = torch.randn(3, 4, 9, 9, device="cuda")
    with torch.autocast("cuda", dtype):
        y = copy.deepcopy(layer)(x)
        with torch.no_grad():
            alone = copy.deepcopy(layer)(x)
    assert y.dtype == alone.dtype == dtype
    assert (y - alone).abs().max() <= 0.05 * alone.abs().max()
