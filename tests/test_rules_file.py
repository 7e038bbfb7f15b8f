"""Rules from TOML files: what they may hold, and what is said of what is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import convswap
from convswap import Swap
from convswap.errors import ConvswapError, FileError, OptionError, PatternError, UnknownNameError

from .models import TwoConvs


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "rules.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


WHOLE = """
# what the stem does is kept
[[swap]]
where = "stem.*"
to = "keep"

[[swap]]
where = ["stages.3.*", "!*downsample*", 're:.*\\.dw']
to = "dcls"
dilated_kernel_size = [7, 15]
kernel-count = 5
version = "gauss"
share_positions = "none"
max_kernel_bytes = "none"

[[swap]]
to = "dynamic"
where = "*"
kernels = { "stages.1.*" = 2, "*" = 4 }
noise = 1
convert_first = true
"""


def test_a_file_of_rules(written: Any) -> None:
    options = {"dilated_kernel_size": [7, 15], "kernel_count": 5, "version": "gauss"}
    assert convswap.read_rules(written(WHOLE)) == (
        Swap("stem.*", "keep"),
        Swap(
            ["stages.3.*", "!*downsample*", r"re:.*\.dw"],
            "dcls",
            **options,
            share_positions=None,
            max_kernel_bytes=None,
        ),
        Swap("*", "dynamic", kernels={"stages.1.*": 2, "*": 4}, noise=1, convert_first=True),
    )


def test_values_become_what_options_are(written: Any) -> None:
    names = ("stages.3.dw", "stages.1.pw", "stem.conv", "stages.3.downsample")
    model = nn.ModuleDict({"stem": nn.ModuleDict({"conv": nn.Conv2d(2, 2, 3)})})
    model["stages"] = nn.ModuleList(nn.ModuleDict() for _ in range(4))
    for name in names:
        part, kind = name.rsplit(".", 1)
        model.get_submodule(part)[kind] = nn.Conv2d(2, 2, 3)
    plan = convswap.plan(model, convswap.read_rules(str(written(WHOLE))))
    steps = {step.site.name: step for step in plan}
    assert [steps[name].target for name in names] == ["dcls", "dynamic", None, "dynamic"]
    dcls, dynamic = steps["stages.3.dw"].options, steps["stages.1.pw"].options
    assert (dcls.dilated_kernel_size, dcls.share_positions, dcls.max_kernel_bytes) == ((7, 15), "none", None)
    assert (dynamic.kernels, steps["stages.3.downsample"].options.kernels) == (2, 4)
    assert type(dynamic.noise) is float


def test_a_mark_at_the_start_is_no_mistake(written: Any) -> None:
    path = written(b'\xef\xbb\xbf[[swap]]\r\nwhere = "*"\r\nto = "dcls"\r\n')  # as some editors write it
    assert convswap.read_rules(path) == (Swap("*", "dcls"),)


def test_functions_are_named_with_trust_only(written: Any) -> None:
    path = written('[[swap]]\nwhere="*"\nto="guided"\nhypernet="tests.test_guided_models:body"\nguide="conv1"')
    with pytest.raises(
        ConvswapError, match=r"table 1 of 1: it names tests.test_guided_models:body, which would be imported"
    ):
        convswap.read_rules(path)
    (rule,) = convswap.read_rules(path, trust_source=True)
    assert rule.options == {"hypernet": "tests.test_guided_models:body", "guide": "conv1"}
    not_imported = written('[[swap]]\nwhere="*"\nto="guided"\nhypernet="nowhere.at_all:body"')
    assert convswap.read_rules(not_imported, trust_source=True)


RULE = '[[swap]]\nwhere = "*"\nto = "dcls"\n'


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", FileError, 'holds no rules: it needs a [[swap]] table for each, as in\n[[swap]]\nwhere = "*"'),
        ("swap = []", FileError, "holds no rules"),
        ("swap = 3", FileError, "swap must be [[swap]] tables, got 3"),
        ('[swap]\nwhere = "*"\nto = "dcls"', FileError, "each rule is a table [[swap]], in two pairs of brackets"),
        ("swap = [3]", FileError, "[[swap]] table 1 of 1: it must be a table, got 3"),
        ("[[swaps]]", FileError, "has a 'swaps' outside of the [[swap]] tables that rules are. Did you mean 'swap'?"),
        (f"kernels = 3\n{RULE}", FileError, "has a 'kernels' outside of the [[swap]] tables that rules are. Options"),
        ("[[swap]", FileError, "is no TOML: "),
        (f"{RULE}where = 3", FileError, "is no TOML: Cannot overwrite a value"),
        (b'[[swap]]\nwhere = "\xff"', FileError, "it must be text in UTF-8, and byte 18 of it is none"),
        (b"\x80\x02}q\x00.", FileError, "is no TOML: it must be text in UTF-8, and byte 0 of it is none"),
        (f"{RULE}x = {'[' * 5000}", FileError, "is no TOML: "),
        (f"{RULE}kernel_count = {'9' * 5000}", FileError, "it has a value that cannot be"),
        (" " * (2**20 + 1), FileError, "is larger than 1 MiB: this is no file of rules"),
        ('[[swap]]\nto = "dcls"', FileError, "1 of 1: 'where' is missing: for all convolutions write where = \"*\""),
        (
            '[[swap]]\nwere = "*"\nto = "dcls"',
            FileError,
            "'where' is missing: for all convolutions write where = \"*\" (is",
        ),
        (f'{RULE}[[swap]]\nwhere = "*"', FileError, "2 of 2: 'to' is missing: a target, or \"keep\""),
        (
            '[[swap]]\nwhere = 3\nto = "dcls"',
            FileError,
            "where must be a pattern, or a list of patterns, in quotes, got 3",
        ),
        ('[[swap]]\nwhere = ["a", 3]\nto = "dcls"', FileError, "in quotes, got ['a', 3]"),
        ('[[swap]]\nwhere = "*"\nto = ["dcls"]', FileError, "to must be the name of a target in quotes, got ['dcls']"),
        ('[[swap]]\nwhere = []\nto = "dcls"', PatternError, "table 1 of 1: where is an empty list"),
        ('[[swap]]\nwhere = "re:("\nto = "dcls"', PatternError, "'re:(' is no regular expression"),
        ('[[swap]]\nwhere = "*"\nto = "dclss"', UnknownNameError, "no target 'dclss'. Did you mean 'dcls'?"),
        (f"{RULE}kernels = 3", UnknownNameError, "target 'dcls' has no option 'kernels'"),
        (f"{RULE}self = 3", UnknownNameError, "target 'dcls' has no option 'self'"),
        (f'{RULE}version = "v9"', OptionError, "option 'version' of target 'dcls' must be 'v0' or 'v1'"),
        (f"{RULE}kernel_count = 2026-01-02", OptionError, "must be a whole number or None, got datetime.date"),
        (f"{RULE}kernel_count = 0", OptionError, "target 'dcls': kernel_count must be at least 1, got 0"),
        (f"{RULE}kernel_count = 3\nkernel-count = 3", FileError, "kernel_count is given twice"),
        ('[[swap]]\nwhere = "*"\nto = "keep"\nkernels = 3', UnknownNameError, "a rule to keep takes no options, got k"),
        ('[[swap]]\nwhere="*"\nto="dynamic"\nnoise=nan', OptionError, "must be a finite number, got nan"),
    ],
)
def test_mistakes_are_told_with_file_and_table(
    written: Any, text: str | bytes, kind: type[ConvswapError], message: str
) -> None:
    path = written(text)
    with pytest.raises(ConvswapError) as told:
        convswap.read_rules(path)
    assert type(told.value) is kind
    assert message in str(told.value)
    assert str(path) in str(told.value)


def test_what_is_no_file(tmp_path: Path, written: Any) -> None:
    with pytest.raises(FileError, match=r"there is no file .*gone.toml"):
        convswap.read_rules(tmp_path / "gone.toml")
    with pytest.raises(FileError, match="is a folder, not a file of rules"):
        convswap.read_rules(tmp_path)
    path = written(RULE)
    path.chmod(0)
    if not os.access(path, os.R_OK):
        with pytest.raises(FileError, match="cannot be read: Permission denied"):
            convswap.read_rules(path)


def test_a_pipe_is_read_like_a_file() -> None:
    reading, writing = os.pipe()
    os.write(writing, RULE.encode())
    os.close(writing)
    try:
        assert convswap.read_rules(f"/dev/fd/{reading}")
    finally:
        os.close(reading)


def test_rules_of_a_file_and_of_the_code_go_together(written: Any) -> None:
    plan = convswap.plan(TwoConvs(), [Swap("conv1", "keep"), *convswap.read_rules(written(RULE))])
    assert [step.target for step in plan] == [None, "dcls"]
