"""Agreement with the published package, ``dcls==0.1.1``."""

import DCLS.construct.modules as published
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convswap import layers
from convswap.layers.dcls_kernel import VERSIONS

from .helpers import few_examples, relative_error, seeds

# The layers of the package: axes of the input, those that elements move along, and further arguments by place.
CASES = (
    *((f"Dcls{dims}d", dims, dims, version, (), ()) for dims in (1, 2, 3) for version in VERSIONS),
    *(("Dcls3_1d", 3, 1, version, dense, ()) for version in VERSIONS[1:] for dense in ((2, 3), (1, 1))),
    *(("Dcls2dK1d", 2, 1, version, (), (flat,)) for version in VERSIONS for flat in (0, 1)),
)


def case_name(value):
    return "-".join(map(str, value)) if isinstance(value, tuple) else None


def pair_of_layers(case, seed, size, groups=1, bias=True, strides=None, padding_mode="zeros"):
    """The package's layer and ours with its state dict, in double precision, at random positions and widths."""
    name, dims, spaced, version, dense, further = case
    torch.manual_seed(seed)
    sizes = size if isinstance(size, tuple) else (size,) * spaced
    before = (4, 6, 3, strides or (1,) * dims, (2,) * dims)
    after = (sizes, groups, bias, padding_mode, version, *further)
    arguments = (*before, *((dense,) if dense else ()), *after)
    oracle = getattr(published, name)(*arguments).double()
    nn.init.normal_(oracle.P)
    if oracle.SIG is not None:
        nn.init.normal_(oracle.SIG)
    return oracle, getattr(layers, name)(*arguments, dtype=torch.float64)


def compare(ours, oracle, x):
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(mine), oracle(theirs)
    assert relative_error(y, expected) < 1e-12
    y.square().sum().backward()
    expected.square().sum().backward()
    assert relative_error(mine.grad, theirs.grad) < 1e-10
    parameters = dict(oracle.named_parameters())
    assert parameters.keys() == dict(ours.named_parameters()).keys()
    for key, parameter in parameters.items():
        # Where no tap is free to move, as on a grid of one pixel, all is rounding.
        assert relative_error(ours.get_parameter(key).grad, parameter.grad, least=1e-3) < 1e-9, key


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_state_dict_output_and_gradients(case):
    dims = case[1]

    @few_examples
    @given(
        seeds,
        st.integers(1, 6),
        st.sampled_from((1, 2)),
        st.booleans(),
        st.tuples(*[st.integers(1, 2)] * dims),
        st.sampled_from(("zeros", "circular", "replicate")),
    )
    def check(seed, size, groups, bias, strides, padding_mode):
        oracle, ours = pair_of_layers(case, seed, size, groups, bias, strides, padding_mode)
        ours.load_state_dict(oracle.state_dict())
        compare(ours, oracle, torch.randn(2, 4, *(6,) * dims, dtype=torch.float64))

    check()


RECTANGLES = [
    *((("Dcls2d", 2, 2, version, (), ()), (5, 2)) for version in VERSIONS),
    *((("Dcls3d", 3, 3, version, (), ()), (2, 5, 3)) for version in VERSIONS),
    (("Dcls3_1d", 3, 1, "gauss", (2, 3), ()), (4,)),
    (("Dcls2dK1d", 2, 1, "max", (), (1,)), (5,)),
    (("Dcls1d", 1, 1, "v0", (), ()), (6,)),
]


@pytest.mark.parametrize("prefix", ["", "stages.0.dcls."])
@pytest.mark.parametrize(("case", "sizes"), RECTANGLES, ids=case_name)
def test_layer_is_made_from_a_published_state_dict(case, sizes, prefix):
    name, dims, _, version, _, further = case
    oracle, _ = pair_of_layers(case, 0, sizes, 2, True, (2,) * dims, "circular")
    state = {prefix + key: value for key, value in oracle.state_dict().items()}
    if prefix:
        state["head.weight"] = torch.zeros(3)
    before = {key: value.clone() for key, value in state.items()}
    own = {"flat_dim": further[0]} if further else {}
    ours = getattr(layers, name).from_dcls(
        state,
        prefix=prefix,
        dilated_kernel_size=sizes,
        version=version,
        groups=2,
        stride=2,
        padding=2,
        padding_mode="circular",
        **own,
    )
    compare(ours, oracle, torch.randn(2, 4, *(6,) * dims, dtype=torch.float64))
    assert all(torch.equal(value, before[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix": "a."}, r"no a.weight, a.P, a.SIG: give the layer's own prefix"),
        ({"version": "v1"}, r"has SIG as well"),
        ({"SIG": torch.zeros(2, 6, 4, 2)}, r"SIG must have shape \(2, 6, 4, 3\).*got \(2, 6, 4, 2\)"),
        ({"weight": torch.zeros(6, 4, 1, 3)}, r"weight must have 3 axes, got the shape \(6, 4, 1, 3\)"),
        ({"bias": torch.zeros(5)}, r"bias must have shape \(6,\)"),
        ({"DCK": torch.zeros(5)}, "DCK"),
    ],
)
def test_state_dict_that_does_not_fit_is_refused(change, message):
    state = published.Dcls2d(4, 6, 3, dilated_kernel_size=5, version="gauss").state_dict()
    arguments = {"dilated_kernel_size": 5, "version": "gauss"}
    arguments |= {key: change[key] for key in ("prefix", "version") if key in change}
    state |= {key: value for key, value in change.items() if key not in arguments and key != "prefix"}
    with pytest.raises(ValueError, match=message):
        layers.Dcls2d.from_dcls(state, **arguments)
