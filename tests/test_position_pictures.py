from __future__ import annotations

import copy
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convswap
from convswap.errors import ConvswapError
from convswap.layers import Dcls1d, Dcls2d, Dcls3d
from convswap.position_pictures import MOST_CELLS, Maps, PositionPicture, start_picture
from convswap.report import Report

from .models import TwoConvs, as_if_trained


def rows(digits: str, shape: tuple[int, ...]) -> list[str]:
    return [digits[start : start + shape[1]] for start in range(0, len(digits), shape[1])]


def picture_of(layer: nn.Module) -> PositionPicture:
    made = start_picture(layer)
    assert made is not None
    return made


def layer_at(kind: Any, places: list[list[float]], weights: list[float], size: Any, version: str = "v1") -> Any:
    """A layer of one kernel with elements at places, given as (z, y, x) of the grid's cells from its middle."""
    layer = kind(1, 1, len(weights), dilated_kernel_size=size, version=version).double()
    order = {"v0": {1: [0], 2: [0, 1], 3: [0, 2, 1]}}.get(version, {1: [0], 2: [1, 0], 3: [2, 1, 0]})[layer.dims]
    with torch.no_grad():
        layer.P.copy_(torch.tensor(places).T[order].view_as(layer.P))
        layer.weight.copy_(torch.tensor(weights).view_as(layer.weight))
    return layer


# What they show ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v0", "v1", "max"])
def test_two_dimensions(version: str) -> None:
    layer = layer_at(Dcls2d, [[-1, -2], [0, 2], [0, 2], [1, 0.5]], [1.0, 1, -4, 0], (3, 5), version)
    made = picture_of(layer)
    assert (made.grid, made.shape, made.window) == ((3, 5), (3, 5), (3, 5))
    assert rows(made.start.elements, made.shape) == ["80000", "0000f", "00800"]  # half a pixel goes to even cells
    assert rows(made.start.weights, made.shape) == ["30000", "0000f", "00000"]
    assert rows(made.start.kernel, made.shape) == ["50000", "0000f", "00000"]  # 1 and -4 on one pixel are -3
    assert (made.now, made.moved) == (None, 0.0)


def test_one_dimension_is_a_strip() -> None:
    made = picture_of(layer_at(Dcls1d, [[-2], [1]], [1.0, 1], 5))
    assert (made.shape, made.start) == ((1, 5), Maps("f00f0", "f00f0", "f00f0"))


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_three_dimensions_are_summed_over_the_first_axis(version: str) -> None:
    made = picture_of(layer_at(Dcls3d, [[-1, -1, 0], [1, -1, 0], [0, 1, 1]], [1.0, 1, 1], 3, version))
    for digits in asdict(made.start).values():
        assert rows(digits, made.shape) == ["0f0", "000", "008"]


def test_bumps_of_gaussians_are_in_the_kernel() -> None:
    layer = layer_at(Dcls2d, [[0, 0]], [1.0], 5, "gauss")
    nn.init.constant_(layer.SIG, 1.0)
    made = picture_of(layer)
    assert rows(made.start.elements, made.shape)[2] == "00f00"
    middle = rows(made.start.kernel, made.shape)[2]
    assert middle[2] == "f"
    assert 0 < int(middle[1], 16) == int(middle[3], 16) < 15


def test_large_grids_have_several_pixels_to_a_cell() -> None:
    made = picture_of(layer_at(Dcls2d, [[-50, 0], [0, 0], [0, 1]], [1.0, 1, 1], (101, 41)))
    assert made.shape == (26, 11)
    assert max(made.shape) <= MOST_CELLS
    map_rows = rows(made.start.elements, made.shape)
    assert map_rows[0] == "00000800000"
    assert map_rows[12] == "00000f00000"
    assert set(map_rows[5]) == {"0"}


def test_many_kernels_are_shown_by_some_of_them() -> None:
    layer = Dcls2d(256, 256, 9, dilated_kernel_size=9)
    nn.init.uniform_(layer.P, -4, 4)
    made = picture_of(layer)
    levels = [int(digit, 16) for digit in made.start.elements]
    assert min(levels[i * 9 + j] for i in range(1, 8) for j in range(1, 8)) > 10  # evenly spread
    assert len(made.sample) < 3000


def test_numbers_that_are_none_break_nothing() -> None:
    layer = layer_at(Dcls2d, [[0, 0], [1, 1]], [1.0, 1], 3)
    made = picture_of(layer)
    with torch.no_grad():
        layer.P[:, ..., 1] = float("nan")
        layer.weight[..., 1] = float("inf")
    now = made.at_present(layer)
    assert now.moved == 0
    json.dumps(asdict(now), allow_nan=False)
    nn.init.constant_(layer.P, float("inf"))
    assert made.at_present(layer).moved is None


