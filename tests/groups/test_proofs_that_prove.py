"""A proof says something: of hooks, of what forward writes or hides, of several images; and what is left is counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from depfuse import Recipe, fuse
from depfuse.errors import ArchitectureError, DepfuseWarning, GroupError
from depfuse.fusion.parents import Parents
from depfuse.groups import ChannelGroups, explain, find_groups, not_followed, prove_groups
from depfuse.groups.reasons import NOT_USED
from depfuse.networks.copying import evaluation_copy

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PLAIN = Recipe(criterion="weights", refit="none", renorm="none")
Conv = nn.Conv2d


def proved(network: nn.Module, example: Tensor = IMAGE) -> ChannelGroups:
    network.eval()
    return prove_groups(network, find_groups(network, example), example)


def beside(_: Any, x: Tensor) -> Tensor:
    """Add every channel to its neighbour, where autograd does not look."""
    if torch.is_grad_enabled():
        raise RuntimeError("no gradients are kept here")
    return x + x.roll(1, 1)


class Named(nn.Module):
    """A step of one's own between two layers: it adds every channel to its neighbour."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.second, self.head = Conv(3, 8, 3), Conv(8, 12, 3), Conv(12, 4, 1)
        backward = staticmethod(lambda _, gradient: gradient)
        self.own = type(name, (torch.autograd.Function,), {"forward": staticmethod(beside), "backward": backward})

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.own.apply(self.first(x)))))


@pytest.mark.parametrize("name", ["Roll", "Relu", "Cat", "Convolution", "View", "Mul"])
def test_a_function_of_ones_own_is_not_what_its_name_says(name: str) -> None:
    groups = proved(Named(name))
    assert [group.size for group in groups.free] == [12]
    assert f"autograd.Function {name} " in explain(not_followed(groups))


def change_by_permuting(network: nn.Module, groups: ChannelGroups, example: Tensor) -> float:
    """Relative change of the output when all free groups are rolled by one in the network itself."""
    with torch.no_grad():
        before = network(example)
        state = network.state_dict()
        for group in groups.free:
            state = group.permute(state, torch.arange(group.size).roll(1))
        network.load_state_dict(state)
        return float((network(example) - before).abs().max() / before.abs().max())


class Skip(nn.Module):
    """A U-Net whose encoder's activation is kept by a hook and read by the decoder."""

    def __init__(self, hook: Callable[[Skip], Callable[..., None]]) -> None:
        super().__init__()
        self.first, self.down = Conv(3, 8, 3, padding=1), Conv(8, 16, 3, 2, 1)
        self.up, self.head, self.kept = Conv(24, 8, 3, padding=1), Conv(8, 3, 1), None
        self.first.register_forward_hook(hook(self))

    def keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.kept = output

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.down(F.relu(self.first(x))))
        return self.head(F.relu(self.up(torch.cat([F.interpolate(y, scale_factor=2), self.kept], 1))))


def by_method(network: Skip) -> Callable[..., None]:
    return network.keep


def by_closure(network: Skip) -> Callable[..., None]:
    return lambda module, inputs, output: setattr(network, "kept", output)


@pytest.mark.parametrize("runs", [0, 1])
def test_hooks_are_part_of_the_network(runs: int) -> None:
    """Whether it has run before or not; what a hook kept then is no constant."""
    network = Skip(by_method)
    for _ in range(runs):
        network(IMAGE)
    groups = proved(network)
    assert [group.size for group in groups.free] == [8, 16, 8]
    assert ("up.weight", 1) in {(slot.key, slot.axis) for slot in groups["first"].slots}
    assert change_by_permuting(network, groups, torch.randn(2, 3, 8, 8)) < 1e-5


@pytest.mark.parametrize("runs", [0, 1])
def test_hooks_that_write_into_the_original_are_refused_by_name(runs: int) -> None:
    network = Skip(by_closure).eval()
    for _ in range(runs):
        network(IMAGE)
    with pytest.raises(ArchitectureError, match=r"a copy of Skip computes something else.* forward hooks of first:"):
        find_groups(network, IMAGE)
    with pytest.raises((ArchitectureError, GroupError), match="hooks of first"):
        fuse(Parents([network, Skip(by_closure)], example=IMAGE), PLAIN)


def test_a_copy_of_a_hooked_network_is_faithful_and_independent() -> None:
    network = Skip(by_method).eval()
    network(IMAGE)  # the kept activation has a gradient, which deepcopy does not take
    copied, other = evaluation_copy(network), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        wanted = network(other)
        assert torch.equal(copied(other), wanted)
        copied.first.weight.mul_(2)
        assert not torch.equal(copied(other), wanted)
        assert torch.equal(network(other), wanted)


