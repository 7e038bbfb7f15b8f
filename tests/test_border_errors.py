from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import convswap
from convswap.border_errors import LEAST_SIZE, MARGIN, BorderErrors, border_errors
from convswap.border_methods import DRAWS, filters
from convswap.border_words import scales
from convswap.errors import ConvswapError
from convswap.layers.extrapolation import extrapolate_pad
from convswap.layers.partial_convolution import partial_conv2d
from convswap.layers.random_padding import random_pad2d
from convswap.report import Report

from .models import TwoConvs

FILTERS = ("gaussian", "sobel", "laplacian")


def photo(*shape: int) -> Tensor:
    """Some waves, and noise."""
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in shape[-2:])
    waves = torch.sin(rows / 7)[:, None] + torch.cos(columns / 9) + 2
    return waves + 0.1 * torch.randn(shape, dtype=torch.float64)


def polynomial(degree: int) -> Tensor:
    """(1, 40, 48), of that degree along each axis."""
    rows, columns = (torch.linspace(-1, 1, size, dtype=torch.float64) for size in (40, 48))
    powers = torch.arange(degree + 1)
    return torch.outer((rows[:, None] ** powers).sum(1), (columns[:, None] ** powers).sum(1))[None]


def errors_of(borders: BorderErrors, method: str) -> list[float | None]:
    return [each.error(method) for each in borders.filters]


# The numbers ------------------------------------------------------------------------------------------------------


