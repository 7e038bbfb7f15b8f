"""The functional forms of the layers. They work in one, two or three dimensions, as told by the shapes given."""

from .dcls import dcls_conv
from .dcls_kernel import construct_kernel
from .dynamic_conv import dynamic_conv, mix_kernels

__all__ = ["construct_kernel", "dcls_conv", "dynamic_conv", "mix_kernels"]
