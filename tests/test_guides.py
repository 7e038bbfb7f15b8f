import pytest
import torch
import torchvision
from torch import nn

import convswap
from convswap.errors import ConvswapError, NothingToSwapError, OptionError

from .guided import net


def step_of(model, name, guide, to="guided", example_inputs=(3, 12, 12), **options):
    where = [name, "stem"]  # the stem is converted as well, so that there is a plan
    rules = [convswap.Swap(name, to, guide=guide, **options), convswap.Swap("stem", "dynamic", convert_first=True)]
    steps = convswap.plan(model, rules, example_inputs=example_inputs).steps
    return next(step for step in steps if step.site.name == where[0])


@pytest.mark.parametrize(
    ("guide", "channels"),
    [
        ("stem", 4),
        ("first", 4),
        ("first.conv2", 4),
        ("first.act", 4),
        ("down", 6),
        ("second.conv1", 6),
        ("second:input", 6),
        ("first:input", 4),
        ("add", 4),  # a node
        ("input", 3),
        ("input:x", 3),
    ],
)
def test_channels_are_those_of_the_guide(guide, channels):
    step = step_of(net(), "second.conv2", guide)
    assert step.action == "swap"
    assert (step.options.guide, step.options.guide_channels) == (guide, channels)


def test_own_input_is_the_default():
    step = step_of(net(), "down", None)
    assert (step.options.guide, step.options.guide_channels) == (None, 4)


@pytest.mark.parametrize(
    ("guide", "told"),
    [
        ("second", "computed from its own output, a cycle: "),
        ("second.conv2", "a cycle"),
        ("head", "a cycle"),
        ("aux", "gives no tensor"),
    ],
)
def test_values_that_come_too_late_are_refused(guide, told):
    step = step_of(net(), "second.conv2", guide)
    assert step.action == "keep"
    assert told in step.reason
    assert "could be used" in step.reason or guide == "aux"
    assert "'first'" in step.reason or guide == "aux"


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.left(x) + self.right(x)


def test_later_branch_is_refused_and_the_earlier_one_is_not():
    model = TwoBranches()
    late = step_of(model, "left", "right")
    assert late.action == "keep"
    assert "its guide 'right' comes later in the network: 'stem', 'input' could be used" in late.reason
    assert step_of(model, "right", "left").options.guide_channels == 4


def test_names_that_are_nowhere():
    with pytest.raises(OptionError, match=r"no module, node or input 'secnd' to guide by. Did you mean 'second'"):
        step_of(net(), "second.conv2", "secnd")
    for guide in ("input:", "input:a-b", "input:for", " "):
        with pytest.raises(OptionError, match="guide"):
            step_of(net(), "second.conv2", guide)


def test_channels_that_are_not_those_of_the_guide():
    assert "has 4 channels, not 5" in step_of(net(), "second.conv2", "first", guide_channels=5).reason
    assert step_of(net(), "second.conv2", "first", guide_channels=4).action == "swap"


def test_unknown_shapes_ask_for_channels():
    reason = step_of(net(), "second.conv2", "first", example_inputs=None).reason
    assert "give guide_channels, or example_inputs" in reason
    step = step_of(net(), "second.conv2", "first", example_inputs=None, guide_channels=4)
    assert (step.action, step.options.guide_channels) == ("swap", 4)


def test_further_input_needs_its_channels():
    assert "guide_channels" in step_of(net(), "second.conv2", "input:depth").reason
    assert step_of(net(), "second.conv2", "input:depth", guide_channels=1).action == "swap"


def test_flat_values_can_guide_and_others_cannot():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.flat, self.rows = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Flatten(2)
            self.linear, self.conv = nn.Linear(4 * 100, 5), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            x = self.stem(x)
            return self.conv(x) + self.linear(self.flat(x)).mean() + self.rows(x).mean()

    class Before(Odd):
        def forward(self, x):
            x = self.stem(x)
            y = self.linear(self.flat(x)).mean() + self.rows(x).mean()
            return self.conv(x) + y

    assert step_of(Before(), "conv", "linear").options.guide_channels == 5
    assert "and not (batch, channels, height, width)" in step_of(Before(), "conv", "rows").reason
    assert "later" in step_of(Odd(), "conv", "linear").reason


def test_a_convolution_alone_has_no_other_guide():
    with pytest.raises(NothingToSwapError, match="the model is this convolution alone"):
        convswap.plan(nn.Conv2d(3, 4, 3), "guided", guide="input", example_inputs=(3, 8, 8))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = TwoConvs()
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        if x.shape[0] > 1000:  # which torch.fx cannot tell
            return x
        return self.last(self.inner(x))


class TwoConvs(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.three = nn.Conv2d(5, 4, 3, padding=1)

    def forward(self, x):
        return self.three(self.two(self.one(x)))


def test_guides_of_other_regions_are_refused():
    model = Untraceable()
    assert "lies in another traced part of the model (stem)" in step_of(model, "inner.two", "stem").reason
    assert "whole model's graph only, and it lies in 'inner'" in step_of(model, "inner.two", "input").reason
    assert step_of(model, "inner.three", "inner.one").options.guide_channels == 4
    assert step_of(model, "inner.three", "inner.two").options.guide_channels == 5


def test_report_says_why_all_were_kept():
    with pytest.raises(NothingToSwapError, match=r"comes later|a cycle"):
        convswap.convert(torchvision.models.resnet18(), "guided", "layer1.*", guide="layer3")


def test_plan_leaves_the_model_alone():
    model = net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = set(vars(model))
    step_of(model, "second.conv2", "first")
    assert set(vars(model)) == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_rules_may_name_different_guides():
    model = net()
    rules = [
        convswap.Swap("second.conv1", "guided", guide="first"),
        convswap.Swap("second.conv2", "guided_channelwise", guide="input"),
    ]
    chosen = {s.site.name: s.options.guide for s in convswap.plan(model, rules, example_inputs=(3, 12, 12)).swaps}
    assert chosen == {"second.conv1": "first", "second.conv2": "input"}
    with pytest.raises(ConvswapError):
        convswap.plan(model, [convswap.Swap("second.conv1", "guided", guide=3)])
