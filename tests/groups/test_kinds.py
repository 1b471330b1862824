"""Kinds of networks that are followed: the proof fixes nothing, and the function is kept under random permutations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse import Recipe, fuse
from depfuse.align.coupling import Coupling, apply_couplings, compose
from depfuse.fusion.parents import Parents
from depfuse.groups import explain, find_groups, not_followed, prove_groups, random_permutations
from depfuse.groups.reasons import CHOSEN, CROSSING, PAIRS, left_in_place
from depfuse.networks.forward import run_network

Conv = nn.Conv2d
BY_WEIGHTS = Recipe(criterion="weights", refit="none", renorm="none")


class Net(nn.Module):
    """Modules by name, and a forward pass."""

    def __init__(self, run: Callable[..., Any], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def image(*shape: int) -> Tensor:
    return torch.rand(*(shape or (1, 3, 8, 8)), generator=torch.Generator().manual_seed(0))


def sub_pixel() -> tuple[Net, Any]:
    """r * r channels before a pixel shuffle are one channel behind it."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(net.up(F.relu(net.stem(x))), 2)
        return net.head(F.relu(net.mix(F.avg_pool2d(net.each(x), 2))))

    up, each = Conv(8, 20, 3, padding=1), Conv(5, 5, 3, padding=1, groups=5)
    return Net(run, stem=Conv(3, 8, 3, padding=1), up=up, each=each, mix=Conv(5, 6, 1), head=Conv(6, 3, 1)), image()


def generator() -> tuple[Net, Any]:
    """A linear layer's outputs are viewed as the channels of an image, with norms on both sides."""

    def run(net: Net, z: Tensor) -> Tensor:
        x = net.norm(F.relu(net.flat(net.start(z))).view(-1, 6, 2, 2))
        return net.head(F.silu(net.groups(net.up(x))))

    start, up = nn.Linear(7, 24), nn.ConvTranspose2d(6, 8, 4, 2, 1)
    norms = {"flat": nn.BatchNorm1d(24), "norm": nn.BatchNorm2d(6), "groups": nn.GroupNorm(2, 8)}
    return Net(run, start=start, up=up, head=Conv(8, 3, 3), **norms), image(1, 7)


def group_norm_of_a_view() -> tuple[Net, Any]:
    def run(net: Net, z: Tensor) -> Tensor:
        x = F.interpolate(net.norm(net.start(z).view(-1, 6, 2, 2)), scale_factor=2, mode="bilinear")
        return net.head(F.relu(x))

    return Net(run, start=nn.Linear(7, 24), norm=nn.GroupNorm(3, 6), head=Conv(6, 3, 3)), image(1, 7)


def written_types() -> tuple[Net, Any]:
    """float32 written into forward: angles of a time, a cast before a norm, a softmax in a type."""

    def run(net: Net, x: Tensor, time: Tensor) -> Tensor:
        angle = time[:, None].float() * torch.exp(-torch.arange(3, dtype=torch.float32) / 3)
        x = net.stem(x) + net.time(torch.cat([angle.sin(), angle.cos()], 1))[:, :, None, None]
        x = net.norm(x.float().mean((2, 3))).to(x.dtype)
        return net.head(F.softmax(x, 1, dtype=torch.float32).type_as(x))

    layers = {"stem": Conv(3, 10, 3), "time": nn.Linear(6, 10), "norm": nn.LayerNorm(10), "head": nn.Linear(10, 3)}
    return Net(run, **layers), [image(), torch.tensor([4])]


