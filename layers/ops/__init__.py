"""Ops with compiled kernels, one file each beside its plain PyTorch form, and the builder of the kernels."""
