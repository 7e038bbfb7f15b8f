"""The functional forms of the layers. Those of DCLS and dynamic layers work in any dimension, told by the shapes."""

from .dcls_conv import dcls_conv
from .dcls_dilated import dcls_dilated_conv
from .dcls_dilated_kernel import construct_dilated_kernel
from .dcls_kernel import construct_kernel
from .dynamic_conv import dynamic_conv, mix_kernels
from .explicit_boundary_conv import explicit_boundary_conv2d
from .extrapolation import extrapolate_pad
from .guided_conv import guided_conv2d, guided_depthwise_conv2d
from .guided_pixelwise import guided_channelwise_conv2d, guided_local_conv2d
from .guided_separable import separable_guided_conv2d
from .hybrid_activation import hybrid_activation
from .hybrid_dense import hybrid_dense
from .large_depthwise import large_depthwise_conv2d
from .od_formula import od_conv2d
from .padding_free_conv import padding_free_conv1d, padding_free_conv2d, padding_free_conv3d
from .partial_convolution import partial_conv2d
from .patch_dynamic_conv import patch_dynamic_conv2d
from .random_padding import random_pad2d, random_pad_conv2d

__all__ = [
    "construct_dilated_kernel",
    "construct_kernel",
    "dcls_conv",
    "dcls_dilated_conv",
    "dynamic_conv",
    "explicit_boundary_conv2d",
    "extrapolate_pad",
    "guided_channelwise_conv2d",
    "guided_conv2d",
    "guided_depthwise_conv2d",
    "guided_local_conv2d",
    "hybrid_activation",
    "hybrid_dense",
    "large_depthwise_conv2d",
    "mix_kernels",
    "od_conv2d",
    "padding_free_conv1d",
    "padding_free_conv2d",
    "padding_free_conv3d",
    "partial_conv2d",
    "patch_dynamic_conv2d",
    "random_pad2d",
    "random_pad_conv2d",
    "separable_guided_conv2d",
]
