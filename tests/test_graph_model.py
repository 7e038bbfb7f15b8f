import copy
import pickle

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.fx.experimental import optimization

import convswap
from convswap.errors import ModelError
from convswap.graph_model import GraphModel

from .guided import awake, images, net

SHAPE = (3, 12, 12)
TARGETS = [
    ("dynamic", {}),
    ("dcls", {}),
    ("guided", {}),
    ("guided", {"guide": "stem"}),
    ("guided", {"guide": "input:depth", "guide_channels": 2}),
    ("guided_separable", {"guide": "stem"}),
]


def both(to, **options):
    """A converted model and, of one like it, the graph."""
    made = []
    for as_graph in (False, True):
        new = convswap.convert(net(), to, "second.*", example_inputs=SHAPE, as_graph=as_graph, **options)
        made.append(awake(new))
    return made


def inputs(options):
    further = {"depth": images(channels=2)} if options.get("guide") == "input:depth" else {}
    return (images(),), further


@pytest.mark.parametrize(("to", "options"), TARGETS, ids=str)
def test_graph_computes_the_same_in_both_modes(to, options):
    model, graph = both(to, **options)
    args, kwargs = inputs(options)
    assert isinstance(graph, fx.GraphModule)
    assert graph.state_dict().keys() == model.state_dict().keys()
    assert convswap.report(graph).recipe == convswap.report(model).recipe
    assert not graph.training
    for mode in (False, True, False):
        expected = model.train(mode)(*args, **kwargs)
        torch.testing.assert_close(graph.train(mode)(*args, **kwargs), expected, rtol=1e-12, atol=1e-12)
        graph.graph.lint()


@pytest.mark.parametrize(("to", "options"), TARGETS, ids=str)
def test_copies_and_pickles_keep_both_graphs(to, options):
    _, graph = both(to, **options)
    args, kwargs = inputs(options)
    for start in (False, True):
        graph.train(start)
        for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
            assert other.training == start
            for mode in (start, not start, start):
                expected = graph.train(mode)(*args, **kwargs)
                torch.testing.assert_close(other.train(mode)(*args, **kwargs), expected, rtol=0, atol=0)
            assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in graph.parameters()}
            assert other.state_dict().keys() == graph.state_dict().keys()
            assert convswap.report(other).swaps[0].name == "second.conv1"
            assert convswap.verify(net(), other, images()).not_run == ()


def test_hypernets_and_layers_are_nodes():
    _, graph = both("guided", guide="stem")
    calls = {str(node.target): node for node in graph.graph.nodes if node.op == "call_module"}
    assert {"second.conv1.hypernet", "second.conv1.conv", "second.conv2.hypernet", "second.conv2.conv"} <= set(calls)
    assert not {"second.conv1", "second.conv2"} & set(calls)
    hypernet = calls["second.conv2.hypernet"]
    assert [str(node.target) for node in hypernet.users] == ["second.conv2.conv"]
    _, dynamic = both("dynamic")
    assert "second.conv2" in {str(node.target) for node in dynamic.graph.nodes}


def test_edits_of_a_graph_stay_with_its_mode():
    _, graph = both("dynamic")
    x = images()
    before, training = graph(x), graph.train()(x)
    graph.eval()
    output = next(node for node in graph.graph.nodes if node.op == "output")
    with graph.graph.inserting_before(output):
        output.args = (graph.graph.call_function(torch.neg, (output.args[0],)),)
    graph.recompile()
    torch.testing.assert_close(graph(x), -before)
    torch.testing.assert_close(graph.train()(x), training)
    torch.testing.assert_close(graph.eval()(x), -before)
    torch.testing.assert_close(copy.deepcopy(graph)(x), -before)


