"""State dicts of `PatchDynamicConv2d`, whose names are the published ones, and layers made from them."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from convswap.layers import PatchDynamicConv2d
from convswap.layers.hybrid import Autoencoder, Decoder, Encoder

from .helpers import Geometry
from .patch_loop import by_patches, predictor_of


def make(order="channels", **options):
    return PatchDynamicConv2d(4, 3, (3, 2), groups=1, hidden=5, patch_order=order, dtype=torch.float64, **options)


def trained(layer, shape=(2, 4, 8, 7)):
    """After a few steps, so that nothing is what it started as."""
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        layer(torch.randn(shape, dtype=torch.float64)).square().mean().backward()
        optimiser.step()
    return layer.eval()


X = torch.linspace(-1, 1, 2 * 4 * 8 * 7, dtype=torch.float64).sin().view(2, 4, 8, 7)


def test_names_are_the_published_ones_and_their_order():
    dense, norm = ["weight", "bias", "powers", "muls"], ["weight", "bias", "running_mean", "running_var"]
    wanted = ["similar_conv.weight", "similar_conv.bias"]
    for o in range(3):
        for i in range(5):
            kinds = dense[:2] if i == 4 else dense if i % 2 == 0 else [*norm, "num_batches_tracked"]
            wanted += [f"predictors.{o}.{i}.{kind}" for kind in kinds]
    assert list(make().state_dict()) == wanted
    state = make(similar_conv=False).state_dict()
    assert list(state) == wanted[2:]
    for o in range(3):  # loads strictly into modules that are written as published
        predictor_of(state, o, True)
    assert {name for name, _ in make().named_parameters()} >= {"predictors.first_weight", "predictors.last_bias"}


def test_entries_are_views():
    layer = make()
    for name, value in layer.state_dict().items():
        assert not value.requires_grad
        value.zero_() if value.is_floating_point() else value.fill_(7)
        assert value.is_contiguous()
        assert layer.state_dict()[name].eq(value).all()
    assert not any(value.any() for value in layer.parameters())
    assert (layer.predictors.norm2_num_batches_tracked == 7).all()
    kept = layer.state_dict(keep_vars=True)
    assert kept["predictors.1.4.weight"].requires_grad
    assert kept["similar_conv.weight"] is layer.weight


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("how", ["state", "torch.save", "meta"])
def test_round_trips_bit_for_bit(how, assign):
    torch.manual_seed(0)
    layer = trained(make())
    state = layer.state_dict()
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    other = make(device="meta") if how == "meta" else make()
    if how == "meta" and not assign:
        with pytest.warns(UserWarning, match="meta device.*assign=True"):
            other.load_state_dict(state)
        assert all(value.is_meta for value in other.predictors.parameters())
        return
    if assign:
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    assert str(other.load_state_dict(state, assign=assign)) == "<All keys matched successfully>"
    if assign:
        assert {value.dtype for value in other.parameters()} == {torch.float32}
        assert all(isinstance(value, nn.Parameter) and value.requires_grad for value in other.parameters())
        assert torch.equal(other.eval()(X.float()), layer.float()(X.float()))
        return
    assert torch.equal(other.eval()(X), layer(X))
    with torch.no_grad():
        other.predictors.first_weight.add_(1)
    assert not torch.equal(other.predictors.first_weight, layer.predictors.first_weight)


def test_safetensors_keep_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    layer, other = trained(make()), make()
    safetensors.save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(safetensors.load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(other.eval()(X), layer(X))


@pytest.mark.parametrize("full", [False, True])
def test_distributed_checkpoints_find_its_tensors(full):
    """They take the names of state dicts to be paths through modules."""
    dcp = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    layers = [nn.Sequential(make()) for _ in range(2)]
    optimisers = [torch.optim.Adam(layer.parameters(), lr=0.01) for layer in layers]
    layers[0](X).square().mean().backward()
    optimisers[0].step()
    options = dcp.StateDictOptions(full_state_dict=full)
    model, optimiser = dcp.get_state_dict(layers[0], optimisers[0], options=options)
    assert list(model) == list(layers[0].state_dict())
    dcp.set_state_dict(layers[1], optimisers[1], model_state_dict=model, optim_state_dict=optimiser, options=options)
    assert torch.equal(layers[1].eval()(X), layers[0].eval()(X))
    moments = [
        one.state[layer[0].predictors.last_weight]["exp_avg"] for one, layer in zip(optimisers, layers, strict=True)
    ]
    assert moments[0].any()
    assert torch.equal(*moments)


def test_parts_of_names_lead_to_tensors():
    predictors = make().predictors
    for name, value in predictors.state_dict().items():
        found = predictors
        for part in name.split("."):
            found = getattr(found, part)
        assert found.data_ptr() == value.data_ptr()
        assert found.shape == value.shape
    for missing in ("3", "-1", "first"):
        assert not hasattr(predictors, missing)
    assert hasattr(getattr(predictors, "2"), "4")
    for missing in ("5", "4.weight.data", "bias"):
        with pytest.raises(AttributeError, match=f"there is no 2.{missing} in PatchPredictors"):
            getattr(getattr(predictors, "2"), missing)


def test_copies_are_apart():
    torch.manual_seed(0)
    layer = trained(make())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(X), layer(X))
        with torch.no_grad():
            other.predictors.last_weight.zero_()
        assert not torch.equal(other(X), layer(X))


def test_errors_are_those_of_torch():
    """Missing, left over and of another shape: in the words that the published modules would give."""

    class Plain(nn.Module):
        def __init__(self, state):
            super().__init__()
            self.predictors = nn.ModuleList(predictor_of(state, o, True) for o in range(3))
            self.similar_conv = nn.Conv2d(4, 3, (3, 2), dtype=torch.float64)

    layer = make()
    state = dict(layer.state_dict())
    plain = Plain(state)
    del state["predictors.1.0.powers"], state["predictors.2.4.bias"], state["similar_conv.bias"]
    state["predictors.0.2.weight"] = torch.zeros(5, 4)
    state["predictors.3.0.weight"] = state["predictors.0.1.other"] = torch.zeros(1)
    told, lists = [], []
    for module in (layer, plain):
        with pytest.raises(RuntimeError) as caught:
            module.load_state_dict(state)
        parts = {part.strip() for line in str(caught.value).splitlines()[1:] for part in line.split('"')}
        told.append({part for part in parts if part.startswith(("predictors", "similar_conv", "size mismatch"))})
        loose = module.load_state_dict({k: v for k, v in state.items() if v.shape != (5, 4)}, strict=False)
        lists.append((set(loose.missing_keys), set(loose.unexpected_keys)))
    assert told[0] == told[1]
    assert len(told[0]) == 6
    assert lists[0] == lists[1]
    assert [len(part) for part in lists[0]] == [4, 2]


def test_part_of_a_state_is_loaded_where_that_is_allowed():
    torch.manual_seed(0)
    layer, other = trained(make()), make()
    before = copy.deepcopy(other.state_dict())
    part = {name: value for name, value in layer.state_dict().items() if name.startswith("predictors.1.")}
    missing, unexpected = other.load_state_dict(part, strict=False)
    assert not unexpected
    assert set(missing) == {name for name in set(before) - set(part) if not name.endswith("tracked")}
    for name, value in other.state_dict().items():
        assert torch.equal(value, part.get(name, before[name]))


def test_counters_of_batches_may_be_missing_as_in_old_files():
    layer = make()
    old = {name: value for name, value in layer.state_dict().items() if not name.endswith("tracked")}
    make().load_state_dict(old)


@pytest.mark.parametrize("similar_conv", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_from_published_reads_the_sizes_off_the_tensors(similar_conv, bias):
    torch.manual_seed(0)
    made = PatchDynamicConv2d(
        4, 3, 2, padding=1, bias=bias, hidden=6, similar_conv=similar_conv, patch_order="published", dtype=torch.float64
    )
    trained(made)
    state = {f"net.c1.{name}": value for name, value in made.state_dict().items()} | {"net.c10.weight": X, "other": X}
    layer = PatchDynamicConv2d.from_published(state, prefix="net.c1.", in_channels=4, stride=1, padding=1)
    assert (layer.out_channels, layer.hidden, layer.kernel_size, layer.patch_order) == (3, 6, (2, 2), "published")
    assert (layer.similar_conv is not None, layer.bias is not None) == (similar_conv, similar_conv and bias)
    assert not layer.training
    assert torch.equal(layer(X), made(X))
    assert layer.predictors.first_weight.data_ptr() != made.predictors.first_weight.data_ptr()


def test_from_published_equals_the_published_modules():
    torch.manual_seed(0)
    g = Geometry((16, 24), (8, 8), (8, 8), (0, 0), (1, 1), 1, "zeros", 3, 4, True, 0)
    made = trained(Encoder(hidden=7, patch_order="published", dtype=torch.float64), (2, 3, 24, 16))
    state = made.state_dict()
    layer = PatchDynamicConv2d.from_published(state, prefix="c1.", in_channels=3, stride=8, padding=0)
    x = g.input(3)
    wanted, _ = by_patches(layer, {name.removeprefix("c1."): v for name, v in state.items()}, x, g, False)
    assert (layer(x) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("change", "arguments", "error", "message"),
    [
        (lambda s: s.clear(), {}, ValueError, "there is no c1.predictors.0.0.weight: is 'c1.' the prefix"),
        (lambda s: s.pop("c1.predictors.1.2.powers"), {}, ValueError, r"Missing.*predictors\.1\.2\.powers"),
        (lambda s: s.pop("c1.predictors.0.0.weight"), {}, ValueError, "c1.predictors.0.0.weight is missing"),
        (lambda s: s.update({"c1.more": X}), {}, ValueError, "Unexpected.*more"),
        (lambda s: s.update({"c1.note": "text"}), {}, TypeError, "c1.note must be a tensor, got str"),
        (lambda s: None, {"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        (
            lambda s: s.update({"c1.predictors.2.1.bias": torch.ones(5, dtype=torch.long)}),
            {},
            ValueError,
            "c1.predictors.2.1.bias must have floating-point numbers, got torch.int64",
        ),
        (
            lambda s: s.update({"c1.predictors.99999999.0.weight": torch.zeros(5, 24)}),
            {},
            ValueError,
            "there is a c1.predictors.99999999 and no c1.predictors.3$",
        ),
        (lambda s: None, {"in_channels": 5}, ValueError, "similar_conv.weight must be .* in_channels=5"),
        (lambda s: None, {"kernel_size": 3}, ValueError, r"kernel_size is 3, .* has \(3, 2\)"),
        (lambda s: s.pop("c1.similar_conv.weight"), {}, ValueError, "no square kernel of in_channels=4: give kernel_"),
        (
            lambda s: s.update({"c1.predictors.0.0.weight": torch.zeros(5, 23)}),
            {},
            ValueError,
            r"has 24 numbers, and .* has patches of 23",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, arguments, error, message):
    state = {f"c1.{name}": value for name, value in make().state_dict().items()}
    change(state)
    with pytest.raises(error, match=f"(?s){message}"):
        PatchDynamicConv2d.from_published(state, **{"prefix": "c1.", "in_channels": 4, **arguments})


def test_kernels_that_are_not_square_are_told_without_a_convolution():
    made = trained(make("published", similar_conv=False))
    layer = PatchDynamicConv2d.from_published(made.state_dict(), in_channels=4, kernel_size=(3, 2))
    assert torch.equal(layer(X), made(X))


@pytest.mark.parametrize("order", ["channels", "published"])
def test_autoencoder(order):
    torch.manual_seed(0)
    model = Autoencoder(hidden=4, patch_order=order)
    x = torch.rand(2, 3, 32, 24)
    assert model.encoder(x).shape == (2, 4, 4, 3)
    assert model(x).shape == x.shape
    assert (model.decoder.c1.in_channels, model.decoder.c1.out_channels, model.decoder.c1.padding) == (4, 192, "same")
    assert isinstance(model.encoder, Encoder)
    assert isinstance(model.decoder, Decoder)
    model(x).square().mean().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())
    assert Autoencoder(1, 2, 4, hidden=3, similar_conv=False)(x[:, :1]).shape == (2, 1, 32, 24)


def test_published_padding_puts_the_odd_pixel_ahead():
    layer = PatchDynamicConv2d(1, 1, 2, padding="same", patch_order="published", similar_conv=False, hidden=2)
    layer.eval()
    with warnings.catch_warnings(), torch.no_grad():
        layer.predictors.last_weight.zero_()
        layer.predictors.last_bias.fill_(1)  # the mean of each patch, whatever its order
    x = torch.arange(1.0, 10).view(1, 1, 3, 3)
    sums = 4 * layer(x)[0, 0]
    assert sums[0].tolist() == [1, 3, 5]
    assert sums[:, 0].tolist() == [1, 5, 11]
