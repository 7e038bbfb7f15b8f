"""DDP, FSDP2 and distributed checkpoints on two processes of this machine: the same as one process with all samples."""

import copy
import os
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import convswap

from ..fresh_process import FORKING
from ..guided import awake
from ..models import TwoConvs
from .models import assert_same, converted, gradients, images

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

PROCESSES = 2
MIXED = "timm:test_efficientnet"
CASES = ("mixed", "routed", "small")


def start_of(case):
    """A model of timm with all kinds of targets, or a small one of our own: with a guide from its stem, or without."""
    if case == "mixed":
        return converted(MIXED)
    torch.manual_seed(0)
    model = TwoConvs().double().eval()
    if case == "routed":
        return awake(convswap.convert(model, "guided", "conv2", guide="conv1", example_inputs=(3, 48, 48)))
    rules = [convswap.Swap("conv1", "dynamic"), convswap.Swap("conv2", "dcls", version="v1")]
    return awake(convswap.convert(model, rules, example_inputs=(3, 48, 48)))


def source(case):
    return {"source": MIXED, "source_args": {"num_classes": 10}} if case == "mixed" else {}


def with_names(parameters):
    return {name.removeprefix("module."): whole(value) for name, value in parameters.items()}


def whole(value):
    value = value.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def step(model, x, lr):
    """The gradients, and the parameters after a step along them."""
    found = gradients(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for name, parameter in model.named_parameters():
        parameter.grad = found.get(name)
    optimizer.step()
    optimizer.zero_grad()
    return with_names(found), with_names(dict(model.named_parameters()))


def in_process(rank, folder):
    from torch.nn.parallel import DistributedDataParallel

    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES, init_method=f"file://{Path(folder) / 'store'}")
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    same_start(rank)
    for name in CASES:
        start = torch.load(Path(folder) / f"{name}.start", weights_only=False)
        x = images(4)
        half = x.chunk(PROCESSES)[rank]
        alone = copy.deepcopy(start)
        lr = 0.01 / max(float(grad.abs().max()) for grad in gradients(alone, x).values())
        expected, after = step(alone, x, lr)
        for key in convswap.new_parameters(alone):
            assert not torch.equal(after[key], start.get_parameter(key)), key

        parallel = DistributedDataParallel(copy.deepcopy(start))
        sharded = shard(copy.deepcopy(start), mesh)
        for model in (parallel, sharded):
            found, then = step(model, half, lr)
            assert_same(found, expected, 1e-8)
            assert_same(then, after, 1e-8)
        checkpoints(rank, Path(folder), name, start, alone, sharded)
    (Path(folder) / f"done.{rank}").touch()
    while not all((Path(folder) / f"done.{other}").exists() for other in range(PROCESSES)):
        time.sleep(0.01)
    os._exit(0)  # gloo's threads do not always survive the end of an interpreter


def same_start(rank):
    """All ranks convert to the same numbers, whatever was drawn before."""
    torch.manual_seed(rank)
    new = converted(MIXED, "fresh")
    for key, value in new.state_dict().items():
        first = value.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, value), key


def shard(model, mesh):
    """FSDP2, with a group of its own for each part with several layers."""
    from torch.distributed.fsdp import fully_shard

    for part in model.children():
        if len(list(part.modules())) > 8:
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def checkpoints(rank, folder, name, start, alone, sharded):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

    expected = alone.state_dict()
    full = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    assert_same(dict(full), dict(expected), 1e-8)
    if rank == 0:  # a file of ours from what was gathered
        gathered = copy.deepcopy(start)
        gathered.load_state_dict(full)
        convswap.save(gathered, folder / f"{name}.safetensors", **source(name))
        torch.save(expected, folder / f"{name}.expected")
    state = get_model_state_dict(sharded)
    dcp.save({"model": state}, checkpoint_id=folder / f"{name}.sharded")
    # and back: from a checkpoint that one process wrote, and from a whole state dict
    dcp.load({"model": state}, checkpoint_id=folder / f"{name}.single")
    set_model_state_dict(sharded, state)
    assert_same(with_names(dict(sharded.named_parameters())), with_names(dict(start.named_parameters())), 0)
    set_model_state_dict(sharded, expected, options=StateDictOptions(full_state_dict=True))
    assert_same(with_names(dict(sharded.named_parameters())), with_names(dict(alone.named_parameters())), 0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_two_processes(tmp_path):
    import torch.distributed.checkpoint as dcp

    for name in CASES:
        start = start_of(name)
        torch.save(start, tmp_path / f"{name}.start")
        dcp.save({"model": start.state_dict()}, checkpoint_id=tmp_path / f"{name}.single", no_dist=True)
    # Forks of a process that has torch and no other threads.
    mp.start_processes(in_process, (str(tmp_path),), nprocs=PROCESSES, start_method=FORKING)
    assert all((tmp_path / f"done.{rank}").exists() for rank in range(PROCESSES))
    for name in CASES:
        expected = torch.load(tmp_path / f"{name}.expected")
        model = start_of(name)
        assert not all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
        state = model.state_dict()
        dcp.load({"model": state}, checkpoint_id=tmp_path / f"{name}.sharded", no_dist=True)
        model.load_state_dict(state)
        fresh = {} if name == "mixed" else {"model": TwoConvs()}
        for other in (model, convswap.load(tmp_path / f"{name}.safetensors", **fresh)):
            assert_same(dict(other.state_dict()), dict(expected), 1e-8)
