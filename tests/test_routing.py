import copy
import inspect
import pickle

import pytest
import timm
import torch
import torchvision
from torch import fx, nn

import convswap
from convswap.errors import ConvswapError, GuideError
from convswap.generated_forward import _code_from, _Reference, guided_forward
from convswap.routing import unrouted

from .guided import Block, Net, awake, images, net

SHAPE = (3, 12, 12)


def guided(model, guide="first", where="second.conv2", to="guided", **options):
    return awake(convswap.convert(model, to, where, guide=guide, example_inputs=SHAPE, **options))


def by_hand(new, guide_of, *inputs):
    """What ``Net`` computes with a guided ``second.conv2``, in both modes, written out."""
    x = inputs[0]
    values = {"input": x}
    values["stem"] = new.stem(x)
    values["first.conv1"] = new.first.conv1(values["stem"])
    values["first.act"] = values["first.conv1"].relu()
    values["first.conv2"] = new.first.conv2(values["first.act"])
    values["first"] = values["first.conv2"] + values["stem"]
    values["down"] = new.down(values["first"])
    guide = inputs[1] if guide_of == "input:depth" else values[guide_of]
    hidden = new.second.conv1(values["down"]).relu()
    second = new.second.conv2(hidden, guide) + values["down"]
    y = new.head(second)
    return (y, new.aux(values["first"])) if new.training else y


GUIDES = ("input", "stem", "first.conv1", "first.act", "first.conv2", "first", "down")


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("to", ["guided", "guided_channelwise", "guided_local", "guided_separable"])
def test_guide_arrives(guide, to):
    model, x = net(), images()
    new = guided(model, guide, to=to)
    for mode in (False, True):
        expected, found = by_hand(new.train(mode), guide, x), new(x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        unguided = model.train(mode)(x)
        assert not torch.allclose((found[0] if mode else found), (unguided[0] if mode else unguided))
    gradients = torch.autograd.grad(new(x)[0].square().sum(), list(new.second.conv2.parameters()))
    assert all(gradient.any() for gradient in gradients)


def test_value_is_that_before_it_is_changed_in_place():
    """The activation behind first.conv1, and the sum behind first.conv2, overwrite what guides."""
    x = images()
    for guide in ("first.conv1", "first.conv2"):
        new = guided(net(), guide)
        torch.testing.assert_close(new(x), by_hand(new, guide, x), rtol=1e-12, atol=1e-12)


def test_conversion_keeps_the_function():
    model, x = net(), images()
    for guide in (*GUIDES, "input:depth"):
        new = convswap.convert(
            model, "guided", "second.conv2", guide=guide, guide_channels=None if guide in GUIDES else 2,
            example_inputs=SHAPE, verify=x,
        )  # fmt: skip
        assert convswap.report(new).verification.passed
        assert convswap.report(new).verification.not_run == ()
        further = {"depth": images(channels=2)} if guide == "input:depth" else {}
        torch.testing.assert_close(new(x, **further), model(x), rtol=1e-12, atol=1e-12)


def test_further_input():
    model, x, depth = net(), images(), images(channels=2, size=7, seed=5)
    new = guided(model, "input:depth", guide_channels=2)
    assert str(inspect.signature(new.forward)) == "(x, scale=1.0, *, flip=False, depth)"
    for mode in (False, True):
        expected = by_hand(new.train(mode), "input:depth", x, depth)
        torch.testing.assert_close(new(x, depth=depth), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match="depth"):
        new(x)


def test_further_input_is_positional_where_nothing_has_a_default():
    model = torchvision.models.resnet18(num_classes=5).double().eval()
    new = guided(model, "input:depth", "layer4.1.conv2", guide_channels=1)
    x, depth = images(size=32), images(channels=1, size=16)
    assert list(inspect.signature(new.forward).parameters) == ["x", "depth"]
    torch.testing.assert_close(new(x, depth), new(x, depth=depth))
    assert not torch.allclose(new(x, depth), new(x, -depth))


def test_two_further_inputs_and_one_for_two_layers():
    rules = [
        convswap.Swap("second.conv1", "guided", guide="input:depth", guide_channels=2),
        convswap.Swap("second.conv2", "guided", guide="input:depth", guide_channels=2),
        convswap.Swap("down", "guided", guide="input:map", guide_channels=1),
    ]
    new = awake(convswap.convert(net(), rules, example_inputs=SHAPE))
    assert list(inspect.signature(new.forward).parameters) == ["x", "scale", "flip", "map", "depth"]
    assert new(images(), map=images(channels=1), depth=images(channels=2)).shape == (2, 2, 6, 6)


def test_an_input_that_the_model_has_guides_without_a_new_one():
    new = guided(net(), "input:x")
    assert list(inspect.signature(new.forward).parameters) == ["x", "scale", "flip"]
    torch.testing.assert_close(new(images()), by_hand(new, "input", images()))


def test_class_keys_methods_and_attributes_stay():
    model = net()
    new = guided(model)
    assert isinstance(new, Net)
    assert type(new).__name__ == "Net"
    assert type(new).__module__ == Net.__module__
    converted = "second.conv2."
    keys = [key for key in new.state_dict() if not key.startswith(converted)]
    assert keys == [key for key in model.state_dict() if not key.startswith(converted)]
    assert str(inspect.signature(new.forward)) == "(x, scale=1.0, *, flip=False)"
    assert type(model) is Net
    assert guided_forward(model) is None


def test_ways_around_forward_raise():
    new = guided(net())
    with pytest.raises(RuntimeError, match=r"no guide in this call.*'first'"):
        new.forward_features(images())
    with pytest.raises(RuntimeError, match="no guide in this call"):
        new.second(images(channels=6))
    for owner in (timm.create_model("resnet18"), timm.create_model("convnext_atto")):
        where, guide = (
            ("layer3.0.conv2", "layer2") if hasattr(owner, "layer3") else ("stages.2.blocks.0.*dw", "stages.1")
        )
        made = convswap.convert(owner.eval(), "guided", where, guide=guide)
        x = torch.randn(1, 3, 64, 64)
        assert made(x).shape == (1, 1000)
        with pytest.raises(RuntimeError, match="no guide in this call"):
            made.forward_features(x)
        made.reset_classifier(7)
        assert made(x).shape == (1, 7)


def test_other_values_of_what_was_specialised_raise():
    new = guided(net())
    assert new(images(), 1.0, flip=False).shape == (2, 2, 6, 6)
    with pytest.raises(AssertionError, match="scale has been specialized"):
        new(images(), 2.0)
    with pytest.raises(AssertionError, match="flip has been specialized"):
        new(images(), flip=True)


def copies(new, tmp_path):
    yield copy.deepcopy(new)
    yield pickle.loads(pickle.dumps(new))
    yield copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(new))))
    convswap.save(new, tmp_path / "new.safetensors")
    yield convswap.load(tmp_path / "new.safetensors", model=net(seed=9))
    yield convswap.apply(convswap.report(new).recipe.to_dict(), net(seed=9)).double()


