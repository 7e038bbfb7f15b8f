"""The functional forms of the layers. They work in one, two or three dimensions, as told by the shapes given."""

from .dcls_conv import dcls_conv
from .dcls_dilated import dcls_dilated_conv
from .dcls_dilated_kernel import construct_dilated_kernel
from .dcls_kernel import construct_kernel
from .dynamic_conv import dynamic_conv, mix_kernels
from .large_depthwise import large_depthwise_conv2d

__all__ = [
    "construct_dilated_kernel",
    "construct_kernel",
    "dcls_conv",
    "dcls_dilated_conv",
    "dynamic_conv",
    "large_depthwise_conv2d",
    "mix_kernels",
]
