from __future__ import annotations

import copy
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import convswap
from convswap.errors import ConvswapError, FileError, ModelError, UnknownNameError
from convswap.files import is_converted_file, read_info, read_tensors
from convswap.sources import Source

from .models import TwoConvs, as_if_trained, library_model

NET = "tests.models:TwoConvs"


@pytest.fixture
def net() -> nn.Module:
    return as_if_trained(TwoConvs()).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


def assert_same_state(actual: nn.Module, expected: nn.Module) -> None:
    ours, theirs = actual.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def forge(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write ``path`` anew with changed metadata."""
    metadata = json.loads(metadata_of(path)["convswap"])
    replaced = change(metadata)
    write_metadata(path, json.dumps(metadata if replaced is None else replaced))


def write_metadata(path: Path, text: str) -> None:
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt", "convswap": text})


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata())


# Bit for bit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["dynamic", "dcls"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_save_and_load_bit_for_bit(net: nn.Module, path: Path, to: str, dtype: torch.dtype) -> None:
    new = convswap.convert(net.to(dtype), to)
    convswap.save(new, path, NET)
    loaded = convswap.load(path, trust_source=True)
    assert type(loaded) is TwoConvs
    assert_same_state(loaded, new)
    assert convswap.report(loaded) == convswap.report(new)
    if dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 3, 9, 9, dtype=dtype)
        assert torch.equal(loaded.eval()(x), new(x))


def test_mixed_precision(net: Any, path: Path) -> None:
    new: Any = convswap.convert(net, "dcls")
    new.conv2.half()
    new.norm.double()
    convswap.save(new, path, NET)
    assert_same_state(convswap.load(path, trust_source=True), new)


def test_trained_state_is_what_is_saved(net: nn.Module, path: Path) -> None:
    new = convswap.convert(net, "dcls").train()
    optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
    new(torch.randn(4, 3, 9, 9)).square().sum().backward()
    optimizer.step()
    convswap.save(new, path, NET)
    assert_same_state(convswap.load(path, trust_source=True), new)


def test_load_into_a_given_model(net: nn.Module, path: Path) -> None:
    new = convswap.convert(net, "dynamic")
    convswap.save(new, path)
    fresh = TwoConvs()
    assert convswap.load(path, model=fresh) is fresh
    assert_same_state(fresh, new)


def test_non_contiguous_tensors(net: Any, path: Path) -> None:
    new: Any = convswap.convert(net.to(memory_format=torch.channels_last), "dynamic", "conv2")
    assert not new.conv1.weight.is_contiguous()
    convswap.save(new, path, NET)
    assert_same_state(convswap.load(path, trust_source=True), new)


def test_loading_leaves_the_global_generator_alone(net: nn.Module, path: Path) -> None:
    convswap.save(convswap.convert(net, "dynamic"), path, NET)
    state = torch.get_rng_state()
    convswap.load(path, trust_source=True)
    assert torch.equal(torch.get_rng_state(), state)


# Tensors that are one ---------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """One weight in two convolutions, one bias in two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.second.weight = self.first.weight
        self.a = nn.Linear(4, 2)
        self.b = nn.Linear(4, 2)
        self.b.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(torch.relu(self.stem(x))))).mean((2, 3))
        return self.a(x) + self.b(x)


def test_tied_tensors_are_stored_once_and_tied_again(path: Path) -> None:
    new: Any = convswap.convert(Tied(), "dynamic")
    assert new.first.weight is new.second.weight
    convswap.save(new, path, "tests.test_files:Tied")
    assert dict(read_info(path).aliases) == {"second.weight": "first.weight", "b.bias": "a.bias"}
    stored = safetensors.torch.load_file(path)
    assert not {"second.weight", "b.bias"} & set(stored)
    loaded: Any = convswap.load(path, trust_source=True)
    assert loaded.first.weight is loaded.second.weight
    assert loaded.a.bias is loaded.b.bias
    assert_same_state(loaded, new)
    assert set(read_tensors(path, read_info(path))) == set(new.state_dict())


def test_tied_tensors_are_no_difference(path: Path) -> None:
    new = convswap.convert(Tied(), "dynamic")
    convswap.save(new, path)
    found = convswap.diff(path, new)
    assert found.distances == ()
    assert found.equal == len(new.state_dict())
    assert {layer.name for layer in found.layers} == set()