def test_layers_without_numbers_or_positions_have_none() -> None:
    layer = Dcls2d(2, 2, 3)
    made = picture_of(layer)
    others = (
        nn.Conv2d(2, 2, 3),
        layer.freeze(),
        Dcls2d(2, 2, 3, dilated_kernel_size=9),
        Dcls2d(2, 2, 4),
        copy.deepcopy(layer).to("meta"),
    )
    for other in others:
        assert made.at_present(other) == replace(made, moved=None)
    assert [start_picture(other) is None for other in others] == [True, True, False, False, True]


def test_another_default_device_changes_nothing() -> None:
    layer = layer_at(Dcls2d, [[-1, -2], [0, 2]], [1.0, 2], (3, 5))
    made = picture_of(layer)
    with torch.device("meta"):
        assert picture_of(layer) == made
        assert made.at_present(layer) == made


# How far elements have moved --------------------------------------------------------------------------------------


def test_distance_is_in_pixels() -> None:
    layer = layer_at(Dcls2d, [[0, 0], [1, 1]], [1.0, 1], 9)
    made = picture_of(layer)
    with torch.no_grad():
        layer.P[0, ..., 0] += 3.0
        layer.P[1, ..., 0] -= 4.0
    now = made.at_present(layer)
    assert now.moved == pytest.approx(2.5)
    assert now.start == made.start
    assert now.now is not None
    assert rows(now.now.elements, now.shape)[0] == "0000000f0"


def test_weights_alone_may_change() -> None:
    layer = layer_at(Dcls2d, [[0, 0], [1, 1]], [1.0, 1], 3)
    made = picture_of(layer)
    with torch.no_grad():
        layer.weight[..., 0] *= 3
    now = made.at_present(layer)
    assert now.moved == 0
    assert now.now is not None
    assert now.now.elements == made.start.elements
    assert now.now.weights != made.start.weights


def test_large_layers_are_sampled_evenly() -> None:
    layer = Dcls2d(64, 64, 9, dilated_kernel_size=9)
    made = picture_of(layer)
    with torch.no_grad():
        layer.P[0] += torch.arange(9) / 4  # every element of a kernel moves another distance
    assert made.at_present(layer).moved == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_has_not_moved_is_said_not_to_have(dtype: torch.dtype) -> None:
    layer = Dcls2d(4, 4, 5).to(dtype)
    made = picture_of(layer)
    assert made.at_present(copy.deepcopy(layer)) == made


# In reports -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained() -> nn.Module:
    """A converted model after a step that moved its positions."""
    new = convswap.convert(as_if_trained(TwoConvs()), "dcls", kernel_count=12)
    with torch.no_grad():
        for parameter in convswap.new_parameters(new).values():
            parameter += 0.5
    return new


def picture(report: Report, name: str = "conv1") -> PositionPicture:
    found = next(step.picture for step in report.swaps if step.name == name)
    assert found is not None
    return found


def test_reports_show_before_and_after(trained: nn.Module, tmp_path: Path) -> None:
    made = convswap.report(trained)
    assert picture(made).moved == pytest.approx(0.5 * 2**0.5, rel=1e-5)
    assert picture(made).now is not None
    convswap.save(trained, tmp_path / "net.safetensors")
    loaded: Any = convswap.load(tmp_path / "net.safetensors", model=TwoConvs())
    assert convswap.report(loaded) == made
    with torch.no_grad():
        loaded.conv1.P -= 0.5
    assert picture(convswap.report(loaded)).moved == pytest.approx(0, abs=1e-6)


def test_every_way_to_convert_has_pictures() -> None:
    model = TwoConvs()
    plan = convswap.plan(model, "dcls", "conv1")
    assert all(step.picture is None for step in convswap.report(plan).steps)
    once = convswap.convert(model, "dcls", "conv1")
    start = picture(convswap.report(once))
    for other in (
        convswap.apply(plan, model),
        convswap.apply(convswap.report(once).recipe, model),
        convswap.convert_(copy.deepcopy(model), "dcls", "conv1"),
        convswap.convert(once, "dcls", "conv2"),
    ):
        assert picture(convswap.report(other)) == start
    whole = nn.ModuleDict({"part": once})
    assert picture(convswap.report(whole), "part.conv1") == start
    assert convswap.report(convswap.convert(nn.Conv2d(2, 2, 3), "dcls")).swaps[0].picture is not None


def test_other_targets_have_none() -> None:
    made = convswap.report(convswap.convert(TwoConvs(), "dynamic"))
    assert [step.picture for step in made.swaps] == [None]
    assert "<svg" not in made.to_html()


def test_json_there_and_back(trained: nn.Module) -> None:
    made = convswap.report(trained)
    assert Report.from_dict(json.loads(made.to_json())) == made


