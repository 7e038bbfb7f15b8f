"""Convolutions whose kernels are attended to, placed or generated: ``nn.Module``s and their functional forms.

They need nothing but torch.
"""

from . import functional
from ._base import ConvLayer
from .attention import KernelAttention
from .dcls import Dcls1d, Dcls2d, Dcls3d
from .dcls_base import DclsLayer
from .dcls_dilated import DclsDilated1d, DclsDilated2d
from .dcls_mixed import Dcls2_1d, Dcls2dK1d, Dcls3_1d
from .dcls_shared import layers_with_shared_positions
from .dcls_training import clamp_after_step
from .dynamic import DynamicConv1d, DynamicConv2d, DynamicConv3d

__all__ = [
    "ConvLayer",
    "Dcls1d",
    "Dcls2_1d",
    "Dcls2d",
    "Dcls2dK1d",
    "Dcls3_1d",
    "Dcls3d",
    "DclsDilated1d",
    "DclsDilated2d",
    "DclsLayer",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "KernelAttention",
    "clamp_after_step",
    "functional",
    "layers_with_shared_positions",
]