def shared_keys(repeated: bool) -> tuple[Net, Any]:
    """Two query heads for each head of keys and values."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        q = net.q(x).view(1, 5, 6, 4).transpose(1, 2)
        k, v = (layer(x).view(1, 5, 3, 4).transpose(1, 2) for layer in (net.k, net.v))
        if repeated:
            k, v = (each.repeat_interleave(2, 1) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=not repeated)
        return net.head(net.out(y.transpose(1, 2).reshape(1, 5, 24)))

    layers = {"q": nn.Linear(10, 24), "k": nn.Linear(10, 12), "v": nn.Linear(10, 12), "out": nn.Linear(24, 9)}
    return Net(run, stem=nn.Linear(3, 10), head=nn.Linear(9, 2), **layers), image(1, 5, 3)


def masked_attention() -> tuple[Net, Any]:
    """A learned bias for each head, added to what attends."""

    def run(net: Net, x: Tensor) -> Tensor:
        q, k, v = net.qkv(net.stem(x)).view(1, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=net.bias[None])
        return net.out(y.transpose(1, 2).reshape(1, 5, 12))

    layers = {"stem": nn.Linear(3, 8), "qkv": nn.Linear(8, 36), "out": nn.Linear(12, 3)}
    return Net(run, bias=nn.Parameter(torch.randn(3, 5, 5)), **layers), image(1, 5, 3)


def queries_of_a_constant() -> tuple[Net, Any]:
    def run(net: Net, x: Tensor) -> Tensor:
        places = torch.linspace(0, 1, 15, dtype=x.dtype).view(1, 5, 3)
        return net.head(F.relu(net.stem(x) + net.place(places) + net.one(torch.ones(1, 4, dtype=x.dtype))))

    layers = {"stem": nn.Linear(3, 8), "place": nn.Linear(3, 8), "one": nn.Linear(4, 8), "head": nn.Linear(8, 3)}
    return Net(run, **layers), image(1, 5, 3)


def gates() -> tuple[Net, Any]:
    def run(net: Net, x: Tensor) -> Tensor:
        y = F.relu(net.stem(x))
        gate = net.gate(y).sigmoid()
        return net.head(gate * y + (1 - gate) * torch.atan(F.softsign(net.other(y))))

    return Net(run, stem=Conv(3, 8, 1), gate=Conv(8, 8, 1), other=Conv(8, 8, 1), head=Conv(8, 3, 1)), image()


def written_in_place() -> tuple[Net, Any]:
    """The input, a slice that is read before it is written, and an exponential that its gradient needs."""

    def run(net: Net, x: Tensor) -> Tensor:
        x *= 255
        x.sub_(net.mean)
        y = net.stem(x)
        y[:, :3] = net.part(y[:, :3])
        return net.head(torch.exp(0.1 * net.mix(y)).add_(1.0))

    layers = {"stem": Conv(3, 8, 1), "part": Conv(3, 3, 1), "mix": Conv(8, 5, 1), "head": Conv(5, 3, 1)}
    return Net(run, mean=nn.Parameter(torch.rand(1, 3, 1, 1)), **layers), image()


def of_a_range() -> tuple[Net, Any]:
    """Inputs from 0 to 1: others give no number."""
    return Net(lambda net, x: net.head(F.relu(net.stem(x.pow(2.2)))), stem=Conv(3, 8, 3), head=Conv(8, 3, 3)), image()


def zero_out_of_a_range() -> tuple[Net, Any]:
    """Inputs from 0 to 1: of others, all outputs are zero."""
    layers = {"stem": Conv(3, 8, 3), "head": Conv(8, 3, 3)}
    return Net(lambda net, x: net.head(F.relu(net.stem(x.pow(2.2)))).nan_to_num().clamp(0, 1), **layers), image()


def windows() -> tuple[Net, Any]:
    """im2col and its inverse."""

    def run(net: Net, x: Tensor) -> Tensor:
        y = net.mix(F.unfold(F.relu(net.stem(x)), 2, stride=2).transpose(1, 2)).transpose(1, 2)
        return net.head(F.relu(F.fold(y, (8, 8), 2, stride=2)))

    return Net(run, stem=Conv(3, 6, 1), mix=nn.Linear(24, 20), head=Conv(5, 3, 3)), image()


def sampled() -> tuple[Net, Any]:
    """Sampling at points, Fourier transforms, and tokens that are gathered by their scores."""

    def run(net: Net, x: Tensor) -> Tensor:
        y = F.relu(net.stem(x))
        y = F.grid_sample(y, net.flow(y).permute(0, 2, 3, 1).tanh(), align_corners=False)
        f = torch.fft.rfft2(y)
        real, imaginary = net.mix(torch.cat([f.real, f.imag], 1)).chunk(2, 1)
        y = torch.fft.irfft2(torch.complex(real, imaginary), s=y.shape[-2:]).flatten(2).transpose(1, 2)
        best = net.score(y).topk(3, 1).indices
        return net.head(y.gather(1, best.expand(-1, -1, 8)))

    layers = {"stem": Conv(3, 8, 1), "flow": Conv(8, 2, 1), "mix": Conv(16, 16, 1)}
    return Net(run, score=nn.Linear(8, 1), head=nn.Linear(8, 3), **layers), image()


def unpooled() -> tuple[Net, Any]:
    def run(net: Net, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(F.relu(net.stem(x)), 2, return_indices=True)
        return net.head(F.max_unpool2d(F.relu(net.middle(y)), places, 2))

    return Net(run, stem=Conv(3, 8, 1), middle=Conv(8, 8, 1), head=Conv(8, 3, 1)), image()


def mixed_filters() -> tuple[Net, Any]:
    """A mixture of filters, flattened for a product and viewed as filters again."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.stem(x))
        shares = net.route(x.mean((2, 3))).softmax(1)
        weight = (shares @ net.filters.flatten(1)).view(7, 5, 3, 3)
        return net.head(F.relu(F.conv2d(x, weight)))

    layers = {"stem": Conv(3, 5, 1), "route": nn.Linear(5, 4), "head": Conv(7, 3, 1)}
    return Net(run, filters=nn.Parameter(torch.randn(4, 7, 5, 3, 3)), **layers), image()


