import pytest

from convswap.layers.ops._load import load_kernels


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    """The compiled kernels are in use wherever they may be: ``CONVSWAP_KERNELS=off`` tests the plain forms."""
    load_kernels("cpu")
