from __future__ import annotations

import fnmatch
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convswap.errors import PatternError
from convswap.sites import ConvSite
from convswap.where import matching

NAMES = ["stem.conv", "stages.0.conv1", "stages.0.conv2", "stages.1.conv1", "stages.1.conv2", "head.conv"]


def make_sites(names: list[str]) -> list[ConvSite]:
    return [ConvSite(name, nn.Conv2d(1, 1, 1), index) for index, name in enumerate(names)]


SITES = make_sites(NAMES)


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("*", NAMES),
        ("stem.conv", ["stem.conv"]),
        ("stages.*", NAMES[1:5]),
        ("*.conv1", ["stages.0.conv1", "stages.1.conv1"]),
        ("stages.?.conv[!1]", ["stages.0.conv2", "stages.1.conv2"]),
        ("re:stages\\.\\d\\.conv1", ["stages.0.conv1", "stages.1.conv1"]),
        ("re:.*(stem|head).*", ["stem.conv", "head.conv"]),
        ("!stages.*", ["stem.conv", "head.conv"]),
        (["!stages.*", "!head.conv"], ["stem.conv"]),
        (["stages.*", "!*.conv1"], ["stages.0.conv2", "stages.1.conv2"]),
        (["!*.conv1", "stages.*"], ["stages.0.conv2", "stages.1.conv2"]),
        (["stages.*", "!re:.*2"], ["stages.0.conv1", "stages.1.conv1"]),
        (["stem.conv", "head.conv"], ["stem.conv", "head.conv"]),
        (("stem.conv", "stem.*"), ["stem.conv"]),
        (lambda site: site.index < 2, NAMES[:2]),
        ([lambda site: site.index < 4, "!stem.*"], NAMES[1:4]),
        (["*", "!*"], []),
    ],
)
def test_choices(where: Any, chosen: list[str]) -> None:
    assert matching(where, SITES) == set(chosen)


def test_any_name_of_a_shared_convolution_will_do() -> None:
    site = ConvSite("a.conv", nn.Conv2d(1, 1, 1), 0, aliases=("b.conv",))
    assert matching("b.*", [site]) == {"a.conv"}
    assert matching(["*", "!b.*"], [site]) == set()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ([], "where is an empty list: it would choose nothing"),
        ("stages.0", "It names a module: write stages.0.* for the convolutions in it."),
        ("stages.0.", "It names a module: write stages.0.* for the convolutions in it."),
        ("stages.0.conv3", "'stages.0.conv3' matches none of the 6 convolutions. Did you mean 'stages.0.conv"),
        ("STEM.CONV", "Did you mean 'stem.conv'"),
        ("!stages.9.*", "'!stages.9.*' matches none of the 6 convolutions."),
        (
            ["stem.conv", "xyz"],
            "'xyz' matches none of the 6 convolutions. Their names are like stem.conv, stages.0.conv1",
        ),
        ("re:conv", "'re:conv' matches none"),
        ("re:(", "'re:(' is no regular expression: "),
        ("!re:[", "is no regular expression: "),
        (lambda site: False, "the where function chose none of the 6 convolutions"),
        ([3], "where takes strings and functions of a ConvSite, got 3"),
        ("", "'' matches none of the 6 convolutions"),
        (
            None,
            "where takes a glob on names, re:…, !… to exclude, a function of a ConvSite, or a list of these; got None",
        ),
        (5, "got 5 (for all convolutions leave it out, or write '*')"),
        (b"x", "got b'x'"),
        ([b"x"], "where takes strings and functions of a ConvSite, got b'x'"),
    ],
)
def test_what_chooses_nothing(where: Any, message: str) -> None:
    with pytest.raises(PatternError) as told:
        matching(where, SITES)
    assert message in str(told.value)


part = st.sampled_from(["a", "b", "ab", "0", "1"])
names = st.lists(part, min_size=1, max_size=3).map(".".join)
globs = st.lists(st.sampled_from(["a", "b", "0", "1", ".", "*", "?"]), min_size=1, max_size=5).map("".join)
patterns = st.tuples(st.booleans(), st.booleans(), globs)


def text_of(negative: bool, regular: bool, glob: str) -> str:
    return f"{'!' * negative}{'re:' * regular}{fnmatch.translate(glob) if regular else glob}"


@given(names=st.lists(names, min_size=1, max_size=8, unique=True), where=st.lists(patterns, min_size=1, max_size=4))
def test_against_a_simple_model(names: list[str], where: list[tuple[bool, bool, str]]) -> None:
    """Globs, regular expressions and exclusions of any kind in any order."""

    def matches(glob: str, name: str) -> bool:
        pattern = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in glob)
        return re.fullmatch(pattern, name) is not None

    sites, texts = make_sites(names), [text_of(*pattern) for pattern in where]
    if any(not any(matches(glob, name) for name in names) for _, _, glob in where):
        with pytest.raises(PatternError, match="matches none"):
            matching(texts, sites)
        return
    wanted = [glob for negative, _, glob in where if not negative] or ["*"]
    unwanted = [glob for negative, _, glob in where if negative]
    expected = {
        name
        for name in names
        if any(matches(glob, name) for glob in wanted) and not any(matches(glob, name) for glob in unwanted)
    }
    assert matching(texts, sites) == expected
    assert matching(texts[::-1], sites) == expected
