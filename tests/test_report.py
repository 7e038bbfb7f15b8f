from __future__ import annotations

import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import convswap
from convswap.errors import ConvswapError
from convswap.report import Report

from .models import TwoConvs, library_model


@pytest.fixture
def made() -> Report:
    """A report with a swap, a keep and a verification."""
    return convswap.report(convswap.convert(TwoConvs(), "dynamic", example_inputs=(3, 8, 8), verify=(3, 8, 8)))


def test_dict_there_and_back(made: Report) -> None:
    assert Report.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert Report.from_dict(json.loads(made.to_json())) == made
    assert made.to_dict()["version"] == 1


def test_plans_have_reports_too() -> None:
    plan = convswap.plan(TwoConvs(), "dcls")
    made = convswap.report(plan)
    assert Report.from_dict(json.loads(made.to_json())) == made
    assert [step.name for step in made.swaps] == ["conv1", "conv2"]
    assert made.recipe.steps == ()
    assert str(plan) == str(made)


def test_report_of_what_was_not_converted() -> None:
    with pytest.raises(ConvswapError, match="this TwoConvs has not been converted: there is nothing to report"):
        convswap.report(TwoConvs())


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_other_versions_are_refused(made: Report, version: object) -> None:
    with pytest.raises(ConvswapError, match="this is no report of version 1"):
        Report.from_dict({**made.to_dict(), "version": version})


@pytest.mark.parametrize(
    "damage",
    [
        {"parameters": "many"},
        {"parameters": float("inf")},
        {"model": 3},
        {"steps": [3]},
        {"steps": None},
        {"others": [{"name": "a"}]},
        {"others": [{"name": 1, "kind": "b", "reason": "c"}]},
        {"input_shape": "1388"},
        {"unknown_shapes": []},
        {"verification": {}},
        {"versions": 3},
    ],
)
def test_damaged_reports_are_refused(made: Report, damage: dict[str, Any]) -> None:
    with pytest.raises(ConvswapError, match="the report is damaged"):
        Report.from_dict({**made.to_dict(), **damage})


@pytest.mark.parametrize(
    "damage",
    [
        {"name": None},
        {"reason": ["a"]},
        {"action": "keep it"},
        {"aliases": [3]},
        {"options": 3},
        {"fidelity": "good"},
        {"before": {}},
        {"after": {"parameters": 1.5, "parameter_bytes": 1, "multiply_adds": 1, "activation_bytes": 1}},
        {"surplus": 1},
    ],
)
def test_damaged_steps_are_refused(made: Report, damage: dict[str, Any]) -> None:
    data = made.to_dict()
    data["steps"][0].update(damage)
    with pytest.raises(ConvswapError, match="the report is damaged"):
        Report.from_dict(data)


def test_totals(made: Report) -> None:
    before, after = made.total("before"), made.total("after")
    model = TwoConvs()
    assert before.parameters == sum(p.numel() for conv in (model.conv1, model.conv2) for p in conv.parameters())
    assert before.parameter_bytes == 4 * before.parameters
    assert before.multiply_adds == 8 * 3 * 9 * 64 + 8 * 8 * 9 * 16
    assert before.activation_bytes == 4 * (3 * 64 + 8 * 64)
    assert made.parameters == sum(p.numel() for p in model.parameters())
    new = convswap.convert(model, "dynamic")
    assert made.parameters + after.parameters - before.parameters == sum(p.numel() for p in new.parameters())


def test_totals_of_unknown_shapes() -> None:
    made = convswap.report(convswap.plan(TwoConvs(), "dynamic"))
    assert made.total("after").multiply_adds is None
    assert made.unknown_shapes is not None
    for shown in (str(made), made.to_markdown(), made.to_html()):
        assert "hapes are unknown: no example_inputs were given" in shown.replace("\\_", "_")


# What people read -------------------------------------------------------------------------------------------------


def forms(made: Report) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=200).print(made)
    return [str(made), made.to_markdown(), made.to_html(), made._repr_html_(), stream.getvalue()]


def test_every_form_says_what_was_done_and_why_not(made: Report) -> None:
    for shown in forms(made):
        assert "TwoConvs: 1 of 2 convolutions converted (1 to dynamic)" in shown
        assert "conv2" in shown
        assert "8→8 3×3 stride 2" in shown
        assert "first convolution is left alone" in shown
        assert "all keep what they promise" in shown
        assert "NOT" not in shown
        assert "float32" in shown


def test_only_the_page_is_a_page(made: Report) -> None:
    assert made.to_html().startswith("<!doctype html>")
    assert "<html" not in made._repr_html_()
    assert made._repr_html_() in made.to_html()


