"""Layers whose parameters are sharded over processes, as FSDP does: clamping and freezing."""

import copy
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from convswap.layers import Dcls1d, Dcls2d, Dcls3_1d, Dcls3d, DclsDilated1d, DclsDilated2d, clamp_after_step

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

PROCESSES = 2


def layers():
    torch.manual_seed(0)
    return [
        Dcls1d(3, 4, 5, version="gauss"),
        Dcls2d(3, 4, 5),
        Dcls2d(3, 4, 5, dilated_kernel_size=(7, 9), version="max"),
        Dcls2d(3, 4, 5, dilated_kernel_size=(7, 9), version="v0", bias=False),
        Dcls3d(3, 4, 5, dilated_kernel_size=(3, 5, 4)),
        Dcls3_1d(3, 4, 5, dense_kernel_size=(2, 1)),
        DclsDilated1d(3, 4, 3, dilation=4),
        DclsDilated2d(3, 4, (3, 2), dilation=(2, 3)),
        DclsDilated2d(3, 4, 3, dilation=4, gain=0.3, shared_positions=True),
    ]


def push(layer, amount):
    """Every position by ``amount`` away from the middle, in the way an optimiser writes."""
    with torch.no_grad():
        layer.P.add_(layer.P.sign(), alpha=amount)


def compare_with_whole(process, file):
    from torch.distributed.fsdp import fully_shard  # where it runs

    dist.init_process_group("gloo", rank=process, world_size=PROCESSES, init_method=f"file://{file}")
    for whole in layers():
        sharded = copy.deepcopy(whole)
        model = nn.Sequential(sharded)
        fully_shard(model, mesh=dist.init_device_mesh("cpu", (PROCESSES,)))
        for layer, owner in ((whole, whole), (sharded, model)):
            optimiser = torch.optim.SGD(owner.parameters(), lr=0.0)
            clamp_after_step(optimiser, owner)
            push(layer, 100.0)
            for parameter in owner.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimiser.step()
        assert torch.equal(sharded.P.full_tensor(), whole.P), whole
        assert whole.P.abs().max() < 50, whole
        frozen, expected = sharded.freeze(), whole.freeze()
        assert type(frozen) is type(expected), whole
        assert frozen.state_dict().keys() == expected.state_dict().keys(), whole
        for name, value in expected.state_dict().items():
            assert torch.equal(frozen.state_dict()[name], value), (whole, name)
        assert hasattr(sharded.P, "full_tensor"), whole  # and stays sharded
    Path(f"{file}.{process}").touch()
    while not all(Path(f"{file}.{other}").exists() for other in range(PROCESSES)):
        time.sleep(0.01)
    os._exit(0)  # gloo's threads do not always survive the end of an interpreter


def test_sharded_layer_clamps_and_freezes_as_a_whole_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVSWAP_KERNELS", "off")  # nothing to do with them, and each process would load them
    mp.spawn(compare_with_whole, (str(tmp_path / "store"),), nprocs=PROCESSES)
    assert all((tmp_path / f"store.{process}").exists() for process in range(PROCESSES))
