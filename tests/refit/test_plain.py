"""Plain networks have the operations that `torch.export` finds, without it; all others are left to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from refit.test_functional import operations
from torch import Tensor, nn

from depfuse.models import build_network
from depfuse.refit.program.exported import exported_operations
from depfuse.refit.program.graph import Program
from depfuse.refit.program.plain import plain_operations

PLAIN, LAST = torch.contiguous_format, torch.channels_last


class Layers(nn.Module):
    """A network of every layer and function that is plain, with settings that are not the usual ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.point, self.bare = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, 1, 2, 2, groups=4, bias=False)
        self.norm, self.plain = nn.BatchNorm2d(8, momentum=None), nn.BatchNorm2d(8, affine=False, eps=1e-3)
        self.relu, self.relu6 = nn.ReLU(inplace=True), nn.Sequential(nn.ReLU6(), nn.ReLU6(inplace=True))
        self.pool = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(2, ceil_mode=True))
        self.mean = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.AvgPool2d(2))
        self.places = nn.AdaptiveAvgPool2d((2, 2))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(80, 16, bias=False), nn.Identity())
        self.rows = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3))

    def forward(self, images: Tensor) -> Tensor:
        x = self.plain(self.bare(self.norm(self.point(images))))
        y = F.relu(self.relu(x), inplace=True)
        y = y + torch.relu(x)
        y += x
        x = self.mean(self.pool(F.pad(y[:, :, ::2, 1:], (0, 1, 0, 0, 1, 1)).relu()))
        x = torch.cat([x, self.relu6(x)], 1)
        x = self.rows(self.head(self.places(x)))
        return torch.flatten(x, 1).relu() + (x + x).relu_() + images.mean((2, 3), keepdim=True).flatten(1)[:, :3]


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "layers": lambda: (Layers(), torch.randn(9, 4, 16, 16)),
    "signals": lambda: (
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)),
        torch.randn(9, 2, 8),
    ),
    "volumes": lambda: (
        nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)),
        torch.randn(9, 1, 4, 4, 4),
    ),
    "digits": lambda: (build_network("digits_resnet(width=1.25)"), torch.randn(117, 1, 8, 8)),
    "padded": lambda: (build_network("cifar_resnet20(width=0.25)"), torch.randn(9, 3, 32, 32)),
    "bottlenecks": lambda: (build_network("resnet50(width=0.125)"), torch.randn(9, 3, 32, 32)),
    "vgg": lambda: (build_network("vgg11(width=0.125)"), torch.randn(9, 3, 32, 32)),
}


@pytest.mark.parametrize("layout", [PLAIN, LAST])
@pytest.mark.parametrize("name", NETWORKS)
def test_operations_are_those_of_an_export(name: str, layout: torch.memory_format) -> None:
    network, images = NETWORKS[name]()
    if layout is LAST and images.dim() == 4:
        images = images.contiguous(memory_format=LAST)
    found, wanted = plain_operations(network.eval(), images), exported_operations(network.eval(), images)
    assert found is not None
    both = [
        [str(one).replace(f"'{which.inputs[0].name}'", "images") for one in operations(which)[:-1]]
        for which in (found, wanted)
    ]
    assert both[0] == both[1]  # but for the output, of which an export may have several
    assert found.keys == wanted.keys
    assert found.output.target == wanted.output.target


class Odd(nn.Module):
    """A network with one thing that is not plain."""

    def __init__(self, end: Callable[[Odd, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head, self.end = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), end
        self.other = self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.end(self, torch.relu(self.layer(x))).mean((2, 3)))


class Doubled(nn.ReLU):
    """A layer whose class torch knows, and whose code it does not."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def odd(end: Callable[[Odd, Tensor], Tensor]) -> nn.Module:
    network = Odd(end)
    del network.other, network.scale
    return network


def with_hook() -> nn.Module:
    network = odd(lambda _, x: x)
    network.layer.register_forward_hook(lambda *args: args[2] + 1)
    return network


def with_another_forward() -> nn.Module:
    network = odd(lambda _, x: x)
    network.layer.forward = lambda x: 2 * F.conv2d(x, network.layer.weight)  # type: ignore[method-assign, operator, arg-type]
    return network


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "a hook": with_hook,
    "a layer with another forward": with_another_forward,
    "two names for a tensor": lambda: Odd(lambda _, x: x),
    "what looks at what it is given": lambda: odd(lambda _, x: x + x if isinstance(x, Tensor) else x),
    "what depends on values": lambda: odd(lambda _, x: x + x if x.sum() > 0 else x),
    "the number of images": lambda: odd(lambda _, x: x[: len(x)]),
    "an operation across images": lambda: odd(lambda _, x: torch.cat([x, x])[: x.shape[0]]),
    "images that are left out": lambda: odd(lambda _, x: x[:2]),
    "a mean over images": lambda: odd(lambda _, x: x + x.mean([0, 1], keepdim=True).expand_as(x)),
    "a class of its own": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), Doubled(), nn.AvgPool2d(6), nn.Flatten()),
    "statistics of the batch": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    "circular padding": lambda: nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_plain_is_left_to_an_export(name: str) -> None:
    network, images = OTHERS[name]().eval(), torch.randn(9, 1, 8, 8)
    assert plain_operations(network, images) is None


def test_networks_in_training_batches_of_one_and_others_than_tensors_are_not_plain() -> None:
    network = build_network("digits_resnet")
    assert plain_operations(network.train(), torch.zeros(9, 1, 8, 8)) is None
    assert plain_operations(network.eval(), torch.zeros(1, 1, 8, 8)) is None
    assert plain_operations(network.eval(), {"x": torch.zeros(9, 1, 8, 8)}) is None


def test_the_network_is_left_as_it_was_and_the_program_computes_the_same() -> None:
    network, images = Layers().eval(), torch.randn(9, 4, 16, 16)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    copied = images.clone()
    program = Program(network, images)
    assert torch.equal(images, copied)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    values = program.values_of(images)
    with torch.no_grad():
        for node in program.nodes:
            values[node] = program.call(node, network.state_dict(), values)
        torch.testing.assert_close(values[program.output], network(images))
