from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from convswap.errors import ConvswapError, FileError
from convswap.input_files import read_input

from .models import TwoConvs, library_model


def write(path: Path, x: Tensor) -> Path:
    if path.suffix == ".npy":
        np.save(path, x.numpy())
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file({"x": x}, path)
    else:
        torch.save(x, path)
    return path


@pytest.mark.parametrize("name", ["x.npy", "x.pt", "x.pth", "x.safetensors", "X.NPY", "x.PT"])
def test_tensors(tmp_path: Path, name: str) -> None:
    x = torch.randn(2, 3, 4, 4)
    path = tmp_path / name
    if name == "X.NPY":  # numpy would add another suffix
        write(tmp_path / "x.npy", x).rename(path)
    else:
        write(path, x)
    assert torch.equal(read_input(TwoConvs(), path), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_tensors_take_the_precision_of_the_model(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 4)
    found = read_input(TwoConvs().to(dtype), write(tmp_path / "x.pt", x))
    assert found.dtype == dtype
    assert torch.equal(found, x.to(dtype))


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    x = torch.tensor([[1, 2]])
    assert torch.equal(read_input(TwoConvs(), write(tmp_path / "x.npy", x)), x)
    assert read_input(TwoConvs(), tmp_path / "x.npy").dtype == torch.int64


def test_models_without_parameters(tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    assert torch.equal(read_input(nn.ReLU(), write(tmp_path / "x.pt", x)), x)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_images_for_torchvision(photo: Path) -> None:
    from torchvision.models import SqueezeNet1_1_Weights

    model = library_model("torchvision:squeezenet1_1")
    with Image.open(photo) as image:
        expected = SqueezeNet1_1_Weights.DEFAULT.transforms()(image).unsqueeze(0)
    assert torch.equal(read_input(model, photo), expected)


def test_images_for_timm(photo: Path) -> None:
    model: Any = library_model("timm:test_resnet")
    found = read_input(model, photo)
    assert found.shape == (1, *model.pretrained_cfg["input_size"])
    assert found.dtype == torch.float32


def test_images_take_the_precision_of_the_model(photo: Path) -> None:
    assert read_input(library_model("torchvision:squeezenet1_1").double(), photo).dtype == torch.float64


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_other_colours(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (40, 30), (200, 100, 50)).convert(mode).save(tmp_path / "photo.tiff")
    assert read_input(library_model("torchvision:squeezenet1_1"), tmp_path / "photo.tiff").shape == (1, 3, 224, 224)


def test_images_need_an_input_size(photo: Path) -> None:
    with pytest.raises(ConvswapError, match="the input size of TwoConvs is unknown: give a tensor instead of an image"):
        read_input(TwoConvs(), photo)


def test_truncated_image(photo: Path) -> None:
    photo.write_bytes(photo.read_bytes()[:2000])
    with pytest.raises(FileError, match=r"photo.png is neither an image nor a tensor"):
        read_input(library_model("torchvision:squeezenet1_1"), photo)


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_code_in_a_file_does_not_run(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"evil{suffix}"
    if suffix == ".npy":
        np.save(path, np.array([Malicious(tmp_path / "marker")], dtype=object), allow_pickle=True)
    else:
        torch.save(Malicious(tmp_path / "marker"), path)
    with pytest.raises(FileError):
        read_input(TwoConvs(), path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("x.pt", [torch.ones(1)], "must hold one tensor, and holds a list"),
        ("x.pth", {"x": torch.ones(1)}, "must hold one tensor, and holds a dict"),
    ],
)
def test_more_than_a_tensor(tmp_path: Path, name: str, held: Any, message: str) -> None:
    torch.save(held, tmp_path / name)
    with pytest.raises(FileError, match=message):
        read_input(TwoConvs(), tmp_path / name)


def test_several_tensors(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(FileError, match="must hold one tensor, and holds 2"):
        read_input(TwoConvs(), tmp_path / "x.safetensors")


def test_arrays_of_words(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array(["a"]))
    with pytest.raises(FileError, match=r"is no .npy file of numbers"):
        read_input(TwoConvs(), tmp_path / "x.npy")
