"""The schedule of temperatures."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convswap
from convswap import TemperatureSchedule
from convswap.errors import ConvswapError, OptionError
from convswap.layers import DynamicConv2d
from convswap.layers.attention import Tempered

from .models import TwoConvs

NET = "tests.models:TwoConvs"


def dynamic() -> nn.Module:
    return convswap.convert(TwoConvs(), "dynamic", convert_first=True)


def temperatures(model: nn.Module) -> list[float]:
    return [module.temperature.item() for module in model.modules() if isinstance(module, Tempered)]


def test_published_schedule() -> None:
    model = dynamic()
    schedule = TemperatureSchedule(model)
    for epoch in range(1, 14):
        expected = 30 - 29 * (min(epoch, 10) - 1) / 9  # LAYERS: T(e) = 30 - 29 (min(e, 10) - 1) / 9
        assert temperatures(model) == pytest.approx([expected] * 2, rel=1e-6)
        assert schedule.get_last_temperature() == pytest.approx(expected, rel=1e-12)
        assert schedule.last_epoch == epoch - 1
        schedule.step()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 10.0, "end": 2.0, "epochs": 3}, [10, 6, 2, 2]),
        ({"start": 10.0, "end": 2.0, "epochs": 1}, [2, 2]),
        ({"start": 1.0, "end": 3.0, "epochs": 2}, [1, 3, 3]),
        ({"start": 10.0, "end": 2.0, "epochs": 3, "last_epoch": 0}, [6, 2, 2]),
        ({"start": 5, "end": 5}, [5, 5]),
    ],
)
def test_options(options: dict[str, Any], expected: list[float]) -> None:
    model = dynamic()
    schedule = TemperatureSchedule(model, **options)
    for value in expected:
        assert temperatures(model) == [value] * 2
        schedule.step()


def test_attention_sharpens() -> None:
    layer = DynamicConv2d(4, 4, 3)
    x = torch.randn(3, 4, 5, 5)
    schedule = TemperatureSchedule(layer, epochs=2)
    flat = layer.attentions(x)["kernel"]
    schedule.step()
    sharp = layer.attentions(x)["kernel"]
    assert (sharp.amax(1) > flat.amax(1)).all()


@pytest.mark.parametrize("wrap", ["module", "sequential", "compiled"])
def test_wrapped_and_compiled_models(wrap: str) -> None:
    model = dynamic().eval()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    wrapped: Any = {
        "module": Wrapper,
        "sequential": nn.Sequential,
        "compiled": lambda module: torch.compile(module, backend=backend),
    }[wrap](model)
    buffers = [*model.buffers()]
    schedule = TemperatureSchedule(wrapped, 8.0, 2.0, 4)
    if wrap == "compiled":
        with torch.no_grad():
            x = torch.randn(2, 3, 8, 8)
            for parameter in convswap.new_parameters(model).values():
                parameter.copy_(torch.randn(parameter.shape))
            first = wrapped(x)
            schedule.step()
            assert not torch.equal(wrapped(x), first)
            assert torch.allclose(wrapped(x), model(x), atol=1e-5)
        assert len(graphs) == 1
    else:
        schedule.step()
    assert temperatures(model) == [6.0, 6.0]
    assert all(one is other for one, other in zip(model.buffers(), buffers, strict=True))  # as captured graphs need it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype: torch.dtype) -> None:
    model = dynamic().to(dtype)
    schedule = TemperatureSchedule(model)
    schedule.step()
    expected = 30 - 29 / 9
    assert temperatures(model) == pytest.approx([expected] * 2, rel=torch.finfo(dtype).eps)
    model.float()  # which puts other buffers in their places
    schedule.step()
    assert temperatures(model) == pytest.approx([30 - 2 * 29 / 9] * 2)


def test_meta_device() -> None:
    model = dynamic().to("meta")
    schedule = TemperatureSchedule(model)
    schedule.step()
    assert schedule.get_last_temperature() == pytest.approx(30 - 29 / 9)
    assert all(buffer.is_meta for buffer in model.buffers())


def test_resumes_from_state_dicts() -> None:
    model = dynamic()
    schedule = TemperatureSchedule(model, 20.0, 2.0, 7)
    for _ in range(3):
        schedule.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "schedule": schedule.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    again = dynamic()
    resumed = TemperatureSchedule(again)
    again.load_state_dict(saved["model"])
    assert temperatures(again) == [11.0, 11.0]
    TemperatureSchedule(again)  # setting others
    resumed.load_state_dict(saved["schedule"])
    assert temperatures(again) == [11.0, 11.0]
    assert resumed.state_dict() == schedule.state_dict()
    for one in (schedule, resumed):
        one.step()
    assert temperatures(again) == temperatures(model) == [8.0, 8.0]


def test_copies_have_their_own_model() -> None:
    model = dynamic()
    schedule = TemperatureSchedule(model, 4.0, 2.0, 2)
    copied = copy.deepcopy(schedule)
    copied.step()
    assert temperatures(model) == [4.0, 4.0]
    assert temperatures(copied.model) == [2.0, 2.0]


@pytest.mark.parametrize("state", [{}, {"start": 1.0}, {"start": 1, "end": 1, "epochs": 1, "last_epoch": 0, "lr": 1}])
def test_states_of_something_else(state: dict[str, Any]) -> None:
    schedule = TemperatureSchedule(dynamic())
    with pytest.raises(ConvswapError, match="the state of a TemperatureSchedule has start, end, epochs, last_epoch"):
        schedule.load_state_dict(state)
    assert schedule.get_last_temperature() == 30.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_epoch": -1}, "last_epoch must be at least 0, got -1"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"start": "a"}, "start must be a number, got 'a'"),
        ({"last_epoch": 2.0}, r"last_epoch must be a whole number, got 2\.0"),
        ({"end": 1e-60}, "end=1e-60 is no temperature that torch.float32 can hold"),
    ],
)
def test_states_that_cannot_be_change_nothing(change: dict[str, Any], message: str) -> None:
    model = dynamic()
    schedule = TemperatureSchedule(model, 8.0, 2.0, 4)
    state = schedule.state_dict()
    with pytest.raises(OptionError, match=message):
        schedule.load_state_dict({"start": 5.0, "end": 3.0, "epochs": 2, "last_epoch": 1} | change)
    assert schedule.state_dict() == state
    assert temperatures(model) == [8.0, 8.0]


def test_what_is_no_model() -> None:
    with pytest.raises(OptionError, match=r"model must be an nn\.Module, got str"):
        TemperatureSchedule("net")  # type: ignore[arg-type]


def test_temperatures_travel_in_files(tmp_path: Path) -> None:
    model = dynamic()
    schedule = TemperatureSchedule(model)
    schedule.step()
    convswap.save(model, tmp_path / "net.safetensors", NET)
    loaded = convswap.load(tmp_path / "net.safetensors", trust_source=True)
    assert temperatures(loaded) == temperatures(model) == pytest.approx([30 - 29 / 9] * 2)


@pytest.mark.parametrize("model", [TwoConvs(), convswap.convert(TwoConvs(), "dcls")])
def test_models_without_temperatures(model: nn.Module) -> None:
    with pytest.raises(ConvswapError, match="TwoConvs has no layer whose attention has a temperature: convert it to"):
        TemperatureSchedule(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.0}, "start must be positive and finite, got 0.0"),
        ({"start": float("nan")}, "got nan"),
        ({"end": -1.0}, "end must be positive and finite, got -1.0"),
        ({"end": float("inf")}, "got inf"),
        ({"end": 1e-9}, "end=1e-09 is no temperature that torch.float16 can hold"),
        ({"start": 1e6}, "start=1000000.0 is no temperature that torch.float16"),
        ({"start": "30"}, "start must be a number, got '30'"),
        ({"start": None}, "start must be a number, got None"),
        ({"start": 1j}, "start must be a number, got 1j"),
        ({"end": True}, "end must be a number, got True"),
        ({"end": 10**400}, "end must be positive and finite, got 1000"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, "got 2.5"),
        ({"epochs": True}, "got True"),
        ({"last_epoch": -2}, "last_epoch must be at least -1, got -2"),
    ],
)
def test_values_that_cannot_be(options: dict[str, Any], message: str) -> None:
    model = dynamic().half()
    with pytest.raises(OptionError, match=message):
        TemperatureSchedule(model, **options)
    assert temperatures(model) == [1.0, 1.0]