def test_a_hook_that_only_looks_is_no_obstacle() -> None:
    network = nn.Sequential(Conv(3, 8, 3), nn.ReLU(), Conv(8, 3, 3))
    seen: list[Tensor] = []
    network[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    groups = proved(network)
    assert [group.size for group in groups.free] == [8]
    result = fuse(Parents([network, nn.Sequential(Conv(3, 8, 3), nn.ReLU(), Conv(8, 3, 3))], example=IMAGE), PLAIN)
    noted = len(seen)
    result.child(IMAGE)
    assert len(seen) == noted


class Reaching(nn.Module):
    """Its second layer is run by a function that holds the network it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Conv(3, 8, 1), Conv(8, 3, 1)
        second = self.second
        self.run = lambda x: F.conv2d(x, second.weight, second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(F.relu(self.first(x)))


def test_a_copy_that_computes_with_the_originals_weights_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"a copy of Reaching computes with the original's second\.weight"):
        find_groups(Reaching(), IMAGE)


@pytest.mark.parametrize("norm", ["weight_norm", "pruned"])
def test_weights_made_by_hooks(norm: str) -> None:
    network = nn.Sequential(Conv(3, 8, 3), nn.ReLU(), Conv(8, 3, 3))
    for layer in (network[0], network[2]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if norm == "weight_norm":
                nn.utils.weight_norm(layer)
            else:
                prune.random_unstructured(layer, "weight", 0.5)
    network.eval()(IMAGE)
    groups = proved(network)
    assert [group.size for group in groups.free] == [8]
    assert change_by_permuting(network, groups, IMAGE) < 1e-5


class Folding(nn.Module):
    """Layers whose weights are written in forward from other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Parameter(torch.randn(8, 3, 1, 1)), nn.Parameter(torch.randn(3, 8, 1, 1))
        self.first, self.second = Conv(3, 8, 1, bias=False), Conv(8, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.first.weight.copy_(self.w * 2)
            self.second.weight.copy_(self.u * 2)
        return self.second(F.relu(self.first(x)))


class FoldingData(Folding):
    """The same, written through `.data`."""

    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data, self.second.weight.data = self.w.data * 2, self.u.data * 2
        return self.second(F.relu(self.first(x)))


def frozen(network: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = F.relu(network.stem(x))
    return network.head(F.relu(network.middle(x)))


def reentrant(network: Net, x: Tensor) -> Tensor:
    def inside(y: Tensor) -> Tensor:
        return F.relu(network.middle(F.relu(network.stem(y))))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return network.head(checkpoint(inside, x, use_reentrant=True))


def detached(network: Net, x: Tensor) -> Tensor:
    return network.head(F.relu(network.middle(F.relu(network.stem(x).detach()))))


class Net(nn.Module):
    def __init__(self, run: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.middle, self.head, self.spare = Conv(3, 8, 1), Conv(8, 6, 1), Conv(6, 3, 1), Conv(1, 1, 1)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def test_weights_that_forward_writes_through_data_are_followed_to_what_they_are_made_of() -> None:
    network, other = FoldingData(), FoldingData()
    groups = proved(network)
    (group,) = groups.free
    assert {(slot.key, slot.axis) for slot in group.slots} == {("w", 0), ("u", 1)}
    assert groups.fixed_tensors["first.weight"] == NOT_USED
    assert not not_followed(groups)
    other.load_state_dict(group.permute(network.state_dict(), torch.randperm(8)))
    child = fuse(Parents([network, other], example=IMAGE), PLAIN).child
    with torch.no_grad():
        torch.testing.assert_close(child(IMAGE), network(IMAGE))


def test_weights_that_forward_writes_are_not_proved() -> None:
    """Permuting them has no effect, since they are written anew; what they are made of is named."""
    networks = [Folding(), Folding()]
    groups = proved(networks[0])
    assert not groups.free
    assert groups.fixed["first"] == "not proved: the forward pass itself writes first.weight"
    assert {"w", "u"} <= set(not_followed(groups))
    assert groups.covered_share == 0.0
    with pytest.raises(GroupError, match=r"only 0% of the parameters .* first \(not proved"):
        fuse(Parents(networks, example=IMAGE), PLAIN)


@pytest.mark.parametrize("run", [frozen, reentrant, detached])
def test_what_no_gradient_shows_is_followed(run: Callable[[Net, Tensor], Tensor]) -> None:
    network = Net(run)
    found = find_groups(network.eval(), IMAGE)
    groups = proved(network)
    assert [(group.name, group.size) for group in groups.free] == [("stem", 8), ("middle", 6)]
    assert groups.covered_share == found.covered_share
    assert groups.fixed_tensors["spare.weight"] == NOT_USED
    assert not not_followed(groups)
    assert change_by_permuting(network, groups, IMAGE) < 1e-5


class Normalise(torch.autograd.Function):
    """A norm over the channels, with a scale of each, and no backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) * scale.view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise NotImplementedError


class OwnNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.scale = Conv(3, 8, 3), Conv(8, 3, 1), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(Normalise.apply(self.stem(x), self.scale)))


def test_the_inside_of_a_function_of_ones_own_is_followed_and_proved_without_its_gradient() -> None:
    network, apply = OwnNorm(), vars(torch.autograd.Function)["apply"]
    groups = proved(network)
    assert [(group.name, group.size) for group in groups.free] == [("stem", 8)]
    assert {slot.key for slot in groups["stem"].slots} == {"stem.weight", "stem.bias", "scale", "head.weight"}
    assert change_by_permuting(network, groups, IMAGE) < 1e-5
    assert vars(torch.autograd.Function)["apply"] is apply


class ChannelAttention(nn.Module):
    """Attention between channels, in two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Conv(3, 8, 1), nn.Linear(8, 3)
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).view(*x.shape[:2], 2, 4).permute(0, 2, 3, 1) for layer in (self.q, self.k, self.v))
        y = (k @ q.transpose(-2, -1)).softmax(-1) @ v
        return self.head(y.permute(0, 3, 1, 2).reshape(x.shape))


def test_attention_between_channels_does_not_touch_the_input() -> None:
    network = ChannelAttention()
    groups = proved(network)
    assert not not_followed(groups)
    sizes = {name: [group.size for group in groups.free if group.name.startswith(name)] for name in "qk"}
    assert sizes == {"q": [2, 4, 4], "k": [4, 4]}
    assert change_by_permuting(network, groups, IMAGE) < 1e-5


class Bilinear(nn.Module):
    """Products of all pairs of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Conv(3, 8, 1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x)).flatten(2)
        return self.head((y @ y.transpose(1, 2)).flatten(1))


def test_a_network_without_groups_is_refused_unless_allowed() -> None:
    networks = [Bilinear(), Bilinear()]
    with pytest.raises(GroupError, match=r"only 0% .*stem\.bias \(multiplied with one another, channel by channel\)"):
        fuse(Parents(networks, example=IMAGE), PLAIN)
    with pytest.warns(DepfuseWarning, match="a part of Bilinear stays fixed"):
        fuse(Parents(networks, example=IMAGE), PLAIN.changed({"align.allow_fixed": True}))


def test_a_linear_model_has_no_channels_and_is_averaged_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for _ in range(2)]
    child = fuse(Parents(networks, example=IMAGE), PLAIN).child
    assert not recwarn.list
    torch.testing.assert_close(child(IMAGE), (networks[0](IMAGE) + networks[1](IMAGE)) / 2)


class Mixing(nn.Module):
    """Right for one image; with more, images and channels are mixed up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Conv(3, 6, 3), Conv(6, 8, 3), Conv(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        count, channels, *size = x.shape
        x = x.reshape(channels, count, *size).transpose(0, 1)
        return self.third(F.relu(self.second(x)))


def test_the_proof_uses_several_images() -> None:
    network = Mixing()
    groups = find_groups(network, IMAGE)
    assert {group.name for group in groups.free} == {"first", "second"}
    after = prove_groups(network, groups, IMAGE)
    assert {group.name for group in after.free} == {"second"}
    assert after.fixed["first"].startswith("not proved")
    assert change_by_permuting(network, after, torch.randn(5, 3, 8, 8)) < 1e-5


def test_the_covered_share_is_that_after_the_proof() -> None:
    """Before it all three layers lie in a group; after it the second's 6 x 8 x 9 + 8 and the third's 2 x 8 entries."""
    network = Mixing()
    groups = find_groups(network, IMAGE)
    total = sum(parameter.numel() for parameter in network.parameters())
    assert groups.covered_share == (total - 2) / total
    after = prove_groups(network, groups, IMAGE)
    assert after.covered_share == (6 * 8 * 9 + 8 + 2 * 8) / total
    assert after.fixed_tensors["first.weight"].startswith("not proved")


class Rounded(nn.Module):
    """Weights that count by their signs, or not at all, but that gradients go through."""

    def __init__(self, counts: float) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(3, 6))
        self.plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        self.counts = counts

    def forward(self, x: Tensor) -> Tensor:
        beside = self.plain(x)
        for weight in (self.first, self.second):
            signs = weight.sign() * self.counts + 1 - self.counts
            x = F.linear(F.leaky_relu(x), weight + (signs - weight).detach())
        return x + beside


@pytest.mark.parametrize("counts", [1.0, 0.0])
def test_gradients_that_are_not_the_functions_prove_nothing(counts: float) -> None:
    """What the permutation of a part does is then measured: signs count, ones in place of weights do not."""
    groups = proved(Rounded(counts), torch.randn(1, 4))
    assert [group.size for group in groups.free] == ([5, 6] if counts else [5])
    if not counts:
        assert "permuting one of its tensors alone hardly changes the output" in groups.fixed["first"]


class OneImage(nn.Module):
    """A network that takes one image only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Conv(3, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)).mean((2, 3)).view(6))


def test_a_network_for_one_image_is_proved_with_one() -> None:
    assert [group.size for group in proved(OneImage()).free] == [6]