def attention_between_channels() -> tuple[Net, Any]:
    """Each head attends from channels to channels."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).view(1, 64, 3, 4).permute(0, 2, 3, 1) for layer in (net.q, net.k, net.v))
        y = ((k @ q.transpose(-2, -1)).softmax(-1) @ v).permute(0, 3, 1, 2).reshape(1, 64, 12)
        return net.head(net.out(y))

    layers = {name: nn.Linear(8, 12) for name in ("q", "k", "v")}
    return Net(run, stem=Conv(3, 8, 1), out=nn.Linear(12, 5), head=nn.Linear(5, 3), **layers), image()


def rotated_whole() -> tuple[Net, Any]:
    """A slice without channels, joined to the rest."""

    def run(net: Net, x: Tensor) -> Tensor:
        q = net.stem(x).view(1, 5, 2, 4).transpose(1, 2)
        return net.head(torch.cat([q[..., :4] * 2, q[..., 4:]], -1).transpose(1, 2).reshape(1, 5, 8))

    return Net(run, stem=nn.Linear(3, 8), head=nn.Linear(8, 3)), image(1, 5, 3)


def recurrent(kind: type[nn.RNNBase]) -> tuple[Net, Any]:
    def run(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.stem(x)).transpose(1, 2)
        return net.head(net.cells(x)[0][:, -1])

    return Net(run, stem=nn.Conv1d(4, 8, 3), cells=kind(8, 6, batch_first=True), head=nn.Linear(6, 2)), image(1, 4, 9)


def gated_sub_pixel() -> tuple[Net, Any]:
    """What a pixel shuffle made is multiplied by a map of gates: pixels stay in their order, channels move."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(net.up(F.relu(net.stem(x))), 2)
        return net.head(torch.cat([F.relu(net.mix(x)), net.gate(x).sigmoid() * x], 1))

    layers = {"mix": Conv(5, 6, 1), "gate": Conv(5, 1, 1), "head": Conv(11, 3, 1)}
    return Net(run, stem=Conv(3, 8, 3, padding=1), up=Conv(8, 20, 1), **layers), image()