def test_who_knows_the_margin_makes_no_error() -> None:
    larger = photo(3, 30, 41)

    def known(images: Tensor, pad: int) -> Tensor:
        reach = MARGIN - pad
        return larger[:, None, reach:-reach, reach:-reach]

    found = border_errors(larger, further={"known": known})
    assert found.methods[-1] == "known"
    assert errors_of(found, "known") == [0, 0, 0]
    for each in found.filters:
        assert set(each.methods[-1].map) == {"0"}
        assert all(method.error > 0 for method in each.methods[:-1] if method.error is not None)


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_polynomials_are_filtered_exactly_by_extrapolation_of_their_degree(degree: int) -> None:
    found = border_errors(polynomial(degree))
    for each in found.filters:
        orders = {"replicate": 0, "order 1": 1, "order 2": 2}
        orders |= {"extrapolated": each.kernel // 2, "padding_free": each.kernel - 1}
        for method, order in orders.items():
            error = each.error(method)
            assert error is not None
            assert error < 1e-10 if order >= degree else error > 1e-6, (each.filter, method)


def brute_force(larger: Tensor, margin: int) -> dict[str, dict[str, Tensor]]:
    """Differences over the whole crop, and the truth, by filtering all of it; (B·C, O, H, W)."""
    flat = larger.flatten(0, 1).unsqueeze(1)
    crop = flat[..., margin:-margin, margin:-margin]
    differences: dict[str, dict[str, Tensor]] = {}
    for name, kernel in filters().items():
        pad = kernel.shape[-1] // 2
        cut = margin - pad
        truth = F.conv2d(flat, kernel)[..., cut : cut + crop.shape[-2], cut : cut + crop.shape[-1]]
        generator = torch.Generator().manual_seed(3)
        outputs = {
            "zeros": F.conv2d(crop, kernel, padding=pad),
            **{m: F.conv2d(F.pad(crop, (pad,) * 4, m), kernel) for m in ("reflect", "replicate", "circular")},
            "partial": partial_conv2d(crop, kernel, padding=pad),
            "extrapolated": F.conv2d(extrapolate_pad(crop, pad, pad), kernel),
            "padding_free": F.conv2d(extrapolate_pad(crop, pad, 2 * pad), kernel),
            "order 3": F.conv2d(extrapolate_pad(crop, pad, 3), kernel),
            "random": torch.stack([F.conv2d(random_pad2d(crop, pad, generator), kernel) for _ in range(DRAWS)]),
        }
        differences[name] = {"truth": truth, **{method: output - truth for method, output in outputs.items()}}
    return differences


@pytest.mark.parametrize("margin", [2, 5])
def test_errors_are_those_of_the_outputs_whose_windows_cross_the_border(margin: int) -> None:
    larger = photo(2, 3, 30, 33)
    found = border_errors(larger, margin=margin, seed=3, orders=[3])
    assert (found.photos, found.size, found.margin) == (2, (30 - 2 * margin, 33 - 2 * margin), margin)
    expected = brute_force(larger, margin)
    assert tuple(each.filter for each in found.filters) == FILTERS
    for each in found.filters:
        border = torch.ones(found.size, dtype=torch.bool)
        border[each.kernel // 2 : -(each.kernel // 2), each.kernel // 2 : -(each.kernel // 2)] = False
        truth = expected[each.filter].pop("truth")[..., border].square().mean().sqrt()
        assert {method.method for method in each.methods} == expected[each.filter].keys()
        for method, difference in expected[each.filter].items():
            assert difference[..., ~border].abs().max() < 1e-12
            error = difference[..., border].square().mean().sqrt() / truth
            assert each.error(method) == pytest.approx(error.item(), rel=1e-9), (each.filter, method)


def test_maps_show_the_greatest_error_in_each_cell_of_the_first_photo() -> None:
    larger = photo(2, 2, 48, 78)  # 40×70 without the margin: cells of 3×3 pixels, the last ones narrower
    found = border_errors(larger, seed=3, orders=[3])
    assert found.shape == (14, 24)
    expected = brute_force(larger, MARGIN)
    for each in found.filters:
        pad = each.kernel // 2
        border = torch.ones(found.size, dtype=torch.bool)
        border[pad:-pad, pad:-pad] = False
        truth = expected[each.filter]["truth"][..., border].square().mean().sqrt()
        worst = expected[each.filter]["replicate"][:2].abs().max() / truth
        assert each.scale == pytest.approx(worst.item())
        for method in each.methods:
            difference = expected[each.filter][method.method]
            first = difference[0] if method.method == "random" else difference
            for cell, digit in enumerate(method.map):
                rows, columns = (slice(3 * at, 3 * at + 3) for at in divmod(cell, 24))
                part = first[:2, :, rows, columns] * border[rows, columns]
                level = min(1.0, (part.abs().max() / truth / worst).item()) * 15
                assert abs(int(digit, 16) - level) <= 0.5 + 1e-6, (each.filter, method.method, cell)


def test_what_is_constant_has_no_edges_to_err_about() -> None:
    found = border_errors(torch.full((1, 32, 32), 0.7))
    assert [each.error("zeros") is None for each in found.filters] == [False, True, True]
    assert errors_of(found, "replicate") == [0, None, None]
    assert found.filters[0].scale == pytest.approx(1 - (11 / 16) ** 2)  # replicate is exact: zeros, in a corner
    assert scales(found) == "Darkest where replicate is exact is the greatest error of all: 0.53 (Gaussian 5×5)."
    assert scales(border_errors(photo(1, 32, 32))).startswith("Darkest is an error as great as the greatest of repl")
    assert set(found.filters[1].methods[0].map) == {"0"}
    assert "–" in str(found)


def test_seeds_draw_the_noise_and_the_global_generator_is_left_alone() -> None:
    larger = photo(1, 32, 32)
    state = torch.get_rng_state()
    first, same, other = (border_errors(larger, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == same
    assert errors_of(first, "random") != errors_of(other, "random")
    assert errors_of(first, "zeros") == errors_of(other, "zeros")


def test_dtype_and_default_device_make_no_difference() -> None:
    larger = photo(1, 32, 32).bfloat16()
    found = border_errors(larger)
    assert border_errors(larger.double()[None]) == found
    with torch.device("meta"):
        assert border_errors(larger) == found


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.zeros(1, 3, 8, 40), {}, r"without a margin of 4 pixels the photo has 0×32: it must have 16 rows and"),
        (torch.zeros(40, 40), {}, r"photo must be a floating-point tensor .* got torch.float32 of shape \(40, 40\)"),
        (torch.zeros(3, 40, 40, dtype=torch.uint8), {}, "photo must be a floating-point tensor .* got torch.uint8"),
        ([[0.0]], {}, "photo must be a floating-point tensor .* got list"),
        (torch.zeros(0, 3, 40, 40), {}, "there is no photo in a tensor of shape"),
        (torch.full((3, 40, 40), math.nan), {}, "not finite"),
        (torch.full((3, 40, 40), -1e101, dtype=torch.float64), {}, r"or greater than 1e\+100: scale them"),
        (torch.zeros(1, 40, 40), {"margin": 2.5}, "margin must be a whole number of pixels, got 2.5"),
        (torch.zeros(1, 40, 40), {"orders": 2}, "orders must be several whole numbers, got 2"),
        (torch.zeros(1, 40, 40), {"orders": (1.5,)}, r"orders must be several whole numbers, got \(1.5,\)"),
        (torch.zeros(1, 40, 40), {"seed": "a"}, "seed must be a whole number, got 'a'"),
        (torch.zeros(1, 40, 40), {"seed": 2**70}, "seed must have at most 64 bits, got 1180591620717411303424"),
        (torch.zeros(1, 40, 40), {"further": {1: F.pad}}, "further must be functions by name, got {1: "),
        (torch.zeros(1, 40, 40), {"further": {"a": 3}}, "further must be functions by name, got {'a': 3}"),
        (torch.zeros(1, 40, 40), {"further": {"a": lambda x, _: x}}, r"'a' must pad .* to \(1, 1, 36, 36\), got \(1,"),
        (torch.zeros(1, 40, 40), {"further": {"a": lambda *_: None}}, r"'a' must pad .*, got NoneType"),
        (torch.zeros(1, 40, 40), {"further": {"a": lambda x, p: F.pad(x, [p] * 4, value=math.inf)}}, "'a' gives numb"),
        (torch.zeros(1, 40, 40), {"margin": 1}, "margin must be at least 2 pixels, got 1"),
        (torch.zeros(1, 40, 40), {"orders": [1, 32]}, r"orders must be from 0 to 31 for this photo, got \(1, 32\)"),
        (torch.zeros(1, 40, 40), {"further": {"zeros": F.pad}}, "called 'zeros' already: choose another name"),
    ],
)
def test_what_does_not_fit_is_refused(image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvswapError, match=message):
        border_errors(image, **options)


# In reports -------------------------------------------------------------------------------------------------------


def converted(to: str = "padding_free", inputs: Any = None, model: nn.Module | None = None, **options: Any) -> Report:
    return convswap.report(
        convswap.convert(
            TwoConvs() if model is None else model,
            to,
            verify=photo(2, 3, 32, 40).float() if inputs is None else inputs,
            **options,
        )
    )


@pytest.fixture(scope="module")
def made() -> Report:
    return converted()


@pytest.mark.parametrize(
    ("to", "options", "used"),
    [
        ("padding_free", {}, ("order 2",)),
        ("padding_free", {"order": (0, 1)}, ("replicate", "order 1")),
        ("padding_free", {"order": 3}, ("order 3",)),
        ("extrapolated", {}, ("extrapolated",)),
        ("random_pad", {}, ("random",)),
        ("partial", {}, ("partial",)),
        ("explicit_boundary", {}, ("zeros",)),
    ],
)
def test_what_a_conversion_uses_is_marked(to: str, options: dict[str, Any], used: tuple[str, ...]) -> None:
    borders = converted(to, **options).borders
    assert borders is not None
    assert borders.used == used
    assert borders.photos == 2
    assert str(borders).count("← this conversion") == len(used)


def test_kernels_of_one_tap_pad_nothing_along_their_axis() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, (1, 5), padding=(0, 2)))
    borders = converted(model=model).borders
    assert borders is not None
    assert borders.used == ("order 2",)