def test_failed_verification_is_shown(made: Report) -> None:
    assert made.verification is not None
    check = replace(made.verification.layers[0], passed=False, relative_error=float("nan"))
    bad = made.with_verification(replace(made.verification, layers=(check,), not_run=("conv9",)))
    for shown in forms(bad):
        assert "NOT all keep what they promise" in shown
        assert "not reached by this input: conv9" in shown
    assert 'class="failed"' in bad.to_html()
    assert 'class="passed"' in made.to_html()


def test_errors_have_a_column_where_they_are_known(made: Report) -> None:
    assert made.verification is not None
    error = f"{made.verification.layers[0].relative_error:.1e}"
    unverified = replace(made, verification=None)
    for known, unknown in zip(forms(made), forms(unverified), strict=True):
        assert error in known
        assert error not in unknown
        assert "compared in" not in unknown


def test_notes() -> None:
    made = convswap.report(convswap.plan(library_model("timm:test_nfnet"), "dcls"))
    assert {step.note for step in made.swaps if step.note} != set()
    for shown in forms(made):
        assert "weight standardisation folded into the weights" in " ".join(shown.split())


class NotOnlySites(nn.Module):
    """A model with a convolution that is no site."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 2, 3)
        self.up = nn.ConvTranspose2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def test_convolutions_that_are_no_sites() -> None:
    made = convswap.report(convswap.plan(NotOnlySites(), "dcls"))
    assert Report.from_dict(json.loads(made.to_json())) == made
    for shown in forms(made):
        assert "transposed convolutions are not converted" in shown
        assert "ConvTranspose2d" in shown


def test_plan_of_a_single_convolution() -> None:
    for shown in forms(convswap.report(convswap.plan(nn.Conv2d(2, 2, 3), "dcls"))):
        assert "(the model)" in shown


def test_many_names_are_shortened() -> None:
    model = nn.Sequential(*(nn.Conv2d(2, 2, 3) for _ in range(12)))
    made = convswap.report(convswap.plan(model, "dcls", "0"))
    assert made.keeps_by_reason() == {"not chosen by where": [str(i) for i in range(1, 12)]}
    assert "1, 2, 3, 4, 5, … 11 (11)" in str(made)
    assert "1, 2, 3, 4, 5, … 11 (11)" in made.to_markdown()


# Names that are code ----------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)


def hostile_report() -> Report:
    model = nn.Sequential()
    model.add_module(HOSTILE, nn.Conv2d(2, 2, 3))
    model.add_module("<img src=x>", nn.Conv2d(2, 2, 1))
    model.add_module("<b>up</b>", nn.ConvTranspose2d(2, 2, 3))
    model.__class__ = type("<i>Net", (nn.Sequential,), {})
    made = convswap.report(convswap.convert(model, "dcls"))
    (swap,) = made.swaps
    assert swap.name == HOSTILE
    options = {"<u>name": "<em>&value"}
    changed = replace(swap, options=options, note="<video>", target="<audio>", geometry="<object>")
    return replace(made, steps=(changed, *made.keeps), unknown_shapes="<iframe>")


def test_html_escapes_what_models_and_options_are_called() -> None:
    for page in (hostile_report().to_html(), hostile_report()._repr_html_()):
        parser = Tags()
        parser.feed(page)
        assert not parser.tags & {"script", "img", "b", "i", "u", "em", "iframe", "video", "audio", "object"}
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "&lt;em&gt;&amp;value" in page


def test_markdown_escapes() -> None:
    text = hostile_report().to_markdown()
    assert "<" not in text.replace("\\<", "")
    assert "\\<script\\>alert(1)\\</script\\>" in text


def test_markdown_tables_stay_tables() -> None:
    model = nn.Sequential()
    model.add_module("a|b_c*\n`d`", nn.Conv2d(2, 2, 3))
    text = convswap.report(convswap.plan(model, "dcls")).to_markdown()
    assert "a\\|b\\_c\\* \\`d\\`" in text
    rows = [line for line in text.splitlines() if line.startswith("|") and "dcls" in line]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 7


def test_terminals_show_markup_as_it_is() -> None:
    model = nn.Sequential()
    model.add_module("[bold red]x[/]", nn.Conv2d(2, 2, 3))
    made = convswap.report(convswap.plan(model, "dcls"))
    assert "[bold red]x[/]" in str(made)
    assert "[bold red]x[/]" in forms(made)[-1]


def test_reports_go_with_their_models() -> None:
    import copy

    new = convswap.convert(TwoConvs(), "dcls")
    assert convswap.report(copy.deepcopy(new)) == convswap.report(new)
    assert not any("report" in name for name in new.state_dict())
    assert torch.equal(new.state_dict()["conv1.weight"], copy.deepcopy(new).state_dict()["conv1.weight"])


def test_control_characters_do_not_reach_the_terminal() -> None:
    made = convswap.report(convswap.plan(TwoConvs(), to="dcls"))
    hostile = replace(made, steps=(replace(made.steps[0], name="conv\x1b[2J"), *made.steps[1:]))
    assert "\x1b" not in str(hostile)
    assert "conv" in str(hostile)