def biased_by_head(fused: bool) -> tuple[Net, Any]:
    """Each head has a slope of its own for distances, which a mask says (ALiBi): heads stay, their channels move."""

    def run(net: Net, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = net.qkv(net.stem(x)).view(1, 5, 2, 3, 4).permute(3, 0, 2, 1, 4)
        bias = torch.tensor([0.5, 0.25])[:, None, None] * mask.cumsum(-1)[:, None, :].to(x.dtype)
        if fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].expand(1, 2, 5, 5))
        else:
            y = (torch.baddbmm(bias.to(x.dtype), q[0], k[0].mT).softmax(-1) @ v[0])[None]
        return net.head(net.out(y.transpose(1, 2).flatten(2)))

    layers = {"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 6), "head": nn.Linear(6, 3)}
    return Net(run, stem=nn.Linear(3, 8), **layers), [image(1, 5, 3), torch.ones(1, 5, dtype=torch.int64)]


def put_at_indices() -> tuple[Net, Any]:
    """Tokens are written at places, a mask's token at others, and all of it into a tensor of zeros."""

    def run(net: Net, x: Tensor) -> Tensor:
        y = net.stem(x) * 1
        y[:, torch.tensor([4, 1])] = net.tokens
        y[torch.tensor([[False, True, False, True, False, False]])] = net.masked
        z = torch.zeros(1, 9, 8, dtype=y.dtype)
        z[:, torch.tensor([0, 2, 4, 5, 7, 8])] = F.relu(y)
        return net.head(F.relu(net.middle(z)))

    layers = {"stem": nn.Linear(3, 8), "middle": nn.Linear(8, 5), "head": nn.Linear(5, 3)}
    tokens = {"tokens": nn.Parameter(torch.randn(2, 8)), "masked": nn.Parameter(torch.randn(8))}
    return Net(run, **layers, **tokens), image(1, 6, 3)


def added_to_a_turned_view() -> tuple[Net, Any]:
    """Places are added in place to an image that was turned into tokens."""

    def run(net: Net, x: Tensor) -> Tensor:
        y = net.stem(x).flatten(2).transpose(1, 2)
        y += net.places
        z = net.next(y.transpose(1, 2)).transpose(1, 2)
        z[:, 1:] *= net.scale
        y = z * y
        return net.head(F.relu(net.middle(F.relu(y))))

    layers = {"stem": Conv(3, 8, 4, 4), "next": nn.Conv1d(8, 8, 1), "middle": nn.Linear(8, 5), "head": nn.Linear(5, 3)}
    shifts = {"places": nn.Parameter(torch.randn(1, 4, 8)), "scale": nn.Parameter(torch.randn(3, 8))}
    return Net(run, **layers, **shifts), image()


def commitment() -> tuple[Net, Any]:
    """A loss between two layers is an output besides (vector quantisation): it ties their channels, one to one."""

    def run(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(net.stem(x))
        z = F.relu(net.middle(y))
        return net.head(z), F.mse_loss(z, y)

    return Net(run, stem=Conv(3, 8, 1), middle=Conv(8, 8, 1), head=Conv(8, 3, 1)), image()


def constant_filters() -> tuple[Net, Any]:
    """A blur for every channel, then two edge detectors; and a sharper filter for the last three channels."""

    def run(net: Net, x: Tensor) -> Tensor:
        y, kernel = F.relu(net.stem(x)), torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]).to(x.dtype)
        y = F.conv2d(y, kernel.expand(8, 1, 3, 3) / 16, stride=2, padding=1, groups=8)
        edges = F.conv2d(
            y, torch.stack([kernel.diff(dim=0), kernel.diff(dim=1).mT])[:, None].repeat(8, 1, 1, 1), groups=8
        )
        sharp = kernel * torch.tensor([1.0, 1, 1, 1, 1, 3, 3, 3]).to(x.dtype)[:, None, None, None]
        return net.head(F.relu(edges)), net.other(F.relu(F.conv2d(net.next(y), sharp, groups=8)))

    layers = {"stem": Conv(3, 8, 3, padding=1), "next": Conv(8, 8, 1), "head": Conv(16, 3, 1), "other": Conv(8, 3, 1)}
    return Net(run, **layers), image()


