"""Kernels predicted for each patch: against a loop over patches and predictors."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from convswap.layers import PatchDynamicConv2d, patch_dynamic_chunks

from .helpers import few_examples, geometries, is_channels_last, relative_error
from .patch_loop import by_patches

ORDERS = ("channels", "published")


def varied(layer, seed=0):
    """As after some training: everything that starts at 0 or 1 is something else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*layer.named_parameters(), *layer.named_buffers()):
            if value.is_floating_point() and ("norm" in name or name.endswith(("powers", "muls"))):
                value.copy_(0.4 + 1.2 * torch.rand(value.shape, generator=generator, dtype=torch.float64))
    return layer


def layer_of(g, hidden, order="channels", similar_conv=True, dtype=torch.float64):
    torch.manual_seed(g.seed)
    layer = PatchDynamicConv2d(
        g.in_channels,
        g.out_channels,
        g.kernel_size,
        g.stride,
        g.padding,
        g.dilation,
        g.groups,
        g.bias,
        g.padding_mode,
        hidden=hidden,
        similar_conv=similar_conv,
        patch_order=order,
        dtype=dtype,
    )
    return varied(layer, g.seed)


def small(**options):
    torch.manual_seed(0)
    return varied(PatchDynamicConv2d(4, 6, 3, 2, 1, groups=2, hidden=5, dtype=torch.float64, **options))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [False, True])
def test_as_a_loop_over_patches(order, training):
    @few_examples
    @given(geometries(dims=2), st.integers(1, 5), st.booleans(), st.sampled_from((1, 40, 1 << 18)))
    def check(g, hidden, similar_conv, chunk):
        layer, x = layer_of(g, hidden, order, similar_conv).train(training), g.input()
        state = copy.deepcopy(layer.state_dict())
        wanted, predictors = by_patches(layer, state, x, g, training)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patch_dynamic_chunks, "CHUNK", chunk)
            patch.setattr(patch_dynamic_chunks, "PIXELS", 1 + chunk % 17)
            y = copy.deepcopy(layer)(x)
            with torch.no_grad():
                alone = layer(x)
        assert relative_error(y, wanted) < 1e-11
        assert relative_error(alone, wanted) < 1e-11
        after = layer.state_dict()
        for o, predictor in enumerate(predictors):
            for name, value in predictor.state_dict().items():
                assert torch.allclose(after[f"predictors.{o}.{name}"], value, rtol=1e-11), name

    check()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_those_of_the_loop(order, training):
    @few_examples
    @given(geometries(dims=2, channels=1), st.sampled_from((1, 1 << 18)))
    def check(g, chunk):
        layer, x = layer_of(g, 3, order).train(training), g.input().requires_grad_()
        state = {
            name: value.clone().requires_grad_(value.is_floating_point()) for name, value in layer.state_dict().items()
        }
        own = {name: value for name, value in state.items() if value.requires_grad and "running" not in name}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patch_dynamic_chunks, "CHUNK", chunk)
            y = layer(x)
            grad = torch.randn(y.shape, dtype=y.dtype, generator=g.generator())
            y.backward(grad)
        wanted, predictors = by_patches(layer, {k: v.detach() for k, v in state.items()}, x, g, training)
        (x_grad,) = torch.autograd.grad(wanted, x, grad, retain_graph=True)
        assert relative_error(x.grad, x_grad) < 1e-9
        layer.zero_grad()
        loops = [value for predictor in predictors for value in predictor.parameters()]
        due = dict(
            zip(
                [f"predictors.{o}.{name}" for o, p in enumerate(predictors) for name, _ in p.named_parameters()],
                torch.autograd.grad(wanted, loops, grad),
                strict=True,
            )
        )
        assert {name for name in own if name.startswith("predictors.")} == set(due)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patch_dynamic_chunks, "CHUNK", chunk)
            copy.deepcopy(layer)  # with a graph behind it
            layer(x).backward(grad)
        with torch.no_grad():  # the names of the gradients are those of the state dict
            for value in layer.predictors.parameters():
                value.copy_(value.grad)
        found = layer.state_dict()
        for name, value in due.items():
            assert relative_error(found[name], value, least=1e-4) < 1e-8, name

    check()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [False, True])
