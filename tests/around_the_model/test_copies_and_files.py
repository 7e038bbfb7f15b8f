"""Copies, pickles, files, other devices, and training that goes on."""

import copy
import io
import pickle

import pytest
import torch

import convswap

from .models import NAMES, assert_same, converted, gradients, images

KINDS = [*((name, "mixed") for name in NAMES), (NAMES[1], "routed")]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_copies_and_files(name, kind, tmp_path):
    new, x = converted(name, kind), images(2)
    expected = new(x)
    buffer = io.BytesIO()
    torch.save(new, buffer)
    buffer.seek(0)
    file = tmp_path / "new.safetensors"
    convswap.save(new, file, source=name, source_args={"num_classes": 10})
    others = [copy.deepcopy(new), pickle.loads(pickle.dumps(new)), torch.load(buffer, weights_only=False)]
    for other in (*others, convswap.load(file).eval()):
        assert type(other).__name__ == type(new).__name__
        assert torch.equal(other(x), expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not torch.equal(other(x), expected)
    assert torch.equal(new(x), expected)


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("assign", [False, True])
def test_by_way_of_the_meta_device(name, kind, assign):
    new, x = converted(name, kind), images(2)
    other = copy.deepcopy(new).to("meta")
    assert other(x.to("meta")).shape == (2, 10)
    if not assign:
        other.to_empty(device="cpu")
    other.load_state_dict(new.state_dict(), assign=assign)
    assert torch.equal(other.eval()(x), new(x))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_torch_fx(name, kind):
    new, x = converted(name, kind), images(2)
    graph = torch.fx.symbolic_trace(new)
    assert_same(graph(x), new(x))
    assert_same(gradients(graph, x), gradients(new, x))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_training_goes_on_from_a_checkpoint(name, kind):
    new, batches = converted(name, kind).train(), [images(4, seed=seed) for seed in range(3)]

    def train(model, optimizer, data):
        for x in data:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    optimizer = torch.optim.AdamW(convswap.param_groups(new, lr=1e-3, weight_decay=0.05))
    train(new, optimizer, batches[:1])
    buffer = io.BytesIO()
    torch.save({"model": new.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(new, optimizer, batches[1:])
    buffer.seek(0)
    saved = torch.load(buffer)  # tensors only
    other = converted(name, kind).train()
    other.load_state_dict(saved["model"])
    again = torch.optim.AdamW(convswap.param_groups(other, lr=1e-3, weight_decay=0.05))
    again.load_state_dict(saved["optimizer"])
    train(other, again, batches[1:])
    assert_same(dict(other.state_dict()), dict(new.state_dict()))
    start = converted(name, kind).state_dict()
    assert all(
        not torch.equal(new.state_dict()[key], start[key]) for key in convswap.new_parameters(new) if key in start
    )
