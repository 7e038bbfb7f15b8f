from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from convswap.layers import GuidedChannelWiseConv2d, GuidedLocalConv2d, HypernetConv2d
from examples import depth_completion
from examples.depth_completion import WIDER, CompletionNet, guided, inputs
from examples.depth_scenes import HEIGHT, PARTS, Scenes, planes_of, rough_depth


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes()


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "out.png"
    options = ["--steps", "80", "--seeds", "1", "--held-out", "128", "--picture", str(picture)]
    found = depth_completion.main(options)
    printed = capsys.readouterr().out
    before = dict(re.findall(r"seed 0, (plain|guided): RMSE ([\d.]+) m untrained", printed))
    assert before["plain"] == before["guided"]
    for name in ("plain", "guided"):
        (after,) = found[name]
        assert after.rmse < float(before[name]) - 0.002
        assert re.search(rf"{name} +[\d,]+ +{after.rmse:.3f} +{after.mae:.3f} ", printed)
    assert found["plain"] != found["guided"]
    assert Image.open(picture).size == (8 * 130 + 2, 5 * 130 + 2)


def test_conversion_keeps_the_function_and_guides_by_the_photo(scenes: Scenes) -> None:
    batch = scenes.draw("training", 2, 16, 0.05, torch.Generator().manual_seed(0))
    plain = CompletionNet()
    new = guided(plain, batch).double()
    plain.double()
    rgb, rough, samples = (value.double() for value in inputs(batch))
    torch.testing.assert_close(new(rgb, rough, samples), plain(rgb, rough, samples), rtol=0, atol=1e-12)
    layers = {name: module for name, module in new.named_modules() if isinstance(module, HypernetConv2d)}
    assert {name: (type(layer.conv), layer.guide) for name, layer in layers.items()} == {
        "depth3.0": (GuidedChannelWiseConv2d, "rgb2"),
        "depth4.0": (GuidedChannelWiseConv2d, "rgb3"),
        "head": (GuidedLocalConv2d, "rgb3"),
    }


def test_the_wider_net_has_as_many_parameters_as_the_guided_one(scenes: Scenes) -> None:
    batch = scenes.draw("training", 1, 16, 0.05, torch.Generator().manual_seed(0))
    counts = [
        sum(p.numel() for p in net.parameters()) for net in (CompletionNet(WIDER), guided(CompletionNet(), batch))
    ]
    assert counts[0] == pytest.approx(counts[1], rel=0.05)


def test_photos_tell_where_depth_jumps_and_not_how_far_it_is(scenes: Scenes) -> None:
    generator = torch.Generator()
    first, second = (scenes.draw("training", 4, 32, 0.05, generator.manual_seed(seed)) for seed in (0, 0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    crop = scenes.surfaces[0][None, :32, :32]
    one, other = (planes_of(crop, generator.manual_seed(seed)) for seed in (0, 1))
    jumps = crop.diff(dim=-1) != 0
    assert jumps.any()
    for depth in (one, other):
        within = depth.diff(dim=-1)[:, 0][~jumps].abs()
        assert within.max() <= 2 / 31 + 1e-5
    assert (one - other).abs().mean() > 0.5


def test_parts_of_a_photo_are_apart(scenes: Scenes) -> None:
    ends = sorted(PARTS.values())
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))
    for i, photo in enumerate(scenes.photos):  # write the column into the photo, so that crops tell where they are from
        scenes_of_columns = Scenes.__new__(Scenes)
        columns = torch.arange(photo.shape[2], dtype=torch.float32).expand_as(photo)
        scenes_of_columns.photos, scenes_of_columns.surfaces = [columns], [scenes.surfaces[i]]
        for part, (start, stop) in PARTS.items():
            rgb = scenes_of_columns.draw(part, 16, 32, 0.05, torch.Generator().manual_seed(0)).rgb
            assert start * photo.shape[2] - 1 <= rgb.min()
            assert rgb.max() < stop * photo.shape[2]


def test_rough_depth_is_the_samples_mean() -> None:
    sparse, mask = torch.zeros(1, 1, 40, 40), torch.zeros(1, 1, 40, 40)
    mask[..., 10, 8], mask[..., 10, 12] = 1, 1
    sparse[..., 10, 8], sparse[..., 10, 12] = 2, 6
    rough = rough_depth(sparse, mask)
    assert rough[0, 0, 10, 10].item() == pytest.approx(4, abs=1e-4)
    assert rough[0, 0, 10, 8].item() < 4 < rough[0, 0, 10, 12].item()
    assert rough[0, 0, 39, 39].item() == pytest.approx(5)


def test_crops_that_do_not_fit_are_refused(scenes: Scenes) -> None:
    with pytest.raises(ValueError, match=f"crops of {HEIGHT + 1} pixels do not fit"):
        scenes.draw("training", 1, HEIGHT + 1, 0.05, torch.Generator())


def test_odd_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        depth_completion.main(["--size", "15"])
    assert "--size must be even, got 15" in capsys.readouterr().err