def test_derivatives_of_first_and_second_order(order, training):
    torch.manual_seed(0)
    layer = varied(PatchDynamicConv2d(2, 2, 2, padding=1, hidden=2, patch_order=order, dtype=torch.float64))
    layer.train(training)
    names = [name for name, _ in layer.named_parameters()]
    tensors = [value.detach().clone().requires_grad_() for value in layer.parameters()]
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def compute(x, *values):
        return torch.func.functional_call(copy.deepcopy(layer), dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(compute, (x, *tensors), fast_mode=True)
    assert gradgradcheck(compute, (x, *tensors), fast_mode=True)


@pytest.mark.parametrize("order", ORDERS)
def test_a_single_patch_is_not_normed_by_itself(order):
    layer = small(patch_order=order)
    x = torch.randn(1, 4, 2, 2, dtype=torch.float64)
    before = copy.deepcopy(layer.state_dict())
    y = layer.train()(x)
    assert y.shape == (1, 6, 1, 1)
    assert torch.equal(y, layer.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    empty = layer.train()(x[:0])
    assert empty.shape == (0, 6, 1, 1)
    empty.sum().backward()


@pytest.mark.parametrize("order", ORDERS)
def test_formats_and_batches(order):
    layer, x = small(patch_order=order).eval(), torch.randn(3, 4, 9, 9, dtype=torch.float64)
    y = layer(x)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            from_last = layer(x.to(memory_format=torch.channels_last))
            assert is_channels_last(from_last)
            assert relative_error(from_last, y) < 1e-12
            assert relative_error(layer(x[1]), y[1]) < 1e-12
            assert layer(x[:0]).shape == (0, *y.shape[1:])
    with pytest.raises(ValueError, match=r"\(B, 4, H, W\).*\(3, 5, 9, 9\)"):
        layer(torch.randn(3, 5, 9, 9, dtype=torch.float64))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_autocast(dtype, training, order):
    layer, x = small(patch_order=order).float().train(training), torch.randn(3, 4, 9, 9)
    y = copy.deepcopy(layer)(x)
    with torch.autocast("cpu", dtype):
        low = copy.deepcopy(layer)(x)
        with torch.no_grad():
            alone = copy.deepcopy(layer)(x)
        again = layer(x)
    assert low.dtype == alone.dtype == dtype
    assert max(relative_error(low, y), relative_error(alone, y)) < 0.05
    again.float().square().sum().backward()
    assert all(value.grad.dtype == torch.float32 and value.grad.isfinite().all() for value in layer.parameters())


def test_little_is_kept_for_backward():
    layer, x = small(), torch.randn(2, 4, 32, 32, dtype=torch.float64)
    sizes = {}

    def note(value):
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        y = layer(x)
    held = sum(value.numel() * 8 for value in layer.parameters())
    hidden = y.numel() * 8 * layer.hidden
    assert sum(sizes.values()) < 1.2 * hidden + x.numel() * 8 + 2 * held


def test_frozen_predictors_pass_gradients_to_the_input_alone():
    layer, x = small(), torch.randn(2, 4, 9, 9, dtype=torch.float64, requires_grad=True)
    other = copy.deepcopy(layer)
    wanted = torch.autograd.grad(other(x).square().sum(), x)[0]
    layer.requires_grad_(False)
    layer(x).square().sum().backward()
    assert torch.allclose(x.grad, wanted)
    assert all(value.grad is None for value in layer.parameters())


def test_gradients_of_several_batches_add_up():
    layer, x = small(), torch.randn(4, 4, 9, 9, dtype=torch.float64)
    losses = [layer(part).square().sum() for part in x.split(2)]  # the statistics change in between
    torch.stack(losses).sum().backward()
    summed = [value.grad.clone() for value in layer.parameters()]
    layer.zero_grad()
    for part in x.split(2):
        layer(part).square().sum().backward()
    assert all(torch.allclose(one, two.grad) for one, two in zip(summed, layer.parameters(), strict=True))


def test_onnx_with_any_batch(tmp_path):
    """In both orders, one after the other."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    first = varied(PatchDynamicConv2d(2, 2, 2, 2, hidden=2))
    published = varied(PatchDynamicConv2d(2, 1, 2, hidden=2, similar_conv=False, patch_order="published"))
    layer, x = nn.Sequential(first, published).eval(), torch.randn(2, 2, 6, 8)
    with torch.no_grad():  # where powers are below 1, rounding near 0 becomes more than rounding
        for one in layer:
            one.predictors.first_powers += 1
            one.predictors.second_powers += 1
    path = tmp_path / "layer.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        torch.onnx.export(layer, (x,), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    more = torch.cat((x, x.flip(0), x[:1]))
    (y,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    assert relative_error(torch.from_numpy(np.asarray(y)), layer(more)) < 1e-5


def test_compiled_training_follows_the_statistics():
    """Compiled for one shape, and then for any."""
    layer = small()
    other = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for shape in ((2, 4, 5, 7), (3, 4, 7, 8), (4, 4, 6, 5)):
        x = torch.randn(shape, dtype=torch.float64)
        assert relative_error(compiled(x), layer(x)) < 1e-12
    for name, value in layer.state_dict().items():
        assert torch.allclose(value, other.state_dict()[name]), name


@pytest.mark.parametrize("order", ORDERS)
def test_exported_in_training_with_any_batch(order):
    layer, x = small(patch_order=order), torch.randn(5, 4, 5, 5, dtype=torch.float64)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    exported = torch.export.export(copy.deepcopy(layer), (x[:3],), dynamic_shapes=shapes).module()
    assert relative_error(exported(x), layer(x)) < 1e-12
    buffers = dict(exported.named_buffers())
    assert buffers
    for name, value in layer.named_buffers():
        assert torch.allclose(value, buffers[name]), name


def test_transformed_without_gradients():
    """Over what norms learn, which has an axis that the units themselves do not have."""
    layer, x = small().eval(), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    for name in ("norm1_weight", "norm2_bias"):
        weights = torch.stack((getattr(layer.predictors, name), 2 * getattr(layer.predictors, name))).detach()
        compute = lambda value, key=f"predictors.{name}": torch.func.functional_call(layer, {key: value}, (x,))
        with torch.no_grad():
            each = torch.vmap(compute)(weights)
            assert relative_error(each, torch.stack([compute(value) for value in weights])) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [({"hidden": 0}, "hidden must be at least 1, got 0"), ({"patch_order": "rows"}, "patch_order.*'rows'")],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        PatchDynamicConv2d(3, 4, 3, **change)


def test_drawn_anew():
    layer = small()
    before = copy.deepcopy(layer)
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before.weight)
    assert not torch.equal(layer.predictors.last_weight, before.predictors.last_weight)
    assert (layer.predictors.first_powers == 1).all()
    assert isinstance(layer.similar_conv, nn.Conv2d)
