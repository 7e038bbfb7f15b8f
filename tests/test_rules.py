"""Several rules: which decides, what steps say of it, and what is wrong with rules that cannot be followed."""

from __future__ import annotations

import fnmatch
import importlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import convswap
from convswap import Swap
from convswap.choice import choose
from convswap.errors import ConvswapError, NothingToSwapError, OptionError, PatternError, UnknownNameError
from convswap.layers import Dcls2d, DynamicConv2d
from convswap.sites import ConvSite
from convswap.targets.dcls import Dcls

from .models import TwoConvs, as_if_trained, relative_error


def chain(count: int = 4) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(count)))


def reasons(plan: convswap.Plan) -> dict[str, str]:
    return {step.site.name: step.reason for step in plan}


def targets(plan: convswap.Plan) -> list[str | None]:
    return [step.target for step in plan]


# Which decides ----------------------------------------------------------------------------------------------------


def test_steps_say_which_rule_decided() -> None:
    rules = [
        Swap("0", "keep"),
        Swap(["1", "!2"], "dynamic", kernels=3),
        Swap("re:[12]", "dcls"),
    ]
    plan = convswap.plan(chain(), rules)
    assert reasons(plan) == {
        "0": "kept by rule 1: '0'",
        "1": "chosen by rule 2: ['1', '!2'] to dynamic",
        "2": "chosen by rule 3: 're:[12]' to dcls",
        "3": "chosen by none of the 3 rules",
    }
    assert targets(plan) == [None, "dynamic", "dcls", None]


def large(site: ConvSite) -> bool:
    return site.module.out_channels > 4


def test_functions_are_called_by_their_names() -> None:
    plan = convswap.plan(TwoConvs(), [Swap("conv2", "dcls"), Swap([large, "!conv2"], "dcls", kernel_count=20)])
    assert plan.steps[0].reason == "chosen by rule 2: [the function tests.test_rules:large, '!conv2'] to dcls"


def test_what_an_earlier_rule_keeps_no_later_one_converts() -> None:
    rules = [Swap(["*", "!1", "!2"], "keep"), Swap("*", "dcls")]
    new: Any = convswap.convert(chain(), rules)
    assert [type(layer) for layer in new] == [nn.Conv2d, Dcls2d, Dcls2d, nn.Conv2d]
    assert convswap.report(new).keeps_by_reason() == {"kept by rule 1: ['*', '!1', '!2']": ["0", "3"]}


def test_kernels_are_counted_for_what_is_not_kept() -> None:
    rules = [Swap("1", "keep"), Swap("*", "dynamic", kernels=[2, 3], convert_first=True)]
    new: Any = convswap.convert(chain(3), rules)
    assert [new[0].kernels, new[2].kernels] == [2, 3]


def test_rules_to_keep_alone_swap_nothing() -> None:
    for rules in ("keep", [Swap("0", "keep"), Swap("1", "keep")]):
        with pytest.raises(NothingToSwapError, match="no rule is to convert, only to 'keep'"):
            convswap.plan(chain(), rules)


def test_tied_convolutions_of_two_rules_stay() -> None:
    model = chain(3)
    model[1].weight = model[0].weight
    plan = convswap.plan(model, [Swap("0", "keep"), Swap("*", "dcls")])
    assert targets(plan) == [None, None, "dcls"]
    assert plan.steps[1].reason.startswith("it shares parameters with 0.weight, which is not converted in the same way")


def test_a_rule_may_be_read_twice() -> None:
    rule = Swap((name for name in ("0", "1")), "dcls")
    assert targets(convswap.plan(chain(3), [rule])) == targets(convswap.plan(chain(3), rule)) == ["dcls", "dcls", None]


glob_of_names = st.lists(st.sampled_from(["a", "b", "*", "?", "."]), min_size=1, max_size=3).map("".join)


