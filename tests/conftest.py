from __future__ import annotations

import pytest
import torch

from convswap.layers.ops._load import load_kernels


@pytest.fixture(autouse=True, scope="session")
def _kernels() -> None:
    """Compiled once and ahead, so that no test's output or time has it in it. ``CONVSWAP_KERNELS=off`` does without."""
    load_kernels("cpu")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
