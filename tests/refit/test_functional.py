"""Exported networks are made functional as `run_decompositions({})` makes them, to the last operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from refit.test_reuse import run
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from depfuse.refit.program import functional as module
from depfuse.refit.program.functional import CHECKS, functional, name_of
from depfuse.refit.program.graph import Program
from depfuse.refit.program.operations import Operations

IMAGES = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Of(nn.Module):
    """A network that is one function of its layers and its images."""

    def __init__(self, forward: Callable[[Of, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.plain, self.head = nn.BatchNorm2d(4, affine=False), nn.Linear(4, 3)
        self.norm.running_mean.uniform_(-1, 1)
        self.computed = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.computed(self, x)


def residual(net: Of, x: Tensor) -> Tensor:
    y = F.relu(net.norm(net.layer(x)), inplace=True)
    y = net.plain(net.other(y))
    y += net.other(x)
    return F.hardswish(y, inplace=True).mean((2, 3))


def shapes(net: Of, x: Tensor) -> Tensor:
    first, second = net.layer(x).chunk(2, 1)
    y = torch.cat([second, first.contiguous()], 1).swapaxes(2, 3)
    y = y.reshape(5, 2, 2, 8, 8).transpose(1, 2).contiguous().flatten(1).unflatten(1, (4, 64))
    y = F.dropout(net.head(F.dropout(y.permute(0, 2, 1), 0.5, net.training)), 0.1, net.training)
    return F.normalize(F.dropout(y, 0.5, net.training, inplace=True).flatten(1).flatten(1))


def in_place_along_views(net: Of, x: Tensor) -> Tensor:
    y = net.layer(x)
    z = F.relu(y.flatten(2), inplace=True)
    return F.silu(z, inplace=True).unflatten(2, (8, 8)).add_(net.norm(x)).mean((2, 3))


def attention(net: Of, x: Tensor) -> Tensor:
    y = net.layer(x).flatten(2).transpose(1, 2)
    return F.gelu(F.scaled_dot_product_attention(y, y, y)).softmax(-1).mean(1)


def computed_for_nothing(net: Of, x: Tensor) -> Tensor:
    y = net.layer(x)
    F.relu(net.norm(net.other(y)), inplace=True)
    return y


def read_again_by_a_view(net: Of, x: Tensor) -> Tensor:
    y = net.layer(x)
    view = y.flatten(1)
    F.relu(y, inplace=True)
    return view


def read_again_by_another_name(net: Of, x: Tensor) -> Tensor:
    y = net.layer(x)
    z = F.dropout(y, 0.5, net.training)
    F.relu(z, inplace=True)
    return y + 1.0


def into_its_images(net: Of, x: Tensor) -> Tensor:
    return net.layer(F.relu(x.clone()[:], inplace=True))


def into_a_part(net: Of, x: Tensor) -> Tensor:
    y = net.layer(x)
    y[:, :2].relu_()
    y[:, 2] = 0.0
    return y


def assigned_to_a_part(net: Of, x: Tensor) -> Tensor:
    y = net.layer(x)
    z = torch.zeros_like(y)
    z[:, :3], z[:, 3] = y[:, 1:].relu(), net.other(x)[:, :1].mean((1, 2, 3), keepdim=True)[:, 0].double()
    return net.norm(z).mean((2, 3))


def of_another_type(net: Of, x: Tensor) -> Tensor:
    return (net.layer(x) > 0).to(torch.float32).add_(torch.ones((), dtype=torch.float64))


def by_its_own_statistics(net: Of, x: Tensor) -> Tensor:
    return F.instance_norm(F.batch_norm(x, None, None, training=True), eps=0.1)


REWRITTEN = (residual, shapes, attention, computed_for_nothing, read_again_by_another_name)
TRACED_AGAIN = (
    in_place_along_views,
    read_again_by_a_view,
    into_its_images,
    into_a_part,
    of_another_type,
    by_its_own_statistics,
)


def operations(exported: ExportedProgram | Operations) -> list[object]:
    """List the operations of a graph with their arguments and the shape and strides that they give."""
    numbers: dict[fx.Node, str] = {}
    found: list[object] = []
    for node in exported.graph.nodes:
        numbers[node] = node.name if node.op == "placeholder" else f"%{len(numbers)}"
        if node.op in ("call_function", "output") and name_of(node) != CHECKS:
            value = node.meta.get("val")
            layout = (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else None
            arguments = fx.node.map_arg((node.args, node.kwargs), numbers.__getitem__)
            found.append((str(node.target), str(arguments), layout))
    return found


PLAIN, LAST = torch.contiguous_format, torch.channels_last
CASES = [(computed, PLAIN) for computed in (*REWRITTEN, *TRACED_AGAIN)] + [(residual, LAST), (shapes, LAST)]


@pytest.mark.parametrize(("computed", "layout"), CASES)
def test_graphs_are_those_of_a_second_trace(
    computed: Callable[[Of, Tensor], Tensor], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = Of(computed).eval(), IMAGES.contiguous(memory_format=layout)
    with torch.no_grad():
        exported = torch.export.export(network, (images,), strict=False)
    wanted = exported.run_decompositions({})
    if computed in REWRITTEN:
        monkeypatch.setattr(ExportedProgram, "run_decompositions", None)
    assert operations(functional(exported)) == operations(wanted)


@pytest.mark.parametrize("computed", [residual, read_again_by_another_name, read_again_by_a_view, into_a_part])
def test_programs_compute_what_networks_do(computed: Callable[[Of, Tensor], Tensor]) -> None:
    network = Of(computed).eval()
    assert torch.equal(run(Program(network, IMAGES), network, IMAGES), network(IMAGES))


def test_assignments_to_a_part_have_derivatives() -> None:
    network = Of(assigned_to_a_part).eval()
    program = Program(network, IMAGES)
    assert torch.equal(run(program, network, IMAGES), network(IMAGES))
    state = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
    weight = state["other.weight"] = state["other.weight"].requires_grad_(True)
    values = program.values_of(IMAGES)
    for node in program.nodes:
        values[node] = program.call(node, state, values)
    (found,) = torch.autograd.grad(values[program.output].sum(), weight)
    (wanted,) = torch.autograd.grad(network(IMAGES).sum(), network.other.weight)
    torch.testing.assert_close(found, wanted)


def test_an_operation_that_is_not_known_is_traced_again() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    known = [graph.call_function(target, (x,)) for target in (torch.ops.aten.relu.default, torch.ops.aten.mish.default)]
    others = (torch.ops.aten.detach.default, torch.ops.aten.type_as.default, torch.relu, torch.ops.aten.exp_.default)
    assert all(map(module._is_known, known))
    assert not any(module._is_known(graph.call_function(target, (x,))) for target in others)