@given(
    names=st.lists(st.text("ab.", min_size=1, max_size=3), min_size=1, max_size=6, unique=True),
    given_rules=st.lists(
        st.tuples(glob_of_names, st.sampled_from(["dcls", "dynamic", "keep"])), min_size=2, max_size=4
    ),
)
def test_against_a_simple_model(names: list[str], given_rules: list[tuple[str, str]]) -> None:
    sites = [ConvSite(name, nn.Conv2d(1, 1, 1), index) for index, name in enumerate(names)]
    rules = [Swap(where, to) for where, to in given_rules]
    matches = [{name for name in names if fnmatch.fnmatchcase(name, where)} for where, _ in given_rules]
    first = [next((i for i, found in enumerate(matches) if name in found), None) for name in names]
    starred = [i for i, (where, _) in enumerate(given_rules) if where == "*"]
    idle = [i for i in range(len(rules)) if i not in first and i not in starred[:1]]
    if idle or not all(matches):
        with pytest.raises(PatternError):
            choose(rules, sites, nn.Identity())
        return
    choices = choose(rules, sites, nn.Identity())
    assert [choice.rule for choice in choices] == first
    assert [choice.keeps for choice in choices] == [i is not None and given_rules[i][1] == "keep" for i in first]


# Rules that decide nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [Swap("*", "dcls"), Swap("1", "dynamic")],
            "rule 2, '1' to dynamic, can never decide: the first rule that matches does, and of the 1 that it matches "
            "(1) all are taken by rule 1, '*' to dcls. Put it before that, or leave it out",
        ),
        (
            [Swap(["0", "1"], "dcls"), Swap("3", "keep"), Swap(["1", "3"], "dynamic")],
            "(1, 3) all are taken by rule 1, ['0', '1'] to dcls; rule 2, '3' to keep",
        ),
        ([Swap("*", "dcls"), Swap("*", "keep")], "rule 2, '*' to keep, can never decide"),
        ([Swap("re:.", "dcls"), Swap("*", "keep"), Swap("*", "dynamic")], "rule 3, '*' to dynamic, can never decide"),
        ([Swap("0", "dcls"), Swap(["1", "!*"], "dynamic")], "rule 2, ['1', '!*'] to dynamic, chooses nothing: it excl"),
        ([Swap(["1", "!*"], "dynamic"), Swap("0", "dcls")], "rule 1, ['1', '!*'] to dynamic, chooses nothing"),
    ],
)
def test_rules_that_can_never_decide(rules: list[Swap], message: str) -> None:
    with pytest.raises(PatternError) as told:
        convswap.plan(chain(), rules)
    assert message in str(told.value)


def test_nothing_need_be_left_for_the_last_rule() -> None:
    assert targets(convswap.plan(chain(2), [Swap("re:.", "dcls"), Swap("*", "keep")])) == ["dcls", "dcls"]


def test_a_rule_that_swaps_nothing_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1))
    plan = convswap.plan(model, [Swap(["0", "1"], "dcls"), Swap("*", "dcls", kernel_count=20)])
    idle = "a 1×1 kernel has nothing to space (decided by rule 1, ['0', '1'] to dcls, which swaps nothing)"
    assert list(reasons(plan).values()) == [
        idle,
        idle,
        "chosen by rule 2: '*' to dcls",
        "a 1×1 kernel has nothing to space (decided by rule 2, '*' to dcls)",
    ]
    assert idle in " ".join(str(plan).split())


# What is wrong is told with the rule, before anything is done -----------------------------------------------------

FINE = Swap("0", "dcls")


