"""Channel groups: what is found, and that permuting it keeps the function."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from depfuse.errors import ArchitectureError, GroupError
from depfuse.groups import ChannelGroup, ChannelGroups, find_groups, prove_groups
from depfuse.groups.proof import SAMPLED_RUNS
from depfuse.models import build_network
from depfuse.progress import Work, shown

NETWORKS = [
    # architecture, image shape, sorted sizes of the free groups
    ("cifar_resnet18(width=0.125)", (3, 32, 32), [8] * 3 + [16] * 3 + [32] * 3 + [64] * 3),
    ('cifar_resnet20(shortcut="A")', (3, 32, 32), [16] * 5 + [32] * 4 + [64] * 3),
    ('cifar_resnet20(shortcut="B")', (3, 32, 32), [16] * 4 + [32] * 4 + [64] * 4),
    ("digits_resnet", (1, 8, 8), None),
    ("vgg11(width=0.125)", (3, 32, 32), None),
    ("vgg11(width=0.125, batch_norm=False)", (3, 32, 32), None),
    ("cifar_resnet50(width=0.125)", (3, 32, 32), None),
    ("torchvision:resnet18", (3, 64, 64), [64] * 3 + [128] * 3 + [256] * 3 + [512] * 3),
    ("torchvision:mobilenet_v2", (3, 64, 64), None),
]
# One of each kind; experiments/proofs/coverage.py goes through all of them.
SLOW_NETWORKS = ["resnet50", "googlenet", "densenet121", "mobilenet_v3_large", "vit_b_32"]


def proved(network: nn.Module, shape: tuple[int, ...]) -> ChannelGroups:
    example = torch.randn(1, *shape)
    return prove_groups(network, find_groups(network, example), example)


def reasons(groups: ChannelGroups) -> set[str]:
    return set(groups.fixed.values())


TOUCHES = {"touches the network's input", "touches the network's output"}


@pytest.mark.parametrize(("arch", "shape", "sizes"), NETWORKS)
def test_groups_are_found_and_proved(arch, shape, sizes):
    groups = proved(build_network(arch), shape)
    assert groups.proof_error <= 1e-9
    assert reasons(groups) <= TOUCHES
    assert groups.covered_share > 0.9
    if sizes is not None:
        assert sorted(group.size for group in groups.free) == sorted(sizes)
    assert all(group.taps for group in groups.free)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_NETWORKS)
def test_torchvision_networks_are_proved_at_full_size(name):
    groups = proved(build_network(f"torchvision:{name}"), (3, 224, 224))
    assert groups.proof_error <= 1e-9
    assert not [reason for reason in reasons(groups) if reason.startswith("not proved")]
    assert groups.covered_share > 0.95


class PaddedByConcatenation(nn.Module):
    """A shortcut of option A whose missing channels are concatenated zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        zeros = x.new_zeros(x.shape[0], 2, *x.shape[2:])
        return self.head((self.branch(x) + torch.cat([zeros, x, zeros], 1)).relu().mean((2, 3)))


def test_zeros_concatenated_are_padding():
    groups = proved(PaddedByConcatenation(), (3, 4, 4))
    assert reasons(groups) <= TOUCHES
    assert [group.size for group in groups.free] == [4, 4]
    stream = groups["stem"]
    where = {(slot.key, slot.axis): slot.index[:, 0].tolist() for slot in stream.slots}
    assert where["branch.weight", 0] == [2, 3, 4, 5]


class WithCoordinates(nn.Module):
    """A constant that is not zero joins the channels: a proof must find out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        constant = torch.arange(4.0).to(x).reshape(1, 4, 1, 1).expand(x.shape[0], 4, *x.shape[2:])
        return self.head((self.branch(x) + torch.cat([x, constant], 1)).relu().mean((2, 3)))


def test_constants_concatenated_are_found_not_to_be_zeros():
    groups = proved(WithCoordinates(), (3, 4, 4))
    assert groups.proof_error <= 1e-9
    assert [group.size for group in groups.free] == [4]
    assert any(reason.startswith("not proved") for reason in reasons(groups))


class WithAuxiliaryHead(nn.Module):
    """A trunk, a head, and a second head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(5, 4)
        layers = nn.Conv2d(6, 7, 1), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(252, 4)
        self.auxiliary = nn.Sequential(*layers)

    def forward(self, x):
        x = self.trunk(x)
        main = self.head(self.middle(x).mean((2, 3)))
        return (main, self.auxiliary(x)) if self.training else main


