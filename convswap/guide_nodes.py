"""Finding, in a traced graph, the value that is to guide a convolution."""

from __future__ import annotations

import keyword
from collections.abc import Iterator

from torch import fx, nn

from .errors import GuideError
from .tracer import INPUT_OF, OUTPUT_OF

MODEL_INPUT = "input"
FURTHER_INPUT = "input:"
INPUT_OF_MODULE = ":input"


def further_input(guide: str) -> str | None:
    """The name of the model input that ``guide`` asks for by name, or None."""
    return guide.removeprefix(FURTHER_INPUT) if guide.startswith(FURTHER_INPUT) else None


def check_guide(guide: str) -> None:
    """Check how a guide is written.

    Raises:
        ValueError: if it names no input, module or node.
    """
    name = further_input(guide)
    if name is not None and not _can_be_argument(name):
        raise ValueError(
            f"guide must name an input of the model as in 'input:depth', got {guide!r}: the name must be one for a "
            "Python variable, of plain letters, and not begin with an underscore"
        )
    if not guide.strip():
        raise ValueError(f"guide must be 'input', 'input:<name>' or the name of a module or node, got {guide!r}")


def guide_in_part(guide: str, part: str) -> str:
    """What a guide of the whole model is called within a part of it."""
    if not part or further_input(guide) is not None:
        return guide
    return MODEL_INPUT if guide == f"{part}{INPUT_OF_MODULE}" else guide.removeprefix(f"{part}.")


def guide_in_whole(guide: str, part: str) -> str:
    """The inverse of `guide_in_part`. Nodes have no names in the whole that could be told from those in the part."""
    if not part or further_input(guide) is not None:
        return guide
    return f"{part}{INPUT_OF_MODULE}" if guide == MODEL_INPUT else f"{part}.{guide}"


def _can_be_argument(name: str) -> bool:
    plain = name.isidentifier() and name.isascii() and not name.startswith("_") and not keyword.iskeyword(name)
    return plain and name not in _NAMES_IN_CODE


_NAMES_IN_CODE = ("self", "torch", "inf", "nan", "device", "NoneType", "fx_pytree", "pytree")


def first_name(model: nn.Module, guide: str) -> str:
    """``guide`` with the first name of the module in it, by which graphs call it, where it has several."""
    ending = INPUT_OF_MODULE if guide.endswith(INPUT_OF_MODULE) else ""
    module = guide.removesuffix(INPUT_OF_MODULE)
    found = dict(model.named_modules(remove_duplicate=False)).get(module)
    names = (name for name, other in model.named_modules() if found is not None and other is found)
    return next(names, module) + ending


def is_node(model: nn.Module, guide: str) -> bool:
    """Whether ``guide`` is the name of a node, and not of an input or a module."""
    if guide == MODEL_INPUT or further_input(guide) is not None:
        return False
    return guide.removesuffix(INPUT_OF_MODULE) not in dict(model.named_modules(remove_duplicate=False))


def guide_node(graph: fx.Graph, call: fx.Node, guide: str) -> fx.Node | None:
    """The node of ``graph`` whose value guides ``call``; None for a further input that the graph does not have yet.

    Of a module that is called several times, the last value before ``call``.

    Args:
        graph: of the region that both are in.
        call: of the convolution, or of the layer in its place.
        guide: ``"input"``, ``"input:<name>"``, or the name of a module (relative to the region's root) or a node; with
            ``:input`` behind a module's name, what the module is given.

    Raises:
        GuideError: if there is no such value before ``call``, with the names of some that are there.
    """
    inputs = placeholders(graph)
    wanted = further_input(guide)
    if wanted is not None:
        found_input = next((node for node in inputs if str(node.target).lstrip("*") == wanted), None)
        if found_input is not None and (found_input.args or str(found_input.target).startswith("*")):
            raise GuideError(f"its guide {guide!r} is an argument with a default, or one for several values")
        return found_input
    if guide == MODEL_INPUT:
        if not inputs:
            raise GuideError("the network has no input")
        return inputs[0]
    found: list[fx.Node] = [node for node in graph.nodes if guide in names_of(node)]
    found = found or [node for node in graph.nodes if node.name == guide and node.op not in ("output", "get_attr")]
    if not found:
        raise GuideError(f"its guide {guide!r} gives no tensor{_instead(graph, call)}")
    before = [node for node in found if node < call]
    if before:
        return before[-1]
    if any(depends_on(node, call) for node in found):
        raise GuideError(f"its guide {guide!r} is computed from its own output, a cycle{_instead(graph, call)}")
    raise GuideError(f"its guide {guide!r} comes later in the network{_instead(graph, call)}")


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """The inputs of a graph."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def names_of(node: fx.Node) -> Iterator[str]:
    """The names, but its own, by which the value of a node can be asked for."""
    yield from node.meta.get(OUTPUT_OF, ())
    for name in node.meta.get(INPUT_OF, ()):
        yield f"{name}{INPUT_OF_MODULE}"


def depends_on(node: fx.Node, other: fx.Node) -> bool:
    """Whether the value of ``node`` is computed from that of ``other``."""
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop()
        if current is other:
            return True
        new = [n for n in current.all_input_nodes if n not in seen]
        seen.update(new)
        waiting.extend(new)
    return False


def usable(graph: fx.Graph, call: fx.Node, most: int = 6) -> list[str]:
    """Names of modules whose values are there before ``call``: the outermost ones first, of those the nearest."""
    names: dict[str, int] = {}
    for place, node in enumerate(graph.nodes):
        if node is call:
            break
        for name in node.meta.get(OUTPUT_OF, ()):
            names[name] = place
    return sorted(names, key=lambda name: (name.count("."), -names[name]))[:most]


def _instead(graph: fx.Graph, call: fx.Node) -> str:
    return f": {', '.join(map(repr, (*usable(graph, call), MODEL_INPUT)))} could be used"
