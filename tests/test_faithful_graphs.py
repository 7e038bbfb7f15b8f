"""Where the code of a model is replaced by a graph, the graph does what the code does, or the conversion is refused."""

import collections
import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import convswap
from convswap.errors import ConvswapError, ModelError, NothingToSwapError, OptionError

from .guided import awake, images

SHAPE = (3, 8, 8)
Pair = collections.namedtuple("Pair", "one two")


class Net(nn.Module):
    """Two convolutions, and whatever ``body`` makes of them."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU(inplace=True)


def net(forward, **members):
    torch.manual_seed(0)
    kind = type("Made", (Net,), {"forward": forward})
    model = kind()
    for name, value in members.items():
        if isinstance(value, torch.Tensor):
            model.register_buffer(name, value)
        else:
            setattr(model, name, value)
    return model.double().eval()


def guided(model, guide="c1", where="c2", **options):
    return convswap.convert(model, "guided", where, guide=guide, example_inputs=SHAPE, **options)


def graph_of(model):
    return convswap.convert(model, "dynamic", "c2", example_inputs=SHAPE, as_graph=True)


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def by_both_ways(model):
    return guided(model), graph_of(model)


# ---- modes


def dropout(self, x):
    return self.c2(F.dropout(self.c1(x), 0.5, self.training))


def factor(self, x):
    return self.c2(self.c1(x)) * (2.0 if self.training else 1.0)


def other_outputs(self, x):
    y = self.c1(x)
    z = self.c2(y)
    return Pair(z, y) if self.training else {"a": z, "b": [y]}


@pytest.mark.parametrize("forward", [dropout, factor, other_outputs])
def test_modes_that_differ_in_arguments_or_outputs_only(forward):
    model, x = net(forward), images(size=8)
    for new in by_both_ways(model):
        for mode in (False, True, False):
            torch.manual_seed(1)
            expected = model.train(mode)(x)
            torch.manual_seed(1)
            same(new.train(mode)(x), expected)
    model.eval()


def test_dropout_stays_random_in_training():
    for new in by_both_ways(net(dropout)):
        x = images(size=8)
        assert not torch.equal(new.train()(x), new(x))
        assert torch.equal(new.eval()(x), new(x))


@pytest.mark.parametrize("in_training", [True, False])
def test_a_mode_that_cannot_be_traced(in_training):
    def forward(self, x):
        y = self.c1(x)
        if self.training == in_training and y.sum() > -1e9:
            y = y * 10
        return self.c2(y)

    model = net(forward)
    mode = "evaluation" if in_training else "training"
    with pytest.raises(NothingToSwapError, match=f"the model can be traced in {mode} mode only"):
        guided(model)
    with pytest.raises(ModelError, match=f"the model can be traced in {mode} mode only"):
        graph_of(model)


def test_graph_follows_a_mode_that_is_set_without_train():
    model, x = net(other_outputs), images(size=8)
    graph = graph_of(model.train())
    model.eval()
    assert isinstance(graph(x), Pair)
    convswap.verify(model, graph, x)
    assert isinstance(graph(x), Pair)
    graph.training = False
    assert isinstance(graph(x), dict)
    other = copy.copy(graph)
    assert isinstance(other.train()(x), Pair)
    assert isinstance(other.eval()(x), dict)
    assert isinstance(graph(x), dict)
    assert isinstance(copy.deepcopy(graph).train()(x), Pair)


@pytest.mark.parametrize("mode", [False, True])
def test_guides_in_a_graph_model_reach_both_graphs(mode):
    model, x = net(other_outputs), images(size=8)
    graph = graph_of(model).train(mode)
    new = awake(convswap.convert(graph, "guided", "c1", guide="input", example_inputs=SHAPE))
    reference = awake(convswap.convert(graph_to_model(model), "guided", "c1", guide="input", example_inputs=SHAPE))
    for now in (mode, not mode, mode):
        same(new.train(now)(x), reference.train(now)(x))


def graph_to_model(model):
    return convswap.convert(model, "dynamic", "c2", example_inputs=SHAPE)


# ---- buffers, constants, attributes


def test_buffers_are_read_when_the_model_runs(tmp_path):
    def forward(self, x):
        return self.c2(self.c1(x) * self.gain.sqrt() - self.mean[:, None, None])

    def make(gain):
        return net(forward, gain=torch.tensor(gain), mean=torch.arange(4.0))

    model, x = make(1.0), images(size=8)
    for new in by_both_ways(model):
        new.gain.fill_(9.0)
        new.mean.mul_(2)
        changed = make(9.0)
        changed.mean.mul_(2)
        same(new(x), changed(x))
    guided_one = guided(changed)
    convswap.save(guided_one, tmp_path / "new.safetensors")
    same(convswap.load(tmp_path / "new.safetensors", model=make(1.0))(x), changed(x))


def test_constants_of_the_code_are_fresh_in_each_call():
    def forward(self, x):
        acc = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
        acc += self.c1(x).mean()
        acc.add_(1.0)
        return self.c2(self.c1(x)) + acc

    model, x = net(forward), images(size=8)
    for new in by_both_ways(model):
        for _ in range(3):
            same(new(x), model(x))


def sets_attribute(self, x):
    y = self.c1(x)
    self.last = y.mean()
    return self.c2(y)


def counts(self, x):
    self.calls = self.calls + 1
    return self.c2(self.c1(x))


def counts_in_a_buffer(self, x):
    self.seen += 1
    return self.c2(self.c1(x))


def remembers(self, x):
    y = self.c1(x)
    if self.reference is None:
        self.reference = y.mean()
    return self.c2(y + self.reference)


def draws(self, x):
    return self.c2(self.c1(x) + torch.randn(1, 4, 1, 1, dtype=torch.float64))


def draws_in_python(self, x):
    return self.c2(self.c1(x) * (1.0 if random.random() < 0.5 else 2.0))


def without_gradients(self, x):
    with torch.no_grad():
        y = self.c1(x)
    return self.c2(y)


def in_half_precision(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = self.c1(x)
    return self.c2(y)


UNFAITHFUL = [
    sets_attribute,
    counts,
    counts_in_a_buffer,
    remembers,
    draws,
    draws_in_python,
    without_gradients,
    torch.no_grad()(lambda self, x: self.c2(self.c1(x))),
    in_half_precision,
]


@pytest.mark.parametrize("forward", UNFAITHFUL)
def test_code_that_does_more_than_a_graph_would_is_refused(forward):
    model = net(forward, calls=0, seen=torch.tensor(0), reference=None)
    with pytest.raises(ConvswapError):
        guided(model)
    with pytest.raises(ModelError, match="cannot be traced as a whole"):
        graph_of(model)
    assert (model.calls, model.reference, int(model.seen)) == (0, None, 0)
    assert convswap.convert(model, "dynamic", "c2", example_inputs=SHAPE)(images(size=8)).shape == (2, 4, 8, 8)


def test_such_code_in_a_part_leaves_the_rest_to_be_guided():
    class Whole(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part, self.one, self.two = part, nn.Conv2d(4, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.two(self.one(self.part(x)))

    model = Whole(net(counts, calls=0)).double()
    new = awake(guided(model, "one", "two"))
    x = images(size=8)
    y = new.one(model.part(x))
    same(new(x), new.two(y, y))
    assert new.part.calls == 1
    assert "could be used" in why_kept(model, "two", "part.c1")
    assert "another traced part" in why_kept(model, "two", "part.c1")


def why_kept(model, name, guide):
    rules = [convswap.Swap(name, "guided", guide=guide), convswap.Swap("*", "dynamic", convert_first=True)]
    steps = convswap.plan(model, rules, example_inputs=SHAPE).steps
    return next(step.reason for step in steps if step.site.name == name)


# ---- hooks, forwards and calls that are not the class's own


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.c(x) * 2


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.b, self.c2 = Block(), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.c2(self.b(x))


def test_hooks_of_modules_around_convolutions_run():
    torch.manual_seed(0)
    model = Blocks().double()
    model.b.register_forward_hook(lambda module, args, output: output * 3)
    model.register_forward_hook(lambda module, args, output: output + 1)
    x = images(size=8)
    new = awake(guided(model, "b"))
    value = model.b.c(x) * 6
    same(new(x), new.c2(value, value) + 1)
    same(graph_of(model)(x), model(x))
    assert "another traced part" in why_kept(model, "c2", "b.c")


def test_replaced_forwards():
    torch.manual_seed(0)
    model = Blocks().double()
    model.b.forward = lambda x: x * 0 + 5.0
    x = images(size=8)
    new = awake(guided(model, "b"))
    same(new(x), new.c2(x * 0 + 5.0, x * 0 + 5.0))
    model = Blocks().double()
    model.forward = lambda x: model.c2(x)
    with pytest.raises(ConvswapError):
        guided(model, "b")
    with pytest.raises(ModelError):
        graph_of(model)


def test_calls_of_its_own():
    class Doubled(Blocks):
        def __call__(self, x):
            return 2 * super().__call__(x)

    torch.manual_seed(0)
    model = Doubled().double()
    x = images(size=8)
    same(guided(model, "b")(x), model(x))
    with pytest.raises(ModelError, match="Doubled has a __call__ of its own"):
        graph_of(model)


# ---- what a guide is


def in_place_afterwards(self, x):
    y = self.c1(x)
    y.relu_()
    return self.c2(y)


def in_place_by_a_module(self, x):
    y = self.c1(x)
    self.act(y)
    return self.c2(y)


@pytest.mark.parametrize("forward", [in_place_afterwards, in_place_by_a_module])
def test_a_guide_has_been_changed_in_place_before_it_is_given(forward):
    model, x = net(forward), images(size=8)
    new = awake(guided(model, "c2:input"))
    value = model.c1(x).relu()
    same(new(x), new.c2(value, value))


def test_a_part_returns_what_it_has_changed_in_place():
    class Changing(Block):
        def forward(self, x):
            y = self.c(x)
            y.relu_()
            return y

    torch.manual_seed(0)
    model = Blocks().double()
    model.b = Changing().double()
    x = images(size=8)
    new = awake(guided(model, "b"))
    value = model.b(x)
    same(new(x), new.c2(value, value))


def test_a_guide_is_not_what_becomes_of_its_memory():
    def through_an_alias(self, x):
        y = self.c1(x)
        self.drop(y)
        return self.c2(self.act(y))

    def through_a_view(self, x):
        y = self.c1(x).relu_()
        y[:, :2]
        return self.c2(y.mul_(3))

    x = images(size=8)
    model = net(through_an_alias)
    new = awake(guided(model, "drop"))
    value = model.c1(x)
    same(new(x), new.c2(value.relu(), value))
    model = net(through_a_view)
    new = awake(guided(model, "getitem"))
    value = model.c1(x).relu()
    same(new(x), new.c2(3 * value, value[:, :2]))


def test_input_of_a_module_is_its_first_parameter():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.c2 = nn.Conv2d(3, 4, 3)

        def forward(self, x, w):
            return self.c2(x + w)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = Two()

        def forward(self, x):
            return self.b(w=x * 7, x=x)

    torch.manual_seed(0)
    new = awake(guided(Around().double(), "b:input", "b.c2"))
    x = images(size=8)
    same(new(x), new.b.c2(8 * x, x))


def test_calls_by_keyword():
    model = net(lambda self, x: self.c2(input=self.c1(x)))
    new = awake(guided(model))
    x = images(size=8)
    y = new.c1(x)
    same(new(x), new.c2(y, y))


def test_other_names_of_a_module():
    model = net(lambda self, x: self.c2(self.c1(x)))
    model.also = model.c1
    new = awake(guided(model, "also"))
    x = images(size=8)
    y = new.c1(x)
    same(new(x), new.c2(y, y))


def test_a_module_called_input():
    model = net(lambda self, x: self.c2(self.input(x)), input=nn.Conv2d(3, 4, 1))
    with pytest.raises(NothingToSwapError, match="could be the model's input or its module of that name"):
        guided(model, "input")


def test_values_that_cannot_guide():
    class Several(nn.Module):
        def forward(self, x):
            return x, x

    several = net(lambda self, x: self.c2(self.c1(self.several(x)[0])), several=Several())
    assert "gives a tuple, and no tensor" in why_kept(several, "c2", "several")
    size = net(lambda self, x: self.c2(self.c1(x)) + x.size(0))
    assert "later" in why_kept(size, "c2", "size")
    twice = net(lambda self, x: self.c2(self.c1(x[:1])))
    assert "is for 2 samples where its input is 1" in why_kept(twice, "c2", "input")
    whole = net(lambda self, x: self.c2(self.c1((x > 0).double())))
    assert "is of torch.bool" in why_kept(whole, "c2", "gt")


# ---- arguments and names


@pytest.mark.parametrize(
    "name", ["torch", "_training", "__debug__", "self", "ﬁ", "inf", "class", "a b"], ids=lambda name: name
)
def test_further_inputs_of_impossible_names(name):
    model = net(lambda self, x: self.c2(self.c1(x)))
    with pytest.raises(OptionError, match="must name an input of the model"):
        guided(model, f"input:{name}", guide_channels=1)


def test_further_inputs_that_are_other_arguments_already():
    model = net(lambda self, x, mask=None: self.c2(self.c1(x)))
    assert "an argument with a default" in why_kept(model, "c2", "input:mask")
    model = net(lambda self, x, *rest, **named: self.c2(self.c1(x)))
    for name in ("rest", "named"):
        assert "one for several values" in why_kept(model, "c2", f"input:{name}")


def test_self_by_another_name():
    model = net(lambda this, x: this.c2(this.c1(x)))
    new = awake(guided(model))
    x = images(size=8)
    y = new.c1(x)
    same(new(x), new.c2(y, y))


@pytest.mark.parametrize("default", [(4, 4), {"a": 1}, [], torch.zeros(1)], ids=str)
def test_defaults_that_a_graph_cannot_hold(default):
    def forward(self, x, size=default):
        return self.c2(self.c1(x))

    with pytest.raises(ConvswapError):
        guided(net(forward))
    with pytest.raises(ModelError):
        graph_of(net(forward))


@pytest.mark.parametrize("name", ["in", 'x"), print("INJECTED"), getattr(self, "c1', "a\nb", "back\\slash"])
def test_names_that_cannot_be_written_in_code(name, capsys):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1 = nn.ModuleDict({name: nn.Conv2d(3, 4, 1)})
            self.c2 = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.c2(self.c1[name](x))

    with pytest.raises(ModelError, match="cannot be written in the code of a graph"):
        convswap.convert(Named(), "guided", "c2", guide="input", example_inputs=SHAPE)
    with pytest.raises(ModelError, match="cannot be written in the code of a graph"):
        graph_of(Named())
    assert "INJECTED" not in capsys.readouterr().out


def test_numbers_and_dashes_in_names():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1 = nn.ModuleDict({"3x3-a": nn.Conv2d(3, 4, 1)})
            self.c2 = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.c2(self.c1["3x3-a"](x))

    assert guided(Named(), "c1.3x3-a")(torch.randn(1, *SHAPE)).shape == (1, 4, 8, 8)


def test_classes_that_cannot_be_derived_from_leave_everything_as_it_was():
    class Final(Net):
        def __init_subclass__(cls, *, name):
            super().__init_subclass__()

        def forward(self, x):
            return self.c2(self.c1(x))

    torch.manual_seed(0)
    model = Final().double()
    x = images(size=8)
    expected = model(x)
    with pytest.raises(ModelError, match="no class can be derived from Final"):
        convswap.convert_(model, "guided", "c2", guide="c1", example_inputs=SHAPE)
    assert type(model) is Final
    assert type(model.c2) is nn.Conv2d
    same(model(x), expected)


def test_arguments_of_any_number():
    model = net(lambda self, x, *rest, **named: self.c2(self.c1(x)))
    new = awake(guided(model))
    x = images(size=8)
    y = new.c1(x)
    same(new(x, 1, k=2), new.c2(y, y))
    more = awake(guided(new, "input:depth", "c1", guide_channels=1))
    assert more(x, depth=images(channels=1, size=8)).shape == (2, 4, 8, 8)


# ---- afterwards


@pytest.mark.parametrize("guide", ["add", "input:depth", "c1", "input"])
def test_what_cannot_be_loaded_again_is_not_saved(guide, tmp_path):
    class Around(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, x):
            return self.part(x, depth=x[:, :1]) if guide == "input:depth" else self.part(x)

    part = net(lambda self, x: self.c2(self.c1(x) + 1))
    whole = Around(guided(part, guide, guide_channels=1 if guide == "input:depth" else None))
    path = tmp_path / "whole.safetensors"
    if guide in ("add", "input:depth"):
        with pytest.raises(convswap.errors.FileError, match=r"part\.c2 is guided by .* save 'part' alone"):
            convswap.save(whole, path)
        assert not path.exists()
        return
    convswap.save(awake(whole), path)
    same(convswap.load(path, model=Around(copy.deepcopy(part)))(images(size=8)), whole(images(size=8)))


def test_order_of_further_inputs_stays():
    def forward(self, x):
        return self.c2(self.c1(x))

    once = guided(net(forward), "input:depth", guide_channels=1)
    twice = guided(once, "input:map", "c1", guide_channels=2)
    x, depth, extra = images(size=8), images(channels=1, size=8), images(channels=2, size=8)
    same(twice(x, depth, extra), twice(x, depth=depth, map=extra))
    verified = guided(once, "input:map", "c1", guide_channels=2, verify=x)
    assert convswap.report(verified).verification.passed


def test_a_class_that_was_changed_afterwards():
    new = guided(net(lambda self, x: self.c2(self.c1(x))))
    kind = type(new)
    new.__class__ = type("Wrapped", (kind,), {})
    for act in (copy.deepcopy, lambda model: guided(model, "input", "c1")):
        with pytest.raises(ModelError, match="was changed after it was converted, to Wrapped"):
            act(new)


def test_plain_graph_modules_keep_further_inputs_in_copies():
    model = net(lambda self, x: self.c2(self.c1(x)))
    new = guided(fx.symbolic_trace(model), "input:depth", guide_channels=1)
    other = copy.deepcopy(new)
    assert convswap.verify(model, other, images(size=8)).passed


def test_refusals_name_what_could_be_used_in_the_same_part():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 3, 1), Blocks()

        def forward(self, x):
            x = self.stem(x)
            return self.inner(x) if x.shape[0] < 100 else x

    reason = why_kept(Branching(), "inner.c2", "stem")
    assert "lies in another traced part" in reason
    assert "'inner.b' could be used" in reason.replace(", 'inner.b.c'", "")