def test_auxiliary_heads_join_the_groups():
    network = WithAuxiliaryHead()
    groups = proved(network, (3, 8, 8))
    assert groups.proof_error <= 1e-9
    assert "" in groups.auxiliary
    assert sorted(group.size for group in groups.free) == [5, 6, 7]
    assert "auxiliary.0.weight" in {slot.key for slot in groups["trunk.0"].slots}
    assert all(module.training for module in network.modules())
    network.eval()
    proved(network, (3, 8, 8))
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("depth", [20, pytest.param(56, marks=pytest.mark.slow)])
def test_padded_shortcuts_split_the_residual_stream(shared, depth):
    network = build_network(f"{shared}/models/cifar_resnet_a.py:resnet{depth}")
    groups = proved(network, (3, 32, 32))
    assert groups.proof_error <= 1e-9
    blocks = (depth - 2) // 6
    assert sorted(group.size for group in groups.free) == sorted([16, 16, 32] + [16, 32, 64] * blocks)
    where = {}
    for group in groups.free:
        for slot in group.slots:
            if slot.key == "linear.weight" and slot.axis == 1:
                where[group.size, int(slot.index[0, 0])] = slot.index[:, 0].tolist()
    first, second, third = (where[key] for key in ((16, 24), (16, 16), (32, 0)))
    assert first == list(range(24, 40))
    assert second == list(range(16, 24)) + list(range(40, 48))
    assert third == list(range(16)) + list(range(48, 64))


def test_shared_simplenet(shared):
    groups = proved(build_network(f"{shared}/models/simplenet.py:simplenet"), (1, 28, 28))
    assert [group.size for group in groups.free] == [32, 64, 32]
    flattened = next(slot for slot in groups["conv2"].slots if slot.key == "fc1.weight")
    assert flattened.index.shape == (64, 49)
    assert flattened.index[3].tolist() == list(range(3 * 49, 4 * 49))
    assert groups.covered_share == 1.0


def test_permutation_by_hand_keeps_the_function():
    """Independent of prove_groups: plain indexing of a state dict, loaded into a fresh network."""
    torch.manual_seed(0)
    network = build_network('cifar_resnet20(shortcut="B")').double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    groups = find_groups(network, images[:1].float())
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    for group in groups.free:
        order = torch.randperm(group.size)
        for slot in group.slots:
            moved = state[slot.key].movedim(slot.axis, 0)
            moved[slot.index.reshape(-1)] = moved[slot.index[order].reshape(-1)].clone()
    other = build_network('cifar_resnet20(shortcut="B")').double().eval()
    other.load_state_dict(state)
    assert not torch.equal(other.conv1.weight, network.conv1.weight)
    torch.testing.assert_close(other(images), network(images), rtol=0, atol=1e-12)


def without_slot(groups: ChannelGroups, name: str, place: int) -> ChannelGroups:
    def cut(group: ChannelGroup) -> ChannelGroup:
        slots = tuple(slot for number, slot in enumerate(group.slots) if number != place)
        return replace(group, slots=slots) if group.name == name else group

    return replace(groups, groups=tuple(cut(group) for group in groups.groups))


def test_a_group_without_one_of_its_slots_is_found_out_and_fixed():
    """Also where the slot's values are all equal, as a fresh BatchNorm's are."""
    network, example = build_network("digits_resnet"), torch.randn(1, 1, 8, 8)
    groups = find_groups(network, example)
    target = groups.free[1]
    for place in range(len(target.slots)):
        result = prove_groups(network, without_slot(groups, target.name, place), example)
        assert set(result.fixed) - set(groups.fixed) == {target.name}, target.slots[place]
        assert result.fixed[target.name].startswith("not proved")
        assert result.proof_error <= 1e-9