def test_other_fx_passes_go_on_with_it():
    model = torchvision.models.resnet18(num_classes=5).eval()
    graph = convswap.convert(model, "guided", "layer4.*", as_graph=True, verify=torch.randn(1, 3, 64, 64))
    fused = optimization.fuse(graph)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-3, atol=1e-4)
    again = fx.symbolic_trace(graph)
    torch.testing.assert_close(again(x), model(x), rtol=1e-3, atol=1e-4)
    transformed = fx.Transformer(graph).transform()
    torch.testing.assert_close(transformed(x), model(x), rtol=1e-3, atol=1e-4)


def test_one_graph_where_both_modes_are_the_same():
    model = torchvision.models.resnet18(num_classes=5)
    graph = convswap.convert(model, "dynamic", "layer4.*", as_graph=True)
    assert graph.graphs()[1] is None
    assert type(graph).__name__ == "ResNet"


def test_files(tmp_path):
    model, graph = both("guided", guide="stem")
    convswap.save(graph, tmp_path / "graph.safetensors")
    again = convswap.load(tmp_path / "graph.safetensors", model=net())
    torch.testing.assert_close(again(images()), graph(images()), rtol=1e-12, atol=1e-12)
    made = convswap.apply(convswap.report(graph).recipe, net(), as_graph=True)
    made.load_state_dict(graph.state_dict())
    torch.testing.assert_close(made(images()), model(images()), rtol=1e-12, atol=1e-12)
    planned = convswap.apply(convswap.plan(net(), "dynamic", "head", example_inputs=SHAPE), net(), as_graph=True)
    assert isinstance(planned, GraphModel)


def test_graph_can_be_converted_further():
    _, graph = both("guided", guide="stem")
    more = convswap.convert(graph, "dynamic", "head", example_inputs=SHAPE)
    torch.testing.assert_close(more(images()), graph(images()), rtol=1e-12, atol=1e-12)
    assert [step.name for step in convswap.report(more).swaps] == ["second.conv1", "second.conv2", "head"]
    assert set(convswap.new_parameters(graph)) < set(convswap.new_parameters(more))


def test_verify_sees_the_layers_in_a_graph():
    model = net()
    for to, options in TARGETS:
        graph = convswap.convert(model, to, "second.*", example_inputs=SHAPE, as_graph=True, **options)
        found = convswap.verify(model, graph, images())
        assert {check.name for check in found.layers} == {step.name for step in convswap.report(graph).swaps}
        assert found.not_run == ()


def test_compile_and_export_a_graph():
    _, graph = both("guided", guide="stem")
    x = images()
    torch._dynamo.reset()
    compiled = torch.compile(graph, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), graph(x), rtol=1e-12, atol=1e-12)
    program = torch.export.export(graph, (x,))
    torch.testing.assert_close(program.module()(x), graph(x), rtol=1e-12, atol=1e-12)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.last(x) if x.mean() < 1e9 else x


def test_what_cannot_be_a_graph():
    with pytest.raises(ModelError, match="Branching cannot be traced as a whole"):
        convswap.convert(Branching(), "dynamic", "last", as_graph=True, example_inputs=SHAPE)
    inside = nn.Sequential(nn.Conv2d(3, 3, 1), Branching(), nn.Conv2d(4, 4, 1))
    with pytest.raises(ModelError, match=r"because '1' with '1.last' in it cannot be traced"):
        convswap.convert(inside, "dynamic", "1.last", as_graph=True, example_inputs=SHAPE)
    outside = convswap.convert(inside, "dynamic", "2", as_graph=True, example_inputs=SHAPE)
    assert outside(torch.randn(1, 3, 12, 12)).shape == (1, 4, 8, 8)
    with pytest.raises(ModelError, match="single layer"):
        convswap.convert(nn.Conv2d(3, 4, 3), "dynamic", convert_first=True, as_graph=True)
    alone = convswap.convert(nn.Conv2d(3, 4, 3), "guided", as_graph=True)
    assert {str(node.target) for node in alone.graph.nodes if node.op == "call_module"} == {"hypernet", "conv"}
