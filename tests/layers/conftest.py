import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quiet_oracle() -> Iterator[None]:
    """The DCLS package logs on the root logger, once for every layer, that it runs without its own CUDA kernels."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
