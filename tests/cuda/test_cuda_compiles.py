"""Every CUDA source compiles, and the library makes its ops known, also where there is no GPU."""

import re

import pytest

from convswap.layers.ops._build import SOURCES, build, nvcc

from .. import fresh_process

pytestmark = pytest.mark.skipif(nvcc() is None, reason="needs nvcc, of the CUDA toolkit")

REGISTERED = """
import importlib
import pkgutil
import sys

import torch

from convswap.layers import ops

for module in pkgutil.iter_modules(ops.__path__):
    if not module.name.startswith("_"):
        importlib.import_module(f"{ops.__name__}.{module.name}")
torch.ops.load_library(sys.argv[1])
for name in sys.argv[2:]:
    assert hasattr(torch.ops.convswap, name), f"{name} is defined nowhere"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"convswap::{name}", "CUDA"), f"{name} has no CUDA kernel"
"""


def names(backend, suffix):
    sources = [path.read_text() for path in sorted((SOURCES / backend).glob(f"*{suffix}"))]
    return sorted(name for source in sources for name in re.findall(r'\bimpl\("(\w+)"', source))


def test_compiles_and_registers():
    library = build("cuda", ["90"])
    wanted = names("cuda", ".cu")
    assert wanted
    done = fresh_process.run(REGISTERED, str(library), *wanted)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_same_ops_have_kernels_on_both():
    # In place is the CPU's alone: one thread of a GPU would overwrite what another has yet to read.
    assert {*names("cpu", ".cpp")} - {*names("cuda", ".cu")} == {"extrapolate_pad_backward_"}
    assert {*names("cuda", ".cu")} <= {*names("cpu", ".cpp")}