@pytest.mark.parametrize("guide", ["first", "input:depth"])
def test_copies_pickles_and_files(guide, tmp_path):
    new = guided(net(), guide, guide_channels=2 if ":" in guide else None)
    inputs = {"depth": images(channels=2)} if ":" in guide else {}
    x = images()
    expected = new(x, **inputs)
    for other in copies(new, tmp_path):
        other.load_state_dict(new.state_dict())
        assert isinstance(other, Net)
        for mode in (False, True):
            torch.testing.assert_close(other.train(mode)(x, **inputs), new.train(mode)(x, **inputs), rtol=0, atol=0)
        new.eval()
        with torch.no_grad():
            other.eval().first.conv1.weight.mul_(0)
        assert not torch.equal(other(x, **inputs), expected)
        torch.testing.assert_close(new(x, **inputs), expected, rtol=0, atol=0)
        assert convswap.report(other).swaps[0].name == "second.conv2"
        assert type(net()) is Net


def test_resnet_guided_across_stages(tmp_path):
    """layer2's output guides both conv2 of layer3: against a module written by hand."""
    model = torchvision.models.resnet18(num_classes=10).double()
    new = awake(convswap.convert(model, "guided", "layer3.*.conv2", guide="layer2", example_inputs=(3, 64, 64)))
    x = images(size=64)

    def block(part, x, guide=None):
        y = part.relu(part.bn1(part.conv1(x)))
        y = part.bn2(part.conv2(y) if guide is None else part.conv2(y, guide))
        return part.relu(y + (x if part.downsample is None else part.downsample(x)))

    def written_out(net, x):
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for stage in (net.layer1, net.layer2):
            for part in stage:
                x = block(part, x)
        guide = x
        for part in net.layer3:
            x = block(part, x, guide)
        for part in net.layer4:
            x = block(part, x)
        return net.fc(net.avgpool(x).flatten(1))

    convswap.save(new, tmp_path / "new.safetensors", source="torchvision:resnet18", source_args={"num_classes": 10})
    others = [copy.deepcopy(new), pickle.loads(pickle.dumps(new)), convswap.load(tmp_path / "new.safetensors")]
    for mode in (False, True):
        reference = copy.deepcopy(new).train(mode)
        expected = written_out(reference, x)
        plain = model.train(mode)(x)
        assert (plain - expected).abs().max() > 1e-3
        for other in (new, *others):
            other.train(mode)
            running = {k: v.clone() for k, v in other.state_dict().items() if "running" in k or "num_batches" in k}
            torch.testing.assert_close(other(x), expected, rtol=1e-9, atol=1e-9)
            other.load_state_dict(running, strict=False)
    assert isinstance(new, torchvision.models.ResNet)
    assert {k for k in new.state_dict() if ".hypernet." not in k and ".conv2.conv." not in k} == {
        k for k in model.state_dict() if not (k.startswith("layer3") and k.endswith("conv2.weight"))
    }
    assert [name for name, _ in new.layer3[0].conv2.named_children()] == ["hypernet", "conv"]