class Watched(nn.Sequential):
    """Layers whose values after the first are noted in every forward pass."""

    seen: ClassVar[list[list[torch.Tensor]]] = []

    def forward(self, x):
        values = []
        for layer in self:
            x = layer(x)
            values.append(x.detach())
        self.seen.append(values)
        return x


def chain(layers: int) -> Watched:
    torch.manual_seed(0)
    Watched.seen.clear()
    return Watched(*(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(layers)))


def all_wrong(network: nn.Module, example) -> ChannelGroups:
    """The groups of a network, each without its consumer."""
    groups = find_groups(network, example)
    cut = (replace(group, slots=tuple(slot for slot in group.slots if slot.role != "consumes")) for group in groups)
    return replace(groups, groups=tuple(cut))


def test_a_sampled_proof_is_bounded_and_frees_nothing_that_a_full_one_fixes():
    network, example = chain(40), torch.randn(1, 5)
    groups = all_wrong(network, example)
    assert groups.count == 39
    Watched.seen.clear()
    sampled = prove_groups(network, groups, example, proof="sampled")
    bounded = len(Watched.seen)
    Watched.seen.clear()
    full = prove_groups(network, groups, example)
    assert bounded <= SAMPLED_RUNS + 20 < len(Watched.seen)
    assert sampled.count == full.count == 0
    assert all(reason.startswith("not proved") for name, reason in sampled.fixed.items() if name not in groups.fixed)


def test_a_sampled_proof_permutes_all_groups_at_once_three_times():
    network, example = chain(4), torch.randn(1, 5)
    groups = find_groups(network, example)
    Watched.seen.clear()
    sampled = prove_groups(network, groups, example, proof="sampled")
    assert [group.name for group in sampled.free] == [group.name for group in groups.free]
    plain, *moved = [values for values in Watched.seen if len(values[0]) == 2]  # samples, of which a proof runs several
    assert len(moved) == 3
    assert len({tuple(torch.cat(values[:-1]).flatten().tolist()) for values in moved}) == 3
    for values in moved:
        torch.testing.assert_close(values[-1], plain[-1])
        for own, before in zip(values[:-1], plain[:-1], strict=True):
            torch.testing.assert_close(own.sort(1).values, before.sort(1).values)
            assert not torch.equal(own, before), "every group is moved"


def test_a_proof_says_what_it_does_and_how_much_is_left():
    class Noted(Work):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def changed(self, *, begun: bool = False) -> None:
            self.seen.append(str(self))

    network, example, noted = chain(4), torch.randn(1, 5), Noted()
    with shown(noted):
        prove_groups(network, all_wrong(network, example), example)
    assert noted.seen[0].startswith("proving 3 channel groups in float64, 0 of 6")
    assert any(line.startswith("finding which of 3 channel groups fail their proof, 2 of 200") for line in noted.seen)
    assert any("about" in line and line.endswith("left") for line in noted.seen)


class Saturated(nn.Module):
    """Attention whose softmax takes one place only: on most values, queries and keys do not count."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 8) for _ in range(3))
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        attention = (1000.0 * self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return self.out(attention @ self.value(x))


def test_channels_behind_a_saturated_softmax_are_proved_on_smaller_values():
    torch.manual_seed(0)
    model, example = Saturated(), torch.randn(1, 6, 16)
    proved = prove_groups(model, find_groups(model, example), example)
    assert proved.proof_error <= 1e-9
    assert {"query", "value"} <= {group.name for group in proved.free}


class Noisy(nn.Module):
    """Dropout of the middle channels that is never switched off, between layers without it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.third(torch.dropout(self.second(torch.relu(self.first(x))), 0.5, True))


def test_a_random_network_is_proved_by_a_seed_where_nothing_random_tells_channels_apart():
    torch.manual_seed(0)
    network, example = Noisy(), torch.randn(1, 4)
    groups = prove_groups(network, find_groups(network, example), example)
    assert [group.name for group in groups.free] == ["first"]
    assert groups.fixed["second"].endswith("the network is random in eval mode")


