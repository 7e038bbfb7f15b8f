from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from convswap.layers.hybrid import Autoencoder
from examples import autoencoder
from examples.autoencoder import HEIGHT, PATCH, draw, error, patch_means, plain_of, read_photos, save_picture, train
from examples.depth_scenes import PARTS


@pytest.fixture(scope="module")
def photos() -> list[Tensor]:
    return read_photos()


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "out.png"
    options = ["--steps", "40", "--size", "16", "--batch", "8", "--hidden", "4", "--held-out", "64", "--shown", "3"]
    errors = autoencoder.main([*options, "--picture", str(picture)])
    printed = " ".join(capsys.readouterr().out.split())  # terminals wrap
    assert list(errors) == ["mean colour of each patch", "plain convolutions", "kernels for each patch"]
    for name, rmse in errors.items():
        assert 0 < rmse < 255
        assert re.search(rf"{name}.* {rmse:.2f} {20 * math.log10(255 / rmse):.2f}", printed)
        if name != "mean colour of each patch":
            ends = re.search(rf"{name}: .* error ([\d.]+) in the first 2 steps, ([\d.]+) in the last", printed)
            assert ends is not None
            assert float(ends[2]) < 0.5 * float(ends[1])
    assert errors["plain convolutions"] != errors["kernels for each patch"]
    assert Image.open(picture).size == (3 * 34 + 2, 4 * 34 + 2)
    assert f"{picture}showsoriginals" in printed.replace(" ", "")


def test_the_picture_shows_all_of_the_crops(photos: list[Tensor], tmp_path: Path) -> None:
    crops = draw(photos, "test", 2, 24, torch.Generator().manual_seed(0))
    save_picture(tmp_path / "out.png", crops, [patch_means, lambda some: 2 - some])
    with Image.open(tmp_path / "out.png") as image:
        shown = pil_to_tensor(image) / 255
    rows = [crops, patch_means(crops), torch.ones_like(crops)]  # beyond white is white
    for row, images in enumerate(rows):
        for column, expected in enumerate(images):
            top, left = 2 + row * 50, 2 + column * 50
            actual = shown[:, top : top + 48 : 2, left : left + 48 : 2]
            torch.testing.assert_close(actual, expected, rtol=0, atol=0.5 / 255 + 1e-6)


def test_plain_convolutions_are_those_of_the_autoencoder() -> None:
    torch.manual_seed(0)
    net = Autoencoder(hidden=4).eval()
    plain = plain_of(net)
    with torch.no_grad():
        for layer in (net.encoder.c1, net.decoder.c1):
            layer.predictors.last_weight.zero_()
            layer.predictors.last_bias.zero_()
        images = torch.rand(2, 3, 16, 24)
        assert plain[0](images).shape == (2, 4, 2, 3)
        torch.testing.assert_close(plain(images), net(images))
        plain[0].weight.zero_()
        assert net.encoder.c1.similar_conv.weight.any()


def test_parts_of_a_photo_are_apart(photos: list[Tensor]) -> None:
    columns = [torch.arange(photo.shape[2], dtype=torch.float32).expand_as(photo) for photo in photos]
    for photo, one in zip(photos, columns, strict=True):
        assert photo.shape[:2] == (3, HEIGHT)
        assert 0 <= photo.min() < 0.1 < 0.9 < photo.max() <= 1
        for part, (start, stop) in PARTS.items():
            crops = draw([one], part, 16, 32, torch.Generator().manual_seed(0))
            assert crops.shape == (16, 3, 32, 32)
            assert start * photo.shape[2] - 1 <= crops.min()
            assert crops.max() < stop * photo.shape[2]
    again, other = (draw(photos, "test", 4, 16, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(again, draw(photos, "test", 4, 16, torch.Generator().manual_seed(0)))
    assert not torch.equal(again, other)


@pytest.mark.parametrize("steps", range(1, 13))
def test_any_number_of_steps_trains(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.Adam.step
    note = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"]) or step(optimizer)
    monkeypatch.setattr(torch.optim.Adam, "step", note)
    net = torch.nn.Conv2d(3, 3, 1)
    losses = train(net, [torch.rand(3, 16, 160)], steps, 0.1, 1, 8, 0)
    assert len(losses) == len(rates) == steps
    assert all(0 < rate <= 0.1 for rate in rates)


def test_mean_colours_and_errors() -> None:
    images = torch.zeros(1, 3, 8, 16)
    images[..., ::2, :8] = 1
    images[:, 1, :, 8:] = 0.25
    means = patch_means(images)
    assert (means[..., :8] == 0.5).all()
    assert means[0, :, 0, 8:].T.tolist() == [[0, 0.25, 0]] * 8
    assert error(patch_means, images) == pytest.approx(255 * 0.5**0.5 * 0.5)  # half of the pixels are off by a half


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "20"], f"--size must be a multiple of {PATCH} and at most 64, got 20"),
        (["--size", "128"], f"--size must be a multiple of {PATCH} and at most 64, got 128"),
        (["--steps", "0"], "argument --steps: must be a whole number of at least 1, got 0"),
        (["--picture", "missing/out.png"], "--picture: there is no folder missing"),
        (["--colour", "4"], "unrecognized arguments: --colour 4"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        autoencoder.main(options)
    assert refused.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