@pytest.mark.parametrize("guide", ["first", "input:depth"])
def test_compile_and_export(guide):
    new = guided(net(), guide, guide_channels=2 if ":" in guide else None)
    inputs = {"depth": images(channels=2)} if ":" in guide else {}
    x = images()
    for mode in (False, True):
        torch._dynamo.reset()
        new.train(mode)
        compiled = torch.compile(new, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, **inputs), new(x, **inputs), rtol=1e-12, atol=1e-12)
    new.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {name: {0: batch} for name in ("x", *inputs)}
    program = torch.export.export(new, (x,), kwargs=inputs, dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(x, **inputs), new(x, **inputs), rtol=1e-12, atol=1e-12)
    more = {name: torch.cat((value, value[:1])) for name, value in inputs.items()}
    three = torch.cat((x, x[:1]))
    torch.testing.assert_close(program.module()(three, **more), new(three, **more), rtol=1e-12, atol=1e-12)


def test_in_place():
    model, x = net(), images()
    expected = guided(net())(x)
    same = convswap.convert_(model, "guided", "second.conv2", guide="first", example_inputs=SHAPE)
    assert same is model
    torch.testing.assert_close(awake(model)(x), expected)


def test_converted_twice():
    once = convswap.convert(net(), "guided", "second.conv2", guide="first", example_inputs=SHAPE)
    twice = convswap.convert(once, "guided", "second.conv1", guide="input:depth", guide_channels=1)
    thrice = convswap.convert(twice, "dynamic", "head", example_inputs=SHAPE)
    both = [
        convswap.Swap("second.conv2", "guided", guide="first"),
        convswap.Swap("second.conv1", "guided", guide="input:depth", guide_channels=1),
        convswap.Swap("head", "dynamic"),
    ]
    at_once = convswap.convert(net(), both, example_inputs=SHAPE)
    assert guided_forward(thrice).base is Net
    x, depth = images(), images(channels=1)
    awake(thrice), awake(at_once)
    for mode in (False, True):
        expected = at_once.train(mode)(x, depth=depth)
        torch.testing.assert_close(thrice.train(mode)(x, depth=depth), expected, rtol=1e-12, atol=1e-12)
    again = convswap.apply(convswap.report(thrice).recipe, net())
    again.load_state_dict(thrice.state_dict())
    torch.testing.assert_close(again(x, depth=depth), thrice.eval()(x, depth=depth), rtol=0, atol=0)
    report = convswap.report(thrice)
    assert [step.name for step in report.swaps] == ["second.conv2", "second.conv1", "head"]
    assert convswap.verify(net(), convswap.apply(report.recipe, net()), x).passed


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.stem, self.inner, self.last = nn.Conv2d(3, 3, 1), inner, nn.Conv2d(2, 2, 1)

    def forward(self, x):
        y = self.inner(self.stem(x))
        return self.last(y[0] if isinstance(y, tuple) else y)


@pytest.mark.parametrize("guide", ["stem", "input", "add"])
def test_part_that_was_converted_before_the_whole(guide):
    inner = guided(net(), guide)
    torch.manual_seed(3)
    outer = Outer(inner).double().eval()
    x = images()
    expected = outer.last(by_hand(inner, {"add": "first"}.get(guide, guide), outer.stem(x)))
    torch.testing.assert_close(outer(x), expected, rtol=1e-12, atol=1e-12)
    whole = awake(convswap.convert(outer, "guided", "last", guide="stem", example_inputs=SHAPE), seed=4)
    kept = copy.deepcopy(whole.inner)
    expected = whole.last(by_hand(kept, {"add": "first"}.get(guide, guide), whole.stem(x)), whole.stem(x))
    torch.testing.assert_close(whole(x), expected, rtol=1e-12, atol=1e-12)
    torch.manual_seed(3)
    if guide == "add":  # a node of the part is called otherwise in the whole
        with pytest.raises(GuideError, match=r"its guide 'inner.add' gives no tensor"):
            convswap.apply(convswap.report(whole).recipe, Outer(net()).double())
        return
    again = convswap.apply(convswap.report(whole).recipe, Outer(net()).double().eval())
    again.load_state_dict(whole.state_dict())
    torch.testing.assert_close(again(x), whole(x), rtol=1e-12, atol=1e-12)


