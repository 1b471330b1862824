"""Networks of one structure share a program; what a program could depend on beside that is never shared."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from depfuse.networks.forward import Called
from depfuse.refit.program.graph import Program
from depfuse.refit.program.reuse import program_of, structure_of


class Scaled(nn.Module):
    """A network with an attribute that `forward` reads, and buffers that a state dict holds or does not."""

    def __init__(self, seed: int = 0, factor: object = 2.0, *, persistent: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.register_buffer("shift", torch.tensor(float(seed)), persistent=persistent)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.factor * torch.relu(self.norm(self.layer(x))).mean((2, 3)) + self.shift)


IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def run(program: Program, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    values = program.values_of(images)
    with torch.no_grad():
        for node in program.nodes:
            values[node] = program.call(node, network.state_dict(), values)
    return values[program.output]


def test_networks_of_one_structure_have_one_program() -> None:
    first, second = Scaled(0).eval(), Scaled(1).eval()
    programs = [program_of(network, IMAGES) for network in (first, second, copy.deepcopy(first).train())]
    assert all(program.nodes == programs[0].nodes for program in programs)
    for program, network in zip(programs, (first, second, first), strict=True):
        torch.testing.assert_close(run(program, network, IMAGES), network(IMAGES))
    programs[0].nodes.clear()  # an order is a program's own
    assert programs[1].nodes == program_of(first, IMAGES).nodes != []


class Fixed(Scaled):
    """A network of which nothing but what `forward` does at the end depends on how many images there are."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(factor=1.0)
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.layer(x)))
        return self.head(self.end(y + y).flatten(2).mean(2))


ENDS = {
    "shuffled": lambda y: torch.cat(y.reshape(len(y), 2, 2, -1).transpose(1, 2).flatten(1, 2).chunk(2, 1), 1),
    "of one length": lambda y: y / (torch.linalg.vector_norm(y, dim=(2, 3), keepdim=True).mean(1, True) + 1e-6),
    "normalised": lambda y: nn.functional.normalize(y.flatten(1)).reshape(len(y), 4, -1),
    "scaled by the number": lambda y: y / len(y),
    "mean of the batch": lambda y: y - y.mean(0, keepdim=True),
    "all in one": lambda y: y.reshape(2 * len(y), 2, -1).reshape(len(y), 4, -1),
    "halves": lambda y: torch.cat(y.chunk(2)),
    "a constant": lambda y: y + torch.arange(float(len(y)))[:, None, None, None],
}


@pytest.mark.parametrize("end", ENDS)
def test_batches_of_any_size_have_one_program_where_nothing_depends_on_it(end: str) -> None:
    network = Fixed(ENDS[end]).eval()
    many, few = torch.randn(12, 1, 8, 8), torch.randn(8, 1, 8, 8)
    programs = [program_of(network, many), program_of(network, few), program_of(network, many)]
    assert programs[0].nodes == programs[2].nodes
    assert (programs[0].nodes == programs[1].nodes) is (end in ("shuffled", "of one length", "normalised"))
    for program, images in zip(programs, (many, few, many), strict=True):
        with torch.no_grad():
            assert torch.equal(run(program, network, images), network(images))


def with_hook() -> nn.Module:
    network = Scaled()
    network.layer.register_forward_hook(lambda *args: args[2] + 1)
    return network


def of_another_epsilon() -> nn.Module:
    network = Scaled()
    network.norm.eps = 1.0
    return network


def with_a_forward_of_its_own() -> nn.Module:
    network = Scaled()
    network.norm.forward = lambda x: 3 * x
    return network


def with_one_tensor_twice() -> nn.Module:
    network = Scaled()
    network.norm.bias = network.norm.weight
    return network


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scaled(factor=3.0),
        lambda: Scaled(factor=2),
        lambda: Scaled().to(memory_format=torch.channels_last),
        of_another_epsilon,
        with_a_forward_of_its_own,
        with_one_tensor_twice,
    ],
)
def test_networks_that_differ_have_other_structures(make: Callable[[], nn.Module]) -> None:
    network = make()
    found = structure_of(network.eval(), IMAGES)
    assert found is not None
    assert found == structure_of(copy.deepcopy(network).train(), IMAGES)
    assert found != structure_of(Scaled(1).eval(), IMAGES) == structure_of(Scaled(), IMAGES)


@pytest.mark.parametrize("images", [IMAGES[:4], IMAGES.double(), IMAGES[..., :7]])
def test_other_batches_have_other_structures(images: torch.Tensor) -> None:
    network = Scaled().to(images.dtype)
    assert structure_of(network, images) != structure_of(network, IMAGES)


@pytest.mark.parametrize(
    "make", [lambda: Scaled(factor=torch.tensor(2.0)), lambda: Scaled(persistent=False), with_hook]
)
def test_what_cannot_be_compared_has_no_structure(make: Callable[[], nn.Module]) -> None:
    assert structure_of(make(), IMAGES) is None
    assert structure_of(Scaled(), Called(IMAGES, Unknown())) is None


class Unknown:
    """Calls a network, as an object that may hold anything."""

    def __call__(self, network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return network(batch)


def test_batches_of_several_inputs_and_what_calls_networks_are_part_of_structures() -> None:
    batches = [IMAGES, (IMAGES,), {"x": IMAGES}, {"y": IMAGES}, {"x": IMAGES, "flag": True}]
    batches += [{"x": IMAGES, "flag": False}, {"x": IMAGES[:3]}, Called(IMAGES, called), Called(IMAGES, run)]
    found = [structure_of(Scaled(), batch) for batch in batches]
    assert None not in found
    assert len(set(found)) == len(batches)
    assert structure_of(Scaled(1), Called(IMAGES.clone(), called)) == found[7]


def called(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return network(batch)


def test_without_a_structure_a_program_is_made_anew() -> None:
    network = with_hook().eval()
    found = program_of(network, IMAGES)
    assert found.nodes != program_of(network, IMAGES).nodes
    torch.testing.assert_close(run(found, network, IMAGES), network(IMAGES))


def test_a_class_of_another_forward_is_another_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    before = structure_of(Scaled(), IMAGES)
    monkeypatch.setattr(Scaled, "forward", lambda self, x: self.head(self.layer(x).mean((2, 3))))
    assert structure_of(Scaled(), IMAGES) != before