class Counting(nn.Module):
    """Another function at each call."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.calls = nn.Linear(4, 6), nn.Linear(6, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.second(torch.tanh(self.first(x) * self.calls))


def test_a_network_that_computes_another_function_at_each_call_cannot_be_proved():
    network, example = Counting(), torch.randn(1, 4)
    with pytest.raises(GroupError, match="different outputs for the same input"):
        prove_groups(network, find_groups(network, example), example)


def test_the_network_is_left_as_it_was():
    network = build_network("digits_resnet").train()
    next(network.parameters()).requires_grad_(False)
    calls = []
    next(network.children()).register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    grads = [parameter.requires_grad for parameter in network.parameters()]
    proved(network, (1, 8, 8))
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == grads
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    noted = len(calls)
    network(torch.randn(2, 1, 8, 8))
    assert len(calls) == noted + 1


class Blocks(nn.Module):
    """Concatenation, split, gate, depthwise and grouped convolution, a shared and an unused layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.frozen = FrozenBatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.gate = nn.Conv2d(12, 12, 1)
        self.mix = nn.Conv2d(20, 10, 1)
        self.twice = nn.Conv2d(5, 5, 1)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(5 * 16, 4)

    def forward(self, x):
        x = torch.relu(self.frozen(self.stem(x)))
        y = torch.relu(self.grouped(self.depthwise(x)))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        left, right = self.mix(torch.cat([x, y], 1)).chunk(2, 1)
        z = self.twice(torch.relu(self.twice(left * torch.tanh(right))))
        return self.head(z.flatten(1))


def test_operations_between_layers():
    torch.manual_seed(1)
    network = Blocks()
    generic = torch.rand(8) + 0.5
    network.frozen.running_var.copy_(generic)
    groups = proved(network, (3, 4, 4))
    assert groups.proof_error <= 1e-9
    assert reasons(groups) <= TOUCHES
    assert groups.fixed_tensors["unused.weight"] == "not used in the forward pass"
    keys = {slot.key for group in groups.free for slot in group.slots}
    assert {"frozen.running_var", "depthwise.weight", "grouped.weight", "gate.weight", "twice.weight"} <= keys
    # The two blocks of the grouped convolution may be exchanged, and channels inside a block permuted.
    sizes = sorted(group.size for group in groups.free)
    assert sizes == [2, 4, 4, 5, 6, 6]


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda model: model.half(), lambda model: model.train()]
)
def test_wrapped_half_and_training_networks(wrap):
    network = wrap(build_network("digits_resnet"))
    assert proved(network, (1, 8, 8)).proof_error <= 1e-9


class Wrong(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.layer, self.result = nn.Linear(3, 3), result

    def forward(self, x):
        return self.result(x)


class Inferring(Wrong):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


def test_networks_that_cannot_be_traced():
    with pytest.raises(ArchitectureError, match="Wrong raises on the example input"):
        find_groups(Wrong(lambda x: x.reshape(7)), torch.randn(1, 3))
    with pytest.raises(ArchitectureError, match="returns no tensor"):
        find_groups(Wrong(lambda x: "nothing"), torch.randn(1, 3))
    with pytest.raises(ArchitectureError, match="Inferring computes in inference mode"):
        find_groups(Inferring(lambda x: x * 2), torch.randn(1, 3))


def test_depgraph_tracing():
    """The private tracing of torch-pruning that `depgraph.py` calls is there, as in 1.5 and 1.6."""
    import inspect

    import torch_pruning

    parameters = list(inspect.signature(torch_pruning.DependencyGraph._trace).parameters)
    assert parameters == ["self", "model", "example_inputs", "forward_fn", "output_transform"], (
        torch_pruning.__version__
    )


def test_groups_print_as_a_tree():
    text = str(proved(build_network("digits_resnet"), (1, 8, 8)))
    assert "produces" in text
    assert "consumes" in text
    assert "touches the network's output" in text
    assert "free groups" in text
