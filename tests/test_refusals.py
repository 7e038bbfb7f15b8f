from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch
from torch import nn

import convswap
from convswap.errors import ModelError, NothingToSwapError

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
    held = nn.Sequential(nn.ReLU(), nn.DataParallel(TwoConvs()))
    with pytest.raises(
        ModelError, match=r"the model's part '1' is wrapped in DataParallel: convert model.get_submodule\('1'\).module,"
    ):
        convswap.convert(held, to="dynamic")
    outer = nn.Module()
    outer.net = nn.Module()
    outer.net.body = torch.compile(TwoConvs())
    with pytest.raises(ModelError, match=r"part 'net.body' is wrapped .*: convert model.net.body._orig_mod, then"):
        convswap.convert(outer, to="dynamic")


@pytest.mark.parametrize(
    "kind", ["timm.utils:ModelEmaV2", "timm.utils:ModelEmaV3", "torch.optim.swa_utils:AveragedModel"]
)
def test_averages_of_weights(kind: str) -> None:
    """They pair their tensors with the other model's by place: with a converted one, wrongly and without a word."""
    module, _, name = kind.partition(":")
    model = TwoConvs()
    average = getattr(importlib.import_module(module), name)(model)
    with pytest.raises(ModelError, match=r"an average .* convert that model, then .* or convert model.module"):
        convswap.convert(average, to="dynamic")
    assert convswap.report(convswap.convert(average.module, to="dynamic")).swaps
    holder = nn.Module()
    holder.net, holder.ema = model, average
    with pytest.raises(ModelError, match=r"the model's part 'ema' is an average .* or convert model.ema.module, if"):
        convswap.convert(holder, to="dynamic")


@pytest.mark.parametrize("kind", ["timm.utils:ModelEmaV3", "torch.optim.swa_utils:AveragedModel"])
@pytest.mark.parametrize("back", [convswap.freeze, convswap.revert])
def test_averages_of_converted_models_become_plain(kind: str, back: Any) -> None:
    module, _, name = kind.partition(":")
    average = getattr(importlib.import_module(module), name)(convswap.convert(TwoConvs(), to="dcls").eval())
    plain = back(average)
    assert type(plain) is type(average)
    assert type(plain.module.conv2) is nn.Conv2d
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(plain.eval()(x), average.eval()(x))


def test_the_oldest_average_of_timm_is_no_module() -> None:
    average = importlib.import_module("timm.utils").ModelEma(TwoConvs())
    with pytest.raises(ModelError, match=r"an average .* or convert model.ema, if the average is all that is wanted"):
        convswap.convert(average, to="dynamic")
    assert convswap.report(convswap.convert(average.ema, to="dynamic")).swaps


def test_exported() -> None:
    program = torch.export.export(TwoConvs().eval(), (torch.ones(2, 3, 8, 8),))
    for exported in (program, program.module(), torch.export.unflatten(program)):
        with pytest.raises(ModelError, match=r"torch.export, its code fixed: convert the eager model"):
            convswap.convert(exported, to="dynamic")  # type: ignore[arg-type]


def test_wrapped_for_checkpointing() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = nn.Sequential(checkpoint_wrapper(TwoConvs()))
    with pytest.raises(ModelError, match=r"the model's part '0' is wrapped for activation .* convert before wrapping"):
        convswap.convert(model, to="dynamic")
    new = convswap.convert(nn.Sequential(TwoConvs()), to="dynamic").train()
    x = torch.randn(2, 3, 8, 8)
    expected = new(x)
    new[0] = checkpoint_wrapper(new[0])
    torch.testing.assert_close(new(x), expected)


class Scaled(nn.Module):
    """A wrapper as people write them, which passes on everything."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs) * self.scale

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def test_wrappers_of_ones_own() -> None:
    model, x = Scaled(TwoConvs()).eval(), torch.randn(2, 3, 8, 8)
    new = convswap.convert(model, to="dynamic", example_inputs=(3, 8, 8))
    assert [swap.name for swap in convswap.report(new).swaps] == ["inner.conv2"]
    torch.testing.assert_close(new(x), model(x))
    assert new.conv2 is new.inner.conv2


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning")
def test_quantised_convolutions_are_none_to_convert() -> None:
    """But those beside them are."""
    quantised = torch.ao.nn.quantized.Conv2d(3, 3, 1)
    with pytest.raises(NothingToSwapError, match=r"no convolution to convert"):
        convswap.convert(nn.Sequential(quantised), to="dynamic")
    new = convswap.convert(nn.Sequential(quantised, TwoConvs()), to="dynamic", convert_first=True)
    assert [swap.name for swap in convswap.report(new).swaps] == ["1.conv1", "1.conv2"]
    assert isinstance(new[0], torch.ao.nn.quantized.Conv2d)


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
    spread = TwoConvs()
    spread.head.weight = nn.Parameter(torch.distributed.tensor.distribute_tensor(spread.head.weight.detach(), mesh))
    with pytest.raises(ModelError, match=r"part 'head' has a parameter 'weight' that is spread over processes"):
        convswap.convert(spread, to="dynamic")
