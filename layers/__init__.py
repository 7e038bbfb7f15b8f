"""Convolutions whose kernels are attended to, placed or generated: ``nn.Module``s and their functional forms.

They need nothing but torch.
"""

from . import functional, hybrid, hypernet
from ._base import ConvLayer
from .attended import AttendedConv
from .attention import KernelAttention, OmniAttention, RoutingAttention, Tempered
from .bordered import BorderedConv
from .cond_conv import CondConv2d
from .dcls import Dcls1d, Dcls2d, Dcls3d
from .dcls_base import DclsLayer
from .dcls_dilated import DclsDilated1d, DclsDilated2d
from .dcls_mixed import Dcls2_1d, Dcls2dK1d, Dcls3_1d
from .dcls_shared import layers_with_shared_positions
from .dcls_training import clamp_after_step
from .diff_conv import DiffConv2d, DiffConv2dLayer
from .dynamic import DynamicConv1d, DynamicConv2d, DynamicConv3d
from .explicit_boundary import ExplicitBoundaryConv2d
from .extrapolated import ExtrapolatedConv2d
from .guided import GuidedConv2d, GuidedDepthWiseConv2d
from .guided_base import GuidedLayer
from .guided_channelwise import GuidedChannelWiseConv2d
from .guided_local import GuidedLocalConv2d
from .guided_separable import SeparableGuidedConv2d
from .hybrid_dense import HybridDense
from .hypernet_conv import HypernetConv2d
from .od_conv import ODConv2d
from .padded import PaddedConv1d, PaddedConv2d, PaddedConv3d
from .padding_free import PaddingFreeConv1d, PaddingFreeConv2d, PaddingFreeConv3d
from .partial_conv import PartialConv2d
from .patch_dynamic import PatchDynamicConv2d
from .random_pad import RandomPadConv2d

__all__ = [
    "AttendedConv",
    "BorderedConv",
    "CondConv2d",
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
    "DiffConv2d",
    "DiffConv2dLayer",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "ExplicitBoundaryConv2d",
    "ExtrapolatedConv2d",
    "GuidedChannelWiseConv2d",
    "GuidedConv2d",
    "GuidedDepthWiseConv2d",
    "GuidedLayer",
    "GuidedLocalConv2d",
    "HybridDense",
    "HypernetConv2d",
    "KernelAttention",
    "ODConv2d",
    "OmniAttention",
    "PaddedConv1d",
    "PaddedConv2d",
    "PaddedConv3d",
    "PaddingFreeConv1d",
    "PaddingFreeConv2d",
    "PaddingFreeConv3d",
    "PartialConv2d",
    "PatchDynamicConv2d",
    "RandomPadConv2d",
    "RoutingAttention",
    "SeparableGuidedConv2d",
    "Tempered",
    "clamp_after_step",
    "functional",
    "hybrid",
    "hypernet",
    "layers_with_shared_positions",
]
