"""Convolutions whose kernels are attended to, placed or generated: ``nn.Module``s and their functional forms.

They need nothing but torch.
"""

from . import functional
from ._base import ConvLayer
from .attention import KernelAttention
from .dcls import Dcls1d, Dcls2d, Dcls3d
from .dynamic import DynamicConv1d, DynamicConv2d, DynamicConv3d

__all__ = [
    "ConvLayer",
    "Dcls1d",
    "Dcls2d",
    "Dcls3d",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "KernelAttention",
    "functional",
]