@pytest.mark.filterwarnings("ignore::convswap.errors.GrowthWarning")
@pytest.mark.parametrize(
    ("kernels", "options", "used"),
    [
        ([(3, (1, 0))], {"order": (1, 2)}, ("order 1",)),
        ([(1, 1)], {}, ("replicate",)),
        ([(3, 1), (5, 2)], {}, ("order 2",)),
        ([(3, 1), (5, 2), (1, 0)], {"order": 4}, ("order 4",)),
        ([((3, 5), (1, 2))], {"order": (2, 4)}, ("padding_free",)),
        ([((3, 5), (1, 2)), (3, 1)], {"order": (2, 4)}, ("order 2", "order 4")),
    ],
)
def test_orders_of_padded_axes_are_marked(kernels: Any, options: dict[str, Any], used: tuple[str, ...]) -> None:
    model = nn.Sequential(*(nn.Conv2d(3, 3, size, padding=padding) for size, padding in kernels))
    borders = converted(model=model, **options).borders
    assert borders is not None
    assert borders.used == used


def test_only_photos_and_only_targets_about_borders_have_it(tmp_path: Path) -> None:
    images = photo(1, 3, 32, 32).float()
    file = tmp_path / "images.pt"
    torch.save(images, file)
    of_file = converted(inputs=file).borders
    assert of_file is not None
    assert of_file == converted(inputs=str(file)).borders == converted(inputs=(images,)).borders
    assert of_file == replace(border_errors(images), used=of_file.used)
    least = LEAST_SIZE + 2 * MARGIN
    assert converted(inputs=images[..., :least, :least]).borders is not None
    for others in (images[..., : least - 1], (3, 32, 32), {"input": images}):
        assert converted(inputs=others).borders is None
    assert converted("dynamic", images).borders is None
    assert converted(inputs=1e101 * images.double(), model=TwoConvs().double()).borders is None
    two_channels = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))
    assert converted(inputs=images[:, :2], model=two_channels).borders is None


