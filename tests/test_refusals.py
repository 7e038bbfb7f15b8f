from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import convswap
from convswap.errors import ModelError

from .models import TwoConvs


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got dict"):
        convswap.convert({}, to="dynamic")  # type: ignore[arg-type]


def test_compiled() -> None:
    with pytest.raises(ModelError, match=r"torch.compile: convert model._orig_mod"):
        convswap.convert(torch.compile(TwoConvs()), to="dynamic")


def test_compiled_in_place() -> None:
    model = TwoConvs()
    model.compile()
    with pytest.raises(ModelError, match=r"compiled in place"):
        convswap.convert(model, to="dynamic")


@pytest.mark.filterwarnings("ignore")
def test_scripted_and_traced() -> None:
    for scripted in (
        torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1))),
        torch.jit.trace(TwoConvs(), torch.ones(2, 3, 8, 8)),
    ):
        with pytest.raises(ModelError, match=r"TorchScript module"):
            convswap.convert(scripted, to="dynamic")


def test_data_parallel() -> None:
    with pytest.raises(ModelError, match=r"DataParallel: convert model.module"):
        convswap.convert(nn.DataParallel(TwoConvs()), to="dynamic")


def test_a_wrapped_part_is_named() -> None:
    with pytest.raises(ModelError, match=r"the model's part '1' is wrapped in DataParallel"):
        convswap.convert(nn.Sequential(nn.ReLU(), nn.DataParallel(TwoConvs())), to="dynamic")


@pytest.fixture
def process_group():  # type: ignore[no-untyped-def]
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_wrappers() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    with pytest.raises(ModelError, match=r"DistributedDataParallel: convert model.module"):
        convswap.convert(DistributedDataParallel(TwoConvs()), to="dynamic")
    sharded = TwoConvs()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    fully_shard(sharded, mesh=mesh)
    with pytest.raises(ModelError, match=r"fully_shard.*convert before sharding"):
        convswap.convert(sharded, to="dynamic")
