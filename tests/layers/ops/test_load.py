"""When kernels are compiled and loaded, and what happens where they cannot be."""

import json
import os

import pytest
import torch

from ... import fresh_process

SCRIPT = """
import json, sys, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import convswap.layers as layers
    from convswap.layers.ops import _load
    untouched = not _load._tried
    {code}
kernel = [str(w.message) for w in caught if issubclass(w.category, _load.KernelWarning)]
print(json.dumps({{"untouched": untouched, "loaded": _load.kernels_loaded("cpu"), "warnings": kernel}}))
"""

USE = """
    layer = layers.Dcls2d(2, 3, 4)
    layers.Dcls2d(2, 3, 4)
    y = layer(torch.randn(1, 2, 9, 9))
"""


def run(code=USE, **environment):
    """What a fresh process tells that runs ``code``."""
    script = SCRIPT.format(code=code.strip())
    done = fresh_process.run(script, **environment)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout)


def test_import_alone_compiles_and_loads_nothing():
    assert run("pass", CONVSWAP_KERNELS="require") == {"untouched": True, "loaded": False, "warnings": []}


def test_off():
    assert run(CONVSWAP_KERNELS="off", CXX="no-such-compiler") == {"untouched": True, "loaded": False, "warnings": []}


def test_without_a_compiler_one_warning_and_plain_pytorch(tmp_path):
    told = run(CONVSWAP_KERNELS="auto", CXX="no-such-compiler", CONVSWAP_CACHE=str(tmp_path))
    assert not told["loaded"]
    assert len(told["warnings"]) == 1
    assert "no-such-compiler cannot be run" in told["warnings"][0]
    assert "CONVSWAP_KERNELS=off" in told["warnings"][0]


def test_required_and_not_to_be_had(tmp_path):
    told = run(CONVSWAP_KERNELS="require", CXX="no-such-compiler", CONVSWAP_CACHE=str(tmp_path))
    assert told.startswith("convswap.layers.ops._build.BuildError: the cpu kernels are required")
    assert "no-such-compiler" in told


def test_an_unknown_mode():
    assert "must be one of auto, off, require, got 'yes'" in run(CONVSWAP_KERNELS="yes")


@pytest.mark.skipif(os.environ.get("CONVSWAP_KERNELS") == "off", reason="kernels are switched off")
@pytest.mark.parametrize(
    "code",
    [
        "layers.Dcls2d(2, 3, 4)",
        "layers.Dcls2d.from_conv(torch.nn.Conv2d(2, 3, 3))",
        "layers.functional.large_depthwise_conv2d(torch.randn(1, 2, 9, 9), torch.randn(2, 1, 7, 7), padding=3)",
    ],
)
def test_the_first_that_wants_them_loads_them(code):
    assert run(code) == {"untouched": True, "loaded": True, "warnings": []}


@pytest.mark.skipif(os.environ.get("CONVSWAP_KERNELS") == "off", reason="kernels are switched off")
def test_a_layer_that_comes_from_another_process_wants_them_too(tmp_path):
    from convswap.layers import Dcls2d

    torch.save(Dcls2d(2, 3, 4), tmp_path / "layer.pt")
    code = f"torch.load({str(tmp_path / 'layer.pt')!r}, weights_only=False)"
    assert run(code)["loaded"]


def test_a_meta_layer_wants_none():
    assert not run("layers.Dcls2d(2, 3, 4, device='meta')")["loaded"]


def test_a_file_that_is_no_library(tmp_path):
    from convswap.layers.ops import _build

    before = os.environ.get("CONVSWAP_CACHE")
    os.environ["CONVSWAP_CACHE"] = str(tmp_path)
    try:
        library = _build.library_path("cpu")
        library.write_bytes(b"not a library")
        library.with_suffix(".size").write_text("13")
    finally:
        os.environ.pop("CONVSWAP_CACHE") if before is None else os.environ.update(CONVSWAP_CACHE=before)
    told = run(CONVSWAP_KERNELS="auto", CONVSWAP_CACHE=str(tmp_path))
    assert not told["loaded"]
    assert len(told["warnings"]) == 1