@pytest.mark.parametrize(
    ("rule", "kind", "message"),
    [
        (Swap("1", "dclss"), UnknownNameError, "rule 2, '1' to dclss: there is no target 'dclss'. Did you mean 'dcls'"),
        (Swap("1", "dcls", kernels=3), UnknownNameError, "rule 2, '1' to dcls: target 'dcls' has no option 'kernels'"),
        (Swap("1", "dcls", self=3), UnknownNameError, "target 'dcls' has no option 'self'"),
        (Swap("1", "dcls", kernel_count=0), OptionError, "rule 2, '1' to dcls: target 'dcls': kernel_count must be"),
        (Swap("1", "keep", kernels=3), UnknownNameError, "'1' to keep: a rule to keep takes no options, got kernels"),
        (Swap("1", 3), UnknownNameError, "rule 2, '1' to 3: a rule is for the name of a target, or 'keep', got 3"),
        (Swap("dcls", "1"), UnknownNameError, "where comes first: Swap('1', 'dcls', ...)"),
        (Swap("re:(", "dcls"), PatternError, "rule 2, 're:(' to dcls: 're:(' is no regular expression"),
        (Swap("re:a{99999999999}", "dcls"), PatternError, "is no regular expression: the repetition number"),
        (Swap([], "dcls"), PatternError, "rule 2, [] to dcls: where is an empty list"),
        (Swap(["1", 5], "dcls"), PatternError, "where takes strings and functions of a ConvSite, got 5"),
        (Swap(None, "dcls"), PatternError, "rule 2, None to dcls: where takes a glob on names"),
    ],
)
def test_what_no_model_is_needed_for_is_told_first(
    monkeypatch: pytest.MonkeyPatch, rule: Swap, kind: type[ConvswapError], message: str
) -> None:
    def untouched(*_: Any) -> Any:
        raise AssertionError("the model was traced")

    monkeypatch.setattr(importlib.import_module("convswap.plan"), "trace", untouched)
    with pytest.raises(kind) as told:
        convswap.plan(chain(), [FINE, rule])
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("rule", "kind", "message"),
    [
        (Swap("1.*", "dcls"), PatternError, "rule 2, '1.*' to dcls: '1.*' matches none of the 4 convolutions"),
        (Swap(lambda site: site.nme == "1", "dcls"), PatternError, "the where function failed for 0: AttributeError:"),
        (Swap(lambda site: torch.ones(2) > 0, "dcls"), PatternError, "the where function failed for 0: RuntimeError"),
        (
            Swap("1", "dcls", share_positions=lambda site: [1]),
            OptionError,
            "rule 2, '1' to dcls: the label of a group must be hashable",
        ),
        (
            Swap(["1", "2"], "dynamic", kernels=[2, 3, 4]),
            OptionError,
            "rule 2, ['1', '2'] to dynamic: kernels has 3 numbers, and 2 convolutions would be converted",
        ),
        (Swap("1", "guided", guide="9"), OptionError, "rule 2, '1' to guided: there is no module, node or input '9'"),
    ],
)
def test_nothing_is_changed_before_all_rules_are_found_to_fit(
    rule: Swap, kind: type[ConvswapError], message: str
) -> None:
    model = chain()
    with pytest.raises(kind) as told:
        convswap.convert_(model, [FINE, rule], example_inputs=(3, 8, 8))
    assert message in str(told.value)
    assert [type(layer) for layer in model] == [nn.Conv2d] * 4


def test_errors_of_a_single_rule_are_not_numbered() -> None:
    with pytest.raises(PatternError, match=r"^'9' matches none"):
        convswap.plan(chain(), [Swap("9", "dcls")])
    with pytest.raises(UnknownNameError, match=r"^there is no target"):
        convswap.plan(chain(), "dclss")


def test_no_target_can_be_called_keep() -> None:
    class Keep(Dcls):
        name = "keep"

    with pytest.raises(OptionError, match="no target can be called 'keep'"):
        convswap.register(Keep())


# Convolutions of several names ------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Any:
    model = nn.ModuleDict({"a": chain(2), "b": chain(2)})
    model["b"][0] = model["a"][0]
    return model


def test_the_first_rule_decides_whichever_name_it_matches(shared: Any) -> None:
    late = "rule {}, '{}.*' to {}, which matches it as {}.0, comes too late"
    for first, then in (("a", "b"), ("b", "a")):
        new: Any = convswap.convert(shared, [Swap(f"{first}.*", "dcls"), Swap(f"{then}.*", "dynamic", kernels=2)])
        assert isinstance(new["a"][0], Dcls2d)
        assert new["a"][0] is new["b"][0]
        assert isinstance(new[then][1], DynamicConv2d)
        notes = {step.name: step.note for step in convswap.report(new).swaps}
        told = f"it is shared, and chosen as {first}.0: {late.format(2, then, 'dynamic', then)}"
        assert notes == {"a.0": told, "a.1": None, "b.1": None}