def test_regions_that_are_not_the_whole_model():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 3, 1), net()

        def forward(self, x):
            x = self.stem(x)
            if x.shape[0] > 1000:  # which torch.fx cannot tell
                return x
            return self.inner(x)

    torch.manual_seed(0)
    model = Whole().double().eval()
    new = guided(model, "inner.first", "inner.second.conv2")
    assert type(new) is Whole
    assert isinstance(new.inner, Net)
    assert guided_forward(new.inner).routes == {"second.conv2": "first"}
    x = images()
    torch.testing.assert_close(new(x), by_hand(new.inner, "first", new.stem(x)), rtol=1e-12, atol=1e-12)
    more = guided(new, "inner.stem", "inner.second.conv1")
    assert guided_forward(more.inner).routes == {"second.conv2": "first", "second.conv1": "stem"}
    assert more(x).isfinite().all()


def test_graph_modules_keep_being_graph_modules():
    model = net()
    traced = fx.GraphModule(model, fx.Tracer().trace(model, {"scale": 1.0, "flip": False})).double()
    new = guided(traced, "first.conv1")
    assert isinstance(new, fx.GraphModule)
    x = images()
    torch.testing.assert_close(new(x), by_hand(new, "first.conv1", x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(copy.deepcopy(new)(x), new(x))
    again = awake(convswap.convert(new, "guided", "second.conv1", guide="stem", example_inputs=SHAPE))
    assert again(x).isfinite().all()


def test_shared_and_repeated_layers():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 4, 3, padding=1), Block(4)
            self.alias = self.block.conv1

        def forward(self, x):
            stem = self.stem(x)
            return self.block(self.block(stem)) + self.alias(stem)

    torch.manual_seed(0)
    model = Repeated().double().eval()
    new = guided(model, "stem", "block.conv1")
    assert new.alias is new.block.conv1
    x = images()
    guide = new.stem(x)

    def block(x):
        return new.block.conv2(new.block.conv1(x, guide).relu()) + x

    expected = block(block(guide)) + new.alias(guide, guide)
    torch.testing.assert_close(new(x), expected, rtol=1e-12, atol=1e-12)
    assert not list(unrouted(new))


def test_of_a_module_that_is_called_twice_the_last_value_before_guides():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.two(self.one(self.one(x)).relu())

    torch.manual_seed(0)
    new = guided(Twice().double(), "one", "two")
    x = images()
    guide = new.one(new.one(x))
    torch.testing.assert_close(new(x), new.two(guide.relu(), guide), rtol=1e-12, atol=1e-12)


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.one(x) * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None, None]
        return self.two(x)


def test_constants_in_the_code():
    torch.manual_seed(0)
    model = Constant().double()
    new = guided(model, "one", "two")
    x = images()
    y = new.one(x)
    scaled = y * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None, None]
    for other in (new, copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        torch.testing.assert_close(other(x), new.two(scaled, y), rtol=1e-12, atol=1e-12)
    assert new.state_dict().keys() == convswap.convert(model, "guided", "two").state_dict().keys()


def test_every_parameter_moves_in_two_steps():
    new = convswap.convert(net(), "guided", ["second.*"], guide="first", example_inputs=SHAPE).train()
    before = {name: value.detach().clone() for name, value in new.named_parameters()}
    optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        y, aux = new(images())
        (y.square().sum() + aux.square().sum()).backward()
        optimizer.step()
    still = [name for name, value in new.named_parameters() if torch.equal(value, before[name])]
    assert not still


def test_hooks_on_guided_layers_run():
    new = guided(net())
    seen = []
    new.second.conv2.register_forward_hook(lambda *_: seen.append("layer"))
    new.second.conv2.hypernet.register_forward_hook(lambda *_: seen.append("hypernet"))
    new(images())
    assert seen == ["hypernet", "layer"]


def test_pickles_that_refer_to_what_is_not_there_say_so():
    with pytest.raises(ConvswapError, match=r"nowhere\.thing"):
        _code_from("", {"f": _Reference("nowhere", "thing")}, ())