class Overlapping(nn.Module):
    """Buffers that are parts of one another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        whole = torch.arange(10.0)
        self.register_buffer("whole", whole)
        self.register_buffer("part", whole[2:6])
        self.register_buffer("strided", whole[::2])
        self.register_buffer("empty", torch.empty(0))
        self.register_buffer("empty_too", torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_overlapping_views(path: Path) -> None:
    new = convswap.convert(Overlapping(), "dcls")
    convswap.save(new, path, "tests.test_files:Overlapping")
    assert dict(read_info(path).aliases) == {}
    assert_same_state(convswap.load(path, trust_source=True), new)


# What cannot be saved ---------------------------------------------------------------------------------------------


class ExtraState(TwoConvs):
    """A model whose state is more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_extra_state_is_refused(tmp_path: Path, path: Path) -> None:
    new = convswap.convert(ExtraState(), "dynamic")
    with pytest.raises(FileError, match="_extra_state of the model's state is a dict, and only tensors can be saved"):
        convswap.save(new, path)
    assert list(tmp_path.iterdir()) == []


def test_meta_tensors_are_refused(tmp_path: Path, path: Path) -> None:
    with torch.device("meta"):
        model = TwoConvs()
    new = convswap.convert(model, "dynamic")
    with pytest.raises(FileError, match=r"conv1.weight is on the meta device and has no numbers to save"):
        convswap.save(new, path)
    assert list(tmp_path.iterdir()) == []


def test_unconverted_model_is_refused(tmp_path: Path, path: Path, net: nn.Module) -> None:
    with pytest.raises(ConvswapError, match="this TwoConvs has not been converted"):
        convswap.save(net, path)
    assert list(tmp_path.iterdir()) == []