def test_of_many_and_large_photos_some_and_their_middles_are_shown() -> None:
    images = photo(5, 1, 264, 24).float()
    borders = converted(inputs=images, model=nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))).borders
    assert borders == replace(border_errors(images[:4, :, 4:260]), used=("order 2",))


def test_there_and_back(made: Report) -> None:
    assert made.borders is not None
    assert Report.from_dict(json.loads(made.to_json())) == made
    assert BorderErrors.from_dict(json.loads(json.dumps(made.borders.to_dict()))) == made.borders
    older = {name: value for name, value in made.to_dict().items() if name != "borders"}
    assert Report.from_dict(older) == replace(made, borders=None)


@pytest.mark.parametrize(
    "damage",
    [
        {"filters": ()},
        {"filters": 3},
        {"size": (32,)},
        {"shape": (24, 0)},
        {"shape": (34, 34)},
        {"shape": (1, 1)},
        {"photos": "many"},
        {"used": 3},
        {"surplus": 1},
    ],
)
def test_damaged_ones_are_refused(made: Report, damage: dict[str, Any]) -> None:
    data = made.to_dict()
    data["borders"] |= damage
    with pytest.raises(ConvswapError, match="the report is damaged"):
        Report.from_dict(data)


def test_damaged_maps_are_refused(made: Report) -> None:
    for damage in ({"map": "g" * 24 * 32}, {"error": "small"}, {"method": "other"}):
        data = json.loads(made.to_json())
        data["borders"]["filters"][1]["methods"][2] |= damage
        with pytest.raises(ConvswapError, match="the report is damaged"):
            Report.from_dict(data)


def test_every_form_shows_it(made: Report) -> None:
    borders = made.borders
    assert borders is not None
    stream = io.StringIO()
    Console(file=stream, width=200).print(made)
    replicate, least = (
        f"{borders.filters[0].error('replicate'):.2g}",
        min(method.error for method in borders.filters[0].methods if method.error is not None),
    )
    for shown in (str(made), made.to_markdown(), made.to_html(), made._repr_html_(), stream.getvalue(), str(borders)):
        assert "Errors at the border of 2 photos of 24×32 pixels" in shown
        assert "24×32 pixels in the middle of each photo were filtered with" in " ".join(shown.split())
        assert shown.count("← this conversion") == 1
        assert replicate in shown
        assert f"{least:.2g} ▾" in shown
        assert "padding-free (order k−1)" in shown
    assert borders._repr_html_().count("<svg") == made.to_html().count("<svg") == 3 * len(borders.methods)
    assert "Errors at the border" not in replace(made, borders=None).to_html()


def test_names_from_a_file_steer_neither_page_nor_terminal(made: Report) -> None:
    data = made.to_dict()
    for each in data["borders"]["filters"]:
        each["filter"] = "<b>\x1b[31m|"
        each["methods"][0]["method"] = "<script>\x1b[31m"
    read = Report.from_dict(data)
    assert "<script>" not in read.to_html()
    assert "<b>" not in read.to_html()
    assert "| \\<b\\>\x1b\\[31m\\| 5×5 |" in read.to_markdown()
    assert "\x1b" not in str(read)


def test_it_goes_with_the_model_and_its_file(made: Report, tmp_path: Path) -> None:
    model = TwoConvs()
    new = convswap.convert(model, "padding_free", verify=photo(1, 3, 32, 32).float())
    borders = convswap.report(new).borders
    assert borders is not None
    convswap.save(new, tmp_path / "new.safetensors")
    assert convswap.report(convswap.load(tmp_path / "new.safetensors", model=TwoConvs())).borders == borders
    assert convswap.report(convswap.freeze(new)).borders == borders
    whole = nn.Sequential(new, nn.Conv2d(1, 1, 3))
    assert convswap.report(whole).borders is None  # the photos were for the part