def test_reports_from_before_there_were_pictures_are_read(trained: nn.Module) -> None:
    data = convswap.report(trained).to_dict()
    for step in data["steps"]:
        del step["picture"], step["group"]
    for step in data["recipe"]["steps"]:
        del step["group"]
    read = Report.from_dict(data)
    assert [step.picture for step in read.swaps] == [None, None]
    assert "<svg" not in read.to_html()


@pytest.mark.parametrize(
    "damage",
    [
        {"grid": []},
        {"grid": [0, 7]},
        {"grid": "77"},
        {"window": [3]},
        {"shape": [7, 7, 7]},
        {"shape": [-7, -7]},
        {"shape": [10**6, 10**6]},
        {"shape": [7, 8]},
        {"start": None},
        {"start": {"elements": "f" * 49, "weights": "f" * 49}},
        {"start": {"elements": "f" * 49, "weights": "f" * 49, "kernel": '"/><b>' * 7 + "f" * 7}},
        {"now": {"elements": "f" * 49, "weights": "f" * 49, "kernel": "f" * 48}},
        {"sample": "AAAA"},
        {"sample": "not base64!"},
        {"sample": 3},
        {"moved": "far"},
        {"surplus": 1},
    ],
)
def test_damaged_pictures_are_refused(trained: nn.Module, damage: dict[str, Any]) -> None:
    data = json.loads(convswap.report(trained).to_json())
    assert data["steps"][0]["picture"]["shape"] == [7, 7]
    data["steps"][0]["picture"].update(damage)
    with pytest.raises(ConvswapError, match="the report is damaged"):
        Report.from_dict(data)


class Svgs(HTMLParser):
    """Collects what is drawn: for each picture its view box and paths with their opacity."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple[str, list[tuple[float, str]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: str(value) for name, value in attrs}
        if tag == "svg":
            self.pictures.append((values["viewbox"], []))
        elif tag == "path":
            self.pictures[-1][1].append((float(values["fill-opacity"]), values["d"]))

    handle_startendtag = handle_starttag


def drawn(page: str) -> list[list[str]]:
    """The pictures of a page as the digits that they show, by filling each rectangle of each path."""
    parser = Svgs()
    parser.feed(page)
    found = []
    for box, paths in parser.pictures:
        columns, row_count = (int(number) for number in box.split()[2:])
        cells = [["0"] * columns for _ in range(row_count)]
        for opacity, path in paths:
            pieces = re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path)
            assert "".join(f"M{x} {y}h{n}v1h-{m}z" for x, y, n, m in pieces) == path
            for x, y, length, _ in pieces:
                for column in range(int(x), int(x) + int(length)):
                    assert cells[int(y)][column] == "0"
                    cells[int(y)][column] = f"{round(opacity * 15):x}"
        found.append(["".join(row) for row in cells])
    return found


def test_svg_shows_the_maps(trained: nn.Module) -> None:
    made = convswap.report(trained)
    pictures = drawn(made.to_html())
    expected = []
    for step in made.swaps:
        assert step.picture is not None
        assert step.picture.now is not None
        for name in ("elements", "weights", "kernel"):
            expected += [rows(getattr(maps, name), (7, 7)) for maps in (step.picture.start, step.picture.now)]
    assert pictures == expected


def test_svg_of_what_has_not_moved_is_drawn_once() -> None:
    made = convswap.report(convswap.convert(nn.Conv1d(2, 2, 3), "dcls"))
    assert drawn(made.to_html()) == [
        [getattr(picture(made, "").start, name)] for name in asdict(picture(made, "").start)
    ]
    assert "have moved" not in made.to_html() + made.to_markdown() + str(made)


def test_all_forms_say_how_far(trained: nn.Module) -> None:
    made = convswap.report(trained)
    for shown in (str(made), made.to_markdown().replace("\\", ""), made.to_html()):
        assert "elements have moved by 0.707 pixels on average (most in conv" in " ".join(shown.split())


def test_pictures_of_many_layers_are_limited() -> None:
    made = convswap.report(convswap.convert(nn.Sequential(*(nn.Conv2d(2, 2, 3) for _ in range(30))), "dcls"))
    page = made.to_html()
    assert len(drawn(page)) == 24 * 3
    assert "Not drawn: 24, 25, 26, 27, 28, 29" in page
    assert len(page) < 150_000


def test_unknown_distances_are_shown(trained: nn.Module) -> None:
    made = convswap.report(trained)
    unknown = replace(picture(made), moved=None)
    page = made.with_pictures({"conv1": unknown}).to_html()
    assert page.count('<td class="number">?</td></tr>') == 1
    assert page.count('<td class="number">0.707</td></tr>') == 1