def test_source_arguments_must_be_json(tmp_path: Path, path: Path, net: nn.Module) -> None:
    with pytest.raises(FileError, match="cannot be written as JSON"):
        convswap.save(convswap.convert(net, "dcls"), path, NET, source_args={"norm": nn.BatchNorm2d})
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_kept_unless_asked(net: nn.Module, path: Path) -> None:
    path.write_bytes(b"precious")
    new = convswap.convert(net, "dcls")
    with pytest.raises(FileError, match="exists already"):
        convswap.save(new, path, NET)
    assert path.read_bytes() == b"precious"
    convswap.save(new, path, NET, overwrite=True)
    assert_same_state(convswap.load(path, trust_source=True), new)


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_permissions_follow_the_umask(net: nn.Module, path: Path) -> None:
    before = os.umask(0o027)
    try:
        convswap.save(convswap.convert(net, "dcls"), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_unknown_source_is_refused(net: nn.Module, path: Path) -> None:
    with pytest.raises(UnknownNameError, match="names no model"):
        convswap.save(convswap.convert(net, "dcls"), path, "resnet50")


# Where the architecture comes from --------------------------------------------------------------------------------


def timm_model(**args: Any) -> Any:
    return library_model("timm:test_resnet", **args)


def test_source_of_timm_models_is_inferred(path: Path) -> None:
    new = convswap.convert(timm_model(), "dcls", "layer1.*")
    convswap.save(new, path)
    assert read_info(path).source == Source("timm", "test_resnet", {})
    assert_same_state(convswap.load(path), new)


def test_source_with_another_number_of_classes(path: Path) -> None:
    new = convswap.convert(timm_model(num_classes=7), "dcls", "layer1.*")
    convswap.save(new, path)
    assert read_info(path).source == Source("timm", "test_resnet", {"num_classes": 7})
    assert_same_state(convswap.load(path), new)


def test_source_after_another_classifier_was_put_there(path: Path) -> None:
    """The same tensors as a model built with that number of classes: it may be inferred."""
    model = timm_model()
    model.reset_classifier(5)
    new = convswap.convert(model, "dcls", "layer1.*")
    convswap.save(new, path)
    assert read_info(path).source == Source("timm", "test_resnet", {"num_classes": 5})
    assert_same_state(convswap.load(path), new)


def another_head(model: Any) -> None:
    model.fc = nn.Sequential(nn.Linear(model.num_features, 8), nn.ReLU(), nn.Linear(8, 3))


def another_stem(model: Any) -> None:
    model.conv1[0] = nn.Conv2d(1, model.conv1[0].out_channels, 3, stride=2, padding=1, bias=False)


def another_module(model: Any) -> None:
    model.extra = nn.Linear(2, 2)


@pytest.mark.parametrize("to", ["dynamic", "dcls"])
@pytest.mark.parametrize("change", [another_head, another_stem, another_module])
def test_source_of_a_changed_architecture_is_not_inferred(path: Path, change: Callable[[Any], None], to: str) -> None:
    model = timm_model()
    change(model)
    new = convswap.convert(model, to)
    convswap.save(new, path)
    assert read_info(path).source is None
    with pytest.raises(ConvswapError, match=r"does not say what builds its architecture \(ResNet\)"):
        convswap.load(path)
    fresh = timm_model()
    change(fresh)
    assert_same_state(convswap.load(path, model=fresh), new)


def test_source_with_other_input_channels_is_not_inferred(path: Path) -> None:
    new = convswap.convert(timm_model(in_chans=1), "dcls")
    convswap.save(new, path)
    assert read_info(path).source is None


def test_torchvision_source_with_arguments(path: Path) -> None:
    model = library_model("torchvision:squeezenet1_1", num_classes=4)
    new = convswap.convert(model, "dcls", "features.3.*")
    convswap.save(new, path, "torchvision:squeezenet1_1", source_args={"num_classes": 4})
    assert_same_state(convswap.load(path), new)


SIDE_EFFECT = """
from pathlib import Path
from tests.models import TwoConvs

Path(__file__).with_name("imported").touch()


def net():
    return TwoConvs()
"""


@pytest.fixture
def code_file(tmp_path: Path, path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A converted file whose source is code that leaves a trace when it is imported; gives the trace's path."""
    (tmp_path / "side_effect_models.py").write_text(SIDE_EFFECT)
    monkeypatch.syspath_prepend(tmp_path)
    convswap.save(convswap.convert(net, "dcls"), path, "side_effect_models:net")
    yield tmp_path / "imported"
    monkeypatch.delitem(sys.modules, "side_effect_models", raising=False)


def test_code_that_a_file_names_is_not_imported(path: Path, code_file: Path, net: nn.Module) -> None:
    read_info(path)
    with pytest.raises(
        ConvswapError, match=r"side_effect_models:net builds its architecture, which would import"
    ) as told:
        convswap.load(path)
    assert "load(path, trust_source=True)" in str(told.value)
    convswap.load(path, model=copy.deepcopy(net))
    convswap.diff(path, path)
    assert not code_file.exists()


def test_code_that_is_trusted_is_run(path: Path, code_file: Path) -> None:
    assert isinstance(convswap.load(path, trust_source=True), TwoConvs)
    assert code_file.exists()


@pytest.mark.parametrize("library", ["os.path", ".models", "", "tests.models\0"])
def test_code_that_is_none(path: Path, net: nn.Module, library: str) -> None:
    convswap.save(convswap.convert(net, "dcls"), path, NET)
    forge(path, lambda data: data["source"].update(library=library))
    with pytest.raises((UnknownNameError, ModelError)):
        convswap.load(path, trust_source=True)


# Files that do not fit, damaged files -----------------------------------------------------------------------------


@pytest.fixture
def saved(path: Path, net: nn.Module) -> Path:
    convswap.save(convswap.convert(net, "dynamic", example_inputs=(3, 9, 9), verify=(3, 9, 9)), path, NET)
    return path


def test_converted_files_are_told_apart(saved: Path, tmp_path: Path) -> None:
    assert is_converted_file(saved)
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    assert not is_converted_file(tmp_path / "plain.safetensors")
    assert not is_converted_file(tmp_path / "gone.safetensors")
    assert not is_converted_file(tmp_path)
    (tmp_path / "net.pth").write_bytes(b"")
    assert not is_converted_file(tmp_path / "net.pth")


def test_model_of_another_width(saved: Path) -> None:
    with pytest.raises(FileError, match=r"does not fit the architecture TwoConvs:\n  of another shape: conv1.weight"):
        convswap.load(saved, model=TwoConvs(4))


def test_wider_model(saved: Path) -> None:
    with pytest.raises(FileError, match=r"does not fit TwoConvs: there its recipe asks for \d+ parameters"):
        convswap.load(saved, model=TwoConvs(16))


def test_model_that_lacks_a_convolution(saved: Path) -> None:
    def rename(data: dict[str, Any]) -> None:
        data["report"]["recipe"]["steps"][0]["name"] = "conv3"

    forge(saved, rename)
    with pytest.raises(ConvswapError, match=r"the recipe converts 'conv3', and TwoConvs has no .* Did you mean 'conv"):
        convswap.load(saved, model=TwoConvs())


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("dynamic", {"kernels": 10**9}),
        ("dynamic", {"kernels": 10**17}),
        ("dynamic", {"kernels": 10**30}),
        ("dcls", {"kernel_count": 10**9}),
        ("dcls", {"kernel_count": 10**17}),
        ("dcls", {"kernel_count": 10**30}),
        ("dcls", {"dilated_kernel_size": [2, 2]}),
        ("dcls", {"dilated_kernel_size": [8, 8]}),
        ("dcls", {"dilated_kernel_size": [7, 7, 7]}),
        ("dcls", {"dilated_kernel_size": [10**30 + 1, 7]}),
    ],
)
def test_recipe_of_absurd_sizes(net: nn.Module, path: Path, to: str, options: dict[str, Any]) -> None:
    convswap.save(convswap.convert(net, to, "conv2"), path, NET)

    def enlarge(data: dict[str, Any]) -> None:
        data["report"]["recipe"]["steps"][0]["options"].update(options)

    forge(path, enlarge)
    start = time.perf_counter()
    with pytest.raises(ConvswapError, match=r"asks for|conv2 cannot be converted to"):
        convswap.load(path, model=TwoConvs())
    assert time.perf_counter() - start < 5


