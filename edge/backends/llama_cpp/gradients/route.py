"""The gradients' way through a graph: which results it needs, and whether every operation on it is known."""

from collections.abc import Sequence

from edge.backends.llama_cpp.gradients.attention import taken_over
from edge.backends.llama_cpp.gradients.graph import VIEWS, Node, Route
from edge.backends.llama_cpp.gradients.operations import find_obstacle, needed_operands
from edge.errors import BackendError

CHEAP = VIEWS | {"RMS_NORM", "NORM", "MUL", "SCALE", "SOFT_MAX", "GLU", "UNARY"}  # computed again, not kept
"""Of these and of a few others (`_is_cheap`) no result is kept; the backward pass computes it again."""


def make_route(nodes: Sequence[Node], modules: frozenset[str]) -> Route:
    """Finds the gradients' way for LoRA on the weights called `modules`.

    Raises:
        BackendError: Naming every operation on the gradients' way that has no backward pass here.
    """
    head = nodes[-1].weight
    last = nodes[-1].sources[-1]
    if head is None or last is None or last != len(nodes) - 2:
        raise BackendError(
            f"backend llama_cpp cannot train this architecture: {nodes[-1].op} follows the head"
        )
    trained = frozenset(node.index for node in nodes if node.weight and node.module in modules)
    has_gradient = [False] * len(nodes)
    for node in nodes:
        behind = any(has_gradient[source] for source in node.sources if source is not None)
        has_gradient[node.index] = node.index in trained or (behind and node.op != "SET_ROWS")
    on_way = [node for node in nodes[: last + 1] if has_gradient[node.index]]
    obstacles = sorted({name for node in on_way if (name := find_obstacle(node))})
    if obstacles:
        raise BackendError(
            f"backend llama_cpp cannot train this architecture: no gradient of {', '.join(obstacles)}"
        )
    needed = {
        node.sources[operand]
        for node in on_way
        for operand in needed_operands(node, has_gradient, node.index in trained)
    }
    kept = set().union(*(_behind(nodes, number) for number in needed))
    masked = {node.sources[1] for node in on_way if node.takes_soft_max}
    return Route(
        trained=trained,
        head=head,
        last=last,
        has_gradient=tuple(has_gradient),
        is_changed=tuple(number in trained or number == last for number in range(len(nodes))),
        is_kept=tuple(number in kept for number in range(len(nodes))),
        taken_over=taken_over(nodes),
        takes_input=tuple(
            node.index in masked or (node.op == "GET_ROWS" and has_gradient[node.index]) for node in nodes
        ),
    )


def _behind(nodes: Sequence[Node], number: int | None) -> set[int]:
    """Finds the results to keep so that this one can be had: itself, or what it is computed from again."""
    if number is None:
        return set()
    if not _is_cheap(nodes[number]):
        return {number}
    return set().union(*(_behind(nodes, source) for source in nodes[number].sources))


def _is_cheap(node: Node) -> bool:
    if node.op == "ADD":
        return any(constant is not None for constant in node.constants)
    return node.op in CHEAP or (node.op == "MUL_MAT" and node.weight is None)