def test_a_shared_convolution_that_is_kept_under_one_name_is_kept(shared: Any) -> None:
    plan = convswap.plan(shared, [Swap("b.*", "keep"), Swap("a.*", "dcls")])
    assert reasons(plan)["a.0"] == (
        "kept by rule 1: 'b.*'; it is shared, and chosen as b.0: rule 2, 'a.*' to dcls, which matches it as a.0, comes "
        "too late"
    )


def test_rules_for_the_same_name_need_no_word_about_sharing(shared: Any) -> None:
    plan = convswap.plan(shared, [Swap("a.*", "dcls"), Swap(["*", "!a.1"], "dynamic")])
    assert targets(plan) == ["dcls", "dcls", "dynamic"]
    assert {step.note for step in plan} == {None}


# Guides that another rule converts --------------------------------------------------------------------------------


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.stem(x)))


@pytest.mark.parametrize("guide", ["stem", "body", "body.0", "body.1", "body.2:input"])
@pytest.mark.parametrize("as_graph", [False, True])
def test_a_guide_may_be_what_another_rule_converts(guide: str, as_graph: bool) -> None:
    model = as_if_trained(Branches()).double().eval()
    rules = [
        Swap("last", "guided", guide=guide),
        Swap("body.0", "guided", guide="stem"),
        Swap("body.*", "dcls"),
        Swap("stem", "dynamic", convert_first=True),
    ]
    new: Any = convswap.convert(model, rules, example_inputs=(3, 8, 8), as_graph=as_graph)
    x = torch.randn(2, 3, 8, 8).double()
    assert relative_error(new(x), model(x)) < 1e-10
    with torch.no_grad():  # the last layer follows its guide, and that the converted convolution
        nn.init.normal_(new.last.hypernet.expand.weight)
        seen = new(x)
        nn.init.normal_(new.stem.weight if hasattr(new.stem, "weight") else next(new.stem.parameters()))
    assert relative_error(new(x), seen) > 1e-3


# What is converted already ----------------------------------------------------------------------------------------


def test_layers_of_ours_are_no_convolutions_to_choose() -> None:
    new = convswap.convert(chain(), [Swap("1", "dynamic"), Swap("2", "dcls")])
    with pytest.raises(PatternError, match=r"matches none of the 2 convolutions, but layers .* \(1: DynamicConv2d\)"):
        convswap.convert(new, [Swap("0", "dcls"), Swap("1", "dcls")])
    again: Any = convswap.convert(new, [Swap("0", "keep"), Swap("*", "condconv")])
    assert [type(layer).__name__ for layer in again] == ["Conv2d", "DynamicConv2d", "Dcls2d", "CondConv2d"]
    assert [step.target for step in convswap.report(again).swaps] == ["dynamic", "dcls", "condconv"]


def test_a_model_where_everything_is_converted() -> None:
    new = convswap.convert(chain(), [Swap("1", "dynamic"), Swap("*", "dcls")])
    with pytest.raises(NothingToSwapError, match=r"no convolution to convert. To .* there \(0, 1, … 3 \(4\)\), make"):
        convswap.convert(new, "dcls")
    with pytest.raises(NothingToSwapError, match=r"Dcls2d has no .* \(the model itself\), make it plain first"):
        convswap.convert(convswap.convert(nn.Conv2d(3, 3, 3), "dcls"), "dcls")
    once_more: Any = convswap.convert(convswap.freeze(new), "condconv")
    assert [type(layer).__name__ for layer in once_more] == ["CondConv2d", "DynamicConv2d", "CondConv2d", "CondConv2d"]


def test_parts_of_layers_are_not_reported_as_the_models_own() -> None:
    model = chain(2)
    new = convswap.convert(convswap.convert(model, "hybrid", "0"), "dcls")
    made = convswap.report(new)
    assert [step.name for step in made.steps] == ["0", "1"]
    assert made.total("before").parameters == sum(parameter.numel() for parameter in model.parameters())