def test_failed_loading_leaves_the_given_model_unconverted(saved: Path) -> None:
    def enlarge(data: dict[str, Any]) -> None:
        data["report"]["recipe"]["steps"][0]["options"]["kernels"] = 10**9

    forge(saved, enlarge)
    model = TwoConvs()
    with pytest.raises(FileError, match="its recipe asks for"):
        convswap.load(saved, model=model)
    assert type(model.conv2) is nn.Conv2d


def test_other_versions(saved: Path) -> None:
    forge(saved, lambda data: data.update(version=2))
    with pytest.raises(FileError, match="is of version 2, and this convswap reads version 1"):
        read_info(saved)


@pytest.mark.parametrize("part", ["report", "recipe"])
def test_other_versions_of_parts(saved: Path, part: str) -> None:
    forge(saved, lambda data: (data["report"] if part == "report" else data["report"]["recipe"]).update(version=7))
    with pytest.raises(FileError, match=rf"damaged metadata: .*{part}.* version"):
        read_info(saved)


def test_alias_of_what_is_not_there(saved: Path) -> None:
    forge(saved, lambda data: data["aliases"].update({"head.bias": "nowhere"}))
    with pytest.raises(FileError, match=r"is damaged: head.bias is stored as nowhere, which is not there"):
        convswap.load(saved, model=TwoConvs())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
on_files = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@on_files
@given(text=st.text(max_size=40).filter(lambda text: text.isprintable()) | JSON_VALUES.map(json.dumps))
def test_arbitrary_metadata(tmp_path: Path, text: str) -> None:
    path = tmp_path / "forged.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"convswap": text})
    with pytest.raises(FileError, match=r"damaged metadata|is of version"):
        read_info(path)


def test_metadata_that_is_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "deep.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"convswap": "[" * 100_000 + "]" * 100_000})
    with pytest.raises(FileError, match="damaged metadata"):
        read_info(path)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values within JSON data."""
    yield here
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*here, key))


def put(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """``data`` with ``value`` at ``place``."""
    if not place:
        return value
    held = data
    for key in place[:-1]:
        held = held[key]
    held[place[-1]] = value
    return data


@settings(on_files, max_examples=150)
@given(data=st.data())
def test_metadata_with_one_damaged_value(saved_once: tuple[Path, str], data: st.DataObject) -> None:
    """It is refused, or what is read can be shown and, for whoever trusts it, loaded or refused."""
    path, text = saved_once
    metadata = json.loads(text)
    place = data.draw(st.sampled_from(list(places(metadata))))
    write_metadata(path, json.dumps(put(metadata, place, data.draw(JSON_VALUES))))
    try:
        info = read_info(path)
    except FileError:
        return
    for show in (str, type(info.report).to_html, type(info.report).to_markdown, type(info.report).to_json):
        assert isinstance(show(info.report), str)
    try:
        convswap.load(path, model=TwoConvs(2))
    except ConvswapError:
        return


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small converted file with a verification, and its metadata."""
    path = tmp_path_factory.mktemp("files") / "small.safetensors"
    convswap.save(convswap.convert(TwoConvs(2), "dynamic", example_inputs=(3, 6, 6), verify=(3, 6, 6)), path, NET)
    return path, metadata_of(path)["convswap"]


def test_a_model_that_does_not_fit_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    convswap.save(convswap.convert(TwoConvs(), to="dcls", where="conv2"), path)
    other = TwoConvs(channels=4)
    kinds = [type(module) for module in other.modules()]
    with pytest.raises(FileError, match=r"does not fit"):
        convswap.load(path, model=other)
    assert [type(module) for module in other.modules()] == kinds