def linear_attention() -> tuple[Net, Any]:
    """A row of ones below the values of each head sums up what is divided by."""

    def run(net: Net, x: Tensor) -> Tensor:
        q, k, v = F.relu(net.qkv(net.stem(x))).view(1, 6, 2, 3, 4).permute(3, 0, 2, 4, 1)
        scores = F.pad(v, (0, 0, 0, 1), value=1.0) @ k.mT
        y = scores @ q
        return net.head(net.out((y[:, :, :-1] / (y[:, :, -1:] + 1e-3)).flatten(1, 2).mT))

    layers = {"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 6), "head": nn.Linear(6, 3)}
    return Net(run, stem=nn.Linear(3, 8), **layers), image(1, 6, 3)


def folded() -> tuple[Net, Any]:
    """A filter is made of two others, and of a shortcut's, and written into a layer in each forward pass."""

    def run(net: Net, x: Tensor) -> Tensor:
        first, second, short = net.first.weight.data.clone(), net.second.weight.detach(), net.short.weight.data
        both = F.conv2d(first.flip(2, 3).permute(1, 0, 2, 3), second, padding=2).flip(2, 3).permute(1, 0, 2, 3)
        net.whole.weight.data = (both + F.pad(short, (1, 1, 1, 1))).contiguous()
        shift = (second * net.first.bias.data.reshape(1, -1, 1, 1)).sum((1, 2, 3))
        net.whole.bias.data = shift + net.second.bias.data + net.short.bias.data
        return net.head(F.silu(net.whole(F.silu(net.stem(x)))))

    parts = {"first": Conv(5, 7, 1), "second": Conv(7, 6, 3), "short": Conv(5, 6, 1)}
    return Net(run, stem=Conv(3, 5, 1), **parts, whole=Conv(5, 6, 3, padding=1), head=Conv(6, 3, 1)), image()


def rounded() -> tuple[Net, Any]:
    """An image's code is rounded to bytes and read again: no gradient passes, but channels do."""

    def run(net: Net, x: Tensor) -> Tensor:
        code = net.code(F.silu(net.stem(x))).div(6).add(0.5).clamp(0, 1)
        read = (code * 255).round().byte() / 255.0
        return net.head(F.silu(net.read(read)))

    return Net(run, stem=Conv(3, 8, 1), code=Conv(8, 4, 1), read=Conv(4, 6, 1), head=Conv(6, 3, 1)), image()


def test_a_product_by_experts_keeps_their_order() -> None:
    """What the experts read, hold and write is free; which of them a token goes to is an index."""

    def run(net: Net, x: Tensor) -> Tensor:
        y = net.stem(x)[0]
        best, expert = net.route(y).softmax(-1).max(-1)
        expert, order = expert.sort()
        ends = torch.histc(expert.float(), 4, 0, 3).cumsum(0).int()
        z = F.relu(torch._grouped_mm(y[order], net.up.mT, offs=ends))
        z = torch._grouped_mm(z, net.down, offs=ends) * best[order][:, None]
        return net.head(y + torch.zeros_like(y).index_add(0, order, z))

    layers = {"stem": nn.Linear(3, 8), "route": nn.Linear(8, 4), "head": nn.Linear(8, 3)}
    experts = {"up": nn.Parameter(torch.randn(4, 12, 8)), "down": nn.Parameter(torch.randn(4, 12, 8))}
    network = Net(run, **layers, **experts)
    found = find_groups(network, image(1, 6, 3))
    moved = {(slot.key, slot.axis): group.size for group in found.free for slot in group.slots}
    assert {place: size for place, size in moved.items() if place[0] in experts} == {
        ("up", 1): 12,
        ("up", 2): 8,
        ("down", 1): 12,
        ("down", 2): 8,
    }
    assert found["route"].fixed == CHOSEN
    groups = prove_groups(network, found, image(1, 6, 3))
    assert groups.fixed == found.fixed
    assert not not_followed(groups)


def spectral(norm: Callable[..., nn.Module]) -> tuple[Net, Any]:
    run = lambda net, x: net.head(F.relu(net.middle(F.relu(net.stem(x)))))  # noqa: E731
    return Net(run, stem=norm(Conv(3, 8, 3)), middle=norm(Conv(8, 6, 3)), head=Conv(6, 3, 1)), image()


OLD, NEW = torch.nn.utils, torch.nn.utils.parametrizations
KINDS: dict[str, tuple[Callable[[], tuple[Net, Any]], list[int]]] = {
    "sub_pixel": (sub_pixel, [8, 5, 6]),
    "generator": (generator, [6, 2, 4, 4]),
    "group_norm_of_a_view": (group_norm_of_a_view, [3, 2, 2, 2]),
    "written_types": (written_types, [10]),
    "masked_attention": (masked_attention, [8, 3, 4, 4, 4, 4, 4, 4]),
    "shared_keys": (lambda: shared_keys(False), [10, 3, 4, 4, 4, 4, 4, 4, 9]),
    "repeated_keys": (lambda: shared_keys(True), [10, 3, 4, 4, 4, 4, 4, 4, 9]),
    "queries_of_a_constant": (queries_of_a_constant, [8]),
    "gates": (gates, [8]),
    "written_in_place": (written_in_place, [3, 5, 3, 5]),
    "of_a_range": (of_a_range, [8]),
    "zero_out_of_a_range": (zero_out_of_a_range, [8]),
    "mixed_filters": (mixed_filters, [5, 4, 7]),
    "attention_between_channels": (attention_between_channels, [8, 3, 4, 4, 4, 4, 4, 4, 5]),
    "rotated_whole": (rotated_whole, [8]),
    "windows": (windows, [6, 5]),
    "sampled": (sampled, [8, 8]),
    "unpooled": (unpooled, [8]),
    "gated_sub_pixel": (gated_sub_pixel, [8, 5, 6]),
    "biased_by_head": (lambda: biased_by_head(False), [8, 4, 4, 4, 4, 6]),
    "biased_by_head_fused": (lambda: biased_by_head(True), [8, 4, 4, 4, 4, 6]),
    "put_at_indices": (put_at_indices, [8, 5]),
    "added_to_a_turned_view": (added_to_a_turned_view, [8, 5]),
    "commitment": (commitment, [8]),
    "constant_filters": (constant_filters, [8, 5, 3]),
    "linear_attention": (linear_attention, [8, 2, 4, 4, 4, 4, 6]),
    "folded": (folded, [7, 6, 5]),
    "rounded": (rounded, [8, 4, 6]),
    "gru": (lambda: recurrent(nn.GRU), [8, 6]),
    "old_spectral_norm": (lambda: spectral(OLD.spectral_norm), [8, 6]),
    "new_spectral_norm": (lambda: spectral(NEW.spectral_norm), [8, 6]),
}


def first_of(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


@pytest.mark.parametrize("kind", KINDS)
def test_followed_and_proved(kind: str) -> None:
    torch.manual_seed(0)
    make, sizes = KINDS[kind]
    network, example = make()
    network.eval()
    found = find_groups(network, example)
    groups = prove_groups(network, found, example)
    assert groups.fixed == found.fixed
    assert groups.covered_share == found.covered_share
    assert not not_followed(groups), explain(not_followed(groups))
    assert [group.size for group in groups.free] == sizes
    inputs = [leaf.clone() for leaf in (example if isinstance(example, list) else [example])]
    with torch.no_grad():
        before = first_of(run_network(network, [leaf.clone() for leaf in inputs]))
        state = network.state_dict()
        for name, order in random_permutations(groups, 3).items():
            state = groups[name].permute(state, order)
        network.load_state_dict(state)
        after = first_of(run_network(network, inputs))
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5


def test_channels_that_are_cut_out_by_their_place_are_parts_of_a_group() -> None:
    """They lie in the same tensors and go another way: the proof finds which may be exchanged."""

    def run(net: Net, x: Tensor) -> Tensor:
        y = F.relu(net.stem(x))
        z = torch.zeros_like(y)
        z[:, ::2], z[:, 1::2] = y[:, ::2], y[:, 1::2] * 2
        return net.head(torch.cat([z[:, :6].tanh(), z[:, 6:7], z[:, 7:]], 1))

    network, example = Net(run, stem=Conv(3, 10, 1), head=Conv(10, 3, 1)), image()
    groups = prove_groups(network, find_groups(network, example), example)
    moved = [slot.index[:, 0].tolist() for group in groups.free for slot in group.slots if slot.key == "stem.weight"]
    assert sorted(moved) == [[0, 2, 4], [1, 3, 5], [7, 9]]
    assert groups.proof_error is not None
    assert groups.proof_error <= 1e-9


def test_pairs_of_channels_are_named() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        y = F.relu(net.stem(x)).flatten(2)
        return net.head((y @ y.transpose(1, 2)).flatten(1))

    network, example = Net(run, stem=Conv(3, 4, 1), head=nn.Linear(16, 3)), image()
    groups = prove_groups(network, find_groups(network, example), example)
    assert not groups.free
    assert PAIRS in explain(not_followed(groups))


def grouped_by_four_and_two() -> tuple[Net, Any]:
    """A stream that convolutions of four and of two groups read: blocks in blocks."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(F.relu(x + net.twos(F.relu(net.fours(F.relu(x))))))

    layers = {"fours": Conv(12, 12, 1, groups=4), "twos": Conv(12, 12, 1, groups=2)}
    return Net(run, stem=Conv(3, 12, 3, padding=1), head=Conv(12, 3, 1), **layers), image()


def shuffled(written: int = 3, after: int = 3) -> tuple[Net, Any]:
    """A residual stream read in two blocks and written in others, with a shuffle after each."""

    def mixed(x: Tensor, blocks: int) -> Tensor:
        return x.unflatten(1, (blocks, -1)).transpose(1, 2).flatten(1, 2)

    def run(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = F.relu(net.depth(mixed(F.relu(net.up(x)), 2)))
        return net.head(F.relu(x + mixed(net.down(y), after)))

    layers = {"up": Conv(12, 12, 1, groups=2), "depth": Conv(12, 12, 3, padding=1, groups=12)}
    layers |= {"down": Conv(12, 12, 1, groups=written), "stem": Conv(3, 12, 3, padding=1), "head": Conv(12, 3, 1)}
    return Net(run, **layers), image()


def test_of_blocks_that_cross_the_larger_group_moves() -> None:
    """Rows of a table may be exchanged, or columns; of both with their cells, couplings would not compose."""
    network, example = shuffled()
    groups = prove_groups(network, find_groups(network, example), example)
    (crossing,) = [group for group in groups if group.fixed == CROSSING]
    assert crossing.size == 2
    assert [group.size for group in groups.free if group.inside is None] == [3]
    assert groups.covered_share > 0.98
    assert not not_followed(groups)
    state = network.state_dict()
    first, second = (
        {name: Coupling(order) for name, order in random_permutations(groups, seed).items()} for seed in (1, 2)
    )
    twice = apply_couplings(groups, second, apply_couplings(groups, first, state))
    at_once = apply_couplings(groups, compose(groups, first, second), state)
    assert all(torch.equal(tensor, at_once[key]) for key, tensor in twice.items())


COPIED = {
    "grouped_by_four_and_two": grouped_by_four_and_two,
    "shuffled": shuffled,
    "blocks_in_two_halves": lambda: shuffled(4, 6),
    "sub_pixel": sub_pixel,
    "generator": generator,
    "repeated_keys": lambda: shared_keys(True),
    "attention_between_channels": attention_between_channels,
}


@pytest.mark.parametrize("kind", COPIED)
@pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning")
def test_a_permuted_copy_is_recovered(kind: str) -> None:
    torch.manual_seed(1)
    network, example = COPIED[kind]()
    network = network.double().eval()
    example = example.double()
    groups = prove_groups(network, find_groups(network, example), example)
    other, state = copy.deepcopy(network), network.state_dict()
    for name, order in random_permutations(groups, 5).items():
        state = groups[name].permute(state, order)
    other.load_state_dict(state)
    child = fuse(Parents([network, other], example=example), BY_WEIGHTS).child
    with torch.no_grad():
        wanted = network(example)
        assert float((other(example) - wanted).abs().max() / wanted.abs().max()) < 1e-9
        assert float((child(example) - wanted).abs().max() / wanted.abs().max()) < 1e-6


def test_where_much_stays_in_place_a_line_says_what_and_why() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.head(F.relu(net.stem(x)))

    layers = {"stem": Conv(3, 6, 1), "head": Conv(6, 3, 1), "spare": nn.Linear(10, 10)}
    network, example = Net(run, **layers), image()
    groups = prove_groups(network, find_groups(network, example), example)
    assert left_in_place(groups) == (
        "73% of the parameters stay in place: 71% not used in the forward pass (spare.weight, spare.bias); "
        "2% touches the network's output (head.bias)"
    )
    del network.spare
    assert not left_in_place(prove_groups(network, find_groups(network, example), example))
